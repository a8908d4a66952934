package conformance

import (
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/record"
)

// dataAPIs asks what producers and consumers ask.
func dataAPIs() []api {
	return []api{
		{key: 0, min: 3, max: 13, cases: produceCases()},
		{key: 1, min: 4, max: 18, cases: fetchCases()},
		{key: 2, min: 1, max: 11, cases: listOffsetsCases()},
		{key: 22, min: 0, max: 5, cases: initProducerIDCases()},
		{key: 23, min: 2, max: 4, cases: epochCases()},
	}
}

func idempotent(id int64, epoch int16, seq int32) func(*record.Builder) {
	return func(b *record.Builder) { b.ProducerID, b.ProducerEpoch, b.BaseSequence = id, epoch, seq }
}

func produceCases() []testCase {
	// one plays produces to partition 0 of a new topic, each a step.
	one := func(configs []string, steps ...func(s *scene, topic string) (step string, req *kmsg.ProduceRequest)) func(s *scene) {
		return func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1, configs...)
			leader, _ := s.leader(topic, 0)
			for _, step := range steps {
				name, req := step(s, topic)
				s.ask(name, leader, req)
			}
		}
	}
	sends := func(name string, acks int16, build func() []byte) func(s *scene, topic string) (string, *kmsg.ProduceRequest) {
		return func(s *scene, topic string) (string, *kmsg.ProduceRequest) {
			return name, s.produceTo(topic, 0, acks, build())
		}
	}
	plain := func() []byte { return batch(nil, "a", "b") }
	id := func(epoch int16, seq int32, values ...string) func() []byte {
		return func() []byte { return batch(idempotent(4711, epoch, seq), values...) }
	}
	return []testCase{
		{name: "acknowledged", play: one(nil, sends("all", -1, plain), sends("one", 1, plain))},
		{name: "acks that do not exist", play: one(nil, sends("2", 2, plain), sends("-2", -2, plain))},
		{name: "damaged", play: one(nil, sends("wrong CRC", -1, func() []byte {
			b := plain()
			b[len(b)-1] ^= 1
			return b
		}), sends("afterwards", -1, plain))},
		{name: "old magic", play: one(nil, sends("1", -1, func() []byte {
			b := plain()
			b[16] = 1
			return b
		}))},
		{name: "two batches", play: one(nil, sends("at once", -1, func() []byte { return append(plain(), plain()...) }))},
		{name: "no records", play: one(nil, sends("empty", -1, func() []byte { return []byte{} }))},
		{name: "half a batch", play: one(nil, sends("cut", -1, func() []byte { b := plain(); return b[:len(b)-4] }))},
		{name: "too large", play: one([]string{"max.message.bytes", "200"}, sends("300 bytes", -1, func() []byte { return batch(nil, string(make([]byte, 300))) }), sends("small", -1, plain))},
		{name: "time", play: one([]string{"message.timestamp.after.max.ms", "1000"}, sends("two hours ahead", -1, func() []byte {
			b := record.NewBuilder()
			b.Add(time.Now().Add(2*time.Hour).UnixMilli(), nil, []byte("later"))
			out, _ := b.Build()
			return out
		}))},
		{name: "log append time", play: one([]string{"message.timestamp.type", "LogAppendTime"}, sends("all", -1, plain))},
		{name: "codecs", play: one(nil, sends("gzip", -1, codec(record.Gzip)), sends("snappy", -1, codec(record.Snappy)), sends("lz4", -1, codec(record.LZ4)))},
		{name: "zstd", play: one(nil, sends("zstd", -1, codec(record.Zstd)))},
		{name: "idempotent", play: one(nil, sends("first", -1, id(0, 0, "a", "b")), sends("second", -1, id(0, 2, "c")), sends("second again", -1, id(0, 2, "c")),
			sends("first again", -1, id(0, 0, "a", "b")), sends("a gap", -1, id(0, 9, "x")), sends("third", -1, id(0, 3, "d")))},
		{name: "epochs", play: one(nil, sends("first", -1, id(5, 0, "a")), sends("lower epoch", -1, id(4, 1, "x")), sends("higher, not from 0", -1, id(6, 1, "x")),
			sends("higher, from 0", -1, id(6, 0, "b")), sends("the old one again", -1, id(5, 1, "x")))},
		{name: "unknown producer in the middle", play: one(nil, sends("sequence 100", -1, id(0, 100, "a")), sends("101", -1, id(0, 101, "b")))},
		{name: "old duplicates", play: one(nil, sends("0", -1, id(0, 0, "a")), sends("1", -1, id(0, 1, "a")), sends("2", -1, id(0, 2, "a")), sends("3", -1, id(0, 3, "a")),
			sends("4", -1, id(0, 4, "a")), sends("5", -1, id(0, 5, "a")), sends("0 again", -1, id(0, 0, "a")), sends("1 again", -1, id(0, 1, "a")))},
		{name: "elsewhere", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			leader, _ := s.leader(topic, 0)
			s.ask("no such partition", leader, s.produceTo(topic, 5, -1, plain()))
			s.ask("negative partition", leader, s.produceTo(topic, -1, -1, plain()))
			req := s.produceTo(s.name("none"), 0, -1, plain())
			req.Topics[0].TopicID = [16]byte{1, 2, 3}
			s.ask("no such topic", leader, req)
			req = s.produceTo(topic, 0, -1, plain())
			req.Topics = nil
			s.ask("nothing", leader, req)
		}},
	}
}

