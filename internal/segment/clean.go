package segment

import (
	"errors"
	"math"
	"time"

	"github.com/chronik-go/chronik/internal/record"
)

// Compaction, by Kafka's rules (LogCleaner, Cleaner): a pass reads what is dirty and notes each key's latest offset, as far as memory
// allows, and then writes every segment below that anew without the records that are not their key's latest. Offsets never change.
// A tombstone, the latest of its key, stays until its batch's delete horizon, which the pass sets that meets it first (KIP-534).
//
// Batches of control records and of transactions stay as they are, and count for nothing: what became of a transaction is not
// known here.

// Cleanable is what of a log can be cleaned now.
type Cleanable struct {
	// From is where the dirty part begins, To where what may be cleaned ends.
	From, To int64
	// Dirty and Clean are the bytes of [From, To) and of what lies below.
	Dirty, Clean int64
	// DeleteAt is CleanPoint's.
	DeleteAt int64
}

// Ratio is the dirty part of the whole, Kafka's cleanable ratio.
func (c Cleanable) Ratio() float64 { return float64(c.Dirty) / float64(max(c.Dirty+c.Clean, 1)) }

// Cleanable tells what can be cleaned: sealed segments that are flushed, end at or below limit, and hold nothing younger than minLag.
func (l *Log) Cleanable(limit int64, now time.Time, minLag time.Duration) (Cleanable, error) {
	l.mu.RLock()
	segs, c, point := l.segs, l.cleaned, l.pointBase
	ends, sizes := make([]int64, len(segs)), make([]int64, len(segs))
	for i, s := range segs {
		ends[i], sizes[i] = s.end, s.size
	}
	l.mu.RUnlock()
	out := Cleanable{DeleteAt: c.DeleteAt}
	if len(segs) == 0 {
		return out, nil
	}
	out.From = max(c.Clean, segs[0].base)
	out.To = segs[0].base
	for i := 0; i+1 < len(segs) && ends[i] <= min(limit, point); i++ {
		if minLag > 0 {
			maxTs, _, err := l.segmentTimes(segs[i])
			if err != nil {
				return out, err
			}
			if maxTs > now.Add(-minLag).UnixMilli() {
				break
			}
		}
		if out.To = ends[i]; out.To <= out.From {
			out.Clean += sizes[i]
		} else {
			out.Dirty += sizes[i]
		}
	}
	out.From = min(out.From, out.To)
	return out, nil
}

// OldestDirty returns the timestamp of the first batch of the segment in which the dirty part begins, ms since 1970; NoTimestamp if there is none.
func (l *Log) OldestDirty() (int64, error) {
	l.mu.RLock()
	segs, from := l.segs, l.cleaned.Clean
	var s *segment
	for i := range segs {
		if segs[i].end > from && segs[i].size > 0 {
			s = segs[i]
			break
		}
	}
	l.mu.RUnlock()
	if s == nil {
		return record.NoTimestamp, nil
	}
	var b [record.BatchOverhead]byte
	if err := s.log.readAt(b[:], 0); err != nil {
		return record.NoTimestamp, shortRead(&s.log, 0, err)
	}
	h, err := record.CheckHeader(b[:])
	if err != nil {
		return record.NoTimestamp, &DamageError{File: s.log.path(), Reason: "bad batch header", Err: err}
	}
	return h.MaxTimestamp, nil
}

// SealedEnd returns where the active segment begins: what lies below can be cleaned, once it is flushed.
func (l *Log) SealedEnd() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if s := l.activeLocked(); s != nil {
		return s.base
	}
	return l.end
}

// RollOld begins a new segment if the active one's first batch is older than cfg allows, so that it can be cleaned. It says whether it did: then
// a Flush is due.
func (l *Log) RollOld(now time.Time, cfg Config) (bool, error) {
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if err := l.usable(); err != nil {
		return false, err
	}
	l.mu.RLock()
	s := l.activeLocked()
	empty := s == nil || s.size == 0
	l.mu.RUnlock()
	if empty {
		return false, nil
	}
	if err := l.ensureFirst(s); err != nil {
		return false, err
	}
	first := s.firstTs
	if first < 0 {
		first = s.created.UnixMilli()
	}
	if now.UnixMilli()-first <= l.ageOf(s, cfg).Milliseconds() {
		return false, nil
	}
	_, err := l.roll()
	return err == nil, l.fail(err)
}

// CleanOptions say how a pass goes.
type CleanOptions struct {
	// Limit, MinLag: as for Cleanable.
	Limit  int64
	MinLag time.Duration
	Now    time.Time
	// DeleteRetention is how long a tombstone stays after the first pass that meets it.
	DeleteRetention time.Duration
	// KeepTombstones: those from this offset on stay, for the sake of a follower that is being sent the log.
	KeepTombstones int64
	// Map is the memory for keys. The pass has it until it is done.
	Map *OffsetMap
	// MaxInflated bounds what is decompressed of a batch. One that holds more stays as it is, and so does one whose records make no sense.
	MaxInflated int
	// KeepBatch says that a batch stays though nothing of it survives; may be nil.
	KeepBatch func(h record.Header) bool
	// Removing is told before and after files are removed; may be nil.
	Removing func(begin bool)
}

