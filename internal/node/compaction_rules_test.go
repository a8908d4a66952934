package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/record"
)

// movedClock is the system's, some time ahead.
type movedClock struct {
	clock.System
	by atomic.Int64
}

func (c *movedClock) Now() time.Time       { return c.System.Now().Add(time.Duration(c.by.Load())) }
func (c *movedClock) move(d time.Duration) { c.by.Add(int64(d)) }

// ruled is a node on the operating system's disk, with its client, for tests of when what is compacted.
type ruled struct {
	*testNode
	clk *movedClock
	ctx context.Context
	cl  *kgo.Client
}

const controlTopic = "control"

func newRuled(t *testing.T) *ruled {
	t.Parallel()
	r := &ruled{testNode: newTestNode(t, 1, compacting).onDisk(t.TempDir()), clk: &movedClock{}}
	r.clock, r.tune = r.clk, atOnce
	r.start()
	r.ctx = longContext(t)
	r.cl = client(t, []*testNode{r.testNode}, kgo.ProducerLinger(0), kgo.ProducerBatchCompression(kgo.NoCompression()))
	r.topic(controlTopic, smallSegments("compact"))
	return r
}

func (r *ruled) topic(name string, configs map[string]*string, more ...string) {
	r.t.Helper()
	for i := 0; i+1 < len(more); i += 2 {
		configs[more[i]] = str(more[i+1])
	}
	if _, err := kadm.NewClient(r.cl).CreateTopic(r.ctx, 1, 1, configs, name); err != nil {
		r.t.Fatal(err)
	}
}

// put writes records of about 100 bytes, a batch each; the keys come in turn. It returns the latest offset of each.
func (r *ruled) put(topic string, n int, keys ...string) map[string]int64 {
	r.t.Helper()
	latest := map[string]int64{}
	for i := range n {
		key := keys[i%len(keys)]
		res, err := r.cl.ProduceSync(r.ctx, &kgo.Record{Topic: topic, Key: []byte(key), Value: fmt.Appendf(nil, "%-100d", i)}).First()
		if err != nil {
			r.t.Fatal(err)
		}
		latest[key] = res.Offset
	}
	return latest
}

func (r *ruled) partition(topic string) *partition.Partition {
	p, ok := r.core.Load().manager.Lookup(topic, 0)
	if !ok {
		r.t.Fatalf("no %s", topic)
	}
	return p
}

// compactable waits until some of a topic could be compacted if its records were as old as can be.
func (r *ruled) compactable(topic string) {
	r.t.Helper()
	until(r.t, topic+" is flushed", func() bool {
		st, ok := r.partition(topic).CleanState(r.clk.Now().Add(10000 * time.Hour))
		return ok && st.Dirty > 0
	})
}

// round returns once another topic, which may be compacted at any time, has been: all logs were looked at since the call.
func (r *ruled) round() {
	r.t.Helper()
	for range 2 { // the first may have begun before
		before := r.core.Load().cleaner.Stats().Passes
		r.put(controlTopic, 80, "k")
		until(r.t, "another log is compacted", func() bool { return r.core.Load().cleaner.Stats().Passes > before })
	}
}

func (r *ruled) wantAll(topic string, n int) {
	r.t.Helper()
	if got := len(held(r.t, r.testNode, topic)); got != n {
		r.t.Fatalf("%d records of %d are left in %s", got, n, topic)
	}
}

// wantLatest waits until at most so many records are left, among them the latest of each key.
func (r *ruled) wantLatest(topic string, most int, latest map[string]int64) {
	r.t.Helper()
	until(r.t, topic+" is compacted", func() bool { return len(held(r.t, r.testNode, topic)) <= most })
	all := held(r.t, r.testNode, topic)
	for key, off := range latest {
		if got, ok := all[off]; !ok || string(got.Key) != key {
			r.t.Fatalf("the latest record of %s should be at offset %d of %s", key, off, topic)
		}
	}
}

// Records younger than min.compaction.lag.ms stay, all of them.
func TestMinCompactionLagKeepsTheYoung(t *testing.T) {
	r := newRuled(t)
	r.topic("t", smallSegments("compact"), "min.compaction.lag.ms", "3600000")
	latest := r.put("t", 120, "a", "b", "c")
	r.compactable("t")
	r.round()
	r.wantAll("t", 120)
	r.clk.move(59 * time.Minute)
	r.round()
	r.wantAll("t", 120)
	r.clk.move(2 * time.Minute)
	r.wantLatest("t", 60, latest)
}

// Records are compacted once they are older than max.compaction.lag.ms, however clean the log is, and though nothing is written
// any more: the active segment is ended for it.
func TestMaxCompactionLagEndsTheWaiting(t *testing.T) {
	r := newRuled(t)
	r.topic("t", map[string]*string{"cleanup.policy": str("compact")}, "min.cleanable.dirty.ratio", "1", "max.compaction.lag.ms", "3600000")
	latest := r.put("t", 120, "a", "b", "c")
	r.round()
	r.wantAll("t", 120)
	r.clk.move(2 * time.Hour)
	r.wantLatest("t", 3, latest)
}

