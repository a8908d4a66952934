package partition

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/vfs"
)

// deletable is a node whose log start has moved far beyond the end offset of its only durable checkpoint; the checkpoint that
// knows of the new start has been handed over and is not durable.
func deletable(t *testing.T) (c *cluster, nd *node) {
	c = newCluster(t, 1, nil)
	c.elect(0, false)
	nd = c.nodes[0]
	c.fill(5)
	nd.m.Pinned(testGroup, 0)
	c.settle()
	nd.holdCP = true
	c.fill(100)
	low := int64(-1)
	c.leader.p.DeleteRecords(280, func(l int64, err error) {
		if err != nil {
			t.Error(err)
		}
		low = l
	})
	c.flow()
	if low != 280 {
		t.Fatalf("log start %d", low)
	}
	nd.m.Pinned(testGroup, 0)
	c.settle()
	if len(nd.cps) != 1 {
		t.Fatalf("%d checkpoints are on their way", len(nd.cps))
	}
	return c, nd
}

// Rule 7: a file may go once a durable checkpoint no longer needs it. Handing a checkpoint over is not enough: a power cut would
// leave a checkpoint that ends before the first file begins, on every replica at once.
func TestFilesGoOnlyOnceTheirCheckpointIsDurable(t *testing.T) {
	c, nd := deletable(t)
	files := nd.p.log.Segments()
	if files < 4 {
		t.Fatalf("%d segments show nothing", files)
	}
	c.advance(2 * time.Minute) // maintenance comes by
	if n := nd.p.log.Segments(); n != files {
		t.Fatalf("%d of %d segments left before the checkpoint was durable", n, files)
	}
	nd.crash(0, false) // seed 0 keeps none of the checkpoints on their way
	if nd.cp.Index >= c.lastIndex() {
		t.Fatal("the checkpoint survived; the test shows nothing")
	}
	nd.holdCP = true
	nd.apply()
	if nd.p.LogStart() != 280 || nd.p.HighWatermark() != 315 {
		t.Fatalf("came back with [%d, %d)", nd.p.LogStart(), nd.p.HighWatermark())
	}
	nd.m.Pinned(testGroup, 0)
	c.settle()
	nd.syncCP(len(nd.cps))
	c.advance(2 * time.Minute)
	if n := nd.p.log.Segments(); n >= files/2 {
		t.Fatalf("%d of %d segments are left", n, files)
	}
	nd.crash(1, false)
	nd.apply()
	if nd.p.LogStart() != 280 || nd.p.HighWatermark() != 315 {
		t.Fatalf("came back with [%d, %d)", nd.p.LogStart(), nd.p.HighWatermark())
	}
}

// The checkpoint asks for an fsync only where something waits for it.
func TestCheckpointAsksForAnFsyncOnlyWhenFilesWaitForIt(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	nd := c.nodes[0]
	nd.holdCP = true
	c.fill(3)
	nd.m.Pinned(testGroup, 0)
	c.settle()
	c.leader.p.DeleteRecords(3, func(int64, error) {})
	c.flow()
	nd.m.Pinned(testGroup, 0)
	c.settle()
	if len(nd.cps) != 2 || nd.cps[0].done != nil || nd.cps[1].done == nil {
		t.Fatalf("%d checkpoints", len(nd.cps))
	}
	nd.syncCP(2)
	c.fill(1)
	nd.m.Pinned(testGroup, 0)
	c.settle()
	if len(nd.cps) != 1 || nd.cps[0].done != nil {
		t.Fatal("an fsync for nothing")
	}
}

// A power cut at any moment between the removal of files and well after: there is always a checkpoint that fits the files.
func TestPowerCutsAroundTheRemovalOfFiles(t *testing.T) {
	for _, durable := range []bool{false, true} {
		c, nd := deletable(t)
		if durable {
			nd.syncCP(1)
		}
		n := 0
		var clones []*vfs.Mem
		var inHook bool
		nd.fs.SetHook(func(vfs.Op, string, time.Duration) {
			if n++; !inHook && n%2 == 0 && len(clones) < 120 {
				inHook = true
				clones = append(clones, nd.fs.CrashClone(uint64(n)))
				inHook = false
			}
		})
		c.advance(2 * time.Minute)
		nd.fs.SetHook(nil)
		clones = append(clones, nd.fs.CrashClone(1), nd.fs.CrashClone(2))
		for i, fs := range clones {
			other := &node{c: c, id: 0, fs: fs, cp: nd.cp, known: true}
			if err := other.tryOpen(); err != nil {
				t.Fatalf("durable %v, cut %d: %v", durable, i, err)
			}
			other.p, _ = other.m.Lookup("t", 0)
			other.applied = other.cp.Index
			if err := other.tryApply(c.lastIndex()); err != nil {
				t.Fatalf("durable %v, cut %d: %v", durable, i, err)
			}
			if other.p.LogStart() != 280 || other.p.HighWatermark() != 315 {
				t.Fatalf("durable %v, cut %d: came back with [%d, %d)", durable, i, other.p.LogStart(), other.p.HighWatermark())
			}
			other.stop()
		}
		if durable && n == 0 {
			t.Fatal("nothing was removed")
		}
	}
}

