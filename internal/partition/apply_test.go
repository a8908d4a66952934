package partition

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// TestRestartReplaysFromTheCheckpoint is RAFT.md 7: what lies below the segment's end is compared and skipped.
func TestRestartReplaysFromTheCheckpoint(t *testing.T) {
	for seed := range uint64(40) {
		c := newCluster(t, 2, nil)
		c.elect(0, false)
		rng := newRand(seed)
		nd := c.nodes[1]
		seqs := [4]int32{}
		for range 30 {
			id := rng.Int64N(4)
			n := 1 + rng.IntN(4)
			c.send(batchSpec{records: n, producer: id, seq: seqs[id]})
			seqs[id] += int32(n)
			c.flow()
			switch rng.IntN(8) {
			case 0:
				nd.m.Pinned(testGroup, 0)
				c.settle()
			case 1:
				nd.crash(seed, rng.IntN(2) == 0)
			}
		}
		before := nd.cp.Index
		nd.crash(seed, seed%3 == 0)
		if nd.p.HighWatermark() > c.leader.p.HighWatermark() || nd.applied != max(before, 1) {
			t.Fatal("state from nowhere")
		}
		nd.apply()
		c.agree()
	}
}

// TestApplyRefusesWhatDoesNotFit: offsets decided by the leader must be the log's end (RAFT.md 1).
func TestApplyFencesOnAnOffsetThatIsNotTheLogEnd(t *testing.T) {
	for _, base := range []int64{1, 3, 4} {
		c := newCluster(t, 1, nil)
		c.elect(0, false)
		c.send(batchSpec{records: 2})
		c.flow()
		b := makeBatch(t, batchSpec{})
		record.SetOffset(b, base, 2)
		err := c.leader.p.Apply([]raftpb.Entry{{Index: c.lastIndex() + 1, Term: c.term, Data: b}})
		if !errors.Is(err, ErrDamaged) || !errors.Is(err, multiraft.ErrFenced) {
			t.Fatalf("base %d: %v", base, err)
		}
		if _, err := c.leader.p.Fetch(ask(0)); !errors.Is(err, multiraft.ErrFenced) {
			t.Fatalf("still serving: %v", err)
		}
		if c.leader.p.HighWatermark() != 2 {
			t.Fatal("the watermark moved")
		}
	}
}

// TestApplyFencesOnBytesThatChanged is RAFT.md 19: a buffer reused too early must not reach the segments.
func TestApplyChecksCRCsBeforeAppending(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.send(batchSpec{records: 2})
	c.propose(false)
	c.commit()
	e := c.log[len(c.log)-1]
	bad := bytes.Clone(e.Data)
	bad[len(bad)-3] ^= 0xff
	nd := c.nodes[1]
	if err := nd.tryApply(e.Index - 1); err != nil {
		t.Fatal(err)
	}
	e.Data = bad
	if err := nd.p.Apply([]raftpb.Entry{e}); !errors.Is(err, ErrDamaged) {
		t.Fatalf("got %v", err)
	}
	if nd.p.log.EndOffset() != 0 {
		t.Fatal("appended")
	}
}

func TestReplayOfOtherBytesThanTheSegmentHoldsFences(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.send(batchSpec{records: 2, value: "a"})
	c.flow()
	c.log[len(c.log)-1].Data = func() []byte {
		b := makeBatch(t, batchSpec{records: 2, value: "b"})
		record.SetOffset(b, 0, int32(c.term))
		return b
	}()
	nd := c.leader
	nd.crash(1, true)
	if err := nd.tryApply(c.lastIndex()); !errors.Is(err, ErrDamaged) {
		t.Fatalf("got %v", err)
	}
}

func TestApplySkipsRaftsOwnEntries(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	i := c.lastIndex()
	err := c.leader.p.Apply([]raftpb.Entry{
		{Index: i + 1, Term: 2}, {Index: i + 2, Term: 2, Type: raftpb.EntryConfChangeV2, Data: []byte("not ours")},
	})
	if index, _, _, _ := c.leader.p.Snapshot(); err != nil || index != i+2 || c.leader.p.HighWatermark() != 0 {
		t.Fatalf("index %d, %v", index, err)
	}
}

