package multiraft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/transport"
)

func TestSingleNodeLeaderElection(t *testing.T) {
	c := newCluster(t, 1)
	if st := c.replica(1).Status(); st.IsLeader || st.Leader != 0 {
		t.Fatalf("a leader before anything ran: %+v", st)
	}
	c.tick(2)
	st := c.replica(1).Status()
	if !st.IsLeader || !st.Ready || st.Leader != replicaOf(1) || st.LeaderNode != 1 || st.Term != 2 {
		t.Fatalf("after two ticks: %+v", st)
	}
	c.mustPropose(1, "a")
	c.expect("a")
}

func TestRaftServiceRegistration(t *testing.T) {
	c := newCluster(t, 1)
	svc := c.nodes[1].svc
	if _, ok := svc.Lookup("t", testGroup); !ok {
		t.Fatal("not found by name")
	}
	if _, ok := svc.Lookup("t", 99); ok {
		t.Fatal("found what is not there")
	}
	if _, err := svc.Register(RegisterOptions{Topic: "t", Partition: testGroup, Group: testGroup, Replica: 10, SM: &listSM{}}); err == nil {
		t.Fatal("registered twice")
	}
	if _, err := svc.Register(RegisterOptions{Topic: "u", Group: 12345, Replica: 10, SM: &listSM{}}); err == nil {
		t.Fatal("registered without a log")
	}
	if n := len(svc.Replicas()); n != 1 {
		t.Fatalf("%d replicas", n)
	}
	closed := false
	if err := svc.Unregister("t", testGroup, func() { closed = true }); err != nil {
		t.Fatal(err)
	}
	c.settle()
	if !closed || !c.sm(1).closed {
		t.Fatal("the state machine was not closed")
	}
	if _, ok := svc.Lookup("t", testGroup); ok {
		t.Fatal("still found")
	}
	if err := svc.Unregister("t", testGroup, nil); err == nil {
		t.Fatal("unregistered twice")
	}
	c.register(1, testGroup, false)
	c.leader()
}

func TestReplicaStateTracking(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	before := c.replica(l).Status()
	c.mustPropose(l, "a")
	c.tick(3)
	for _, id := range c.order {
		r := c.replica(id)
		st := r.Status()
		if st.Term != before.Term || st.Leader != replicaOf(l) || st.LeaderNode != l || st.IsLeader != (id == l) {
			t.Errorf("node %d: %+v", id, st)
		}
		if st.Commit != before.Commit+1 || st.Applied != st.Commit {
			t.Errorf("node %d: commit %d applied %d after %d", id, st.Commit, st.Applied, before.Commit)
		}
		if r.Topic() != "t" || r.Partition() != testGroup || r.Term() != st.Term || r.CommitIndex() != st.Commit || r.LeaderID() != st.Leader {
			t.Errorf("node %d: accessors differ from status", id)
		}
	}
}

// The ancestor's follower panicked when it was asked to propose.
func TestProposeRequiresLeader(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.tick(3)
	f := c.order[0]
	if f == l {
		f = c.order[1]
	}
	o := c.propose(f, "no")
	c.settle()
	var nl *NotLeaderError
	if !o.done || !errors.Is(o.err, ErrNotLeader) || !errors.As(o.err, &nl) || nl.LeaderNode != l {
		t.Fatalf("outcome %+v, want ErrNotLeader naming node %d", o, l)
	}
	if err := c.replica(f).Propose(t.Context(), []byte("no")); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("Propose: %v", err)
	}
	c.expect()
}

// A waiter is told only once its entry is committed and applied here, not when it is proposed.
func TestProposeReturnsAfterCommitNotBefore(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.cut = func(from, to int32, _ *transport.Envelope) bool { return true }
	o := c.propose(l, "a")
	c.settle()
	if o.done {
		t.Fatalf("done without a majority: %v", o.err)
	}
	c.cut = nil
	for range 100 {
		if c.tick(1); o.done {
			break
		}
	}
	if !o.done {
		t.Fatal("never settled after healing")
	}
}

func TestProposeHonoursContextWithUnknownOutcome(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.cut = func(from, to int32, _ *transport.Envelope) bool { return true }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.replica(l).Propose(ctx, []byte("a")) }()
	for c.replica(l).shard.inbox.empty() {
	}
	c.settle()
	cancel()
	if err := <-done; !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

