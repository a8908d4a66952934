package node

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/partition"
)

// dynamicProbes says of each broker config that can be changed at run time what of the node's behaviour shows it: a new value, and what the
// parts act on then. What is here without a probe of its own is shown by TestDynamicConfigsAct.
func dynamicProbes(n *testNode) map[string]struct {
	value string
	probe func() any
} {
	core := n.core.Load()
	topic := func(f func(t *partition.TopicConfig) any) func() any {
		return func() any { v := core.configs.topic("t"); return f(&v) }
	}
	return map[string]struct {
		value string
		probe func() any
	}{
		"message.max.bytes":                   {"2000", topic(func(t *partition.TopicConfig) any { return t.MaxMessageBytes })},
		"log.message.timestamp.type":          {"LogAppendTime", topic(func(t *partition.TopicConfig) any { return t.TimestampType })},
		"log.message.timestamp.before.max.ms": {"77", topic(func(t *partition.TopicConfig) any { return t.TimestampBeforeMaxMs })},
		"log.message.timestamp.after.max.ms":  {"77", topic(func(t *partition.TopicConfig) any { return t.TimestampAfterMaxMs })},
		"compression.type":                    {"gzip", topic(func(t *partition.TopicConfig) any { return fmt.Sprint(t.Recompress, t.Compression) })},
		"compression.gzip.level":              {"7", topic(func(t *partition.TopicConfig) any { return t.Levels })},
		"compression.lz4.level":               {"7", topic(func(t *partition.TopicConfig) any { return t.Levels })},
		"compression.zstd.level":              {"7", topic(func(t *partition.TopicConfig) any { return t.Levels })},
		"log.roll.jitter.ms":                  {"777", topic(func(t *partition.TopicConfig) any { return t.Segment.SegmentJitter })},
		"log.segment.bytes":                   {"1048577", topic(func(t *partition.TopicConfig) any { return t.Segment.SegmentBytes })},
		"log.roll.ms":                         {"777", topic(func(t *partition.TopicConfig) any { return t.Segment.SegmentAge })},
		"log.index.size.max.bytes":            {"777", topic(func(t *partition.TopicConfig) any { return t.Segment.IndexBytes })},
		"log.index.interval.bytes":            {"777", topic(func(t *partition.TopicConfig) any { return t.Segment.IndexIntervalBytes })},
		"log.retention.bytes":                 {"777", topic(func(t *partition.TopicConfig) any { return t.Segment.RetentionBytes })},
		"log.retention.ms":                    {"777", topic(func(t *partition.TopicConfig) any { return t.Segment.RetentionAge })},
		"log.cleanup.policy":                  {"compact", topic(func(t *partition.TopicConfig) any { return t.Compaction.Only })},
		"log.cleaner.delete.retention.ms":     {"777", topic(func(t *partition.TopicConfig) any { return t.Compaction.DeleteRetention })},
		"log.cleaner.min.compaction.lag.ms":   {"777", topic(func(t *partition.TopicConfig) any { return t.Compaction.MinLag })},
		"log.cleaner.max.compaction.lag.ms":   {"777", topic(func(t *partition.TopicConfig) any { return t.Compaction.MaxLag })},
		"log.cleaner.min.cleanable.ratio":     {"0.7", topic(func(t *partition.TopicConfig) any { return t.Compaction.MinDirtyRatio })},
		config.CleanerRate:                    {"777", func() any { return core.cleanerSettings().BytesPerSecond }},
		config.CleanerMapBytes:                {"7777", func() any { return core.cleanerSettings().MapBytes }},
		config.CleanerStepBytes:               {"777", func() any { return core.cleanerSettings().StepBytes }},
		config.CleanerBackoff:                 {"777", func() any { return core.cleanerSettings().Backoff }},
		config.ScrubRate:                      {"777", func() any { return core.configs.number(config.ScrubRate) }},
		config.ScrubInterval:                  {"777", func() any { return core.configs.number(config.ScrubInterval) }},
		config.LeaderThrottledRate:            {"777", func() any { core.throttle.Leader.Wait(time.Now()); return core.throttle.Leader.Rate() }},
		config.FollowerThrottledRate:          {"777", func() any { core.throttle.Follower.Wait(time.Now()); return core.throttle.Follower.Rate() }},
	}
}

