package wal

import (
	"errors"
	"testing"

	"go.etcd.io/raft/v3"

	"github.com/chronik-go/chronik/internal/vfs"
)

// A write that does not continue the group's log is refused and changes nothing: a gap, entries at or below the checkpoint, a
// snapshot below it, entries that are not in a row.
func TestWritesOutOfOrderAreRefused(t *testing.T) {
	o := testOptions(t)
	l := mustOpen(t, o)
	g, err := l.Create(1, firstState(), nil)
	if err != nil {
		t.Fatal(err)
	}
	l.Append(Write{Group: 1, Entries: entries(2, 20, 1, 50), Sync: true})
	l.Checkpoint(1, Checkpoint{Index: 10, Term: 1}, nil)
	drain(l)
	torn := entries(21, 23, 1, 50)
	torn[1].Index = 25
	for name, w := range map[string]Write{
		"a gap":                        {Entries: entries(22, 22, 1, 50)},
		"at the checkpoint":            {Entries: entries(10, 10, 1, 50)},
		"below the checkpoint":         {Entries: entries(5, 30, 1, 50)},
		"not in a row":                 {Entries: torn},
		"a snapshot below it":          {Install: &Checkpoint{Index: 9, Term: 1}},
		"a gap behind a snapshot":      {Install: &Checkpoint{Index: 30, Term: 1}, Entries: entries(32, 32, 1, 50)},
		"below a snapshot that is new": {Install: &Checkpoint{Index: 30, Term: 1}, Entries: entries(30, 31, 1, 50)},
	} {
		var got error
		w.Group, w.Sync, w.Done = 1, true, func(err error) { got = err }
		l.Append(w)
		drain(l)
		if !errors.Is(got, ErrOutOfOrder) {
			t.Errorf("%s: %v", name, got)
		}
	}
	check := func() {
		t.Helper()
		if g.LastIndex() != 20 || g.Checkpoint().Index != 10 || g.Damage() != nil {
			t.Fatalf("last index %d, checkpoint %d, damage %v", g.LastIndex(), g.Checkpoint().Index, g.Damage())
		}
		checkEntries(t, g, entries(11, 20, 1, 50))
	}
	check()
	for _, c := range []struct {
		lo, hi uint64
		want   error
	}{{21, 22, raft.ErrUnavailable}, {15, 22, raft.ErrUnavailable}, {g.FirstIndex() - 1, 15, raft.ErrCompacted}} {
		if _, err := g.Entries(c.lo, c.hi, 1<<20); !errors.Is(err, c.want) {
			t.Errorf("entries from %d to %d: %v, want %v", c.lo, c.hi, err, c.want)
		}
	}
	if _, err := g.Term(21); !errors.Is(err, raft.ErrUnavailable) {
		t.Errorf("term of 21: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	defer l.Close()
	g = l.Group(1)
	check()
}

// TestACheckpointThatChangesNothingIsToldWhenTheOneBeforeIsDurable: whoever asks to be told lets go of what only older checkpoints need.
func TestACheckpointThatChangesNothingIsToldWhenTheOneBeforeIsDurable(t *testing.T) {
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	l := mustOpen(t, o)
	defer l.Close()
	n := 0
	if _, err := l.Create(1, firstState(), ok(t, &n)); err != nil {
		t.Fatal(err)
	}
	l.Append(Write{Group: 1, Entries: entries(2, 9, 1, 50), Sync: true, Done: ok(t, &n)})
	drain(l)
	l.Checkpoint(1, Checkpoint{Index: 8, Term: 1}, nil)
	drain(l)
	l.Checkpoint(1, Checkpoint{Index: 7, Term: 1}, ok(t, &n))
	drain(l)
	if n != 3 {
		t.Fatalf("%d done", n)
	}
	for seed := range uint64(20) {
		o.FS = disk.CrashClone(seed)
		after := mustOpen(t, o)
		if at := after.Group(1).Checkpoint().Index; at != 8 {
			t.Errorf("a restart after a power cut (%d) begins at %d", seed, at)
		}
		if err := after.Close(); err != nil {
			t.Error(err)
		}
	}
}
