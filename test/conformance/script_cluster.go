package conformance

import (
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/record"
)

// clusterAPIs asks about brokers, disks, the quorum and coordinators.
func clusterAPIs() []api {
	return []api{
		{key: 10, min: 0, max: 6, cases: findCoordinatorCases()},
		{key: 18, min: 0, max: 4, cases: apiVersionsCases()},
		{key: 35, min: 1, max: 5, cases: logDirsCases()},
		{key: 55, min: 0, max: 2, cases: quorumCases()},
		{key: 60, min: 0, max: 2, cases: describeClusterCases()},
		{key: 61, min: 0, max: 0, cases: producersCases()},
	}
}

func apiVersionsCases() []testCase {
	return []testCase{{name: "asked", play: func(s *scene) {
		req := kmsg.NewPtrApiVersionsRequest()
		req.ClientSoftwareName, req.ClientSoftwareVersion = "conformance", "1"
		s.ask("well", 1, req)
		if s.v >= 3 {
			bad := kmsg.NewPtrApiVersionsRequest()
			bad.ClientSoftwareName, bad.ClientSoftwareVersion = "with a space!", "1"
			s.ask("a bad name", 1, bad)
		}
	}}}
}

func findCoordinatorCases() []testCase {
	return []testCase{{name: "groups", play: func(s *scene) {
		s.coordinator(s.name("g"))
		of := func(kind int8, keys ...string) *kmsg.FindCoordinatorRequest {
			req := kmsg.NewPtrFindCoordinatorRequest()
			req.CoordinatorType, req.CoordinatorKeys = kind, keys
			if len(keys) > 0 {
				req.CoordinatorKey = keys[0]
			}
			return req
		}
		s.ask("one", 1, of(0, s.name("g")))
		s.ask("an empty name", 1, of(0, ""))
		if s.v >= 1 {
			s.ask("a bad type", 1, of(9, s.name("g")))
		}
		if s.v >= 4 {
			s.ask("two", 2, of(0, s.name("g"), s.name("h")))
			s.ask("none", 2, of(0))
		}
	}}}
}

func logDirsCases() []testCase {
	return []testCase{{name: "topics", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 2)
		s.fill(topic, batch(nil, "a"))
		of := func(topic string, parts ...int32) *kmsg.DescribeLogDirsRequest {
			req := kmsg.NewPtrDescribeLogDirsRequest()
			req.Topics = []kmsg.DescribeLogDirsRequestTopic{{Topic: topic, Partitions: parts}}
			return req
		}
		leader, _ := s.leader(topic, 0)
		s.ask("one", leader, of(topic, 0))
		s.ask("no such partition", leader, of(topic, 9))
		s.ask("no such topic", leader, of(s.name("none"), 0))
		nothing := of(topic, 0)
		nothing.Topics = []kmsg.DescribeLogDirsRequestTopic{}
		s.ask("nothing", leader, nothing)
		s.ask("an empty partition too", leader, of(topic, 0, 1))
		s.ask("a partition twice", leader, of(topic, 0, 0))
		s.ask("no partitions", leader, of(topic))
		s.ask("partition -1", leader, of(topic, -1))
		s.ask("a topic without a name", leader, of("", 0))
		twice := of(topic, 0)
		twice.Topics = append(twice.Topics, of(topic, 1).Topics...)
		s.ask("a topic twice", leader, twice)
		all := of("")
		all.Topics, all.Version = nil, s.v
		resp := s.must(leader, all).(*kmsg.DescribeLogDirsResponse)
		for i := range resp.Dirs { // other cases leave topics too: that of this one is looked at
			d := &resp.Dirs[i]
			d.Topics = slices.DeleteFunc(d.Topics, func(t kmsg.DescribeLogDirsResponseDirTopic) bool { return t.Topic != topic })
		}
		s.record("all", s.normalize(resp))
		s.moveTo(topic, 0, leader, leader%3+1)
		gone := of(topic, 0)
		gone.Version = s.v
		until(func() bool { // it is deleted a little later
			r := s.must((leader+1)%3+1, gone).(*kmsg.DescribeLogDirsResponse)
			return len(r.Dirs) > 0 && len(r.Dirs[0].Topics) == 0
		})
		s.ask("moved away", (leader+1)%3+1, of(topic, 0, 1))
	}}}
}

func quorumCases() []testCase {
	return []testCase{{name: "the metadata group", play: func(s *scene) {
		of := func(topic string, part int32) *kmsg.DescribeQuorumRequest {
			req := kmsg.NewPtrDescribeQuorumRequest()
			req.Topics = []kmsg.DescribeQuorumRequestTopic{{Topic: topic, Partitions: []kmsg.DescribeQuorumRequestTopicPartition{{Partition: part}}}}
			return req
		}
		heard := func() bool { // of every voter, in the leader's term
			req := of("__cluster_metadata", 0)
			req.Version = 1
			r := s.must(2, req).(*kmsg.DescribeQuorumResponse)
			return r.ErrorCode == 0 && !slices.ContainsFunc(r.Topics[0].Partitions[0].CurrentVoters, func(v kmsg.DescribeQuorumResponseTopicPartitionReplicaState) bool {
				return v.LastFetchTimestamp < 0 || v.LastCaughtUpTimestamp < 0
			})
		}
		until(heard)
		s.ask("it", 2, of("__cluster_metadata", 0))
		s.ask("another partition", 2, of("__cluster_metadata", 1))
		s.ask("another topic", 2, of("t", 0))
		s.ask("partition -1", 1, of("__cluster_metadata", -1))
		s.ask("at the first", 1, of("__cluster_metadata", 0))
		s.ask("at the third", 3, of("__cluster_metadata", 0))
		two := of("__cluster_metadata", 0)
		two.Topics[0].Partitions = append(two.Topics[0].Partitions, kmsg.DescribeQuorumRequestTopicPartition{Partition: 1})
		s.ask("two partitions", 1, two)
		both := of("__cluster_metadata", 0)
		both.Topics = append(both.Topics, of("t", 0).Topics...)
		s.ask("with another topic", 1, both)
		twice := of("__cluster_metadata", 0)
		twice.Topics = append(twice.Topics, twice.Topics...)
		s.ask("twice", 1, twice)
		bare := of("__cluster_metadata", 0)
		bare.Topics[0].Partitions = nil
		s.ask("no partitions", 1, bare)
		bare.Topics = nil
		s.ask("nothing", 1, bare)
	}}}
}