// alone is a node alone with a topic t, and a client.
func alone(t *testing.T, static map[string]string) (*testNode, *kgo.Client) {
	t.Helper()
	n := newTestNode(t, 1, func(c *config.Node) { c.Kafka = static })
	n.start()
	c := client(t, []*testNode{n}, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.RecordRetries(2))
	createTopics(t, c, 1, 1, "t")
	return n, c
}

// Every broker config that is said to be dynamic is in force at once, for all brokers and for one, and its default comes back when it
// is taken away. One that is added without a probe fails this test.
func TestDynamicConfigsAreInForceAtOnce(t *testing.T) {
	n, c := alone(t, nil)
	admin := kadm.NewClient(c)
	probes := dynamicProbes(n)
	for _, d := range config.Brokers.Defs() {
		p, ok := probes[d.Name]
		if d.ReadOnly || d.Internal {
			if ok {
				t.Errorf("%s is read-only and has a probe", d.Name)
			}
			continue
		}
		if !ok {
			t.Errorf("%s is said to be dynamic: nothing shows that it is", d.Name)
			continue
		}
		before := p.probe()
		for _, brokers := range [][]int32{nil, {1}} {
			change := func(op kadm.AlterConfig) {
				t.Helper()
				res, err := admin.AlterBrokerConfigs(testContext(t), []kadm.AlterConfig{op}, brokers...)
				if err == nil {
					err = res[0].Err
				}
				if err != nil {
					t.Errorf("%s: %v %s", d.Name, err, res[0].ErrMessage)
				}
			}
			change(set(d.Name, p.value))
			if got := p.probe(); got == before {
				t.Errorf("%s=%s on %v: still %v", d.Name, p.value, brokers, got)
			}
			change(kadm.AlterConfig{Op: kadm.DeleteConfig, Name: d.Name})
			if got := p.probe(); got != before {
				t.Errorf("%s taken away on %v: %v, was %v", d.Name, brokers, got, before)
			}
		}
	}
}

// Who was asked for a topic's configuration, and took its time, does not leave behind what was in force before.
func TestALateLookDoesNotBringOldConfigsBack(t *testing.T) {
	topic := &metadata.Topic{Name: "t", ID: uuid.UUID{1}}
	image := func(index uint64, bytes string) *metadata.Image {
		img := metadata.Empty()
		img.Index, img.Topics = index, map[string]*metadata.Topic{"t": topic}
		img.BrokerConfigs = map[int32]map[string]string{-1: {"message.max.bytes": bytes}}
		return img
	}
	before, after := image(1, "1000"), image(2, "2000")
	now := &fixedImage{before}
	c := newConfigs(config.Default(), now)
	late := c.build(topic.Configs, before)
	now.img = after
	for range 2 {
		if got := c.topic("t").MaxMessageBytes; got != 2000 {
			t.Fatalf("%d bytes", got)
		}
		c.keep(before, topic, late)
	}
}

