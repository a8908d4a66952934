package controller

import (
	"fmt"
	"maps"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/metadata"
)

// applyBatch carries out one entry of the metadata log. It is a function of the builder's state and the batch alone: every
// replica comes to the same state and the same refusals.
//
// The two errors are of two kinds. refusal means that the log is sound and the batch, deterministically, changes nothing
// (commands are checked whole before they change anything). damage means that this version cannot carry the entry out, and
// the replica must stop rather than drift.
func applyBatch(b *metadata.Builder, index uint64, batch *controllerpb.Batch) (refusal, damage error) {
	if batch.BaseIndex != b.Index() {
		return fmt.Errorf("%w: taken at index %d, the state is at %d", errStale, batch.BaseIndex, b.Index()), nil
	}
	for i, cmd := range batch.Commands {
		refused, err := applyCommand(b, cmd)
		if err != nil {
			return nil, &CorruptError{What: "command", Index: index, Reason: fmt.Sprintf("command %d of %d", i+1, len(batch.Commands)), Err: err}
		}
		if refused != nil {
			// The commands before it stay: each is whole. Those after it were decided on top of it and are not tried.
			if i > 0 {
				b.SetIndex(index)
			}
			return refused, nil
		}
	}
	if len(batch.Commands) > 0 {
		b.SetIndex(index)
	}
	return nil, nil
}

func applyCommand(b *metadata.Builder, cmd *controllerpb.Command) (refusal, damage error) {
	var request uuid.UUID
	if len(cmd.Request) > 0 {
		var err error
		if request, err = uuid.FromBytes(cmd.Request); err != nil {
			return nil, fmt.Errorf("request id: %w", err)
		}
	}
	switch op := cmd.Op.(type) {
	case *controllerpb.Command_RegisterNode:
		refusal, damage = applyRegisterNode(b, op.RegisterNode)
	case *controllerpb.Command_CreateTopics:
		refusal, damage = applyCreateTopics(b, op.CreateTopics)
	case *controllerpb.Command_DeleteTopics:
		refusal, damage = applyDeleteTopics(b, op.DeleteTopics)
	case *controllerpb.Command_CreatePartitions:
		refusal, damage = applyCreatePartitions(b, op.CreatePartitions)
	case *controllerpb.Command_SetConfigs:
		refusal, damage = applySetConfigs(b, op.SetConfigs)
	case *controllerpb.Command_ChangeReplicas:
		refusal, damage = applyChangeReplicas(b, op.ChangeReplicas)
	case *controllerpb.Command_EndChange:
		refusal, damage = applyEndChange(b, op.EndChange)
	case *controllerpb.Command_RemoveNode:
		refusal, damage = applyRemoveNode(b, op.RemoveNode)
	case *controllerpb.Command_AllocateProducerIds:
		a := op.AllocateProducerIds
		switch {
		case a.Count <= 0 || a.First < 0 || a.First > 1<<63-1-a.Count:
			damage = fmt.Errorf("%d producer ids from %d on", a.Count, a.First)
		case a.First != b.NextProducerID():
			refusal = fmt.Errorf("%w: producer ids from %d on, the next is %d", errStale, a.First, b.NextProducerID())
		default:
			b.TakeProducerIDs(a.Count)
		}
	default:
		damage = fmt.Errorf("an operation that this version of Chronik does not know: run the version that the other nodes run")
	}
	if refusal == nil && damage == nil && request != uuid.Nil {
		b.MarkRequest(request, cmd.Done)
	}
	return refusal, damage
}

func applyRegisterNode(b *metadata.Builder, op *controllerpb.RegisterNode) (refusal, damage error) {
	n, err := nodeFromProto(op.Node)
	if err != nil {
		return nil, err
	}
	if old := b.Node(n.ID); old != nil {
		if err := sameIdentity(old, n); err != nil {
			return err, nil
		}
		n.MetadataReplica, n.Voter = old.MetadataReplica, old.Voter
		b.PutNode(n)
		return nil, nil
	}
	if err := notRetired(b, n); err != nil {
		return err, nil
	}
	if n.MetadataReplica != b.NextReplica() {
		return fmt.Errorf("%w: replica id %d, the next is %d", errStale, n.MetadataReplica, b.NextReplica()), nil
	}
	n.Voter = false // a node that joins learns; voters are those that formed the cluster
	b.TakeReplica()
	b.PutNode(n)
	return nil, nil
}

