package broker

import (
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

func topicsAsked(limit int32, cursor *kmsg.DescribeTopicPartitionsRequestCursor, names ...string) *kmsg.DescribeTopicPartitionsRequest {
	req := kmsg.NewPtrDescribeTopicPartitionsRequest()
	req.ResponsePartitionLimit, req.Cursor = limit, cursor
	for _, n := range names {
		req.Topics = append(req.Topics, kmsg.DescribeTopicPartitionsRequestTopic{Topic: n})
	}
	return req
}

// summary writes an answer as topic[:error]=first..last and the cursor.
func summary(resp *kmsg.DescribeTopicPartitionsResponse) string {
	var s string
	for _, t := range resp.Topics {
		s += *t.Topic
		if t.ErrorCode != 0 {
			s += fmt.Sprintf(":%d", t.ErrorCode)
		}
		if n := len(t.Partitions); n > 0 {
			s += fmt.Sprintf("=%d..%d", t.Partitions[0].Partition, t.Partitions[n-1].Partition)
		}
		s += " "
	}
	if c := resp.NextCursor; c != nil {
		s += fmt.Sprintf("next %s/%d", c.Topic, c.Partition)
	}
	return s
}

func TestDescribeTopicPartitionsPages(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) {
		c.addTopic(img, "b", 3, 1, 2)
		c.addTopic(img, "a", 2, 1)
		c.addTopic(img, "c", 1, 1)
	})
	b := c.broker(t)
	at := func(topic string, p int32) *kmsg.DescribeTopicPartitionsRequestCursor {
		return &kmsg.DescribeTopicPartitionsRequestCursor{Topic: topic, Partition: p}
	}
	for _, tc := range []struct {
		req  *kmsg.DescribeTopicPartitionsRequest
		want string
	}{
		{topicsAsked(2000, nil), "a=0..1 b=0..2 c=0..0 "},
		{topicsAsked(2000, nil, "c", "a", "c"), "a=0..1 c=0..0 "},
		{topicsAsked(2000, nil, "b", "zz", "aa"), "aa:3 b=0..2 zz:3 "},
		{topicsAsked(3, nil), "a=0..1 b=0..0 next b/1"},
		{topicsAsked(2, nil), "a=0..1 next b/0"},
		{topicsAsked(3, at("b", 1)), "b=1..2 c=0..0 "},
		{topicsAsked(1, at("b", 1)), "b=1..1 next b/2"},
		{topicsAsked(9, at("aa", 1)), "b=0..2 c=0..0 "}, // its topic is gone: the next, from its beginning
		{topicsAsked(9, at("b", 7), "b", "c"), "b c=0..0 "},
		{topicsAsked(9, at("z", 0)), ""},
		{topicsAsked(0, nil), "a=0..0 next a/1"},
		{topicsAsked(-5, nil), "a=0..0 next a/1"},
		{topicsAsked(9, at("a", -1), "a"), "a:42 "},
		{topicsAsked(9, at("b", 0), "a", "c"), "a:42 c:42 "}, // its topic is not one of those
		{topicsAsked(9, nil, "a b", ""), ":17 a b:17 "},
		{topicsAsked(9, nil, metadata.MetadataTopic), metadata.MetadataTopic + ":3 "},
		{topicsAsked(1, nil, "x", "y"), "x:3 next y/0"},
	} {
		resp := callAdmin[*kmsg.DescribeTopicPartitionsResponse](t, b, 0, tc.req)
		if got := summary(resp); got != tc.want {
			t.Errorf("limit %d cursor %v topics %v:\n got %s\nwant %s", tc.req.ResponsePartitionLimit, tc.req.Cursor, tc.req.Topics, got, tc.want)
		}
	}

	// Page by page every partition comes once.
	var seen []string
	var cursor *kmsg.DescribeTopicPartitionsRequestCursor
	for page := 0; ; page++ {
		if page > 10 {
			t.Fatal("pages do not end")
		}
		resp := callAdmin[*kmsg.DescribeTopicPartitionsResponse](t, b, 0, topicsAsked(1, cursor))
		for _, topic := range resp.Topics {
			for _, p := range topic.Partitions {
				seen = append(seen, fmt.Sprintf("%s/%d", *topic.Topic, p.Partition))
			}
		}
		if resp.NextCursor == nil {
			break
		}
		cursor = at(resp.NextCursor.Topic, resp.NextCursor.Partition)
	}
	if want := []string{"a/0", "a/1", "b/0", "b/1", "b/2", "c/0"}; !slices.Equal(seen, want) {
		t.Errorf("pages hold %v, want %v", seen, want)
	}
}

func TestDescribeTopicPartitionsLimitIsCapped(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) { c.addTopic(img, "big", maxDescribedPartitions+5, 1) })
	resp := callAdmin[*kmsg.DescribeTopicPartitionsResponse](t, c.broker(t), 0, topicsAsked(1<<30, nil))
	if got, want := summary(resp), fmt.Sprintf("big=0..%d next big/%d", maxDescribedPartitions-1, maxDescribedPartitions); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDescribeTopicPartitionsContent(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) {
		topic := c.addTopic(img, "a", 3, 1, 2, 3)
		topic.Internal = true
		c.leaders[topic.Partitions[0].Group] = 2
		c.leaders[topic.Partitions[1].Group] = 3 // dead: it must not be named
		delete(c.leaders, topic.Partitions[2].Group)
	})
	c.dead[3] = true
	b := c.broker(t)
	topic := callAdmin[*kmsg.DescribeTopicPartitionsResponse](t, b, 0, topicsAsked(10, nil)).Topics[0]
	if topic.TopicID != c.Image().Topics["a"].ID || !topic.IsInternal || topic.AuthorizedOperations != 3576 {
		t.Errorf("%+v", topic)
	}
	for i, want := range []struct {
		leader, epoch int32
		code          int16
	}{{2, 5, 0}, {-1, 5, 0}, {-1, -1, 0}} {
		p := topic.Partitions[i]
		if p.LeaderID != want.leader || p.LeaderEpoch != want.epoch || p.ErrorCode != want.code {
			t.Errorf("partition %d: leader %d epoch %d code %d, want %+v", i, p.LeaderID, p.LeaderEpoch, p.ErrorCode, want)
		}
		if !slices.Equal(p.Replicas, []int32{1, 2, 3}) || !slices.Equal(p.ISR, []int32{1, 2}) || !slices.Equal(p.OfflineReplicas, []int32{3}) {
			t.Errorf("partition %d: replicas %v ISR %v offline %v", i, p.Replicas, p.ISR, p.OfflineReplicas)
		}
	}
	topic = callAdmin[*kmsg.DescribeTopicPartitionsResponse](t, b, 0, topicsAsked(10, nil), ListenerConfig{OneAddress: true}).Topics[0]
	if p := topic.Partitions[0]; p.LeaderID != 1 || !slices.Equal(p.Replicas, []int32{1}) {
		t.Errorf("one-address mode: %+v", p)
	}
}
