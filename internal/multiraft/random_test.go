package multiraft

import (
	"bytes"
	crand "crypto/rand"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// TestRandomFaults drives a group through random proposals, message loss, reordering and repetition, cut links, power cuts,
// restarts, transfers, broken connections, membership changes, slow logs and appliers, checkpoints and snapshots, on one
// thread and from one seed. CHRONIK_SEEDS=first:count runs others than the default ones.
func TestRandomFaults(t *testing.T) {
	first, count := uint64(1), uint64(12)
	if s := os.Getenv("CHRONIK_SEEDS"); s != "" {
		a, b, _ := strings.Cut(s, ":")
		var err1, err2 error
		first, err1 = strconv.ParseUint(a, 10, 64)
		count, err2 = strconv.ParseUint(b, 10, 64)
		if err1 != nil || err2 != nil {
			t.Fatalf("CHRONIK_SEEDS=%s, want first:count", s)
		}
	}
	var total tally
	for seed := first; seed < first+count; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { total.add(runMayhem(t, seed).tally) })
	}
	if t.Failed() {
		return
	}
	t.Logf("%+v", total)
	if count >= 12 && (total.acked == 0 || total.lost == 0 || total.cuts == 0 || total.snapshots == 0 || total.confs == 0 || total.joints == 0 || total.reads == 0 || total.terms == 0) {
		t.Fatalf("the faults did not happen: %+v", total)
	}
}

// The simulator's promise: a seed is a run.
func TestRandomFaultsRepeat(t *testing.T) {
	a, b := runMayhem(t, 5), runMayhem(t, 5)
	if a.tally != b.tally || a.trace.Sum64() != b.trace.Sum64() || !slices.Equal(a.hist, b.hist) {
		t.Fatalf("one seed, two runs: %+v and %+v", a.tally, b.tally)
	}
}

func runMayhem(t *testing.T, seed uint64) *mayhem {
	old := crand.Reader
	crand.Reader = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)}) // raft's election jitter
	defer func() { crand.Reader = old }()
	m := newMayhem(t, seed)
	m.seen = func(from, to int32, env *transport.Envelope) {
		fmt.Fprint(m.trace, from, to, env.Kind, env.Raft.Type, env.Raft.Term, env.Raft.Index, env.Raft.Commit, len(env.Raft.Entries), ";")
	}
	for range 5000 {
		m.act()
		m.check()
	}
	m.heal()
	return m
}

// tally counts what happened, so that a run without faults is not taken for a good one.
type tally struct {
	proposed, acked, lost, unknown, cuts, snapshots, confs, joints, reads, terms int
}

func (a *tally) add(b tally) {
	a.proposed += b.proposed
	a.acked += b.acked
	a.lost += b.lost
	a.unknown += b.unknown
	a.cuts += b.cuts
	a.snapshots += b.snapshots
	a.confs += b.confs
	a.joints += b.joints
	a.reads += b.reads
	a.terms += b.terms
}

// mayhem is a cluster, what is done to it, and what must hold.
type mayhem struct {
	*cluster
	t     *testing.T
	rnd   *rand.Rand
	tally tally
	trace hash.Hash64 // of every message taken from the network

	boots map[int32]int
	links map[[2]int32]bool // cut
	slow  map[int32]int     // of log and applier, in eighths
	next  int
	open  map[string]int32 // proposals without an outcome, by where they were made

	hist  []string       // what was applied first, in order
	upTo  map[uint64]int // index -> length of hist
	last  uint64
	at    map[string]uint64 // value -> index
	gone  map[string]bool   // reported to be in no log
	acked uint64            // the highest index acknowledged
	led   map[uint64]string // term -> who led it
}

const mayhemNodes = 4 // three voters, and one that membership changes bring in

