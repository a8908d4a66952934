package group

import (
	"errors"

	"github.com/chronik-go/chronik/internal/group/consumer"
)

// A group moves between the protocols while its members live (KIP-848, group.consumer.migration.policy): it becomes a consumer group when
// the first member comes by the consumer protocol, and a classic one again when the last of these has gone. Meanwhile members of
// both kinds are in it, and those by the classic protocol join, sync and beat as ever.

// mayUpgrade says whether a classic group with members may become a consumer group.
func (s *shard) mayUpgrade(g *group) bool {
	c, set := g.classic, &s.c.cfg.Settings
	return set.ConsumerUpgrade && c.protocolType == consumerProtocol && len(c.members) > 0 && len(c.members) <= set.ConsumerMaxSize
}

// upgrade makes the classic group's members the consumer group's, if that has not happened yet.
func (s *shard) upgrade(g *group, ch *consumer.Change) error {
	c := g.consumer
	if !c.replaces || len(g.classic.members) == 0 || c.state.Written() {
		return nil
	}
	var members []consumer.ClassicMember
	for _, m := range g.classic.order {
		cm := consumer.ClassicMember{Assignment: m.assignment, Member: consumer.Member{ID: m.id, Instance: m.instance, ClientID: m.clientID,
			ClientHost: m.clientHost, RebalanceTimeout: m.rebalanceTimeout, Classic: &consumer.Classic{SessionTimeout: m.sessionTimeout}}}
		// The protocol that the group went by comes first: it is the one that the member's assignment is of.
		for _, first := range []bool{true, false} {
			for _, p := range m.protocols {
				if (p.Name == g.classic.protocol) == first {
					cm.Classic.Protocols = append(cm.Classic.Protocols, consumer.Protocol(p))
				}
			}
		}
		members = append(members, cm)
	}
	if err := c.state.Upgrade(ch, s.c.env(), g.classic.generation, members); err != nil {
		s.log.Info("a classic group can't become a consumer group", "group", g.id, "error", err)
		return ErrGroupNotFound
	}
	return nil
}

// leaveClassic ends the classic group's waits: its members are the consumer group's, and join again.
func (s *shard) leaveClassic(g *group) {
	c := g.classic
	if !g.consumer.replaces {
		return
	}
	for id, p := range c.promised {
		s.timers.stop(&p.timer)
		delete(c.promised, id)
	}
	if len(c.members) == 0 {
		return
	}
	s.log.Info("a classic group becomes a consumer group", "group", g.id, "generation", c.generation, "members", len(c.members))
	s.timers.stop(&c.join)
	s.timers.stop(&c.sync)
	for _, m := range c.order {
		s.timers.stop(&m.timer)
		s.endJoin(c, m, ErrRebalanceInProgress)
		s.endSync(m, ErrRebalanceInProgress)
		if g.consumer.state.Member(m.id) != nil { // and not replaced by the newcomer
			s.consumerBeat(g, m.id)
		}
	}
}

// classicAgain brings a classic group back that was to become a consumer group: its members join again.
func (s *shard) classicAgain(g *group) {
	if g.consumer != nil && (g.consumer.busy() || g.consumer.state.Written()) {
		return // it is tried again
	}
	g.consumer = nil
	for _, m := range g.classic.order {
		m.isNew = false
		s.beat(m)
	}
	g.classic.state = Stable // whatever it was: a new rebalance begins
	s.rebalance(g)
}

// mayDowngrade says whether a consumer group is to become a classic one: nobody in it uses the consumer protocol any more.
func (s *shard) mayDowngrade(g *group) bool {
	c, set := g.consumer, &s.c.cfg.Settings
	return set.ConsumerDowngrade && !c.writing && !g.deleting && len(c.queue) == 0 && c.state.AllClassic() && c.state.Size() <= set.MaxGroupSize &&
		c.tried != c.state.Epoch()
}

