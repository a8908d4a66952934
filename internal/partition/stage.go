package partition

import (
	"errors"
	"fmt"
	"math"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/transport"
)

const (
	// window is how many chunks one request asks for; maxWindow what a server grants.
	window    = 4
	maxWindow = 16
	// chunkRetry is how long a follower waits before it asks again.
	chunkRetry = 500 * time.Millisecond
	// stagedLife is how long a directory staged whole waits for its Install before a newer staging may take its place.
	stagedLife = 10 * time.Second
)

// staging is a follower's attempt to fetch what a snapshot describes. Its fields are the manager's step's, except inbox,
// finished and slot, which stageMu guards.
//
// A follower whose log ends inside the leader's log fetches what it lacks into its own segments: those bytes are committed, so
// they may be there before raft's log says so. One that ends below the leader's log start begins a new generation.
type staging struct {
	index  uint64
	target state
	source multiraft.Peer
	done   func(error)

	inbox    []deltaChunk
	finished bool
	slot     bool

	session  uint64
	begun    bool
	whole    bool
	copying  bool         // with whole: the first chunk has come
	horizon  int64        // with copying: the source's then
	start    int64        // with whole: where the new generation's log starts
	log      *segment.Log // with whole: the new generation; set under stageMu
	next     int64        // first offset not fetched
	waiting  bool         // a request is out
	retryAt  time.Time
	lastNews time.Time // of progress, or that there is none for the sake of a throttle
	spare    bool      // the leader commits without this replica: it may be throttled, and then needs no slot
	slowed   bool      // with spare: by the leader's throttle
	heldTil  time.Time // this node's own throttle is looked at again
}

// stagedGen is a generation that is complete and durable and waits for Install.
type stagedGen struct {
	index uint64
	log   *segment.Log
	at    time.Time
}

// Stage implements multiraft.StateMachine.
func (p *Partition) Stage(snap raftpb.Snapshot, source multiraft.Peer, done func(error)) {
	target, err := decodeState(snap.Data)
	if err == nil && target.index != snap.Metadata.Index {
		err = fmt.Errorf("%w: it is for index %d, the snapshot for %d", errState, target.index, snap.Metadata.Index)
	}
	if err != nil {
		done(err)
		return
	}
	p.endStaging(nil, errSuperseded)
	s := &staging{index: snap.Metadata.Index, target: target, source: source, done: done, lastNews: p.m.cfg.Clock.Now()}
	p.stageMu.Lock()
	if p.closed.Load() {
		p.stageMu.Unlock()
		done(multiraft.ErrStopped)
		return
	}
	p.stage = s
	p.stageMu.Unlock()
	p.m.enqueue(p, taskStage)
}

// endStaging finishes an attempt (nil: whichever is under way) exactly once. What a failed one has opened is the step's to close.
func (p *Partition) endStaging(s *staging, err error) {
	p.stageMu.Lock()
	if s == nil {
		s = p.stage
	}
	if s == nil || s.finished {
		p.stageMu.Unlock()
		return
	}
	s.finished = true
	s.inbox = nil
	if p.stage == s {
		p.stage = nil
	}
	switch {
	case err == nil && s.whole:
		p.staged = &stagedGen{index: s.index, log: s.log, at: p.m.cfg.Clock.Now()}
	case s.log != nil:
		p.retired = append(p.retired, retired{s.log, p.genDir(s.index)})
	}
	slot := s.slot
	s.slot = false
	p.stageMu.Unlock()
	if slot {
		p.m.releaseSlot()
	}
	if err != nil {
		p.m.enqueue(p, taskRetire)
	}
	s.done(err)
}

// enqueueChunk keeps a chunk for the step that asked for it, within the window.
func (p *Partition) enqueueChunk(c deltaChunk, from multiraft.Peer) task {
	p.stageMu.Lock()
	defer p.stageMu.Unlock()
	if r := p.mending; r != nil && r.session == c.session && r.source.Replica == from.Replica && len(r.inbox) < 2*window {
		r.inbox = append(r.inbox, c)
		return taskRepair
	}
	s := p.stage
	if s == nil || s.finished || s.session != c.session || s.source.Replica != from.Replica || len(s.inbox) >= 2*window {
		return 0
	}
	s.inbox = append(s.inbox, c)
	return taskStage
}

