package segment

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// maxRebuilt is the size at which a rebuilt segment ends: positions in an index are 32 bits.
const maxRebuilt = math.MaxInt32 - 64<<20

// ErrReplaced says that the segment which was being rebuilt is gone: it fell below the log start, or the log was emptied.
var ErrReplaced = errors.New("segment: the segment was removed meanwhile")

// Rebuild is a segment's .log file being made anew beside it, from sound batches, wherever they come from. Nothing of the log
// changes until Commit. It is one caller's.
type Rebuild struct {
	log       *Log
	old       *segment // nil: there is no file there
	base, end int64    // of what is rebuilt; base moves to the first batch's
	from      int64    // what was asked for: where a log that lost its front starts again
	next      int64
	pos       int64
	tmp       string
	f         vfs.File
	starts    epochs
	holes     int64
}

// Rebuild begins to make anew what holds offset: a segment with all that should be in it, or what is missing in front of the first.
// The active segment is sealed for it.
func (l *Log) Rebuild(offset int64) (*Rebuild, error) {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if err := l.usable(); err != nil {
		return nil, err
	}
	l.mu.RLock()
	segs, start, end, holes := l.segs, l.start, l.end, l.cleaned.Holes
	l.mu.RUnlock()
	if offset < 0 || offset >= end || len(segs) == 0 {
		return nil, &OffsetError{Offset: offset, Start: start, End: end}
	}
	r := &Rebuild{log: l, base: offset, from: offset, end: segs[0].base, holes: holes}
	if offset >= segs[0].base {
		i := segmentAt(segs, offset)
		r.old = segs[i]
		if i == len(segs)-1 {
			if _, err := l.roll(); err != nil {
				return nil, l.fail(err)
			}
		}
		r.base, r.end = r.old.base, r.old.end
	}
	r.next = r.base
	r.tmp = l.file(fileName(r.base, logExt) + tmpExt)
	var err error
	if r.f, err = l.files.fs.Create(r.tmp); err != nil {
		return nil, ioErr("create", r.tmp, err)
	}
	return r, nil
}

// Range returns the offsets that the rebuilt file is to hold: [base, end).
func (r *Rebuild) Range() (base, end int64) { return r.base, r.end }

// Compacted reports whether batches may be missing between others where the next one goes.
func (r *Rebuild) Compacted() bool { return r.next < r.holes }

// AllowHoles says that batches may be missing below an offset that the log has been told of (Log.AllowHoles).
func (r *Rebuild) AllowHoles(below int64) { r.holes = max(r.holes, below) }

// Next returns the offset that the next batch must have.
func (r *Rebuild) Next() int64 { return r.next }

// Append adds whole batches, each of which is checked, CRC included. The first may begin below what is missing in front of
// a log. A leader epoch that goes back is an *EpochError: then nothing that the log said of epochs from there on counts. What lies wholly
// below the log start is kept for the file's density alone, and its epoch, which nobody else knows any more, says nothing of others.
func (r *Rebuild) Append(batches []byte) error {
	next, base := r.next, r.base
	start := min(r.log.StartOffset(), r.from)
	for rest := batches; len(rest) > 0; {
		h, err := record.Check(rest)
		if err != nil {
			return err
		}
		first := r.pos == 0 && len(rest) == len(batches)
		switch {
		case first && r.old == nil && h.BaseOffset <= next && h.LastOffset() >= next:
			base = h.BaseOffset
		case !mayFollow(h.BaseOffset, next, r.holes):
			return &SequenceError{Got: h.BaseOffset, Want: next}
		}
		if h.LastOffset() >= r.end {
			return &SequenceError{Got: h.LastOffset() + 1, Want: r.end}
		}
		if e := r.higher(h.LeaderEpoch); e.epoch >= 0 && h.LastOffset() >= start {
			return &EpochError{
				File: r.log.file(fileName(r.base, logExt)), Offset: r.pos, From: e.start,
				Reason: fmt.Sprintf("leader epoch %d after %d: one of them is damaged", h.LeaderEpoch, e.epoch),
			}
		}
		if h.LastOffset() >= start {
			r.starts, _ = r.starts.note(h.LeaderEpoch, h.BaseOffset)
		}
		next = h.LastOffset() + 1
		rest = rest[h.Size():]
	}
	if _, err := r.f.WriteAt(batches, r.pos); err != nil {
		return ioErr("write", r.tmp, err)
	}
	r.pos += int64(len(batches))
	r.next, r.base = next, base
	return nil
}

