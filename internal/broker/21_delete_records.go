package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// DeleteRecords (key 21), 0–2. KIP-107.
//
// v1  as v0
// v2  flexible
//
// Moves the log start of partitions up to an offset; -1 is the high watermark. The leader proposes it, as it does retention.
// Any node takes it: what it does not lead goes to the nodes that do, one hop. A partition whose leader moves meanwhile is
// answered with NOT_LEADER_OR_FOLLOWER, upon which clients look the leader up again; deleting twice does no harm.

func handleDeleteRecords(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DeleteRecordsRequest)
	ctx, cancel := b.adminContext(ctx, req.TimeoutMillis)
	op := &deleteOp{b: b, rc: rc, asking: clock.Group{Clock: b.cfg.Clock}, img: b.cfg.Cluster.Image(), resp: req.ResponseKind().(*kmsg.DeleteRecordsResponse)}
	op.results = make(chan deleted, countDeletes(req)) // room for every answer: one that comes late blocks nobody
	defer func() { cancel(); op.asking.Wait() }()
	for i := range req.Topics {
		t := &req.Topics[i]
		out := kmsg.NewDeleteRecordsResponseTopic()
		out.Topic = t.Topic
		out.Partitions = make([]kmsg.DeleteRecordsResponseTopicPartition, len(t.Partitions))
		op.resp.Topics = append(op.resp.Topics, out)
		for j := range t.Partitions {
			op.begin(i, j, t.Topic, &t.Partitions[j])
		}
	}
	for i := range op.hops {
		hop := &op.hops[i]
		op.asking.Go(func() { op.ask(ctx, hop) })
	}
	for ; op.pending > 0; op.pending-- {
		d, err := clock.Recv(b.cfg.Clock, ctx, op.results)
		if err != nil {
			return op.resp, nil
		}
		po := &op.resp.Topics[d.topic].Partitions[d.partition]
		po.ErrorCode, _ = b.refusal(rc, d.err)
		if d.err == nil {
			po.LowWatermark = d.low
		}
	}
	return op.resp, nil
}

// deleteOp is one request under way.
type deleteOp struct {
	b       *Broker
	rc      *RequestContext
	img     *metadata.Image
	resp    *kmsg.DeleteRecordsResponse
	results chan deleted
	pending int
	hops    []deleteHop
	asking  clock.Group
}

type deleted struct {
	topic, partition int
	low              int64
	err              error
}

// deleteHop is what one other node is asked.
type deleteHop struct {
	node int32
	req  *kmsg.DeleteRecordsRequest
	at   [][2]int // topic and partition in the response
}

func countDeletes(req *kmsg.DeleteRecordsRequest) int {
	n := 0
	for i := range req.Topics {
		n += len(req.Topics[i].Partitions)
	}
	return n
}

// begin asks the local leader of a partition, or puts it into the request for another node.
func (op *deleteOp) begin(i, j int, topic string, p *kmsg.DeleteRecordsRequestTopicPartition) {
	po := &op.resp.Topics[i].Partitions[j]
	po.Default()
	po.Partition, po.LowWatermark = p.Partition, -1
	part, node, err := op.b.deletable(op.img, topic, p.Partition, p.Offset)
	if err != nil && (node < 0 || op.rc.FromPeer) {
		po.ErrorCode, _ = op.b.refusal(op.rc, err)
		return
	}
	po.ErrorCode = kerr.RequestTimedOut.Code // until told otherwise
	op.pending++
	if err != nil {
		op.send(node, i, j, topic, p)
		return
	}
	results := op.results
	part.DeleteRecords(p.Offset, func(low int64, err error) { results <- deleted{i, j, low, err} })
}

func (op *deleteOp) send(node int32, i, j int, topic string, p *kmsg.DeleteRecordsRequestTopicPartition) {
	var hop *deleteHop
	for k := range op.hops {
		if op.hops[k].node == node {
			hop = &op.hops[k]
		}
	}
	if hop == nil {
		op.hops = append(op.hops, deleteHop{node: node, req: kmsg.NewPtrDeleteRecordsRequest()})
		hop = &op.hops[len(op.hops)-1]
		hop.req.SetVersion(2)
	}
	if n := len(hop.req.Topics); n == 0 || hop.req.Topics[n-1].Topic != topic {
		t := kmsg.NewDeleteRecordsRequestTopic()
		t.Topic = topic
		hop.req.Topics = append(hop.req.Topics, t)
	}
	t := &hop.req.Topics[len(hop.req.Topics)-1]
	t.Partitions = append(t.Partitions, *p)
	hop.at = append(hop.at, [2]int{i, j})
}

// ask asks another node, and hands its answers on in the order of the questions.
func (op *deleteOp) ask(ctx context.Context, hop *deleteHop) {
	if end, ok := ctx.Deadline(); ok {
		hop.req.TimeoutMillis = int32(max(end.Sub(op.b.cfg.Clock.Now())/time.Millisecond, 1))
	}
	answer, err := op.b.askPeer(ctx, hop.node, hop.req)
	var got []kmsg.DeleteRecordsResponseTopicPartition
	switch {
	case err == nil:
		for _, t := range answer.(*kmsg.DeleteRecordsResponse).Topics {
			got = append(got, t.Partitions...)
		}
		if len(got) != len(hop.at) {
			err = fmt.Errorf("node %d answered %d partitions of %d", hop.node, len(got), len(hop.at))
		}
	case ctx.Err() != nil:
		err = ctx.Err()
	default:
		err = fmt.Errorf("%w: %w", kerr.NotLeaderForPartition, err)
	}
	for k, at := range hop.at {
		d := deleted{topic: at[0], partition: at[1], low: -1, err: err}
		if err == nil {
			d.low, d.err = got[k].LowWatermark, kerr.ErrorForCode(got[k].ErrorCode)
		}
		op.results <- d
	}
}

// deletable finds the local leader of a partition whose records may be deleted up to offset. With NotLeaderError, node is
// who else leads it and can be asked; else -1.
func (b *Broker) deletable(img *metadata.Image, topic string, index int32, offset int64) (part Partition, node int32, err error) {
	t := img.Topics[topic]
	switch {
	case t == nil || topic == metadata.MetadataTopic || index < 0 || int(index) >= len(t.Partitions):
		return nil, -1, kerr.UnknownTopicOrPartition
	case t.Internal:
		return nil, -1, coded(kerr.InvalidTopicException, "Cannot delete records of internal topic "+topic)
	case offset < -1:
		return nil, -1, kerr.OffsetOutOfRange
	}
	group := t.Partitions[index].Group
	if part, ok := b.cfg.Partitions.Lookup(topic, index); ok && part.Status().IsLeader {
		return part, -1, nil
	}
	leader, _ := b.cfg.Cluster.Leader(group)
	err = &multiraft.NotLeaderError{Group: group, LeaderNode: leader}
	if leader == b.cfg.Cluster.NodeID() || leader >= 0 && !b.cfg.Cluster.Live(leader) {
		leader = -1
	}
	return nil, leader, err
}
