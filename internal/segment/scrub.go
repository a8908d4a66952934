package segment

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
	"sync"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// Scrubber reads a log again, from its first segment to the end of what is flushed, and checks every byte of it: the batches'
// CRCs and offsets, and that the indexes agree with them. It is one reader's; Step by Step it goes once through the log.
type Scrubber struct {
	log  *Log
	to   int64    // segments from this offset on are left out
	s    *segment // being read, nil between two
	last int64    // base of the segment read last, -1 at the beginning
	pos  int64
	next int64 // offset at pos
	size int64
	end  int64
	hurt bool // the segment has damage: its indexes are not judged
	idx  indexCheck
	buf  []byte
	read window
}

// Scrubbed is what one step found.
type Scrubbed struct {
	Bytes int64 // read
	// From and To are the offsets that were read, and Sum the sum (record.Sum) of the sound batches in them.
	From, To int64
	Sum      uint64
	Lost     []Lost
	Done     bool // the log is through
}

// Scrub begins a pass over the log.
func (l *Log) Scrub() *Scrubber { return &Scrubber{log: l, last: -1, to: math.MaxInt64} }

// ScrubRange is Scrub for the segments that hold offsets of [from, to).
func (l *Log) ScrubRange(from, to int64) *Scrubber {
	c := &Scrubber{log: l, last: -1, to: to}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if i := segmentAt(l.segs, from); len(l.segs) > 0 && i > 0 {
		c.last = l.segs[i].base - 1
	}
	return c
}

// Step reads on by about max bytes, at least one batch. Damaged batches are no error. Errors: ErrClosed, *IOError.
func (c *Scrubber) Step(max int64) (out Scrubbed, err error) {
	if c.s == nil {
		if more, err := c.open(&out); err != nil || !more {
			out.Done = err == nil
			return out, err
		}
	}
	if out.From == 0 || out.From > c.next {
		out.From = c.next
	}
	err = c.batches(max, &out)
	out.To = c.next
	if errors.Is(err, errNotExist) {
		if x, gone := c.vanished(); !gone {
			out.Lost = append(out.Lost, x)
		}
		c.read.done()
		c.last, c.s, c.next = c.s.base, nil, c.end
		return out, nil
	}
	return out, err
}

// vanished says whether the segment was deleted or replaced meanwhile: what took its place is read with the next pass. If it was not,
// its file is missing.
func (c *Scrubber) vanished() (x Lost, gone bool) {
	c.log.mu.RLock()
	defer c.log.mu.RUnlock()
	return Lost{From: c.next, To: c.end, File: c.s.log.path(), Reason: "file is missing"}, c.s.gone
}

// open takes the next segment.
func (c *Scrubber) open(out *Scrubbed) (more bool, err error) {
	l := c.log
	l.mu.RLock()
	closed, segs := l.closed, l.segs
	l.mu.RUnlock()
	if closed {
		return false, ErrClosed
	}
	i := sort.Search(len(segs), func(i int) bool { return segs[i].base > c.last })
	if i == len(segs) || segs[i].base >= c.to {
		return false, nil
	}
	s, active := segs[i], i == len(segs)-1
	if !active {
		if err := l.ensureIndex(s); err != nil && damageOf(err) == nil && !errors.Is(err, errNotExist) {
			return false, err
		}
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	c.s, c.pos, c.next, c.size, c.end, c.hurt = s, 0, s.base, s.size, s.end, false
	c.idx = indexCheck{on: s.loaded && s.hasIndex, sealed: !active && len(s.x.idx) == 0, index: s.index, times: s.times, ilen: s.ilen, tlen: s.tlen}
	if active {
		c.end = min(l.flushed, s.end)
	}
	c.read = window{r: slotReader{&s.log}, drop: func(off, n int64) { dropCache(&s.log, off, n) }, keep: active}
	out.From = c.next
	return true, nil
}

// batches reads on in the segment.
func (c *Scrubber) batches(max int64, out *Scrubbed) error {
	l, s := c.log, c.s
	l.mu.RLock()
	holes, known := l.cleaned.Holes, l.epochs
	l.mu.RUnlock()
	f := &batchFile{name: s.log.path(), r: &c.read, ahead: true, base: s.base, size: c.size, end: c.end, holes: holes, check: known.check}
	for c.pos < c.size && c.next < c.end && out.Bytes < max {
		var h record.Header
		var b []byte
		var err error
		h, b, c.buf, err = f.batch(c.pos, c.next, c.buf)
		damage := damageOf(err)
		if err != nil && damage == nil {
			return err
		}
		if damage != nil {
			if err := c.stepOver(f, damage, out); err != nil {
				return err
			}
			continue
		}
		if err := c.idx.batch(h, c.pos, s.base); err != nil {
			return err
		}
		out.Sum += record.Sum(h)
		c.pos += int64(len(b))
		out.Bytes += int64(len(b))
		c.next = h.LastOffset() + 1
	}
	if c.pos < c.size && c.next < c.end {
		return nil
	}
	return c.finish(holes, out)
}

// stepOver reports damage and goes on behind it.
func (c *Scrubber) stepOver(f *batchFile, d *DamageError, out *Scrubbed) error {
	c.hurt = true
	h, at, n, ok, err := f.resync(c.pos, c.next, nil)
	if err != nil {
		return err
	}
	out.Bytes += n
	x := Lost{From: c.next, To: c.end, File: d.File, Offset: d.Offset, Reason: d.Reason}
	if d.Err != nil {
		x.Reason += ": " + d.Err.Error()
	}
	if ok {
		x.To = min(h.BaseOffset, c.end)
		c.pos, c.next = at, h.BaseOffset
	} else {
		c.pos, c.next = c.size, c.end
	}
	if x.To > x.From {
		out.Lost = append(out.Lost, x)
	}
	return nil
}

// finish ends a segment: nothing may be missing at its end, and its indexes must have been used up.
func (c *Scrubber) finish(holes int64, out *Scrubbed) error {
	s := c.s
	if c.next < c.end && c.end > holes {
		out.Lost = append(out.Lost, Lost{From: c.next, To: c.end, File: s.log.path(), Offset: c.pos, Reason: "batches are missing at the segment's end"})
		c.hurt = true
	}
	c.next = max(c.next, c.end)
	c.read.done()
	c.last, c.s = s.base, nil
	if c.hurt {
		return nil
	}
	if bad := c.idx.finish(); bad != nil {
		if err := c.log.reindex(s, bad); !errors.Is(err, errNotExist) {
			return err
		}
		// Deleted or replaced meanwhile, and its indexes with it.
	}
	return nil
}

// indexCheck follows a segment's indexes while its batches are read.
type indexCheck struct {
	on, sealed   bool
	index, times *slot
	ilen, tlen   int64
	ib, tb       []byte
	begun        bool
	bad          error
}

func (x *indexCheck) load() error {
	x.begun = true
	x.ib, x.tb = make([]byte, x.ilen), make([]byte, x.tlen)
	for _, f := range []struct {
		s *slot
		b []byte
	}{{x.index, x.ib}, {x.times, x.tb}} {
		if len(f.b) == 0 {
			continue
		}
		if err := f.s.readAt(f.b, 0); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			x.bad = fmt.Errorf("%s is shorter than it was", f.s.path())
		} else if err != nil {
			return err
		}
	}
	return nil
}

