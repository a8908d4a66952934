package node

import (
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/throttle"
)

// configs turns what the image says about configurations into what the parts act on. Typed views are kept until the
// topic's configuration or a broker's changes: partitions ask for every batch.
type configs struct {
	cfg    *config.Node
	source metadata.Source
	static map[string]string

	mu    sync.RWMutex
	index uint64 // of the broker configs that cache was made from
	cache map[uuid.UUID]cachedTopic
}

type cachedTopic struct {
	topic *metadata.Topic
	value partition.TopicConfig
}

func newConfigs(cfg *config.Node, source metadata.Source) *configs {
	return &configs{cfg: cfg, source: source, static: cfg.Static(), cache: map[uuid.UUID]cachedTopic{}}
}

func layers(cfg *config.Node, static map[string]string, img *metadata.Image) config.Layers {
	return config.Layers{Broker: img.BrokerConfigs[cfg.ID()], Cluster: img.BrokerConfigs[-1], Static: static}
}

// topic returns a topic's configuration as it is now; the defaults for one that is not there.
func (c *configs) topic(name string) partition.TopicConfig {
	img := c.source.Image()
	t := img.Topics[name]
	if t == nil {
		return c.build(nil, img)
	}
	c.follow(img)
	c.mu.RLock()
	hit, ok := c.cache[t.ID]
	ok = ok && c.index == img.Index
	c.mu.RUnlock()
	if ok && hit.topic == t {
		return hit.value
	}
	v := c.build(t.Configs, img)
	c.keep(img, t, v)
	return v
}

// keep remembers a topic's configuration, if it was made from the brokers' configs as they are now: others may have gone on to a later
// image meanwhile.
func (c *configs) keep(img *metadata.Image, t *metadata.Topic, v partition.TopicConfig) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.index != img.Index {
		return
	}
	c.cache[t.ID] = cachedTopic{t, v}
	if len(c.cache) > 2*len(img.Topics)+64 {
		for id := range c.cache {
			if img.TopicsByID[id] == nil {
				delete(c.cache, id)
			}
		}
	}
}

// follow empties the cache where the broker configs may have changed since it was filled. An image that is older than it changes nothing.
func (c *configs) follow(img *metadata.Image) {
	c.mu.RLock()
	current := c.index >= img.Index
	c.mu.RUnlock()
	if current {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.index < img.Index {
		c.index = img.Index
		clear(c.cache)
	}
}

func (c *configs) build(set map[string]string, img *metadata.Image) partition.TopicConfig {
	// An error says that a value of another version did not count; the view is whole all the same.
	t, _ := config.NewTopic(set, layers(c.cfg, c.static, img))
	tc := partition.DefaultTopicConfig(segment.Config{
		SegmentBytes: int64(t.SegmentBytes), SegmentAge: bounded(t.SegmentMs), SegmentJitter: bounded(t.SegmentJitterMs),
		IndexIntervalBytes: t.IndexIntervalBytes, IndexBytes: int(t.SegmentIndexBytes),
		RetentionBytes: t.RetentionBytes, RetentionAge: millis(t.RetentionMs),
	})
	tc.LeaderThrottled, tc.FollowerThrottled = throttle.ParseReplicas(t.LeaderThrottled), throttle.ParseReplicas(t.FollowerThrottled)
	tc.RequireKeys = t.CleanupCompact
	tc.Compaction = compaction(&t)
	if tc.Compaction.Enabled && tc.Compaction.MaxLag > 0 { // what is in the active segment can't be compacted
		tc.Segment.SegmentAge = min(tc.Segment.SegmentAge, tc.Compaction.MaxLag)
	}
	tc.MaxMessageBytes = int(t.MaxMessageBytes)
	tc.TimestampAfterMaxMs, tc.TimestampBeforeMaxMs = t.TimestampAfterMaxMs, t.TimestampBeforeMaxMs
	tc.Levels = record.Levels{Gzip: t.GzipLevel, LZ4: t.LZ4Level, Zstd: t.ZstdLevel}
	if t.LogAppendTime {
		tc.TimestampType = partition.LogAppendTime
	}
	if t.Compression != "producer" {
		name := t.Compression
		if name == "uncompressed" {
			name = "none"
		}
		if codec, err := record.ParseCodec(name); err == nil {
			tc.Recompress, tc.Compression = true, codec
		}
	}
	return tc
}

// compaction is what a topic's configuration says about it.
func compaction(t *config.Topic) partition.Compaction {
	return partition.Compaction{
		Enabled: t.CleanupCompact, Only: t.CleanupCompact && !t.CleanupDelete, MinDirtyRatio: t.MinCleanableDirtyRatio,
		MinLag: max(0, bounded(t.MinCompactionLagMs)), MaxLag: max(0, millis(t.MaxCompactionLagMs)), // beyond a duration: never
		DeleteRetention: bounded(t.DeleteRetentionMs),
	}
}

// bounded turns milliseconds into a duration, the longest there is (292 years) if they are more.
func bounded(ms int64) time.Duration {
	if d := millis(ms); d >= 0 || ms < 0 {
		return d
	}
	return math.MaxInt64
}

// millis turns a retention into a duration; a negative one, or one longer than a duration holds, means without limit.
func millis(ms int64) time.Duration {
	if ms < 0 || ms > int64(1<<63-1)/int64(time.Millisecond) {
		return -1
	}
	return time.Duration(ms) * time.Millisecond
}

// partitions and replication are what topics get that ask for -1.
func (c *configs) partitions() int32 {
	l := layers(c.cfg, c.static, c.source.Image())
	if n, err := strconv.ParseInt(l.BrokerValue("num.partitions"), 10, 32); err == nil && n > 0 {
		return int32(n)
	}
	return c.cfg.NumPartitions
}

// number returns a broker config in force that is a number.
func (c *configs) number(name string) int64 {
	n, err := strconv.ParseInt(layers(c.cfg, c.static, c.source.Image()).BrokerValue(name), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (c *configs) replication() int16 { return c.cfg.Replication(len(c.source.Image().Nodes)) }

// configRules is what the controller asks about configurations.
func configRules(cfg *config.Node, image func() *metadata.Image) controller.ConfigRules {
	static := cfg.Static()
	table := func(r controller.Resource) *config.Table {
		switch r.Type {
		case controller.ResourceBroker:
			return config.Brokers
		case controller.ResourceGroup:
			return config.Groups
		}
		return config.Topics
	}
	return controller.ConfigRules{
		Validate: func(r controller.Resource, name, value string) error {
			return table(r).ValidateChange(name, value)
		},
		IsList: func(r controller.Resource, name string) bool { return table(r).IsList(name) },
		Default: func(r controller.Resource, name string) string {
			return table(r).Default(name, layers(cfg, static, image()))
		},
	}
}
