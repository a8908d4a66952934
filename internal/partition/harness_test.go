package partition

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/leaktest"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const testGroup = 7

// cluster is a raft group without raft: one log that the test commits to, and nodes that apply it when the test says so. It
// keeps multiraft's promises to a state machine, one thread, no surprises but those the test makes.
type cluster struct {
	t       *testing.T
	clk     *clock.Sim
	cfg     TopicConfig
	limits  Limits
	nodes   []*node
	log     []raftpb.Entry // committed, log[0] has index 2
	term    uint64
	leader  *node
	pending []flying // proposed by the leader, not committed
	net     []message
	drop    func(env transport.Envelope) (copies int) // nil: one of each
	spare   bool                                      // who asks is not waited for by the group
}

type flying struct {
	entry raftpb.Entry
	bound []multiraft.Proposal
	by    *node
}

type message struct {
	to, from int
	env      transport.Envelope
}

// node is one replica: its disk, its checkpoint, its manager. It is the Host and the Replica of its partition.
type node struct {
	c       *cluster
	id      int
	fs      *vfs.Mem
	cp      wal.Checkpoint
	known   bool
	removed bool
	m       *Manager
	p       *Partition
	applied uint64
	queue   []multiraft.Proposal
	waiting []flying
	ready   bool
	fatal   error
	unfit   bool
	full    error
	lastCP  int
	holdCP  bool              // checkpoints wait in cps, until syncCP or a crash that happens to keep some
	cps     []checkpointWrite // in the order handed over
}

type checkpointWrite struct {
	cp   wal.Checkpoint
	done func(error)
}

func newCluster(t *testing.T, n int, change func(c *cluster)) *cluster {
	t.Helper()
	c := &cluster{t: t, clk: clock.NewSim(time.UnixMilli(1_700_000_000_000)), term: 1}
	c.cfg = DefaultTopicConfig(segment.Config{SegmentBytes: 4 << 10, RetentionBytes: -1, RetentionAge: -1})
	c.limits = Limits{DeltaChunkBytes: 1 << 10, MaintenanceInterval: time.Minute}
	if change != nil {
		change(c)
	}
	for i := range n {
		nd := &node{c: c, id: i, fs: vfs.NewMem(uint64(i + 1))}
		c.nodes = append(c.nodes, nd)
		nd.open()
	}
	t.Cleanup(func() {
		for _, nd := range c.nodes {
			nd.stop()
		}
	})
	return c
}

func (c *cluster) topic() (*metadata.Topic, *metadata.Partition) {
	p := &metadata.Partition{Index: 0, Group: testGroup}
	for i := range max(len(c.nodes), 1) {
		p.Replicas = append(p.Replicas, metadata.Replica{ID: uint64(100 + i), Node: int32(i), Dir: uuid.UUID{byte(i + 1)}})
	}
	return &metadata.Topic{Name: "t", Partitions: []*metadata.Partition{p}}, p
}

func (nd *node) tryOpen() error {
	m, err := NewManager(ManagerConfig{
		FS: nd.fs, Dir: "/data", Clock: nd.c.clk, Host: nd, Files: segment.NewFiles(nd.fs, 64), Logger: slog.New(slog.DiscardHandler),
		Configs:  func(string) TopicConfig { return nd.c.cfg },
		Writable: func() error { return nd.full },
		OnFatal:  func(err error) { nd.fatal = err },
		Limits:   nd.c.limits,
	})
	if err != nil {
		return err
	}
	nd.m = m
	topic, part := nd.c.topic()
	for len(part.Replicas) <= nd.id {
		i := len(part.Replicas)
		part.Replicas = append(part.Replicas, metadata.Replica{ID: uint64(100 + i), Node: int32(i), Dir: uuid.UUID{byte(i + 1)}})
	}
	return m.Open(topic, part, part.Replicas[nd.id])
}

func (nd *node) open() {
	nd.c.t.Helper()
	if err := nd.tryOpen(); err != nil {
		nd.c.t.Fatalf("node %d: %v", nd.id, err)
	}
	nd.p, _ = nd.m.Lookup("t", 0)
	nd.applied = max(nd.cp.Index, 1)
}

func (nd *node) stop() {
	if nd.m != nil {
		_ = nd.m.Close()
	}
	if nd.p != nil {
		_ = nd.p.Close()
	}
}

