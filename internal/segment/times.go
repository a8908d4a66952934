package segment

import (
	"errors"
	"math"
	"time"

	"github.com/chronik-go/chronik/internal/record"
)

// maxRecordsBytes bounds what a lookup by time decompresses of one batch.
const maxRecordsBytes = 256 << 20

// errFound ends a walk over records.
var errFound = errors.New("found")

// OffsetForTimestamp returns the first record at or above the start offset and below limit whose timestamp is not below ts
// (ms since 1970), with its timestamp and its leader epoch; (-1, -1, -1) if there is none. Only the batch that holds it is
// decompressed (and others whose header promises more than their records hold).
func (l *Log) OffsetForTimestamp(ts int64, limit int64) (offset, timestamp int64, epoch int32, err error) {
	offset, timestamp, epoch = -1, -1, -1
	err = l.timed(func() error {
		segs, start, end, holes := l.snapshot()
		limit := min(limit, end)
		for _, s := range segs {
			if s.base >= limit {
				break
			}
			maxTs, size, err := l.segmentTimes(s)
			if err != nil {
				return err
			}
			if maxTs < ts || maxTs == record.NoTimestamp {
				continue
			}
			pos, err := l.floorTimePos(s, ts)
			if err != nil {
				return err
			}
			err = walk(&s.log, pos, size, -1, holes, func(h record.Header, pos int64) (bool, error) {
				if h.BaseOffset >= limit {
					return true, nil
				}
				if h.MaxTimestamp < ts || h.LastOffset() < start || h.Count == 0 {
					return false, nil
				}
				off, t, err := firstRecord(s, h, pos, func(off, t int64) bool { return t >= ts && off >= start && off < limit })
				if off >= 0 {
					offset, timestamp, epoch = off, t, h.LeaderEpoch
				}
				return off >= 0, err
			})
			if err != nil || offset >= 0 {
				return err
			}
		}
		return nil
	})
	return offset, timestamp, epoch, err
}

// MaxTimestamp returns the largest timestamp of the records in [start offset, limit), with the offset of the first record
// that has it; (-1, -1) if there are none.
func (l *Log) MaxTimestamp(limit int64) (offset, timestamp int64, err error) {
	offset, timestamp = -1, -1
	err = l.timed(func() error {
		segs, start, end, holes := l.snapshot()
		limit := min(limit, end)
		var bestSeg *segment
		var bestHdr record.Header
		var bestPos int64
		best := record.NoTimestamp
		for i, s := range segs {
			if s.base >= limit || start >= limit {
				break
			}
			maxTs, size, err := l.segmentTimes(s)
			if err != nil {
				return err
			}
			if maxTs <= best {
				continue
			}
			pos := int64(0)
			whole := s.base >= start && (i+1 < len(segs) && segs[i+1].base <= limit || limit == end)
			if whole {
				if pos, err = l.floorTimePos(s, maxTs); err != nil {
					return err
				}
			}
			err = walk(&s.log, pos, size, -1, holes, func(h record.Header, pos int64) (bool, error) {
				if h.LastOffset() >= limit {
					return true, nil
				}
				if h.LastOffset() >= start && h.MaxTimestamp > best && h.Count > 0 {
					best, bestSeg, bestHdr, bestPos = h.MaxTimestamp, s, h, pos
				}
				return whole && best == maxTs, nil
			})
			if err != nil {
				return err
			}
		}
		if bestSeg == nil {
			return nil
		}
		// A batch that holds the start offset may have its largest timestamp below it; then the largest of the rest counts.
		largest := record.NoTimestamp
		if _, _, err := firstRecord(bestSeg, bestHdr, bestPos, func(off, t int64) bool {
			if off >= start && t > largest {
				largest, offset, timestamp = t, off, t
			}
			return false
		}); err != nil {
			return err
		}
		return nil
	})
	return offset, timestamp, err
}

// timed runs a lookup again if a file went away under it.
func (l *Log) timed(f func() error) error {
	for try := 0; ; try++ {
		if err := l.usable(); errors.Is(err, ErrClosed) {
			return err
		}
		err := f()
		if err == nil || try == 3 || !errors.Is(err, errNotExist) {
			return err
		}
	}
}

func (l *Log) snapshot() (segs []*segment, start, end, holes int64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.segs, l.start, l.end, l.cleaned.Holes
}

