package broker

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
)

// ListOffsets (key 2), 1–11.
//
// v1   one offset by time, instead of v0's list
// v2   isolation level: without transactions the last stable offset is the high watermark
// v4   leader epochs (KIP-320)
// v6   flexible
// v7   max timestamp, -3 (KIP-734)
// v8   earliest local, -4; v9 latest tiered, -5 (KIP-405); v11 earliest pending upload, -6 (KIP-1023)
// v10  timeout
//
// The latest offset is current: the leader confirms with a quorum that it still is one (design rule 17).

// sinceVersion is the first version that knows a special timestamp; others below zero are unknown to all.
var sinceVersion = map[int64]int16{-1: 1, -2: 1, -3: 7, -4: 8, -5: 9, -6: 11}

// lookups bounds how many partitions of one request are asked at a time: latest offsets wait for a quorum each.
const lookups = 32

func handleListOffsets(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ListOffsetsRequest)
	timeout := b.cfg.RequestTimeout
	if rc.Version >= 10 && req.TimeoutMillis > 0 {
		timeout = min(timeout, time.Duration(req.TimeoutMillis)*time.Millisecond)
	}
	ctx, cancel := clock.WithTimeout(ctx, b.cfg.Clock, timeout)
	defer cancel()

	resp := kmsg.NewPtrListOffsetsResponse()
	resp.Topics = make([]kmsg.ListOffsetsResponseTopic, len(req.Topics))
	img := b.cfg.Cluster.Image()
	asked, answered := map[partKey]int{}, map[partKey]bool{}
	for i := range req.Topics {
		for j := range req.Topics[i].Partitions {
			asked[partKey{topic: req.Topics[i].Topic, index: req.Topics[i].Partitions[j].Partition}]++
		}
	}
	var work []func()
	for i := range req.Topics {
		rt, ot := &req.Topics[i], &resp.Topics[i]
		ot.Topic = rt.Topic
		ot.Partitions = make([]kmsg.ListOffsetsResponseTopicPartition, 0, len(rt.Partitions)) // its elements must not move
		for j := range rt.Partitions {
			rp := &rt.Partitions[j]
			k := partKey{topic: rt.Topic, index: rp.Partition}
			if answered[k] {
				continue // one answer for what is asked twice
			}
			answered[k] = true
			ot.Partitions = append(ot.Partitions, kmsg.NewListOffsetsResponseTopicPartition())
			op := &ot.Partitions[len(ot.Partitions)-1]
			op.Partition, op.Timestamp, op.Offset, op.LeaderEpoch = rp.Partition, -1, -1, -1
			if asked[k] > 1 {
				op.ErrorCode = kerr.InvalidRequest.Code
				continue
			}
			work = append(work, func() {
				if kerror := b.listOffset(ctx, rc, img, rt.Topic, rp, op); kerror != nil {
					b.metrics.refusal(rc.Key, kerror)
					op.ErrorCode, op.Timestamp, op.Offset, op.LeaderEpoch = kerror.Code, -1, -1, -1
				}
			})
		}
	}
	inParallel(b.cfg.Clock, work, lookups)
	return resp, nil
}

func (b *Broker) listOffset(ctx context.Context, rc *RequestContext, img *metadata.Image, topic string, rp *kmsg.ListOffsetsRequestTopicPartition, op *kmsg.ListOffsetsResponseTopicPartition) *kerr.Error {
	if rp.Timestamp < 0 {
		if since, known := sinceVersion[rp.Timestamp]; !known || rc.Version < since {
			return kerr.UnsupportedVersion
		}
	}
	local, leader, kerror := b.leaderOf(rc, img, topic, rp.Partition)
	if kerror != nil {
		return kerror
	}
	if local == nil {
		return b.listOffsetAt(ctx, leader, topic, rp, op)
	}
	offset, ts, epoch, err := local.ListOffset(ctx, rp.Timestamp, rp.CurrentLeaderEpoch)
	if err != nil {
		return fetchError(err)
	}
	op.Offset, op.Timestamp, op.LeaderEpoch = offset, ts, epoch
	return nil
}

// listOffsetAt asks the leader's node, for a client in one-address mode.
func (b *Broker) listOffsetAt(ctx context.Context, node int32, topic string, rp *kmsg.ListOffsetsRequestTopicPartition, op *kmsg.ListOffsetsResponseTopicPartition) *kerr.Error {
	req := kmsg.NewPtrListOffsetsRequest()
	req.SetVersion(11)
	req.TimeoutMillis = int32(b.cfg.RequestTimeout / time.Millisecond)
	req.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: topic, Partitions: []kmsg.ListOffsetsRequestTopicPartition{*rp}}}
	answer, err := b.askPeer(ctx, node, req)
	if err != nil {
		return kerr.NotLeaderForPartition
	}
	resp := answer.(*kmsg.ListOffsetsResponse)
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return kerr.UnknownServerError
	}
	got := &resp.Topics[0].Partitions[0]
	op.Offset, op.Timestamp, op.LeaderEpoch = got.Offset, got.Timestamp, got.LeaderEpoch
	return kerr.TypedErrorForCode(got.ErrorCode)
}

// leaderOf finds who answers for a partition by name: the local replica if it leads, else, in one-address mode only, the
// node that does.
func (b *Broker) leaderOf(rc *RequestContext, img *metadata.Image, topic string, index int32) (Partition, int32, *kerr.Error) {
	t, kerror := findTopic(img, false, topic, [16]byte{})
	if kerror != nil {
		return nil, -1, kerror
	}
	p, kerror := findPartition(t, index)
	if kerror != nil {
		return nil, -1, kerror
	}
	node, _ := b.cfg.Cluster.Leader(p.Group)
	self := b.cfg.Cluster.NodeID()
	if rc.Mode.OneAddress && node >= 0 && node != self {
		return nil, node, nil
	}
	// A replica that does not lead is asked as well: it checks the client's leader epoch first, and says who leads.
	if local, ok := b.cfg.Partitions.Lookup(topic, index); ok {
		return local, self, nil
	}
	return nil, -1, kerr.NotLeaderForPartition
}

// inParallel runs work, n at a time, and waits for all of it.
func inParallel(clk clock.Clock, work []func(), n int) {
	if len(work) == 1 {
		work[0]()
		return
	}
	var next atomic.Int64
	g := clock.Group{Clock: clk}
	for range min(n, len(work)) {
		g.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(work)); i = next.Add(1) - 1 {
				work[i]()
			}
		})
	}
	g.Wait()
}
