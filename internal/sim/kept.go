package sim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/record"
)

// keptModel is what is known of a compacted partition: which records there have been, and so which must still be there. Batches are
// known by their producer's id and sequence, which compaction leaves alone, also where it leaves no records.
type keptModel struct {
	policy  string
	batches map[producerSeq]*batch
	// latest is the last record of each key of which the offset is known; end is up to where that is.
	latest map[string]keyedAt
	// floating are batches whose offset nobody knows: they may be in the log and take the place of others.
	floating map[*batch]bool
	floated  []*batch // in the order in which they were made
}

type producerSeq struct {
	producer int64
	seq      int32
}

// keyedRecord is one record as it was sent; a nil value is a tombstone.
type keyedRecord struct {
	key   string
	value []byte
}

// keyedAt is a record in the log.
type keyedAt struct {
	offset int64
	b      *batch
}

func (k keyedAt) record() *keyedRecord { return &k.b.keyed[k.offset-k.b.offset] }

func newKeptModel(policy string) *keptModel {
	return &keptModel{policy: policy, batches: map[producerSeq]*batch{}, latest: map[string]keyedAt{}, floating: map[*batch]bool{}}
}

// topicConfigs are the configurations that a topic which stays is made with.
func (w *world) topicConfigs(i int) []string {
	policy := w.set.compacted[i]
	if policy == "" {
		return nil
	}
	number := func(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }
	out := []string{"cleanup.policy", policy, "min.compaction.lag.ms", number(w.set.minLag)}
	if w.set.maxLag > 0 {
		out = append(out, "max.compaction.lag.ms", number(w.set.maxLag+w.set.minLag))
	}
	return out
}

// build makes the bytes of a batch of records with keys, of which there are few.
func (k *keptModel) build(w *world, b *batch) []byte {
	bd := record.NewBuilder()
	bd.ProducerID, bd.ProducerEpoch, bd.BaseSequence = b.producer, 0, b.seq
	for i := range b.count {
		r := keyedRecord{key: fmt.Sprint("key", b.by.rng.IntN(w.set.keys))}
		if b.by.rng.IntN(5) > 0 {
			r.value = make([]byte, b.size)
			binary.BigEndian.PutUint64(r.value, b.id<<8|uint64(i)) // a batch has 20 bytes a value at least
		}
		b.keyed = append(b.keyed, r)
		bd.Add(b.born.UnixMilli(), []byte(r.key), r.value)
	}
	out, err := bd.Build()
	if err != nil {
		panic(err)
	}
	k.batches[producerSeq{b.producer, b.seq}] = b
	k.floating[b] = true
	k.floated = append(k.floated, b)
	return out
}

// placed notes that a batch's offset is known.
func (k *keptModel) placed(b *batch) {
	if !k.floating[b] {
		return
	}
	delete(k.floating, b)
	for i := range b.keyed {
		at := keyedAt{b.offset + int64(i), b}
		if old, ok := k.latest[b.keyed[i].key]; !ok || old.offset < at.offset {
			k.latest[b.keyed[i].key] = at
		}
	}
}

// mayFollow says whether a batch that is nowhere yet may have brought a later record of a key.
func (k *keptModel) mayFollow(key string) bool {
	n := 0
	found := false
	for _, b := range k.floated {
		if !k.floating[b] {
			continue
		}
		k.floated[n] = b
		n++
		for i := range b.keyed {
			found = found || b.unclear > 0 && b.keyed[i].key == key
		}
	}
	k.floated = k.floated[:n]
	return found
}

