package conformance

import (
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// consumerAPIs asks what members of consumer groups (KIP-848) ask.
func consumerAPIs() []api {
	return []api{
		{key: 68, min: 0, max: 1, cases: append(consumerHeartbeatCases(), upgradeCases()...)},
		{key: 69, min: 0, max: 1, cases: consumerDescribeCases()},
	}
}

// consumer is a member of a consumer group as its client knows it.
type consumer struct {
	group string
	node  int32
	id    string
	epoch int32
}

// beatOf is a heartbeat that changes nothing.
func beatOf(c consumer) *kmsg.ConsumerGroupHeartbeatRequest {
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Group, req.MemberID, req.MemberEpoch = c.group, c.id, c.epoch
	return req
}

// enterOf is a heartbeat that joins.
func enterOf(c consumer, topics ...string) *kmsg.ConsumerGroupHeartbeatRequest {
	req := beatOf(c)
	req.MemberEpoch, req.RebalanceTimeoutMillis = 0, 60_000
	req.SubscribedTopicNames, req.Topics = append([]string{}, topics...), []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	return req
}

// owning says what the member owns.
func (s *scene) owning(req *kmsg.ConsumerGroupHeartbeatRequest, topic string, partitions ...int32) *kmsg.ConsumerGroupHeartbeatRequest {
	req.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{{TopicID: s.topics[topic], Partitions: partitions}}
	return req
}

// beat sends a heartbeat and waits while the coordinator moves or loads.
func (s *scene) beat(c *consumer, req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	for end := time.Now().Add(patience); ; pause() {
		resp := s.must(c.node, at(req, 1)).(*kmsg.ConsumerGroupHeartbeatResponse)
		if (resp.ErrorCode == 14 || resp.ErrorCode == 15 || resp.ErrorCode == 16) && time.Now().Before(end) {
			c.node = s.coordinator(c.group)
			continue
		}
		if resp.ErrorCode == 0 {
			c.epoch = resp.MemberEpoch
		}
		return resp
	}
}

// heard waits until a coordinator has heard of a topic: brokers do one after the other.
func (s *scene) heard(node int32, topic string) {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{{Topic: &topic}}
	for end := time.Now().Add(patience); time.Now().Before(end); pause() {
		if s.must(node, at(req, 9)).(*kmsg.MetadataResponse).Topics[0].ErrorCode == 0 {
			break
		}
	}
	time.Sleep(s.afterthought / 10)
}

// enter makes a consumer group, or joins one, and waits until the member has an assignment.
func (s *scene) enter(group, id string, topics ...string) consumer {
	c := consumer{group: group, node: s.coordinator(group), id: id}
	for _, t := range topics {
		s.heard(c.node, t)
	}
	resp := s.beat(&c, enterOf(c, topics...))
	for end := time.Now().Add(patience); resp.ErrorCode == 0 && time.Now().Before(end); pause() {
		if resp.Assignment != nil && len(resp.Assignment.Topics) > 0 {
			return c
		}
		resp = s.beat(&c, beatOf(c))
	}
	panic(resp.ErrorCode)
}

func consumerHeartbeatCases() []testCase {
	return []testCase{
		{name: "members", play: func(s *scene) {
			topic, g := s.name("t"), s.name("g")
			s.topic(topic, 3)
			c := consumer{group: g, node: s.coordinator(g), id: "one"}
			s.heard(c.node, topic)
			s.ask("of an unknown group", c.node, beatOf(consumer{group: g, id: "one", epoch: 3}))
			s.ask("leaves an unknown group", c.node, beatOf(consumer{group: g, id: "one", epoch: -1}))
			if s.v == 0 {
				s.ask("joins without an id", s.coordinator(s.name("h")), enterOf(consumer{group: s.name("h")}, topic))
			}
			if resp, ok := s.ask("joins", c.node, enterOf(c, topic)).(*kmsg.ConsumerGroupHeartbeatResponse); ok {
				c.epoch = resp.MemberEpoch
			}
			s.ask("beats", c.node, beatOf(c))
			s.ask("tells what it owns", c.node, s.owning(beatOf(c), topic, 0, 1, 2))
			full := enterOf(c, topic)
			full.MemberEpoch = c.epoch
			s.ask("tells everything", c.node, s.owning(full, topic, 0, 1, 2))
			s.ask("joins again", c.node, enterOf(c, topic))
			s.ask("beats with the epoch before", c.node, s.owning(beatOf(consumer{g, c.node, c.id, c.epoch - 1}), topic, 0))
			s.ask("beats with the epoch before, owning what it has not got", c.node, s.owning(beatOf(consumer{g, c.node, c.id, c.epoch - 1}), topic, 7))
			s.ask("beats with the epoch before, not saying what it owns", c.node, beatOf(consumer{g, c.node, c.id, c.epoch - 1}))
			s.ask("beats with a later epoch", c.node, beatOf(consumer{g, c.node, c.id, c.epoch + 5}))
			s.ask("somebody unknown", c.node, beatOf(consumer{g, c.node, "nobody", c.epoch}))
			s.ask("somebody unknown leaves", c.node, beatOf(consumer{g, c.node, "nobody", -1}))
			s.ask("leaves", c.node, beatOf(consumer{g, c.node, c.id, -1}))
			s.ask("leaves again", c.node, beatOf(consumer{g, c.node, c.id, -1}))
			s.ask("beats after it has left", c.node, beatOf(c))
		}},
		{name: "refused", play: func(s *scene) {
			topic, g := s.name("t"), s.name("g")
			s.topic(topic, 1)
			c := consumer{group: g, node: s.coordinator(g), id: "one"}
			for _, r := range []struct {
				step string
				edit func(req *kmsg.ConsumerGroupHeartbeatRequest)
			}{
				{"no group", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.Group = "" }},
				{"an empty instance", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.InstanceID = ptr("") }},
				{"an empty rack", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.RackID = ptr("") }},
				{"no rebalance timeout", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.RebalanceTimeoutMillis = -1 }},
				{"partitions unsaid", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.Topics = nil }},
				{"partitions owned", func(r *kmsg.ConsumerGroupHeartbeatRequest) { s.owning(r, topic, 0) }},
				{"topics unsaid", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.SubscribedTopicNames = nil }},
				{"an impossible epoch", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberEpoch = -3 }},
				{"leaves for a while without an instance", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberEpoch = -2 }},
				{"leaves without an id", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberEpoch, r.MemberID = -1, "" }},
				{"beats without an id", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberEpoch, r.MemberID = 1, "" }},
				{"an unknown assignor", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.ServerAssignor = ptr("nonsense") }},
				{"an empty assignor", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.ServerAssignor = ptr("") }},
			} {
				req := enterOf(c, topic)
				r.edit(req)
				s.ask(r.step, c.node, req)
			}
			if s.v >= 1 {
				s.ask("joins without an id", c.node, enterOf(consumer{group: g}, topic))
				req := enterOf(c)
				req.SubscribedTopicNames, req.SubscribedTopicRegex = nil, ptr("(")
				s.ask("no regular expression", c.node, req)
			}
			s.ask("of another broker", c.node%3+1, enterOf(c, topic))
			s.ask("no topics", c.node, enterOf(c))
			s.ask("a topic that is not there", c.node, enterOf(consumer{g, c.node, "two", 0}, s.name("none")))
		}},
		{name: "static", play: func(s *scene) {
			topic, g := s.name("t"), s.name("g")
			s.topic(topic, 2)
			c := consumer{group: g, node: s.coordinator(g), id: "one"}
			of := func(req *kmsg.ConsumerGroupHeartbeatRequest, instance string) *kmsg.ConsumerGroupHeartbeatRequest {
				req.InstanceID = &instance
				return req
			}
			s.heard(c.node, topic)
			if resp, ok := s.ask("joins", c.node, of(enterOf(c, topic), "i")).(*kmsg.ConsumerGroupHeartbeatResponse); ok {
				c.epoch = resp.MemberEpoch
			}
			other := consumer{g, c.node, "two", 0}
			s.ask("another joins in its place", c.node, of(enterOf(other, topic), "i"))
			s.ask("joins again", c.node, of(enterOf(c, topic), "i"))
			other.epoch = c.epoch
			s.ask("another beats in its place", c.node, of(beatOf(other), "i"))
			s.ask("an unknown instance", c.node, of(beatOf(c), "j"))
			s.ask("another leaves for it", c.node, of(beatOf(consumer{g, c.node, "two", -2}), "i"))
			s.ask("leaves for a while", c.node, of(beatOf(consumer{g, c.node, "one", -2}), "i"))
			s.ask("beats although it has left", c.node, of(beatOf(c), "i"))
			if resp, ok := s.ask("comes back as another", c.node, of(enterOf(other, topic), "i")).(*kmsg.ConsumerGroupHeartbeatResponse); ok {
				other.epoch = resp.MemberEpoch
			}
			s.ask("beats", c.node, of(beatOf(other), "i"))
			s.ask("leaves", c.node, of(beatOf(consumer{g, c.node, "two", -1}), "i"))
			s.ask("leaves again", c.node, of(beatOf(consumer{g, c.node, "two", -1}), "i"))
		}},
		{name: "regular expressions", from: 1, play: func(s *scene) {
			s.topic(s.name("abc"), 1)
			s.topic(s.name("abcd"), 2)
			g := s.name("g")
			c := consumer{group: g, node: s.coordinator(g), id: "one"}
			subscribe := func(step, re string) {
				req := enterOf(c)
				req.MemberEpoch, req.SubscribedTopicNames, req.SubscribedTopicRegex = c.epoch, nil, &re
				if c.epoch > 0 {
					req.Topics = nil
				}
				s.beat(&c, req)
				var resp *kmsg.ConsumerGroupHeartbeatResponse
				for end := time.Now().Add(s.afterthought); ; pause() {
					full := enterOf(c)
					full.MemberEpoch, full.SubscribedTopicNames, full.SubscribedTopicRegex = c.epoch, nil, &re
					if resp = s.beat(&c, full); !time.Now().Before(end) {
						break
					}
				}
				s.record(step, map[string]tree{"ErrorCode": int(resp.ErrorCode), "Assignment": s.normalize(resp).(map[string]tree)["Assignment"]})
			}
			subscribe("a whole name", s.name("abc"))
			subscribe("more than one", s.name("abc")+".*")
			subscribe("half a name", "bc")
			subscribe("alternatives", s.name("abc")+"|"+s.name("abcd"))
			subscribe("internal topics", "__consumer_.*")
			subscribe("nothing", "")
		}},
	}
}