// A log of which less than min.cleanable.dirty.ratio is dirty is left alone.
func TestMinCleanableDirtyRatioIsWaitedFor(t *testing.T) {
	r := newRuled(t)
	r.topic("t", smallSegments("compact"))
	var keys []string
	for i := range 100 {
		keys = append(keys, fmt.Sprintf("key-%d", i))
	}
	latest := r.put("t", 100, keys...)
	until(t, "all but the active segment is clean", func() bool {
		st, ok := r.partition("t").CleanState(r.clk.Now())
		return ok && st.To > 75 && st.Dirty == 0
	})
	if _, err := kadm.NewClient(r.cl).AlterTopicConfigs(r.ctx, []kadm.AlterConfig{{Name: "min.cleanable.dirty.ratio", Value: str("0.5")}}, "t"); err != nil {
		t.Fatal(err)
	}
	until(t, "the new configuration is known", func() bool { return r.core.Load().configs.topic("t").Compaction.MinDirtyRatio == 0.5 })
	maps.Copy(latest, r.put("t", 50, keys[0]))
	r.compactable("t")
	r.round()
	r.wantAll("t", 150)
	maps.Copy(latest, r.put("t", 150, keys[0]))
	r.wantLatest("t", 250, latest)
}

// A tombstone outlives what it deletes by delete.retention.ms, so that a reader who is not that far behind learns of it.
func TestDeleteRetentionKeepsTombstones(t *testing.T) {
	r := newRuled(t)
	r.topic("t", smallSegments("compact"), "delete.retention.ms", "3600000")
	r.put("t", 1, "k")
	if err := r.cl.ProduceSync(r.ctx, &kgo.Record{Topic: "t", Key: []byte("k")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	r.put("t", 100, "other")
	has := func(off int64) bool { _, ok := held(t, r.testNode, "t")[off]; return ok }
	until(t, "the deleted record is gone", func() bool { return !has(0) })
	r.round()
	if !has(1) {
		t.Fatal("the tombstone went with what it deletes")
	}
	r.clk.move(time.Hour + time.Minute)
	until(t, "the tombstone is gone", func() bool { return !has(1) })
}

// With compact,delete a log is compacted, and what is older than retention.ms goes from it all the same, latest of its key or not.
func TestCompactAndDelete(t *testing.T) {
	r := newRuled(t)
	r.topic("t", smallSegments("compact,delete"), "retention.ms", "3600000")
	latest := r.put("t", 120, "a", "b", "c")
	r.wantLatest("t", 60, latest)
	if start := r.partition("t").LogStart(); start != 0 {
		t.Fatalf("the log starts at %d", start)
	}
	r.clk.move(2 * time.Hour)
	until(t, "all of it is old and gone", func() bool { return r.partition("t").LogStart() == 120 })
	res, err := r.cl.ProduceSync(r.ctx, &kgo.Record{Topic: "t", Key: []byte("a"), Value: []byte("new"), Timestamp: r.clk.Now()}).First()
	if err != nil || res.Offset != 120 {
		t.Fatalf("the next record: %+v %v", res, err)
	}
	reader := client(t, []*testNode{r.testNode}, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"t": {0: kgo.NewOffset().AtStart()}}))
	fs := reader.PollFetches(r.ctx)
	if recs := fs.Records(); fs.Err() != nil || len(recs) != 1 || recs[0].Offset != 120 || string(recs[0].Value) != "new" {
		t.Fatalf("read: %v, %v", recs, fs.Err())
	}
}

// rawProducer sends batches of an idempotent producer as it likes.
type rawProducer struct {
	r     *ruled
	cl    *kgo.Client
	id    int64
	epoch int16
}

func (p *rawProducer) send(topic, key string, seq int32) (offset int64, err error) {
	p.r.t.Helper()
	b := record.NewBuilder()
	b.ProducerID, b.ProducerEpoch, b.BaseSequence = p.id, p.epoch, seq
	batch, err := b.Add(time.Now().UnixMilli(), []byte(key), []byte("of the first")).Build()
	if err != nil {
		p.r.t.Fatal(err)
	}
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 10_000
	part := kmsg.NewProduceRequestTopicPartition()
	part.Records = batch
	topics := kmsg.NewProduceRequestTopic()
	topics.Topic, topics.Partitions = topic, append(topics.Partitions, part)
	req.Topics = append(req.Topics, topics)
	eventually(p.r.t, func() error { // after a restart its leader may have to be elected first
		res, asked := req.RequestWith(p.r.ctx, p.cl)
		if asked != nil {
			p.r.t.Fatal(asked)
		}
		answer := res.Topics[0].Partitions[0]
		if offset, err = answer.BaseOffset, kerr.ErrorForCode(answer.ErrorCode); errors.Is(err, kerr.NotLeaderForPartition) {
			return err
		}
		return nil
	})
	return offset, err
}

