package broker

import (
	"context"

	"github.com/google/uuid"
)

// Controller decides about topics, configs and producer ids; any node's takes every call and forwards it to the leader of
// the metadata group, retrying within ctx. Results come one per item, in the order asked. internal/controller has it.
type Controller interface {
	CreateTopics(ctx context.Context, topics []NewTopic, validateOnly bool) []TopicResult
	DeleteTopics(ctx context.Context, topics []TopicKey) []TopicResult
	CreatePartitions(ctx context.Context, topics []NewPartitions, validateOnly bool) []TopicResult
	AlterConfigs(ctx context.Context, changes []ConfigChange, validateOnly bool) []ConfigResult
	// AllocateProducerIDs hands out [first, first+n), never handed out before, whatever fails.
	AllocateProducerIDs(ctx context.Context, n int64) (first int64, err error)
}

// NewTopic asks for a topic.
type NewTopic struct {
	Name string
	// Partitions and ReplicationFactor: -1 takes the cluster's default, or what Assignments says.
	Partitions        int32
	ReplicationFactor int16
	// Assignments, if any, names the nodes of each partition by index, the preferred leader first.
	Assignments [][]int32
	Configs     map[string]string
}

// TopicKey names a topic by id, or by name where ID is the zero UUID.
type TopicKey struct {
	Name string
	ID   uuid.UUID
}

// NewPartitions asks for a topic to grow to Count partitions.
type NewPartitions struct {
	Name  string
	Count int32
	// Assignments, if any, names the nodes of each added partition.
	Assignments [][]int32
}

// TopicResult says what became of one topic of a request.
type TopicResult struct {
	Name              string
	ID                uuid.UUID
	Partitions        int32
	ReplicationFactor int16
	// Index is the metadata index at which the change took effect; 0 if there was none.
	Index uint64
	Err   error
}

// ResourceType says what a config belongs to, with Kafka's numbers.
type ResourceType int8

// The resources that have configs here.
const (
	ResourceTopic  ResourceType = 2
	ResourceBroker ResourceType = 4
)

// Resource is a topic by name, or a broker by its id in decimal ("" is the cluster-wide default).
type Resource struct {
	Type ResourceType
	Name string
}

// ConfigOp is what to do with one config key, with Kafka's numbers (KIP-339).
type ConfigOp int8

// Operations on a config key.
const (
	OpSet      ConfigOp = 0
	OpDelete   ConfigOp = 1
	OpAppend   ConfigOp = 2
	OpSubtract ConfigOp = 3
)

// ConfigEdit is one operation.
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

// ConfigResult says what became of one resource of a request.
type ConfigResult struct {
	Resource Resource
	Err      error
}
