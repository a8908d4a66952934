package sim

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/partition"
)

const (
	// writableWithin is how soon after healing every partition must take a write, in election timeouts besides.
	writableWithin = 10 * time.Second
	// calm is how long the producers go on after healing: the state that the chaos left must bear load.
	calm = 2 * time.Second
	// equalWithin is how soon after that all replicas must hold the same, catching up included.
	equalWithin = 60 * time.Second
)

// heal ends the chaos: every link works, every node runs, every disk is quick, every clock right in its speed.
func (w *world) heal() {
	w.healed = true
	w.log("healed")
	w.links.each(func(l *link) { l.cut, l.deaf, l.slow, l.loss = false, false, 0, 0 })
	w.links.each(func(l *link) { w.links.check(l, w.links.between(5*ms, 100*ms)) })
	for _, n := range w.nodes {
		n.setClock(0, 1)
		if n.syncFault != nil && n.syncFault.Fired() == 0 {
			n.syncFault.Remove()
			n.syncFault = nil
		}
		n.fs.SetCapacity(0)
		if n.ruined {
			continue
		}
		if n.proc != nil {
			n.proc.slow, n.proc.cut = 0, -1
			n.proc.thaw()
			continue
		}
		if n.standing == member {
			n.boot(-1, w.cutKind())
		}
	}
}

// bound is how long after healing something must have happened.
func (w *world) bound(d time.Duration) time.Duration { return d + 100*w.set.tick }

// finish heals, lets the producers end, and checks everything that must hold in the end.
func (w *world) finish() {
	w.heal()
	w.run(calm, nil)
	// Where the chaos left no time for work, the calm after it must bear it.
	w.run(w.bound(writableWithin), func() bool { return w.model.acked >= minAcked })
	w.ending = true
	if w.failed != nil {
		return
	}
	if !w.run(w.bound(writableWithin), w.idle) && w.failed == nil {
		for i, made := range w.made {
			if !made {
				w.fail("topic %s can't be made %v after healing: %s", topicName(i), w.bound(writableWithin), w.describe())
			}
		}
		for _, p := range w.producers {
			if !p.idle() {
				w.fail("%s takes no write %v after healing: producer %d waits for %d batches, %d under way: %s", p.part, w.bound(writableWithin), p.id,
					len(p.queue), len(p.flying), w.describe())
			}
		}
	}
	w.lastWrites()
	w.finishGroups()
	w.liftThrottles()
	if w.failed == nil && w.change != nil {
		w.finishChange()
		w.lastWrites() // with the nodes that there are now
	}
	if w.failed != nil {
		return
	}
	if w.flipped() {
		// Everything is read over at least once more, so that all damage is found.
		w.run(2*w.set.scrub+5*time.Second, nil)
	}
	w.untilEqual()
	if w.failed == nil && w.change != nil && !w.ruins() {
		w.checkQuorums()
		w.untilEqual() // it takes time, and somebody may have committed an offset meanwhile
	}
	if w.failed == nil {
		w.checkMetadata()
		w.checkMoves()
		w.checkMembers()
		w.throttles.check()
		w.checkGroups()
	}
	for _, p := range w.model.parts {
		w.checkPartition(p)
	}
	if w.failed == nil {
		w.checkBatches()
	}
}

// untilEqual waits until all replicas hold the same.
func (w *world) untilEqual() {
	if !w.run(w.bound(equalWithin), w.equal) && w.failed == nil {
		w.fail("the replicas are not equal %v after healing: %s", w.bound(equalWithin), w.describe())
	}
}

// idle says whether the producers have nothing left to do.
func (w *world) idle() bool {
	for _, made := range w.made {
		if !made {
			return false
		}
	}
	for _, p := range w.producers {
		if !p.idle() {
			return false
		}
	}
	return true
}

// lastWrites sends one batch more to every partition, by a producer of its own.
func (w *world) lastWrites() {
	w.ending = false
	for _, part := range w.model.parts {
		w.newProducer(part, true, 1)
	}
	for _, p := range w.producers[:len(w.producers)-len(w.model.parts)] {
		p.budget = 0
	}
	if !w.run(w.bound(writableWithin), w.idle) && w.failed == nil {
		w.fail("not every partition takes a write %v after healing: %s", w.bound(writableWithin), w.describe())
	}
	w.ending = true
}

