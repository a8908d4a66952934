package broker

import (
	"context"
	"iter"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

// ListPartitionReassignments (key 46), 0. KIP-455.
//
// Any node answers, from its image. A replica that is replaced by another on its node moves nowhere and is not listed. What is
// named twice is there twice, as in Kafka.

func handleListPartitionReassignments(b *Broker, _ context.Context, _ *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ListPartitionReassignmentsRequest)
	resp := req.ResponseKind().(*kmsg.ListPartitionReassignmentsResponse)
	resp.Topics = []kmsg.ListPartitionReassignmentsResponseTopic{}
	img := b.cfg.Cluster.Image()
	list := func(t *metadata.Topic, partitions iter.Seq[*metadata.Partition]) {
		out := kmsg.NewListPartitionReassignmentsResponseTopic()
		out.Topic = t.Name
		for p := range partitions {
			adding, removing := p.Moves()
			if len(adding)+len(removing) == 0 {
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
			list(img.Topics[name], slices.Values(img.Topics[name].Partitions))
		}
		return resp, nil
	}
	for _, asked := range req.Topics {
		if t := img.Topics[asked.Topic]; t != nil {
			list(t, func(yield func(*metadata.Partition) bool) {
				for _, index := range asked.Partitions {
					if p, kerror := findPartition(t, index); kerror == nil && !yield(p) {
						return
					}
				}
			})
		}
	}
	return resp, nil
}

func sortedTopics(img *metadata.Image) []string { return slices.Sorted(maps.Keys(img.Topics)) }
