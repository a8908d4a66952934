package partition

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
)

// The model test drives three state machines with random orders of everything that may befall them: aborted and dropped
// proposals, leader changes that keep any prefix of what was under way, retries while the original is still under way, power
// cuts and kills with replay from any checkpoint, catching up by snapshot, deleted records. Clients keep up to five batches in
// flight and retry like Kafka's. What they may see (PROTOCOL.md, Produce; RAFT.md 1 and 3):
//
//   - acknowledged at an offset: the committed log holds exactly that batch there, once, and every later answer says the same
//   - certainly refused each time: it is nowhere
//   - a producer's batches are in the log in the order sent, without holes
//   - a sequence error only where something before it is missing

const inFlight = 5

// modelBatch is one batch of an idempotent client, through all its attempts.
type modelBatch struct {
	seq       int32
	records   int
	acked     bool
	offset    int64
	maybe     bool // an attempt ended without certainty, or has not ended
	open      int  // attempts without an answer
	wantRetry bool
}

// modelClient is an idempotent producer of one id and epoch.
type modelClient struct {
	id      int64
	epoch   int16
	batches []*modelBatch
	fenced  bool // a later epoch is in use
}

func (cl *modelClient) firstOpen() int {
	for i, b := range cl.batches {
		if !b.acked {
			return i
		}
	}
	return len(cl.batches)
}

type modelRun struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand
	c       *cluster
	clients []*modelClient // current
	all     []*modelClient
	plain   map[string]int64 // acknowledged batches without a producer
	sent    int
	counts  map[string]int
	hw      [3]int64
}

func (r *modelRun) fatalf(format string, args ...any) {
	r.t.Helper()
	r.t.Fatalf("seed %d: "+format, append([]any{r.seed}, args...)...)
}

func value(cl *modelClient, b *modelBatch) string {
	return fmt.Sprintf("%d/%d/%d", cl.id, cl.epoch, b.seq)
}

// attempt sends a batch, for the first time or again.
func (r *modelRun) attempt(cl *modelClient, k int) {
	b := cl.batches[k]
	// What stands before it was acknowledged before this attempt: then nothing can be missing.
	safe := k == 0 || cl.batches[k-1].acked
	settled := b.acked
	b.open++
	b.wantRetry = false
	answers := 0
	r.c.leader.p.Produce(makeBatch(r.t, batchSpec{records: b.records, producer: cl.id, epoch: cl.epoch, seq: b.seq, value: value(cl, b)}),
		func(res ProduceResult) {
			if answers++; answers > 1 {
				r.fatalf("%s: answered twice", value(cl, b))
			}
			b.open--
			r.answered(cl, b, res, safe, settled)
		})
}

func (r *modelRun) answered(cl *modelClient, b *modelBatch, res ProduceResult, safe, settled bool) {
	err := res.Err
	switch {
	case err == nil:
		r.counts["acked"]++
		if b.acked && b.offset != res.BaseOffset {
			r.fatalf("%s acknowledged at %d and at %d", value(cl, b), b.offset, res.BaseOffset)
		}
		b.acked, b.offset = true, res.BaseOffset
	case errors.Is(err, multiraft.ErrNotLeader):
		r.counts["not leader"]++
		b.wantRetry = true
	case errors.Is(err, multiraft.ErrUnknownOutcome), errors.Is(err, multiraft.ErrStopped):
		r.counts["unknown"]++
		b.maybe, b.wantRetry = true, true
	case errors.Is(err, ErrOutOfOrderSequence):
		r.counts["out of order"]++
		if safe && !cl.fenced && !settled {
			r.fatalf("%s refused, and nothing before it is missing: %v", value(cl, b), err)
		}
		b.wantRetry = true
	case errors.Is(err, ErrInvalidProducerEpoch):
		r.counts["fenced"]++
		if !cl.fenced {
			r.fatalf("%s: %v", value(cl, b), err)
		}
	default:
		r.fatalf("%s: %v", value(cl, b), err)
	}
}

