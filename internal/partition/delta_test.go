package partition

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/throttle"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// stageResult is how a Stage ended.
type stageResult struct {
	n   int
	err error
}

// stage offers leader's snapshot to a follower.
func (c *cluster) stage(follower, leader int) (raftpb.Snapshot, *stageResult) {
	c.t.Helper()
	index, term, data, err := c.nodes[leader].p.Snapshot()
	if err != nil {
		c.t.Fatal(err)
	}
	snap := raftpb.Snapshot{Data: data, Metadata: raftpb.SnapshotMetadata{Index: index, Term: term}}
	r := &stageResult{}
	c.nodes[follower].p.Stage(snap, c.peer(follower, leader), func(err error) { r.n, r.err = r.n+1, err })
	return snap, r
}

// install is what multiraft does once raft has taken the snapshot: the mark in the log, then the state.
func (nd *node) install(snap raftpb.Snapshot) error {
	nd.mark(snap)
	if err := nd.p.Install(snap); err != nil {
		return err
	}
	nd.applied = snap.Metadata.Index
	return nil
}

func (nd *node) mark(snap raftpb.Snapshot) {
	nd.syncCP(len(nd.cps)) // the mark's fsync covers what was written before it
	nd.cp = wal.Checkpoint{Index: snap.Metadata.Index, Term: snap.Metadata.Term, State: snap.Data}
}

// fill commits n batches that only the leader applies.
func (c *cluster) fill(n int) {
	for i := range n {
		c.send(batchSpec{records: 3, producer: 11, seq: int32(c.leader.p.EndOffset()), value: fmt.Sprintf("%060d", i)})
		c.propose(false)
		c.commit()
		c.leader.apply()
	}
}

func (c *cluster) fetched(r *stageResult) {
	c.t.Helper()
	for range 600 {
		c.settle()
		if r.n > 0 {
			break
		}
		c.advance(100 * time.Millisecond)
	}
	if r.n != 1 || r.err != nil {
		c.t.Fatalf("staging: %d answers, %v", r.n, r.err)
	}
}

// TestDeltaCatchUp is RAFT.md 13: the follower fetches what it lacks, over a network that loses, doubles and damages.
func TestDeltaCatchUp(t *testing.T) {
	for seed := range uint64(20) {
		c := newCluster(t, 2, nil)
		c.elect(0, false)
		c.fill(5)
		c.nodes[1].apply()
		c.fill(60)
		rng := newRand(seed)
		kinds := map[transport.Kind]int{}
		if seed > 0 {
			c.drop = func(env transport.Envelope) int {
				kinds[env.Kind]++
				switch rng.IntN(6) {
				case 0:
					return 0
				case 1:
					return 2
				case 2:
					if env.Kind == transport.KindDeltaChunk {
						env.Body[rng.IntN(len(env.Body))] ^= 4
					}
				}
				return 1
			}
		}
		f := c.nodes[1]
		snap, r := c.stage(1, 0)
		c.fetched(r)
		if f.p.HighWatermark() != 15 {
			t.Fatalf("staged bytes are visible: %d", f.p.HighWatermark())
		}
		c.drop = nil
		if err := f.install(snap); err != nil {
			t.Fatal(err)
		}
		if f.p.HighWatermark() != c.leader.p.HighWatermark() {
			t.Fatalf("high watermark %d", f.p.HighWatermark())
		}
		c.fill(3)
		f.apply()
		c.agree()
		c.elect(1, false) // and it may lead, duplicates and all
		again := c.send(batchSpec{records: 3, producer: 11, seq: int32(c.leader.p.EndOffset()) - 6})
		c.flow()
		again.want(t, c.leader.p.EndOffset()-6, nil)
	}
}

