package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Topic is the typed view of a topic's configs. Times are milliseconds, sizes bytes.
type Topic struct {
	// MaxMessageBytes bounds one record batch.
	MaxMessageBytes int32
	// LogAppendTime: the leader stamps batches with its own time (message.timestamp.type).
	LogAppendTime bool
	// TimestampBeforeMaxMs and TimestampAfterMaxMs bound a producer's timestamp against the leader's clock.
	TimestampBeforeMaxMs, TimestampAfterMaxMs int64
	// Compression is compression.type: producer, uncompressed, gzip, snappy, lz4 or zstd.
	Compression                    string
	GzipLevel, LZ4Level, ZstdLevel int32
	// CleanupDelete: retention applies. With it false RetentionBytes and RetentionMs are -1.
	CleanupDelete bool
	// CleanupCompact: the log is compacted, and records need keys.
	CleanupCompact bool
	// RetentionBytes and RetentionMs are negative when there is no limit.
	RetentionBytes, RetentionMs int64
	SegmentBytes                int32
	SegmentMs, SegmentJitterMs  int64
	SegmentIndexBytes           int32
	IndexIntervalBytes          int32
	MinInsyncReplicas           int32
	FileDeleteDelayMs           int64
	DeleteRetentionMs           int64
	MinCompactionLagMs          int64
	MaxCompactionLagMs          int64
	MinCleanableDirtyRatio      float64
	// LeaderThrottled and FollowerThrottled are *, or partition:broker pairs with commas between them.
	LeaderThrottled, FollowerThrottled string
}

// NewTopic builds the typed view of a topic on which set is set. A value that does not parse (it was stored by another
// version) does not count: the next best takes its place, and err says so; the view is usable either way.
func NewTopic(set map[string]string, l Layers) (Topic, error) {
	if set == nil {
		set = map[string]string{}
	}
	r := reader{set: set, layers: l}
	t := Topic{
		MaxMessageBytes:        int32(r.int("max.message.bytes")),
		LogAppendTime:          r.str("message.timestamp.type") == "LogAppendTime",
		TimestampBeforeMaxMs:   r.int("message.timestamp.before.max.ms"),
		TimestampAfterMaxMs:    r.int("message.timestamp.after.max.ms"),
		Compression:            r.str("compression.type"),
		GzipLevel:              int32(r.int("compression.gzip.level")),
		LZ4Level:               int32(r.int("compression.lz4.level")),
		ZstdLevel:              int32(r.int("compression.zstd.level")),
		RetentionBytes:         r.int("retention.bytes"),
		RetentionMs:            r.int("retention.ms"),
		SegmentBytes:           int32(r.int("segment.bytes")),
		SegmentMs:              r.int("segment.ms"),
		SegmentJitterMs:        r.int("segment.jitter.ms"),
		SegmentIndexBytes:      int32(r.int("segment.index.bytes")),
		IndexIntervalBytes:     int32(r.int("index.interval.bytes")),
		MinInsyncReplicas:      int32(r.int("min.insync.replicas")),
		FileDeleteDelayMs:      r.int("file.delete.delay.ms"),
		DeleteRetentionMs:      r.int("delete.retention.ms"),
		MinCompactionLagMs:     r.int("min.compaction.lag.ms"),
		MaxCompactionLagMs:     r.int("max.compaction.lag.ms"),
		MinCleanableDirtyRatio: r.float("min.cleanable.dirty.ratio"),
		LeaderThrottled:        r.str("leader.replication.throttled.replicas"),
		FollowerThrottled:      r.str("follower.replication.throttled.replicas"),
	}
	if n := r.int("internal.segment.bytes"); n > 0 {
		t.SegmentBytes = int32(n)
	}
	policy := SplitList(r.str("cleanup.policy"))
	t.CleanupDelete = slices.Contains(policy, "delete")
	t.CleanupCompact = slices.Contains(policy, "compact")
	if !t.CleanupDelete {
		t.RetentionBytes, t.RetentionMs = -1, -1
	}
	return t, errors.Join(r.errs...)
}

// reader reads values in force, passing over those that are not valid.
type reader struct {
	set    map[string]string
	layers Layers
	errs   []error
}

func (r *reader) str(name string) string {
	d := Topics.index[name]
	for _, c := range r.layers.resolve(d, r.set) {
		v := d.convert(c)
		err := d.Validate(v)
		if err == nil {
			return strings.TrimSpace(v)
		}
		r.errs = append(r.errs, fmt.Errorf("%s passed over: %w", c.Name, err))
	}
	return ""
}

func (r *reader) int(name string) int64 {
	n, _ := strconv.ParseInt(r.str(name), 10, 64) // str returns only what parses, or "" for null
	return n
}

func (r *reader) float(name string) float64 {
	f, _ := strconv.ParseFloat(r.str(name), 64)
	return f
}

// ValidateTopic checks everything that is set, or would be, on a topic: names, values, and values against each other with l
// behind them. It reports the first problem in order of name; the error is an *Error.
func ValidateTopic(set map[string]string, l Layers) error {
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if err := Topics.Validate(name, set[name]); err != nil {
			return err
		}
	}
	t, _ := NewTopic(set, l) // a bad value below the topic is not this topic's fault
	if t.MinCompactionLagMs > t.MaxCompactionLagMs {
		return &Error{Name: "min.compaction.lag.ms", Value: strconv.FormatInt(t.MinCompactionLagMs, 10), kind: ErrInvalidValue,
			Reason: fmt.Sprintf("min.compaction.lag.ms (%d) must not be above max.compaction.lag.ms (%d)", t.MinCompactionLagMs, t.MaxCompactionLagMs)}
	}
	return nil
}

// ValidateBroker checks configs set at run time on a broker or for all of them: names, values, and that they can change.
func ValidateBroker(set map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if err := Brokers.ValidateChange(name, set[name]); err != nil {
			return err
		}
	}
	return nil
}
