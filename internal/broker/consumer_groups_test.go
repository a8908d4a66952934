package broker

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

func enterReq(id, member string, topics ...string) *kmsg.ConsumerGroupHeartbeatRequest {
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Group, req.MemberID, req.RebalanceTimeoutMillis = id, member, 600_000
	req.SubscribedTopicNames, req.Topics = topics, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	return req
}

func TestConsumerGroupHeartbeatAndDescribe(t *testing.T) {
	eachWay(t, func(t *testing.T, fl *fleet, c *client, id string) {
		topic := fl.topic("t", 2)
		for v := int16(0); v <= 1; v++ {
			t.Run(fmt.Sprint("v", v), func(t *testing.T) { consumerGroup(t, c, topic, idOf(1, fmt.Sprint("consumers", v, "-")), v) })
		}
	})
}

func consumerGroup(t *testing.T, c *client, topic *metadata.Topic, id string, v int16) {
	member := "me"
	join := enterReq(id, member, "t")
	if v == 0 {
		join.MemberID = ""
	}
	r := ask[*kmsg.ConsumerGroupHeartbeatResponse](c, v, join)
	if r.ErrorCode != 0 || r.MemberID == nil || *r.MemberID == "" || r.MemberEpoch != 2 || r.HeartbeatIntervalMillis != 5000 || r.Assignment == nil ||
		len(r.Assignment.Topics) != 1 || r.Assignment.Topics[0].TopicID != topic.ID || len(r.Assignment.Topics[0].Partitions) != 2 {
		t.Fatalf("%+v", r)
	}
	member = *r.MemberID
	beat := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	beat.Group, beat.MemberID, beat.MemberEpoch = id, member, r.MemberEpoch
	if r := ask[*kmsg.ConsumerGroupHeartbeatResponse](c, v, beat); r.ErrorCode != 0 || r.Assignment != nil || r.MemberEpoch != 2 {
		t.Errorf("%+v", r)
	}
	d := kmsg.NewPtrConsumerGroupDescribeRequest()
	d.Groups, d.IncludeAuthorizedOperations = []string{id, idOf(1, "none-")}, true
	resp := ask[*kmsg.ConsumerGroupDescribeResponse](c, v, d)
	g, none := resp.Groups[0], resp.Groups[1]
	if g.ErrorCode != 0 || g.State != "Stable" || g.Epoch != 2 || g.AssignmentEpoch != 2 || g.AssignorName != "uniform" || g.AuthorizedOperations != groupOperations ||
		len(g.Members) != 1 || none.ErrorCode != 69 || none.ErrorMessage == nil {
		t.Fatalf("%+v", resp)
	}
	m := g.Members[0]
	if m.MemberID != member || m.ClientID == "" || m.ClientHost == "" || len(m.SubscribedTopics) != 1 || m.Assignment.TopicPartitions[0].Topic != "t" ||
		len(m.TargetAssignment.TopicPartitions[0].Partitions) != 2 || m.MemberType != map[int16]int8{0: -1, 1: 1}[v] {
		t.Errorf("%+v", m)
	}
	odd, bad := "odd", "("
	for _, w := range []struct {
		change func(*kmsg.ConsumerGroupHeartbeatRequest)
		code   int16
		from   int16
	}{
		{func(q *kmsg.ConsumerGroupHeartbeatRequest) { q.MemberEpoch = 9 }, 110, 0},
		{func(q *kmsg.ConsumerGroupHeartbeatRequest) { q.MemberID = "nobody" }, 25, 0},
		{func(q *kmsg.ConsumerGroupHeartbeatRequest) { q.Group = idOf(1, "none-") }, 69, 0},
		{func(q *kmsg.ConsumerGroupHeartbeatRequest) { q.MemberEpoch = -7 }, 42, 0},
		{func(q *kmsg.ConsumerGroupHeartbeatRequest) { q.ServerAssignor = &odd }, 112, 0},
		{func(q *kmsg.ConsumerGroupHeartbeatRequest) { q.SubscribedTopicRegex = &bad }, 128, 1},
	} {
		q := kmsg.NewPtrConsumerGroupHeartbeatRequest()
		*q = *beat
		w.change(q)
		if v < w.from {
			continue
		}
		if r := ask[*kmsg.ConsumerGroupHeartbeatResponse](c, v, q); r.ErrorCode != w.code || r.ErrorMessage == nil {
			t.Errorf("%+v, want %d", r, w.code)
		}
	}
	beat.MemberEpoch = -1
	if r := ask[*kmsg.ConsumerGroupHeartbeatResponse](c, v, beat); r.ErrorCode != 0 || r.MemberEpoch != -1 {
		t.Errorf("%+v", r)
	}
}
