package partition

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/transport"
)

// How a partition's damaged records are mended. A segment with damage is made anew beside itself (segment.Rebuild): its sound batches
// come from the old file, the damaged ones from another replica, by the messages of the delta. Each is checked as it comes; then
// the file takes the old one's place at once. Batches are the same on all replicas, offset for offset, so that nothing else changes,
// and the applier may append meanwhile.

const (
	// inspectBytes is read by one step that finds out how far damage goes.
	inspectBytes = 4 << 20
	// mendPause lies between two rounds through the sources when none of them had what is needed.
	mendPause = 5 * time.Second
	// hopelessPause is as long where there is no other replica: one may be added.
	hopelessPause = time.Minute
)

// stats counts what happened to records of all partitions of a node.
type stats struct {
	found, mended, fetched atomic.Int64 // ranges, segments, bytes
	compared, unequal      atomic.Int64 // sums of other replicas
}

// mending is a repair under way. All but session, source and inbox, which stageMu guards, are the step's.
type mending struct {
	session uint64
	source  multiraft.Peer
	inbox   []deltaChunk

	generation uint64
	inspect    *segment.Scrubber
	rough      Damage
	exact      []Damage // what the inspection found
	build      *segment.Rebuild
	asked      int    // sources tried since the last progress
	basis      int64  // what comes from basisOf, from the log start on, may lack tombstones below this
	basisOf    uint64 // a replica
	waiting    bool
	retryAt    time.Time
	lastNews   time.Time
	idleTil    time.Time
}

// stepRepair does one piece of the repair: a part of a segment looked through, a chunk taken, a file put in its place.
func (p *Partition) stepRepair() (again task) {
	p.genMu.RLock()
	defer p.genMu.RUnlock()
	if p.log == nil || p.fault.Load() != nil {
		p.endMending()
		return 0
	}
	now := p.m.cfg.Clock.Now()
	if err := p.saveMark(); err != nil {
		p.logger.Error("the mark of damaged records can't be written; trying again", "error", err)
		p.m.later(mendPause, func() { p.m.enqueue(p, taskRepair) })
		return 0
	}
	r := p.mendingOf()
	d, ok := p.firstDamage()
	if !ok {
		p.endMending()
		p.restored()
		return 0
	}
	if now.Before(r.idleTil) {
		return 0
	}
	more, err := p.mend(r, d, now)
	switch {
	case err == nil:
	case errors.Is(err, segment.ErrReplaced), errors.Is(err, segment.ErrClosed):
		r.reset()
		more = true
	default:
		p.logger.Error("mending damaged records; trying again", "from", d.From, "to", d.To, "error", err)
		r.reset()
		p.pauseMending(r, now, mendPause)
	}
	if more {
		return taskRepair
	}
	return 0
}

// mend moves the repair of d on.
func (p *Partition) mend(r *mending, d Damage, now time.Time) (more bool, err error) {
	switch {
	case r.inspect != nil:
		return true, p.inspectOn(r)
	case d.Rough:
		r.inspect, r.rough = p.log.ScrubRange(d.From, d.To), d
		return true, nil
	case d.To <= p.logStart.Load():
		p.forgetDamage(d.From, d.To)
		return true, nil
	case r.build == nil && len(p.sources(&d)) == 0:
		if d.Diverged {
			p.pauseMending(r, now, mendPause) // until another replica leads
			return false, nil
		}
		p.logger.Error("no other replica holds these records: they stay unreadable, and nothing is deleted; stop the node and restore the file from a copy, "+
			"or add replicas to the topic if others still have it", "from", d.From, "to", d.To, "file", d.File, "byte", d.Byte)
		p.pauseMending(r, now, hopelessPause)
		return false, nil
	case r.build == nil:
		r.build, err = p.log.Rebuild(max(d.From, p.logStart.Load()))
		var outside *segment.OffsetError
		if errors.As(err, &outside) {
			p.forgetDamage(d.From, d.To) // deleted since
			return true, nil
		}
		if err == nil {
			base, end := r.build.Range()
			p.logger.Info("rebuilding a segment", "base", base, "end", end, "from", d.From, "to", d.To)
		}
		r.lastNews = now
		return err == nil, err
	case r.build.Full():
		return true, p.finishBuild(r)
	}
	next := r.build.Next()
	if bad, sound := p.damageAt(next, int64(1)<<62); bad == nil {
		if ok, err := p.copyOwn(r, next, sound); ok || err != nil {
			return true, err
		}
		// What was thought sound is not.
		if next < p.logStart.Load() {
			p.leaveBelowStart(r, next, now)
			return false, nil
		}
		p.Report(Damage{From: next, To: next + 1, File: d.File, Byte: d.Byte, Reason: "found while the segment was copied"})
	}
	return p.fetchMissing(r, p.askable(next), now)
}

