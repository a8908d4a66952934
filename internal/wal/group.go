package wal

import (
	"fmt"
	"slices"
	"sort"
	"sync"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Group is one raft group's part of the log. It keeps two views under one lock. The readers' view (hs, cp, first..last,
// runs, tail) is what every Append so far has made of the group. The written view (locs, locFirst, w) is what a replay of
// the files would make of it now; it trails by the writes that are queued. Up to stable the two hold the same entries.
//
// Methods are safe for concurrent use; those that change the group are the log's.
type Group struct {
	id  uint64
	log *Log

	mu     sync.Mutex
	hs     raftpb.HardState
	cp     Checkpoint
	first  uint64 // lowest readable index; first-1's term is known
	last   uint64 // at least first-1
	runs   []run
	damage *Damage
	gone   bool

	staged   uint64 // counts staged writes
	truncSeq uint64 // the latest staged write that cut entries off
	stable   uint64 // entries up to here can be read from the files
	applied  uint64

	tail      []raftpb.Entry // in memory: [last+1-len(tail), last], never less than (stable, last]
	tailBytes int64
	cold      []window // read ahead from the files
	prefetch  *prefetch

	locFirst uint64
	locs     []loc // of [locFirst, locFirst+len(locs))
	w        written
	count    *counter
}

// run says that entries from index on have this term, up to the next run.
type run struct{ from, term uint64 }

// loc is where an entry's data lies; 16 bytes for each entry of the retained files.
type loc struct {
	seq, off uint32
	size     uint32 // two top bits: the entry's type, or locBad
	crc      uint32
}

const locBad = 3

func (c loc) bytes() int64 { return int64(c.size & maxEntrySize) }
func (c loc) typ() uint32  { return c.size >> 30 }
func (c loc) place() pos   { return mkPos(c.seq, int64(c.off)) }

// written is the rest of the written view.
type written struct {
	cpIndex uint64
	cpPos   pos    // of the latest record with a checkpoint
	hsPos   pos    // of the latest record with a hard state
	pin     uint32 // the oldest file a replay of the group needs
	hinted  uint32 // the file for which OnPinned was called
	cpBytes int    // size of the checkpoint's state
}

// counter numbers a group's records. It outlives the group until no file holds it (tombstones share it).
type counter struct {
	id      uint64
	n       uint64 // number of the latest record
	done    uint64 // the same, of those in written blocks
	file    uint32 // the last file that has one of its records
	inBlock bool   // has a record in the block being built
}

type window struct {
	id      uint64
	entries []raftpb.Entry
	bytes   int64
}

// entryOverhead is what an entry in memory costs beside its data.
const entryOverhead = 64

func entryBytes(e *raftpb.Entry) int64 { return int64(len(e.Data)) + entryOverhead }

// HardState returns term, vote and commit as of the latest Append.
func (g *Group) HardState() raftpb.HardState {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.hs
}

// Checkpoint returns the latest checkpoint handed in. Its State must not be changed.
func (g *Group) Checkpoint() Checkpoint {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cp
}

// FirstIndex returns the lowest index that Entries can return. It never exceeds Checkpoint().Index+1 and may be lower.
func (g *Group) FirstIndex() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.first
}

// LastIndex returns the highest index; FirstIndex()-1 if there is no entry.
func (g *Group) LastIndex() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

// Term returns the term of an entry in [FirstIndex-1, LastIndex], from memory. Errors: raft.ErrCompacted below,
// raft.ErrUnavailable above.
func (g *Group) Term(index uint64) (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.termLocked(index)
}

func (g *Group) termLocked(index uint64) (uint64, error) {
	if index+1 < g.first {
		return 0, raft.ErrCompacted
	}
	if index > g.last {
		return 0, raft.ErrUnavailable
	}
	return g.runTerm(index), nil
}

func (g *Group) runTerm(index uint64) uint64 {
	i := sort.Search(len(g.runs), func(i int) bool { return g.runs[i].from > index })
	if i == 0 {
		return 0
	}
	return g.runs[i-1].term
}

// Damage says what recovery, or a later read, found wrong; nil if the group is sound. A damaged group accepts only
// Remove, after which it may be created anew (under a new replica id).
func (g *Group) Damage() *Damage {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.damage
}

// SetApplied tells that entries up to index have been applied, so that they may leave memory.
func (g *Group) SetApplied(index uint64) {
	g.mu.Lock()
	g.applied = max(g.applied, index)
	g.mu.Unlock()
	g.log.cache.trim()
}

// Cached says whether Entries(lo, ...) would be served from memory, at least its first entry.
func (g *Group) Cached(lo uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cachedLocked(lo) != nil || lo > g.last
}

func (g *Group) tailFirst() uint64 { return g.last + 1 - uint64(len(g.tail)) }

// cachedLocked returns the entries in memory from lo on, nil if lo is not in memory.
func (g *Group) cachedLocked(lo uint64) []raftpb.Entry {
	if tf := g.tailFirst(); lo >= tf && lo <= g.last {
		return g.tail[lo-tf:]
	}
	for i := range g.cold {
		es := g.cold[i].entries
		if f := es[0].Index; lo >= f && lo < f+uint64(len(es)) {
			return es[lo-f:]
		}
	}
	return nil
}

// limit returns the prefix of es below hi that stays within maxBytes, at least one entry, as a copy of the headers: the
// data is shared, the slice is the caller's.
func limit(es []raftpb.Entry, hi, maxBytes uint64) []raftpb.Entry {
	n, size := 0, uint64(0)
	for n < len(es) && es[n].Index < hi {
		if size += uint64(es[n].Size()); size > maxBytes && n > 0 {
			break
		}
		n++
	}
	return append([]raftpb.Entry(nil), es[:n]...)
}

// Entries returns entries of [lo, hi), at least one, together at most maxBytes unless the first alone is larger. It may
// return fewer where memory ends; the rest comes with the next call. What is not in memory is read from the file on the
// caller's thread: see Cached and Prefetch. The data is shared and must not be changed. Errors: raft.ErrCompacted,
// raft.ErrUnavailable; *CorruptionError if the file no longer holds what was written (the group is damaged then); or
// the file system's.
func (g *Group) Entries(lo, hi, maxBytes uint64) ([]raftpb.Entry, error) {
	g.mu.Lock()
	switch {
	case lo < g.first:
		g.mu.Unlock()
		return nil, raft.ErrCompacted
	case hi > g.last+1 || lo > hi:
		g.mu.Unlock()
		return nil, raft.ErrUnavailable
	case lo == hi:
		g.mu.Unlock()
		return nil, nil
	}
	if es := g.cachedLocked(lo); es != nil {
		out := limit(es, hi, maxBytes)
		g.mu.Unlock()
		return out, nil
	}
	g.mu.Unlock()
	return g.readFile(lo, hi, maxBytes)
}

// stage makes a write part of the readers' view and numbers it; an error leaves everything as it was.
func (g *Group) stage(it *item) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.damage != nil {
		return fmt.Errorf("%w: group %d: %s", ErrDamaged, g.id, g.damage.Reason)
	}
	last := g.last
	floor := g.cp.Index
	if it.cp != nil {
		if it.cp.Index < g.cp.Index {
			return fmt.Errorf("%w: group %d: snapshot at %d below the checkpoint at %d", ErrOutOfOrder, g.id, it.cp.Index, g.cp.Index)
		}
		last, floor = it.cp.Index, it.cp.Index
	}
	for i := range it.entries {
		want := it.entries[0].Index + uint64(i)
		if e := &it.entries[i]; e.Index != want || e.Index <= floor || e.Index > last+uint64(i)+1 || len(e.Data) > maxEntrySize {
			return fmt.Errorf("%w: group %d: entry %d of %d bytes after %d, checkpoint %d", ErrOutOfOrder, g.id, e.Index, len(e.Data), last, floor)
		}
	}
	g.staged++
	it.seq = g.staged
	if it.hasHS {
		g.hs = it.hs
	}
	if it.cp != nil {
		g.resetTo(*it.cp)
		g.truncSeq = it.seq
	}
	if len(it.entries) > 0 {
		g.stageEntries(it)
	}
	return nil
}