// stepStage moves the attempt under way on by one chunk.
func (p *Partition) stepStage() (again task) {
	p.genMu.RLock()
	defer p.genMu.RUnlock()
	p.stageMu.Lock()
	s := p.stage
	p.stageMu.Unlock()
	if s == nil || p.log == nil {
		return 0
	}
	now := p.m.cfg.Clock.Now()
	if !p.admitted(s, now) {
		return 0
	}
	again, err := p.advance(s, now)
	if err != nil {
		if errors.Is(err, ErrStorage) {
			p.logger.Error("staging a snapshot", "index", s.index, "error", err)
		}
		p.endStaging(s, err)
	}
	return again
}

// admitted takes one of the node's staging slots and sees to it that a directory staged earlier is not lost while it may still
// be installed.
func (p *Partition) admitted(s *staging, now time.Time) bool {
	p.stageMu.Lock()
	has := s.slot
	old := p.staged
	p.stageMu.Unlock()
	if old != nil && s.index != old.index && now.Sub(old.at) < stagedLife && !s.begun {
		p.m.later(stagedLife-now.Sub(old.at), func() { p.m.enqueue(p, taskStage) })
		return false
	}
	if has || p.slowStaging(s) {
		return true
	}
	if !p.m.takeSlot(p) {
		return false
	}
	p.stageMu.Lock()
	s.slot = !s.finished
	kept := s.slot
	p.stageMu.Unlock()
	if !kept {
		p.m.releaseSlot()
	}
	s.lastNews = now // the wait for a slot is not the leader's fault
	return kept
}

func (p *Partition) advance(s *staging, now time.Time) (again task, err error) {
	if !s.begun {
		if err := p.beginStaging(s); err != nil {
			return 0, err
		}
	}
	p.stageMu.Lock()
	var c deltaChunk
	got := len(s.inbox) > 0
	if got {
		c = s.inbox[0]
		s.inbox = append(s.inbox[:0], s.inbox[1:]...)
	}
	rest := len(s.inbox)
	p.stageMu.Unlock()
	if got {
		p.isSpare(s, &c)
		progress, err := p.takeChunk(s, &c)
		if err != nil {
			return 0, err
		}
		if progress || c.status == chunkThrottled {
			s.lastNews = now
		}
		if c.last && c.status != chunkUnavailable {
			s.waiting = false
		}
	}
	switch {
	case s.begun && s.next >= s.target.end:
		return 0, p.completeStaging(s)
	case rest > 0 || !s.begun:
		return taskStage, nil
	case (!s.waiting || !now.Before(s.retryAt)) && p.heldBack(s, now):
		s.lastNews = now // what this node waits for is not the leader's fault
	case now.Sub(s.lastNews) >= p.m.cfg.Limits.StageTimeout:
		return 0, fmt.Errorf("%w: stuck at offset %d of %d", errNoProgress, s.next, s.target.end)
	case !s.waiting || !now.Before(s.retryAt):
		p.request(s, now)
	}
	return 0, nil
}

// throttled says whether what this replica receives counts against follower.replication.throttled.rate, if it may be throttled.
func (p *Partition) throttled() bool {
	return p.m.cfg.Throttle.Receives(p.topic, p.index, p.m.cfg.Throttle.Self())
}

// slowStaging says whether a throttle of either side bounds what this replica receives, for however long it takes: others, for which a
// group may be waiting to commit, are not to wait for its slot.
func (p *Partition) slowStaging(s *staging) bool { return s.spare && (s.slowed || p.throttled()) }

