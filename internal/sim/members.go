package sim

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// groupMember is a client that consumes as a member of a group of the classic protocol: it looks for the coordinator, joins, assigns if
// it leads, consumes what it is given, commits, and beats. It leaves, dies without a word and comes back as somebody new, and is away
// for longer than its session and then goes on as if nothing had happened.
type groupMember struct {
	*client
	g    *consumerGroup
	name string
	conn *conn // to the coordinator
	// id and generation are what the coordinator has called it; joined: in a generation; placed: with an assignment and positions.
	id             string
	generation     int32
	joined, placed bool
	owned          []*ownedPart
	turn           int
	beaten         time.Time // the last heartbeat
	session        time.Duration
	rebalance      time.Duration
	isLate         bool // all it does is one late commit
	restarting     bool // its process is to end, and to begin anew
	nextMember
	refusal *kerr.Error
}

// ownedPart is a partition that a member consumes.
type ownedPart struct {
	*consumer
	committed int64
	placed    bool // it is known where to go on
	none      bool // nothing was committed
	again     bool // a commit of long ago has come since, and what is committed now may be less
}

// newGroups starts the groups of a run, each with its members, over all topics.
func (w *world) newGroups() {
	for i := range w.set.groups {
		g := w.newGroup(fmt.Sprint("group", i), w.model.parts)
		for k := range w.set.members {
			g.newMember(fmt.Sprint("m", k), w.set.session, w.set.rebalance).run()
		}
		w.newClient("onlooker", g.onlooker)
	}
	w.newKeepers()
}

// onlooker is somebody who is not a member and asks for the group's offsets. It stays with a node that has answered, also when that does
// not answer for a while: one that was the coordinator and does not know yet that it is no more.
func (g *consumerGroup) onlooker(c *client) {
	m := &groupMember{client: c, g: g, name: "onlooker", generation: -1}
	node := int32(1)
	for !g.w.healed {
		c.sleep(c.between(20*ms, 200*ms))
		if slices.Contains(g.w.made, false) {
			continue
		}
		if m.conn == nil || m.conn.broken {
			m.conn = g.w.dial(c, node)
		}
		if (m.conn == nil || !m.look(g.parts)) && c.rng.IntN(3) == 0 {
			m.hangUp()
			node = 1 + c.rng.Int32N(int32(len(g.w.nodes)))
		}
	}
}

func (g *consumerGroup) newMember(name string, session, rebalance time.Duration) *groupMember {
	m := &groupMember{g: g, name: name, generation: -1, session: session, rebalance: rebalance}
	g.members = append(g.members, m)
	return m
}

// run starts the member.
func (m *groupMember) run() {
	m.client = m.g.w.newClient("member", func(*client) {
		w := m.g.w
		for slices.Contains(w.made, false) {
			m.sleep(50 * ms)
		}
		for {
			m.draw()
			m.live()
			m.forget()
			if !w.healed {
				m.sleep(m.between(20*ms, 2*time.Second))
			}
		}
	})
}

// forget makes the member nobody: the next time it joins it is somebody new.
func (m *groupMember) forget() {
	m.id, m.generation, m.joined, m.placed, m.owned = "", -1, false, false, nil
	m.nextMember = nextMember{lives: m.lives}
	m.hangUp()
}

func (m *groupMember) hangUp() {
	if m.conn != nil {
		m.conn.close(errReset)
		m.conn = nil
	}
}

// live is a member from its first join to its end, which after healing does not come.
func (m *groupMember) live() {
	w := m.w
	turn := w.clk.Now().Add(m.between(200*ms, 6*time.Second))
	for {
		if now := w.clk.Now(); !w.healed && now.After(turn) {
			turn = now.Add(m.between(200*ms, 6*time.Second))
			if m.static() {
				turn = now.Add(m.between(200*ms, 3*time.Second)) // it is there to be restarted
			}
			switch what := m.rng.IntN(4); {
			case what == 0 && !(m.static() && m.rng.IntN(3) > 0):
				m.leave()
				return
			case what <= 1:
				w.counts["members gone without a word"]++
				if m.static() && m.placed && m.rng.IntN(3) > 0 {
					m.twin()
				}
				return
			default:
				m.absent()
			}
		}
		if m.fenced {
			return
		}
		if m.conn == nil || m.conn.broken {
			m.conn = nil
			m.find()
			continue
		}
		switch {
		case !m.joined && m.next:
			m.joinNext()
		case !m.joined:
			m.join()
		case !m.placed:
			m.place()
		default:
			m.step()
		}
	}
}

