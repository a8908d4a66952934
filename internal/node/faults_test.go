package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/vfs"
)

// crampedFS is a disk of which a test says how much is free.
type crampedFS struct {
	vfs.FS
	free atomic.Int64 // bytes
}

func (c *crampedFS) FreeSpace(string) (uint64, error) { return uint64(c.free.Load()), nil }

// With the disk nearly full, produce is refused with KAFKA_STORAGE_ERROR, reads go on, and writes are taken again when there is
// room. A restart on the full disk serves reads too.
func TestDiskNearlyFullRefusesWritesAndRecovers(t *testing.T) {
	t.Parallel()
	n := newTestNode(t, 1)
	disk := &crampedFS{FS: n.fs}
	disk.free.Store(1 << 30)
	n.fs = disk
	n.start()
	nodes := []*testNode{n}
	createTopics(t, client(t, nodes), 1, 1, "orders")
	raw := func() kmsg.ProduceResponseTopicPartition {
		c := dialRaw(t, n.KafkaAddr())
		defer c.conn.Close()
		c.send(produceRequest(t, "orders", 0, -1, "x"))
		resp := kmsg.NewPtrProduceResponse()
		resp.Version = 9
		c.receive(1, resp)
		return resp.Topics[0].Partitions[0]
	}
	eventually(t, func() error { // its leader may have to be elected first
		if p := raw(); p.ErrorCode != 0 {
			return fmt.Errorf("produce: error %d", p.ErrorCode)
		}
		return nil
	})

	disk.free.Store(100 << 20)
	refused := func() error {
		if p := raw(); p.ErrorCode != kerr.KafkaStorageError.Code || p.ErrorMessage == nil || !strings.Contains(*p.ErrorMessage, "free") {
			return fmt.Errorf("on a full disk: error %d, %v", p.ErrorCode, p.ErrorMessage)
		}
		return nil
	}
	eventually(t, refused)
	if _, text := get(t, "http://"+n.AdminAddr()+"/metrics"); !strings.Contains(text, "chronik_disk_writable 0") {
		t.Error("metrics do not say that writes are refused")
	}
	stored := len(consumeAll(t, n, "orders"))
	if stored == 0 {
		t.Error("nothing to read on a full disk")
	}
	n.stop()
	n.start()
	eventually(t, refused) // its leader may have to be elected first
	if got := len(consumeAll(t, n, "orders")); got != stored {
		t.Errorf("%d records became %d over a restart", stored, got)
	}

	disk.free.Store(1 << 30)
	eventually(t, func() error {
		if p := raw(); p.ErrorCode != 0 {
			return fmt.Errorf("with room again: error %d", p.ErrorCode)
		}
		return nil
	})
	for _, line := range []string{"refusing writes", "taking writes again"} {
		if !strings.Contains(n.log.String(), line) {
			t.Errorf("the log does not say %q", line)
		}
	}
}

// consumeAll reads all that orders-0 holds now.
func consumeAll(t *testing.T, n *testNode, topic string) []string {
	t.Helper()
	p, ok := n.core.Load().manager.Lookup(topic, 0)
	if !ok {
		t.Fatal("no partition here")
	}
	var end int64
	eventually(t, func() error {
		if !p.Status().Ready {
			return errors.New("no leader")
		}
		end = p.HighWatermark()
		return nil
	})
	if end == 0 {
		return nil
	}
	return consume(t, []*testNode{n}, topic, 0, int(end))
}

