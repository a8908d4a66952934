// Package cluster tests built servers as real processes: leaders die, and nothing acknowledged may be missing.
package cluster

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
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

func startCluster(t *testing.T, n int, flags ...string) *harness.Cluster {
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
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

const partitions = 6

// TestLeaderKilledDuringProduceLosesNoAckedRecord kills the leader of a partition again and again under load, restarts it,
// and then looks for every acknowledged record: once, in order, and the same bytes on all nodes.
func TestLeaderKilledDuringProduceLosesNoAckedRecord(t *testing.T) {
	c := startCluster(t, 3)
	adm := admin(t, c)
	createTopic(t, adm, "orders", partitions)
	p := startLoad(t, c, "orders")
	await(t, p, 1000)
	for i := range cycles(t) {
		victim := leaderOf(t, c, adm, "orders", int32(i%partitions))
		victim.Kill()
		await(t, p, 500)
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if err := victim.AwaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		await(t, p, 500)
	}
	verify(t, c, p, "orders")
}

// TestWholeClusterKilled kills all three at once: what was acknowledged is there after they come back.
func TestWholeClusterKilled(t *testing.T) {
	c := startCluster(t, 3)
	adm := admin(t, c)
	createTopic(t, adm, "orders", partitions)
	p := startLoad(t, c, "orders")
	for range 3 {
		await(t, p, 2000)
		for _, n := range c.Nodes {
			n.Kill()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		await(t, p, 500)
	}
	verify(t, c, p, "orders")
}

// TestTerminateHandsOverAndLosesNothing restarts every node in turn in the orderly way.
func TestTerminateHandsOverAndLosesNothing(t *testing.T) {
	c := startCluster(t, 3)
	adm := admin(t, c)
	createTopic(t, adm, "orders", partitions)
	p := startLoad(t, c, "orders")
	await(t, p, 1000)
	for _, n := range c.Nodes {
		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
		if err := n.Terminate(ctx); err != nil {
			t.Fatalf("node %d did not stop in order: %v", n.ID, err)
		}
		cancel()
		await(t, p, 500)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 30*time.Second)
		if err := n.AwaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		await(t, p, 500)
	}
	verify(t, c, p, "orders")
}

func admin(t *testing.T, c *harness.Cluster) *kadm.Client {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers()...), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

func createTopic(t *testing.T, adm *kadm.Client, topic string, n int32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := adm.CreateTopic(ctx, n, 3, nil, topic); err != nil {
		t.Fatal(err)
	}
}

// leaderOf waits until a live node leads the partition.
func leaderOf(t *testing.T, c *harness.Cluster, adm *kadm.Client, topic string, partition int32) *harness.Node {
	t.Helper()
	var last any
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		m, err := adm.Metadata(ctx, topic)
		cancel()
		last = err
		if err == nil {
			p := m.Topics[topic].Partitions[partition]
			if n := c.Node(p.Leader); n != nil && n.Running() {
				return n
			}
			last = p
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
	t.Fatalf("no live leader of %s-%d: %v", topic, partition, last)
	return nil
}

func startLoad(t *testing.T, c *harness.Cluster, topic string) *oracle.Load {
	t.Helper()
	l, err := oracle.StartLoad(c.Brokers(), topic, partitions, 300*time.Microsecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// await waits for n more acknowledgements, within a bound.
func await(t *testing.T, l *oracle.Load, n int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := l.Await(ctx, n); err != nil {
		t.Fatal(err)
	}
}

// verify ends the load and looks for everything that was promised, through a client and on the disks.
func verify(t *testing.T, c *harness.Cluster, l *oracle.Load, topic string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := l.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	t.Log(l)
	if err := l.Verify(ctx, c.Brokers()); err != nil {
		t.Error(err)
	}
	var dirs []string
	for _, n := range c.Nodes {
		dirs = append(dirs, n.Dir)
	}
	if err := oracle.SameSegments(ctx, dirs, topic, partitions); err != nil {
		t.Error(err)
	}
}