// step is what a member does again and again.
func (m *groupMember) step() {
	w := m.w
	if m.restarting {
		m.restart()
		return
	}
	if (m.changed || w.clk.Now().Sub(m.beaten) >= m.session/5) && !m.beat() {
		return
	}
	if len(m.owned) > 0 {
		m.turn++
		o := m.owned[m.turn%len(m.owned)]
		if o.consumer.conn == nil || o.consumer.conn.broken {
			o.connect()
		} else {
			o.poll()
		}
		if w.healed || m.rng.IntN(4) == 0 {
			m.commit()
		}
	}
	if w.ending {
		m.sleep(m.between(5*ms, 20*ms)) // it is late: there is a backlog to consume
		return
	}
	m.sleep(m.between(5*ms, 4*w.set.pace))
}

// find looks for the coordinator and connects to it.
func (m *groupMember) find() {
	if k := m.anyNode(); k != nil {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.SetVersion(3)
		req.CoordinatorKey = m.g.name
		resp, err := k.ask(req, nil)
		k.close(errReset)
		if err == nil {
			r := resp.(*kmsg.FindCoordinatorResponse)
			if r.ErrorCode == 0 {
				if m.conn = m.w.dial(m.client, r.NodeID); m.conn != nil {
					m.conn.clientID = m.name
				}
			} else if code := typed(r.ErrorCode); code != kerr.CoordinatorNotAvailable {
				m.w.fail("%s: looking for its coordinator: %v", m.g.name, code)
			}
		}
	}
	if m.conn == nil {
		m.sleep(m.between(10*ms, 100*ms))
	}
}

// heard takes an error code of a coordinator's answer, and says whether there was none.
func (m *groupMember) heard(what string, code int16, err error) bool {
	w := m.w
	if err != nil {
		m.hangUp()
		return false
	}
	k := typed(code)
	if m.refusal = k; k != nil {
		w.counts[what+": "+k.Message]++
	}
	switch k {
	case nil:
		return true
	case kerr.NotCoordinator, kerr.CoordinatorNotAvailable:
		m.hangUp()
	case kerr.CoordinatorLoadInProgress:
	case kerr.GroupIDNotFound, kerr.StaleMemberEpoch, kerr.FencedMemberEpoch, kerr.UnreleasedInstanceID, kerr.FencedInstanceID, kerr.InconsistentGroupProtocol:
		m.heardNext(what, k)
	case kerr.RebalanceInProgress, kerr.IllegalGeneration:
		if m.placed && !w.scripted && m.rng.IntN(2) == 0 {
			m.late()
		}
		m.joined, m.placed = false, false
	case kerr.UnknownMemberID:
		m.lost()
	default:
		w.fail("%s: %s of %s: %v", m.g.name, what, m.name, k)
	}
	m.sleep(m.between(5*ms, 50*ms))
	return false
}

// joinRequest asks to be a member of the next generation.
func (m *groupMember) joinRequest() *kmsg.JoinGroupRequest {
	topics := kmsg.NewConsumerMemberMetadata()
	for _, p := range m.g.parts {
		if !slices.Contains(topics.Topics, p.topic) {
			topics.Topics = append(topics.Topics, p.topic)
		}
	}
	req := kmsg.NewPtrJoinGroupRequest()
	req.SetVersion(7)
	if m.static() && m.rng.IntN(2) == 0 {
		req.SetVersion(9) // a leader that comes back is told that it is the leader, and need not assign again (KIP-814)
	}
	req.Group, req.MemberID, req.ProtocolType, req.InstanceID = m.g.name, m.id, "consumer", m.instanceID()
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = int32(m.session/time.Millisecond), int32(m.rebalance/time.Millisecond)
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name, p.Metadata = "range", topics.AppendTo(nil)
	req.Protocols = append(req.Protocols, p)
	return req
}

