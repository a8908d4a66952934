package broker

import (
	"context"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
)

// DescribeProducers (key 61), 0. KIP-664.
//
// Every replica answers from what it has applied, as Kafka's do; in one-address mode this node asks the leader. There are no
// transactions, so none is open. The time is the largest in the producer's last batch; -1 if an older version took that batch.

func handleDescribeProducers(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DescribeProducersRequest)
	resp := req.ResponseKind().(*kmsg.DescribeProducersResponse)
	ctx, cancel := clock.WithTimeout(ctx, b.cfg.Clock, b.cfg.RequestTimeout)
	defer cancel()
	img := b.cfg.Cluster.Image()
	resp.Topics = make([]kmsg.DescribeProducersResponseTopic, len(req.Topics))
	var size atomic.Int64 // of the answer, also of what is left out of it since it is too much
	var work []func()
	for i := range req.Topics {
		rt, ot := &req.Topics[i], &resp.Topics[i]
		ot.Topic = rt.Topic
		ot.Partitions = make([]kmsg.DescribeProducersResponseTopicPartition, len(rt.Partitions))
		for j, index := range rt.Partitions {
			out := &ot.Partitions[j]
			work = append(work, func() {
				if size.Load() <= int64(b.cfg.MaxAnswerBytes) {
					b.describeProducers(ctx, rc, img, rt.Topic, index, out)
				}
				size.Add(int64(len(out.ActiveProducers)) * producerBytes)
			})
		}
	}
	inParallel(b.cfg.Clock, work, lookups)
	return resp, b.reserveAnswer(ctx, rc, size.Load())
}

// producerBytes is what a producer takes in an answer, decoded and encoded.
const producerBytes = 100

func (b *Broker) describeProducers(ctx context.Context, rc *RequestContext, img *metadata.Image, topic string, index int32, out *kmsg.DescribeProducersResponseTopicPartition) {
	out.Partition = index
	if err := controller.CheckTopicName(topic); err != nil {
		out.ErrorCode, out.ErrorMessage = b.refusal(rc, err)
		return
	}
	local, leader, kerror := b.leaderOf(rc, img, topic, index)
	switch {
	case kerror != nil:
		out.ErrorCode, out.ErrorMessage = b.refusal(rc, kerror)
	case local == nil:
		b.describeProducersAt(ctx, rc, leader, topic, out)
	default:
		for _, p := range local.Producers() {
			a := kmsg.NewDescribeProducersResponseTopicPartitionActiveProducer()
			a.ProducerID, a.ProducerEpoch, a.LastSequence, a.CoordinatorEpoch = p.ID, int32(p.Epoch), p.LastSequence, -1
			a.LastTimestamp = p.LastTime
			out.ActiveProducers = append(out.ActiveProducers, a)
		}
	}
}

// describeProducersAt asks the leader's node.
func (b *Broker) describeProducersAt(ctx context.Context, rc *RequestContext, node int32, topic string, out *kmsg.DescribeProducersResponseTopicPartition) {
	req := kmsg.NewPtrDescribeProducersRequest()
	req.Topics = []kmsg.DescribeProducersRequestTopic{{Topic: topic, Partitions: []int32{out.Partition}}}
	answer, err := b.askPeer(ctx, node, req)
	if err != nil {
		out.ErrorCode, out.ErrorMessage = b.refusal(rc, coded(kerr.NotLeaderForPartition, err.Error()))
		return
	}
	if got := answer.(*kmsg.DescribeProducersResponse); len(got.Topics) == 1 && len(got.Topics[0].Partitions) == 1 {
		*out = got.Topics[0].Partitions[0]
		return
	}
	out.ErrorCode, out.ErrorMessage = b.refusal(rc, kerr.UnknownServerError)
}
