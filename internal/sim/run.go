package sim

import (
	"crypto/rand"
	"io"
	randv2 "math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/chronik-go/chronik/internal/vfs"
)

// minAcked is how many batches every run must have acknowledged to count.
const minAcked = 50

// memoryOfARun is from how much on garbage is collected as often as that takes.
const memoryOfARun = 384 << 20

// Options say how to run a seed.
type Options struct {
	Seed uint64
	// Trace is given every line of the trace, in order; nil where nobody looks, which is much faster. The run and its hash are
	// the same either way.
	Trace func(line string)

	// Only names the faults of the seed's plan that shall happen, by their numbers; nil: all of them.
	Only []int
	// Bench replaces the settings that the seed draws by those of the benchmark: three nodes with a server's own timing, eight
	// partitions, a steady load, and a fault every few seconds, for a minute.
	Bench bool
	// Power: the power of the whole cluster fails again and again, at moments that the seed draws, and little else goes wrong.
	Power bool
}

// Result is what a run leaves.
type Result struct {
	Seed uint64
	// Hash is that of the trace: everything that happened, in order.
	Hash uint64
	// Time is how long the cluster has lived, in its own time.
	Time time.Duration
	// Counts says what happened how often. What begins with FaultPrefix went wrong on purpose.
	Counts Counts
	// Operations is how many requests clients have made.
	Operations int
	// Acknowledged is how many batches the servers have called committed.
	Acknowledged int
	// Plan names the faults that were planned; Options.Only goes by the place in it.
	Plan []string
	// Violation says what broke a promise; empty if nothing did.
	Violation string
	// Hollow: what the run failed of is that it shows nothing.
	Hollow bool
}

// FaultPrefix begins the names of faults in Counts.
const FaultPrefix = "fault: "

// seededReader stands in for crypto/rand.Reader, which raft draws its election jitter from.
type seededReader struct{ r *randv2.ChaCha8 }

// Read implements io.Reader.
func (s seededReader) Read(b []byte) (int, error) { return s.r.Read(b) }

// one lets a process have one run at a time: rand.Reader is the process's.
var one sync.Mutex

// seedRandom replaces crypto/rand.Reader and returns the function that puts it back.
func seedRandom(seed uint64) func() {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	one.Lock()
	old := rand.Reader
	rand.Reader = io.Reader(seededReader{randv2.NewChaCha8(key)})
	return func() {
		rand.Reader = old
		one.Unlock()
	}
}

// Run runs one seed from beginning to end. While it does, everything in this process that reads crypto/rand gets numbers drawn
// from the seed: no server may run beside it, and a second Run waits for the first.
func Run(o Options) (res Result) {
	defer seedRandom(o.Seed)()
	// What is alive is little, a few megabytes: collecting what is not less often is quicker.
	defer debug.SetGCPercent(debug.SetGCPercent(1000))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(memoryOfARun))
	w := newWorld(o)
	defer func() {
		if p := recover(); p != nil {
			w.fail("panic: %v\n%s", p, debug.Stack())
		}
		w.stopAll()
		res = w.result()
	}()
	w.log("settings %+v", w.set)
	for _, n := range w.nodes {
		n.boot(-1, vfs.LoseUnsynced())
	}
	w.unleash()
	if w.storm != nil {
		if !w.run(time.Duration(len(w.plan)+1)*w.bound(writableWithin), w.storm.over) {
			w.fail("the power has not failed as often as planned, %v", w.describe())
		}
	} else {
		w.run(w.set.chaos, nil)
	}
	if w.failed == nil {
		w.finish()
	}
	w.collect()
	w.counts["messages"] = w.messages
	w.checkWorth()
	return res
}

// checkWorth fails a run that shows nothing.
func (w *world) checkWorth() {
	if w.failed != nil {
		return
	}
	if w.model.acked < minAcked {
		w.fail("only %d batches were acknowledged: such a run shows nothing", w.model.acked)
		w.failed.hollow = true
	}
	if w.failed == nil && len(w.plan) > 0 && !w.partly && w.counts.Faults() == 0 {
		w.fail("no fault came about: such a run shows nothing")
		w.failed.hollow = true
	}
}

func (w *world) result() Result {
	r := Result{
		Seed: w.seed, Hash: w.trace.sum, Time: w.clk.Now().Sub(epoch), Counts: w.counts,
		Operations: w.operations, Acknowledged: w.model.acked,
	}
	for _, e := range w.plan {
		r.Plan = append(r.Plan, e.String())
	}
	if w.failed != nil {
		r.Violation, r.Hollow = w.failed.text, w.failed.hollow
	}
	return r
}
