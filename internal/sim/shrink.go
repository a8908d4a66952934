package sim

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// How much is spent on shrinking one failure.
const (
	shrinkRuns = 200
	shrinkTime = time.Minute
)

func allOf(r Result) []int {
	all := make([]int, len(r.Plan))
	for i := range all {
		all[i] = i
	}
	return all
}

// Shrink looks for as few of a run's faults as possible with which it still fails, by leaving out ever smaller parts of them
// (delta debugging: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002). What happens in a run hangs
// on chance that the faults left out would have used as well, so that a rare failure may hide; any violation counts as the same.
// It gives up after so many runs, or so much of the machine's time, with what it has.
func Shrink(o Options, planned, runs int, patience time.Duration) (keep []int, used int) {
	began := time.Now()
	return shrink(planned, runs, func(only []int) bool {
		if time.Since(began) > patience {
			return false
		}
		o.Only = only
		r := Run(o)
		return r.Violation != "" && !r.Hollow
	})
}

func shrink(planned, runs int, failing func(only []int) bool) (keep []int, used int) {
	for i := range planned {
		keep = append(keep, i)
	}
	fails := func(only []int) bool {
		if used >= runs {
			return false
		}
		used++
		return failing(only)
	}
	if fails([]int{}) {
		return []int{}, used
	}
	for parts := 2; len(keep) > 1; {
		size := (len(keep) + parts - 1) / parts
		smaller := false
		for at := 0; at < len(keep); at += size {
			rest := slices.Delete(slices.Clone(keep), at, min(at+size, len(keep)))
			if fails(rest) {
				keep, smaller = rest, true
				break
			}
		}
		switch {
		case smaller:
			parts = max(parts-1, 2)
		case size == 1:
			return keep, used
		default:
			parts = min(2*parts, len(keep))
		}
	}
	return keep, used
}

// Replay is the command that repeats a run with some of its faults, and shows all that happens.
func Replay(o Options, keep []int, planned int) string {
	command := "chronik sim"
	if o.Power {
		command += " --power"
	}
	command += fmt.Sprintf(" --seed %d", o.Seed)
	if len(keep) < planned {
		command += " --faults " + FormatFaults(keep)
	}
	return command + " --trace"
}

// FormatFaults writes fault numbers as ParseFaults reads them.
func FormatFaults(keep []int) string {
	if len(keep) == 0 {
		return "none"
	}
	names := make([]string, len(keep))
	for i, k := range keep {
		names[i] = strconv.Itoa(k)
	}
	return strings.Join(names, ",")
}

// ParseFaults reads "3,17,40", or "none".
func ParseFaults(s string) ([]int, error) {
	keep := []int{}
	if s == "none" {
		return keep, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%q: a list of numbers of faults, such as 3,17,40, or none", s)
		}
		keep = append(keep, n)
	}
	return keep, nil
}
