package group

import (
	"bytes"
	"errors"
	"strings"
	"time"
)

// JoinRequest asks to be a member, or to go on being one.
type JoinRequest struct {
	Group                string
	Member               string // empty: new
	Instance             *string
	ClientID, ClientHost string
	// Timeouts in ms; a RebalanceTimeout below 0 (v0) is the session's.
	SessionTimeout, RebalanceTimeout int32
	ProtocolType                     string
	Protocols                        []Protocol
	// RequireMemberID: a new member gets an id first and joins with that (KIP-394, v4).
	RequireMemberID bool
	// CanSkipAssignment: a static leader that comes back knows that it need not assign again (KIP-814, v9).
	CanSkipAssignment bool
}

// JoinResult is a member's place in a generation.
type JoinResult struct {
	Generation             int32
	ProtocolType, Protocol string
	Leader, Member         string
	SkipAssignment         bool
	Members                []JoinedMember // for the leader
}

// JoinedMember is what the leader is told of a member.
type JoinedMember struct {
	ID       string
	Instance *string
	Metadata []byte
}

// newMemberTimeout is how long somebody who joins for the first time is waited for; nothing else says that it has gone.
const newMemberTimeout = 5 * time.Minute

// Join takes a member in. done is called when the generation begins, or with an error; the group's errors come with the
// member's id.
func (c *Coordinator) Join(req JoinRequest, done func(JoinResult, error)) {
	fail := func(err error) { done(JoinResult{Member: req.Member, Generation: -1}, err) }
	set := &c.cfg.Settings
	timeout := time.Duration(req.SessionTimeout) * time.Millisecond
	switch {
	case req.Group == "":
		fail(ErrInvalidGroupID)
		return
	case timeout < set.MinSessionTimeout || timeout > set.MaxSessionTimeout:
		fail(ErrInvalidSessionTimeout)
		return
	}
	if req.RebalanceTimeout < 0 {
		req.RebalanceTimeout = req.SessionTimeout
	}
	// Kept for as long as the member lives: not a part of the request's frame.
	protocols := make([]Protocol, len(req.Protocols))
	for i, p := range req.Protocols {
		protocols[i] = Protocol{p.Name, bytes.Clone(p.Metadata)}
	}
	req.Protocols = protocols
	c.with(req.Group, func(err error) { done(JoinResult{Generation: -1}, err) }, func(s *shard) {
		if err := s.joinGroup(&req, done); err != nil {
			s.reply(func() { fail(err) })
		}
	})
}

// joinGroup answers by done, or returns an error.
func (s *shard) joinGroup(req *JoinRequest, done func(JoinResult, error)) error {
	var g *group
	var err error
	if req.Member == "" {
		g, err = s.findOrMake(req.Group)
	} else if g, err = s.find(req.Group); errors.Is(err, ErrGroupNotFound) {
		err = ErrUnknownMember
	}
	if err != nil {
		return err
	}
	if g.consumer != nil {
		return s.joinConsumer(g, req, done)
	}
	c := g.classic
	switch {
	case !c.admits(req.ProtocolType, req.Protocols):
		err = ErrInconsistentProtocol
	case !s.hasRoom(c, req):
		if m := c.members[req.Member]; m != nil {
			s.drop(g, m, ErrGroupFull)
		}
		delete(c.promised, req.Member)
		err = ErrGroupFull
	case req.Member == "":
		err = s.joinNew(g, req, done)
	default:
		err = s.joinKnown(g, req, done)
	}
	s.forget(g)
	if err != nil && !errors.Is(err, ErrMemberIDRequired) {
		return err
	}
	s.tryComplete(g)
	return nil
}

// hasRoom checks group.max.size, and what the members bring along.
func (s *shard) hasRoom(c *classicGroup, req *JoinRequest) bool {
	m, most := c.members[req.Member], s.c.cfg.Settings.MaxGroupSize
	more := protocolBytes(req.Protocols)
	if m != nil {
		more -= protocolBytes(m.protocols)
	}
	if more > 0 && more > min(s.c.cfg.Limits.GroupBytes-c.bytes, s.c.room()) {
		return false
	}
	replaces := m != nil || req.Member == "" && req.Instance != nil && c.instances[*req.Instance] != nil
	switch c.state {
	case Empty:
		return true
	case PreparingRebalance:
		// Those who were members and do not come back make room.
		return m != nil && m.onJoin != nil || c.joining < most
	}
	return replaces || len(c.members) < most
}

// maxMemberName leaves room for the unique part of a member's id, which has 32,767 bytes at most like all of Kafka's strings.
const maxMemberName = 1<<15 - 1 - 64

// newMemberID makes a member's id, which begins with a name for people.
func (c *Coordinator) newMemberID(name string) string {
	if len(name) > maxMemberName {
		name = strings.ToValidUTF8(name[:maxMemberName], "")
	}
	return name + "-" + c.cfg.NewID()
}

