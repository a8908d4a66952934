package multiraft

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/wal"
)

// A replica whose raft log is whole but whose state machine can't serve all it should (damaged segments) is unfit: it votes,
// appends and counts for commits as always, since what those promise is in the log, but it does not stand for election, refuses
// the leadership when it is offered, and gives it up when it has it.
//
// A node without room on its disk is unfit in all its groups (Service.SetUnfit): it can still write what others propose, for as
// long as its reserve lasts, and should not be who takes writes.
//
// Somebody has to lead, though. A group's only voter leads in any case. And where nobody has been heard of for a long time (the
// sound replicas are down, or too far behind to be elected) an unfit one stands after all: a leader that cannot serve
// some offsets is better than none, and only with one can the damage be mended.

// reluctance is how many election timeouts without a leader a replica that can't serve everything lets pass before it stands
// itself; nodeReluctance is the same for one whose node is unfit and that is sound itself: it lacks nothing that readers want.
const (
	reluctance     = 20
	nodeReluctance = 3
)

// fitnessWord is how often, in ticks, an unfit replica tells the leader so; the word holds for fitnessLife.
const (
	fitnessWord = 5
	fitnessLife = 4 * fitnessWord
)

// fitness is whether this replica should lead, and what the others have said of themselves. The shard's own.
type fitness struct {
	unfit  bool
	silent uint64            // ticks since a leader was heard of, while unfit
	others map[uint64]uint64 // replica -> tick until which it is unfit
}

// SetUnfit says whether this replica should keep out of the leadership because of its state machine's health. It takes effect
// on the shard.
func (r *Replica) SetUnfit(unfit bool) {
	r.shard.post(event{r: r, kind: evFunc, fn: func() {
		if r.fitness.unfit == unfit {
			return
		}
		r.fitness.unfit = unfit
		r.refit()
	}})
}

// SetUnfit says whether the replicas of this node should keep out of the leadership, all of them, for a reason of the node's own.
// It takes effect on the shards, and for replicas that are registered later.
func (s *Service) SetUnfit(unfit bool) {
	if s.unfit.Swap(unfit) == unfit {
		return
	}
	for _, r := range s.Replicas() {
		r.shard.post(event{r: r, kind: evFunc, fn: r.refit})
	}
}

// unfit says whether this replica should lead, for its own reasons and its node's.
func (r *Replica) unfit() bool { return r.fitness.unfit || r.svc.unfit.Load() }

// refit acts on a change of unfit.
func (r *Replica) refit() {
	r.fitness.silent, r.transferAt = 0, 0
	if r.unfit() && r.view.Load().isLeader {
		r.giveWay()
	}
}

// Peers returns the other replicas of the group.
func (r *Replica) Peers() []Peer {
	members := r.Members()
	out := make([]Peer, 0, len(members))
	for _, m := range members {
		if m.Replica != r.id {
			out = append(out, r.peer(m.Replica, m.Node))
		}
	}
	return out
}

// alone says whether this replica is the only voter.
func (r *Replica) alone() bool {
	cs := r.confs.last()
	return len(cs.Voters) == 1 && cs.Voters[0] == r.id && len(cs.VotersOutgoing) == 0
}

// declines says whether the replica keeps out of elections now.
func (r *Replica) declines() bool {
	return r.unfit() && !r.alone() && !r.view.Load().isLeader
}

// heard notes a sign of life of a leader.
func (r *Replica) heard(m raftpb.Message) {
	switch m.Type {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap:
		if m.Term >= r.hard.Term {
			r.fitness.silent = 0
		}
	}
}

// abstain is a tick of a replica that does not stand: raft's own clock, which would end in a campaign, stops. Its other
// purpose, to forget a leader who is silent, so that others get this replica's vote, is served here.
func (r *Replica) abstain() {
	f := &r.fitness
	f.silent++
	election := uint64(r.svc.cfg.ElectionTicks)
	if f.silent == election && r.rn.BasicStatus().RaftState == raft.StateFollower {
		if err := r.rn.ForgetLeader(); err != nil {
			r.logger().Debug("a silent leader is not forgotten", "error", err)
		}
	}
	patience := uint64(reluctance)
	if !f.unfit {
		patience = nodeReluctance
	}
	if over := f.silent; over >= patience*election && (over+mix(r.id)%election)%election == 0 {
		r.logger().Warn("no leader for a long time: standing for election although others should lead", "sound", !f.unfit)
		r.hup()
	}
}

