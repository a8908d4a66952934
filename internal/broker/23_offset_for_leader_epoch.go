package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
)

// OffsetForLeaderEpoch (key 23), 2–4. KIP-101, KIP-320.
//
// v2  current leader epoch
// v3  replica id
// v4  flexible
//
// An epoch that is not known, or of the future, is answered -1/-1 without an error.

func handleOffsetForLeaderEpoch(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.OffsetForLeaderEpochRequest)
	ctx, cancel := clock.WithTimeout(ctx, b.cfg.Clock, b.cfg.RequestTimeout)
	defer cancel()
	resp := kmsg.NewPtrOffsetForLeaderEpochResponse()
	resp.Topics = make([]kmsg.OffsetForLeaderEpochResponseTopic, len(req.Topics))
	img := b.cfg.Cluster.Image()
	var work []func()
	for i := range req.Topics {
		rt, ot := &req.Topics[i], &resp.Topics[i]
		ot.Topic = rt.Topic
		ot.Partitions = make([]kmsg.OffsetForLeaderEpochResponseTopicPartition, len(rt.Partitions))
		for j := range rt.Partitions {
			rp, op := &rt.Partitions[j], &ot.Partitions[j]
			op.Default()
			op.Partition, op.LeaderEpoch, op.EndOffset = rp.Partition, -1, -1
			work = append(work, func() {
				if k := b.epochEnd(ctx, rc, img, rt.Topic, rp, op); k != nil {
					b.metrics.refusal(rc.Key, k)
					op.ErrorCode, op.LeaderEpoch, op.EndOffset = k.Code, -1, -1
				}
			})
		}
	}
	inParallel(b.cfg.Clock, work, lookups)
	return resp, nil
}

func (b *Broker) epochEnd(ctx context.Context, rc *RequestContext, img *metadata.Image, topic string, rp *kmsg.OffsetForLeaderEpochRequestTopicPartition, op *kmsg.OffsetForLeaderEpochResponseTopicPartition) *kerr.Error {
	local, leader, kerror := b.leaderOf(rc, img, topic, rp.Partition)
	if kerror != nil {
		return kerror
	}
	if local != nil {
		epoch, end, err := local.EpochEnd(rp.CurrentLeaderEpoch, rp.LeaderEpoch)
		if err != nil {
			return fetchError(err)
		}
		op.LeaderEpoch, op.EndOffset = epoch, end
		return nil
	}
	req := kmsg.NewPtrOffsetForLeaderEpochRequest()
	req.SetVersion(4)
	req.ReplicaID = -1
	req.Topics = []kmsg.OffsetForLeaderEpochRequestTopic{{Topic: topic, Partitions: []kmsg.OffsetForLeaderEpochRequestTopicPartition{*rp}}}
	answer, err := b.askPeer(ctx, leader, req)
	if err != nil {
		return kerr.NotLeaderForPartition
	}
	got := answer.(*kmsg.OffsetForLeaderEpochResponse)
	if len(got.Topics) != 1 || len(got.Topics[0].Partitions) != 1 {
		return kerr.UnknownServerError
	}
	p := &got.Topics[0].Partitions[0]
	op.LeaderEpoch, op.EndOffset = p.LeaderEpoch, p.EndOffset
	return kerr.TypedErrorForCode(p.ErrorCode)
}
