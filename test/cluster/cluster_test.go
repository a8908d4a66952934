// Package cluster tests built servers as real processes: leaders die, and nothing acknowledged may be missing.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/test/harness"
	"github.com/chronik-go/chronik/test/oracle"
)

var serverBinary string

func TestMain(m *testing.M) {
	os.Exit(harness.RunTests(m, func(bin string) { serverBinary = bin }))
}

// cycles is how often a leader dies: CHRONIK_CLUSTER_CYCLES, or a few.
func cycles(t *testing.T) int {
	s := os.Getenv("CHRONIK_CLUSTER_CYCLES")
	if s == "" {
		if testing.Short() {
			return 2
		}
		return 10
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("CHRONIK_CLUSTER_CYCLES=%q is not a number from 1", s)
	}
	return n
}

const (
	topic      = "orders"
	partitions = 6
	bound      = 90 * time.Second // of every wait
)

// cluster is running servers and a client to ask them.
type cluster struct {
	*harness.Cluster
	admin *kadm.Client
}

func startCluster(t *testing.T, n int, flags ...string) *cluster {
	t.Helper()
	c, err := harness.New(serverBinary, t.TempDir(), n, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, node := range c.Nodes {
				t.Logf("node %d:\n%s", node.ID, node.Tail())
			}
		}
		c.Stop()
	})
	within(t, c.Start)
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers()...), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return &cluster{Cluster: c, admin: kadm.NewClient(cl)}
}

func (c *cluster) createTopic(t *testing.T, name string, partitions int32) {
	t.Helper()
	within(t, func(ctx context.Context) error {
		for {
			_, err := c.admin.CreateTopic(ctx, partitions, 3, nil, name)
			if err == nil || errors.Is(err, kerr.TopicAlreadyExists) || ctx.Err() != nil { // it exists: an answer was late
				return ctx.Err()
			}
			select {
			case <-time.After(100 * time.Millisecond): // between two tries
			case <-ctx.Done():
				return fmt.Errorf("creating %s: %w", name, err)
			}
		}
	})
}

// within runs f, which ends when its context does.
func within(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	if err := f(ctx); err != nil {
		t.Fatal(err)
	}
}

// restart starts a node that has ended, and waits until it is ready.
func (c *cluster) restart(t *testing.T, n *harness.Node) {
	t.Helper()
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	within(t, n.AwaitReady)
}

// leader waits until a live node leads the partition.
func (c *cluster) leader(t *testing.T, topic string, partition int32) *harness.Node {
	t.Helper()
	var last any
	for deadline := time.Now().Add(bound); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) { // between two looks
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		m, err := c.admin.Metadata(ctx, topic)
		cancel()
		last = err
		if err == nil {
			p := m.Topics[topic].Partitions[partition]
			if n := c.Node(p.Leader); n != nil && n.Running() {
				return n
			}
			last = p
		}
	}
	t.Fatalf("no live leader of %s-%d: %v", topic, partition, last)
	return nil
}

// load is three servers with a topic that an idempotent producer writes to.
type load struct {
	*cluster
	ledger *oracle.Ledger
	writer *oracle.Writer
}

func startLoad(t *testing.T) *load {
	t.Helper()
	l := &load{cluster: startCluster(t, 3), ledger: oracle.NewLedger()}
	l.createTopic(t, topic, partitions)
	var err error
	l.writer, err = l.ledger.StartWriter(oracle.Load{Brokers: l.Brokers(), Topic: topic, Partitions: partitions, Rate: 800})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// progress waits for n more acknowledged records.
func (l *load) progress(t *testing.T, n int) {
	t.Helper()
	within(t, func(ctx context.Context) error { return l.ledger.Await(ctx, n) })
}

// finish stops the load and looks for every acknowledged record: once, at its offset, in order, and the same bytes on all nodes.
func (l *load) finish(t *testing.T) {
	t.Helper()
	within(t, l.ledger.AwaitEach)
	within(t, l.writer.Stop)
	totals := l.ledger.Totals()
	t.Logf("%d records acknowledged, %d of unknown fate; longest gap of a partition %v", totals.Acked, totals.Unknown, totals.LongestGap)
	ctx, cancel := context.WithTimeout(t.Context(), 4*bound)
	defer cancel()
	if _, err := l.ledger.Verify(ctx, l.Brokers(), map[string]int32{topic: partitions}); err != nil {
		t.Fatal(err)
	}
	replicas := map[oracle.TP][]string{}
	for part := range int32(partitions) {
		for _, n := range l.Nodes {
			tp := oracle.TP{Topic: topic, Partition: part}
			replicas[tp] = append(replicas[tp], n.Dir)
		}
	}
	within(t, func(ctx context.Context) error { return oracle.SameSegments(ctx, replicas) })
}

// TestLeaderKilledDuringProduceLosesNoAckedRecord kills the leader of a partition again and again under load, and restarts it.
func TestLeaderKilledDuringProduceLosesNoAckedRecord(t *testing.T) {
	l := startLoad(t)
	l.progress(t, 1000)
	for i := range cycles(t) {
		victim := l.leader(t, topic, int32(i%partitions))
		victim.Kill()
		l.progress(t, 500)
		l.restart(t, victim)
		l.progress(t, 500)
	}
	l.finish(t)
}

// TestWholeClusterKilled kills all three at once: what was acknowledged is there after they come back.
func TestWholeClusterKilled(t *testing.T) {
	l := startLoad(t)
	for range 3 {
		l.progress(t, 2000)
		for _, n := range l.Nodes {
			n.Kill()
		}
		within(t, l.Start)
		l.progress(t, 500)
	}
	l.finish(t)
}

// TestTerminateHandsOverAndLosesNothing restarts every node in turn in the orderly way.
func TestTerminateHandsOverAndLosesNothing(t *testing.T) {
	l := startLoad(t)
	l.progress(t, 1000)
	for _, n := range l.Nodes {
		ctx, cancel := context.WithTimeout(t.Context(), bound)
		if err := n.Terminate(ctx); err != nil {
			t.Fatalf("node %d did not stop in order: %v", n.ID, err)
		}
		cancel()
		l.progress(t, 500)
		l.restart(t, n)
		l.progress(t, 500)
	}
	l.finish(t)
}
