package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group"
)

// OffsetDelete (key 47), 0; never flexible. KIP-496.
//
// Partitions that do not exist are refused here (3). An error of the group is the whole's, without topics.

func handleOffsetDelete(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.OffsetDeleteRequest)
	node, err := b.coordinator(rc, req.Group)
	if err == nil && node >= 0 {
		var resp kmsg.Response
		if resp, err = b.askCoordinator(ctx, rc, node, b.cfg.RequestTimeout, req); err == nil {
			return resp, nil
		}
	}
	img := b.cfg.Cluster.Image()
	resp := kmsg.NewPtrOffsetDeleteResponse()
	topics := make([]kmsg.OffsetDeleteResponseTopic, len(req.Topics))
	var ask []group.Partition
	var at []*kmsg.OffsetDeleteResponseTopicPartition
	for i := range req.Topics {
		rt, ot := &req.Topics[i], &topics[i]
		ot.Topic = rt.Topic
		ot.Partitions = make([]kmsg.OffsetDeleteResponseTopicPartition, len(rt.Partitions))
		t, kerror := findTopic(img, false, rt.Topic, [16]byte{})
		for j := range rt.Partitions {
			op := &ot.Partitions[j]
			op.Partition = rt.Partitions[j].Partition
			k := kerror
			if k == nil {
				_, k = findPartition(t, op.Partition)
			}
			if k != nil {
				op.ErrorCode, _ = b.refusal(rc, k)
				continue
			}
			ask, at = append(ask, group.Partition{Topic: rt.Topic, Partition: op.Partition}), append(at, op)
		}
	}
	if len(ask) == 0 && len(topics) > 0 {
		resp.Topics = topics // refused without asking who coordinates the group
		return resp, nil
	}
	var each []error
	if err == nil {
		each, err = wait(b, ctx, b.cfg.RequestTimeout, func(done func([]error, error)) { b.cfg.Groups.DeleteOffsets(req.Group, ask, done) })
	}
	if err != nil {
		resp.ErrorCode, _ = b.refusal(rc, err)
		resp.Topics = []kmsg.OffsetDeleteResponseTopic{}
		return resp, nil
	}
	for i, op := range at {
		op.ErrorCode, _ = b.refusal(rc, each[i])
	}
	resp.Topics = topics
	return resp, nil
}
