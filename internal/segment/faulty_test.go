package segment

import (
	"bytes"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// faulty is a file system that counts, and on which chosen operations fail or wait.
type faulty struct {
	vfs.FS
	write, sync error // what every write or sync of a file says, after half of the bytes
	create      func(name string) error

	opens, reads, readBytes, syncs atomic.Int64
	gate                           atomic.Pointer[chan struct{}] // syncs wait until it is closed
	syncing                        chan string                   // gets the name of each file whose sync waits
}

type faultyFile struct {
	vfs.File
	f *faulty
}

func (f *faulty) wrap(file vfs.File, err error) (vfs.File, error) {
	f.opens.Add(1)
	if err != nil {
		return nil, err
	}
	return &faultyFile{file, f}, nil
}

func (f *faulty) Create(n string) (vfs.File, error) {
	if f.create != nil {
		if err := f.create(n); err != nil {
			return nil, err
		}
	}
	return f.wrap(f.FS.Create(n))
}
func (f *faulty) OpenReadWrite(n string) (vfs.File, error) { return f.wrap(f.FS.OpenReadWrite(n)) }
func (f *faulty) Open(n string) (vfs.File, error)          { return f.wrap(f.FS.Open(n)) }

func (f *faultyFile) ReadAt(b []byte, off int64) (int, error) {
	f.f.reads.Add(1)
	f.f.readBytes.Add(int64(len(b)))
	return f.File.ReadAt(b, off)
}

func (f *faultyFile) WriteAt(b []byte, off int64) (int, error) {
	if f.f.write != nil {
		n, _ := f.File.WriteAt(b[:len(b)/2], off)
		return n, f.f.write
	}
	return f.File.WriteAt(b, off)
}

func (f *faultyFile) SyncData() error {
	f.f.syncs.Add(1)
	if gate := f.f.gate.Load(); gate != nil {
		f.f.syncing <- f.Name()
		<-*gate
	}
	if f.f.sync != nil {
		return f.f.sync
	}
	return f.File.SyncData()
}

func TestFailedSyncIsFinal(t *testing.T) {
	o := onDisk(t, small)
	bad := &faulty{FS: o.fs}
	o.fs = bad
	l := o.open()
	fill(t, l, 10, 1)
	flushed := flush(t, l)
	fill(t, l, 10, 1)
	bad.sync = syscall.EIO
	if _, err := l.Flush(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	bad.sync = nil // the kernel would say that all is well now
	if _, err := l.Flush(); !errors.Is(err, syscall.EIO) || l.FlushedOffset() != flushed {
		t.Fatalf("retried: %v, flushed %d", err, l.FlushedOffset())
	}
	if err := l.Append(batchAt(t, l.EndOffset(), 1, 1, 10, record.None)); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	readAll(t, l, 0, l.EndOffset(), 1000)
	if err := l.Close(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
}

// TestFailedSyncOfASmallFileIsFinal: a full disk that a sync runs into is no write that may be tried again, in whichever of a log's files.
func TestFailedSyncOfASmallFileIsFinal(t *testing.T) {
	mem := vfs.NewMem(1)
	o := opener{t: t, fs: mem, dir: "/data/t-0", cfg: small}
	l := o.open()
	fill(t, l, 10, 1)
	fault := mem.Inject(vfs.Fault{Ops: vfs.OpSync, Match: epochFile + tmpExt, Err: syscall.ENOSPC})
	for range 2 {
		var failed *IOError
		if _, err := l.Flush(); !errors.Is(err, syscall.EIO) || !errors.As(err, &failed) || failed.Op != "sync" || l.FlushedOffset() != 0 {
			t.Fatalf("%v, flushed %d", err, l.FlushedOffset())
		}
	}
	if err := l.Close(); fault.Fired() != 1 || !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
}

func TestFullDiskCanBeTriedAgain(t *testing.T) {
	o := onDisk(t, small)
	bad := &faulty{FS: o.fs}
	o.fs = bad
	l := o.open()
	all := fill(t, l, 30, 1)
	b := batchAt(t, l.EndOffset(), 1, 3, 1000, record.None)
	end := l.EndOffset()
	bad.write = syscall.ENOSPC
	if err := l.Append(b); !errors.Is(err, syscall.ENOSPC) || l.EndOffset() != end {
		t.Fatal(err)
	}
	readAll(t, l, 0, end, 1000)
	bad.write = nil
	if err := l.Append(b); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	l = o.open()
	defer closeLog(t, l)
	if got := readAll(t, l, 0, l.EndOffset(), 1000); !bytes.Equal(got, append(all, b...)) {
		t.Fatal("other bytes")
	}
}

// TestAFullDiskAtASyncIsFinal: with delayed allocation it is the sync that finds no room, and what was written may be gone.
func TestAFullDiskAtASyncIsFinal(t *testing.T) {
	o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: small, start: -1}
	bad := &faulty{FS: o.fs}
	o.fs = bad
	l := o.open()
	fill(t, l, 10, 1)
	bad.sync = syscall.ENOSPC
	if _, err := l.Flush(); !errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	bad.sync = nil
	if end, err := l.Flush(); err == nil || l.FlushedOffset() != 0 {
		t.Fatalf("flushed up to %d after a sync that failed", end)
	}
	_ = l.Close()
}

// TestFlushIsWholeAfterAFullDisk: a flush that found no room for the epochs is done again, and then survives a power cut.
func TestFlushIsWholeAfterAFullDisk(t *testing.T) {
	mem := vfs.NewMem(1)
	if err := mem.MkdirAll("/data"); err != nil {
		t.Fatal(err)
	}
	if err := mem.SyncDir("/"); err != nil {
		t.Fatal(err)
	}
	bad := &faulty{FS: mem}
	o := opener{t: t, fs: bad, dir: "/data/t-0", cfg: small, start: -1}
	for i, full := range []string{epochFile, pointFile} {
		bad.create = func(name string) error {
			if strings.Contains(name, full) {
				return syscall.ENOSPC
			}
			return nil
		}
		o.dir = "/data/no-room-for-" + itoa(int64(i))
		l := o.open()
		all := fill(t, l, 30, 3)
		if _, err := l.Flush(); !errors.Is(err, syscall.ENOSPC) || l.FlushedOffset() != 0 {
			t.Fatal(full, err, l.FlushedOffset())
		}
		bad.create = nil
		end := flush(t, l)
		mem.Crash(7)
		l = o.open()
		if l.EndOffset() != end || l.Damage() != nil || l.latestEpoch() != 3 {
			t.Fatalf("%s: ends at %d of %d, epoch %d, %v", full, l.EndOffset(), end, l.latestEpoch(), l.Damage())
		}
		if got := readAll(t, l, 0, end, 1<<20); !bytes.Equal(got, all) {
			t.Fatal(full, "other bytes")
		}
		closeLog(t, l)
	}
}

// TestRestartAfterAFailedSyncDoesNotTrustThePageCache: the process stops because a sync failed; the next one finds in the page
// cache what the disk does not hold. What it then says is flushed must survive a power cut.
func TestRestartAfterAFailedSyncDoesNotTrustThePageCache(t *testing.T) {
	for seed := range uint64(40) {
		mem := vfs.NewMem(seed)
		if err := vfs.MkdirAllSync(mem, "/data"); err != nil {
			t.Fatal(err)
		}
		o := opener{t: t, fs: mem, dir: "/data/t-0", cfg: small, start: -1}
		l := o.open()
		all := fill(t, l, int(seed%7)*20, 1)
		if seed%7 > 0 {
			flush(t, l)
		}
		all = append(all, fill(t, l, 5+int(seed)*3, 2)...)
		end := l.EndOffset()
		fault := mem.Inject(vfs.Fault{Ops: vfs.OpSync, Match: "*" + logExt, Count: -1})
		if _, err := l.Flush(); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		fault.Remove()
		mem.Kill()

		l = o.open()
		if l.Damage() != nil || l.EndOffset() != end {
			t.Fatalf("seed %d: ends at %d of %d, %v", seed, l.EndOffset(), end, l.Damage())
		}
		all = append(all, fill(t, l, 1, 2)...)
		end = flush(t, l)
		mem.Crash(seed)
		l = o.open()
		if l.Damage() != nil || l.EndOffset() != end {
			t.Fatalf("seed %d: after a power cut it ends at %d of %d, %v", seed, l.EndOffset(), end, l.Damage())
		}
		if got := readAll(t, l, 0, end, 1<<20); !bytes.Equal(got, all) {
			t.Fatalf("seed %d: other bytes", seed)
		}
		closeLog(t, l)
	}
}