// What a node knows of idempotent producers survives compaction of all that they wrote, and a restart after it: a batch sent again is
// answered with its old offset, the next one in order is taken, one out of order is not.
func TestIdempotentProducerOutlivesItsCompactedRecords(t *testing.T) {
	r := newRuled(t)
	r.topic("t", smallSegments("compact"))
	p := &rawProducer{r: r}
	connect := func() {
		p.cl = client(t, []*testNode{r.testNode}, kgo.MaxVersions(kversion.V3_0_0()))
	}
	connect()
	init := kmsg.NewPtrInitProducerIDRequest()
	init.TransactionTimeoutMillis = 1000
	id, err := init.RequestWith(r.ctx, p.cl)
	if err == nil {
		err = kerr.ErrorForCode(id.ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.id, p.epoch = id.ProducerID, id.ProducerEpoch
	want := func(what, key string, seq int32, offset int64, code error) {
		t.Helper()
		got, err := p.send("t", key, seq)
		if !errors.Is(err, code) || code == nil && got != offset {
			t.Fatalf("%s: sequence %d got offset %d, %v; want %d, %v", what, seq, got, err, offset, code)
		}
	}
	for seq := range int32(30) {
		want("first", fmt.Sprint("k", seq%3), seq, int64(seq), nil)
	}
	r.put("t", 120, "k0", "k1", "k2")
	until(t, "the producer's records are gone", func() bool {
		for off := range held(t, r.testNode, "t") {
			if off < 30 {
				return false
			}
		}
		return true
	})
	for _, what := range []string{"compacted", "compacted and restarted"} {
		want(what, "k2", 29, 29, nil)
		want(what, "k1", 25, 25, nil) // the fifth last
		want(what, "k0", 31, 0, kerr.OutOfOrderSequenceNumber)
		if what == "compacted" {
			r.stop()
			r.start()
			connect()
		}
	}
	want("restarted", "k0", 30, 150, nil)
	want("restarted", "k0", 30, 150, nil)
}

// A replica that was away while the others compacted, and whose log's missing part has gone from theirs, is brought up to date from what
// compaction has left: then all three are readable at every offset, and hold the latest of each key.
func TestReplicaAwayDuringCompactionCatchesUpByDelta(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 3, compacting)
	dir := t.TempDir()
	for _, n := range nodes {
		n.onDisk(dir)
		n.tune = atOnce
		n.cfg.Limits.WALFileBytes, n.cfg.Limits.WALMaxBytes = 256<<10, 1<<20 // less than what it misses
	}
	startAll(nodes)
	cl := client(t, nodes, kgo.ProducerLinger(0), kgo.ProducerBatchCompression(kgo.NoCompression()))
	ctx := longContext(t)
	configs := smallSegments("compact")
	configs["internal.segment.bytes"] = str("65536")
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, 1, 3, configs, "c"); err != nil {
		t.Fatal(err)
	}
	latest := map[string]int64{}
	write := func(n int) {
		t.Helper()
		for i := range n {
			key := fmt.Sprint("k", i%7)
			res, err := cl.ProduceSync(ctx, &kgo.Record{Topic: "c", Key: []byte(key), Value: []byte(strings.Repeat("x", 10_000))}).First()
			if err != nil {
				t.Fatal(err)
			}
			latest[key] = res.Offset
		}
	}
	write(10)
	away, rest := nodes[2], nodes[:2]
	high := func(n *testNode) int64 {
		p, ok := n.core.Load().manager.Lookup("c", 0)
		if !ok {
			return -1
		}
		return p.HighWatermark()
	}
	until(t, "all replicas have the first records", func() bool { return high(away) == 10 })
	away.stop()
	write(300)
	until(t, "the others are compacted", func() bool {
		for _, n := range rest {
			if high(n) != 310 || len(held(t, n, "c")) > 60 {
				return false
			}
		}
		return true
	})
	away.start()
	until(t, "the replica has caught up", func() bool { return high(away) == 310 })
	if log := away.log.String(); !strings.Contains(log, "catching up by delta") || strings.Contains(log, "catching up whole") {
		t.Fatal("the log brought it up to date, or a copy of all: nothing is tested")
	}
	write(20)
	until(t, "all replicas have the last records", func() bool {
		for _, n := range nodes {
			if high(n) != 330 {
				return false
			}
		}
		return true
	})
	for _, n := range nodes {
		all := held(t, n, "c")
		for key, off := range latest {
			if got, ok := all[off]; !ok || string(got.Key) != key {
				t.Errorf("node %d: the latest record of %s should be at offset %d", n.cfg.ID(), key, off)
			}
		}
		if len(all) > 120 {
			t.Errorf("node %d holds %d records: it took what the others had compacted away", n.cfg.ID(), len(all))
		}
	}
}