// Rule 3: a deposed leader's proposal is lost once another entry holds its index, and says so.
func TestDeposedLeadersProposalIsLostNotUnknown(t *testing.T) {
	c := newCluster(t, 3)
	old := c.leader()
	c.cut = func(from, to int32, _ *transport.Envelope) bool { return from == old || to == old }
	o := c.propose(old, "lost")
	c.settle()
	var next int32
	for range 100 {
		c.tick(1)
		for _, id := range c.order {
			if id != old && c.replica(id).Status().Ready {
				next = id
			}
		}
		if next != 0 {
			break
		}
	}
	if next == 0 {
		t.Fatal("the majority elected nobody")
	}
	c.mustPropose(next, "kept")
	if o.done {
		t.Fatalf("settled while cut off: %v", o.err)
	}
	c.cut = nil
	c.expect("kept")
	if !o.done || !errors.Is(o.err, ErrNotLeader) {
		t.Fatalf("outcome %+v", o)
	}
}

func TestNetworkPartitionMinorityNeverAcksInSteps(t *testing.T) {
	c := newCluster(t, 5)
	old := c.leader()
	buddy := c.order[0]
	if buddy == old {
		buddy = c.order[1]
	}
	minority := map[int32]bool{old: true, buddy: true}
	c.cut = func(from, to int32, _ *transport.Envelope) bool { return minority[from] != minority[to] }
	o := c.propose(old, "never")
	c.tick(60)
	if o.done && o.err == nil {
		t.Fatal("a minority acknowledged")
	}
	if c.replica(old).Status().IsLeader {
		t.Fatal("a leader without a quorum did not step down")
	}
	c.cut = nil
	l := c.leader()
	c.mustPropose(l, "after")
	c.expect("after")
}

// Rule 14 and 12 of the lineage: the leader sends before its own fsync, and commits without waiting for a timer.
func TestAppendsLeaveBeforeTheLocalFsync(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.tick(3)
	n := c.nodes[l]
	c.propose(l, "a")
	c.queue = nil
	for _, s := range n.svc.Shards() {
		s.Step()
	}
	sent := 0
	for _, m := range c.queue {
		if m.env.Raft.Type == raftpb.MsgApp && len(m.env.Raft.Entries) == 1 {
			sent++
		}
	}
	if sent != 2 {
		t.Fatalf("%d appends left before the log ran", sent)
	}
	c.settle() // without a tick
	if got := c.sm(l).list(); !slices.Equal(got, []string{"a"}) {
		t.Fatalf("not committed without a timer: %q", got)
	}
}

// Entries are merged, in order, up to the limit; a proposal larger than the limit travels alone.
func TestProposalsMergeIntoEntries(t *testing.T) {
	c := newCluster(t, 3, func(c *cluster) { c.tune = func(cfg *Config) { cfg.MaxEntryBytes = 64 } })
	l := c.leader()
	before := c.replica(l).Status().Commit
	var want []string
	var outs []*outcome
	for i := range 100 {
		d := fmt.Sprintf("p%02d", i)
		if i == 50 {
			d = strings.Repeat("x", 200)
		}
		want = append(want, d)
		outs = append(outs, c.propose(l, d))
	}
	c.expect(want...)
	for i, o := range outs {
		if !o.done || o.err != nil {
			t.Fatalf("proposal %d: %+v", i, o)
		}
	}
	if entries := c.replica(l).Status().Commit - before; entries > 12 || entries < 7 {
		t.Errorf("%d entries for 100 proposals of 3 bytes and one of 200, limit 64", entries)
	}
}

// Rule 18: what raft or the limit holds back stays at the head of the queue, in order.
func TestUnappliedLimitKeepsTheQueueInOrder(t *testing.T) {
	c := newCluster(t, 3, func(c *cluster) {
		c.tune = func(cfg *Config) { cfg.MaxEntryBytes, cfg.MaxUnappliedBytes = 8, 16 }
	})
	l := c.leader()
	var want []string
	for i := range 64 {
		want = append(want, fmt.Sprintf("%04d", i))
		c.propose(l, want[i])
	}
	n := c.nodes[l]
	for _, s := range n.svc.Shards() {
		s.Step()
	}
	if got := c.replica(l).waiters.unapplied(); got > 24 {
		t.Fatalf("%d bytes under way, limit 16 and an entry", got)
	}
	c.expect(want...)
}

