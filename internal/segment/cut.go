package segment

import (
	"errors"
	"fmt"
	"math"

	"github.com/chronik-go/chronik/internal/record"
)

// cut ends the log in segment i at byte size; what comes after was not known to be on disk, and goes.
func (r *recovery) cut(i int, size int64, why error) error {
	l := r.l
	s := l.segs[i]
	var lostBytes int64
	for j := len(l.segs) - 1; j > i; j-- {
		lostBytes += l.segs[j].size
		if err := l.deleteSegment(l.segs[j]); err != nil {
			return err
		}
		l.newNames = true
	}
	l.segs = l.segs[:i+1]
	n, err := slotSize(&s.log)
	if err != nil {
		return err
	}
	lostBytes += n - size
	if r.ptBad {
		r.lost(l.file(pointFile), 0, fmt.Sprintf("unreadable, and %d bytes were cut", lostBytes))
	}
	l.logger.Warn("segment log cut at its last sound batch", "file", s.log.path(), "byte", size, "offset", s.end,
		"bytes", lostBytes, "reason", why)
	if err := truncateSlot(&s.log, size); err != nil {
		return err
	}
	s.dirty = true
	return r.finish()
}

// finish settles what follows from the segments.
func (r *recovery) finish() error {
	l := r.l
	active := l.segs[len(l.segs)-1]
	l.end = active.end
	if l.flushed > l.end {
		l.flushed = l.end
	}
	if !r.havePt || l.flushed < l.segs[0].base {
		l.flushed = l.segs[0].base
	}
	// Bytes that were checked may still be in memory only, and names as well.
	unsure := l.flushed < l.end || !r.havePt
	if unsure {
		l.newNames = true
		for i := len(l.segs) - 1; i >= 0 && (l.segs[i].end > l.flushed || i == len(l.segs)-1); i-- {
			l.segs[i].dirty = true
		}
	}
	p := r.point
	l.clean = r.havePt && !unsure && l.damage == nil && p.base == active.base && p.pos == active.size && p.since >= 0 &&
		p.ilen == active.ilen && p.tlen == active.tlen && p.isync == p.ilen && p.tsync == p.tlen
	return nil
}

// rebuildEpochs reads the epochs of the trusted part from its batches, when the file is missing or damaged.
func (r *recovery) rebuildEpochs(from int, pos int64) error {
	l := r.l
	l.logger.Warn("leader epochs are missing, reading them from the log", "dir", l.dir)
	for i := 0; i <= from; i++ {
		s := l.segs[i]
		size := s.size
		if i == from {
			size = pos
		}
		err := walk(&s.log, 0, size, -1, math.MaxInt64, func(h record.Header, _ int64) (bool, error) {
			r.note(h)
			return false, nil
		})
		var damaged *DamageError
		if errors.As(err, &damaged) {
			r.lost(damaged.File, damaged.Offset, damaged.Reason)
		} else if err != nil {
			return err
		}
	}
	return nil
}
