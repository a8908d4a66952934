package controller

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/metadata"
)

// NewTopic asks for a topic.
type NewTopic struct {
	Name string
	// Partitions and ReplicationFactor: -1 takes the cluster's default, or what Assignments says; with Assignments both
	// must be -1.
	Partitions        int32
	ReplicationFactor int16
	// Assignments, if any, names the nodes of each partition by index, the preferred leader first.
	Assignments [][]int32
	// Configs by Kafka's names, in Kafka's string forms.
	Configs map[string]string
}

// TopicKey names a topic by id, or by name where ID is the zero UUID.
type TopicKey struct {
	Name string
	ID   uuid.UUID
}

// NewPartitions asks for a topic to grow to Count partitions in all.
type NewPartitions struct {
	Name  string
	Count int32
	// Assignments, if any, names the nodes of each added partition, the first added one first.
	Assignments [][]int32
}

// TopicResult is what became of one topic of a request, in the request's order.
type TopicResult struct {
	Name string
	ID   uuid.UUID
	// Partitions and ReplicationFactor are the topic's after the change (or would be, with validateOnly).
	Partitions        int32
	ReplicationFactor int16
	// Index is the image in which the change is visible: a node shows it once its Image().Index has come this far.
	Index uint64
	// Err is nil, an *Error, or what kept the request from being decided; with multiraft.ErrUnknownOutcome it may have been
	// carried out.
	Err error
}

// ResourceType says what a configuration belongs to, with Kafka's numbers.
type ResourceType int8

// The resources that have configurations.
const (
	ResourceTopic  ResourceType = 2
	ResourceBroker ResourceType = 4
	ResourceGroup  ResourceType = 32
)

// Resource is a topic or a consumer group by name, or a broker by its id in decimal ("" means every broker).
type Resource struct {
	Type ResourceType
	Name string
}

// String names the resource for messages.
func (r Resource) String() string {
	switch {
	case r.Type == ResourceTopic:
		return fmt.Sprintf("topic %q", r.Name)
	case r.Type == ResourceGroup:
		return fmt.Sprintf("group %q", r.Name)
	case r.Type == ResourceBroker && r.Name == "":
		return "all brokers"
	case r.Type == ResourceBroker:
		return "broker " + r.Name
	}
	return fmt.Sprintf("resource %q of type %d", r.Name, r.Type)
}

// ConfigOp is what to do with one name (KIP-339), with Kafka's numbers.
type ConfigOp int8

// The operations on a name.
const (
	OpSet      ConfigOp = 0
	OpDelete   ConfigOp = 1
	OpAppend   ConfigOp = 2
	OpSubtract ConfigOp = 3
)

// ConfigEdit is one operation. Value is nil for OpDelete only.
type ConfigEdit struct {
	Op    ConfigOp
	Key   string
	Value *string
}

// ConfigChange is what to do with one resource. Replace: the legacy AlterConfigs, whose edits are all OpSet and which
// resets everything unnamed.
type ConfigChange struct {
	Resource Resource
	Edits    []ConfigEdit
	Replace  bool
}

// ConfigResult is what became of a ConfigChange, in the request's order.
type ConfigResult struct {
	Resource Resource
	// Index is the image in which the change is visible.
	Index uint64
	Err   error
}

// Registered is what a node learns when it registers.
type Registered struct {
	// Node is the node as the cluster knows it, with its replica id in the metadata group.
	Node      metadata.Node
	ClusterID string
	// Members are all nodes with a replica of the metadata group, by node id: where a node that joins finds it.
	Members []metadata.Node
	// Index is the image in which the registration is visible.
	Index uint64
}

