package partition

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
)

// state is a partition's applied state, apart from the records. Its encoding is what the log's checkpoint and raft's snapshots
// hold. An empty encoding is the state of a new partition. Big endian:
//
//	 0  2 bytes  "CP"
//	 2  uint8    version, 3
//	 3  uint8    0
//	 4  uint32   CRC-32C of what follows
//	 8  uint64   replica id of the writer
//	16  uint64   generation: the directory the writer's segments are in
//	24  uint64   raft index of the last applied entry
//	32  uint64   its term
//	40  int64    log start offset
//	48  int64    end offset
//	56  int64    offset from which the sum was counted (proof.go)
//	64  uint64   sum of the batches applied since (record.Sum)
//	72  uint32   number of producers, then for each, by age:
//	             int64 id, int16 epoch, uint8 batches, uint64 raft index of the last batch, int64 its largest timestamp in ms
//	             or -1; for each batch, oldest first:
//	             int32 first, int32 last sequence, int64 base offset, int64 append time in ms or -1
//
// Version 2 has no timestamp of the last batch: -1, until the producer's next. Version 1 has neither offset nor sum either:
// producers are at 56, and the sum is counted from its end offset.
//
// Replica and generation say whose directory is meant: a replica that finds another's state as its checkpoint has crashed
// after the snapshot mark became durable, and takes the directory that was staged for that index (chooseGeneration).
type state struct {
	replica    uint64
	generation uint64
	index      uint64
	term       uint64
	start, end int64
	origin     int64
	sum        uint64
	producers  *producerTable
}

const (
	stateVersion        = 3
	stateHeader         = 76
	stateHeaderV1       = 60
	stateProducerSize   = 8 + 2 + 1 + 8 + 8
	stateProducerSizeV2 = 8 + 2 + 1 + 8
	stateBatchSize      = 4 + 4 + 8 + 8
)

func newState() state { return state{producers: newProducerTable()} }

func (s *state) encode() []byte {
	size := stateHeader
	for n := s.producers.root.next; n != &s.producers.root; n = n.next {
		size += stateProducerSize + int(n.n)*stateBatchSize
	}
	be := binary.BigEndian
	b := make([]byte, 0, size)
	b = append(b, 'C', 'P', stateVersion, 0, 0, 0, 0, 0)
	b = be.AppendUint64(b, s.replica)
	b = be.AppendUint64(b, s.generation)
	b = be.AppendUint64(b, s.index)
	b = be.AppendUint64(b, s.term)
	b = be.AppendUint64(b, uint64(s.start))
	b = be.AppendUint64(b, uint64(s.end))
	b = be.AppendUint64(b, uint64(s.origin))
	b = be.AppendUint64(b, s.sum)
	b = be.AppendUint32(b, uint32(s.producers.len()))
	for n := s.producers.root.next; n != &s.producers.root; n = n.next {
		b = be.AppendUint64(b, uint64(n.id))
		b = be.AppendUint16(b, uint16(n.epoch))
		b = append(b, n.n)
		b = be.AppendUint64(b, n.lastIndex)
		b = be.AppendUint64(b, uint64(n.lastTime))
		for _, q := range n.batches[:n.n] {
			b = be.AppendUint32(b, uint32(q.first))
			b = be.AppendUint32(b, uint32(q.last))
			b = be.AppendUint64(b, uint64(q.base))
			b = be.AppendUint64(b, uint64(q.appendTime))
		}
	}
	be.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b
}

