package broker

import (
	"context"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

// DescribeTopicPartitions (key 75), 0. KIP-966.
//
// Topics come in order of name, partitions in order of index, at most so many in one answer; the cursor says where to go on.
// No topics named means all. The cursor's topic need not exist any more: the next by name is taken.

// maxDescribedPartitions bounds the partitions of one answer (Kafka's max.request.partition.size.limit).
const maxDescribedPartitions = 2000

func handleDescribeTopicPartitions(b *Broker, _ context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DescribeTopicPartitionsRequest)
	resp := req.ResponseKind().(*kmsg.DescribeTopicPartitionsResponse)
	img := b.cfg.Cluster.Image()
	names := describedTopics(req, img)
	first := int32(0)
	if c := req.Cursor; c != nil {
		if c.Partition < 0 {
			failDescribedTopics(resp, req, coded(kerr.InvalidRequest, "The cursor's partition must not be negative."))
			return resp, nil
		}
		at, found := slices.BinarySearch(names, c.Topic)
		names = names[at:]
		if found {
			first = c.Partition
		}
	}
	left := max(min(int(req.ResponsePartitionLimit), maxDescribedPartitions), 1)
	for _, name := range names {
		if left <= 0 {
			resp.NextCursor = &kmsg.DescribeTopicPartitionsResponseNextCursor{Topic: name, Partition: first}
			break
		}
		t := img.Topics[name]
		if t == nil || name == metadata.MetadataTopic {
			out := failedTopic(name, kerr.UnknownTopicOrPartition)
			resp.Topics = append(resp.Topics, out)
			left-- // or a request of unknown names would not be bounded
			first = 0
			continue
		}
		end := min(int64(first)+int64(left), int64(len(t.Partitions)))
		resp.Topics = append(resp.Topics, b.describeTopic(rc, img, t, int64(first), end))
		left -= int(max(end-int64(first), 0))
		first = 0
		if end < int64(len(t.Partitions)) {
			resp.NextCursor = &kmsg.DescribeTopicPartitionsResponseNextCursor{Topic: name, Partition: int32(end)}
			break
		}
	}
	return resp, nil
}

// describedTopics lists the names to describe, sorted, each once.
func describedTopics(req *kmsg.DescribeTopicPartitionsRequest, img *metadata.Image) []string {
	if len(req.Topics) == 0 {
		names := slices.Sorted(maps.Keys(img.Topics))
		return slices.DeleteFunc(names, func(n string) bool { return n == metadata.MetadataTopic })
	}
	names := make([]string, len(req.Topics))
	for i := range req.Topics {
		names[i] = req.Topics[i].Topic
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func failDescribedTopics(resp *kmsg.DescribeTopicPartitionsResponse, req *kmsg.DescribeTopicPartitionsRequest, err error) {
	for i := range req.Topics {
		resp.Topics = append(resp.Topics, failedTopic(req.Topics[i].Topic, ErrorOf(err)))
	}
}

func failedTopic(name string, err *kerr.Error) kmsg.DescribeTopicPartitionsResponseTopic {
	out := kmsg.NewDescribeTopicPartitionsResponseTopic()
	out.ErrorCode, out.Topic = err.Code, &name
	return out
}

// describeTopic describes partitions [from, to) of a topic; none if from lies beyond.
func (b *Broker) describeTopic(rc *RequestContext, img *metadata.Image, t *metadata.Topic, from, to int64) kmsg.DescribeTopicPartitionsResponseTopic {
	out := kmsg.NewDescribeTopicPartitionsResponseTopic()
	name := t.Name
	out.Topic, out.TopicID, out.IsInternal = &name, t.ID, t.Internal
	out.AuthorizedOperations = allTopicOperations // the request has no flag to ask; Kafka always says
	for i := from; i < to; i++ {
		out.Partitions = append(out.Partitions, b.describePartition(rc, img, t.Partitions[i]))
	}
	return out
}

func (b *Broker) describePartition(rc *RequestContext, img *metadata.Image, p *metadata.Partition) kmsg.DescribeTopicPartitionsResponseTopicPartition {
	out := kmsg.NewDescribeTopicPartitionsResponseTopicPartition()
	out.Partition = p.Index
	out.LeaderID, out.LeaderEpoch = b.cfg.Cluster.Leader(p.Group)
	if rc.Mode.OneAddress {
		// This node is all the client can see: it is the leader and every replica.
		self := b.cfg.Cluster.NodeID()
		if out.LeaderID >= 0 {
			out.LeaderID = self
		}
		out.Replicas, out.ISR = []int32{self}, []int32{self}
	} else {
		for _, r := range p.Replicas {
			out.Replicas = append(out.Replicas, r.Node)
			if b.cfg.Cluster.Live(r.Node) {
				out.ISR = append(out.ISR, r.Node)
			} else {
				out.OfflineReplicas = append(out.OfflineReplicas, r.Node)
			}
		}
		// A leader named must be among the brokers that clients are told.
		if img.Nodes[out.LeaderID] == nil || !b.cfg.Cluster.Live(out.LeaderID) {
			out.LeaderID = -1
		}
	}
	if out.LeaderID < 0 {
		out.LeaderID, out.ErrorCode = -1, kerr.LeaderNotAvailable.Code
	}
	out.EligibleLeaderReplicas, out.LastKnownELR = []int32{}, []int32{}
	return out
}
