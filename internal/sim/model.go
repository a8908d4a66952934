package sim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/record"
)

// model is what the clients were told, and what was seen in the logs. Everything that contradicts it is a violation.
type model struct {
	w      *world
	parts  []*partModel // of the topics that stay
	groups map[uint64]*groupModel
	sent   map[uint64]*batch // by number
	next   uint64
	acked  int
	ids    map[int64]bool // producer ids given out
}

// groupModel is what is known of a raft group, whatever topic it belongs to.
type groupModel struct {
	name string
	// leaders names who led a term.
	leaders map[uint64]int32
	latest  uint64 // the highest term of those
	// readHW is, for each term, the highest watermark that its ready leader has shown; terms ascending.
	readHW []termHW
	part   *partModel // nil: of a topic that comes and goes
}

// partModel is one partition's.
type partModel struct {
	topic      string
	topicIndex int
	index      int32
	// acked is the highest end of an acknowledged batch.
	acked int64
	// batches are those sent, in that order.
	batches []*batch
	// stored maps the offset a batch begins at to what it is: one value for ever, on every replica.
	stored map[int64]storedBatch
	// shown is up to where consumers have been given records: what was read once is committed, and stays.
	shown int64
	// asked is the highest log start that anybody asked for.
	asked int64
	// kept is what is known of its keys, nil unless the topic is compacted.
	kept *keptModel
}

// String names the partition.
func (p *partModel) String() string { return fmt.Sprintf("%s-%d", p.topic, p.index) }

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
	part       *partModel
	idempotent bool
	by         *producer
	producer   int64
	seq        int32
	count      int32
	body       uint64 // checksum of all that the server must not change
	raw        []byte // nil once its producer is done with it
	size       int

	acked  bool
	offset int64
	tries  int
	born   time.Time // when it was made
	keyed  []keyedRecord
	// unclear counts the attempts that have not been refused for certain: without one the batch can't be in the log.
	unclear int
	nth     int // among its producer's
}

func newModel(w *world) *model {
	return &model{w: w, sent: make(map[uint64]*batch), groups: make(map[uint64]*groupModel), ids: make(map[int64]bool)}
}

func (m *model) addPart(topic int, index int32) *partModel {
	p := &partModel{topic: topicName(topic), topicIndex: topic, index: index, stored: make(map[int64]storedBatch)}
	if policy := m.w.set.compacted[topic]; policy != "" {
		p.kept = newKeptModel(policy)
	}
	m.parts = append(m.parts, p)
	return p
}

// group returns what is known of a raft group.
func (m *model) group(id uint64, topic string, index int32) *groupModel {
	g := m.groups[id]
	if g == nil {
		g = &groupModel{name: fmt.Sprintf("%s-%d", topic, index), leaders: make(map[uint64]int32)}
		for _, p := range m.parts {
			if p.topic == topic && p.index == index {
				g.part = p
			}
		}
		m.groups[id] = g
	}
	return g
}

// gaveID notes that a producer id was given to a client.
func (m *model) gaveID(id int64) {
	if m.ids[id] {
		m.w.fail("producer id %d was given out twice", id)
	}
	m.ids[id] = true
	m.w.counts["producer ids"]++
}

// build makes the bytes of a batch.
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
	var t trace
	t.mixBytes(b[8:12])
	t.mixBytes(b[16:])
	return t.sum
}

func fullSum(b []byte) uint64 {
	var t trace
	t.mixBytes(b)
	return t.sum
}

// newBatch enters a batch that is about to be sent.
func (m *model) newBatch(by *producer, count int32, size int) *batch {
	m.next++
	b := &batch{id: m.next, part: by.part, idempotent: by.idempotent, by: by, producer: by.id, seq: by.seq, count: count, size: size, offset: -1}
	b.born = m.w.clk.Now()
	if k := b.part.kept; k != nil {
		b.raw = k.build(m.w, b)
	} else {
		b.raw = b.build()
		b.body = bodySum(b.raw)
	}
	m.sent[b.id] = b
	b.part.batches = append(b.part.batches, b)
	return b
}

