package broker

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
)

// Fetch (key 1), 4–18.
//
// v5   log start offset
// v7   sessions (KIP-227)
// v9   current leader epoch (KIP-320)
// v11  rack (KIP-392)
// v12  flexible, last fetched epoch (KIP-595)
// v13  topic ids (KIP-516)
// v15  replica state; v16 new leaders in errors (KIP-951); v17, v18 fields for followers
//
// Nothing of it goes through raft: a replica answers with what it knows to be committed. A follower does so too for a client
// that has not heard yet who leads, and for all of them in one-address mode.
//
// A long poll waits on the partitions' watermarks. Any error answers at once.

// fetchRead is what one partition gave.
type fetchRead struct {
	part  *fetchPart
	local Partition // nil: none here
	topic *metadata.Topic
	group uint64
	err   *kerr.Error
	hint  hint
	res   FetchResult
	buf   *[]byte // pooled, under res.Records
	held  int     // memory under res.Records, counted in fetchHeld
}

// fetchOp is one fetch under way.
type fetchOp struct {
	b        *Broker
	rc       *RequestContext
	req      *kmsg.FetchRequest
	plan     *plan
	reads    []fetchRead
	remote   *remoteFetch // partitions without a replica here, in one-address mode; nil: none
	wanted   int          // bytes at most, however much memory there is
	maxBytes int          // of wanted, what the memory of this moment allows
	minBytes int
	bytes    int
	buffers  int  // pooled ones taken by the last read
	starved  bool // no memory for records now
	full     bool // the last read found no room for a partition's next batch
	failed   bool
	diverged bool
}

// minFetchBytes is what a fetch is given when others hold nearly all there is: a buffer, and what fits into it. While they hold all of it a fetch waits for
// memoryPatience, and is answered without records then.
//
// A fetch takes the fetchShare-th part of all at most.
const (
	minFetchBytes  = fetchBuffer
	fetchShare     = 4
	memoryPatience = 5 * time.Second
)

func handleFetch(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.FetchRequest)
	resp := &fetchResponse{FetchResponse: kmsg.NewPtrFetchResponse()}
	p, kerror := b.sessions.plan(req)
	if kerror != nil {
		b.metrics.refusal(rc.Key, kerror)
		resp.ErrorCode = kerror.Code
		return resp, nil
	}
	op := &fetchOp{b: b, rc: rc, req: req, plan: p}
	op.wanted = min(max(int(req.MaxBytes), 0), b.cfg.MaxFetchBytes, max(b.cfg.FetchHeldBytes/fetchShare, minFetchBytes))
	op.maxBytes = op.wanted
	op.minBytes = min(int(req.MinBytes), op.maxBytes)
	op.run(ctx)
	op.respond(resp)
	return resp, nil
}

// run reads, and waits and reads again until there is something to say.
func (op *fetchOp) run(ctx context.Context) {
	b := op.b
	wait := min(time.Duration(max(op.req.MaxWaitMillis, 0))*time.Millisecond, b.cfg.MaxFetchWait)
	op.resolve()
	if op.remote != nil {
		op.remote.round(ctx)
	}
	op.read(ctx)
	if op.enough() || wait <= 0 {
		return
	}
	expired, stop := clock.After(b.cfg.Clock, wait-b.cfg.Clock.Now().Sub(op.rc.Received))
	defer stop()
	poll := b.cfg.Partitions.NewPoll()
	defer poll.Cancel()
	var remote <-chan struct{}
	if op.remote != nil {
		var end func()
		remote, end = op.remote.park(ctx, wait, max(op.minBytes, 1))
		defer end()
	}
	for {
		// Registered after the read that found too little, for the watermark that it saw: nothing falls between.
		for i := range op.reads {
			if r := &op.reads[i]; r.local != nil {
				poll.Wait(r.local, r.res.HighWatermark)
			}
		}
		last := false
		switch clock.Select(b.cfg.Clock, poll.C(), remote, expired, b.draining.ch, ctx.Done()) {
		case 0: // news
		case 1:
			op.remote.takeParked()
			last = true // what it brought is an answer
		case 2, 3:
			last = true
		case 4:
			return
		}
		op.read(ctx)
		if last || op.enough() {
			return
		}
	}
}

func (op *fetchOp) enough() bool {
	return op.starved || op.failed || op.diverged || op.bytes >= op.minBytes || len(op.reads) == 0
}

