package sim

import (
	"bytes"
	"fmt"
	"time"

	"github.com/chronik-go/chronik/internal/partition"
)

const (
	// writableWithin is how soon after healing every partition must take a write.
	writableWithin = 10 * time.Second
	// calm is how long the producers go on after healing: the state that the chaos left must bear load.
	calm = time.Second
	// equalWithin is how soon after that all replicas must hold the same, catching up included.
	equalWithin = 60 * time.Second
)

// heal ends the chaos: every link works, every node runs, every disk is quick.
func (w *world) heal() {
	w.healed = true
	w.log("healed")
	w.net.each(func(l *link) { l.cut, l.slow, l.loss = false, 0, 0 })
	for _, n := range w.nodes {
		if n.syncFault != nil && n.syncFault.Fired() == 0 {
			n.syncFault.Remove()
			n.syncFault = nil
		}
		if n.proc != nil {
			n.proc.frozen, n.proc.cut = false, -1
			continue
		}
		n.boot(-1, w.cutKind())
	}
}

// finish heals, lets the producers end, and checks everything that must hold in the end.
func (w *world) finish() {
	w.heal()
	w.run(calm, nil)
	w.ending = true
	if w.failed != nil {
		return
	}
	if !w.run(writableWithin, w.idle) && w.failed == nil {
		for _, c := range w.clients {
			if len(c.queue) > 0 {
				w.fail("partition %d takes no write %v after healing: producer %d waits for %d batches, %d answers", c.part, writableWithin, c.id, len(c.queue), len(c.sent))
			}
		}
	}
	w.lastWrites()
	if w.failed != nil {
		return
	}
	if !w.run(equalWithin, w.equal) && w.failed == nil {
		w.fail("the replicas are not equal %v after healing: %s", equalWithin, w.describe())
	}
	for i := range w.model.parts {
		w.checkPartition(w.model.parts[i])
	}
	if w.failed == nil {
		w.checkBatches()
	}
}

// idle says whether the producers have nothing left to do.
func (w *world) idle() bool {
	for _, c := range w.clients {
		if len(c.queue) > 0 || len(c.sent) > 0 {
			return false
		}
	}
	return true
}

// lastWrites sends one batch more to every partition, by a producer of its own.
func (w *world) lastWrites() {
	for i := range int32(w.set.partitions) {
		c := &producer{w: w, part: i, id: int64(5000 + i), node: 1}
		b := w.model.newBatch(i, c.id, 0, 1, 50)
		c.seq, c.queue, c.resend = 1, []*batch{b}, true
		w.clients = append(w.clients, c)
		c.later()
	}
	if !w.run(writableWithin, w.idle) && w.failed == nil {
		w.fail("not every partition takes a write %v after healing: %s", writableWithin, w.describe())
	}
}

// equal says whether every replica of every partition has applied the same, and everybody runs.
func (w *world) equal() bool {
	for i := range w.model.parts {
		var first *replicaView
		for _, n := range w.nodes {
			if n.proc == nil || n.proc.dead {
				return false
			}
			v := n.proc.parts[i]
			if first == nil {
				first = v
				continue
			}
			if v.p.HighWatermark() != first.p.HighWatermark() || v.p.LogStart() != first.p.LogStart() || v.r.AppliedIndex() != first.r.AppliedIndex() {
				return false
			}
		}
	}
	return true
}

func (w *world) describe() string {
	var b bytes.Buffer
	for _, n := range w.nodes {
		if n.proc == nil {
			b.WriteString(" (down)")
			continue
		}
		for _, v := range n.proc.parts {
			st := v.r.Status()
			b.WriteString(" node ")
			b.WriteByte(byte('0' + n.id))
			b.WriteString(fmt.Sprint(" partition ", v.p.Index(), " term ", st.Term, " leader ", st.LeaderNode, " ready ", st.Ready, " commit ", st.Commit,
				" applied ", st.Applied, " hw ", v.p.HighWatermark(), " start ", v.p.LogStart(), ";"))
		}
	}
	return b.String()
}

// checkPartition reads every replica from its log start to its end: dense, equal, and what the model knows.
func (w *world) checkPartition(p *partModel) {
	if w.failed != nil {
		return
	}
	var first []byte
	for _, n := range w.nodes {
		v := n.proc.parts[p.index]
		start, hw := v.p.LogStart(), v.p.HighWatermark()
		raw, err := v.read(func(off int64) ([]byte, error) {
			res, err := v.p.Fetch(partition.FetchRequest{Offset: off, MaxBytes: 16 << 10, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1, Follower: true})
			return res.Records, err
		}, start, hw)
		if err != nil {
			w.fail("partition %d on node %d: reading from %d to %d: %v", p.index, n.id, start, hw, err)
			return
		}
		end, ok := w.model.sawAll(p, start, raw, fmt.Sprint("node ", n.id, " in the end"))
		if !ok {
			return
		}
		if end != hw {
			w.fail("partition %d on node %d: the log ends at %d, its high watermark is %d", p.index, n.id, end, hw)
			return
		}
		if first == nil {
			first = raw
		} else if !bytes.Equal(first, raw) {
			w.fail("partition %d: node %d holds other bytes than node 1", p.index, n.id)
			return
		}
		w.checkAcked(p, n.id, start, hw)
		w.counts["bytes compared"] += len(raw)
	}
	w.checkOverlaps(p)
}

// checkAcked looks for every acknowledged batch in a replica that has just been read whole.
func (w *world) checkAcked(p *partModel, node int32, start, hw int64) {
	for id := uint64(1); id <= w.model.next; id++ {
		b := w.model.sent[id]
		if b.part != p.index || !b.acked || b.offset+int64(b.count) <= start {
			continue
		}
		if s := p.stored[b.offset]; b.offset+int64(b.count) > hw || s.id != id || s.sum == 0 {
			w.fail("partition %d on node %d: acknowledged batch %d is not at offset %d (log from %d to %d)", p.index, node, id, b.offset, start, hw)
			return
		}
	}
}

// checkOverlaps sees to it that no two batches anybody has ever been told of claim one offset.
func (w *world) checkOverlaps(p *partModel) {
	last := int64(-1)
	for off, n := int64(0), w.nodes[0].proc.parts[p.index].p.HighWatermark(); off < n; {
		s, ok := p.stored[off]
		if !ok {
			off++
			continue
		}
		if off < last {
			w.fail("partition %d: batch %d at offset %d begins before %d, where the one before ends", p.index, s.id, off, last)
			return
		}
		last = s.end
		off++
	}
}

// checkBatches checks what each producer must be sure of.
func (w *world) checkBatches() {
	for id := uint64(1); id <= w.model.next; id++ {
		b := w.model.sent[id]
		if b.idempotent && !b.acked {
			w.fail("partition %d: batch %d of producer %d was never acknowledged", b.part, id, b.producer)
			return
		}
	}
	for _, c := range w.clients {
		last := int64(-1)
		for id := uint64(1); c.id >= 0 && id <= w.model.next; id++ {
			if b := w.model.sent[id]; b.producer == c.id && b.idempotent {
				if b.offset <= last {
					w.fail("partition %d: batch %d of producer %d is at offset %d, the one before at %d", c.part, id, c.id, b.offset, last)
					return
				}
				last = b.offset
			}
		}
	}
}
