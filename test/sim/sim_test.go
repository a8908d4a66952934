// Package sim runs the simulator of internal/sim over its first seeds; chronik sim, make sim and make soak run many more.
package sim

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/chronik-go/chronik/internal/sim"
)

// hashesOf names, for a child process, the seeds whose trace hashes it shall print.
const hashesOf = "CHRONIK_SIM_HASHES_OF"

func TestMain(m *testing.M) {
	if seeds := os.Getenv(hashesOf); seeds != "" {
		for s := range strings.SplitSeq(seeds, ",") {
			seed, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Printf("%x\n", sim.Run(sim.Options{Seed: seed}).Hash)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// defaultSeeds is how many seeds a plain go test runs.
const defaultSeeds = 12

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

// TestSameSeedSameRun repeats runs: in this process, watched and not, and in another one that schedules and collects garbage
// differently and hashes its maps by other seeds. Everything that happens must be the same; two seeds must differ.
func TestSameSeedSameRun(t *testing.T) {
	list := []uint64{3, 11, 14, 1_000_003}
	var names []string
	hashes := map[uint64]uint64{}
	for _, seed := range list {
		names = append(names, strconv.FormatUint(seed, 10))
		a := sim.Run(sim.Options{Seed: seed})
		b := sim.Run(sim.Options{Seed: seed, Trace: func(string) {}})
		if a.Hash != b.Hash {
			t.Errorf("seed %d: trace hashes %x and %x: %s", seed, a.Hash, b.Hash, firstDifference(seed))
		}
		for other, hash := range hashes {
			if hash == a.Hash {
				t.Errorf("seeds %d and %d: the same trace", seed, other)
			}
		}
		hashes[seed] = a.Hash
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), hashesOf+"="+strings.Join(names, ","), "GOMAXPROCS=1", "GOGC=20")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, line := range strings.Fields(string(out)) {
		if want := fmt.Sprintf("%x", hashes[list[i]]); line != want {
			t.Errorf("seed %d: trace hash %s here and %s in another process", list[i], want, line)
		}
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