// crash cuts the power, or kills the process if kill is set, and starts the node again.
func (nd *node) crash(seed uint64, kill bool) {
	nd.c.t.Helper()
	nd.down(seed, kill)
	nd.open()
}

func (nd *node) down(seed uint64, kill bool) {
	if nd.c.leader == nd {
		nd.c.depose(false)
	}
	nd.failAll(multiraft.ErrUnknownOutcome)
	if kill {
		nd.fs.Kill()
	} else {
		nd.fs.Crash(seed)
	}
	nd.m.mu.Lock()
	nd.m.closed = true // its timers must not do anything any more
	nd.m.mu.Unlock()
	nd.p.closed.Store(true)
	nd.m, nd.p = nil, nil
	nd.fatal = nil
	for _, w := range nd.cps[:int(seed%uint64(len(nd.cps)+1))] { // written, as the kernel happened to, and nobody was told
		if w.cp.Index > nd.cp.Index {
			nd.cp = w.cp
		}
	}
	nd.cps = nil
}

func (nd *node) failAll(err error) {
	q, w := nd.queue, nd.waiting
	nd.queue, nd.waiting = nil, nil
	for _, f := range w {
		for _, p := range f.bound {
			p.Done(err)
		}
	}
	for _, p := range q {
		p.Done(err)
	}
}

// Host.

func (nd *node) Create(group uint64, cp wal.Checkpoint) error {
	nd.cp, nd.known = cp, true
	return nil
}

func (nd *node) Register(o Registration) (Replica, error) { return replicaOf{nd}, nil }

func (nd *node) Unregister(_ string, _ int32, done func()) error {
	if nd.c.leader == nd {
		nd.c.depose(false)
	}
	err := nd.p.Close()
	done()
	return err
}

func (nd *node) Remove(group uint64, done func(error)) {
	nd.removed = true
	done(nil)
}

func (nd *node) Checkpoint(group uint64) (wal.Checkpoint, bool, error) {
	if nd.removed {
		return wal.Checkpoint{}, false, ErrUnknownPartition
	}
	return nd.cp, nd.known, nil
}

type raftEntry = raftpb.Entry

type replicaOf struct{ nd *node }

func (r replicaOf) Enqueue(p multiraft.Proposal) {
	if r.nd.c.leader != r.nd {
		p.Done(&multiraft.NotLeaderError{LeaderNode: -1})
		return
	}
	r.nd.queue = append(r.nd.queue, p)
}

func (r replicaOf) ReadIndex(done func(error)) {
	if r.nd.c.leader != r.nd || !r.nd.ready {
		done(&multiraft.NotLeaderError{LeaderNode: -1})
		return
	}
	done(nil)
}

func (r replicaOf) Status() multiraft.Status {
	c := r.nd.c
	st := multiraft.Status{Term: c.term, LeaderNode: -1, Applied: r.nd.applied}
	if c.leader != nil {
		st.Leader, st.LeaderNode = uint64(100+c.leader.id), int32(c.leader.id)
		st.IsLeader = c.leader == r.nd
		st.Ready = st.IsLeader && r.nd.ready
	}
	return st
}

func (r replicaOf) SetUnfit(unfit bool) { r.nd.unfit = unfit }

func (r replicaOf) Peers() (out []multiraft.Peer) {
	for _, nd := range r.nd.c.nodes {
		if nd != r.nd {
			out = append(out, r.nd.c.peer(r.nd.id, nd.id))
		}
	}
	return out
}

func (r replicaOf) CheckpointSynced(index, term uint64, state []byte, done func(error)) {
	nd := r.nd
	nd.cps = append(nd.cps, checkpointWrite{wal.Checkpoint{Index: index, Term: term, State: state}, done})
	nd.lastCP++
	if !nd.holdCP {
		nd.syncCP(len(nd.cps))
	}
}

// syncCP makes the first n checkpoints handed over durable. Like the log it ignores what is not above the latest.
func (nd *node) syncCP(n int) {
	cps := nd.cps[:n]
	nd.cps = nd.cps[n:]
	for _, w := range cps {
		if w.cp.Index > nd.cp.Index {
			nd.cp = w.cp
		}
		if w.done != nil {
			w.done(nil)
		}
	}
}

// Raft, by hand.

func (c *cluster) lastIndex() uint64 { return uint64(len(c.log)) + 1 }