// isSpare takes in what the leader says of this replica with a chunk. One that is throttled gives its slot to others.
func (p *Partition) isSpare(s *staging, c *deltaChunk) {
	s.spare, s.slowed = c.spare, c.slowed
	if !p.slowStaging(s) {
		return
	}
	p.stageMu.Lock()
	slot := s.slot
	s.slot = false
	p.stageMu.Unlock()
	if slot {
		p.m.releaseSlot()
	}
}

// heldBack says whether this node's throttle does not let it ask for more now, and sees to it that it is looked at again.
func (p *Partition) heldBack(s *staging, now time.Time) bool {
	if !s.spare || !p.throttled() {
		return false
	}
	wait := p.m.cfg.Throttle.Follower.Wait(now)
	if wait > 0 && !now.Before(s.heldTil) {
		s.heldTil = now.Add(wait)
		p.m.later(wait, func() { p.m.enqueue(p, taskStage) })
	}
	return wait > 0
}

// request asks for the next window, and again when nothing comes of it. A replica that may be throttled asks for one chunk at a
// time, and so does one that has yet to hear from the leader whether it may.
func (p *Partition) request(s *staging, now time.Time) {
	s.waiting, s.retryAt = true, now.Add(chunkRetry)
	r := deltaRequest{chunks: window, session: s.session, from: s.next, to: s.target.end}
	if p.throttled() {
		r.chunks = 1
		r.kib = uint16(max(1, min(p.m.cfg.Throttle.Follower.Piece(p.m.cfg.Limits.DeltaChunkBytes)>>10, math.MaxUint16)))
	}
	s.source.Send(transport.KindDeltaRequest, r.encode())
	p.m.later(chunkRetry, func() { p.m.enqueue(p, taskStage) })
}

// beginStaging decides between a delta and a whole resync.
func (p *Partition) beginStaging(s *staging) error {
	p.stageMu.Lock()
	s.session = p.m.session.Add(1)
	s.inbox = nil
	p.stageMu.Unlock()
	s.begun, s.waiting, s.copying = true, false, false
	end := p.log.EndOffset()
	s.start = max(s.start, s.target.start)
	if !s.whole && end >= s.start {
		s.next = end
		p.logger.Info("catching up by delta", "from", end, "to", s.target.end, "leader", s.source.Node)
		return nil
	}
	if s.index <= p.generation {
		return fmt.Errorf("%w: generation %d is not above %d", errState, s.index, p.generation)
	}
	s.whole = true
	s.start = min(s.start, s.target.end)
	s.next = s.start
	p.logger.Warn("catching up whole", "own_end", end, "leader_start", s.start, "to", s.target.end, "leader", s.source.Node)
	if s.log != nil {
		return p.stageError("starting over", s.log.Reset(s.start))
	}
	return p.openStaged(s)
}

// openStaged makes the empty directory of a new generation.
func (p *Partition) openStaged(s *staging) error {
	dir := p.genDir(s.index)
	p.discardStaged()
	if err := p.retire(); err != nil {
		return err
	}
	// The directory in use first: a restart that finds only the new one can't tell what became of the old.
	if err := p.syncDirs(); err != nil {
		return p.storageFailed("syncing the directories of", err)
	}
	fs := p.m.cfg.FS
	if err := fs.RemoveAll(dir); err != nil {
		return p.stageError("clearing", err)
	}
	if err := fs.MkdirAll(dir); err != nil {
		return p.stageError("making", err)
	}
	l, err := p.openSegments(dir, s.start, 0)
	if err != nil {
		return p.stageError("opening", err)
	}
	p.stageMu.Lock()
	s.log = l
	late := s.finished
	if late {
		p.retired = append(p.retired, retired{l, dir})
	}
	p.stageMu.Unlock()
	if late {
		return errSuperseded
	}
	// Always, and durably: where nothing is left to fetch, the first file's name is all that tells a restart where the log starts.
	return p.stageError("starting", l.Reset(s.start))
}