// leaveBelowStart gives the repair up for long: nobody has what lies below the log start any more, and a file with a hole would be no
// segment. The damaged records above it stay unreadable here until the log start has passed the segment.
func (p *Partition) leaveBelowStart(r *mending, next int64, now time.Time) {
	base, end := r.build.Range()
	p.logger.Error("damaged records share a segment with damage below the log start: they stay unreadable until the segment is deleted",
		"base", base, "end", end, "offset", next)
	r.reset()
	p.pauseMending(r, now, hopelessPause)
}

// askable is the offset by which others are asked for the batch that begins at next: a log start may lie within it, and below that
// nobody answers.
func (p *Partition) askable(next int64) int64 {
	start := p.logStart.Load()
	if d, _ := p.damageAt(next, next); next < start && d != nil && d.To > start {
		return start
	}
	return next
}

// inspectOn reads on to find out how far rough damage goes.
func (p *Partition) inspectOn(r *mending) error {
	out, err := r.inspect.Step(inspectBytes)
	if err != nil {
		r.inspect = nil
		return err
	}
	for _, x := range out.Lost {
		r.exact = append(r.exact, damageOfLost(x))
	}
	if out.Done {
		p.settleRough(r.rough, r.exact)
		r.inspect, r.exact = nil, nil
	}
	return nil
}

// copyOwn takes sound batches from the damaged segment itself.
func (p *Partition) copyOwn(r *mending, next, sound int64) (ok bool, err error) {
	_, end := r.build.Range()
	// A segment in which the log start lies is copied from its beginning: its file is as dense as any.
	b, err := p.log.ReadRetained(next, min(sound, end), p.m.cfg.Limits.DeltaChunkBytes, nil)
	var damaged *segment.DamageError
	var outside *segment.OffsetError
	switch {
	case errors.As(err, &damaged), errors.As(err, &outside):
		return false, nil
	case err != nil:
		return false, err
	case len(b) == 0 && sound < end: // compaction left a gap, or a batch reaches into the damage
		if r.build.Compacted() {
			r.build.Skip(sound)
			return true, nil
		}
		return false, nil
	case len(b) == 0:
		r.build.Skip(end)
		return r.build.Full(), nil
	}
	var wrong *segment.SequenceError
	switch err := r.build.Append(b); {
	case err == nil, p.blamed(r, err):
		return true, nil
	case errors.As(err, &wrong):
		return false, nil
	default:
		return false, err
	}
}

// blamed begins anew if leader epochs contradict each other: what was copied from here is to blame, from the first batch on that may be. What
// lies before that is sound, and below the log start nobody else has it.
func (p *Partition) blamed(r *mending, err error) bool {
	var epochs *segment.EpochError
	if !errors.As(err, &epochs) {
		return false
	}
	_, end := r.build.Range()
	p.Report(Damage{From: epochs.From, To: end, File: epochs.File, Byte: epochs.Offset, Reason: epochs.Reason})
	r.reset()
	return true
}

// fetchMissing gets batches from another replica.
func (p *Partition) fetchMissing(r *mending, next int64, now time.Time) (more bool, err error) {
	p.stageMu.Lock()
	var c deltaChunk
	got := len(r.inbox) > 0
	if got {
		c = r.inbox[0]
		r.inbox = append(r.inbox[:0], r.inbox[1:]...)
	}
	p.stageMu.Unlock()
	if got {
		if c.from != next {
			return true, nil // an answer to an older question
		}
		r.waiting = false
		switch c.status {
		case chunkOK:
			if p.widened(r, &c) {
				return true, nil
			}
			err := p.takeMissing(r, &c)
			var gap *segment.SequenceError
			switch {
			case p.blamed(r, err):
				return true, nil
			case errors.As(err, &gap) && r.build.Next() < next && gap.Got > gap.Want:
				p.leaveBelowStart(r, r.build.Next(), now)
				return false, nil
			}
			if err != nil {
				p.logger.Warn("a chunk for damaged records is of no use", "source", r.source.Node, "error", err)
				break
			}
			r.asked, r.lastNews = 0, now
			return true, nil
		case chunkBelowStart:
			p.logger.Info("damaged records lie below another replica's log start; this one's follows", "offset", next, "start", c.start)
		}
		return p.nextSource(r, next, now)
	}
	switch {
	case !r.waiting:
		return p.nextSource(r, next, now)
	case now.Sub(r.lastNews) >= p.m.cfg.Limits.StageTimeout/3:
		return p.nextSource(r, next, now)
	case !now.Before(r.retryAt):
		p.ask(r, next, now)
	}
	return false, nil
}

