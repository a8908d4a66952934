// Command bench measures Chronik, or any cluster that speaks Kafka's protocol, with one franz-go client.
//
//	go run ./bench produce latency consume failover topics
//	go run ./bench -brokers 127.0.0.1:9091,127.0.0.1:9092,127.0.0.1:9093 -pids 11,12,13 produce
//
// Without -brokers it builds and starts three nodes on loopback with their data below -dir, and ends them afterwards. Every
// line of output names the workload with its parameters and the figures; nothing is printed that was not measured.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/chronik-go/chronik/test/harness"
)

type bench struct {
	brokers     []string
	pids        []int
	cluster     *harness.Cluster // nil for a foreign cluster
	duration    time.Duration
	size        int
	partitions  int
	replication int
	rate        int
	linger      time.Duration
	batchBytes  int
	codec       string
	groups      int // of members
	perGroup    int // members
	heartbeat   time.Duration
	committers  int
	rounds      int
	seq         int
}

var workloads = []struct {
	name, what string
	run        func(*bench, context.Context) error
}{
	{"start", "start on empty disks: to ready, to the first acknowledgement", (*bench).start},
	{"produce", "full speed for -duration, acks=all", (*bench).produce},
	{"latency", "-rate records a second, each acknowledged before it counts", (*bench).latency},
	{"e2e", "-rate records a second, from produce to consume", (*bench).endToEnd},
	{"consume", "a topic of one -duration of full speed, read from its beginning", (*bench).consume},
	{"failover", "kill -9 of a leader: the longest gap between acknowledgements", (*bench).failover},
	{"members", "-groups groups of -members members: what their heartbeats and they themselves cost", (*bench).members},
	{"rebalance", "a group of -members gets one more: until everybody has an assignment", (*bench).rebalance},
	{"rebalance-848", "the same of a consumer group (KIP-848)", (*bench).rebalanceConsumers},
	{"echo", "members' rate and sizes against a bare Go server: the floor", (*bench).echo},
	{"commits", "-committers groups commit, one commit under way each, for -duration", (*bench).commits},
	{"coordinator", "kill -9 of a group's coordinator: until the next commit is taken", (*bench).coordinatorFailover},
	{"topics", "one topic of -partitions partitions: creation, then idle CPU", (*bench).topics},
}

func main() {
	if os.Getenv(echoEnv) != "" {
		fmt.Fprintln(os.Stderr, "bench:", serveEcho())
		os.Exit(1)
	}
	b := &bench{}
	brokers := flag.String("brokers", "", "bootstrap servers of a running cluster; empty: start three nodes")
	pids := flag.String("pids", "", "its process ids, for CPU and memory")
	dir := flag.String("dir", "", "where the nodes' data goes (default: a temporary directory)")
	nodes := flag.Int("nodes", 3, "nodes to start")
	serverFlags := flag.String("server-flags", "", "flags for every server, separated by blanks")
	flag.DurationVar(&b.duration, "duration", 10*time.Second, "length of a run")
	flag.IntVar(&b.size, "size", 1024, "bytes of a record's value")
	flag.IntVar(&b.partitions, "partitions", 6, "partitions of the topic")
	flag.IntVar(&b.replication, "replication", 3, "replication factor")
	flag.IntVar(&b.rate, "rate", 2000, "records a second for latency and e2e")
	flag.DurationVar(&b.linger, "linger", 0, "the producer's linger")
	flag.IntVar(&b.batchBytes, "batch-bytes", 1000000, "the producer's largest batch")
	flag.StringVar(&b.codec, "codec", "none", "the producer's codec: none, gzip, snappy, lz4, zstd")
	flag.IntVar(&b.groups, "groups", 1000, "groups")
	flag.IntVar(&b.perGroup, "members", 10, "members of a group")
	flag.DurationVar(&b.heartbeat, "heartbeat", 3*time.Second, "how often members send heartbeats")
	flag.IntVar(&b.rounds, "rounds", 5, "rebalances to measure")
	flag.IntVar(&b.committers, "committers", 50, "groups that commit")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "bench [flags] workload...")
		for _, w := range workloads {
			fmt.Fprintf(os.Stderr, "  %-13s %s\n", w.name, w.what)
		}
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := b.main(ctx, *brokers, *pids, *dir, *nodes, strings.Fields(*serverFlags)); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) main(ctx context.Context, brokers, pids, dir string, nodes int, serverFlags []string) error {
	names := flag.Args()
	if len(names) == 0 {
		names = []string{"start", "produce", "latency", "e2e", "consume", "failover"}
	}
	if brokers != "" {
		b.brokers = strings.Split(brokers, ",")
		for _, p := range strings.Split(pids, ",") {
			if n, err := strconv.Atoi(p); err == nil {
				b.pids = append(b.pids, n)
			}
		}
	} else {
		if dir == "" {
			tmp, err := os.MkdirTemp("", "chronik-bench")
			if err != nil {
				return err
			}
			defer os.RemoveAll(tmp)
			dir = tmp
		}
		bin, err := harness.Build(ctx, dir)
		if err != nil {
			return err
		}
		if b.cluster, err = harness.New(bin, dir, nodes, serverFlags...); err != nil {
			return err
		}
		defer b.cluster.Stop()
		b.brokers = b.cluster.Brokers()
		b.replication = min(b.replication, nodes)
		if names[0] != "start" {
			if err := b.cluster.Start(ctx); err != nil {
				return err
			}
		}
	}
	for _, name := range names {
		run := func(*bench, context.Context) error { return fmt.Errorf("no workload %q", name) }
		for _, w := range workloads {
			if w.name == name {
				run = w.run
			}
		}
		if err := run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// processes returns what the servers' CPU and memory are read from.
func (b *bench) processes() []int {
	if b.cluster == nil {
		return b.pids
	}
	var out []int
	for _, n := range b.cluster.Nodes {
		if pid := n.PID(); pid != 0 {
			out = append(out, pid)
		}
	}
	return out
}

// usage measures the servers' CPU over f.
func (b *bench) usage(f func() error) (cpu time.Duration, elapsed time.Duration, now harness.Usage, err error) {
	before, err := harness.UsageOf(b.processes()...)
	if err != nil {
		return 0, 0, now, err
	}
	start := time.Now()
	if err := f(); err != nil {
		return 0, 0, now, err
	}
	elapsed = time.Since(start)
	now, err = harness.UsageOf(b.processes()...)
	return now.CPU - before.CPU, elapsed, now, err
}

func mb(n int64) float64 { return float64(n) / 1e6 }