// A checkpoint is written after the flush of what it covers: what is missing below it was lost. The replica comes up, since its raft
// log is whole, and says of these records, and of no others, that they can't be read.
func TestSegmentShorterThanItsCheckpointIsDamage(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.send(batchSpec{records: 2})
	c.flow()
	nd := c.leader
	nd.m.Pinned(testGroup, 0)
	c.settle()
	nd.down(0, true)
	dir := "/data/t/0.7/0000000000000000"
	names, err := nd.fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if err := nd.fs.Remove(dir + "/" + n); err != nil {
			t.Fatal(err)
		}
	}
	nd.open()
	c.elect(0, false)
	c.send(batchSpec{records: 3})
	c.flow()
	c.settle()
	p := nd.p
	if _, err := p.Fetch(FetchRequest{Offset: 0, MaxBytes: 1 << 20, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1}); !errors.Is(err, ErrDamaged) || !errors.Is(err, ErrStorage) {
		t.Fatalf("got %v", err)
	}
	if res, err := p.Fetch(FetchRequest{Offset: 2, MaxBytes: 1 << 20, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1}); err != nil || len(res.Records) == 0 || res.HighWatermark != 5 {
		t.Fatalf("got %+v, %v", res, err)
	}
	if d := p.Damage(); len(d) != 1 || d[0].From != 0 || d[0].To != 2 {
		t.Fatalf("damage %+v", d)
	}
}

func TestRecordsOfAGroupWhoseLogIsGoneAreNotOverwritten(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.send(batchSpec{})
	c.flow()
	nd := c.leader
	nd.down(0, true)
	nd.known = false
	if err := nd.tryOpen(); !errors.Is(err, ErrDamaged) {
		t.Fatalf("got %v", err)
	}
}

