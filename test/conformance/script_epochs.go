package conformance

import (
	"fmt"
	"math"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func epochEnds(topic string, partition, current, epoch int32) *kmsg.OffsetForLeaderEpochRequest {
	req := kmsg.NewPtrOffsetForLeaderEpochRequest()
	req.ReplicaID = -1
	req.Topics = []kmsg.OffsetForLeaderEpochRequestTopic{{Topic: topic, Partitions: []kmsg.OffsetForLeaderEpochRequestTopicPartition{{Partition: partition, CurrentLeaderEpoch: current, LeaderEpoch: epoch}}}}
	return req
}

func epochCases() []testCase {
	of := epochEnds
	return []testCase{
		{name: "epochs", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			leader, epoch := s.leader(topic, 0)
			s.ask("the current one, empty", leader, of(topic, 0, -1, epoch))
			s.fill(topic, batch(nil, "a", "b"))
			s.ask("the current one", leader, of(topic, 0, epoch, epoch))
			s.ask("a future one", leader, of(topic, 0, epoch, epoch+7))
			s.ask("the last there can be", leader, of(topic, 0, epoch, math.MaxInt32))
			s.ask("-1", leader, of(topic, 0, epoch, -1))
			s.ask("-2", leader, of(topic, 0, epoch, -2))
			s.ask("from the future", leader, of(topic, 0, epoch+7, epoch))
			s.ask("current -2", leader, of(topic, 0, -2, epoch))
			s.ask("no such partition", leader, of(topic, 4, -1, epoch))
			s.ask("partition -1", leader, of(topic, -1, -1, epoch))
			s.ask("no such topic", leader, of(s.name("none"), 0, -1, epoch))
			s.ask("a bad name", leader, of("a b", 0, -1, epoch))
			s.ask("a follower", leader%3+1, of(topic, 0, -1, epoch))
			s.ask("a follower, from the future", leader%3+1, of(topic, 0, epoch+7, epoch))
			twice := of(topic, 0, -1, epoch)
			twice.Topics[0].Partitions = append(twice.Topics[0].Partitions, twice.Topics[0].Partitions[0])
			s.ask("a partition twice", leader, twice)
			bare := of(topic, 0, -1, epoch)
			bare.Topics[0].Partitions = nil
			s.ask("no partitions", leader, bare)
			bare.Topics = nil
			s.ask("nothing", leader, bare)
			for _, id := range []int32{-2, 0, 1, 2, 99} {
				replica := of(topic, 0, -1, epoch)
				replica.ReplicaID = id
				s.ask(fmt.Sprint("as replica ", id), leader, replica)
			}
		}},
		{name: "past epochs", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			_, first := s.leader(topic, 0)
			s.fill(topic, batch(nil, "a", "b"))
			leader, second := s.succeeded(topic)
			// Epochs are told by name, since their numbers differ.
			end := func(step string, current, epoch int32) {
				req := of(topic, 0, current, epoch)
				req.SetVersion(s.v)
				p := s.must(leader, req).(*kmsg.OffsetForLeaderEpochResponse).Topics[0].Partitions[0]
				name := fmt.Sprint(p.LeaderEpoch)
				switch p.LeaderEpoch {
				case first:
					name = "the first"
				case second:
					name = "the second"
				}
				s.record(step, fmt.Sprintf("error %d: epoch %s ends at %d", p.ErrorCode, name, p.EndOffset))
			}
			end("the first, nothing written since", second, first)
			end("the second, nothing written in it", second, second)
			end("as if the first were current", first, first)
			end("as if there were a third", second+3, first)
			s.fill(topic, batch(nil, "c"))
			end("the first", -1, first)
			end("the second", -1, second)
			end("one before the second", -1, second-1)
			end("a third", -1, second+3)
			end("-1", -1, -1)
			s.deleteTo(topic, 1)
			end("the first, in part deleted", -1, first)
			s.deleteTo(topic, 2)
			end("the first, deleted", -1, first)
			s.deleteTo(topic, 3)
			end("the first, everything deleted", -1, first)
			end("the second, everything deleted", -1, second)
			s.ask("a follower, as if the first were current", leader%3+1, of(topic, 0, first, first))
		}},
		{name: "nothing written", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1)
			_, first := s.leader(topic, 0)
			leader, second := s.succeeded(topic)
			s.ask("the first", leader, of(topic, 0, second, first))
			s.ask("the second", leader, of(topic, 0, second, second))
			s.ask("a third", leader, of(topic, 0, second, second+3))
		}},
	}
}

// succeeded has another broker lead partition 0 of a topic, and returns it and its epoch once every broker knows.
func (s *scene) succeeded(topic string) (node, epoch int32) {
	was, _ := s.leader(topic, 0)
	next := was%3 + 1
	s.moveTo(topic, 0, next, was, next%3+1)
	s.prefer(topic, 0)
	for b := int32(1); b <= 3; b++ {
		until(func() bool {
			p := s.describe(b, topic).Partitions[0]
			epoch = p.LeaderEpoch
			return p.Leader == next && p.ErrorCode == 0 && (b == next && s.epochCode(b, topic, epoch) == 0 || b != next && s.follows(b, topic, epoch))
		})
	}
	return next, epoch
}

// epochCode is the error that a broker answers who takes an epoch for current.
func (s *scene) epochCode(broker int32, topic string, current int32) int16 {
	req := epochEnds(topic, 0, current, current)
	req.SetVersion(2)
	return s.must(broker, req).(*kmsg.OffsetForLeaderEpochResponse).Topics[0].Partitions[0].ErrorCode
}

// follows says whether a broker's replica does not lead, and knows that this is the epoch.
func (s *scene) follows(broker int32, topic string, epoch int32) bool {
	return s.epochCode(broker, topic, epoch) == 6 && s.epochCode(broker, topic, epoch+1) == 75
}

// deleteTo deletes the records of partition 0 of a topic below an offset.
func (s *scene) deleteTo(topic string, offset int64) {
	leader, _ := s.leader(topic, 0)
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.Version, req.TimeoutMillis = 1, timeout
	req.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: 0, Offset: offset}}}}
	if p := s.must(leader, req).(*kmsg.DeleteRecordsResponse).Topics[0].Partitions[0]; p.ErrorCode != 0 {
		panic(fmt.Errorf("preparing: deleting records of %s: error %d", topic, p.ErrorCode))
	}
}