func newMayhem(t *testing.T, seed uint64) *mayhem {
	m := &mayhem{t: t, trace: fnv.New64a(), rnd: rand.New(rand.NewPCG(seed, 77)), boots: map[int32]int{}, links: map[[2]int32]bool{}, slow: map[int32]int{},
		open: map[string]int32{}, upTo: map[uint64]int{}, last: 1, at: map[string]uint64{}, gone: map[string]bool{}, led: map[uint64]string{}}
	c := &cluster{t: t, clock: clock.NewSim(time.Unix(1_700_000_000, 0)), nodes: map[int32]*simNode{}, noLog: map[int32]bool{}, noApply: map[int32]bool{}}
	m.cluster = c
	c.walOf = func(o *wal.Options) {
		o.FileBytes, o.MaxBytes, o.CacheBytes = 64<<10, 256<<10, 32<<10
	}
	c.tune = func(cfg *Config) {
		cfg.MaxEntryBytes, cfg.MaxUnappliedBytes, cfg.PrefetchBytes, cfg.MaxInflightBytes = 8<<10, 64<<10, 8<<10, 32<<10
		cfg.MaxAppendBacklog = 48 << 10
		cfg.OnFence = func(r *Replica, err error) { t.Errorf("replica %d fenced: %v", r.ID(), err) }
	}
	m.upTo[1] = 0
	for id := int32(1); id <= mayhemNodes; id++ {
		c.order = append(c.order, id)
		if id <= 3 {
			c.conf.Voters = append(c.conf.Voters, replicaOf(id))
		}
	}
	for _, id := range c.order {
		c.nodes[id] = &simNode{id: id, c: c, fs: vfs.NewMem(seed*10 + uint64(id)), dir: "/log"}
		m.boot(id)
	}
	t.Cleanup(func() {
		for _, id := range c.order {
			c.stop(id)
		}
	})
	return m
}

// boot starts a node from what its disk holds.
func (m *mayhem) boot(id int32) {
	m.t.Helper()
	m.boots[id]++
	m.start(id)
	n := m.nodes[id]
	if n.log.Group(testGroup) == nil {
		cp := wal.Checkpoint{}
		if id <= 3 {
			cp = wal.Checkpoint{Index: 1, Term: 1, ConfState: m.conf, State: (&listSM{index: 1, term: 1}).encode()}
		}
		if _, err := n.log.Create(testGroup, cp, nil); err != nil {
			m.t.Fatal(err)
		}
	}
	sm := &listSM{replaceStage: true, onApply: m.applied, onInstall: m.installed}
	if state := n.log.Group(testGroup).Checkpoint().State; len(state) > 0 {
		sm.decode(state)
		m.installed(sm.index, sm.applied)
	}
	n.sm[testGroup] = sm
	if _, err := n.svc.Register(RegisterOptions{Topic: "t", Partition: testGroup, Group: testGroup, Replica: replicaOf(id),
		Members: m.members(), SM: sm}); err != nil {
		m.t.Fatal(err)
	}
}

// applied checks an entry that some replica applies: the same at its index everywhere, each proposal once, none that was said
// to be lost.
func (m *mayhem) applied(index uint64, values []string) {
	if index <= m.last {
		from, ok := m.upTo[index-1]
		if !ok || !slices.Equal(m.hist[from:m.upTo[index]], values) {
			m.t.Errorf("entry %d holds %q here, %q elsewhere", index, values, m.hist[from:m.upTo[index]])
		}
		return
	}
	if index != m.last+1 {
		m.t.Errorf("entry %d is applied before %d was anywhere", index, m.last+1)
	}
	for _, v := range values {
		if m.at[v] != 0 {
			m.t.Errorf("%s is applied at %d and at %d", v, m.at[v], index)
		}
		if m.gone[v] {
			m.t.Errorf("%s is applied at %d although it was said to be in no log", v, index)
		}
		m.at[v] = index
	}
	m.hist = append(m.hist, values...)
	m.last, m.upTo[index] = index, len(m.hist)
}

func (m *mayhem) installed(index uint64, values []string) {
	n, ok := m.upTo[index]
	if !ok || !slices.Equal(m.hist[:n], values) {
		m.t.Errorf("a state at %d of %d values, want %d", index, len(values), n)
	}
}

func (m *mayhem) live() (ids []int32) {
	for _, id := range m.order {
		if !m.nodes[id].down {
			ids = append(ids, id)
		}
	}
	return ids
}

func (m *mayhem) pick(ids []int32) int32 { return ids[m.rnd.IntN(len(ids))] }

