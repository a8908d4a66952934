package conformance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// moveAPIs asks about leaders and replicas that move, and brokers that go.
func moveAPIs() []api {
	return []api{
		{key: 43, min: 0, max: 2, cases: electCases()},
		{key: 45, min: 0, max: 1, cases: reassignCases()},
		{key: 46, min: 0, max: 0, cases: listReassignmentsCases()},
		{key: 64, min: 0, max: 0, cases: unregisterCases()},
	}
}

func election(kind int8, topic string, partitions ...int32) *kmsg.ElectLeadersRequest {
	req := kmsg.NewPtrElectLeadersRequest()
	req.ElectionType, req.TimeoutMillis = kind, timeout
	req.Topics = []kmsg.ElectLeadersRequestTopic{{Topic: topic, Partitions: partitions}}
	return req
}

func electCases() []testCase {
	return []testCase{
		{name: "preferred", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 2)
			s.prefer(topic, 0)
			s.ask("who leads already", 1, election(0, topic, 0))
			s.ask("no such partition", 1, election(0, topic, 7))
			s.ask("no such topic", 1, election(0, s.name("none"), 0))
			s.ask("no partitions", 1, election(0, topic))
			s.ask("a partition twice", 1, election(0, topic, 0, 0))
			s.ask("partition -1", 1, election(0, topic, -1))
			s.ask("one that is and one that is not", 1, election(0, topic, 0, 7))
			s.ask("a topic without a name", 1, election(0, "", 0))
			s.ask("a bad name", 1, election(0, "a b", 0))
			again := election(0, topic, 0)
			again.Topics = append(again.Topics, again.Topics[0])
			s.ask("a topic twice", 1, again)
			none := election(0, topic)
			none.Topics = []kmsg.ElectLeadersRequestTopic{}
			s.ask("no topics", 1, none)
			leader, _ := s.leader(topic, 0)
			other := leader%3 + 1
			s.moveTo(topic, 0, other, leader, other%3+1)
			s.ask("another is preferred", 1, election(0, topic, 0))
			s.ask("again", 1, election(0, topic, 0))
			s.record("who leads", "not the preferred one")
			for end := time.Now().Add(patience); time.Now().Before(end); pause() { // brokers hear of it a little later
				if now, _ := s.leader(topic, 0); now == other {
					s.record("who leads", "the preferred one")
					break
				}
			}
		}},
		{name: "kinds", from: 1, play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			s.ask("unclean with a leader", 1, election(1, topic, 0))
			s.ask("unclean of no such topic", 1, election(1, s.name("none"), 0))
			s.ask("unclean of no such partition", 1, election(1, topic, 4))
			s.ask("no such kind", 1, election(9, topic, 0))
			s.ask("kind -1", 1, election(-1, topic, 0))
			s.ask("no such kind of no such topic", 1, election(9, s.name("none"), 0))
			all := election(9, "")
			all.Topics = nil
			s.ask("no such kind, of all", 1, all)
		}},
		{name: "all", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			s.prefer(topic, 0)
			all := func(step string, kind int8) {
				all := election(kind, "")
				all.Topics, all.Version = nil, s.v
				resp := s.must(1, all).(*kmsg.ElectLeadersResponse)
				// Other cases leave topics too: that of this one is looked at.
				resp.Topics = slices.DeleteFunc(resp.Topics, func(t kmsg.ElectLeadersResponseTopic) bool { return t.Topic != topic })
				s.record(step, s.normalize(resp))
			}
			all("nothing to do", 0)
			if s.v > 0 {
				all("unclean", 1)
			}
			leader, _ := s.leader(topic, 0)
			s.moveTo(topic, 0, leader%3+1, leader, (leader+1)%3+1)
			all("another is preferred", 0)
			all("again", 0)
		}},
	}
}

// prefer makes the first replica the leader.
func (s *scene) prefer(topic string, partition int32) {
	s.must(s.living()[0], at(election(0, topic, partition), 2))
}

func reassignment(topic string, partition int32, replicas ...int32) *kmsg.AlterPartitionAssignmentsRequest {
	req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
	req.TimeoutMillis, req.AllowReplicationFactorChange = timeout, true
	req.Topics = []kmsg.AlterPartitionAssignmentsRequestTopic{{Topic: topic,
		Partitions: []kmsg.AlterPartitionAssignmentsRequestTopicPartition{{Partition: partition, Replicas: replicas}}}}
	return req
}

// moveTo puts a partition's replicas on brokers, in order, and waits until every broker says so.
func (s *scene) moveTo(topic string, partition int32, replicas ...int32) {
	req := reassignment(topic, partition, replicas...)
	req.Version = 1
	if r := s.must(1, req).(*kmsg.AlterPartitionAssignmentsResponse); r.ErrorCode != 0 || r.Topics[0].Partitions[0].ErrorCode != 0 {
		panic(fmt.Errorf("preparing: moving %s-%d: %+v", topic, partition, r))
	}
	s.moved(topic, partition, replicas)
}

