package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller/bootstrap"
)

// epoch is when simulated time begins.
var epoch = time.UnixMilli(1_700_000_000_000)

// watchEvery is how often every replica is looked at.
const watchEvery = 20 * time.Millisecond

// world is one run. Different things draw from chance of their own, so that one that is left out changes the others little.
type world struct {
	scheduler
	seed  uint64
	sched *rand.Rand // who runs next, and how long it takes
	net   *rand.Rand // the network's
	rng   *rand.Rand // what faults and restarts draw
	set   settings

	founders []bootstrap.Founder
	// nodes are all that there ever were, by id from 1 on; members those that are the cluster's as its operator sees it.
	nodes   []*node
	members []*node
	links   *network
	model   *model
	// groupLogs hold what coordinators write against what they tell.
	groupLogs *groupLogs
	// change is the last change of the cluster's members, nil before the first.
	change *change
	votes  map[vote]uint64 // to whom each was given
	// moves are the reassignments that were asked for, in the order asked.
	moves     []*move
	throttles *throttles
	plan      []event // of faults
	keep      map[int]bool
	partly    bool // only those of keep happen
	// noise is what goes wrong all the time until the cluster is healed.
	noise noise
	storm *storm // of power cuts; nil: things go wrong by the clock

	everyone    []*client // tasks of those who use the cluster
	clientCount int
	producers   []*producer
	admin       *admin
	// made says which of the topics that stay have been created.
	made       []bool
	scripted   bool // commands write, not the model's clients
	healed     bool // no more faults
	ending     bool // no more new batches
	counts     Counts
	operations int
	messages   int
	trace      trace
	failed     *violation
	// hopeless are replicas with damage that they have called beyond mending.
	hopeless map[uint64]bool
	// topicNames are those of topics that groups consume, by id.
	topicNames map[[16]byte]string
}

// violation ends a run.
type violation struct {
	text   string
	hollow bool // nothing went wrong, but nothing was shown either
}

// noise are rates of what may go wrong at any time.
type noise struct {
	drop, dup      float64 // messages between nodes
	answers        float64 // answers to clients that are lost with their connection
	snapshotCuts   float64 // the power fails around a snapshot
	restartCuts    float64 // the power fails while a process starts
	cleanCuts      float64 // the power fails around an operation on a file of a compaction
	unreportedLoss float64
}

// drawer gives different things chance of their own, all from one seed.
func drawer(seed uint64) func(stream uint64) *rand.Rand {
	return func(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }
}

func newWorld(o Options) *world {
	draw := drawer(o.Seed)
	if o.Power {
		w := newWorldOf(o, powerSettings(draw(4)), planPower(draw(5)))
		w.storm = &storm{w: w}
		return w
	}
	set := drawSettings(draw(4))
	if o.Bench {
		set = benchSettings()
	}
	plan := planFaults(draw(5), set, o.Bench)
	if !o.Bench {
		plan = append(plan, planChanges(draw(6), set)...)
	}
	return newWorldOf(o, set, plan)
}

// newWorldOf makes a cluster with these settings, for which this is planned.
func newWorldOf(o Options, set settings, plan []event) *world {
	seed, draw := o.Seed, drawer(o.Seed)
	w := &world{
		seed: seed, sched: draw(1), net: draw(2), rng: draw(3),
		counts: Counts{}, hopeless: map[uint64]bool{}, topicNames: map[[16]byte]string{}, votes: map[vote]uint64{}, trace: trace{sink: o.Trace},
		noise: noise{unreportedLoss: 0.1},
	}
	w.scheduler.clk, w.scheduler.rng = clock.NewSim(epoch), w.sched
	w.set, w.plan = set, plan
	if o.Only != nil {
		w.partly, w.keep = true, map[int]bool{}
		for _, i := range o.Only {
			w.keep[i] = true
		}
	}
	w.model = newModel(w)
	w.groupLogs = &groupLogs{w: w, parts: map[int32]*groupLog{}}
	w.throttles = &throttles{w: w, led: map[ledTerm]time.Time{}}
	w.made = make([]bool, len(w.set.topics))
	for id := int32(1); id <= int32(w.set.nodes); id++ {
		w.founders = append(w.founders, bootstrap.Founder{Node: id, Dir: dirOf(id)})
	}
	for _, f := range w.founders {
		w.nodes = append(w.nodes, newFounder(w, f.Node))
	}
	w.members = slices.Clone(w.nodes)
	w.links = newNetwork(w)
	w.newClients()
	return w
}

func dirOf(node int32) uuid.UUID { return uuid.UUID{1, byte(node)} }

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
	w.failed = &violation{text: fmt.Sprintf(format, args...)}
	w.log("VIOLATION %s", w.failed.text)
}

func (w *world) chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

// upTo draws a duration in [0, d].
func (w *world) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d) + 1)) }

func (w *world) between(lo, hi time.Duration) time.Duration { return lo + w.upTo(hi-lo) }

// after runs f on this thread, d from now.
func (w *world) after(d time.Duration, f func()) { w.clk.AfterFunc(d, f) }

// run drives the cluster for d, or until stop says so. It reports whether stop did.
func (w *world) run(d time.Duration, stop func() bool) bool {
	end := w.clk.Now().Add(d)
	look := w.clk.Now()
	for w.failed == nil {
		w.drain()
		next, ok := w.clk.NextDeadline()
		if !ok || next.After(end) {
			w.clk.RunUntil(end)
			w.drain()
			return stop != nil && w.failed == nil && stop()
		}
		if next.After(w.clk.Now()) {
			w.burst = 0
			if !look.After(w.clk.Now()) {
				look = w.clk.Now().Add(watchEvery)
				w.model.watch()
				w.throttles.look()
				if w.storm != nil {
					w.storm.look()
				}
				if stop != nil && stop() {
					return true
				}
			}
		}
		w.clk.RunNext()
	}
	return false
}

// stopAll ends every task, at the end of a run.
func (w *world) stopAll() {
	for _, n := range w.nodes {
		if n.proc != nil {
			n.proc.dead = true
			w.kill(n.proc)
		}
	}
	for _, c := range w.everyone {
		c.task.killed = true
		w.ended = append(w.ended, c.task)
	}
	w.current = nil
	w.unwindEnded()
	for _, co := range w.spare {
		co.stop()
	}
}

// logHandler writes what a process logs into the trace, and tells the simulator what it wants to know of it.
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
	w := h.p.node.w
	at := w.clk.Now().Sub(epoch)
	w.trace.mix(uint64(at), uint64(h.p.node.id))
	w.trace.mixString(r.Message)
	if w.trace.sink != nil {
		var b strings.Builder
		fmt.Fprintf(&b, "node %d %s %s", h.p.node.id, r.Level, r.Message)
		put := func(a slog.Attr) bool {
			fmt.Fprintf(&b, " %s=%s", a.Key, a.Value.String())
			return true
		}
		for _, a := range h.attrs {
			put(a)
		}
		r.Attrs(put)
		w.trace.print(at, b.String())
	}
	h.p.heard(h, &r)
	return nil
}

// attr calls f with an attribute of a record or of its logger.
func (h *logHandler) attr(r *slog.Record, key string, f func(slog.Value)) {
	look := func(a slog.Attr) bool {
		if a.Key == key {
			f(a.Value)
		}
		return a.Key != key
	}
	for _, a := range h.attrs {
		look(a)
	}
	r.Attrs(look)
}

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{p: h.p, attrs: append(append([]slog.Attr(nil), h.attrs...), attrs...)}
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(string) slog.Handler { return h }