// resetTo empties the readers' view behind a checkpoint.
func (g *Group) resetTo(cp Checkpoint) {
	g.dropMemory()
	g.cp = cp
	g.first, g.last = cp.Index+1, cp.Index
	g.stable = cp.Index
	g.applied = max(g.applied, cp.Index)
	g.runs = append(g.runs[:0], run{cp.Index, cp.Term})
}

func (g *Group) stageEntries(it *item) {
	from := it.entries[0].Index
	if from <= g.last {
		g.truncSeq = it.seq
		g.stable = min(g.stable, from-1)
		if tf := g.tailFirst(); from < tf {
			g.dropTail(len(g.tail))
		} else {
			for i := from - tf; i < uint64(len(g.tail)); i++ {
				g.account(-entryBytes(&g.tail[i]))
				g.tail[i] = raftpb.Entry{}
			}
			g.tail = g.tail[:from-tf]
		}
		g.dropCold(from)
	}
	for i := range it.entries {
		e := &it.entries[i]
		g.putTerm(e.Index, e.Term)
		g.account(entryBytes(e))
	}
	g.tail = append(g.tail, it.entries...)
	g.last = it.entries[len(it.entries)-1].Index
}

// putTerm notes the term of index, the new last one.
func (g *Group) putTerm(index, term uint64) {
	for n := len(g.runs); n > 0 && g.runs[n-1].from >= index; n-- {
		g.runs = g.runs[:n-1]
	}
	if n := len(g.runs); n == 0 || g.runs[n-1].term != term {
		g.runs = append(g.runs, run{index, term})
	}
}