// batch compares the entries for a batch with it.
func (x *indexCheck) batch(h record.Header, pos, base int64) error {
	if !x.on || x.bad != nil {
		return nil
	}
	if !x.begun {
		if err := x.load(); err != nil || x.bad != nil {
			return err
		}
	}
	if len(x.ib) >= indexEntrySize {
		switch e := decodeIndexEntry(x.ib); {
		case int64(e.pos) < pos:
			x.bad = fmt.Errorf("index points to byte %d, where no batch begins", e.pos)
		case int64(e.pos) == pos && base+int64(e.rel) != h.LastOffset():
			x.bad = fmt.Errorf("index says offset %d of byte %d, where a batch ends at %d", base+int64(e.rel), pos, h.LastOffset())
		case int64(e.pos) == pos:
			x.ib = x.ib[indexEntrySize:]
		}
	}
	for len(x.tb) >= timeEntrySize {
		e := decodeTimeEntry(x.tb)
		off := base + int64(e.rel)
		if off > h.LastOffset() {
			break
		}
		if off < h.LastOffset() || e.ts != h.MaxTimestamp {
			x.bad = fmt.Errorf("time index says timestamp %d of offset %d, the log does not", e.ts, off)
			break
		}
		x.tb = x.tb[timeEntrySize:]
	}
	return nil
}

// finish says what is wrong with the indexes of a segment that was read to its end.
func (x *indexCheck) finish() error {
	if x.bad == nil && x.on && x.begun && x.sealed && (len(x.ib) > 0 || len(x.tb) > 0) {
		return errors.New("index points beyond the segment's last batch")
	}
	return x.bad
}

// window reads a file ahead, chunk by chunk, and sees to it that a pass over everything does not push out of the page cache what
// others use: each chunk is dropped from it before, so that the disk is read and not the memory, and after. Of a segment
// that is being written and read at its end the cache is left alone.
type window struct {
	r    io.ReaderAt
	drop func(off, n int64)
	keep bool
	buf  *[windowBytes]byte // nil: of nothing yet
	at   int64
	n    int
}

const windowBytes = 256 << 10

// windowBufs are those of windows that are not reading just now: with many small segments a new one each would be most of what a
// pass allocates.
var windowBufs = sync.Pool{New: func() any { return new([windowBytes]byte) }}

// ReadAt implements io.ReaderAt.
func (w *window) ReadAt(b []byte, off int64) (int, error) {
	if off >= w.at && off+int64(len(b)) <= w.at+int64(w.n) {
		return copy(b, w.buf[off-w.at:]), nil
	}
	if len(b) > windowBytes {
		return w.r.ReadAt(b, off)
	}
	w.passed()
	if w.buf == nil {
		w.buf = windowBufs.Get().(*[windowBytes]byte)
	}
	if !w.keep {
		w.drop(off, windowBytes)
	}
	n, err := w.r.ReadAt(w.buf[:], off)
	w.at, w.n = off, n
	if n >= len(b) {
		return copy(b, w.buf[:]), nil
	}
	return copy(b, w.buf[:n]), err
}

// passed gives the chunk's pages back.
func (w *window) passed() {
	if w.n > 0 && !w.keep {
		w.drop(w.at, int64(w.n))
	}
	w.n = 0
}

// done ends the reading, for now at least.
func (w *window) done() {
	w.passed()
	if w.buf != nil {
		windowBufs.Put(w.buf)
		w.buf = nil
	}
}

func dropCache(s *slot, off, n int64) {
	if f, err := s.acquire(false); err == nil {
		vfs.DropCache(f, off, n)
		s.release()
	}
}

// check compares a batch's leader epoch, which lies before what its CRC covers, with the one known of its offset.
func (e epochs) check(h record.Header) error {
	if want, known := e.at(h.BaseOffset); known && h.LeaderEpoch != -1 && h.LeaderEpoch != want { // -1: a batch that never had a leader
		return fmt.Errorf("leader epoch %d, expected %d", h.LeaderEpoch, want)
	}
	return nil
}