// client lets one client do one thing.
func (r *modelRun) client() {
	if r.c.leader == nil {
		return
	}
	i := r.rng.IntN(len(r.clients))
	cl := r.clients[i]
	first := cl.firstOpen()
	switch n := r.rng.IntN(20); {
	case n == 0 && len(cl.batches) > 3:
		// A new epoch: what the old one left unanswered is given up.
		cl.fenced = true
		next := &modelClient{id: cl.id, epoch: cl.epoch + 1}
		r.clients[i] = next
		r.all = append(r.all, next)
	case n == 1:
		r.sendPlain()
	case n == 2:
		// A process that was replaced and does not know it.
		if old := r.all[r.rng.IntN(len(r.all))]; old.fenced {
			r.attempt(old, r.rng.IntN(len(old.batches)))
		}
	case n < 9 && first < len(cl.batches):
		// Again, in order, from the first that has no answer, whether the first attempt is over or not.
		for k := first; k < len(cl.batches); k++ {
			if b := cl.batches[k]; !b.acked && (b.wantRetry || r.rng.IntN(3) == 0) {
				r.counts["retries"]++
				r.attempt(cl, k)
			}
		}
	case n == 9 && first > 0:
		k := max(0, first-1-r.rng.IntN(inFlight)) // a late duplicate of something acknowledged
		if k >= len(cl.batches)-inFlight {
			r.attempt(cl, k)
		}
	case len(cl.batches)-first < inFlight && (first > 0 || len(cl.batches) == 0):
		// Alone at first: to a leader that knows nothing of a producer any sequence is welcome.
		b := &modelBatch{records: 1 + r.rng.IntN(3)}
		if k := len(cl.batches); k > 0 {
			b.seq = cl.batches[k-1].seq + int32(cl.batches[k-1].records)
		}
		cl.batches = append(cl.batches, b)
		r.attempt(cl, len(cl.batches)-1)
	}
}

func (r *modelRun) sendPlain() {
	r.sent++
	v := fmt.Sprintf("plain%d", r.sent)
	r.c.leader.p.Produce(makeBatch(r.t, batchSpec{records: 1, value: v}), func(res ProduceResult) {
		if res.Err == nil {
			if _, twice := r.plain[v]; twice {
				r.fatalf("%s answered twice", v)
			}
			r.plain[v] = res.BaseOffset
		}
	})
}

// fate lets something happen to the group.
func (r *modelRun) fate() {
	c, rng := r.c, r.rng
	switch rng.IntN(14) {
	case 0, 1, 2, 3:
		c.propose(rng.IntN(4) == 0)
	case 4, 5, 6:
		if c.leader != nil && len(c.pending) > 0 {
			c.commitN(rng.IntN(len(c.pending) + 1))
		}
	case 7, 8, 9:
		r.applySome(c.nodes[rng.IntN(3)])
	case 10:
		if c.leader != nil && len(c.pending) > 0 {
			c.commitN(rng.IntN(len(c.pending) + 1)) // what the new leader has of the old one's
		}
		r.counts["elections"]++
		c.elect(rng.IntN(3), false)
	case 11:
		r.crash(c.nodes[rng.IntN(3)])
	case 12:
		nd := c.nodes[rng.IntN(3)]
		nd.holdCP = rng.IntN(2) == 0
		nd.m.Pinned(testGroup, 0)
		c.settle()
		nd.syncCP(rng.IntN(len(nd.cps) + 1))
	case 13:
		r.rare()
	}
}

func (r *modelRun) applySome(nd *node) {
	if n := r.c.lastIndex() - nd.applied; n > 0 {
		if err := nd.tryApply(nd.applied + 1 + r.rng.Uint64N(n)); err != nil {
			r.fatalf("node %d: %v", nd.id, err)
		}
	}
	if hw := nd.p.HighWatermark(); hw < r.hw[nd.id] {
		r.fatalf("node %d: the high watermark went back from %d to %d", nd.id, r.hw[nd.id], hw)
	} else {
		r.hw[nd.id] = hw
	}
}

func (r *modelRun) crash(nd *node) {
	if r.rng.IntN(3) > 0 {
		return
	}
	r.counts["crashes"]++
	if r.c.leader == nd && len(r.c.pending) > 0 {
		r.c.commitN(r.rng.IntN(len(r.c.pending) + 1))
	}
	nd.crash(r.rng.Uint64(), r.rng.IntN(2) == 0)
	r.hw[nd.id] = nd.p.HighWatermark() // of what is applied again
}

