package segment

import (
	"encoding/binary"
	"hash/fnv"
	"io/fs"
	"math"
	"time"

	"github.com/chronik-go/chronik/internal/record"
)

var errNotExist = fs.ErrNotExist

// spillEntries is how many index entries wait in memory: 64 stand for 256 KiB of log, which is what a killed process has
// to walk again.
const spillEntries = 64

// Append adds whole batches, the first of which must begin at EndOffset, each at the end of the one before
// (*SequenceError otherwise, and nothing is written). Below what AllowHoles said they may leave gaps. It keeps nothing of batches
// and returns when readers see them; they are on disk once Flush said so.
//
// An error that is a full disk leaves the log usable at EndOffset, which may be behind some of the batches: append the
// rest again when there is room. Any other I/O error is final.
func (l *Log) Append(batches []byte) error {
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	l.mu.RLock()
	cfg, end, active, holes := l.cfg, l.end, l.activeLocked(), l.cleaned.Holes
	l.mu.RUnlock()
	if err := l.checkBatches(batches, end, holes); err != nil {
		return err
	}
	if active == nil && len(batches) > 0 {
		var err error
		if active, err = l.roll(); err != nil { // at the end, which is the start, whatever gap comes first: the name tells a restart
			return l.fail(err)
		}
	}
	for len(batches) > 0 {
		n, err := l.fits(active, batches, cfg)
		if err != nil {
			return l.fail(err)
		}
		if n == 0 {
			l.skipTo(batches, active)
			if active, err = l.roll(); err != nil {
				return l.fail(err)
			}
			continue
		}
		if err := l.write(active, batches[:n], cfg); err != nil {
			return l.fail(err)
		}
		batches = batches[n:]
	}
	return nil
}

// skipTo moves the end over the gap in front of batches, which a segment that begins behind it need not span.
func (l *Log) skipTo(batches []byte, active *segment) {
	h, _ := record.ParseHeader(batches) // checked before
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.BaseOffset > l.end {
		l.end, active.end = h.BaseOffset, h.BaseOffset
	}
}

// fits returns how many bytes of batches belong into s: 0 if a new segment must begin. An empty segment takes at least one
// batch, unless a compacted log's first one lies too far from its base.
func (l *Log) fits(s *segment, batches []byte, cfg Config) (int, error) {
	if err := l.ensureFirst(s); err != nil {
		return 0, err
	}
	pos, first, firstKnown := s.size, s.firstTs, s.firstKnown
	idx := s.ilen/indexEntrySize + int64(len(s.x.idx))
	tim := s.tlen/timeEntrySize + int64(len(s.x.tim))
	maxIdx, maxTim := int64(cfg.IndexBytes/indexEntrySize), int64(cfg.IndexBytes/timeEntrySize-1)
	n := 0
	for n < len(batches) {
		h, err := record.ParseHeader(batches[n:])
		if err != nil {
			return 0, err
		}
		if pos > 0 {
			// A batch adds at most one entry to each index.
			full := pos+int64(h.Size()) > cfg.SegmentBytes || idx >= maxIdx || tim >= maxTim
			if full || l.old(s, h, first, cfg) {
				break
			}
		}
		if h.LastOffset()-s.base > math.MaxInt32 && (pos > 0 || h.BaseOffset > s.base) {
			break
		}
		if !firstKnown {
			first, firstKnown = h.MaxTimestamp, true
		}
		pos += int64(h.Size())
		n += h.Size()
		idx++
		tim++
	}
	return n, nil
}

// old reports whether segment.ms has passed: between the first batch's timestamp and this one's or, without timestamps,
// since the segment was created here. That is local to a replica, and may be: where segments end is nobody else's matter.
func (l *Log) old(s *segment, h record.Header, first int64, cfg Config) bool {
	age := l.ageOf(s, cfg)
	if first >= 0 && h.MaxTimestamp >= 0 {
		return h.MaxTimestamp-first > age.Milliseconds()
	}
	return l.clk.Now().Sub(s.created) > age
}

// ageOf is the age at which a segment ends: less than segment.ms by a part of segment.jitter.ms, always the same for a segment of a log, and
// another for each.
func (l *Log) ageOf(s *segment, cfg Config) time.Duration {
	jitter := min(cfg.SegmentJitter, cfg.SegmentAge)
	if jitter <= 0 {
		return cfg.SegmentAge
	}
	h := fnv.New64a()
	_, _ = h.Write(binary.BigEndian.AppendUint64([]byte(l.dir), uint64(s.base)))
	return cfg.SegmentAge - time.Duration(h.Sum64()%uint64(jitter))
}

// ensureFirst reads the first batch's timestamp if a restart forgot it. The caller holds appendMu.
func (l *Log) ensureFirst(s *segment) error {
	if s.firstKnown || s.size == 0 {
		return nil
	}
	var b [record.BatchOverhead]byte
	if err := s.log.readAt(b[:], 0); err != nil {
		return err
	}
	h, err := record.CheckHeader(b[:])
	if err != nil {
		return &DamageError{File: s.log.path(), Reason: "bad batch header", Err: err}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.firstTs, s.firstKnown = h.MaxTimestamp, true
	return nil
}

// write puts batches, which fit, at the end of s with one write, and then lets readers see them.
func (l *Log) write(s *segment, batches []byte, cfg Config) error {
	l.mu.Lock()
	l.clean = false
	l.mu.Unlock()
	if err := writeSlot(&s.log, false, batches, s.size); err != nil {
		return err
	}
	l.mu.Lock()
	pos := s.size
	for rest := batches; len(rest) > 0; {
		h, _ := record.ParseHeader(rest) // checked before
		s.x.add(h, pos, cfg.IndexIntervalBytes)
		if !s.firstKnown {
			s.firstTs, s.firstKnown = h.MaxTimestamp, true
		}
		if e, changed := l.epochs.note(h.LeaderEpoch, h.BaseOffset); changed {
			l.epochs, l.epochsDirty = e, true
		}
		s.end = h.LastOffset() + 1
		pos += int64(h.Size())
		rest = rest[h.Size():]
	}
	s.size, s.dirty = pos, true
	l.end = s.end
	l.bytes += int64(len(batches))
	full := len(s.x.idx) >= spillEntries
	l.mu.Unlock()
	if full {
		return l.spill(s)
	}
	return nil
}