func (m *groupMember) askJoin(req *kmsg.JoinGroupRequest) (kmsg.Response, error) {
	k, sent := m.conn, m.w.clk.Now()
	// A newcomer's id that is not used holds the others up for a session.
	return k.askWithin(2*(m.session+m.rebalance)+requestTimeout, req, func(resp kmsg.Response) {
		if r := resp.(*kmsg.JoinGroupResponse); r.ErrorCode == 0 {
			m.g.toldJoin(r)
			if req.MemberID != "" {
				m.g.accepted("join", req.MemberID, sent, k.p)
			}
		}
	})
}

// join asks to be a member of the next generation, and for its assignment then.
func (m *groupMember) join() {
	req := m.joinRequest()
	m.owned = nil
	m.g.release(m.id, nil) // it has nothing any more
	resp, err := m.askJoin(req)
	if err != nil {
		m.heard("join", 0, err)
		return
	}
	r := resp.(*kmsg.JoinGroupResponse)
	if r.ErrorCode == kerr.MemberIDRequired.Code {
		m.id = r.MemberID
		return
	}
	if m.heard("join", r.ErrorCode, nil) {
		m.id, m.generation, m.joined = r.MemberID, r.Generation, true
		m.beaten = m.w.clk.Now()
		m.w.log("%s: %s is %s in generation %d, led by %s", m.g.name, m.name, m.id, m.generation, r.LeaderID)
		m.sync(r)
	}
}

// sync gets the member's assignment; a leader brings everybody's.
func (m *groupMember) sync(join *kmsg.JoinGroupResponse) {
	req := kmsg.NewPtrSyncGroupRequest()
	req.SetVersion(5)
	req.Group, req.MemberID, req.Generation, req.InstanceID = m.g.name, m.id, m.generation, m.instanceID()
	req.ProtocolType, req.Protocol = kmsg.StringPtr("consumer"), kmsg.StringPtr("range")
	if join.LeaderID == m.id && !join.SkipAssignment {
		req.GroupAssignment = m.g.assign(join.Members)
	}
	for m.joined {
		if m.conn == nil || m.conn.broken {
			m.find()
			continue
		}
		k, sent := m.conn, m.w.clk.Now()
		resp, err := k.askWithin(m.rebalance+requestTimeout, req, func(resp kmsg.Response) {
			if r := resp.(*kmsg.SyncGroupResponse); r.ErrorCode == 0 {
				m.g.alive("sync", req.MemberID, sent, k.p)
				m.g.toldSync(req.Generation, req.MemberID, r.MemberAssignment)
				m.takes(k, req.MemberID, r.MemberAssignment)
			}
		})
		if err != nil {
			m.heard("sync", 0, err)
			continue
		}
		r := resp.(*kmsg.SyncGroupResponse)
		if !m.heard("sync", r.ErrorCode, nil) {
			continue
		}
		m.own(r.MemberAssignment)
		return
	}
}

// assign spreads the group's partitions over its members.
func (g *consumerGroup) assign(members []kmsg.JoinGroupResponseMember) (out []kmsg.SyncGroupRequestGroupAssignment) {
	slices.SortFunc(members, func(a, b kmsg.JoinGroupResponseMember) int { return compareText(a.MemberID, b.MemberID) })
	for i, member := range members {
		a := kmsg.NewConsumerMemberAssignment()
		for k, p := range g.parts {
			if k%len(members) != i {
				continue
			}
			t := kmsg.NewConsumerMemberAssignmentTopic()
			t.Topic, t.Partitions = p.topic, []int32{p.index}
			a.Topics = append(a.Topics, t)
		}
		s := kmsg.NewSyncGroupRequestGroupAssignment()
		s.MemberID, s.MemberAssignment = member.MemberID, a.AppendTo(nil)
		out = append(out, s)
	}
	return out
}

