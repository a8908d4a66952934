package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/freeport"
	"github.com/chronik-go/chronik/internal/leaktest"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/vfs"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// logBuffer keeps what a node logs, for tests that read it and for the output of those that fail.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// testNode is a node of a test, over all its lives: its disk and its configuration stay while processes come and go.
type testNode struct {
	t   *testing.T
	cfg *config.Node
	fs  vfs.FS
	log *logBuffer

	clock clock.Clock // nil: the system's
	tune  *Tuning

	*Node // the present life, nil between two
}

// newTestNode describes a node alone, on a simulated disk unless the test gives it another. Its log is small: every file of it
// is written full of zeros when it is made.
func newTestNode(t *testing.T, id int32, change ...func(*config.Node)) *testNode {
	t.Helper()
	cfg := config.Default()
	cfg.NodeID = id
	cfg.KafkaAddr, cfg.AdminAddr = "127.0.0.1:0", "127.0.0.1:0"
	cfg.DataDir = fmt.Sprintf("/node-%d", id)
	cfg.Limits.WALFileBytes, cfg.Limits.WALMaxBytes = 2*config.MaxBatchBytes, 4*config.MaxBatchBytes
	for _, c := range change {
		c(cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	n := &testNode{t: t, cfg: cfg, fs: vfs.NewMem(uint64(id)), log: &logBuffer{}}
	t.Cleanup(func() {
		if n.Node != nil {
			n.stop()
		}
		if t.Failed() {
			text := n.log.String()
			t.Logf("node %d logged:\n%s", id, text[max(0, len(text)-6000):])
		}
	})
	return n
}

// open begins a life of the node and does not wait for it to serve.
func (n *testNode) open() error {
	o := Options{Config: n.cfg, FS: n.fs, Clock: n.clock, Tune: n.tune, Logger: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	node, err := Open(o)
	if err == nil {
		n.Node = node
	}
	return err
}

func (n *testNode) start() {
	n.t.Helper()
	if err := n.open(); err != nil {
		n.t.Fatal(err)
	}
	n.awaitReady()
}

const bound = 3 * time.Minute // of every wait

func (n *testNode) awaitReady() {
	n.t.Helper()
	select {
	case <-n.Ready():
	case <-n.Failed():
		n.t.Fatalf("node %d failed: %v", n.cfg.ID(), n.Err())
	case <-time.After(bound):
		n.t.Fatalf("node %d is not ready: %v", n.cfg.ID(), n.readiness())
	}
}

// stop ends the node's life in order.
func (n *testNode) stop() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	node := n.Node
	n.Node = nil
	if err := node.Close(ctx); err != nil && node.Err() == nil {
		n.t.Errorf("closing node %d: %v", n.cfg.ID(), err)
	}
}

// newTestCluster describes n nodes that name each other in --peers.
func newTestCluster(t *testing.T, n int, change ...func(*config.Node)) []*testNode {
	t.Helper()
	peers := freePeers(t, n)
	var nodes []*testNode
	for _, p := range peers {
		nodes = append(nodes, newTestNode(t, p.ID, append([]func(*config.Node){func(c *config.Node) {
			c.Peers, c.RaftAddr = slices.Clone(peers), p.Addr
		}}, change...)...))
	}
	return nodes
}

// steady has leaders stay in tests in which nobody dies, on a machine that does other things beside.
func steady(c *config.Node) { c.Limits.ElectionTimeout = 90 * time.Second }

// freePeers returns n nodes on free ports.
func freePeers(t *testing.T, n int) config.Peers {
	t.Helper()
	ports, err := freeport.Ports(n)
	if err != nil {
		t.Fatal(err)
	}
	var peers config.Peers
	for i, port := range ports {
		peers = append(peers, config.Peer{ID: int32(i + 1), Addr: fmt.Sprintf("127.0.0.1:%d", port)})
	}
	return peers
}

// startAll returns once all of them serve, and reach each other: what is asked of a cluster may depend on who is there.
func startAll(nodes []*testNode) {
	for _, n := range nodes {
		n.t.Helper()
		if err := n.open(); err != nil {
			n.t.Fatal(err)
		}
	}
	for _, n := range nodes {
		n.t.Helper()
		n.awaitReady()
		eventually(n.t, func() error { return reach([]*testNode{n}, nodes...) })
	}
}

// reach returns nil once each of from reaches all of to, and no other node.
func reach(from []*testNode, to ...*testNode) error {
	var want []int32
	for _, n := range to {
		want = append(want, n.cfg.ID())
	}
	slices.Sort(want)
	for _, n := range from {
		if live := n.core.Load().view.LiveNodes(); !slices.Equal(live, want) {
			return fmt.Errorf("node %d reaches %v, want %v", n.cfg.ID(), live, want)
		}
	}
	return nil
}

func stopAll(nodes []*testNode) {
	var wg sync.WaitGroup
	for _, n := range nodes {
		if n.Node != nil {
			wg.Go(n.stop)
		}
	}
	wg.Wait()
}

// client is a franz-go client of these nodes, closed with the test.
func client(t *testing.T, nodes []*testNode, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	var seeds []string
	for _, n := range nodes {
		seeds = append(seeds, n.KafkaAddr())
	}
	opts = append([]kgo.Opt{kgo.SeedBrokers(seeds...), kgo.MetadataMinAge(50 * time.Millisecond),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RecordDeliveryTimeout(bound)}, opts...)
	c, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	t.Cleanup(cancel)
	return ctx
}

// longContext bounds a test whose every step has a bound of its own.
func longContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 5*bound)
	t.Cleanup(cancel)
	return ctx
}

