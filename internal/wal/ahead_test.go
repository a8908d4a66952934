package wal

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/vfs"
)

// lossyFS is a disk that loses bytes of a log file as they are written back, and tells each descriptor once, as Linux does (errseq_t):
// whoever syncs through a descriptor that has heard of it already is told that all is well.
type lossyFS struct {
	*vfs.Mem
	losses int    // so far
	armed  func() // set: the next sync meets a loss, and this runs before it returns
}

type lossyFile struct {
	vfs.File
	fs   *lossyFS
	told int
}

func (d *lossyFS) OpenReadWrite(name string) (vfs.File, error) {
	f, err := d.Mem.OpenReadWrite(name)
	if err != nil {
		return nil, err
	}
	return &lossyFile{File: f, fs: d, told: d.losses}, nil
}

func (f *lossyFile) SyncData() error {
	meanwhile := f.fs.armed
	if f.fs.armed = nil; meanwhile != nil {
		f.fs.losses++
	}
	lost := f.told < f.fs.losses
	f.told = f.fs.losses
	if meanwhile != nil {
		meanwhile()
	}
	if lost {
		return syscall.EIO
	}
	return f.File.SyncData()
}

// TestTheWriterHearsOfALossThatTheBackgroundMeetsFirst: zeros are written ahead and synced in the file that the writer writes to at the same
// time. Bytes of the writer's are among those that are lost, and the background's sync is the first to tell.
func TestTheWriterHearsOfALossThatTheBackgroundMeetsFirst(t *testing.T) {
	o, _ := memOptions(nil)
	o.FileBytes, o.MaxBytes = 8<<20, 32<<20
	disk := &lossyFS{Mem: vfs.NewMem(1)}
	o.FS = disk
	l := mustOpen(t, o)
	n := 0
	if _, err := l.Create(1, firstState(), ok(t, &n)); err != nil {
		t.Fatal(err)
	}
	for l.Step() {
	}
	var got error
	done := 0
	disk.armed = func() {
		l.Append(Write{Group: 1, Entries: entries(2, 2, 1, 100), Sync: true, Done: func(err error) { got, done = err, done+1 }})
		l.Step()
	}
	for disk.armed != nil && l.StepBackground() {
	}
	if done != 1 || !errors.Is(got, syscall.EIO) {
		t.Errorf("a write whose bytes were lost: %d done, %v", done, got)
	}
	if err := l.Close(); n != 1 || !errors.Is(err, syscall.EIO) {
		t.Errorf("close: %v", err)
	}
}

// TestAFileTakenWhileItsSyncFailsStopsTheLog: a file that is being prepared may be given up if a sync of it fails, as nothing is in it; not so
// if the writer has gone on in it before the sync returned.
func TestAFileTakenWhileItsSyncFailsStopsTheLog(t *testing.T) {
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	o.FileBytes, o.MaxBytes = 4<<20, 16<<20
	fatal := 0
	o.OnFatal = func(error) { fatal++ }
	l := mustOpen(t, o)
	n := 0
	if _, err := l.Create(1, firstState(), ok(t, &n)); err != nil {
		t.Fatal(err)
	}
	at := uint64(2)
	write := func(bytes int) {
		l.Append(Write{Group: 1, Entries: entries(at, at, 1, bytes), Sync: true, Done: ok(t, &n)})
		at++
		for l.Step() {
		}
	}
	for l.Step() {
	}
	write(2 << 20)
	for !l.Stats().Reserve && l.StepBackground() {
	}
	next := l.files.next
	if next == nil {
		t.Fatal("no file is prepared")
	}
	fault := disk.Inject(vfs.Fault{Ops: vfs.OpSync, Match: filepath.Base(next.name)})
	disk.SetHook(func(op vfs.Op, name string, _ time.Duration) {
		if op == vfs.OpSync && name == next.name {
			disk.SetHook(nil)
			write(3 << 20)
		}
	})
	for fault.Fired() == 0 && l.StepBackground() {
	}
	if l.files.active() != next || n != 3 {
		t.Fatalf("the writer has not gone on in the file: %d done", n)
	}
	l.Append(Write{Group: 1, Entries: entries(at, at, 1, 100), Sync: true, Done: func(err error) {
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("a write after a sync of its file has failed: %v", err)
		}
	}})
	l.Step()
	if fatal != 1 || !errors.Is(l.Stats().Err, syscall.EIO) {
		t.Errorf("%d times fatal; %v", fatal, l.Stats().Err)
	}
	if err := l.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("close: %v", err)
	}
}
