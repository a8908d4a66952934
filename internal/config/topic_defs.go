package config

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// MaxBatchBytes is the largest max.message.bytes: a batch is one raft entry, and must fit into one write of the log, one
// message between nodes and the bytes a group may have uncommitted.
const MaxBatchBytes = 16 << 20

// DefaultMaxMessageBytes is Kafka's default for max.message.bytes: 1 MiB and the overhead of a batch.
const DefaultMaxMessageBytes = 1<<20 + 12

const (
	maxInt    = math.MaxInt32
	maxLong   = math.MaxInt64
	hourMs    = 3600 * 1000
	minuteMs  = 60 * 1000
	weekMsStr = "604800000"
	longMax   = "9223372036854775807"
)

// Topics is the table of topic configs: those of Apache Kafka 4.x (LogConfig), all of them, inert ones too.
var Topics = newTable("topic", topicDefs())

func topicDefs() []*Def {
	var defs []*Def
	for _, group := range [][]*Def{topicLimitDefs(), topicSegmentDefs(), topicCleanupDefs(), topicCodecDefs(), topicTierDefs()} {
		defs = append(defs, group...)
	}
	return defs
}

func syn(names ...string) []Synonym {
	out := make([]Synonym, len(names))
	for i, n := range names {
		f := int64(1)
		switch {
		case strings.HasSuffix(n, ".hours"):
			f = hourMs
		case strings.HasSuffix(n, ".minutes"):
			f = minuteMs
		}
		out[i] = Synonym{Name: n, Factor: f}
	}
	return out
}

func topicLimitDefs() []*Def {
	return []*Def{
		{Name: "max.message.bytes", Type: Int, Default: strconv.Itoa(DefaultMaxMessageBytes), Min: 0, Max: MaxBatchBytes, Synonyms: syn("message.max.bytes"),
			Doc: "The largest record batch accepted, in bytes, as it is sent (after compression)."},
		{Name: "message.timestamp.type", Type: String, Default: "CreateTime", OneOf: []string{"CreateTime", "LogAppendTime"}, Synonyms: syn("log.message.timestamp.type"),
			Doc: "Whose time a record carries: the producer's (CreateTime) or the leader's as it takes the batch (LogAppendTime)."},
		{Name: "message.timestamp.before.max.ms", Type: Long, Default: longMax, Min: 0, Max: maxLong, Synonyms: syn("log.message.timestamp.before.max.ms"),
			Doc: "How far, in milliseconds, a producer's timestamp may lie behind the leader's clock. Ignored with LogAppendTime."},
		{Name: "message.timestamp.after.max.ms", Type: Long, Default: "3600000", Min: 0, Max: maxLong, Synonyms: syn("log.message.timestamp.after.max.ms"),
			Doc: "How far, in milliseconds, a producer's timestamp may lie ahead of the leader's clock. Ignored with LogAppendTime."},
		{Name: "min.insync.replicas", Type: Int, Default: "1", Min: 1, Max: maxInt, Inert: true, Synonyms: syn("min.insync.replicas"),
			Doc: "Without effect: a write always waits for a majority of the replicas, which then hold it on disk."},
		{Name: "unclean.leader.election.enable", Type: Boolean, Default: "false", Inert: true, Synonyms: syn("unclean.leader.election.enable"),
			Doc: "Without effect: a replica that lacks an acknowledged record is never elected."},
		{Name: "leader.replication.throttled.replicas", Type: List, Default: "", Repeats: true, check: checkThrottled,
			Doc: "The replicas that, as leaders, send others what they lack within leader.replication.throttled.rate: partition:broker pairs, or * for all."},
		{Name: "follower.replication.throttled.replicas", Type: List, Default: "", Repeats: true, check: checkThrottled,
			Doc: "The replicas that receive what they lack within follower.replication.throttled.rate: partition:broker pairs, or * for all."},
	}
}

