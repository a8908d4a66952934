package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/partition"
)

// fillPart gives a partition batches of so many bytes of payload.
func fillPart(t testing.TB, f *fleet, topic *metadata.Topic, index int32, batches, bytesEach int) {
	t.Helper()
	d := f.part(topic.Name, index)
	leader, _ := f.nodes[1].Leader(d.group)
	p := &fakePart{f.nodes[leader], d}
	for i := range batches {
		b := batch(t, fmt.Sprint(index, "/", i, "/")+string(bytes.Repeat([]byte{'x'}, bytesEach)), 1)
		p.Produce(b, func(r ProduceResult) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		})
	}
}

func sizes(r *kmsg.FetchResponse) (out []int) {
	for _, t := range r.Topics {
		for _, p := range t.Partitions {
			out = append(out, len(p.RecordBatches))
		}
	}
	return out
}

// Large records are written from where they were read: the bytes on the wire are the log's, in every encoding, and recv checks
// that an answer has not a byte more or less.
func TestFetchedBytesAreTheLogsAtEveryVersionAndSize(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 4)
	fillPart(t, f, topic, 0, 3, 100)
	fillPart(t, f, topic, 1, 2, spliceMin)
	fillPart(t, f, topic, 3, 3, 300<<10)
	c := f.nodes[1].dial(t)
	for v := int16(4); v <= 18; v++ {
		for range 2 { // the second time in buffers used before
			parts := ask[*kmsg.FetchResponse](c, v, fetchReq(topic, 0, 0, 0, 0, 1)).Topics[0].Partitions
			for i, p := range parts {
				d := f.part("t", int32(i))
				want := []byte{}
				for n, b := range d.batches {
					if i != 3 || n > 0 {
						want = append(want, b...)
					}
				}
				if p.Partition != int32(i) || p.ErrorCode != 0 || !bytes.Equal(p.RecordBatches, want) || p.HighWatermark != d.hw {
					t.Fatalf("v%d partition %d: %d bytes, want %d", v, i, len(p.RecordBatches), len(want))
				}
			}
		}
	}
	until(t, "all buffers are given back", func() bool { return f.nodes[1].b.fetchHeld.inUse() == 0 })
}

func TestFetchMaxBytes(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 3)
	for i := range int32(3) {
		fillPart(t, f, topic, i, 4, 1000)
	}
	one := len(f.part("t", 0).batches[0])
	c := f.nodes[1].dial(t)
	for name, e := range map[string]struct {
		max, partMax int
		want         []int
	}{
		"0 yields one batch":                        {0, 1 << 20, []int{one, 0, 0}},
		"a partition's 0 too":                       {1 << 20, 0, []int{one, 0, 0}},
		"less than a batch":                         {10, 10, []int{one, 0, 0}},
		"one batch":                                 {one, 1 << 20, []int{one, 0, 0}},
		"only the first may exceed the limit":       {one + one/2, 1 << 20, []int{one, 0, 0}},
		"the first partition takes what there is":   {3*one + one/2, 1 << 20, []int{3 * one, 0, 0}},
		"the rest goes to the next":                 {6 * one, 4 * one, []int{4 * one, 2 * one, 0}},
		"a partition's limit":                       {1 << 20, one + 5, []int{one, one, one}},
		"only the first may exceed a partition's":   {1 << 20, one - 5, []int{one, 0, 0}},
		"everything":                                {1 << 20, 1 << 20, []int{4 * one, 4 * one, 4 * one}},
		"a negative limit is none":                  {-1, -1, []int{one, 0, 0}},
		"nothing exceeds but the first partition's": {2 * one, one / 2, []int{one, 0, 0}},
	} {
		req := fetchReq(topic, 0, 0, 0, 0)
		req.MaxBytes = int32(e.max)
		for i := range req.Topics[0].Partitions {
			req.Topics[0].Partitions[i].PartitionMaxBytes = int32(e.partMax)
		}
		resp := ask[*kmsg.FetchResponse](c, 12, req)
		if got := sizes(resp); !slices.Equal(got, e.want) {
			t.Errorf("%s: %v, want %v", name, got, e.want)
		}
		for _, p := range resp.Topics[0].Partitions { // what found no room still tells its watermark
			if p.ErrorCode != 0 || p.HighWatermark != 4 {
				t.Errorf("%s: %+v", name, p)
			}
		}
	}
}

