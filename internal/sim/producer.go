package sim

import (
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// inFlight is how many batches an idempotent producer has under way, as Kafka's clients do.
const inFlight = 5

// producer is a client that writes to one partition. An idempotent one keeps its batches in order, and sends those that are not
// acknowledged again, with the same sequence numbers, as long as it takes. Another one gives up what may have been written.
type producer struct {
	*client
	part       *partModel
	idempotent bool
	id         int64 // producer id
	seq        int32
	nth        int      // of the next batch
	queue      []*batch // not acknowledged, oldest first
	flying     []*attempt
	conn       *conn
	leader     int32 // believed to lead, 0: not known
	known      bool  // something has been acknowledged
	budget     int   // how many batches to send in all; -1: until the end
	wrong      int
}

// attempt is one sending of a batch.
type attempt struct {
	b *batch
	a *answer
	// at is when it was sent.
	at time.Time
}

func (w *world) newProducer(part *partModel, idempotent bool, budget int) *producer {
	p := &producer{part: part, idempotent: idempotent, id: -1, budget: budget}
	p.client = w.newClient("producer", func(*client) { p.run() })
	w.producers = append(w.producers, p)
	return p
}

func (p *producer) idle() bool { return len(p.queue) == 0 && (p.w.ending || p.budget == 0) }

// run produces until it is told to end.
func (p *producer) run() {
	w := p.w
	for !w.made[p.part.topicIndex] {
		p.sleep(20 * ms)
	}
	for p.idempotent && p.id < 0 {
		p.initID()
	}
	for {
		if p.conn == nil || p.conn.broken {
			p.connect()
			continue
		}
		if !p.pump() {
			p.conn.close(errReset)
			p.conn = nil
		}
	}
}

// initID gets a producer id that nobody else has.
func (p *producer) initID() {
	w := p.w
	k := p.anyNode()
	if k == nil {
		p.sleep(p.between(5*ms, 50*ms))
		return
	}
	req := kmsg.NewPtrInitProducerIDRequest()
	req.SetVersion(4)
	req.TransactionTimeoutMillis = 60000
	resp, err := k.ask(req, nil)
	defer k.close(errReset)
	if err != nil {
		return
	}
	r := resp.(*kmsg.InitProducerIDResponse)
	if r.ErrorCode != 0 {
		p.sleep(p.between(5*ms, 50*ms))
		return
	}
	w.model.gaveID(r.ProducerID)
	p.id = r.ProducerID
}

// connect looks for the leader and connects to it.
func (p *producer) connect() {
	w := p.w
	if p.leader == 0 {
		p.leader = p.client.findLeader(p.part)
	}
	if p.leader > 0 {
		p.conn = w.dial(p.client, p.leader)
	}
	if p.conn == nil {
		p.leader = 0
		p.sleep(p.between(5*ms, 60*ms))
	}
}

// findLeader asks any node for the leader of a partition; 0: not known.
func (c *client) findLeader(part *partModel) int32 {
	k := c.anyNode()
	if k == nil {
		return 0
	}
	defer k.close(errReset)
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(12)
	t := kmsg.NewMetadataRequestTopic()
	t.Topic = &part.topic
	req.Topics = append(req.Topics, t)
	resp, err := k.ask(req, nil)
	if err != nil {
		return 0
	}
	for _, t := range resp.(*kmsg.MetadataResponse).Topics {
		for _, p := range t.Partitions {
			if t.ErrorCode == 0 && p.Partition == part.index && p.Leader > 0 {
				return p.Leader
			}
		}
	}
	return 0
}

// pump sends and hears on a connection until something goes wrong with it: then it says false. An idempotent producer sends
// all again that was not acknowledged, once everything under way has come back.
func (p *producer) pump() bool {
	w := p.w
	for i, b := range p.queue { // again
		if i < p.window() {
			p.send(b)
		}
	}
	next := w.clk.Now()
	for {
		// Hear first: answers come in order.
		for len(p.flying) > 0 && p.flying[0].a.done {
			at := p.flying[0]
			p.flying = p.flying[1:]
			if !p.heard(at) {
				p.drainFlying()
				return false
			}
		}
		now := w.clk.Now()
		if len(p.flying) > 0 && !now.Before(p.flying[0].at.Add(w.set.patience)) {
			w.counts["timeouts"]++
			p.conn.close(errTimeout)
			continue
		}
		if p.conn.broken && len(p.flying) == 0 {
			p.leader = 0
			return false
		}
		if !now.Before(next) && !p.conn.broken {
			p.produce()
			next = now.Add(p.between(ms, w.set.pace))
		}
		d := next.Sub(now)
		if len(p.flying) > 0 {
			d = min(d, p.flying[0].at.Add(w.set.patience).Sub(now))
		}
		p.wait(max(d, 0))
	}
}

func (p *producer) window() int {
	switch {
	case !p.idempotent:
		return inFlight
	case !p.known:
		// A server takes any sequence number from a producer it has never heard of: until the first is in, the next must wait.
		return 1
	}
	return inFlight
}

// mayGoOn says whether the window has room for a new batch. Those of an idempotent producer that are acknowledged count, too, behind one that is not:
// a server knows the last five, and clients, which send a failed batch again before anything new, never ask more of it (seed 9506).
func (p *producer) mayGoOn() bool {
	if p.idempotent && len(p.queue) > 0 && p.nth-p.queue[0].nth >= inFlight {
		return false
	}
	return len(p.queue) < p.window()
}

// produce makes new batches and sends them, and sends again those of an idempotent producer that wait behind its window.
func (p *producer) produce() {
	w := p.w
	for len(p.flying) < p.window() && len(p.flying) < len(p.queue) {
		p.send(p.queue[len(p.flying)])
	}
	for n := 1 + p.rng.IntN(3); n > 0 && !w.ending && p.budget != 0 && p.mayGoOn(); n-- {
		b := w.model.newBatch(p, int32(1+p.rng.IntN(4)), 20+p.rng.IntN(w.set.valueBytes))
		b.nth = p.nth
		p.nth++
		if p.budget > 0 {
			p.budget--
		}
		p.seq += b.count
		p.queue = append(p.queue, b)
		p.send(b)
	}
}

// send makes one attempt at a batch.
func (p *producer) send(b *batch) {
	w := p.w
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(9)
	req.Acks, req.TimeoutMillis = -1, int32(w.set.patience/time.Millisecond)
	t := kmsg.NewProduceRequestTopic()
	t.Topic = p.part.topic
	tp := kmsg.NewProduceRequestTopicPartition()
	tp.Partition, tp.Records = p.part.index, b.raw
	t.Partitions = append(t.Partitions, tp)
	req.Topics = append(req.Topics, t)
	b.tries++
	b.unclear++ // until the answer says otherwise
	w.counts["batches sent"]++
	if b.tries > 1 {
		w.counts["batches sent again"]++
	}
	a := p.conn.send(req, func(resp kmsg.Response) {
		r := produced(resp)
		if k := kerr.ErrorForCode(r.ErrorCode); k == nil {
			w.model.ack(b, r.BaseOffset)
		} else if certain(r.ErrorCode) {
			b.unclear--
		}
		w.traceAnswer(b, r)
	})
	p.flying = append(p.flying, &attempt{b: b, a: a, at: w.clk.Now()})
}

func produced(resp kmsg.Response) *kmsg.ProduceResponseTopicPartition {
	return &resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
}

// certain says whether an error promises that the batch is not in the log.
func certain(code int16) bool {
	switch kerr.ErrorForCode(code) {
	case kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend, kerr.UnknownServerError, kerr.KafkaStorageError:
		return false
	}
	return true
}

// heard ends an attempt for the client, and says whether to go on with the connection.
func (p *producer) heard(at *attempt) bool {
	w := p.w
	if at.a.err == nil {
		r := produced(at.a.resp)
		k := kerr.ErrorForCode(r.ErrorCode)
		if k == nil {
			p.known, p.wrong = true, 0
			p.drop(at.b)
			return true
		}
		w.counts["answer: "+k.Error()]++
		if k == kerr.NotLeaderForPartition {
			p.leader = 0
			if l := r.CurrentLeader.LeaderID; l > 0 {
				p.leader = l
			}
		}
	} else {
		w.counts["answer: "+at.a.err.Error()]++
		p.leader = 0
	}
	if !p.idempotent {
		// Without a sequence number a second attempt may make a second copy: this producer gives up instead.
		p.drop(at.b)
	}
	// A pause, as clients make before they try again.
	if p.wrong++; p.wrong > 1 {
		p.leader = 0
	}
	return false
}

// drainFlying waits for the answers of what is under way still, as clients do before they send again.
func (p *producer) drainFlying() {
	w := p.w
	for len(p.flying) > 0 {
		at := p.flying[0]
		if !at.a.done {
			left := at.at.Add(w.set.patience).Sub(w.clk.Now())
			if left <= 0 || p.conn.broken {
				p.conn.close(errTimeout)
				continue
			}
			p.wait(left)
			continue
		}
		p.flying = p.flying[1:]
		p.heard(at)
	}
	p.sleep(p.between(ms, 20*ms*time.Duration(min(1+p.wrong, 5))))
}

func (p *producer) drop(b *batch) {
	for i, q := range p.queue {
		if q == b {
			b.raw = nil
			p.queue = append(p.queue[:i:i], p.queue[i+1:]...)
			return
		}
	}
}