// downgrade makes a consumer group a classic one, whose members join again.
func (s *shard) downgrade(g *group) {
	c := g.consumer
	c.tried = c.state.Epoch() // once an epoch, should it not be written
	var classic *classicGroup
	s.enqueue(g, consumerOp{run: func(ch *consumer.Change) error {
		if !c.state.AllClassic() {
			return ErrNotAvailable
		}
		generation, members := c.state.Downgrade(s.c.env())
		classic = newClassicGroup(g, s.c.wall())
		classic.state, classic.generation, classic.protocolType = Stable, generation, consumerProtocol
		for i := range members {
			cm := &members[i]
			m := &member{instance: cm.Instance, assignment: cm.Assignment, synced: true, staticLife: staticLife{
				id: cm.ID, clientID: cm.ClientID, clientHost: cm.ClientHost, sessionTimeout: cm.Classic.SessionTimeout, rebalanceTimeout: cm.RebalanceTimeout,
			}}
			for _, p := range cm.Classic.Protocols {
				m.protocols = append(m.protocols, Protocol(p))
			}
			m.timer = timer{kind: timerSession, group: g, member: m}
			classic.add(m)
		}
		classic.leader, classic.protocol = classic.order[0].id, classic.elect()
		classic.learnTopics()
		c.state.Bury(ch)
		r := classic.record(g.id)
		ch.Records = append(ch.Records, consumer.Record{Key: r.key, Value: r.value})
		c.downgrading = true
		return nil
	}, then: func() {
		s.log.Info("a consumer group becomes a classic group", "group", g.id, "generation", classic.generation, "members", len(classic.members))
		waiting := c.queue
		c.queue, g.consumer, g.classic = nil, nil, classic
		for _, m := range classic.order {
			s.beat(m)
		}
		s.rebalance(g)
		for _, op := range waiting {
			s.reply(func() { op.done(errMoved) })
		}
	}, done: func(error) {}})
}

// afterDowngrade has f called, without mu, once it is known whether the group has become classic: what is written until then lands behind
// the classic group's generation, and is its to judge.
func (s *shard) afterDowngrade(g *group, f func(error)) error {
	if len(g.consumer.queue) >= s.c.cfg.Limits.MemberIDs {
		return ErrNotAvailable
	}
	s.enqueue(g, consumerOp{run: func(*consumer.Change) error { return nil }, done: func(err error) {
		if errors.Is(err, errMoved) {
			err = nil
		}
		f(err)
	}})
	return nil
}

// backToClassic makes an empty consumer group a classic one, and then calls again, without mu.
func (s *shard) backToClassic(g *group, again func(error)) {
	c := g.consumer
	s.enqueue(g, consumerOp{run: func(ch *consumer.Change) error {
		if c.state.Size() > 0 {
			return errNotEmpty
		}
		c.state.Bury(ch)
		return nil
	}, then: func() {
		if g.consumer == c && c.state.Size() == 0 && len(c.queue) == 0 {
			g.consumer = nil
		}
	}, done: again})
}

// errNotEmpty, errEmpty, errMoved: while a request waited the group has got members, or lost them, or become a classic group.
// The request begins anew then.
var (
	errNotEmpty = errors.New("the consumer group has members now")
	errEmpty    = errors.New("the consumer group has no members now")
	errMoved    = errors.New("the consumer group is a classic group now")
)

// joinConsumer takes a join of the classic protocol into a consumer group.
func (s *shard) joinConsumer(g *group, req *JoinRequest, done func(JoinResult, error)) error {
	c := g.consumer
	again := *req
	answer := func(r JoinResult, err error) {
		switch {
		case errors.Is(err, errNotEmpty), errors.Is(err, errEmpty), errors.Is(err, errMoved):
			s.c.Join(again, done)
		case err != nil:
			done(JoinResult{Generation: -1}, err) // Kafka names no member here, unlike in a classic group
		default:
			done(r, nil)
		}
	}
	set := &s.c.cfg.Settings
	switch {
	case !c.busy() && req.Member != "":
		return ErrUnknownMember
	case !c.busy():
		s.backToClassic(g, func(err error) {
			if err == nil {
				err = errEmpty // it is a classic group now
			}
			answer(JoinResult{}, err)
		})
		return nil
	case !set.ConsumerUpgrade && !set.ConsumerDowngrade, req.ProtocolType != consumerProtocol, len(req.Protocols) == 0:
		s.reply(func() { answer(JoinResult{}, ErrInconsistentProtocol) })
		return nil
	case len(c.queue) >= s.c.cfg.Limits.MemberIDs:
		return ErrNotAvailable
	}
	join := consumer.ClassicJoin{Member: req.Member, New: req.Member == "", Instance: req.Instance, ClientID: req.ClientID, ClientHost: req.ClientHost,
		SessionTimeout: req.SessionTimeout, RebalanceTimeout: req.RebalanceTimeout}
	for _, p := range req.Protocols {
		join.Protocols = append(join.Protocols, consumer.Protocol(p))
	}
	if join.New {
		if join.Member = s.c.newMemberID(req.ClientID); req.Instance != nil {
			join.Member = s.c.newMemberID(*req.Instance)
		} else if req.RequireMemberID {
			s.reply(func() { done(JoinResult{Member: join.Member, Generation: -1}, ErrMemberIDRequired) })
			return nil
		}
	}
	r := JoinResult{ProtocolType: consumerProtocol, Protocol: join.Protocols[0].Name, Member: join.Member}
	s.enqueue(g, consumerOp{run: func(ch *consumer.Change) error {
		if c.state.Size() == 0 {
			return errEmpty
		}
		a, err := c.state.JoinClassic(ch, s.c.env(), &join)
		if r.Generation = a.Epoch; err == nil {
			s.consumerBeat(g, join.Member)
			s.expect(g, c.sessions[join.Member], waitSync)
		}
		return err
	}, done: func(err error) { answer(r, err) }})
	return nil
}

