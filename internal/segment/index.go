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

// searchFile finds, in a file of n bytes of entries, the last one that is not above what is sought, by reading one entry at
// a time: an index that is rarely used costs no memory. above decides on an encoded entry.
func searchFile(s *slot, n int64, size int, above func([]byte) bool) ([]byte, error) {
	var buf [timeEntrySize]byte
	var failed error
	read := func(i int) bool {
		if failed == nil {
			failed = s.readAt(buf[:size], int64(i)*int64(size))
		}
		return failed == nil
	}
	i := sort.Search(int(n/int64(size)), func(i int) bool { return !read(i) || above(buf[:size]) })
	if failed != nil {
		return nil, failed
	}
	if i == 0 {
		return nil, nil
	}
	if !read(i - 1) {
		return nil, failed
	}
	return buf[:size], nil
}
