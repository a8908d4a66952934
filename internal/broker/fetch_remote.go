package broker

import (
	"context"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
)

// remoteFetch is the part of a one-address fetch whose partitions have no replica here: their leaders are asked, each node
// with one request.
type remoteFetch struct {
	op    *fetchOp
	nodes []int32
	parts map[int32][]int // node -> indices of op.reads
	// answers to the long polls under way.
	answers chan parked
}

// peerFetchVersion goes by topic id, so that a deleted and recreated topic is not confused, and has no new fields since.
const peerFetchVersion = 16

// remoteGrace is what a call may take beyond the wait it asks for.
const remoteGrace = 5 * time.Second

func (rf *remoteFetch) add(node int32, i int) {
	if rf.parts == nil {
		rf.parts = map[int32][]int{}
	}
	if rf.parts[node] == nil {
		rf.nodes = append(rf.nodes, node)
	}
	rf.parts[node] = append(rf.parts[node], i)
}

// round asks every node for what it has now, and waits for all of them.
func (rf *remoteFetch) round(ctx context.Context) {
	ctx, cancel := clock.WithTimeout(ctx, rf.op.b.cfg.Clock, remoteGrace)
	defer cancel()
	answers := make([]*kmsg.FetchResponse, len(rf.nodes))
	errs := make([]error, len(rf.nodes))
	g := clock.Group{Clock: rf.op.b.cfg.Clock}
	for n, node := range rf.nodes {
		g.Go(func() { answers[n], errs[n] = rf.ask(ctx, node, 0, 0) })
	}
	g.Wait()
	for n, node := range rf.nodes {
		rf.take(node, answers[n], errs[n])
	}
}

// parked is a node's answer to a long poll.
type parked struct {
	node int32
	resp *kmsg.FetchResponse
	err  error
}

// park asks every node with a long poll. The channel receives once for each answer, which takeParked takes. end cancels what is
// left and waits for it.
func (rf *remoteFetch) park(ctx context.Context, wait time.Duration, minBytes int) (arrived <-chan struct{}, end func()) {
	clk := rf.op.b.cfg.Clock
	ctx, cancel := clock.WithTimeout(ctx, clk, wait+remoteGrace)
	rf.answers = make(chan parked, len(rf.nodes))
	news := make(chan struct{}, len(rf.nodes))
	g := clock.Group{Clock: clk}
	for _, node := range rf.nodes {
		g.Go(func() {
			resp, err := rf.ask(ctx, node, wait, minBytes)
			rf.answers <- parked{node, resp, err}
			news <- struct{}{}
		})
	}
	return news, func() { cancel(); g.Wait() }
}

// takeParked takes an answer that has arrived.
func (rf *remoteFetch) takeParked() {
	a := <-rf.answers
	rf.take(a.node, a.resp, a.err)
}

func (rf *remoteFetch) ask(ctx context.Context, node int32, wait time.Duration, minBytes int) (*kmsg.FetchResponse, error) {
	op := rf.op
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(peerFetchVersion)
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = int32(wait/time.Millisecond), int32(minBytes), int32(op.maxBytes)
	req.IsolationLevel, req.SessionEpoch = op.req.IsolationLevel, epochNoSession
	for _, i := range rf.parts[node] {
		r := &op.reads[i]
		at := slices.IndexFunc(req.Topics, func(t kmsg.FetchRequestTopic) bool { return t.TopicID == r.topic.ID })
		if at < 0 {
			at = len(req.Topics)
			t := kmsg.NewFetchRequestTopic()
			t.TopicID = r.topic.ID
			req.Topics = append(req.Topics, t)
		}
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes = r.part.index, r.part.offset, r.part.maxBytes
		p.CurrentLeaderEpoch, p.LastFetchedEpoch = r.part.currentEpoch, r.part.lastFetchedEpoch
		req.Topics[at].Partitions = append(req.Topics[at].Partitions, p)
	}
	resp, err := op.b.askPeer(ctx, node, req)
	if err != nil {
		return nil, err
	}
	return resp.(*kmsg.FetchResponse), nil
}

// take puts a node's answer, or its absence, into the reads.
func (rf *remoteFetch) take(node int32, resp *kmsg.FetchResponse, err error) {
	for _, i := range rf.parts[node] {
		r := &rf.op.reads[i]
		r.err, r.res = kerr.NotLeaderForPartition, FetchResult{HighWatermark: -1, LastStable: -1, LogStart: -1}
		if err != nil || resp == nil {
			continue
		}
		if p := findFetched(resp, r.topic.ID, r.part.index); p != nil {
			r.err = kerr.TypedErrorForCode(p.ErrorCode)
			r.res = FetchResult{Records: p.RecordBatches, HighWatermark: p.HighWatermark, LastStable: p.LastStableOffset, LogStart: p.LogStartOffset}
			if p.DivergingEpoch.Epoch >= 0 && p.ErrorCode == 0 {
				r.res.Diverging = &EpochEnd{Epoch: p.DivergingEpoch.Epoch, EndOffset: p.DivergingEpoch.EndOffset}
			}
			rf.op.holdRemote(r)
		}
	}
}

func findFetched(resp *kmsg.FetchResponse, id [16]byte, index int32) *kmsg.FetchResponseTopicPartition {
	for t := range resp.Topics {
		if resp.Topics[t].TopicID != id {
			continue
		}
		for p := range resp.Topics[t].Partitions {
			if resp.Topics[t].Partitions[p].Partition == index {
				return &resp.Topics[t].Partitions[p]
			}
		}
	}
	return nil
}
