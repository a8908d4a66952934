package broker

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// What one OffsetFetch may make the node hold is bounded: all offsets of a group are counted before they are looked up, and an answer
// that is a thousand times as long as its question is not given.
func TestOffsetFetchIsBounded(t *testing.T) {
	f := newGroupFleet(t, 1)
	f.topic("t", 1)
	c := f.nodes[1].dial(t)
	findCoordinator(c, 4, "g")
	long := strings.Repeat("m", 4000)
	commit := func(topics ...string) {
		t.Helper()
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation = "g", -1
		for i, name := range topics {
			p := kmsg.NewOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset, p.Metadata = 0, int64(i), &long
			req.Topics = append(req.Topics, kmsg.OffsetCommitRequestTopic{Topic: name, Partitions: []kmsg.OffsetCommitRequestTopicPartition{p}})
		}
		until(t, "committed", func() bool { // its coordinator may have to load first
			r := ask[*kmsg.OffsetCommitResponse](c, 8, req)
			return r.Topics[0].Partitions[0].ErrorCode == 0
		})
	}
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprint("many-", i))
		f.topic(many[i], 1)
	}
	commit(many...)
	b := f.nodes[1].b
	if n := b.cfg.Groups.OffsetBytes("g"); n < 40*4000 {
		t.Fatalf("%d bytes are counted for all offsets", n)
	}
	named := func(times int) *kmsg.OffsetFetchRequest {
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Group, g.Topics = "g", []kmsg.OffsetFetchRequestGroupTopic{{Topic: "many-1", Partitions: make([]int32, times)}}
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Groups = []kmsg.OffsetFetchRequestGroup{g}
		return req
	}
	if r := ask[*kmsg.OffsetFetchResponse](c, 8, named(10)); len(r.Groups[0].Topics[0].Partitions) != 10 {
		t.Errorf("%+v", r)
	}
	greedy := f.nodes[1].dial(t)
	greedy.send(8, named(70_000))
	greedy.closed()
	greedy = f.nodes[1].dial(t)
	all := kmsg.NewPtrOffsetFetchRequest()
	for range 2000 {
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Group = "g"
		all.Groups = append(all.Groups, g)
	}
	greedy.send(8, all)
	greedy.closed()
	all.Groups = all.Groups[:1]
	if r := ask[*kmsg.OffsetFetchResponse](c, 8, all); len(r.Groups[0].Topics) != 40 {
		t.Errorf("%d topics", len(r.Groups[0].Topics))
	}
	until(t, "all bytes are given back", func() bool { return b.answers.inUse() == 0 }) // which is when an answer is written, not when it is read
}

// A group that is named a thousand times is described once, as a topic is: an answer does not grow with that.
func TestGroupsNamedTwiceAreDescribedOnce(t *testing.T) {
	f := newGroupFleet(t, 1)
	f.topic("t", 1)
	c := f.nodes[1].dial(t)
	findCoordinator(c, 4, "g", "k")
	joined(c, "g")
	groups := kmsg.NewPtrDescribeGroupsRequest()
	groups.Groups = slices.Repeat([]string{"g"}, 1000)
	if r := ask[*kmsg.DescribeGroupsResponse](c, 6, groups); len(r.Groups) != 1 || len(r.Groups[0].Members) != 1 {
		t.Errorf("%d groups", len(r.Groups))
	}
	consumers := kmsg.NewPtrConsumerGroupDescribeRequest()
	consumers.Groups = []string{"k", "g", "k"}
	if r := ask[*kmsg.ConsumerGroupDescribeResponse](c, 1, consumers); len(r.Groups) != 2 || r.Groups[0].Group != "k" || r.Groups[1].Group != "g" {
		t.Errorf("%+v", r.Groups)
	}
}

// What one DescribeConfigs may make the node hold is bounded: a resource is named by few bytes, and its configs are many.
func TestDescribeConfigsIsBounded(t *testing.T) {
	f := newFleet(t, 1, func(_ int32, c *Config) { c.MaxAnswerBytes = 2 << 20 })
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.IncludeDocumentation, req.IncludeSynonyms = true, true
	of := func(n int) *kmsg.DescribeConfigsRequest {
		req.Resources = slices.Repeat([]kmsg.DescribeConfigsRequestResource{{ResourceType: kmsg.ConfigResourceTypeBroker, ResourceName: "1"}}, n)
		return req
	}
	greedy := f.nodes[1].dial(t)
	greedy.send(4, of(1000))
	greedy.closed()
	if r := ask[*kmsg.DescribeConfigsResponse](f.nodes[1].dial(t), 4, of(3)); len(r.Resources) != 3 || len(r.Resources[2].Configs) < 50 {
		t.Errorf("%+v", r)
	}
	until(t, "all bytes are given back", func() bool { return f.nodes[1].b.answers.inUse() == 0 })
}
