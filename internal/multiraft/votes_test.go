package multiraft

import (
	"errors"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/transport"
)

// A vote that comes without a new term is as binding as one that does. A node hears of a term from a candidate that it refuses,
// votes for another in the same term, and loses its power: it must not vote in that term again.
func TestAVoteInAKnownTermSurvivesAPowerCut(t *testing.T) {
	c := newCluster(t, 3)
	c.settle()
	const term = 5
	var answers []raftpb.Message
	c.cut = func(from, _ int32, env *transport.Envelope) bool {
		if from == 2 && env.Raft.Type == raftpb.MsgVoteResp {
			answers = append(answers, env.Raft)
		}
		return true
	}
	ask := func(candidate int32, lastTerm, lastIndex uint64) bool {
		t.Helper()
		answers = nil
		m := raftpb.Message{Type: raftpb.MsgVote, From: replicaOf(candidate), To: replicaOf(2), Term: term, LogTerm: lastTerm, Index: lastIndex}
		c.nodes[2].svc.HandleEnvelopes(candidate, c.wire(transport.Envelope{Kind: transport.KindRaft, Group: testGroup, From: m.From, To: m.To, Raft: m}))
		c.settle()
		if len(answers) != 1 || answers[0].Term != term {
			t.Fatalf("node %d asked for a vote: %+v", candidate, answers)
		}
		return !answers[0].Reject
	}
	if ask(1, 0, 0) {
		t.Fatal("a vote for a log that is behind")
	}
	if !ask(3, 1, 1) {
		t.Fatal("no vote for a log as good as its own")
	}
	c.kill(2)
	c.restart(2)
	c.settle()
	if ask(1, 1, 1) {
		t.Error("a second vote in the same term, after a power cut")
	}
	if !ask(3, 1, 1) {
		t.Error("the vote that was given is not known any more")
	}
}

// A replica that has heard nobody for a while asks before it raises its term: where a leader lives, nobody answers yes, and when
// it is back it follows.
func TestAReplicaThatWasCutOffDeposesNobody(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	term, f := c.replica(l).Term(), c.others(l)[0]
	c.cut = func(from, to int32, _ *transport.Envelope) bool { return from == f || to == f }
	c.tick(200)
	c.cut = nil
	c.tick(50)
	if st := c.replica(l).Status(); !st.Ready || st.Term != term {
		t.Errorf("the leader of term %d: %+v", term, st)
	}
	if st := c.replica(f).Status(); st.Leader != replicaOf(l) || st.Term != term {
		t.Errorf("the replica that was cut off: %+v", st)
	}
	c.expect("a")
}

// Raft drops a proposal when it has stepped down and nobody has published that yet. Whoever proposed must hear of it.
func TestProposalThatRaftDropsIsAnswered(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.tick(3)
	f := c.others(l)[0]
	m := raftpb.Message{Type: raftpb.MsgHeartbeat, From: replicaOf(f), To: replicaOf(l), Term: c.replica(l).Term() + 1}
	c.nodes[l].svc.HandleEnvelopes(f, c.wire(transport.Envelope{Kind: transport.KindRaft, Group: testGroup, From: m.From, To: m.To, Raft: m}))
	var outcomes []*outcome
	for _, v := range []string{"a", "b", "c"} {
		outcomes = append(outcomes, c.propose(l, v)) // both before the shard's next step
	}
	c.settle()
	if c.sm(l).aborts == 0 {
		t.Fatal("raft dropped nothing: the test shows nothing")
	}
	for i, o := range outcomes {
		if !o.done || !errors.Is(o.err, ErrNotLeader) {
			t.Errorf("proposal %d: %+v", i, o)
		}
	}
	if n := c.replica(l).queuedBytes.Load(); n != 0 {
		t.Errorf("%d bytes are still counted as queued", n)
	}
}

// The log's mark comes first, then the state: a crash between the two finds the mark and what was staged for it. The other way
// round it would find an old log beside a state that is newer, or is gone.
func TestSnapshotIsInstalledOnceItsMarkIsDurable(t *testing.T) {
	c, l, f, want := behind(t)
	c.restart(f)
	c.sm(f).holdStage = true
	for range 20 {
		if c.tick(1); c.sm(f).stageDone != nil {
			break
		}
	}
	if c.sm(f).stageDone == nil {
		t.Fatal("no snapshot was offered")
	}
	installed := false
	c.sm(f).onInstall = func(uint64, []string) { installed = true }
	c.noLog[f] = true
	c.sm(f).stageDone(nil)
	c.tick(3)
	if !c.replica(f).installing {
		t.Fatal("raft did not take the snapshot")
	}
	if installed {
		t.Fatal("the snapshot is the state, and the log does not know it")
	}
	c.noLog[f] = false
	c.settle()
	if !installed {
		t.Fatal("the snapshot was not installed")
	}
	c.mustPropose(l, "last")
	c.expect(append(want, "last")...)
}
