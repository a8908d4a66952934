package vfs

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Cut at every operation, and in every way, a replaced file is the old one or the new one; once the call returned, the new.
func TestWriteFileAtomicSurvivesAPowerCutAtEveryStep(t *testing.T) {
	m := NewMem(1)
	old, fresh := bytes.Repeat([]byte("old"), 3000), bytes.Repeat([]byte("NEW!"), 5000)
	check(t, WriteFileAtomic(m, "f", old))
	var clones []*Mem
	m.SetHook(func(Op, string, time.Duration) {
		for seed := range uint64(40) {
			clones = append(clones, m.CrashClone(seed))
		}
	})
	check(t, WriteFileAtomic(m, "f", fresh))
	m.SetHook(nil)
	seen := map[bool]int{}
	for _, c := range clones {
		got := content(t, c, "f")
		if !bytes.Equal(got, old) && !bytes.Equal(got, fresh) {
			t.Fatalf("neither the old file nor the new one: %d bytes", len(got))
		}
		seen[bytes.Equal(got, fresh)]++
		check(t, WriteFileAtomic(c, "f", fresh)) // what a crash left behind is in nobody's way
	}
	if seen[false] == 0 || seen[true] == 0 {
		t.Errorf("outcomes %v: both must occur", seen)
	}
	for seed := range uint64(100) {
		if got := content(t, m.CrashClone(seed), "f"); !bytes.Equal(got, fresh) {
			t.Fatal("not durable on return")
		}
	}
}

func TestWriteFileAtomicLeavesTheOldFileOnAnError(t *testing.T) {
	for skip := range 4 {
		m := NewMem(1)
		check(t, WriteFileAtomic(m, "f", []byte("old")))
		in := m.Inject(Fault{Ops: OpCreate | OpWrite | OpSync | OpRename, Skip: skip})
		if err := WriteFileAtomic(m, "f", []byte("new")); err == nil || in.Fired() != 1 {
			t.Fatalf("skip %d: err = %v, fired %d", skip, err, in.Fired())
		}
		if got := tree(t, m, "/"); got != "/f 6f6c64\n" {
			t.Errorf("skip %d: left %s", skip, got)
		}
	}
}

func TestReadFileRefusesWhatIsTooLong(t *testing.T) {
	m := NewMem(1)
	check(t, WriteFileAtomic(m, "f", []byte("12345")))
	if b, err := ReadFile(m, "f", 5); string(b) != "12345" || err != nil {
		t.Errorf("ReadFile = %q, %v", b, err)
	}
	if _, err := ReadFile(m, "f", 4); err == nil || !strings.Contains(err.Error(), "5 bytes") {
		t.Errorf("ReadFile beyond its limit: %v", err)
	}
	if _, err := ReadFile(m, "none", 5); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadFile of nothing: %v", err)
	}
	m.Inject(Fault{Ops: OpRead})
	if _, err := ReadFile(m, "f", 5); err == nil {
		t.Error("a failed read went unnoticed")
	}
}

func TestMkdirAllSyncMakesTheWholePathDurable(t *testing.T) {
	m := NewMem(1)
	check(t, m.MkdirAll("base"))
	check(t, m.SyncDir("/"))
	check(t, MkdirAllSync(m, "base/a/b/c"))
	if fi, err := m.CrashCloneWith(LoseUnsynced()).Stat("base/a/b/c"); err != nil || !fi.IsDir {
		t.Errorf("after a power cut: %+v, %v", fi, err)
	}
	// An earlier attempt made the directory but did not live to sync it.
	check(t, m.MkdirAll("base/half"))
	check(t, MkdirAllSync(m, "base/half"))
	if _, err := m.CrashCloneWith(LoseUnsynced()).Stat("base/half"); err != nil {
		t.Errorf("a directory that existed unsynced: %v", err)
	}
	must(m.Create("file")).Close()
	if err := MkdirAllSync(m, "file/x"); err == nil {
		t.Error("made a directory below a file")
	}
	check(t, MkdirAllSync(OS{}, filepath.Join(t.TempDir(), "x/y")))
}
