package wal

import (
	"errors"
	"path/filepath"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/vfs"
)

// closedLog is a cleanly closed log: group 1 has a vote and an entry in one block, group 2 an entry in the next.
func closedLog(t *testing.T) (Options, image) {
	t.Helper()
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	l := mustOpen(t, o)
	for id := uint64(1); id <= 2; id++ {
		if _, err := l.Create(id, firstState(), nil); err != nil {
			t.Fatal(err)
		}
	}
	drain(l)
	l.Append(Write{Group: 1, HardState: raftpb.HardState{Term: 7, Vote: 3, Commit: 1}, Entries: entries(2, 2, 7, 3000), Sync: true})
	drain(l)
	l.Append(Write{Group: 2, HardState: raftpb.HardState{Term: 8, Vote: 2, Commit: 1}, Entries: entries(2, 2, 8, 3000), Sync: true})
	drain(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return o, takeImage(t, disk, o.Dir)
}

// TestALostEndIsNotTakenForASoundLog: nothing but the anchor can tell.
func TestALostEndIsNotTakenForASoundLog(t *testing.T) {
	for name, lose := range map[string]func(img image, file string){
		"truncated to the header": func(img image, file string) { img[file] = img[file][:headerSize] },
		"truncated to nothing":    func(img image, file string) { img[file] = nil },
		"truncated by a block":    func(img image, file string) { img[file] = img[file][:usedBytes(img[file])-1&^(blockAlign-1)] },
		"overwritten with zeros":  func(img image, file string) { clear(img[file][2*blockAlign:]) },
		"deleted":                 func(img image, file string) { delete(img, file) },
	} {
		t.Run(name, func(t *testing.T) {
			o, img := closedLog(t)
			var file string
			for _, n := range img.logs() {
				if usedBytes(img[n]) > headerSize {
					file = n
				}
			}
			lose(img, file)
			o.FS = img.disk(t, o.Dir)
			_, err := Open(o)
			var ce *CorruptionError
			if !errors.As(err, &ce) || ce.File != filepath.Join(o.Dir, file) {
				t.Fatalf("open: %v, want damage of %s", err, file)
			}
		})
	}
}

// TestADamagedAnchorIsNoDamage: it is an aid.
func TestADamagedAnchorIsNoDamage(t *testing.T) {
	for name, b := range map[string][]byte{"missing": nil, "empty": {}, "short": encodeAnchor(5)[:20], "garbage": make([]byte, 100), "old": encodeAnchor(mkPos(1, headerSize))} {
		t.Run(name, func(t *testing.T) {
			o, img := closedLog(t)
			if img[anchorName] = b; b == nil {
				delete(img, anchorName)
			}
			disk := img.disk(t, o.Dir)
			o.FS = disk
			l := mustOpen(t, o)
			checkEntries(t, l.Group(1), entries(2, 2, 7, 3000))
			checkEntries(t, l.Group(2), entries(2, 2, 8, 3000))
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if x, err := readAnchor(disk, o.Dir); err != nil || x != l.wr.durable {
				t.Fatalf("anchor %x, %v; durable %x", x, err, l.wr.durable)
			}
		})
	}
}

// TestDamageLeavesTheVoteAlone: the search for X behind a damaged block must not disturb what the block says of others.
func TestDamageLeavesTheVoteAlone(t *testing.T) {
	o, img := closedLog(t)
	delete(img, anchorName) // so that entries of the last file are checked as they are met
	disk := img.disk(t, o.Dir)
	o.FS = disk
	hit := false
	if err := Scan(disk, o.Dir, func(r Record) error {
		if r.Kind == KindEntry && r.Group == 1 {
			hit = true
			return disk.FlipBit(r.File, r.Offset+1000, 2)
		}
		return nil
	}); err != nil || !hit {
		t.Fatal(hit, err)
	}
	for range 2 {
		l := mustOpen(t, o)
		g := l.Group(1)
		if g.Damage() == nil {
			t.Fatal("the damage was not found")
		}
		if hs := g.HardState(); hs.Term != 7 || hs.Vote != 3 {
			t.Fatalf("hard state %v", hs)
		}
		if l.Group(2).Damage() != nil {
			t.Fatal("group 2 was not hit")
		}
		checkEntries(t, l.Group(2), entries(2, 2, 8, 3000))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamageBesideARemovalIsForgottenWithIt: a group that was removed and made anew owes nothing to what happened to the
// removal record.
func TestDamageBesideARemovalIsForgottenWithIt(t *testing.T) {
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	l := mustOpen(t, o)
	if _, err := l.Create(1, firstState(), nil); err != nil {
		t.Fatal(err)
	}
	drain(l)
	l.Remove(1, nil)
	drain(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	if _, err := l.Create(1, Checkpoint{Index: 5, Term: 2}, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	hit := false
	if err := Scan(disk, o.Dir, func(r Record) error {
		if r.Kind == KindRemove {
			hit = true
			return disk.FlipBit(r.File, r.Block+20, 2)
		}
		return nil
	}); err != nil || !hit {
		t.Fatal(hit, err)
	}
	l = mustOpen(t, o)
	defer l.Close()
	if g := l.Group(1); g == nil || g.Damage() != nil || g.Checkpoint().Index != 5 {
		t.Fatalf("%+v", g)
	}
}

// TestAGroupLostWithAClosedFilesEndIsNamed: the file ends neatly behind a block, and the group was only in the next.
func TestAGroupLostWithAClosedFilesEndIsNamed(t *testing.T) {
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	l := mustOpen(t, o)
	for id := uint64(1); id <= 2; id++ { // each in a block of its own
		if _, err := l.Create(id, firstState(), nil); err != nil {
			t.Fatal(err)
		}
		l.Step()
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o) // closes the first file
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	img, cut := takeImage(t, disk, o.Dir), false
	if err := Scan(disk, o.Dir, func(r Record) error {
		if n := filepath.Base(r.File); r.Kind == KindCreate && r.Group == 2 {
			img[n], cut = img[n][:r.Block], true
		}
		return nil
	}); err != nil || !cut {
		t.Fatal(cut, err)
	}
	o.FS = img.disk(t, o.Dir)
	l = mustOpen(t, o)
	defer l.Close()
	if g := l.Group(1); g == nil || g.Damage() != nil {
		t.Errorf("group 1: %+v", g)
	}
	if g := l.Group(2); g == nil || g.Damage() == nil {
		t.Errorf("group 2 was lost silently: %+v", g)
	}
}
