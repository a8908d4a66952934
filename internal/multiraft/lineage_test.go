package multiraft

import (
	"errors"
	"testing"

	"github.com/chronik-go/chronik/internal/transport"
)

// Bugs that the ancestor had (docs/reliability.md), and that no other test here is about.

// Apply blocked the heartbeats there, and a slow disk cost 2,000 terms a minute. Here the groups go on electing nobody, and
// replicating, while nothing at all is applied.
func TestSlowApplyKeepsTheLeader(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	c.expect("a")
	term, commit := c.replica(l).Term(), c.replica(l).CommitIndex()
	for _, id := range c.order {
		c.noApply[id] = true
	}
	o := c.propose(l, "b")
	c.tick(100)
	if st := c.replica(l).Status(); !st.IsLeader || st.Term != term || st.Commit <= commit {
		t.Errorf("with every applier stuck: %+v, it led term %d", st, term)
	}
	for _, id := range c.order {
		if got := c.sm(id).list(); len(got) != 1 {
			t.Errorf("node %d applied %q: not on its applier", id, got)
		}
	}
	if o.done {
		t.Errorf("answered before it was applied: %v", o.err)
	}
	clear(c.noApply)
	c.expect("a", "b")
	if !o.done || o.err != nil {
		t.Errorf("outcome %+v", o)
	}
}

// Leader id 0, which is nobody, was a peer like any other there: messages went to it.
func TestNoLeaderIsNobody(t *testing.T) {
	c := newCluster(t, 3)
	c.leader()
	c.tick(3)
	c.cut = func(_, _ int32, env *transport.Envelope) bool {
		if env.To == 0 {
			t.Errorf("a message to replica 0: %+v", env)
		}
		return true
	}
	c.tick(100)
	for _, id := range c.order {
		if st := c.replica(id).Status(); st.IsLeader || st.Leader != 0 || st.LeaderNode != -1 {
			t.Errorf("node %d, cut off from everybody: %+v", id, st)
		}
		var nl *NotLeaderError
		if o := c.propose(id, "x"); !o.done || !errors.As(o.err, &nl) || nl.LeaderNode != -1 {
			t.Errorf("node %d: a proposal without a leader: %+v", id, o)
		}
	}
	c.cut = nil
	c.mustPropose(c.leader(), "after")
}

// "Leader ready" was true on followers there.
func TestReadyIsTheLeadersAlone(t *testing.T) {
	c := newCluster(t, 3)
	for range 5 {
		l := c.leader()
		c.tick(3)
		for _, id := range c.order {
			if st := c.replica(id).Status(); st.Ready != (id == l) || st.IsLeader != (id == l) || st.Leader != replicaOf(l) {
				t.Errorf("node %d leads, node %d: %+v", l, id, st)
			}
		}
		c.replica(l).TransferLeadership(-1)
		c.settle()
	}
}

// Leaders there filled their logs with thousands of empty entries. An idle group writes nothing: its log neither grows nor is
// it synced.
func TestIdleGroupsWriteNothing(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	c.expect("a")
	type figures struct{ last, bytes, syncs uint64 }
	look := func() map[int32]figures {
		out := map[int32]figures{}
		for id, n := range c.nodes {
			s := n.log.Stats()
			out[id] = figures{n.log.Group(testGroup).LastIndex(), s.BytesWritten, s.Syncs}
		}
		return out
	}
	before := look()
	c.tick(500)
	for id, now := range look() {
		if now != before[id] {
			t.Errorf("node %d, idle for 500 ticks: %+v became %+v", id, before[id], now)
		}
	}
}
