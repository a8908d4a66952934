package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/segment"
)

const (
	// quantum is the grain of simulated time: clock callbacks run at their own times, actors at multiples of it.
	quantum = time.Millisecond
	// tick is a raft tick: a fifth of the default, so that a run holds many elections.
	tick = 20 * time.Millisecond

	topicName = "sim"
)

// epoch is when simulated time begins.
var epoch = time.UnixMilli(1_700_000_000_000)

// world is one run.
type world struct {
	seed    uint64
	rng     *rand.Rand
	clk     *clock.Sim
	set     settings
	nodes   []*node
	net     *network
	model   *model
	topic   *metadata.Topic
	clients []*producer
	readers []*consumer
	healed  bool // no more faults
	ending  bool // no more new batches
	counts  Counts
	// operations is how many requests clients have made.
	operations int
	trace      trace
	failed     *violation
}

// violation ends a run.
type violation struct{ text string }

// settings are drawn from the seed: the same operations under many configurations.
type settings struct {
	partitions    int
	walFile       int64
	walCache      int64
	shards        int
	maxEntry      int
	maxUnapplied  int64
	maxInflight   uint64
	backlog       int64
	segment       segment.Config
	limits        partition.Limits
	syncTime      time.Duration // the longest a log write takes
	stepTime      time.Duration // the longest another actor rests
	netDelay      time.Duration
	dropRate      float64
	dupRate       float64
	producers     int
	idempotent    float64
	valueBytes    int
	pace          time.Duration // the longest a producer rests
	deletes       bool
	chaos         time.Duration
	faultInterval time.Duration
	faults        []fault
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func drawSettings(r *rand.Rand) settings {
	s := settings{
		partitions:   1 + r.IntN(3),
		walFile:      pick[int64](r, 64<<10, 64<<10, 128<<10),
		walCache:     pick[int64](r, 96<<10, 256<<10),
		shards:       1 + r.IntN(2),
		maxEntry:     pick(r, 2<<10, 16<<10, 1<<20),
		maxUnapplied: pick[int64](r, 8<<10, 64<<10, 1<<20),
		maxInflight:  pick[uint64](r, 8<<10, 64<<10, 1<<20),
		backlog:      pick[int64](r, 16<<10, 1<<20),
		segment: segment.Config{
			SegmentBytes: pick[int64](r, 8<<10, 32<<10, 64<<10), IndexIntervalBytes: 512,
			SegmentAge: pick(r, 500*time.Millisecond, time.Hour), RetentionBytes: -1, RetentionAge: -1,
		},
		limits: partition.Limits{
			FlushInterval: pick(r, 100*time.Millisecond, 400*time.Millisecond, 2*time.Second),
			FlushBytes:    pick[int64](r, 8<<10, 64<<10), MaintenanceInterval: 500 * time.Millisecond,
			DeltaBytesPerSecond: pick[int64](r, 1<<20, 16<<20), DeltaChunkBytes: pick(r, 1<<10, 8<<10),
			Staging: 1 + r.IntN(2), StageTimeout: 2 * time.Second, PinBytes: pick[int64](r, 8<<10, 1<<20),
		},
		syncTime:      pick[time.Duration](r, 1, 4, 15) * time.Millisecond,
		stepTime:      pick[time.Duration](r, 0, 1, 5) * time.Millisecond,
		netDelay:      pick[time.Duration](r, 1, 3, 12) * time.Millisecond,
		dropRate:      pick(r, 0, 0, 0.002, 0.02),
		dupRate:       pick(r, 0, 0.01, 0.05),
		producers:     3 + r.IntN(4),
		idempotent:    pick(r, 0.5, 0.8, 1),
		valueBytes:    pick(r, 100, 600, 2000),
		pace:          pick[time.Duration](r, 8, 16, 30) * time.Millisecond,
		deletes:       r.IntN(3) > 0,
		chaos:         4*time.Second + time.Duration(r.IntN(4))*time.Second,
		faultInterval: pick[time.Duration](r, 150, 300, 900) * time.Millisecond,
	}
	if r.IntN(4) == 0 {
		s.segment.RetentionBytes = 48 << 10
	}
	for _, f := range faults {
		if r.IntN(3) > 0 {
			s.faults = append(s.faults, f)
		}
	}
	return s
}

func newWorld(seed uint64, sink func(string)) *world {
	w := &world{
		seed: seed, rng: rand.New(rand.NewPCG(seed, 0x73696d)), clk: clock.NewSim(epoch), counts: Counts{},
		trace: trace{sink: sink},
	}
	w.set = drawSettings(w.rng)
	w.net = newNetwork(w)
	w.model = newModel(w)
	w.topic = &metadata.Topic{Name: topicName, ID: uuid.UUID{9}}
	for i := range int32(w.set.partitions) {
		p := &metadata.Partition{Index: i, Group: uint64(10 + i)}
		for k := range int32(3) {
			n := (i+k)%3 + 1 // preferred leaders are spread
			p.Replicas = append(p.Replicas, metadata.Replica{ID: uint64(100*(i+1) + n), Node: n, Dir: dirOf(n)})
		}
		w.topic.Partitions = append(w.topic.Partitions, p)
	}
	for id := int32(1); id <= 3; id++ {
		w.nodes = append(w.nodes, newNode(w, id))
	}
	w.newClients()
	return w
}

func dirOf(node int32) uuid.UUID { return uuid.UUID{byte(node)} }

// log adds a line to the trace.
func (w *world) log(format string, args ...any) {
	at := w.clk.Now().Sub(epoch)
	text := fmt.Sprintf(format, args...)
	w.trace.mix(uint64(at))
	w.trace.mixString(text)
	w.trace.print(at, text)
}

// fail ends the run: the first violation is the one that counts.
func (w *world) fail(format string, args ...any) {
	if w.failed != nil {
		return
	}
	w.failed = &violation{fmt.Sprintf(format, args...)}
	w.log("VIOLATION %s", w.failed.text)
}

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

// upTo draws a duration in [0, d].
func (w *world) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d) + 1)) }

