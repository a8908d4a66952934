package conformance

import (
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
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
	}}}
}

func quorumCases() []testCase {
	return []testCase{{name: "the metadata group", play: func(s *scene) {
		of := func(topic string, part int32) *kmsg.DescribeQuorumRequest {
			req := kmsg.NewPtrDescribeQuorumRequest()
			req.Topics = []kmsg.DescribeQuorumRequestTopic{{Topic: topic, Partitions: []kmsg.DescribeQuorumRequestTopicPartition{{Partition: part}}}}
			return req
		}
		s.ask("it", 2, of("__cluster_metadata", 0))
		s.ask("another partition", 2, of("__cluster_metadata", 1))
		s.ask("another topic", 2, of("t", 0))
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
		for end := time.Now().Add(patience); time.Now().Before(end); pause() { // a follower applies a little later
			if r := s.must(leader%3+1, of(topic, 0)).(*kmsg.DescribeProducersResponse); len(r.Topics[0].Partitions[0].ActiveProducers) > 0 {
				break
			}
		}
		s.ask("elsewhere", leader%3+1, of(topic, 0))
		s.ask("no such partition", leader, of(topic, 5))
		s.ask("no such topic", leader, of(s.name("none"), 0))
	}}}
}
