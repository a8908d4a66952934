package wal

import (
	"bytes"
	"errors"
	"runtime"
	"testing"
	"time"
	"weak"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/vfs"
)

// cacheLog is a log with one group and the smallest cache.
func cacheLog(t *testing.T, cacheBytes int64) (*Log, *Group, *vfs.Mem) {
	t.Helper()
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	o.FileBytes, o.MaxBytes, o.CacheBytes = 1<<20, 8<<20, cacheBytes
	l := mustOpen(t, o)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	g, err := l.Create(1, firstState(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return l, g, disk
}

// TestEvictionStopsAtAppliedAndAtWritten: memory is bounded but for what may not leave it.
func TestEvictionStopsAtAppliedAndAtWritten(t *testing.T) {
	const limit = 512 << 10
	l, g, _ := cacheLog(t, limit)
	add := func(from, to uint64) {
		for i := from; i <= to; i++ {
			l.Append(Write{Group: 1, Entries: entries(i, i, 1, 4<<10), Sync: true})
		}
	}
	add(2, 201)
	g.SetApplied(201) // sooner than raft would: nothing is written yet
	if !g.Cached(2) {
		t.Fatal("an entry that is not written has left memory")
	}
	drain(l)
	g.SetApplied(201)
	if g.Cached(2) || !g.Cached(201) {
		t.Fatalf("first cached %v, last cached %v", g.Cached(2), g.Cached(201))
	}
	if n := l.Stats().CacheBytes; n > limit {
		t.Fatalf("%d bytes in memory", n)
	}
	add(202, 401)
	drain(l)
	g.SetApplied(250)
	for i := uint64(251); i <= 401; i++ {
		if !g.Cached(i) {
			t.Fatalf("entry %d is not applied and has left memory", i)
		}
	}
	if g.Cached(202) {
		t.Error("entry 202 should have left memory")
	}
	checkEntries(t, g, entries(2, 401, 1, 4<<10))
	g.SetApplied(401)
	if n := l.Stats().CacheBytes; n > limit {
		t.Fatalf("%d bytes in memory", n)
	}
}

// TestMemoryIsBoundedOverManyGroups: the oldest entries leave first, whoever's they are.
func TestMemoryIsBoundedOverManyGroups(t *testing.T) {
	l, _, _ := cacheLog(t, 256<<10)
	for id := uint64(2); id <= 50; id++ {
		if _, err := l.Create(id, firstState(), nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := uint64(2); i < 40; i++ {
		for id := uint64(1); id <= 50; id++ {
			l.Append(Write{Group: id, Entries: entries(i, i, 1, 2000), Sync: true})
		}
		l.Step()
		for id := uint64(1); id <= 50; id++ {
			l.Group(id).SetApplied(i)
		}
		if n := l.Stats().CacheBytes; i > 4 && n > 256<<10+50*(2000+entryOverhead) {
			t.Fatalf("round %d: %d bytes in memory", i, n)
		}
	}
	for id := uint64(1); id <= 50; id++ {
		g := l.Group(id)
		if g.Cached(2) || !g.Cached(g.LastIndex()) {
			t.Fatalf("group %d: oldest cached %v, newest cached %v", id, g.Cached(2), g.Cached(g.LastIndex()))
		}
		checkEntries(t, g, entries(2, 39, 1, 2000))
	}
	l.cache.mu.Lock()
	defer l.cache.mu.Unlock()
	if n := len(l.cache.queue) - l.cache.head; n > 50*40 {
		t.Errorf("%d tickets", n)
	}
}

// TestTicketsAreBoundedBehindOneThatStays: a group's entries that nobody applies stay in memory, while those of others come and go by other ways
// than eviction. What stands for these goes as well.
func TestTicketsAreBoundedBehindOneThatStays(t *testing.T) {
	l, _, _ := cacheLog(t, 256<<10)
	for id := uint64(2); id <= 3; id++ {
		if _, err := l.Create(id, firstState(), nil); err != nil {
			t.Fatal(err)
		}
	}
	l.Append(Write{Group: 1, Entries: entries(2, 9, 1, 100), Sync: true})
	most := 0
	for i := uint64(2); i < 5*sweepLeast; i++ {
		for id := uint64(2); id <= 3; id++ {
			l.Append(Write{Group: id, Entries: entries(i, i, 1, 10)})
		}
		l.cache.mu.Lock()
		most = max(most, len(l.cache.queue)-l.cache.head)
		l.cache.mu.Unlock()
		if i%500 != 0 {
			continue
		}
		for id := uint64(2); id <= 3; id++ {
			g := l.Group(id)
			g.SetApplied(i)
			l.Checkpoint(id, Checkpoint{Index: i, Term: 1}, nil)
			g.mu.Lock()
			g.raiseFirst(i + 1) // as when the files that hold them are reused
			g.mu.Unlock()
		}
		l.Step()
	}
	if most > 2*sweepLeast {
		t.Errorf("%d tickets for some thousand entries", most)
	}
	if !l.Group(1).Cached(2) {
		t.Error("what is not applied has left memory")
	}
}

// TestEvictedBuffersAreLetGo is design rule 19: once entries have left memory, by whichever way, nothing in the log refers to
// their bytes, and what it gives comes from the file.
func TestEvictedBuffersAreLetGo(t *testing.T) {
	for _, way := range []string{"evicted", "partly evicted", "truncated", "installed over", "removed"} {
		t.Run(way, func(t *testing.T) {
			l, g, _ := cacheLog(t, 1)
			drain(l)
			var refs []weak.Pointer[byte]
			var bufs [][]byte
			es := entries(2, 9, 1, 8<<10)
			for i := range es {
				bufs = append(bufs, es[i].Data)
				refs = append(refs, weak.Make(&es[i].Data[0]))
			}
			want := entries(2, 9, 1, 8<<10)
			l.Append(Write{Group: 1, Entries: es, Sync: true})
			es = nil
			drain(l)
			switch way {
			case "evicted":
				g.SetApplied(9)
			case "partly evicted":
				g.SetApplied(5)
				want = want[:4]
				refs, bufs = refs[:4], bufs[:4]
			case "truncated":
				l.Append(Write{Group: 1, Entries: entries(2, 2, 2, 10), Sync: true})
				want = entries(2, 2, 2, 10)
			case "installed over":
				l.Append(Write{Group: 1, Install: &Checkpoint{Index: 50, Term: 2}, Sync: true})
				want = nil
			case "removed":
				l.Remove(1, nil)
				want = nil
			}
			drain(l)
			// Whoever gave the buffers uses them for something else now.
			for _, b := range bufs {
				for i := range b {
					b[i] = 0xdb
				}
			}
			if len(want) > 0 {
				checkEntries(t, g, want)
			}
			bufs = nil
			// A write more, as the writer's scratch slices hold the last one's.
			if way != "removed" {
				l.Append(Write{Group: 1, HardState: raftpb.HardState{Term: 9}, Sync: true})
				drain(l)
			}
			runtime.GC()
			runtime.GC()
			for i, r := range refs {
				if r.Value() != nil {
					t.Errorf("the data of entry %d is still referred to", i+2)
				}
			}
			runtime.KeepAlive(l)
			runtime.KeepAlive(g)
		})
	}
}

// TestPrefetchBringsColdEntriesIntoMemory (design rule 10): nothing is read on the caller's thread, windows are bounded in
// number and by the cache, and truncation drops them.
func TestPrefetchBringsColdEntriesIntoMemory(t *testing.T) {
	l, g, disk := cacheLog(t, 64<<10)
	want := entries(2, 401, 1, 1000)
	l.Append(Write{Group: 1, Entries: want, Sync: true})
	drain(l)
	g.SetApplied(401)
	if g.Cached(2) {
		t.Fatal("nothing is cold")
	}
	calls := 0
	fetch := func(lo uint64) {
		t.Helper()
		before := calls
		reads := disk.Stats().Reads
		g.Prefetch(lo, 8<<10, func() { calls++ })
		g.Prefetch(lo+100, 8<<10, func() { calls++ }) // refused: it is told with the first
		if calls != before || disk.Stats().Reads != reads {
			t.Fatal("read on the caller's thread")
		}
		for l.StepBackground() {
		}
		if calls != before+2 {
			t.Fatalf("%d of 2 told", calls-before)
		}
	}
	for lo := uint64(2); lo < 300; lo += 20 {
		fetch(lo)
		reads := disk.Stats().Reads
		got, err := g.Entries(lo, lo+8, 1<<20)
		if err != nil || len(got) == 0 || got[0].Index != lo || !bytes.Equal(got[0].Data, want[lo-2].Data) {
			t.Fatalf("entry %d: %d, %v", lo, len(got), err)
		}
		if disk.Stats().Reads != reads {
			t.Fatalf("entry %d was read from the file after it had been read ahead", lo)
		}
		g.mu.Lock()
		windows := len(g.cold)
		g.mu.Unlock()
		if windows > coldWindows || l.Stats().CacheBytes > 64<<10+16<<10 {
			t.Fatalf("%d windows, %d bytes in memory", windows, l.Stats().CacheBytes)
		}
	}
	// A new leader cuts off what was read ahead.
	fetch(200)
	l.Append(Write{Group: 1, Entries: entries(201, 203, 7, 10), Sync: true})
	if got, err := g.Entries(201, 204, 1<<20); err != nil || len(got) != 3 || got[0].Term != 7 {
		t.Fatalf("after truncation: %v, %v", got, err)
	}
	drain(l)
	checkEntries(t, g, append(append([]raftpb.Entry(nil), want[:199]...), entries(201, 203, 7, 10)...))
	// Beyond the end, and below the beginning: told, without effect.
	for _, lo := range []uint64{0, 204, 1000} {
		fetch(lo)
	}
	l.Remove(1, nil)
	drain(l)
	if n := l.Stats().CacheBytes; n != 0 {
		t.Errorf("%d bytes in memory for no group", n)
	}
}

// TestReadAheadRacesWithTruncation: a window read while its entries are cut off never comes to be seen.
func TestReadAheadRacesWithTruncation(t *testing.T) {
	l, g, disk := cacheLog(t, 1)
	l.Append(Write{Group: 1, Entries: entries(2, 50, 1, 500), Sync: true})
	drain(l)
	g.SetApplied(50)
	l.cache.limit = 1 << 20 // the window may stay
	cut := false
	disk.SetHook(func(op vfs.Op, _ string, _ time.Duration) {
		if op == vfs.OpRead && !cut {
			cut = true
			l.Append(Write{Group: 1, Entries: entries(10, 12, 3, 500), Sync: true})
		}
	})
	g.Prefetch(5, 1<<20, nil)
	for l.StepBackground() {
	}
	disk.SetHook(nil)
	if !cut {
		t.Fatal("no read")
	}
	want := append(entries(2, 9, 1, 500), entries(10, 12, 3, 500)...)
	for lo := uint64(5); lo <= 12; lo++ {
		checkEntries(t, g, want[lo-2:])
	}
	drain(l)
	checkEntries(t, g, want)
}

// What was read ahead is the file's as it was: entries cut off since must not be served from there.
func TestTruncationForgetsWhatWasReadAhead(t *testing.T) {
	l, g, _ := cacheLog(t, 1)
	l.Append(Write{Group: 1, Entries: entries(2, 50, 1, 500), Sync: true})
	drain(l)
	g.SetApplied(50)
	l.cache.limit = 1 << 20 // the window may stay
	g.Prefetch(5, 1<<20, nil)
	for l.StepBackground() {
	}
	if !g.Cached(5) {
		t.Fatal("nothing was read ahead")
	}
	l.Append(Write{Group: 1, Entries: entries(10, 12, 3, 500), Sync: true})
	want := append(entries(2, 9, 1, 500), entries(10, 12, 3, 500)...)
	for range 2 {
		for lo := uint64(5); lo <= 12; lo++ {
			checkEntries(t, g, want[lo-2:])
		}
		drain(l)
	}
}

// Once they have left memory, entries that replaced others are read from where they were written, not from where those are.
func TestReplacedEntriesAreReadFromTheirNewPlace(t *testing.T) {
	l, g, _ := cacheLog(t, 1)
	l.Append(Write{Group: 1, Entries: entries(2, 50, 1, 500), Sync: true})
	drain(l)
	l.Append(Write{Group: 1, Entries: entries(10, 40, 3, 500), Sync: true})
	drain(l)
	l.cache.limit = 0
	g.SetApplied(40)
	if g.Cached(2) || g.Cached(40) {
		t.Fatal("still in memory")
	}
	checkEntries(t, g, append(entries(2, 9, 1, 500), entries(10, 40, 3, 500)...))
}

// TestColdDamageBelowTheCheckpointOnlyEndsTheHistory: nobody is quarantined for an entry that no restart needs.
func TestColdDamageBelowTheCheckpointOnlyEndsTheHistory(t *testing.T) {
	for _, reopen := range []bool{false, true} {
		l, g, disk := cacheLog(t, 1)
		l.Append(Write{Group: 1, Entries: entries(2, 20, 1, 5000), Sync: true})
		drain(l)
		l.Checkpoint(1, Checkpoint{Index: 10, Term: 1}, nil)
		drain(l)
		g.SetApplied(20)
		g.mu.Lock()
		history, live := g.locs[5-2], g.locs[15-2]
		g.mu.Unlock()
		flip := func(c loc) {
			if err := disk.FlipBit(fileName("/data/wal", c.seq), int64(c.off)+100, 3); err != nil {
				t.Fatal(err)
			}
		}
		flip(history)
		if reopen {
			o := l.opt
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = mustOpen(t, o)
			defer l.Close()
			g = l.Group(1)
		}
		if _, err := g.Entries(3, 9, 1<<20); !errors.Is(err, raft.ErrCompacted) || g.Damage() != nil || g.FirstIndex() != 6 {
			t.Fatalf("reopen %v: history: %v, %v, first %d", reopen, err, g.Damage(), g.FirstIndex())
		}
		checkEntries(t, g, entries(6, 20, 1, 5000))
		flip(live)
		_, err := g.Entries(15, 16, 1<<20)
		var ce *CorruptionError
		if !errors.As(err, &ce) || len(ce.Groups) != 1 || ce.Groups[0] != 1 || g.Damage() == nil {
			t.Fatalf("reopen %v: live: %v, %v", reopen, err, g.Damage())
		}
		refused := false
		l.Append(Write{Group: 1, Entries: entries(21, 21, 1, 5), Done: func(err error) { refused = errors.Is(err, ErrDamaged) }})
		drain(l)
		if !refused {
			t.Error("a damaged group takes writes")
		}
	}
}