func (w *world) between(lo, hi time.Duration) time.Duration { return lo + w.upTo(hi-lo) }

// after runs f on this thread, d from now.
func (w *world) after(d time.Duration, f func()) { w.clk.AfterFunc(d, f) }

// run drives the cluster for d, or until stop says so. It reports whether stop did.
func (w *world) run(d time.Duration, stop func() bool) bool {
	end := w.clk.Now().Add(d)
	for w.clk.Now().Before(end) && w.failed == nil {
		w.clk.Advance(quantum)
		w.stepActors()
		if w.clk.Now().Sub(epoch)%(10*quantum) == 0 {
			w.model.watch()
		}
		if stop != nil && stop() {
			return true
		}
	}
	return false
}

// stepActors steps what is due, in drawn order, a few rounds, so that within one quantum work can pass from actor to actor.
func (w *world) stepActors() {
	var due []*actor
	for range 3 {
		due = due[:0]
		now := w.clk.Now()
		for _, n := range w.nodes {
			p := n.proc
			if p == nil || p.dead || p.frozen {
				continue
			}
			for _, a := range p.actors {
				if !a.restUntil.After(now) {
					due = append(due, a)
				}
			}
		}
		if len(due) == 0 {
			return
		}
		w.rng.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
		for _, a := range due {
			if !a.p.dead && !a.p.frozen {
				w.step(a)
			}
			if w.failed != nil {
				return
			}
		}
	}
}

// step runs one step of an actor; then the actor rests as long as such a step may take. So that an idle actor costs little, its
// rest is a quantum.
func (w *world) step(a *actor) {
	now := w.clk.Now()
	more := a.step()
	rest := quantum
	switch {
	case a.disk:
		rest = w.upTo(w.set.syncTime)
	case w.set.stepTime > 0 && w.rng.IntN(8) == 0:
		rest = w.upTo(w.set.stepTime)
	case more:
		rest = 0
	}
	rest += a.p.fs.TakeStall()
	a.restUntil = now.Add(rest)
}

// logHandler writes warnings and errors, and what the harness wants to know of the rest, into the trace.
type logHandler struct {
	p     *proc
	attrs []slog.Attr
}

// Enabled implements slog.Handler.
func (h *logHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle implements slog.Handler.
func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	if h.p.dead {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "node %d %s %s", h.p.node.id, r.Level, r.Message)
	attrs := map[string]string{}
	put := func(a slog.Attr) bool {
		v := a.Value.String()
		attrs[a.Key] = v
		fmt.Fprintf(&b, " %s=%s", a.Key, v)
		return true
	}
	for _, a := range h.attrs {
		put(a)
	}
	r.Attrs(put)
	h.p.node.w.log("%s", b.String())
	h.p.heard(r.Message, attrs)
	return nil
}

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{p: h.p, attrs: append(append([]slog.Attr(nil), h.attrs...), attrs...)}
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(string) slog.Handler { return h }
