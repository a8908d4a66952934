package segment

import (
	"errors"
	"fmt"
	"sync"

	"github.com/chronik-go/chronik/internal/record"
)

// cursors remembers where recent reads ended, so that a reader that goes on from there needs no index. Readers have no
// names here: the next offset is the name.
type cursors struct {
	mu   sync.Mutex
	ring *[8]cursor // nil until the log is first read
	turn int
}

type cursor struct {
	offset int64
	s      *segment
	pos    int64
}

func (c *cursors) take(offset int64, s *segment) (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ring == nil {
		return 0, false
	}
	for i := range c.ring {
		if at := &c.ring[i]; at.s == s && at.offset == offset {
			return at.pos, true
		}
	}
	return 0, false
}

func (c *cursors) put(from, next int64, s *segment, pos int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ring == nil {
		c.ring = new([8]cursor)
	}
	for i := range c.ring { // the reader that was at from has moved on, and several at one place share one
		if at := &c.ring[i]; at.s == s && (at.offset == from || at.offset == next) {
			*at = cursor{next, s, pos}
			return
		}
	}
	c.ring[c.turn] = cursor{next, s, pos}
	c.turn = (c.turn + 1) % len(c.ring)
}

func (c *cursors) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ring = nil
}

// place is where a batch begins, and what was there when it was looked up.
type place struct {
	s         *segment
	pos       int64
	size, end int64 // of the segment: bytes, and the offset after its last batch
	next      int64 // offset that the batch at pos must have, -1: unknown
	holes     int64 // of the log
}

// compacted says whether batches may be missing in the segment.
func (p *place) compacted() bool { return p.s.base < p.holes }

// Read returns whole batches from the one that holds offset on: at least one, however large, and otherwise at most maxBytes.
// It never returns a batch that holds limit or anything after it, nor goes from one segment into the next. At or above
// limit (or the end, if that is lower) it returns nothing, and no error.
//
// The result lies in buf's capacity if that is enough, otherwise in new memory; it belongs to the caller. CRCs are not
// checked (see ReadChecked).
//
// Errors: *OffsetError if offset is below the start or beyond the end, *DamageError, *IOError, ErrClosed.
func (l *Log) Read(offset, limit int64, maxBytes int, buf []byte) ([]byte, error) {
	b, _, err := l.read(offset, limit, maxBytes, buf, false)
	return b, err
}

// ReadChecked is Read with each batch checked: one whose CRC does not match, or whose leader epoch (which lies before what
// the CRC covers) is not the one known of its offset, is never returned. What comes before it is; if it is the first, the error is
// a *DamageError.
func (l *Log) ReadChecked(offset, limit int64, maxBytes int, buf []byte) ([]byte, error) {
	return l.checked(l.read(offset, limit, maxBytes, buf, false))
}

// ReadRetained is ReadChecked, and reads also what lies below the log start and has not been removed with its segment yet.
func (l *Log) ReadRetained(offset, limit int64, maxBytes int, buf []byte) ([]byte, error) {
	return l.checked(l.read(offset, limit, maxBytes, buf, true))
}

func (l *Log) checked(b []byte, at place, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	l.mu.RLock()
	epochs := l.epochs
	l.mu.RUnlock()
	for rest := b; len(rest) > 0; {
		h, err := record.Check(rest)
		if err == nil {
			err = epochs.check(h)
		}
		if err != nil && len(rest) < len(b) {
			return b[:len(b)-len(rest)], nil
		}
		if err != nil {
			return nil, &DamageError{File: at.s.log.path(), Offset: at.pos, Reason: "batch", Err: err}
		}
		rest = rest[h.Size():]
	}
	return b, nil
}

// read reads whole batches; below: also below the log start.
func (l *Log) read(offset, limit int64, maxBytes int, buf []byte, below bool) ([]byte, place, error) {
	for try := 0; ; try++ {
		b, at, err := l.readOnce(offset, limit, maxBytes, buf, below)
		if err == nil || !errors.Is(err, errNotExist) {
			return b, at, err
		}
		// The file went while we were on the way to it: by Tidy, which the next try sees, or behind our back.
		if try == 3 {
			return nil, place{}, err
		}
	}
}

