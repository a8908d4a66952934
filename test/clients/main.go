// Command clients runs the client matrix: real clients of many languages, unmodified, against a cluster of three nodes whose
// leaders are killed in the middle. README.md says what a client's program is given and what it prints.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/chronik-go/chronik/test/harness"
)

type options struct {
	root, dir, cache, docs, only, peer string
	lines, jobs                        int
	install                            time.Duration
	ci, prepare                        bool
	required                           []string // commands that CI says are there
}

func main() {
	var o options
	flag.StringVar(&o.root, "root", "test/clients", "where the clients' folders are")
	flag.StringVar(&o.dir, "dir", "", "for the nodes' data and the clients' logs; by default a temporary folder, kept after a failure")
	flag.StringVar(&o.cache, "cache", "", "for what the clients install; by default below the user's cache folder")
	flag.StringVar(&o.docs, "docs", "", "write the table into this file, between its markers")
	flag.StringVar(&o.only, "only", "", "these folders, separated by commas; by default all")
	flag.StringVar(&o.peer, "peer", "", "brokers of another cluster, such as Apache Kafka's, to compare with: no node is killed then, no disk looked at")
	flag.IntVar(&o.lines, "lines", 100_000, "records that each client checks one by one")
	flag.IntVar(&o.jobs, "jobs", 2*runtime.NumCPU(), "clients at once: much of their time they wait for groups")
	flag.DurationVar(&o.install, "install-timeout", 10*time.Minute, "bound of one client's installation")
	flag.BoolVar(&o.prepare, "prepare", false, "install the clients and go no further: what fails then is told by the run")
	flag.Parse()
	o.ci = os.Getenv("CI") == "true"
	o.required = strings.Fields(os.Getenv("CHRONIK_CI_TOOLCHAINS"))
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, o); err != nil {
		fmt.Fprintf(os.Stderr, "clients: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.lines < 1000 || o.jobs < 1 {
		return errors.New("-lines is from 1000, -jobs from 1")
	}
	if o.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("no folder to install clients in (set -cache): %w", err)
		}
		o.cache = filepath.Join(dir, "chronik-clients")
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "chronik-clients"); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				fmt.Fprintf(os.Stderr, "clients: data and logs are kept in %s\n", o.dir)
				return
			}
			os.RemoveAll(o.dir)
		}()
	}
	programs, err := discover(o.root, o.only)
	if err != nil {
		return err
	}
	if o.prepare {
		installAll(ctx, o, programs)
		return ctx.Err()
	}
	bin, err := harness.Build(ctx, o.dir)
	if err != nil {
		return err
	}
	rows, err := matrix(ctx, o, bin, programs)
	if err != nil {
		return err
	}
	t := newTable(rows, o.lines)
	fmt.Print(t.text())
	if o.docs != "" {
		if err := t.writeInto(o.docs); err != nil {
			return err
		}
	}
	if t.failed > 0 {
		return fmt.Errorf("%d of %d clients failed", t.failed, len(rows))
	}
	return nil
}

// matrix installs all programs, then runs them against one cluster.
func matrix(ctx context.Context, o options, bin string, programs []*program) ([]row, error) {
	installAll(ctx, o, programs)
	c, err := startCluster(ctx, bin, filepath.Join(o.dir, "cluster"), o.peer)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	began := time.Now()
	inSlots(o.jobs, programs, func(p *program) {
		if p.outcome == nil {
			p.run(c.ctx, o, c)
			fmt.Printf("%s: %v\n", p.name, p.took.Round(time.Second))
		}
	})
	fmt.Printf("ran in %v; %d nodes killed, the longest was back after %v\n", time.Since(began).Round(time.Second), c.kills, c.longest.Round(time.Millisecond))
	if err := c.broken(); err != nil {
		return nil, err
	}
	var rows []row
	for _, p := range programs {
		judged := p.rows(ctx, o.ci, c)
		if o.peer == "" && p.outcome.ran() && slices.ContainsFunc(judged, row.failed) {
			judged = p.secondRun(o, c, judged)
		}
		rows = append(rows, judged...)
	}
	return rows, ctx.Err()
}

func installAll(ctx context.Context, o options, programs []*program) {
	began := time.Now()
	inSlots(o.jobs, programs, func(p *program) {
		if p.outcome = missing(p.Toolchain, o.required); p.outcome == nil {
			p.install(ctx, o)
		}
	})
	fmt.Printf("installed in %v\n", time.Since(began).Round(time.Second))
}

// secondRun gives a program that failed one more run, alone. Side by side, each program's kills are the others' as well: many a
// client gives up, or reorders what it repeats, when the third node in ten seconds dies under it. What failed is printed, and the
// table says that it took two runs; a fault of the server's that shows in both fails the matrix.
func (p *program) secondRun(o options, c *cluster, first []row) []row {
	for _, r := range first {
		for _, f := range r.failures {
			fmt.Printf("--- %s, which runs again, alone: %s\n", r.client, f)
		}
	}
	p.round, p.outcome = "-2", nil
	p.run(c.ctx, o, c)
	fmt.Printf("%s, again: %v\n", p.name, p.took.Round(time.Second))
	second := p.rows(c.ctx, o.ci, c)
	for i := range second {
		if first[i].failed() && !second[i].failed() {
			second[i].notes = append(second[i].notes, "failed among the others' kills, passed alone")
		}
	}
	return second
}

// inSlots calls do for every program, side by side as far as their weights fit into the slots. Those that may take long begin.
func inSlots(slots int, programs []*program, do func(*program)) {
	var mu sync.Mutex
	free := sync.NewCond(&mu)
	var wg sync.WaitGroup
	left := slots
	for _, p := range byTime(programs) {
		w := min(max(p.Weight, 1), slots)
		mu.Lock()
		for left < w {
			free.Wait()
		}
		left -= w
		mu.Unlock()
		wg.Go(func() {
			do(p)
			mu.Lock()
			left += w
			mu.Unlock()
			free.Broadcast()
		})
	}
	wg.Wait()
}