// moved waits until a partition's replicas are those, in that order, and in sync, and nothing moves any more.
func (s *scene) moved(topic string, partition int32, replicas []int32) {
	end := time.Now().Add(patience)
	for node := int32(1); node <= 3; node++ {
		for {
			var have string
			for _, p := range s.describe(node, topic).Partitions {
				if p.Partition == partition && len(p.ISR) == len(replicas) {
					have = fmt.Sprint(p.Replicas)
				}
			}
			list := kmsg.NewPtrListPartitionReassignmentsRequest()
			list.TimeoutMillis = timeout
			list.Topics = []kmsg.ListPartitionReassignmentsRequestTopic{{Topic: topic, Partitions: []int32{partition}}}
			if have == fmt.Sprint(replicas) && len(s.must(node, list).(*kmsg.ListPartitionReassignmentsResponse).Topics) == 0 {
				break
			}
			if time.Now().After(end) {
				panic(fmt.Errorf("preparing: %s-%d on broker %d has replicas %s, not %v", topic, partition, node, have, replicas))
			}
			pause()
		}
	}
}

func reassignCases() []testCase {
	return []testCase{
		{name: "refused", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			empty, cancel := reassignment(topic, 0), reassignment(topic, 0)
			empty.Topics[0].Partitions[0].Replicas = []int32{}
			cancel.Topics[0].Partitions[0].Replicas = nil
			s.ask("cancel what is not moving", 1, cancel)
			s.ask("no replicas", 1, empty)
			s.ask("a broker twice", 1, reassignment(topic, 0, 1, 1))
			s.ask("an unknown broker", 1, reassignment(topic, 0, 1, 2, 9))
			s.ask("a negative broker", 1, reassignment(topic, 0, 1, -2))
			s.ask("no such partition", 1, reassignment(topic, 5, 1, 2))
			s.ask("no such topic", 1, reassignment(s.name("none"), 0, 1, 2))
			cancel.Topics[0].Topic = s.name("none")
			s.ask("cancel of no such topic", 1, cancel)
			none := reassignment(topic, 0)
			none.Topics = []kmsg.AlterPartitionAssignmentsRequestTopic{}
			s.ask("nothing", 1, none)
			bare := reassignment(topic, 0)
			bare.Topics[0].Partitions = []kmsg.AlterPartitionAssignmentsRequestTopicPartition{}
			s.ask("no partitions", 1, bare)
		}},
		{name: "moves", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			s.ask("fewer", 1, reassignment(topic, 0, 1, 2))
			s.moved(topic, 0, []int32{1, 2})
			s.ask("the same", 1, reassignment(topic, 0, 1, 2))
			s.ask("another order", 1, reassignment(topic, 0, 2, 1))
			s.moved(topic, 0, []int32{2, 1})
			s.ask("another broker", 1, reassignment(topic, 0, 3, 2))
			s.moved(topic, 0, []int32{3, 2})
			s.ask("more", 1, reassignment(topic, 0, 3, 2, 1))
			s.moved(topic, 0, []int32{3, 2, 1})
		}},
		{name: "the number of replicas", from: 1, play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			for name, req := range map[string]*kmsg.AlterPartitionAssignmentsRequest{"kept": reassignment(topic, 0, 3, 2, 1), "not kept": reassignment(topic, 0, 1, 2)} {
				req.AllowReplicationFactorChange = false
				s.ask(name, 1, req)
			}
		}},
	}
}

