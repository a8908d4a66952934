package sim

import (
	"errors"
	"time"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
)

const (
	// inFlight is how many batches an idempotent producer has under way, as Kafka's clients do.
	inFlight = 5
	// requestTimeout is how long a client waits for an answer.
	requestTimeout = 800 * time.Millisecond
)

// producer is a client that writes to one partition. An idempotent one keeps its batches in order, and sends those that are not
// acknowledged again, with the same sequence numbers, as long as it takes. Another one gives up what may have been written.
type producer struct {
	w      *world
	part   int32
	id     int64 // producer id, -1: not idempotent
	seq    int32
	node   int32      // believed to lead
	queue  []*batch   // not acknowledged, oldest first
	sent   []*attempt // on this connection and not answered, oldest first: answers come in that order
	server *proc      // the connection's other end
	broken bool       // an answer was lost with the connection: no other comes on it
	resend bool       // an attempt failed: when all have come back, everything is sent again in order
	wrong  int        // refusals in a row
	known  bool       // something has been acknowledged
	stop   bool
}

// attempt is one sending of a batch.
type attempt struct {
	c        *producer
	b        *batch
	answered bool
	err      error
	over     bool // the client has its answer, or has stopped waiting
}

func (w *world) newClients() {
	for i := range w.set.producers {
		c := &producer{w: w, part: int32(i % w.set.partitions), id: -1, node: int32(1 + w.rng.IntN(3))}
		if w.rng.Float64() < w.set.idempotent || i < w.set.partitions {
			c.id = int64(1000 + i)
		}
		w.clients = append(w.clients, c)
		c.later()
	}
	for i := range int32(w.set.partitions) {
		for range 2 {
			c := &consumer{w: w, part: i}
			w.readers = append(w.readers, c)
			c.later()
		}
		if w.set.deletes {
			w.deleteLater(i)
		}
	}
}

func (c *producer) later() {
	c.w.after(c.w.between(quantum, c.w.set.pace), func() {
		if c.stop {
			return
		}
		c.act()
		c.later()
	})
}

// act sends what there is to send.
func (c *producer) act() {
	w := c.w
	if len(c.sent) > 0 && c.server.dead && w.chance(0.2) {
		c.disconnect("connection reset") // the client notices that the server has gone
	}
	if c.resend {
		if len(c.sent) > 0 {
			return // answers are still to come
		}
		c.resend = false
		c.find()
		for _, b := range c.queue {
			c.send(b)
			if c.resend {
				return
			}
		}
		return
	}
	window := inFlight
	if c.id >= 0 && !c.known {
		// A server takes any sequence number from a producer it has never heard of: until the first is in, the next must wait.
		window = 1
	}
	if w.ending || len(c.queue) >= window {
		return
	}
	for n := 1 + w.rng.IntN(3); n > 0 && len(c.queue) < window && !c.resend; n-- {
		b := w.model.newBatch(c.part, c.id, c.seq, int32(1+w.rng.IntN(4)), 20+w.rng.IntN(w.set.valueBytes))
		if c.id >= 0 {
			c.seq += b.count
		}
		c.queue = append(c.queue, b)
		c.send(b)
	}
}

// find looks for the leader: what the node last asked knows of it, or the next node.
func (c *producer) find() {
	for range 3 {
		if p := c.w.nodes[c.node-1].proc; p != nil && !p.dead && !p.frozen && c.wrong < 8 {
			if st := p.parts[c.part].r.Status(); st.LeaderNode > 0 {
				c.node = st.LeaderNode
			}
			return
		}
		c.node, c.wrong = c.node%3+1, 0
	}
}

// send makes one attempt at a batch.
func (c *producer) send(b *batch) {
	w := c.w
	p := w.nodes[c.node-1].proc
	if p == nil || p.dead || len(c.sent) > 0 && c.server != p {
		c.refused(b) // connection refused, or to be given up first: nothing was sent
		return
	}
	c.server = p
	a := &attempt{c: c, b: b}
	c.sent = append(c.sent, a)
	b.tries++
	b.unclear++ // until the answer says otherwise
	w.counts["attempts"]++
	w.operations++
	if b.tries > 1 {
		w.counts["attempts again"]++
	}
	w.after(requestTimeout, a.timeout)
	arrive := func() {
		p.parts[c.part].p.Produce(b.build(), func(res partition.ProduceResult) {
			if !p.dead {
				a.answer(p, res)
			}
		})
	}
	if p.frozen {
		// It lies in the socket's buffer. If the process dies the timeout stands for the broken connection.
		p.whenThawed(arrive)
		return
	}
	arrive()
}

// answer is called by the server; the client hears of it some time later, or never.
func (a *attempt) answer(p *proc, res partition.ProduceResult) {
	c, w := a.c, a.c.w
	if res.Err == nil {
		w.model.ack(a.b, res.BaseOffset)
	} else if certain(res.Err) {
		a.b.unclear--
	}
	w.log("node %d partition %d: batch %d seq %d answered offset %d, %v", p.node.id, c.part, a.b.id, a.b.seq, res.BaseOffset, res.Err)
	if a.over {
		return
	}
	if !w.healed && w.chance(0.002) {
		w.counts["answers lost"]++
		c.broken = true
		return
	}
	w.after(w.upTo(w.set.netDelay), func() {
		a.answered, a.err = true, res.Err
		c.hear()
	})
}

