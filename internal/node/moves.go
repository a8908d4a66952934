package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/membership"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/throttle"
)

// Bounds of the mover.
const (
	// moveInterval lies between two looks at the groups that are changing. It is also how far a new replica may lag, in time,
	// to be made a voter.
	moveInterval = 100 * time.Millisecond
	// transferPause lies between two attempts to hand a leadership over.
	transferPause = 2 * time.Second
	// maxMoves is how many groups led by this node bring new replicas up at a time, as fast as they can; maxThrottled how many of
	// those beside that a throttle bounds. They share its bytes however many they are, and may take days: others don't wait for them.
	maxMoves     = 8
	maxThrottled = 64
	// endTimeout bounds telling the controller that a change has ended. It is told again.
	endTimeout = 10 * time.Second
)

// mover brings the groups that this node leads to the members that the image asks for (package membership says how). It keeps
// nothing that counts: whoever leads next goes on from the group's configuration.
type mover struct {
	core *Core
	wake chan struct{}

	// The goroutine's own.
	img      *metadata.Image
	changing []metadata.PartitionRef // of img, by group
	states   map[uint64]*moveState
	ending   chan struct{} // closed when the controller has been told of what has ended; nil: nothing to tell

	// endChange tells the controller.
	endChange func(ctx context.Context, group, number uint64, voters []uint64) error
}

// ended is a group that is where it is to be, as the leader of a term sees it.
type ended struct {
	ref    metadata.PartitionRef
	leader leader
	term   uint64
}

// leader is a group's, as far as confirmed needs it: a *multiraft.Replica.
type leader interface {
	Confirm(done func(error))
	Term() uint64
}

// moveState is what the mover knows of a group that it leads.
type moveState struct {
	mu     sync.Mutex
	asked  bool
	fresh  bool // conf has not been looked at
	conf   multiraft.Configuration
	commit uint64 // commit index at the look before
	busy   bool   // a change is on its way through the log
	adding bool   // a learner was added since conf was looked at
	moved  time.Time
	why    string
}

func newMover(c *Core) *mover {
	return &mover{core: c, wake: make(chan struct{}, 1), states: map[uint64]*moveState{},
		endChange: func(ctx context.Context, group, number uint64, voters []uint64) error {
			return c.controller.EndChange(ctx, group, number, voters)
		}}
}

func (m *mover) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mover) run(ctx context.Context) {
	clk := m.core.env.Clock
	for {
		if !m.step() {
			if _, err := clock.Recv(clk, ctx, m.wake); err != nil {
				return
			}
			continue
		}
		if err := clock.Sleep(ctx, clk, moveInterval); err != nil {
			return
		}
	}
}

// step looks once at every group that is led here and not where it is to be, and says whether there are any.
func (m *mover) step() (more bool) {
	m.follow(m.core.machine.Image())
	var quick, slow lane
	quick.most, slow.most = maxMoves, maxThrottled
	lanes := make([]*lane, len(m.changing))
	for i, ref := range m.changing {
		lanes[i] = &quick
		if m.throttled(ref) {
			lanes[i] = &slow
		}
		if s := m.states[ref.Partition.Group]; s != nil && s.catching() {
			lanes[i].active++
		}
	}
	var over []ended
	for i, ref := range m.changing {
		goal := membership.Goal{May: lanes[i].may}
		goal.Voters = ref.Partition.Change.Target
		r, done := m.group(ref.Partition.Group, goal)
		more = more || r != nil
		if done != 0 {
			over = append(over, ended{ref, r, done})
		}
	}
	if goal := metadataGoal(m.img); len(goal.Voters) > 0 {
		r, done := m.group(metadata.MetadataGroup, goal)
		more = more || r != nil && done == 0
	}
	m.end(over)
	return more
}

// lane counts groups that bring new replicas up.
type lane struct{ active, most int }

// may says whether one more may, and counts it.
func (l *lane) may() bool {
	if l.active >= l.most {
		return false
	}
	l.active++
	return true
}

// throttled says whether a throttle bounds what a group's new replicas are sent by this node, or may take in.
func (m *mover) throttled(ref metadata.PartitionRef) bool {
	c, topic, index := m.core, ref.Topic.Name, ref.Partition.Index
	if c.throttle.Sends(topic, index) && c.configs.number(config.LeaderThrottledRate) != throttle.Unlimited {
		return true
	}
	return slices.ContainsFunc(ref.Partition.Change.Adding, func(r metadata.Replica) bool {
		// What the node was started with is not known here.
		set := cmp.Or(m.img.BrokerConfigs[r.Node][config.FollowerThrottledRate], m.img.BrokerConfigs[-1][config.FollowerThrottledRate])
		return set != "" && c.throttle.Receives(topic, index, r.Node)
	})
}

// follow takes a new image in.
func (m *mover) follow(img *metadata.Image) {
	if m.img == img {
		return
	}
	m.img, m.changing = img, nil
	for _, t := range img.Topics {
		for _, p := range t.Partitions {
			if p.Change != nil {
				m.changing = append(m.changing, metadata.PartitionRef{Topic: t, Partition: p})
			}
		}
	}
	slices.SortFunc(m.changing, func(a, b metadata.PartitionRef) int { return cmp.Compare(a.Partition.Group, b.Partition.Group) })
	for g := range m.states {
		if ref, ok := img.Groups[g]; g != metadata.MetadataGroup && (!ok || ref.Partition.Change == nil) {
			delete(m.states, g)
		}
	}
}

