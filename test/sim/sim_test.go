package sim

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"io"
	randv2 "math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/chronik-go/chronik/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// defaultSeeds is how many seeds a plain go test runs.
	defaultSeeds = 20
	// minAcked is what every run must have acknowledged to count.
	minAcked = 50
)

func sprint(args ...any) string { return fmt.Sprint(args...) }

// seededReader stands in for crypto/rand.Reader, which raft draws its election jitter from.
type seededReader struct{ r *randv2.ChaCha8 }

// Read implements io.Reader.
func (s seededReader) Read(b []byte) (int, error) { return s.r.Read(b) }

// seedRandom replaces crypto/rand.Reader and returns the function that puts it back.
func seedRandom(seed uint64) func() {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	old := rand.Reader
	rand.Reader = io.Reader(seededReader{randv2.NewChaCha8(key)})
	return func() { rand.Reader = old }
}

// outcome is what a run leaves.
type outcome struct {
	seed   uint64
	sum    uint64
	counts counts
	acked  int
	failed string
	tail   string
}

// simulate runs one seed.
func simulate(seed uint64, sink func(string)) (o outcome) {
	defer seedRandom(seed)()
	w := newWorld(seed, sink)
	o.seed = seed
	defer func() {
		if p := recover(); p != nil {
			w.fail("panic: %v\n%s", p, debug.Stack())
		}
		o.sum, o.counts, o.acked, o.tail = w.trace.sum.Sum64(), w.counts, w.model.acked, w.trace.tail()
		if w.failed != nil {
			o.failed = w.failed.text
		}
	}()
	w.log("settings %+v", w.set.describe())
	for _, n := range w.nodes {
		n.boot(-1, vfs.LoseUnsynced())
	}
	w.chaosLater()
	w.run(w.set.chaos, nil)
	if w.failed == nil {
		w.finish()
	}
	w.collect()
	if w.failed == nil && w.model.acked < minAcked {
		w.fail("only %d batches were acknowledged: such a run shows nothing", w.model.acked)
	}
	return o
}

// describe is the settings without what does not print the same twice.
func (s settings) describe() string {
	names := make([]string, len(s.faults))
	for i, f := range s.faults {
		names[i] = f.name
	}
	s.faults = nil
	return fmt.Sprintf("%+v faults %s", s, strings.Join(names, ", "))
}

// seeds returns which seeds to run, from the environment.
func seeds(t *testing.T) (list []uint64, one bool) {
	number := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("not a seed: %q", s)
		}
		return n
	}
	if s := os.Getenv("CHRONIK_SIM_SEED"); s != "" {
		return []uint64{number(s)}, true
	}
	from, to := uint64(1), uint64(defaultSeeds)
	if s := os.Getenv("CHRONIK_SIM_SEEDS"); s != "" {
		if a, b, ok := strings.Cut(s, "-"); ok {
			from, to = number(a), number(b)
		} else {
			to = number(s)
		}
	}
	for s := from; s <= to; s++ {
		list = append(list, s)
	}
	return list, false
}

// TestSimulation runs seeded clusters under faults and holds what clients were told against what the replicas hold.
func TestSimulation(t *testing.T) {
	list, one := seeds(t)
	total, acked, least := counts{}, 0, -1
	for _, seed := range list {
		var sink func(string)
		if one {
			sink = func(s string) { fmt.Println(s) }
		}
		o := simulate(seed, sink)
		if o.failed != "" {
			if one {
				o.tail = "(above)"
			}
			t.Errorf("seed %d: %s\n--- the last of the trace ---\n%s\n--- replay it whole: CHRONIK_SIM_SEED=%d go test ./test/sim -run 'TestSimulation$' -count=1 -v",
				seed, o.failed, o.tail, seed)
		}
		total.add(o.counts)
		acked += o.acked
		if least < 0 || o.acked < least {
			least = o.acked
		}
	}
	t.Logf("%d seeds, %d batches acknowledged, %d in the least run\n%s", len(list), acked, least, total)
	if t.Failed() || len(list) < defaultSeeds {
		return
	}
	for _, f := range faults {
		if total["fault: "+f.name] == 0 {
			t.Errorf("fault %q never fired", f.name)
		}
	}
	for _, name := range mustHappen {
		if total[name] == 0 {
			t.Errorf("%q never happened: the seeds do not reach it", name)
		}
	}
}

// mustHappen is what the seeds together must bring about, beside every fault.
var mustHappen = []string{
	"power cut within a step", "power cut after a kill", "stopped by a failed sync", "sectors lost", "names lost",
	"messages lost", "messages duplicated", "losses never reported", "answers lost", "attempts again", "timeouts",
	"log start moved", "log files recycled", "entries read from files", "groups carried forward",
	"staged by delta", "staged whole", "snapshot installed", "consumers jumped to the log start", "elections",
}

// String lists counts by name.
func (c counts) String() string {
	names := make([]string, 0, len(c))
	for k := range c {
		names = append(names, k)
	}
	slices.SortFunc(names, cmp.Compare[string])
	var b strings.Builder
	for _, k := range names {
		fmt.Fprintf(&b, "  %-40s %d\n", k, c[k])
	}
	return b.String()
}

// TestSameSeedSameRun repeats runs and compares everything that happened in them.
func TestSameSeedSameRun(t *testing.T) {
	sums := map[uint64]uint64{}
	for _, seed := range []uint64{3, 11, 1_000_003} {
		a, b := simulate(seed, nil), simulate(seed, nil)
		if a.sum != b.sum {
			t.Errorf("seed %d: trace hashes %x and %x\n%s", seed, a.sum, b.sum, firstDifference(seed))
		}
		if other, ok := sums[a.sum]; ok {
			t.Errorf("seeds %d and %d: the same trace", seed, other)
		}
		sums[a.sum] = seed
	}
}

// firstDifference runs a seed twice more and returns where the traces part.
func firstDifference(seed uint64) string {
	var runs [2][]string
	for i := range runs {
		simulate(seed, func(s string) { runs[i] = append(runs[i], s) })
	}
	for i := range min(len(runs[0]), len(runs[1])) {
		if runs[0][i] != runs[1][i] {
			return fmt.Sprintf("line %d\n%s\n%s", i, runs[0][i], runs[1][i])
		}
	}
	return "one trace is the beginning of the other, or they do not differ this time"
}