func topicSegmentDefs() []*Def {
	return []*Def{
		{Name: "segment.bytes", Type: Int, Default: "1073741824", Min: 1 << 20, Max: maxInt, Synonyms: syn("log.segment.bytes"),
			Doc: "The size in bytes at which a segment file is full and the next one begins. Retention removes whole segments."},
		{Name: "internal.segment.bytes", Type: Int, NullDefault: true, Min: 1, Max: maxInt, Internal: true,
			Doc: "Takes the place of segment.bytes when set, without its lower limit. For tests."},
		{Name: "segment.ms", Type: Long, Default: weekMsStr, Min: 1, Max: maxLong, Synonyms: syn("log.roll.ms", "log.roll.hours"),
			Doc: "The age in milliseconds at which a segment ends even if it is not full."},
		{Name: "segment.jitter.ms", Type: Long, Default: "0", Min: 0, Max: maxLong, Synonyms: syn("log.roll.jitter.ms", "log.roll.jitter.hours"),
			Doc: "By how many milliseconds at most, a different number for each segment, one ends before segment.ms has passed, so that not all end at once."},
		{Name: "segment.index.bytes", Type: Int, Default: "10485760", Min: 4, Max: maxInt, Synonyms: syn("log.index.size.max.bytes"),
			Doc: "The largest size in bytes of a segment's offset index; a full index ends the segment."},
		{Name: "index.interval.bytes", Type: Int, Default: "4096", Min: 0, Max: maxInt, Synonyms: syn("log.index.interval.bytes"),
			Doc: "The bytes of log between two entries of the offset index."},
		{Name: "preallocate", Type: Boolean, Default: "false", Inert: true, Synonyms: syn("log.preallocate"),
			Doc: "Without effect: what is acknowledged lies in the node's log first, whose files are always allocated ahead."},
		{Name: "flush.messages", Type: Long, Default: longMax, Min: 1, Max: maxLong, Inert: true, Synonyms: syn("log.flush.interval.messages"),
			Doc: "Without effect: every acknowledged record has been fsynced by a majority."},
		{Name: "flush.ms", Type: Long, Default: longMax, Min: 0, Max: maxLong, Inert: true, Synonyms: syn("log.flush.interval.ms", "log.flush.scheduler.interval.ms"),
			Doc: "Without effect: every acknowledged record has been fsynced by a majority."},
		{Name: "file.delete.delay.ms", Type: Long, Default: "60000", Min: 0, Max: maxLong, Inert: true, Synonyms: syn("log.segment.delete.delay.ms"),
			Doc: "Without effect: a reader keeps the file it reads open, so removal needs no delay."},
	}
}

func topicCleanupDefs() []*Def {
	return []*Def{
		{Name: "cleanup.policy", Type: List, Default: "delete", OneOf: []string{"compact", "delete"}, Repeats: true, Synonyms: syn("log.cleanup.policy"),
			Doc: "What happens to old segments: delete removes them by retention.ms and retention.bytes; compact keeps the latest record of each key, and refuses records without one; compact,delete does both; empty keeps everything."},
		{Name: "retention.bytes", Type: Long, Default: "-1", Min: math.MinInt64, Max: maxLong, Synonyms: syn("log.retention.bytes"),
			Doc: "The size in bytes to which a partition may grow before its oldest segments are deleted; -1: no limit."},
		{Name: "retention.ms", Type: Long, Default: weekMsStr, Min: -1, Max: maxLong, Synonyms: syn("log.retention.ms", "log.retention.minutes", "log.retention.hours"),
			Doc: "The age in milliseconds beyond which a partition's segments are deleted; -1: no limit."},
		{Name: "delete.retention.ms", Type: Long, Default: "86400000", Min: 0, Max: maxLong, Synonyms: syn("log.cleaner.delete.retention.ms"),
			Doc: "How long, in milliseconds, compaction keeps a tombstone after the first pass that meets it. Who reads from the beginning has so long to get past it."},
		{Name: "min.compaction.lag.ms", Type: Long, Default: "0", Min: 0, Max: maxLong, Synonyms: syn("log.cleaner.min.compaction.lag.ms"),
			Doc: "The time in milliseconds for which a record is not compacted."},
		{Name: "max.compaction.lag.ms", Type: Long, Default: longMax, Min: 1, Max: maxLong, Synonyms: syn("log.cleaner.max.compaction.lag.ms"),
			Doc: "The time in milliseconds after which a record is due for compaction, whatever the ratio. The segment it is in ends by then."},
		{Name: "min.cleanable.dirty.ratio", Type: Double, Default: "0.5", Min: 0, Max: 1, Synonyms: syn("log.cleaner.min.cleanable.ratio"),
			Doc: "The share of a log that must be uncompacted for compaction to begin."},
	}
}