// sawKept is saw for a batch of a compacted partition: what is left of it is what was sent, at the offsets that it had.
func (m *model) sawKept(p *partModel, raw []byte, where string, each func(offset int64, r *keyedRecord)) (end int64, ok bool) {
	w, k := m.w, p.kept
	h, err := record.Check(raw)
	if err != nil {
		w.fail("%s, %s: unsound batch: %v", p, where, err)
		return 0, false
	}
	b := k.batches[producerSeq{h.ProducerID, h.BaseSequence}]
	if b == nil || b.count != h.LastOffsetDelta+1 {
		w.fail("%s, %s: the batch at offset %d is nobody's: producer %d seq %d, %d offsets", p, where, h.BaseOffset, h.ProducerID, h.BaseSequence, h.LastOffsetDelta+1)
		return 0, false
	}
	known, seen := p.stored[h.BaseOffset]
	switch {
	case seen && known.id != b.id:
		w.fail("%s, %s: offset %d held batch %d and now holds batch %d", p, where, h.BaseOffset, known.id, b.id)
	case b.offset >= 0 && b.offset != h.BaseOffset:
		w.fail("%s, %s: batch %d is at offset %d and at %d", p, where, b.id, b.offset, h.BaseOffset)
	case b.unclear == 0:
		w.fail("%s, %s: batch %d at offset %d, which every answer so far has refused for certain", p, where, b.id, h.BaseOffset)
	}
	b.offset = h.BaseOffset
	k.placed(b)
	p.stored[h.BaseOffset] = storedBatch{end: h.LastOffset() + 1, id: b.id}
	before := int32(-1)
	err = record.Records(raw, 1<<20, func(r record.Record) error {
		if r.OffsetDelta <= before || r.OffsetDelta >= b.count {
			return fmt.Errorf("a record at %d after one at %d", r.OffsetDelta, before)
		}
		before = r.OffsetDelta
		sent := &b.keyed[r.OffsetDelta]
		if sent.key != string(r.Key) || (sent.value == nil) != (r.Value == nil) || !bytes.Equal(sent.value, r.Value) {
			return fmt.Errorf("the record at offset %d, of %s, is not what was sent, of %s", h.BaseOffset+int64(r.OffsetDelta), r.Key, sent.key)
		}
		each(h.BaseOffset+int64(r.OffsetDelta), sent)
		return nil
	})
	if err != nil {
		w.fail("%s, %s: batch %d: %v", p, where, b.id, err)
	}
	return h.LastOffset() + 1, w.failed == nil
}

// keptAll is sawAll for a compacted partition: what is not there, from an offset on, has been followed by a later record of its key, or
// is a tombstone whose time is up.
func (m *model) keptAll(p *partModel, from int64, raw []byte, where string, each func(offset int64, r *keyedRecord)) (end int64, ok bool) {
	next := from
	end = from
	for len(raw) > 0 {
		h, err := record.ParseHeader(raw)
		if err != nil || h.Size() > len(raw) {
			m.w.fail("%s, %s: half a batch after offset %d (%v)", p, where, end, err)
			return end, false
		}
		if h.LastOffset() < end || end > from && h.BaseOffset < end {
			m.w.fail("%s, %s: at offset %d comes a batch from %d to %d", p, where, end, h.BaseOffset, h.LastOffset())
			return end, false
		}
		end, ok = m.sawKept(p, raw[:h.Size()], where, func(offset int64, r *keyedRecord) {
			m.missing(p, next, offset, where)
			next = max(next, offset+1)
			each(offset, r)
		})
		if !ok {
			return end, false
		}
		m.missing(p, next, end, where)
		next = end
		raw = raw[h.Size():]
	}
	return end, m.w.failed == nil
}

// missing checks that records of [from, to) may be missing.
func (m *model) missing(p *partModel, from, to int64, where string) {
	if from >= to || m.w.failed != nil {
		return
	}
	// The batch that an offset is of may have begun before it.
	at := from
	for at > 0 && p.stored[at].end == 0 && from-at < 16 {
		at--
	}
	for at < to {
		s, ok := p.stored[at]
		if !ok {
			at++
			continue
		}
		b := m.sent[s.id]
		first, end := max(at, from), min(s.end, to)
		for off := first; off < end; off++ {
			m.mayMiss(p, keyedAt{off, b}, where)
		}
		m.w.counts["records compacted away, as seen"] += int(max(0, end-first))
		at = s.end
	}
}

// mayMiss checks that one record may be missing.
func (m *model) mayMiss(p *partModel, k keyedAt, where string) {
	w, r := m.w, k.record()
	last := p.kept.latest[r.key]
	switch age := w.clk.Now().Sub(k.b.born); {
	case last.offset > k.offset || p.kept.mayFollow(r.key):
		if age < w.surely(w.set.minLag)-time.Millisecond { // timestamps are whole milliseconds, rounded down (seed 8375)
			w.fail("%s, %s: the record at offset %d is gone %v after it was made, before min.compaction.lag.ms", p, where, k.offset, age)
		}
	case r.value != nil:
		w.fail("%s, %s: the record at offset %d, the latest of %s, is gone", p, where, k.offset, r.key)
	case age < w.surely(w.set.tombstones):
		w.fail("%s, %s: the tombstone at offset %d, the latest of %s, is gone after %v, before delete.retention.ms", p, where, k.offset, r.key, age)
	default:
		w.counts["tombstones gone, as seen"]++
	}
}