func compareText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// own takes the assignment.
func (m *groupMember) own(assignment []byte) {
	m.owned = nil
	if len(assignment) == 0 {
		return
	}
	var a kmsg.ConsumerMemberAssignment
	if err := a.ReadFrom(assignment); err != nil {
		m.w.fail("%s: the assignment of %s can't be read: %v", m.g.name, m.name, err)
		return
	}
	for _, t := range a.Topics {
		for _, p := range m.g.parts {
			if p.topic == t.Topic && slices.Contains(t.Partitions, p.index) {
				m.owned = append(m.owned, &ownedPart{consumer: &consumer{client: m.client, part: p, ofGroup: true}})
			}
		}
	}
}

// place finds out where to go on with what the member owns.
func (m *groupMember) place() {
	var parts []*partModel
	for _, o := range m.owned {
		if !o.placed {
			parts = append(parts, o.part)
		}
	}
	m.placed = len(parts) == 0 || m.look(parts)
}

// look fetches committed offsets, and has the member's own partitions go on there.
func (m *groupMember) look(parts []*partModel) bool {
	if m.conn == nil || m.conn.broken {
		m.conn = nil
		if m.find(); m.conn == nil {
			return false
		}
	}
	req := m.fetchRequest(parts)
	ops := map[*partModel]*offsetOp{}
	for _, p := range parts {
		ops[p] = m.g.begin(p, -1, m.generation, true)
	}
	resp, err := m.conn.ask(req, func(resp kmsg.Response) {
		found, code := fetched(resp.(*kmsg.OffsetFetchResponse))
		for i, p := range parts {
			if code == 0 {
				if code := typed(found[i].code); code != nil {
					m.w.fail("%s: the offset of %s: %v", m.g.name, p, code)
				}
				m.g.found(ops[p], found[i].offset, found[i].metadata)
			}
		}
	})
	if err != nil {
		return m.heard("fetch of offsets", 0, err)
	}
	if _, code := fetched(resp.(*kmsg.OffsetFetchResponse)); !m.heard("fetch of offsets", code, nil) {
		return false
	}
	for _, p := range parts {
		m.g.end(ops[p])
	}
	for _, o := range m.owned {
		if op := ops[o.part]; op != nil && !o.placed {
			o.placed, o.none = true, op.offset < 0
			o.at = max(op.offset, 0)
			o.committed = o.at
		}
	}
	return true
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// beat tells the coordinator that the member lives, and says whether it may go on.
func (m *groupMember) beat() bool {
	if m.next {
		return m.beatNext()
	}
	req := kmsg.NewPtrHeartbeatRequest()
	req.SetVersion(4)
	req.Group, req.MemberID, req.Generation, req.InstanceID = m.g.name, m.id, m.generation, m.instanceID()
	k, sent := m.conn, m.w.clk.Now()
	resp, err := k.ask(req, func(resp kmsg.Response) {
		if resp.(*kmsg.HeartbeatResponse).ErrorCode == 0 {
			m.g.alive("heartbeat", req.MemberID, sent, k.p)
		}
	})
	if err != nil {
		return m.heard("heartbeat", 0, err)
	}
	code := resp.(*kmsg.HeartbeatResponse).ErrorCode
	if code == kerr.RebalanceInProgress.Code && m.placed && m.rng.IntN(2) == 0 {
		m.commit() // as consumers do before they give up what they own
	}
	if !m.heard("heartbeat", code, nil) {
		return false
	}
	m.beaten = m.w.clk.Now()
	return true
}

// commit commits what has been consumed, if anything has been.
func (m *groupMember) commit() (*kerr.Error, error) {
	w := m.w
	req := kmsg.NewPtrOffsetCommitRequest()
	req.SetVersion(8)
	if m.next {
		req.SetVersion(9)
	}
	req.Group, req.MemberID, req.Generation, req.InstanceID = m.g.name, m.id, m.generation, m.instanceID()
	var ops []*offsetOp
	var owned []*ownedPart
	for _, o := range m.owned {
		if o.at == o.committed && !o.again || !o.placed {
			continue
		}
		o.again = false
		op := m.g.begin(o.part, o.at, m.generation, false)
		op.late, op.member = m.isLate, m.id
		ops, owned = append(ops, op), append(owned, o)
		t := kmsg.NewOffsetCommitRequestTopic()
		t.Topic = o.part.topic
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset, p.Metadata = o.part.index, o.at, kmsg.StringPtr(strconv.Itoa(op.id))
		t.Partitions = append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
	}
	if len(ops) == 0 || m.conn == nil || m.conn.broken {
		for _, op := range ops {
			op.refused = true // never sent
		}
		return nil, errReset
	}
	stale := m.generation < m.g.generation
	resp, err := m.conn.ask(req, func(resp kmsg.Response) {
		for i, t := range resp.(*kmsg.OffsetCommitResponse).Topics {
			switch typed(t.Partitions[0].ErrorCode) {
			case nil:
				m.g.committed(ops[i])
			case kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.RebalanceInProgress, kerr.CoordinatorLoadInProgress,
				kerr.StaleMemberEpoch, kerr.GroupIDNotFound, kerr.FencedInstanceID:
				m.g.refuse(ops[i])
			}
		}
	})
	if err != nil {
		for _, op := range ops {
			op.late = true // a server that was paused may carry it out yet
		}
		m.heard("commit", 0, err)
		return nil, err
	}
	r := resp.(*kmsg.OffsetCommitResponse)
	code := r.Topics[0].Partitions[0].ErrorCode
	if stale && (code == kerr.IllegalGeneration.Code || code == kerr.UnknownMemberID.Code) {
		w.counts["commits of an old generation refused"]++
	}
	if m.heard("commit", code, nil) {
		for i, op := range ops {
			m.g.end(op)
			owned[i].committed = op.offset
		}
	}
	return typed(code), nil
}

// leave says good-bye.
func (m *groupMember) leave() {
	if m.id == "" || m.conn == nil || m.conn.broken {
		return
	}
	if m.next {
		m.leaveNext()
		return
	}
	m.g.leaves(m.id)
	req := kmsg.NewPtrLeaveGroupRequest()
	req.SetVersion(4)
	req.Group = m.g.name
	l := kmsg.NewLeaveGroupRequestMember()
	l.MemberID, l.InstanceID = m.id, m.instanceID()
	req.Members = append(req.Members, l)
	k, sent := m.conn, m.w.clk.Now()
	resp, err := k.ask(req, func(resp kmsg.Response) {
		if r := resp.(*kmsg.LeaveGroupResponse); r.ErrorCode == 0 && len(r.Members) == 1 && r.Members[0].ErrorCode == 0 {
			m.g.accepted("leaving", l.MemberID, sent, k.p)
		}
	})
	if err != nil {
		return
	}
	switch r := resp.(*kmsg.LeaveGroupResponse); {
	case r.ErrorCode != 0:
	case len(r.Members) == 1 && r.Members[0].ErrorCode == kerr.FencedInstanceID.Code:
		m.heard("leave", r.Members[0].ErrorCode, nil)
	default:
		m.w.counts["members left"]++
	}
}

// late is a commit of the member's that has been under way for long: it comes when the next generation may have begun, in which the
// member is, too.
func (m *groupMember) late() {
	l := m.double()
	l.isLate = true
	l.client = m.w.newClient("late commit", func(c *client) {
		c.sleep(c.between(5*ms, time.Second))
		if l.find(); l.conn != nil {
			_, _ = l.commit()
			l.hangUp()
		}
	})
}

// double is somebody else who goes by the member's id, in its generation, with what it has consumed.
func (m *groupMember) double() *groupMember {
	d := &groupMember{g: m.g, name: m.name, id: m.id, generation: m.generation, session: m.session, rebalance: m.rebalance}
	d.next, d.instance, d.version = m.next, m.instance, m.version
	for _, o := range m.owned {
		if o.at > 0 {
			d.owned = append(d.owned, &ownedPart{consumer: &consumer{part: o.part, at: o.at}, committed: -1, placed: true})
		}
	}
	return d
}

// absent is a member that hangs for about as long as its session, and then commits as if nothing had happened.
func (m *groupMember) absent() {
	for _, o := range m.owned {
		if m.joined && o.consumer.conn != nil && !o.consumer.conn.broken {
			o.poll() // so that there is something to commit
		}
	}
	m.sleep(m.between(m.session/2, 2*m.session))
	if m.joined && m.placed {
		m.w.counts["members absent"]++
		m.commit()
	}
}