func consumerDescribeCases() []testCase {
	of := func(groups ...string) *kmsg.ConsumerGroupDescribeRequest {
		req := kmsg.NewPtrConsumerGroupDescribeRequest()
		req.Groups = groups
		return req
	}
	return []testCase{{name: "states", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 2)
		c := s.enter(s.name("g"), "one", topic)
		s.ask("stable", c.node, of(c.group))
		req := of(c.group)
		req.IncludeAuthorizedOperations = true
		s.ask("with operations", c.node, req)
		s.ask("unknown", s.coordinator(s.name("none")), of(s.name("none")))
		s.ask("an empty name", s.coordinator(""), of(""))
		s.ask("nothing", c.node, of())
		s.ask("of another broker", c.node%3+1, of(c.group))
		s.beat(&c, beatOf(consumer{c.group, c.node, c.id, -1}))
		s.ask("empty", c.node, of(c.group))
		m := s.join(s.name("h"), nil)
		s.ask("a classic group", m.node, of(m.group))
	}}}
}

// consumerCommitCases are commits of a consumer group's members.
func consumerCommitCases() []testCase {
	return []testCase{{name: "members of a consumer group", from: 7, play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 2)
		c := s.enter(s.name("g"), "one", topic)
		as := func(id string, epoch int32) *kmsg.OffsetCommitRequest {
			return s.commitOf(member{group: c.group, id: id, generation: epoch}, topic, 0, 5)
		}
		s.ask("well", c.node, as(c.id, c.epoch))
		s.ask("the epoch before", c.node, as(c.id, c.epoch-1))
		s.ask("a later epoch", c.node, as(c.id, c.epoch+1))
		s.ask("an unknown member", c.node, as("nobody", c.epoch))
		s.ask("as nobody", c.node, as("", -1))
		// Its assignment stays while its epoch moves on.
		before := c.epoch
		s.beat(&c, enterOf(consumer{c.group, c.node, "two", 0}, s.name("none")))
		for end := time.Now().Add(patience); c.epoch <= before && time.Now().Before(end); pause() {
			resp := s.beat(&c, beatOf(consumer{c.group, c.node, "one", before}))
			c.epoch = resp.MemberEpoch
		}
		s.ask("an epoch in which it had the partition already", c.node, as("one", before))
		s.beat(&c, beatOf(consumer{c.group, c.node, "one", -1}))
		s.beat(&c, beatOf(consumer{c.group, c.node, "two", -1}))
		s.ask("of the empty group, as nobody", c.node, as("", -1))
		s.ask("of the empty group, as a member", c.node, as("one", 3))
	}}}
}

