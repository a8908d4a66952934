package conformance

import (
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// outageAPIs is what is asked while a broker is stopped, in this order: what changes the topics of all comes last.
func outageAPIs() []api {
	return []api{
		{key: 3, min: 0, max: 13, cases: outageMetadata()},
		{key: 60, min: 0, max: 2, cases: outageCluster()},
		{key: 75, min: 0, max: 0, cases: outagePartitions()},
		{key: 55, min: 0, max: 2, cases: outageQuorum()},
		{key: 35, min: 1, max: 5, cases: outageLogDirs()},
		{key: 0, min: 3, max: 13, cases: outageProduce()},
		{key: 1, min: 4, max: 18, cases: outageFetch()},
		{key: 2, min: 1, max: 11, cases: outageOffsets()},
		{key: 23, min: 2, max: 4, cases: outageEpochs()},
		{key: 21, min: 0, max: 2, cases: outageDeleteRecords()},
		{key: 61, min: 0, max: 0, cases: outageProducers()},
		{key: 22, min: 0, max: 5, cases: outageProducerIDs()},
		{key: 10, min: 0, max: 6, cases: outageCoordinators()},
		{key: 9, min: 1, max: 10, cases: outageCommitted()},
		{key: 43, min: 0, max: 2, cases: outageElections()},
		{key: 19, min: 2, max: 7, cases: outageCreateTopics()},
		{key: 37, min: 0, max: 3, cases: outageCreatePartitions()},
		{key: 20, min: 1, max: 6, cases: outageDeleteTopics()},
		{key: 45, min: 0, max: 1, cases: outageReassignments()},
		{key: 46, min: 0, max: 0, cases: outageMoves()},
		{key: 64, min: 0, max: 0, cases: outageUnregister()},
	}
}

// one makes a list of one case.
func one(name string, from int16, play func(s *scene)) []testCase {
	return []testCase{{name: name, from: from, play: play}}
}

func outageMetadata() []testCase {
	return one("topics", 0, func(s *scene) {
		for _, topic := range []string{outKept, outLost, outAlone, outPair, outSingle} {
			s.ask(topic, s.a, metadataOf(false, topic))
		}
		s.ask("at the other", s.b, metadataOf(false, outKept, outLost, outAlone))
		if s.v > 0 {
			s.ask("none", s.b, metadataOf(false))
		}
	})
}

func outageCluster() []testCase {
	return one("brokers", 0, func(s *scene) {
		s.ask("as it comes", s.a, kmsg.NewPtrDescribeClusterRequest())
		if s.v >= 2 {
			req := kmsg.NewPtrDescribeClusterRequest()
			req.IncludeFencedBrokers = true
			s.ask("fenced ones too", s.a, req)
		}
	})
}

func outagePartitions() []testCase {
	return one("topics", 0, func(s *scene) {
		for _, topic := range []string{outKept, outLost, outAlone, outPair} {
			req := kmsg.NewPtrDescribeTopicPartitionsRequest()
			req.ResponsePartitionLimit = 100
			req.Topics = []kmsg.DescribeTopicPartitionsRequestTopic{{Topic: topic}}
			s.ask(topic, s.a, req)
		}
	})
}

func outageQuorum() []testCase {
	return one("the metadata group", 0, func(s *scene) {
		for step, node := range map[string]int32{"at its leader": s.a, "at the other": s.b} {
			req := kmsg.NewPtrDescribeQuorumRequest()
			req.Topics = []kmsg.DescribeQuorumRequestTopic{{Topic: "__cluster_metadata", Partitions: []kmsg.DescribeQuorumRequestTopicPartition{{}}}}
			s.ask(step, node, req)
		}
	})
}

func outageLogDirs() []testCase {
	return one("topics", 0, func(s *scene) {
		req := kmsg.NewPtrDescribeLogDirsRequest()
		for _, topic := range []string{outKept, outAlone, outPair} {
			req.Topics = append(req.Topics, kmsg.DescribeLogDirsRequestTopic{Topic: topic, Partitions: []int32{0}})
		}
		s.ask("a", s.a, req)
		s.ask("b", s.b, req)
	})
}

func outageProduce() []testCase {
	return one("topics", 0, func(s *scene) {
		records := func() []byte { return batch(nil, "x", "y") }
		s.ask("no leader", s.a, s.produceTo(outAlone, 0, -1, records()))
		s.ask("no leader, acks 1", s.a, s.produceTo(outAlone, 0, 1, records()))
		pair := s.produceTo(outPair, 0, -1, records())
		until(func() bool { // of two replicas one is no majority here, which takes its leader an election timeout to see
			r := s.must(s.a, at(pair, s.v)).(*kmsg.ProduceResponse)
			return r.Topics[0].Partitions[0].ErrorCode != 7
		})
		s.ask("a pair", s.a, pair)
		s.led(outStray, s.a)
		stray := s.produceTo(outStray, 0, -1, records())
		until(func() bool { // the while is over
			r := s.must(s.b, at(stray, s.v)).(*kmsg.ProduceResponse)
			return r.Topics[0].Partitions[0].ErrorCode != 0
		})
		s.ask("led by another", s.b, stray)
		topic := s.name("t") // offsets are to be the same whatever versions are played
		s.placed(topic, []int32{s.a, s.b, s.down})
		leader, _ := s.leader(topic, 0)
		s.ask("two of three", leader, s.produceTo(topic, 0, -1, records()))
		s.ask("two of three, acks 1", leader, s.produceTo(topic, 0, 1, records()))
		lost, _ := s.leader(outLost, 0)
		first := s.must(lost, at(s.listOf(outLost, 0, -1), 5)).(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0].Offset
		r := s.must(lost, at(s.produceTo(outLost, 0, -1, records()), s.v)).(*kmsg.ProduceResponse).Topics[0].Partitions[0]
		s.record("to the new leader", fmt.Sprintf("error %d, %d after the end", r.ErrorCode, r.BaseOffset-first))
	})
}

func outageFetch() []testCase {
	return one("topics", 0, func(s *scene) {
		s.led(outKept, s.a)
		s.ask("no leader, no replica", s.a, s.fetchOf(outAlone, 0, 0))
		s.ask("led by another, no replica", s.a, s.fetchOf(outSingle, 0, 0))
		s.ask("two of three", s.a, s.fetchOf(outKept, 0, 0))
		lost, _ := s.leader(outLost, 0)
		from := s.fetchOf(outLost, 0, 0)
		from.Topics[0].Partitions[0].PartitionMaxBytes = 1 // there is more since Produce was asked
		if r, ok := s.must(lost, at(from, s.v)).(*kmsg.FetchResponse); ok {
			p := &r.Topics[0].Partitions[0]
			p.HighWatermark, p.LastStableOffset = min(p.HighWatermark, 3), min(p.LastStableOffset, 3)
			s.record("the new leader", s.normalize(r))
		}
	})
}

func outageOffsets() []testCase {
	return one("topics", 0, func(s *scene) {
		s.led(outKept, s.a)
		s.ask("no leader, no replica", s.a, s.listOf(outAlone, 0, -1))
		s.ask("led by another, no replica", s.a, s.listOf(outSingle, 0, -1))
		s.ask("led by another", s.b, s.listOf(outKept, 0, -1))
		s.ask("latest", s.a, s.listOf(outKept, 0, -1))
		s.ask("earliest", s.a, s.listOf(outKept, 0, -2))
		lost, _ := s.leader(outLost, 0)
		s.ask("earliest, the new leader", lost, s.listOf(outLost, 0, -2))
	})
}

func outageEpochs() []testCase {
	return one("topics", 0, func(s *scene) {
		s.led(outKept, s.a)
		s.ask("no leader, no replica", s.a, epochEnds(outAlone, 0, -1, 0))
		s.ask("led by another", s.b, epochEnds(outKept, 0, -1, 0))
		leader, epoch := s.leader(outKept, 0)
		s.ask("two of three", leader, epochEnds(outKept, 0, epoch, epoch))
	})
}

func outageDeleteRecords() []testCase {
	of := func(topic string, offset int64) *kmsg.DeleteRecordsRequest {
		req := kmsg.NewPtrDeleteRecordsRequest()
		req.TimeoutMillis = timeout
		req.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Offset: offset}}}}
		return req
	}
	return one("topics", 0, func(s *scene) {
		s.led(outKept, s.a)
		s.ask("no leader, no replica", s.a, of(outAlone, 1))
		s.ask("led by another", s.b, of(outKept, 0))
		s.ask("two of three", s.a, of(outKept, 0))
	})
}

