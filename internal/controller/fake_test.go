package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/leaktest"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/transport"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// fate is what a fake log does with one proposal.
type fate int

const (
	commit        fate = iota
	drop               // not in the log: NotLeaderError
	dropUnknown        // not in the log, but nobody knows: ErrUnknownOutcome
	commitUnknown      // in the log, but nobody knows: ErrUnknownOutcome
)

// fakeCluster is a metadata group without Raft: one log that everyone applies at once, a leader that is named.
type fakeCluster struct {
	t     testing.TB
	mu    sync.Mutex
	log   []raftpb.Entry
	term  uint64
	lead  int32
	nodes []*fakeNode
	fates []fate // of the next proposals
	size  int    // the largest entry
	// after is called behind the log's back after each entry.
	after func()
	// reject makes calls to a node fail.
	reject func(from, to int32) error
	// lost makes the answers of a node get lost, after it has worked.
	lost map[int32]int
}

type fakeNode struct {
	fc       *fakeCluster
	id       int32
	machine  *StateMachine
	ctl      *Controller
	learners []uint64
	learnErr error
}

func testImage(nodes int) *metadata.Image {
	img := metadata.Empty()
	img.ClusterID, img.Index = "test-cluster", 1
	for i := 1; i <= nodes; i++ {
		img.Nodes[int32(i)] = &metadata.Node{
			ID: int32(i), Dir: uuid.UUID{15: byte(i)}, KafkaHost: "h", KafkaPort: 9092, MetadataReplica: uint64(i), Voter: i <= 3,
		}
	}
	img.NextReplica = uint64(nodes) + 1
	return img
}

func testRules() ConfigRules {
	return ConfigRules{
		Validate: func(_ Resource, name, value string) error {
			if strings.HasPrefix(name, "no.") || value == "bad" {
				return fmt.Errorf("no configuration %s=%s", name, value)
			}
			return nil
		},
		IsList:  func(_ Resource, name string) bool { return strings.HasPrefix(name, "list.") },
		Default: func(Resource, string) string { return "default" },
	}
}

func newFakeCluster(t testing.TB, img *metadata.Image, nodes int, mod ...func(*Config)) *fakeCluster {
	t.Helper()
	fc := &fakeCluster{t: t, term: 1, lead: 1, lost: map[int32]int{}}
	state, err := EncodeImage(img)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= nodes; i++ {
		n := &fakeNode{fc: fc, id: int32(i)}
		if n.machine, err = NewStateMachine(MachineConfig{}, img.Index, 1, state); err != nil {
			t.Fatal(err)
		}
		cfg := Config{
			NodeID: n.id, Machine: n.machine, Caller: n, Clock: clock.System{}, Configs: testRules(),
			Defaults: func() (int32, int16) { return 3, 1 },
		}
		for _, f := range mod {
			f(&cfg)
		}
		if n.ctl, err = New(cfg); err != nil {
			t.Fatal(err)
		}
		n.ctl.SetGroup(n, n)
		n.ctl.Start()
		fc.nodes = append(fc.nodes, n)
	}
	t.Cleanup(func() {
		for _, n := range fc.nodes {
			n.ctl.Close()
		}
	})
	return fc
}

func (fc *fakeCluster) ctl(node int32) *Controller { return fc.nodes[node-1].ctl }

func (fc *fakeCluster) setLeader(node int32) {
	fc.mu.Lock()
	fc.lead = node
	fc.term++
	fc.appendLocked(nil) // the no-op
	fc.mu.Unlock()
	for _, n := range fc.nodes {
		n.machine.LeaderReady(0)
	}
}

func (fc *fakeCluster) appendLocked(data []byte) {
	index := uint64(2)
	if n := len(fc.log); n > 0 {
		index = fc.log[n-1].Index + 1
	}
	e := raftpb.Entry{Index: index, Term: fc.term, Data: data}
	fc.log = append(fc.log, e)
	fc.size = max(fc.size, len(data))
	for _, n := range fc.nodes {
		if err := n.machine.Apply([]raftpb.Entry{e}); err != nil {
			fc.t.Errorf("node %d: %v", n.id, err)
		}
	}
}