// sameIdentity refuses a node id that comes back with another data directory (design rule 6). A nil *Error is not returned
// as an error.
func sameIdentity(old, n *metadata.Node) error {
	if old.Dir == n.Dir {
		return nil
	}
	return refuse(ErrNodeIdentity, "node id %d belongs to data directory %s, this one is %s: "+
		"if the disk was emptied or replaced, start the node with a new, unused --node-id; if not, start it with its own --data-dir",
		n.ID, old.Dir, n.Dir)
}

// notRetired refuses the data directory of a node that was removed: its log holds votes and records of another time. A nil
// *Error is not returned as an error.
func notRetired(b *metadata.Builder, n *metadata.Node) error {
	if !b.Retired(n.Dir) {
		return nil
	}
	return refuse(ErrNodeIdentity, "data directory %s is that of a node that was removed from the cluster: "+
		"to come back, start the node with an empty --data-dir", n.Dir)
}

func applyCreateTopics(b *metadata.Builder, op *controllerpb.CreateTopics) (refusal, damage error) {
	if op.FirstGroup != b.NextGroup() || op.FirstReplica != b.NextReplica() {
		return fmt.Errorf("%w: groups from %d and replicas from %d, the next are %d and %d",
			errStale, op.FirstGroup, op.FirstReplica, b.NextGroup(), b.NextReplica()), nil
	}
	topics := make([]*metadata.Topic, len(op.Topics))
	names, ids := make(map[string]bool, len(topics)), make(map[uuid.UUID]bool, len(topics))
	for i, t := range op.Topics {
		id, err := uuid.FromBytes(t.Id)
		if err != nil || id == uuid.Nil || t.Name == "" || len(t.Partitions) == 0 {
			return nil, fmt.Errorf("topic %q with id %x and %d partitions", t.Name, t.Id, len(t.Partitions))
		}
		if b.Topic(t.Name) != nil || names[t.Name] {
			return refuse(ErrTopicExists, "topic %q exists", t.Name), nil
		}
		if b.TopicByID(id) != nil || ids[id] {
			return fmt.Errorf("%w: topic id %s is taken", errStale, id), nil
		}
		if refusal, damage = checkPlacements(b, t.Name, t.Partitions); refusal != nil || damage != nil {
			return refusal, damage
		}
		names[t.Name], ids[id] = true, true
		topics[i] = &metadata.Topic{Name: t.Name, ID: id, Internal: t.Internal, Configs: configsFromProto(t.Configs)}
	}
	for i, t := range op.Topics {
		topics[i].Partitions = place(b, 0, t.Partitions)
		b.PutTopic(topics[i])
	}
	return nil, nil
}

func checkPlacements(b *metadata.Builder, topic string, ps []*controllerpb.Placement) (refusal, damage error) {
	for i, p := range ps {
		if len(p.Nodes) == 0 {
			return nil, fmt.Errorf("topic %q: partition without replicas", topic)
		}
		for j, node := range p.Nodes {
			if b.Node(node) == nil {
				return refuse(ErrUnknownNode, "topic %q: partition %d is to be on node %d, which is not known", topic, i, node), nil
			}
			for _, other := range p.Nodes[:j] {
				if other == node {
					return nil, fmt.Errorf("topic %q: partition with two replicas on node %d", topic, node)
				}
			}
		}
	}
	return nil, nil
}

// place makes partitions from first on and hands out their ids.
func place(b *metadata.Builder, first int32, ps []*controllerpb.Placement) []*metadata.Partition {
	// Few large allocations: 2,000 topics in one command come through here.
	replicas := 0
	for _, p := range ps {
		replicas += len(p.Nodes)
	}
	rs := make([]metadata.Replica, 0, replicas)
	parts := make([]metadata.Partition, len(ps))
	out := make([]*metadata.Partition, len(ps))
	for i, p := range ps {
		from := len(rs)
		for _, node := range p.Nodes {
			rs = append(rs, metadata.Replica{ID: b.TakeReplica(), Node: node, Dir: b.Node(node).Dir})
		}
		parts[i] = metadata.Partition{Index: first + int32(i), Group: b.TakeGroup(), Replicas: rs[from:len(rs):len(rs)]}
		out[i] = &parts[i]
	}
	return out
}

