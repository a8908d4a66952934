package sim

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// enoughSeeds is from how many seeds on everything that can happen must have happened.
const enoughSeeds = 100

// Campaign is many seeds.
type Campaign struct {
	From  uint64        // the first
	Seeds uint64        // how many
	For   time.Duration // at most so long, by the machine's clock; 0: as long as it takes
	// Failures is after how many violations to give up; 0 is one.
	Failures int
	// Whole: what fails is shown with all its faults, not with as few as it takes.
	Whole bool
	// Out is told of every violation as it is found, with what it takes to see it again, and now and then how far things are.
	Out io.Writer
	// Stop ends the campaign after the seed that runs.
	Stop <-chan struct{}
}

// Total is what a campaign leaves.
type Total struct {
	From, To     uint64 // seeds run; To is the last one
	Runs         int
	Hours        float64 // of cluster time
	Wall         time.Duration
	Operations   int
	Acknowledged int
	Counts       Counts
	Violations   int
	// Missing is what never happened though it should have.
	Missing []string
}

// Sound says whether the campaign has shown something, and no violation.
func (t Total) Sound() bool { return t.Runs > 0 && t.Violations == 0 && len(t.Missing) == 0 }

// Run runs the seeds one after the other.
func (c Campaign) Run() Total {
	t := Total{From: c.From, Counts: Counts{}}
	began := time.Now()
	told := began
	for i := range c.Seeds {
		if c.over(began) {
			break
		}
		r := Run(Options{Seed: c.From + i})
		t.add(r)
		if r.Violation != "" {
			c.report(r)
			if t.Violations++; t.Violations >= max(1, c.Failures) {
				break
			}
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			fmt.Fprintf(c.Out, "… seed %d, %.1f cluster-hours, %d operations\n", t.To, t.Hours, t.Operations)
		}
	}
	t.Wall = time.Since(began)
	if t.Runs >= enoughSeeds {
		t.Missing = t.Counts.Missing()
	}
	return t
}

func (c Campaign) over(began time.Time) bool {
	select {
	case <-c.Stop:
		return true
	default:
	}
	return c.For > 0 && time.Since(began) >= c.For
}

func (t *Total) add(r Result) {
	t.Runs++
	t.To = r.Seed
	t.Hours += r.Time.Hours()
	t.Operations += r.Operations
	t.Acknowledged += r.Acknowledged
	t.Counts.Add(r.Counts)
}

// report says what a seed failed of: with as few of its faults as it takes, and the end of what happened then.
func (c Campaign) report(r Result) {
	fmt.Fprintf(c.Out, "seed %d: %s\n", r.Seed, r.Violation)
	if again := Run(Options{Seed: r.Seed}); again.Hash != r.Hash {
		fmt.Fprintf(c.Out, "--- it did not repeat: trace hash %016x, then %016x: something in it is not drawn from the seed\n", r.Hash, again.Hash)
	}
	keep, runs := allOf(r), 0
	if !r.Hollow && !c.Whole {
		keep, runs = Shrink(r.Seed, len(r.Plan), shrinkRuns, shrinkTime)
	}
	var last tail
	short := Run(Options{Seed: r.Seed, Only: keep, Trace: last.add})
	fmt.Fprintf(c.Out, "--- the end of its trace, with %d of its %d faults ---\n%s\n", len(keep), len(r.Plan), strings.Join(last.all(), "\n"))
	if short.Violation != r.Violation {
		fmt.Fprintf(c.Out, "--- it fails like this: %s\n", short.Violation)
	}
	fmt.Fprintf(c.Out, "--- the fewest faults found with which it still fails (%d runs):\n", runs)
	for _, i := range keep {
		fmt.Fprintf(c.Out, "%6d %s\n", i, r.Plan[i])
	}
	fmt.Fprintf(c.Out, "--- to see it again: %s\n", Replay(r.Seed, keep, len(r.Plan)))
}

// String is the summary of a campaign.
func (t Total) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seeds %d to %d: %d runs, %.2f cluster-hours in %v (%.0f times real time)\n", t.From, t.To, t.Runs, t.Hours,
		t.Wall.Round(time.Millisecond), t.Hours*3600/max(t.Wall.Seconds(), 1e-9))
	fmt.Fprintf(&b, "%d operations, %d batches acknowledged\n", t.Operations, t.Acknowledged)
	faults, rest := Counts{}, Counts{}
	for k, v := range t.Counts {
		if strings.HasPrefix(k, FaultPrefix) {
			faults[strings.TrimPrefix(k, FaultPrefix)] = v
		} else {
			rest[k] = v
		}
	}
	fmt.Fprintf(&b, "%d faults:\n%swhat else happened:\n%s", t.Counts.Faults(), faults, rest)
	for _, m := range t.Missing {
		fmt.Fprintf(&b, "never happened, though it should have: %s\n", m)
	}
	fmt.Fprintf(&b, "violations: %d\n", t.Violations)
	return b.String()
}