// fitnessTick tells the leader of this replica's state, or gives the leadership up.
func (r *Replica) fitnessTick() {
	if !r.unfit() {
		return
	}
	v := r.view.Load()
	if v.isLeader {
		if r.tickCount > r.transferAt+uint64(2*r.svc.cfg.ElectionTicks) {
			r.giveWay()
		}
		return
	}
	if v.leader != 0 && r.tickCount%fitnessWord == 0 {
		if node, ok := r.nodeOf(v.leader); ok {
			r.tellFitness(r.peer(v.leader, node))
		}
	}
}

// giveWay offers the leadership to a follower that keeps up; while there is none it stays, rather than stop the group's writes
// for a transfer that comes to nothing.
func (r *Replica) giveWay() {
	r.transferAt = r.tickCount
	keepsUp := false
	r.rn.WithProgress(func(id uint64, typ raft.ProgressType, pr raftProgress) {
		keepsUp = keepsUp || id != r.id && typ != raft.ProgressTypeLearner && pr.RecentActive && pr.State == tracker.StateReplicate && r.fitness.others[id] <= r.tickCount
	})
	if keepsUp {
		r.transfer(-1)
	}
}

func (r *Replica) tellFitness(to Peer) {
	word := byte(0)
	if r.unfit() {
		word = 1
	}
	to.Send(transport.KindFitness, []byte{word})
}

// fitnessOf takes another replica's word.
func (r *Replica) fitnessOf(from uint64, body []byte) {
	f := &r.fitness
	if len(body) != 1 || body[0] == 0 {
		delete(f.others, from)
		return
	}
	if f.others == nil {
		f.others = make(map[uint64]uint64)
	}
	f.others[from] = r.tickCount + fitnessLife
}

// Quarantine fences the replica whose log (by the log's id) was found damaged while it runs: what its memory still knows must not be voted
// with, since a restart would not. If it leads it gives the leadership away first, which takes no log; after two election timeouts it
// is fenced in any case. False: there is no such replica.
func (s *Service) Quarantine(log uint64, d wal.Damage) bool {
	r, ok := s.Log(log)
	if ok {
		r.shard.post(event{r: r, kind: evFunc, fn: func() {
			r.quarantine = damaged(r.group, d)
			r.quarantineAt = r.tickCount + uint64(2*s.cfg.ElectionTicks)
			r.fitness.unfit = true
			if r.view.Load().isLeader {
				r.giveWay()
			}
		}})
	}
	return ok
}

// forgot fences a replica that its leader knows to have acknowledged more than its log has: a leader's heartbeat tells what is committed of
// what this replica has said to hold. A damaged end of the log looks to a restart like a write that a power cut interrupted; here it comes
// to light. What was lost may be needed for a majority, so that the replica is replaced, and has no say until then.
func (r *Replica) forgot(m raftpb.Message) bool {
	if m.Type != raftpb.MsgHeartbeat || m.Term < r.hard.Term {
		return false
	}
	last, err := r.store.LastIndex()
	if err != nil || m.Commit <= last {
		return false
	}
	reason := fmt.Sprintf("the log ends at index %d, and the leader of term %d has this replica's word that it holds all up to %d", last, m.Term, m.Commit)
	// Nothing in the log tells a restart, and the leader may be gone by then.
	r.svc.cfg.Log.Condemn(r.logID, wal.Damage{Reason: reason}, nil)
	r.fence(&DamagedError{Group: r.group, Reason: reason})
	return true
}

// quarantineTick ends the part of a replica whose log is damaged, once it does not lead.
func (r *Replica) quarantineTick() {
	if q := r.quarantine; q != nil && (!r.view.Load().isLeader || r.tickCount >= r.quarantineAt) {
		r.quarantine = nil
		r.fence(fmt.Errorf("found while running: %w", q))
	}
}
