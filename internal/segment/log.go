// Package segment stores the committed batches of one partition in Kafka's own on-disk format: segments of whole record
// batches (.log), a sparse offset index (.index) and a time index (.timeindex), and leader-epoch-checkpoint. What Raft
// has committed is appended, in order, and never truncated except by recovery, which cuts at the last sound batch; old
// segments go from the front.
//
// docs/segment-format.md describes the files, and the one that Kafka does not have: recovery-point.
package segment

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"sort"
	"sync"
	"syscall"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/record"
)

// Log is one partition's batches. One caller at a time may Append; one at a time may call Flush, Tidy, Reset, Close or
// Discard (both wait, if need be). Everything else is safe for concurrent use beside them.
//
// After a write or a sync failed with anything but a full disk, the log has failed: Append and Flush keep returning that
// error, and nothing is retried. Reads go on.
//
// Lock order: flushMu, appendMu, mu, Files.mu. Only mu and Files.mu are taken by readers, and never across I/O.
type Log struct {
	files  *Files
	clk    clock.Clock
	dir    string
	logger *slog.Logger

	flushMu  sync.Mutex // Flush, Tidy, Reset, Close, Discard
	appendMu sync.Mutex // whoever writes .log and index files

	mu          sync.RWMutex
	cfg         Config
	segs        []*segment // ascending, copied when changed; empty until the first Append to an empty directory
	start, end  int64
	flushed     int64
	bytes       int64 // of all .log files
	epochs      epochs
	cleaned     CleanPoint // what compaction has done
	epochsDirty bool       // the file is behind
	epochSum    int64      // CRC-32C of the file, as written last
	newNames    bool       // files were created since the directory was last synced
	parentDone  bool       // the directory's own name is durable
	damage      *DamageError
	lost        []Lost // what recovery found missing below what is known to be durable
	failed      error
	closed      bool

	cursors cursors
	point   slot // the file recovery-point
	pointOn bool // it exists
	// Bases of the segments that the point names, as it was written last and as it is known to be on disk. flushMu guards them.
	pointBase, pointSynced int64
	renewed                int  // times that what had been cleaned was replaced by something that may not be
	clean                  bool // nothing happened since recovery-point was written with everything in it
}

// Dir returns the directory of the log.
func (l *Log) Dir() string { return l.dir }

// StartOffset returns the first offset that may be read. The first batch read may begin below it.
func (l *Log) StartOffset() int64 { l.mu.RLock(); defer l.mu.RUnlock(); return l.start }

// EndOffset returns the offset that the next batch must have.
func (l *Log) EndOffset() int64 { l.mu.RLock(); defer l.mu.RUnlock(); return l.end }

// FlushedOffset returns the end of what is known to be on disk: what the last Flush returned, or recovery found.
func (l *Log) FlushedOffset() int64 { l.mu.RLock(); defer l.mu.RUnlock(); return l.flushed }

// Size returns the bytes of batches in the log's files.
func (l *Log) Size() int64 { l.mu.RLock(); defer l.mu.RUnlock(); return l.bytes }

// Segments returns how many segment files the log has.
func (l *Log) Segments() int { l.mu.RLock(); defer l.mu.RUnlock(); return len(l.segs) }

// Bases returns the base offsets, ascending, of the segments that begin in [from, end).
func (l *Log) Bases(from, end int64) (bases []int64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	i, _ := slices.BinarySearchFunc(l.segs, from, func(s *segment, at int64) int { return cmp.Compare(s.base, at) })
	for ; i < len(l.segs) && l.segs[i].base < end; i++ {
		bases = append(bases, l.segs[i].base)
	}
	return bases
}

// Damage says what recovery found missing of what had been flushed; nil if nothing. The replica must not vote on it.
func (l *Log) Damage() *DamageError { l.mu.RLock(); defer l.mu.RUnlock(); return l.damage }

// Lost says what OpenDurable found damaged or missing below the durable offset, ascending.
func (l *Log) Lost() []Lost { l.mu.RLock(); defer l.mu.RUnlock(); return l.lost }

// SetConfig takes effect from the next batch on.
func (l *Log) SetConfig(cfg Config) {
	if cfg = cfg.withDefaults(); cfg == l.config() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cfg = cfg
}

// usable returns why the log cannot be written.
func (l *Log) usable() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch {
	case l.closed:
		return ErrClosed
	case l.failed != nil:
		return l.failed
	}
	return nil
}

// fail remembers an error that must not be retried, and returns it. A full disk may be: nothing was promised yet.
// Damage is the replica's matter: it must stay possible to Reset the log.
func (l *Log) fail(err error) error {
	var damaged *DamageError
	if err == nil || errors.Is(err, syscall.ENOSPC) || errors.As(err, &damaged) {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil && !l.closed {
		l.failed = err
		l.logger.Error("segment log failed", "dir", l.dir, "error", err)
	}
	return err
}

// segmentAt returns the index of the segment that holds offset or would: the last whose base is not above it.
func segmentAt(segs []*segment, offset int64) int {
	return max(0, sort.Search(len(segs), func(i int) bool { return segs[i].base > offset })-1)
}

func (l *Log) activeLocked() *segment {
	if len(l.segs) == 0 {
		return nil
	}
	return l.segs[len(l.segs)-1]
}

// roll seals the active segment, if there is one, and begins another at the log's end. The caller holds appendMu.
func (l *Log) roll() (*segment, error) {
	l.mu.Lock()
	active := l.activeLocked()
	base := l.end
	if active != nil {
		active.x.addTime()
	}
	l.mu.Unlock()
	if active != nil {
		if err := l.spill(active); err != nil {
			return nil, err
		}
	}
	return l.create(base)
}

// create adds an empty segment. The caller holds appendMu.
func (l *Log) create(base int64) (*segment, error) {
	s := l.newSegment(base, 0)
	s.loaded, s.firstKnown = true, false
	if _, err := s.log.acquire(true); err != nil {
		return nil, err
	}
	s.log.release()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segs = append(l.segs[:len(l.segs):len(l.segs)], s)
	l.newNames, l.clean = true, false
	return s, nil
}

// SetStartOffset moves the logical start forward, to end at most. Files that lie wholly below it go with Tidy.
func (l *Log) SetStartOffset(off int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	off = min(off, l.end)
	if off <= l.start {
		return
	}
	l.start = off
	if e := l.epochs.from(off); len(e) > 0 && (len(e) != len(l.epochs) || e[0] != l.epochs[0]) {
		l.epochs, l.epochsDirty = e, true
	}
}

// Tidy deletes the files of segments that lie wholly below the start offset, oldest first. The directory is synced by the
// next Flush: a deletion that a power cut undoes is done again.
func (l *Log) Tidy() error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	if err := l.rollDead(); err != nil {
		return l.fail(err)
	}
	for {
		s := l.takeDead()
		if s == nil {
			return nil
		}
		if err := l.deleteSegment(s); err != nil {
			return l.fail(err)
		}
	}
}

