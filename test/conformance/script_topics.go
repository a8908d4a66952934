package conformance

import (
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// topicAPIs asks for topics to be made, changed and deleted.
func topicAPIs() []api {
	return []api{
		{key: 3, min: 0, max: 13, cases: metadataCases()},
		{key: 19, min: 2, max: 7, cases: createTopicsCases()},
		{key: 20, min: 1, max: 6, cases: deleteTopicsCases()},
		{key: 21, min: 0, max: 2, cases: deleteRecordsCases()},
		{key: 37, min: 0, max: 3, cases: createPartitionsCases()},
		{key: 75, min: 0, max: 0, cases: describeTopicPartitionsCases()},
	}
}

const timeout = int32(15 * time.Second / time.Millisecond)

func metadataOf(auto bool, names ...string) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics, req.AllowAutoTopicCreation = []kmsg.MetadataRequestTopic{}, auto
	for _, n := range names {
		req.Topics = append(req.Topics, kmsg.MetadataRequestTopic{Topic: ptr(n)})
	}
	return req
}

func metadataCases() []testCase {
	return []testCase{
		{name: "topics", from: 4, play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 2)
			s.ask("one", 1, metadataOf(false, topic))
			s.ask("the same twice", 2, metadataOf(false, topic, topic))
			s.ask("none", 3, metadataOf(false))
			s.ask("unknown", 1, metadataOf(false, s.name("none")))
			s.ask("bad names", 1, metadataOf(false, "a b", "", ".", ".."))
			req := metadataOf(false, topic)
			req.IncludeTopicAuthorizedOperations = s.v >= 8
			req.IncludeClusterAuthorizedOperations = s.v >= 8 && s.v <= 10
			s.ask("with operations", 1, req)
		}},
		{name: "old versions", play: func(s *scene) {
			if s.v > 3 {
				return
			}
			topic := s.name("t")
			s.topic(topic, 2)
			s.ask("one", 1, metadataOf(false, topic))
			if s.v > 0 {
				s.ask("none", 1, metadataOf(false))
			}
		}},
		{name: "by id", from: 12, play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			for name, id := range map[string][16]byte{"known": s.topics[topic], "unknown": {9, 9, 9}} {
				req := metadataOf(false)
				req.Topics = append(req.Topics, kmsg.MetadataRequestTopic{TopicID: id})
				s.ask(name, 1, req)
			}
		}},
	}
}

type topicEdit func(t *kmsg.CreateTopicsRequestTopic)

func creates(name string, partitions int32, replicas int16, edits ...topicEdit) *kmsg.CreateTopicsRequest {
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = name, partitions, replicas
	for _, e := range edits {
		e(&t)
	}
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis, req.Topics = timeout, append(req.Topics, t)
	return req
}

func withConfig(name string, value *string) topicEdit {
	return func(t *kmsg.CreateTopicsRequestTopic) {
		t.Configs = append(t.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: name, Value: value})
	}
}

func assigned(partition int32, nodes ...int32) topicEdit {
	return func(t *kmsg.CreateTopicsRequestTopic) {
		t.ReplicaAssignment = append(t.ReplicaAssignment, kmsg.CreateTopicsRequestTopicReplicaAssignment{Partition: partition, Replicas: nodes})
	}
}