func codec(c record.Codec) func() []byte {
	return func() []byte { return batch(func(b *record.Builder) { b.Codec = c }, "a", "b", "c") }
}

// fetchOf makes a request of one partition, without a session.
func (s *scene) fetchOf(topic string, partition int32, offset int64) *kmsg.FetchRequest {
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes, p.CurrentLeaderEpoch, p.LastFetchedEpoch = partition, offset, 1<<20, -1, -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID, t.Partitions = topic, s.topics[topic], append(t.Partitions, p)
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID, req.MaxBytes, req.SessionEpoch, req.Topics = -1, 1<<20, -1, append(req.Topics, t)
	req.MaxWaitMillis = 0
	return req
}

func fetchCases() []testCase {
	filled := func(play func(s *scene, topic string, leader, epoch int32)) func(s *scene) {
		return func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			s.fill(topic, batch(nil, "a", "b"), batch(nil, "c"), batch(nil, "d", "e"))
			leader, epoch := s.leader(topic, 0)
			play(s, topic, leader, epoch)
		}
	}
	return []testCase{
		{name: "offsets", play: filled(func(s *scene, topic string, leader, _ int32) {
			for _, o := range []struct {
				name string
				at   int64
			}{{"from the start", 0}, {"within a batch", 1}, {"the last", 4}, {"at the end", 5}, {"beyond the end", 6}, {"far beyond", 1 << 40}, {"negative", -1}} {
				s.ask(o.name, leader, s.fetchOf(topic, 0, o.at))
			}
		})},
		{name: "limits", play: filled(func(s *scene, topic string, leader, _ int32) {
			req := s.fetchOf(topic, 0, 0)
			req.Topics[0].Partitions[0].PartitionMaxBytes = 1
			s.ask("a byte of the partition", leader, req)
			req = s.fetchOf(topic, 0, 0)
			req.MaxBytes = 0
			s.ask("no bytes at all", leader, req)
			req = s.fetchOf(topic, 0, 0)
			req.IsolationLevel = 1
			s.ask("committed only", leader, req)
		})},
		{name: "after records were deleted", play: filled(func(s *scene, topic string, leader, _ int32) {
			del := kmsg.NewPtrDeleteRecordsRequest()
			del.Version, del.TimeoutMillis = 1, 15_000
			del.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: 0, Offset: 3}}}}
			s.must(leader, del)
			s.ask("below the start", leader, s.fetchOf(topic, 0, 0))
			s.ask("at the start", leader, s.fetchOf(topic, 0, 3))
		})},
		{name: "leader epochs", from: 9, play: filled(func(s *scene, topic string, leader, epoch int32) {
			for name, e := range map[string]int32{"the right one": epoch, "a future one": epoch + 5} {
				req := s.fetchOf(topic, 0, 0)
				req.Topics[0].Partitions[0].CurrentLeaderEpoch = e
				s.ask(name, leader, req)
			}
		})},
		{name: "elsewhere", play: filled(func(s *scene, topic string, leader, _ int32) {
			s.ask("no such partition", leader, s.fetchOf(topic, 7, 0))
			req := s.fetchOf(s.name("none"), 0, 0)
			req.Topics[0].TopicID = [16]byte{1, 2, 3}
			s.ask("no such topic", leader, req)
			req = s.fetchOf(topic, 0, 0)
			req.Topics = nil
			s.ask("nothing", leader, req)
		})},
		{name: "sessions", from: 7, play: filled(func(s *scene, topic string, leader, _ int32) {
			req := s.fetchOf(topic, 0, 0)
			req.SessionEpoch = 0
			resp, ok := s.ask("a new one", leader, req).(*kmsg.FetchResponse)
			if !ok {
				return
			}
			next := s.fetchOf(topic, 0, 5)
			next.SessionID, next.SessionEpoch = resp.SessionID, 1
			s.ask("nothing new", leader, next)
			again := s.fetchOf(topic, 0, 0)
			again.SessionID, again.SessionEpoch = resp.SessionID, 7
			s.ask("a wrong epoch", leader, again)
			last := s.fetchOf(topic, 0, 0)
			last.SessionID, last.SessionEpoch = resp.SessionID, -1
			s.ask("its end", leader, last)
			unknown := s.fetchOf(topic, 0, 0)
			unknown.SessionID, unknown.SessionEpoch = 123456789, 3
			s.ask("an unknown one", leader, unknown)
		})},
	}
}

