package broker

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
)

type fakeDir struct{ err error }

func (fakeDir) Path() string                     { return "/data" }
func (d fakeDir) Space() (uint64, uint64, error) { return 1000, 400, d.err }
func (p *adminPartition) Size() int64            { return 77 }
func (p *adminPartition) HighWatermark() int64   { return 5 }
func (p *adminPartition) Producers() []partition.ProducerState {
	return []partition.ProducerState{{ID: 9, Epoch: 2, LastSequence: 41, LastTime: 1234}}
}

func TestDescribeLogDirs(t *testing.T) {
	everyVersion(t, 35, func(t *testing.T, v int16) {
		c := newAdminCluster()
		c.edit(func(img *metadata.Image) {
			c.addTopic(img, "b", 2, 1)
			c.addTopic(img, "a", 1, 1)
			c.addTopic(img, "elsewhere", 1, 2)
		})
		c.parts["a/0"], c.parts["b/0"], c.parts["b/1"] = &adminPartition{}, &adminPartition{}, &adminPartition{}
		b := c.broker(t)
		b.cfg.DataDir = fakeDir{}
		req := kmsg.NewPtrDescribeLogDirsRequest()
		resp := callAdmin[*kmsg.DescribeLogDirsResponse](t, b, v, req)
		if len(resp.Dirs) != 1 || resp.Dirs[0].Dir != "/data" || len(resp.Dirs[0].Topics) != 2 {
			t.Fatalf("%+v", resp)
		}
		d := resp.Dirs[0]
		if d.Topics[0].Topic != "a" || len(d.Topics[1].Partitions) != 2 || d.Topics[1].Partitions[1].Size != 77 {
			t.Errorf("%+v", d.Topics)
		}
		if v >= 4 && (d.TotalBytes != 1000 || d.UsableBytes != 400) {
			t.Errorf("volume %d, %d", d.TotalBytes, d.UsableBytes)
		}
		req.Topics = []kmsg.DescribeLogDirsRequestTopic{{Topic: "b", Partitions: []int32{1, 7}}, {Topic: "elsewhere", Partitions: []int32{0}}, {Topic: "none", Partitions: []int32{0}}}
		resp = callAdmin[*kmsg.DescribeLogDirsResponse](t, b, v, req)
		if d := resp.Dirs[0]; len(d.Topics) != 1 || len(d.Topics[0].Partitions) != 1 || d.Topics[0].Partitions[0].Partition != 1 {
			t.Errorf("%+v", d.Topics)
		}
		req.Topics = []kmsg.DescribeLogDirsRequestTopic{{Topic: "b", Partitions: []int32{1, 1}}, {Topic: "a"}, {Topic: "b", Partitions: []int32{0}}}
		resp = callAdmin[*kmsg.DescribeLogDirsResponse](t, b, v, req)
		if d := resp.Dirs[0]; len(d.Topics) != 1 || len(d.Topics[0].Partitions) != 2 {
			t.Errorf("one named twice, and one without partitions: %+v", d.Topics)
		}
		b.cfg.DataDir = fakeDir{errors.New("no volume")}
		if d := callAdmin[*kmsg.DescribeLogDirsResponse](t, b, v, req).Dirs[0]; d.TotalBytes != -1 || d.UsableBytes != -1 {
			t.Errorf("a volume nobody knows: %d, %d", d.TotalBytes, d.UsableBytes)
		}
	})
}

func TestDescribeProducersOfAnyReplica(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) { c.addTopic(img, "a", 3, 1) })
	c.parts["a/0"], c.parts["a/1"] = &adminPartition{leader: true}, &adminPartition{}
	req := kmsg.NewPtrDescribeProducersRequest()
	req.Topics = []kmsg.DescribeProducersRequestTopic{{Topic: "a", Partitions: []int32{0, 1, 2, 3}}, {Topic: "none", Partitions: []int32{0}}, {Topic: "a b", Partitions: []int32{0}}}
	resp := callAdmin[*kmsg.DescribeProducersResponse](t, c.broker(t), 0, req)
	ps := resp.Topics[0].Partitions
	if len(ps) != 4 || len(ps[0].ActiveProducers) != 1 || ps[0].ActiveProducers[0].ProducerID != 9 || ps[0].ActiveProducers[0].LastSequence != 41 || ps[0].ActiveProducers[0].LastTimestamp != 1234 {
		t.Fatalf("%+v", ps)
	}
	for i, want := range []int16{0, 0, 6, 3} {
		if ps[i].ErrorCode != want || (ps[i].ErrorMessage == nil) != (want == 0) {
			t.Errorf("partition %d: code %d, want %d", i, ps[i].ErrorCode, want)
		}
	}
	if code := resp.Topics[1].Partitions[0].ErrorCode; code != 3 {
		t.Errorf("unknown topic: %d", code)
	}
	if code := resp.Topics[2].Partitions[0].ErrorCode; code != 17 {
		t.Errorf("a bad name: %d", code)
	}
}

// fakeQuorum is the metadata group's replica on this node.
type fakeQuorum struct{ err error }

func (q fakeQuorum) Status() multiraft.Status { return multiraft.Status{Commit: 10, IsLeader: true} }
func (q fakeQuorum) Progress(done func(uint64, []multiraft.Progress, error)) {
	go done(4, []multiraft.Progress{
		{Member: multiraft.Member{Replica: 1, Node: 1}, Match: 10, Active: true, Heard: time.UnixMilli(5000), CaughtUp: time.UnixMilli(4000)},
		{Member: multiraft.Member{Replica: 2, Node: 2}, Match: 8},
		{Member: multiraft.Member{Replica: 3, Node: 3}, Learner: true},
	}, q.err)
}

