package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/chronik-go/chronik/internal/sim"
)

type simOptions struct {
	from, seeds uint64
	minutes     float64
	seed        uint64
	trace       bool
	faults      string
	bench       bool
	power       bool
	cuts        int
	jobs        int
	worker      bool
	seedsSaid   bool
}

func simCommand() *cobra.Command {
	o := simOptions{}
	cmd := &cobra.Command{
		Use:   "sim",
		Short: "Check this build: whole clusters under random faults, in one process, each repeatable from its seed",
		Long: `sim runs clusters of this build's own code on simulated machines: disks that lose power, networks that lose messages,
clocks that jump. Each seed is one cluster's life; what clients were promised is then held against what the replicas hold.

It ends with exit code 0 only if no promise was broken and the faults it is there for have come about.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.worker {
				signal.Ignore(os.Interrupt, syscall.SIGTERM) // they reach the whole group: who started it ends it
				return sim.Work(cmd.InOrStdin(), cmd.OutOrStdout())
			}
			if o.cuts != 0 && !o.power {
				return errors.New("--cuts is for --power")
			}
			if cmd.Flags().Changed("seed") {
				return simOne(o, cmd.OutOrStdout())
			}
			if o.bench {
				return simBench(cmd.OutOrStdout())
			}
			if o.trace || o.faults != "" {
				return errors.New("--trace and --faults are for one run: name it with --seed")
			}
			o.seedsSaid = cmd.Flags().Changed("seeds")
			return simMany(o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&o.from, "from", 1, "the first seed")
	f.Uint64Var(&o.seeds, "seeds", 1000, "how many seeds")
	f.Float64Var(&o.minutes, "minutes", 0, "stop after so many minutes, if the seeds or the cuts have not ended before; 0: no limit")
	f.Uint64Var(&o.seed, "seed", 0, "run this one seed")
	f.StringVar(&o.faults, "faults", "", "with --seed: only these of its faults, by number, such as 3,17 or none")
	f.BoolVar(&o.bench, "bench", false, "run the benchmark: how many times faster than in real time three nodes with eight partitions live")
	f.BoolVar(&o.power, "power", false, "let the power of whole clusters fail again and again, under load, in recovery, in elections, within steps; nothing acknowledged may be lost")
	f.IntVar(&o.cuts, "cuts", 0, "with --power: stop once it has failed so often, each time with something acknowledged since the last; 0: run all the seeds")
	f.IntVar(&o.jobs, "jobs", runtime.GOMAXPROCS(0), "how many seeds to run at a time, each in a process of its own")
	f.BoolVar(&o.worker, "worker", false, "run what standard input says")
	_ = f.MarkHidden("worker")
	f.BoolVar(&o.trace, "trace", false, "with --seed: print everything that happens")
	return cmd
}

func simOne(o simOptions, out io.Writer) error {
	opt := sim.Options{Seed: o.seed, Power: o.power}
	if o.faults != "" {
		only, err := sim.ParseFaults(o.faults)
		if err != nil {
			return fmt.Errorf("--faults %w", err)
		}
		opt.Only = only
	}
	if o.trace {
		opt.Trace = func(line string) { fmt.Fprintln(out, line) }
	}
	r := sim.Run(opt)
	fmt.Fprintf(out, "seed %d: trace hash %016x, %v of cluster time, %d operations, %d batches acknowledged\n%s", r.Seed, r.Hash,
		r.Time.Round(time.Millisecond), r.Operations, r.Acknowledged, r.Counts)
	if r.Violation != "" {
		return fmt.Errorf("seed %d: %s", r.Seed, r.Violation)
	}
	return nil
}

func simBench(out io.Writer) error {
	const runs = 20
	began, simulated, operations := time.Now(), time.Duration(0), 0
	for seed := range uint64(runs) {
		r := sim.Run(sim.Options{Seed: seed + 1, Bench: true})
		if r.Violation != "" {
			return fmt.Errorf("seed %d: %s", r.Seed, r.Violation)
		}
		simulated += r.Time
		operations += r.Operations
	}
	fmt.Fprintf(out, "%d runs: %v of cluster time in %v: %.0f times real time, %.0f requests a second of cluster time\n", runs, simulated.Round(time.Second),
		time.Since(began).Round(time.Millisecond), simulated.Seconds()/time.Since(began).Seconds(), float64(operations)/simulated.Seconds())
	return nil
}

func simMany(o simOptions, out io.Writer) error {
	if o.seeds == 0 || o.minutes < 0 || o.minutes > math.MaxInt32 {
		return errors.New("--seeds is at least 1, --minutes not negative")
	}
	if o.cuts < 0 || o.jobs < 1 {
		return errors.New("--cuts is not negative, --jobs at least 1")
	}
	if o.cuts > 0 && !o.seedsSaid {
		o.seeds = math.MaxUint64 - o.from // the cuts say when to stop
	}
	exe, err := os.Executable()
	if err != nil && o.jobs > 1 {
		return fmt.Errorf("finding the program to run as a worker: %w; --jobs 1 does without", err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	t := sim.Campaign{
		From: o.from, Seeds: o.seeds, For: time.Duration(o.minutes * float64(time.Minute)), Out: out, Stop: ctx.Done(), Power: o.power, Cuts: o.cuts,
		Jobs: o.jobs, Worker: func() *exec.Cmd {
			cmd := exec.Command(exe, "sim", "--worker")
			cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
			return cmd
		},
	}.Run()
	fmt.Fprint(out, t)
	switch {
	case t.Violations > 0:
		return fmt.Errorf("%d of %d runs broke a promise", t.Violations, t.Runs)
	case t.Runs == 0:
		return errors.New("stopped before a run had ended")
	case t.Cuts() < o.cuts && !t.Late:
		return fmt.Errorf("stopped after %d of %d power cuts of the whole cluster", t.Cuts(), o.cuts)
	case len(t.Missing) > 0:
		return errors.New("no promise was broken, but the runs did not reach what they are there for (see above)")
	}
	return nil
}
