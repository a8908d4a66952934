package multiraft

import (
	"cmp"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Progress is how far a replica of a group has come, as the group's leader sees it.
type Progress struct {
	Member
	// Match is the last index known to be on the replica's disk.
	Match   uint64
	Learner bool
	// Active says that the leader has heard from the replica within the last election timeout.
	Active bool
	// Heard is when the leader heard from the replica last, and CaughtUp the last moment at which the replica is known to have had all that
	// the leader had (KIP-836): zero if it has not been so in this term, or the group keeps no times (RegisterOptions.KeepTimes).
	Heard, CaughtUp time.Time
}

// contact is what a leader noted of a follower's answers.
type contact struct {
	heard, caughtUp time.Time
	end             uint64 // the leader's last index when it heard
}

// answered notes an answer that raft has taken. One that names what the leader had at the answer before caught up with that moment.
func (r *Replica) answered(m raftpb.Message) {
	if r.contacts == nil {
		return
	}
	if st := r.rn.BasicStatus(); st.RaftState != raft.StateLeader || m.Term != st.Term {
		return
	}
	var match, end uint64
	known := false
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr raftProgress) {
		switch id {
		case m.From:
			match, known = pr.Match, true
		case r.id:
			end = pr.Match
		}
	})
	if !known {
		return
	}
	c, now := r.contacts[m.From], r.svc.cfg.Clock.Now()
	switch {
	case match >= end:
		c.caughtUp = now
	case c.end > 0 && match >= c.end:
		c.caughtUp = c.heard
	}
	c.heard, c.end = now, end
	r.contacts[m.From] = c
}

// Progress asks for the progress of all replicas, this one included, by ascending replica id, together with the term they
// belong to. On a replica that does not lead the error matches ErrNotLeader. done is called once, from a step of the shard or
// from the caller, and must not block.
func (r *Replica) Progress(done func(term uint64, all []Progress, err error)) {
	refuse := func(err error) { done(0, nil, err) }
	if !r.IsLeader() {
		refuse(r.notLeader())
		return
	}
	r.shard.post(event{r: r, kind: evFunc, refuse: refuse, fn: func() {
		v := r.view.Load()
		if !v.isLeader {
			refuse(r.notLeader())
			return
		}
		done(v.term, r.progress(), nil)
	}})
}

// progress is on the shard of a leader.
func (r *Replica) progress() []Progress {
	var all []Progress
	r.rn.WithProgress(func(id uint64, typ raft.ProgressType, pr raftProgress) {
		p := Progress{Member: Member{Replica: id, Node: -1}, Match: pr.Match, Learner: typ == raft.ProgressTypeLearner, Active: pr.RecentActive || id == r.id}
		if node, ok := r.nodeOf(id); ok {
			p.Node = node
		}
		if c, ok := r.contacts[id]; ok {
			p.Heard, p.CaughtUp = c.heard, c.caughtUp
		}
		if id == r.id && r.contacts != nil {
			now := r.svc.cfg.Clock.Now()
			p.Heard, p.CaughtUp = now, now
		}
		all = append(all, p)
	})
	slices.SortFunc(all, func(a, b Progress) int { return cmp.Compare(a.Replica, b.Replica) })
	return all
}

// Configuration is who belongs to a group, as its leader has applied it.
type Configuration struct {
	Term, Commit uint64
	// Self is the leader's own replica id.
	Self uint64
	// Voters are the incoming ones while the configuration is joint: then Outgoing are those before.
	Voters, Outgoing, Learners []uint64
	Progress                   []Progress
}

// Configuration asks for the group's configuration, on its leader once that is ready to serve; elsewhere the error matches
// ErrNotLeader. done is called once, from a step of the shard or from the caller, and must not block.
func (r *Replica) Configuration(done func(c Configuration, err error)) {
	refuse := func(err error) { done(Configuration{}, err) }
	if !r.Status().Ready {
		refuse(r.notLeader())
		return
	}
	r.shard.post(event{r: r, kind: evFunc, refuse: refuse, fn: func() {
		v := r.view.Load()
		if !v.ready {
			refuse(r.notLeader())
			return
		}
		cs := r.confs.last()
		done(Configuration{
			Term: v.term, Commit: r.commit.Load(), Self: r.id,
			Voters: slices.Clone(cs.Voters), Outgoing: slices.Clone(cs.VotersOutgoing), Learners: slices.Clone(cs.Learners),
			Progress: r.progress(),
		}, nil)
	}})
}

// TransferTo hands the leadership to a replica, as TransferLeadership does to a node.
func (r *Replica) TransferTo(replica uint64) {
	if node, ok := r.nodeOf(replica); ok {
		r.TransferLeadership(node)
	}
}
