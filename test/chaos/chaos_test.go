package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/freeport"
	"github.com/chronik-go/chronik/test/harness"
	"github.com/chronik-go/chronik/test/oracle"
)

var serverBinary string

func TestMain(m *testing.M) {
	os.Exit(harness.RunTests(m, func(bin string) { serverBinary = bin }))
}

const (
	topic      = "orders"
	partitions = 6
	// recovers bounds how long a partition may take to acknowledge again once everything is healed.
	recovers = 30 * time.Second
	// minAcks is what a minute must have acknowledged for a run to show something.
	minAcks = 2000
	// maxRSS is what a node's process may hold, in bytes.
	maxRSS = 512 << 20
)

// setting reads an environment variable.
func setting(t *testing.T, name string, otherwise float64) float64 {
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 {
		t.Fatalf("%s=%q is no number", name, s)
	}
	return f
}

// run is one cluster's time under chaos.
type run struct {
	t       *testing.T
	rng     *rand.Rand
	cluster *harness.Cluster
	raft    map[int]*proxy // in front of each node, for the others
	kafka   map[int]*proxy // and for clients
	load    *oracle.Load
	counts  map[string]int
	peakRSS int64

	mu   sync.Mutex
	pids map[int]int
}

// TestChaos breaks things one after the other for CHRONIK_CHAOS_MINUTES (a few seconds if it is not set), from CHRONIK_CHAOS_SEED.
func TestChaos(t *testing.T) {
	seed := uint64(setting(t, "CHRONIK_CHAOS_SEED", 1))
	minutes := setting(t, "CHRONIK_CHAOS_MINUTES", 0.1)
	t.Logf("seed %d: CHRONIK_CHAOS_SEED=%d CHRONIK_CHAOS_MINUTES=%g go test ./test/chaos -count=1 -v -timeout 0", seed, seed, minutes)
	r := &run{t: t, rng: rand.New(rand.NewPCG(seed, 1)), raft: map[int]*proxy{}, kafka: map[int]*proxy{}, counts: map[string]int{}, pids: map[int]int{}}
	r.start()
	watch, err := oracle.StartWatch(r.brokers(), topic)
	if err != nil {
		t.Fatal(err)
	}
	length := time.Duration(minutes * float64(time.Minute))
	r.faults(time.Now().Add(length))

	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := r.load.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := watch.Stop(); err != nil {
		t.Error(err)
	}
	if err := r.load.Verify(ctx, r.brokers(), watch); err != nil {
		t.Error(err)
	}
	var dirs []string
	for _, n := range r.cluster.Nodes {
		dirs = append(dirs, n.Dir)
	}
	if err := oracle.SameSegments(ctx, dirs, topic, partitions); err != nil {
		t.Error(err)
	}
	t.Logf("%v; %d seen by a consumer on the way; peak memory of a node %d MiB\nfaults: %v", r.load, watch.Count(), r.peakRSS>>20, r.counts)
	if least := int64(minAcks * minutes); r.load.Acks() < least {
		t.Errorf("%d records acknowledged, fewer than %d: such a run shows nothing", r.load.Acks(), least)
	}
	if r.peakRSS > maxRSS {
		t.Errorf("a node held %d MiB", r.peakRSS>>20)
	}
	if minutes >= 2 {
		for _, f := range all {
			if r.counts[f.name] == 0 && r.counts[f.name+" (not possible here)"] == 0 {
				t.Errorf("fault %q never came", f.name)
			}
		}
	}
}

