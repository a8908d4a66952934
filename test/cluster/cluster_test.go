// Package cluster tests built servers as real processes: leaders die, and nothing acknowledged may be missing.
package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/test/harness"
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
	p := startProducer(t, c, "orders")
	p.awaitProgress(t, 1000)
	for i := range cycles(t) {
		victim := leaderOf(t, c, adm, "orders", int32(i%partitions))
		victim.Kill()
		p.awaitProgress(t, 500)
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if err := victim.AwaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		p.awaitProgress(t, 500)
	}
	acked := p.stop(t)
	verify(t, c, "orders", acked)
	sameSegments(t, c, "orders")
}

// TestWholeClusterKilled kills all three at once: what was acknowledged is there after they come back.
func TestWholeClusterKilled(t *testing.T) {
	c := startCluster(t, 3)
	adm := admin(t, c)
	createTopic(t, adm, "orders", partitions)
	p := startProducer(t, c, "orders")
	for range 3 {
		p.awaitProgress(t, 2000)
		for _, n := range c.Nodes {
			n.Kill()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		p.awaitProgress(t, 500)
	}
	verify(t, c, "orders", p.stop(t))
	sameSegments(t, c, "orders")
}

// TestTerminateHandsOverAndLosesNothing restarts every node in turn in the orderly way.
func TestTerminateHandsOverAndLosesNothing(t *testing.T) {
	c := startCluster(t, 3)
	adm := admin(t, c)
	createTopic(t, adm, "orders", partitions)
	p := startProducer(t, c, "orders")
	p.awaitProgress(t, 1000)
	for _, n := range c.Nodes {
		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
		if err := n.Terminate(ctx); err != nil {
			t.Fatalf("node %d did not stop in order: %v", n.ID, err)
		}
		cancel()
		p.awaitProgress(t, 500)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 30*time.Second)
		if err := n.AwaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		p.awaitProgress(t, 500)
	}
	verify(t, c, "orders", p.stop(t))
	sameSegments(t, c, "orders")
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

// producer writes numbered records to every partition of a topic and remembers which were acknowledged.
type producer struct {
	client *kgo.Client
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	acked  map[int32][]int
	total  int
	failed map[int32][]int // fate unknown
	gained chan struct{}
}

func startProducer(t *testing.T, c *harness.Cluster, topic string) *producer {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers()...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.ProducerLinger(2*time.Millisecond), kgo.RequestRetries(1000),
		kgo.ProduceRequestTimeout(5*time.Second), kgo.MaxBufferedRecords(2000), kgo.ConnIdleTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &producer{client: cl, cancel: cancel, acked: map[int32][]int{}, failed: map[int32][]int{}, gained: make(chan struct{}, 1)}
	for part := range int32(partitions) {
		p.wg.Go(func() {
			for seq := 0; ctx.Err() == nil; seq++ {
				r := &kgo.Record{Topic: topic, Partition: part, Value: value(part, seq)}
				cl.Produce(context.Background(), r, func(_ *kgo.Record, err error) { p.ended(part, seq, err) })
				time.Sleep(200 * time.Microsecond) // the rate of the load
			}
		})
	}
	t.Cleanup(func() { p.cancel(); p.wg.Wait(); cl.Close() })
	return p
}

func value(part int32, seq int) []byte {
	return []byte(fmt.Sprintf("%d:%d:%s", part, seq, strings.Repeat("v", seq%300)))
}

func (p *producer) ended(part int32, seq int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed[part] = append(p.failed[part], seq)
		return
	}
	p.acked[part] = append(p.acked[part], seq)
	p.total++
	select {
	case p.gained <- struct{}{}:
	default:
	}
}

// awaitProgress waits for n more acknowledgements on every partition taken together, within a bound.
func (p *producer) awaitProgress(t *testing.T, n int) {
	t.Helper()
	p.mu.Lock()
	goal := p.total + n
	p.mu.Unlock()
	timeout := time.After(30 * time.Second)
	for {
		p.mu.Lock()
		total := p.total
		p.mu.Unlock()
		if total >= goal {
			return
		}
		select {
		case <-p.gained:
		case <-timeout:
			t.Fatalf("%d of %d more records acknowledged within 30 s", n-(goal-total), n)
		}
	}
}

