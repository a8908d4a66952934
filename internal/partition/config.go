package partition

import (
	"time"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/throttle"
)

// TimestampType is message.timestamp.type.
type TimestampType int8

const (
	// CreateTime keeps the producer's timestamps.
	CreateTime TimestampType = iota
	// LogAppendTime stamps a batch with the leader's clock as it is proposed.
	LogAppendTime
)

// TopicConfig is what of a topic's configuration a partition acts on. Values are literal: zero is zero. Start from
// DefaultTopicConfig.
type TopicConfig struct {
	// MaxMessageBytes is max.message.bytes: the largest batch, in bytes as sent (after recompression, if any).
	MaxMessageBytes int
	// TimestampType is message.timestamp.type; the two bounds apply to CreateTime only.
	TimestampType TimestampType
	// TimestampAfterMaxMs is message.timestamp.after.max.ms: how far ahead of this node's clock a record may be.
	TimestampAfterMaxMs int64
	// TimestampBeforeMaxMs is message.timestamp.before.max.ms: how far behind it may be.
	TimestampBeforeMaxMs int64
	// Recompress makes the leader store batches as Compression (compression.type other than "producer"), at Levels.
	Recompress  bool
	Compression record.Codec
	Levels      record.Levels
	// RequireKeys refuses records with a null key (cleanup.policy=compact).
	RequireKeys bool
	// Compaction is cleanup.policy=compact and what belongs to it.
	Compaction Compaction
	// ProducerExpiry is how long a producer's sequence is remembered after its last batch (producer.id.expiration.ms).
	ProducerExpiry time.Duration
	// LeaderThrottled and FollowerThrottled are leader. and follower.replication.throttled.replicas.
	LeaderThrottled, FollowerThrottled throttle.Replicas
	// Segment holds segment.* and retention.*.
	Segment segment.Config
}

// Compaction says whether and when a log is compacted. That is local to each replica.
type Compaction struct {
	Enabled bool
	// Only says that cleanup.policy is compact without delete: then DeleteRecords is refused, as in Kafka.
	Only bool
	// MinDirtyRatio is min.cleanable.dirty.ratio: the dirty part of what can be cleaned must be larger.
	MinDirtyRatio float64
	// MinLag is min.compaction.lag.ms: younger records are left alone. MaxLag is max.compaction.lag.ms: older ones are cleaned
	// whatever the ratio; 0: never for that reason.
	MinLag, MaxLag time.Duration
	// DeleteRetention is delete.retention.ms: how long a tombstone stays after the first pass that met it.
	DeleteRetention time.Duration
}

// Kafka's defaults for what TopicConfig holds.
const (
	DefaultMaxMessageBytes = 1048588
	DefaultTimestampAfter  = int64(time.Hour / time.Millisecond)
	DefaultTimestampBefore = int64(^uint64(0) >> 1)
	DefaultProducerExpiry  = 24 * time.Hour
)

// DefaultTopicConfig returns Kafka's defaults around a segment configuration.
func DefaultTopicConfig(s segment.Config) TopicConfig {
	return TopicConfig{
		MaxMessageBytes:      DefaultMaxMessageBytes,
		TimestampAfterMaxMs:  DefaultTimestampAfter,
		TimestampBeforeMaxMs: DefaultTimestampBefore,
		ProducerExpiry:       DefaultProducerExpiry,
		Segment:              s,
	}
}

// Limits bound what partitions hold and how hard they work. Zero values take the defaults named.
type Limits struct {
	// PartitionBytes and NodeBytes bound produced batches between Produce and done. Beyond them Produce answers
	// multiraft.ErrOverloaded. Defaults 32 MiB and 256 MiB.
	PartitionBytes, NodeBytes int64
	// Producers is how many idempotent producers a partition remembers before the leader proposes to forget the oldest.
	// Default 2,000; maxProducers is the hard bound.
	Producers int
	// FlushInterval is how long applied data may stay unflushed (it is durable in the log meanwhile); FlushBytes flushes
	// earlier. Defaults 5 s and 64 MiB.
	FlushInterval time.Duration
	FlushBytes    int64
	// MaintenanceInterval paces retention and producer expiry. Default 1 min.
	MaintenanceInterval time.Duration
	// ProofInterval is how often a leader tells its followers the sum of what was applied, if anything was. Default 10 s.
	ProofInterval time.Duration
	// DeltaBytesPerSecond bounds what this node sends to followers that catch up. Default 64 MiB/s.
	DeltaBytesPerSecond int64
	// DeltaChunkBytes is the size of one chunk. Default 1 MiB.
	DeltaChunkBytes int
	// Staging is how many partitions fetch at a time. Default 4.
	Staging int
	// StageTimeout is how long a fetch goes on without progress. Default 15 s.
	StageTimeout time.Duration
	// PinBytes is how far retention may be put off for the sake of a follower that is catching up. Default 1 GiB.
	PinBytes int64
	// Inflating is how many batches are decompressed at a time, by topics whose configuration asks for it: each takes the window
	// that its format and header ask for, of which zstd's is the largest with 32 MiB. Default 2.
	Inflating int
	// Workers run the manager's steps in production. Default 4.
	Workers int
}

func (l *Limits) setDefaults() {
	def(&l.PartitionBytes, 32<<20)
	def(&l.NodeBytes, 256<<20)
	def(&l.Producers, 2000)
	l.Producers = min(l.Producers, maxProducers)
	def(&l.FlushInterval, 5*time.Second)
	def(&l.FlushBytes, 64<<20)
	def(&l.MaintenanceInterval, time.Minute)
	def(&l.ProofInterval, 10*time.Second)
	def(&l.DeltaBytesPerSecond, 64<<20)
	def(&l.DeltaChunkBytes, 1<<20)
	def(&l.Staging, 4)
	def(&l.StageTimeout, 15*time.Second)
	def(&l.PinBytes, 1<<30)
	def(&l.Inflating, 2)
	def(&l.Workers, 4)
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
