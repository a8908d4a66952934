// Package wal is the one write-ahead log of a node: entries, hard states and checkpoints of all its raft groups, made
// durable together.
//
// A group commit takes everything queued, writes it with one vectored write and makes it durable with one fdatasync.
// The files are pre-written and recycled. docs/wal-format.md describes the bytes and how recovery judges them.
//
// Work happens in two step functions. Step is the writer. StepBackground prepares the next file, recycles old ones and reads
// ahead (Prefetch). Start gives each a goroutine; a simulator calls them itself, from one thread. The log stays correct if
// StepBackground is never called, but then files are made on the writer's path and Prefetch does not complete.
package wal

import (
	"fmt"
	"io"
	"log/slog"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
)

// Log is a node's write-ahead log. Methods are safe for concurrent use.
//
// Lock order: stepMu, mu, a group's mu, filesMu. Done callbacks, OnFatal and OnPinned run with stepMu held and no other:
// they may call any method of the log except Step and Close.
type Log struct {
	opt  Options
	lock io.Closer

	mu      sync.Mutex
	wake    *sync.Cond // of mu: the writer's
	queue   []*item
	queued  int64     // payload bytes in queue
	queueAt time.Time // when the first of queue came
	groups  map[uint64]*Group
	removed map[uint64]*tombstone
	err     error // the failure that stopped the log
	closed  bool
	sealDue bool
	nudge   bool // the writer has something to do beside the queue

	stepMu sync.Mutex
	wr     writer

	files fileSet
	back  background
	cache cache

	flightAt atomic.Int64  // when the oldest write being carried out came (UnixNano), 0 if none
	endHint  atomic.Uint64 // the writer's end, for the background
	durHint  atomic.Uint64 // what is durable, for the scrubber
	stats    counters

	started bool
	wg      sync.WaitGroup
	sealer  clock.Timer
	fatal   sync.Once
	closing sync.Once
	closeEr error
}

// tombstone remembers a removed group until no file holds it: it sits in the file with the removal record, and files go
// oldest first.
type tombstone struct {
	count *counter
	pos   pos // of the removal record, 0 while it is queued
}

// item is a write on its way to the file.
type item struct {
	kind    Kind // KindEntry for a Write without Install; otherwise what it is
	group   uint64
	g       *Group // nil if err is set
	tomb    *tombstone
	hs      raftpb.HardState
	hasHS   bool
	cp      *Checkpoint
	damage  *Damage
	entries []raftpb.Entry
	seq     uint64
	sync    bool
	done    func(error)
	err     error

	hsPos, cpPos pos
	locFrom      int // its locations in the writer's arena
	locTo        int
}

type counters struct {
	commits, writes, syncs, bytes, switches, recycled, carried, carriedBytes, coldReads, lastSync atomic.Uint64
}

// Groups returns the ids of the live groups, ascending.
func (l *Log) Groups() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.groupIDs()
}

