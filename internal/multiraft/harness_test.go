package multiraft

import (
	"bytes"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/leaktest"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// listSM is a state machine that remembers what it was given: enough to see what the group did.
type listSM struct {
	mu        sync.Mutex
	applied   []string // data of normal entries
	index     uint64
	term      uint64
	readyTerm uint64
	lostTerm  uint64
	prepares  int
	aborts    int
	failApply error
	panicOn   string
	holdStage bool
	// replaceStage ends a staging under way when the next begins.
	replaceStage bool
	panicPrepare string
	// onApply and onInstall look on; with onApply set, values are remembered up to their colon.
	onApply   func(index uint64, values []string)
	onInstall func(index uint64, values []string)
	stageDone func(error)
	received  []transport.Envelope
	closed    bool
}

func (s *listSM) Prepare(_ uint64, props []Proposal, maxBytes int) ([]byte, []Proposal, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prepares++
	var data []byte
	n := 0
	for _, p := range props {
		d := p.(*RawProposal).Data
		if n > 0 && len(data)+1+len(d) > maxBytes {
			break
		}
		if s.panicPrepare != "" && string(d) == s.panicPrepare {
			panic("planted")
		}
		if n > 0 {
			data = append(data, '|')
		}
		data = append(data, d...)
		n++
	}
	return data, props[:n], n
}

func (s *listSM) Abort() { s.mu.Lock(); s.aborts++; s.mu.Unlock() }

func (s *listSM) Apply(entries []raftpb.Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		if s.index != 0 && e.Index != s.index+1 {
			return fmt.Errorf("entry %d follows %d", e.Index, s.index)
		}
		s.index, s.term = e.Index, e.Term
		if s.onApply != nil {
			var values []string
			if e.Type == raftpb.EntryNormal && len(e.Data) > 0 {
				for _, v := range strings.Split(string(e.Data), "|") {
					v, _, _ = strings.Cut(v, ":")
					values = append(values, v)
				}
			}
			s.applied = append(s.applied, values...)
			s.onApply(e.Index, values)
			continue
		}
		if e.Type == raftpb.EntryNormal && len(e.Data) > 0 {
			if s.failApply != nil {
				return s.failApply
			}
			if s.panicOn != "" && string(e.Data) == s.panicOn {
				panic("planted")
			}
			s.applied = append(s.applied, strings.Split(string(e.Data), "|")...)
		}
	}
	return nil
}

func (s *listSM) LeaderReady(term uint64) { s.mu.Lock(); s.readyTerm = term; s.mu.Unlock() }
func (s *listSM) LeaderLost(term uint64)  { s.mu.Lock(); s.lostTerm = term; s.mu.Unlock() }

func (s *listSM) Snapshot() (uint64, uint64, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index, s.term, s.encode(), nil
}

func (s *listSM) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, s.index)
	b = binary.BigEndian.AppendUint64(b, s.term)
	return append(b, strings.Join(s.applied, "|")...)
}

func (s *listSM) decode(b []byte) {
	s.index, s.term, s.applied = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), nil
	if len(b) > 16 {
		s.applied = strings.Split(string(b[16:]), "|")
	}
}

func (s *listSM) Stage(_ raftpb.Snapshot, _ Peer, done func(error)) {
	s.mu.Lock()
	hold, old := s.holdStage, s.stageDone
	s.stageDone = done
	replace := s.replaceStage
	s.mu.Unlock()
	if replace && old != nil {
		old(errPlanted)
	}
	if !hold {
		done(nil)
	}
}

func (s *listSM) Install(snap raftpb.Snapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrStopped
	}
	s.decode(snap.Data)
	if s.onInstall != nil {
		s.onInstall(s.index, s.applied)
	}
	return nil
}

func (s *listSM) Receive(env transport.Envelope, _ Peer) {
	s.mu.Lock()
	s.received = append(s.received, env)
	s.mu.Unlock()
}

func (s *listSM) Close() error { s.mu.Lock(); s.closed = true; s.mu.Unlock(); return nil }

func (s *listSM) list() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.applied)
}

// cluster is a handful of services on one thread, joined by queues that a test can cut. Its clock stands still unless the test moves
// it: however slow the machine is, nothing becomes due by itself.
type cluster struct {
	t     *testing.T
	clock *clock.Sim
	nodes map[int32]*simNode
	order []int32
	queue []inFlight
	cuts  uint64
	cut   func(from, to int32, env *transport.Envelope) bool
	seen  func(from, to int32, env *transport.Envelope)
	conf  raftpb.ConfState
	walOf func(*wal.Options)
	tune  func(*Config)
	// keepTimes is RegisterOptions.KeepTimes.
	keepTimes bool
	// noLog and noApply hold a node's log writer or applier back.
	noLog, noApply map[int32]bool
}

