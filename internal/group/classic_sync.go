package group

import (
	"bytes"
	"errors"
)

// SyncRequest asks for a member's assignment; the leader's brings everybody's.
type SyncRequest struct {
	Group      string
	Generation int32
	Member     string
	Instance   *string
	// ProtocolType and Protocol, if named (v5), must be the group's.
	ProtocolType, Protocol *string
	Assignments            []Assignment
}

// Assignment is what a member is to do; opaque to the coordinator.
type Assignment struct {
	Member string
	Data   []byte
}

// SyncResult is a member's assignment.
type SyncResult struct {
	ProtocolType, Protocol string
	Assignment             []byte
}

// Sync gives a member its assignment, once the leader's is committed.
func (c *Coordinator) Sync(req SyncRequest, done func(SyncResult, error)) {
	fail := func(err error) { done(SyncResult{}, err) }
	if req.Group == "" {
		fail(ErrInvalidGroupID)
		return
	}
	c.with(req.Group, fail, func(s *shard) {
		if err := s.syncGroup(&req, done); err != nil {
			s.reply(func() { fail(err) })
		}
	})
}

func (s *shard) syncGroup(req *SyncRequest, done func(SyncResult, error)) error {
	if g, err := s.find(req.Group); err == nil && g.consumer != nil {
		return s.syncConsumer(g, req, done)
	}
	g, m, err := s.memberOf(req.Group, req.Member, req.Instance)
	if err != nil {
		return err
	}
	c := g.classic
	switch {
	case req.Generation != c.generation:
		return ErrIllegalGeneration
	case req.ProtocolType != nil && *req.ProtocolType != c.protocolType, req.Protocol != nil && *req.Protocol != c.protocol:
		return ErrInconsistentProtocol
	}
	switch c.state {
	case PreparingRebalance:
		return ErrRebalanceInProgress
	case CompletingRebalance:
		s.endSync(m, ErrRebalanceInProgress) // a request that was given up
		m.onSync = done
		m.synced = true
		s.beat(m)
		if m.id == c.leader {
			s.assign(g, req.Assignments)
		}
	case Stable:
		m.synced = true
		s.beat(m)
		r := SyncResult{c.protocolType, c.protocol, m.assignment}
		s.reply(func() { done(r, nil) })
	default:
		return ErrUnknownMember
	}
	s.syncsComplete(c)
	return nil
}

// syncsComplete ends the wait for syncs once all have come.
func (s *shard) syncsComplete(c *classicGroup) {
	for _, m := range c.order {
		if !m.synced {
			return
		}
	}
	s.timers.stop(&c.sync)
}

// assign writes the leader's assignment down and then gives it out.
func (s *shard) assign(g *group, assignments []Assignment) {
	c := g.classic
	for _, m := range c.order {
		m.assignment = nil // whom the leader leaves out has nothing
	}
	for _, a := range assignments {
		if m := c.members[a.Member]; m != nil {
			m.assignment = bytes.Clone(a.Data)
		}
	}
	generation := c.generation
	s.record(g, func(err error) {
		if c.state != CompletingRebalance || c.generation != generation {
			return // whoever waited was told to join again
		}
		if err != nil {
			for _, m := range c.order {
				m.assignment = nil
				s.refuseSync(m, err)
			}
			s.rebalance(g)
			return
		}
		c.become(Stable, c.since)
		for _, m := range c.order {
			if done := m.onSync; done != nil {
				m.onSync = nil
				s.beat(m)
				r := SyncResult{c.protocolType, c.protocol, m.assignment}
				s.reply(func() { done(r, nil) })
			}
		}
	}, func(error) {}) // abandon has answered
}

// memberOf finds a group's member.
func (s *shard) memberOf(id, memberID string, instance *string) (*group, *member, error) {
	g, err := s.find(id)
	if errors.Is(err, ErrGroupNotFound) {
		return nil, nil, ErrUnknownMember
	}
	if err != nil {
		return nil, nil, err
	}
	m, err := g.classic.find(memberID, instance)
	return g, m, err
}

