package broker

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
)

func deleteRecords(topic string, parts ...[2]int64) kmsg.DeleteRecordsRequestTopic {
	t := kmsg.NewDeleteRecordsRequestTopic()
	t.Topic = topic
	for _, p := range parts {
		t.Partitions = append(t.Partitions, kmsg.DeleteRecordsRequestTopicPartition{Partition: int32(p[0]), Offset: p[1]})
	}
	return t
}

func TestDeleteRecords(t *testing.T) {
	everyVersion(t, 21, func(t *testing.T, v int16) {
		c := newAdminCluster()
		c.edit(func(img *metadata.Image) {
			c.addTopic(img, "a", 6, 1)
			c.addTopic(img, "__consumer_offsets", 1, 1).Internal = true
		})
		lead := &adminPartition{leader: true}
		c.parts["a/0"], c.parts["a/1"] = lead, &adminPartition{}
		c.parts["a/3"] = &adminPartition{leader: true, err: &partition.OffsetOutOfRangeError{Offset: 100, End: 50}}
		c.parts["a/4"] = &adminPartition{leader: true, err: &multiraft.NotLeaderError{LeaderNode: 2}}
		c.parts["a/5"] = &adminPartition{leader: true, err: multiraft.ErrUnknownOutcome}
		c.parts["__consumer_offsets/0"] = &adminPartition{leader: true}
		req := kmsg.NewPtrDeleteRecordsRequest()
		req.TimeoutMillis = 3_600_000
		req.Topics = append(req.Topics,
			deleteRecords("a", [2]int64{0, 42}, [2]int64{0, -1}, [2]int64{0, -2}, [2]int64{1, 1}, [2]int64{2, 1}, [2]int64{3, 100}, [2]int64{4, 1}, [2]int64{5, 1}, [2]int64{6, 1}, [2]int64{-1, 1}),
			deleteRecords("missing", [2]int64{0, 1}), deleteRecords("__consumer_offsets", [2]int64{0, 1}), deleteRecords(metadata.MetadataTopic, [2]int64{0, 1}))
		resp := callAdmin[*kmsg.DeleteRecordsResponse](t, c.broker(t), v, req)
		want := [][]struct {
			code int16
			low  int64
		}{
			{{0, 42}, {0, 7}, {1, -1}, {6, -1}, {6, -1}, {1, -1}, {6, -1}, {7, -1}, {3, -1}, {3, -1}},
			{{3, -1}}, {{17, -1}}, {{3, -1}},
		}
		for i, topic := range resp.Topics {
			if topic.Topic != req.Topics[i].Topic || len(topic.Partitions) != len(want[i]) {
				t.Fatalf("topic %d: %+v", i, topic)
			}
			for j, got := range topic.Partitions {
				if got.Partition != req.Topics[i].Partitions[j].Partition || got.ErrorCode != want[i][j].code || got.LowWatermark != want[i][j].low {
					t.Errorf("%s partition %d: %+v, want %+v", topic.Topic, j, got, want[i][j])
				}
			}
		}
		if len(lead.asked) != 2 || lead.asked[0] != 42 || lead.asked[1] != -1 {
			t.Errorf("the partition was asked %v", lead.asked)
		}
	})
}

// Any node takes it: what others lead goes to them, in one hop.
func TestDeleteRecordsGoesToTheLeadersNode(t *testing.T) {
	f := newFleet(t, 3)
	topic := f.topic("t", 6) // led by 1, 2, 3, 1, 2, 3
	for i := range 6 {
		c := f.nodes[int32(i)%3+1].dial(t)
		for range 5 {
			if p := firstProduced(ask[*kmsg.ProduceResponse](c, 9, produceReq(topic, int32(i), batch(t, "a", 1), -1))); p.ErrorCode != 0 {
				t.Fatalf("%+v", p)
			}
		}
	}
	for v := int16(0); v <= 2; v++ {
		for id, n := range f.nodes {
			req := kmsg.NewPtrDeleteRecordsRequest()
			req.TimeoutMillis = 60_000
			req.Topics = append(req.Topics,
				deleteRecords("t", [2]int64{5, 1}, [2]int64{0, 2}, [2]int64{4, -1}),
				deleteRecords("nope", [2]int64{0, 1}),
				deleteRecords("t", [2]int64{2, 3}, [2]int64{1, -2}))
			resp := ask[*kmsg.DeleteRecordsResponse](n.dial(t), v, req)
			want := [][][3]int64{{{5, 0, 1}, {0, 0, 2}, {4, 0, 5}}, {{0, 3, -1}}, {{2, 0, 3}, {1, 1, -1}}}
			for i, topic := range resp.Topics {
				for j, p := range topic.Partitions {
					if w := want[i][j]; int64(p.Partition) != w[0] || int64(p.ErrorCode) != w[1] || p.LowWatermark != w[2] {
						t.Errorf("v%d at node %d: topic %d: %+v, want %v", v, id, i, p, w)
					}
				}
			}
		}
	}
	// A dead leader is not asked; the client looks for the next one.
	f.edit(func() { f.dead[3] = true })
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 60_000
	req.Topics = append(req.Topics, deleteRecords("t", [2]int64{2, 3}))
	if p := ask[*kmsg.DeleteRecordsResponse](f.nodes[1].dial(t), 2, req).Topics[0].Partitions[0]; p.ErrorCode != 6 || p.LowWatermark != -1 {
		t.Errorf("%+v", p)
	}
}

func TestDeleteRecordsWaitIsBounded(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) { c.addTopic(img, "a", 3, 1) })
	c.parts["a/0"], c.parts["a/1"] = &adminPartition{leader: true, hang: true}, &adminPartition{leader: true, now: true}
	c.parts["a/2"] = &adminPartition{leader: true, now: true, err: partition.ErrStorage}
	reg, clk := prometheus.NewRegistry(), clock.NewSim(time.Unix(1_700_000_000, 0))
	c.reg = reg
	b := c.broker(t)
	b.cfg.Clock = clk
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 200
	req.Topics = append(req.Topics, deleteRecords("a", [2]int64{0, 9}, [2]int64{1, 9}, [2]int64{2, 9}))
	answered := make(chan *kmsg.DeleteRecordsResponse, 1)
	go func() { defer close(answered); answered <- callAdmin[*kmsg.DeleteRecordsResponse](t, b, 2, req) }()
	until(t, "the last answer that comes is taken, and its error counted", func() bool {
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			if m.GetName() == "chronik_broker_errors_total" {
				return true
			}
		}
		return false
	})
	clk.Advance(200 * time.Millisecond)
	select {
	case resp := <-answered:
		if resp == nil {
			return // callAdmin has said why
		}
		parts := resp.Topics[0].Partitions
		if parts[0].ErrorCode != 7 || parts[0].LowWatermark != -1 || parts[1].ErrorCode != 0 || parts[1].LowWatermark != 9 || parts[2].ErrorCode != 56 {
			t.Errorf("one partition hangs: %+v", parts)
		}
	case <-time.After(time.Minute):
		t.Error("not answered")
	}
}
