package conformance

import (
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// groupAPIs asks what members and administrators of classic groups ask.
func groupAPIs() []api {
	return []api{
		{key: 8, min: 2, max: 10, cases: append(commitCases(), consumerCommitCases()...)},
		{key: 9, min: 1, max: 10, cases: append(offsetFetchCases(), consumerFetchCases()...)},
		{key: 11, min: 0, max: 9, cases: append(joinCases(), joinConsumerCases()...)},
		{key: 12, min: 0, max: 4, cases: append(heartbeatCases(), beatConsumerCases()...)},
		{key: 13, min: 0, max: 5, cases: append(leaveCases(), leaveConsumerCases()...)},
		{key: 14, min: 0, max: 5, cases: append(syncCases(), syncConsumerCases()...)},
		{key: 15, min: 0, max: 6, cases: append(describeGroupsCases(), consumerDescribeClassicCases()...)},
		{key: 16, min: 0, max: 5, cases: append(listGroupsCases(), consumerListCases()...)},
		{key: 42, min: 0, max: 2, cases: append(deleteGroupsCases(), consumerDeleteCases()...)},
		{key: 47, min: 0, max: 0, cases: append(offsetDeleteCases(), consumerOffsetDeleteCases()...)},
	}
}

func joinOf(group, member string, instance *string) *kmsg.JoinGroupRequest {
	req := kmsg.NewPtrJoinGroupRequest()
	req.Group, req.MemberID, req.InstanceID = group, member, instance
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis, req.ProtocolType = 300_000, 30_000, "consumer" // no session ends before its case does
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name, p.Metadata = "range", []byte{0, 1, 0, 0, 0, 0, 0, 0, 0, 0}
	req.Protocols = append(req.Protocols, p)
	return req
}

// member is a group's only one.
type member struct {
	group      string
	node       int32
	id         string
	generation int32
	instance   *string
}

// join makes a group of one member, which has joined and synced unless joinedOnly.
func (s *scene) join(group string, instance *string, joinedOnly ...bool) member {
	m := member{group: group, node: s.coordinator(group), instance: instance}
	req := joinOf(group, "", instance)
	req.SetVersion(6)
	resp := s.must(m.node, req).(*kmsg.JoinGroupResponse)
	for resp.ErrorCode == 79 || resp.ErrorCode == 14 || resp.ErrorCode == 16 { // member id required; loading; moved
		if resp.ErrorCode != 79 {
			pause()
			m.node = s.coordinator(group)
		} else {
			req.MemberID = resp.MemberID
		}
		resp = s.must(m.node, req).(*kmsg.JoinGroupResponse)
	}
	if resp.ErrorCode != 0 {
		panic(resp.ErrorCode)
	}
	m.id, m.generation = resp.MemberID, resp.Generation
	if len(joinedOnly) > 0 {
		return m
	}
	sync := syncOf(m)
	sync.SetVersion(3)
	if r := s.must(m.node, sync).(*kmsg.SyncGroupResponse); r.ErrorCode != 0 {
		panic(r.ErrorCode)
	}
	return m
}

func syncOf(m member) *kmsg.SyncGroupRequest {
	req := kmsg.NewPtrSyncGroupRequest()
	req.Group, req.MemberID, req.Generation, req.InstanceID = m.group, m.id, m.generation, m.instance
	req.ProtocolType, req.Protocol = ptr("consumer"), ptr("range")
	req.GroupAssignment = []kmsg.SyncGroupRequestGroupAssignment{{MemberID: m.id, MemberAssignment: []byte{0, 0, 1, 2}}}
	return req
}

func joinCases() []testCase {
	return []testCase{
		{name: "members", play: func(s *scene) {
			g := s.name("g")
			node := s.coordinator(g)
			if resp, ok := s.ask("the first", node, joinOf(g, "", nil)).(*kmsg.JoinGroupResponse); ok && resp.ErrorCode == 79 {
				s.ask("with the id it was given", node, joinOf(g, resp.MemberID, nil))
			}
			s.ask("an unknown member", s.coordinator(s.name("h")), joinOf(s.name("h"), "nobody", nil))
		}},
		{name: "static", from: 5, play: func(s *scene) {
			g := s.name("g")
			node := s.coordinator(g)
			s.ask("the first", node, joinOf(g, "", ptr("one")))
			s.ask("of an unknown id", node, joinOf(g, "nobody", ptr("one")))
		}},
		{name: "refused", play: func(s *scene) {
			g := s.name("g")
			node := s.coordinator(g)
			s.ask("no group", node, joinOf("", "", nil))
			req := joinOf(g, "", nil)
			req.SessionTimeoutMillis = 1
			s.ask("too short a session", node, req)
			req = joinOf(g, "", nil)
			req.SessionTimeoutMillis = 1 << 30
			s.ask("too long a session", node, req)
			req = joinOf(g, "", nil)
			req.Protocols = nil
			s.ask("no protocols", node, req)
			req = joinOf(g, "", nil)
			req.ProtocolType = ""
			s.ask("no protocol type", node, req)
			s.ask("of another broker", node%3+1, joinOf(g, "", nil))
		}},
		{name: "other protocols", play: func(s *scene) {
			m := s.join(s.name("g"), nil)
			req := joinOf(m.group, "", nil)
			req.ProtocolType = "connect"
			s.ask("another type", m.node, req)
			req = joinOf(m.group, "", nil)
			req.Protocols[0].Name = "roundrobin"
			s.ask("none in common", m.node, req)
		}},
	}
}

func syncCases() []testCase {
	return []testCase{{name: "members", play: func(s *scene) {
		m := s.join(s.name("g"), nil, true)
		s.ask("the leader", m.node, syncOf(m))
		s.ask("again", m.node, syncOf(m))
		wrong := m
		wrong.generation++
		s.ask("a future generation", m.node, syncOf(wrong))
		wrong = m
		wrong.id = "nobody"
		s.ask("an unknown member", m.node, syncOf(wrong))
		wrong = m
		wrong.group = s.name("none")
		s.ask("an unknown group", s.coordinator(wrong.group), syncOf(wrong))
		wrong.group = ""
		s.ask("no group", m.node, syncOf(wrong))
		if s.v >= 5 {
			req := syncOf(m)
			req.ProtocolType = ptr("connect")
			s.ask("another type", m.node, req)
			req = syncOf(m)
			req.Protocol = ptr("other")
			s.ask("another protocol", m.node, req)
		}
	}}}
}

func heartbeatCases() []testCase {
	of := func(m member) *kmsg.HeartbeatRequest {
		req := kmsg.NewPtrHeartbeatRequest()
		req.Group, req.MemberID, req.Generation, req.InstanceID = m.group, m.id, m.generation, m.instance
		return req
	}
	return []testCase{
		{name: "members", play: func(s *scene) {
			m := s.join(s.name("g"), nil, true)
			s.ask("before the assignment", m.node, of(m))
			s.must(m.node, at(syncOf(m), 3))
			s.ask("well", m.node, of(m))
			wrong := m
			wrong.generation++
			s.ask("a future generation", m.node, of(wrong))
			wrong.generation = -1
			s.ask("no generation", m.node, of(wrong))
			wrong = m
			wrong.id = "nobody"
			s.ask("an unknown member", m.node, of(wrong))
			wrong.group = s.name("none")
			s.ask("an unknown group", s.coordinator(wrong.group), of(wrong))
			wrong.group = ""
			s.ask("no group", m.node, of(wrong))
		}},
		{name: "static", from: 3, play: func(s *scene) {
			m := s.join(s.name("g"), ptr("one"))
			s.ask("well", m.node, of(m))
			wrong := m
			wrong.id = "another"
			s.ask("fenced", m.node, of(wrong))
			wrong = m
			wrong.instance = ptr("two")
			s.ask("an unknown instance", m.node, of(wrong))
		}},
	}
}

func at[R kmsg.Request](req R, v int16) R {
	req.SetVersion(v)
	return req
}

func leaveCases() []testCase {
	of := func(group string, ids ...string) *kmsg.LeaveGroupRequest {
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Group = group
		if len(ids) > 0 {
			req.MemberID = ids[0]
		}
		for _, id := range ids {
			x := kmsg.NewLeaveGroupRequestMember()
			x.MemberID = id
			req.Members = append(req.Members, x)
		}
		return req
	}
	return []testCase{{name: "members", play: func(s *scene) {
		m := s.join(s.name("g"), nil)
		s.ask("an unknown one", m.node, of(m.group, "nobody"))
		s.ask("well", m.node, of(m.group, m.id))
		s.ask("again", m.node, of(m.group, m.id))
		s.ask("an unknown group", s.coordinator(s.name("none")), of(s.name("none"), "nobody"))
		s.ask("no group", m.node, of("", "nobody"))
		if s.v >= 3 {
			m := s.join(s.name("h"), ptr("one"))
			req := of(m.group, "")
			req.Members[0].InstanceID = ptr("one")
			s.ask("by instance", m.node, req)
			s.ask("nobody", m.node, of(m.group))
		}
	}}}
}

func (s *scene) commitOf(m member, topic string, partition int32, offset int64) *kmsg.OffsetCommitRequest {
	p := kmsg.NewOffsetCommitRequestTopicPartition()
	p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = partition, offset, -1, ptr("note")
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic, t.TopicID, t.Partitions = topic, s.topics[topic], append(t.Partitions, p)
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.Generation, req.MemberID, req.InstanceID = m.group, m.generation, m.id, m.instance
	req.RetentionTimeMillis = -1
	req.Topics = append(req.Topics, t)
	return req
}

func commitCases() []testCase {
	return []testCase{
		{name: "alone", play: func(s *scene) {
			topic, g := s.name("t"), s.name("g")
			s.topic(topic, 2)
			m := member{group: g, node: s.coordinator(g), generation: -1}
			s.ask("without a group", m.node, s.commitOf(m, topic, 0, 5))
			s.ask("no such partition", m.node, s.commitOf(m, topic, 7, 5))
			req := s.commitOf(m, s.name("none"), 0, 5)
			req.Topics[0].TopicID = [16]byte{5, 5}
			s.ask("no such topic", m.node, req)
			req = s.commitOf(m, topic, 0, 6)
			req.Topics[0].Partitions[0].Metadata = nil
			s.ask("null metadata", m.node, req)
			req = s.commitOf(m, topic, 0, 6)
			req.Topics[0].Partitions[0].Metadata = ptr(string(make([]byte, 5000)))
			s.ask("large metadata", m.node, req)
			req = s.commitOf(m, topic, 0, 6)
			req.Topics = nil
			s.ask("nothing", m.node, req)
			wrong := m
			wrong.generation, wrong.id = 3, "nobody"
			s.ask("as a member of what has none", m.node, s.commitOf(wrong, topic, 0, 5))
			wrong.group = s.name("unknown")
			s.ask("as a member of an unknown group", s.coordinator(wrong.group), s.commitOf(wrong, topic, 0, 5))
			wrong.group, wrong.generation, wrong.id = "", -1, ""
			s.ask("no group", s.coordinator(""), s.commitOf(wrong, topic, 0, 5))
			s.ask("of another broker", m.node%3+1, s.commitOf(m, topic, 0, 5))
		}},
		{name: "members", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 2)
			m := s.join(s.name("g"), nil, true)
			s.ask("before the assignment", m.node, s.commitOf(m, topic, 0, 5))
			s.must(m.node, at(syncOf(m), 3))
			s.ask("well", m.node, s.commitOf(m, topic, 0, 5))
			wrong := m
			wrong.generation++
			s.ask("a future generation", m.node, s.commitOf(wrong, topic, 0, 5))
			wrong = m
			wrong.id = "nobody"
			s.ask("an unknown member", m.node, s.commitOf(wrong, topic, 0, 5))
			wrong.generation, wrong.id = -1, ""
			s.ask("as nobody", m.node, s.commitOf(wrong, topic, 0, 5))
		}},
	}
}