// act does one thing.
func (m *mayhem) act() {
	ids := m.live()
	if len(ids) == 0 {
		m.boot(m.pick(m.order))
		return
	}
	id := m.pick(ids)
	switch p := m.rnd.IntN(1000); {
	case p < 330:
		for range 8 {
			m.deliver()
		}
	case p < 720:
		for range 6 {
			m.step(m.pick(ids))
		}
	case p < 750:
		for _, x := range ids {
			m.nodes[x].svc.Tick()
		}
	case p < 760:
		m.nodes[id].svc.Tick()
	case p < 890:
		m.offer(ids)
	case p < 915:
		m.read(id)
	case p < 919:
		m.links[[2]int32{m.pick(m.order), m.pick(m.order)}] = true
	case p < 935:
		clear(m.links)
	case p < 937:
		m.cutPower(id)
	case p < 951:
		if down := m.pick(m.order); m.nodes[down].down {
			m.boot(down)
		}
	case p < 956:
		m.replica(id).TransferLeadership(int32(m.rnd.IntN(mayhemNodes+1)) - 1)
	case p < 961:
		m.nodes[id].svc.HandlePeerDown(m.pick(m.order))
	case p < 980:
		m.checkpointOne(id)
	case p < 986:
		m.slow[id] = m.rnd.IntN(9)
	case p < 989:
		m.stage(id)
	case p < 992:
		m.upheaval(ids)
	case p < 995:
		m.change(ids)
	default:
		m.clock.Advance(100 * time.Millisecond)
	}
}

// step runs one part of a node.
func (m *mayhem) step(id int32) {
	n := m.nodes[id]
	slow := m.rnd.IntN(8) < m.slow[id]
	switch m.rnd.IntN(6) {
	case 0, 1:
		for _, s := range n.svc.Shards() {
			s.Step()
		}
	case 2, 3:
		if !slow {
			n.log.Step()
		}
	case 4:
		if !slow {
			for _, s := range n.svc.Appliers() {
				s.Step()
			}
		}
	case 5:
		n.log.StepBackground()
	}
}

// deliver takes a message from a random link, mostly the oldest.
func (m *mayhem) deliver() {
	if len(m.queue) == 0 {
		return
	}
	i := m.rnd.IntN(len(m.queue))
	if m.rnd.IntN(20) != 0 {
		from, to := m.queue[i].from, m.queue[i].to
		i = slices.IndexFunc(m.queue, func(f inFlight) bool { return f.from == from && f.to == to })
	}
	f := m.queue[i]
	again := m.rnd.IntN(50) == 0
	if !again {
		m.queue = slices.Delete(m.queue, i, i+1)
	}
	m.seen(f.from, f.to, &f.env)
	snap := f.env.Kind == transport.KindRaft && f.env.Raft.Type == raftpb.MsgSnap
	if m.rnd.IntN(40) == 0 || m.links[[2]int32{f.from, f.to}] || m.nodes[f.to].down || len(m.queue) > 3000 {
		if !again && m.rnd.IntN(2) == 0 && !m.nodes[f.from].down {
			m.nodes[f.from].svc.HandleDropped(f.to, f.env.Group, f.env.To, snap)
		}
		return
	}
	if snap {
		m.tally.snapshots++
	}
	m.nodes[f.to].svc.HandleEnvelopes(f.from, m.wire(f.env))
}

// offer proposes something, mostly where it may be taken.
func (m *mayhem) offer(ids []int32) {
	id := m.pick(ids)
	for _, x := range ids {
		if m.replica(x).IsLeader() && m.rnd.IntN(8) != 0 {
			id = x
		}
	}
	for range 1 + m.rnd.IntN(4) {
		m.next++
		v := fmt.Sprint("v", m.next)
		m.open[v] = id
		m.tally.proposed++
		data := append([]byte(v+":"), bytes.Repeat([]byte{'x'}, m.rnd.IntN(6000))...)
		boot := m.boots[id]
		m.replica(id).Enqueue(&RawProposal{Data: data, OnDone: func(err error) { m.settled(id, boot, v, err) }})
	}
}

func (m *mayhem) settled(id int32, boot int, v string, err error) {
	if _, ok := m.open[v]; !ok {
		m.t.Errorf("%s ended twice (%v)", v, err)
	}
	delete(m.open, v)
	switch {
	case err == nil:
		m.tally.acked++
		index := m.at[v]
		if index == 0 || index > m.replica(id).AppliedIndex() {
			m.t.Errorf("%s was acknowledged, but it is not applied", v)
		}
		m.acked = max(m.acked, index)
	case errors.Is(err, ErrNotLeader), errors.Is(err, ErrStopped), errors.Is(err, ErrOverloaded):
		m.tally.lost++
		m.gone[v] = true
		if m.at[v] != 0 {
			m.t.Errorf("%s was said to be in no log (%v), but it is applied at %d", v, err, m.at[v])
		}
	case errors.Is(err, ErrUnknownOutcome):
		m.tally.unknown++
	default:
		m.t.Errorf("%s: %v", v, err)
	}
}