// stop ends the load, waits for what is in flight, and returns what was acknowledged.
func (p *producer) stop(t *testing.T) map[int32][]int {
	t.Helper()
	p.cancel()
	p.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := p.client.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, f := range p.failed {
		n += len(f)
	}
	t.Logf("%d records acknowledged, %d of unknown fate", p.total, n)
	if p.total == 0 {
		t.Fatal("nothing was acknowledged")
	}
	return p.acked
}

// verify reads the topic from its beginning and compares.
func verify(t *testing.T, c *harness.Cluster, topic string, acked map[int32][]int) {
	t.Helper()
	ends := endOffsets(t, c, topic)
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers()...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	got := map[int32][]int{}
	next := map[int32]int64{}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	done := func() bool {
		for part, end := range ends {
			if next[part] < end {
				return false
			}
		}
		return true
	}
	for !done() {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("read up to %v of %v", next, ends)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset != next[r.Partition] {
				t.Errorf("partition %d: offset %d after %d", r.Partition, r.Offset, next[r.Partition]-1)
			}
			next[r.Partition] = r.Offset + 1
			var part int32
			var seq int
			if _, err := fmt.Sscanf(string(r.Value), "%d:%d:", &part, &seq); err != nil || part != r.Partition || !bytes.Equal(r.Value, value(part, seq)) {
				t.Errorf("partition %d offset %d: strange value %.40q", r.Partition, r.Offset, r.Value)
			}
			got[part] = append(got[part], seq)
		})
	}
	for part, want := range acked {
		if !slices.IsSorted(got[part]) {
			t.Errorf("partition %d: records out of order", part)
		}
		have := map[int]int{}
		for _, s := range got[part] {
			if have[s]++; have[s] > 1 {
				t.Errorf("partition %d: record %d is there %d times", part, s, have[s])
			}
		}
		for _, s := range want {
			if have[s] == 0 {
				t.Errorf("partition %d: acknowledged record %d is lost", part, s)
			}
		}
	}
}

func endOffsets(t *testing.T, c *harness.Cluster, topic string) map[int32]int64 {
	t.Helper()
	adm := admin(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var listed kadm.ListedOffsets
	for {
		var err error
		if listed, err = adm.ListEndOffsets(ctx, topic); err == nil {
			err = listed.Error()
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // an election may be under way: between two tries
	}
	out := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) { out[o.Partition] = o.Offset })
	if len(out) != partitions {
		t.Fatalf("end offsets of %d partitions", len(out))
	}
	return out
}

// sameSegments compares the topic's log files of all nodes byte by byte, once the followers have caught up.
func sameSegments(t *testing.T, c *harness.Cluster, topic string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		sums := make([]map[string]string, len(c.Nodes))
		for i, n := range c.Nodes {
			sums[i] = logSums(t, n.Dir, topic)
		}
		same := len(sums[0]) == partitions
		for _, s := range sums[1:] {
			same = same && fmt.Sprint(s) == fmt.Sprint(sums[0])
		}
		if same {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the nodes' segments differ: %v", sums)
		}
		time.Sleep(50 * time.Millisecond) // between two looks
	}
}

// logSums hashes, for each partition directory of a topic, the bytes of its .log files in order of offset.
func logSums(t *testing.T, dir, topic string) map[string]string {
	t.Helper()
	files := map[string][]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() || filepath.Ext(path) != ".log" {
			return err
		}
		rel, err := filepath.Rel(dir, filepath.Dir(path))
		if err == nil && strings.Contains(rel, "/"+topic+"/") {
			files[rel] = append(files[rel], path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for part, paths := range files {
		slices.Sort(paths)
		h := sha256.New()
		size := 0
		for _, p := range paths {
			b, err := os.ReadFile(p)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			size += len(b)
			h.Write(b)
		}
		sums[part] = fmt.Sprintf("%d bytes %x", size, h.Sum(nil)[:8])
	}
	return sums
}
