package partition

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
)

func ask(offset int64) FetchRequest {
	return FetchRequest{Offset: offset, MaxBytes: 1 << 20, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1}
}

func TestFetchReadsCommittedBatchesBelowTheHighWatermark(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.send(batchSpec{records: 2})
	c.flow()
	c.send(batchSpec{records: 3})
	c.propose(false)
	p := c.leader.p
	res, err := p.Fetch(ask(1))
	if err != nil || res.HighWatermark != 2 || res.LastStable != 2 || res.LogStart != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	if h, err := record.Validate(res.Records); err != nil || h.BaseOffset != 0 || h.Count != 2 {
		t.Fatalf("the batch that contains the offset: %+v, %v", h, err)
	}
	for off := int64(2); off <= 5; off++ { // at the watermark, and what is proposed but not committed
		if res, err := p.Fetch(ask(off)); err != nil || len(res.Records) != 0 {
			t.Fatalf("offset %d: %+v, %v", off, res, err)
		}
	}
	var oor *OffsetOutOfRangeError
	if _, err := p.Fetch(ask(6)); !errors.As(err, &oor) || oor.Start != 0 || oor.End != 2 {
		t.Fatalf("got %v", err)
	}
	c.flow()
	req := ask(0)
	req.MaxBytes = 0
	if res, err := p.Fetch(req); err != nil || len(res.Records) == 0 {
		t.Fatalf("max bytes 0 must yield one batch: %v", err)
	}
	req.MaxBytes = 1 << 20
	if res, _ := p.Fetch(req); len(res.Records) != len(c.nodes[1].contents()) {
		t.Fatal("not everything was read")
	}
}

// Segments may hold more than is committed here: what was fetched to catch up is there before raft's log says so. Nobody reads it.
func TestFetchStopsAtTheHighWatermark(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fill(5)
	f := c.nodes[1]
	f.apply()
	c.fill(20)
	snap, r := c.stage(1, 0)
	c.fetched(r)
	if f.p.log.EndOffset() <= f.p.HighWatermark() {
		t.Fatal("nothing lies above the high watermark")
	}
	req := ask(0)
	req.MaxBytes, req.Follower = 1<<20, true
	res, err := f.p.Fetch(req)
	if err != nil || res.HighWatermark != 15 {
		t.Fatalf("%+v, %v", res, err)
	}
	if end, err := batchesEnd(res.Records); err != nil || end != 15 {
		t.Fatalf("read up to %d, the high watermark is 15: %v", end, err)
	}
	if err := f.install(snap); err != nil {
		t.Fatal(err)
	}
	if res, err = f.p.Fetch(req); err != nil || res.HighWatermark != 75 {
		t.Fatalf("once it is installed: %+v, %v", res, err)
	}
	if end, err := batchesEnd(res.Records); err != nil || end <= 15 { // a fetch ends with its segment
		t.Fatalf("read up to %d once it is installed: %v", end, err)
	}
}

func TestFetchChecksEpochsFirst(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.elect(1, false)
	for _, nd := range c.nodes {
		nd.apply()
	}
	for _, nd := range c.nodes { // on the follower too
		req := ask(99)
		req.CurrentLeaderEpoch = int32(c.term) - 1
		if _, err := nd.p.Fetch(req); !errors.Is(err, ErrFencedLeaderEpoch) {
			t.Fatalf("older epoch on node %d: %v", nd.id, err)
		}
		req.CurrentLeaderEpoch = int32(c.term) + 1
		if _, err := nd.p.Fetch(req); !errors.Is(err, ErrUnknownLeaderEpoch) {
			t.Fatalf("newer epoch on node %d: %v", nd.id, err)
		}
	}
	req := ask(0)
	req.CurrentLeaderEpoch = int32(c.term)
	if _, err := c.nodes[1].p.Fetch(req); err != nil {
		t.Fatal(err)
	}
	if _, err := c.nodes[0].p.Fetch(req); !errors.Is(err, multiraft.ErrNotLeader) {
		t.Fatalf("follower: %v", err)
	}
}

