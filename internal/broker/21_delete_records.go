package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// DeleteRecords (key 21), 0–2. KIP-107.
//
// v1  as v0
// v2  flexible
//
// Moves the log start of partitions up to an offset; -1 is the high watermark. The leader proposes it, as it does retention.
// A partition led elsewhere is answered with NOT_LEADER_OR_FOLLOWER, upon which clients look the leader up again.

func handleDeleteRecords(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DeleteRecordsRequest)
	resp := req.ResponseKind().(*kmsg.DeleteRecordsResponse)
	ctx, cancel := b.adminContext(ctx, req.TimeoutMillis)
	defer cancel()

	img := b.cfg.Cluster.Image()
	results := make(chan deleted, countDeletes(req)) // room for every answer: one that comes late blocks nobody
	pending := 0
	for i := range req.Topics {
		t := &req.Topics[i]
		out := kmsg.NewDeleteRecordsResponseTopic()
		out.Topic = t.Topic
		for j, p := range t.Partitions {
			po := kmsg.NewDeleteRecordsResponseTopicPartition()
			po.Partition, po.LowWatermark = p.Partition, -1
			part, err := b.deletable(img, t.Topic, p.Partition, p.Offset)
			if err != nil {
				po.ErrorCode, _ = b.refusal(rc, err)
			} else {
				po.ErrorCode = kerr.RequestTimedOut.Code // until told otherwise
				pending++
				part.DeleteRecords(p.Offset, func(low int64, err error) { results <- deleted{i, j, low, err} })
			}
			out.Partitions = append(out.Partitions, po)
		}
		resp.Topics = append(resp.Topics, out)
	}
	for ; pending > 0; pending-- {
		select {
		case d := <-results:
			po := &resp.Topics[d.topic].Partitions[d.partition]
			po.ErrorCode, _ = b.refusal(rc, d.err)
			if d.err == nil {
				po.LowWatermark = d.low
			}
		case <-ctx.Done():
			return resp, nil
		}
	}
	return resp, nil
}

type deleted struct {
	topic, partition int
	low              int64
	err              error
}

func countDeletes(req *kmsg.DeleteRecordsRequest) int {
	n := 0
	for i := range req.Topics {
		n += len(req.Topics[i].Partitions)
	}
	return n
}

// deletable finds the local leader of a partition whose records may be deleted up to offset.
func (b *Broker) deletable(img *metadata.Image, topic string, index int32, offset int64) (Partition, error) {
	t := img.Topics[topic]
	switch {
	case t == nil || topic == metadata.MetadataTopic || index < 0 || int(index) >= len(t.Partitions):
		return nil, kerr.UnknownTopicOrPartition
	case t.Internal:
		return nil, coded(kerr.InvalidTopicException, "Cannot delete records of internal topic "+topic)
	case offset < -1:
		return nil, kerr.OffsetOutOfRange
	}
	group := t.Partitions[index].Group
	part, ok := b.cfg.Partitions.Lookup(topic, index)
	if !ok || !part.Status().IsLeader {
		leader, _ := b.cfg.Cluster.Leader(group)
		return nil, &multiraft.NotLeaderError{Group: group, LeaderNode: leader}
	}
	return part, nil
}
