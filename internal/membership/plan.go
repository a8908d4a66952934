// Package membership brings a raft group's configuration to the replicas that the metadata image asks for, one step at a time.
//
// Each step is one entry of the group's log, so that whoever leads next finds where the last leader stopped: in the
// configuration itself. The way is always the same, whether a partition is reassigned, a lost replica replaced, a change
// cancelled half way, or a node's vote on the metadata given to another:
//
//  1. what is to vote and is no member joins as a learner, which costs the group nothing while it catches up;
//  2. once all of those have caught up, one joint change (Raft, section 6) makes them voters and drops the voters that are to
//     go: from then on both the old and the new majority are asked;
//  3. a leader that is to go hands the leadership to one that stays;
//  4. the joint configuration is left;
//  5. learners that nobody asks for are removed.
//
// Until step 2 nothing has been given up: a target that never catches up leaves the old replicas as they were.
package membership

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/multiraft"
)

// Goal is the configuration to come to.
type Goal struct {
	// Voters are to vote, and nobody else. Empty: nothing is to be done.
	Voters []uint64
	// Learners are to be members without a vote, if they are members at all.
	Learners []uint64
	// May says whether a learner may be added now: catching up costs the cluster bandwidth, so that callers bound how many
	// groups do. Nil: always.
	May func() bool
}

// Kind is what a step does.
type Kind uint8

// The kinds of step.
const (
	// Wait: a replica catches up, or what was begun takes its time.
	Wait Kind = iota
	// Propose: the change is to be proposed.
	Propose
	// Transfer: the leadership is to go to Replica.
	Transfer
	// Done: the group is where it is to be.
	Done
)

// Step is what is next.
type Step struct {
	Kind    Kind
	Change  raftpb.ConfChangeV2
	Replica uint64
	// Why says for logs what is done or waited for.
	Why string
}

// Next returns the next step from a group's configuration, as its leader sees it, to goal. caughtUp is an index that replicas
// must have reached to be made voters: the commit index of a moment ago. It is a pure function: the same input gives the same step.
func Next(c multiraft.Configuration, goal Goal, caughtUp uint64) Step {
	voters := slices.Sorted(slices.Values(goal.Voters))
	switch {
	case len(voters) == 0:
		return Step{Kind: Done}
	case len(c.Outgoing) > 0:
		return leaveJoint(c, voters)
	case slices.Equal(slices.Sorted(slices.Values(c.Voters)), voters):
		return tidy(c, goal)
	}
	return enterJoint(c, goal, voters, caughtUp)
}

// leaveJoint leaves a joint configuration. Where it was left behind by a change that was cancelled, that change is first carried
// through: there is no other way out of it.
func leaveJoint(c multiraft.Configuration, voters []uint64) Step {
	stays := slices.Contains(c.Voters, c.Self)
	if !stays || !slices.Contains(voters, c.Self) {
		to := successor(c, voters)
		if to == 0 && !stays {
			to = successor(c, c.Voters) // the goal has moved on meanwhile: nobody of it is a voter yet
		}
		if to != 0 {
			return Step{Kind: Transfer, Replica: to, Why: "this leader is to go"}
		}
		if !stays {
			return Step{Kind: Wait, Why: "nobody who stays can lead"}
		}
	}
	return Step{Kind: Propose, Why: "leaving the joint configuration"}
}

// successor picks the most advanced of the incoming voters that can be reached and are among staying, 0 if there is none.
func successor(c multiraft.Configuration, staying []uint64) uint64 {
	var best multiraft.Progress
	for _, p := range c.Progress {
		if p.Replica == c.Self || !p.Active || !slices.Contains(c.Voters, p.Replica) || !slices.Contains(staying, p.Replica) {
			continue
		}
		if best.Replica == 0 || p.Match > best.Match {
			best = p
		}
	}
	return best.Replica
}

// tidy removes learners that nobody asks for.
func tidy(c multiraft.Configuration, goal Goal) Step {
	for _, id := range c.Learners {
		if !slices.Contains(goal.Learners, id) {
			return propose("removing a learner", raftpb.ConfChangeSingle{Type: raftpb.ConfChangeRemoveNode, NodeID: id})
		}
	}
	return Step{Kind: Done}
}

func enterJoint(c multiraft.Configuration, goal Goal, voters []uint64, caughtUp uint64) Step {
	var changes []raftpb.ConfChangeSingle
	for _, id := range voters {
		if slices.Contains(c.Voters, id) {
			continue
		}
		if !slices.Contains(c.Learners, id) {
			if goal.May != nil && !goal.May() {
				return Step{Kind: Wait, Why: "other groups go first"}
			}
			return propose("adding a learner", raftpb.ConfChangeSingle{Type: raftpb.ConfChangeAddLearnerNode, NodeID: id})
		}
		changes = append(changes, raftpb.ConfChangeSingle{Type: raftpb.ConfChangeAddNode, NodeID: id})
	}
	for _, ch := range changes {
		if p, ok := progress(c, ch.NodeID); !ok || !p.Active || p.Match < caughtUp {
			return Step{Kind: Wait, Replica: ch.NodeID, Why: "a new replica catches up"}
		}
	}
	// The new majority is needed as soon as the change is in the log: who can't be reached would stop the group.
	active := 0
	for _, id := range voters {
		if p, ok := progress(c, id); ok && p.Active {
			active++
		}
	}
	if active < len(voters)/2+1 {
		return Step{Kind: Wait, Why: "too few of the replicas to be can be reached"}
	}
	for _, id := range c.Voters {
		if !slices.Contains(voters, id) {
			changes = append(changes, raftpb.ConfChangeSingle{Type: raftpb.ConfChangeRemoveNode, NodeID: id})
		}
	}
	return Step{Kind: Propose, Why: "entering the joint configuration",
		Change: raftpb.ConfChangeV2{Transition: raftpb.ConfChangeTransitionJointExplicit, Changes: changes}}
}

func progress(c multiraft.Configuration, id uint64) (multiraft.Progress, bool) {
	i := slices.IndexFunc(c.Progress, func(p multiraft.Progress) bool { return p.Replica == id })
	if i < 0 {
		return multiraft.Progress{}, false
	}
	return c.Progress[i], true
}

func propose(why string, ch raftpb.ConfChangeSingle) Step {
	return Step{Kind: Propose, Why: why, Change: raftpb.ConfChangeV2{Changes: []raftpb.ConfChangeSingle{ch}}}
}