// After a delta is installed the log's checkpoint is the leader's, and stays so while nothing new is applied. Where the next
// catch-up begins a new directory, a crash leaves two, and neither is named by that checkpoint.
func TestPowerCutInTheStagingAfterAnInstalledDelta(t *testing.T) {
	for seed := range uint64(12) {
		c := newCluster(t, 2, nil)
		c.elect(0, false)
		c.fill(40)
		f := c.nodes[1]
		snap, r := c.stage(1, 0)
		c.fetched(r)
		if err := f.install(snap); err != nil {
			t.Fatal(err)
		}
		c.settle()
		end := f.p.HighWatermark()
		c.fill(60)
		c.leader.p.DeleteRecords(250, func(int64, error) {})
		c.propose(false)
		c.commit()
		c.leader.apply()
		_, again := c.stage(1, 0)
		gens, err := []uint64(nil), error(nil)
		for range 12 { // begun, not done
			f.m.Step()
			if gens, err = f.p.generations(); len(gens) == 2 {
				break
			}
			c.nodes[0].m.Step()
			if len(c.net) > 0 {
				c.deliver()
			}
		}
		if err != nil || len(gens) != 2 || again.n != 0 {
			t.Fatalf("generations %v, %v, staging ended %d times", gens, err, again.n)
		}
		if st, _ := decodeState(f.cp.State); st.replica == f.p.self {
			t.Fatal("the checkpoint is not the leader's: the test shows nothing")
		}
		f.crash(seed, seed%3 == 0)
		if f.p.HighWatermark() != end {
			t.Fatalf("seed %d: came back with %d, not %d", seed, f.p.HighWatermark(), end)
		}
		if gens, _ := f.p.generations(); len(gens) != 1 {
			t.Fatalf("generations %v", gens)
		}
		snap, r = c.stage(1, 0)
		c.fetched(r)
		if err := f.install(snap); err != nil {
			t.Fatal(err)
		}
		c.agree()
	}
}

func TestChooseGeneration(t *testing.T) {
	own := func(gen uint64, start, end int64) state {
		return state{replica: 1, generation: gen, index: 50, start: start, end: end}
	}
	foreign := func(end int64) state { return state{replica: 2, generation: 3, index: 50, end: end} }
	for _, x := range []struct {
		st    state
		fresh bool
		gens  []uint64
		want  int64 // -1: damage
	}{
		{own(7, 0, 9), false, []uint64{7}, 7},
		{own(7, 0, 9), false, []uint64{7, 60}, 7},
		{own(7, 0, 9), false, []uint64{60}, -1},
		{own(7, 9, 9), false, nil, 7}, // nothing in it, so nothing was synced
		{foreign(9), false, []uint64{7, 50}, 50},
		{foreign(9), false, []uint64{50}, 50},
		{foreign(9), false, []uint64{7}, 7},
		{foreign(9), false, []uint64{7, 60}, 7},
		{foreign(9), false, []uint64{60}, -1},
		{foreign(9), false, nil, -1},
		{foreign(0), false, nil, 0},
		{foreign(9), false, []uint64{7, 8}, -1},
		{state{}, true, nil, 0},
		{state{}, true, []uint64{0, 60}, 0},
		{state{}, true, []uint64{60}, -1},
	} {
		gen, err := chooseGeneration(&x.st, x.fresh, 1, x.gens)
		if (err != nil) != (x.want < 0) || err == nil && int64(gen) != x.want {
			t.Errorf("%+v of %v: %d, %v; want %d", x.st, x.gens, gen, err, x.want)
		}
		// So does a tool that does not know which replica it is.
		s := Summary{New: x.fresh, Generation: x.st.generation, Index: x.st.index, Start: x.st.start, End: x.st.end}
		told, foreign, ok := s.Directory(x.gens)
		if ok != (x.want >= 0) || ok && int64(told) != x.want && len(x.gens) > 0 || ok && foreign && x.st.replica != 2 {
			t.Errorf("%+v of %v: a tool takes %d (another's: %v), %v; want %d", x.st, x.gens, told, foreign, ok, x.want)
		}
	}
}