// elect makes a node the leader of a new term; what the old one had under way is kept or lost.
func (c *cluster) elect(i int, keep bool) {
	c.t.Helper()
	c.depose(keep)
	c.term++
	nd := c.nodes[i]
	c.leader = nd
	c.log = append(c.log, raftpb.Entry{Index: c.lastIndex() + 1, Term: c.term})
	nd.apply()
	nd.p.LeaderReady(c.term)
	nd.ready = true
}

func (c *cluster) depose(keep bool) {
	old := c.leader
	c.leader = nil
	if old == nil {
		return
	}
	old.ready = false
	old.p.LeaderLost(c.term)
	q := old.queue
	old.queue = nil
	for _, p := range q {
		p.Done(&multiraft.NotLeaderError{LeaderNode: -1})
	}
	if keep {
		c.commit()
	} else {
		for _, f := range c.pending {
			for _, p := range f.bound {
				p.Done(&multiraft.NotLeaderError{LeaderNode: -1})
			}
		}
	}
	c.pending = nil
}

// propose turns everything queued into entries under way. With abort the first attempt at each is refused, as raft may.
func (c *cluster) propose(abort bool) {
	nd := c.leader
	for nd != nil && len(nd.queue) > 0 {
		data, bound, taken := nd.p.Prepare(c.term, nd.queue, 1<<20)
		if taken == 0 {
			c.t.Fatal("Prepare took nothing")
		}
		rest := nd.queue[taken:]
		if len(data) > 0 && abort {
			nd.p.Abort()
			nd.queue = append(append([]multiraft.Proposal(nil), bound...), rest...)
			abort = false
			continue
		}
		nd.queue = rest
		if len(data) > 0 {
			e := raftpb.Entry{Index: c.lastIndex() + uint64(len(c.pending)) + 1, Term: c.term, Data: data}
			c.pending = append(c.pending, flying{entry: e, bound: bound, by: nd})
		}
	}
}

// commit puts what is under way into the log. Nothing is applied yet.
func (c *cluster) commit() { c.commitN(len(c.pending)) }

func (c *cluster) commitN(n int) {
	for _, f := range c.pending[:n] {
		// Followers get copies: nobody shares a buffer across nodes.
		f.entry.Data = append([]byte(nil), f.entry.Data...)
		c.log = append(c.log, f.entry)
		f.by.waiting = append(f.by.waiting, f)
	}
	c.pending = c.pending[n:]
}

func (nd *node) tryApply(upTo uint64) error {
	ents := nd.c.log[nd.applied-1 : upTo-1]
	if len(ents) == 0 {
		return nil
	}
	if err := nd.p.Apply(ents); err != nil {
		return err
	}
	nd.applied = upTo
	for len(nd.waiting) > 0 && nd.waiting[0].entry.Index <= upTo {
		f := nd.waiting[0]
		nd.waiting = nd.waiting[1:]
		for _, p := range f.bound {
			p.Done(nil)
		}
	}
	return nil
}

func (nd *node) apply() {
	nd.c.t.Helper()
	if err := nd.tryApply(nd.c.lastIndex()); err != nil {
		nd.c.t.Fatalf("node %d: %v", nd.id, err)
	}
}

// flow proposes, commits and applies everywhere.
func (c *cluster) flow() {
	c.t.Helper()
	c.propose(false)
	c.commit()
	for _, nd := range c.nodes {
		if nd.p != nil {
			nd.apply()
		}
	}
}

// settle runs background work and the network until both are idle.
func (c *cluster) settle() {
	c.t.Helper()
	for range 100_000 {
		busy := false
		for _, nd := range c.nodes {
			if nd.m != nil && nd.m.Step() {
				busy = true
			}
		}
		if len(c.net) > 0 {
			c.deliver()
			busy = true
		}
		if !busy && !c.anyReady() {
			return
		}
	}
	c.t.Fatal("does not settle")
}

func (c *cluster) anyReady() bool {
	for _, nd := range c.nodes {
		if nd.m != nil && nd.m.pending() {
			return true
		}
	}
	return len(c.net) > 0
}

func (c *cluster) deliver() {
	msg := c.net[0]
	c.net = c.net[1:]
	if to := c.nodes[msg.to]; to.p != nil {
		from := c.peer(msg.to, msg.from)
		from.Spare = c.spare
		to.p.Receive(msg.env, from)
	}
}

