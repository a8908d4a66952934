package segment

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// shared opens n logs over one cache of files and appends to each a few batches, which leaves its .log dirty.
func shared(t *testing.T, files *Files, n int) (logs []*Log, want [][]byte) {
	t.Helper()
	for i := range n {
		l, err := Open(files, clock.System{}, filepath.Join("/data", itoa(int64(i))), small, -1, quiet)
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, l)
		want = append(want, fill(t, l, 5, 1))
	}
	return logs, want
}

func TestOpenFilesAreBounded(t *testing.T) {
	files := NewFiles(vfs.NewMem(1), 20)
	logs, want := shared(t, files, 60)
	for i, l := range logs {
		want[i] = append(want[i], fill(t, l, 45, 1)...) // rolls, so that there are indexes as well
		if n := files.Open(); n > files.hardMax {
			t.Fatalf("%d files open", n)
		}
	}
	for _, l := range logs {
		flush(t, l)
	}
	for i, l := range logs {
		if got := readAll(t, l, 0, l.EndOffset(), 1<<20); !bytes.Equal(got, want[i]) {
			t.Fatal("other bytes")
		}
		if n := files.Open(); n > files.maxOpen {
			t.Fatalf("%d files open, all clean", n)
		}
	}
	for _, l := range logs {
		closeLog(t, l)
	}
	if n := files.Open(); n != 0 {
		t.Fatalf("%d files open after Close", n)
	}
}

// TestOpeningAFileWaitsForNoSyncWhileTheFlusherKeepsUp: dirty files may exceed the bound by a quarter, clean ones go first,
// and only past that does an opener sync, one file for each that it opens.
func TestOpeningAFileWaitsForNoSyncWhileTheFlusherKeepsUp(t *testing.T) {
	disk := &faulty{FS: vfs.NewMem(1)}
	files := NewFiles(disk, 16)
	logs, _ := shared(t, files, 20) // a quarter more than 16
	if n := disk.syncs.Load(); n != 0 || files.Open() != 20 {
		t.Fatalf("%d syncs in the openers' path, %d files open", n, files.Open())
	}
	flush(t, logs[19]) // not the least recently used, and it opens a file of its own
	before := disk.syncs.Load()
	if files.Open() > 20 {
		t.Fatalf("%d files open", files.Open())
	}
	more, err := Open(files, clock.System{}, "/data/more", small, -1, quiet)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, more, 1, 1)
	if n := disk.syncs.Load() - before; n != 0 {
		t.Fatalf("%d syncs although a clean file could go", n)
	}
	for i := range 3 { // nothing clean is left: one sync for each
		l, err := Open(files, clock.System{}, filepath.Join("/data/past", itoa(int64(i))), small, -1, quiet)
		if err != nil {
			t.Fatal(err)
		}
		fill(t, l, 1, 1)
		logs = append(logs, l)
		if n := disk.syncs.Load() - before; n != int64(i)+1 || files.Open() != 20 {
			t.Fatalf("%d syncs after %d files too many, %d open", n, i+1, files.Open())
		}
	}
	if logs[0].segs[0].log.dirty.Load() {
		t.Fatal("what was synced and closed counts as dirty: it would be synced again")
	}
	for _, l := range append(logs, more) {
		closeLog(t, l)
	}
}

// TestFlushWaitsForTheSyncOfAnEvictedFile: what was written through the old descriptor is durable, or known not to be, before
// Flush says anything.
func TestFlushWaitsForTheSyncOfAnEvictedFile(t *testing.T) {
	for _, fails := range []bool{false, true} {
		disk := &faulty{FS: vfs.NewMem(1), syncing: make(chan string, 100)}
		files := NewFiles(disk, 16)
		logs, _ := shared(t, files, 20)
		gate := make(chan struct{})
		disk.gate.Store(&gate)
		opened := make(chan error, 1)
		go func() { // log 0 is evicted here
			l, err := Open(files, clock.System{}, "/data/more", small, -1, quiet)
			if err == nil {
				err = l.Append(batchAt(t, 0, 1, 1, 100, record.None))
			}
			opened <- err
		}()
		if name := within(t, disk.syncing); name != logs[0].segs[0].log.path() {
			t.Fatalf("%s is evicted first", name)
		}
		if fails {
			disk.sync = syscall.EIO
		}
		disk.gate.Store(nil)
		flushed := make(chan error, 1)
		go func() {
			_, err := logs[0].Flush()
			flushed <- err
		}()
		select {
		case err := <-flushed:
			t.Fatalf("flushed while a sync of the file was under way: %v", err)
		case <-time.After(20 * time.Millisecond): // it may pass by being slow, never fail by it
		}
		close(gate)
		if err := within(t, opened); err != nil {
			t.Fatal(err)
		}
		if err := within(t, flushed); fails != errors.Is(err, syscall.EIO) {
			t.Fatalf("flush: %v, the sync fails: %v", err, fails)
		}
		if fails { // no log of the node may believe anything from now on
			disk.sync = nil
			for _, l := range logs {
				if _, err := l.Flush(); !errors.Is(err, syscall.EIO) {
					t.Fatal(err)
				}
			}
		}
		for _, l := range logs {
			_ = l.Close()
		}
	}
}