// What the configs do to records, files and background work begins without a restart, and without waiting for a next round.
func TestDynamicConfigsAct(t *testing.T) {
	n, c := alone(t, map[string]string{config.ScrubRate: "0", config.CleanerBackoff: "3600000", config.ScrubInterval: "3600000"})
	nodes := []*testNode{n}
	takeAway := func(names ...string) {
		t.Helper()
		var ops []kadm.AlterConfig
		for _, name := range names {
			ops = append(ops, kadm.AlterConfig{Op: kadm.DeleteConfig, Name: name})
		}
		res, err := kadm.NewClient(c).AlterBrokerConfigs(testContext(t), ops)
		if err != nil || res[0].Err != nil {
			t.Fatal(err, res)
		}
	}
	refused := func(r *kgo.Record, want error, name, value string) {
		t.Helper()
		one := client(t, nodes, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.DisableIdempotentWrite(),
			kgo.RecordDeliveryTimeout(24*time.Hour)) // it is counted from the record's time
		defer one.Close()
		r.Topic = "t"
		if err := one.ProduceSync(testContext(t), r).FirstErr(); err != nil {
			t.Errorf("before %s=%s: %v", name, value, err)
		}
		alter(t, nodes, "", set(name, value))
		if err := one.ProduceSync(testContext(t), &kgo.Record{Topic: "t", Key: r.Key, Value: r.Value, Timestamp: r.Timestamp}).FirstErr(); !errors.Is(err, want) {
			t.Errorf("with %s=%s: %v, want %v", name, value, err, want)
		}
		takeAway(name)
	}
	refused(&kgo.Record{Value: make([]byte, 4000)}, kerr.MessageTooLarge, "message.max.bytes", "2000")
	refused(&kgo.Record{Value: []byte("v"), Timestamp: time.Now().Add(-time.Hour)}, kerr.InvalidTimestamp, "log.message.timestamp.before.max.ms", "1000")
	refused(&kgo.Record{Value: []byte("v"), Timestamp: time.Now().Add(30 * time.Minute)}, kerr.InvalidTimestamp, "log.message.timestamp.after.max.ms", "1000")
	refused(&kgo.Record{Value: []byte("v")}, kerr.InvalidRecord, "log.cleanup.policy", "compact")

	// Files: a segment for each batch of so many bytes, and the old ones gone.
	big := strings.Repeat("x", 700_000)
	alter(t, nodes, "", set("log.segment.bytes", "1048576"))
	p, _ := n.core.Load().manager.Lookup("t", 0)
	for range 4 {
		produce(t, c, "t", 0, big)
	}
	if size := p.Size(); size < 4*700_000 {
		t.Fatalf("%d bytes", size)
	}
	alter(t, nodes, "", set("log.retention.bytes", "1"))
	eventually(t, func() error { // the round of retention is a minute away
		if start := p.LogStart(); start < p.HighWatermark()-2 {
			return fmt.Errorf("the log starts at %d and ends at %d", start, p.HighWatermark())
		}
		return nil
	})
	takeAway("log.retention.bytes", "log.segment.bytes")

	// Background work that slept, or rested for an hour.
	if read := n.core.Load().scrubber.Stats().Bytes; read != 0 {
		t.Errorf("%d bytes were read back at rate 0", read)
	}
	alter(t, nodes, "", set(config.ScrubRate, "1000000000"))
	passes := func(more int64) {
		t.Helper()
		eventually(t, func() error {
			if s := n.core.Load().scrubber.Stats(); s.Passes < more || s.Bytes == 0 {
				return fmt.Errorf("%d passes, %d bytes", s.Passes, s.Bytes)
			}
			return nil
		})
	}
	passes(1)
	alter(t, nodes, "", set(config.ScrubInterval, "1"))
	passes(3)

	createTopics(t, c, 1, 1, "compacted")
	alter(t, nodes, "compacted", set("cleanup.policy", "compact"), set("segment.ms", "1"), set("min.cleanable.dirty.ratio", "0"))
	for i := range 20 {
		if err := c.ProduceSync(testContext(t), &kgo.Record{Topic: "compacted", Key: []byte("k"), Value: []byte(fmt.Sprint(i))}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	alter(t, nodes, "", set(config.CleanerBackoff, "1"))
	eventually(t, func() error {
		if s := n.core.Load().cleaner.Stats(); s.Records == 0 {
			return fmt.Errorf("nothing was compacted in %d passes", s.Passes)
		}
		return nil
	})
}

// A config in the node's own that changes nothing is told of when it starts.
func TestConfigsWithoutEffectAreToldOf(t *testing.T) {
	n := newTestNode(t, 1, func(c *config.Node) {
		c.Kafka = map[string]string{"min.insync.replicas": "2", "log.roll.jitter.ms": "5", "log.preallocate": "true"}
	})
	n.start()
	if said := n.log.String(); strings.Count(said, "has no effect") != 2 || !strings.Contains(said, "name=min.insync.replicas") || !strings.Contains(said, "name=log.preallocate") {
		t.Errorf("it said\n%s", said)
	}
}