// takeMissing checks what came and takes what is needed of it: whole batches that begin in the damage.
func (p *Partition) takeMissing(r *mending, c *deltaChunk) error {
	if _, err := checkChunk(c); err != nil {
		return err
	}
	n, more := 0, true
	_, end := r.build.Range()
	if c.holes > c.from {
		// There may be less of it there than there was here.
		if err := p.log.AllowHoles(min(c.holes, end), min(c.horizon, end)); err != nil {
			return err
		}
		r.build.AllowHoles(min(c.holes, end))
	}
	next := c.end
	err := record.Each(c.batches, func(h record.Header, b []byte) error {
		bad, _ := p.damageAt(max(h.BaseOffset, c.from), end)
		more = more && bad != nil && h.LastOffset() < end
		if n == 0 {
			next = min(next, max(h.BaseOffset, c.from))
		}
		if more { // what is sound here comes from here, also between two that are not
			n += len(b)
		}
		return nil
	})
	if d, _ := p.damageAt(c.from, end); err == nil && n == 0 && d != nil && next > c.from {
		r.build.Skip(min(next, d.To)) // compaction has left nothing there
		return nil
	}
	if err == nil && n == 0 {
		err = fmt.Errorf("%w: nothing for offset %d", errDelta, c.from)
	}
	if err != nil {
		return err
	}
	p.m.stats.fetched.Add(int64(n))
	return r.build.Append(c.batches[:n])
}

// widened says whether a chunk is of no use as it is: its source has removed tombstones that are not here, so that what they deleted would
// stay for good. Then everything below them is fetched anew from one source, beginning with the log start.
func (p *Partition) widened(r *mending, c *deltaChunk) bool {
	start := p.logStart.Load()
	switch {
	case c.horizon <= c.from:
		return false
	case r.basisOf == r.source.Replica && c.horizon <= r.basis:
		return false
	case c.from <= start:
		r.basis, r.basisOf = c.horizon, r.source.Replica
		return false
	}
	p.logger.Warn("tombstones that this replica lacks are gone from the source, too: everything below them is fetched anew", "source", r.source.Node, "removed_below", c.horizon)
	p.Report(Damage{From: start, To: max(min(c.horizon, p.log.EndOffset()), c.from+1), File: p.log.Dir(), Reason: "tombstones are missing that the copy of a damaged part would need"})
	r.reset()
	return true
}

// sources lists who may have sound copies: the leader first. What diverged is taken from the leader alone.
func (p *Partition) sources(d *Damage) []multiraft.Peer {
	rep := p.raft()
	if rep == nil {
		return nil
	}
	st := rep.Status()
	peers := rep.Peers()
	if d != nil && d.Diverged {
		return slices.DeleteFunc(peers, func(x multiraft.Peer) bool { return x.Replica != st.Leader })
	}
	slices.SortStableFunc(peers, func(a, b multiraft.Peer) int {
		switch {
		case a.Replica == st.Leader:
			return -1
		case b.Replica == st.Leader:
			return 1
		}
		return 0
	})
	return peers
}

// nextSource asks the next replica for what is missing at an offset, or rests for a while when all have been asked.
func (p *Partition) nextSource(r *mending, next int64, now time.Time) (more bool, err error) {
	d, _ := p.damageAt(next, next)
	from := p.sources(d)
	if r.asked >= len(from) {
		p.logger.Warn("damaged records can't be fetched yet; trying again", "offset", next, "replicas_asked", r.asked)
		p.pauseMending(r, now, mendPause)
		return false, nil
	}
	p.stageMu.Lock()
	r.session = p.m.session.Add(1)
	r.source = from[r.asked]
	r.inbox = nil
	p.stageMu.Unlock()
	r.asked++
	r.lastNews = now
	p.ask(r, next, now)
	return false, nil
}

