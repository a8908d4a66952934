package multiraft

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/wal"
)

// smallLog makes the log forget quickly.
func smallLog(c *cluster) {
	c.walOf = func(o *wal.Options) { o.FileBytes, o.MaxBytes, o.CacheBytes = 64<<10, 256<<10, 32<<10 }
}

// outgrow writes until the leader's log no longer reaches back to what a stopped follower has. The state machine here keeps
// everything, so values are long and few.
func (c *cluster) outgrow(l int32, want []string) []string {
	c.t.Helper()
	from := c.replica(l).AppliedIndex()
	for i := 0; c.nodes[l].log.Group(testGroup).FirstIndex() <= from+1; i++ {
		if i > 2000 {
			c.t.Fatal("the log never forgets")
		}
		v := fmt.Sprintf("%d-%s", i, strings.Repeat("x", 2000))
		c.mustPropose(l, v)
		want = append(want, v)
		if i%20 == 19 {
			// A short state, so that the checkpoints themselves don't fill the log.
			for _, id := range c.order {
				if !c.nodes[id].down {
					sm := c.sm(id)
					sm.mu.Lock()
					index, term := sm.index, sm.term
					sm.mu.Unlock()
					c.replica(id).Checkpoint(index, term, (&listSM{index: index, term: term}).encode())
				}
			}
			c.settle()
		}
	}
	return want
}

func behind(t *testing.T, opts ...func(*cluster)) (c *cluster, l, f int32, want []string) {
	c = newCluster(t, 3, append([]func(*cluster){smallLog}, opts...)...)
	l = c.leader()
	c.mustPropose(l, "first")
	c.tick(3)
	f = c.order[0]
	if f == l {
		f = c.order[1]
	}
	c.kill(f)
	want = c.outgrow(l, []string{"first"})
	return c, l, f, want
}

func TestFollowerBehindTheLogIsBroughtUpBySnapshot(t *testing.T) {
	c, l, f, want := behind(t)
	snaps := 0
	c.seen = func(_, to int32, env *transport.Envelope) {
		if env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgSnap && to == f {
			snaps++
		}
	}
	c.restart(f)
	c.mustPropose(l, "last")
	c.expect(append(want, "last")...)
	if snaps != 1 {
		t.Errorf("%d snapshots sent, want 1", snaps)
	}
	// The mark is in the log: a restart begins there.
	c.kill(f)
	c.restart(f)
	if cp := c.nodes[f].log.Group(testGroup).Checkpoint(); cp.Index < uint64(len(want)) {
		t.Errorf("after the restart the checkpoint is at %d", cp.Index)
	}
	c.mustPropose(c.leader(), "again")
}

// TestAnInstalledSnapshotIsToldTheLeader: the leader hears of it from the follower's log, as of every append, and need not wait for a heartbeat's
// answer before it goes on sending.
func TestAnInstalledSnapshotIsToldTheLeader(t *testing.T) {
	c, l, f, _ := behind(t)
	snaps := 0
	c.seen = func(_, to int32, env *transport.Envelope) {
		if env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgSnap && to == f {
			snaps++
		}
	}
	c.restart(f)
	for i := 0; i < 50 && snaps == 0; i++ {
		c.tick(1)
	}
	var match, last uint64
	c.replica(l).Progress(func(_ uint64, all []Progress, err error) {
		for _, p := range all {
			if p.Node == f {
				match = p.Match
			}
			last = max(last, p.Match)
		}
	})
	c.settle()
	if applied := c.replica(f).AppliedIndex(); snaps == 0 || applied < last || match < last {
		t.Errorf("%d snapshots; the follower is at %d of %d, to the leader's knowledge at %d", snaps, applied, last, match)
	}
}

