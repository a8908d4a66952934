package multiraft

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/wal"
)

// other returns the nodes beside id, ascending.
func (c *cluster) others(id int32) (out []int32) {
	for _, x := range c.order {
		if x != id {
			out = append(out, x)
		}
	}
	return out
}

// campaign makes a node stand for election now.
func (c *cluster) campaign(id int32) {
	r := c.replica(id)
	r.shard.post(event{r: r, kind: evFunc, fn: r.hup})
}

// Raft, section 5.2 and figure 2: term and vote are on disk before anybody is asked for a vote. The library asks first and
// counts only its own vote late; two granted votes of three then make a leader whose term a power cut wipes out, and who may
// win the same term again with another log, while acknowledgements of the first reign are still under way.
func TestATermIsNeverLedTwice(t *testing.T) {
	c := newCluster(t, 3)
	c.settle()
	type reign struct {
		boot int
		term uint64
	}
	boot, reigns := 0, map[uint64]reign{}
	look := func() {
		if st := c.replica(1).Status(); st.IsLeader {
			if old, ok := reigns[st.Term]; ok && old.boot != boot {
				t.Fatalf("node 1 led term %d before and after a power cut", st.Term)
			}
			reigns[st.Term] = reign{boot, st.Term}
		}
	}
	c.noLog[1] = true
	c.cut = func(_, to int32, env *transport.Envelope) bool {
		return to == 3 && env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgApp
	}
	c.campaign(1)
	c.settle()
	look()
	c.nodes[1].fs.Crash(1)
	c.nodes[1].down = true
	c.noLog[1] = false
	boot++
	c.start(1)
	c.register(1, testGroup, false)
	c.cut = func(from, to int32, _ *transport.Envelope) bool { return from == 2 || to == 2 }
	for range 10 {
		c.campaign(1)
		c.tick(1)
		look()
	}
	if len(reigns) == 0 {
		t.Fatal("node 1 was never elected: the test shows nothing")
	}
}

// A snapshot's configuration is in force as soon as raft takes it. Membership changes below it that a slow applier hands over
// only then are history: carried out on top of it they would make a voter of today the learner it once was.
func TestOldMembershipChangeDoesNotUndoASnapshotsConfiguration(t *testing.T) {
	c := newCluster(t, 3, smallLog)
	l := c.leader()
	c.mustPropose(l, "first")
	c.tick(3)
	f := c.others(l)[0]
	const extra = 40
	change := func(typ raftpb.ConfChangeType) {
		t.Helper()
		var err error
		settled := false
		c.replica(l).ProposeConfChange(raftpb.ConfChangeV2{Changes: []raftpb.ConfChangeSingle{{Type: typ, NodeID: extra}}},
			func(e error) { settled, err = true, e })
		for range 30 {
			if c.tick(1); settled {
				break
			}
		}
		if !settled || err != nil {
			t.Fatalf("%v: settled %v, error %v", typ, settled, err)
		}
	}
	c.noApply[f] = true
	change(raftpb.ConfChangeAddLearnerNode)
	c.tick(3) // the follower knows that the change is committed; its applier does not get to it
	commit := c.replica(f).CommitIndex()
	c.cut = func(from, to int32, _ *transport.Envelope) bool { return to == f || from == f }
	change(raftpb.ConfChangeRemoveNode)
	c.outgrowFrom(l, commit)
	c.cut = nil
	for range 30 {
		if c.tick(1); c.replica(f).CommitIndex() > commit {
			break
		}
	}
	c.noApply[f] = false
	c.tick(20)
	if got, want := c.replica(f).AppliedIndex(), c.replica(l).AppliedIndex(); got != want {
		t.Fatalf("the follower is at %d, the leader at %d", got, want)
	}
	st, want := c.replica(f).rn.Status(), c.replica(l).rn.Status()
	if st.Config.String() != want.Config.String() {
		t.Fatalf("the follower's configuration is %s, the leader's %s", st.Config.String(), want.Config.String())
	}
	if cs := c.replica(f).confs.last(); len(cs.Learners) != 0 {
		t.Fatalf("its next checkpoint would say %+v", cs)
	}
}

// outgrowFrom writes until node l's log begins above index.
func (c *cluster) outgrowFrom(l int32, index uint64) {
	c.t.Helper()
	for i := 0; c.nodes[l].log.Group(testGroup).FirstIndex() <= index+1; i++ {
		if i > 2000 {
			c.t.Fatal("the log never forgets")
		}
		c.mustPropose(l, fmt.Sprintf("%d-%02000d", i, 0))
		if i%20 == 19 {
			for _, id := range c.order {
				if !c.nodes[id].down && !c.noApply[id] {
					sm := c.sm(id)
					c.replica(id).Checkpoint(sm.index, sm.term, (&listSM{index: sm.index, term: sm.term}).encode())
				}
			}
			c.settle()
		}
	}
}