// ack notes that a server called a batch committed at an offset.
func (m *model) ack(b *batch, offset int64) {
	w := m.w
	if b.acked && b.offset != offset {
		w.fail("%s: batch %d acknowledged at offset %d and at %d", b.part, b.id, b.offset, offset)
		return
	}
	if !b.acked {
		m.acked++
	}
	b.acked, b.offset = true, offset
	p := b.part
	p.acked = max(p.acked, offset+int64(b.count))
	if s, ok := p.stored[offset]; ok && s.id != b.id {
		w.fail("%s: batch %d acknowledged at offset %d, where batch %d is", b.part, b.id, offset, s.id)
		return
	}
	p.stored[offset] = storedBatch{end: offset + int64(b.count), sum: p.stored[offset].sum, id: b.id}
	if p.kept != nil {
		p.kept.placed(b)
	}
}

// saw notes a stored batch that somebody has read, and checks all that can be said about it. where says who read it.
func (m *model) saw(p *partModel, raw []byte, where string) (end int64, ok bool) {
	w := m.w
	h, err := record.Validate(raw)
	if err != nil {
		w.fail("%s, %s: unsound batch: %v", p, where, err)
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
	if err != nil || b == nil || b.part != p {
		w.fail("%s, %s: the batch at offset %d is nobody's (%v)", p, where, h.BaseOffset, err)
		return 0, false
	}
	if bodySum(raw) != b.body {
		w.fail("%s, %s: batch %d at offset %d is not what was sent", p, where, id, h.BaseOffset)
		return 0, false
	}
	sum := fullSum(raw)
	known, seen := p.stored[h.BaseOffset]
	if seen && (known.id != id || known.sum != 0 && known.sum != sum) {
		w.fail("%s, %s: offset %d held batch %d and now holds batch %d", p, where, h.BaseOffset, known.id, id)
		return 0, false
	}
	if b.offset >= 0 && b.offset != h.BaseOffset {
		w.fail("%s, %s: batch %d is at offset %d and at %d", p, where, id, b.offset, h.BaseOffset)
		return 0, false
	}
	if b.unclear == 0 {
		w.fail("%s, %s: batch %d at offset %d, which every answer so far has refused for certain", p, where, id, h.BaseOffset)
		return 0, false
	}
	b.offset = h.BaseOffset
	p.stored[h.BaseOffset] = storedBatch{end: end, sum: sum, id: id}
	return end, true
}

// sawAll notes consecutive batches, the first of which must hold offset from; it returns where they end.
func (m *model) sawAll(p *partModel, from int64, raw []byte, where string) (end int64, ok bool) {
	if p.kept != nil {
		return m.keptAll(p, from, raw, where, func(int64, *keyedRecord) {})
	}
	first := true
	end = from
	for len(raw) > 0 {
		h, err := record.ParseHeader(raw)
		if err != nil || h.Size() > len(raw) {
			m.w.fail("%s, %s: half a batch after offset %d (%v)", p, where, end, err)
			return end, false
		}
		if first && (h.BaseOffset > from || h.LastOffset() < from) || !first && h.BaseOffset != end {
			m.w.fail("%s, %s: at offset %d comes a batch from %d to %d", p, where, end, h.BaseOffset, h.LastOffset())
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
func (m *model) elected(r *multiraft.Replica, term uint64, node int32) {
	g := m.group(r.GroupID(), r.Topic(), r.Partition())
	if other, ok := g.leaders[term]; ok && other != node {
		m.w.fail("%s: nodes %d and %d lead term %d", g.name, other, node, term)
	}
	g.leaders[term], g.latest = node, max(g.latest, term)
}

// watch looks at every replica: watermarks and log starts never go back within a life, and a leader that serves knows all that
// earlier leaders have shown.
func (m *model) watch() {
	for _, n := range m.w.nodes {
		if !n.up() || n.proc.core == nil {
			continue
		}
		groups := n.proc.core.Groups()
		for _, p := range n.proc.core.Partitions().Partitions() {
			if r, ok := groups.Group(p.Group()); ok {
				m.watchReplica(n, p, r.Status())
			}
		}
	}
}

func (m *model) watchReplica(n *node, p *partition.Partition, st multiraft.Status) {
	w := m.w
	g := m.group(p.Group(), p.Topic(), p.Index())
	v := n.proc.views[p.ReplicaID()]
	if v == nil {
		v = &replicaView{}
		n.proc.views[p.ReplicaID()] = v
	}
	start, hw := p.LogStart(), p.HighWatermark()
	switch {
	case hw < v.hw:
		w.fail("%s on node %d: the high watermark went from %d to %d", g.name, n.id, v.hw, hw)
	case start < v.start:
		w.fail("%s on node %d: the log start went from %d to %d", g.name, n.id, v.start, start)
	case start > hw:
		w.fail("%s on node %d: log start %d is above the high watermark %d", g.name, n.id, start, hw)
	case st.Term < v.term:
		w.fail("%s on node %d: the term went from %d to %d", g.name, n.id, v.term, st.Term)
	case g.part != nil && w.set.segment.RetentionBytes <= 0 && start > g.part.asked:
		w.fail("%s on node %d: log start %d, nobody asked for more than %d", g.name, n.id, start, g.part.asked)
	case g.part == nil && hw > 0 && !w.scripted && p.Topic() != group.Topic:
		w.fail("%s on node %d: %d records in a topic to which nobody writes", g.name, n.id, hw)
	}
	v.hw, v.start, v.term = hw, start, st.Term
	if st.Ready {
		// A leader may apply later than a follower from which somebody has read; once it has applied all that is committed it is not behind.
		if g.part != nil && st.Term == g.latest && st.Applied >= st.Commit && hw < g.part.shown {
			w.fail("%s: node %d serves term %d with high watermark %d, and a consumer has read up to %d", g.name, n.id, st.Term, hw, g.part.shown)
		}
		m.leaderShows(g, n.id, st.Term, hw)
	}
}

// leaderShows checks a ready leader's watermark against those of earlier terms, and remembers it.
func (m *model) leaderShows(g *groupModel, node int32, term uint64, hw int64) {
	i := len(g.readHW)
	for i > 0 && g.readHW[i-1].term > term {
		i--
	}
	for k := range g.readHW[:i] {
		if e := &g.readHW[k]; e.term < term && e.hw > hw {
			m.w.fail("%s: node %d serves term %d with high watermark %d; in term %d it was %d", g.name, node, term, hw, e.term, e.hw)
			return
		}
	}
	if i > 0 && g.readHW[i-1].term == term {
		g.readHW[i-1].hw = max(g.readHW[i-1].hw, hw)
		return
	}
	g.readHW = append(g.readHW, termHW{})
	copy(g.readHW[i+1:], g.readHW[i:])
	g.readHW[i] = termHW{term, hw}
}

// traceAnswer enters a server's answer to a batch into the trace.
func (w *world) traceAnswer(b *batch, r *kmsg.ProduceResponseTopicPartition) {
	at := w.clk.Now().Sub(epoch)
	w.trace.mix(uint64(at), b.id, uint64(r.BaseOffset), uint64(r.ErrorCode))
	if w.trace.sink != nil {
		message := ""
		if r.ErrorMessage != nil {
			message = *r.ErrorMessage
		}
		w.trace.print(at, fmt.Sprintf("%s: batch %d of producer %d seq %d answered: offset %d code %d %s", b.part, b.id, b.producer, b.seq, r.BaseOffset, r.ErrorCode, message))
	}
}

// readReplica reads a replica's whole log from an offset to its high watermark.
func readReplica(p *partition.Partition, from, to int64) ([]byte, error) {
	var out bytes.Buffer
	for at := from; at < to; {
		res, err := p.Fetch(partition.FetchRequest{Offset: at, MaxBytes: 64 << 10, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1, Follower: true})
		b := res.Records
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
