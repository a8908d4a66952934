// Command run plants each mutant of test/mutants in a copy of the module and shows which test notices it, and how fast. Its
// exit code is 0 only if every one is caught.
//
//	go run ./test/mutants/run [-only id,id] [-sample] [-workers n] [-sim seeds]
//
// First the tests that must catch them are run without any: they must pass. Then, for each mutant, they are run with it; if
// none fails, all tests of the packages it changes and of those it names. A build that fails or a test run that is
// cut off by the clock is an error, no catch. With -sim the simulator has a look as well, at each mutant of what it runs: it is
// told of the first seed that breaks a promise. That counts for nothing, but shows what the simulator is worth.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/chronik-go/chronik/test/mutants"
)

func main() {
	only := flag.String("only", "", "ids of the mutants to plant, or beginnings of them, separated by commas")
	sample := flag.Bool("sample", false, "only those marked as a sample")
	workers := flag.Int("workers", 1, "mutants at a time, each in its own copy")
	timeout := flag.Duration("timeout", 6*time.Minute, "for one run of go test; one that takes longer counts as an error")
	baseline := flag.Bool("baseline", true, "first see the tests pass without a mutant")
	fallback := flag.Bool("fallback", true, "where none of these fails, run all tests of the packages concerned")
	sim := flag.Uint64("sim", 0, "seeds to run in the simulator with each mutant, to see which it notices")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := run(ctx, options{only: *only, sample: *sample, workers: max(*workers, 1), timeout: *timeout, baseline: *baseline, fallback: *fallback, sim: *sim})
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

type options struct {
	only     string
	sample   bool
	workers  int
	timeout  time.Duration
	baseline bool
	fallback bool
	sim      uint64
}

// verdict is what became of a mutant.
type verdict struct {
	m    *mutants.Mutant
	by   string // the test, empty if none
	how  string // "expected", "elsewhere", "SURVIVED", "ERROR"
	took time.Duration
	test time.Duration // the failing test's own time
	seed string        // with -sim: the first seed that notices, or why there is none
	text string
}

func (v *verdict) caught() bool { return v.by != "" }

func run(ctx context.Context, o options) (bool, error) {
	root, err := mutants.Root()
	if err != nil {
		return false, err
	}
	list, err := mutants.Load(root + "/test/mutants")
	if err != nil {
		return false, err
	}
	list = slices.DeleteFunc(list, func(m *mutants.Mutant) bool { return o.sample && !m.Sample || !wanted(m.ID, o.only) })
	if len(list) == 0 {
		return false, fmt.Errorf("no mutant is called %q", o.only)
	}
	began := time.Now()
	var copies []*tree
	for range min(o.workers, len(list)) {
		t, err := copyTree(root, o)
		if err != nil {
			return false, err
		}
		defer t.remove()
		copies = append(copies, t)
	}
	if o.baseline {
		if err := copies[0].passes(ctx, list); err != nil {
			return false, err
		}
		fmt.Printf("the tests pass without a mutant (%s)\n", time.Since(began).Round(time.Second))
	}
	verdicts := plant(ctx, copies, list)
	if err := ctx.Err(); err != nil {
		return false, err
	}
	return table(verdicts, time.Since(began)), nil
}

func wanted(id, only string) bool {
	return only == "" || slices.ContainsFunc(strings.Split(only, ","), func(s string) bool { return s != "" && strings.HasPrefix(id, s) })
}

// plant shares the mutants out among the copies. The verdicts come in the mutants' order.
func plant(ctx context.Context, copies []*tree, list []*mutants.Mutant) []verdict {
	out := make([]verdict, len(list))
	next := make(chan int, len(list))
	for i := range list {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	for _, t := range copies {
		wg.Go(func() {
			for i := range next {
				if ctx.Err() != nil {
					return
				}
				out[i] = t.try(ctx, list[i])
				fmt.Println(out[i].line())
			}
		})
	}
	wg.Wait()
	return out
}

func (v *verdict) line() string {
	s := fmt.Sprintf("%-9s %-34s %6.1fs  %s", v.how, v.m.ID, v.took.Seconds(), v.by)
	if v.caught() {
		s += fmt.Sprintf(" (%.2fs)", v.test.Seconds())
	}
	if v.seed != "" {
		s += "  simulator: " + v.seed
	}
	if v.text != "" {
		s += "\n" + indent(v.text)
	}
	return s
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ")
}

// table prints the verdicts as docs/reliability.md has them, and says whether all are caught.
func table(vs []verdict, took time.Duration) bool {
	head, line := "", ""
	if slices.ContainsFunc(vs, func(v verdict) bool { return v.seed != "" }) {
		head, line = " simulator |", "---|"
	}
	fmt.Printf("\n| mutant | bug | area | caught by | test | with build |%s\n|---|---|---|---|---|---|%s\n", head, line)
	caught := 0
	var bad []string
	for i := range vs {
		v := &vs[i]
		var by string
		if v.caught() {
			caught++
			by = "`" + v.by + "`"
		} else {
			by = v.how
			bad = append(bad, v.m.ID)
		}
		fmt.Printf("| %s | %s | %s | %s | %.1f s | %.0f s |", v.m.ID, v.m.Title, v.m.Area, by, v.test.Seconds(), v.took.Seconds())
		if head != "" {
			fmt.Printf(" %s |", v.seed)
		}
		fmt.Println()
	}
	fmt.Printf("\n%d of %d mutants caught in %s\n", caught, len(vs), took.Round(time.Second))
	if len(bad) > 0 {
		fmt.Println("not caught:", strings.Join(bad, ", "))
	}
	return len(bad) == 0
}
