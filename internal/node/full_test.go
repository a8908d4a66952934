package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/vfs"
)

// cramped starts three nodes whose disks have as much room as a test says, and enough to begin with.
func cramped(t *testing.T) (nodes []*testNode, disks []*crampedFS) {
	t.Helper()
	nodes = newTestCluster(t, 3)
	for _, n := range nodes {
		d := &crampedFS{FS: n.fs}
		d.free.Store(1 << 30)
		n.fs = d
		disks = append(disks, d)
	}
	startAll(nodes)
	return nodes, disks
}

// A node whose disk is nearly full gives its leaderships to nodes that have room and takes none while it is full: clients go on
// writing to all partitions. When it has room again it leads like the others.
func TestLeadershipLeavesAFullNode(t *testing.T) {
	t.Parallel()
	nodes, disks := cramped(t)
	c := client(t, nodes)
	const parts = 6
	createTopics(t, c, parts, 3, "orders")
	eventually(t, func() error { return allLed(nodes, "orders") })
	led := func(n *testNode) (count int) {
		for _, r := range n.core.Load().groups.Replicas() {
			if r.Status().IsLeader {
				count++
			}
		}
		return count
	}
	full := 0
	eventually(t, func() error {
		for i, n := range nodes {
			if led(n) > led(nodes[full]) {
				full = i
			}
		}
		if led(nodes[full]) == 0 {
			return errors.New("nobody leads")
		}
		return nil
	})
	write := func(what string) {
		t.Helper()
		for p := range int32(parts) {
			// The client may have to learn of the new leader first, but nothing is lost or refused for good.
			produce(t, c, "orders", p, what)
		}
	}
	write("before")

	disks[full].free.Store(100 << 20)
	left := func() error {
		if n := led(nodes[full]); n > 0 {
			return fmt.Errorf("it still leads %d", n)
		}
		return allLed(nodes, "orders")
	}
	eventually(t, left)
	write("while one is full")
	// It does not take leaderships back, asked or not. On a busy machine it may be elected, where the others are not heard: then once more.
	for try := 1; ; try++ {
		for i, n := range nodes {
			if i == full {
				continue
			}
			for _, r := range n.core.Load().groups.Replicas() {
				r.TransferLeadership(nodes[full].cfg.ID())
			}
		}
		write("after it was asked to lead")
		n := led(nodes[full])
		if n == 0 {
			break
		}
		if try == 6 {
			t.Errorf("asked to lead on a full disk, it leads %d groups, each time", n)
			break
		}
		eventually(t, left)
	}
	if log := nodes[full].log.String(); strings.Count(log, "refusing writes") != 1 {
		t.Errorf("%d lines say that writes are refused, one should", strings.Count(log, "refusing writes"))
	}

	disks[full].free.Store(1 << 30)
	eventually(t, func() error {
		if nodes[full].core.Load().space.writable() != nil {
			return errors.New("it still takes no writes")
		}
		return nil
	})
	eventually(t, func() error {
		for i, n := range nodes {
			if i == full {
				continue
			}
			for _, r := range n.core.Load().groups.Replicas() {
				r.TransferLeadership(nodes[full].cfg.ID())
			}
		}
		if led(nodes[full]) == 0 {
			return errors.New("with room again it does not lead when asked to")
		}
		return nil
	})
	write("with room again")
}

// Where all nodes are full, somebody leads all the same: reads go on, writes are refused, topics can still be made within the
// reserve, and writes come back with room.
func TestAllNodesFullServeReads(t *testing.T) {
	t.Parallel()
	nodes, disks := cramped(t)
	c := client(t, nodes)
	createTopics(t, c, 1, 3, "orders")
	produce(t, c, "orders", 0, "kept")
	for _, d := range disks {
		d.free.Store(100 << 20)
	}
	for _, n := range nodes {
		eventually(t, func() error {
			if n.core.Load().space.writable() == nil {
				return errors.New("it has not noticed")
			}
			return nil
		})
	}
	eventually(t, func() error { return allLed(nodes, "orders") })
	if got := consume(t, nodes, "orders", 0, 1); got[0] != "kept" {
		t.Errorf("read %q", got)
	}
	createTopics(t, c, 1, 3, "metadata-still-works")
	impatient := client(t, nodes, kgo.RecordRetries(1), kgo.ProduceRequestTimeout(time.Second), kgo.RecordDeliveryTimeout(3*time.Second))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := impatient.ProduceSync(ctx, &kgo.Record{Topic: "orders", Partition: 0, Value: []byte("refused")}).FirstErr(); err == nil {
		t.Error("a record was taken although no node has room")
	}
	for _, d := range disks {
		d.free.Store(1 << 30)
	}
	produce(t, c, "orders", 0, "again")
	if got := consume(t, nodes, "orders", 0, 2); got[1] != "again" {
		t.Errorf("read %q", got)
	}
}

// A replica that could not be opened for lack of room is opened when there is some, without a restart (found by the simulator, seed 256).
func TestReplicaThatFoundNoRoomOpensLater(t *testing.T) {
	t.Parallel()
	n := newTestNode(t, 1)
	disk := vfs.NewMem(9)
	n.fs = disk
	n.start()
	nodes := []*testNode{n}
	c := client(t, nodes)
	createTopics(t, c, 1, 1, "orders")
	produce(t, c, "orders", 0, "kept")
	c.Close()
	n.stop()
	full := disk.Inject(vfs.Fault{Ops: vfs.OpCreate | vfs.OpOpen | vfs.OpWrite, Match: "/node-1/topics/orders/*/*/*", Count: -1, Err: syscall.ENOSPC})
	n.start()
	if _, ok := n.core.Load().manager.Lookup("orders", 0); ok || full.Fired() == 0 {
		t.Fatal("the partition opens on a full disk: nothing is tested")
	}
	full.Remove()
	if got := consume(t, nodes, "orders", 0, 1); got[0] != "kept" {
		t.Errorf("read %q", got)
	}
	if n := strings.Count(n.log.String(), "a partition does not open"); n != 1 {
		t.Errorf("%d lines say that a partition does not open, one should", n)
	}
}