func TestOpenRefusesAReplicaTheImageDoesNotName(t *testing.T) {
	c := newCluster(t, 1, nil)
	topic, part := c.topic()
	self := part.Replicas[0]
	self.ID++
	m, err := NewManager(c.nodes[0].m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Open(topic, part, self); err == nil {
		t.Fatal("accepted")
	}
	self = part.Replicas[0]
	self.Dir[0]++ // a wiped disk under the same node id
	if err := m.Open(topic, part, self); err == nil {
		t.Fatal("accepted")
	}
}

func TestFlushIsPacedAndPinnedFlushesAtOnce(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.send(batchSpec{})
	c.flow()
	nd := c.leader
	c.settle()
	if nd.lastCP != 0 {
		t.Fatal("flushed at once")
	}
	c.advance(6 * time.Second)
	if nd.lastCP != 1 || nd.cp.Index != c.lastIndex() {
		t.Fatalf("%d checkpoints, index %d of %d", nd.lastCP, nd.cp.Index, c.lastIndex())
	}
	c.advance(30 * time.Second)
	if nd.lastCP != 1 {
		t.Fatal("a clean partition was flushed again")
	}
	c.send(batchSpec{})
	c.flow()
	nd.m.Pinned(testGroup, c.lastIndex())
	c.settle()
	if nd.lastCP != 2 || nd.cp.Index != c.lastIndex() {
		t.Fatal("the log's hint was not followed")
	}
}

// TestCheckpointNeverRunsAheadOfTheDisk: after any power cut the segments reach at least to the checkpoint.
func TestCheckpointNeverRunsAheadOfTheDisk(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	nd := c.leader
	for i := range uint64(60) {
		c.send(batchSpec{records: 3, value: fmt.Sprint(i)})
		c.flow()
		nd.m.Step()
		if i%2 == 0 {
			nd.m.Pinned(testGroup, 0)
			nd.m.Step()
		}
		clone := nd.fs.CrashClone(i)
		other := &node{c: c, id: 0, fs: clone, cp: nd.cp, known: true}
		if err := other.tryOpen(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		other.p, _ = other.m.Lookup("t", 0)
		other.applied = max(other.cp.Index, 1)
		other.apply()
		if !bytes.Equal(other.contents(), nd.contents()) {
			t.Fatalf("step %d: contents differ", i)
		}
		if err := other.p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFailedFlushStopsTheNodeAndGivesNoCheckpoint(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.send(batchSpec{})
	c.flow()
	nd := c.leader
	nd.fs.Inject(vfs.Fault{Ops: vfs.OpSync, Match: "*.log"})
	nd.m.Pinned(testGroup, 0)
	c.settle()
	if nd.fatal == nil || !errors.Is(nd.fatal, ErrStorage) || nd.lastCP != 0 {
		t.Fatalf("fatal %v, %d checkpoints", nd.fatal, nd.lastCP)
	}
}

// TestRetentionIsAnEntry is RAFT.md 2.
func TestRetentionIsAnEntryAndFilesGoLater(t *testing.T) {
	c := newCluster(t, 3, func(c *cluster) { c.cfg.Segment.RetentionBytes = 8 << 10 })
	c.elect(0, false)
	for range 200 {
		c.send(batchSpec{records: 2, value: "0123456789012345678901234567890123456789"})
	}
	c.flow()
	for _, nd := range c.nodes[1:] { // followers never decide
		nd.m.enqueue(nd.p, taskMaintain)
		c.settle()
		if nd.p.LogStart() != 0 {
			t.Fatal("a follower moved its log start")
		}
	}
	c.advance(61 * time.Second)
	if len(c.leader.queue) != 1 || c.leader.p.LogStart() != 0 {
		t.Fatalf("%d proposals, log start %d", len(c.leader.queue), c.leader.p.LogStart())
	}
	c.flow()
	start := c.leader.p.LogStart()
	for _, nd := range c.nodes {
		if nd.p.LogStart() != start || start == 0 {
			t.Fatalf("node %d starts at %d", nd.id, nd.p.LogStart())
		}
	}
	c.agree()
	c.advance(3 * time.Minute)
	for _, nd := range c.nodes {
		if nd.p.Size() > 16<<10 {
			t.Fatalf("node %d holds %d bytes", nd.id, nd.p.Size())
		}
		nd.crash(5, false)
		nd.apply()
		if nd.p.LogStart() != start {
			t.Fatalf("after a power cut node %d starts at %d", nd.id, nd.p.LogStart())
		}
	}
	c.agree()
}

// TestProducersAreForgottenByTheLeadersDecision is RAFT.md 1: a follower's clock decides nothing.
// TestAChangedSegmentSizeHoldsForTheNextBatch: on every replica, without waiting for the next maintenance.
func TestAChangedSegmentSizeHoldsForTheNextBatch(t *testing.T) {
	c := newCluster(t, 2, func(c *cluster) { c.cfg.Segment.SegmentBytes = 1 << 20 })
	c.elect(0, false)
	c.fillAll(5)
	c.cfg.Segment.SegmentBytes = 1
	c.fillAll(3)
	for i, nd := range c.nodes {
		if n := nd.p.log.Segments(); n != 4 {
			t.Errorf("node %d has %d segments, one and three of a batch each were expected", i, n)
		}
	}
}

func TestProducersAreForgottenByTheLeadersDecision(t *testing.T) {
	c := newCluster(t, 2, func(c *cluster) { c.cfg.ProducerExpiry = time.Hour })
	c.elect(0, false)
	c.send(batchSpec{producer: 1})
	c.send(batchSpec{producer: 2})
	c.flow()
	c.advance(90 * time.Second) // a sample is taken
	for range 70 {
		c.send(batchSpec{producer: 2, seq: int32(c.leader.p.HighWatermark()) - 1})
		c.flow()
		c.advance(time.Minute)
		c.flow()
	}
	for _, nd := range c.nodes {
		if nd.p.st.producers.get(1) != nil {
			t.Fatalf("node %d still knows producer 1", nd.id)
		}
		if nd.p.st.producers.get(2) == nil {
			t.Fatalf("node %d forgot producer 2, which is alive", nd.id)
		}
	}
	c.agree()
	r := c.send(batchSpec{producer: 1, seq: 55})
	c.flow()
	r.want(t, c.leader.p.HighWatermark()-1, nil)
}

func TestProducersPerPartitionAreBounded(t *testing.T) {
	c := newCluster(t, 2, func(c *cluster) { c.limits.Producers = 10 })
	c.elect(0, false)
	for i := range int64(30) {
		c.send(batchSpec{producer: i + 1})
		c.flow()
	}
	c.advance(61 * time.Second)
	c.flow()
	for _, nd := range c.nodes {
		if n := nd.p.st.producers.len(); n != 10 {
			t.Fatalf("node %d knows %d producers", nd.id, n)
		}
		if nd.p.st.producers.get(30) == nil || nd.p.st.producers.get(20) != nil {
			t.Fatal("not the oldest were forgotten")
		}
	}
	tab := newProducerTable()
	for i := range int64(maxProducers + 5) {
		tab.observe(&record.Header{ProducerID: i}, uint64(i+1))
	}
	if tab.len() != maxProducers || tab.get(4) != nil || tab.get(5) == nil {
		t.Fatalf("%d producers", tab.len())
	}
}

func TestDiskFullInApplyUsesTheReserve(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	nd := c.leader
	c.send(batchSpec{records: 2})
	c.flow()
	nd.fs.SetCapacity(nd.fs.Used())
	freed := 0
	nd.m.cfg.FreeReserve = func() bool {
		freed++
		nd.fs.SetCapacity(0)
		return true
	}
	for range 20 {
		c.send(batchSpec{records: 20, value: "0123456789012345678901234567890123456789"})
	}
	c.flow()
	if freed == 0 || nd.p.HighWatermark() != 402 || nd.fatal != nil {
		t.Fatalf("freed %d times, high watermark %d, fatal %v", freed, nd.p.HighWatermark(), nd.fatal)
	}
}
