package node

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/record"
)

func str(s string) *string { return &s }

// compacting makes compaction quick.
func compacting(c *config.Node) {
	quickGroups(c)
	c.Kafka[config.CleanerBackoff] = "50"
}

// smallSegments are a topic's configs with which a few records are enough.
func smallSegments(policy string) map[string]*string {
	return map[string]*string{"cleanup.policy": str(policy), "internal.segment.bytes": str("4096"), "min.cleanable.dirty.ratio": str("0.01"),
		"delete.retention.ms": str("0")}
}

// atOnce has what was written flushed at once, and looked at again and again: only what is flushed can be compacted.
var atOnce = &Tuning{Partitions: func(c *partition.ManagerConfig) {
	c.Limits.FlushInterval, c.Limits.MaintenanceInterval = 50*time.Millisecond, 50*time.Millisecond
}}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	eventually(t, func() error {
		if cond() {
			return nil
		}
		return errors.New("not yet: " + what)
	})
}

// held reads all that a node's replica has, at every offset: the same from each. It returns the records by offset.
func held(t *testing.T, n *testNode, topic string) map[int64]record.Record {
	t.Helper()
	p, ok := n.core.Load().Partitions().Lookup(topic, 0)
	if !ok {
		t.Fatalf("node %d has no %s", n.cfg.ID(), topic)
	}
	out := map[int64]record.Record{}
	for at := p.LogStart(); at < p.HighWatermark(); at++ {
		res, err := p.Fetch(partition.FetchRequest{Offset: at, MaxBytes: 1, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1, Follower: true})
		if err != nil || len(res.Records) == 0 {
			t.Fatalf("node %d: %d bytes at offset %d of %s: %v", n.cfg.ID(), len(res.Records), at, topic, err)
		}
		err = record.Each(res.Records, func(h record.Header, b []byte) error {
			if h.LastOffset() < at {
				return fmt.Errorf("asked for %d, got a batch up to %d", at, h.LastOffset())
			}
			return record.Records(b, 1<<20, func(r record.Record) error {
				r.Key, r.Value = append([]byte(nil), r.Key...), append([]byte(nil), r.Value...)
				out[h.BaseOffset+int64(r.OffsetDelta)] = r
				return nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// A topic with cleanup.policy=compact on three nodes: each replica keeps, on its own, the latest record of each key at its offset, and can be
// read at every offset; a client that reads all gets just those; a restart changes nothing.
func TestCompactedTopicKeepsTheLatestOfEachKey(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 3, compacting)
	for _, n := range nodes {
		n.tune = atOnce
	}
	startAll(nodes)
	ctx := longContext(t)
	cl := client(t, nodes, kgo.MaxBufferedRecords(20), kgo.ProducerLinger(0))
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, 1, 3, smallSegments("compact"), "c"); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "c", Value: []byte("x")}).FirstErr(); !errors.Is(err, kerr.InvalidRecord) {
		t.Fatalf("a record without a key: %v", err)
	}
	latest, offsets := map[string]string{}, map[string]int64{}
	for i := range 600 {
		r := &kgo.Record{Topic: "c", Key: fmt.Appendf(nil, "k%d", i%13), Value: fmt.Appendf(nil, "v%d-%050d", i, i)}
		if i%13 == 5 && i > 400 {
			r.Value = nil
		}
		res, err := cl.ProduceSync(ctx, r).First()
		if err != nil {
			t.Fatal(err)
		}
		if latest[string(r.Key)], offsets[string(r.Key)] = string(r.Value), res.Offset; r.Value == nil {
			delete(latest, string(r.Key))
			delete(offsets, string(r.Key))
		}
	}
	compacted := func() bool {
		for _, n := range nodes {
			if p, ok := n.core.Load().Partitions().Lookup("c", 0); !ok || p.HighWatermark() < 600 || n.core.Load().cleaner.Stats().Passes == 0 {
				return false
			}
			all := held(t, n, "c")
			for _, r := range all {
				if string(r.Key) == "k5" && len(r.Value) > 0 {
					return false
				}
			}
			if len(all) > 200 {
				return false
			}
		}
		return true
	}
	until(t, "all replicas are compacted", compacted)
	check := func(what string) {
		t.Helper()
		for _, n := range nodes {
			all := held(t, n, "c")
			for k, off := range offsets {
				if r, ok := all[off]; !ok || string(r.Value) != latest[k] {
					t.Fatalf("%s: node %d: %s should be at offset %d", what, n.cfg.ID(), k, off)
				}
			}
		}
		reader := client(t, nodes, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"c": {0: kgo.NewOffset().AtStart()}}))
		got, last := map[string]string{}, int64(-1)
		for last < 599 {
			fs := reader.PollFetches(ctx)
			if err := fs.Err(); err != nil {
				t.Fatal(what, err)
			}
			fs.EachRecord(func(r *kgo.Record) {
				if r.Offset <= last {
					t.Errorf("%s: offset %d after %d", what, r.Offset, last)
				}
				last = r.Offset
				if got[string(r.Key)] = string(r.Value); r.Value == nil {
					delete(got, string(r.Key))
				}
			})
		}
		if !maps.Equal(got, latest) {
			t.Fatalf("%s: a consumer ends with %d keys, want %d", what, len(got), len(latest))
		}
	}
	check("compacted")
	for _, n := range nodes {
		n.stop()
		n.start()
	}
	until(t, "a leader that all know", func() bool { return allLed(nodes, "c") == nil })
	check("after a restart of each node")
	again := client(t, nodes) // the nodes are on other ports now
	if res, err := again.ProduceSync(ctx, &kgo.Record{Topic: "c", Key: []byte("k1"), Value: []byte("end")}).First(); err != nil || res.Offset != 600 {
		t.Fatalf("the next record is at %d: %v", res.Offset, err)
	}
}

