// Package cleaner compacts the partitions of a node whose cleanup.policy says so, one after the other, at a bounded rate and with bounded
// memory. It is Kafka's log cleaner with one thread: what is to be kept of a log is in internal/segment.
package cleaner

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/segment"
)

// idle is the longest that a step asks to wait: settings may change meanwhile.
const idle = time.Second

// minStep is the least that a step reads or writes, in bytes.
const minStep = 4 << 10

// Settings are Kafka's log.cleaner.* as they are now.
type Settings struct {
	// Enabled is log.cleaner.enable: without it nothing is compacted.
	Enabled bool
	// BytesPerSecond is log.cleaner.io.max.bytes.per.second, read and written together.
	BytesPerSecond float64
	// MapBytes is log.cleaner.dedupe.buffer.size: the memory for keys. A log with more keys takes several passes.
	MapBytes int64
	// StepBytes is log.cleaner.io.buffer.size: about what one step reads or writes.
	StepBytes int64
	// Backoff is log.cleaner.backoff.ms: the rest after a round in which nothing was changed.
	Backoff time.Duration
}

// Partition is what can be compacted.
type Partition interface {
	// CleanState tells what there is to do; ok is false if that can't be said now, or is nobody's business.
	CleanState(now time.Time) (st partition.CleanState, ok bool)
	// Clean begins a pass.
	Clean(keys *segment.OffsetMap, now time.Time) (Pass, error)
	// Name is for people.
	Name() string
}

// Pass is a compaction under way.
type Pass interface {
	// Step goes on by about so many bytes. After an error, and when it is done, it is over.
	Step(bytes int64) (done bool, err error)
	// Progress tells what has been done so far.
	Progress() segment.Cleaned
	// Abort gives it up.
	Abort()
}

// Config is what a Cleaner needs.
type Config struct {
	Partitions func() []Partition
	Settings   func() Settings
	Clock      clock.Clock
	Logger     *slog.Logger
	// Busy says that the disk has no time, or no room, for this now; may be nil.
	Busy func() bool
	// Memory is told how many bytes keys take whenever that changes; may be nil. It must not block.
	Memory func(bytes int64)
}

// Cleaner goes round and round. Step is one caller's; Stats is safe beside it.
type Cleaner struct {
	cfg    Config
	keys   *segment.OffsetMap
	most   int64 // bytes that keys was made for
	due    []candidate
	now    Pass
	name   string
	began  time.Time // of the pass
	seen   segment.Cleaned
	tokens float64
	at     time.Time
	rested time.Time // since when, zero: there was something to do in the last round
	useful bool      // something was changed in this round

	stats stats
}

type candidate struct {
	p  Partition
	st partition.CleanState
}

type stats struct {
	passes, failed, read, written, reclaimed, records, tombstones, opaque atomic.Int64
	due, mapBytes, lastKeys, lastMillis                                   atomic.Int64
	dirtiest                                                              atomic.Int64 // millionths
}

// Stats is what has been done since start.
type Stats struct {
	Passes, Failed      int64 // over a partition
	Read, Written       int64 // bytes
	Reclaimed           int64 // bytes that logs are smaller
	Records, Tombstones int64 // removed; the latter are among the former
	Opaque              int64 // batches that were left as they are because they can't be opened

	Due      int64   // partitions that waited for their pass when a round began last
	Dirtiest float64 // the largest dirty ratio of any partition then
	MapBytes int64   // memory that keys take now
	Keys     int64   // in it, in the pass that ended last
	LastPass time.Duration
}

// New makes a cleaner that begins with its first step.
func New(cfg Config) *Cleaner { return &Cleaner{cfg: cfg, at: cfg.Clock.Now()} }

// Stats returns the figures of this moment.
func (c *Cleaner) Stats() Stats {
	s := &c.stats
	return Stats{
		Passes: s.passes.Load(), Failed: s.failed.Load(), Read: s.read.Load(), Written: s.written.Load(), Reclaimed: s.reclaimed.Load(),
		Records: s.records.Load(), Tombstones: s.tombstones.Load(), Opaque: s.opaque.Load(),
		Due: s.due.Load(), Dirtiest: float64(s.dirtiest.Load()) / 1e6, MapBytes: s.mapBytes.Load(), Keys: s.lastKeys.Load(),
		LastPass: time.Duration(s.lastMillis.Load()) * time.Millisecond,
	}
}

// Close gives up the pass under way. No Step may come after it.
func (c *Cleaner) Close() {
	if c.now != nil {
		c.now.Abort()
		c.now = nil
	}
}