func outageProducers() []testCase {
	return one("topics", 0, func(s *scene) {
		s.led(outKept, s.a)
		for step, topic := range map[string]string{"no leader, no replica": outAlone, "two of three": outKept} {
			req := kmsg.NewPtrDescribeProducersRequest()
			req.Topics = []kmsg.DescribeProducersRequestTopic{{Topic: topic, Partitions: []int32{0}}}
			s.ask(step, s.a, req)
		}
	})
}

func outageProducerIDs() []testCase {
	return one("idempotent", 0, func(s *scene) {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.TransactionTimeoutMillis = 60_000
		req.ProducerID, req.ProducerEpoch = -1, -1
		for step, node := range map[string]int32{"a": s.a, "b": s.b} {
			until(func() bool { return s.must(node, at(req, s.v)).(*kmsg.InitProducerIDResponse).ErrorCode != 14 })
			s.ask(step, node, req)
		}
	})
}

func outageCoordinators() []testCase {
	return one("groups", 0, func(s *scene) {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorKey, req.CoordinatorKeys = s.group, []string{s.group}
		s.ask("coordinated by the stopped broker before", s.a, req)
		s.ask("at the other", s.b, req)
	})
}

func outageCommitted() []testCase {
	return one("groups", 0, func(s *scene) {
		req := kmsg.NewPtrOffsetFetchRequest()
		rg := kmsg.NewOffsetFetchRequestGroup()
		req.Group, rg.Group, rg.MemberEpoch = s.group, s.group, -1
		req.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: outKept, Partitions: []int32{0}}}
		rg.Topics = []kmsg.OffsetFetchRequestGroupTopic{{Topic: outKept, TopicID: s.topics[outKept], Partitions: []int32{0}}}
		req.Groups = append(req.Groups, rg)
		s.ask("committed to the stopped broker", s.coordinator(s.group), req)
	})
}