// TestASnapshotWhoseReplicaIsGoneIsNotInstalled: its mark becomes durable while the replica is being stopped, its topic deleted. That is no
// fault of the replica's, which was fenced for it (simulator --power, seed 1736).
func TestASnapshotWhoseReplicaIsGoneIsNotInstalled(t *testing.T) {
	c, _, f, _ := behind(t)
	c.seen = func(_, to int32, env *transport.Envelope) {
		if env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgSnap && to == f {
			c.noLog[f] = true
		}
	}
	c.restart(f)
	c.tick(2)
	r, sm := c.replica(f), c.sm(f)
	if !c.noLog[f] || !r.installing {
		t.Fatalf("no snapshot is on its way into the log: held %v, installing %v", c.noLog[f], r.installing)
	}
	if err := c.nodes[f].svc.Unregister("t", testGroup, nil); err != nil {
		t.Fatal(err)
	}
	settle := func() {
		for range 100 {
			n := c.nodes[f]
			for _, s := range append(n.svc.Shards(), n.svc.Appliers()...) {
				s.Step()
			}
			if !c.noLog[f] {
				n.log.Step()
			}
		}
	}
	settle()
	if !sm.closed {
		t.Fatal("the state is open")
	}
	c.noLog[f] = false
	settle()
	if r.Fenced() {
		t.Error("the replica is fenced")
	}
}

// Rule 13: one lost MsgSnap used to stall a follower for ever.
func TestLostSnapshotIsOfferedAgain(t *testing.T) {
	c, l, f, want := behind(t)
	lost := 0
	c.cut = func(_, to int32, env *transport.Envelope) bool {
		if to == f && env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgSnap && lost < 2 {
			lost++
			return true
		}
		return false
	}
	c.restart(f)
	c.tick(3 * snapshotPatience)
	c.mustPropose(l, "last")
	c.expect(append(want, "last")...)
	if lost != 2 {
		t.Fatalf("%d snapshots were lost, the test wants 2", lost)
	}
}

// A transport that knows the loss says so, and nobody waits for the patience to run out.
func TestDroppedSnapshotIsOfferedAgainAtOnce(t *testing.T) {
	c, l, f, want := behind(t)
	lost := 0
	c.cut = func(from, to int32, env *transport.Envelope) bool {
		if to == f && env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgSnap && lost < 1 {
			lost++
			c.nodes[from].svc.HandleDropped(to, env.Group, env.To, true)
			return true
		}
		return false
	}
	c.restart(f)
	c.tick(10)
	if got := c.sm(f).list(); !slices.Equal(got, want) {
		t.Fatalf("after ten ticks the follower has %d of %d entries (leader %d)", len(got), len(want), l)
	}
}

func TestFailedStagingIsReportedAndTriedAgain(t *testing.T) {
	c, l, f, want := behind(t)
	c.restart(f)
	c.sm(f).holdStage = true
	for range 20 {
		if c.tick(1); c.sm(f).stageDone != nil {
			break
		}
	}
	if c.sm(f).stageDone == nil {
		t.Fatal("no snapshot was offered")
	}
	c.tick(2 * snapshotPatience) // long, but it says that it goes on: the leader must not give up
	done := c.sm(f).stageDone
	c.sm(f).mu.Lock()
	c.sm(f).holdStage, c.sm(f).stageDone = false, nil
	c.sm(f).mu.Unlock()
	if len(c.nodes[l].sm) == 0 || len(c.replica(l).snapSends) != 1 {
		t.Fatalf("the leader gave the attempt up: %v", c.replica(l).snapSends)
	}
	done(errPlanted)
	c.tick(10)
	if got := c.sm(f).list(); !slices.Equal(got, want) {
		t.Fatalf("the follower has %d of %d entries", len(got), len(want))
	}
}

// Rule 10: entries that are in the log but not in memory are read elsewhere, never on the shard, and no snapshot is sent.
func TestColdEntriesAreSentWithoutSnapshot(t *testing.T) {
	c := newCluster(t, 3, func(c *cluster) {
		c.walOf = func(o *wal.Options) { o.CacheBytes = 64 << 10 }
		c.tune = func(cfg *Config) { cfg.MaxEntryBytes, cfg.PrefetchBytes = 4<<10, 32<<10 }
	})
	l := c.leader()
	c.mustPropose(l, "first")
	c.tick(3)
	f := c.order[0]
	if f == l {
		f = c.order[1]
	}
	c.kill(f)
	want := []string{"first"}
	for i := range 200 {
		want = append(want, fmt.Sprintf("%d-%s", i, strings.Repeat("x", 1000)))
		c.mustPropose(l, want[len(want)-1])
	}
	c.seen = func(_, _ int32, env *transport.Envelope) {
		if env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgSnap {
			t.Error("a snapshot was sent although the log reaches back")
		}
	}
	if c.nodes[l].log.Group(testGroup).Cached(10) {
		t.Fatal("nothing is cold: the test shows nothing")
	}
	c.restart(f)
	c.expect(want...)
}