// Cleaned is what a pass has done so far.
type Cleaned struct {
	Read, Written   int64 // bytes
	Before, After   int64 // bytes of the segments that were gone through, and of what they became
	Keys            int   // in the map
	Records         int64 // removed
	Tombstones      int64 // of these
	Opaque          int64 // batches that could not be looked into
	Segments, Swaps int   // gone through; files put in place of others
	To              int64 // keys below it were looked up
}

// Cleaning is a pass over a log under way. It is one caller's; the log may be appended to, read and flushed meanwhile.
type Cleaning struct {
	l     *Log
	o     CleanOptions
	from  int64
	end   int64 // keys of [from, end) are in the map
	holes int64 // where the last source ends
	srcs  []*segment
	ends  []int64
	in    batchReader
	i     int // source being read
	state func() error
	out   output
	done  Cleaned
	point CleanPoint // of what has been done in this pass
	full  bool

	renewed int // of the log, when the pass began
}

// errDone ends a pass.
var errDone = errors.New("cleaned")

// Clean begins a pass. Nothing of the log changes before a Step that says so.
func (l *Log) Clean(o CleanOptions) (*Cleaning, error) {
	able, err := l.Cleanable(o.Limit, o.Now, o.MinLag)
	if err != nil {
		return nil, err
	}
	o.Map.Reset(able.To - able.From) // before the lock: it may be much memory to clear
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return nil, ErrClosed
	}
	c := &Cleaning{l: l, o: o, from: able.From, end: able.To, holes: able.To, point: l.cleaned, renewed: l.renewed}
	for _, s := range l.segs {
		if s.base < able.To && s.end <= able.To {
			c.srcs, c.ends = append(c.srcs, s), append(c.ends, s.end)
		}
	}
	c.point.DeleteAt = -1
	c.state = c.mapKeys
	for c.i < len(c.srcs) && c.ends[c.i] <= c.from {
		c.i++
	}
	return c, nil
}

// Step reads on by about max bytes, or puts one file in its place, and says whether the pass is over. Errors: *DamageError, *IOError,
// ErrReplaced (segments have gone meanwhile: begin anew), ErrClosed. After one, Abort.
func (c *Cleaning) Step(max int64) (done bool, err error) {
	until := c.done.Read + c.done.Written + max
	for c.done.Read+c.done.Written < until && err == nil {
		swaps := c.done.Swaps
		if err = c.state(); err == nil && c.done.Swaps > swaps {
			return false, nil
		}
	}
	if errors.Is(err, errDone) {
		c.out.drop(c.l)
		return true, nil
	}
	return false, err
}

// Abort gives the pass up. What it has put in place stays.
func (c *Cleaning) Abort() { c.out.drop(c.l) }

// Progress tells what has been done so far.
func (c *Cleaning) Progress() Cleaned { return c.done }

// next reads the next batch of source i, nil at its end.
func (c *Cleaning) next() (h record.Header, b []byte, err error) {
	s := c.srcs[c.i]
	if c.in.s != s {
		c.in.open(c.l, s)
	}
	read := c.in.read
	h, b, err = c.in.batch()
	c.done.Read += c.in.read - read
	if err == nil && b == nil {
		c.in.s = nil
	}
	if errors.Is(err, errNotExist) {
		err = ErrReplaced
	}
	return h, b, err
}

// looked says whether a batch is one of which records are looked at.
func looked(h record.Header) bool { return h.Count > 0 && !h.IsControl() && !h.IsTransactional() }

// mapKeys takes the keys of one batch.
func (c *Cleaning) mapKeys() error {
	if c.i == len(c.srcs) || c.full {
		return c.beginCopy()
	}
	h, b, err := c.next()
	if err != nil {
		return err
	}
	if b == nil {
		c.i++
		return nil
	}
	if h.LastOffset() < c.from || !looked(h) {
		return nil
	}
	c.o.Map.Mark()
	err = record.Records(b, c.o.MaxInflated, func(r record.Record) error {
		off := h.BaseOffset + int64(r.OffsetDelta)
		if r.Key != nil && off >= c.from && !c.full && !c.o.Map.Put(r.Key, off) {
			c.end, c.full = off, true // the rest waits for the next pass
		}
		return nil
	})
	if err != nil {
		c.o.Map.Rollback()
		if c.full && c.end >= h.BaseOffset {
			c.full, c.end = false, c.holes
		}
	}
	return nil
}