// joinNew takes in somebody without a member id.
func (s *shard) joinNew(g *group, req *JoinRequest, done func(JoinResult, error)) error {
	c := g.classic
	prefix := req.ClientID
	if req.Instance != nil {
		prefix = *req.Instance
	}
	id := s.c.newMemberID(prefix)
	if req.Instance != nil {
		if old := c.instances[*req.Instance]; old != nil {
			s.replaceStatic(g, old, id, req, done)
			return nil
		}
		s.addMember(g, id, req, done)
		return nil
	}
	if !req.RequireMemberID {
		s.addMember(g, id, req, done)
		return nil
	}
	if len(c.promised) >= s.c.cfg.Limits.MemberIDs {
		return ErrNotAvailable
	}
	m := &member{staticLife: staticLife{id: id}}
	m.timer = timer{kind: timerPending, group: g, member: m}
	if c.promised == nil {
		c.promised = map[string]*member{}
	}
	c.promised[id] = m
	s.timers.set(&m.timer, s.c.now()+time.Duration(req.SessionTimeout)*time.Millisecond)
	s.reply(func() { done(JoinResult{Member: id, Generation: -1}, ErrMemberIDRequired) })
	return ErrMemberIDRequired
}

// joinKnown takes in somebody with a member id.
func (s *shard) joinKnown(g *group, req *JoinRequest, done func(JoinResult, error)) error {
	c := g.classic
	if p := c.promised[req.Member]; p != nil && req.Instance == nil {
		s.timers.stop(&p.timer)
		delete(c.promised, req.Member)
		s.addMember(g, req.Member, req, done)
		return nil
	}
	m, err := c.find(req.Member, req.Instance)
	if err != nil {
		return err
	}
	switch c.state {
	case PreparingRebalance:
		s.rejoin(g, m, req, done)
	case CompletingRebalance:
		if m.same(req.Protocols) {
			// The answer got lost: the generation is what it was.
			s.answerJoin(g, m, done)
			return nil
		}
		s.rejoin(g, m, req, done)
	case Stable:
		if c.leader != m.id && m.same(req.Protocols) {
			s.answerJoin(g, m, done)
			return nil
		}
		s.rejoin(g, m, req, done) // a leader that joins again wants to assign anew
	default:
		return ErrUnknownMember
	}
	return nil
}

// answerJoin tells a member of the present generation, once that is committed.
func (s *shard) answerJoin(g *group, m *member, done func(JoinResult, error)) {
	c := g.classic
	r := c.result(m)
	s.beat(m)
	if c.recording == 0 {
		s.reply(func() { done(r, nil) })
		return
	}
	c.waiting = append(c.waiting, func(err error) {
		s.reply(func() { done(r, err) })
	})
}

// result is a member's place in the present generation. Of a leader's next life that is not written yet nobody else is told.
func (c *classicGroup) result(m *member) JoinResult {
	r := JoinResult{Generation: c.generation, ProtocolType: c.protocolType, Protocol: c.protocol, Leader: c.leader, Member: m.id}
	if l := c.members[c.leader]; l != nil && l.written != nil && c.recording == 0 && c.state == Stable {
		r.Leader = l.written.id
	}
	if m.id == c.leader && c.state != Stable {
		r.Members = c.joined()
	}
	return r
}

// joined is what a leader is told of everybody.
func (c *classicGroup) joined() []JoinedMember {
	out := make([]JoinedMember, 0, len(c.order))
	for _, o := range c.order {
		out = append(out, JoinedMember{ID: o.id, Instance: o.instance, Metadata: o.metadata(c.protocol)})
	}
	return out
}

// addMember takes in a newcomer, which begins a rebalance or joins the one under way.
func (s *shard) addMember(g *group, id string, req *JoinRequest, done func(JoinResult, error)) {
	c := g.classic
	m := &member{instance: req.Instance, isNew: true, staticLife: staticLife{
		id: id, clientID: req.ClientID, clientHost: req.ClientHost,
		sessionTimeout: req.SessionTimeout, rebalanceTimeout: req.RebalanceTimeout, protocols: req.Protocols,
	}}
	m.timer = timer{kind: timerSession, group: g, member: m}
	if len(c.members) == 0 {
		c.protocolType = req.ProtocolType
	}
	c.add(m)
	if c.leader == "" {
		c.leader = id
	}
	if c.state == PreparingRebalance && c.initial {
		c.newcomers = true
	}
	s.await(c, m, done)
	m.deadline = s.c.now() + newMemberTimeout
	s.timers.set(&m.timer, m.deadline)
	s.rebalance(g)
}

// rejoin takes a member into the next generation.
func (s *shard) rejoin(g *group, m *member, req *JoinRequest, done func(JoinResult, error)) {
	s.update(g, m, req)
	s.await(g.classic, m, done)
	s.rebalance(g)
}