// TestFollowerFetch is RAFT.md 22.
func TestFollowerFetchServesCommittedBytesAndNeverResetsAClient(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.send(batchSpec{records: 4})
	c.flow()
	c.send(batchSpec{records: 4})
	c.propose(false)
	c.commit()
	c.leader.apply()
	f := c.nodes[1].p
	req := ask(0)
	req.Follower = true
	if res, err := f.Fetch(req); err != nil || len(res.Records) == 0 || res.HighWatermark != 4 {
		t.Fatalf("%+v, %v", res, err)
	}
	req.Offset = 8 // the leader has it, the follower not yet
	if _, err := f.Fetch(req); !errors.Is(err, ErrOffsetNotAvailable) || errors.Is(err, ErrOffsetOutOfRange) {
		t.Fatalf("got %v", err)
	}
	if _, err := f.Fetch(ask(0)); !errors.Is(err, multiraft.ErrNotLeader) {
		t.Fatalf("a fetch that wants the leader: %v", err)
	}
}

// TestLeaderServesOnlyOnceReady is pitfall 14 and FAULTS 21.
func TestLeaderServesOnlyOnceReady(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.leader.p.LeaderLost(c.term)
	var nl *multiraft.NotLeaderError
	if _, err := c.leader.p.Fetch(ask(0)); !errors.As(err, &nl) || nl.LeaderNode != -1 {
		t.Fatalf("got %v", err)
	}
	if _, _, _, err := c.leader.p.ListOffset(context.Background(), TimestampLatest, -1); !errors.Is(err, multiraft.ErrNotLeader) {
		t.Fatalf("got %v", err)
	}
	c.leader.p.LeaderReady(c.term) // late news of a term that is over
	if c.leader.p.leading.Load() != 0 {
		t.Fatal("a lost term came back")
	}
}

func TestDivergingEpoch(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false) // term 2: [0,3)
	c.send(batchSpec{records: 3})
	c.flow()
	c.elect(0, false) // term 3: nothing
	c.elect(0, false) // term 4: [3,5)
	c.send(batchSpec{records: 2})
	c.flow()
	c.elect(0, false) // term 5
	p := c.leader.p
	for _, tc := range []struct {
		last   int32
		offset int64
		want   *EpochEnd
	}{
		{2, 3, nil},
		{2, 4, &EpochEnd{2, 3}},
		{3, 3, &EpochEnd{2, 3}},
		{4, 5, nil},
		{5, 5, nil},
	} {
		req := ask(tc.offset)
		req.LastFetchedEpoch = tc.last
		res, err := p.Fetch(req)
		switch {
		case err != nil:
			t.Fatalf("%+v: %v", tc, err)
		case (res.Diverging == nil) != (tc.want == nil), tc.want != nil && *res.Diverging != *tc.want:
			t.Fatalf("epoch %d offset %d: got %+v, want %+v", tc.last, tc.offset, res.Diverging, tc.want)
		case res.Diverging != nil && len(res.Records) > 0:
			t.Fatal("records beside a divergence")
		}
	}
	req := ask(5)
	req.LastFetchedEpoch = 6
	if _, err := p.Fetch(req); !errors.Is(err, ErrUnknownLeaderEpoch) {
		t.Fatalf("got %v", err)
	}
	for _, tc := range []struct{ asked, epoch, end int64 }{{2, 2, 3}, {3, 2, 3}, {4, 4, 5}, {5, 5, 5}, {6, -1, -1}} {
		e, end, err := p.EpochEnd(-1, int32(tc.asked))
		if err != nil || int64(e) != tc.epoch || end != tc.end {
			t.Fatalf("end of epoch %d: (%d, %d), %v", tc.asked, e, end, err)
		}
	}
}