func (l *Log) groupIDs() []uint64 {
	ids := make([]uint64, 0, len(l.groups))
	for id := range l.groups {
		ids = append(ids, id)
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	return ids
}

// Removed says whether the group was removed and the files may still hold records of it. Once they do not, the log has
// nothing to say about it.
func (l *Log) Removed(group uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.removed[group] != nil
}

// Group returns a live group, nil if there is none.
func (l *Log) Group(id uint64) *Group {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.groups[id]
}

// Create begins a group: hard state {Term: cp.Term, Commit: cp.Index}, entries from cp.Index+1 on. done, if set, is called
// on a step once that is durable. A removed group may be created anew. Errors: ErrGroupExists, ErrClosed.
func (l *Log) Create(id uint64, cp Checkpoint, done func(error)) (*Group, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	if l.groups[id] != nil {
		return nil, fmt.Errorf("%w: group %d", ErrGroupExists, id)
	}
	count := &counter{id: id}
	if t := l.removed[id]; t != nil {
		count = t.count
		delete(l.removed, id)
	}
	g := &Group{id: id, log: l, count: count, hs: raftpb.HardState{Term: cp.Term, Commit: cp.Index}}
	g.resetTo(cp)
	g.locFirst = cp.Index + 1
	l.groups[id] = g
	l.enqueue(&item{kind: KindCreate, group: id, g: g, hs: g.hs, hasHS: true, cp: &cp, sync: true, done: done}, int64(len(cp.State)))
	return g, nil
}

// Append queues a write and returns; it never blocks. The queue is bounded by what callers have outstanding (a node's byte
// budget), Stats.QueuedBytes tells how much that is. w.Entries and their data must not be changed afterwards. A write the
// log cannot accept (ErrUnknownGroup, ErrOutOfOrder, ErrDamaged) changes nothing, and its Done gets the error on a step like
// any other. After Close, Done is called at once with ErrClosed.
func (l *Log) Append(w Write) {
	it := &item{kind: KindEntry, group: w.Group, entries: w.Entries, cp: w.Install, sync: w.Sync, done: w.Done}
	if !raft.IsEmptyHardState(w.HardState) {
		it.hs, it.hasHS = w.HardState, true
	}
	if it.cp != nil {
		it.kind = KindInstall
	}
	var bytes int64
	for i := range w.Entries {
		bytes += entryBytes(&w.Entries[i])
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		it.finish(ErrClosed)
		return
	}
	if it.g = l.groups[w.Group]; it.g == nil {
		it.err = fmt.Errorf("%w: %d", ErrUnknownGroup, w.Group)
	} else if it.err = it.g.stage(it); it.err != nil {
		it.g = nil
	}
	g := it.g
	l.enqueue(it, bytes)
	l.mu.Unlock()
	if g != nil && len(w.Entries) > 0 {
		l.cache.push(ticket{g: g, index: w.Entries[len(w.Entries)-1].Index, bytes: bytes})
	}
}

// Checkpoint records that a group's state at cp.Index is durable elsewhere or in cp.State, so that a restart begins there
// and entries up to it need not be kept. One at or below the group's latest is ignored. If done is set it is called on a
// step once the checkpoint is durable; without it no fsync is asked for.
func (l *Log) Checkpoint(group uint64, cp Checkpoint, done func(error)) {
	it := &item{kind: KindCheckpoint, group: group, cp: &cp, sync: done != nil, done: done}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		it.finish(ErrClosed)
		return
	}
	defer l.mu.Unlock()
	if it.g = l.groups[group]; it.g == nil {
		it.err = fmt.Errorf("%w: %d", ErrUnknownGroup, group)
	} else {
		it.g.stageCheckpoint(it)
	}
	l.enqueue(it, int64(len(cp.State)))
}

func (g *Group) stageCheckpoint(it *item) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.damage != nil:
		it.err = fmt.Errorf("%w: group %d: %s", ErrDamaged, g.id, g.damage.Reason)
	case it.cp.Index > g.last:
		it.err = fmt.Errorf("%w: group %d: checkpoint at %d above the last entry %d", ErrOutOfOrder, g.id, it.cp.Index, g.last)
	case it.cp.Index <= g.cp.Index:
		it.g = nil // nothing to write, but done keeps its turn
		return
	default:
		g.staged++
		it.seq = g.staged
		g.cp = *it.cp
		g.applied = max(g.applied, g.cp.Index)
		it.hs, it.hasHS = g.hs, true
		return
	}
	it.g = nil
}

// Condemn notes, durably, that a group is damaged: for who found out what a restart would not. From then on the group takes only Remove, over
// restarts too. done, if set, is called on a step once that is durable. A group that is damaged already stays as it is.
func (l *Log) Condemn(group uint64, d Damage, done func(error)) {
	it := &item{kind: KindFullBegin, group: group, sync: true, done: done}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		it.finish(ErrClosed)
		return
	}
	defer l.mu.Unlock()
	if it.g = l.groups[group]; it.g == nil {
		it.err = fmt.Errorf("%w: %d", ErrUnknownGroup, group)
	} else if !it.g.condemn(it, d) {
		it.g = nil
	}
	l.enqueue(it, 0)
}

// condemn stages the full state of a damaged group: nothing of it is to be trusted but term and vote.
func (g *Group) condemn(it *item, d Damage) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.damage != nil {
		return false
	}
	g.damage = &d
	cp := g.cp
	g.resetTo(cp)
	it.hs, it.hasHS, it.cp, it.damage = g.hs, true, &cp, g.damage
	g.staged++
	it.seq, g.truncSeq = g.staged, g.staged
	return true
}

// Remove forgets a group, its memory at once. done, if set, is called on a step once the removal is durable. Removing an
// unknown group is no error.
func (l *Log) Remove(group uint64, done func(error)) {
	it := &item{kind: KindRemove, group: group, sync: true, done: done}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		it.finish(ErrClosed)
		return
	}
	defer l.mu.Unlock()
	if it.g = l.groups[group]; it.g != nil {
		delete(l.groups, group)
		it.tomb = &tombstone{count: it.g.count}
		l.removed[group] = it.tomb
		it.g.mu.Lock()
		it.g.gone = true
		it.g.dropMemory()
		it.g.first = it.g.last + 1
		it.g.mu.Unlock()
	}
	l.enqueue(it, 0)
}