// rare moves the log start, lets time pass, or brings a node up by snapshot.
func (r *modelRun) rare() {
	c := r.c
	switch l := c.leader; {
	case l == nil:
	case r.rng.IntN(4) == 0:
		if end := l.p.HighWatermark(); end > 0 {
			l.p.DeleteRecords(r.rng.Int64N(end), func(int64, error) {})
		}
	case r.rng.IntN(3) == 0:
		c.advance(6 * time.Second)
	case r.rng.IntN(3) == 0:
		to := (l.id + 1 + r.rng.IntN(2)) % 3
		f := c.nodes[to]
		snap, st := c.stage(to, l.id)
		c.fetched(st)
		if r.rng.IntN(3) > 0 && snap.Metadata.Index > f.applied {
			for len(f.waiting) > 0 && f.waiting[0].entry.Index <= snap.Metadata.Index {
				for _, p := range f.waiting[0].bound {
					p.Done(multiraft.ErrUnknownOutcome) // covered by a snapshot: rule 3
				}
				f.waiting = f.waiting[1:]
			}
			if err := f.install(snap); err != nil {
				r.fatalf("node %d: installing: %v", to, err)
			}
			r.counts["snapshots"]++
		}
	}
}

// finish brings everybody to the end of one log and compares.
func (r *modelRun) finish() {
	c := r.c
	c.elect(r.rng.IntN(3), false)
	for round := 0; ; round++ {
		if round == 50 {
			r.fatalf("retries come to no end")
		}
		open := false
		for _, cl := range r.clients {
			for k := cl.firstOpen(); k < len(cl.batches); k++ {
				if !cl.batches[k].acked {
					open = true
					r.attempt(cl, k)
				}
			}
		}
		if c.flow(); !open {
			break
		}
	}
	c.agree()
	r.checkLog()
}

// checkLog reads the committed log and holds it against what clients were told.
func (r *modelRun) checkLog() {
	var log []byte
	at := map[string]int64{}
	var order []string
	for i := range r.c.log {
		data := r.c.log[i].Data
		if len(data) == 0 || isCommand(data) {
			continue
		}
		log = append(log, data...)
		err := record.Each(data, func(h record.Header, b []byte) error {
			return record.Records(b, 1<<20, func(rec record.Record) error {
				if rec.OffsetDelta == 0 {
					v := string(rec.Value[len("v0-"):])
					if old, twice := at[v]; twice {
						r.fatalf("%s is at %d and at %d", v, old, h.BaseOffset)
					}
					at[v] = h.BaseOffset
					order = append(order, v)
				}
				return nil
			})
		})
		if err != nil {
			r.fatalf("%v", err)
		}
	}
	if got := r.c.nodes[0].contents(); !bytes.HasSuffix(log, got) {
		r.fatalf("the segments are not the end of the committed log")
	}
	for v, o := range r.plain {
		if got, ok := at[v]; !ok || got != o {
			r.fatalf("%s was acknowledged at %d, it is at %d (%v)", v, o, got, ok)
		}
	}
	for _, cl := range r.all {
		last := int64(-1)
		missing := false
		for _, b := range cl.batches {
			o, ok := at[value(cl, b)]
			switch {
			case b.open != 0:
				r.fatalf("%s: %d attempts without an answer", value(cl, b), b.open)
			case b.acked && (!ok || o != b.offset):
				r.fatalf("%s was acknowledged at %d, it is at %d (%v)", value(cl, b), b.offset, o, ok)
			case ok && !b.acked && !b.maybe:
				r.fatalf("%s was refused each time, and is at %d", value(cl, b), o)
			case ok && missing:
				r.fatalf("%s is in the log, and one before it is not", value(cl, b))
			case ok && o <= last:
				r.fatalf("%s is at %d, behind the one before it at %d", value(cl, b), o, last)
			}
			missing = missing || !ok
			if ok {
				last = o
			}
		}
	}
}

func TestIdempotentProducersAgainstAModel(t *testing.T) {
	total := map[string]int{}
	for seed := range uint64(80) {
		r := &modelRun{t: t, seed: seed, rng: newRand(seed), plain: map[string]int64{}, counts: total}
		r.c = newCluster(t, 3, func(c *cluster) {
			c.cfg.Segment.SegmentBytes = 700 // rolls every few batches
			if seed%4 == 3 {
				c.cfg.TimestampType = LogAppendTime
			}
		})
		for id := range int64(3) {
			r.clients = append(r.clients, &modelClient{id: id + 1})
		}
		r.all = append(r.all, r.clients...)
		r.c.elect(r.rng.IntN(3), false)
		for range 350 {
			if r.rng.IntN(2) == 0 {
				r.client()
			} else {
				r.fate()
			}
		}
		r.finish()
		for _, nd := range r.c.nodes {
			nd.stop()
		}
	}
	for _, what := range []string{"acked", "retries", "not leader", "unknown", "out of order", "fenced", "elections", "crashes", "snapshots"} {
		if total[what] < 20 {
			t.Errorf("%q happened %d times: the test shows too little (%v)", what, total[what], total)
		}
	}
	t.Log(total)
}