func topicCodecDefs() []*Def {
	return []*Def{
		{Name: "compression.type", Type: String, Default: "producer", OneOf: []string{"uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"}, Synonyms: syn("compression.type"),
			Doc: "The codec that batches are stored with; producer keeps each batch as it was sent."},
		{Name: "compression.gzip.level", Type: Int, Default: "-1", Min: -1, Max: 9, Synonyms: syn("compression.gzip.level"), check: notZero,
			Doc: "How hard the leader compresses where compression.type is gzip and a producer sent something else: 1 (fast) to 9, or -1 for the default."},
		{Name: "compression.lz4.level", Type: Int, Default: "9", Min: 1, Max: 17, Synonyms: syn("compression.lz4.level"),
			Doc: "How hard the leader compresses where compression.type is lz4 and a producer sent something else: 9, the default, is the fast compressor, the others search, from 10 on as hard as they can."},
		{Name: "compression.zstd.level", Type: Int, Default: "3", Min: -131072, Max: 22, Synonyms: syn("compression.zstd.level"),
			Doc: "How hard the leader compresses where compression.type is zstd and a producer sent something else, in three steps: below 3, 3 to 5, and from 6 on."},
	}
}

func topicTierDefs() []*Def {
	return []*Def{
		{Name: "remote.storage.enable", Type: Boolean, Default: "false", check: refuseTrue,
			Doc: "Tiered storage, which is not supported: true is refused."},
		{Name: "local.retention.ms", Type: Long, Default: "-2", Min: -2, Max: maxLong, Inert: true, Synonyms: syn("log.local.retention.ms"),
			Doc: "Without effect while there is no tiered storage. -2: as retention.ms."},
		{Name: "local.retention.bytes", Type: Long, Default: "-2", Min: -2, Max: maxLong, Inert: true, Synonyms: syn("log.local.retention.bytes"),
			Doc: "Without effect while there is no tiered storage. -2: as retention.bytes."},
		{Name: "remote.log.copy.disable", Type: Boolean, Default: "false", Inert: true,
			Doc: "Without effect while there is no tiered storage."},
		{Name: "remote.log.delete.on.disable", Type: Boolean, Default: "false", Inert: true,
			Doc: "Without effect while there is no tiered storage."},
	}
}

func refuseTrue(value string) error {
	if v, _ := parseBool(value); v {
		return errors.New("tiered storage is not supported by this version")
	}
	return nil
}

// notZero: gzip's level 0 is "store", which Kafka does not take.
func notZero(value string) error {
	if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && n == 0 {
		return errors.New("must be -1 or between 1 and 9")
	}
	return nil
}

var throttledPair = regexp.MustCompile(`^\d+:\d+$`)

func checkThrottled(value string) error {
	parts := SplitList(value)
	if len(parts) == 1 && parts[0] == "*" {
		return nil
	}
	for _, p := range parts {
		if !throttledPair.MatchString(p) {
			return fmt.Errorf("must be * or a list of partition:broker pairs, and %s is neither", clip(p))
		}
	}
	return nil
}