func createTopicsCases() []testCase {
	return []testCase{
		{name: "created", play: func(s *scene) {
			s.ask("three partitions", 1, creates(s.name("a"), 3, 3))
			s.ask("again", 1, creates(s.name("a"), 3, 3))
			s.ask("defaults", 2, creates(s.name("b"), -1, -1))
			s.ask("assigned", 3, creates(s.name("c"), -1, -1, assigned(0, 1, 2), assigned(1, 2, 3)))
			s.ask("with configs", 1, creates(s.name("d"), 1, 1, withConfig("retention.ms", ptr("1000")), withConfig("cleanup.policy", ptr("delete"))))
			two := creates(s.name("e"), 1, 1)
			two.Topics = append(two.Topics, creates(s.name("f"), 1, 1).Topics...)
			s.ask("two", 1, two)
		}},
		{name: "only checked", play: func(s *scene) {
			req := creates(s.name("a"), 2, 2)
			req.ValidateOnly = true
			s.ask("good", 1, req)
			req = creates(s.name("a"), 2, 9)
			req.ValidateOnly = true
			s.ask("bad", 1, req)
			for name, r := range map[string]*kmsg.CreateTopicsRequest{
				"defaults":            creates(s.name("a"), -1, -1),
				"assigned":            creates(s.name("a"), -1, -1, assigned(0, 1, 2), assigned(1, 2, 3)),
				"with configs":        creates(s.name("a"), 1, 1, withConfig("retention.ms", ptr("1000"))),
				"a bad value":         creates(s.name("a"), 1, 1, withConfig("retention.ms", ptr("soon"))),
				"an unknown config":   creates(s.name("a"), 1, 1, withConfig("no.such.config", ptr("1"))),
				"a bad name":          creates("a b", 1, 1),
				"no partitions":       creates(s.name("a"), 0, 1),
				"assigned a stranger": creates(s.name("a"), -1, -1, assigned(0, 77)),
			} {
				r.ValidateOnly = true
				s.ask(name, 1, r)
			}
			s.ask("made afterwards", 1, creates(s.name("a"), 1, 1))
			again := creates(s.name("a"), 1, 1)
			again.ValidateOnly = true
			s.await(s.name("a"), 1)
			s.ask("there already", 1, again)
		}},
		{name: "refused", play: func(s *scene) {
			s.ask("no partitions", 1, creates(s.name("a"), 0, 1))
			s.ask("negative partitions", 1, creates(s.name("a"), -2, 1))
			s.ask("no replicas", 1, creates(s.name("a"), 1, 0))
			s.ask("too many replicas", 1, creates(s.name("a"), 1, 4))
			for _, name := range []string{"", ".", "..", "a b", "a/b", "a,b"} {
				s.ask("the name '"+name+"'", 1, creates(name, 1, 1))
			}
			s.ask("a long name", 1, creates(string(make([]byte, 250)), 1, 1))
			s.ask("an unknown config", 1, creates(s.name("a"), 1, 1, withConfig("no.such.config", ptr("1"))))
			s.ask("a bad value", 1, creates(s.name("a"), 1, 1, withConfig("retention.ms", ptr("soon"))))
			s.ask("a value out of range", 1, creates(s.name("a"), 1, 1, withConfig("segment.bytes", ptr("-1"))))
			s.ask("a null value", 1, creates(s.name("a"), 1, 1, withConfig("retention.ms", nil)))
			s.ask("assigned and counted", 1, creates(s.name("a"), 1, 1, assigned(0, 1)))
			s.ask("assigned to one twice", 1, creates(s.name("a"), -1, -1, assigned(0, 1, 1)))
			s.ask("assigned to nobody", 1, creates(s.name("a"), -1, -1, assigned(0)))
			s.ask("assigned to a stranger", 1, creates(s.name("a"), -1, -1, assigned(0, 77)))
			s.ask("assigned with a gap", 1, creates(s.name("a"), -1, -1, assigned(0, 1), assigned(2, 2)))
			s.ask("assigned unevenly", 1, creates(s.name("a"), -1, -1, assigned(0, 1), assigned(1, 2, 3)))
			twice := creates(s.name("a"), 1, 1)
			twice.Topics = append(twice.Topics, twice.Topics[0])
			s.ask("named twice", 1, twice)
			s.ask("the metadata topic", 1, creates("__cluster_metadata", 1, 1))
		}},
		{name: "colliding", play: func(s *scene) {
			s.ask("with a dot", 1, creates(s.name("x.y"), 1, 1))
			s.ask("with an underscore", 1, creates(s.name("x_y"), 1, 1))
		}},
	}
}

func deleteTopicsCases() []testCase {
	by := func(s *scene, names ...string) *kmsg.DeleteTopicsRequest {
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.TimeoutMillis, req.TopicNames = timeout, names
		for _, n := range names {
			t := kmsg.NewDeleteTopicsRequestTopic()
			t.Topic = ptr(n)
			req.Topics = append(req.Topics, t)
		}
		return req
	}
	return []testCase{
		{name: "by name", play: func(s *scene) {
			s.topic(s.name("a"), 1)
			s.topic(s.name("b"), 1)
			s.ask("one", 1, by(s, s.name("a")))
			s.ask("again", 1, by(s, s.name("a")))
			s.ask("one that is and one that is not", 2, by(s, s.name("none"), s.name("b")))
			s.ask("nothing", 1, by(s))
			s.ask("the metadata topic", 1, by(s, "__cluster_metadata"))
		}},
		{name: "the same twice", play: func(s *scene) {
			s.topic(s.name("a"), 1)
			s.ask("at once", 1, by(s, s.name("a"), s.name("a")))
		}},
		{name: "by id", from: 6, play: func(s *scene) {
			s.topic(s.name("a"), 1)
			one := func(name *string, id [16]byte) *kmsg.DeleteTopicsRequest {
				req := kmsg.NewPtrDeleteTopicsRequest()
				req.TimeoutMillis = timeout
				req.Topics = append(req.Topics, kmsg.DeleteTopicsRequestTopic{Topic: name, TopicID: id})
				return req
			}
			s.ask("unknown", 1, one(nil, [16]byte{8, 8}))
			s.ask("neither name nor id", 1, one(nil, [16]byte{}))
			s.ask("both", 1, one(ptr(s.name("a")), s.topics[s.name("a")]))
			s.ask("known", 1, one(nil, s.topics[s.name("a")]))
		}},
	}
}