// advance moves time in steps small enough for every timer's consequences.
func (c *cluster) advance(d time.Duration) {
	c.t.Helper()
	for d > 0 {
		step := min(d, 100*time.Millisecond)
		c.clk.Advance(step)
		d -= step
		c.settle()
	}
}

type wire struct {
	c    *cluster
	from int
}

func (w wire) Send(to int32, env transport.Envelope) {
	n := 1
	if w.c.drop != nil {
		n = w.c.drop(env)
	}
	for range n {
		env.Body = append([]byte(nil), env.Body...)
		w.c.net = append(w.c.net, message{to: int(to), from: w.from, env: env})
	}
}

func (c *cluster) peer(self, other int) multiraft.Peer {
	return multiraft.NewPeer(int32(other), testGroup, uint64(100+self), uint64(100+other), wire{c, self})
}

// Batches.

type batchSpec struct {
	records  int
	producer int64 // 0: none
	epoch    int16
	seq      int32
	ts       int64
	codec    record.Codec
	value    string
}

func makeBatch(t testing.TB, s batchSpec) []byte {
	t.Helper()
	b := record.NewBuilder()
	b.ProducerID, b.ProducerEpoch, b.BaseSequence = -1, -1, -1
	if s.producer > 0 {
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = s.producer, s.epoch, s.seq
	}
	b.Codec = s.codec
	if s.ts == 0 {
		s.ts = 1_700_000_000_000
	}
	for i := range max(s.records, 1) {
		b.Add(s.ts+int64(i), []byte(fmt.Sprintf("k%d", i)), []byte(fmt.Sprintf("v%d-%s", i, s.value)))
	}
	out, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// result waits for nothing: done has been called or not.
type result struct {
	n   int
	res ProduceResult
}

func (r *result) done(res ProduceResult) { r.n++; r.res = res }

func (c *cluster) send(s batchSpec) *result {
	c.t.Helper()
	r := &result{}
	c.leader.p.Produce(makeBatch(c.t, s), r.done)
	return r
}

func (r *result) want(t *testing.T, offset int64, err error) {
	t.Helper()
	switch {
	case r.n != 1:
		t.Fatalf("done called %d times", r.n)
	case err == nil && (r.res.Err != nil || r.res.BaseOffset != offset):
		t.Fatalf("got offset %d, %v; want %d", r.res.BaseOffset, r.res.Err, offset)
	case err != nil && !errors.Is(r.res.Err, err):
		t.Fatalf("got offset %d, %v; want %v", r.res.BaseOffset, r.res.Err, err)
	}
}

// contents reads a node's whole log, whatever the high watermark.
func (nd *node) contents() []byte {
	nd.c.t.Helper()
	return nd.from(nd.p.log.StartOffset())
}

// from reads on from an offset. One read may end with a segment, and segments roll differently on every replica.
func (nd *node) from(off int64) []byte {
	nd.c.t.Helper()
	l := nd.p.log
	var out []byte
	for off < l.EndOffset() {
		b, err := l.Read(off, l.EndOffset(), 1<<20, nil)
		if err != nil {
			nd.c.t.Fatalf("node %d at %d: %v", nd.id, off, err)
		}
		out = append(out, b...)
		if off, err = batchesEnd(b); err != nil {
			nd.c.t.Fatal(err)
		}
	}
	return out
}

// encoded returns a node's state without what is its own.
func (nd *node) encoded() []byte {
	st := nd.p.st
	st.replica, st.generation = 0, 0
	return st.encode()
}

func (c *cluster) agree() {
	c.t.Helper()
	a := c.nodes[0]
	for _, b := range c.nodes[1:] {
		if string(a.contents()) != string(b.contents()) {
			c.t.Fatalf("logs of nodes 0 and %d differ", b.id)
		}
		if string(a.encoded()) != string(b.encoded()) {
			c.t.Fatalf("states of nodes 0 and %d differ", b.id)
		}
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// snapshot reads the producer snapshot at a base offset.
func (nd *node) snapshot(base int64) []segment.ProducerEntry {
	nd.c.t.Helper()
	out, err := segment.ReadProducerSnapshot(nd.fs, filepath.Join(nd.p.log.Dir(), segment.ProducerSnapshotName(base)))
	if err != nil {
		nd.c.t.Fatal(err)
	}
	return out
}
