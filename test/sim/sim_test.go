// Package sim runs the simulator of internal/sim over its first seeds; chronik sim, make sim and make soak run many more.
package sim

import (
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/chronik-go/chronik/internal/leaktest"
	"github.com/chronik-go/chronik/internal/sim"
)

// hashesOf names, for a child process, the seeds whose trace hashes it shall print.
const hashesOf = "CHRONIK_SIM_HASHES_OF"

// asWorker makes a child process a worker of a campaign; "dead" ends it with the first seed it is told.
const asWorker = "CHRONIK_SIM_WORKER"

func TestMain(m *testing.M) {
	switch os.Getenv(asWorker) {
	case "":
	case "dead":
		_, _ = os.Stdin.Read(make([]byte, 1))
		fmt.Fprintln(os.Stderr, "worn out")
		os.Exit(3)
	default:
		if err := sim.Work(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
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
	leaktest.Main(m)
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

// TestSameSeedSameRun repeats runs: in this process, watched and not, and in another one that has one thread, makes do without what
// this machine's processor has beyond the least, and hashes its maps by other seeds. Everything that happens must be the same; two seeds must differ.
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
	cmd.Env = append(os.Environ(), hashesOf+"="+strings.Join(names, ","), "GOMAXPROCS=1", "GODEBUG=cpu.all=off")
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

// worker starts this test's binary as a worker of the given kind.
func worker(t *testing.T, kind string) func() *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return func() *exec.Cmd {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), asWorker+"="+kind)
		return cmd
	}
}

// TestWorkersReportWhatOneProcessDoes runs seeds in several processes: in all that is told there is no difference, whichever ends first.
func TestWorkersReportWhatOneProcessDoes(t *testing.T) {
	var out [2]strings.Builder
	c := sim.Campaign{From: 21, Seeds: 5, Out: &out[0]}
	one := c.Run()
	c.Jobs, c.Worker, c.Out = 3, worker(t, "alive"), &out[1]
	many := c.Run()
	one.Wall, many.Wall = 0, 0
	if !reflect.DeepEqual(one, many) || one.Runs != 5 {
		t.Errorf("one process:\n%s\nthree:\n%s", one, many)
	}
	for i := range out {
		for line := range strings.Lines(out[i].String()) {
			if !strings.HasPrefix(line, "…") { // that is how far things are, on a machine that takes its time
				t.Error(line)
			}
		}
	}
}

// TestWorkerThatDiesIsAViolation sees to it that a run which ends its process does not pass for one in which nothing happened.
func TestWorkerThatDiesIsAViolation(t *testing.T) {
	var out strings.Builder
	total := sim.Campaign{From: 7, Seeds: 3, Whole: true, Jobs: 2, Worker: worker(t, "dead"), Out: &out}.Run()
	if total.Violations != 1 || total.Runs != 1 || total.Sound() {
		t.Errorf("%d runs, %d violations", total.Runs, total.Violations)
	}
	for _, want := range []string{"seed 7: the worker has ended", "exit status 3", "worn out"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in what was told:\n%s", want, out.String())
		}
	}
}

// TestPowerCuts lets the power of whole clusters fail a few hundred times; make powercuts does it as often as asked.
func TestPowerCuts(t *testing.T) {
	var out strings.Builder
	total := sim.Campaign{From: 1, Seeds: 3, Failures: 3, Power: true, Out: &out}.Run()
	if !total.Sound() || total.Cuts() < 300 {
		t.Errorf("%d power cuts of a whole cluster\n%s", total.Cuts(), out.String())
	}
	t.Logf("%s", total)
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