func (c *Cleaning) beginCopy() error {
	c.done.Keys, c.done.To = c.o.Map.Len(), c.end
	for len(c.srcs) > 0 && c.srcs[len(c.srcs)-1].base >= c.end {
		c.srcs, c.ends = c.srcs[:len(c.srcs)-1], c.ends[:len(c.ends)-1]
	}
	c.i, c.in.s = 0, nil
	if len(c.srcs) == 0 {
		return c.finish()
	}
	c.holes = c.ends[len(c.ends)-1]
	c.out.begin(c.srcs[0], 0)
	c.state = c.copyBatch
	return nil
}

// copyBatch moves one batch, or what is left of it.
func (c *Cleaning) copyBatch() error {
	h, b, err := c.next()
	if err != nil {
		return err
	}
	if b == nil {
		return c.endSource()
	}
	left, err := c.survivors(h, b)
	if err != nil {
		return err
	}
	if len(left) != len(b) || &left[0] != &b[0] {
		if c.out.same {
			c.out.same = false
			c.state = c.copyPrefix
		}
	}
	return c.out.add(c, left)
}

// survivors returns what is left of a batch: itself, another, or nothing.
func (c *Cleaning) survivors(h record.Header, b []byte) ([]byte, error) {
	stays := h.LastOffset()+1 == c.holes || c.o.KeepBatch != nil && c.o.KeepBatch(h)
	if h.Count == 0 && !stays && !h.IsControl() {
		return nil, nil
	}
	if !looked(h) {
		return b, nil
	}
	inside := h.LastOffset() < c.end // tombstones of others are met by the next pass
	horizon, stamped := h.DeleteHorizon()
	expired := inside && stamped && c.o.Now.UnixMilli() >= horizon
	records, tombstones, highest := int64(0), int64(0), int64(-1)
	left, err := record.Compact(b, record.Compaction{MaxBytes: c.o.MaxInflated, Horizon: c.horizon(inside), Keep: func(off int64, r record.Record) bool {
		latest, known := c.o.Map.Get(r.Key)
		keep := off >= c.end || r.Key != nil && !(known && off < latest)
		if keep && r.Value == nil && expired && off < c.o.KeepTombstones {
			keep, tombstones, highest = false, tombstones+1, off
		}
		if !keep {
			records++
		}
		return keep
	}})
	if err != nil {
		c.done.Opaque++
		return b, nil
	}
	c.done.Records += records
	c.done.Tombstones += tombstones
	c.point.Horizon = max(c.point.Horizon, highest+1)
	if left.Batch == nil && stays {
		return record.EmptyBatch(b)
	}
	if left.Tombstones > 0 && inside {
		if h, err := record.ParseHeader(left.Batch); err == nil {
			if at, set := h.DeleteHorizon(); set {
				c.point.DeleteAt = max(c.point.DeleteAt, at)
			}
		}
	}
	return left.Batch, nil
}

// horizon is what a batch with tombstones is stamped with.
func (c *Cleaning) horizon(inside bool) int64 {
	if !inside {
		return -1
	}
	now := c.o.Now.UnixMilli()
	if keep := c.o.DeleteRetention.Milliseconds(); keep < math.MaxInt64-now {
		return now + keep
	}
	return math.MaxInt64
}

// copyPrefix copies what was equal before the first change in a source, a piece at a time.
func (c *Cleaning) copyPrefix() error {
	more, err := c.out.copyPrefix(c)
	if err == nil && !more {
		c.state = c.copyBatch
	}
	return err
}

// maxGroup bounds the segments that become one in a swap, whose files are all held open during it.
const maxGroup = 32

// endSource goes on with the next source in the same file, if it surely fits, or ends the file.
func (c *Cleaning) endSource() error {
	c.done.Segments++
	c.done.Before += c.srcs[c.i].size
	c.i++
	if c.i < len(c.srcs) && c.out.takes(c) {
		if c.out.same {
			c.out.same = false
			c.state = c.copyPrefix
		}
		return nil
	}
	c.state = c.commit
	return nil
}

// commit puts the file in its sources' place and begins the next one.
func (c *Cleaning) commit() error {
	c.done.After += c.out.size
	if !c.out.same {
		if err := c.out.swap(c); err != nil {
			return err
		}
		c.done.Swaps++
	}
	if c.i == len(c.srcs) {
		c.state = c.finish
		return nil
	}
	c.out.begin(c.srcs[c.i], c.i)
	c.state = c.copyBatch
	return nil
}

// finish notes how far the log is clean.
func (c *Cleaning) finish() error {
	l := c.l
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	if c.stale() {
		return ErrReplaced
	}
	p := l.CleanPoint()
	p.Clean, p.DeleteAt = max(p.Clean, c.end), c.point.DeleteAt
	if err := l.setCleanPoint(p); err != nil {
		return l.fail(err)
	}
	return errDone
}

// stale says whether what the pass has looked at was replaced meanwhile by something else than its own.
func (c *Cleaning) stale() bool {
	c.l.mu.RLock()
	defer c.l.mu.RUnlock()
	return c.l.renewed != c.renewed
}

func (l *Log) segments() []*segment {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.segs
}
