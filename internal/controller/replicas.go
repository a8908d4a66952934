package controller

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/metadata"
)

// This file decides and carries out changes of what replicas a partition has. The image says what is to be
// (metadata.Change); who leads the partition's group brings it there (package membership), and ends the change by EndChange.

// maxReplicas bounds the replicas that a partition has before, during and after a change, those that were lost included.
const maxReplicas = 32

func partitionKey(topic string, partition int32) string {
	return fmt.Sprintf("%s/%d", topic, partition)
}

// partition finds a partition by topic and index.
func (r *round) partition(topic string, index int32) *metadata.Partition {
	t := r.b.Topic(topic)
	if t == nil || index < 0 || int(index) >= len(t.Partitions) {
		return nil
	}
	return t.Partitions[index]
}

func (r *round) reassign(d *decision, w *controllerpb.AskReassign, mark metadata.RequestMark, done []byte) *controllerpb.Command {
	op := &controllerpb.ChangeReplicas{FirstGroup: r.b.NextGroup(), FirstReplica: r.b.NextReplica()}
	r.each(d, mark, done, func(i int, already bool) (*controllerpb.Item, int, *Error) {
		a := w.Partitions[i]
		item := itemf(a.Topic)
		p := r.partition(a.Topic, a.Partition)
		switch {
		case already:
			return item, 0, nil
		case d.dups[partitionKey(a.Topic, a.Partition)]:
			return item, 0, refuse(ErrInvalidRequest, "%s-%d is in the request twice", a.Topic, a.Partition)
		case p == nil:
			return item, 0, refuse(ErrUnknownTopic, "there is no partition %s-%d", a.Topic, a.Partition)
		}
		var target []*controllerpb.ChangeReplicas_Slot
		var err *Error
		if a.Cancel {
			target, err = slotsBefore(a.Topic, p)
		} else {
			target, err = r.slotsOn(a, p, w.KeepReplicationFactor)
		}
		if err != nil || sameSlots(p, target) {
			return item, 0, err
		}
		if len(p.All())+len(target) > maxReplicas {
			return item, 0, refuse(ErrPolicy, "%s-%d has %d replicas while its replicas change: let the change under way end first", a.Topic, a.Partition, len(p.All()))
		}
		m := &controllerpb.ChangeReplicas_Partition{Group: p.Group, Target: target}
		op.Partitions = append(op.Partitions, m)
		return item, proto.Size(m) + 4, nil
	})
	if len(op.Partitions) == 0 || d.ask.ValidateOnly {
		return nil
	}
	r.places = nil
	return &controllerpb.Command{Op: &controllerpb.Command_ChangeReplicas{ChangeReplicas: op}}
}

// slotsOn chooses the replicas on the nodes asked for: those that are there stay, whatever change made them.
func (r *round) slotsOn(a *controllerpb.AskReassign_Partition, p *metadata.Partition, keepFactor bool) ([]*controllerpb.ChangeReplicas_Slot, *Error) {
	bad := func(format string, args ...any) ([]*controllerpb.ChangeReplicas_Slot, *Error) {
		return nil, refuse(ErrInvalidAssignment, "%s-%d: %s", a.Topic, a.Partition, fmt.Sprintf(format, args...))
	}
	if len(a.Nodes) == 0 {
		return bad("no brokers are named")
	}
	if keepFactor && len(a.Nodes) != len(p.Target()) {
		return nil, refuse(ErrInvalidReplicationFactor, "%s-%d has %d replicas, and the request, which does not allow to change that, names %d",
			a.Topic, a.Partition, len(p.Target()), len(a.Nodes))
	}
	places := r.placer()
	var out []*controllerpb.ChangeReplicas_Slot
	for i, id := range a.Nodes {
		n := r.b.Node(id)
		switch {
		case n == nil:
			return bad("broker %d is not registered", id)
		case slices.Contains(a.Nodes[:i], id):
			return bad("broker %d is named twice", id)
		}
		slot := &controllerpb.ChangeReplicas_Slot{Node: id}
		if have, ok := p.Held(id, n.Dir); ok {
			slot.Replica = have.ID
		} else if s := places.spot(id); s == nil || !s.live {
			return bad("broker %d is to get a replica and can't be reached", id)
		}
		out = append(out, slot)
	}
	return out, nil
}