// read asks for a read point: whatever anybody had been told before must be applied when it comes.
func (m *mayhem) read(id int32) {
	want, r := m.acked, m.replica(id)
	r.ReadIndex(func(err error) {
		if err == nil {
			m.tally.reads++
			if got := r.AppliedIndex(); got < want {
				m.t.Errorf("a current read at %d, after %d was acknowledged", got, want)
			}
		}
	})
}

func (m *mayhem) checkpointOne(id int32) {
	if sm := m.sm(id); sm.index > 0 {
		m.replica(id).Checkpoint(sm.index, sm.term, sm.encode())
	}
}

// stage ends a staging that is held, or holds the next.
func (m *mayhem) stage(id int32) {
	sm := m.sm(id)
	sm.holdStage = m.rnd.IntN(2) == 0
	if done := sm.stageDone; done != nil && !sm.holdStage {
		sm.stageDone = nil
		if m.rnd.IntN(3) == 0 {
			done(errPlanted)
		} else {
			done(nil)
		}
	}
}

// upheaval has several nodes stand for election at once, and cuts the power of one in the middle of it.
func (m *mayhem) upheaval(ids []int32) {
	for range 2 + m.rnd.IntN(4) {
		for _, id := range ids {
			if v := m.replica(id).view.Load(); v.leader != 0 && !v.isLeader {
				m.nodes[id].svc.HandlePeerDown(v.leaderNode)
			}
		}
		for _, id := range ids {
			switch m.rnd.IntN(3) {
			case 0:
				m.campaign(id)
			case 1: // as late words of a transfer do: without a pre-vote
				r := m.replica(id)
				r.shard.post(event{r: r, kind: evFunc, fn: func() {
					r.step(raftpb.Message{Type: raftpb.MsgTimeoutNow, From: replicaOf(m.pick(m.order)), To: r.id, Term: r.hard.Term})
				}})
			}
		}
		for range 20 + m.rnd.IntN(150) {
			m.step(m.pick(ids))
			m.deliver()
		}
		if id := m.pick(ids); m.rnd.IntN(2) == 0 {
			m.cutPower(id)
			m.boot(id)
		}
		m.check()
	}
}

func (m *mayhem) cutPower(id int32) {
	m.kill(id)
	m.tally.cuts++
	for v, at := range m.open {
		if at == id {
			delete(m.open, v) // nobody is left to be told
		}
	}
}

// change asks for a membership change: simple ones, joint ones that raft leaves by itself, and joint ones that last until somebody
// leaves them, which any leader may, in which any of the replicas may come or go.
func (m *mayhem) change(ids []int32) {
	if m.rnd.IntN(2) == 0 {
		m.changeJoint(ids)
		return
	}
	typ := []raftpb.ConfChangeType{raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode, raftpb.ConfChangeRemoveNode}
	cs := []raftpb.ConfChangeSingle{{Type: typ[m.rnd.IntN(3)], NodeID: replicaOf(4)}}
	if m.rnd.IntN(2) == 0 {
		cs = append(cs, raftpb.ConfChangeSingle{Type: typ[m.rnd.IntN(2)], NodeID: replicaOf(3)})
	}
	m.proposeConf(ids, raftpb.ConfChangeV2{Changes: cs})
}

func (m *mayhem) changeJoint(ids []int32) {
	if m.rnd.IntN(2) == 0 {
		m.proposeConf(ids, raftpb.ConfChangeV2{})
		return
	}
	cc := raftpb.ConfChangeV2{Transition: raftpb.ConfChangeTransitionJointExplicit}
	stays := m.order[0] // somebody must, and simple changes take the last ones away
	for _, id := range m.order {
		ch := raftpb.ConfChangeSingle{Type: raftpb.ConfChangeAddNode, NodeID: replicaOf(id)}
		if id != stays && m.rnd.IntN(3) == 0 {
			ch.Type = raftpb.ConfChangeRemoveNode
		}
		cc.Changes = append(cc.Changes, ch)
	}
	m.proposeConf(ids, cc)
}

func (m *mayhem) proposeConf(ids []int32, cc raftpb.ConfChangeV2) {
	for _, id := range ids {
		m.replica(id).ProposeConfChange(cc, func(err error) {
			if err == nil {
				m.tally.confs++
				if cc.Transition == raftpb.ConfChangeTransitionJointExplicit {
					m.tally.joints++
				}
			}
		})
	}
}