// However much clients ask for, and however slowly they read, what responses hold is bounded: beyond it they get 1 MiB.
func TestFetchHoldsBoundedMemory(t *testing.T) {
	f := newFleet(t, 1, still, func(_ int32, c *Config) { c.FetchHeldBytes = 12 << 20 })
	topic := f.topic("t", 8)
	for i := range int32(8) {
		fillPart(t, f, topic, i, 2, 500<<10)
	}
	n := f.nodes[1]
	c := n.dial(t)
	all := 0
	for _, s := range sizes(ask[*kmsg.FetchResponse](c, 12, fetchReq(topic, 0, 0, 0, 0, 0, 0, 0, 0, 0))) {
		all += s
	}
	if all > 3<<20 || all < 2<<20 {
		t.Errorf("%d bytes with nothing held by others", all)
	}
	// Others hold nearly all: little at a time.
	n.b.fetchHeld.take(12<<20 - minFetchBytes)
	all = 0
	for _, s := range sizes(ask[*kmsg.FetchResponse](c, 12, fetchReq(topic, 0, 0, 0, 0, 0, 0, 0, 0, 0))) {
		all += s
	}
	if all > minFetchBytes || all == 0 {
		t.Errorf("%d bytes with nearly all held by others", all)
	}
	until(t, "given back", func() bool { return n.b.fetchHeld.inUse() == 12<<20-minFetchBytes })
	// Others hold all of it: a fetch waits until some is given back.
	n.b.fetchHeld.take(minFetchBytes)
	req := fetchReq(topic, 0, 0)
	corr := c.send(12, req)
	until(t, "it waits", func() bool {
		n.b.fetchHeld.mu.Lock()
		defer n.b.fetchHeld.mu.Unlock()
		return n.b.fetchHeld.queue.Len() == 1
	})
	n.b.fetchHeld.give(12 << 20)
	if got := sizes(recv[*kmsg.FetchResponse](c, corr, req)); len(got) != 1 || got[0] == 0 {
		t.Errorf("with room again: %d", got)
	}
	until(t, "given back", func() bool { return n.b.fetchHeld.inUse() == 0 })
}

// A fetch of many partitions with little in each holds what they have, and not a buffer for each.
func TestFetchOfManySmallPartitionsHoldsLittle(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 200)
	offsets := make([]int64, 200)
	for i := range int32(200) {
		fillPart(t, f, topic, i, 1, 100)
	}
	n := f.nodes[1]
	op := &fetchOp{b: n.b, rc: &RequestContext{Version: 12}, req: fetchReq(topic, 0, offsets...), wanted: 64 << 20}
	op.req.Version = 12
	p, kerror := n.b.sessions.plan(op.req)
	if kerror != nil {
		t.Fatal(kerror)
	}
	op.plan = p
	op.resolve()
	op.read(t.Context())
	if held := n.b.fetchHeld.inUse(); op.bytes < 200*100 || held > 2*fetchPooledParts<<20 {
		t.Errorf("%d bytes of records hold %d", op.bytes, held)
	}
	op.free(true)
	if held := n.b.fetchHeld.inUse(); held != 0 {
		t.Errorf("%d bytes were never given back", held)
	}
}