func offsetFetchCases() []testCase {
	return []testCase{{name: "groups", play: func(s *scene) {
		topic, g := s.name("t"), s.name("g")
		s.topic(topic, 2)
		node := s.coordinator(g)
		commit := s.commitOf(member{group: g, generation: -1}, topic, 0, 5)
		s.must(node, at(commit, 7))
		of := func(group string, all bool, parts ...int32) *kmsg.OffsetFetchRequest {
			req := kmsg.NewPtrOffsetFetchRequest()
			rg := kmsg.NewOffsetFetchRequestGroup()
			req.Group, rg.Group, rg.MemberEpoch = group, group, -1
			if !all {
				req.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: topic, Partitions: parts}}
				rg.Topics = []kmsg.OffsetFetchRequestGroupTopic{{Topic: topic, TopicID: s.topics[topic], Partitions: parts}}
			}
			req.Groups = append(req.Groups, rg)
			return req
		}
		s.ask("committed and not", node, of(g, false, 0, 1))
		s.ask("no such partition", node, of(g, false, 9))
		if s.v >= 2 {
			s.ask("all", node, of(g, true))
			s.ask("all of an unknown group", s.coordinator(s.name("none")), of(s.name("none"), true))
		}
		s.ask("of an unknown group", s.coordinator(s.name("none")), of(s.name("none"), false, 0))
		s.ask("no group", s.coordinator(""), of("", false, 0))
		s.ask("of another broker", node%3+1, of(g, false, 0))
		if s.v >= 7 {
			req := of(g, false, 0)
			req.RequireStable = true
			s.ask("stable", node, req)
		}
		if s.v >= 10 {
			req := of(g, false, 0)
			req.Groups[0].Topics[0].TopicID = [16]byte{4, 4}
			s.ask("an unknown topic", node, req)
		}
		if s.v >= 9 {
			req := of(g, false, 0)
			req.Groups[0].MemberID, req.Groups[0].MemberEpoch = ptr("nobody"), 4
			s.ask("as a member", node, req)
		}
	}}}
}

