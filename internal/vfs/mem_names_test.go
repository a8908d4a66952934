package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
)

// outcomes cuts the power in many ways and returns what List gives for dir afterwards, as "a b c" to how often.
func outcomes(t *testing.T, m *Mem, dir string) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for seed := range uint64(300) {
		names, err := m.CrashClone(seed).List(dir)
		if errors.Is(err, fs.ErrNotExist) {
			names = []string{"(gone)"}
		} else {
			check(t, err)
		}
		seen[strings.Join(names, " ")]++
	}
	return seen
}

func wantOutcomes(t *testing.T, got map[string]int, want ...string) {
	t.Helper()
	slices.Sort(want)
	if g := slices.Sorted(maps.Keys(got)); !slices.Equal(g, want) {
		t.Errorf("power cuts left %q, want %q", g, want)
	}
}

func touch(t *testing.T, m *Mem, name string) {
	t.Helper()
	f := must(m.Create(name))
	check(t, f.Sync())
	check(t, f.Close())
}

func TestUnsyncedNamesSurviveInAnyCombination(t *testing.T) {
	m := NewMem(1)
	touch(t, m, "old")
	check(t, m.SyncDir("/"))
	wantOutcomes(t, outcomes(t, m, "/"), "old")
	touch(t, m, "new") // syncing a file does not sync its name
	check(t, m.Remove("old"))
	wantOutcomes(t, outcomes(t, m, "/"), "", "old", "new", "new old")
	check(t, m.SyncDir("/"))
	wantOutcomes(t, outcomes(t, m, "/"), "new")
}

func TestRenameSurvivesWholeOrNotAtAll(t *testing.T) {
	m := NewMem(1)
	touch(t, m, "a")
	check(t, m.SyncDir("/"))
	check(t, m.Rename("a", "b"))
	wantOutcomes(t, outcomes(t, m, "/"), "a", "b")
	check(t, m.Rename("b", "c"))
	wantOutcomes(t, outcomes(t, m, "/"), "a", "b", "c")
	check(t, m.SyncDir("/"))
	wantOutcomes(t, outcomes(t, m, "/"), "c")
	touch(t, m, "d") // created and renamed, both unsynced: nothing, or under either name
	check(t, m.Rename("d", "e"))
	wantOutcomes(t, outcomes(t, m, "/"), "c", "c d", "c e")
}

func TestMoveBetweenDirectoriesNeverLosesTheFile(t *testing.T) {
	m := NewMem(1)
	check(t, m.MkdirAll("x"))
	touch(t, m, "x/f")
	check(t, errors.Join(m.SyncDir("x"), m.SyncDir("/")))
	// Into a directory whose own name is not durable, and then the directory it came from goes away.
	check(t, m.MkdirAll("y/z"))
	check(t, m.Rename("x/f", "y/z/f"))
	check(t, m.Remove("x"))
	for seed := range uint64(500) {
		c := m.CrashClone(seed)
		_, e1 := c.Stat("x/f")
		_, e2 := c.Stat("y/z/f")
		if (e1 == nil) == (e2 == nil) {
			t.Fatalf("seed %d: x/f %v, y/z/f %v\n%s", seed, e1, e2, tree(t, c, "/"))
		}
	}
	// Syncing either directory makes the whole move durable, and the directories on the way.
	check(t, m.SyncDir("y/z"))
	c := m.CrashCloneWith(LoseUnsynced())
	if got := tree(t, c, "/"); got != "/x/\n/y/\n/y/z/\n/y/z/f \n" {
		t.Errorf("after SyncDir of the new directory:\n%s", got)
	}
}