// Between apply and its word to raft, entries may have left memory; an election in that moment scans them for membership
// changes (rule 10: what raft has not been told is applied is always readable).
func TestElectionBeforeRaftHearsOfApplyFencesNobody(t *testing.T) {
	c := newCluster(t, 3, func(c *cluster) {
		c.walOf = func(o *wal.Options) { o.CacheBytes = 64 << 10 }
	})
	l := c.leader()
	c.mustPropose(l, "first")
	c.tick(3)
	f := c.others(l)[0]
	n := c.nodes[f]
	c.noApply[f] = true
	for i := range 100 {
		c.mustPropose(l, fmt.Sprintf("%d-%02000d", i, 0))
	}
	c.tick(3)
	for _, a := range n.svc.Appliers() {
		a.Step()
	}
	r := c.replica(f)
	if r.AppliedIndex() < 90 {
		t.Fatalf("applied %d", r.AppliedIndex())
	}
	// The shard has yet to see what the applier posted; the leader is gone and its clock runs out first.
	r.guard(func() {
		if err := r.rn.ForgetLeader(); err != nil {
			t.Error(err)
		}
		r.hup()
	})
	if r.Fenced() {
		t.Fatal("fenced by an election")
	}
	c.noApply[f] = false
	c.tick(30)
	c.mustPropose(c.leader(), "last")
}

// A follower that takes up a newer offer gives the older one up by itself: telling the leader would end the attempt that is
// under way, have it offer again, and so on for as long as there is traffic.
func TestSupersededStagingDoesNotEndTheNewerOne(t *testing.T) {
	c, l, f, _ := behind(t)
	offers := 0
	c.seen = func(_, to int32, env *transport.Envelope) {
		if env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgSnap && to == f {
			offers++
		}
	}
	c.restart(f)
	c.sm(f).holdStage, c.sm(f).replaceStage = true, true
	for range 20 {
		if c.tick(1); c.sm(f).stageDone != nil {
			break
		}
	}
	if offers != 1 {
		t.Fatalf("%d offers", offers)
	}
	c.mustPropose(l, "more")
	c.nodes[l].svc.HandlePeerDown(f) // the link flaps: the leader gives the attempt up and makes another
	for i := range 20 {
		c.mustPropose(l, fmt.Sprint("traffic ", i))
		c.tick(1)
	}
	if offers != 2 {
		t.Fatalf("%d offers after one flap, want 2", offers)
	}
	c.sm(f).stageDone(nil)
	c.tick(10)
	if got, want := c.replica(f).AppliedIndex(), c.replica(l).AppliedIndex(); got != want {
		t.Fatalf("the follower is at %d, the leader at %d", got, want)
	}
}

// A panic between Propose and Ready leaves proposals that have no index yet: they are told as well.
func TestFencedBetweenProposeAndReadyTellsEverybody(t *testing.T) {
	c := newCluster(t, 1, func(c *cluster) { c.tune = func(cfg *Config) { cfg.MaxEntryBytes = 4 } })
	c.leader()
	c.sm(1).panicPrepare = "bad!"
	outs := []*outcome{c.propose(1, "good"), c.propose(1, "bad!"), c.propose(1, "next")}
	c.tick(2)
	if !c.replica(1).Fenced() {
		t.Fatal("not fenced")
	}
	for i, o := range outs {
		if !o.done || o.err == nil {
			t.Errorf("proposal %d: %+v", i, o)
		}
	}
}

// The applier may fence a replica while its shard is giving proposals their index: nobody is left waiting.
func TestWaiterAddedWhileFencingIsSettled(t *testing.T) {
	c := newCluster(t, 1)
	c.leader()
	r := c.replica(1)
	o := c.propose(1, "a")
	c.noLog[1] = true
	c.settle() // proposed, waiting for the log
	r.fenced.Store(true)
	r.waiters.mu.Lock()
	n := len(r.waiters.list)
	r.waiters.mu.Unlock()
	if n != 1 || o.done {
		t.Fatalf("%d waiters, outcome %+v", n, o)
	}
	r.shard.post(event{r: r, kind: evFunc}) // what fence posts
	c.settle()
	if !o.done || !errors.Is(o.err, ErrUnknownOutcome) {
		t.Fatalf("outcome %+v", o)
	}
	c.noLog[1] = false
}

