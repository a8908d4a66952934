package segment

import (
	"encoding/binary"
	"sort"

	"github.com/chronik-go/chronik/internal/record"
)

// Sizes in bytes of an entry on disk: Kafka's.
const (
	indexEntrySize = 8  // relative offset (4), position (4)
	timeEntrySize  = 12 // timestamp (8), relative offset (4)
)

// indexEntry says at which byte of the segment a batch begins, by its *last* offset.
type indexEntry struct {
	rel uint32 // last offset of the batch - base offset of the segment
	pos uint32
}

// timeEntry says that no batch up to that of an index entry has a larger timestamp than ts, and that the first batch that
// has it ends at rel.
type timeEntry struct {
	ts  int64
	rel uint32
}

func (e indexEntry) append(b []byte) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, e.rel), e.pos)
}

func (e timeEntry) append(b []byte) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(b, uint64(e.ts)), e.rel)
}

func decodeIndexEntry(b []byte) indexEntry {
	return indexEntry{rel: binary.BigEndian.Uint32(b), pos: binary.BigEndian.Uint32(b[4:])}
}

func decodeTimeEntry(b []byte) timeEntry {
	return timeEntry{ts: int64(binary.BigEndian.Uint64(b)), rel: binary.BigEndian.Uint32(b[8:])}
}

// indexer turns the batches of a segment, in order, into index entries by Kafka's rule (LogSegment.append): one for a batch
// that comes after more than interval bytes since the last one. Entries wait in idx and tim until they are written.
type indexer struct {
	base     int64
	idx      []indexEntry
	tim      []timeEntry
	since    int64 // bytes since the batch of the last index entry, that one included
	maxTs    int64 // largest timestamp so far, NoTimestamp if none
	maxOff   int64 // last offset of the first batch that has it
	lastTime int64 // timestamp of the last time entry, NoTimestamp if none
}

func newIndexer(base int64) indexer {
	return indexer{base: base, maxTs: record.NoTimestamp, maxOff: -1, lastTime: record.NoTimestamp}
}

func (x *indexer) add(h record.Header, pos int64, interval int32) {
	if h.MaxTimestamp > x.maxTs {
		x.maxTs, x.maxOff = h.MaxTimestamp, h.LastOffset()
	}
	if x.since > int64(interval) {
		x.idx = append(x.idx, indexEntry{rel: uint32(h.LastOffset() - x.base), pos: uint32(pos)})
		x.addTime()
		x.since = 0
	}
	x.since += int64(h.Size())
}

// addTime adds a time entry if there is news. It also ends a segment, so that the last entry of a sealed one has its
// largest timestamp.
func (x *indexer) addTime() {
	if x.maxTs > x.lastTime {
		x.tim = append(x.tim, timeEntry{ts: x.maxTs, rel: uint32(x.maxOff - x.base)})
		x.lastTime = x.maxTs
	}
}

// floorIndex returns the last of entries, ascending by offset, whose offset is not above rel.
func floorIndex(entries []indexEntry, rel uint32) (indexEntry, bool) {
	i := sort.Search(len(entries), func(i int) bool { return entries[i].rel > rel })
	if i == 0 {
		return indexEntry{}, false
	}
	return entries[i-1], true
}

// floorTime returns the last of entries, ascending by timestamp, whose timestamp is not above ts.
func floorTime(entries []timeEntry, ts int64) (timeEntry, bool) {
	i := sort.Search(len(entries), func(i int) bool { return entries[i].ts > ts })
	if i == 0 {
		return timeEntry{}, false
	}
	return entries[i-1], true
}

// searchBlock is what a search through an index file reads at once when little is left: about what one read costs anyway.
const searchBlock = 4 << 10

// searchFile finds, in a file of n bytes of entries, the last one that is not above what is sought, and copies it to out:
// false if there is none. It reads the file, so that an index that is rarely used costs no memory: single entries while the
// range is wide, and then the rest of it. above decides on an encoded entry.
func searchFile(s *slot, n int64, out []byte, above func([]byte) bool) (bool, error) {
	if n == 0 {
		return false, nil
	}
	f, err := s.acquire(false)
	if err != nil {
		return false, err
	}
	defer s.release()
	buf := walkBufs.Get().(*[walkChunk]byte)
	defer walkBufs.Put(buf)
	size := int64(len(out))
	lo, hi := int64(0), n/size // entries below lo are not above, those from hi on are
	for (hi-lo)*size > searchBlock {
		mid := lo + (hi-lo)/2
		e := buf[:size]
		if m, err := f.ReadAt(e, mid*size); m < len(e) {
			return false, ioErr("read", s.path(), err)
		}
		if above(e) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	first := max(lo-1, 0) // the answer is below lo if everything from there on is above
	b := buf[:(hi-first)*size]
	if m, err := f.ReadAt(b, first*size); m < len(b) {
		return false, ioErr("read", s.path(), err)
	}
	i := sort.Search(int(hi-first), func(i int) bool { return above(b[int64(i)*size : int64(i+1)*size]) })
	if i == 0 {
		return false, nil
	}
	copy(out, b[int64(i-1)*size:])
	return true, nil
}
