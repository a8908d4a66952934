package multiraft

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// Rule 7: a checkpoint at an index carries the configuration of that index. Were it today's, a restart would apply the changes
// after it once more, on top of themselves.
func TestCheckpointCarriesTheMembersOfItsIndex(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	r := c.replica(l)
	sm := c.sm(l)
	before := wantState(sm)
	done := false
	r.ProposeConfChange(raftpb.ConfChangeV2{Changes: []raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeAddLearnerNode, NodeID: 99}}}, func(err error) {
		done = true
		if err != nil {
			t.Errorf("adding a learner: %v", err)
		}
	})
	c.settle()
	if !done {
		t.Fatal("the change does not end")
	}
	r.Checkpoint(before.index, before.term, before.data)
	c.settle()
	cp := c.nodes[l].log.Group(testGroup).Checkpoint()
	if cp.Index != before.index || len(cp.ConfState.Voters) != 3 || len(cp.ConfState.Learners) != 0 {
		t.Errorf("the checkpoint before the change: %+v", cp)
	}
	after := wantState(sm)
	r.Checkpoint(after.index, after.term, after.data)
	c.settle()
	cp = c.nodes[l].log.Group(testGroup).Checkpoint()
	if cp.Index != after.index || len(cp.ConfState.Voters) != 3 || len(cp.ConfState.Learners) != 1 {
		t.Errorf("the checkpoint after the change: %+v", cp)
	}
}

type smState struct {
	index, term uint64
	data        []byte
}

func wantState(s *listSM) smState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return smState{s.index, s.term, s.encode()}
}