// metadataGoal: the nodes that vote on the metadata are the image's choice; the others learn.
func metadataGoal(img *metadata.Image) (g membership.Goal) {
	for _, n := range nodesOf(img) {
		switch {
		case n.MetadataReplica == 0:
		case n.Voter:
			g.Voters = append(g.Voters, n.MetadataReplica)
		default:
			g.Learners = append(g.Learners, n.MetadataReplica)
		}
	}
	return g
}

// group takes a step in a group, if it is led here (nil: it is not). done is the term in which it is where it is to be, 0 if it is not.
func (m *mover) group(id uint64, goal membership.Goal) (r *multiraft.Replica, done uint64) {
	r, ok := m.core.groups.Group(id)
	if !ok || !r.Status().Ready {
		delete(m.states, id)
		return nil, 0
	}
	s := m.states[id]
	if s == nil {
		s = &moveState{}
		m.states[id] = s
	}
	conf, caughtUp, fresh := s.take(r)
	if !fresh || conf.Term != r.Term() {
		return r, 0
	}
	step := membership.Next(conf, goal, caughtUp)
	m.tell(id, s, step)
	switch step.Kind {
	case membership.Done:
		return r, conf.Term
	case membership.Propose:
		s.propose(r, step)
	case membership.Transfer:
		if now := m.core.env.Clock.Now(); now.Sub(s.moved) >= transferPause {
			s.moved = now
			r.TransferTo(step.Replica)
		}
	}
	return r, 0
}

// tell logs what is new.
func (m *mover) tell(id uint64, s *moveState, step membership.Step) {
	if s.why == step.Why {
		return
	}
	s.why = step.Why
	if step.Why == "" {
		return
	}
	topic, index := metadata.MetadataTopic, int32(0)
	if ref, ok := m.img.Groups[id]; ok {
		topic, index = ref.Topic.Name, ref.Partition.Index
	}
	m.core.log.Info("changing a group's members", "topic", topic, "partition", index, "group", id, "step", step.Why)
}

// take returns the configuration last asked for, if it has not been looked at, and asks for the next.
func (s *moveState) take(r *multiraft.Replica) (conf multiraft.Configuration, caughtUp uint64, fresh bool) {
	s.mu.Lock()
	fresh = s.fresh && !s.busy
	conf, caughtUp = s.conf, cmp.Or(s.commit, s.conf.Commit)
	if s.fresh {
		s.commit = s.conf.Commit
	}
	if fresh {
		s.adding = false // conf has it now
	}
	s.fresh = false
	ask := !s.asked
	s.asked = true
	s.mu.Unlock()
	if ask {
		r.Configuration(func(c multiraft.Configuration, err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.asked = false
			if err == nil {
				s.conf, s.fresh = c, true
			}
		})
	}
	return conf, caughtUp, fresh
}

// propose puts a step into the group's log. How it ends shows in the configuration.
func (s *moveState) propose(r *multiraft.Replica, step membership.Step) {
	s.mu.Lock()
	s.busy = true
	s.adding = slices.ContainsFunc(step.Change.Changes, func(c raftpb.ConfChangeSingle) bool { return c.Type == raftpb.ConfChangeAddLearnerNode })
	s.mu.Unlock()
	r.ProposeConfChange(step.Change, func(error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		// What was asked for before is of the configuration before.
		s.busy, s.fresh = false, false
	})
}

// catching says whether the group has replicas on the way to be voters.
func (s *moveState) catching() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.adding || len(s.conf.Learners) > 0 || len(s.conf.Outgoing) > 0
}

// end tells the controller what has ended, one after the other; while it does, what ends next waits. Replicas are deleted on that word. So
// an entry of this leader's is committed first, in the configuration that is final. That a leader that was deposed and does not know it can't: it
// remembers a configuration that was left (a change may have been cancelled meanwhile), and raft's own check of the quorum is no lease.
// And a majority has on disk then that the configuration is in force: else all of them could go back to one before it with the power,
// which the deleted replicas are needed for.
func (m *mover) end(over []ended) {
	if m.ending != nil {
		select {
		case <-m.ending:
			m.ending = nil
		default:
			return
		}
	}
	if len(over) == 0 {
		return
	}
	done := make(chan struct{})
	m.ending = done
	c := m.core
	c.tasks.Go(func() {
		defer close(done)
		for _, x := range over {
			ref := x.ref
			ctx, cancel := clock.WithTimeout(c.ctx, c.env.Clock, endTimeout)
			err := confirmed(ctx, c.env.Clock, x.leader, x.term)
			if err == nil {
				err = m.endChange(ctx, ref.Partition.Group, ref.Partition.Change.Number, ref.Partition.Change.Target)
			}
			cancel()
			if c.ctx.Err() != nil {
				return
			}
			if err != nil {
				c.log.Warn("the end of a change of replicas could not be told; it will be again", "topic", ref.Topic.Name, "partition", ref.Partition.Index, "error", err)
				continue // what stands in its way need not be in the others'
			}
			c.log.Info("replicas changed", "topic", ref.Topic.Name, "partition", ref.Partition.Index, "group", ref.Partition.Group, "nodes", ref.Partition.Nodes())
		}
	})
}

// confirmed waits until a quorum has an entry of a replica's that leads, and that in a term.
func confirmed(ctx context.Context, clk clock.Clock, l leader, term uint64) error {
	answer := make(chan error, 1)
	l.Confirm(func(err error) { answer <- err })
	err, late := clock.Recv(clk, ctx, answer)
	switch {
	case late != nil:
		return fmt.Errorf("waiting for a quorum to confirm the leader: %w", late)
	case err != nil:
		return fmt.Errorf("confirming the leader: %w", err)
	case l.Term() != term:
		return fmt.Errorf("the group's term is %d, it was %d", l.Term(), term)
	}
	return nil
}