// consumerFetchCases are members of a consumer group that fetch offsets.
func consumerFetchCases() []testCase {
	return []testCase{{name: "members of a consumer group", from: 8, play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 1)
		c := s.enter(s.name("g"), "one", topic)
		of := func(id *string, epoch int32) *kmsg.OffsetFetchRequest {
			req := kmsg.NewPtrOffsetFetchRequest()
			rg := kmsg.NewOffsetFetchRequestGroup()
			rg.Group, rg.MemberID, rg.MemberEpoch = c.group, id, epoch
			rg.Topics = []kmsg.OffsetFetchRequestGroupTopic{{Topic: topic, TopicID: s.topics[topic], Partitions: []int32{0}}}
			req.Groups = append(req.Groups, rg)
			return req
		}
		s.ask("as nobody", c.node, of(nil, -1))
		s.ask("well", c.node, of(&c.id, c.epoch))
		s.ask("a stale epoch", c.node, of(&c.id, c.epoch+1))
		s.ask("an unknown member", c.node, of(ptr("nobody"), c.epoch))
	}}}
}

// consumerDescribeClassicCases are classic requests about consumer groups.
func consumerDescribeClassicCases() []testCase {
	return []testCase{{name: "a consumer group", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 1)
		c := s.enter(s.name("g"), "one", topic)
		req := kmsg.NewPtrDescribeGroupsRequest()
		req.Groups = []string{c.group}
		s.ask("with a member", c.node, req)
	}}}
}

