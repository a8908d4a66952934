package multiraft

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

func TestTransferLeadership(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	to := c.order[0]
	if to == l {
		to = c.order[1]
	}
	c.replica(l).TransferLeadership(to)
	c.settle()
	if got := c.leader(); got != to {
		t.Fatalf("node %d leads, want %d", got, to)
	}
	if c.sm(l).lostTerm == 0 {
		t.Fatal("the old leader's state machine was not told")
	}
	c.mustPropose(to, "b")
	c.expect("a", "b")
}

// Proposals that come while a transfer is stuck wait, and go through once raft gives the transfer up (rule 18).
func TestStuckTransferDoesNotLoseProposals(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	to := c.order[0]
	if to == l {
		to = c.order[1]
	}
	c.cut = func(_, _ int32, env *transport.Envelope) bool { return env.Raft.Type == raftpb.MsgTimeoutNow }
	c.replica(l).TransferLeadership(to)
	o := c.propose(l, "b")
	c.settle()
	if o.done {
		t.Fatalf("settled during the transfer: %v", o.err)
	}
	c.expect("a", "b")
	if !o.done || o.err != nil {
		t.Fatalf("outcome %+v", o)
	}
}

// A process that died is not waited for: its peers see the connection break and elect at once.
func TestPeerDownElectsAtOnce(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.tick(3)
	c.kill(l)
	for _, id := range c.order {
		if id != l {
			c.nodes[id].svc.HandlePeerDown(l)
		}
	}
	c.settle()
	c.tick(4)
	for _, id := range c.order {
		if id != l && c.replica(id).Status().Ready {
			return
		}
	}
	t.Fatal("no leader within four ticks of a dead peer")
}

// Where only one link broke, the leader stays: the others still hear it.
func TestOneBrokenLinkDoesNotDeposeTheLeader(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.tick(3)
	term := c.replica(l).Term()
	f := c.order[0]
	if f == l {
		f = c.order[1]
	}
	for range 5 {
		c.nodes[f].svc.HandlePeerDown(l)
		c.tick(15)
	}
	if got := c.replica(l).Status(); !got.IsLeader || got.Term != term {
		t.Fatalf("term %d became %+v", term, got)
	}
}

// Rule 15: many groups' heartbeats go out in one tick, and every group steps its own.
func TestIdleGroupsKeepTheirLeaders(t *testing.T) {
	c := newCluster(t, 3)
	c.leader()
	for g := uint64(100); g < 150; g++ {
		for _, id := range c.order {
			c.register(id, g, id == int32(g%3)+1)
		}
	}
	c.tick(5)
	terms := map[uint64]uint64{}
	for g := uint64(100); g < 150; g++ {
		r, _ := c.nodes[int32(g%3)+1].svc.Group(g)
		if st := r.Status(); !st.Ready {
			t.Fatalf("group %d: its preferred replica does not lead after five ticks: %+v", g, st)
		}
		terms[g] = r.Term()
	}
	c.tick(100)
	for g, term := range terms {
		r, _ := c.nodes[int32(g%3)+1].svc.Group(g)
		if st := r.Status(); !st.Ready || st.Term != term {
			t.Fatalf("group %d: an election while idle: %+v", g, st)
		}
	}
}

func TestAddLearnerCatchesUp(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	const id = 4
	c.order = append(c.order, id)
	c.nodes[id] = &simNode{id: id, c: c, fs: vfs.NewMem(id), dir: "/log"}
	c.start(id)
	n := c.nodes[id]
	if _, err := n.log.Create(testGroup, wal.Checkpoint{}, nil); err != nil {
		t.Fatal(err)
	}
	sm := &listSM{}
	n.sm[testGroup] = sm
	if _, err := n.svc.Register(RegisterOptions{Topic: "t", Group: testGroup, Replica: replicaOf(id), Members: c.members(), SM: sm}); err != nil {
		t.Fatal(err)
	}
	for _, x := range c.order[:3] {
		c.replica(x).SetMembers(c.members())
	}
	var err error
	settled := false
	cc := raftpb.ConfChangeV2{Changes: []raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeAddLearnerNode, NodeID: replicaOf(id)}}}
	c.replica(l).ProposeConfChange(cc, func(e error) { settled, err = true, e })
	c.tick(5)
	if !settled || err != nil {
		t.Fatalf("settled %v, error %v", settled, err)
	}
	c.mustPropose(l, "b")
	c.expect("a", "b")
	if st := c.replica(id).Status(); st.IsLeader || st.Leader == 0 {
		t.Fatalf("learner: %+v", st)
	}
	c.kill(id)
	c.restart(id)
	c.mustPropose(l, "c")
	c.expect("a", "b", "c")
}

// After a restart of them all the preferred replica stands at once: nobody waits for an election timeout.
func TestPreferredReplicaStandsAtOnceAfterARestart(t *testing.T) {
	c := newCluster(t, 3)
	c.mustPropose(c.leader(), "a")
	c.expect("a")
	for _, id := range c.order {
		c.kill(id)
	}
	for _, id := range c.order {
		c.start(id)
		c.register(id, testGroup, id == 2)
	}
	c.tick(3)
	if st := c.replica(2).Status(); !st.Ready {
		t.Fatalf("after three ticks: %+v", st)
	}
	c.expect("a")
}

// A preferred replica that comes back does not disturb a leader that lives.
func TestPreferredReplicaDoesNotDeposeALivingLeader(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	c.tick(3)
	term := c.replica(l).Term()
	f := c.order[0]
	if f == l {
		f = c.order[1]
	}
	c.kill(f)
	c.tick(5)
	c.start(f)
	c.register(f, testGroup, true)
	c.tick(40)
	if st := c.replica(l).Status(); !st.IsLeader || st.Term != term {
		t.Fatalf("term %d became %+v", term, st)
	}
	c.mustPropose(l, "b")
	c.expect("a", "b")
}

// The first in line after a dead leader may not know that there was one: it has just come back. Then the second stands, and
// nobody sits out an election timeout.
func TestSecondInLineStandsWhenTheFirstDoesNot(t *testing.T) {
	c := newCluster(t, 3)
	c.mustPropose(c.leader(), "a")
	c.replica(c.leader()).TransferLeadership(3)
	c.settle()
	if l := c.leader(); l != 3 {
		t.Fatalf("node %d leads, want 3", l)
	}
	c.tick(3)
	c.kill(1)
	c.cut = func(_, to int32, _ *transport.Envelope) bool { return to == 1 }
	c.restart(1)
	c.settle()
	c.kill(3)
	c.cut = nil
	for _, id := range []int32{1, 2} {
		c.nodes[id].svc.HandlePeerDown(3)
	}
	c.settle()
	if c.replica(1).Status().LeaderNode != -1 {
		t.Fatal("node 1 knows of the leader: the test shows nothing")
	}
	c.tick(successionTicks + 5)
	if st := c.replica(2).Status(); !st.Ready {
		t.Fatalf("node 2 after %d ticks: %+v", successionTicks+5, st)
	}
}