func (l *Log) readOnce(offset, limit int64, maxBytes int, buf []byte, below bool) ([]byte, place, error) {
	at, ok, err := l.find(offset, limit, below)
	if err != nil || !ok {
		return buf[:0], at, err
	}
	f, err := at.s.log.acquire(false)
	if err != nil {
		return nil, at, err
	}
	defer at.s.log.release()
	want := min(int64(max(maxBytes, record.BatchOverhead)), at.size-at.pos)
	if int64(cap(buf)) < want {
		buf = make([]byte, want)
	}
	buf = buf[:want]
	if n, err := f.ReadAt(buf, at.pos); n < len(buf) {
		return nil, at, shortRead(&at.s.log, at.pos, ioErr("read", at.s.log.path(), err))
	}
	n, next, first, err := whole(at, buf, limit)
	if err != nil {
		return nil, at, err
	}
	if n == 0 && first > len(buf) { // one batch, larger than asked for
		if cap(buf) < first {
			grown := make([]byte, first)
			copy(grown, buf)
			buf = grown
		}
		have := int(want)
		buf = buf[:first]
		if n, err := f.ReadAt(buf[have:], at.pos+want); n < first-have {
			return nil, at, shortRead(&at.s.log, at.pos, ioErr("read", at.s.log.path(), err))
		}
		if n, next, _, err = whole(at, buf, limit); err != nil {
			return nil, at, err
		}
	}
	if n > 0 {
		l.cursors.put(offset, next, at.s, at.pos+int64(n))
	}
	return buf[:n], at, nil
}

// whole returns how many bytes of b are whole batches below limit, the offset after them, and the first batch's size.
func whole(at place, b []byte, limit int64) (n int, next int64, first int, err error) {
	next = at.next
	for len(b)-n >= record.BatchOverhead {
		pos := at.pos + int64(n)
		h, err := record.CheckHeader(b[n:])
		if err != nil {
			err = &DamageError{File: at.s.log.path(), Offset: pos, Reason: "bad batch header", Err: err}
		} else if err = checkPlace(&at.s.log, h, pos, at.size, next, at.holes); err == nil && h.LastOffset() >= at.end {
			err = &DamageError{File: at.s.log.path(), Offset: pos,
				Reason: fmt.Sprintf("batch ends at offset %d, the segment at %d", h.LastOffset(), at.end-1)}
		}
		if err != nil && n > 0 {
			return n, next, first, nil // what comes before the damage; the next read meets it
		}
		if err != nil {
			return 0, 0, 0, err
		}
		if h.LastOffset() >= limit {
			return n, next, first, nil
		}
		if n == 0 {
			first = h.Size()
		}
		if h.Size() > len(b)-n {
			break
		}
		n += h.Size()
		next = h.LastOffset() + 1
	}
	if n == 0 && first == 0 { // there should be a batch: nothing at all would look like the log's end
		return 0, 0, 0, &DamageError{File: at.s.log.path(), Offset: at.pos, Reason: fmt.Sprintf("segment ends in a batch header, after %d bytes", len(b))}
	}
	return n, next, first, nil
}

// find returns where the batch is that holds offset or, in a compacted log, the first after it. ok is false if that is
// nothing below limit. below: also where the log has been told to start later.
func (l *Log) find(offset, limit int64, below bool) (at place, ok bool, err error) {
	l.mu.RLock()
	if l.closed {
		l.mu.RUnlock()
		return place{}, false, ErrClosed
	}
	start, end, segs, holes := l.start, l.end, l.segs, l.cleaned.Holes
	if below && len(segs) > 0 {
		start = segs[0].base
	}
	if offset < start || offset > end {
		l.mu.RUnlock()
		return place{}, false, &OffsetError{Offset: offset, Start: start, End: end}
	}
	if offset >= min(limit, end) {
		l.mu.RUnlock()
		return place{}, false, nil
	}
	i := segmentAt(segs, offset)
	s, last := segs[i], i == len(segs)-1
	at = place{s: s, size: s.size, end: s.end, next: -1, holes: holes}
	l.mu.RUnlock()

	if pos, hit := l.cursors.take(offset, s); hit && pos < at.size {
		at.pos = pos
		if !at.compacted() {
			at.next = offset
		}
		return at, true, nil
	}
	found, err := l.seek(&at, offset)
	if err != nil || found {
		return at, found, err
	}
	if last || segs[i+1].base > holes {
		return at, false, &DamageError{File: s.log.path(), Offset: at.size, Reason: fmt.Sprintf("offset %d is missing at the segment's end", offset)}
	}
	// Compaction removed what was between here and the next segment.
	return l.find(segs[i+1].base, limit, below)
}