// Large requests wait for each other's memory, and are refused when that takes too long; small ones pass by.
func TestDecodedRequestsAreBounded(t *testing.T) {
	f := newFleet(t, 1, still, func(_ int32, c *Config) { c.DecodedBytes = 1 << 20 })
	b := f.nodes[1].b
	begin, _ := b.Connect("main", nil, nil)
	large := kmsg.NewPtrMetadataRequest()
	large.SetVersion(1)
	for range 4000 {
		large.Topics = append(large.Topics, kmsg.MetadataRequestTopic{Topic: kmsg.StringPtr("t")})
	}
	rest := large.AppendTo([]byte{0xff, 0xff})
	first, _, err := begin(t.Context(), 3, 1, rest)
	if err != nil {
		t.Fatal(err)
	}
	if b.decoded.inUse() < 4000*elementBytes {
		t.Fatalf("%d bytes counted", b.decoded.inUse())
	}
	ctx, cancel := context.WithCancel(t.Context())
	refused := make(chan error, 1)
	go func() { _, _, err := begin(ctx, 3, 1, rest); refused <- err }()
	until(t, "it waits", func() bool {
		b.decoded.mu.Lock()
		defer b.decoded.mu.Unlock()
		return b.decoded.queue.Len() == 1
	})
	if _, _, err := begin(t.Context(), 3, 1, []byte{0xff, 0xff, 0, 0, 0, 0}); err != nil {
		t.Errorf("a small one: %v", err)
	}
	cancel() // as its patience would end
	if err := <-refused; !errors.Is(err, errBusy) {
		t.Errorf("refused with %v", err)
	}
	if _, release, err := first(t.Context()); err != nil {
		t.Error(err)
	} else {
		release()
	}
	if n := b.decoded.inUse(); n != 0 {
		t.Errorf("%d bytes were never given back", n)
	}
}

// read_committed: [] ; read_uncommitted: null. Without transactions the last stable offset is the high watermark.
func TestFetchIsolationLevels(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	fillPart(t, f, topic, 0, 2, 10)
	c := f.nodes[1].dial(t)
	for v := int16(4); v <= 18; v++ {
		for level := int8(0); level <= 1; level++ {
			req := fetchReq(topic, 0, 0)
			req.IsolationLevel = level
			p := firstFetched(t, ask[*kmsg.FetchResponse](c, v, req))
			if p.LastStableOffset != 2 || p.HighWatermark != 2 {
				t.Errorf("v%d: %+v", v, p)
			}
			if null := p.AbortedTransactions == nil; null != (level == 0) || len(p.AbortedTransactions) != 0 {
				t.Errorf("v%d isolation %d: aborted transactions null: %v", v, level, null)
			}
		}
	}
}

// Error partitions: watermark, last stable offset, log start -1, and records of length 0, not null.
func TestFetchErrorPartitions(t *testing.T) {
	f := newFleet(t, 2)
	topic := f.topic("t", 2, 1)
	f.nodes[1].hosted = func(_ string, p int32) bool { return p == 0 }
	f.lead(f.part("t", 1), -1, 3)
	c := f.nodes[1].dial(t)
	for v := int16(4); v <= 18; v++ {
		for name, e := range map[string]struct {
			topic *metadata.Topic
			index int32
			off   int64
			epoch int32
			code  int16
			since int16
		}{
			"unknown topic":            {&metadata.Topic{Name: "nope", ID: [16]byte{9}}, 0, 0, -1, 3, 4},
			"unknown partition":        {topic, 7, 0, -1, 3, 4},
			"negative partition":       {topic, -1, 0, -1, 3, 4},
			"leaderless is 6, never 5": {topic, 1, 0, -1, 6, 4},
			"beyond the end":           {topic, 0, 1, -1, 1, 4},
			"a former epoch":           {topic, 0, 0, 2, 74, 9},
			"an epoch to come":         {topic, 0, 0, 4, 75, 9},
			"epoch before offset":      {topic, 0, 99, 2, 74, 9},
		} {
			if v < e.since {
				continue
			}
			if e.topic != topic && v >= 13 {
				e.code = 100
			}
			req := fetchReq(e.topic, 0, e.off)
			p := &req.Topics[0].Partitions[0]
			p.Partition, p.CurrentLeaderEpoch = e.index, e.epoch
			got := firstFetched(t, ask[*kmsg.FetchResponse](c, v, req))
			if got.ErrorCode != e.code || got.Partition != e.index || got.HighWatermark != -1 || got.LastStableOffset != -1 ||
				v >= 5 && got.LogStartOffset != -1 || got.RecordBatches == nil || len(got.RecordBatches) != 0 {
				t.Errorf("v%d, %s: %+v, want %d", v, name, got, e.code)
			}
		}
	}
}