// check looks at what must hold at any moment.
func (m *mayhem) check() {
	for _, id := range m.live() {
		st := m.replica(id).Status()
		if !st.IsLeader {
			continue
		}
		who := fmt.Sprintf("node %d boot %d", id, m.boots[id])
		if was, ok := m.led[st.Term]; ok && was != who {
			m.t.Errorf("term %d is led by %s and by %s", st.Term, was, who)
		}
		if _, ok := m.led[st.Term]; !ok {
			m.led[st.Term] = who
			m.tally.terms++
		}
	}
	if m.t.Failed() {
		m.t.FailNow()
	}
}

// heal mends everything: the group must go on, with every replica the same and nobody waiting.
func (m *mayhem) heal() {
	clear(m.links)
	for _, id := range m.order {
		if m.nodes[id].down {
			m.boot(id)
		}
		sm := m.sm(id)
		sm.holdStage = false
		if done := sm.stageDone; done != nil {
			sm.stageDone = nil
			done(errPlanted)
		}
	}
	m.tick(40)
	want := []raftpb.ConfChangeSingle{}
	for _, id := range m.order {
		want = append(want, raftpb.ConfChangeSingle{Type: raftpb.ConfChangeAddNode, NodeID: replicaOf(id)})
	}
	var why error
	for done, tries := false, 0; !done; tries++ {
		if tries == 50 {
			m.t.Fatalf("the membership can't be mended (%v); %s", why, m.describe())
		}
		// A joint configuration left behind is left first; where there is none raft refuses that.
		m.replica(m.mustLead()).ProposeConfChange(raftpb.ConfChangeV2{}, func(error) {})
		m.tick(5)
		m.replica(m.mustLead()).ProposeConfChange(raftpb.ConfChangeV2{Changes: want}, func(err error) { done, why = err == nil, err })
		m.tick(5)
	}
	l := m.leader()
	last := fmt.Sprint("v", m.next+1)
	m.next++
	m.open[last] = l
	ok := false
	m.replica(l).Enqueue(&RawProposal{Data: []byte(last + ":"), OnDone: func(err error) { ok = err == nil; m.settled(l, m.boots[l], last, err) }})
	for range 200 {
		m.tick(1)
		if ok && !slices.ContainsFunc(m.order, func(id int32) bool { return m.sm(id).index != m.sm(l).index }) {
			break
		}
	}
	m.check()
	if !ok {
		m.t.Fatalf("no progress after healing: %+v", m.replica(l).Status())
	}
	for _, id := range m.order {
		r := m.replica(id)
		if got := m.sm(id).list(); !slices.Equal(got, m.hist) {
			m.t.Errorf("node %d applied %d values up to %d, the group %d up to %d", id, len(got), r.AppliedIndex(), len(m.hist), m.last)
		}
		if b := m.nodes[id].svc.backlog.Load(); b != 0 {
			m.t.Errorf("node %d: %d bytes of backlog at rest", id, b)
		}
		if q, u := r.queuedBytes.Load(), r.waiters.unapplied(); q != 0 || u != 0 {
			m.t.Errorf("node %d: %d bytes queued, %d unapplied at rest", id, q, u)
		}
	}
	for v, id := range m.open {
		m.t.Errorf("%s, proposed on node %d, never ended", v, id)
	}
}

func (m *mayhem) mustLead() int32 {
	for range 100 {
		for _, id := range m.order {
			if m.replica(id).Status().Ready {
				return id
			}
		}
		m.tick(1)
	}
	m.t.Fatalf("no leader: %s", m.describe())
	return 0
}

// describe shows where every replica stands.
func (m *mayhem) describe() string {
	var b strings.Builder
	for _, id := range m.order {
		r := m.replica(id)
		st := r.rn.Status()
		fmt.Fprintf(&b, "\nnode %d: %v term %d vote %d lead %d transferee %d commit %d applied %d told %d last %d first %d, %s, installing %v, staging %v, confs queued %d, %v", id,
			st.RaftState, st.Term, st.Vote, st.Lead, st.LeadTransferee, st.Commit, r.AppliedIndex(), r.toldApplied,
			m.nodes[id].log.Group(testGroup).LastIndex(), m.nodes[id].log.Group(testGroup).FirstIndex(), st.Config.String(), r.installing, r.staging != nil, len(r.confQueue), st.Progress)
	}
	return b.String()
}
