package conformance

import (
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// A group of members by both protocols: classic requests in a consumer group, and a consumer that comes to a classic group.

// subscribing is a classic consumer's join that subscribes to a topic.
func subscribing(group, member, topic string) *kmsg.JoinGroupRequest {
	req := joinOf(group, member, nil)
	meta := kmsg.ConsumerMemberMetadata{Version: 1, Topics: []string{topic}}
	req.Protocols[0].Metadata = meta.AppendTo(nil)
	return req
}

// spaced waits until Kafka computes another target assignment (group.consumer.assignment.interval.ms).
func (s *scene) spaced() { time.Sleep(s.afterthought / 2) }

// joinConsumers makes a consumer group of one member by each protocol.
func (s *scene) joinConsumers(group, topic string) (c consumer, m member) {
	c = s.enter(group, "one", topic)
	s.spaced()
	req := at(subscribing(group, "", topic), 6)
	resp := s.must(c.node, req).(*kmsg.JoinGroupResponse)
	for end := time.Now().Add(patience); resp.ErrorCode != 0 && time.Now().Before(end); pause() {
		req.MemberID = resp.MemberID
		resp = s.must(c.node, req).(*kmsg.JoinGroupResponse)
	}
	return c, member{group: group, node: c.node, id: resp.MemberID, generation: resp.Generation}
}

func joinConsumerCases() []testCase {
	return []testCase{{name: "a consumer group", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 2)
		c := s.enter(s.name("g"), "one", topic)
		s.spaced()
		if resp, ok := s.ask("joins", c.node, subscribing(c.group, "", topic)).(*kmsg.JoinGroupResponse); ok && resp.ErrorCode == 79 {
			s.ask("with the id it was given", c.node, subscribing(c.group, resp.MemberID, topic))
		}
		req := subscribing(c.group, "x", topic)
		req.ProtocolType = "connect"
		s.ask("another type", c.node, req)
		req = subscribing(c.group, "x", topic)
		req.Protocols[0].Name = "roundrobin"
		s.ask("none in common", c.node, req)
		req = subscribing(c.group, "x", topic)
		req.Protocols = nil
		s.ask("no protocols", c.node, req)
	}}}
}

func beatConsumerCases() []testCase {
	return []testCase{{name: "a consumer group", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 2)
		c, m := s.joinConsumers(s.name("g"), topic)
		of := func(id string, generation int32) *kmsg.HeartbeatRequest {
			req := kmsg.NewPtrHeartbeatRequest()
			req.Group, req.MemberID, req.Generation = m.group, id, generation
			return req
		}
		s.ask("well", m.node, of(m.id, m.generation))
		s.ask("a future generation", m.node, of(m.id, m.generation+1))
		s.ask("an unknown member", m.node, of("nobody", m.generation))
		s.ask("a member by the consumer protocol", m.node, of(c.id, c.epoch))
		two := consumer{m.group, m.node, "two", 0}
		s.beat(&two, enterOf(two, topic))
		s.spaced()
		s.beat(&two, beatOf(two))
		s.ask("of an epoch that is over", m.node, of(m.id, m.generation))
	}}}
}

func syncConsumerCases() []testCase {
	return []testCase{{name: "a consumer group", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 2)
		c, m := s.joinConsumers(s.name("g"), topic)
		s.ask("well", m.node, syncOf(m))
		s.ask("again", m.node, syncOf(m))
		wrong := m
		wrong.generation++
		s.ask("a future generation", m.node, syncOf(wrong))
		wrong = m
		wrong.id = c.id
		s.ask("a member by the consumer protocol", m.node, syncOf(wrong))
		if s.v >= 5 {
			req := syncOf(m)
			req.Protocol = ptr("other")
			s.ask("another protocol", m.node, req)
		}
	}}}
}

func leaveConsumerCases() []testCase {
	return []testCase{{name: "a consumer group", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 2)
		c, m := s.joinConsumers(s.name("g"), topic)
		of := func(ids ...string) *kmsg.LeaveGroupRequest {
			req := kmsg.NewPtrLeaveGroupRequest()
			req.Group, req.MemberID = m.group, ids[0]
			for _, id := range ids {
				x := kmsg.NewLeaveGroupRequestMember()
				x.MemberID = id
				req.Members = append(req.Members, x)
			}
			return req
		}
		s.ask("an unknown member", m.node, of("nobody"))
		s.ask("a member by the consumer protocol", m.node, of(c.id))
		s.ask("well", m.node, of(m.id))
		s.ask("again", m.node, of(m.id))
	}}}
}

func upgradeCases() []testCase {
	return []testCase{{name: "a classic group", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 2)
		m := s.join(s.name("unreadable"), nil)
		s.heard(m.node, topic)
		s.ask("whose assignment can't be read", m.node, enterOf(consumer{group: m.group, id: "one"}, topic))
		m = s.join(s.name("g"), nil, true)
		req := syncOf(m)
		assignment := kmsg.ConsumerMemberAssignment{Version: 1, Topics: []kmsg.ConsumerMemberAssignmentTopic{{Topic: topic, Partitions: []int32{0, 1}}}}
		req.GroupAssignment[0].MemberAssignment = assignment.AppendTo(nil)
		s.must(m.node, at(req, 3))
		c := consumer{group: m.group, node: m.node, id: "one"}
		s.heard(m.node, topic)
		s.ask("not to join", m.node, beatOf(consumer{m.group, m.node, "one", 1}))
		if resp, ok := s.ask("joins", m.node, enterOf(c, topic)).(*kmsg.ConsumerGroupHeartbeatResponse); ok {
			c.epoch = resp.MemberEpoch
		}
		s.ask("beats", m.node, beatOf(c))
		list := kmsg.NewPtrListGroupsRequest()
		kind := func() tree {
			for _, g := range s.must(m.node, at(list, 5)).(*kmsg.ListGroupsResponse).Groups {
				if g.Group == m.group {
					return g.GroupType
				}
			}
			return "not listed"
		}
		s.record("its type then", kind())
		beat := kmsg.NewPtrHeartbeatRequest()
		beat.Group, beat.MemberID, beat.Generation = m.group, m.id, m.generation
		s.record("its member is told", int(s.must(m.node, at(beat, 4)).(*kmsg.HeartbeatResponse).ErrorCode))
		s.ask("leaves", m.node, beatOf(consumer{m.group, m.node, c.id, -1}))
		s.record("its type after", kind())
		s.record("its member is told after", int(s.must(m.node, at(beat, 4)).(*kmsg.HeartbeatResponse).ErrorCode))
	}}}
}
