package broker

import (
	"context"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
)

// DescribeTopicPartitions (key 75), 0. KIP-966.
//
// Topics come in order of name, partitions in order of index, at most so many in one answer; the cursor says where to go on.
// No topics named means all: the cursor's topic need not exist any more then, the next by name is taken. Where topics are named it must be
// one of them.
//
// A partition without a leader has leader -1 and no error, unlike in Metadata. Kafka's eligible leader replicas are none here: who may
// lead is for the replicas' logs to say.

// maxDescribedPartitions bounds the partitions of one answer (Kafka's max.request.partition.size.limit).
const maxDescribedPartitions = 2000

func handleDescribeTopicPartitions(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DescribeTopicPartitionsRequest)
	resp := req.ResponseKind().(*kmsg.DescribeTopicPartitionsResponse)
	img := b.cfg.Cluster.Image()
	names := describedTopics(req, img)
	first := int32(0)
	if c := req.Cursor; c != nil {
		at, found := slices.BinarySearch(names, c.Topic)
		if c.Partition < 0 || !found && len(req.Topics) > 0 {
			for i := range req.Topics { // there is no other place for an error
				resp.Topics = append(resp.Topics, b.failedTopic(rc, req.Topics[i].Topic, kerr.InvalidRequest))
			}
			return resp, nil
		}
		names = names[at:]
		if found {
			first = c.Partition
		}
	}
	var topics []*metadata.Topic
	for _, name := range names {
		if t := img.Topics[name]; t != nil && name != metadata.MetadataTopic {
			topics = append(topics, t)
		}
	}
	b.awaitFresh(ctx, rc, topics)
	left := max(min(int(req.ResponsePartitionLimit), maxDescribedPartitions), 1)
	for _, name := range names {
		if left <= 0 {
			resp.NextCursor = &kmsg.DescribeTopicPartitionsResponseNextCursor{Topic: name, Partition: first}
			break
		}
		t := img.Topics[name]
		if t == nil || name == metadata.MetadataTopic {
			kerror := kerr.UnknownTopicOrPartition
			if controller.CheckTopicName(name) != nil {
				kerror = kerr.InvalidTopicException
			}
			resp.Topics = append(resp.Topics, b.failedTopic(rc, name, kerror))
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

func (b *Broker) failedTopic(rc *RequestContext, name string, err *kerr.Error) kmsg.DescribeTopicPartitionsResponseTopic {
	out := kmsg.NewDescribeTopicPartitionsResponseTopic()
	out.Topic = &name
	out.ErrorCode, _ = b.refusal(rc, err)
	return out
}

// describeTopic describes partitions [from, to) of a topic; none if from lies beyond.
func (b *Broker) describeTopic(rc *RequestContext, img *metadata.Image, t *metadata.Topic, from, to int64) kmsg.DescribeTopicPartitionsResponseTopic {
	out := kmsg.NewDescribeTopicPartitionsResponseTopic()
	name := t.Name
	out.Topic, out.TopicID, out.IsInternal = &name, t.ID, t.Internal
	out.AuthorizedOperations = topicOperations // the request has no flag to ask; Kafka always says
	for i := from; i < to; i++ {
		out.Partitions = append(out.Partitions, b.describePartition(rc, img, t.Partitions[i]))
	}
	return out
}

func (b *Broker) describePartition(rc *RequestContext, img *metadata.Image, p *metadata.Partition) kmsg.DescribeTopicPartitionsResponseTopicPartition {
	out := kmsg.NewDescribeTopicPartitionsResponseTopicPartition()
	out.Partition = p.Index
	out.LeaderID, out.LeaderEpoch = b.leaderNamed(img, p.Group)
	out.EligibleLeaderReplicas, out.LastKnownELR = []int32{}, []int32{}
	if rc.Mode.OneAddress {
		// This node is all that the client can see: the leader, whoever it is behind it, and every replica.
		self := b.cfg.Cluster.NodeID()
		out.LeaderID, out.Replicas, out.ISR = self, []int32{self}, []int32{self}
		return out
	}
	b.replicaLists(img, p, &out.Replicas, &out.ISR, &out.OfflineReplicas)
	return out
}
