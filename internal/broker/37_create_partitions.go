package broker

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/controller"
)

// CreatePartitions (key 37), 0–3. KIP-195.
//
// v1  as v0 (brokers throttle after answering)
// v2  flexible
// v3  as v2 (throttling quotas may answer, KIP-599)
//
// Like CreateTopics it answers when the new partitions have leaders and every live node knows them.

func handleCreatePartitions(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.CreatePartitionsRequest)
	resp := req.ResponseKind().(*kmsg.CreatePartitionsResponse)
	ctx, cancel := b.adminContext(ctx, req.TimeoutMillis)
	defer cancel()

	seen := make(map[string]int, len(req.Topics))
	for i := range req.Topics {
		seen[req.Topics[i].Topic]++
	}
	var ask []controller.NewPartitions
	var at []int
	for i := range req.Topics {
		t := &req.Topics[i]
		n := seen[t.Topic]
		if n == 0 {
			continue
		}
		seen[t.Topic] = 0
		out := kmsg.NewCreatePartitionsResponseTopic()
		out.Topic = t.Topic
		np, err := b.newPartitions(t)
		if n > 1 {
			err = coded(kerr.InvalidRequest, "Duplicate topic name.")
		}
		if err != nil {
			out.ErrorCode, out.ErrorMessage = b.refusal(rc, err)
		} else {
			ask, at = append(ask, np), append(at, len(resp.Topics))
		}
		resp.Topics = append(resp.Topics, out)
	}
	if len(ask) == 0 {
		return resp, nil
	}

	results := b.cfg.Controller.CreatePartitions(ctx, ask, req.ValidateOnly)
	var index uint64
	var grown []string
	for i, slot := range at {
		out := &resp.Topics[slot]
		res, err := resultAt(results, i)
		if err != nil {
			out.ErrorCode, out.ErrorMessage = b.refusal(rc, err)
			continue
		}
		index = max(index, res.Index)
		grown = append(grown, out.Topic)
	}
	if !req.ValidateOnly && req.TimeoutMillis > 0 {
		b.awaitTopics(ctx, index, grown)
	}
	return resp, nil
}

func (b *Broker) newPartitions(t *kmsg.CreatePartitionsRequestTopic) (controller.NewPartitions, error) {
	np := controller.NewPartitions{Name: t.Topic, Count: t.Count}
	if t.Count < 1 {
		return np, coded(kerr.InvalidPartitions, "Number of partitions was set to an invalid non-positive value.")
	}
	for i, a := range t.Assignment {
		if len(a.Replicas) == 0 {
			return np, coded(kerr.InvalidReplicaAssignment, fmt.Sprintf("The manual partition assignment includes an empty replica list for new partition %d.", i))
		}
		np.Assignments = append(np.Assignments, a.Replicas)
	}
	// A null assignment leaves the placing to the cluster; an empty one places nothing and so can't be right. The controller
	// sees no difference, so that it is told here, where the topic is known and would really grow.
	if known := b.cfg.Cluster.Image().Topics[t.Topic]; known != nil && t.Assignment != nil {
		if added := int(t.Count) - len(known.Partitions); added > 0 && added != len(t.Assignment) {
			return np, coded(kerr.InvalidReplicaAssignment, fmt.Sprintf("Attempted to add %d additional partition(s), but only %d assignment(s) were specified.", added, len(t.Assignment)))
		}
	}
	return np, nil
}
