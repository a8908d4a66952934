package node

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/scrub"
	"github.com/chronik-go/chronik/internal/wal"
)

// busyLog is the age of a write of the log at which the scrubber steps aside.
const busyLog = 100 * time.Millisecond

func (c *Core) newScrubber() *scrub.Scrubber {
	return scrub.New(scrub.Config{
		Log: c.env.WAL, Partitions: c.manager.Partitions, Clock: c.env.Clock, Logger: c.log,
		Rate:     func() int64 { return c.configs.number(config.ScrubRate) },
		Interval: func() time.Duration { return millis(c.configs.number(config.ScrubInterval)) },
		Busy:     func() bool { return c.env.WAL.Stalled() > busyLog },
		OnLog:    c.logDamaged,
	})
}

// scrub reads everything on the disk over and over.
func (c *Core) scrub() {
	for {
		wait := c.scrubber.Step()
		if err := clock.Sleep(c.ctx, c.env.Clock, wait); err != nil {
			return
		}
	}
}

// logDamaged is told of bytes of the write-ahead log that are no longer what was made durable. A restart would find them, too, so
// that what the group's replica promised with them counts no longer.
func (c *Core) logDamaged(h wal.Hit) {
	d := h.Damage
	switch h.Group {
	case 0:
		c.log.Error("the write-ahead log is damaged where no group needs it any more; should it be so again after the file has been recycled, replace the disk", "file", d.File, "offset", d.Offset, "reason", d.Reason)
	case metadata.MetadataGroup:
		c.env.Fail(damagedMetadata(&d))
	default:
		c.log.Error("the write-ahead log is damaged: the group's replica on this node is taken out of it", "group", h.Group, "file", d.File, "offset", d.Offset, "reason", d.Reason)
		c.groups.Quarantine(h.Group, d)
	}
}

// fenced is told that a replica has been stopped. Without the metadata a node can do nothing; a partition's other replicas go on.
func (c *Core) fenced(r *multiraft.Replica, err error) {
	if r.GroupID() == metadata.MetadataGroup {
		c.env.Fail(fmt.Errorf("the cluster's metadata on this node can't be trusted any more: %w; restart the node, and if it says so again, "+
			"start it with an empty --data-dir and a new --node-id", err))
		return
	}
	if beyondRepair(err) {
		c.replacer.add(r.GroupID(), r.ID())
	}
}

// registerDamage shows what the scrubber has read and what was found.
func (c *Core) registerDamage(reg prometheus.Registerer) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "chronik", Name: name, Help: help}
	}
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts(name, help)), f))
	}
	counter := func(name, help string, f func() int64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts(opts(name, help)), func() float64 { return float64(f()) }))
	}
	stats := c.scrubber.Stats
	health := c.manager.Health
	counter("scrub_bytes_total", "Bytes read back from the disk and checked.", func() int64 { return stats().Bytes })
	counter("scrub_passes_total", "Passes completed over everything on the disk.", func() int64 { return stats().Passes })
	gauge("scrub_last_pass_timestamp_seconds", "When the last pass was completed; 0 if none was.", func() float64 { return float64(stats().LastPass) })
	gauge("scrub_progress_ratio", "The part of the pass under way that has been read.", func() float64 {
		s := stats()
		return min(1, float64(s.Pass)/float64(max(s.Size, 1)))
	})
	counter("scrub_log_damage_total", "Places in the write-ahead log that were found damaged.", func() int64 { return stats().LogHits })
	counter("damage_found_total", "Ranges of records that were found damaged or missing.", func() int64 { return health().Found })
	counter("damage_segments_rebuilt_total", "Segments made anew because of damage.", func() int64 { return health().Mended })
	counter("damage_fetched_bytes_total", "Bytes that other replicas sent for damaged records.", func() int64 { return health().Fetched })
	gauge("damaged_partitions", "Partitions with records that can't be read on this node now.", func() float64 { return float64(health().Damaged) })
	gauge("damaged_ranges", "Ranges of offsets that can't be read on this node now.", func() float64 { return float64(health().Ranges) })
	gauge("diverged_partitions", "Partitions with records that are not the other replicas'.", func() float64 { return float64(health().Diverged) })
	counter("divergence_compared_total", "Sums compared with other replicas.", func() int64 { return health().Compared })
	counter("divergence_unequal_total", "Of these, those that differed.", func() int64 { return health().Unequal })
}