// stageError is a failure in a directory that nobody depends on yet: the attempt fails, the node goes on. But a sync that failed says of
// the whole disk that nothing may be believed of it, and nothing is flushed by these files again (RAFT rule 11): the node stops.
func (p *Partition) stageError(op string, err error) error {
	if err == nil {
		return nil
	}
	var failed *segment.IOError
	if errors.As(err, &failed) && failed.Op == "sync" {
		return p.storageFailed(op+" a new generation of", err)
	}
	return fmt.Errorf("%s a new generation of %s-%d: %w: %w", op, p.topic, p.index, ErrStorage, err)
}

// takeChunk checks and appends a chunk. What is not the next one is dropped: it comes again.
func (p *Partition) takeChunk(s *staging, c *deltaChunk) (progress bool, err error) {
	switch {
	case c.status == chunkUnavailable || c.status == chunkThrottled:
		return false, nil
	case c.status == chunkBelowStart:
		if c.start <= s.next {
			return false, nil // an old answer
		}
		s.whole, s.begun, s.start = true, false, c.start
		return false, nil
	case c.from != s.next:
		return false, nil
	}
	first, err := checkChunk(c)
	if err != nil || c.end > s.target.end {
		return false, fmt.Errorf("%w: batches from %d to %d for [%d, %d): %w", errDelta, first, c.end, c.from, s.target.end, err)
	}
	if s.spare && p.throttled() {
		p.m.cfg.Throttle.Follower.Spend(len(c.batches) + deltaChunkHeader)
	}
	if p.outdated(s, c) {
		return false, nil
	}
	if s.whole {
		return true, p.appendWhole(s, c, first)
	}
	if c.holes > c.from {
		if err := p.log.AllowHoles(min(c.holes, s.target.end), 0); err != nil {
			return false, p.storageFailed("staging into", err)
		}
	}
	p.logMu.Lock()
	defer p.logMu.Unlock()
	skip, err := skipTo(c.batches, p.log.EndOffset(), c.holes)
	if err != nil {
		// The own log ends inside a batch of the leader's: they are not the same log any more.
		p.logger.Error("own log differs from the leader's: fetching it whole", "end", p.log.EndOffset(), "batch", first)
		s.whole, s.begun = true, false
		return false, nil
	}
	if skip < len(c.batches) {
		if err := p.log.Append(c.batches[skip:]); err != nil {
			return false, p.storageFailed("staging into", err)
		}
	}
	if err := p.log.Advance(c.end); err != nil {
		return false, p.storageFailed("staging into", err)
	}
	s.next = p.log.EndOffset()
	return true, nil
}

// outdated begins anew, whole, if the source has removed a tombstone above what is here already, from it or of old: a record that the
// tombstone deleted may be here, and nothing that comes would delete it again.
func (p *Partition) outdated(s *staging, c *deltaChunk) bool {
	switch {
	case c.horizon <= c.from:
		return false
	case s.whole && !s.copying:
		s.copying, s.horizon = true, c.horizon // nothing is here yet
		return false
	case s.whole && c.horizon <= s.horizon:
		return false
	}
	p.logger.Warn("tombstones that this replica has not seen are gone from the leader's log: fetching it whole", "next", c.from, "removed_below", c.horizon)
	s.whole, s.begun = true, false
	return true
}

// appendWhole appends to a new generation, which begins with the batch that holds the log start, or the first one after it.
func (p *Partition) appendWhole(s *staging, c *deltaChunk, first int64) error {
	s.copying = true
	if err := s.log.AllowHoles(min(c.holes, s.target.end), min(c.horizon, s.target.end)); err != nil {
		return p.stageError("filling", err)
	}
	if end := s.log.EndOffset(); first >= 0 && first < end {
		if s.next != s.start || end != s.start {
			return fmt.Errorf("%w: batch at %d, the log ends at %d", errDelta, first, end)
		}
		if err := s.log.Reset(first); err != nil {
			return p.stageError("starting", err)
		}
	}
	err := s.log.Append(c.batches)
	if err == nil {
		err = s.log.Advance(c.end)
	}
	if err != nil {
		return p.stageError("filling", err)
	}
	s.log.SetStartOffset(s.start)
	s.next = s.log.EndOffset()
	return nil
}

