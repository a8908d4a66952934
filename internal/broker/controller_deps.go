package broker

import (
	"context"

	"github.com/chronik-go/chronik/internal/controller"
)

// Controller decides about topics, configs and producer ids; any node's takes every call and forwards it to the leader of
// the metadata group, retrying within ctx. Results come one per item, in the order asked. *controller.Controller is one.
type Controller interface {
	CreateTopics(ctx context.Context, topics []controller.NewTopic, validateOnly bool) []controller.TopicResult
	DeleteTopics(ctx context.Context, topics []controller.TopicKey) []controller.TopicResult
	CreatePartitions(ctx context.Context, topics []controller.NewPartitions, validateOnly bool) []controller.TopicResult
	AlterConfigs(ctx context.Context, changes []controller.ConfigChange, validateOnly bool) []controller.ConfigResult
	Reassign(ctx context.Context, all []controller.Reassignment, keepFactor bool) []controller.ReassignResult
	RemoveNode(ctx context.Context, node int32) error
	// AllocateProducerIDs hands out [first, first+n), never handed out before, whatever fails.
	AllocateProducerIDs(ctx context.Context, n int64) (first int64, err error)
}

var _ Controller = (*controller.Controller)(nil)