// surely is how much of d has passed at least when a node's clock says that d has. Clocks that jump by minutes say nothing about less.
func (w *world) surely(d time.Duration) time.Duration {
	switch {
	case d >= time.Hour:
		return d / 2
	case w.counts[FaultPrefix+"clock jump"]+w.counts[FaultPrefix+"clock drift"] > 0:
		return 0
	}
	return d
}

// audit holds a replica that was read whole, at one moment, against what is known: each key's last record is there, and where that is a
// tombstone that has gone nothing older of its key has come back.
func (m *model) audit(p *partModel, start, hw int64, raw []byte, where string) {
	w := m.w
	seen := map[string]int64{}
	end, ok := m.keptAll(p, start, raw, where, func(offset int64, r *keyedRecord) { seen[r.key] = offset })
	if !ok {
		return
	}
	m.missing(p, end, hw, where)
	for i := range w.set.keys {
		key := fmt.Sprint("key", i)
		last, ok := p.kept.latest[key]
		at, there := seen[key]
		if !ok || last.offset >= hw || last.offset < start || there && at >= last.offset {
			continue
		}
		if there || last.record().value != nil && !p.kept.mayFollow(key) { // a tombstone of unknown fate may have come and gone
			w.fail("%s, %s: the last record of %s is at offset %d, and what is left of the key ends at %d (there: %v, log from %d to %d)", p, where, key,
				last.offset, at, there, start, hw)
			return
		}
	}
	w.counts["compacted logs read whole"]++
}

// checkEveryOffset sees to it that a replica can be read from any offset, whether there is a record or not.
func (w *world) checkEveryOffset(p *partModel, v *partition.Partition, node int32, start, hw int64) {
	for n := 0; n < 25 && start < hw && w.failed == nil; n++ {
		at := start + w.rng.Int64N(hw-start)
		res, err := v.Fetch(partition.FetchRequest{Offset: at, MaxBytes: 1, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1, Follower: true})
		h, err2 := record.ParseHeader(res.Records)
		if err != nil || err2 != nil || h.LastOffset() < at {
			w.fail("%s on node %d: reading at offset %d of %d to %d: %v %v, batch from %d to %d", p, node, at, start, hw, err, err2, h.BaseOffset, h.LastOffset())
		}
	}
}

// auditor reads a replica of a compacted partition whole, at one moment, now and then: replicas compact on their own, each must hold the
// last state of every key at any time.
type auditor struct {
	*client
	part *partModel
}

func (w *world) newAuditor(part *partModel) {
	a := &auditor{part: part}
	a.client = w.newClient("auditor", func(*client) { a.run() })
}

func (a *auditor) run() {
	w := a.w
	for !w.ending {
		a.sleep(a.between(100*ms, 2*time.Second))
		n := w.nodes[a.rng.IntN(len(w.nodes))]
		if !n.up() || n.proc.frozen || !n.proc.registered {
			continue
		}
		v, ok := n.proc.core.Partitions().Lookup(a.part.topic, a.part.index)
		if !ok {
			continue
		}
		start, hw := v.LogStart(), v.HighWatermark()
		raw, err := readReplica(v, start, hw)
		if err != nil || w.flipped() && !sound(raw) {
			continue // it is being fetched anew, or damaged: what a consumer is told
		}
		w.model.audit(a.part, start, hw, raw, fmt.Sprint("node ", n.id, " read whole"))
	}
}

// cutCompaction lets the power fail around an operation on one of the files with which a compaction takes the place of others.
func (p *proc) cutCompaction(name string) {
	w := p.node.w
	if w.healed || w.noise.cleanCuts == 0 || !strings.Contains(name, ".cleaned") && !strings.Contains(name, ".swap") {
		return
	}
	if w.chance(w.noise.cleanCuts) {
		p.cut, p.cutKeep = w.rng.IntN(12), w.cutKind()
		w.counts["cut armed at a compaction"]++
	}
}