// A failed fsync of the log stops the node: it says so, acknowledges nothing more, and after a restart all that was
// acknowledged is there.
func TestFailedSyncOfTheLogStopsTheNode(t *testing.T) {
	t.Parallel()
	n := newTestNode(t, 1)
	disk := vfs.NewMem(5)
	n.fs = disk
	n.start()
	nodes := []*testNode{n}
	c := client(t, nodes)
	createTopics(t, c, 1, 1, "orders")
	var want []string
	for i := range 10 {
		want = append(want, fmt.Sprint("acked ", i))
		produce(t, c, "orders", 0, want[i])
	}
	fault := disk.Inject(vfs.Fault{Ops: vfs.OpSync, Match: "/node-1/wal/*"})
	raw := dialRaw(t, n.KafkaAddr())
	raw.send(produceRequest(t, "orders", 0, -1, "lost"))
	select {
	case <-n.Failed():
	case <-time.After(bound):
		t.Fatal("the node goes on after a failed fsync")
	}
	if fault.Fired() == 0 {
		t.Fatal("no fsync failed: nothing was tested")
	}
	wantError(t, n.Err(), "the log can't be written", "wal")
	admin := n.AdminAddr()
	for _, path := range []string{"/readyz", "/healthz"} {
		if code, text := get(t, "http://"+admin+path); code != 503 || !strings.Contains(text, "the log can't be written") {
			t.Errorf("%s: %d %q", path, code, text)
		}
	}
	c.Close()
	n.stop()
	// The connection was cut, or the produce was refused; it was not acknowledged.
	if b, err := io.ReadAll(raw.conn); err == nil && len(b) > 9 {
		resp := kmsg.NewPtrProduceResponse()
		resp.Version = 9
		if err := resp.ReadFrom(b[9:]); err != nil || resp.Topics[0].Partitions[0].ErrorCode == 0 {
			t.Errorf("a record that was not synced was answered with %+v, %v", resp.Topics, err)
		}
	}
	disk.DropCaches() // the kernel may do so: what was not synced is gone

	n.start()
	if got := consume(t, nodes, "orders", 0, len(want)); !slices.Equal(got, want) {
		t.Errorf("after the restart: %q", got)
	}
}

// Power cuts at any moment lose nothing that was acknowledged.
func TestPowerCutLosesNothingAcknowledged(t *testing.T) {
	n := newTestNode(t, 1)
	disk := vfs.NewMem(6)
	n.fs = disk
	n.start()
	nodes := []*testNode{n}
	c := client(t, nodes)
	createTopics(t, c, 2, 1, "orders")
	var want []string
	for i := range 100 {
		want = append(want, fmt.Sprint("acked ", i))
		produce(t, c, "orders", 1, want[i])
	}
	for seed := range uint64(3) {
		after := newTestNode(t, 1)
		after.fs = disk.CrashClone(seed) // of the running node
		after.start()
		if got := consume(t, []*testNode{after}, "orders", 1, len(want)); !slices.Equal(got, want) {
			t.Errorf("seed %d: %q", seed, got)
		}
	}
}

// Readiness says what a node waits for, and stays apart from health.
func TestReadinessSaysWhatIsMissing(t *testing.T) {
	nodes := newTestCluster(t, 2)
	if err := nodes[0].open(); err != nil {
		t.Fatal(err)
	}
	url := "http://" + nodes[0].AdminAddr()
	eventually(t, func() error { // it opens the data directory first
		if code, text := get(t, url+"/readyz"); code != 503 || !strings.Contains(text, "waiting for peers") {
			return fmt.Errorf("alone: readyz %d %q", code, text)
		}
		return nil
	})
	if code, text := get(t, url+"/healthz"); code != 200 {
		t.Errorf("alone: healthz %d %q", code, text)
	}
	if err := nodes[1].open(); err != nil {
		t.Fatal(err)
	}
	nodes[0].awaitReady()
	if code, text := get(t, url+"/readyz"); code != 200 || text != "ok\n" {
		t.Errorf("readyz %d %q", code, text)
	}
	conn, err := net.DialTimeout("tcp", nodes[0].KafkaAddr(), bound)
	if err != nil {
		t.Fatal("ready, but", err)
	}
	conn.Close()
}

