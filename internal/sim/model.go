package sim

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"

	"github.com/chronik-go/chronik/internal/record"
)

// model is what the clients were told, and what was seen in the logs. Everything that contradicts it is a violation.
type model struct {
	w     *world
	parts []*partModel
	sent  map[uint64]*batch // by number
	next  uint64
	acked int
}

// partModel is one partition's.
type partModel struct {
	index int32
	// stored maps the offset a batch begins at to what it is: one value for ever, on every replica.
	stored map[int64]storedBatch
	// leaders names who led a term.
	leaders map[uint64]int32
	// readHW is, for each term, the highest watermark that its ready leader has shown; terms ascending.
	readHW []termHW
	// asked is the highest log start that anybody asked for.
	asked int64
}

type storedBatch struct {
	end int64 // offset after the last record
	sum uint64
	id  uint64
}

type termHW struct {
	term uint64
	hw   int64
}

// batch is one batch as its producer knows it.
type batch struct {
	id         uint64
	part       int32
	idempotent bool
	producer   int64
	seq        int32
	count      int32
	body       uint64 // checksum of all that the server must not change
	size       int

	acked  bool
	offset int64
	tries  int
	// unclear counts the attempts that have not been refused for certain: without one the batch can't be in the log.
	unclear int
}

func newModel(w *world) *model {
	m := &model{w: w, sent: make(map[uint64]*batch)}
	for i := range int32(w.set.partitions) {
		m.parts = append(m.parts, &partModel{index: i, stored: make(map[int64]storedBatch), leaders: make(map[uint64]int32)})
	}
	return m
}

// build makes the bytes of a batch: the same ones at every call.
func (b *batch) build() []byte {
	bd := record.NewBuilder()
	if b.idempotent {
		bd.ProducerID, bd.ProducerEpoch, bd.BaseSequence = b.producer, 0, b.seq
	}
	value := make([]byte, b.size)
	for i := range value {
		value[i] = byte(b.id*31 + uint64(i)*7)
	}
	for i := range b.count {
		key := binary.BigEndian.AppendUint64(nil, b.id)
		key = binary.BigEndian.AppendUint32(key, uint32(i))
		bd.Add(epoch.UnixMilli()+int64(b.id), key, value)
	}
	out, err := bd.Build()
	if err != nil {
		panic(err)
	}
	return out
}

// bodySum covers a stored batch from its magic on, except the leader epoch before it: all that a producer sent.
func bodySum(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b[8:12])
	_, _ = h.Write(b[16:])
	return h.Sum64()
}

func fullSum(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b)
	return h.Sum64()
}

// newBatch enters a batch that is about to be sent.
func (m *model) newBatch(part int32, producer int64, seq, count int32, size int) *batch {
	m.next++
	b := &batch{id: m.next, part: part, idempotent: producer >= 0, producer: producer, seq: seq, count: count, size: size, offset: -1}
	b.body = bodySum(b.build())
	m.sent[b.id] = b
	return b
}

// ack notes that a server called a batch committed at an offset.
func (m *model) ack(b *batch, offset int64) {
	w := m.w
	if b.acked && b.offset != offset {
		w.fail("partition %d: batch %d acknowledged at offset %d and at %d", b.part, b.id, b.offset, offset)
		return
	}
	if !b.acked {
		m.acked++
	}
	b.acked, b.offset = true, offset
	p := m.parts[b.part]
	if s, ok := p.stored[offset]; ok && s.id != b.id {
		w.fail("partition %d: batch %d acknowledged at offset %d, where batch %d is", b.part, b.id, offset, s.id)
		return
	}
	p.stored[offset] = storedBatch{end: offset + int64(b.count), sum: p.stored[offset].sum, id: b.id}
}

// saw notes a stored batch that somebody has read, and checks all that can be said about it. where says who read it.
func (m *model) saw(p *partModel, raw []byte, where string) (end int64, ok bool) {
	w := m.w
	h, err := record.Validate(raw)
	if err != nil {
		w.fail("partition %d, %s: unsound batch: %v", p.index, where, err)
		return 0, false
	}
	end = h.LastOffset() + 1
	id := uint64(0)
	err = record.Records(raw, 1<<20, func(r record.Record) error {
		if r.OffsetDelta == 0 && len(r.Key) == 12 {
			id = binary.BigEndian.Uint64(r.Key)
		}
		return nil
	})
	b := m.sent[id]
	if err != nil || b == nil || b.part != p.index {
		w.fail("partition %d, %s: the batch at offset %d is nobody's (%v)", p.index, where, h.BaseOffset, err)
		return 0, false
	}
	if bodySum(raw) != b.body {
		w.fail("partition %d, %s: batch %d at offset %d is not what was sent", p.index, where, id, h.BaseOffset)
		return 0, false
	}
	sum := fullSum(raw)
	known, seen := p.stored[h.BaseOffset]
	if seen && (known.id != id || known.sum != 0 && known.sum != sum) {
		w.fail("partition %d, %s: offset %d held batch %d and now holds batch %d", p.index, where, h.BaseOffset, known.id, id)
		return 0, false
	}
	if b.offset >= 0 && b.offset != h.BaseOffset {
		w.fail("partition %d, %s: batch %d is at offset %d and at %d", p.index, where, id, b.offset, h.BaseOffset)
		return 0, false
	}
	if b.unclear == 0 {
		w.fail("partition %d, %s: batch %d at offset %d, which every answer so far has refused for certain", p.index, where, id, h.BaseOffset)
		return 0, false
	}
	b.offset = h.BaseOffset
	p.stored[h.BaseOffset] = storedBatch{end: end, sum: sum, id: id}
	return end, true
}

