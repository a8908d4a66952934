package broker

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/controller"
)

// AlterPartitionReassignments (key 45), 0–1. KIP-455.
//
// v0  flexible; null replicas cancel a reassignment
// v1  may refuse changes of the number of replicas (KIP-860)
//
// The answer comes when the moves are decided and every live node knows of them. They go on by themselves from there, through
// every restart: ListPartitionReassignments says which have not ended.

func handleAlterPartitionReassignments(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.AlterPartitionAssignmentsRequest)
	resp := req.ResponseKind().(*kmsg.AlterPartitionAssignmentsResponse)
	ctx, cancel := b.adminContext(ctx, req.TimeoutMillis)
	defer cancel()
	resp.AllowReplicationFactorChange = rc.Version < 1 || req.AllowReplicationFactorChange
	var ask []controller.Reassignment
	var at [][2]int
	resp.Topics = make([]kmsg.AlterPartitionAssignmentsResponseTopic, len(req.Topics))
	for i, t := range req.Topics {
		out := &resp.Topics[i]
		out.Topic = t.Topic
		out.Partitions = make([]kmsg.AlterPartitionAssignmentsResponseTopicPartition, len(t.Partitions))
		for j, p := range t.Partitions {
			out.Partitions[j].Partition = p.Partition
			if err := checkReassignment(p.Replicas); err != nil {
				out.Partitions[j].ErrorCode, out.Partitions[j].ErrorMessage = b.refusal(rc, err)
				continue
			}
			ask = append(ask, controller.Reassignment{Topic: t.Topic, Partition: p.Partition, Nodes: p.Replicas, Cancel: p.Replicas == nil})
			at = append(at, [2]int{i, j})
		}
	}
	if len(req.Topics) == 0 {
		resp.ErrorMessage = kmsg.StringPtr("") // not null, as Kafka's
	}
	if len(ask) == 0 {
		return resp, nil
	}
	results := b.cfg.Controller.Reassign(ctx, ask, !resp.AllowReplicationFactorChange)
	var index uint64
	for i, slot := range at {
		err := errShortResult
		if i < len(results) {
			err, index = results[i].Err, max(index, results[i].Index)
		}
		out := &resp.Topics[slot[0]].Partitions[slot[1]]
		out.ErrorCode, out.ErrorMessage = b.refusal(rc, err)
	}
	b.awaitImages(ctx, index)
	return resp, nil
}

// checkReassignment checks what can be checked without knowing the cluster.
func checkReassignment(replicas []int32) error {
	if replicas == nil {
		return nil
	}
	if len(replicas) == 0 {
		return coded(kerr.InvalidReplicaAssignment, "The manual partition assignment includes an empty replica list.")
	}
	for _, id := range replicas {
		if id < 0 {
			return coded(kerr.InvalidReplicaAssignment, fmt.Sprintf("The manual partition assignment includes an invalid broker id %d.", id))
		}
	}
	return nil
}