// produce writes one record and waits for its acknowledgement.
func produce(t *testing.T, c *kgo.Client, topic string, partition int32, value string) int64 {
	t.Helper()
	r, err := c.ProduceSync(testContext(t), &kgo.Record{Topic: topic, Partition: partition, Value: []byte(value)}).First()
	if err != nil {
		t.Fatalf("producing to %s-%d: %v", topic, partition, err)
	}
	return r.Offset
}

// consume reads a partition from its beginning until it has so many records.
func consume(t *testing.T, nodes []*testNode, topic string, partition int32, count int) []string {
	t.Helper()
	c := client(t, nodes, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().AtStart()}}))
	defer c.Close()
	ctx := testContext(t)
	var out []string
	for len(out) < count {
		fs := c.PollFetches(ctx)
		if err := fs.Err0(); err != nil {
			t.Fatalf("consuming %s-%d after %d of %d: %v", topic, partition, len(out), count, err)
		}
		fs.EachError(func(_ string, _ int32, err error) { t.Fatalf("consuming %s-%d: %v", topic, partition, err) })
		fs.EachRecord(func(r *kgo.Record) {
			if r.Offset != int64(len(out)) {
				t.Fatalf("%s-%d: offset %d where %d should be", topic, partition, r.Offset, len(out))
			}
			out = append(out, string(r.Value))
		})
	}
	return out
}

// createTopics makes topics. What an overloaded machine keeps from being made, or from being answered, is asked for again.
func createTopics(t *testing.T, c *kgo.Client, partitions int32, replication int16, topics ...string) {
	t.Helper()
	admin := kadm.NewClient(c)
	admin.SetTimeoutMillis(int32(bound.Milliseconds()) / 3)
	asked := false
	eventually(t, func() error {
		res, err := admin.CreateTopics(testContext(t), partitions, replication, nil, topics...)
		made := map[string]bool{}
		defer func() {
			topics = slices.DeleteFunc(slices.Clone(topics), func(name string) bool { return made[name] })
		}()
		for _, r := range res.Sorted() {
			switch {
			case r.Err == nil, asked && errors.Is(r.Err, kerr.TopicAlreadyExists):
				made[r.Topic] = true
			case kerr.IsRetriable(r.Err):
				err = fmt.Errorf("creating %s: %w %s", r.Topic, r.Err, r.ErrMessage)
			default:
				t.Fatalf("creating %s: %v %s", r.Topic, r.Err, r.ErrMessage)
			}
		}
		asked = true
		return err
	})
}

// eventually waits until cond returns no error.
func eventually(t *testing.T, cond func() error) {
	t.Helper()
	deadline := time.Now().Add(bound)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// image is the metadata as the node sees it.
func (n *testNode) image() *metadata.Image { return n.core.Load().machine.Image() }

// allLed returns nil once every replica of these topics is open where the image puts it, and its group has a leader known to it.
func allLed(nodes []*testNode, topics ...string) error {
	byID := map[int32]*testNode{}
	for _, n := range nodes {
		byID[n.cfg.ID()] = n
	}
	for _, n := range nodes {
		for _, name := range topics {
			topic := n.image().Topics[name]
			if topic == nil {
				return fmt.Errorf("node %d does not know topic %s", n.cfg.ID(), name)
			}
			for _, p := range topic.Partitions {
				// What requests are routed by is told to the view a moment after the replica knows.
				if leader, _ := n.core.Load().view.Leader(p.Group); leader < 0 {
					return fmt.Errorf("node %d has not heard who leads %s-%d", n.cfg.ID(), name, p.Index)
				}
				for _, r := range p.Replicas {
					where := byID[r.Node]
					if where == nil {
						return fmt.Errorf("%s-%d is on node %d, which does not run", name, p.Index, r.Node)
					}
					rep, ok := where.core.Load().groups.Lookup(name, p.Index)
					if !ok {
						return fmt.Errorf("%s-%d has no replica on node %d", name, p.Index, r.Node)
					}
					if st := rep.Status(); st.LeaderNode < 0 || st.Commit == 0 {
						return fmt.Errorf("%s-%d on node %d has no leader: %+v", name, p.Index, r.Node, st)
					}
				}
			}
		}
	}
	return nil
}

// leaderOf returns the node whose own replica leads and serves a partition.
func leaderOf(t *testing.T, nodes []*testNode, topic string, partition int32) *testNode {
	t.Helper()
	var leader *testNode
	eventually(t, func() error {
		for _, n := range nodes {
			if n.Node == nil {
				continue
			}
			if r, ok := n.core.Load().groups.Lookup(topic, partition); ok && r.Status().Ready {
				leader = n
				return nil
			}
		}
		return fmt.Errorf("nobody leads %s-%d", topic, partition)
	})
	return leader
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one about %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error is not one line: %q", err)
	}
}

// onDisk puts the node's data on the operating system's disk.
func (n *testNode) onDisk(dir string) *testNode {
	// The directory may have been made after the node, and then goes before it: stop it first.
	n.t.Cleanup(func() {
		if n.Node != nil {
			n.stop()
		}
	})
	n.fs, n.cfg.DataDir = vfs.OS{}, filepath.Join(dir, filepath.Base(n.cfg.DataDir))
	return n
}

type usage struct {
	goroutines int
	heap       int64
}

// measure returns what this process, and so every node in it, uses now.
func measure() usage {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{runtime.NumGoroutine(), int64(m.HeapAlloc)}
}