func within[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(time.Minute):
		t.Fatal("nothing came for a minute")
	}
	return v
}

// TestPowerCutWithFewOpenFiles: files are closed and opened again all the time, synced or not, and nothing flushed is lost.
func TestPowerCutWithFewOpenFiles(t *testing.T) {
	const n = 60
	for seed := range uint64(8) {
		mem := vfs.NewMem(seed)
		if err := vfs.MkdirAllSync(mem, "/data"); err != nil {
			t.Fatal(err)
		}
		disk := &faulty{FS: mem}
		rng := rand.New(rand.NewPCG(seed, 5))
		var logs [n]*Log
		var all [n][]byte
		var flushed [n]int64
		open := func() {
			files := NewFiles(disk, 16) // fewer than there are logs
			for i := range logs {
				l, err := Open(files, clock.System{}, filepath.Join("/data", itoa(int64(i))), small, 0, quiet)
				if err != nil {
					t.Fatal(err)
				}
				logs[i] = l
			}
		}
		open()
		for cut := range uint64(3) {
			disk.opens.Store(0)
			for range 400 {
				i := rng.IntN(n)
				all[i] = append(all[i], fill(t, logs[i], 1+rng.IntN(3), int32(cut))...)
				if rng.IntN(5) == 0 {
					flushed[i] = flush(t, logs[i])
				}
			}
			if disk.opens.Load() < 300 {
				t.Fatalf("only %d opens: nothing was evicted", disk.opens.Load())
			}
			mem.Crash(seed*10 + cut)
			open()
			for i, l := range logs {
				if l.Damage() != nil || l.EndOffset() < flushed[i] {
					t.Fatalf("seed %d cut %d log %d: ends at %d of %d flushed; %v", seed, cut, i, l.EndOffset(), flushed[i], l.Damage())
				}
				got := readAll(t, l, 0, l.EndOffset(), 1<<20)
				if !bytes.HasPrefix(all[i], got) {
					t.Fatalf("seed %d cut %d log %d: what is left is no prefix", seed, cut, i)
				}
				all[i] = got
				for off := int64(0); off < l.EndOffset(); off += 7 {
					if b, err := l.Read(off, l.EndOffset(), 1, nil); err != nil || len(b) == 0 {
						t.Fatalf("seed %d cut %d log %d: offset %d: %v", seed, cut, i, off, err)
					}
				}
			}
		}
		for _, l := range logs {
			closeLog(t, l)
		}
	}
}

// A file that somebody reads stays open, also when another who read it has let go of it and others need room.
func TestAFileInUseIsNotClosed(t *testing.T) {
	files := NewFiles(vfs.NewMem(1), 16)
	logs, _ := shared(t, files, 40)
	for _, l := range logs {
		flush(t, l)
	}
	s := &logs[0].segs[0].log
	var file vfs.File
	for range 2 {
		f, err := s.acquire(false)
		if err != nil {
			t.Fatal(err)
		}
		file = f
	}
	s.release()
	for _, l := range logs[1:] { // each takes the place of the least recently used
		readAll(t, l, 0, l.EndOffset(), 1<<20)
	}
	if n, err := file.ReadAt(make([]byte, 16), 0); n != 16 || err != nil {
		t.Errorf("the file was closed under its reader: %d bytes, %v", n, err)
	}
	s.release()
	for _, l := range logs {
		closeLog(t, l)
	}
	if n := files.Open(); n != 0 {
		t.Errorf("%d files open after Close", n)
	}
}