// HeartbeatRequest says that a member lives.
type HeartbeatRequest struct {
	Group      string
	Generation int32
	Member     string
	Instance   *string
}

// Heartbeat keeps a member's session; ErrRebalanceInProgress tells it to join again.
func (c *Coordinator) Heartbeat(req HeartbeatRequest, done func(error)) {
	if req.Group == "" {
		done(ErrInvalidGroupID)
		return
	}
	c.with(req.Group, func(err error) {
		if errors.Is(err, ErrLoading) {
			err = nil // the session begins anew once its group is loaded
		}
		done(err)
	}, func(s *shard) {
		if g, err := s.find(req.Group); err == nil && g.consumer != nil {
			s.beatConsumer(g, &req, done)
			return
		}
		err := s.heartbeat(&req)
		s.reply(func() { done(err) })
	})
}

func (s *shard) heartbeat(req *HeartbeatRequest) error {
	g, m, err := s.memberOf(req.Group, req.Member, req.Instance)
	switch {
	case err != nil:
		return err
	case req.Generation != g.classic.generation:
		return ErrIllegalGeneration
	case g.classic.state == PreparingRebalance:
		s.beat(m)
		return ErrRebalanceInProgress
	case g.classic.state == Empty:
		return ErrUnknownMember
	}
	s.beat(m)
	return nil
}

// LeaveMember names a member, a static one perhaps by its instance alone.
type LeaveMember struct {
	Member   string
	Instance *string
}

// Leave takes members out. done gets an error for the request, or one for each member.
func (c *Coordinator) Leave(id string, members []LeaveMember, done func(each []error, err error)) {
	fail := func(err error) { done(nil, err) }
	if id == "" {
		fail(ErrInvalidGroupID)
		return
	}
	c.with(id, fail, func(s *shard) {
		each := make([]error, len(members))
		g, err := s.find(id)
		switch {
		case errors.Is(err, ErrGroupNotFound):
			for i := range each {
				each[i] = ErrUnknownMember
			}
		case err != nil:
			s.reply(func() { fail(err) })
			return
		case g.consumer != nil:
			s.leaveConsumer(g, members, done)
			return
		default:
			s.leaveGroup(g, members, each)
		}
		s.reply(func() { done(each, nil) })
	})
}

func (s *shard) leaveGroup(g *group, members []LeaveMember, each []error) {
	c := g.classic
	gone, promised := false, false
	for i, l := range members {
		if p := c.promised[l.Member]; p != nil && l.Instance == nil {
			s.timers.stop(&p.timer)
			delete(c.promised, l.Member)
			promised = true
			continue
		}
		m, err := c.find(l.Member, l.Instance)
		if l.Member == "" && l.Instance != nil && c.instances[*l.Instance] != nil {
			m, err = c.instances[*l.Instance], nil // an administrator's: whoever has the instance now
		}
		if each[i] = err; err == nil {
			s.takeOut(g, m, ErrUnknownMember)
			gone = true
		}
	}
	switch {
	case gone:
		s.rebalance(g)
	case promised:
		s.tryComplete(g)
	}
	s.forget(g)
}

// classicMayCommit says whether a commit is one of the group's; a member's counts as a sign of life.
func (s *shard) classicMayCommit(g *group, req *CommitRequest) error {
	c := g.classic
	if req.Generation < 0 && c.state == Empty {
		return nil // somebody who does not use membership, or an administrator
	}
	if req.Generation < 0 && req.Member == "" && req.Instance == nil {
		return ErrUnknownMember
	}
	m, err := c.find(req.Member, req.Instance)
	switch {
	case err != nil:
		return err
	case req.Generation != c.generation:
		return ErrIllegalGeneration
	case c.state == CompletingRebalance:
		s.beat(m)
		return ErrRebalanceInProgress
	}
	s.beat(m)
	return nil
}