func listReassignmentsCases() []testCase {
	return []testCase{{name: "nothing moves", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 1)
		of := func(topic string, partitions ...int32) *kmsg.ListPartitionReassignmentsRequest {
			req := kmsg.NewPtrListPartitionReassignmentsRequest()
			req.TimeoutMillis = timeout
			req.Topics = []kmsg.ListPartitionReassignmentsRequestTopic{{Topic: topic, Partitions: partitions}}
			return req
		}
		s.ask("one", 1, of(topic, 0))
		s.ask("no such partition", 1, of(topic, 9))
		s.ask("no such topic", 1, of(s.name("none"), 0))
		all := of("")
		all.Topics = nil
		s.ask("all", 2, all)
		all.Topics = []kmsg.ListPartitionReassignmentsRequestTopic{}
		s.ask("none", 2, all)
		s.ask("no partitions", 1, of(topic))
		s.ask("partition -1", 1, of(topic, -1))
		s.ask("a bad name", 1, of("a b", 0))
	}}, {name: "a move that goes on", play: func(s *scene) {
		// It is slow enough to be looked at: five batches of nearly 1 MB, at a byte a second.
		topic := s.name("t")
		s.topic(topic, 2)
		s.moveTo(topic, 0, 1, 2)
		s.moveTo(topic, 1, 2, 1)
		s.slow(topic, true)
		for range 5 {
			s.fill(topic, batch(nil, noise(900_000)))
		}
		ask := func(step string, topics ...kmsg.ListPartitionReassignmentsRequestTopic) {
			req := kmsg.NewPtrListPartitionReassignmentsRequest()
			req.TimeoutMillis, req.Topics = timeout, topics
			if r, ok := s.ask(step, 2, req).(*kmsg.ListPartitionReassignmentsResponse); ok && len(r.Topics) == 1 {
				p := r.Topics[0].Partitions[0]
				s.record(step+", in order", fmt.Sprint(p.Replicas, p.AddingReplicas, p.RemovingReplicas))
			}
		}
		mine := func(partitions ...int32) kmsg.ListPartitionReassignmentsRequestTopic {
			return kmsg.ListPartitionReassignmentsRequestTopic{Topic: topic, Partitions: partitions}
		}
		move := func(step string, replicas ...int32) {
			req := reassignment(topic, 0, replicas...)
			req.Version = 1
			s.record(step, s.normalize(s.must(1, req)))
		}
		move("to another", 3, 2)
		s.listed(topic, 3)
		ask("one", mine(0))
		ask("of both partitions", mine(0, 1))
		ask("the other partition", mine(1))
		ask("twice", mine(0, 0))
		ask("all")
		ask("the topic twice", mine(0), mine(0))
		move("to another, again", 3, 2)
		ask("the same again", mine(0))
		move("in another order", 2, 3)
		ask("another order", mine(0))
		move("cancelled", []int32(nil)...)
		s.unlisted(topic)
		ask("cancelled, listed", mine(0))
		for _, p := range s.describe(1, topic).Partitions {
			if p.Partition == 0 {
				s.record("replicas after the cancellation", fmt.Sprint(p.Replicas))
			}
		}
		move("cancelled again", []int32(nil)...)
		s.slow(topic, false)
	}}}
}

// listed waits until every broker says that partition 0 of a topic is being moved to one.
func (s *scene) listed(topic string, to int32) {
	end := time.Now().Add(patience)
	for node := int32(1); node <= 3; node++ {
		for {
			req := kmsg.NewPtrListPartitionReassignmentsRequest()
			req.TimeoutMillis = timeout
			req.Topics = []kmsg.ListPartitionReassignmentsRequestTopic{{Topic: topic, Partitions: []int32{0}}}
			if r := s.must(node, req).(*kmsg.ListPartitionReassignmentsResponse); len(r.Topics) == 1 && slices.Contains(r.Topics[0].Partitions[0].AddingReplicas, to) {
				break
			}
			if time.Now().After(end) {
				panic(fmt.Errorf("preparing: %s is not being moved to %d, says broker %d", topic, to, node))
			}
			pause()
		}
	}
}

// unlisted waits until no broker says that anything of a topic moves, and every one names two replicas in sync of its partition 0.
func (s *scene) unlisted(topic string) {
	end := time.Now().Add(patience)
	for node := int32(1); node <= 3; node++ {
		for {
			req := kmsg.NewPtrListPartitionReassignmentsRequest()
			req.TimeoutMillis = timeout
			req.Topics = []kmsg.ListPartitionReassignmentsRequestTopic{{Topic: topic, Partitions: []int32{0, 1}}}
			i := slices.IndexFunc(s.describe(node, topic).Partitions, func(p kmsg.MetadataResponseTopicPartition) bool {
				return p.Partition == 0 && len(p.Replicas) == 2 && len(p.ISR) == 2
			})
			if i >= 0 && len(s.must(node, req).(*kmsg.ListPartitionReassignmentsResponse).Topics) == 0 {
				break
			}
			if time.Now().After(end) {
				panic(fmt.Errorf("preparing: %s still moves, says broker %d", topic, node))
			}
			pause()
		}
	}
}

// slow makes replicas of a topic that catch up get a byte a second, or lifts that.
func (s *scene) slow(topic string, on bool) {
	change := func(at int32, t kmsg.ConfigResourceType, name, config, value string) {
		e := edit{1, config, nil}
		if on {
			e = edit{0, config, &value}
		}
		req := edits(t, name, e)
		req.Version = 1
		if r := s.must(at, req).(*kmsg.IncrementalAlterConfigsResponse).Resources[0]; r.ErrorCode != 0 {
			panic(fmt.Errorf("preparing: %s of %s: error %d, %s", config, name, r.ErrorCode, *r.ErrorMessage))
		}
	}
	for _, side := range []string{"leader", "follower"} {
		change(1, kmsg.ConfigResourceTypeTopic, topic, side+".replication.throttled.replicas", "*")
		for node := int32(1); node <= 3; node++ { // Kafka's take changes of their own alone
			change(node, kmsg.ConfigResourceTypeBroker, strconv.Itoa(int(node)), side+".replication.throttled.rate", "1")
		}
	}
}

// noise is text that no codec makes shorter, the same every time.
func noise(n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func unregisterCases() []testCase {
	return []testCase{{name: "a broker that is not there", play: func(s *scene) {
		for name, id := range map[string]int32{"unknown": 99, "negative": -1} {
			req := kmsg.NewPtrUnregisterBrokerRequest()
			req.BrokerID = id
			s.ask(name, 1, req)
		}
	}}}
}