func TestEpochEndOfAnEmptyPartitionIsTheCurrentEpochAtZero(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	if e, end, err := c.leader.p.EpochEnd(-1, int32(c.term)); err != nil || e != int32(c.term) || end != 0 {
		t.Fatalf("(%d, %d), %v", e, end, err)
	}
	if e, end, err := c.leader.p.EpochEnd(-1, 99); err != nil || e != -1 || end != -1 {
		t.Fatalf("(%d, %d), %v", e, end, err)
	}
	if _, _, err := c.leader.p.EpochEnd(-2, int32(c.term)); !errors.Is(err, ErrFencedLeaderEpoch) {
		t.Fatalf("a current epoch of -2: %v", err)
	}
}

// Nothing was written in the epochs before: whoever saw them has nothing that the leader lacks.
func TestPastEpochsOfAnEmptyPartitionEndAtItsEnd(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	first := int32(c.term)
	c.elect(0, false)
	p := c.leader.p
	if first == p.LeaderEpoch() {
		t.Fatal("the same epoch")
	}
	for asked, want := range map[int32][2]int64{first: {int64(first), 0}, p.LeaderEpoch(): {int64(p.LeaderEpoch()), 0}, -1: {-1, -1}, p.LeaderEpoch() + 1: {-1, -1}} {
		if e, end, err := p.EpochEnd(-1, asked); err != nil || int64(e) != want[0] || end != want[1] {
			t.Errorf("epoch %d: (%d, %d), %v; want %v", asked, e, end, err, want)
		}
	}
	req := ask(0)
	req.LastFetchedEpoch = first
	if res, err := p.Fetch(req); err != nil || res.Diverging != nil {
		t.Fatalf("fetching after the first epoch: %+v, %v", res, err)
	}
}

func TestListOffset(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	p := c.leader.p
	ctx := context.Background()
	list := func(ts, offset, wantTS int64, epoch int32) {
		t.Helper()
		o, s, e, err := p.ListOffset(ctx, ts, -1)
		if err != nil || o != offset || s != wantTS || e != epoch {
			t.Fatalf("timestamp %d: (%d, %d, %d), %v", ts, o, s, e, err)
		}
	}
	list(TimestampLatest, 0, -1, 2)
	list(TimestampEarliest, 0, -1, 2)
	list(TimestampMax, -1, -1, -1)
	c.send(batchSpec{records: 3, ts: 1000})
	c.send(batchSpec{records: 3, ts: 2000})
	c.send(batchSpec{records: 3, ts: 1500})
	c.flow()
	c.send(batchSpec{ts: 9000})
	c.propose(false) // not committed: nobody sees it
	list(TimestampLatest, 9, -1, 2)
	list(TimestampEarliest, 0, -1, 2)
	list(TimestampEarliestLocal, 0, -1, 2)
	list(TimestampMax, 5, 2002, 2)
	list(TimestampLatestTiered, -1, -1, -1)
	list(TimestampEarliestLate, -1, -1, -1)
	list(1001, 1, 1001, 2) // the first record, not the batch's base
	list(1003, 3, 2000, 2)
	list(2003, -1, -1, -1)
	if _, _, _, err := p.ListOffset(ctx, -7, -1); !errors.Is(err, ErrUnsupportedTimestamp) {
		t.Fatalf("got %v", err)
	}
	if _, _, _, err := p.ListOffset(ctx, -1, 1); !errors.Is(err, ErrFencedLeaderEpoch) {
		t.Fatalf("got %v", err)
	}
}

func TestListOffsetLatestWaitsForAQuorumNoLongerThanItsContext(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	asked := make(chan struct{}, 1)
	var r Replica = silent{replicaOf{c.leader}, asked}
	c.leader.p.replica.Store(&r)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		_, _, _, err := c.leader.p.ListOffset(ctx, TimestampLatest, -1)
		answered <- err
	}()
	select {
	case <-asked:
	case err := <-answered:
		t.Fatalf("answered without asking a quorum: %v", err)
	}
	select {
	case err := <-answered:
		t.Fatalf("answered before the quorum: %v", err)
	default:
	}
	cancel()
	if err := <-answered; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

// silent never confirms a read.
type silent struct {
	replicaOf
	asked chan struct{}
}

func (s silent) ReadIndex(func(error)) { s.asked <- struct{}{} }