// certain says whether an error promises that the batch is not in the log.
func certain(err error) bool {
	return !errors.Is(err, multiraft.ErrUnknownOutcome)
}

func (a *attempt) timeout() {
	if !a.over {
		a.c.w.counts["timeouts"]++
		a.c.disconnect("timeout")
	}
}

var errDisconnected = errors.New("the client has given the connection up")

// disconnect gives the connection up, with all that is under way on it, and looks for another node.
func (c *producer) disconnect(why string) {
	c.w.log("producer %d gives its connection up: %s", c.id, why)
	sent := c.sent
	c.sent, c.broken = nil, false
	c.node, c.wrong = c.node%3+1, 0
	for _, a := range sent {
		a.heard(errDisconnected)
	}
}

// hear takes the answers that have come, in the order of the requests, as a Kafka server gives them.
func (c *producer) hear() {
	for len(c.sent) > 0 && c.sent[0].answered && !c.broken {
		a := c.sent[0]
		c.sent = c.sent[1:]
		a.heard(a.err)
	}
}

// heard ends an attempt for the client.
func (a *attempt) heard(err error) {
	a.over = true
	c := a.c
	if err == nil {
		c.wrong, c.known = 0, true
		c.drop(a.b)
		return
	}
	c.w.counts["answer: "+kindOf(err)]++
	c.refused(a.b)
}

// refused ends an attempt that did not succeed.
func (c *producer) refused(b *batch) {
	c.wrong++
	if c.id < 0 {
		// Without a sequence number a second attempt may make a second copy: this producer gives up instead.
		c.drop(b)
		c.find()
		return
	}
	c.resend = true
	if p := c.w.nodes[c.node-1].proc; p == nil || p.dead {
		c.node = c.node%3 + 1
	}
}

func (c *producer) drop(b *batch) {
	for i, q := range c.queue {
		if q == b {
			c.queue = append(c.queue[:i:i], c.queue[i+1:]...)
			return
		}
	}
}

// kindOf names an error for the counts.
func kindOf(err error) string {
	for _, e := range []error{errDisconnected, multiraft.ErrNotLeader, multiraft.ErrUnknownOutcome, multiraft.ErrOverloaded, multiraft.ErrStopped,
		multiraft.ErrFenced, partition.ErrOutOfOrderSequence, partition.ErrStorage} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	return err.Error()
}

// consumer reads one partition from its beginning on, from any replica.
type consumer struct {
	w    *world
	part int32
	at   int64
}

func (c *consumer) later() {
	c.w.after(c.w.between(quantum, 40*time.Millisecond), func() {
		if c.w.failed == nil {
			c.poll()
		}
		c.later()
	})
}

func (c *consumer) poll() {
	w := c.w
	n := w.nodes[w.rng.IntN(3)]
	follower := w.chance(0.4)
	if n.proc == nil || n.proc.dead || n.proc.frozen {
		return
	}
	v := n.proc.parts[c.part]
	p := w.model.parts[c.part]
	w.operations++
	res, err := v.p.Fetch(partition.FetchRequest{Offset: c.at, MaxBytes: w.rng.IntN(8 << 10), CurrentLeaderEpoch: -1, LastFetchedEpoch: -1, Follower: follower})
	var out *partition.OffsetOutOfRangeError
	switch {
	case errors.As(err, &out) && c.at < out.Start:
		c.at = out.Start
		w.counts["consumers jumped to the log start"]++
	case err != nil && !errors.As(err, &out) && !errors.Is(err, multiraft.ErrNotLeader) && !errors.Is(err, partition.ErrOffsetNotAvailable) &&
		!errors.Is(err, multiraft.ErrStopped) && n.proc.fatal == nil:
		w.fail("partition %d on node %d: fetching at %d: %v", c.part, n.id, c.at, err)
	case err == nil && len(res.Records) > 0:
		end, ok := w.model.sawAll(p, c.at, res.Records, "a consumer")
		if ok && end > res.HighWatermark {
			w.fail("partition %d on node %d: a consumer got up to %d, the high watermark is %d", c.part, n.id, end, res.HighWatermark)
		}
		w.counts["batches read"]++
		c.at = end
		if w.chance(0.02) {
			c.at = 0 // starts over
		}
	}
}

// deleteLater moves a partition's log start now and then.
func (w *world) deleteLater(part int32) {
	w.after(w.between(200*time.Millisecond, 2*time.Second), func() {
		if w.healed || w.failed != nil {
			return
		}
		w.deleteRecords(part)
		w.deleteLater(part)
	})
}

func (w *world) deleteRecords(part int32) {
	m := w.model.parts[part]
	for _, n := range w.nodes {
		if n.proc == nil || n.proc.dead || n.proc.frozen {
			continue
		}
		v := n.proc.parts[part]
		start, hw := v.p.LogStart(), v.p.HighWatermark()
		if !v.r.Status().Ready || hw == start {
			continue
		}
		to := start + w.rng.Int64N(hw-start+1)
		m.asked = max(m.asked, to)
		w.log("node %d partition %d: delete records below %d", n.id, part, to)
		p := n.proc
		w.operations++
		v.p.DeleteRecords(to, func(low int64, err error) {
			if p.dead {
				return
			}
			if err == nil {
				w.counts["log start moved"]++
				if low < to {
					w.fail("partition %d: records below %d deleted, and the log starts at %d", part, to, low)
				}
			}
		})
		return
	}
}
