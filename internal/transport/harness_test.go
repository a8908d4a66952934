package transport

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/freeport"
	"github.com/chronik-go/chronik/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const bound = time.Minute // of every wait

// within fails the test if cond does not become true in time.
func within(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(bound); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", bound, what)
		}
	}
}

type drop struct {
	peer      int32
	group, to uint64
	snapshot  bool
}

// recorder is a Handler that remembers.
type recorder struct {
	mu     sync.Mutex
	envs   []Envelope
	froms  []int32
	drops  []drop
	events []string

	onEnvelopes func(from int32, envs []Envelope)
	onCall      func(ctx context.Context, from int32, method uint16, body []byte) ([]byte, error)
	onForward   func(from int32, method uint16, body []byte, reply func([]byte, error))
}

func (r *recorder) HandleEnvelopes(from int32, envs []Envelope) {
	if r.onEnvelopes != nil {
		r.onEnvelopes(from, envs)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.envs = append(r.envs, envs...)
	for range envs {
		r.froms = append(r.froms, from)
	}
}

func (r *recorder) HandleDropped(peer int32, group, to uint64, snapshot bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drops = append(r.drops, drop{peer, group, to, snapshot})
}

func (r *recorder) HandlePeerUp(peer int32)   { r.event("up", peer) }
func (r *recorder) HandlePeerDown(peer int32) { r.event("down", peer) }

func (r *recorder) event(what string, peer int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf("%s %d", what, peer))
}

func (r *recorder) HandleCall(ctx context.Context, from int32, method uint16, body []byte) ([]byte, error) {
	if r.onCall == nil {
		return append([]byte("echo "), body...), nil
	}
	return r.onCall(ctx, from, method, body)
}

func (r *recorder) HandleForward(from int32, method uint16, body []byte, reply func([]byte, error)) {
	if r.onForward == nil {
		reply(append([]byte("fwd "), body...), nil)
		return
	}
	r.onForward(from, method, body, reply)
}

func (r *recorder) received() []Envelope {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Envelope(nil), r.envs...)
}

func (r *recorder) dropped() []drop {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]drop(nil), r.drops...)
}

func (r *recorder) history() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.events, ", ")
}

// logs collects what a node logs.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// lines returns the lines that contain all of words.
func (l *logs) lines(words ...string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for _, line := range strings.Split(l.buf.String(), "\n") {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		out = append(out, line)
	}
	return out
}

// testNode is a node's transport: client, server, and what they were told.
type testNode struct {
	t   *testing.T
	cfg Config
	rec *recorder
	log *logs
	srv *Server
	cl  *Client
}

const testCluster = "cluster-a"

// newNode makes a node with a client and a server that is not started.
func newNode(t *testing.T, id int32, change ...func(*Config, *recorder)) *testNode {
	t.Helper()
	n := &testNode{t: t, rec: &recorder{}, log: &logs{}}
	n.cfg = Config{
		NodeID: id, Dir: uuid.New(), Listen: "127.0.0.1:0",
		ClusterID:  func() string { return testCluster },
		BackoffMin: 5 * time.Millisecond, BackoffMax: 50 * time.Millisecond,
		CloseTimeout: 500 * time.Millisecond, DialTimeout: bound, CallTimeout: bound, ForwardTimeout: bound, KeepaliveTime: bound, KeepaliveTimeout: bound,
		Logger: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	n.cfg.OnInbound = func(node int32) { n.cl.Wake(node) }
	for _, f := range change {
		f(&n.cfg, n.rec)
	}
	n.cl = NewClient(n.cfg, n.rec)
	t.Cleanup(func() { n.cl.Close() })
	n.newServer()
	return n
}

// newServer replaces the node's server; a fixed cfg.Listen makes it come back at the same address.
func (n *testNode) newServer() {
	n.t.Helper()
	srv, err := NewServer(n.cfg, n.rec)
	if err != nil {
		n.t.Fatal(err)
	}
	n.srv = srv
	n.t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			n.t.Error(err)
		}
	})
}

func (n *testNode) addr() string { return n.srv.Addr().String() }

func (n *testNode) started() *testNode {
	n.srv.Start()
	return n
}

// connect adds to as a peer of n and waits until it is up, with all its streams: the others may stand later than control's, by which a
// peer is up.
func (n *testNode) connect(to *testNode) {
	n.t.Helper()
	if err := n.cl.AddPeer(to.cfg.NodeID, to.addr()); err != nil {
		n.t.Fatal(err)
	}
	n.awaitUp(to.cfg.NodeID)
	p := n.cl.pool.peer(to.cfg.NodeID)
	within(n.t, "its other streams stand", func() bool { return attached(p.bulk) && attached(p.control) && linked(p.forward) })
}

func attached(o *Outbox) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.sink != nil
}

func linked(f *forwardClient) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stream != nil
}

func (n *testNode) awaitUp(id int32) {
	n.t.Helper()
	within(n.t, fmt.Sprintf("node %d connects to %d", n.cfg.NodeID, id), func() bool { return n.cl.Connected(id) })
}

// absentAddr is an address nobody listens at, and nobody else will: a test may do so later.
func absentAddr(t *testing.T) string {
	t.Helper()
	ports, err := freeport.Ports(1)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0])
}

func heartbeat(group, to, term uint64) Envelope {
	return Envelope{Kind: KindRaft, Group: group, From: 1, To: to,
		Raft: raftpb.Message{Type: raftpb.MsgHeartbeat, From: 1, To: to, Term: term, Commit: 7}}
}

func appendMsg(group, to, index uint64, data ...[]byte) Envelope {
	m := raftpb.Message{Type: raftpb.MsgApp, From: 1, To: to, Term: 3, LogTerm: 3, Index: index, Commit: index}
	for i, d := range data {
		m.Entries = append(m.Entries, raftpb.Entry{Term: 3, Index: index + 1 + uint64(i), Data: d})
	}
	return Envelope{Kind: KindRaft, Group: group, From: 1, To: to, Raft: m}
}

func snapMsg(group, to uint64) Envelope {
	return Envelope{Kind: KindRaft, Group: group, From: 1, To: to, Raft: raftpb.Message{Type: raftpb.MsgSnap, From: 1, To: to,
		Term: 3, Snapshot: &raftpb.Snapshot{Data: []byte("descriptor"), Metadata: raftpb.SnapshotMetadata{Index: 9, Term: 2,
			ConfState: raftpb.ConfState{Voters: []uint64{1, 2, 3}}}}}}
}