func describeGroupsCases() []testCase {
	of := func(groups ...string) *kmsg.DescribeGroupsRequest {
		req := kmsg.NewPtrDescribeGroupsRequest()
		req.Groups = groups
		return req
	}
	return []testCase{{name: "states", play: func(s *scene) {
		m := s.join(s.name("g"), nil, true)
		// Kafka's members are answered before what they did can be described.
		for end := time.Now().Add(patience); time.Now().Before(end); pause() {
			if s.must(m.node, at(of(m.group), 0)).(*kmsg.DescribeGroupsResponse).Groups[0].State != "Dead" {
				break
			}
		}
		s.ask("completing its rebalance", m.node, of(m.group))
		s.must(m.node, at(syncOf(m), 3))
		s.ask("stable", m.node, of(m.group))
		s.ask("unknown", s.coordinator(s.name("none")), of(s.name("none")))
		s.ask("an empty name", s.coordinator(""), of(""))
		s.ask("nothing", m.node, of())
		s.ask("of another broker", m.node%3+1, of(m.group))
	}}}
}

func listGroupsCases() []testCase {
	return []testCase{{name: "filters", from: 4, play: func(s *scene) {
		node := s.join(s.name("g"), nil).node
		of := func(states ...string) *kmsg.ListGroupsRequest {
			req := kmsg.NewPtrListGroupsRequest()
			req.StatesFilter = states
			return req
		}
		s.ask("a state that nobody is in", node, of("Dead"))
		s.ask("a state that does not exist", node, of("Nonsense"))
		if s.v >= 5 {
			req := of()
			req.TypesFilter = []string{"share"}
			s.ask("a type that nobody is of", node, req)
			req = of()
			req.TypesFilter = []string{"nonsense"}
			s.ask("a type that does not exist", node, req)
		}
	}}}
}