// enqueue hands an item to the writer; mu is held.
func (l *Log) enqueue(it *item, bytes int64) {
	if len(l.queue) == 0 {
		l.queueAt = l.opt.Clock.Now()
	}
	l.queue = append(l.queue, it)
	l.queued += bytes
	l.wake.Signal()
}

func (it *item) finish(err error) {
	if it.done != nil {
		it.done(err)
	}
}

// Stalled returns how long the oldest unfinished write has been waiting, 0 if there is none. More than a second means a
// sick disk.
func (l *Log) Stalled() time.Duration {
	if at := l.flightAt.Load(); at != 0 {
		return max(0, l.opt.Clock.Now().Sub(time.Unix(0, at)))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return 0
	}
	return max(0, l.opt.Clock.Now().Sub(l.queueAt))
}

// Stats returns figures of this moment.
func (l *Log) Stats() Stats {
	s := Stats{MaxBytes: l.opt.MaxBytes, CacheBytes: l.cache.bytes.Load(),
		Commits: l.stats.commits.Load(), Writes: l.stats.writes.Load(), Syncs: l.stats.syncs.Load(),
		BytesWritten: l.stats.bytes.Load(), Switches: l.stats.switches.Load(), Recycled: l.stats.recycled.Load(),
		Carried: l.stats.carried.Load(), CarriedBytes: l.stats.carriedBytes.Load(), ColdReads: l.stats.coldReads.Load(), LastSync: time.Duration(l.stats.lastSync.Load())}
	l.mu.Lock()
	s.Groups, s.QueuedBytes, s.Err = len(l.groups), l.queued, l.err
	l.mu.Unlock()
	l.files.stats(&s)
	s.SpaceErr = l.back.spaceErr()
	return s
}

// Start gives the writer and the background step a goroutine each; Close ends them.
func (l *Log) Start() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.started || l.closed {
		return
	}
	l.started = true
	l.wg.Add(2)
	go l.runWriter()
	go l.runBackground()
}

// due says whether a step has something to do; mu is held.
func (l *Log) due() bool { return len(l.queue) > 0 || l.nudge || l.sealDue }

// Ready says whether Step would find something to do.
func (l *Log) Ready() bool {
	l.mu.Lock()
	ready := l.due()
	l.mu.Unlock()
	return ready
}

func (l *Log) runWriter() {
	defer l.wg.Done()
	for {
		for l.Step() {
		}
		l.mu.Lock()
		for !l.closed && !l.due() {
			l.wake.Wait()
		}
		over := l.closed && len(l.queue) == 0
		l.mu.Unlock()
		if over {
			return
		}
	}
}

// Close writes and syncs what is queued, and frees the directory. Further writes get ErrClosed. It may be called again,
// and returns the failure that stopped the log, if one did.
func (l *Log) Close() error {
	l.closing.Do(func() {
		l.mu.Lock()
		l.closed = true
		l.wake.Broadcast()
		l.mu.Unlock()
		l.back.stop()
		l.wg.Wait()
		for l.Step() {
		}
		l.stepMu.Lock()
		defer l.stepMu.Unlock()
		if l.sealer != nil {
			l.sealer.Stop()
		}
		l.closeEr = l.finishFiles()
	})
	return l.closeEr
}

// finishFiles leaves a log that says of all its bytes that they are durable, then closes it.
func (l *Log) finishFiles() error {
	err := l.failure()
	if err == nil {
		if err = l.syncActive(); err == nil {
			err = l.writeEmpty()
		}
		if err == nil {
			err = l.syncActive()
		}
		if err == nil && l.wr.anchor.f != nil {
			l.putAnchor()
			err = l.wr.anchor.f.Sync()
		}
	}
	if cerr := l.closeAnchor(); err == nil && cerr != nil {
		err = fmt.Errorf("wal: close anchor: %w", cerr)
	}
	l.files.close()
	if cerr := l.lock.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("wal: unlock: %w", cerr)
	}
	return err
}

func (l *Log) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// fail stops the log for good. The writer's next step (or the rest of this one) hands the error to everything pending.
func (l *Log) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = fmt.Errorf("wal: stopped: %w", err)
		l.opt.Logger.Error("the write-ahead log has stopped; the node cannot go on", slog.String("dir", l.opt.Dir), slog.Any("error", err))
	}
	l.nudge = true
	l.wake.Signal()
	l.mu.Unlock()
}