// __consumer_offsets is compacted like any other, and what its coordinator loads from it after a restart is what was committed last.
func TestOffsetsAreLoadedFromACompactedLog(t *testing.T) {
	t.Parallel()
	n := newTestNode(t, 1, compacting, func(c *config.Node) {
		c.Kafka["offsets.topic.num.partitions"] = "1"
		c.Kafka["offsets.topic.segment.bytes"] = "1048576"
	})
	n.tune = atOnce
	n.start()
	ctx := longContext(t)
	nodes := []*testNode{n}
	adm := kadm.NewClient(client(t, nodes))
	if _, err := adm.CreateTopic(ctx, 8, 1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	want, long := map[int32]int64{}, strings.Repeat("m", 3000)
	commit := func(group string, i int) {
		t.Helper()
		var offs kadm.Offsets
		for p := range int32(8) {
			want[p] = int64(i*10) + int64(p)
			offs.Add(kadm.Offset{Topic: "t", Partition: p, At: want[p], LeaderEpoch: -1, Metadata: long})
		}
		// A coordinator that a slow disk keeps waiting says so: then it is asked again.
		eventually(t, func() error { return adm.CommitAllOffsets(ctx, group, offs) })
	}
	for i := 0; i < 100; i++ {
		commit("g", i)
	}
	until(t, "the offsets' log is compacted", func() bool {
		return n.core.Load().cleaner.Stats().Passes > 0 && len(held(t, n, group.Topic)) < 700
	})
	n.stop()
	n.start()
	adm = kadm.NewClient(client(t, nodes)) // it is on another port now
	until(t, "the offsets are loaded", func() bool {
		got, err := adm.FetchOffsets(ctx, "g")
		if err != nil {
			return false
		}
		for p, o := range want {
			if r, ok := got.Lookup("t", p); !ok || r.At != o {
				t.Fatalf("partition %d: committed %d, fetched %d", p, o, r.At)
			}
		}
		return true
	})
}

// With compact,delete retention goes on; with compact alone records can't be deleted, as in Kafka.
func TestDeletionFollowsTheCleanupPolicy(t *testing.T) {
	t.Parallel()
	n := newTestNode(t, 1, compacting)
	n.start()
	ctx := longContext(t)
	cl := client(t, []*testNode{n})
	adm := kadm.NewClient(cl)
	for _, policy := range []string{"compact", "compact,delete"} {
		topic := "only"
		if policy != "compact" {
			topic = "both"
		}
		if _, err := adm.CreateTopic(ctx, 1, 1, smallSegments(policy), topic); err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Key: []byte("k"), Value: []byte("v")}, &kgo.Record{Topic: topic, Key: []byte("l"), Value: []byte("v")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		var offs kadm.Offsets
		offs.AddOffset(topic, 0, 1, -1)
		res, err := adm.DeleteRecords(ctx, offs)
		if err != nil {
			t.Fatal(err)
		}
		r, _ := res.Lookup(topic, 0)
		if policy == "compact" && !errors.Is(r.Err, kerr.PolicyViolation) || policy != "compact" && (r.Err != nil || r.LowWatermark != 1) {
			t.Fatalf("deleting records with cleanup.policy=%s: %v, low watermark %d", policy, r.Err, r.LowWatermark)
		}
	}
}

type fixedImage struct{ img *metadata.Image }

func (f fixedImage) Image() *metadata.Image { return f.img }

// On a small machine compaction has the memory that fits into it, unless somebody has set another.
func TestCompactionFitsTheMemory(t *testing.T) {
	cfg := config.Default()
	cfg.Fit(config.Machine{Memory: 256 << 20})
	img := metadata.Empty()
	c := &Core{cfg: cfg, configs: newConfigs(cfg, fixedImage{img})}
	if n := c.cleanerMemory(); n > 16<<20 || n < 4<<20 {
		t.Errorf("%d bytes of 256 MiB", n)
	}
	img.BrokerConfigs[-1] = map[string]string{config.CleanerMapBytes: "33554432"}
	if n := c.cleanerMemory(); n != 32<<20 {
		t.Errorf("%d bytes where 32 MiB are set", n)
	}
}