type inFlight struct {
	from, to int32
	env      transport.Envelope
}

type simNode struct {
	id     int32
	c      *cluster
	fs     *vfs.Mem
	dir    string
	log    *wal.Log
	svc    *Service
	sm     map[uint64]*listSM
	walErr error
	down   bool
}

func (n *simNode) Send(to int32, env transport.Envelope) {
	n.c.queue = append(n.c.queue, inFlight{n.id, to, env})
}

const testGroup = 7

func replicaOf(node int32) uint64 { return uint64(node) * 10 }

func newCluster(t *testing.T, n int, opts ...func(*cluster)) *cluster {
	drawElections(t)
	c := &cluster{t: t, clock: clock.NewSim(time.Unix(1_700_000_000, 0)), nodes: map[int32]*simNode{}, noLog: map[int32]bool{}, noApply: map[int32]bool{}}
	for _, o := range opts {
		o(c)
	}
	for i := int32(1); i <= int32(n); i++ {
		c.conf.Voters = append(c.conf.Voters, replicaOf(i))
		c.order = append(c.order, i)
	}
	for _, id := range c.order {
		c.nodes[id] = &simNode{id: id, c: c, fs: vfs.NewMem(uint64(id)), dir: "/log"}
		c.start(id)
		c.register(id, testGroup, false)
	}
	t.Cleanup(func() {
		for _, id := range c.order {
			c.stop(id)
		}
	})
	return c
}

// drawElections has raft draw its election timeouts from a seed, the test's name, until the test ends: it repeats. CHRONIK_ELECTIONS=n
// gives others.
func drawElections(t *testing.T) {
	h := fnv.New64a()
	name, _, _ := strings.Cut(t.Name(), "/") // what a fuzzer has found goes by another name later
	fmt.Fprint(h, name, os.Getenv("CHRONIK_ELECTIONS"))
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], h.Sum64())
	was := crand.Reader
	crand.Reader = rand.NewChaCha8(seed)
	t.Cleanup(func() { crand.Reader = was })
}

func (c *cluster) members() (m []Member) {
	for _, id := range c.order {
		m = append(m, Member{Replica: replicaOf(id), Node: id})
	}
	return m
}