func TestApplyBesideStagingComparesAndSkips(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fill(40)
	f := c.nodes[1]
	snap, r := c.stage(1, 0)
	for i := range 2000 { // the follower's own log still yields entries while it stages
		f.m.Step()
		if len(c.net) > 0 {
			c.deliver()
		}
		c.nodes[0].m.Step()
		if i%3 == 0 && f.applied < c.lastIndex()-5 {
			if err := f.tryApply(f.applied + 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.fetched(r)
	if err := f.install(snap); err != nil {
		t.Fatal(err)
	}
	c.agree()
}

func TestSnapshotThatRaftIgnoresLeavesTheStateAlone(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fill(40)
	_, r := c.stage(1, 0)
	c.fetched(r)
	f := c.nodes[1]
	if f.p.HighWatermark() != 0 {
		t.Fatal("visible without Install")
	}
	f.crash(1, false)
	if f.p.HighWatermark() != 0 {
		t.Fatal("visible after a crash")
	}
	f.apply() // the log itself arrives after all
	c.agree()
}

// TestNewerStageReplacesOlder: and each is answered once.
func TestNewerStageReplacesOlder(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fill(10)
	_, first := c.stage(1, 0)
	c.nodes[1].m.Step()
	c.fill(10)
	snap, second := c.stage(1, 0)
	if first.n != 1 || !errors.Is(first.err, errSuperseded) {
		t.Fatalf("%+v", first)
	}
	c.fetched(second)
	if first.n != 1 {
		t.Fatal("answered twice")
	}
	if err := c.nodes[1].install(snap); err != nil {
		t.Fatal(err)
	}
	c.agree()
}

func TestStagingEndsWhenTheLeaderIsGone(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fill(60)
	chunks := 0
	c.drop = func(env transport.Envelope) int {
		if env.Kind == transport.KindDeltaChunk {
			if chunks++; chunks > 3 {
				return 0
			}
		}
		return 1
	}
	_, r := c.stage(1, 0)
	c.settle()
	c.advance(c.nodes[1].m.cfg.Limits.StageTimeout - time.Second)
	if r.n != 0 {
		t.Fatalf("gave up early: %v", r.err)
	}
	c.advance(3 * time.Second)
	if r.n != 1 || !errors.Is(r.err, errNoProgress) {
		t.Fatalf("%+v", r)
	}
	if c.nodes[1].m.slots != c.nodes[1].m.cfg.Limits.Staging {
		t.Fatal("a slot is lost")
	}
	c.drop = nil
	snap, again := c.stage(1, 0) // what was fetched is not fetched again
	c.fetched(again)
	if err := c.nodes[1].install(snap); err != nil {
		t.Fatal(err)
	}
	c.agree()
}

func TestCloseEndsStaging(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fill(10)
	_, r := c.stage(1, 0)
	c.nodes[1].m.Step()
	if err := c.nodes[1].p.Close(); err != nil {
		t.Fatal(err)
	}
	if r.n != 1 || !errors.Is(r.err, multiraft.ErrStopped) {
		t.Fatalf("%+v", r)
	}
}

// behindLogStart makes node 1 end below the leader's log start, with something of its own.
func behindLogStart(t *testing.T) *cluster {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fill(4)
	c.nodes[1].apply()
	c.nodes[1].m.Pinned(testGroup, 0)
	c.settle()
	c.fill(60)
	c.leader.p.DeleteRecords(100, func(_ int64, err error) {
		if err != nil {
			t.Error(err)
		}
	})
	c.propose(false)
	c.commit()
	c.leader.apply()
	return c
}

func TestFollowerBelowTheLogStartIsResynchronisedWhole(t *testing.T) {
	c := behindLogStart(t)
	f := c.nodes[1]
	snap, r := c.stage(1, 0)
	c.fetched(r)
	if res, err := f.p.Fetch(FetchRequest{Offset: 0, MaxBytes: 1, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1, Follower: true}); err != nil || len(res.Records) == 0 {
		t.Fatalf("the old state must serve until Install: %v", err)
	}
	if err := f.install(snap); err != nil {
		t.Fatal(err)
	}
	if f.p.LogStart() != 100 || f.p.HighWatermark() != 192 {
		t.Fatalf("log from %d to %d", f.p.LogStart(), f.p.HighWatermark())
	}
	c.settle()
	if names, err := f.fs.List("/data/t/0.7"); err != nil || len(names) != 1 {
		t.Fatalf("generations left: %v, %v", names, err)
	}
	c.fill(3)
	f.apply()
	if string(c.nodes[0].encoded()) != string(f.encoded()) {
		t.Fatal("states differ")
	}
	if string(c.nodes[0].from(100)) != string(f.from(100)) {
		t.Fatal("records differ")
	}
	f.crash(9, false)
	f.apply()
	if f.p.LogStart() != 100 || f.p.HighWatermark() != c.leader.p.HighWatermark() {
		t.Fatalf("after a power cut: log from %d to %d", f.p.LogStart(), f.p.HighWatermark())
	}
}

func TestLogStartThatPassesTheFetchStartsItOver(t *testing.T) {
	c := behindLogStart(t)
	f := c.nodes[1]
	snap, r := c.stage(1, 0)
	for range 12 {
		f.m.Step()
		if len(c.net) > 0 {
			c.deliver()
		}
		c.nodes[0].m.Step()
	}
	c.leader.p.DeleteRecords(180, func(int64, error) {})
	c.propose(false)
	c.commit()
	c.leader.apply()
	c.fetched(r)
	if err := f.install(snap); err != nil {
		t.Fatal(err)
	}
	f.apply()
	if f.p.LogStart() != 180 || f.p.HighWatermark() != 192 {
		t.Fatalf("log from %d to %d", f.p.LogStart(), f.p.HighWatermark())
	}
	if string(c.nodes[0].encoded()) != string(f.encoded()) {
		t.Fatal("states differ")
	}
}

func TestWholeResyncWhenTheLeaderHasDeletedEverything(t *testing.T) {
	c := behindLogStart(t)
	c.leader.p.DeleteRecords(-1, func(int64, error) {})
	c.propose(false)
	c.commit()
	c.leader.apply()
	f := c.nodes[1]
	snap, r := c.stage(1, 0)
	c.fetched(r)
	if err := f.install(snap); err != nil {
		t.Fatal(err)
	}
	c.fill(2)
	f.apply()
	if f.p.LogStart() != 192 || f.p.HighWatermark() != 198 {
		t.Fatalf("log from %d to %d", f.p.LogStart(), f.p.HighWatermark())
	}
}

// TestPowerCutDuringCatchUpGivesOldStateOrNew is FAULTS 18, at every step, before and after the log's snapshot mark.
func TestPowerCutDuringCatchUpGivesOldStateOrNew(t *testing.T) {
	scenarios := map[string]func(t *testing.T) *cluster{
		"whole": behindLogStart,
		"delta": func(t *testing.T) *cluster {
			c := newCluster(t, 2, nil)
			c.elect(0, false)
			c.fill(4)
			c.nodes[1].apply()
			c.nodes[1].m.Pinned(testGroup, 0)
			c.settle()
			c.fill(60)
			return c
		},
	}
	for name, make := range scenarios {
		t.Run(name, func(t *testing.T) {
			c := make(t)
			f := c.nodes[1]
			oldCP := f.cp
			snap, r := c.stage(1, 0)
			seed := uint64(0)
			check := func(cp wal.Checkpoint, end int64) {
				t.Helper()
				for range 2 {
					seed++
					n := &node{c: c, id: 1, fs: f.fs.CrashClone(seed), cp: cp, known: true}
					if err := n.tryOpen(); err != nil {
						t.Fatalf("seed %d, checkpoint %d: %v", seed, cp.Index, err)
					}
					n.p, _ = n.m.Lookup("t", 0)
					n.applied = cp.Index
					if n.p.HighWatermark() != end {
						t.Fatalf("seed %d: high watermark %d, want %d", seed, n.p.HighWatermark(), end)
					}
					n.apply()
					if string(n.encoded()) != string(c.nodes[0].encoded()) {
						t.Fatalf("seed %d: state differs after replay", seed)
					}
					if string(c.nodes[0].from(150)) != string(n.from(150)) {
						t.Fatalf("seed %d: records differ", seed)
					}
					if err := n.p.Close(); err != nil {
						t.Fatal(err)
					}
				}
			}
			for i := 0; i < 3000 && r.n == 0; i++ {
				f.m.Step()
				if i%4 == 0 {
					check(oldCP, 12)
				}
				c.nodes[0].m.Step()
				if len(c.net) > 0 {
					c.deliver()
				}
			}
			if r.n != 1 || r.err != nil {
				t.Fatalf("%+v", r)
			}
			check(oldCP, 12) // staged, raft has not taken it
			f.mark(snap)
			check(f.cp, 192) // marked, not installed
			if err := f.p.Install(snap); err != nil {
				t.Fatal(err)
			}
			f.applied = snap.Metadata.Index
			for range 10 {
				check(f.cp, 192)
				f.m.Step()
			}
			if f.cp.Index != snap.Metadata.Index || string(f.cp.State) != string(snap.Data) {
				t.Fatal("the log takes no second checkpoint at the mark's index")
			}
			c.fill(1)
			f.apply()
			f.m.Pinned(testGroup, 0)
			c.settle()
			if f.cp.Index != c.lastIndex() || string(f.cp.State) == string(snap.Data) {
				t.Fatal("no checkpoint of its own after the next entry")
			}
			check(f.cp, 195)
		})
	}
}

// TestFailedStagingDirectoryDoesNotStopTheNode: nobody depends on it yet.
func TestFailedStagingDirectoryDoesNotStopTheNode(t *testing.T) {
	c := behindLogStart(t)
	f := c.nodes[1]
	_, r := c.stage(1, 0)
	f.fs.Inject(vfs.Fault{Ops: vfs.OpMkdir})
	c.settle()
	if r.n != 1 || !errors.Is(r.err, ErrStorage) || f.fatal != nil {
		t.Fatalf("%+v, fatal %v", r, f.fatal)
	}
	snap, again := c.stage(1, 0)
	c.fetched(again)
	if err := f.install(snap); err != nil {
		t.Fatal(err)
	}
}

// A sync that fails while a new generation is filled stops the node like any other: nothing is flushed after it, and attempts would fail for
// ever, each for the file of the first (simulator, seed 19).
func TestFailedSyncOfAStagedGenerationStopsTheNode(t *testing.T) {
	for _, file := range []string{"*.log", "leader-epoch-checkpoint.tmp"} {
		c := behindLogStart(t)
		f := c.nodes[1]
		_, r := c.stage(1, 0)
		f.fs.Inject(vfs.Fault{Ops: vfs.OpSync, Match: file, Err: syscall.EIO})
		for i := 0; i < 600 && r.n == 0; i++ {
			c.settle()
			c.advance(100 * time.Millisecond)
		}
		if r.n != 1 || !errors.Is(r.err, ErrStorage) || f.fatal == nil {
			t.Fatalf("%s: %+v, fatal %v", file, r, f.fatal)
		}
	}
}

func TestDeltaIsRateBounded(t *testing.T) {
	c := newCluster(t, 2, func(c *cluster) { c.limits.DeltaBytesPerSecond = 4 << 10 })
	c.elect(0, false)
	c.fill(120)
	size := c.leader.p.Size()
	start := c.clk.Now()
	_, r := c.stage(1, 0)
	c.fetched(r)
	took := c.clk.Now().Sub(start)
	if least := time.Duration(size-4<<10) * time.Second / (4 << 10) / 2; took < least {
		t.Fatalf("%d bytes in %v", size, took)
	}
}

func TestRetentionWaitsForAFollowerThatCatchesUp(t *testing.T) {
	c := newCluster(t, 2, func(c *cluster) { c.cfg.Segment.RetentionBytes = 8 << 10 })
	c.elect(0, false)
	c.fill(150)
	p := c.leader.p
	now := c.clk.Now()
	free := p.retention(now, &c.cfg)
	p.stageMu.Lock()
	p.noteCursor(101, 6)
	p.stageMu.Unlock()
	if got := p.retention(now, &c.cfg); free <= 6 || got != 6 {
		t.Fatalf("retention at %d, without the follower %d", got, free)
	}
	c.leader.m.cfg.Limits.PinBytes = 1
	if got := p.retention(now, &c.cfg); got != free {
		t.Fatalf("the cap does not hold: %d", got)
	}
	c.leader.m.cfg.Limits.PinBytes = 1 << 30
	if got := p.retention(now.Add(cursorLife), &c.cfg); got != free {
		t.Fatalf("a follower gone for good pins: %d", got)
	}
}

func TestStagingSlotsAreBoundedAndPassedOn(t *testing.T) {
	c := newCluster(t, 2, func(c *cluster) { c.limits.Staging = 1 })
	c.elect(0, false)
	c.fill(10)
	f := c.nodes[1]
	other, err := f.m.add("other", 0, 99, 101, 99)
	if err != nil {
		t.Fatal(err)
	}
	if !f.m.takeSlot(other) {
		t.Fatal("no slot")
	}
	_, r := c.stage(1, 0)
	c.settle()
	if r.n != 0 || f.p.log.EndOffset() != 0 {
		t.Fatal("staged without a slot")
	}
	f.m.releaseSlot()
	c.fetched(r)
	if f.m.slots != 1 {
		t.Fatalf("%d slots", f.m.slots)
	}
}

// A replica that the group commits without, and that a throttle holds up on either side, leaves the slot to others: one of these may be what
// another group waits for (simulator, seed 1830: under a throttle of leaders a group with one replica down never committed again).
func TestAThrottledReplicaHoldsNoSlot(t *testing.T) {
	for _, side := range []string{"leader", "follower"} {
		t.Run(side, func(t *testing.T) {
			c := newCluster(t, 2, func(c *cluster) { c.limits.Staging, c.spare = 1, true })
			rate := int64(0)
			for i, nd := range c.nodes {
				nd.m.cfg.Throttle = &throttle.Replication{
					Node: int32(i), Leader: throttle.NewLimit(func() int64 { return rate }), Follower: throttle.NewLimit(func() int64 { return rate }),
					Replicas: func(string) (leader, follower throttle.Replicas) {
						if side == "leader" {
							return throttle.ParseReplicas("*"), throttle.Replicas{}
						}
						return throttle.Replicas{}, throttle.ParseReplicas("*")
					},
				}
			}
			c.elect(0, false)
			c.fill(10)
			f := c.nodes[1]
			_, r := c.stage(1, 0)
			for range 20 {
				c.settle()
				c.advance(100 * time.Millisecond)
			}
			if r.n != 0 {
				t.Fatalf("staged at a rate of nothing: %v", r.err)
			}
			other, err := f.m.add("other", 0, 99, 101, 99)
			if err != nil {
				t.Fatal(err)
			}
			if !f.m.takeSlot(other) {
				t.Fatal("the slot is held")
			}
			f.m.releaseSlot()
			rate = throttle.Unlimited
			c.fetched(r)
			if f.m.slots != 1 {
				t.Fatalf("%d slots", f.m.slots)
			}
		})
	}
}

// A follower whose log is not the beginning of the leader's (it can't be: it is damage that no sum shows) must not be patched
// up: it is fetched whole, and its own bytes are given up.
func TestFollowerWhoseLogDiffersIsFetchedWhole(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fill(5)
	f := c.nodes[1]
	f.apply()
	odd := makeBatch(t, batchSpec{records: 1, value: "not the leader's"})
	record.SetOffset(odd, 15, 2)
	if err := f.p.log.Append(odd); err != nil { // ends inside a batch of the leader's
		t.Fatal(err)
	}
	c.fill(40)
	snap, r := c.stage(1, 0)
	c.fetched(r)
	if f.p.generation != 0 || f.p.HighWatermark() != 15 {
		t.Fatal("visible before it is installed")
	}
	if err := f.install(snap); err != nil {
		t.Fatal(err)
	}
	if f.p.generation != snap.Metadata.Index {
		t.Fatalf("generation %d", f.p.generation)
	}
	c.agree()
	f.crash(3, false)
	f.apply()
	c.agree()
}