// higher returns the first epoch above one that comes now, of what lies before it in the log; its epoch is -1 if there is none.
func (r *Rebuild) higher(epoch int32) epochStart {
	above := func(e epochStart) bool { return epoch >= 0 && e.epoch > epoch }
	if i := slices.IndexFunc(r.starts, above); i >= 0 {
		return r.starts[i]
	}
	r.log.mu.RLock()
	defer r.log.mu.RUnlock()
	if i := slices.IndexFunc(r.log.epochs, above); i >= 0 && r.log.epochs[i].start < r.base {
		return r.log.epochs[i]
	}
	return epochStart{epoch: -1}
}

// Skip says that a compacted log has nothing up to offset.
func (r *Rebuild) Skip(offset int64) { r.next = max(r.next, min(offset, r.end)) }

// Full reports whether the file must be committed now: it holds everything, or as much as a segment can.
func (r *Rebuild) Full() bool {
	return r.next >= r.end || r.pos >= maxRebuilt || r.next-r.base >= math.MaxInt32-1<<20
}

// Abort gives the file up.
func (r *Rebuild) Abort() {
	if r.f != nil {
		_ = r.f.Close()
		_ = r.log.files.fs.Remove(r.tmp)
		r.f = nil
	}
}

// Commit puts the file, durably and at once, in the place of the old one. What it does not reach of the range remains
// missing, as an empty segment of its own. What it changes of the epochs is durable with the next Flush only: until then whoever keeps a
// mark of the damage must not take it away, so that a crash in between finds it, and the file is made anew. Errors: ErrReplaced, *IOError,
// ErrClosed.
func (r *Rebuild) Commit() error {
	defer r.Abort()
	l := r.log
	if err := r.f.Sync(); err != nil {
		return l.fail(syncErr(r.tmp, err))
	}
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	l.mu.RLock()
	at := slices.Index(l.segs, r.old)
	gone := r.old != nil && at < 0 || r.old == nil && (len(l.segs) == 0 || l.segs[0].base != r.end)
	l.mu.RUnlock()
	if gone {
		return ErrReplaced
	}
	c := l.CleanPoint()
	c.Clean = min(c.Clean, r.base) // what comes from elsewhere may not be as clean
	if err := l.setCleanPoint(c); err != nil {
		return l.fail(err)
	}
	if r.old != nil {
		release, err := l.hold([]*segment{r.old})
		if err != nil && !errors.Is(err, errNotExist) {
			return err
		}
		if err == nil {
			defer release()
		}
	}
	fsys := l.files.fs
	name := l.file(fileName(r.base, logExt))
	if err := fsys.Rename(r.tmp, name); err != nil {
		return ioErr("rename", name, err)
	}
	_ = r.f.Close() // synced; the name is no longer this one's
	r.f = nil
	if err := syncDir(fsys, l.dir); err != nil {
		return l.fail(err)
	}
	fresh := []*segment{r.segment()}
	if r.next < r.end {
		rest := l.newSegment(r.next, 0)
		if _, err := rest.log.acquire(true); err != nil {
			return l.fail(err)
		}
		rest.log.release()
		rest.loaded, rest.firstKnown, rest.end = true, true, r.end
		fresh[0].end = r.next
		fresh = append(fresh, rest)
	}
	r.swap(at, fresh)
	return nil
}

// segment describes the rebuilt file. Its indexes are built when they are first needed.
func (r *Rebuild) segment() *segment {
	s := r.log.newSegment(r.base, r.pos)
	s.end = r.end
	return s
}

// swap makes the rebuilt segments the log's, in the place of the one at index at, or in front.
func (r *Rebuild) swap(at int, fresh []*segment) {
	l := r.log
	l.mu.Lock()
	l.bytes += r.pos
	if r.old != nil {
		l.bytes -= r.old.size
		r.old.gone = true
		l.segs = slices.Concat(l.segs[:at], fresh, l.segs[at+1:])
	} else {
		l.segs = slices.Concat(fresh, l.segs)
		l.start = min(l.start, max(r.base, r.from))
	}
	l.newNames, l.clean = true, false
	l.renewed++
	if e, changed := l.epochs.replace(r.base, r.next, r.starts); changed {
		l.epochs, l.epochsDirty = e, true
	}
	l.mu.Unlock()
	l.cursors.clear()
	if r.old != nil {
		r.old.forget()
	}
}

// replace makes the epochs that begin within [base, next) those that were found in the batches there: these came from a replica that
// is sound, and what this one believed may be a part of the damage.
func (e epochs) replace(base, next int64, found epochs) (epochs, bool) {
	var out epochs
	for _, x := range e {
		if x.start < base {
			out = append(out, x)
		}
	}
	for _, x := range found {
		if n := len(out); n == 0 || out[n-1].epoch < x.epoch {
			out = append(out, x)
		}
	}
	for _, x := range e {
		if n := len(out); x.start >= next && (n == 0 || out[n-1].epoch < x.epoch) {
			out = append(out, x)
		}
	}
	return out, !slices.Equal(e, out)
}