// The leader has checked what it prepared; a follower, and a leader that reads its entries back from a disk, check again.
func TestOneCRCPassOnTheLeader(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	p := c.leader.p
	c.send(batchSpec{records: 3})
	c.propose(false)
	own := c.pending[0].entry
	if !p.prepared(&own) {
		t.Fatal("the leader does not know its own bytes")
	}
	copied := own
	copied.Data = slices.Clone(own.Data)
	older := own
	older.Term--
	shorter := own
	shorter.Data = own.Data[:len(own.Data)-1]
	for name, e := range map[string]*raftEntry{"copy": &copied, "older term": &older, "shorter": &shorter} {
		if p.prepared(e) {
			t.Errorf("the %s passes for the leader's own bytes", name)
		}
	}
	if c.nodes[1].p.prepared(&own) {
		t.Error("a follower trusts what it did not check")
	}
	copied.Data[len(copied.Data)-1] ^= 1
	if err := p.Apply([]raftEntry{copied}); !errors.Is(err, ErrDamaged) {
		t.Fatalf("damaged bytes that are not the prepared ones: %v", err)
	}
	d := newCluster(t, 1, nil)
	d.elect(0, false)
	d.send(batchSpec{records: 3})
	d.propose(false)
	d.depose(false) // as a leader it no longer is, it checks
	if d.nodes[0].p.prepared(&own) {
		t.Error("a deposed leader trusts what it prepared")
	}
}

// TestSnapshotsOfProducers compares the files beside the segments with a model of what producers had written.
func TestSnapshotsOfProducers(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	type last struct {
		seq, offset, time int64
		delta             int32
	}
	model := map[int64]map[int64]last{} // by offset after the batch, then producer
	now := map[int64]last{}
	seqs := map[int64]int32{}
	end, rng := int64(0), newRand(5)
	for i := range 300 {
		id := 1 + rng.Int64N(4)
		n := 1 + rng.IntN(3)
		base := end
		end += int64(n)
		c.send(batchSpec{records: n, producer: id, seq: seqs[id], ts: 1_700_000_000_000 + int64(i), value: fmt.Sprintf("%080d", i)})
		seqs[id] += int32(n)
		now[id] = last{int64(seqs[id] - 1), base + int64(n) - 1, 1_700_000_000_000 + int64(i+n-1), int32(n - 1)}
		at := map[int64]last{}
		for k, v := range now {
			at[k] = v
		}
		model[base+int64(n)] = at
		if i%7 == 6 { // many batches in an entry, several rolls
			c.propose(false)
		}
		if i%21 == 20 {
			c.flow()
			c.settle()
		}
	}
	c.flow()
	c.settle()
	for _, nd := range c.nodes {
		logs, snaps, err := segmentNames(nd.p, nd.p.log)
		if err != nil || len(logs) < 5 {
			t.Fatalf("%v, %v", logs, err)
		}
		if !slices.Equal(logs[1:], snaps) {
			t.Fatalf("node %d: segments at %v, snapshots at %v", nd.id, logs, snaps)
		}
		for _, base := range snaps {
			got := nd.snapshot(base)
			if len(got) != len(model[base]) {
				t.Fatalf("node %d at %d: %d producers, want %d", nd.id, base, len(got), len(model[base]))
			}
			for _, e := range got {
				w := model[base][e.ProducerID]
				if int64(e.LastSequence) != w.seq || e.LastOffset != w.offset || e.OffsetDelta != w.delta {
					t.Fatalf("node %d at %d: %+v, want %+v", nd.id, base, e, w)
				}
				if e.Timestamp != w.time || e.CoordinatorEpoch != -1 || e.TxnFirstOffset != -1 {
					t.Fatalf("node %d at %d: %+v", nd.id, base, e)
				}
			}
		}
	}
	c.leader.p.DeleteRecords(400, func(int64, error) {})
	c.flow()
	c.advance(3 * time.Minute)
	for _, nd := range c.nodes {
		logs, snaps, _ := segmentNames(nd.p, nd.p.log)
		if logs[0] < 300 || len(snaps) == 0 || snaps[0] < logs[0] {
			t.Fatalf("node %d: segments %v, snapshots %v", nd.id, logs, snaps)
		}
		nd.crash(3, true) // they don't disturb a restart
		nd.apply()
	}
	c.agree()
}

var _ Replica = (*multiraft.Replica)(nil)

// A power cut keeps and loses unsynced names as it likes: a later segment may survive the first one.
func TestMissingFirstSegment(t *testing.T) {
	for _, flushed := range []bool{false, true} {
		c := newCluster(t, 1, nil)
		c.elect(0, false)
		nd := c.nodes[0]
		c.fill(5)
		if flushed {
			nd.m.Pinned(testGroup, 0)
			c.settle()
		}
		c.fill(100)
		first := filepath.Join(nd.p.log.Dir(), "00000000000000000000.log")
		nd.down(0, true)
		if err := nd.fs.Remove(first); err != nil {
			t.Fatal(err)
		}
		nd.open()
		nd.apply()
		if flushed { // records that the checkpoint promises are gone
			if d := nd.p.Damage(); len(d) != 1 || d[0].From != 0 || d[0].To != nd.p.log.StartOffset() || nd.p.LogStart() != 0 || nd.p.HighWatermark() != 315 {
				t.Fatalf("damage %+v in [%d, %d)", d, nd.p.LogStart(), nd.p.HighWatermark())
			}
			continue
		}
		if nd.p.LogStart() != 0 || nd.p.HighWatermark() != 315 || len(nd.contents()) == 0 {
			t.Fatalf("came back with [%d, %d)", nd.p.LogStart(), nd.p.HighWatermark())
		}
	}
}