// slotsBefore are the replicas before the change under way. One that was lost meanwhile does not come back: the one that
// takes its place on the same node stays, or is made.
func slotsBefore(topic string, p *metadata.Partition) ([]*controllerpb.ChangeReplicas_Slot, *Error) {
	adding, removing := p.Moves()
	if len(adding)+len(removing) == 0 {
		return nil, refuse(ErrNoReassignment, "%s-%d is not being reassigned", topic, p.Index)
	}
	var out []*controllerpb.ChangeReplicas_Slot
	for _, was := range p.Replicas {
		slot := &controllerpb.ChangeReplicas_Slot{Node: was.Node}
		if have, ok := p.Held(was.Node, was.Dir); ok {
			slot.Replica = have.ID
		}
		out = append(out, slot)
	}
	return out, nil
}

// sameSlots says whether a target is what the partition comes to anyway.
func sameSlots(p *metadata.Partition, target []*controllerpb.ChangeReplicas_Slot) bool {
	return slices.EqualFunc(p.Target(), target, func(r metadata.Replica, s *controllerpb.ChangeReplicas_Slot) bool { return r.ID == s.Replica })
}

// replace decides that a replica which can't serve any more makes way for a new one on its node. Nothing is done without a
// sound majority beside it: then it holds votes, and perhaps records, that nobody else has.
func (r *round) replace(d *decision, a *controllerpb.AskReplace) *controllerpb.Command {
	d.next = 1
	item := &controllerpb.Item{}
	d.ans.Items[0] = item
	topic, p := r.b.Group(a.Group)
	if p == nil {
		return nil // deleted
	}
	gone, ok := p.Replica(a.Replica)
	if !ok || p.Lost(a.Replica) {
		return nil // replaced already
	}
	if len(p.All()) >= maxReplicas {
		item.Error = refuse(ErrPolicy, "%s-%d has lost too many replicas while one was to be replaced: see to the disk of node %d", topic.Name, p.Index, gone.Node).proto()
		return nil
	}
	for _, set := range [][]metadata.Replica{p.Replicas, p.Target()} {
		if sound := r.sound(p, set, a.Replica); sound < len(set)/2+1 {
			item.Error = refuse(ErrNoQuorum, "%s-%d: replica %d on node %d can't be replaced: only %d of %d replicas are sound and reachable, and what it holds may be needed; "+
				"bring the other replicas' nodes back first", topic.Name, p.Index, a.Replica, gone.Node, sound, len(set)).proto()
			return nil
		}
	}
	m := &controllerpb.ChangeReplicas_Partition{Group: p.Group, Lost: []uint64{a.Replica}}
	for _, have := range p.Target() {
		slot := &controllerpb.ChangeReplicas_Slot{Replica: have.ID, Node: have.Node}
		if have.ID == a.Replica {
			slot.Replica = 0
		}
		m.Target = append(m.Target, slot)
	}
	cmd := &controllerpb.Command{Op: &controllerpb.Command_ChangeReplicas{ChangeReplicas: &controllerpb.ChangeReplicas{
		FirstGroup: r.b.NextGroup(), FirstReplica: r.b.NextReplica(), Partitions: []*controllerpb.ChangeReplicas_Partition{m}}}}
	r.bytes += proto.Size(cmd)
	return cmd
}

// sound counts the replicas of set that are not lost and whose nodes can be reached, without one.
func (r *round) sound(p *metadata.Partition, set []metadata.Replica, without uint64) (n int) {
	places := r.placer()
	for _, x := range set {
		if s := places.spot(x.Node); x.ID != without && !p.Lost(x.ID) && s != nil && s.live {
			n++
		}
	}
	return n
}

func (r *round) endChange(d *decision, a *controllerpb.EndChange) *controllerpb.Command {
	d.next = 1
	d.ans.Items[0] = &controllerpb.Item{}
	if _, p := r.b.Group(a.Group); p == nil || !ends(p, a) {
		return nil // ended already, or the target has moved on
	}
	cmd := &controllerpb.Command{Op: &controllerpb.Command_EndChange{EndChange: a}}
	r.bytes += proto.Size(cmd)
	r.places = nil
	return cmd
}