// CreateTopics creates topics; the whole request is one decision, and each topic is made whole or not at all. It may be
// called on any node. Results are in the order of topics.
func (c *Controller) CreateTopics(ctx context.Context, topics []NewTopic, validateOnly bool) []TopicResult {
	ask := &controllerpb.AskCreateTopics{Topics: make([]*controllerpb.AskCreateTopics_Topic, len(topics))}
	for i, t := range topics {
		p := &controllerpb.AskCreateTopics_Topic{
			Name: t.Name, Partitions: t.Partitions, ReplicationFactor: int32(t.ReplicationFactor),
			Assignments: placementsProto(t.Assignments), Configs: configsProto(t.Configs),
		}
		ask.Topics[i] = p
	}
	ans, err := c.ask(ctx, &controllerpb.Ask{ValidateOnly: validateOnly, What: &controllerpb.Ask_CreateTopics{CreateTopics: ask}}, len(topics))
	return topicResults(len(topics), ans, err, func(i int) (string, uuid.UUID) { return topics[i].Name, uuid.Nil })
}

// DeleteTopics deletes topics by id or name. It may be called on any node.
func (c *Controller) DeleteTopics(ctx context.Context, keys []TopicKey) []TopicResult {
	ask := &controllerpb.AskDeleteTopics{Topics: make([]*controllerpb.AskDeleteTopics_Key, len(keys))}
	for i, k := range keys {
		ask.Topics[i] = &controllerpb.AskDeleteTopics_Key{Name: k.Name}
		if k.ID != uuid.Nil {
			ask.Topics[i].Id = k.ID[:]
		}
	}
	ans, err := c.ask(ctx, &controllerpb.Ask{What: &controllerpb.Ask_DeleteTopics{DeleteTopics: ask}}, len(keys))
	return topicResults(len(keys), ans, err, func(i int) (string, uuid.UUID) { return keys[i].Name, keys[i].ID })
}

// CreatePartitions adds partitions to topics. It may be called on any node.
func (c *Controller) CreatePartitions(ctx context.Context, topics []NewPartitions, validateOnly bool) []TopicResult {
	ask := &controllerpb.AskCreatePartitions{Topics: make([]*controllerpb.AskCreatePartitions_Topic, len(topics))}
	for i, t := range topics {
		ask.Topics[i] = &controllerpb.AskCreatePartitions_Topic{Name: t.Name, Count: t.Count, Assignments: placementsProto(t.Assignments)}
	}
	ans, err := c.ask(ctx, &controllerpb.Ask{ValidateOnly: validateOnly, What: &controllerpb.Ask_CreatePartitions{CreatePartitions: ask}}, len(topics))
	return topicResults(len(topics), ans, err, func(i int) (string, uuid.UUID) { return topics[i].Name, uuid.Nil })
}

// AlterConfigs changes configurations; each resource is changed whole or not at all. It may be called on any node.
func (c *Controller) AlterConfigs(ctx context.Context, changes []ConfigChange, validateOnly bool) []ConfigResult {
	ask := &controllerpb.AskAlterConfigs{Changes: make([]*controllerpb.AskAlterConfigs_Change, len(changes))}
	for i, ch := range changes {
		p := &controllerpb.AskAlterConfigs_Change{Type: int32(ch.Resource.Type), Resource: ch.Resource.Name, Replace: ch.Replace}
		for _, op := range ch.Edits {
			p.Ops = append(p.Ops, &controllerpb.AskAlterConfigs_Op{Kind: int32(op.Op), Name: op.Key, Value: op.Value})
		}
		ask.Changes[i] = p
	}
	ans, err := c.ask(ctx, &controllerpb.Ask{ValidateOnly: validateOnly, What: &controllerpb.Ask_AlterConfigs{AlterConfigs: ask}}, len(changes))
	out := make([]ConfigResult, len(changes))
	for i := range out {
		out[i] = ConfigResult{Resource: changes[i].Resource, Err: err}
		if err == nil {
			out[i].Index, out[i].Err = ans.Index, fromProto(ans.Items[i].Error)
		}
	}
	return out
}