func (s *scene) listOf(topic string, partition int32, timestamp int64) *kmsg.ListOffsetsRequest {
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Partition, p.Timestamp, p.CurrentLeaderEpoch = partition, timestamp, -1
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic, t.Partitions = topic, append(t.Partitions, p)
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID, req.TimeoutMillis, req.Topics = -1, 10_000, append(req.Topics, t)
	return req
}

// timed is a batch whose records lie a second apart from time on.
func timed(at int64, values ...string) []byte {
	b := record.NewBuilder()
	for i, v := range values {
		b.Add(at+int64(i)*1000, nil, []byte(v))
	}
	out, err := b.Build()
	if err != nil {
		panic(err)
	}
	return out
}

func listOffsetsCases() []testCase {
	specials := []struct {
		name string
		at   int64
	}{{"latest", -1}, {"earliest", -2}, {"max timestamp", -3}, {"earliest local", -4}, {"latest tiered", -5}, {"earliest pending upload", -6}, {"unknown special", -7}}
	return []testCase{
		{name: "special times", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			leader, _ := s.leader(topic, 0)
			for _, x := range specials {
				s.ask(x.name+", empty", leader, s.listOf(topic, 0, x.at))
			}
			s.fill(topic, timed(1000, "a", "b", "c"), timed(10_000, "d", "e"))
			for _, x := range specials {
				s.ask(x.name, leader, s.listOf(topic, 0, x.at))
			}
			req := s.listOf(topic, 0, -1)
			req.IsolationLevel = 1
			s.ask("latest committed", leader, req)
		}},
		{name: "times", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			s.fill(topic, timed(1000, "a", "b", "c"), timed(10_000, "d", "e"))
			leader, _ := s.leader(topic, 0)
			for _, x := range []struct {
				name string
				at   int64
			}{{"0", 0}, {"the first", 1000}, {"between records", 1500}, {"within a batch", 3000}, {"between batches", 5000}, {"the last", 11_000}, {"past the last", 11_001}} {
				s.ask(x.name, leader, s.listOf(topic, 0, x.at))
			}
		}},
		{name: "elsewhere", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			leader, _ := s.leader(topic, 0)
			s.ask("no such partition", leader, s.listOf(topic, 9, -1))
			s.ask("no such topic", leader, s.listOf(s.name("none"), 0, -1))
			twice := s.listOf(topic, 0, -1)
			twice.Topics[0].Partitions = append(twice.Topics[0].Partitions, twice.Topics[0].Partitions[0])
			s.ask("the same twice", leader, twice)
			none := s.listOf(topic, 0, -1)
			none.Topics = nil
			s.ask("nothing", leader, none)
		}},
		{name: "leader epochs", from: 4, play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			leader, epoch := s.leader(topic, 0)
			req := s.listOf(topic, 0, -1)
			req.Topics[0].Partitions[0].CurrentLeaderEpoch = epoch
			s.ask("the right one", leader, req)
			req = s.listOf(topic, 0, -1)
			req.Topics[0].Partitions[0].CurrentLeaderEpoch = epoch + 3
			s.ask("a future one", leader, req)
		}},
	}
}

func initProducerIDCases() []testCase {
	return []testCase{
		{name: "idempotent", play: func(s *scene) {
			req := kmsg.NewPtrInitProducerIDRequest()
			req.TransactionTimeoutMillis = 60_000
			req.ProducerID, req.ProducerEpoch = -1, -1
			s.settled(req)
			s.ask("a new one", 1, req)
		}},
		{name: "one that the client has", from: 3, play: func(s *scene) {
			for name, x := range map[string]struct {
				id    int64
				epoch int16
			}{"id and epoch": {4000, 3}, "an id alone": {4000, -1}, "an epoch alone": {-1, 4}} {
				req := kmsg.NewPtrInitProducerIDRequest()
				req.TransactionTimeoutMillis = 60_000
				req.ProducerID, req.ProducerEpoch = x.id, x.epoch
				s.settled(req)
				s.ask(name, 1, req)
			}
		}},
	}
}

// settled waits until a broker answers other than 14: a coordinator that has just come up, or ids still on their way.
func (s *scene) settled(req *kmsg.InitProducerIDRequest) {
	req.SetVersion(s.v)
	for end := time.Now().Add(patience); time.Now().Before(end); pause() {
		if s.must(1, req).(*kmsg.InitProducerIDResponse).ErrorCode != 14 {
			return
		}
	}
}