// resolve finds the partitions once; they are looked up again with each read only where that failed.
func (op *fetchOp) resolve() {
	img := op.b.cfg.Cluster.Image()
	op.reads = make([]fetchRead, len(op.plan.parts))
	for i := range op.reads {
		r := &op.reads[i]
		r.part = &op.plan.parts[i]
		r.hint = noHint
		byID := op.req.Version >= 13
		t, kerror := findTopic(img, byID, r.part.topic, r.part.id)
		if kerror != nil {
			r.err = kerror
			continue
		}
		p, kerror := findPartition(t, r.part.index)
		if kerror != nil {
			r.err = kerror
			continue
		}
		r.topic, r.group = t, p.Group
		local, ok := op.b.cfg.Partitions.Lookup(t.Name, p.Index)
		if ok {
			r.local = local
			continue
		}
		node, _ := op.b.cfg.Cluster.Leader(p.Group)
		if op.rc.Mode.OneAddress && node >= 0 && node != op.b.cfg.Cluster.NodeID() {
			if op.remote == nil {
				op.remote = &remoteFetch{op: op}
			}
			op.remote.add(node, i)
			continue
		}
		r.err, r.hint = kerr.NotLeaderForPartition, op.b.hintFor(img, op.rc.Mode, p.Group)
	}
}

// read reads every local partition anew within the limits, and takes what is there of the remote ones.
func (op *fetchOp) read(ctx context.Context) {
	op.free(false)
	op.bytes, op.buffers, op.full, op.failed, op.diverged = 0, 0, false, false, false
	room := &op.b.fetchHeld
	if op.starved = !room.await(ctx, minFetchBytes, memoryPatience, op.b.draining.ch); !op.starved {
		// What may be read is taken while it is read; by the end, what was read is counted.
		extra := room.more(min(int64(op.wanted), op.partsBytes()) - minFetchBytes)
		op.maxBytes = min(op.wanted, minFetchBytes+int(extra))
		defer room.give(minFetchBytes + extra)
	}
	for i := range op.reads {
		r := &op.reads[i]
		if r.local != nil {
			op.readLocal(r)
		}
		if r.err != nil {
			op.failed = true
		}
		if r.res.Diverging != nil {
			op.diverged = true
		}
		op.bytes += len(r.res.Records)
	}
}

// partsBytes is what all partitions together may give.
func (op *fetchOp) partsBytes() (n int64) {
	for i := range op.reads {
		n += int64(max(op.reads[i].part.maxBytes, 0))
	}
	return n
}

func (op *fetchOp) readLocal(r *fetchRead) {
	r.err, r.hint = nil, noHint
	req := FetchRequest{
		Offset: r.part.offset, CurrentLeaderEpoch: r.part.currentEpoch, LastFetchedEpoch: r.part.lastFetchedEpoch,
		MaxBytes: min(max(int(r.part.maxBytes), 0), op.maxBytes-op.bytes), Follower: op.mayFollow(r.group),
	}
	full := op.starved || op.full || op.bytes > 0 && op.maxBytes-op.bytes <= 0
	hw := r.local.HighWatermark()
	switch {
	case full:
		// Nothing more fits, but the client learns of the watermark and of errors.
		req.Offset, req.LastFetchedEpoch = max(hw, r.local.LogStart()), -1
	case hw > r.part.offset:
		r.buf = fetchBuffers.Get().(*[]byte)
		req.Buf = (*r.buf)[:0]
	}
	res, err := r.local.Fetch(req)
	res.Records = op.hold(r, res.Records)
	if err != nil {
		r.err = fetchError(err)
		if r.err == kerr.NotLeaderForPartition || r.err == kerr.FencedLeaderEpoch {
			r.hint = op.b.fetchHint(op.rc.Mode, r.group)
		}
		r.res = FetchResult{HighWatermark: -1, LastStable: -1, LogStart: -1}
		return
	}
	// Only the first batch of a response may exceed a limit.
	if full || (op.bytes > 0 && len(res.Records) > req.MaxBytes) {
		// What was read for nothing is not kept, and no other partition is read for nothing.
		op.drop(r)
		op.full, res.Records = true, nil
	}
	r.res = res
}