func deleteRecordsCases() []testCase {
	of := func(topic string, partition int32, offset int64) *kmsg.DeleteRecordsRequest {
		req := kmsg.NewPtrDeleteRecordsRequest()
		req.TimeoutMillis = timeout
		req.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: partition, Offset: offset}}}}
		return req
	}
	return []testCase{{name: "offsets", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 1)
		s.fill(topic, batch(nil, "a", "b", "c", "d"))
		leader, _ := s.leader(topic, 0)
		s.ask("two", leader, of(topic, 0, 2))
		s.ask("below the start", leader, of(topic, 0, 1))
		s.ask("beyond the end", leader, of(topic, 0, 9))
		s.ask("-2", leader, of(topic, 0, -2))
		s.ask("all", leader, of(topic, 0, -1))
		s.ask("no such partition", leader, of(topic, 3, -1))
		s.ask("no such topic", leader, of(s.name("none"), 0, -1))
	}}}
}

func createPartitionsCases() []testCase {
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
	return []testCase{{name: "counts", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 2)
		checked := of(topic, 4)
		checked.ValidateOnly = true
		s.ask("only checked", 1, checked)
		for name, r := range map[string]*kmsg.CreatePartitionsRequest{"fewer": of(topic, 1), "as many": of(topic, 2), "none": of(topic, 0), "assigned": of(topic, 3, []int32{1, 2, 3}),
			"assigned to a stranger": of(topic, 3, []int32{1, 2, 99}), "assigned too few": of(topic, 5, []int32{1, 2, 3}), "no such topic": of(s.name("none"), 3)} {
			r.ValidateOnly = true
			s.ask(name+", only checked", 1, r)
		}
		s.record("partitions after all the checking", fmt.Sprint(len(s.describe(1, topic).Partitions)))
		s.ask("more", 1, of(topic, 3))
		s.ask("as many", 1, of(topic, 3))
		s.ask("fewer", 1, of(topic, 1))
		s.ask("none", 1, of(topic, 0))
		s.ask("assigned", 1, of(topic, 4, []int32{1, 2, 3}))
		s.ask("assigned too few", 1, of(topic, 6, []int32{1, 2, 3}))
		s.ask("assigned to one twice", 1, of(topic, 5, []int32{1, 1, 2}))
		s.ask("assigned to a stranger", 1, of(topic, 5, []int32{1, 2, 99}))
		s.ask("assigned another number", 1, of(topic, 5, []int32{1}))
		s.ask("no such topic", 1, of(s.name("none"), 3))
		twice := of(topic, 9)
		twice.Topics = append(twice.Topics, twice.Topics[0])
		s.ask("named twice", 1, twice)
	}}, {name: "internal topics", play: func(s *scene) {
		s.coordinator(s.name("g")) // there is __consumer_offsets now
		for _, topic := range []string{"__consumer_offsets", "__cluster_metadata"} {
			checked := of(topic, 60)
			checked.ValidateOnly = true
			s.ask("only checked: "+topic, 1, checked)
		}
	}}}
}

func describeTopicPartitionsCases() []testCase {
	of := func(limit int32, names ...string) *kmsg.DescribeTopicPartitionsRequest {
		req := kmsg.NewPtrDescribeTopicPartitionsRequest()
		req.ResponsePartitionLimit = limit
		for _, n := range names {
			req.Topics = append(req.Topics, kmsg.DescribeTopicPartitionsRequestTopic{Topic: n})
		}
		return req
	}
	return []testCase{{name: "pages", play: func(s *scene) {
		a, b := s.name("a"), s.name("b")
		s.topic(a, 3)
		s.topic(b, 2)
		s.ask("both", 1, of(100, b, a))
		s.ask("two partitions", 1, of(2, a, b))
		next := of(2, a, b)
		next.Cursor = &kmsg.DescribeTopicPartitionsRequestCursor{Topic: a, Partition: 2}
		s.ask("two more", 1, next)
		s.ask("unknown", 1, of(100, s.name("none")))
		s.ask("no limit", 1, of(0, a))
		s.ask("a limit of -1", 1, of(-1, a))
		s.ask("a topic twice", 1, of(100, a, a))
		s.ask("a bad name", 1, of(100, "a b"))
		s.ask("one that is and one that is not", 1, of(100, s.name("none"), b))
		for step, c := range map[string]kmsg.DescribeTopicPartitionsRequestCursor{
			"from the second topic":          {Topic: b},
			"from beyond the last partition": {Topic: a, Partition: 3},
			"from far beyond":                {Topic: a, Partition: 100},
			"from partition -1":              {Topic: a, Partition: -1},
			"from a topic between":           {Topic: a + "a"},
			"from behind all":                {Topic: b + "b"},
			"from a topic that is not there": {Topic: s.name("none"), Partition: 1},
		} {
			req := of(100, a, b)
			req.Cursor = &c
			s.ask(step, 1, req)
		}
		s.ask("one partition", 1, of(1, a))
		s.ask("exactly all", 1, of(5, a, b))
		s.ask("exactly the first", 1, of(3, a, b))
	}}}
}