func (r *run) start() {
	t := r.t
	who := func(a net.Addr) int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return ownerOf(a, r.pids)
	}
	ports, err := freeport.Ports(6)
	if err != nil {
		t.Fatal(err)
	}
	next := func() string {
		p := ports[0]
		ports = ports[1:]
		return fmt.Sprintf("127.0.0.1:%d", p)
	}
	r.cluster, err = harness.NewBehind(serverBinary, t.TempDir(), 3, func(id int, raft, kafka string) (f harness.Front, err error) {
		if r.raft[id], err = newProxy(next(), raft, who); err != nil {
			return f, err
		}
		if r.kafka[id], err = newProxy(next(), kafka, func(net.Addr) int { return 0 }); err != nil {
			return f, err
		}
		return harness.Front{Raft: r.raft[id].addr(), Kafka: r.kafka[id].addr()}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.load != nil {
			r.load.Close()
		}
		for _, n := range r.cluster.Nodes {
			if t.Failed() {
				t.Logf("node %d:\n%s", n.ID, n.Tail())
			}
		}
		r.cluster.Stop()
		for id := range r.raft {
			r.raft[id].close()
			r.kafka[id].close()
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), recovers)
	defer cancel()
	for _, n := range r.cluster.Nodes {
		r.launch(n)
	}
	for _, n := range r.cluster.Nodes {
		if err := n.AwaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	r.createTopic(ctx, topic)
	r.load, err = oracle.StartLoad(r.brokers(), topic, partitions, 3*time.Millisecond, kgo.NoCompression(), kgo.Lz4Compression(), kgo.ZstdCompression())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.load.AwaitEverywhere(ctx); err != nil {
		t.Fatal(err)
	}
}

// launch starts a node's process.
func (r *run) launch(n *harness.Node) {
	if err := n.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.pids[n.ID] = n.PID()
	r.mu.Unlock()
}

// brokers are the clients' addresses, those of the proxies.
func (r *run) brokers() []string {
	var out []string
	for _, n := range r.cluster.Nodes {
		out = append(out, r.kafka[n.ID].addr())
	}
	return out
}

func (r *run) createTopic(ctx context.Context, name string) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.brokers()...))
	if err != nil {
		r.t.Fatal(err)
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, partitions, 3, nil, name); err != nil {
		r.t.Fatal(err)
	}
}

// faults breaks and heals until end. After each healing every node must run and every partition must acknowledge again.
func (r *run) faults(end time.Time) {
	order := []int{}
	for time.Now().Before(end) && !r.t.Failed() {
		if len(order) == 0 { // every kind once, then again in another order
			order = r.rng.Perm(len(all))
		}
		f := all[order[0]]
		order = order[1:]
		heal, ok := f.begin(r)
		if !ok {
			r.counts[f.name+" (not possible here)"]++
			continue
		}
		r.counts[f.name]++
		r.rest(300*time.Millisecond, 2500*time.Millisecond)
		heal()
		ctx, cancel := context.WithTimeout(context.Background(), recovers)
		for _, n := range r.cluster.Nodes {
			if !n.Running() {
				r.t.Fatalf("after %q node %d does not run:\n%s", f.name, n.ID, n.Tail())
			}
			if u, err := harness.UsageOf(n.PID()); err == nil {
				r.peakRSS = max(r.peakRSS, u.PeakRSS)
			}
		}
		if err := r.load.AwaitEverywhere(ctx); err != nil {
			r.t.Errorf("after %q: %v", f.name, err)
		}
		cancel()
		r.churn(f.name)
	}
}

// rest waits a while, as drawn.
func (r *run) rest(least, most time.Duration) {
	time.Sleep(least + time.Duration(r.rng.Int64N(int64(most-least))))
}

// churn makes a topic and deletes it, on a cluster that has been healed.
func (r *run) churn(after string) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.brokers()...))
	if err != nil {
		r.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), recovers)
	defer cancel()
	adm := kadm.NewClient(cl)
	name := fmt.Sprintf("side-%d", r.counts["topics made and deleted"])
	_, err = adm.CreateTopic(ctx, 3, 3, nil, name)
	if err == nil || strings.Contains(err.Error(), "TOPIC_ALREADY_EXISTS") { // a retry of a request whose answer was lost
		_, err = adm.DeleteTopic(ctx, name)
	}
	if err != nil && !strings.Contains(err.Error(), "UNKNOWN_TOPIC") {
		r.t.Errorf("after %q: making and deleting a topic: %v", after, err)
	}
	r.counts["topics made and deleted"]++
}

func (r *run) anyNode() *harness.Node { return r.cluster.Nodes[r.rng.IntN(len(r.cluster.Nodes))] }

// restart starts nodes that have ended and waits until they are ready.
func (r *run) restart(nodes ...*harness.Node) {
	for _, n := range nodes {
		r.launch(n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), recovers)
	defer cancel()
	for _, n := range nodes {
		if err := n.AwaitReady(ctx); err != nil {
			r.t.Fatal(err)
		}
	}
}

// links changes what happens between a node and the others: in is what reaches it, out what it sends.
func (r *run) links(n *harness.Node, in, out fault) {
	for _, other := range r.cluster.Nodes {
		if other != n {
			r.raft[n.ID].set(other.ID, in)
			r.raft[other.ID].set(n.ID, out)
		}
	}
}
