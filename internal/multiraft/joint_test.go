package multiraft

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// A membership change that is committed stays so over a restart. Raft goes by the configuration that is applied, and what is applied is
// found again up to the commit index on disk: replicas that knew the end of a joint configuration from heartbeats alone would fall back into it, and
// need the voters that have left, which are deleted by then (simulator seed 157: a group without a leader for good).
func TestJointConfigurationThatWasLeftIsNotNeededAfterARestart(t *testing.T) {
	c := newCluster(t, 5)
	l := c.leader()
	if l <= 2 { // one that stays must lead
		c.replica(l).TransferLeadership(4)
		c.tick(5)
		l = c.leader()
	}
	c.mustPropose(l, "first")
	change := func(cc raftpb.ConfChangeV2) {
		t.Helper()
		var err error
		settled := false
		c.replica(l).ProposeConfChange(cc, func(e error) { settled, err = true, e })
		for range 30 {
			if c.tick(1); settled {
				break
			}
		}
		if !settled || err != nil {
			t.Fatalf("settled %v, error %v", settled, err)
		}
	}
	change(raftpb.ConfChangeV2{Transition: raftpb.ConfChangeTransitionJointExplicit, Changes: []raftpb.ConfChangeSingle{
		{Type: raftpb.ConfChangeRemoveNode, NodeID: replicaOf(1)}, {Type: raftpb.ConfChangeRemoveNode, NodeID: replicaOf(2)}}})
	change(raftpb.ConfChangeV2{})
	c.tick(20) // everybody knows; nothing else is written
	for id := range int32(5) {
		c.kill(id + 1)
	}
	c.restart(3)
	c.restart(4) // two of the three voters that there are
	c.tick(100)
	if l := c.leader(); l != 3 && l != 4 {
		t.Fatalf("node %d leads", l)
	}
	c.mustPropose(c.leader(), "after")
}
