package partition

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/chronik-go/chronik/internal/segment"
)

// When a segment rolls, Kafka writes what it knows of producers as of the new segment's base offset beside it. So do we, for
// whoever reads these files with Kafka's tools; this package's own recovery begins at the log's checkpoint and reads none of
// them. The applier keeps the state at the entry in which a segment began, a worker writes the file. A crash in between, or
// segments fetched as a delta, leave a segment without a snapshot.

// maxRolls bounds the producer states kept for the worker. Segments of a sensible size roll minutes apart.
const maxRolls = 4

// roll is what producers' state was before an entry in which a segment may have begun.
type roll struct {
	from, end int64                   // the entry's offsets
	producers []segment.ProducerEntry // by age
	batches   []applied               // of idempotent producers, in the entry
}

// noteRoll keeps the producers' state if a segment has begun since the last entry. The applier calls it after appending an
// entry's batches, which are in scratch, and before it moves the state past them. A file that was removed meanwhile may hide
// one that was begun, so that while files go it keeps the state to be on the safe side.
func (p *Partition) noteRoll(l *segment.Log) {
	n := l.Segments() // first: what is removed from here on is seen below
	busy, tidies := p.removals.Load() > 0, p.tidies.Load()
	had, same := p.segments, tidies == p.tidySeen && !busy
	p.segments, p.tidySeen = n, tidies
	if had == n && same || had == 0 {
		return
	}
	r := roll{from: p.st.end, end: p.scratch[len(p.scratch)-1].hdr.LastOffset() + 1}
	t := p.st.producers // only the applier changes it
	r.producers = make([]segment.ProducerEntry, 0, t.len())
	for q := t.root.next; q != &t.root; q = q.next {
		r.producers = append(r.producers, snapshotEntry(&q.producer))
	}
	for _, a := range p.scratch {
		if idempotent(&a.hdr) {
			r.batches = append(r.batches, a)
		}
	}
	p.mu.Lock()
	if len(p.rolled) == maxRolls {
		p.rolled = p.rolled[1:]
	}
	p.rolled = append(p.rolled, r)
	p.mu.Unlock()
	p.m.enqueue(p, taskSnapshots)
}

// removing is told before and after segment files are removed.
func (p *Partition) removing(begin bool) {
	if begin {
		p.removals.Add(1)
		return
	}
	p.tidies.Add(1)
	p.removals.Add(-1)
}

func snapshotEntry(q *producer) segment.ProducerEntry {
	e := segment.ProducerEntry{
		ProducerID: q.id, ProducerEpoch: q.epoch, LastSequence: -1, LastOffset: -1, Timestamp: q.lastTime,
		CoordinatorEpoch: -1, TxnFirstOffset: -1,
	}
	if q.n > 0 {
		b := &q.batches[q.n-1]
		e.LastSequence, e.OffsetDelta = b.last, sequenceAfter(b.last, -b.first)
		e.LastOffset = b.base + int64(e.OffsetDelta)
	}
	return e
}

// stepSnapshots writes the snapshots that are due.
func (p *Partition) stepSnapshots() {
	p.mu.Lock()
	rolls := p.rolled
	p.rolled = nil
	p.mu.Unlock()
	_ = p.withLog(func(l *segment.Log) error {
		for i := range rolls {
			for _, base := range l.Bases(rolls[i].from, rolls[i].end) {
				name := filepath.Join(l.Dir(), segment.ProducerSnapshotName(base))
				if err := segment.WriteProducerSnapshot(p.m.cfg.FS, name, rolls[i].at(l, base)); err != nil {
					p.logger.Warn("writing a producer snapshot, which only Kafka's tools would read", "error", err)
					return nil
				}
			}
		}
		return nil
	})
}

// at returns the producers' state as of the batch at base.
func (r *roll) at(l *segment.Log, base int64) []segment.ProducerEntry {
	out := slices.Clone(r.producers)
	for i := range r.batches {
		h := &r.batches[i].hdr
		if h.BaseOffset >= base {
			break
		}
		e := snapshotEntry(&producer{id: h.ProducerID, epoch: h.ProducerEpoch, n: 1, batches: [keptBatches]seqBatch{sequenced(h)}, lastTime: h.MaxTimestamp})
		out = slices.DeleteFunc(out, func(o segment.ProducerEntry) bool { return o.ProducerID == e.ProducerID })
		out = append(out, e)
	}
	for i := range out {
		e := &out[i]
		if e.Timestamp >= 0 || e.LastOffset < 0 {
			continue
		}
		// A state that an older version wrote.
		if h, _, ok := l.BatchAt(e.LastOffset - int64(e.OffsetDelta)); ok {
			e.Timestamp = h.MaxTimestamp
		}
	}
	return out
}

// tidySnapshots removes the snapshots of segments that are gone.
func (p *Partition) tidySnapshots(l *segment.Log) {
	logs, snapshots, err := segmentNames(p, l)
	if err == nil {
		for _, base := range snapshots {
			if _, has := slices.BinarySearch(logs, base); has {
				continue
			}
			if e := p.m.cfg.FS.Remove(filepath.Join(l.Dir(), segment.ProducerSnapshotName(base))); e != nil && !isNotExist(e) {
				err = e
			}
		}
	}
	if err != nil {
		p.logger.Warn("removing the producer snapshots of removed segments; it is tried again with the next", "error", err)
	}
}

// segmentNames lists the base offsets of the files in a log's directory, ascending.
func segmentNames(p *Partition, l *segment.Log) (logs, snapshots []int64, err error) {
	names, err := p.m.cfg.FS.List(l.Dir())
	if err != nil {
		return nil, nil, err
	}
	for _, n := range names {
		digits, ext, _ := strings.Cut(n, ".")
		base, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || base < 0 {
			continue
		}
		switch ext {
		case "log":
			logs = append(logs, base)
		case "snapshot":
			snapshots = append(snapshots, base)
		}
	}
	return logs, snapshots, nil // names are sorted, and digits as many in all
}
