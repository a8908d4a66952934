package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group"
)

// OffsetCommit (key 8), 2–10.
//
// v2  retention time, gone with v5 (KIP-211)
// v3  throttle time
// v6  leader epochs (KIP-320)
// v7  static members (KIP-345)
// v8  flexible
// v9  an unknown group is error 69 (KIP-848)
// v10 topic ids (KIP-848)
//
// Partitions that do not exist are refused here (3, or 100 by id); the coordinator sees the others.

func handleOffsetCommit(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.OffsetCommitRequest)
	node, err := b.coordinator(rc, req.Group)
	if err == nil && node >= 0 {
		var resp kmsg.Response
		if resp, err = b.askCoordinator(ctx, rc, node, b.cfg.RequestTimeout, req); err == nil {
			return resp, nil
		}
	}
	commit := group.CommitRequest{Group: req.Group, Generation: req.Generation, Member: req.MemberID, Instance: req.InstanceID, RetentionMs: -1, Version: rc.Version}
	if rc.Version <= 4 {
		commit.RetentionMs = req.RetentionTimeMillis
	}
	img := b.cfg.Cluster.Image()
	resp := kmsg.NewPtrOffsetCommitResponse()
	resp.Topics = make([]kmsg.OffsetCommitResponseTopic, len(req.Topics))
	var at []*kmsg.OffsetCommitResponseTopicPartition // of each partition that the coordinator is asked for
	for i := range req.Topics {
		rt, ot := &req.Topics[i], &resp.Topics[i]
		ot.Topic, ot.TopicID = rt.Topic, rt.TopicID
		ot.Partitions = make([]kmsg.OffsetCommitResponseTopicPartition, len(rt.Partitions))
		t, kerror := findTopic(img, rc.Version >= 10, rt.Topic, rt.TopicID)
		for j := range rt.Partitions {
			rp, op := &rt.Partitions[j], &ot.Partitions[j]
			op.Partition = rp.Partition
			k := kerror
			if k == nil {
				_, k = findPartition(t, rp.Partition)
			}
			if k != nil {
				op.ErrorCode, _ = b.refusal(rc, k)
				continue
			}
			p := group.CommitPartition{Topic: t.Name, Partition: rp.Partition, Offset: rp.Offset, LeaderEpoch: -1}
			if rc.Version >= 6 {
				p.LeaderEpoch = rp.LeaderEpoch
			}
			if rp.Metadata != nil {
				p.Metadata = *rp.Metadata
			}
			commit.Partitions, at = append(commit.Partitions, p), append(at, op)
		}
	}
	if len(at) == 0 {
		return resp, nil
	}
	var each []error
	if err == nil {
		each, err = wait(b, ctx, b.cfg.RequestTimeout, func(done func([]error, error)) { b.cfg.Groups.Commit(commit, done) })
	}
	for i, op := range at {
		e := err
		if e == nil {
			e = each[i]
		}
		op.ErrorCode, _ = b.refusal(rc, e)
	}
	return resp, nil
}