// ends says whether it is the change of a partition's replicas that is under way now which has come to its end. Its target alone does not
// tell: a change that was turned back has the target of the next one that is, and a word of it that was long on its way would have
// replicas dropped that the group still counts on.
func ends(p *metadata.Partition, e *controllerpb.EndChange) bool {
	return p.Change != nil && p.Change.Number == e.Number && slices.Equal(slices.Sorted(slices.Values(p.Change.Target)), e.Voters)
}

func applyChangeReplicas(b *metadata.Builder, op *controllerpb.ChangeReplicas) (refusal, damage error) {
	if op.FirstGroup != b.NextGroup() || op.FirstReplica != b.NextReplica() {
		return fmt.Errorf("%w: logs from %d and replicas from %d, the next are %d and %d",
			errStale, op.FirstGroup, op.FirstReplica, b.NextGroup(), b.NextReplica()), nil
	}
	seen := make(map[uint64]bool, len(op.Partitions))
	for _, m := range op.Partitions {
		_, p := b.Group(m.Group)
		switch {
		case len(m.Target) == 0 || seen[m.Group]:
			return nil, fmt.Errorf("group %d: twice, or without a target", m.Group)
		case p == nil:
			return fmt.Errorf("%w: there is no group %d", errStale, m.Group), nil
		}
		seen[m.Group] = true
		for _, id := range m.Lost {
			if _, ok := p.Replica(id); !ok {
				return fmt.Errorf("%w: group %d has no replica %d", errStale, m.Group, id), nil
			}
		}
		for i, s := range m.Target {
			if slices.ContainsFunc(m.Target[:i], func(o *controllerpb.ChangeReplicas_Slot) bool { return o.Node == s.Node }) {
				return nil, fmt.Errorf("group %d: two replicas on node %d", m.Group, s.Node)
			}
			if s.Replica == 0 && b.Node(s.Node) == nil {
				return refuse(ErrUnknownNode, "node %d is not known", s.Node), nil
			}
			if _, ok := p.Replica(s.Replica); s.Replica != 0 && (!ok || p.Lost(s.Replica) || slices.Contains(m.Lost, s.Replica)) {
				return fmt.Errorf("%w: group %d has no replica %d that serves", errStale, m.Group, s.Replica), nil
			}
		}
	}
	for _, m := range op.Partitions {
		t, p := b.Group(m.Group)
		putPartition(b, t, changed(b, p, m))
	}
	return nil, nil
}

// changed returns a partition with its change begun, or turned to another target.
func changed(b *metadata.Builder, p *metadata.Partition, m *controllerpb.ChangeReplicas_Partition) *metadata.Partition {
	next := *p
	c := &metadata.Change{Lost: m.Lost, Number: b.Index()}
	if p.Change != nil {
		c.Adding = slices.Clone(p.Change.Adding)
		c.Lost = slices.Concat(p.Change.Lost, m.Lost)
	}
	for _, s := range m.Target {
		id := s.Replica
		if id == 0 {
			id = b.TakeReplica()
			c.Adding = append(c.Adding, metadata.Replica{ID: id, Node: s.Node, Dir: b.Node(s.Node).Dir, Log: b.TakeGroup()})
		}
		c.Target = append(c.Target, id)
	}
	if p.Founders == nil {
		next.Founders = p.Founding()
	}
	next.Change = c
	if p.Change == nil && len(c.Lost) == 0 && slices.Equal(slices.Sorted(slices.Values(c.Target)), sortedIDs(p.Replicas)) {
		// Another order of preference: nothing for the group to do.
		next.Replicas, next.Change, next.Founders = next.Target(), nil, p.Founders
		if p.Founders == nil && !slices.Equal(next.Founding(), p.Founding()) {
			next.Founders = p.Founding()
		}
	}
	return &next
}

func sortedIDs(rs []metadata.Replica) []uint64 {
	out := make([]uint64, len(rs))
	for i, r := range rs {
		out[i] = r.ID
	}
	slices.Sort(out)
	return out
}

func putPartition(b *metadata.Builder, t *metadata.Topic, p *metadata.Partition) {
	next := *t
	next.Partitions = slices.Clone(t.Partitions)
	next.Partitions[p.Index] = p
	b.PutTopic(&next)
}