// syncConsumer gives a classic member of a consumer group its assignment.
func (s *shard) syncConsumer(g *group, req *SyncRequest, done func(SyncResult, error)) error {
	c := g.consumer
	if len(c.queue) >= s.c.cfg.Limits.MemberIDs {
		return ErrNotAvailable
	}
	var r SyncResult
	s.enqueue(g, consumerOp{run: func(*consumer.Change) (err error) {
		r.Assignment, err = c.state.SyncClassic(s.c.env(), req.Member, req.Instance, req.Generation, req.ProtocolType, req.Protocol)
		switch {
		case errors.Is(err, ErrRebalanceInProgress):
			s.rejoinSoon(g, req.Member)
		case err == nil:
			r.ProtocolType, r.Protocol = consumerProtocol, c.state.Member(req.Member).Classic.Protocols[0].Name
			s.consumerBeat(g, req.Member)
			s.timers.stop(&c.sessions[req.Member].rebalance)
		}
		return err
	}, done: func(err error) {
		if errors.Is(err, errMoved) {
			s.c.Sync(*req, done)
			return
		}
		if err != nil {
			r = SyncResult{}
		}
		done(r, err)
	}})
	return nil
}

// rejoinSoon gives a classic member its rebalance timeout to join again.
func (s *shard) rejoinSoon(g *group, id string) {
	s.consumerBeat(g, id)
	if se := g.consumer.sessions[id]; se.rebalance.pos == 0 || se.wait == waitSync {
		s.expect(g, se, waitJoin)
	}
}

// beatConsumer takes a classic member's heartbeat in a consumer group.
func (s *shard) beatConsumer(g *group, req *HeartbeatRequest, done func(error)) {
	c := g.consumer
	if len(c.queue) >= s.c.cfg.Limits.MemberIDs {
		s.reply(func() { done(ErrNotAvailable) })
		return
	}
	s.enqueue(g, consumerOp{run: func(ch *consumer.Change) error {
		err := c.state.BeatClassic(ch, s.c.env(), req.Member, req.Instance, req.Generation)
		switch {
		case errors.Is(err, ErrRebalanceInProgress):
			s.rejoinSoon(g, req.Member)
		case err == nil:
			s.consumerBeat(g, req.Member)
		}
		return err
	}, done: func(err error) {
		if errors.Is(err, errMoved) {
			s.c.Heartbeat(*req, done)
			return
		}
		done(err)
	}})
}

// leaveConsumer takes classic members out of a consumer group.
func (s *shard) leaveConsumer(g *group, members []LeaveMember, done func([]error, error)) {
	c := g.consumer
	if len(c.queue) >= s.c.cfg.Limits.MemberIDs {
		s.reply(func() { done(nil, ErrNotAvailable) })
		return
	}
	each := make([]error, len(members))
	s.enqueue(g, consumerOp{run: func(ch *consumer.Change) error {
		for i, l := range members {
			each[i] = c.state.LeaveClassic(ch, s.c.env(), l.Member, l.Instance)
		}
		return nil
	}, done: func(err error) {
		if errors.Is(err, errMoved) {
			s.c.Leave(g.id, members, done)
			return
		}
		done(each, err)
	}})
}
