package sim

import (
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// enoughSeeds is from how many seeds on everything that can happen must have happened, enoughStorms the same where Campaign.Power is set.
const (
	enoughSeeds  = 100
	enoughStorms = 20
)

// Campaign is many seeds.
type Campaign struct {
	From  uint64        // the first
	Seeds uint64        // how many
	For   time.Duration // at most so long, by the machine's clock; 0: as long as it takes
	// Power: clusters that lose power as a whole, again and again (Options.Power), until it has happened Cuts times; 0: as many as the
	// seeds bring about.
	Power bool
	Cuts  int
	// Failures is after how many violations to give up; 0 is one.
	Failures int
	// Whole: what fails is shown with all its faults, not with as few as it takes.
	Whole bool
	// Jobs is how many seeds run at a time, each in a process that Worker starts; 0 or 1: one after the other, in this process. What
	// is reported is the same, and in the same order.
	Jobs   int
	Worker func() *exec.Cmd
	// Out is told of every violation as it is found, with what it takes to see it again, and now and then how far things are.
	Out io.Writer
	// Stop ends the campaign after the seeds that run.
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
	// Late: Campaign.For ended it, before the seeds or the cuts had.
	Late bool
	// Missing is what never happened though it should have.
	Missing []string
}

// Sound says whether the campaign has shown something, and no violation.
func (t Total) Sound() bool { return t.Runs > 0 && t.Violations == 0 && len(t.Missing) == 0 }

// options are those of the campaign's i-th run.
func (c Campaign) options(i uint64) Options { return Options{Seed: c.From + i, Power: c.Power} }

// Run runs the seeds, and hears of their results in order.
func (c Campaign) Run() Total {
	t := Total{From: c.From, Counts: Counts{}}
	began := time.Now()
	told := began
	hear := func(r Result) (more bool) {
		t.add(r)
		if r.Violation != "" {
			c.report(r)
			if t.Violations++; t.Violations >= max(1, c.Failures) {
				return false
			}
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			fmt.Fprintf(c.Out, "… seed %d, %.1f cluster-hours, %d operations", t.To, t.Hours, t.Operations)
			if c.Power {
				fmt.Fprintf(c.Out, ", %d power cuts of the whole cluster", t.Counts[cutsOfAll])
			}
			fmt.Fprintln(c.Out)
		}
		return c.Cuts == 0 || t.Counts[cutsOfAll] < c.Cuts
	}
	if c.Jobs > 1 {
		c.share(began, hear)
	} else {
		for i := uint64(0); i < c.Seeds && !c.over(began) && hear(Run(c.options(i))); i++ {
		}
	}
	t.Wall = time.Since(began)
	t.Late = c.For > 0 && t.Wall >= c.For
	switch {
	case t.Violations > 0:
	case c.Power && t.Runs >= enoughStorms:
		t.Missing = t.Counts.missing(powerFaults, mustHappenInStorms)
	case !c.Power && t.Runs >= enoughSeeds:
		t.Missing = t.Counts.missing(slices.Concat(faults, changes), mustHappen)
	}
	return t
}

// Cuts returns how often the power of a whole cluster has failed, with something acknowledged since the time before.
func (t Total) Cuts() int { return t.Counts[cutsOfAll] }

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
	o := Options{Seed: r.Seed, Power: c.Power}
	if again := Run(o); again.Hash != r.Hash {
		fmt.Fprintf(c.Out, "--- it did not repeat: trace hash %016x, then %016x: something in it is not drawn from the seed\n", r.Hash, again.Hash)
	}
	keep, runs := allOf(r), 0
	if !r.Hollow && !c.Whole {
		keep, runs = Shrink(o, len(r.Plan), shrinkRuns, shrinkTime)
	}
	var last tail
	part := o
	part.Only, part.Trace = keep, last.add
	short := Run(part)
	fmt.Fprintf(c.Out, "--- the end of its trace, with %d of its %d faults ---\n%s\n", len(keep), len(r.Plan), strings.Join(last.all(), "\n"))
	if short.Violation != r.Violation {
		fmt.Fprintf(c.Out, "--- it fails like this: %s\n", short.Violation)
	}
	fmt.Fprintf(c.Out, "--- the fewest faults found with which it still fails (%d runs):\n", runs)
	for _, i := range keep {
		fmt.Fprintf(c.Out, "%6d %s\n", i, r.Plan[i])
	}
	fmt.Fprintf(c.Out, "--- to see it again: %s\n", Replay(o, keep, len(r.Plan)))
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