func (g *Group) account(n int64) {
	g.tailBytes += n
	g.log.cache.bytes.Add(n)
}

// dropTail forgets the first n entries in memory.
func (g *Group) dropTail(n int) {
	for i := range n {
		g.account(-entryBytes(&g.tail[i]))
		g.tail[i] = raftpb.Entry{} // the slice's room is reused only after a copy: let go of the data
	}
	if g.tail = g.tail[n:]; len(g.tail) == 0 {
		g.tail = nil
	}
}

// dropCold forgets what was read ahead at or above from.
func (g *Group) dropCold(from uint64) {
	keep := g.cold[:0]
	for _, w := range g.cold {
		if w.entries[len(w.entries)-1].Index >= from {
			g.log.cache.bytes.Add(-w.bytes)
			continue
		}
		keep = append(keep, w)
	}
	clear(g.cold[len(keep):])
	g.cold = keep
}

func (g *Group) dropMemory() {
	g.dropTail(len(g.tail))
	g.dropCold(0)
}

// raiseFirst forgets what lies below index. Above the tail's beginning entries leave memory as well.
func (g *Group) raiseFirst(index uint64) {
	if index <= g.first {
		return
	}
	g.first = index
	if tf := g.tailFirst(); tf < index {
		g.dropTail(int(min(index-tf, uint64(len(g.tail)))))
	}
	g.cold = slices.DeleteFunc(g.cold, func(w window) bool {
		if w.entries[0].Index >= index {
			return false
		}
		g.log.cache.bytes.Add(-w.bytes)
		return true
	})
	n := sort.Search(len(g.runs), func(i int) bool { return g.runs[i].from > index-1 })
	if n > 1 {
		g.runs = append(g.runs[:0], g.runs[n-1:]...)
	}
}

// evict drops applied, written entries up to index from memory. It says whether entries up to index remain.
func (g *Group) evict(index uint64) (remain bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	to := min(index, g.applied, g.stable)
	if tf := g.tailFirst(); to >= tf {
		g.dropTail(int(min(to+1-tf, uint64(len(g.tail)))))
	}
	return len(g.tail) > 0 && g.tailFirst() <= index
}

func (g *Group) evictWindow(id uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, w := range g.cold {
		if w.id == id {
			g.log.cache.bytes.Add(-w.bytes)
			g.cold = slices.Delete(g.cold, i, i+1) // clears the slot: an evicted window must not stay reachable
			return
		}
	}
}