// decodeState accepts exactly what encode makes, and what earlier versions of it made.
func decodeState(b []byte) (state, error) {
	s := newState()
	if len(b) == 0 {
		return s, nil
	}
	be := binary.BigEndian
	header, version := stateHeader, byte(stateVersion)
	if len(b) > 2 && b[2] > 0 {
		version = b[2]
	}
	if version == 1 {
		header = stateHeaderV1
	}
	switch {
	case len(b) < header || b[0] != 'C' || b[1] != 'P':
		return s, fmt.Errorf("%w: %d bytes", errState, len(b))
	case b[2] < 1 || b[2] > stateVersion || b[3] != 0:
		return s, fmt.Errorf("%w: version %d is not known; a newer version of the program wrote it", errState, b[2])
	case be.Uint32(b[4:]) != crc32.Checksum(b[8:], castagnoli):
		return s, fmt.Errorf("%w: CRC", errState)
	}
	s.replica, s.generation = be.Uint64(b[8:]), be.Uint64(b[16:])
	s.index, s.term = be.Uint64(b[24:]), be.Uint64(b[32:])
	s.start, s.end = int64(be.Uint64(b[40:])), int64(be.Uint64(b[48:]))
	if s.origin = s.end; header == stateHeader {
		s.origin, s.sum = int64(be.Uint64(b[56:])), be.Uint64(b[64:])
	}
	count := int(be.Uint32(b[header-4:]))
	if s.origin < 0 || s.start < 0 || s.end < s.start || count > maxProducers {
		return s, fmt.Errorf("%w: log from %d to %d, %d producers", errState, s.start, s.end, count)
	}
	rest := b[header:]
	for range count {
		var err error
		if rest, err = s.decodeProducer(rest, version); err != nil {
			return newState(), err
		}
	}
	if len(rest) != 0 {
		return newState(), fmt.Errorf("%w: %d bytes too many", errState, len(rest))
	}
	return s, nil
}

func (s *state) decodeProducer(b []byte, version byte) (rest []byte, err error) {
	be := binary.BigEndian
	size := stateProducerSize
	if version < 3 {
		size = stateProducerSizeV2
	}
	if len(b) < size {
		return nil, fmt.Errorf("%w: cut short", errState)
	}
	n := &producerNode{producer: producer{
		id: int64(be.Uint64(b)), epoch: int16(be.Uint16(b[8:])), n: b[10], lastIndex: be.Uint64(b[11:]), lastTime: -1,
	}}
	if version >= 3 {
		n.lastTime = int64(be.Uint64(b[19:]))
	}
	b = b[size:]
	t := s.producers
	if n.n > keptBatches || n.id < 0 || t.byID[n.id] != nil || n.lastIndex < t.root.prev.lastIndex || len(b) < int(n.n)*stateBatchSize {
		return nil, fmt.Errorf("%w: producer %d", errState, n.id)
	}
	for i := range n.batches[:n.n] {
		n.batches[i] = seqBatch{
			first: int32(be.Uint32(b)), last: int32(be.Uint32(b[4:])),
			base: int64(be.Uint64(b[8:])), appendTime: int64(be.Uint64(b[16:])),
		}
		b = b[stateBatchSize:]
	}
	t.byID[n.id] = n
	t.pushBack(n)
	return b, nil
}

// Summary is what a checkpoint says of a partition, for tools that look at a directory.
type Summary struct {
	New        bool   // the partition has no checkpoint yet
	Generation uint64 // name of the writer's segments' directory, in hex
	Index      uint64
	Start, End int64
}

// Summarize reads the state in a checkpoint. An empty one is that of a new partition.
func Summarize(state []byte) (Summary, error) {
	s, err := decodeState(state)
	return Summary{New: len(state) == 0, Generation: s.generation, Index: s.index, Start: s.start, End: s.end}, err
}

// Directory tells which of the generations on disk the next start takes, as chooseGeneration does, without knowing which replica this is:
// a checkpoint that another one wrote, and that was installed just before a crash, means the directory that was staged for its index
// or, if there is none, the one that is older. foreign says that it must be another's.
func (s *Summary) Directory(gens []uint64) (gen uint64, foreign, ok bool) {
	if s.New {
		return 0, false, len(gens) == 0 || slices.Contains(gens, 0)
	}
	if slices.Contains(gens, s.Index) {
		return s.Index, s.Generation != s.Index, true
	}
	older := slices.DeleteFunc(slices.Clone(gens), func(g uint64) bool { return g > s.Index })
	switch {
	case slices.Contains(older, s.Generation):
		return s.Generation, false, true
	case len(older) == 1:
		return older[0], true, true
	}
	return s.Generation, false, s.Start == s.End
}