// completeStaging makes everything durable, and leaves no directory but the one in use and the staged one: that is how a
// restart tells which one a foreign snapshot mark means (chooseGeneration).
func (p *Partition) completeStaging(s *staging) error {
	l := p.log
	if s.whole {
		l = s.log
	}
	if end := l.EndOffset(); end < s.target.end || s.whole && end != s.target.end {
		return fmt.Errorf("%w: staged up to %d of %d", errDelta, end, s.target.end)
	}
	end, err := l.Flush()
	switch {
	case err != nil && s.whole:
		return p.stageError("flushing", err)
	case err != nil:
		return p.storageFailed("flushing", err)
	case end < s.target.end:
		return fmt.Errorf("%w: flushed up to %d of %d", errDelta, end, s.target.end)
	}
	p.discardStaged()
	if err := p.retire(); err != nil {
		return err
	}
	keep := []uint64{p.generation}
	if s.whole {
		keep = append(keep, s.index)
	}
	if err := p.removeGenerations(keep...); err != nil {
		return p.stageError("making room for", err)
	}
	if err := p.syncDirs(); err != nil {
		return p.storageFailed("syncing the directories of", err)
	}
	p.logger.Info("snapshot staged", "index", s.index, "whole", s.whole, "end", s.target.end)
	p.endStaging(s, nil)
	return nil
}

// discardStaged gives up a staged generation that raft did not want.
func (p *Partition) discardStaged() {
	p.stageMu.Lock()
	defer p.stageMu.Unlock()
	if g := p.staged; g != nil {
		p.staged = nil
		p.retired = append(p.retired, retired{g.log, p.genDir(g.index)})
	}
}

// retire closes and removes generations that are no longer needed. genMu is read-held.
func (p *Partition) retire() error {
	p.stageMu.Lock()
	old := p.retired
	p.retired = nil
	p.stageMu.Unlock()
	for _, r := range old {
		r.log.Discard()
		if err := p.m.cfg.FS.RemoveAll(r.dir); err != nil {
			return p.stageError("removing what was replaced by", err)
		}
	}
	return nil
}

// checkChunk checks a chunk's batches one by one: sound, and without a gap but for those that compaction left. It returns where the
// first begins, -1 if there is none.
func checkChunk(c *deltaChunk) (first int64, err error) {
	first = -1
	next := c.from
	for b := c.batches; len(b) > 0; {
		h, err := wholeBatch(b)
		if err != nil {
			return first, err
		}
		if gap := h.BaseOffset > next; gap && h.BaseOffset > c.holes || first >= 0 && h.BaseOffset < next || h.LastOffset() < next {
			return first, fmt.Errorf("batch at %d, expected %d", h.BaseOffset, next)
		}
		if first < 0 {
			first = h.BaseOffset
		}
		next = h.LastOffset() + 1
		b = b[h.Size():]
	}
	if next > c.end || next < c.end && c.end > c.holes {
		return first, fmt.Errorf("batches up to %d, promised up to %d", next, c.end)
	}
	return first, nil
}

// batchesEnd returns the offset after the last of some whole batches.
func batchesEnd(b []byte) (end int64, err error) {
	err = record.Each(b, func(h record.Header, _ []byte) error {
		end = h.LastOffset() + 1
		return nil
	})
	return end, err
}

// skipTo returns the size of the batches below offset, which must be where a batch begins or the end or, below holes, in between.
func skipTo(b []byte, offset, holes int64) (n int, err error) {
	err = record.Each(b, func(h record.Header, batch []byte) error {
		switch {
		case h.LastOffset() < offset:
			n += len(batch)
		case h.BaseOffset < offset:
			return errDelta
		}
		return nil
	})
	if err == nil && n < len(b) {
		if h, e := record.ParseHeader(b[n:]); e != nil || h.BaseOffset != offset && h.BaseOffset > holes {
			return n, errDelta
		}
	}
	return n, err
}
