package broker

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

// Who asks for a topic made a moment ago, on a node that has not heard of its leaders yet, gets them; where none come the wait
// is bounded, and is not repeated.
func TestMetadataOfNewPartitionsWaitsForLeadersOnce(t *testing.T) {
	f := newFleet(t, 2, func(_ int32, c *Config) { c.AutoCreateWait = time.Minute })
	f.edit(func() { f.leaderless = true })
	f.topic("new", 2)
	describe := kmsg.NewPtrDescribeTopicPartitionsRequest()
	describe.Topics = append(describe.Topics, kmsg.DescribeTopicPartitionsRequestTopic{Topic: "new"})
	describe.ResponsePartitionLimit = 10
	all := metadataReq(false)
	all.Topics = nil
	c, d, e := f.nodes[1].dial(t), f.nodes[1].dial(t), f.nodes[2].dial(t)
	named := metadataReq(false, "new")
	x, y, z := c.send(9, named), d.send(0, describe), e.send(9, all)
	for i := range int32(2) {
		f.lead(f.part("new", i), 1, 2)
	}
	for _, p := range append(recv[*kmsg.MetadataResponse](c, x, named).Topics[0].Partitions, recv[*kmsg.MetadataResponse](e, z, all).Topics[0].Partitions...) {
		if p.ErrorCode != 0 || p.Leader != 1 {
			t.Errorf("%+v", p)
		}
	}
	for _, p := range recv[*kmsg.DescribeTopicPartitionsResponse](d, y, describe).Topics[0].Partitions {
		if p.ErrorCode != 0 || p.LeaderID != 1 {
			t.Errorf("%+v", p)
		}
	}

	// A leader that was lost is waited for by nobody: the bound of such a wait would be noticed.
	f.lead(f.part("new", 0), -1, 2)
	if p := ask[*kmsg.MetadataResponse](c, 9, named).Topics[0].Partitions[0]; p.ErrorCode != 5 {
		t.Errorf("%+v", p)
	}
}

func TestLeaderlessPartitionsAreWaitedForOnce(t *testing.T) {
	f := newFleet(t, 1)
	f.edit(func() { f.leaderless = true })
	f.topic("t", 3)
	img := f.nodes[1].Image()
	var groups []uint64
	for _, p := range img.Topics["t"].Partitions {
		groups = append(groups, p.Group)
	}
	var fr fresh
	now := time.Unix(1000, 0)
	const most = 2 * time.Second
	if worth, until := fr.wait(img, groups[:2], now, most); len(worth) != 2 || !until.Equal(now.Add(most)) {
		t.Errorf("at first: %v until %v", worth, until)
	}
	if worth, until := fr.wait(img, groups, now.Add(time.Second), most); len(worth) != 3 || !until.Equal(now.Add(3*time.Second)) {
		t.Errorf("a second later, with one more: %v until %v", worth, until)
	}
	if worth, _ := fr.wait(img, groups[:2], now.Add(most), most); len(worth) != 0 {
		t.Errorf("waited for again: %v", worth)
	}
	if worth, _ := fr.wait(img, groups, now.Add(time.Hour), most); len(worth) != 0 {
		t.Errorf("an hour later: %v", worth)
	}
	if gone := fr.known(f.nodes[1].Image()); len(gone) != 3 {
		t.Errorf("%d groups are known", len(gone))
	}
	img = &metadata.Image{}
	if gone := fr.known(img); len(gone) != 0 {
		t.Errorf("%d groups of deleted topics are remembered", len(gone))
	}
}
