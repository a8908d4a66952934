package controller

import (
	"context"
	"slices"

	"github.com/chronik-go/chronik/internal/controller/controllerpb"
)

// Reassignment says what nodes a partition is to be on.
type Reassignment struct {
	Topic     string
	Partition int32
	// Nodes are to hold the partition's replicas, the preferred leader first.
	Nodes []int32
	// Cancel, instead: the partition goes back to the replicas it had before the change under way.
	Cancel bool
}

// ReassignResult is what became of one Reassignment of a request, in the request's order.
type ReassignResult struct {
	// Index is the image in which the change has begun.
	Index uint64
	Err   error
}

// Reassign begins to move partitions to other nodes, or turns moves under way back. Each partition is decided by itself. The
// moves go on by themselves from there: Partition.Change in the image says which are under way. keepFactor refuses those that
// change the number of replicas. It may be called on any node.
func (c *Controller) Reassign(ctx context.Context, all []Reassignment, keepFactor bool) []ReassignResult {
	ask := &controllerpb.AskReassign{KeepReplicationFactor: keepFactor}
	for _, r := range all {
		ask.Partitions = append(ask.Partitions, &controllerpb.AskReassign_Partition{Topic: r.Topic, Partition: r.Partition, Nodes: r.Nodes, Cancel: r.Cancel})
	}
	ans, err := c.ask(ctx, &controllerpb.Ask{What: &controllerpb.Ask_Reassign{Reassign: ask}}, len(all))
	out := make([]ReassignResult, len(all))
	for i := range out {
		out[i].Err = err
		if err == nil {
			out[i] = ReassignResult{Index: ans.Index, Err: fromProto(ans.Items[i].Error)}
		}
	}
	return out
}

// ReplaceReplica has a replica that can't serve any more (its log is damaged or gone) replaced by a new one on the same node,
// which starts empty and catches up from the others. It returns once that is decided; the node drops the old replica as soon
// as it sees the image. Without a sound majority of the partition's replicas beside it nothing is done: the error matches
// ErrNoQuorum. A replica that is replaced already is no error. It may be called on any node.
func (c *Controller) ReplaceReplica(ctx context.Context, group, replica uint64) error {
	return c.askOne(ctx, &controllerpb.Ask{What: &controllerpb.Ask_Replace{Replace: &controllerpb.AskReplace{Group: group, Replica: replica}}})
}

// EndChange says that a group's configuration is what the change of its partition's replicas is to come to: these voters and no
// other member. number is the change's: where the image asks for something else by now, or for the same anew, nothing is done. It may be
// called on any node.
func (c *Controller) EndChange(ctx context.Context, group, number uint64, voters []uint64) error {
	voters = slices.Sorted(slices.Values(voters))
	return c.askOne(ctx, &controllerpb.Ask{What: &controllerpb.Ask_EndChange{EndChange: &controllerpb.EndChange{Group: group, Voters: voters, Number: number}}})
}

// RemoveNode removes a node from the cluster for good: its data directory is refused from then on, and where it voted on the
// metadata another node does, if there is one. It is refused while the node runs or holds partitions (ErrNodeInUse), and for
// one that is not registered (ErrUnknownNode). It may be called on any node.
func (c *Controller) RemoveNode(ctx context.Context, node int32) error {
	return c.askOne(ctx, &controllerpb.Ask{What: &controllerpb.Ask_RemoveNode{RemoveNode: &controllerpb.AskRemoveNode{Node: node}}})
}

func (c *Controller) askOne(ctx context.Context, a *controllerpb.Ask) error {
	ans, err := c.ask(ctx, a, 1)
	if err != nil {
		return err
	}
	return fromProto(ans.Items[0].Error)
}