// Step does a piece of what there is to do, if the rate allows, and says how long to wait before the next.
func (c *Cleaner) Step() (wait time.Duration) {
	set, now := c.cfg.Settings(), c.cfg.Clock.Now()
	rate := max(set.BytesPerSecond, 1)
	if !set.Enabled || c.cfg.Busy != nil && c.cfg.Busy() {
		c.at = now
		return idle
	}
	// What was not used is not saved up, beyond a second's worth.
	c.tokens = min(rate, c.tokens+max(0, now.Sub(c.at).Seconds())*rate)
	c.at = now
	if c.tokens <= 0 {
		return max(time.Millisecond, min(idle, time.Duration(-c.tokens/rate*float64(time.Second))))
	}
	switch {
	case c.now != nil:
		c.goOn(set, now)
	case len(c.due) > 0:
		c.begin(set, now)
	case !c.rested.IsZero() && now.Sub(c.rested) < set.Backoff:
		return min(idle, set.Backoff-now.Sub(c.rested))
	default:
		c.round(now)
		if len(c.due) == 0 {
			c.endRound(set, now)
		}
	}
	return 0
}

// round looks for what is due: what has waited too long comes first, then the dirtiest, as in Kafka.
func (c *Cleaner) round(now time.Time) {
	c.due, c.useful = c.due[:0], false
	dirtiest := 0.0
	for _, p := range c.cfg.Partitions() {
		st, ok := p.CleanState(now)
		if !ok {
			continue
		}
		dirtiest = max(dirtiest, st.Ratio())
		if st.Due {
			c.due = append(c.due, candidate{p, st})
		}
	}
	slices.SortStableFunc(c.due, func(a, b candidate) int {
		if a.st.Urgent != b.st.Urgent {
			if a.st.Urgent {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.st.Ratio(), a.st.Ratio())
	})
	c.stats.due.Store(int64(len(c.due)))
	c.stats.dirtiest.Store(int64(dirtiest * 1e6))
}

// endRound rests, unless there may be more to do at once.
func (c *Cleaner) endRound(set Settings, now time.Time) {
	c.rested = time.Time{}
	if !c.useful {
		c.rested = now
		if c.keys != nil {
			c.keys.Release()
			c.noteMemory()
		}
	}
}

func (c *Cleaner) noteMemory() {
	n := c.keys.Bytes()
	if c.stats.mapBytes.Swap(n) != n && c.cfg.Memory != nil {
		c.cfg.Memory(n)
	}
}

func (c *Cleaner) begin(set Settings, now time.Time) {
	x := c.due[0]
	c.due = slices.Delete(c.due, 0, 1)
	if c.keys == nil || c.most != set.MapBytes {
		c.keys, c.most = segment.NewOffsetMap(set.MapBytes), set.MapBytes
	}
	// Others came first: things may have changed.
	if st, ok := x.p.CleanState(now); !ok || !st.Due {
		c.passed(set, now)
		return
	}
	pass, err := x.p.Clean(c.keys, now)
	if err != nil {
		c.failed(x.p.Name(), err)
		c.passed(set, now)
		return
	}
	c.now, c.name, c.began, c.seen = pass, x.p.Name(), now, segment.Cleaned{}
	c.noteMemory()
}

func (c *Cleaner) goOn(set Settings, now time.Time) {
	done, err := c.now.Step(max(set.StepBytes, minStep))
	at := c.now.Progress()
	read, written := at.Read-c.seen.Read, at.Written-c.seen.Written
	c.tokens -= float64(read + written)
	s := &c.stats
	s.read.Add(read)
	s.written.Add(written)
	s.records.Add(at.Records - c.seen.Records)
	s.tombstones.Add(at.Tombstones - c.seen.Tombstones)
	s.opaque.Add(at.Opaque - c.seen.Opaque)
	c.useful = c.useful || at.Swaps > c.seen.Swaps
	c.seen = at
	if err != nil {
		c.failed(c.name, err)
	}
	if done {
		s.passes.Add(1)
		s.reclaimed.Add(max(0, at.Before-at.After))
		s.lastKeys.Store(int64(at.Keys))
		s.lastMillis.Store(now.Sub(c.began).Milliseconds())
		c.cfg.Logger.Info("compacted", "partition", c.name, "to", at.To, "keys", at.Keys, "removed", at.Records, "tombstones", at.Tombstones,
			"before", at.Before, "after", at.After, "segments", at.Segments, "took", now.Sub(c.began))
	}
	if done || err != nil {
		c.now = nil
		c.passed(set, now)
	}
}

// passed goes on after a pass: the round may be over.
func (c *Cleaner) passed(set Settings, now time.Time) {
	if len(c.due) == 0 {
		c.endRound(set, now)
	}
}

// failed notes a pass that came to nothing. The next round tries again.
func (c *Cleaner) failed(name string, err error) {
	c.stats.failed.Add(1)
	if errors.Is(err, segment.ErrReplaced) {
		c.cfg.Logger.Debug("compaction begins anew: the log was changed by others", "partition", name)
		return
	}
	c.cfg.Logger.Error("a compaction failed", "partition", name, "error", err)
}
