package segment

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/chronik-go/chronik/internal/record"
)

// Names of a segment's files, Kafka's.
const (
	logExt   = ".log"
	indexExt = ".index"
	timeExt  = ".timeindex"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segment is one .log file and its indexes. Its fields are guarded by Log.mu, except base and log, which do not change. The
// bytes [0, size) of the file never change either, so that who has read size needs no lock to read them.
type segment struct {
	base int64
	log  slot
	size int64 // bytes of whole batches
	end  int64 // offset after the last; of a sealed segment, the base of the next

	index, times *slot   // replaced when an index is built anew
	loaded       bool    // x, ilen and tlen are known; otherwise a sealed segment found at Open and not looked at
	hasIndex     bool    // both index files exist
	x            indexer // its entries are those not yet in the files
	ilen, tlen   int64   // bytes of entries in the files

	// Of the files' first isync and tsync bytes it is known that they are on disk; icrc and tcrc are the sums of the
	// rest, by which a restart tells whether they are, too. The next* sums begin anew while a sync is under way.
	isync, tsync       int64
	icrc, tcrc         uint32
	nextICRC, nextTCRC uint32
	syncedAt           int64 // size when the index was last synced
	dirty              bool  // bytes written since the last Flush began
	firstTs            int64 // MaxTimestamp of the first batch, for rolling by time; unknown until needed
	firstKnown         bool
	created            time.Time
	writtenBack        int64 // bytes handed to StartWriteback
	gone               bool
}

func (l *Log) newSegment(base, size int64) *segment {
	s := &segment{base: base, size: size, end: base, x: newIndexer(base), created: l.clk.Now(), firstTs: record.NoTimestamp}
	s.log = l.files.slot(&l.dir, base, logExt)
	s.freshIndexSlots(l)
	return s
}

func (s *segment) freshIndexSlots(l *Log) {
	i, t := l.files.slot(&l.dir, s.base, indexExt), l.files.slot(&l.dir, s.base, timeExt)
	s.index, s.times = &i, &t
}

func (s *segment) forget() {
	s.log.forget()
	s.index.forget()
	s.times.forget()
}

func (s *segment) closeIdle() {
	s.log.closeIdle()
	s.index.closeIdle()
	s.times.closeIdle()
}

// spill writes the waiting index entries to their files. The caller holds appendMu, so that nothing else writes them.
func (l *Log) spill(s *segment) error {
	if len(s.x.idx) == 0 && len(s.x.tim) == 0 && s.hasIndex {
		return nil
	}
	ib := make([]byte, 0, len(s.x.idx)*indexEntrySize)
	for _, e := range s.x.idx {
		ib = e.append(ib)
	}
	tb := make([]byte, 0, len(s.x.tim)*timeEntrySize)
	for _, e := range s.x.tim {
		tb = e.append(tb)
	}
	if err := writeSlot(s.index, !s.hasIndex, ib, s.ilen); err != nil {
		return err
	}
	if err := writeSlot(s.times, !s.hasIndex, tb, s.tlen); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !s.hasIndex {
		s.hasIndex, l.newNames = true, true
	}
	s.ilen += int64(len(ib))
	s.tlen += int64(len(tb))
	s.icrc = crc32.Update(s.icrc, castagnoli, ib)
	s.tcrc = crc32.Update(s.tcrc, castagnoli, tb)
	s.nextICRC = crc32.Update(s.nextICRC, castagnoli, ib)
	s.nextTCRC = crc32.Update(s.nextTCRC, castagnoli, tb)
	s.x.idx, s.x.tim = s.x.idx[:0], s.x.tim[:0]
	return nil
}

func writeSlot(s *slot, create bool, b []byte, off int64) error {
	f, err := s.acquire(create)
	if err != nil {
		return err
	}
	defer s.release()
	if len(b) == 0 {
		return nil
	}
	s.dirty.Store(true)
	if _, err := f.WriteAt(b, off); err != nil {
		return ioErr("write", s.path(), err)
	}
	return nil
}

// walkChunk is what a walk over headers reads at a time: a few index intervals.
const walkChunk = 16 << 10

var walkBufs = sync.Pool{New: func() any { return new([walkChunk]byte) }}

// walk calls fn with the header and the position of every batch in bytes [pos, size) of a segment, without reading records,
// until fn says stop. next is the offset that the first batch must have (at least, below holes); -1: any.
func walk(s *slot, pos, size, next, holes int64, fn func(h record.Header, pos int64) (stop bool, err error)) error {
	buf := walkBufs.Get().(*[walkChunk]byte)
	defer walkBufs.Put(buf)
	var have []byte // bytes from haveAt on
	haveAt := pos
	for pos < size {
		off := pos - haveAt
		if off+record.BatchOverhead > int64(len(have)) {
			have = buf[:min(walkChunk, size-pos)]
			if err := s.readAt(have, pos); err != nil {
				return shortRead(s, pos, err)
			}
			haveAt, off = pos, 0
		}
		h, err := record.CheckHeader(have[off:])
		if err != nil {
			return &DamageError{File: s.path(), Offset: pos, Reason: "bad batch header", Err: err}
		}
		if err := checkPlace(s, h, pos, size, next, holes); err != nil {
			return err
		}
		if stop, err := fn(h, pos); stop || err != nil {
			return err
		}
		next = h.LastOffset() + 1
		pos += int64(h.Size())
	}
	return nil
}

// checkPlace checks that a batch fits between its neighbours: at next or, where compaction has been, above it.
func checkPlace(s *slot, h record.Header, pos, size, next, holes int64) error {
	if int64(h.Size()) > size-pos {
		return &DamageError{File: s.path(), Offset: pos, Reason: fmt.Sprintf("batch of %d bytes, %d left", h.Size(), size-pos)}
	}
	if h.BaseOffset < s.base || next >= 0 && !mayFollow(h.BaseOffset, next, holes) {
		return &DamageError{File: s.path(), Offset: pos, Reason: fmt.Sprintf("batch begins at offset %d, expected %d", h.BaseOffset, max(next, s.base))}
	}
	return nil
}

// shortRead turns a read past the end of a file that should be longer into damage.
func shortRead(s *slot, pos int64, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &DamageError{File: s.path(), Offset: pos, Reason: "file is shorter than it was", Err: err}
	}
	return err
}