func TestWaitersFire(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	p := c.leader.p
	fired := func(w *Waiter) bool {
		select {
		case <-w.C():
			return true
		default:
			return false
		}
	}
	w, far := NewWaiter(), NewWaiter()
	p.Wait(0, w)
	p.Wait(5, far)
	c.send(batchSpec{records: 2})
	c.propose(false)
	if fired(w) {
		t.Fatal("fired before commit")
	}
	c.flow()
	if !fired(w) || fired(far) {
		t.Fatal("the first waiter only must fire")
	}
	p.Wait(1, w)
	if !fired(w) {
		t.Fatal("what is there already must fire at once")
	}
	p.Wait(2, w)
	p.Cancel(w)
	p.Wait(7, far) // replaces offset 5
	c.send(batchSpec{records: 4})
	c.flow()
	if fired(w) || fired(far) {
		t.Fatal("cancelled or too far")
	}
	c.elect(0, false)
	if !fired(far) {
		t.Fatal("a change of leadership must fire")
	}
	p.Wait(100, w)
	p.Wait(200, far)
	far.Cancel()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if !fired(w) || fired(far) {
		t.Fatal("closing must fire who still waits")
	}
	if p.waiters.next != &p.waiters {
		t.Fatal("somebody is left in the ring")
	}
	p.Wait(300, w)
	if !fired(w) {
		t.Fatal("a closed partition must not let anybody wait")
	}
}

func TestDeleteRecords(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.elect(0, false)
	for range 40 {
		c.send(batchSpec{records: 5, value: "0123456789012345678901234567890123456789"})
	}
	c.flow()
	del := func(offset, want int64, wantErr error) {
		t.Helper()
		n := 0
		var low int64
		var err error
		c.leader.p.DeleteRecords(offset, func(l int64, e error) { n, low, err = n+1, l, e })
		c.flow()
		if n != 1 || !errors.Is(err, wantErr) || low != want {
			t.Fatalf("delete to %d: %d calls, low %d, %v", offset, n, low, err)
		}
	}
	del(103, 103, nil)
	del(50, 103, nil)
	del(201, -1, ErrOffsetOutOfRange)
	del(-2, -1, ErrOffsetOutOfRange)
	for _, nd := range c.nodes {
		if nd.p.LogStart() != 103 {
			t.Fatalf("node %d starts at %d", nd.id, nd.p.LogStart())
		}
	}
	if _, err := c.leader.p.Fetch(ask(102)); !errors.Is(err, ErrOffsetOutOfRange) {
		t.Fatalf("got %v", err)
	}
	if res, err := c.leader.p.Fetch(ask(103)); err != nil || len(res.Records) == 0 {
		t.Fatalf("got %v", err)
	}
	size := c.leader.p.Size()
	c.advance(3 * time.Minute)
	if got := c.leader.p.Size(); got >= size {
		t.Fatalf("no file was removed: %d bytes, %d before", got, size)
	}
	del(-1, 200, nil)
	c.nodes[1].crash(1, false)
	c.nodes[1].apply()
	if c.nodes[1].p.LogStart() != 200 || c.nodes[1].p.HighWatermark() != 200 {
		t.Fatalf("after a power cut: [%d, %d)", c.nodes[1].p.LogStart(), c.nodes[1].p.HighWatermark())
	}
}

func TestDeletedPartitionIsGone(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.send(batchSpec{})
	c.flow()
	w := NewWaiter()
	nd := c.leader
	nd.p.Wait(1, w)
	if err := nd.m.Delete(testGroup); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.C():
	default:
		t.Fatal("waiter not told")
	}
	c.settle()
	if _, ok := nd.m.Lookup("t", 0); ok {
		t.Fatal("still found")
	}
	if names, err := nd.fs.List("/data"); err != nil || len(names) != 0 {
		t.Fatalf("files left: %v, %v", names, err)
	}
	if err := nd.tryOpen(); !errors.Is(err, ErrUnknownPartition) {
		t.Fatalf("a removed group came back: %v", err)
	}
}
