// Package sim runs the simulator of internal/sim over its first seeds; chronik sim, make sim and make soak run many more.
package sim

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/chronik-go/chronik/internal/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// defaultSeeds is how many seeds a plain go test runs.
const defaultSeeds = 20

// seeds returns which seeds to run: CHRONIK_SIM_SEEDS is a number or a range such as 100-400.
func seeds(t *testing.T) (from, count uint64) {
	number := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("CHRONIK_SIM_SEEDS: not a seed: %q", s)
		}
		return n
	}
	s := os.Getenv("CHRONIK_SIM_SEEDS")
	if s == "" {
		return 1, defaultSeeds
	}
	if a, b, ok := strings.Cut(s, "-"); ok {
		return number(a), number(b) - number(a) + 1
	}
	return 1, number(s)
}

// TestSimulation runs seeded clusters under faults and holds what clients were told against what the replicas hold.
func TestSimulation(t *testing.T) {
	from, count := seeds(t)
	var out strings.Builder
	total := sim.Campaign{From: from, Seeds: count, Failures: 5, Out: &out}.Run()
	if !total.Sound() {
		t.Errorf("%s", out.String())
	}
	t.Logf("%s", total)
}

// TestSameSeedSameRun repeats runs and compares everything that happened in them.
func TestSameSeedSameRun(t *testing.T) {
	hashes := map[uint64]uint64{}
	for _, seed := range []uint64{3, 11, 1_000_003} {
		a := sim.Run(sim.Options{Seed: seed})
		b := sim.Run(sim.Options{Seed: seed, Trace: func(string) {}})
		if a.Hash != b.Hash {
			t.Errorf("seed %d: trace hashes %x and %x: %s", seed, a.Hash, b.Hash, firstDifference(seed))
		}
		if other, ok := hashes[a.Hash]; ok {
			t.Errorf("seeds %d and %d: the same trace", seed, other)
		}
		hashes[a.Hash] = seed
	}
}

// firstDifference runs a seed twice more and returns where the traces part.
func firstDifference(seed uint64) string {
	var runs [2][]string
	for i := range runs {
		sim.Run(sim.Options{Seed: seed, Trace: func(s string) { runs[i] = append(runs[i], s) }})
	}
	for i := range min(len(runs[0]), len(runs[1])) {
		if runs[0][i] != runs[1][i] {
			return "line " + strconv.Itoa(i) + "\n" + runs[0][i] + "\n" + runs[1][i]
		}
	}
	return "one trace is the beginning of the other, or they do not differ this time"
}