func applyEndChange(b *metadata.Builder, op *controllerpb.EndChange) (refusal, damage error) {
	t, p := b.Group(op.Group)
	if p == nil || !ends(p, op) {
		return fmt.Errorf("%w: group %d is not to have the replicas %v", errStale, op.Group, op.Voters), nil
	}
	next := *p
	next.Replicas, next.Change = p.Target(), nil
	putPartition(b, t, &next)
	return nil, nil
}

// removeNode decides that a node is no longer one of the cluster's. It must have stopped, and hold no partition.
func (r *round) removeNode(d *decision, id int32) *controllerpb.Command {
	d.next = 1
	item := &controllerpb.Item{}
	d.ans.Items[0] = item
	n := r.b.Node(id)
	if n == nil {
		item.Error = refuse(ErrUnknownNode, "node %d is not registered", id).proto()
		return nil
	}
	if s := r.placer().spot(id); r.c.cfg.Live != nil && s != nil && s.live || id == r.c.cfg.NodeID {
		item.Error = refuse(ErrNodeInUse, "node %d is running: stop it first", id).proto()
		return nil
	}
	if err := holds(r.b, id); err != nil {
		item.Error = err.proto()
		return nil
	}
	op := &controllerpb.RemoveNode{Node: id, Dir: n.Dir[:], Successor: -1}
	if n.Voter {
		voters, live := 0, false
		op.Successor, live = r.successor(id)
		r.b.EachNode(func(m *metadata.Node) {
			if m.Voter {
				voters++
			}
		})
		if voters == 1 && !live {
			item.Error = refuse(ErrNodeInUse, "node %d is the only one that votes on the cluster's metadata: add another node first", id).proto()
			return nil
		}
	}
	cmd := &controllerpb.Command{Op: &controllerpb.Command_RemoveNode{RemoveNode: op}}
	r.bytes += proto.Size(cmd)
	r.places = nil
	return cmd
}

// successor chooses the node that takes over a removed one's vote on the metadata: one that has none, -1 if all have. Where none of them can be
// reached, one that can't gets it as soon as it is back: the group changes its voters once that has caught up, and until then
// it takes as many of the others as without it. Given to nobody, the vote would be gone for good.
func (r *round) successor(id int32) (node int32, live bool) {
	node = -1
	r.b.EachNode(func(m *metadata.Node) {
		if m.Voter || m.ID == id {
			return
		}
		s := r.placer().spot(m.ID)
		up := s != nil && s.live
		if node < 0 || up && !live || up == live && m.ID < node {
			node, live = m.ID, up
		}
	})
	return node, live
}

// holds names partitions that keep a node in the cluster, nil if there are none.
func holds(b *metadata.Builder, node int32) *Error {
	var names []string
	b.EachTopic(func(t *metadata.Topic) {
		for _, p := range t.Partitions {
			if slices.ContainsFunc(p.All(), func(r metadata.Replica) bool { return r.Node == node }) {
				names = append(names, fmt.Sprintf("%s-%d", t.Name, p.Index))
			}
		}
	})
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	more := ""
	if n := len(names); n > 5 {
		names, more = names[:5], fmt.Sprintf(" and %d more", n-5)
	}
	return refuse(ErrNodeInUse, "node %d holds replicas of %v%s: move them to other nodes first (chronik reassign)", node, names, more)
}

func applyRemoveNode(b *metadata.Builder, op *controllerpb.RemoveNode) (refusal, damage error) {
	n := b.Node(op.Node)
	if n == nil || string(n.Dir[:]) != string(op.Dir) {
		return fmt.Errorf("%w: node %d is another or none", errStale, op.Node), nil
	}
	if err := holds(b, op.Node); err != nil {
		return err, nil
	}
	if op.Successor >= 0 {
		next := b.Node(op.Successor)
		if next == nil || op.Successor == op.Node {
			return fmt.Errorf("%w: node %d can't take its vote", errStale, op.Successor), nil
		}
		voter := *next
		voter.Voter = true
		b.PutNode(&voter)
	}
	b.RemoveNode(n)
	return nil, nil
}
