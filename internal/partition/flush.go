package partition

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/chronik-go/chronik/internal/segment"
)

// ageSample says how far the log had been applied at a time. Producers are forgotten by their raft index, which is the same on
// all replicas; samples translate an age into one. Every replica takes them, so that a new leader need not begin anew.
type ageSample struct {
	at    time.Time
	index uint64
}

// flush makes the segments durable up to what is applied, and then gives the log the checkpoint that says so (rule 7).
func (p *Partition) flush() {
	r := p.raft()
	if r == nil {
		return
	}
	p.genMu.RLock()
	defer p.genMu.RUnlock()
	if p.log == nil || p.fault.Load() != nil {
		return
	}
	// Before the state is taken: what is applied from now on makes the partition dirty again.
	p.dirty.Store(false)
	p.unflushed.Store(0)
	p.mu.Lock()
	index, term, start, end := p.st.index, p.st.term, p.st.start, p.st.end
	data := p.st.encode()
	p.mu.Unlock()
	if end > 0 {
		if err := p.flushLog(end); diskFull(err) {
			p.logger.Error("no room to flush; trying again later", "error", err)
			p.m.markDirty(p, 0)
			return
		} else if err != nil {
			p.storageFailed("flushing", err)
			return
		}
	}
	// Files below the log start may go only once no restart can begin at an older one: then the checkpoint is worth an fsync.
	// And segments may be compacted only below what no restart applies again.
	var durable func(error)
	if start > p.covered.Load() || p.compactable(end) {
		durable = func(err error) {
			if err == nil {
				p.cover(start)
				raise(&p.checkpointed, end)
			}
		}
	}
	r.CheckpointSynced(index, term, data, durable)
}

// cover notes that a durable checkpoint has this log start.
func (p *Partition) cover(start int64) { raise(&p.covered, start) }

// raise sets v to n unless it is higher.
func raise(v *atomic.Int64, n int64) {
	for {
		old := v.Load()
		if n <= old || v.CompareAndSwap(old, n) {
			return
		}
	}
}

// diskFull says whether a flush failed for lack of room before anything was synced. A sync that fails is final whatever it says:
// the kernel may have dropped what it could not write.
func diskFull(err error) bool {
	var e *segment.IOError
	return errors.Is(err, syscall.ENOSPC) && errors.As(err, &e) && e.Op != "fdatasync" && e.Op != "sync"
}

func (p *Partition) flushLog(end int64) error {
	flushed, err := p.log.Flush()
	if err != nil {
		return err
	}
	if flushed < end {
		return fmt.Errorf("flushed up to offset %d, %d is applied", flushed, end)
	}
	if !p.dirsSynced {
		return p.syncDirs()
	}
	return nil
}

// stepWriteback lets the kernel begin writing, so that the flush to come finds little to do.
func (p *Partition) stepWriteback() {
	_ = p.withLog(func(l *segment.Log) error {
		l.Writeback()
		return nil
	})
}

func (p *Partition) stepRetire() {
	p.genMu.RLock()
	defer p.genMu.RUnlock()
	if p.log == nil {
		return
	}
	if err := p.retire(); err != nil {
		p.logger.Error("removing a replaced generation; it goes at the next start", "error", err)
	}
}

// maintain proposes what only the leader may decide, retention and the expiry of producers, and removes the files that nobody
// can read any more.
func (p *Partition) maintain() {
	now := p.m.cfg.Clock.Now()
	cfg := p.m.topicConfig(p.topic)
	_ = p.withLog(func(l *segment.Log) error {
		l.SetConfig(cfg.Segment)
		return nil
	})
	if cfg.Compaction.Enabled {
		p.rollOld(now, cfg.Segment)
		p.coverSealed()
	}
	expire := p.sampleAges(now, &cfg)
	if p.leading.Load() != 0 {
		if expire != 0 {
			p.submit(&commandProposal{p: p, kind: commandExpireProducers, arg: int64(expire)})
		}
		if start := p.retention(now, &cfg); start > p.logStart.Load() {
			p.submit(&commandProposal{p: p, kind: commandLogStart, arg: start})
		}
	}
	p.tidy()
}

// retention returns where the log may start.
func (p *Partition) retention(now time.Time, cfg *TopicConfig) (start int64) {
	_ = p.withLog(func(l *segment.Log) error {
		start = min(l.RetentionStart(now, cfg.Segment), p.hw.Load())
		over := int64(0)
		if cfg.Segment.RetentionBytes >= 0 {
			over = l.Size() - cfg.Segment.RetentionBytes
		}
		if over < p.m.cfg.Limits.PinBytes {
			start = p.pinned(now, start)
		}
		return nil
	})
	return start
}

// tidy removes files below the log start, once a durable checkpoint holds that log start: a restart from an older one would
// find fewer records than it says.
func (p *Partition) tidy() {
	_ = p.withLog(func(l *segment.Log) error {
		start := p.logStart.Load()
		if start == p.tidied || p.covered.Load() < start {
			return nil
		}
		p.removing(true)
		err := l.Tidy()
		p.removing(false)
		if err != nil {
			p.logger.Error("removing old segments", "error", err)
			return nil
		}
		p.tidySnapshots(l)
		p.tidied = start
		return nil
	})
}

// maxSamples bounds the age samples of a partition: an expiry of a day is kept to the hour.
const maxSamples = 25

// sampleAges returns the raft index at or below which producers are to be forgotten, 0 for none.
func (p *Partition) sampleAges(now time.Time, cfg *TopicConfig) (expire uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.st.producers
	if t.len() == 0 {
		p.samples = nil
		return 0
	}
	if cfg.ProducerExpiry > 0 {
		n := len(p.samples)
		if n == 0 || now.Sub(p.samples[n-1].at) >= cfg.ProducerExpiry/(maxSamples-1) {
			p.samples = append(p.samples, ageSample{now, p.st.index})
		}
		for len(p.samples) > 0 && now.Sub(p.samples[0].at) >= cfg.ProducerExpiry {
			expire = p.samples[0].index
			if len(p.samples) > 1 && now.Sub(p.samples[1].at) < cfg.ProducerExpiry {
				break
			}
			p.samples = p.samples[1:]
		}
		if over := len(p.samples) - maxSamples; over > 0 {
			p.samples = append(p.samples[:0], p.samples[over:]...)
		}
	}
	return max(expire, t.excess(p.m.cfg.Limits.Producers))
}