// Enqueue implements Group.
func (n *fakeNode) Enqueue(p multiraft.Proposal) {
	fc := n.fc
	fc.mu.Lock()
	if fc.lead != n.id {
		fc.mu.Unlock()
		p.Done(&multiraft.NotLeaderError{LeaderNode: fc.lead})
		return
	}
	f := commit
	if len(fc.fates) > 0 {
		f, fc.fates = fc.fates[0], fc.fates[1:]
	}
	var err error
	data, bound, taken := n.machine.Prepare(fc.term, []multiraft.Proposal{p}, 1<<20)
	if data == nil || len(bound) != 1 || taken != 1 {
		fc.t.Errorf("prepared %d bytes, %d bound, %d taken", len(data), len(bound), taken)
	}
	switch f {
	case drop:
		n.machine.Abort()
		err = &multiraft.NotLeaderError{LeaderNode: -1}
	case dropUnknown:
		err = multiraft.ErrUnknownOutcome
	case commitUnknown:
		fc.appendLocked(data)
		err = multiraft.ErrUnknownOutcome
	default:
		fc.appendLocked(data)
	}
	after := fc.after
	fc.mu.Unlock()
	if after != nil {
		after()
	}
	p.Done(err)
}

// ReadIndex implements Group.
func (n *fakeNode) ReadIndex(done func(error)) {
	n.fc.mu.Lock()
	lead := n.fc.lead
	n.fc.mu.Unlock()
	if lead != n.id {
		done(&multiraft.NotLeaderError{LeaderNode: lead})
		return
	}
	done(nil)
}

// Status implements Group.
func (n *fakeNode) Status() multiraft.Status {
	n.fc.mu.Lock()
	defer n.fc.mu.Unlock()
	return multiraft.Status{Term: n.fc.term, LeaderNode: n.fc.lead, IsLeader: n.fc.lead == n.id, Ready: n.fc.lead == n.id}
}

// AddLearner implements Membership.
func (n *fakeNode) AddLearner(_ context.Context, replica uint64, _ int32) error {
	n.fc.mu.Lock()
	defer n.fc.mu.Unlock()
	if err := n.learnErr; err != nil {
		n.learnErr = nil
		return err
	}
	n.learners = append(n.learners, replica)
	return nil
}

// Call implements Caller.
func (n *fakeNode) Call(ctx context.Context, node int32, method uint16, body []byte) ([]byte, error) {
	fc := n.fc
	if fc.reject != nil {
		if err := fc.reject(n.id, node); err != nil {
			return nil, err
		}
	}
	if node < 1 || int(node) > len(fc.nodes) {
		return nil, transport.ErrPeerUnknown
	}
	reply, err := fc.ctl(node).HandleCall(ctx, n.id, method, body)
	fc.mu.Lock()
	defer fc.mu.Unlock()
	if fc.lost[node] > 0 {
		fc.lost[node]--
		return nil, errors.New("stream broken")
	}
	return reply, err
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) || want == nil && err != nil {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func topic(name string) NewTopic { return NewTopic{Name: name, Partitions: -1, ReplicationFactor: -1} }

func mustCreate(t testing.TB, c *Controller, topics ...NewTopic) []TopicResult {
	t.Helper()
	rs := c.CreateTopics(testContext(t), topics, false)
	for _, r := range rs {
		if r.Err != nil {
			t.Fatalf("creating %q: %v", r.Name, r.Err)
		}
	}
	return rs
}

// encodedAll returns the image's bytes, which must be the same on all nodes.
func (fc *fakeCluster) encodedAll(t testing.TB) []byte {
	t.Helper()
	var first []byte
	for _, n := range fc.nodes {
		b, err := EncodeImage(n.machine.Image())
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		} else if string(first) != string(b) {
			t.Fatalf("node %d has another image than node 1", n.id)
		}
	}
	return first
}
