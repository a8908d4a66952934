package sim

import (
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/record"
)

// consumer reads one partition from its beginning on, mostly from its leader.
type consumer struct {
	*client
	part *partModel
	at   int64
	conn *conn
	// ofGroup: a member of a group consumes, which does not start over, nor wait long.
	ofGroup bool
}

func (w *world) newConsumer(part *partModel) {
	c := &consumer{part: part}
	c.client = w.newClient("consumer", func(*client) { c.run() })
}

func (c *consumer) run() {
	for !c.w.made[c.part.topicIndex] {
		c.sleep(50 * ms)
	}
	for {
		if c.conn == nil || c.conn.broken {
			c.connect()
			continue
		}
		switch {
		case c.rng.IntN(20) == 0:
			c.latest()
		default:
			c.poll()
		}
		c.sleep(c.between(ms, c.w.set.pace))
	}
}

// connect goes to the leader, or now and then to any replica.
func (c *consumer) connect() {
	c.conn = nil
	if c.rng.IntN(3) == 0 {
		c.conn = c.anyNode()
	} else if l := c.findLeader(c.part); l > 0 {
		c.conn = c.w.dial(c.client, l)
	}
	if c.conn == nil {
		c.sleep(c.between(10*ms, 100*ms))
	}
}

func (c *consumer) give() {
	c.conn.close(errReset)
	c.conn = nil
}

// poll fetches once, waiting a while where there is nothing.
func (c *consumer) poll() {
	w := c.w
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(12)
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = int32(c.rng.IntN(300)), 1, int32(1+c.rng.IntN(8<<10))
	if c.ofGroup {
		req.MaxWaitMillis, req.MaxBytes = int32(c.rng.IntN(50)), int32(1+c.rng.IntN(64<<10))
		if c.w.healed {
			req.MaxBytes = 1 << 20 // there is a backlog to consume
		}
	}
	req.SessionEpoch = -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic = c.part.topic
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = c.part.index, c.at, req.MaxBytes
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	node := c.conn.p.node.id
	resp, err := c.conn.ask(req, nil)
	if err != nil {
		c.conn = nil
		return
	}
	r := resp.(*kmsg.FetchResponse)
	if len(r.Topics) != 1 || len(r.Topics[0].Partitions) != 1 {
		w.fail("node %d answers a fetch of one partition with code %d and %d topics", node, r.ErrorCode, len(r.Topics))
		return
	}
	rp := &r.Topics[0].Partitions[0]
	switch kerr.ErrorForCode(rp.ErrorCode) {
	case nil:
		c.take(rp, node)
	case kerr.OffsetOutOfRange:
		c.earliest()
	case kerr.NotLeaderForPartition, kerr.OffsetNotAvailable, kerr.UnknownTopicOrPartition, kerr.KafkaStorageError, kerr.UnknownTopicID,
		kerr.RequestTimedOut, kerr.FencedLeaderEpoch, kerr.UnknownLeaderEpoch:
		w.counts["fetch: "+kerr.ErrorForCode(rp.ErrorCode).Error()]++
		c.give()
	default:
		w.fail("%s on node %d: fetching at %d: %v", c.part, node, c.at, kerr.ErrorForCode(rp.ErrorCode))
	}
}

func (c *consumer) take(rp *kmsg.FetchResponseTopicPartition, node int32) {
	w := c.w
	if len(rp.RecordBatches) == 0 {
		return
	}
	if w.nodes[node-1].flips > 0 && !sound(rp.RecordBatches) {
		// Damage that the node has yet to find: clients check what they get, and look elsewhere.
		w.counts["damaged batches refused by clients"]++
		c.give()
		return
	}
	end, ok := w.model.sawAll(c.part, c.at, rp.RecordBatches, "a consumer")
	if ok && end > rp.HighWatermark {
		w.fail("%s on node %d: a consumer got up to %d, the high watermark is %d", c.part, node, end, rp.HighWatermark)
	}
	w.counts["fetches with records"]++
	c.part.shown = max(c.part.shown, end)
	c.at = end
	if !c.ofGroup && c.rng.IntN(50) == 0 {
		c.at = 0 // starts over
	}
}

// sound says whether batches have the checksums they were stored with.
func sound(raw []byte) bool {
	for len(raw) > 0 {
		h, err := record.ParseHeader(raw)
		if err != nil || h.Size() > len(raw) {
			return false
		}
		if _, err := record.Check(raw[:h.Size()]); err != nil {
			return false
		}
		raw = raw[h.Size():]
	}
	return true
}

func (c *consumer) list(timestamp int64) (offset int64, ok bool) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.SetVersion(7)
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic = c.part.topic
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Partition, p.CurrentLeaderEpoch, p.Timestamp = c.part.index, -1, timestamp
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp, err := c.conn.ask(req, nil)
	if err != nil {
		c.conn = nil
		return 0, false
	}
	r := resp.(*kmsg.ListOffsetsResponse)
	if len(r.Topics) != 1 || len(r.Topics[0].Partitions) != 1 || r.Topics[0].Partitions[0].ErrorCode != 0 {
		c.give()
		return 0, false
	}
	return r.Topics[0].Partitions[0].Offset, true
}

// earliest goes to where the log starts now.
func (c *consumer) earliest() {
	if offset, ok := c.list(-2); ok {
		if offset > c.at {
			c.w.counts["consumers jumped to the log start"]++
		}
		if c.ofGroup {
			offset = max(offset, c.at) // what is consumed is consumed
		}
		c.at = offset
	}
}

// latest asks for the log's end, which is no less than what anybody was told before.
func (c *consumer) latest() {
	before := max(c.part.acked, c.part.shown)
	offset, ok := c.list(-1)
	if !ok {
		return
	}
	c.w.counts["ends of a log asked for"]++
	if offset < before {
		c.w.fail("%s: its end is said to be %d, and a batch that ends at %d was acknowledged or read before", c.part, offset, before)
	}
}
