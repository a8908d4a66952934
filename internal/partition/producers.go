package partition

import "github.com/chronik-go/chronik/internal/record"

// keptBatches is how many batches of a producer are remembered: as many as a client has in flight at most.
const keptBatches = 5

// maxProducers bounds the producers of a partition. It is part of the format: every replica forgets the same one when a batch
// of a new producer would exceed it. Changing it needs a new state version. The leader proposes to forget producers long
// before (Limits.Producers).
const maxProducers = 10_000

// seqBatch is a batch as a retry would name it.
type seqBatch struct {
	first, last int32 // sequence numbers
	base        int64 // offset of the first record
	appendTime  int64 // LogAppendTime in ms, or -1
}

// producer is what is known of one producer id. It holds no pointers, so that copies are independent.
type producer struct {
	id        int64
	epoch     int16
	n         uint8 // batches known, oldest first
	batches   [keptBatches]seqBatch
	lastIndex uint64 // raft index of its last batch: the age that all replicas agree on
	lastTime  int64  // the largest timestamp in its last batch, in ms; -1: not known (an older version wrote the state)
}

// sequenceAfter returns the sequence n further on; sequences wrap at 2^31.
func sequenceAfter(seq, n int32) int32 { return (seq + n) & 0x7fffffff }

// check judges a batch: a known duplicate, the next in order (nil, nil), or refused. p is nil for an unknown producer, which
// may begin anywhere: its state may have expired or been deleted with the records.
func (p *producer) check(epoch int16, first, last int32) (*seqBatch, error) {
	switch {
	case p == nil:
		return nil, nil
	case epoch < p.epoch:
		return nil, ErrInvalidProducerEpoch
	case epoch > p.epoch:
		if first != 0 {
			return nil, ErrOutOfOrderSequence
		}
		return nil, nil
	}
	for i := range p.batches[:p.n] {
		if b := &p.batches[i]; b.first == first && b.last == last {
			return b, nil
		}
	}
	if p.n > 0 && first != sequenceAfter(p.batches[p.n-1].last, 1) {
		return nil, ErrOutOfOrderSequence
	}
	return nil, nil
}

// add records a batch that has its offset, and its largest timestamp.
func (p *producer) add(epoch int16, b seqBatch, at int64) {
	if epoch != p.epoch {
		p.epoch, p.n = epoch, 0
	}
	if p.n == keptBatches {
		copy(p.batches[:], p.batches[1:])
		p.n--
	}
	p.batches[p.n] = b
	p.n++
	p.lastTime = at
	clear(p.batches[p.n:])
}

// sequenced returns how a batch of an idempotent producer is remembered.
func sequenced(h *record.Header) seqBatch {
	b := seqBatch{first: h.BaseSequence, last: h.LastSequence(), base: h.BaseOffset, appendTime: -1}
	if isAppendTime(h) {
		b.appendTime = h.MaxTimestamp
	}
	return b
}

// idempotent says whether a batch takes part in deduplication. Control batches carry a producer id and no sequence.
func idempotent(h *record.Header) bool { return h.ProducerID >= 0 && !h.IsControl() }

func isAppendTime(h *record.Header) bool { return h.Attributes&attrAppendTime != 0 }

// attrAppendTime is the timestamp type in a batch's attributes.
const attrAppendTime = 1 << 3

// producerTable holds a partition's producers in the order of their last batch, so that the oldest is at hand and encoding
// needs no sorting to be the same everywhere.
type producerTable struct {
	byID map[int64]*producerNode
	root producerNode // ring: root.next is the oldest
}

type producerNode struct {
	producer
	prev, next *producerNode
}

func newProducerTable() *producerTable {
	t := &producerTable{byID: make(map[int64]*producerNode)}
	t.root.prev, t.root.next = &t.root, &t.root
	return t
}

func (t *producerTable) len() int { return len(t.byID) }

// get returns the producer or nil. The pointer is good until the next change.
func (t *producerTable) get(id int64) *producer {
	if n := t.byID[id]; n != nil {
		return &n.producer
	}
	return nil
}

// observe takes an applied batch into account. It judges nothing: the leader has.
func (t *producerTable) observe(h *record.Header, index uint64) {
	n := t.byID[h.ProducerID]
	if n == nil {
		if len(t.byID) >= maxProducers {
			t.drop(t.root.next)
		}
		n = &producerNode{producer: producer{id: h.ProducerID, epoch: h.ProducerEpoch}}
		t.byID[h.ProducerID] = n
	} else {
		n.unlink()
	}
	n.add(h.ProducerEpoch, sequenced(h), h.MaxTimestamp)
	n.lastIndex = index
	t.pushBack(n)
}

// expire forgets the producers whose last batch is at or below a raft index.
func (t *producerTable) expire(index uint64) {
	for n := t.root.next; n != &t.root && n.lastIndex <= index; n = t.root.next {
		t.drop(n)
	}
}

// excess returns the index to expire at so that at most keep producers remain, 0 if that is so already.
func (t *producerTable) excess(keep int) (index uint64) {
	n := t.root.next
	for over := len(t.byID) - keep; over > 0; over-- {
		index, n = n.lastIndex, n.next
	}
	return index
}

// oldest returns the raft index of the least recently active producer, 0 if there is none.
func (t *producerTable) oldest() uint64 { return t.root.next.lastIndex }

func (t *producerTable) drop(n *producerNode) {
	n.unlink()
	delete(t.byID, n.id)
}

func (t *producerTable) pushBack(n *producerNode) {
	n.prev, n.next = t.root.prev, &t.root
	n.prev.next, t.root.prev = n, n
}

func (n *producerNode) unlink() {
	n.prev.next, n.next.prev = n.next, n.prev
	n.prev, n.next = nil, nil
}