// The removal of a directory made durable brings along the move that emptied it, into a directory that was not synced.
func TestSyncedRemovalOfADirectoryKeepsWhatWasMovedOut(t *testing.T) {
	m := NewMem(1)
	check(t, m.MkdirAll("/p/x"))
	check(t, m.MkdirAll("y"))
	touch(t, m, "p/x/f")
	check(t, errors.Join(m.SyncDir("p/x"), m.SyncDir("p"), m.SyncDir("/")))
	check(t, m.Rename("p/x/f", "y/f"))
	check(t, m.Remove("p/x"))
	check(t, m.SyncDir("p"))
	if got := tree(t, m.CrashCloneWith(LoseUnsynced()), "/"); got != "/p/\n/y/\n/y/f \n" {
		t.Errorf("after the power cut:\n%s", got)
	}
}

func TestDirectoryNotSyncedIntoItsParentTakesAllWithIt(t *testing.T) {
	m := NewMem(1)
	check(t, m.MkdirAll("d"))
	touch(t, m, "d/f")
	check(t, m.SyncDir("d"))
	wantOutcomes(t, outcomes(t, m, "d"), "(gone)", "f")
	check(t, m.SyncDir("/"))
	wantOutcomes(t, outcomes(t, m, "d"), "f")
}

func TestRemovedAndCreatedAgainKeepsItsOrder(t *testing.T) {
	m := NewMem(1)
	durableFile(t, m, "f", []byte("first"))
	check(t, m.Remove("f"))
	f := must(m.Create("f"))
	_, err := f.WriteAt([]byte("second"), 0)
	check(t, err)
	check(t, f.Sync())
	seen := map[string]int{}
	for seed := range uint64(300) {
		b, err := ReadFile(m.CrashClone(seed), "f", 10)
		if errors.Is(err, fs.ErrNotExist) {
			b = []byte("(gone)")
		}
		seen[string(b)]++
	}
	wantOutcomes(t, seen, "first", "(gone)", "second")
}

func TestFailedSyncDirLeavesNamesUnsynced(t *testing.T) {
	m := NewMem(1)
	touch(t, m, "f")
	m.Inject(Fault{Ops: OpSyncDir})
	if err := m.SyncDir("/"); err == nil {
		t.Fatal("SyncDir did not fail")
	}
	wantOutcomes(t, outcomes(t, m, "/"), "", "f")
}

// A simulation that never syncs a directory does not grow for ever.
func TestUnsyncedNamesAreBounded(t *testing.T) {
	m := NewMem(1)
	for i := range 5000 {
		touch(t, m, fmt.Sprint(i%50))
		check(t, m.Remove(fmt.Sprint(i%50)))
		if len(m.pending) > maxPendingNames {
			t.Fatalf("%d operations pending", len(m.pending))
		}
	}
	m = NewMem(1)
	for i := range maxPendingNames + 1 {
		touch(t, m, fmt.Sprintf("%04d", i))
	}
	names := must(m.CrashCloneWith(LoseUnsynced()).List("/"))
	if len(names) != maxPendingNames/2 || names[0] != "0000" {
		t.Errorf("%d names became durable by themselves, want the oldest half", len(names))
	}
}

// nameModel remembers, for files that are told apart by their content, what must be true of them after a power cut.
type nameModel struct {
	m       *Mem
	next    int
	where   map[string]int             // what readers see: path to file
	durable map[int]bool               // its name was synced and it was not removed since
	names   map[int]map[string]bool    // every path it had since its name was last certain
	settled map[string]map[string]bool // directory to its names, if synced and not changed since
}

func (w *nameModel) create(t *testing.T, p string) {
	if old, ok := w.where[p]; ok {
		check(t, w.m.Remove(p))
		w.forget(p, old)
	}
	f := must(w.m.Create(p))
	_, err := f.WriteAt(fmt.Appendf(nil, "%d", w.next), 0)
	check(t, err)
	check(t, errors.Join(f.Sync(), f.Close()))
	w.where[p] = w.next
	w.names[w.next] = map[string]bool{p: true}
	w.touched(p)
	w.next++
}