func (c *cluster) start(id int32) {
	n := c.nodes[id]
	o := wal.Options{FS: n.fs, Dir: n.dir, Clock: c.clock, Logger: slog.New(slog.DiscardHandler), FileBytes: 4 << 20,
		OnFatal: func(err error) { n.walErr = err }}
	if c.walOf != nil {
		c.walOf(&o)
	}
	log, err := wal.Open(o)
	if err != nil {
		c.t.Fatal(err)
	}
	cfg := Config{NodeID: id, Log: log, Sender: n, Clock: c.clock}
	if c.tune != nil {
		c.tune(&cfg)
	}
	n.log, n.sm, n.down = log, map[uint64]*listSM{}, false
	if n.svc, err = NewService(cfg); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) register(id int32, group uint64, campaign bool) *Replica {
	n := c.nodes[id]
	if n.log.Group(group) == nil {
		sm := &listSM{index: 1, term: 1}
		if _, err := n.log.Create(group, wal.Checkpoint{Index: 1, Term: 1, ConfState: c.conf, State: sm.encode()}, nil); err != nil {
			c.t.Fatal(err)
		}
	}
	sm := &listSM{}
	sm.decode(n.log.Group(group).Checkpoint().State)
	n.sm[group] = sm
	r, err := n.svc.Register(RegisterOptions{Topic: "t", Partition: int32(group), Group: group, Replica: replicaOf(id),
		Members: c.members(), SM: sm, Campaign: campaign, KeepTimes: c.keepTimes})
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

func (c *cluster) stop(id int32) {
	n := c.nodes[id]
	if n.down {
		return
	}
	n.down = true
	n.svc.Close()
	for range 3 {
		for _, s := range append(n.svc.Shards(), n.svc.Appliers()...) {
			for s.Step() {
			}
		}
	}
	if err := n.log.Close(); err != nil && n.walErr == nil {
		c.t.Error(err)
	}
}

// settle steps everything until nothing moves.
func (c *cluster) settle() {
	for range 100000 {
		moved := false
		for _, id := range c.order {
			n := c.nodes[id]
			if n.down {
				continue
			}
			for _, s := range n.svc.Shards() {
				moved = s.Step() || moved
			}
			if !c.noLog[id] {
				moved = n.log.Step() || moved
				moved = n.log.StepBackground() || moved
			}
			for _, s := range n.svc.Shards() {
				moved = !s.(*shard).inbox.empty() || moved
			}
			if c.noApply[id] {
				continue
			}
			for _, s := range n.svc.Appliers() {
				moved = s.Step() || moved
			}
			for _, s := range n.svc.Shards() {
				moved = !s.(*shard).inbox.empty() || moved
			}
			for _, s := range n.svc.Appliers() {
				moved = !s.(*applier).inbox.empty() || moved
			}
		}
		queue := c.queue
		c.queue = nil
		for _, m := range queue {
			moved = true
			if c.seen != nil {
				c.seen(m.from, m.to, &m.env)
			}
			if c.nodes[m.to] == nil || c.nodes[m.to].down || c.cut != nil && c.cut(m.from, m.to, &m.env) {
				continue
			}
			c.nodes[m.to].svc.HandleEnvelopes(m.from, c.wire(m.env))
		}
		if !moved {
			return
		}
	}
	c.t.Fatal("the cluster does not settle")
}

// wire sends an envelope through its encoding's guarantees: the receiver shares no memory with the sender.
func (c *cluster) wire(env transport.Envelope) []transport.Envelope {
	if env.Kind == transport.KindRaft {
		b, err := env.Raft.Marshal()
		if err != nil {
			c.t.Fatal(err)
		}
		env.Raft = raftpb.Message{}
		if err := env.Raft.Unmarshal(b); err != nil {
			c.t.Fatal(err)
		}
	}
	env.Body = bytes.Clone(env.Body)
	return []transport.Envelope{env}
}

func (c *cluster) tick(times int) {
	for range times {
		for _, id := range c.order {
			if n := c.nodes[id]; !n.down {
				n.svc.Tick()
			}
		}
		c.settle()
	}
}

func (c *cluster) replica(id int32) *Replica {
	r, ok := c.nodes[id].svc.Group(testGroup)
	if !ok {
		c.t.Fatalf("node %d has no replica", id)
	}
	return r
}

func (c *cluster) sm(id int32) *listSM { return c.nodes[id].sm[testGroup] }

// leader ticks until one live node leads and may serve.
func (c *cluster) leader() int32 {
	c.t.Helper()
	for range 200 {
		c.settle()
		var best int32
		var term uint64
		for _, id := range c.order {
			if n := c.nodes[id]; !n.down {
				if st := c.replica(id).Status(); st.Ready && st.Term > term {
					best, term = id, st.Term
				}
			}
		}
		if best != 0 {
			return best
		}
		c.tick(1)
	}
	c.t.Fatal("no leader")
	return 0
}

type outcome struct {
	done bool
	err  error
}

func (c *cluster) propose(id int32, data string) *outcome {
	o := &outcome{}
	c.replica(id).Enqueue(&RawProposal{Data: []byte(data), OnDone: func(err error) {
		if o.done {
			c.t.Errorf("proposal %q ended twice", data)
		}
		o.done, o.err = true, err
	}})
	return o
}

func (c *cluster) mustPropose(id int32, data string) {
	c.t.Helper()
	o := c.propose(id, data)
	for range 50 {
		if c.settle(); o.done {
			break
		}
		c.tick(1)
	}
	if !o.done || o.err != nil {
		c.t.Fatalf("proposal %q: done %v, error %v", data, o.done, o.err)
	}
}

// kill cuts a node's power: what was not synced is kept, lost or torn as the seed has it.
func (c *cluster) kill(id int32) {
	n := c.nodes[id]
	n.down = true
	c.cuts++
	n.fs.Crash(c.cuts)
}

func (c *cluster) restart(id int32) {
	c.start(id)
	c.register(id, testGroup, false)
}

func (c *cluster) expect(want ...string) {
	c.t.Helper()
	for range 30 {
		c.tick(1)
		same := true
		for _, id := range c.order {
			same = same && (c.nodes[id].down || slices.Equal(c.sm(id).list(), want))
		}
		if same {
			return
		}
	}
	for _, id := range c.order {
		c.t.Errorf("node %d applied %q, want %q", id, c.sm(id).list(), want)
	}
}

var errPlanted = errors.New("planted")
