package partition

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// patience bounds every wait of the tests on real parts. It is for what never comes: with the race detector, on a machine that does thirty
// other things, a cluster may take a minute for what takes it a second. (All of it is shorter than what test/mutants gives a test.)
const patience = 100 * time.Second

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond) // between two looks at a condition, not instead of one
	}
}

// realCluster is nodes with their own log, raft service and manager, all of them running on their goroutines, joined by queues
// in memory.
type realCluster struct {
	t      testing.TB
	nodes  []*realNode
	parts  int
	firstG uint64
	tune   func(o *wal.Options, l *Limits, cfg *TopicConfig)
	seen   atomic.Pointer[func(from, to int, env *transport.Envelope)]
}

type realNode struct {
	c    *realCluster
	id   int
	fs   vfs.FS
	dir  string // of the topics, "/topics" if empty
	up   atomic.Bool
	log  *wal.Log
	svc  *multiraft.Service
	m    atomic.Pointer[Manager]
	net  atomic.Pointer[wires]
	dead atomic.Bool // its disk no longer counts: errors are expected
}

// wires is a node's way in: what others send it, delivered by one goroutine in order.
type wires struct {
	mu     sync.Mutex
	cond   sync.Cond
	queue  []wireMsg
	closed bool
	wg     sync.WaitGroup
}

type wireMsg struct {
	from int
	env  transport.Envelope
}

const wireCap = 4096

func newRealCluster(t testing.TB, nodes, parts int, tune func(o *wal.Options, l *Limits, cfg *TopicConfig)) *realCluster {
	c := &realCluster{t: t, parts: parts, firstG: 10, tune: tune}
	for i := range nodes {
		c.nodes = append(c.nodes, &realNode{c: c, id: i, fs: vfs.NewMem(uint64(i + 1))})
	}
	for _, n := range c.nodes {
		n.start()
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.stop()
		}
	})
	return c
}

func (c *realCluster) topic(firstG uint64) *metadata.Topic {
	tp := &metadata.Topic{Name: "r"}
	for i := range c.parts {
		p := &metadata.Partition{Index: int32(i), Group: firstG + uint64(i)}
		for j := range c.nodes {
			n := (i + j) % len(c.nodes) // leaders are spread
			p.Replicas = append(p.Replicas, metadata.Replica{ID: firstG*100 + uint64(n) + 1, Node: int32(n), Dir: uuid.UUID{byte(n + 1)}})
		}
		tp.Partitions = append(tp.Partitions, p)
	}
	return tp
}

func (n *realNode) start() {
	t := n.c.t
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	level := slog.LevelError + 1
	if os.Getenv("VERBOSE") != "" {
		level = slog.LevelDebug
	}
	lg := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("node", n.id)
	fatal := func(err error) {
		if !n.dead.Load() {
			t.Errorf("node %d: %v", n.id, err)
		}
	}
	o := wal.Options{FS: n.fs, Dir: "/wal", Logger: lg, FileBytes: 4 << 20, OnFatal: fatal, OnPinned: func(group, index uint64) {
		if m := n.m.Load(); m != nil {
			m.Pinned(group, index)
		}
	}}
	limits := Limits{FlushInterval: 50 * time.Millisecond, MaintenanceInterval: 50 * time.Millisecond}
	cfg := DefaultTopicConfig(segment.Config{SegmentBytes: 64 << 10, RetentionBytes: -1, RetentionAge: -1})
	if n.c.tune != nil {
		n.c.tune(&o, &limits, &cfg)
	}
	var err error
	n.log, err = wal.Open(o)
	must(err)
	n.svc, err = multiraft.NewService(multiraft.Config{NodeID: int32(n.id), Log: n.log, Sender: realWire{n.c, n.id}, Clock: clock.System{},
		Logger: lg, TickInterval: 50 * time.Millisecond}) // a few hundred milliseconds without a processor are no reason to elect
	must(err)
	m, err := NewManager(ManagerConfig{FS: n.fs, Dir: cmp.Or(n.dir, "/topics"), Clock: clock.System{}, Logger: lg, Service: n.svc, Log: n.log,
		Files: segment.NewFiles(n.fs, 64), Configs: func(string) TopicConfig { return cfg }, OnFatal: fatal, Limits: limits})
	must(err)
	n.m.Store(m)
	n.net.Store(newWires(n.svc))
	n.log.Start()
	n.svc.Start()
	m.Start()
	n.open(n.c.firstG)
	n.up.Store(true)
}

func (n *realNode) open(firstG uint64) {
	n.c.t.Helper()
	tp := n.c.topic(firstG)
	for _, p := range tp.Partitions {
		for _, r := range p.Replicas {
			if int(r.Node) == n.id {
				if err := n.m.Load().Open(tp, p, r); err != nil {
					n.c.t.Fatal(err)
				}
			}
		}
	}
}

// stop closes a node as it would in production.
func (n *realNode) stop() {
	if !n.up.Swap(false) {
		return
	}
	for _, err := range []error{n.m.Load().Close(), n.svc.Close(), n.log.Close()} {
		if err != nil && !n.dead.Load() {
			n.c.t.Errorf("node %d: closing: %v", n.id, err)
		}
	}
	n.net.Load().close()
}

// cut takes the power from a node: what is on its disk is what a power cut at this moment leaves. The others see their connections
// to it break, as they would: who sends it a snapshot need not wait for it fifty ticks long, which is a minute where nobody gets to tick.
func (n *realNode) cut(seed uint64) {
	after := n.fs.(*vfs.Mem).CrashClone(seed)
	n.dead.Store(true)
	n.stop()
	for _, o := range n.c.nodes {
		if o.up.Load() {
			o.svc.HandlePeerDown(int32(n.id))
		}
	}
	n.fs = after
	n.dead.Store(false)
}