func TestQueueIsCapped(t *testing.T) {
	c := newCluster(t, 3, func(c *cluster) { c.tune = func(cfg *Config) { cfg.MaxQueuedBytes = 10 } })
	l := c.leader()
	a, b := c.propose(l, "12345678"), c.propose(l, "12345678")
	if a.done || !b.done || !errors.Is(b.err, ErrOverloaded) {
		t.Fatalf("a %+v b %+v", a, b)
	}
	c.expect("12345678")
	c.mustPropose(l, "12345678") // room again
}

// Rule 4: messages never create replicas, and those for another incarnation are dropped.
func TestMessagesForOthersAreDropped(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	f := c.order[0]
	if f == l {
		f = c.order[1]
	}
	term := c.replica(f).Term()
	vote := func(from, to uint64, group uint64) transport.Envelope {
		return transport.Envelope{Kind: transport.KindRaft, Group: group, From: from, To: to,
			Raft: raftpb.Message{Type: raftpb.MsgApp, From: from, To: to, Term: term + 5}}
	}
	svc := c.nodes[f].svc
	svc.HandleEnvelopes(l, []transport.Envelope{vote(replicaOf(l), replicaOf(f)+1, testGroup)}) // an older replica id of this node
	svc.HandleEnvelopes(l, []transport.Envelope{vote(replicaOf(l), replicaOf(f), 999)})         // a group that is not here
	svc.HandleEnvelopes(l, []transport.Envelope{vote(replicaOf(l)+1, replicaOf(f), testGroup)}) // from a replica nobody knows
	svc.HandleEnvelopes(f, []transport.Envelope{vote(replicaOf(l), replicaOf(f), testGroup)})   // from the wrong node
	c.settle()
	if got := c.replica(f).Term(); got != term {
		t.Fatalf("term %d became %d", term, got)
	}
	if len(svc.Replicas()) != 1 {
		t.Fatal("a message made a replica")
	}
}

// Rule 7, 10: a restarted replica continues from its log, with nothing lost and nothing applied twice.
func TestRestartReplaysTheLog(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	var want []string
	for i := range 20 {
		want = append(want, fmt.Sprint(i))
		c.mustPropose(l, want[i])
	}
	for _, id := range c.order {
		c.kill(id)
	}
	for _, id := range c.order {
		c.restart(id)
	}
	c.leader()
	c.expect(want...)
}

// Rule 7: a checkpoint moves the start of replay and carries the configuration of its own index.
func TestRestartFromCheckpoint(t *testing.T) {
	c := newCluster(t, 1)
	c.leader()
	c.mustPropose(1, "a")
	sm := c.sm(1)
	sm.mu.Lock()
	index, term, state := sm.index, sm.term, sm.encode()
	sm.mu.Unlock()
	c.replica(1).Checkpoint(index, term, state)
	c.mustPropose(1, "b")
	c.kill(1)
	c.restart(1)
	cp := c.nodes[1].log.Group(testGroup).Checkpoint()
	if cp.Index != index || !slices.Equal(cp.ConfState.Voters, c.conf.Voters) {
		t.Fatalf("checkpoint %+v", cp)
	}
	c.leader()
	c.expect("a", "b")
}

// A panic or an apply error in one group fences that group alone (rule 10), loudly.
func TestBrokenGroupIsFencedAlone(t *testing.T) {
	for _, how := range []string{"error", "panic"} {
		t.Run(how, func(t *testing.T) {
			var fenced []uint64
			c := newCluster(t, 1, func(c *cluster) {
				c.tune = func(cfg *Config) {
					cfg.OnFence = func(r *Replica, err error) { fenced = append(fenced, r.GroupID()) }
				}
			})
			c.leader()
			other := c.register(1, 8, true)
			c.tick(2)
			sm := c.sm(1)
			if how == "error" {
				sm.failApply = errPlanted
			} else {
				sm.panicOn = "boom"
			}
			o := c.propose(1, "boom")
			c.tick(2)
			if !o.done || !errors.Is(o.err, ErrUnknownOutcome) {
				t.Fatalf("outcome %+v", o)
			}
			if !slices.Equal(fenced, []uint64{testGroup}) || c.replica(1).Status().IsLeader {
				t.Fatalf("fenced %v, status %+v", fenced, c.replica(1).Status())
			}
			if o := c.propose(1, "x"); !o.done || !errors.Is(o.err, ErrFenced) {
				t.Fatalf("a fenced replica took a proposal: %+v", o)
			}
			ok := false
			other.Enqueue(&RawProposal{Data: []byte("fine"), OnDone: func(err error) { ok = err == nil }})
			c.tick(1)
			if !ok {
				t.Fatal("the group beside it stopped")
			}
		})
	}
}