func (p *Partition) ask(r *mending, next int64, now time.Time) {
	_, end := r.build.Range()
	r.waiting, r.retryAt = true, now.Add(chunkRetry)
	q := deltaRequest{chunks: 1, session: r.session, from: next, to: end}
	r.source.Send(transport.KindDeltaRequest, q.encode())
	p.m.later(chunkRetry, func() { p.m.enqueue(p, taskRepair) })
}

// finishBuild puts the rebuilt file in its place.
func (p *Partition) finishBuild(r *mending) error {
	base, _ := r.build.Range()
	to := r.build.Next()
	build := r.build
	r.build = nil
	if err := build.Commit(); err != nil {
		if errors.Is(err, segment.ErrReplaced) || errors.Is(err, segment.ErrClosed) {
			return err
		}
		return p.storageFailed("replacing a damaged segment of", err)
	}
	// The epochs of what came are to be on disk before the mark goes: a restart that believed the old ones would find damage where there is none.
	if _, err := p.log.Flush(); diskFull(err) {
		return err
	} else if err != nil {
		return p.storageFailed("flushing", err)
	}
	p.logger.Info("a damaged segment was rebuilt", "base", base, "end", to)
	p.m.stats.mended.Add(1)
	p.forgetDamage(base, to)
	return nil
}

func (p *Partition) mendingOf() *mending {
	p.stageMu.Lock()
	defer p.stageMu.Unlock()
	if r := p.mending; r != nil && r.generation != p.generation {
		r.reset()
		p.mending = nil
	}
	if p.mending == nil {
		p.mending = &mending{generation: p.generation}
	}
	return p.mending
}

func (p *Partition) endMending() {
	p.stageMu.Lock()
	r := p.mending
	p.mending = nil
	p.stageMu.Unlock()
	if r != nil {
		r.reset()
	}
}

func (r *mending) reset() {
	if r.build != nil {
		r.build.Abort()
	}
	r.build, r.inspect, r.exact, r.waiting, r.asked, r.basis = nil, nil, nil, false, 0, 0
}

// pauseMending rests: nobody had what is needed, or the disk refused. What was copied so far is kept.
func (p *Partition) pauseMending(r *mending, now time.Time, d time.Duration) {
	r.asked, r.waiting, r.idleTil = 0, false, now.Add(d)
	p.m.later(d, func() { p.m.enqueue(p, taskRepair) })
}

func (p *Partition) firstDamage() (Damage, bool) {
	p.hurtMu.Lock()
	defer p.hurtMu.Unlock()
	if len(p.hurt.damage) == 0 {
		return Damage{}, false
	}
	return p.hurt.damage[0], true
}

// forgetDamage takes a range off the list: it was mended, or deleted.
func (p *Partition) forgetDamage(from, to int64) {
	p.hurtMu.Lock()
	defer p.hurtMu.Unlock()
	p.hurt.remove(from, to)
	p.hurt.marked = false
	p.publishHealth()
}

// settleRough replaces rough damage, now that the files that it lies in have been read, by what was found in them.
func (p *Partition) settleRough(d Damage, exact []Damage) {
	p.hurtMu.Lock()
	defer p.hurtMu.Unlock()
	var keep []Damage
	for _, x := range p.hurt.damage {
		if x.From < d.To && d.From < x.To && x.Rough {
			continue
		}
		keep = append(keep, x)
	}
	p.hurt.damage, p.hurt.marked = keep, false
	for _, x := range exact {
		p.logger.Error("damaged records", "from", x.From, "to", x.To, "file", x.File, "byte", x.Byte, "reason", x.Reason)
		p.hurt.add(x)
	}
	p.publishHealth()
}

// restored lets the replica take part in full again, once nothing of it is damaged and the mark is gone.
func (p *Partition) restored() {
	p.hurtMu.Lock()
	well := len(p.hurt.damage) == 0 && p.hurt.marked
	p.hurtMu.Unlock()
	if r := p.raft(); well && r != nil {
		r.SetUnfit(false)
		p.logger.Info("all records of this replica are sound again")
		p.wakeAll()
	}
}

// renewed is told that a new generation has taken the place of all segments.
func (p *Partition) renewed() {
	p.hurtMu.Lock()
	had := len(p.hurt.damage) > 0
	p.hurt = health{}
	p.publishHealth()
	p.hurtMu.Unlock()
	if had {
		p.m.enqueue(p, taskRepair)
	}
}
