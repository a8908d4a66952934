package segment

import (
	"errors"
	"fmt"
)

// What recovery does below the offset that is known to be durable: nothing there is a torn tail, so nothing is cut.

// missing notes a range whose batches are gone.
func (r *recovery) missing(x Lost) {
	r.lost(x.File, x.Offset, fmt.Sprintf("offsets %d to %d: %s", x.From, x.To-1, x.Reason))
	if n := len(r.l.lost); n > 0 && r.l.lost[n-1].To >= x.From {
		r.l.lost[n-1].To = max(r.l.lost[n-1].To, x.To)
		return
	}
	r.l.lost = append(r.l.lost, x)
}

// stepOver goes on behind damage at pos, where offset next should be: at the next sound batch, or at the end of the file if there
// is none. Then what follows is missing up to the next segment, or to what is durable; the bytes stay.
func (r *recovery) stepOver(s *segment, pos, size, next int64, why error) (at, end int64, err error) {
	f := r.l.batchFile(s, size, r.nextBase(s))
	if f.end < 0 {
		f.latest = r.durable // all below it was there; what lies behind it is raft's to bring
	}
	h, at, _, ok, err := f.resync(pos, next, nil)
	if err != nil {
		return 0, 0, err
	}
	x := Lost{From: next, To: h.BaseOffset, File: f.name, Offset: pos, Reason: why.Error()}
	if ok {
		r.missing(x)
		return at, h.BaseOffset, nil
	}
	if x.To = r.nextBase(s); x.To < 0 {
		x.To, r.seal = r.durable, true // nothing may be appended behind these bytes
	}
	if x.To > x.From {
		r.missing(x)
	}
	return size, x.To, nil
}

// again reads a segment from its first byte, sums included, after a walk over what was trusted met damage.
func (r *recovery) again(s *segment, fileSize int64) (bad, err error) {
	s.x = newIndexer(s.base)
	s.isync, s.tsync, s.icrc, s.tcrc, s.syncedAt = 0, 0, 0, 0, 0
	if err := r.dropIndex(s); err != nil {
		return nil, err
	}
	return r.check(s, 0, fileSize, s.base)
}

// nextBase returns the base of the segment after s, -1 for the last.
func (r *recovery) nextBase(s *segment) int64 {
	segs := r.l.segs
	for i := range segs {
		if segs[i] == s && i+1 < len(segs) {
			return segs[i+1].base
		}
	}
	return -1
}

// reachDurable makes the log go on at what is durable, if what was found ends below it.
func (r *recovery) reachDurable() error {
	l := r.l
	if l.end >= r.durable && !r.seal {
		return nil
	}
	if x := (Lost{From: l.end, To: r.durable, File: l.file(fileName(l.end, logExt)), Reason: "missing; it had been flushed"}); x.From < x.To {
		if active := l.activeLocked(); active != nil {
			x.File, x.Offset = active.log.path(), active.size
			active.end = r.durable
		}
		r.missing(x)
	}
	l.end, l.clean = max(l.end, r.durable), false
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	_, err := l.roll()
	return err
}

// batchFile describes the first size bytes of a segment's log.
func (l *Log) batchFile(s *segment, size, end int64) *batchFile {
	return &batchFile{name: s.log.path(), r: slotReader{&s.log}, base: s.base, size: size, end: end, holes: l.cleaned.Holes}
}

// damageOf returns the damage that err tells of, nil if it tells of something else.
func damageOf(err error) *DamageError {
	var d *DamageError
	if errors.As(err, &d) {
		return d
	}
	return nil
}