func TestReadIndexNeedsAQuorum(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	var got []error
	for range 5 {
		c.replica(l).ReadIndex(func(err error) { got = append(got, err) })
	}
	rounds := 0
	c.seen = func(_, _ int32, env *transport.Envelope) {
		if env.Raft.Type == raftpb.MsgHeartbeat && len(env.Raft.Context) > 0 {
			rounds++
		}
	}
	c.settle()
	if len(got) != 5 || errors.Join(got...) != nil {
		t.Fatalf("reads: %v", got)
	}
	if rounds != 2 {
		t.Errorf("%d heartbeats for five reads asked at once, want one for each of two followers", rounds)
	}
	// Rule 17: cut off, the old leader must not answer, however sure of itself.
	got = nil
	c.cut = func(from, to int32, _ *transport.Envelope) bool { return from == l || to == l }
	c.replica(l).ReadIndex(func(err error) { got = append(got, err) })
	c.settle()
	if len(got) != 0 {
		t.Fatalf("answered without a quorum: %v", got)
	}
	c.tick(40)
	if len(got) != 1 || !errors.Is(got[0], ErrNotLeader) {
		t.Fatalf("after stepping down: %v", got)
	}
}

func TestLeaderServesOnlyAfterItsNoOp(t *testing.T) {
	c := newCluster(t, 3)
	old := c.leader()
	c.tick(3)
	// Let votes through, hold appends: somebody will lead without having applied its no-op.
	c.kill(old)
	c.cut = func(_, _ int32, env *transport.Envelope) bool { return env.Raft.Type == raftpb.MsgApp }
	var next int32
	for range 60 {
		c.tick(1)
		for _, id := range c.order {
			if !c.nodes[id].down && c.replica(id).IsLeader() {
				next = id
			}
		}
		if next != 0 {
			break
		}
	}
	if next == 0 {
		t.Fatal("nobody leads")
	}
	st := c.replica(next).Status()
	if st.Ready || c.sm(next).readyTerm == st.Term {
		t.Fatalf("ready before its no-op was applied: %+v", st)
	}
	prepares := c.sm(next).prepares
	o := c.propose(next, "early")
	c.settle()
	if c.sm(next).prepares != prepares || o.done {
		t.Fatal("it decided before its no-op was applied")
	}
	c.cut = nil
	for range 60 {
		if c.tick(1); o.done {
			break
		}
	}
	if o.err != nil && !errors.Is(o.err, ErrNotLeader) {
		t.Fatalf("outcome %+v", o)
	}
}

// TestAStandstillIsCounted: from half an election timeout on; ticks that come a little late are nobody's concern.
func TestAStandstillIsCounted(t *testing.T) {
	clk := clock.NewSim(time.Unix(1, 0))
	c := newCluster(t, 1, func(c *cluster) { c.tune = func(cfg *Config) { cfg.Clock = clk } })
	svc := c.nodes[1].svc
	after := func(d time.Duration) time.Duration {
		clk.Advance(d)
		c.tick(1)
		return svc.StoodStill()
	}
	tick, half := svc.cfg.TickInterval, svc.cfg.TickInterval*time.Duration(svc.cfg.ElectionTicks)/2
	for i, tc := range []struct{ gap, want time.Duration }{{time.Hour, 0}, {tick, 0}, {half, 0}, {half + tick, half}, {tick, half}, {time.Minute + tick, half + time.Minute}} {
		if got := after(tc.gap); got != tc.want {
			t.Fatalf("%d: %v, want %v", i, got, tc.want)
		}
	}
}