// A committed entry of a later term below a waiter's index decides its fate: logs' terms never fall. In an idle group
// nothing else would ever come to that index.
func TestDeposedLeadersWaitersDoNotWaitForTraffic(t *testing.T) {
	c := newCluster(t, 3, func(c *cluster) { c.tune = func(cfg *Config) { cfg.MaxEntryBytes = 1 } })
	old := c.leader()
	c.cut = func(from, to int32, _ *transport.Envelope) bool { return from == old || to == old }
	var outs []*outcome
	for i := range 5 {
		outs = append(outs, c.propose(old, fmt.Sprint("lost", i)))
	}
	c.tick(60)
	c.cut = nil
	c.tick(30)
	for i, o := range outs {
		if !o.done || !errors.Is(o.err, ErrNotLeader) {
			t.Errorf("proposal %d: %+v", i, o)
		}
	}
	if n := c.replica(old).waiters.unapplied(); n != 0 {
		t.Errorf("%d bytes still accounted for", n)
	}
}

// A log that refuses a group's writes has lost that group: it must say so, not stand still with its leadership.
func TestLogThatRefusesAGroupFencesIt(t *testing.T) {
	c := newCluster(t, 1)
	c.leader()
	c.nodes[1].log.Remove(testGroup, nil)
	o := c.propose(1, "a")
	c.tick(2)
	if !c.replica(1).Fenced() || !o.done || errors.Is(o.err, nil) {
		t.Fatalf("fenced %v, outcome %+v", c.replica(1).Fenced(), o)
	}
}

// A cold entry that can't be read is not asked for in a circle: damage fences the group.
func TestDamagedColdEntryFencesAndDoesNotSpin(t *testing.T) {
	c := newCluster(t, 3, func(c *cluster) {
		c.walOf = func(o *wal.Options) { o.CacheBytes = 64 << 10 }
		c.tune = func(cfg *Config) { cfg.MaxEntryBytes, cfg.PrefetchBytes = 4<<10, 32<<10 }
	})
	l := c.leader()
	c.mustPropose(l, "first")
	c.tick(3)
	f := c.others(l)[0]
	c.kill(f)
	for i := range 200 {
		c.mustPropose(l, fmt.Sprintf("%d-%01000d", i, 0))
	}
	spoilCold(t, c.nodes[l])
	c.restart(f)
	c.tick(20) // settles, or the harness fails
	if !c.replica(l).Fenced() {
		t.Fatal("the damaged group goes on")
	}
	c.mustPropose(c.leader(), "by another")
}

