package broker

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func firstFetched(t *testing.T, r *kmsg.FetchResponse) *kmsg.FetchResponseTopicPartition {
	t.Helper()
	if len(r.Topics) == 0 || len(r.Topics[0].Partitions) == 0 {
		t.Fatalf("nothing fetched: %+v", r)
	}
	return &r.Topics[0].Partitions[0]
}

func TestFetchEveryVersion(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	c := f.nodes[1].dial(t)
	ask[*kmsg.ProduceResponse](c, 9, produceReq(topic, 0, batch(t, "a", 3), -1))
	for v := int16(4); v <= 18; v++ {
		p := firstFetched(t, ask[*kmsg.FetchResponse](c, v, fetchReq(topic, 0, 0)))
		if p.ErrorCode != 0 || p.HighWatermark != 3 || p.LastStableOffset != 3 || len(p.RecordBatches) == 0 || p.AbortedTransactions != nil {
			t.Fatalf("v%d: %+v", v, p)
		}
		e := firstFetched(t, ask[*kmsg.FetchResponse](c, v, fetchReq(topic, 0, 99)))
		if e.ErrorCode != 1 || e.HighWatermark != -1 || e.LastStableOffset != -1 || e.RecordBatches == nil || len(e.RecordBatches) != 0 {
			t.Fatalf("v%d out of range: %+v", v, e)
		}
	}
}

func TestLongPollWakesOnTheWatermark(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	c, producer := f.nodes[1].dial(t), f.nodes[1].dial(t)
	req := fetchReq(topic, 60_000, 0)
	corr := c.send(12, req)
	d := f.part("t", 0)
	until(t, "the fetch is parked", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return len(d.polls) == 1 })
	ask[*kmsg.ProduceResponse](producer, 9, produceReq(topic, 0, batch(t, "a", 1), -1))
	if p := firstFetched(t, recv[*kmsg.FetchResponse](c, corr, req)); len(p.RecordBatches) == 0 {
		t.Fatalf("%+v", p)
	}
}

func TestFetchSession(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 2)
	c := f.nodes[1].dial(t)
	full := fetchReq(topic, 0, 0, 0)
	full.SessionEpoch = 0
	resp := ask[*kmsg.FetchResponse](c, 12, full)
	if resp.SessionID == 0 || len(resp.Topics[0].Partitions) != 2 {
		t.Fatalf("%+v", resp)
	}
	next := func(id, epoch int32) *kmsg.FetchResponse {
		req := fetchReq(topic, 0)
		req.Topics, req.SessionID, req.SessionEpoch = nil, id, epoch
		return ask[*kmsg.FetchResponse](c, 12, req)
	}
	if r := next(resp.SessionID, 1); r.ErrorCode != 0 || len(r.Topics) != 0 {
		t.Fatalf("nothing is news: %+v", r)
	}
	ask[*kmsg.ProduceResponse](c, 9, produceReq(topic, 1, batch(t, "a", 1), -1))
	if r := next(resp.SessionID, 2); len(r.Topics) != 1 || len(r.Topics[0].Partitions) != 1 || r.Topics[0].Partitions[0].Partition != 1 {
		t.Fatalf("%+v", r)
	}
	if r := next(resp.SessionID, 2); r.ErrorCode != 71 || len(r.Topics) != 0 {
		t.Fatalf("repeated epoch: %+v", r)
	}
	if r := next(resp.SessionID+1, 3); r.ErrorCode != 70 {
		t.Fatalf("unknown session: %+v", r)
	}
}

func TestFranzGoProducesAndConsumes(t *testing.T) {
	f := newFleet(t, 1)
	f.topic("t", 2)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(f.nodes[1].srv.Addr("main").String()), kgo.DefaultProduceTopic("t"),
		kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	want := map[string]bool{}
	for i := range 200 {
		v := fmt.Sprint("value ", i)
		want[v] = true
		if i%50 == 49 {
			if err := cl.ProduceSync(ctx, kgo.StringRecord(v)).FirstErr(); err != nil {
				t.Fatal(err)
			}
		} else {
			cl.Produce(ctx, kgo.StringRecord(v), nil)
		}
	}
	for len(want) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%v with %d records missing", err, len(want))
		}
		fetches.EachRecord(func(r *kgo.Record) { delete(want, string(r.Value)) })
	}
}