func (s *shard) update(g *group, m *member, req *JoinRequest) {
	c := g.classic
	c.count(m.protocols, -1)
	m.protocols = req.Protocols
	c.count(m.protocols, 1)
	m.sessionTimeout, m.rebalanceTimeout = req.SessionTimeout, req.RebalanceTimeout
	if req.ClientID != "" {
		m.clientID, m.clientHost = req.ClientID, req.ClientHost
	}
}

// await keeps a member's completion until the generation begins. One that it had before is of a request that was given up.
func (s *shard) await(c *classicGroup, m *member, done func(JoinResult, error)) {
	if old := m.onJoin; old != nil {
		s.endJoin(c, m, ErrRebalanceInProgress)
	}
	m.onJoin = done
	c.joining++
}

// endJoin answers a join that waits with an error.
func (s *shard) endJoin(c *classicGroup, m *member, err error) {
	if done := m.onJoin; done != nil {
		m.onJoin = nil
		c.joining--
		id := m.id
		s.reply(func() { done(JoinResult{Member: id, Generation: -1}, err) })
	}
}

// endSync answers a sync that waits with an error.
func (s *shard) endSync(m *member, err error) {
	if done := m.onSync; done != nil {
		m.onSync = nil
		s.reply(func() { done(SyncResult{}, err) })
	}
}

// refuseSync is endSync for a member that stays: the time it waited is not its silence.
func (s *shard) refuseSync(m *member, err error) {
	if m.onSync != nil {
		s.beat(m)
	}
	s.endSync(m, err)
}

// replaceStatic puts a static member's new life in its old one's place (KIP-345). In a stable group whose protocol stays what
// it was nobody else is bothered; if that can't be written, the old life is the member again, as in the log.
func (s *shard) replaceStatic(g *group, m *member, id string, req *JoinRequest, done func(JoinResult, error)) {
	c := g.classic
	oldID, oldProtocol := m.id, c.protocol
	s.endJoin(c, m, ErrFencedInstance)
	s.endSync(m, ErrFencedInstance)
	wasLeader := c.leader == oldID
	old := m.staticLife
	c.rename(m, id)
	same := m.same(req.Protocols)
	s.update(g, m, req)
	if c.state != Stable || !same && c.elect() != oldProtocol {
		m.written = nil // the next generation is what is written of it
		s.await(c, m, done)
		m.isNew = true
		m.deadline = s.c.now() + newMemberTimeout
		s.timers.set(&m.timer, m.deadline)
		s.rebalance(g)
		return
	}
	if m.written == nil {
		m.written = &old
	}
	s.beat(m)
	c.learnTopics()
	r := JoinResult{Generation: c.generation, ProtocolType: c.protocolType, Protocol: c.protocol, Leader: c.leader, Member: id}
	switch {
	case wasLeader && req.CanSkipAssignment:
		r.SkipAssignment, r.Members = true, c.joined()
	case wasLeader:
		// Told of a leader that is gone, it does not assign: its old assignment still holds.
		r.Leader = oldID
	}
	life, generation := m.staticLife, c.generation
	answer := func(err error) {
		if err != nil {
			r = JoinResult{Generation: -1}
		}
		done(r, err)
	}
	s.record(g, func(err error) {
		s.replaced(g, c, m, life, generation, err)
		s.reply(func() { answer(err) })
	}, answer)
}

// replaced is told what came of writing a static member's new life. Several may be under way, one in the other's place.
func (s *shard) replaced(g *group, c *classicGroup, m *member, life staticLife, generation int32, err error) {
	written := m.written
	if written == nil || g.classic != c || c.instances[*m.instance] != m {
		return
	}
	if m.id != life.id {
		if err == nil {
			m.written = &life
		}
		return
	}
	m.written = nil
	if err == nil || c.generation != generation {
		return
	}
	c.count(m.protocols, -1)
	c.rename(m, written.id)
	m.staticLife = *written
	c.count(m.protocols, 1)
	s.beat(m)
	c.learnTopics()
}

// rename gives a member another id.
func (c *classicGroup) rename(m *member, id string) {
	if c.leader == m.id {
		c.leader = id
	}
	delete(c.members, m.id)
	m.id = id
	c.members[id] = m
}

// record writes the group. then is called with mu, lost without it, where the shard is gone.
func (s *shard) record(g *group, then, lost func(error)) {
	s.append([]keyValue{g.classic.record(g.id)}, func(_ int64, err error) {
		if err != nil {
			err = appendError(err, ErrGroupTooLarge)
			s.log.Warn("a group's metadata could not be written", "group", g.id, "generation", g.classic.generation, "error", err)
		}
		then(err)
	}, func(err error) { s.reply(func() { lost(lostError(err)) }) })
}
