package broker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/record"
)

// Produce (key 0), 3–13; advertised from 0 (KAFKA-18659: librdkafka drops compression otherwise).
//
// v3   record batches v2
// v5   log start offset in the response
// v8   error records and message (KIP-467)
// v9   flexible
// v10  the new leader in the error (KIP-951)
// v12  transactions without AddPartitionsToTxn (KIP-890)
// v13  topic ids (KIP-516)
//
// acks=1 waits as acks=all does: an acknowledged record is on a majority's disks. acks=0 gets no answer, and a closed
// connection when it fails. Stage one hands each batch to its partition, or to the ordered stream to its leader's node; stage
// two waits for them, bounded by the request's timeout, after which a batch's fate is unknown (7).
//
// Nothing is created here: an unknown topic is error 3.

// produceCall is one request under way.
type produceCall struct {
	b     *Broker
	rc    *RequestContext
	req   *kmsg.ProduceRequest
	img   *metadata.Image
	done  chan struct{} // closed when the last batch is
	slots []produceSlot

	mu     sync.Mutex
	left   int
	sealed bool // answered: what completes now is too late
}

// produceSlot is one batch.
type produceSlot struct {
	group       uint64 // 0: it never got to a partition
	incarnation uint32
	sequence    sequence
	finished    bool
	outcome     outcome
}

// outcome is what a batch came to, from here or from the leader's node.
type outcome struct {
	err            *kerr.Error
	message        string
	base, ts, from int64 // base offset, append time, log start
	records        []partition.RecordError
	leader         hint
	broke          bool // what follows it on its route must fail
}

func startProduce(b *Broker, _ context.Context, rc *RequestContext, r kmsg.Request) (func(context.Context) (kmsg.Response, error), error) {
	req := r.(*kmsg.ProduceRequest)
	n := 0
	for i := range req.Topics {
		n += len(req.Topics[i].Partitions)
	}
	call := &produceCall{
		b: b, rc: rc, req: req, img: b.cfg.Cluster.Image(),
		done: make(chan struct{}), slots: make([]produceSlot, n), left: n,
	}
	if n == 0 {
		close(call.done)
	}
	i := 0
	for t := range req.Topics {
		topic := &req.Topics[t]
		for p := range topic.Partitions {
			call.enqueue(i, topic, &topic.Partitions[p])
			i++
		}
	}
	return call.finish, nil
}

// enqueue starts one batch. It does not block.
func (c *produceCall) enqueue(i int, rt *kmsg.ProduceRequestTopic, rp *kmsg.ProduceRequestTopicPartition) {
	records := rp.Records
	rp.Records = nil // the partition's from here on
	t, kerror := findTopic(c.img, c.rc.Version >= 13, rt.Topic, rt.TopicID)
	var p *metadata.Partition
	if kerror == nil {
		p, kerror = findPartition(t, rp.Partition)
	}
	if kerror == nil {
		kerror = c.inadmissible(t, records)
	}
	if kerror != nil {
		c.complete(i, refused(kerror))
		return
	}
	c.b.metrics.produced.Add(float64(len(records)))
	self := c.b.cfg.Cluster.NodeID()
	node, epoch := c.b.cfg.Cluster.Leader(p.Group)
	incarnation, ok := c.rc.conn.enter(p.Group, node, epoch)
	s := &c.slots[i]
	s.group, s.incarnation, s.sequence = p.Group, incarnation, sequenceOf(records)
	torn := c.rc.conn.passes(p.Group, s.sequence, func(q sequence) bool { return c.b.written(t.Name, p.Index, q) })
	switch {
	case torn != "":
		c.complete(i, c.notLeader(p, torn))
	case !ok:
		c.complete(i, c.notLeader(p, "a batch before it on this connection failed or went to another leader"))
	case node == self:
		local, ok := c.b.cfg.Partitions.Lookup(t.Name, p.Index)
		if !ok {
			c.complete(i, c.notLeader(p, "the partition is not open on this node yet"))
			return
		}
		local.Produce(records, func(r ProduceResult) { c.complete(i, c.b.outcomeOf(r, c.img, c.rc.Mode, p.Group)) })
	case node < 0:
		c.complete(i, c.notLeader(p, "the partition has no leader at the moment"))
	case !c.rc.Mode.OneAddress && c.b.news.old(p.Group, epoch):
		c.complete(i, c.notLeader(p, fmt.Sprintf("node %d leads the partition", node)))
	default:
		c.b.forward(node, p.Group, epoch, c.rc.conn.id, incarnation, records, func(o outcome) {
			if o.err != nil && o.leader == noHint {
				o.leader = c.b.hintFor(c.img, c.rc.Mode, p.Group)
			}
			c.complete(i, o)
		})
	}
}

// inadmissible is what can be told without the partition.
func (c *produceCall) inadmissible(t *metadata.Topic, records []byte) *kerr.Error {
	switch {
	case c.req.Acks < -1 || c.req.Acks > 1:
		return kerr.InvalidRequiredAcks
	case t.Internal:
		return kerr.InvalidTopicException
	case c.req.TransactionID != nil:
		return kerr.InvalidTxnState
	case len(records) == 0, len(records) > magicAt && records[magicAt] != 2:
		return kerr.InvalidRecord
	case c.rc.Version < 7 && len(records) > attributesAt && record.Codec(records[attributesAt]&7) == record.Zstd:
		return kerr.UnsupportedCompressionType // consumers as old as this producer could not read it
	}
	return nil
}

// attributesAt is the place of the attributes' low byte in a batch of version 2.
const attributesAt = 22

// magicAt is the place of the magic byte in every batch and message format.
const magicAt = 16