// What Java's poll() would throw at the application never leaves.
func TestFetchErrorsAreThoseThatPollSurvives(t *testing.T) {
	survives := []int16{-1, 1, 3, 6, 9, 29, 56, 74, 75, 78, 100, 103}
	for _, row := range codes {
		if got := fetchError(fmt.Errorf("x: %w", row.err)); !slices.Contains(survives, got.Code) {
			t.Errorf("%v: %d", row.err, got.Code)
		}
	}
	if got := fetchError(partition.ErrOffsetNotAvailable); got.Code != 78 {
		t.Errorf("%d", got.Code)
	}
}

// Any error answers at once, whatever the wait.
func TestFetchErrorEndsTheWait(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 2)
	begin := time.Now()
	got := ask[*kmsg.FetchResponse](f.nodes[1].dial(t), 12, fetchReq(topic, 3_600_000, 0, 5))
	if time.Since(begin) > time.Minute || got.Topics[0].Partitions[1].ErrorCode != 1 {
		t.Errorf("after %s: %+v", time.Since(begin), got)
	}
}

func TestFetchDivergingEpochEndsTheWait(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	f.part("t", 0).diverging = &EpochEnd{Epoch: 2, EndOffset: 7}
	c := f.nodes[1].dial(t)
	for v := int16(12); v <= 18; v++ {
		req := fetchReq(topic, 60_000, 0)
		req.Topics[0].Partitions[0].LastFetchedEpoch = 2
		p := firstFetched(t, ask[*kmsg.FetchResponse](c, v, req))
		if p.ErrorCode != 0 || p.DivergingEpoch.Epoch != 2 || p.DivergingEpoch.EndOffset != 7 || len(p.RecordBatches) != 0 {
			t.Errorf("v%d: %+v", v, p)
		}
	}
}

// KIP-951 from v16: who leads, at which epoch, and where it is; on 6 and on 74.
func TestFetchNamesTheNewLeader(t *testing.T) {
	f := newFleet(t, 2, func(_ int32, c *Config) { c.NewsAge = time.Nanosecond })
	topic := f.topic("t", 1, 2)
	c := f.nodes[1].dial(t)
	req := fetchReq(topic, 0, 0)
	ask[*kmsg.FetchResponse](c, 12, req) // the news begins to age
	for v := int16(12); v <= 18; v++ {
		resp := ask[*kmsg.FetchResponse](c, v, fetchReq(topic, 0, 0))
		p := firstFetched(t, resp)
		if p.ErrorCode != 6 {
			t.Fatalf("v%d: %+v", v, p)
		}
		if v < 16 {
			if len(resp.Brokers) != 0 {
				t.Errorf("v%d: %+v", v, resp.Brokers)
			}
			continue
		}
		if p.CurrentLeader.LeaderID != 2 || p.CurrentLeader.LeaderEpoch != 3 || len(resp.Brokers) != 1 || resp.Brokers[0].NodeID != 2 || resp.Brokers[0].Port != f.img.Nodes[2].KafkaPort {
			t.Errorf("v%d: %+v %+v", v, p.CurrentLeader, resp.Brokers)
		}
	}
	// A client of a former epoch that has found the right node is told the new epoch.
	fenced := fetchReq(topic, 0, 0)
	fenced.Topics[0].Partitions[0].CurrentLeaderEpoch = 2
	resp := ask[*kmsg.FetchResponse](f.nodes[2].dial(t), 17, fenced)
	if p := firstFetched(t, resp); p.ErrorCode != 74 || p.CurrentLeader.LeaderID != 2 || p.CurrentLeader.LeaderEpoch != 3 || len(resp.Brokers) != 1 {
		t.Errorf("%+v %+v", p, resp.Brokers)
	}
	// Nobody is sent to a dead node.
	f.edit(func() { f.dead[2] = true })
	resp = ask[*kmsg.FetchResponse](c, 17, fetchReq(topic, 0, 0))
	if p := firstFetched(t, resp); p.ErrorCode != 6 || p.CurrentLeader.LeaderID != -1 || len(resp.Brokers) != 0 {
		t.Errorf("%+v %+v", p, resp.Brokers)
	}
}