func outageElections() []testCase {
	return one("topics", 0, func(s *scene) {
		s.led(outKept, s.a)
		kinds := map[string]int8{"preferred": 0}
		if s.v > 0 {
			kinds["unclean"] = 1
		}
		for kind, k := range kinds {
			for _, topic := range []string{outKept, outLost, outAlone, outPair} {
				s.ask(kind+" "+topic, s.a, election(k, topic, 0))
			}
		}
		s.ask("at the other", s.b, election(0, outLost, 0))
		all := election(0, "")
		all.Topics = nil
		resp := s.must(s.a, at(all, s.v)).(*kmsg.ElectLeadersResponse)
		// Other cases leave topics too: those of all are looked at.
		resp.Topics = slices.DeleteFunc(resp.Topics, func(t kmsg.ElectLeadersResponseTopic) bool {
			return !slices.Contains([]string{outKept, outLost, outAlone, outPair, outSingle}, t.Topic)
		})
		slices.SortFunc(resp.Topics, func(a, b kmsg.ElectLeadersResponseTopic) int {
			return slices.Compare([]byte(a.Topic), []byte(b.Topic))
		})
		s.record("of all", s.normalize(resp))
	})
}

func outageCreateTopics() []testCase {
	last := testCase{name: "led by the second", from: 7, play: func(s *scene) { // here that is elected, an election timeout later
		s.ask("assigned", s.a, creates(s.name("t"), -1, -1, assigned(0, s.down, s.b, s.a)))
		s.placing("assigned", s.name("t"), 1)
	}}
	return append(one("topics", 0, func(s *scene) {
		checked := creates(s.name("checked"), 2, 3)
		checked.ValidateOnly = true
		s.ask("three replicas, only checked", s.a, checked)
		s.ask("four replicas", s.a, creates(s.name("four"), 2, 4))
		s.ask("assigned to the stopped broker alone", s.a, creates(s.name("a1"), -1, -1, assigned(0, s.down)))
		pair := s.must(s.a, at(creates(s.name("a2"), -1, -1, assigned(0, s.down, s.a)), s.v)).(*kmsg.CreateTopicsResponse)
		s.record("assigned to it and another", fmt.Sprint("error ", pair.Topics[0].ErrorCode))
		s.ask("assigned, one to it alone", s.a, creates(s.name("a3"), -1, -1, assigned(0, s.a), assigned(1, s.down)))
		for step, req := range map[string]*kmsg.CreateTopicsRequest{
			"three replicas": creates(s.name("three"), 3, 3),
			"two replicas":   creates(s.name("two"), 6, 2),
			"one replica":    creates(s.name("one"), 6, 1),
			"the default":    creates(s.name("default"), -1, -1),
			"assigned":       creates(s.name("a4"), -1, -1, assigned(0, s.a, s.b, s.down), assigned(1, s.b, s.down, s.a)),
		} {
			resp, ok := s.ask(step, s.a, req).(*kmsg.CreateTopicsResponse)
			if !ok || resp.Topics[0].ErrorCode != 0 {
				continue
			}
			partitions := map[string]int{"two replicas": 6, "one replica": 6, "the default": 6, "three replicas": 3, "assigned": 2}[step]
			s.placing(step, resp.Topics[0].Topic, partitions)
		}
	}), last)
}

