package membership

import (
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/confchange"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/chronik-go/chronik/internal/multiraft"
)

// group is a configuration with raft's own rules for changing it, and nothing else.
type group struct {
	t       *testing.T
	cfg     tracker.Config
	prs     tracker.ProgressMap
	self    uint64
	commit  uint64
	match   map[uint64]uint64
	dead    map[uint64]bool
	history []string
}

func newGroup(t *testing.T, voters ...uint64) *group {
	g := &group{t: t, self: voters[0], commit: 100, match: map[uint64]uint64{}, dead: map[uint64]bool{}}
	tr := tracker.MakeProgressTracker(10, 0)
	for _, v := range voters {
		cfg, prs, err := (confchange.Changer{Tracker: tr, LastIndex: 100}).Simple(raftpb.ConfChangeSingle{Type: raftpb.ConfChangeAddNode, NodeID: v})
		if err != nil {
			t.Fatal(err)
		}
		tr.Config, tr.Progress = cfg, prs
		g.match[v] = 100
	}
	g.cfg, g.prs = tr.Config, tr.Progress
	return g
}

func (g *group) seen() multiraft.Configuration {
	c := multiraft.Configuration{Term: 1, Commit: g.commit, Self: g.self}
	cs := (&tracker.ProgressTracker{Config: g.cfg, Progress: g.prs}).ConfState()
	c.Voters, c.Outgoing, c.Learners = cs.Voters, cs.VotersOutgoing, cs.Learners
	for id := range g.prs {
		c.Progress = append(c.Progress, multiraft.Progress{Member: multiraft.Member{Replica: id}, Match: g.match[id], Active: !g.dead[id]})
	}
	slices.SortFunc(c.Progress, func(a, b multiraft.Progress) int { return int(a.Replica) - int(b.Replica) })
	return c
}

// quorate says whether the group can commit: a majority of each half of the configuration is alive.
func (g *group) quorate() bool {
	for _, half := range g.cfg.Voters {
		alive := 0
		for id := range half {
			if !g.dead[id] {
				alive++
			}
		}
		if len(half) > 0 && alive < len(half)/2+1 {
			return false
		}
	}
	return true
}

func (g *group) propose(cc raftpb.ConfChangeV2) {
	g.t.Helper()
	ch := confchange.Changer{Tracker: tracker.ProgressTracker{Config: g.cfg, Progress: g.prs, MaxInflight: 10}, LastIndex: g.commit}
	var err error
	var cfg tracker.Config
	var prs tracker.ProgressMap
	switch auto, joint := cc.EnterJoint(); {
	case cc.LeaveJoint():
		cfg, prs, err = ch.LeaveJoint()
	case joint:
		cfg, prs, err = ch.EnterJoint(auto, cc.Changes...)
	default:
		cfg, prs, err = ch.Simple(cc.Changes...)
	}
	if err != nil {
		g.t.Fatalf("raft refuses %v in %v: %v", cc, g.cfg, err)
	}
	g.cfg, g.prs = cfg, prs
}

// run takes steps until there are none; whoever is added catches up at once unless it is dead.
func (g *group) run(goal Goal, steps int) (last Step) {
	g.t.Helper()
	for range steps {
		last = Next(g.seen(), goal, g.commit)
		g.history = append(g.history, last.Why)
		switch last.Kind {
		case Done:
			return last
		case Transfer:
			if g.dead[last.Replica] {
				g.t.Fatal("handed over to a replica that is not there")
			}
			g.self = last.Replica
		case Propose:
			g.propose(last.Change)
			if !g.quorate() {
				g.t.Fatalf("after %q the group can't commit: %v", last.Why, g.cfg)
			}
		case Wait:
			moved := false
			for id := range g.prs {
				if !g.dead[id] && g.match[id] < g.commit {
					g.match[id], moved = g.commit, true
				}
			}
			if !moved {
				return last
			}
		}
	}
	return last
}