// equal says whether every replica of every partition has applied the same, and everybody runs with the same metadata.
func (w *world) equal() bool {
	var img *metadata.Image
	for _, n := range w.members {
		if n.ruined {
			continue
		}
		if !n.up() || !n.proc.registered {
			return false
		}
		if i := n.proc.core.Metadata().Image(); img == nil {
			img = i
		} else if i.Index != img.Index {
			return false
		}
	}
	for _, t := range img.Topics {
		for _, p := range t.Partitions {
			if !w.equalReplicas(t, p) {
				return false
			}
		}
	}
	return true
}

func (w *world) equalReplicas(t *metadata.Topic, p *metadata.Partition) bool {
	var first *partition.Partition
	var applied uint64
	if p.Change != nil && !w.ruins() {
		return false
	}
	for _, r := range p.Replicas {
		if w.nodes[r.Node-1].ruined || w.letGo(p, r) {
			continue
		}
		if w.nodes[r.Node-1].standing != member {
			return false
		}
		core := w.nodes[r.Node-1].proc.core
		v, ok := core.Partitions().Lookup(t.Name, p.Index)
		raft, ok2 := core.Groups().Group(p.Group)
		if !ok || !ok2 || v.Group() != p.Group || v.ReplicaID() != r.ID || len(v.Damage()) > 0 && !w.stays(v) || raft.Fenced() {
			return false
		}
		if first == nil {
			first, applied = v, raft.AppliedIndex()
			continue
		}
		if v.HighWatermark() != first.HighWatermark() || v.LogStart() != first.LogStart() || raft.AppliedIndex() != applied {
			return false
		}
	}
	return true
}

// letGo says whether the group has gone on without a replica and its node still holds it: it goes when the change of replicas ends,
// which is never if the change waits for a node that is ruined. It hears of no leader, and what it holds is old.
func (w *world) letGo(p *metadata.Partition, r metadata.Replica) bool {
	if p.Change == nil || slices.Contains(p.Change.Target, r.ID) {
		return false
	}
	raft, ok := w.nodes[r.Node-1].proc.core.Groups().Group(p.Group)
	return ok && raft.ID() == r.ID && raft.Status().LeaderNode < 0
}

// flipped says whether bits have changed on a disk, ruins whether that has ended a node.
func (w *world) flipped() bool {
	return slices.ContainsFunc(w.nodes, func(n *node) bool { return n.flips > 0 })
}

func (w *world) ruins() bool {
	return slices.ContainsFunc(w.members, func(n *node) bool { return n.ruined })
}

// stays says whether damage can't be mended: below the log start, in the same segment, there is more, of which nobody has a copy.
// It says so itself, and goes when the segment is deleted.
func (w *world) stays(p *partition.Partition) bool { return w.hopeless[p.ReplicaID()] }

// intact returns a node that runs.
func (w *world) intact() *node {
	return w.members[slices.IndexFunc(w.members, func(n *node) bool { return !n.ruined })]
}

func (w *world) describe() string {
	var b bytes.Buffer
	for _, n := range w.nodes {
		if n.ruined {
			fmt.Fprintf(&b, " node %d is ruined;", n.id)
			continue
		}
		if !n.up() || n.proc.core == nil {
			fmt.Fprintf(&b, " node %d is down (standing %d);", n.id, n.standing)
			continue
		}
		fmt.Fprintf(&b, " node %d, metadata %d, registered %v:", n.id, n.proc.core.Metadata().Image().Index, n.proc.registered)
		for _, r := range n.proc.core.Groups().Replicas() {
			st := r.Status()
			fmt.Fprintf(&b, " %s-%d term %d leader %d ready %v commit %d applied %d", r.Topic(), r.Partition(), st.Term, st.LeaderNode, st.Ready,
				st.Commit, st.Applied)
			if r.Fenced() {
				b.WriteString(" fenced")
			}
			if p, ok := n.proc.core.Partitions().Lookup(r.Topic(), r.Partition()); ok {
				fmt.Fprintf(&b, " replica %d log %d to %d", p.ReplicaID(), p.LogStart(), p.HighWatermark())
				if d := p.Damage(); len(d) > 0 {
					fmt.Fprintf(&b, " damage %+v", d)
				}
			}
			b.WriteString(";")
		}
	}
	return b.String()
}

// checkMetadata compares every node's metadata, byte by byte, and looks for an order that explains it.
func (w *world) checkMetadata() {
	var first []byte
	for _, n := range w.members {
		if n.ruined {
			continue
		}
		b, err := controller.EncodeImage(n.proc.core.Metadata().Image())
		if err != nil {
			w.fail("node %d: its metadata does not encode: %v", n.id, err)
			return
		}
		if first == nil {
			first = b
		} else if !bytes.Equal(first, b) {
			w.fail("node %d holds other metadata than node %d", n.id, w.intact().id)
			return
		}
	}
	w.checkHistory(w.intact().proc.core.Metadata().Image())
}