// placing records how a topic that has so many partitions in an outage stands: how many of them are led, and have replicas on the stopped broker.
func (s *scene) placing(step, topic string, partitions int) {
	var says string
	until(func() bool {
		t := s.describe(s.b, topic)
		led, touched := 0, 0
		for _, p := range t.Partitions {
			if slices.Contains(s.living(), p.Leader) && len(p.ISR) == len(s.alive(p.Replicas)) {
				led++
			}
			if slices.Contains(p.Replicas, s.down) {
				touched++
			}
		}
		says = fmt.Sprintf("%d partitions, %d led and in sync, %d with a replica on the stopped broker", len(t.Partitions), led, touched)
		return led == partitions
	})
	s.record(step+", afterwards", says)
}

func outageCreatePartitions() []testCase {
	of := func(topic string, count int32, assign ...[]int32) *kmsg.CreatePartitionsRequest {
		t := kmsg.NewCreatePartitionsRequestTopic()
		t.Topic, t.Count = topic, count
		for _, a := range assign {
			t.Assignment = append(t.Assignment, kmsg.CreatePartitionsRequestTopicAssignment{Replicas: a})
		}
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.TimeoutMillis, req.Topics = timeout, append(req.Topics, t)
		return req
	}
	return one("topics", 0, func(s *scene) {
		three, single := s.name("three"), s.name("single")
		s.placed(three, []int32{s.a, s.b, s.down})
		s.placed(single, []int32{s.a})
		s.ask("of three replicas", s.a, of(three, 3))
		s.placing("of three replicas", three, 3)
		s.ask("of three replicas, assigned", s.a, of(three, 4, []int32{s.b, s.down, s.a}))
		s.placing("of three replicas, assigned", three, 4)
		s.ask("of one replica, assigned to the stopped broker", s.a, of(single, 2, []int32{s.down}))
		s.ask("of one replica", s.a, of(single, 4))
		s.placing("of one replica", single, 4)
	})
}

func outageDeleteTopics() []testCase {
	return one("topics", 0, func(s *scene) {
		topic := s.name("t")
		s.placed(topic, []int32{s.a, s.b, s.down})
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.TimeoutMillis, req.TopicNames = timeout, []string{topic}
		t := kmsg.NewDeleteTopicsRequestTopic()
		t.Topic = &topic
		req.Topics = append(req.Topics, t)
		s.ask("with a replica on the stopped broker", s.a, req)
		s.ask("again", s.a, req)
	})
}

func outageReassignments() []testCase {
	return one("partitions", 0, func(s *scene) {
		two, three := s.name("two"), s.name("three")
		s.placed(two, []int32{s.a, s.b})
		s.placed(three, []int32{s.a, s.b, s.down})
		cancel := func(topic string) *kmsg.AlterPartitionAssignmentsRequest {
			req := reassignment(topic, 0)
			req.Topics[0].Partitions[0].Replicas = nil
			return req
		}
		s.ask("away from the stopped broker", s.a, reassignment(three, 0, s.b, s.a))
		for _, node := range s.living() {
			until(func() bool {
				p := s.describe(node, three).Partitions[0]
				return len(p.Replicas) == 2 && len(p.ISR) == 2
			})
		}
		s.ask("the same again", s.a, reassignment(three, 0, s.b, s.a))
		s.ask("one more, on the stopped broker", s.a, reassignment(two, 0, s.a, s.b, s.down))
		s.ask("that cancelled", s.a, cancel(two))
		s.ask("from one to the stopped broker", s.b, reassignment(two, 0, s.a, s.down))
		s.ask("that cancelled, too", s.b, cancel(two))
	})
}

func outageMoves() []testCase {
	return one("of what is on the stopped broker alone", 0, func(s *scene) {
		req := kmsg.NewPtrListPartitionReassignmentsRequest()
		req.TimeoutMillis = timeout
		req.Topics = []kmsg.ListPartitionReassignmentsRequestTopic{{Topic: outAlone, Partitions: []int32{0}}}
		s.ask("before", s.a, req)
		move := reassignment(outAlone, 0, s.a)
		s.record("to another", s.normalize(s.must(s.a, at(move, 1))))
		for step, node := range map[string]int32{"at a": s.a, "at b": s.b} {
			until(func() bool {
				return len(s.must(node, req).(*kmsg.ListPartitionReassignmentsResponse).Topics) > 0
			})
			s.ask(step, node, req)
		}
		move.Topics[0].Partitions[0].Replicas = nil
		s.record("cancelled", s.normalize(s.must(s.a, at(move, 1))))
	})
}

func outageUnregister() []testCase {
	return one("the stopped broker", 0, func(s *scene) {
		req := kmsg.NewPtrUnregisterBrokerRequest()
		req.BrokerID = s.down
		s.ask("for good", s.a, req)
	})
}
