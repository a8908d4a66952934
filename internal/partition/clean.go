package partition

import (
	"math"
	"time"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
)

// Compaction is a replica's own matter (RAFT rule 2): it changes files, and nothing that raft, the applied state, the high watermark or
// the sums of proof.go know of. It goes up to what no restart applies again, and to the high watermark; a last stable offset will bound
// it, too. Whoever is then brought up to date from here learns what may be missing (delta.go).

// maxPinned is how long a follower that is being sent the log keeps its tombstones in place.
const maxPinned = time.Hour

// fruitlessPause is how long nothing is compacted for the sake of tombstones alone after a pass that changed nothing: something holds them.
const fruitlessPause = 10 * time.Minute

// CleanState says what compaction would find to do in a partition.
type CleanState struct {
	segment.Cleanable
	// Due: a pass is worth while now. Urgent: it is for records that have waited for max.compaction.lag.ms, or for tombstones whose
	// time has come, whatever the ratio.
	Due, Urgent bool
}

// rollOld ends the active segment if it has become old: it could not be compacted otherwise.
func (p *Partition) rollOld(now time.Time, cfg segment.Config) {
	if cfg.SegmentAge <= 0 {
		return
	}
	_ = p.withLog(func(l *segment.Log) error {
		p.logMu.Lock()
		defer p.logMu.Unlock()
		rolled, err := l.RollOld(now, cfg)
		if err != nil {
			p.logger.Error("beginning a new segment", "error", err)
		}
		if rolled {
			p.m.markDirty(p, 0) // what is to be compacted must be flushed, and the checkpoint durable
		}
		return err
	})
}

// compactable says whether the log has sealed segments, to be compacted, that a durable checkpoint does not cover yet.
func (p *Partition) compactable(end int64) bool {
	return p.checkpointed.Load() < end && p.m.topicConfig(p.topic).Compaction.Enabled && p.log.SealedEnd() > p.checkpointed.Load()
}

// coverSealed has a checkpoint made durable where one is needed for compaction and nothing is written that would bring one: the topic
// was not to be compacted when it was flushed last.
func (p *Partition) coverSealed() {
	_ = p.withLog(func(*segment.Log) error {
		if p.compactable(p.hw.Load()) {
			p.m.markDirty(p, 0)
		}
		return nil
	})
}

// CleanState tells what there is to compact; ok is false where nothing is to be compacted, by the topic's configuration or for now:
// what is damaged is mended first.
func (p *Partition) CleanState(now time.Time) (st CleanState, ok bool) {
	cfg := p.m.topicConfig(p.topic).Compaction
	if !cfg.Enabled || p.closed.Load() || p.unfit.Load() || p.fault.Load() != nil || len(p.Damage()) > 0 {
		return st, false
	}
	err := p.withLog(func(l *segment.Log) (err error) {
		if st.Cleanable, err = l.Cleanable(p.cleanLimit(), now, cfg.MinLag); err != nil {
			return err
		}
		st.Due = st.Dirty > 0 && st.Ratio() > cfg.MinDirtyRatio
		if st.Dirty > 0 && cfg.MaxLag > 0 {
			oldest, err := l.OldestDirty()
			if err != nil {
				return err
			}
			st.Urgent = oldest >= 0 && now.UnixMilli()-oldest > cfg.MaxLag.Milliseconds()
		}
		if st.DeleteAt >= 0 && now.UnixMilli() >= st.DeleteAt && now.UnixMilli()-p.fruitless.Load() >= fruitlessPause.Milliseconds() {
			st.Urgent = true
		}
		st.Due = st.Due || st.Urgent
		return nil
	})
	if err != nil {
		p.logger.Warn("compaction cannot read a log", "error", p.noticed(-1, err))
		return st, false
	}
	return st, true
}

// cleanLimit: below it everything is committed, in the checkpoint that a restart begins with, and decided.
func (p *Partition) cleanLimit() int64 {
	return min(p.checkpointed.Load(), p.hw.Load())
}

// Clean is a compaction of a partition under way.
type Clean struct {
	p          *Partition
	job        *segment.Cleaning
	generation uint64
}

// Clean begins to compact a partition, with the memory of keys, which it has until it is done. It is one caller's.
func (p *Partition) Clean(keys *segment.OffsetMap, now time.Time) (*Clean, error) {
	cfg := p.m.topicConfig(p.topic)
	last := p.lastBatches()
	c := &Clean{p: p}
	err := p.withLog(func(l *segment.Log) (err error) {
		c.generation = p.generation
		c.job, err = l.Clean(segment.CleanOptions{
			Limit: p.cleanLimit(), MinLag: cfg.Compaction.MinLag, Now: now, DeleteRetention: cfg.Compaction.DeleteRetention,
			KeepTombstones: p.keepTombstones(now), Map: keys, MaxInflated: inflatedLimit(&cfg),
			KeepBatch: func(h record.Header) bool { base, has := last[h.ProducerID]; return has && base == h.BaseOffset },
			Removing:  p.removing,
		})
		return err
	})
	if err != nil {
		return nil, p.noticed(-1, err)
	}
	return c, nil
}

// lastBatches returns where the last batch of each known producer is: it stays, if without records, so that whoever rebuilds the
// producers' state from the log finds their sequences.
func (p *Partition) lastBatches() map[int64]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.st.producers
	last := make(map[int64]int64, t.len())
	for n := t.root.next; n != &t.root; n = n.next {
		if n.n > 0 {
			last[n.id] = n.batches[n.n-1].base
		}
	}
	return last
}

// keepTombstones returns the offset from which tombstones stay because a follower that is being sent the log has not got there: it
// would have to begin anew.
func (p *Partition) keepTombstones(now time.Time) int64 {
	p.stageMu.Lock()
	defer p.stageMu.Unlock()
	limit := int64(math.MaxInt64)
	for _, c := range p.senders {
		if now.Sub(c.seen) < cursorLife && now.Sub(c.since) < maxPinned {
			limit = min(limit, c.from)
		}
	}
	return limit
}

// Step reads about max bytes, and writes as many at most, or puts one file in its place. After an error, and when it is done, it is over.
// Errors: segment.ErrReplaced (begin anew), *DamageError, ErrStorage.
func (c *Clean) Step(max int64) (done bool, err error) {
	p := c.p
	p.genMu.RLock()
	defer p.genMu.RUnlock()
	switch {
	case p.log == nil:
		c.job.Abort()
		return false, multiraft.ErrStopped
	case p.generation != c.generation || p.unfit.Load():
		c.job.Abort()
		return false, segment.ErrReplaced
	}
	swaps := c.job.Progress().Swaps
	done, err = c.job.Step(max)
	if c.job.Progress().Swaps > swaps {
		p.tidySnapshots(p.log)
	}
	if err != nil {
		c.job.Abort()
		return false, p.noticed(-1, err)
	}
	if done && c.job.Progress().Swaps == 0 {
		p.fruitless.Store(p.m.cfg.Clock.Now().UnixMilli())
	}
	return done, nil
}

// Abort gives it up. What has been put in place stays.
func (c *Clean) Abort() { c.job.Abort() }

// Progress tells what has been done so far.
func (c *Clean) Progress() segment.Cleaned { return c.job.Progress() }

// Partition returns whose compaction it is.
func (c *Clean) Partition() *Partition { return c.p }