// checkPartition reads every replica from its log start to its end: dense, equal, and what the model knows.
func (w *world) checkPartition(p *partModel) {
	if w.failed != nil {
		return
	}
	t := w.intact().proc.core.Metadata().Image().Topics[p.topic]
	if t == nil || int(p.index) >= len(t.Partitions) {
		w.fail("%s is in nobody's metadata", p)
		return
	}
	var first []byte
	var firstNode int32
	var firstStart, firstHW int64
	for _, r := range t.Partitions[p.index].Replicas {
		if w.nodes[r.Node-1].ruined || w.letGo(t.Partitions[p.index], r) {
			continue
		}
		v, _ := w.nodes[r.Node-1].proc.core.Partitions().Lookup(p.topic, p.index)
		if len(v.Damage()) > 0 {
			w.counts["damage that stays"]++
			continue
		}
		start, hw := v.LogStart(), v.HighWatermark()
		if p.shown > hw {
			w.fail("%s on node %d: the log ends at %d, and a consumer has read up to %d", p, r.Node, hw, p.shown)
			return
		}
		raw, err := readReplica(v, start, hw)
		if err != nil {
			w.fail("%s on node %d: reading from %d to %d: %v", p, r.Node, start, hw, err)
			return
		}
		if p.kept == nil && first != nil && start == firstStart && hw == firstHW && bytes.Equal(first, raw) {
			w.counts["bytes compared"] += len(raw)
			continue // what the same bytes hold has been looked at
		}
		end, ok := w.model.sawAll(p, start, raw, fmt.Sprint("node ", r.Node, " in the end"))
		if !ok {
			return
		}
		if end != hw {
			w.fail("%s on node %d: the log ends at %d, its high watermark is %d", p, r.Node, end, hw)
			return
		}
		if p.kept != nil {
			w.model.audit(p, start, hw, raw, fmt.Sprint("node ", r.Node, " in the end"))
			w.checkEveryOffset(p, v, r.Node, start, hw)
			w.counts["bytes compared"] += len(raw)
			w.checkOverlaps(p, hw)
			continue
		}
		if first == nil {
			first, firstNode, firstStart, firstHW = raw, r.Node, start, hw
		} else if !bytes.Equal(first, raw) {
			w.fail("%s: node %d holds other bytes than node %d", p, r.Node, firstNode)
			return
		}
		w.checkAcked(p, r.Node, start, hw)
		w.counts["bytes compared"] += len(raw)
		w.checkOverlaps(p, hw)
	}
}

// checkAcked looks for every acknowledged batch in a replica that has just been read whole, and returns how many there are.
func (w *world) checkAcked(p *partModel, node int32, start, hw int64) (found int) {
	for _, b := range p.batches {
		if !b.acked || b.offset+int64(b.count) <= start {
			continue
		}
		if s := p.stored[b.offset]; b.offset+int64(b.count) > hw || s.id != b.id || s.sum == 0 {
			w.fail("%s on node %d: acknowledged batch %d is not at offset %d (log from %d to %d)", p, node, b.id, b.offset, start, hw)
			return found
		}
		found++
	}
	return found
}

// checkOverlaps sees to it that no two batches anybody has ever been told of claim one offset.
func (w *world) checkOverlaps(p *partModel, hw int64) {
	last := int64(-1)
	for off := int64(0); off < hw; off++ {
		s, ok := p.stored[off]
		if !ok {
			continue
		}
		if off < last {
			w.fail("%s: batch %d at offset %d begins before %d, where the one before ends", p, s.id, off, last)
			return
		}
		last = s.end
	}
}

// checkBatches checks what each producer must be sure of.
func (w *world) checkBatches() {
	last := map[*producer]int64{}
	for id := uint64(1); id <= w.model.next; id++ {
		b := w.model.sent[id]
		if !b.idempotent {
			continue
		}
		if !b.acked {
			w.fail("%s: batch %d of producer %d was never acknowledged", b.part, id, b.producer)
			return
		}
		if before, ok := last[b.by]; ok && b.offset <= before {
			w.fail("%s: batch %d of producer %d is at offset %d, the one before at %d", b.part, id, b.producer, b.offset, before)
			return
		}
		last[b.by] = b.offset
	}
}