// segmentTimes returns the largest timestamp of a segment (NoTimestamp if there is none) and its size.
func (l *Log) segmentTimes(s *segment) (maxTs, size int64, err error) {
	if err := l.ensureIndex(s); err != nil {
		return 0, 0, err
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	return s.x.maxTs, s.size, nil
}

// floorTimePos returns a position before which no batch has a timestamp of ts or above. An index that points where no batch
// ends is built anew, once.
func (l *Log) floorTimePos(s *segment, ts int64) (int64, error) {
	for rebuilt := false; ; rebuilt = true {
		pos, err := l.floorTimeOnce(s, ts)
		var damaged *DamageError
		if err == nil || rebuilt || !errors.As(err, &damaged) {
			return pos, err
		}
		if err := l.reindex(s, err); err != nil {
			return 0, err
		}
	}
}

func (l *Log) floorTimeOnce(s *segment, ts int64) (int64, error) {
	l.mu.RLock()
	e, ok := floorTime(s.x.tim, ts)
	times, tlen, size := s.times, s.tlen, s.size
	l.mu.RUnlock()
	if !ok {
		var b [timeEntrySize]byte
		found, err := searchFile(times, tlen, b[:], func(b []byte) bool { return decodeTimeEntry(b).ts > ts })
		if err != nil || !found {
			return 0, shortRead(times, tlen, err)
		}
		e = decodeTimeEntry(b[:])
	}
	off := s.base + int64(e.rel)
	pos, ends, err := l.floorPos(s, off)
	if err != nil {
		return 0, err
	}
	// From there on, a batch must end exactly where the entry says, with the entry's timestamp.
	exact := false
	first := pos
	err = walk(&s.log, first, size, -1, math.MaxInt64, func(h record.Header, p int64) (bool, error) {
		if p == first && ends >= 0 && h.LastOffset() != ends {
			return true, indexMismatch(s, p, h.LastOffset(), ends)
		}
		exact = h.LastOffset() == off && h.MaxTimestamp == e.ts
		pos = p
		return h.LastOffset() >= off, nil
	})
	if err == nil && !exact {
		err = &DamageError{File: times.path(), Reason: "time index does not match the log"}
	}
	return pos, err
}

// firstRecord reads one batch and returns the first of its records that want accepts, or -1.
func firstRecord(s *segment, h record.Header, pos int64, want func(off, ts int64) bool) (offset, ts int64, err error) {
	b := make([]byte, h.Size())
	if err := s.log.readAt(b, pos); err != nil {
		return -1, -1, shortRead(&s.log, pos, err)
	}
	if _, err := record.Check(b); err != nil {
		return -1, -1, &DamageError{File: s.log.path(), Offset: pos, Reason: "batch", Err: err}
	}
	offset, ts = -1, -1
	err = record.Records(b, maxRecordsBytes, func(r record.Record) error {
		off := h.BaseOffset + int64(r.OffsetDelta)
		if !want(off, r.Timestamp) {
			return nil
		}
		offset, ts = off, r.Timestamp
		return errFound
	})
	if err != nil && !errors.Is(err, errFound) {
		return -1, -1, &DamageError{File: s.log.path(), Offset: pos, Reason: "records", Err: err}
	}
	return offset, ts, nil
}

// RetentionStart returns where cfg's retention would put the start offset at now: never below it, never in the middle of a
// segment. It changes nothing: the leader proposes what it says. Segments that hold no timestamps count by their file's age.
func (l *Log) RetentionStart(now time.Time, cfg Config) int64 {
	segs, start, end, _ := l.snapshot()
	out := start
	var sizes []int64
	total := int64(0)
	l.mu.RLock()
	for _, s := range segs {
		sizes = append(sizes, s.size)
		if s.end > start {
			total += s.size
		}
	}
	l.mu.RUnlock()
	endOf := func(i int) int64 {
		if i+1 < len(segs) {
			return segs[i+1].base
		}
		return end
	}
	for i, s := range segs {
		if endOf(i) <= start || sizes[i] == 0 {
			continue
		}
		tooBig := cfg.RetentionBytes > 0 && total-sizes[i] >= cfg.RetentionBytes
		if !tooBig && !(cfg.RetentionAge > 0 && l.expired(s, now, cfg.RetentionAge)) {
			break
		}
		total -= sizes[i]
		out = endOf(i)
	}
	return min(out, end)
}

func (l *Log) expired(s *segment, now time.Time, after time.Duration) bool {
	maxTs, _, err := l.segmentTimes(s)
	if err != nil {
		l.logger.Warn("retention cannot read a segment's times", "file", s.log.path(), "error", err)
		return false
	}
	if maxTs == record.NoTimestamp {
		info, err := l.files.fs.Stat(s.log.path())
		return err == nil && now.Sub(info.ModTime) > after
	}
	return now.UnixMilli()-maxTs > after.Milliseconds()
}