// Design rule 22: a follower serves its committed bytes, and above its own watermark says OFFSET_NOT_AVAILABLE:
// OFFSET_OUT_OF_RANGE would reset the client.
func TestFollowerFetchServesCommittedBytesAndNeverResets(t *testing.T) {
	f := newFleet(t, 2, func(_ int32, c *Config) { c.NewsAge = time.Hour })
	topic := f.topic("t", 1, 2)
	fillPart(t, f, topic, 0, 5, 10)
	d := f.part("t", 0)
	d.mu.Lock()
	d.followerHW = 3
	d.mu.Unlock()
	for _, listener := range []string{"main", "one"} {
		c := f.nodes[1].dial(t, listener)
		p := firstFetched(t, ask[*kmsg.FetchResponse](c, 12, fetchReq(topic, 0, 1)))
		if want := bytes.Join(d.batches[1:3], nil); p.ErrorCode != 0 || p.HighWatermark != 3 || !bytes.Equal(p.RecordBatches, want) {
			t.Errorf("%s: %+v", listener, p)
		}
		for _, off := range []int64{4, 5, 99} {
			if p := firstFetched(t, ask[*kmsg.FetchResponse](c, 12, fetchReq(topic, 0, off))); p.ErrorCode != 78 || p.HighWatermark != -1 {
				t.Errorf("%s, offset %d above the follower's watermark: %+v", listener, off, p)
			}
		}
		// The client's epoch comes first here too.
		req := fetchReq(topic, 0, 99)
		req.Topics[0].Partitions[0].CurrentLeaderEpoch = 2
		if p := firstFetched(t, ask[*kmsg.FetchResponse](c, 12, req)); p.ErrorCode != 74 {
			t.Errorf("%s, a former epoch: %+v", listener, p)
		}
	}
	// The leader itself knows where the log ends.
	if p := firstFetched(t, ask[*kmsg.FetchResponse](f.nodes[2].dial(t), 12, fetchReq(topic, 0, 99))); p.ErrorCode != 1 {
		t.Errorf("at the leader: %+v", p)
	}
}

// In one-address mode what has no replica here is fetched from its leaders, by every version.
func TestOneAddressFetchReachesOtherNodes(t *testing.T) {
	f := newFleet(t, 3)
	topic := f.topic("t", 3) // led by 1, 2, 3
	f.nodes[1].hosted = func(_ string, p int32) bool { return p == 0 }
	for i := range int32(3) {
		fillPart(t, f, topic, i, 2, 8000)
	}
	c := f.nodes[1].dial(t, "one")
	for v := int16(4); v <= 18; v++ {
		parts := ask[*kmsg.FetchResponse](c, v, fetchReq(topic, 0, 0, 1, 0)).Topics[0].Partitions
		for i, p := range parts {
			d := f.part("t", int32(i))
			want := bytes.Join(d.batches, nil)
			if i == 1 {
				want = d.batches[1]
			}
			if p.ErrorCode != 0 || p.HighWatermark != 2 || !bytes.Equal(p.RecordBatches, want) {
				t.Errorf("v%d partition %d: error %d, %d bytes", v, i, p.ErrorCode, len(p.RecordBatches))
			}
		}
	}
	// An ordinary listener sends the client away.
	if p := ask[*kmsg.FetchResponse](f.nodes[1].dial(t), 12, fetchReq(topic, 0, 0, 0)).Topics[0].Partitions[1]; p.ErrorCode != 6 {
		t.Errorf("%+v", p)
	}
	// Errors of the leader come through; a node that is gone is "try again".
	if p := ask[*kmsg.FetchResponse](c, 12, fetchReq(topic, 60_000, 0, 99)).Topics[0].Partitions[1]; p.ErrorCode != 1 || p.HighWatermark != -1 {
		t.Errorf("%+v", p)
	}
	f.edit(func() { f.dead[3] = true })
	if p := ask[*kmsg.FetchResponse](c, 12, fetchReq(topic, 60_000, 0, 0, 0)).Topics[0].Partitions[2]; p.ErrorCode != 6 || p.RecordBatches == nil {
		t.Errorf("%+v", p)
	}
	until(t, "all buffers are given back", func() bool { return f.nodes[1].b.fetchHeld.inUse() == 0 })
}

