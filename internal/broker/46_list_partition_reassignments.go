package broker

import (
	"context"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

// ListPartitionReassignments (key 46), 0. KIP-455.
//
// Any node answers, from its image. A replica that is replaced by another on its node moves nowhere and is not listed.

func handleListPartitionReassignments(b *Broker, _ context.Context, _ *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ListPartitionReassignmentsRequest)
	resp := req.ResponseKind().(*kmsg.ListPartitionReassignmentsResponse)
	resp.Topics = []kmsg.ListPartitionReassignmentsResponseTopic{}
	img := b.cfg.Cluster.Image()
	list := func(t *metadata.Topic, want func(index int32) bool) {
		out := kmsg.NewListPartitionReassignmentsResponseTopic()
		out.Topic = t.Name
		for _, p := range t.Partitions {
			adding, removing := p.Moves()
			if len(adding)+len(removing) == 0 || !want(p.Index) {
				continue
			}
			o := kmsg.NewListPartitionReassignmentsResponseTopicPartition()
			o.Partition, o.Replicas, o.AddingReplicas, o.RemovingReplicas = p.Index, p.Nodes(), adding, removing
			out.Partitions = append(out.Partitions, o)
		}
		if len(out.Partitions) > 0 {
			resp.Topics = append(resp.Topics, out)
		}
	}
	if req.Topics == nil {
		for _, name := range sortedTopics(img) {
			list(img.Topics[name], func(int32) bool { return true })
		}
		return resp, nil
	}
	for _, asked := range req.Topics {
		if t := img.Topics[asked.Topic]; t != nil {
			list(t, func(index int32) bool { return slices.Contains(asked.Partitions, index) })
		}
	}
	return resp, nil
}

func sortedTopics(img *metadata.Image) []string { return slices.Sorted(maps.Keys(img.Topics)) }
