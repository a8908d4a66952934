package node

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// scrubOften makes every node read its disk over and over, without a pause between two passes.
func scrubOften(t *testing.T, c *kgo.Client) {
	t.Helper()
	set := func(name, value string) kadm.AlterConfig { return kadm.AlterConfig{Name: name, Value: &value} }
	rs, err := kadm.NewClient(c).AlterBrokerConfigs(testContext(t), []kadm.AlterConfig{set(config.ScrubInterval, "100"), set(config.ScrubRate, "50000000")})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		if r.Err != nil {
			t.Fatal(r.Err, r.ErrMessage)
		}
	}
}

// segmentOf returns the first segment file of a partition on a node, flushed.
func (n *testNode) segmentOf(t *testing.T, topic string) string {
	t.Helper()
	p, ok := n.core.Load().manager.Lookup(topic, 0)
	if !ok {
		t.Fatalf("node %d has no %s-0", n.cfg.ID(), topic)
	}
	n.core.Load().manager.Pinned(p.Group(), 0)
	dir := filepath.Join(n.cfg.DataDir, topicsName, topic, fmt.Sprintf("0.%d", p.Group()))
	var file string
	eventually(t, func() error {
		gens, err := n.fs.List(dir)
		if err != nil || len(gens) == 0 {
			return fmt.Errorf("no generation in %s: %v", dir, err)
		}
		names, err := n.fs.List(path.Join(dir, gens[0]))
		if err != nil {
			return err
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".log") {
				file = path.Join(dir, gens[0], name)
				return nil
			}
		}
		return fmt.Errorf("no segment in %s", dir)
	})
	return file
}

func (n *testNode) read(t *testing.T, file string) string {
	t.Helper()
	b, err := vfs.ReadFile(n.fs, file, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// withOrders starts three nodes and writes values of about so many bytes to orders-0.
func withOrders(t *testing.T, count, size int, change ...func(*config.Node)) ([]*testNode, *kgo.Client) {
	t.Helper()
	nodes := newTestCluster(t, 3, change...)
	startAll(nodes)
	c := client(t, nodes)
	createTopics(t, c, 1, 3, "orders")
	for i := range count {
		produce(t, c, "orders", 0, strings.TrimSpace(fmt.Sprintf("value %d %s", i, strings.Repeat("x", size))))
	}
	return nodes, c
}

// Bytes of the leader's segment change under a running cluster: the scrubber finds it, the records come anew from the others (often before the
// leadership has left: TestUnfitReplicaLeavesTheLeadToTheOthers has that), and the replica is as good as before. Nobody who reads sees any of it.
func TestDamagedSegmentIsFoundAndMendedWhileTheClusterRuns(t *testing.T) {
	t.Parallel()
	nodes, c := withOrders(t, 40, 100)
	bad := leaderOf(t, nodes, "orders", 0)
	file := bad.segmentOf(t, "orders")
	sound := bad.read(t, file)
	for _, at := range []int64{100, 2000, 2001} {
		if err := bad.fs.(*vfs.Mem).FlipBit(file, at, 4); err != nil {
			t.Fatal(err)
		}
	}
	if bad.read(t, file) == sound {
		t.Fatal("the file has not changed")
	}
	scrubOften(t, c)
	eventually(t, func() error {
		if h := bad.core.Load().manager.Health(); h.Found == 0 || h.Mended == 0 || h.Damaged > 0 {
			return fmt.Errorf("node %d: %+v", bad.cfg.ID(), h)
		}
		return nil
	})
	if got := bad.read(t, file); got[:len(sound)] != sound {
		t.Error("the rebuilt segment is not what it was")
	}
	if got := consume(t, nodes, "orders", 0, 40); len(got) != 40 {
		t.Errorf("%d records", len(got))
	}
	for _, line := range []string{"records are damaged on this node", "a damaged segment was rebuilt", "all records of this replica are sound again"} {
		until(t, "the log says "+line, func() bool { return strings.Contains(bad.log.String(), line) })
	}
	_, text := get(t, "http://"+bad.AdminAddr()+"/metrics")
	for _, want := range []string{"chronik_scrub_passes_total", "chronik_damaged_partitions 0", "chronik_damage_segments_rebuilt_total 1",
		`chronik_peer_connections_refused_total{reason="too many connections"} 0`, "chronik_admin_connections 1"} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics without %s", want)
		}
	}
}