func deleteGroupsCases() []testCase {
	of := func(groups ...string) *kmsg.DeleteGroupsRequest {
		req := kmsg.NewPtrDeleteGroupsRequest()
		req.Groups = groups
		return req
	}
	return []testCase{{name: "states", play: func(s *scene) {
		m := s.join(s.name("g"), nil)
		s.ask("with members", m.node, of(m.group))
		leave := kmsg.NewPtrLeaveGroupRequest()
		leave.Group, leave.MemberID = m.group, m.id
		s.must(m.node, at(leave, 1))
		s.ask("empty", m.node, of(m.group))
		s.ask("again", m.node, of(m.group))
		s.ask("an empty name", s.coordinator(""), of(""))
		s.ask("of another broker", m.node%3+1, of(m.group))
	}}}
}

func offsetDeleteCases() []testCase {
	return []testCase{{name: "states", play: func(s *scene) {
		topic, g := s.name("t"), s.name("g")
		s.topic(topic, 2)
		node := s.coordinator(g)
		s.must(node, at(s.commitOf(member{group: g, generation: -1}, topic, 0, 5), 7))
		of := func(group, topic string, part int32) *kmsg.OffsetDeleteRequest {
			req := kmsg.NewPtrOffsetDeleteRequest()
			req.Group = group
			req.Topics = []kmsg.OffsetDeleteRequestTopic{{Topic: topic, Partitions: []kmsg.OffsetDeleteRequestTopicPartition{{Partition: part}}}}
			return req
		}
		s.ask("committed", node, of(g, topic, 0))
		s.ask("not committed", node, of(g, topic, 1))
		s.ask("no such partition", node, of(g, topic, 9))
		s.ask("no such topic", node, of(g, s.name("none"), 0))
		s.ask("no such group", s.coordinator(s.name("none")), of(s.name("none"), topic, 0))
		s.ask("no group", node, of("", topic, 0))
	}}}
}