// seek moves at to the batch of its segment that holds offset, or the first after it.
func (l *Log) seek(at *place, offset int64) (bool, error) {
	if offset == at.s.base && !at.compacted() {
		at.next = offset
		return true, nil
	}
	for rebuilt := false; ; rebuilt = true {
		found, err := l.seekOnce(at, offset)
		var damaged *DamageError
		if err == nil || rebuilt || !errors.As(err, &damaged) {
			return found, err
		}
		// A damaged index sends us to a place where no batch begins. It is built anew from the log, once; if the log itself
		// is damaged, that says so.
		if err := l.reindex(at.s, err); err != nil {
			return false, err
		}
	}
}

func (l *Log) seekOnce(at *place, offset int64) (found bool, err error) {
	pos, ends, err := l.floorPos(at.s, offset)
	if err != nil {
		return false, err
	}
	next := int64(-1)
	if ends < 0 {
		next = at.s.base
	}
	err = walk(&at.s.log, pos, at.size, next, at.holes, func(h record.Header, p int64) (bool, error) {
		if p == pos && ends >= 0 && h.LastOffset() != ends {
			return true, indexMismatch(at.s, p, h.LastOffset(), ends)
		}
		at.pos, found = p, h.LastOffset() >= offset
		if found {
			at.next = h.BaseOffset
		}
		return found, nil
	})
	return found && err == nil, err
}

func indexMismatch(s *segment, pos, got, want int64) error {
	return &DamageError{File: s.log.path(), Offset: pos, Reason: fmt.Sprintf("batch ends at offset %d, the index says %d", got, want)}
}

// floorPos returns, by the index, the position of a batch that does not end after offset, and the offset at which it ends;
// (0, -1) if there is no entry for one.
func (l *Log) floorPos(s *segment, offset int64) (pos, ends int64, err error) {
	if offset <= s.base {
		return 0, -1, nil
	}
	if err := l.ensureIndex(s); err != nil {
		return 0, -1, err
	}
	rel := uint32(min(offset-s.base, 1<<32-1))
	l.mu.RLock()
	e, ok := floorIndex(s.x.idx, rel)
	index, ilen := s.index, s.ilen
	l.mu.RUnlock()
	if !ok {
		var b [indexEntrySize]byte
		found, err := searchFile(index, ilen, b[:], func(b []byte) bool { return decodeIndexEntry(b).rel > rel })
		if err != nil || !found {
			return 0, -1, shortRead(index, ilen, err)
		}
		e = decodeIndexEntry(b[:])
	}
	return int64(e.pos), s.base + int64(e.rel), nil
}

// BatchAt returns the header of the batch that begins at offset, and its CRC: replay compares them with an entry's to see
// that it was applied already. ok is false if no batch begins there, or if it cannot be read: damage and I/O errors are
// logged, and an I/O error also fails the log, so that the next Append returns it.
func (l *Log) BatchAt(offset int64) (h record.Header, crc uint32, ok bool) {
	at, found, err := l.find(offset, l.EndOffset(), false)
	if err == nil && found {
		var b [record.BatchOverhead]byte
		if err = at.s.log.readAt(b[:], at.pos); err == nil {
			h, err = record.CheckHeader(b[:])
		}
	}
	var outside *OffsetError
	if err != nil && !errors.As(err, &outside) && !errors.Is(err, ErrClosed) {
		l.logger.Error("segment log cannot be read", "dir", l.dir, "offset", offset, "error", err)
		_ = l.fail(err)
	}
	if err != nil || !found || h.BaseOffset != offset {
		return record.Header{}, 0, false
	}
	return h, h.CRC, true
}