// A partition that is named twice is described twice, as in Kafka, and not a million times.
func TestDescribeProducersIsBounded(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) { c.addTopic(img, "a", 1, 1) })
	c.parts["a/0"] = &adminPartition{leader: true}
	b := c.broker(t)
	b.cfg.MaxAnswerBytes = 100 * producerBytes
	for n, ok := range map[int]bool{100: true, 10_000: false} {
		req := kmsg.NewPtrDescribeProducersRequest()
		req.Topics = []kmsg.DescribeProducersRequestTopic{{Topic: "a", Partitions: make([]int32, n)}}
		resp, err := handleDescribeProducers(b, t.Context(), &RequestContext{Key: 61}, req)
		if (err == nil) != ok {
			t.Errorf("%d: %v", n, err)
		}
		told := 0
		for _, p := range resp.(*kmsg.DescribeProducersResponse).Topics[0].Partitions {
			told += len(p.ActiveProducers)
		}
		if told > 100+lookups || ok && told != n {
			t.Errorf("%d: %d producers", n, told)
		}
	}
}

func TestDescribeQuorum(t *testing.T) {
	everyVersion(t, 55, func(t *testing.T, v int16) {
		c := newAdminCluster()
		c.leaders[metadata.MetadataGroup] = 1
		c.img.Nodes[2].Dir, c.img.Nodes[2].RaftAddr = uuid.UUID{7}, "host2:5001"
		b := c.broker(t)
		b.cfg.Quorum = func() Quorum { return fakeQuorum{} }
		ask := func(topic string, parts ...int32) *kmsg.DescribeQuorumResponse {
			req := kmsg.NewPtrDescribeQuorumRequest()
			rt := kmsg.DescribeQuorumRequestTopic{Topic: topic}
			for _, p := range parts {
				rt.Partitions = append(rt.Partitions, kmsg.DescribeQuorumRequestTopicPartition{Partition: p})
			}
			req.Topics = append(req.Topics, rt)
			return callAdmin[*kmsg.DescribeQuorumResponse](t, b, v, req)
		}
		resp := ask(metadata.MetadataTopic, 0)
		if resp.ErrorCode != 0 || len(resp.Topics) != 1 {
			t.Fatalf("%+v", resp)
		}
		p := resp.Topics[0].Partitions[0]
		if p.LeaderID != 1 || p.LeaderEpoch != 4 || p.HighWatermark != 11 || len(p.CurrentVoters) != 2 || len(p.Observers) != 1 ||
			p.CurrentVoters[1].LogEndOffset != 9 || p.Observers[0].LogEndOffset != -1 {
			t.Errorf("%+v", p)
		}
		if a, b := p.CurrentVoters[0], p.CurrentVoters[1]; v >= 1 && (a.LastFetchTimestamp != 5000 || a.LastCaughtUpTimestamp != 4000 || b.LastFetchTimestamp != -1 || b.LastCaughtUpTimestamp != -1) {
			t.Errorf("times: %+v %+v", a, b)
		}
		if v >= 2 && (len(resp.Nodes) != 2 || p.CurrentVoters[1].ReplicaDirectoryID != [16]byte{7} || resp.Nodes[1].Listeners[0].Host != "host2" || resp.Nodes[1].Listeners[0].Port != 5001) {
			t.Errorf("%+v %+v", p.CurrentVoters, resp.Nodes)
		}
		for _, r := range []*kmsg.DescribeQuorumResponse{ask("other", 0), ask(metadata.MetadataTopic, 1), ask(metadata.MetadataTopic, 0, 1)} {
			if r.ErrorCode != 0 || len(r.Topics) != 1 || r.Topics[0].Partitions[0].ErrorCode != 3 {
				t.Errorf("%+v", r)
			}
		}
		b.cfg.Quorum = func() Quorum { return fakeQuorum{err: &multiraft.NotLeaderError{LeaderNode: -1}} }
		if r := ask(metadata.MetadataTopic, 0); r.ErrorCode != 6 || len(r.Topics) != 0 {
			t.Errorf("not the leader: %+v", r)
		}
	})
}

func TestListConfigResources(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) {
		c.addTopic(img, "b", 1, 1)
		c.addTopic(img, "a", 1, 1)
		img.GroupConfigs = map[string]map[string]string{"h": {"consumer.session.timeout.ms": "50000"}, "g": {"consumer.session.timeout.ms": "50000"}}
	})
	b := c.broker(t)
	for name, test := range map[string]struct {
		v     int16
		types []int8
		want  int
		code  int16
	}{
		"v0 is client metrics": {0, nil, 0, 0}, "all": {1, nil, 7, 0}, "groups": {1, []int8{32}, 2, 0}, "topics": {1, []int8{2}, 2, 0}, "brokers": {1, []int8{4, 4}, 3, 0},
		"none of that type": {1, []int8{8, 16}, 0, 0}, "no such type": {1, []int8{2, 5}, 0, 35},
	} {
		req := kmsg.NewPtrListConfigResourcesRequest()
		req.ResourceTypes = test.types
		resp := callAdmin[*kmsg.ListConfigResourcesResponse](t, b, test.v, req)
		if len(resp.ConfigResources) != test.want || resp.ErrorCode != test.code {
			t.Errorf("%s: %+v", name, resp)
		}
		if test.want > 1 && resp.ConfigResources[0].Name > resp.ConfigResources[1].Name {
			t.Errorf("%s: not in order", name)
		}
	}
}