// AllocateProducerIDs takes n producer ids for the caller, for good, and returns the first. It may be called on any node.
func (c *Controller) AllocateProducerIDs(ctx context.Context, n int64) (first int64, err error) {
	ans, err := c.ask(ctx, &controllerpb.Ask{What: &controllerpb.Ask_ProducerIds{ProducerIds: &controllerpb.AskProducerIDs{Count: n}}}, 1)
	if err != nil {
		return 0, err
	}
	return ans.FirstProducerId, fromProto(ans.Items[0].Error)
}

// RegisterNode tells the cluster that a node is there, and where. See Register.
func (c *Controller) RegisterNode(ctx context.Context, n metadata.Node) error {
	_, err := c.Register(ctx, n)
	return err
}

// Register tells the cluster that a node is there, and where: at every start of the node, and when its addresses change. A
// node id that is new joins: it gets a replica id in the metadata group and becomes a learner there; Register returns once
// that is so, and may be repeated. A node id known with another data directory is refused with ErrNodeIdentity. The node's
// MetadataReplica and Voter are not taken from n.
func (c *Controller) Register(ctx context.Context, n metadata.Node) (Registered, error) {
	ans, err := c.ask(ctx, &controllerpb.Ask{What: &controllerpb.Ask_RegisterNode{RegisterNode: nodeProto(&n)}}, 1)
	if err == nil {
		err = fromProto(ans.Items[0].Error)
	}
	if err != nil {
		return Registered{}, fmt.Errorf("registering node %d: %w", n.ID, err)
	}
	node, err := nodeFromProto(ans.Node)
	if err != nil {
		return Registered{}, &CorruptError{What: "call", Reason: "answer to a registration", Err: err}
	}
	r := Registered{Node: *node, ClusterID: ans.ClusterId, Index: ans.Index}
	for _, m := range ans.Members {
		member, err := nodeFromProto(m)
		if err != nil {
			return Registered{}, &CorruptError{What: "call", Reason: "answer to a registration", Err: err}
		}
		r.Members = append(r.Members, *member)
	}
	return r, nil
}

// Read returns an image that shows everything decided before the call, on any node (design rule 17). It waits until this
// node has applied that much.
func (c *Controller) Read(ctx context.Context) (*metadata.Image, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	ans, err := c.ask(ctx, &controllerpb.Ask{What: &controllerpb.Ask_Barrier{Barrier: &controllerpb.Barrier{}}}, 0)
	if err != nil {
		return nil, fmt.Errorf("reading current metadata: %w", err)
	}
	return c.machine.Await(ctx, ans.Index)
}

// Await returns an image of index or later, as soon as this node has one.
func (s *StateMachine) Await(ctx context.Context, index uint64) (*metadata.Image, error) {
	if img := s.Image(); img.Index >= index {
		return img, nil
	}
	reached := make(chan *metadata.Image, 1)
	cancel := s.Watch(func(img *metadata.Image) {
		if img.Index >= index {
			select {
			case reached <- img:
			default:
			}
		}
	})
	defer cancel()
	img, err := clock.Recv(s.cfg.Clock, ctx, reached)
	if err != nil {
		return nil, fmt.Errorf("waiting for metadata index %d, at %d: %w", index, s.Image().Index, err)
	}
	return img, nil
}

func topicResults(n int, ans *controllerpb.Answer, err error, key func(i int) (string, uuid.UUID)) []TopicResult {
	out := make([]TopicResult, n)
	for i := range out {
		r := &out[i]
		r.Name, r.ID = key(i)
		if err != nil {
			r.Err = err
			continue
		}
		it := ans.Items[i]
		r.Index, r.Err = ans.Index, fromProto(it.Error)
		if it.Name != "" {
			r.Name = it.Name
		}
		if id, e := uuid.FromBytes(it.Id); e == nil {
			r.ID = id
		}
		r.Partitions, r.ReplicationFactor = it.Partitions, int16(it.ReplicationFactor)
	}
	return out
}

func placementsProto(as [][]int32) []*controllerpb.Placement {
	var out []*controllerpb.Placement
	for _, nodes := range as {
		out = append(out, &controllerpb.Placement{Nodes: nodes})
	}
	return out
}