func describeClusterCases() []testCase {
	return []testCase{{name: "types", play: func(s *scene) {
		s.ask("as it comes", 1, kmsg.NewPtrDescribeClusterRequest())
		ops := kmsg.NewPtrDescribeClusterRequest()
		ops.IncludeClusterAuthorizedOperations = true
		s.ask("with operations", 1, ops)
		if s.v >= 1 {
			for name, t := range map[string]int8{"controllers": 2, "no such type": 7} {
				req := kmsg.NewPtrDescribeClusterRequest()
				req.EndpointType = t
				s.ask(name, 1, req)
			}
		}
		if s.v >= 2 {
			req := kmsg.NewPtrDescribeClusterRequest()
			req.IncludeFencedBrokers = true
			s.ask("fenced ones too", 1, req)
		}
	}}}
}

func producersCases() []testCase {
	return []testCase{{name: "partitions", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 1)
		s.fill(topic, batch(idempotent(77, 2, 0), "a", "b"))
		of := func(topic string, part int32) *kmsg.DescribeProducersRequest {
			req := kmsg.NewPtrDescribeProducersRequest()
			req.Topics = []kmsg.DescribeProducersRequestTopic{{Topic: topic, Partitions: []int32{part}}}
			return req
		}
		leader, _ := s.leader(topic, 0)
		s.ask("one", leader, of(topic, 0))
		until(func() bool { // a follower applies a little later
			return len(s.must(leader%3+1, of(topic, 0)).(*kmsg.DescribeProducersResponse).Topics[0].Partitions[0].ActiveProducers) > 0
		})
		s.ask("elsewhere", leader%3+1, of(topic, 0))
		s.ask("no such partition", leader, of(topic, 5))
		s.ask("no such topic", leader, of(s.name("none"), 0))
		s.ask("partition -1", leader, of(topic, -1))
		s.ask("a bad name", leader, of("a b", 0))
		s.ask("without a name", leader, of("", 0))
		twice := of(topic, 0)
		twice.Topics[0].Partitions = []int32{0, 0}
		s.ask("a partition twice", leader, twice)
		bare := of(topic, 0)
		bare.Topics[0].Partitions = nil
		s.ask("no partitions", leader, bare)
		bare.Topics = nil
		s.ask("nothing", leader, bare)
		s.moveTo(topic, 0, leader, leader%3+1)
		until(func() bool { // it is deleted a little later
			return s.must((leader+1)%3+1, of(topic, 0)).(*kmsg.DescribeProducersResponse).Topics[0].Partitions[0].ErrorCode != 0
		})
		s.ask("moved away", (leader+1)%3+1, of(topic, 0))
	}}, {name: "times", play: func(s *scene) {
		topic, ours := s.name("t"), s.name("appended")
		s.topic(topic, 1)
		s.topic(ours, 1, "message.timestamp.type", "LogAppendTime")
		ask := func(step, topic string) {
			req := kmsg.NewPtrDescribeProducersRequest()
			req.Topics = []kmsg.DescribeProducersRequestTopic{{Topic: topic, Partitions: []int32{0}}}
			leader, _ := s.leader(topic, 0)
			s.ask(step, leader, req)
		}
		s.fill(topic, batch(nil, "not idempotent"))
		ask("nobody", topic)
		s.fill(topic, stamped(idempotent(77, 2, 0), 1000, 3000, 2000))
		ask("the largest of a batch", topic)
		s.fill(topic, stamped(idempotent(77, 2, 3), 500))
		ask("of the last batch", topic)
		s.fill(topic, stamped(idempotent(77, 2, 0), 1000, 3000, 2000))
		ask("after a duplicate", topic)
		s.fill(topic, stamped(idempotent(78, 0, 5), 7000, 6000))
		ask("two producers", topic)
		s.fill(topic, stamped(idempotent(77, 3, 0), 9000))
		ask("a new epoch", topic)
		s.deleteTo(topic, -1)
		ask("everything deleted", topic)
		s.fill(ours, stamped(idempotent(77, 0, 0), 1000, 2000))
		ask("LogAppendTime", ours)
	}}}
}

// stamped is a batch of records with those timestamps.
func stamped(edit func(b *record.Builder), times ...int64) []byte {
	b := record.NewBuilder()
	edit(b)
	for i, at := range times {
		b.Add(at, []byte(fmt.Sprint("key", i)), []byte("v"))
	}
	out, err := b.Build()
	if err != nil {
		panic(err)
	}
	return out
}