// mayFollow says whether a replica here answers although it does not lead.
func (op *fetchOp) mayFollow(group uint64) bool {
	node, epoch := op.b.cfg.Cluster.Leader(group)
	if node < 0 || node == op.b.cfg.Cluster.NodeID() {
		return false
	}
	return op.rc.Mode.OneAddress || !op.b.news.old(group, epoch)
}

// fetchError maps what a partition says to an error that Java's poll() survives; anything else would be thrown at the
// application. What has no counterpart there means: try again, look the leader up.
func fetchError(err error) *kerr.Error {
	k := ErrorOf(err)
	switch k.Code {
	case -1, 1, 3, 6, 9, 29, 56, 74, 75, 78, 100, 103:
		return k
	}
	return kerr.NotLeaderForPartition
}

// fetchHint names who leads now, this node too: a client that FENCED_LEADER_EPOCH sends away need not ask for metadata.
func (b *Broker) fetchHint(mode ListenerConfig, group uint64) hint {
	img := b.cfg.Cluster.Image()
	if node, epoch := b.leaderNamed(img, group); !mode.OneAddress && node == b.cfg.Cluster.NodeID() && epoch >= 0 {
		return hint{node, epoch}
	}
	return b.hintFor(img, mode, group)
}

// respond fills the response: everything, or in an incremental fetch what is news.
func (op *fetchOp) respond(resp *fetchResponse) {
	resp.op = op
	if op.plan.session != nil {
		resp.SessionID = op.plan.session.id
	}
	nodes := nodeSet{img: op.b.cfg.Cluster.Image()}
	topics := map[partKey]int{}
	for i := range op.reads {
		r := &op.reads[i]
		if op.plan.incremental && !r.news() {
			continue
		}
		k := r.part.partKey
		k.index = 0
		at, ok := topics[k]
		if !ok {
			at = len(resp.Topics)
			topics[k] = at
			t := kmsg.NewFetchResponseTopic()
			t.Topic, t.TopicID = k.topic, k.id
			resp.Topics = append(resp.Topics, t)
		}
		out := kmsg.NewFetchResponseTopicPartition()
		op.fill(&out, r, &nodes)
		resp.Topics[at].Partitions = append(resp.Topics[at].Partitions, out)
		resp.bytes += len(out.RecordBatches)
		resp.parts++
	}
	for _, n := range nodes.list {
		b := kmsg.NewFetchResponseBroker()
		b.NodeID, b.Host, b.Port, b.Rack = n.ID, n.KafkaHost, n.KafkaPort, hintRack(n)
		resp.Brokers = append(resp.Brokers, b)
	}
	if op.plan.session != nil {
		op.plan.session.answered(op.reads)
	}
	op.b.metrics.fetched.Add(float64(resp.bytes))
}

// news says whether an incremental response has to name the partition.
func (r *fetchRead) news() bool {
	return r.err != nil || len(r.res.Records) > 0 || r.res.Diverging != nil ||
		r.res.HighWatermark != r.part.hw || r.res.LogStart != r.part.logStart
}

func (op *fetchOp) fill(out *kmsg.FetchResponseTopicPartition, r *fetchRead, nodes *nodeSet) {
	out.Partition = r.part.index
	out.RecordBatches = []byte{} // null would be legal and breaks clients
	if op.req.IsolationLevel == 1 || r.err != nil && r.topic == nil {
		out.AbortedTransactions = []kmsg.FetchResponseTopicPartitionAbortedTransaction{}
	}
	if r.err != nil {
		op.b.metrics.refusal(op.rc.Key, r.err)
		out.ErrorCode = r.err.Code
		out.HighWatermark, out.LastStableOffset, out.LogStartOffset = -1, -1, -1
		if op.rc.Version >= 16 && nodes.add(r.hint.node) {
			out.CurrentLeader.LeaderID, out.CurrentLeader.LeaderEpoch = r.hint.node, r.hint.epoch
		}
		return
	}
	out.HighWatermark, out.LastStableOffset, out.LogStartOffset = r.res.HighWatermark, r.res.LastStable, r.res.LogStart
	if len(r.res.Records) > 0 {
		out.RecordBatches = r.res.Records
	}
	if d := r.res.Diverging; d != nil {
		out.DivergingEpoch.Epoch, out.DivergingEpoch.EndOffset = d.Epoch, d.EndOffset
	}
}