func consumerListCases() []testCase {
	return []testCase{{name: "a consumer group", from: 5, play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 1)
		c := s.enter(s.name("g"), "one", topic)
		list := func(step string, states, types []string) {
			req := kmsg.NewPtrListGroupsRequest()
			req.StatesFilter, req.TypesFilter = states, types
			resp := s.must(c.node, at(req, s.v)).(*kmsg.ListGroupsResponse)
			var found tree = "not listed"
			for _, g := range resp.Groups {
				if g.Group == c.group {
					found = map[string]tree{"ProtocolType": g.ProtocolType, "State": g.GroupState, "Type": g.GroupType}
				}
			}
			s.record(step, found)
		}
		list("all", nil, nil)
		list("consumer groups", nil, []string{"consumer"})
		list("in capitals", nil, []string{"CONSUMER"})
		list("classic groups", nil, []string{"classic"})
		list("stable ones", []string{"Stable"}, nil)
		list("stable ones in small letters", []string{"stable"}, nil)
		list("empty ones", []string{"Empty"}, nil)
	}}}
}

func consumerDeleteCases() []testCase {
	return []testCase{{name: "a consumer group", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 1)
		c := s.enter(s.name("g"), "one", topic)
		req := kmsg.NewPtrDeleteGroupsRequest()
		req.Groups = []string{c.group}
		s.ask("with a member", c.node, req)
		s.beat(&c, beatOf(consumer{c.group, c.node, c.id, -1}))
		s.ask("empty", c.node, req)
		s.ask("again", c.node, req)
	}}}
}

func consumerOffsetDeleteCases() []testCase {
	return []testCase{{name: "a consumer group", play: func(s *scene) {
		topic, other := s.name("t"), s.name("u")
		s.topic(topic, 1)
		s.topic(other, 1)
		c := s.enter(s.name("g"), "one", topic)
		m := member{group: c.group, id: c.id, generation: c.epoch}
		s.must(c.node, at(s.commitOf(m, topic, 0, 5), 9))
		for _, name := range []string{topic, other} {
			req := kmsg.NewPtrOffsetDeleteRequest()
			req.Group = c.group
			req.Topics = []kmsg.OffsetDeleteRequestTopic{{Topic: name, Partitions: []kmsg.OffsetDeleteRequestTopicPartition{{Partition: 0}}}}
			s.ask(map[string]string{topic: "subscribed", other: "not subscribed"}[name], c.node, req)
		}
	}}}
}