func (c *produceCall) notLeader(p *metadata.Partition, message string) outcome {
	o := refused(kerr.NotLeaderForPartition)
	o.message, o.leader, o.broke = message, c.b.hintFor(c.img, c.rc.Mode, p.Group), true
	return o
}

func refused(k *kerr.Error) outcome {
	return outcome{err: k, message: k.Description, base: -1, ts: -1, from: -1, leader: noHint}
}

// outcomeOf puts a partition's result in the broker's terms.
func (b *Broker) outcomeOf(r ProduceResult, img *metadata.Image, mode ListenerConfig, group uint64) outcome {
	o := outcome{base: r.BaseOffset, ts: r.AppendTime, from: r.LogStart, leader: noHint}
	if r.Err == nil {
		return o
	}
	o.err, o.message, o.base, o.ts = ErrorOf(r.Err), r.Err.Error(), -1, -1
	o.broke = breaksRoute(r.Err)
	o.records = recordErrorsOf(r.Err)
	if o.err == kerr.NotLeaderForPartition {
		o.leader = b.hintFor(img, mode, group)
	}
	return o
}

// complete takes a batch's outcome, from whatever goroutine.
func (c *produceCall) complete(i int, o outcome) {
	s := &c.slots[i]
	if o.broke {
		c.broke(s)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed || s.finished {
		return
	}
	s.finished, s.outcome = true, o
	if c.left--; c.left == 0 {
		close(c.done)
	}
}

// broke fails what follows a batch that failed: on its route, and what comes later of its producer.
func (c *produceCall) broke(s *produceSlot) {
	if s.group != 0 {
		c.rc.conn.tear(s.group, s.sequence)
		c.rc.conn.broken(s.group, s.incarnation)
	}
}

// finish is stage two.
func (c *produceCall) finish(ctx context.Context) (kmsg.Response, error) {
	c.await(ctx)
	c.mu.Lock()
	c.sealed = true
	for i := range c.slots {
		if s := &c.slots[i]; !s.finished {
			s.outcome = refused(kerr.RequestTimedOut)
			s.outcome.message, s.outcome.broke = "not committed within the timeout; the outcome is unknown", true
		}
	}
	c.mu.Unlock()
	for i := range c.slots {
		if s := &c.slots[i]; s.group != 0 {
			if s.outcome.broke {
				c.broke(s)
			}
			c.rc.conn.leave(s.group)
		}
	}
	if c.req.Acks != 0 {
		return c.response(), nil
	}
	for i := range c.slots {
		if o := &c.slots[i].outcome; o.err != nil {
			// The client learns of it in no other way, and will look the leader up again.
			return nil, fmt.Errorf("produce with acks=0 failed: %w", o.err)
		}
	}
	return nil, nil
}

// await waits until every batch is done, or time is up.
func (c *produceCall) await(ctx context.Context) {
	select {
	case <-c.done:
		return
	default:
	}
	timeout := c.b.cfg.ProduceTimeout
	if ms := c.req.TimeoutMillis; ms > 0 {
		timeout = min(timeout, time.Duration(ms)*time.Millisecond)
	}
	expired, stop := clock.After(c.b.cfg.Clock, timeout-c.b.cfg.Clock.Now().Sub(c.rc.Received))
	defer stop()
	clock.Select(c.b.cfg.Clock, c.done, expired, ctx.Done())
}

func (c *produceCall) response() *kmsg.ProduceResponse {
	resp := kmsg.NewPtrProduceResponse()
	nodes := nodeSet{img: c.img}
	i := 0
	resp.Topics = make([]kmsg.ProduceResponseTopic, len(c.req.Topics))
	for t := range c.req.Topics {
		rt, out := &c.req.Topics[t], &resp.Topics[t]
		out.Topic, out.TopicID = rt.Topic, rt.TopicID
		out.Partitions = make([]kmsg.ProduceResponseTopicPartition, len(rt.Partitions))
		for p := range rt.Partitions {
			po, o := &out.Partitions[p], &c.slots[i].outcome
			i++
			po.Default()
			po.Partition = rt.Partitions[p].Partition
			po.BaseOffset, po.LogAppendTime, po.LogStartOffset = o.base, o.ts, o.from
			if o.err == nil {
				continue
			}
			c.b.metrics.refusal(c.rc.Key, o.err)
			po.ErrorCode, po.ErrorMessage = o.err.Code, &o.message
			for _, re := range o.records {
				e := kmsg.NewProduceResponseTopicPartitionErrorRecord()
				e.RelativeOffset, e.ErrorMessage = re.Index, kmsg.StringPtr(re.Message)
				po.ErrorRecords = append(po.ErrorRecords, e)
			}
			if o.err == kerr.NotLeaderForPartition && c.rc.Version >= 10 && nodes.add(o.leader.node) {
				po.CurrentLeader.LeaderID, po.CurrentLeader.LeaderEpoch = o.leader.node, o.leader.epoch
			}
		}
	}
	for _, n := range nodes.list {
		b := kmsg.NewProduceResponseBroker()
		b.NodeID, b.Host, b.Port, b.Rack = n.ID, n.KafkaHost, n.KafkaPort, hintRack(n)
		resp.Brokers = append(resp.Brokers, b)
	}
	return resp
}

// nodeSet collects the nodes that hints name, in the order they come.
type nodeSet struct {
	img  *metadata.Image
	list []*metadata.Node
}

func (s *nodeSet) add(id int32) bool {
	n := s.img.Nodes[id]
	if n == nil {
		return false
	}
	for _, have := range s.list {
		if have.ID == id {
			return true
		}
	}
	s.list = append(s.list, n)
	return true
}

func hintRack(n *metadata.Node) *string {
	if n.Rack == "" {
		return nil
	}
	return &n.Rack
}
