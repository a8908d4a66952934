package partition

import (
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
)

// A checkpoint says that records are in the segments: those must be found after a power cut, under names that are durable all the
// way up. Directories are made without a sync, so that the first flush has to see to it. (The simulated disk, like a journalling
// file system, makes what a rename builds on durable with it; nobody promises that, so what is synced is looked at here.)
func TestFirstFlushMakesTheDirectoriesDurable(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	nd := c.leader
	c.send(batchSpec{records: 3})
	c.flow()
	synced := map[string]bool{}
	nd.fs.SetHook(func(op vfs.Op, name string, _ time.Duration) {
		if op == vfs.OpSyncDir && nd.lastCP == 0 {
			synced[name] = true
		}
	})
	nd.m.Pinned(testGroup, 0)
	c.settle()
	nd.fs.SetHook(nil)
	if nd.cp.Index != nd.applied {
		t.Fatalf("checkpoint at %d, applied %d", nd.cp.Index, nd.applied)
	}
	for dir := nd.p.log.Dir(); dir != "/"; dir = filepath.Dir(dir) {
		if !synced[dir] {
			t.Errorf("%s is not synced before the checkpoint: %v", dir, synced)
		}
	}
	for seed := range uint64(20) {
		nd.crash(seed, false)
		if hw, end := nd.p.HighWatermark(), nd.p.log.EndOffset(); hw != 3 || end != 3 {
			t.Fatalf("seed %d: after the power cut the log ends at %d, the high watermark is %d", seed, end, hw)
		}
	}
}

// A flush that finds no room has lost nothing: the node goes on, gives no checkpoint for what is not durable, and flushes once
// there is room.
func TestFlushWithoutRoomIsTriedAgain(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	nd := c.leader
	c.send(batchSpec{records: 3})
	c.flow()
	before := nd.cp.Index
	full := nd.fs.Inject(vfs.Fault{Ops: vfs.OpCreate | vfs.OpRename, Count: -1, Err: syscall.ENOSPC})
	nd.m.Pinned(testGroup, 0)
	c.settle()
	if full.Fired() == 0 {
		t.Fatal("the flush met no full disk")
	}
	if nd.fatal != nil || nd.cp.Index != before {
		t.Fatalf("fatal %v, checkpoint at %d, it was at %d", nd.fatal, nd.cp.Index, before)
	}
	if res, err := nd.p.Fetch(ask(0)); err != nil || len(res.Records) == 0 {
		t.Fatalf("reads with a full disk: %v", err)
	}
	full.Remove()
	c.advance(2*nd.m.cfg.Limits.FlushInterval + time.Second)
	c.settle()
	if nd.fatal != nil || nd.cp.Index != nd.applied {
		t.Fatalf("fatal %v, checkpoint at %d, applied %d", nd.fatal, nd.cp.Index, nd.applied)
	}
}

// However many ask, a partition keeps requests of a bounded number of followers, one of each.
func TestDeltaRequestsAreBounded(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.send(batchSpec{records: 3})
	c.flow()
	p := c.leader.p
	for i := range uint64(3 * maxServe) {
		for range 2 {
			r := deltaRequest{chunks: 1, session: i + 1, from: 0, to: 3}
			p.Receive(transport.Envelope{Kind: transport.KindDeltaRequest, Body: r.encode()}, multiraft.Peer{Node: int32(i), Group: testGroup, Self: 100, Replica: 1000 + i})
		}
	}
	if len(p.serveQ) != maxServe {
		t.Errorf("%d requests are kept, at most %d should be", len(p.serveQ), maxServe)
	}
}