func (n *realNode) part(i int) *Partition {
	p, ok := n.m.Load().Lookup("r", int32(i))
	if !ok {
		n.c.t.Fatalf("node %d has no partition %d", n.id, i)
	}
	return p
}

// leader waits for the one that leads a partition and serves.
func (c *realCluster) leader(i int) (n *realNode, p *Partition) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("a leader of partition %d", i), func() bool {
		n, p = c.tryLeader(i)
		return p != nil
	})
	return n, p
}

func (c *realCluster) tryLeader(i int) (*realNode, *Partition) {
	for _, n := range c.nodes {
		if !n.up.Load() {
			continue
		}
		if p, ok := n.m.Load().Lookup("r", int32(i)); ok && p.leading.Load() != 0 {
			return n, p
		}
	}
	return nil, nil
}

// produce sends one batch and waits; sure is false where it may be in the log without our knowing.
func (c *realCluster) produce(p *Partition, b []byte) (ProduceResult, bool) {
	ch := make(chan ProduceResult, 2)
	p.Produce(b, func(r ProduceResult) { ch <- r })
	select {
	case r := <-ch:
		return r, !errors.Is(r.Err, multiraft.ErrUnknownOutcome)
	case <-time.After(patience):
		c.t.Error("a produce was never answered")
		return ProduceResult{Err: errors.New("never answered")}, false
	}
}

// mustProduce tries until the batch is acknowledged, as an idempotent client does.
func (c *realCluster) mustProduce(i int, s batchSpec) int64 {
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		if _, p := c.tryLeader(i); p != nil {
			r, _ := c.produce(p, makeBatch(c.t, s))
			switch {
			case r.Err == nil:
				return r.BaseOffset
			case errors.Is(r.Err, multiraft.ErrNotLeader), errors.Is(r.Err, multiraft.ErrUnknownOutcome), errors.Is(r.Err, multiraft.ErrStopped):
			default:
				c.t.Errorf("producing to %d: %v", i, r.Err)
				return -1
			}
		}
		time.Sleep(time.Millisecond)
	}
	c.t.Errorf("partition %d takes nothing", i)
	return -1
}

// converge waits until every node has applied the same end, and compares the logs byte for byte.
func (c *realCluster) converge(i int) (end int64) {
	c.t.Helper()
	_, p := c.leader(i)
	end = p.HighWatermark()
	var logs [][]byte
	start := p.LogStart()
	for _, n := range c.nodes {
		q := n.part(i)
		eventually(c.t, fmt.Sprintf("node %d has all of partition %d: %d of %d from %d of %d", n.id, i, q.HighWatermark(), end, q.LogStart(), start),
			func() bool { return q.HighWatermark() >= end && q.LogStart() >= start })
		logs = append(logs, c.read(q, start, end))
	}
	for j := range logs {
		if string(logs[j]) != string(logs[0]) {
			c.t.Fatalf("partition %d: nodes 0 and %d hold different bytes", i, j)
		}
	}
	return end
}

func (c *realCluster) read(p *Partition, from, to int64) (out []byte) {
	c.t.Helper()
	for from < to {
		var res FetchResult
		var err error
		eventually(c.t, "the replica knows a leader", func() bool {
			res, err = p.Fetch(FetchRequest{Offset: from, MaxBytes: 1 << 20, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1, Follower: true})
			return !errors.Is(err, multiraft.ErrNotLeader)
		})
		if err != nil {
			c.t.Fatalf("reading at %d: %v", from, err)
		}
		if from, err = batchesEnd(res.Records); err != nil || len(res.Records) == 0 {
			c.t.Fatalf("reading: %d bytes, %v", len(res.Records), err)
		}
		out = append(out, res.Records...)
	}
	return out
}

func newWires(svc *multiraft.Service) *wires {
	w := &wires{}
	w.cond.L = &w.mu
	w.wg.Go(func() {
		for {
			w.mu.Lock()
			for len(w.queue) == 0 && !w.closed {
				w.cond.Wait()
			}
			q := w.queue
			w.queue = nil
			closed := w.closed
			w.mu.Unlock()
			if closed {
				return
			}
			for _, m := range q {
				svc.HandleEnvelopes(int32(m.from), []transport.Envelope{m.env})
			}
		}
	})
	return w
}

func (w *wires) post(m wireMsg) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.queue) >= wireCap {
		return false
	}
	w.queue = append(w.queue, m)
	w.cond.Signal()
	return true
}

func (w *wires) close() {
	w.mu.Lock()
	w.closed = true
	w.cond.Signal()
	w.mu.Unlock()
	w.wg.Wait()
}

// realWire is a node's multiraft.Sender. Nothing is shared between nodes: all of it is copied.
type realWire struct {
	c    *realCluster
	from int
}

func (w realWire) Send(to int32, env transport.Envelope) {
	n := w.c.nodes[to]
	if f := w.c.seen.Load(); f != nil {
		(*f)(w.from, int(to), &env)
	}
	if !n.up.Load() || !w.c.nodes[w.from].up.Load() {
		return
	}
	if env.Kind == transport.KindRaft {
		b, err := env.Raft.Marshal()
		if err != nil {
			w.c.t.Error(err)
			return
		}
		env.Raft = raftpb.Message{}
		if err := env.Raft.Unmarshal(b); err != nil {
			w.c.t.Error(err)
			return
		}
	}
	env.Body = append([]byte(nil), env.Body...)
	n.net.Load().post(wireMsg{from: w.from, env: env})
}