// A follower's records are changed on its disk with their CRC made right again, so that nothing in the bytes tells. The leader's scrub
// has it compared with the others, and the follower gets the group's records back. Another leader would be asked by others: this one stays.
func TestDivergedReplicaIsFoundByTheOthers(t *testing.T) {
	t.Parallel()
	nodes, c := withOrders(t, 20, 0, steady)
	leader := leaderOf(t, nodes, "orders", 0)
	var bad *testNode
	for _, n := range nodes {
		if n != leader {
			bad = n
		}
	}
	file := bad.segmentOf(t, "orders")
	eventually(t, func() error { // a follower applies after the acknowledgement
		if !strings.Contains(bad.read(t, file), "value 19") {
			return fmt.Errorf("node %d has not applied everything", bad.cfg.ID())
		}
		return nil
	})
	sound := bad.read(t, file)
	b := []byte(sound)
	at := strings.Index(sound, "value 7")
	begin := strings.LastIndex(sound[:at], "value 6") + len("value 6") + 1 // the batch's first byte
	h, err := record.Check(b[begin:])
	if err != nil {
		t.Fatal(err)
	}
	b[at+6] = '9'
	sum := crc32.Checksum(b[begin+21:begin+h.Size()], crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(b[begin+17:], sum)
	f, err := bad.fs.OpenReadWrite(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b[begin:begin+h.Size()], int64(begin)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	leader.segmentOf(t, "orders") // flushed: only that is compared
	scrubOften(t, c)
	eventually(t, func() error {
		if h := bad.core.Load().manager.Health(); h.Found == 0 || h.Mended == 0 || h.Diverged > 0 {
			return fmt.Errorf("node %d: %+v", bad.cfg.ID(), h)
		}
		return nil
	})
	if got := bad.read(t, file); got[:len(sound)] != sound {
		t.Error("the records are not the group's again")
	}
	if !strings.Contains(leader.log.String(), "a follower's records differ from the group's") {
		t.Error("the leader does not say what it found")
	}
}

// spoilLog flips a bit in the body of the latest record of a group in a node's log.
func (n *testNode) spoilLog(t *testing.T, group uint64, kinds ...wal.Kind) {
	t.Helper()
	var last wal.Record
	err := wal.Scan(n.fs, filepath.Join(n.cfg.DataDir, walName), func(r wal.Record) error {
		for _, k := range kinds {
			if r.Group == group && r.Kind == k && r.Bytes > 0 && r.Bad == "" {
				last = r
			}
		}
		return nil
	})
	if err != nil || last.Bytes == 0 {
		t.Fatalf("no record of group %d: %v", group, err)
	}
	if err := n.fs.(*vfs.Mem).FlipBit(last.File, last.Offset+int64(last.Bytes)/2, 1); err != nil {
		t.Fatal(err)
	}
}

// The write-ahead log is what a replica's votes and promises are in: found damaged, it takes no further part, the others go on,
// and another replica takes its place on the same node.
// The metadata's log is the node's own: without it the node stops, and says what to do.
func TestDamagedLogIsFoundWhileTheClusterRuns(t *testing.T) {
	t.Parallel()
	nodes, c := withOrders(t, 5, 0)
	bad := leaderOf(t, nodes, "orders", 0)
	p, _ := bad.core.Load().manager.Lookup("orders", 0)
	bad.spoilLog(t, p.Group(), wal.KindCreate, wal.KindCheckpoint)
	scrubOften(t, c)
	eventually(t, func() error {
		if now, ok := bad.core.Load().manager.Lookup("orders", 0); ok && now.ReplicaID() == p.ReplicaID() {
			return fmt.Errorf("the replica stays with a damaged log")
		}
		return nil
	})
	produce(t, c, "orders", 0, "the others go on")
	eventually(t, func() error { return onNodes(nodes, "orders", 0, partitionOf(nodes[0], "orders", 0).Nodes()...) })
	if !strings.Contains(bad.log.String(), "replica fenced") {
		t.Error("the node does not say that it gave a replica up")
	}

	bad.spoilLog(t, metadata.MetadataGroup, wal.KindEntry, wal.KindCreate, wal.KindCheckpoint)
	eventually(t, func() error {
		if bad.Err() == nil {
			return fmt.Errorf("the node runs on damaged metadata")
		}
		return nil
	})
	wantError(t, bad.Err(), "metadata", "damaged", "--data-dir", "--node-id")
}