// sawAll notes consecutive batches, the first of which must hold offset from; it returns where they end.
func (m *model) sawAll(p *partModel, from int64, raw []byte, where string) (end int64, ok bool) {
	first := true
	end = from
	for len(raw) > 0 {
		h, err := record.ParseHeader(raw)
		if err != nil || h.Size() > len(raw) {
			m.w.fail("partition %d, %s: half a batch after offset %d (%v)", p.index, where, end, err)
			return end, false
		}
		if first && (h.BaseOffset > from || h.LastOffset() < from) || !first && h.BaseOffset != end {
			m.w.fail("partition %d, %s: at offset %d comes a batch from %d to %d", p.index, where, end, h.BaseOffset, h.LastOffset())
			return end, false
		}
		if end, ok = m.saw(p, raw[:h.Size()], where); !ok {
			return end, false
		}
		first, raw = false, raw[h.Size():]
	}
	return end, true
}

// elected checks that a term has one leader.
func (m *model) elected(part int32, term uint64, node int32) {
	p := m.parts[part]
	if other, ok := p.leaders[term]; ok && other != node {
		m.w.fail("partition %d: nodes %d and %d lead term %d", part, other, node, term)
	}
	p.leaders[term] = node
}

// watch looks at every replica: watermarks and log starts never go back within a life, and a leader that serves knows all that
// earlier leaders have shown.
func (m *model) watch() {
	for _, n := range m.w.nodes {
		if n.proc == nil || n.proc.dead {
			continue
		}
		for i, v := range n.proc.parts {
			m.watchReplica(n, m.parts[i], v)
		}
	}
}

func (m *model) watchReplica(n *node, p *partModel, v *replicaView) {
	w := m.w
	start, hw, st := v.p.LogStart(), v.p.HighWatermark(), v.r.Status()
	switch {
	case hw < v.hw:
		w.fail("partition %d on node %d: the high watermark went from %d to %d", p.index, n.id, v.hw, hw)
	case start < v.start:
		w.fail("partition %d on node %d: the log start went from %d to %d", p.index, n.id, v.start, start)
	case start > hw:
		w.fail("partition %d on node %d: log start %d is above the high watermark %d", p.index, n.id, start, hw)
	case st.Term < v.term:
		w.fail("partition %d on node %d: the term went from %d to %d", p.index, n.id, v.term, st.Term)
	case w.set.segment.RetentionBytes <= 0 && start > p.asked:
		w.fail("partition %d on node %d: log start %d, nobody asked for more than %d", p.index, n.id, start, p.asked)
	}
	v.hw, v.start, v.term = hw, start, st.Term
	if st.Ready {
		m.leaderShows(p, n.id, st.Term, hw)
	}
}

// leaderShows checks a ready leader's watermark against those of earlier terms, and remembers it.
func (m *model) leaderShows(p *partModel, node int32, term uint64, hw int64) {
	i := len(p.readHW)
	for i > 0 && p.readHW[i-1].term > term {
		i--
	}
	for k := range p.readHW[:i] {
		if e := &p.readHW[k]; e.term < term && e.hw > hw {
			m.w.fail("partition %d: node %d serves term %d with high watermark %d; in term %d it was %d", p.index, node, term, hw, e.term, e.hw)
			return
		}
	}
	if i > 0 && p.readHW[i-1].term == term {
		p.readHW[i-1].hw = max(p.readHW[i-1].hw, hw)
		return
	}
	p.readHW = append(p.readHW, termHW{})
	copy(p.readHW[i+1:], p.readHW[i:])
	p.readHW[i] = termHW{term, hw}
}

// replicaBytes reads a replica's whole log from an offset to its high watermark.
func (v *replicaView) read(fetch func(offset int64) ([]byte, error), from, to int64) ([]byte, error) {
	var out bytes.Buffer
	for at := from; at < to; {
		b, err := fetch(at)
		if err != nil || len(b) == 0 {
			return out.Bytes(), err
		}
		out.Write(b)
		for len(b) > 0 {
			h, err := record.ParseHeader(b)
			if err != nil {
				return out.Bytes(), err
			}
			at = h.LastOffset() + 1
			b = b[h.Size():]
		}
	}
	return out.Bytes(), nil
}