// What keeps a node from starting is one line that says what to do, and the directory is as it was.
func TestRefusedStarts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	onRealDisk := func(t *testing.T, change ...func(*config.Node)) *testNode {
		return newTestNode(t, 1, change...).onDisk(t.TempDir())
	}
	t.Run("directory in use", func(t *testing.T) {
		n := onRealDisk(t)
		n.start()
		second := newTestNode(t, 1)
		second.fs, second.cfg.DataDir = n.fs, n.cfg.DataDir
		wantError(t, second.open(), "in use by another process", "--data-dir")
	})
	t.Run("foreign directory", func(t *testing.T) {
		n := onRealDisk(t)
		if err := os.MkdirAll(n.cfg.DataDir, 0o755); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(n.cfg.DataDir, "photo.jpg")
		if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		wantError(t, n.open(), "foreign data directory", "photo.jpg", "--data-dir")
		if b, err := os.ReadFile(name); err != nil || string(b) != "x" {
			t.Errorf("the stranger's file: %q, %v", b, err)
		}
		if names, err := os.ReadDir(n.cfg.DataDir); err != nil || len(names) != 1 {
			t.Errorf("left in the stranger's directory: %v, %v", names, err)
		}
	})
	t.Run("another node's directory", func(t *testing.T) {
		n := onRealDisk(t)
		n.start()
		n.stop()
		n.cfg.NodeID = 2
		wantError(t, n.open(), "belongs to node 1", "--node-id 1")
	})
	t.Run("the log is missing", func(t *testing.T) {
		n := onRealDisk(t)
		n.start()
		n.stop()
		if err := os.RemoveAll(filepath.Join(n.cfg.DataDir, walName)); err != nil {
			t.Fatal(err)
		}
		wantError(t, n.open(), "its log (wal) is missing", "--node-id")
	})
	t.Run("admin port in use", func(t *testing.T) {
		wantError(t, newTestNode(t, 1, func(c *config.Node) { c.AdminAddr = taken.Addr().String() }).open(), "--admin-addr")
	})
	t.Run("raft port in use", func(t *testing.T) {
		wantError(t, newTestNode(t, 1, func(c *config.Node) { c.RaftAddr = taken.Addr().String() }).open(), "--raft-addr")
	})
	t.Run("kafka port in use", func(t *testing.T) {
		n := newTestNode(t, 1, func(c *config.Node) { c.KafkaAddr = taken.Addr().String() })
		if err := n.open(); err != nil {
			wantError(t, err, "--kafka-addr")
			return
		}
		select {
		case <-n.Failed():
			wantError(t, n.Err(), "--kafka-addr")
		case <-n.Ready():
			t.Error("ready without its port")
		case <-time.After(bound):
			t.Error("neither ready nor failed")
		}
	})
}

// Close ends a node at any stage of its start, again and again, without leaving anything behind.
func TestCloseWhileStarting(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond} {
		nodes := newTestCluster(t, 2)
		for _, n := range nodes {
			if err := n.open(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(wait) // the moment is what is tested
		began := time.Now()
		node := nodes[0].Node
		stopAll(nodes)
		t.Logf("closed %v after the start: took %v", wait, time.Since(began))
		if err := node.Close(context.Background()); err != nil {
			t.Errorf("closing again: %v", err)
		}
		startAll(nodes)
		stopAll(nodes)
	}
}

// The reserve is room for what is committed already when somebody else fills the disk: taken, given back once, taken again.
func TestReserveIsTakenAndGivenBack(t *testing.T) {
	disk := vfs.NewMem(1)
	if err := disk.MkdirAll("/d"); err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	b := newBallast(disk, clock.System{}, "/d", ballastBytes, quiet)
	if b.release() {
		t.Fatal("gave back what it never had")
	}
	b.take(t.Context(), reserveBytes, reserveBytes)
	if disk.Used() != 0 {
		t.Fatal("took room on a disk that has none to spare")
	}
	b.take(t.Context(), 1<<40, reserveBytes)
	if used := disk.Used(); used < ballastBytes {
		t.Fatalf("holds %d bytes", used)
	}
	if b = newBallast(disk, clock.System{}, "/d", ballastBytes, quiet); !b.release() {
		t.Fatal("a restarted node does not know of its reserve")
	}
	if b.release() || disk.Used() >= ballastBytes {
		t.Fatalf("after giving back: %d bytes used", disk.Used())
	}
}
