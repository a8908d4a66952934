package segment

import (
	"math"
	"time"
)

// Config is what a topic's configuration says about a log. It is taken by value wherever it decides something, so that a
// change needs no restart: see Log.SetConfig and Log.RetentionStart.
type Config struct {
	SegmentBytes       int64         // segment.bytes; 0 is 1 GiB; at most 2³¹-1, as positions in an index are 32 bits
	SegmentAge         time.Duration // segment.ms; 0 is seven days
	SegmentJitter      time.Duration // segment.jitter.ms: by how much at most a segment ends before SegmentAge
	IndexIntervalBytes int32         // index.interval.bytes; 0 is 4096
	IndexBytes         int           // segment.index.bytes; 0 is 10 MiB. A segment ends when an index is full
	RetentionBytes     int64         // retention.bytes; 0 or less keeps everything (Kafka's 0 is 1 here: nothing is deleted by omission)
	RetentionAge       time.Duration // retention.ms; 0 or less keeps everything
}

func (c Config) withDefaults() Config {
	if c.SegmentBytes <= 0 {
		c.SegmentBytes = 1 << 30
	}
	c.SegmentBytes = min(c.SegmentBytes, math.MaxInt32)
	c.SegmentJitter = max(c.SegmentJitter, 0)
	if c.SegmentAge <= 0 {
		c.SegmentAge = 7 * 24 * time.Hour
	}
	if c.IndexIntervalBytes <= 0 {
		c.IndexIntervalBytes = 4096
	}
	if c.IndexBytes <= 0 {
		c.IndexBytes = 10 << 20
	}
	c.IndexBytes = max(c.IndexBytes, 64)
	return c
}