// rollDead begins a new segment if everything in the active one is below the start.
func (l *Log) rollDead() error {
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	l.mu.RLock()
	active := l.activeLocked()
	dead := active != nil && active.size > 0 && l.start >= l.end
	l.mu.RUnlock()
	if !dead {
		return nil
	}
	_, err := l.roll()
	return err
}

// takeDead removes the first segment from the log's memory if nothing in it is needed.
func (l *Log) takeDead() *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segs) < 2 || l.segs[1].base > l.start {
		return nil
	}
	s := l.segs[0]
	l.segs = append([]*segment(nil), l.segs[1:]...)
	l.bytes -= s.size
	s.gone = true
	l.newNames = true
	return s
}

func (l *Log) deleteSegment(s *segment) error {
	s.forget()
	for _, ext := range []string{logExt, indexExt, timeExt} {
		if err := l.removeFile(fileName(s.base, ext)); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) removeFile(name string) error {
	err := l.files.fs.Remove(l.file(name))
	if err != nil && !errors.Is(err, errNotExist) {
		return ioErr("remove", l.file(name), err)
	}
	return nil
}

// Reset empties the log to begin at start: for a replica that is resynchronised whole. The files go newest first, so that
// what a crash leaves is a shorter log, not one with a hole. It is durable when it returns.
func (l *Log) Reset(start int64) error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	c := l.CleanPoint()
	c.Clean = 0 // what comes next has not been cleaned
	if err := l.setCleanPoint(c); err != nil {
		return l.fail(err)
	}
	l.mu.Lock()
	segs := l.segs
	l.segs, l.epochs, l.damage, l.lost = nil, nil, nil, nil
	l.start, l.end, l.flushed, l.bytes = start, start, start, 0
	l.epochsDirty, l.newNames, l.clean = true, true, false
	pointOn := l.pointOn
	l.pointOn = false
	l.pointBase, l.pointSynced = -1, -1
	l.renewed++
	l.mu.Unlock()
	l.cursors.clear()
	if pointOn {
		l.point.forget()
		if err := l.removeFile(pointFile); err != nil {
			return l.fail(err)
		}
		l.point = l.files.slot(&l.dir, -1, pointFile)
		if err := syncDir(l.files.fs, l.dir); err != nil {
			return l.fail(err)
		}
	}
	for i := len(segs) - 1; i >= 0; i-- {
		if err := l.deleteSegment(segs[i]); err != nil {
			return l.fail(err)
		}
	}
	if _, err := l.create(start); err != nil {
		return l.fail(err)
	}
	return l.fail(l.flush(true))
}

// Close flushes and closes the log. Closing twice is fine.
func (l *Log) Close() error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	err := l.usable()
	if errors.Is(err, ErrClosed) {
		return nil
	}
	if err == nil {
		err = l.closeFlush()
	}
	l.shut(func(s *segment) { s.closeIdle() })
	l.point.closeIdle()
	return err
}

// closeFlush leaves the files such that the next Open has nothing to read. The caller holds flushMu and appendMu.
func (l *Log) closeFlush() error {
	l.mu.RLock()
	clean, active := l.clean && !l.epochsDirty && !l.newNames, l.activeLocked()
	l.mu.RUnlock()
	if clean || active == nil && !l.newNames {
		return nil
	}
	if active != nil && (len(active.x.idx) > 0 || active.hasIndex) {
		if err := l.spill(active); err != nil {
			return l.fail(err)
		}
	}
	return l.fail(l.flush(true))
}

// Discard closes a log whose directory is to be deleted: nothing of it is flushed.
func (l *Log) Discard() {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	l.shut(func(s *segment) { s.forget() })
	l.point.forget()
}

func (l *Log) shut(each func(*segment)) {
	l.mu.Lock()
	l.closed = true
	segs := l.segs
	l.mu.Unlock()
	l.cursors.clear()
	for _, s := range segs {
		each(s)
	}
}

// checkBatches checks that batches are whole batches that continue the log at want, and returns nothing else: the bytes'
// sums were checked by whoever took them from a client or a peer.
func (l *Log) checkBatches(batches []byte, want, holes int64) error {
	return record.Each(batches, func(_ record.Header, b []byte) error {
		h, err := record.CheckHeader(b)
		if err != nil {
			return err
		}
		if !mayFollow(h.BaseOffset, want, holes) {
			return &SequenceError{Got: h.BaseOffset, Want: want}
		}
		want = h.LastOffset() + 1
		return nil
	})
}