func applyDeleteTopics(b *metadata.Builder, op *controllerpb.DeleteTopics) (refusal, damage error) {
	topics := make([]*metadata.Topic, len(op.Ids))
	for i, raw := range op.Ids {
		id, err := uuid.FromBytes(raw)
		if err != nil {
			return nil, fmt.Errorf("topic id: %w", err)
		}
		if topics[i] = b.TopicByID(id); topics[i] == nil {
			return refuse(ErrUnknownTopicID, "there is no topic with id %s", id), nil
		}
	}
	for _, t := range topics {
		b.DeleteTopic(t)
	}
	return nil, nil
}

func applyCreatePartitions(b *metadata.Builder, op *controllerpb.CreatePartitions) (refusal, damage error) {
	if op.FirstGroup != b.NextGroup() || op.FirstReplica != b.NextReplica() {
		return fmt.Errorf("%w: groups from %d and replicas from %d, the next are %d and %d",
			errStale, op.FirstGroup, op.FirstReplica, b.NextGroup(), b.NextReplica()), nil
	}
	topics := make([]*metadata.Topic, len(op.Topics))
	seen := make(map[uuid.UUID]bool, len(topics))
	for i, m := range op.Topics {
		id, err := uuid.FromBytes(m.Id)
		if err != nil || seen[id] || len(m.Partitions) == 0 {
			return nil, fmt.Errorf("topic %x: twice, or %d new partitions", m.Id, len(m.Partitions))
		}
		seen[id] = true
		t := b.TopicByID(id)
		if t == nil {
			return refuse(ErrUnknownTopicID, "there is no topic with id %s", id), nil
		}
		if int(m.Have) != len(t.Partitions) {
			return fmt.Errorf("%w: topic %q has %d partitions, not %d", errStale, t.Name, len(t.Partitions), m.Have), nil
		}
		if refusal, damage = checkPlacements(b, t.Name, m.Partitions); refusal != nil || damage != nil {
			return refusal, damage
		}
		topics[i] = t
	}
	for i, m := range op.Topics {
		t := *topics[i]
		all := make([]*metadata.Partition, 0, len(t.Partitions)+len(m.Partitions))
		t.Partitions = append(append(all, t.Partitions...), place(b, m.Have, m.Partitions)...)
		b.PutTopic(&t)
	}
	return nil, nil
}

func applySetConfigs(b *metadata.Builder, op *controllerpb.SetConfigs) (refusal, damage error) {
	for _, u := range op.Updates {
		switch {
		case len(u.Topic) > 0:
			id, err := uuid.FromBytes(u.Topic)
			if err != nil {
				return nil, fmt.Errorf("topic id: %w", err)
			}
			if b.TopicByID(id) == nil {
				return refuse(ErrUnknownTopicID, "there is no topic with id %s", id), nil
			}
		case u.Group != "":
		case u.Node != -1 && b.Node(u.Node) == nil:
			return refuse(ErrUnknownNode, "node %d is not known", u.Node), nil
		}
	}
	for _, u := range op.Updates {
		if u.Group != "" {
			b.PutGroupConfigs(u.Group, updated(b.GroupConfigs(u.Group), u))
			continue
		}
		if len(u.Topic) == 0 {
			b.PutBrokerConfigs(u.Node, updated(b.BrokerConfigs(u.Node), u))
			continue
		}
		t := *b.TopicByID(uuid.UUID(u.Topic))
		t.Configs = updated(t.Configs, u)
		b.PutTopic(&t)
	}
	return nil, nil
}

// updated returns a changed copy; nil when nothing is left.
func updated(old map[string]string, u *controllerpb.ConfigUpdate) map[string]string {
	m := maps.Clone(old)
	if m == nil {
		m = make(map[string]string, len(u.Set))
	}
	for _, name := range u.Remove {
		delete(m, name)
	}
	for _, c := range u.Set {
		m[c.Name] = c.Value
	}
	if len(m) == 0 {
		return nil
	}
	return m
}
