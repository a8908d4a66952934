package group

import (
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// rebalance begins a rebalance, or lets the one under way end if nobody else is to be waited for.
func (s *shard) rebalance(g *group) {
	c := g.classic
	if c.state == PreparingRebalance {
		s.tryComplete(g)
		return
	}
	if c.state == CompletingRebalance {
		for _, m := range c.order {
			m.assignment = nil
			s.refuseSync(m, ErrRebalanceInProgress)
		}
	}
	s.timers.stop(&c.sync)
	c.initial, c.newcomers = c.state == Empty, false
	c.become(PreparingRebalance, s.c.wall())
	now, timeout := s.c.now(), c.rebalanceTimeout()
	if c.initial {
		// The first members of an application come one after the other: they are waited for together (KIP-134).
		c.initialEnd = now + timeout
		delay := s.c.cfg.Settings.InitialRebalanceDelay
		s.timers.set(&c.join, now+min(delay, timeout))
		return
	}
	s.timers.set(&c.join, now+timeout)
	s.tryComplete(g)
}

// tryComplete ends a rebalance that waits for nobody.
func (s *shard) tryComplete(g *group) {
	c := g.classic
	if c.state == PreparingRebalance && !c.initial && c.allJoined() {
		s.complete(g)
	}
}

// joinDue is the end of the time for joining.
func (s *shard) joinDue(g *group) {
	c := g.classic
	if c.state != PreparingRebalance {
		return
	}
	if now := s.c.now(); c.initial && c.newcomers && now < c.initialEnd {
		c.newcomers = false
		s.timers.set(&c.join, min(now+s.c.cfg.Settings.InitialRebalanceDelay, c.initialEnd))
		return
	}
	s.complete(g)
}

// rebalancePause is the least time between two looks at a rebalance that nobody has joined; a member may ask for none.
const rebalancePause = time.Second

// complete begins the next generation with those who have joined. Static members that have not are kept until their session
// ends.
func (s *shard) complete(g *group) {
	c := g.classic
	s.timers.stop(&c.join)
	for _, m := range append([]*member(nil), c.order...) {
		if m.onJoin == nil && m.instance == nil {
			s.timers.stop(&m.timer)
			c.remove(m)
		}
	}
	if len(c.members) > 0 && !c.electLeader() {
		// Only static members that do not come: the rebalance goes on.
		s.timers.set(&c.join, s.c.now()+max(c.rebalanceTimeout(), rebalancePause))
		return
	}
	c.initial = false
	c.generation++
	now := s.c.wall()
	if len(c.members) == 0 {
		c.protocol, c.leader, c.subscribed = "", "", nil
		c.become(Empty, now)
		s.recordEmpty(g)
		return
	}
	c.protocol = c.elect()
	c.become(CompletingRebalance, now)
	c.learnTopics()
	s.begin(g)
}

// recordEmpty writes down that nobody is in the group any more. If that fails it is tried again when offsets are about to expire: in the log, and for
// the next coordinator, the members are there still.
func (s *shard) recordEmpty(g *group) {
	c, generation := g.classic, g.classic.generation
	c.unwritten = true
	s.record(g, func(err error) {
		if err == nil && c.generation == generation {
			c.unwritten = false
		}
	}, func(error) {})
}

// electLeader makes sure that the leader is one of those who have joined.
func (c *classicGroup) electLeader() bool {
	if m := c.members[c.leader]; m != nil && m.onJoin != nil {
		return true
	}
	for _, m := range c.order {
		if m.onJoin != nil {
			c.leader = m.id
			return true
		}
	}
	return false
}

// begin writes the generation down and then tells its members. A generation that was told is never given out again, not by
// another coordinator either.
func (s *shard) begin(g *group) {
	c := g.classic
	type answer struct {
		done   func(JoinResult, error)
		result JoinResult
	}
	var answers []answer
	for _, m := range c.order {
		m.assignment, m.synced = nil, false
		if m.onJoin == nil {
			continue
		}
		answers = append(answers, answer{m.onJoin, c.result(m)})
		m.onJoin = nil
		m.isNew = false
		s.beat(m)
	}
	c.joining = 0
	s.timers.set(&c.sync, s.c.now()+c.rebalanceTimeout())
	generation := c.generation
	tell := func(err error) {
		for _, a := range answers {
			if err != nil {
				a.result = JoinResult{Member: a.result.Member, Generation: -1}
			}
			a.done(a.result, err)
		}
	}
	c.recording++
	s.record(g, func(err error) {
		c.recording--
		s.reply(func() { tell(err) })
		if c.recording == 0 { // else some may be of the generation after this one
			waiting := c.waiting
			c.waiting = nil
			for _, f := range waiting {
				f(err)
			}
		}
		if err != nil && g.classic == c && c.state == CompletingRebalance && c.generation == generation {
			s.rebalance(g)
		}
	}, tell)
}

// syncDue is the end of the time for syncing: who has not asked for its assignment is gone.
func (s *shard) syncDue(g *group) {
	c := g.classic
	if c.state != CompletingRebalance && c.state != Stable {
		return
	}
	gone := false
	for _, m := range append([]*member(nil), c.order...) {
		if !m.synced {
			s.timers.stop(&m.timer)
			c.remove(m)
			gone = true
		}
	}
	if gone {
		s.log.Info("members that did not sync are removed", "group", g.id, "generation", c.generation)
		s.rebalance(g)
	}
}

// beat says that a member lives. Its timer stays where it is, unless the session has become shorter than what that waits for.
func (s *shard) beat(m *member) {
	m.deadline = s.c.now() + time.Duration(m.sessionTimeout)*time.Millisecond
	if m.timer.pos == 0 || m.timer.at > m.deadline {
		s.timers.set(&m.timer, m.deadline)
	}
}

// sessionDue looks whether a member's session has ended. While the coordinator owes it an answer it has not.
func (s *shard) sessionDue(t *timer, now time.Duration) {
	m, g := t.member, t.group
	if g.classic.members[m.id] != m {
		return // the group has become a consumer group
	}
	if m.deadline > now {
		s.timers.set(t, m.deadline)
		return
	}
	if !m.isNew && (m.onJoin != nil || m.onSync != nil) {
		s.beat(m)
		return
	}
	s.log.Info("a member's session has ended", "group", g.id, "member", m.id, "generation", g.classic.generation)
	s.drop(g, m, ErrUnknownMember)
}

// pendingDue takes back a member id that was not used.
func (s *shard) pendingDue(g *group, m *member) {
	delete(g.classic.promised, m.id)
	s.tryComplete(g)
	s.forget(g)
}

// drop takes a member out, which begins a rebalance.
func (s *shard) drop(g *group, m *member, err error) {
	s.takeOut(g, m, err)
	s.rebalance(g)
}

func (s *shard) takeOut(g *group, m *member, err error) {
	s.timers.stop(&m.timer)
	s.endJoin(g.classic, m, err)
	s.endSync(m, err)
	g.classic.remove(m)
}

// abandon answers everybody who waits: the shard is dropped.
func (s *shard) abandon(g *group) {
	c := g.classic
	for _, m := range c.order {
		s.endJoin(c, m, ErrNotCoordinator)
		s.endSync(m, ErrNotCoordinator)
	}
	for _, f := range c.waiting {
		f(ErrNotCoordinator)
	}
	c.waiting = nil
	s.abandonConsumer(g)
	for _, f := range g.quiet {
		f()
	}
	g.quiet = nil
}

// replayGroup takes a group's record of the log.
func (s *shard) replayGroup(key, value []byte) error {
	var k kmsg.GroupMetadataKey
	if err := k.ReadFrom(key); err != nil {
		return err
	}
	g := s.groups[k.Group]
	if value == nil {
		if g != nil {
			g.classic = newClassicGroup(g, -1)
		}
		return nil
	}
	var v kmsg.GroupMetadataValue
	v.CurrentStateTimestamp = -1
	if err := v.ReadFrom(value); err != nil {
		return err
	}
	if g == nil {
		g = s.make(k.Group)
	}
	c := newClassicGroup(g, v.CurrentStateTimestamp)
	c.generation, c.protocolType = v.Generation, v.ProtocolType
	if v.Protocol != nil {
		c.protocol = *v.Protocol
	}
	if v.Leader != nil {
		c.leader = *v.Leader
	}
	for i := range v.Members {
		r := &v.Members[i]
		m := &member{instance: r.InstanceID, assignment: append([]byte{}, r.Assignment...), staticLife: staticLife{
			id: r.MemberID, clientID: r.ClientID, clientHost: r.ClientHost,
			sessionTimeout: r.SessionTimeoutMillis, rebalanceTimeout: r.RebalanceTimeoutMillis,
			protocols: []Protocol{{c.protocol, append([]byte{}, r.Subscription...)}},
		}}
		if m.rebalanceTimeout < 0 {
			m.rebalanceTimeout = m.sessionTimeout
		}
		m.timer = timer{kind: timerSession, group: g, member: m}
		c.add(m)
	}
	g.classic = c
	return nil
}

// classicLoaded brings a group to life: its members have a whole session to find the new coordinator. Where nobody has an
// assignment the move came before the leader's sync, and that is still waited for.
func (s *shard) classicLoaded(g *group) {
	c := g.classic
	if len(c.members) == 0 {
		c.state = Empty
		return
	}
	c.state = CompletingRebalance
	for _, m := range c.order {
		if len(m.assignment) > 0 {
			c.state = Stable
		}
	}
	for _, m := range c.order {
		m.synced = c.state == Stable
		s.beat(m)
	}
	if c.state == CompletingRebalance {
		s.timers.set(&c.sync, s.c.now()+c.rebalanceTimeout())
	}
	c.learnTopics()
	if len(c.members) > s.c.cfg.Settings.MaxGroupSize {
		s.rebalance(g)
	}
}