// A long poll over partitions of three nodes wakes for news of any of them.
func TestOneAddressLongPollWakesForAnyNode(t *testing.T) {
	for news := range int32(3) {
		f := newFleet(t, 3)
		topic := f.topic("t", 3)
		f.nodes[1].hosted = func(_ string, p int32) bool { return p == 0 }
		c := f.nodes[1].dial(t, "one")
		req := fetchReq(topic, 60_000, 0, 0, 0)
		corr := c.send(12, req)
		parked := func() bool {
			for i := range int32(3) {
				d := f.part("t", i)
				d.mu.Lock()
				n := len(d.polls)
				d.mu.Unlock()
				if n == 0 {
					return false
				}
			}
			return true
		}
		until(t, "parked on all nodes", parked)
		fillPart(t, f, topic, news, 1, 10)
		got := recv[*kmsg.FetchResponse](c, corr, req).Topics[0].Partitions
		for i, p := range got {
			if p.ErrorCode != 0 || (len(p.RecordBatches) > 0) != (int32(i) == news) {
				t.Errorf("news of %d: partition %d: %+v", news, i, p)
			}
		}
		until(t, "nothing stays parked", func() bool {
			for i := range int32(3) {
				d := f.part("t", i)
				d.mu.Lock()
				n := len(d.polls)
				d.mu.Unlock()
				if n != 0 {
					return false
				}
			}
			return true
		})
	}
}

// A long poll ends when the server stops, with what there is.
func TestDrainEndsLongPolls(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	c := f.nodes[1].dial(t)
	req := fetchReq(topic, 60_000, 0)
	corr := c.send(12, req)
	d := f.part("t", 0)
	until(t, "parked", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return len(d.polls) == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.nodes[1].srv.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if p := firstFetched(t, recv[*kmsg.FetchResponse](c, corr, req)); p.ErrorCode != 0 {
		t.Errorf("%+v", p)
	}
}

// Batches that do not fit into a response are not held with it.
func TestFetchKeepsNoBuffersOfWhatDidNotFit(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 30)
	offsets := make([]int64, 30)
	for i := range int32(30) {
		fillPart(t, f, topic, i, 1, 900<<10)
	}
	n := f.nodes[1]
	op := &fetchOp{b: n.b, rc: &RequestContext{Version: 12}, req: fetchReq(topic, 0, offsets...), wanted: 2 << 20}
	op.req.Version = 12
	p, kerror := n.b.sessions.plan(op.req)
	if kerror != nil {
		t.Fatal(kerror)
	}
	op.plan = p
	op.resolve()
	op.read(t.Context())
	if held := n.b.fetchHeld.inUse(); op.bytes < 1<<20 || held > 2*fetchBuffer {
		t.Errorf("%d bytes of records hold %d", op.bytes, held)
	}
	op.free(true)
	if held := n.b.fetchHeld.inUse(); held != 0 {
		t.Errorf("%d bytes were never given back", held)
	}
}