// spoilCold flips bits all over a node's log files.
func spoilCold(t *testing.T, n *simNode) {
	t.Helper()
	names, err := n.fs.List(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	flips := 0
	for _, name := range names {
		for off := int64(16 << 10); off < 200<<10; off += 500 {
			if n.fs.FlipBit(n.dir+"/"+name, off, 1) == nil {
				flips++
			}
		}
	}
	if flips == 0 {
		t.Fatalf("nothing was spoilt in %v", names)
	}
}

// A membership change waits until the leader's no-op is applied: before, an older entry at its index may yet win.
func TestMembershipChangeWaitsForTheNoOp(t *testing.T) {
	c := newCluster(t, 3)
	old := c.leader()
	c.tick(3)
	c.kill(old)
	c.cut = func(_, _ int32, env *transport.Envelope) bool { return env.Raft.Type == raftpb.MsgApp }
	var next int32
	for range 80 {
		c.tick(1)
		for _, id := range c.others(old) {
			if c.replica(id).IsLeader() {
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
	var err error
	settled := false
	before := c.nodes[next].log.Group(testGroup).LastIndex()
	c.replica(next).ProposeConfChange(raftpb.ConfChangeV2{Changes: []raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeAddLearnerNode, NodeID: 40}}},
		func(e error) { settled, err = true, e })
	c.settle()
	if got := c.nodes[next].log.Group(testGroup).LastIndex(); got != before || settled {
		t.Fatalf("last index %d became %d, settled %v (%v)", before, got, settled, err)
	}
	c.cut = nil
	for range 60 {
		if c.tick(1); settled {
			break
		}
	}
	if !settled || err != nil && !errors.Is(err, ErrNotLeader) {
		t.Fatalf("settled %v, error %v", settled, err)
	}
}

// Standing for election again must not give up a candidacy that waits for slow votes.
func TestRepeatedCampaignKeepsACandidacy(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.tick(3)
	term := c.replica(l).Term()
	c.kill(l)
	rest := c.others(l)
	// Votes take long: the others' logs are slow.
	c.noLog[rest[1]] = true
	var held []inFlight
	c.cut = func(from, to int32, env *transport.Envelope) bool {
		if env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgVoteResp {
			held = append(held, inFlight{from, to, *env})
			return true
		}
		return false
	}
	c.noLog[rest[1]] = false
	for _, id := range rest {
		c.nodes[id].svc.HandlePeerDown(l)
	}
	c.tick(8)
	if len(held) == 0 {
		t.Fatal("no vote was given")
	}
	if got := c.replica(rest[0]).Term(); got != term+1 {
		t.Fatalf("one candidacy, and the term went from %d to %d", term, got)
	}
	c.cut = nil
	for _, m := range held {
		c.nodes[m.to].svc.HandleEnvelopes(m.from, c.wire(m.env))
	}
	c.settle()
	if !c.replica(rest[0]).IsLeader() {
		t.Fatal("the late vote did not count")
	}
}

// A checkpoint made inside Apply comes before raft's word of that apply; the log must not forget what raft may still ask for.
func TestCheckpointWaitsUntilRaftKnowsOfTheApply(t *testing.T) {
	c := newCluster(t, 1)
	c.leader()
	c.mustPropose(1, "a")
	r := c.replica(1)
	c.noApply[1] = true
	c.propose(1, "b")
	c.settle()
	for _, a := range c.nodes[1].svc.Appliers() {
		a.Step()
	}
	// Taken out of the inbox: the shard has not heard of it.
	events, _ := r.shard.inbox.take()
	events = slices.Clone(events)
	index, term := c.sm(1).index, c.sm(1).term
	synced := false
	r.CheckpointSynced(index, term, []byte("state"), func(err error) { synced = err == nil })
	c.settle()
	if cp := c.nodes[1].log.Group(testGroup).Checkpoint(); cp.Index >= index {
		t.Fatalf("checkpoint at %d before raft knew of %d", cp.Index, index)
	}
	r.shard.post(events...)
	c.noApply[1] = false
	c.settle()
	if cp := c.nodes[1].log.Group(testGroup).Checkpoint(); cp.Index != index || !synced {
		t.Fatalf("checkpoint at %d, synced %v", cp.Index, synced)
	}
}

// raft leaves a joint configuration by an entry of its own; a change proposed at that moment is refused, and must not be taken
// for it.
func TestRefusedChangeIsNotTakenForRaftsOwn(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	r := c.replica(l)
	var refused error
	settled := false
	entries := []raftpb.Entry{
		{Type: raftpb.EntryConfChangeV2, Index: 50, Term: 9},
		{Type: raftpb.EntryNormal, Index: 51, Term: 9},
	}
	r.confWaiters = append(r.confWaiters, confWaiter{data: []byte("change"), done: func(err error) { settled, refused = true, err }})
	r.bind(entries)
	if !settled || refused == nil {
		t.Fatalf("settled %v, error %v", settled, refused)
	}
}

// Entries above what is applied never leave memory. Where they alone fill the cache, a cold entry read back has no room in it;
// but it may be the very one that a follower needs for them to be committed.
func TestColdEntriesReachAFollowerWhileTheCacheIsFull(t *testing.T) {
	c := newCluster(t, 3, func(c *cluster) {
		c.walOf = func(o *wal.Options) { o.CacheBytes = 32 << 10 }
		c.tune = func(cfg *Config) { cfg.MaxEntryBytes, cfg.PrefetchBytes = 4<<10, 16<<10 }
	})
	l := c.leader()
	c.mustPropose(l, "first")
	c.tick(3)
	far, near := c.others(l)[0], c.others(l)[1]
	c.kill(far)
	for i := range 100 {
		c.mustPropose(l, fmt.Sprintf("%d-%01000d", i, 0))
	}
	c.kill(near)
	var outs []*outcome
	for i := range 60 {
		outs = append(outs, c.propose(l, fmt.Sprintf("more %d-%01000d", i, 0)))
		c.settle()
	}
	c.restart(far)
	c.tick(10)
	for i, o := range outs {
		if !o.done || o.err != nil {
			t.Fatalf("proposal %d with a majority up: %+v; the follower is at %d, the leader's log ends at %d", i, o,
				c.replica(far).AppliedIndex(), c.nodes[l].log.Group(testGroup).LastIndex())
		}
	}
}

// Just after raft has counted who is there it takes nobody for alive; a transfer asked for in that moment is made up for.
func TestTransferAskedForRightAfterCheckQuorumIsMade(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.tick(3)
	to := c.others(l)[1]
	r := c.replica(l)
	r.guard(func() {
		if err := r.rn.Step(raftpb.Message{Type: raftpb.MsgCheckQuorum, From: raft.LocalAppendThread}); err != nil {
			t.Error(err)
		}
	})
	r.TransferLeadership(to)
	c.settle()
	if got := c.leader(); got != l {
		t.Fatalf("node %d leads already: the moment was missed", got)
	}
	c.tick(4)
	if got := c.leader(); got != to {
		t.Fatalf("node %d leads, want %d", got, to)
	}
}

func TestUnregisterOfAClosingServiceIsRefused(t *testing.T) {
	c := newCluster(t, 1)
	c.leader()
	svc := c.nodes[1].svc
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
	called := false
	if err := svc.Unregister("t", testGroup, func() { called = true }); !errors.Is(err, ErrStopped) || called {
		t.Fatalf("error %v, done called %v before the state machine is closed", err, called)
	}
	c.settle()
	if !c.sm(1).closed {
		t.Fatal("not closed")
	}
}
