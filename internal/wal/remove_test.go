package wal

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/vfs"
)

// filesWith returns how many log files hold records of a group, and whether one of them is its removal.
func filesWith(t *testing.T, fsys vfs.FS, dir string, group uint64) (files int, removal bool) {
	t.Helper()
	seen := map[string]bool{}
	if err := Scan(fsys, dir, func(r Record) error {
		if r.Group == group && r.Kind != KindIndex && r.Kind != 0 {
			seen[r.File] = true
			removal = removal || r.Kind == KindRemove
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return len(seen), removal
}

// TestARemovedGroupNeverComesBack is design rule 4: the removal record stays until no file holds the group, over restarts
// and power cuts at every stage; then the log forgets it.
func TestARemovedGroupNeverComesBack(t *testing.T) {
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	l := mustOpen(t, o)
	for id := uint64(1); id <= 2; id++ {
		if _, err := l.Create(id, firstState(), nil); err != nil {
			t.Fatal(err)
		}
	}
	n, next := 0, uint64(2)
	write := func(times int) {
		for range times {
			l.Append(Write{Group: 1, Entries: entries(next, next, 1, 16<<10), Sync: true})
			l.Group(1).SetApplied(next)
			l.Checkpoint(1, Checkpoint{Index: next, Term: 1}, nil)
			next++
			drain(l)
		}
	}
	for i := uint64(0); i < 3; i++ { // records of group 2 in several files
		l.Append(Write{Group: 2, Entries: entries(2+i, 2+i, 1, 500), Sync: true})
		write(14)
	}
	g := l.Group(2)
	l.Remove(2, ok(t, &n))
	l.Remove(3, ok(t, &n)) // unknown: no error
	var late error
	l.Append(Write{Group: 2, Entries: entries(5, 5, 1, 10), Done: func(err error) { late = err }})
	if l.Group(2) != nil || !l.Removed(2) || l.Removed(3) || g.Cached(2) {
		t.Fatal("not removed at once")
	}
	drain(l)
	if n != 2 || !errors.Is(late, ErrUnknownGroup) {
		t.Fatalf("%d done; a write to a removed group: %v", n, late)
	}
	for round := uint64(0); ; round++ {
		files, removal := filesWith(t, disk, o.Dir, 2)
		switch {
		case l.Group(2) != nil:
			t.Fatal("the removed group is back")
		case l.Removed(2) && !removal:
			t.Fatal("remembered without a record")
		}
		if !l.Removed(2) {
			if files > 0 && removal {
				// Forgotten: then every file with it lies below the oldest one needed.
				oldest := l.files.list[0].seq
				if err := Scan(disk, o.Dir, func(r Record) error {
					if seq, _ := parseName(r.File[len(r.File)-14:]); r.Group == 2 && r.Kind != KindIndex && seq >= oldest {
						t.Errorf("%s still holds a %s record", r.File, r.Kind)
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			break
		}
		if round > 300 {
			t.Fatal("the removal was never forgotten")
		}
		write(5)
		switch round % 3 {
		case 0:
			disk.Crash(round)
		case 1:
			disk.Kill()
		default:
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		l = mustOpen(t, o)
		next = l.Group(1).LastIndex() + 1
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAGroupMadeAnewHasNothingOfTheOldOne although the files hold both.
func TestAGroupMadeAnewHasNothingOfTheOldOne(t *testing.T) {
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	l := mustOpen(t, o)
	if _, err := l.Create(7, firstState(), nil); err != nil {
		t.Fatal(err)
	}
	l.Append(Write{Group: 7, HardState: raftpb.HardState{Term: 9, Vote: 2, Commit: 4}, Entries: entries(2, 30, 9, 100), Sync: true})
	l.Remove(7, nil)
	if _, err := l.Create(7, Checkpoint{Index: 1, Term: 1, State: []byte("new")}, nil); err != nil {
		t.Fatal(err)
	}
	l.Append(Write{Group: 7, Entries: entries(2, 3, 1, 10), Sync: true})
	drain(l)
	for range 3 {
		disk.Kill()
		l = mustOpen(t, o)
		g := l.Group(7)
		if g == nil || g.Damage() != nil || g.LastIndex() != 3 || g.HardState() != (raftpb.HardState{Term: 1, Commit: 1}) || string(g.Checkpoint().State) != "new" {
			t.Fatalf("%+v", g)
		}
		checkEntries(t, g, entries(2, 3, 1, 10))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestScanShowsEveryRecord of a log in use, without changing it.
func TestScanShowsEveryRecord(t *testing.T) {
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	l := mustOpen(t, o)
	for id := uint64(1); id <= 2; id++ {
		if _, err := l.Create(id, firstState(), nil); err != nil {
			t.Fatal(err)
		}
	}
	l.Append(Write{Group: 1, HardState: raftpb.HardState{Term: 2, Vote: 1, Commit: 1}, Entries: entries(2, 4, 2, 3000), Sync: true})
	l.Checkpoint(1, Checkpoint{Index: 3, Term: 2, State: []byte("three")}, nil)
	l.Append(Write{Group: 2, Install: &Checkpoint{Index: 10, Term: 2}, Sync: true})
	l.Remove(2, nil)
	drain(l)
	img := takeImage(t, disk, o.Dir)
	kinds := map[Kind]int{}
	var first Record
	scan := func() {
		clear(kinds)
		if err := Scan(disk, o.Dir, func(r Record) error {
			kinds[r.Kind]++
			switch {
			case r.Bad != "":
				kinds[200]++
			case r.Kind == KindEntry:
				if first.Kind == 0 {
					first = r
				}
				b := img[r.File[len(o.Dir)+1:]][r.Offset : r.Offset+int64(r.Bytes)]
				if r.Group != 1 || r.Term != 2 || !slices.Equal(b, payload(r.Index, 2, 3000)) {
					t.Errorf("%+v", r)
				}
			case r.Kind == KindCheckpoint && (r.Check == nil || string(r.Check.State) != "three" || r.Hard == nil || r.Hard.Term != 2):
				t.Errorf("%+v", r)
			case r.Kind == KindHardState && (r.Hard == nil || r.Hard.Vote != 1):
				t.Errorf("%+v", r)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	scan()
	if want := map[Kind]int{KindIndex: 1, KindCreate: 2, KindEntry: 3, KindHardState: 1, KindCheckpoint: 1, KindInstall: 1, KindRemove: 1}; !maps.Equal(kinds, want) {
		t.Errorf("%v, want %v", kinds, want)
	}
	if !maps.EqualFunc(img, takeImage(t, disk, o.Dir), slices.Equal[[]byte]) {
		t.Error("Scan changed the directory")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := disk.FlipBit(first.File, first.Offset+5, 1); err != nil {
		t.Fatal(err)
	}
	if scan(); kinds[200] != 1 {
		t.Errorf("a damaged body: %v", kinds)
	}
	if err := disk.FlipBit(first.File, first.Block+20, 1); err != nil {
		t.Fatal(err)
	}
	if scan(); kinds[200] != 1 || kinds[KindEntry] != 0 {
		t.Errorf("a damaged block: %v", kinds)
	}
	stop := errors.New("enough")
	if err := Scan(disk, o.Dir, func(Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("fn's error: %v", err)
	}
}