func (g *group) want(voters ...uint64) {
	g.t.Helper()
	if c := g.seen(); !slices.Equal(c.Voters, voters) || len(c.Outgoing) > 0 || len(c.Learners) > 0 || !slices.Contains(voters, g.self) {
		g.t.Fatalf("%v, led by %d; want %v (%q)", g.cfg, g.self, voters, g.history)
	}
}

func TestAllReplicasMoveElsewhere(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.run(Goal{Voters: []uint64{4, 5, 6}}, 50)
	g.want(4, 5, 6)
}

// Nothing is given up for replicas that do not come up, and what has begun can be taken back.
func TestNothingIsGivenUpBeforeTheNewReplicasHaveCaughtUp(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.dead[5] = true
	if s := g.run(Goal{Voters: []uint64{4, 5, 1}}, 50); s.Kind != Wait || s.Replica != 5 {
		t.Fatalf("%+v", s)
	}
	if c := g.seen(); !slices.Equal(c.Voters, []uint64{1, 2, 3}) || len(c.Outgoing) > 0 {
		t.Fatalf("%v", g.cfg)
	}
	g.run(Goal{Voters: []uint64{1, 2, 3}}, 50)
	g.want(1, 2, 3)
}

// Where too few of the replicas that stay can be reached, the joint configuration is not entered: it could not be left.
func TestAMajorityToBeMustBeThere(t *testing.T) {
	g := newGroup(t, 1, 2, 3, 4, 5)
	g.dead[2], g.dead[3] = true, true
	if s := g.run(Goal{Voters: []uint64{1, 2, 3}}, 50); s.Kind != Wait {
		t.Fatalf("%+v", s)
	}
	g.dead[2] = false
	g.run(Goal{Voters: []uint64{1, 2, 3}}, 50)
	g.want(1, 2, 3)
}

func TestAWaitingGroupAddsNobody(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	if s := g.run(Goal{Voters: []uint64{1, 2, 4}, May: func() bool { return false }}, 5); s.Kind != Wait {
		t.Fatalf("%+v", s)
	}
	g.want(1, 2, 3)
}

// Learners of the goal stay what they are: the metadata's are most of a large cluster.
func TestAskedForLearnersStay(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.propose(raftpb.ConfChangeV2{Changes: []raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeAddLearnerNode, NodeID: 8}}})
	if s := g.run(Goal{Voters: []uint64{1, 2, 3}, Learners: []uint64{8, 9}}, 5); s.Kind != Done || len(g.cfg.Learners) != 1 {
		t.Fatalf("%+v %v", s, g.cfg)
	}
}

// From any configuration that goals and deaths have led to, the last goal is reached once enough are alive, by changes that raft
// takes, and never through one that can't commit.
func TestAnyGoalIsReachedFromAnywhere(t *testing.T) {
	for seed := range uint64(3000) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		g := newGroup(t, 1, 2, 3)
		goal := Goal{}
		for range 1 + rnd.IntN(5) {
			clear(g.dead)
			ids := rnd.Perm(7)[:1+rnd.IntN(4)]
			goal.Voters = nil
			for _, id := range ids {
				goal.Voters = append(goal.Voters, uint64(id+1))
			}
			for id := range uint64(8) {
				if rnd.IntN(4) == 0 {
					g.dead[id] = true
					if id == g.self || !g.quorate() {
						delete(g.dead, id)
					}
				}
			}
			g.commit += uint64(rnd.IntN(3))
			for id := range g.prs {
				if !g.dead[id] && g.cfg.Voters.IDs() != nil {
					if _, voter := g.cfg.Voters.IDs()[id]; voter {
						g.match[id] = g.commit
					}
				}
			}
			g.run(goal, rnd.IntN(12))
		}
		clear(g.dead)
		if s := g.run(goal, 100); s.Kind != Done {
			t.Fatalf("seed %d: %+v in %v for %v: %q", seed, s, g.cfg, goal.Voters, g.history)
		}
		g.want(slices.Sorted(slices.Values(goal.Voters))...)
	}
}
