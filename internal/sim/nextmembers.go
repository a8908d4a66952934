package sim

import (
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// nextMember is what a member has beside, in a life by the consumer protocol (KIP-848): it sends heartbeats, and is told in their answers
// what to give back and what it may use. It is static or not, subscribes by name or by regular expression, leaves, leaves for a while,
// and dies without a word.
type nextMember struct {
	next     bool // this life is by the consumer protocol
	lives    int
	instance string // of a static member, which keeps it in its next life
	regex    bool
	version  int16 // of its heartbeats
	changed  bool  // what it has is not yet what the coordinator has heard of
	fenced   bool  // another one has taken its place
	earlier  int32 // an epoch that it was in before; 0: none
}

// draw decides by which protocol the next life goes, and how.
func (m *groupMember) draw() {
	m.lives++
	switch m.w.set.protocols {
	case "classic":
		m.drawStatic()
		return
	case "mixed":
		if m.rng.IntN(2) == 0 {
			m.drawStatic()
			return
		}
	}
	m.next, m.version, m.regex = true, 1, m.rng.IntN(3) == 0
	if m.rng.IntN(5) == 0 {
		m.version, m.regex = 0, false // the server gives it an id
	} else {
		m.id = fmt.Sprintf("%s.%s.%d", m.g.name, m.name, m.lives)
	}
	if m.name == "m0" || m.name == "m2" {
		m.instance = m.g.name + "-" + m.name
	}
}

// has lists what the member owns.
func (m *groupMember) has() []*partModel {
	parts := make([]*partModel, len(m.owned))
	for i, o := range m.owned {
		parts[i] = o.part
	}
	return parts
}

// heartbeat makes one.
func (m *groupMember) heartbeat(epoch int32) *kmsg.ConsumerGroupHeartbeatRequest {
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.SetVersion(m.version)
	req.Group, req.MemberID, req.MemberEpoch, req.RebalanceTimeoutMillis = m.g.name, m.id, epoch, -1
	if m.instance != "" {
		req.InstanceID = &m.instance
	}
	return req
}

// subscribe has a heartbeat say all that a member can say.
func (m *groupMember) subscribe(req *kmsg.ConsumerGroupHeartbeatRequest) {
	req.RebalanceTimeoutMillis = int32(m.rebalance.Milliseconds())
	if m.regex {
		req.SubscribedTopicRegex = kmsg.StringPtr("t[0-9]*")
		return
	}
	for _, p := range m.g.parts {
		if !slices.Contains(req.SubscribedTopicNames, p.topic) {
			req.SubscribedTopicNames = append(req.SubscribedTopicNames, p.topic)
		}
	}
}

// say has a heartbeat say what the member has.
func (m *groupMember) say(req *kmsg.ConsumerGroupHeartbeatRequest) {
	req.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	for id, name := range m.w.topicNames {
		t := kmsg.NewConsumerGroupHeartbeatRequestTopic()
		for _, o := range m.owned {
			if t.TopicID = id; o.part.topic == name {
				t.Partitions = append(t.Partitions, o.part.index)
			}
		}
		if len(t.Partitions) > 0 {
			req.Topics = append(req.Topics, t)
		}
	}
	slices.SortFunc(req.Topics, func(a, b kmsg.ConsumerGroupHeartbeatRequestTopic) int {
		return compareText(string(a.TopicID[:]), string(b.TopicID[:]))
	})
	m.g.release(m.id, m.has())
}

// joinNext asks to be a member.
func (m *groupMember) joinNext() {
	m.owned, m.placed, m.changed = nil, false, false
	req := m.heartbeat(0)
	m.subscribe(req)
	m.say(req)
	m.send(req, "join by heartbeat")
}

// beatNext says that the member lives, and now and then all that there is to say.
func (m *groupMember) beatNext() bool {
	if m.earlier > 0 && !m.w.scripted && m.rng.IntN(20) == 0 {
		m.lateBeat()
	}
	req := m.heartbeat(m.generation)
	full := m.rng.IntN(4) == 0
	if full {
		m.subscribe(req)
	}
	// It takes a client a while to give something back: meanwhile it beats, and says nothing.
	if m.changed && (m.w.scripted || m.rng.IntN(3) > 0) || full {
		m.say(req)
	}
	if !m.send(req, "consumer heartbeat") {
		return false
	}
	return m.placed
}

// lateBeat is a heartbeat of an epoch before, which has been under way for long.
func (m *groupMember) lateBeat() {
	l := m.double()
	l.isLate, l.generation = true, m.earlier
	l.client = m.w.newClient("late heartbeat", func(*client) {
		if l.find(); l.conn != nil {
			l.send(l.heartbeat(l.generation), "late heartbeat")
			l.hangUp()
		}
	})
}

// send sends a heartbeat and does what its answer says.
func (m *groupMember) send(req *kmsg.ConsumerGroupHeartbeatRequest, what string) bool {
	w, k, id, sent := m.w, m.conn, m.id, m.w.clk.Now()
	var told []*partModel
	resp, err := k.ask(req, func(resp kmsg.Response) {
		r := resp.(*kmsg.ConsumerGroupHeartbeatResponse)
		if r.ErrorCode != 0 {
			return
		}
		if r.MemberID != nil {
			id = *r.MemberID
		}
		if r.Assignment != nil {
			for _, t := range r.Assignment.Topics {
				for _, p := range t.Partitions {
					told = m.g.appendPart(told, w.topicOf(t.TopicID), p)
				}
			}
		}
		if req.MemberEpoch >= 0 { // who leaves for a while has the rest of the session before
			m.g.next.beaten[id] = beat{sent, k.p}
		}
		m.g.toldNext(id, r, told)
		if r.Assignment != nil && !k.broken {
			m.g.hold(id, told)
		}
	})
	if err != nil {
		return m.heard(what, 0, err)
	}
	r := resp.(*kmsg.ConsumerGroupHeartbeatResponse)
	if !m.heard(what, r.ErrorCode, nil) {
		return false
	}
	if req.MemberEpoch < 0 || m.isLate {
		return true
	}
	if r.MemberEpoch > m.generation && m.generation > 0 {
		m.earlier = m.generation
	}
	m.id, m.generation, m.joined, m.beaten = id, r.MemberEpoch, true, w.clk.Now()
	if req.Topics != nil {
		m.changed = false
	}
	if r.Assignment != nil {
		m.assigned(told)
	}
	if m.placed = !slices.ContainsFunc(m.owned, func(o *ownedPart) bool { return !o.placed }); !m.placed {
		m.place()
	}
	return m.joined
}

// assigned gives back what the member may not use any more, mostly after a last commit, and takes what it may.
func (m *groupMember) assigned(to []*partModel) {
	if slices.ContainsFunc(m.owned, func(o *ownedPart) bool { return !slices.Contains(to, o.part) }) {
		m.changed = true
		if m.rng.IntN(3) > 0 {
			m.commit()
		}
		if m.rng.IntN(6) == 0 && !m.w.scripted {
			m.late()
		}
		m.owned = slices.DeleteFunc(m.owned, func(o *ownedPart) bool { return !slices.Contains(to, o.part) })
	}
	for _, p := range to {
		if !slices.ContainsFunc(m.owned, func(o *ownedPart) bool { return o.part == p }) {
			m.changed = true
			m.owned = append(m.owned, &ownedPart{consumer: &consumer{client: m.client, part: p, ofGroup: true}})
		}
	}
}

// takes notes that a member is told by the classic protocol what it may use, if that can still reach it.
func (m *groupMember) takes(k *conn, member string, assignment []byte) {
	if !k.broken {
		m.g.hold(member, m.g.partsOf(assignment))
	}
}

// lost has a member that is none any more begin anew.
func (m *groupMember) lost() {
	m.g.release(m.id, nil)
	if !m.next || m.version == 0 {
		m.id = ""
	}
	m.joined, m.placed, m.owned, m.changed = false, false, nil, false
	m.generation = -1
}

// heardNext takes the refusals of the consumer protocol.
func (m *groupMember) heardNext(what string, code *kerr.Error) {
	switch code {
	case kerr.UnreleasedInstanceID: // until its former life's session ends
	case kerr.StaleMemberEpoch: // the next heartbeat tells
	case kerr.InconsistentGroupProtocol:
		if m.w.set.protocols != "mixed" {
			m.w.fail("%s: %s of %s: %v", m.g.name, what, m.name, code)
		}
		m.lost()
	case kerr.FencedInstanceID:
		m.w.counts["static members fenced"]++
		m.fenced = true
	case kerr.FencedMemberEpoch:
		m.w.counts["members fenced"]++
		if m.placed && !m.w.scripted && m.rng.IntN(2) == 0 {
			m.late()
		}
		m.lost()
		if m.next && m.version > 0 && m.rng.IntN(2) == 0 {
			m.lives++
			m.id = fmt.Sprintf("%s.%s.%d", m.g.name, m.name, m.lives)
		}
	default:
		m.lost()
	}
}

// leaveNext says good-bye, a static member sometimes for a while only.
func (m *groupMember) leaveNext() {
	if !m.joined {
		return
	}
	epoch := int32(-1)
	if m.instance != "" && !m.w.scripted && m.rng.IntN(2) == 0 {
		epoch = -2
		m.g.release(m.id, nil)
	} else {
		m.g.leaves(m.id)
	}
	if m.send(m.heartbeat(epoch), "leave by heartbeat") {
		m.w.counts["members left by heartbeat"]++
	}
}

// fetchRequest asks for committed offsets, as a member where that is possible.
func (m *groupMember) fetchRequest(parts []*partModel) *kmsg.OffsetFetchRequest {
	req := kmsg.NewPtrOffsetFetchRequest()
	if m.next && m.joined {
		req.SetVersion(9)
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Group, g.MemberID, g.MemberEpoch = m.g.name, &m.id, m.generation
		for _, p := range parts {
			t := kmsg.NewOffsetFetchRequestGroupTopic()
			t.Topic, t.Partitions = p.topic, []int32{p.index}
			g.Topics = append(g.Topics, t)
		}
		req.Groups = append(req.Groups, g)
		return req
	}
	req.SetVersion(7)
	req.Group = m.g.name
	for _, p := range parts {
		t := kmsg.NewOffsetFetchRequestTopic()
		t.Topic, t.Partitions = p.topic, []int32{p.index}
		req.Topics = append(req.Topics, t)
	}
	return req
}

type fetchedOffset struct {
	offset   int64
	metadata string
	code     int16
}

// fetched reads the answer to fetchRequest: one offset for each topic in it, in their order.
func fetched(r *kmsg.OffsetFetchResponse) (out []fetchedOffset, code int16) {
	if r.Version >= 8 {
		for _, t := range r.Groups[0].Topics {
			p := &t.Partitions[0]
			out = append(out, fetchedOffset{p.Offset, deref(p.Metadata), p.ErrorCode})
		}
		return out, r.Groups[0].ErrorCode
	}
	for _, t := range r.Topics {
		p := &t.Partitions[0]
		out = append(out, fetchedOffset{p.Offset, deref(p.Metadata), p.ErrorCode})
	}
	return out, r.ErrorCode
}
