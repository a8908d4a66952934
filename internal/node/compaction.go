package node

import (
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chronik-go/chronik/internal/cleaner"
	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/config"
)

func (c *Core) newCleaner() *cleaner.Cleaner {
	return cleaner.New(cleaner.Config{
		Memory:     c.env.CleanerMemory,
		Partitions: cleaner.Of(c.manager), Clock: c.env.Clock, Logger: c.log,
		Settings: c.cleanerSettings,
		// A file is written before those that it replaces go: not into the reserve.
		Busy: func() bool { return c.env.WAL.Stalled() > busyLog || c.space.writable() != nil },
	})
}

func (c *Core) cleanerSettings() cleaner.Settings {
	l := layers(c.cfg, c.configs.static, c.machine.Image())
	rate, _ := strconv.ParseFloat(l.BrokerValue(config.CleanerRate), 64) // the table has checked it
	return cleaner.Settings{
		Enabled: !strings.EqualFold(strings.TrimSpace(l.BrokerValue("log.cleaner.enable")), "false"), BytesPerSecond: rate,
		MapBytes:  c.cleanerMemory(),
		StepBytes: c.configs.number(config.CleanerStepBytes),
		Backoff:   bounded(c.configs.number(config.CleanerBackoff)),
	}
}

// cleanerMemory is what is set; where nothing is, what there is room for.
func (c *Core) cleanerMemory() int64 {
	if n := c.configs.number(config.CleanerMapBytes); n != config.DefaultCleanerMemory {
		return n
	}
	return c.cfg.Limits.CleanerMemory
}

// compact goes over the logs that are to be compacted, again and again.
func (c *Core) compact() {
	defer c.cleaner.Close()
	for clock.Sleep(c.ctx, c.env.Clock, max(c.cleaner.Step(), 0)) == nil {
	}
}

// registerCleaner shows what compaction does.
func (c *Core) registerCleaner(reg prometheus.Registerer) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "chronik", Subsystem: "log_cleaner", Name: name, Help: help}
	}
	gauge := func(name, help string, f func(cleaner.Stats) float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts(name, help)), func() float64 { return f(c.cleaner.Stats()) }))
	}
	counter := func(name, help string, f func(cleaner.Stats) int64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts(opts(name, help)), func() float64 { return float64(f(c.cleaner.Stats())) }))
	}
	counter("passes_total", "Compactions of a partition's log that were completed.", func(s cleaner.Stats) int64 { return s.Passes })
	counter("failures_total", "Compactions that were given up; they are tried again.", func(s cleaner.Stats) int64 { return s.Failed })
	counter("read_bytes_total", "Bytes that compaction has read.", func(s cleaner.Stats) int64 { return s.Read })
	counter("written_bytes_total", "Bytes that compaction has written.", func(s cleaner.Stats) int64 { return s.Written })
	counter("reclaimed_bytes_total", "Bytes by which logs became smaller.", func(s cleaner.Stats) int64 { return s.Reclaimed })
	counter("records_removed_total", "Records that compaction has removed, tombstones among them.", func(s cleaner.Stats) int64 { return s.Records })
	counter("tombstones_removed_total", "Tombstones that compaction has removed after delete.retention.ms.", func(s cleaner.Stats) int64 { return s.Tombstones })
	counter("opaque_batches_total", "Batches left as they are because their records can't be read; each pass counts them again.", func(s cleaner.Stats) int64 { return s.Opaque })
	gauge("due_partitions", "Partitions whose logs were due for compaction at the last look.", func(s cleaner.Stats) float64 { return float64(s.Due) })
	gauge("max_dirty_ratio", "The largest part of any compacted log that was dirty at the last look.", func(s cleaner.Stats) float64 { return s.Dirtiest })
	gauge("map_bytes", "Memory that the map of keys takes now.", func(s cleaner.Stats) float64 { return float64(s.MapBytes) })
	gauge("map_keys", "Keys that were in the map in the last pass.", func(s cleaner.Stats) float64 { return float64(s.Keys) })
	gauge("last_pass_seconds", "How long the last pass over a partition took.", func(s cleaner.Stats) float64 { return s.LastPass.Seconds() })
}