func (w *nameModel) forget(p string, id int) {
	delete(w.where, p)
	delete(w.durable, id)
	w.touched(p)
}

func (w *nameModel) touched(p string) { delete(w.settled, path.Dir(p)) }

func (w *nameModel) rename(t *testing.T, from, to string) {
	id, ok := w.where[from]
	if !ok || from == to {
		return
	}
	if old, ok := w.where[to]; ok {
		w.forget(to, old)
	}
	check(t, w.m.Rename(from, to))
	delete(w.where, from)
	w.where[to] = id
	w.names[id][to] = true
	w.touched(from)
	w.touched(to)
}

func (w *nameModel) syncDir(t *testing.T, dir string) {
	check(t, w.m.SyncDir(dir))
	w.settled[dir] = map[string]bool{}
	for p, id := range w.where {
		if path.Dir(p) == dir {
			w.settled[dir][p] = true
			w.durable[id] = true
			w.names[id] = map[string]bool{p: true}
		}
	}
}

// verify holds a disk after a power cut against the model and returns what it holds.
func (w *nameModel) verify(t *testing.T, c *Mem, dirs []string) map[string]int {
	t.Helper()
	found, at := map[string]int{}, map[int]string{}
	for _, d := range dirs {
		for _, n := range must(c.List(d)) {
			p := path.Join(d, n)
			var id int
			if _, err := fmt.Sscan(string(content(t, c, p)), &id); err != nil {
				t.Fatalf("%s: a synced file lost its content: %v", p, err)
			}
			if q, twice := at[id]; twice {
				t.Fatalf("file %d is both at %s and at %s", id, p, q)
			}
			if !w.names[id][p] {
				t.Fatalf("file %d at %s, where it can only be at %v", id, p, w.names[id])
			}
			found[p], at[id] = id, p
		}
		if s := w.settled[d]; s != nil {
			for p := range s {
				if found[p] != w.where[p] {
					t.Fatalf("%s was synced, but %d is there and not %d", p, found[p], w.where[p])
				}
			}
			for p := range found {
				if path.Dir(p) == d && !s[p] {
					t.Fatalf("%s came back although the directory was synced without it", p)
				}
			}
		}
	}
	for id := range w.durable {
		if _, ok := at[id]; !ok {
			t.Fatalf("file %d was durable and is gone", id)
		}
	}
	return found
}

// Random creations, removals, moves and directory syncs, with a power cut every now and then.
func TestNamesModel(t *testing.T) {
	dirs := []string{"/a", "/b", "/c"}
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 11))
		w := &nameModel{m: NewMem(seed), next: 1}
		for _, d := range dirs {
			check(t, MkdirAllSync(w.m, d))
		}
		reset := func(found map[string]int) {
			w.where, w.durable, w.names, w.settled = found, map[int]bool{}, map[int]map[string]bool{}, map[string]map[string]bool{}
			for p, id := range found {
				w.durable[id], w.names[id] = true, map[string]bool{p: true}
			}
		}
		reset(map[string]int{})
		pick := func() string { return fmt.Sprintf("%s/%d", dirs[r.IntN(3)], r.IntN(5)) }
		for range 400 {
			switch p := pick(); r.IntN(8) {
			case 0, 1:
				w.create(t, p)
			case 2:
				if id, ok := w.where[p]; ok {
					check(t, w.m.Remove(p))
					w.forget(p, id)
				}
			case 3, 4, 5:
				w.rename(t, p, pick())
			case 6:
				w.syncDir(t, dirs[r.IntN(3)])
			case 7:
				cut := RandomCut(r.Uint64())
				if r.IntN(5) == 0 {
					cut = LoseUnsynced()
				}
				if r.IntN(4) > 0 {
					w.verify(t, w.m.CrashCloneWith(cut), dirs)
				} else {
					w.m.CrashWith(cut)
					reset(w.verify(t, w.m, dirs))
				}
			}
		}
	}
}
