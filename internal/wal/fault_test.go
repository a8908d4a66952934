package wal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/vfs"
)

func memOptions(disk *vfs.Mem) (Options, *clock.Sim) {
	sim := clock.NewSim(time.Unix(1e9, 0))
	return Options{FS: disk, Dir: "/data/wal", Clock: sim, FileBytes: 256 << 10, MaxBytes: 1 << 20, CacheBytes: 1 << 20}, sim
}

// TestAFailedDiskStopsTheLogForGood: a write or fsync fails once and would succeed if it were tried again.
func TestAFailedDiskStopsTheLogForGood(t *testing.T) {
	for _, c := range []struct {
		name string
		op   vfs.Op
		err  error
	}{
		{"fsync EIO", vfs.OpSync, syscall.EIO}, {"write EIO", vfs.OpWrite, syscall.EIO}, {"write ENOSPC", vfs.OpWrite, syscall.ENOSPC},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := vfs.NewMem(1)
			o, _ := memOptions(disk)
			var fatal []error
			o.OnFatal = func(err error) { fatal = append(fatal, err) }
			l := mustOpen(t, o)
			n := 0
			for id := uint64(1); id <= 3; id++ {
				if _, err := l.Create(id, firstState(), ok(t, &n)); err != nil {
					t.Fatal(err)
				}
			}
			drain(l)
			l.Append(Write{Group: 1, Entries: entries(2, 5, 1, 100), Sync: true, Done: ok(t, &n)})
			drain(l)
			if n != 4 {
				t.Fatalf("%d done", n)
			}
			fault := disk.Inject(vfs.Fault{Ops: c.op, Match: "*.wal", Err: c.err})
			var got []error
			failed := func(err error) { got = append(got, err) }
			for id := uint64(1); id <= 3; id++ {
				at := l.Group(id).LastIndex() + 1
				l.Append(Write{Group: id, Entries: entries(at, at, 1, 50), Sync: id != 2, Done: failed})
			}
			l.Checkpoint(1, Checkpoint{Index: 3, Term: 1}, failed)
			l.Remove(3, failed)
			if n != 4 || len(got) != 0 {
				t.Fatal("done before a step")
			}
			l.Step()
			if fault.Fired() != 1 {
				t.Fatal("nothing failed")
			}
			before := disk.Stats()
			l.Append(Write{Group: 1, Entries: entries(7, 7, 1, 50), Sync: true, Done: failed})
			l.Append(Write{Group: 1, HardState: raftpb.HardState{Term: 9}, Done: failed})
			for range 5 {
				l.Step()
				l.StepBackground()
			}
			if len(got) != 7 {
				t.Fatalf("%d of 7 writes were told", len(got))
			}
			for _, err := range got {
				if !errors.Is(err, c.err) {
					t.Errorf("done: %v", err)
				}
			}
			if len(fatal) != 1 || !errors.Is(fatal[0], c.err) || !errors.Is(l.Stats().Err, c.err) {
				t.Errorf("OnFatal: %v; %v", fatal, l.Stats().Err)
			}
			if err := l.Close(); !errors.Is(err, c.err) {
				t.Errorf("close: %v", err)
			}
			if after := disk.Stats(); after.Writes != before.Writes || after.Syncs != before.Syncs {
				t.Errorf("the stopped log wrote or synced: %+v, %+v", before, after)
			}
			disk.Crash(3)
			l = mustOpen(t, o)
			defer l.Close()
			for id := uint64(1); id <= 3; id++ {
				if g := l.Group(id); g == nil && id < 3 || g != nil && g.Damage() != nil {
					t.Errorf("group %d after a restart: %v", id, g)
				}
			}
			checkEntries(t, l.Group(1), entries(2, 5, 1, 100))
		})
	}
}

// TestAFailedDiskFreesWhoeverWaits is the same with the log's own goroutines, and a failure that only the background meets.
func TestAFailedDiskFreesWhoeverWaits(t *testing.T) {
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	o.Clock = clock.System{}
	var fatal atomic.Int32
	o.OnFatal = func(error) { fatal.Add(1) }
	l := mustOpen(t, o)
	if _, err := l.Create(1, firstState(), nil); err != nil {
		t.Fatal(err)
	}
	l.Start()
	disk.Inject(vfs.Fault{Ops: vfs.OpSync, Match: "*.wal", Skip: 20, Count: -1})
	errs := make(chan error, 10)
	failed := 0
	deadline := time.After(time.Minute)
	for i := range uint64(500) {
		l.Append(Write{Group: 1, Entries: entries(2+i, 2+i, 1, 3000), Sync: true, Done: func(err error) { errs <- err }})
		for n := 0; i%10 == 9 && n < 10; n++ {
			select {
			case err := <-errs:
				if err != nil {
					failed++
				} else if failed > 0 {
					t.Fatal("a write succeeded after one had failed")
				}
			case <-deadline:
				t.Fatalf("write %d was never told", i)
			}
		}
	}
	if err := l.Close(); failed == 0 || fatal.Load() != 1 || !errors.Is(err, syscall.EIO) {
		t.Fatalf("%d failed, OnFatal %d times, close: %v", failed, fatal.Load(), err)
	}
	done := false
	l.Append(Write{Group: 1, Done: func(err error) { done = errors.Is(err, ErrClosed) }})
	if !done {
		t.Error("a write after Close was not told at once")
	}
}

// TestDiskFullIsToldBeforeWritesFail (design rule 11): a full disk shows in SpaceErr while there still is a reserve, writes go
// on, and all is well again when there is space.
func TestDiskFullIsToldBeforeWritesFail(t *testing.T) {
	disk := vfs.NewMem(1)
	o, sim := memOptions(disk)
	o.FileBytes, o.MaxBytes = 2<<20, 8<<20
	l := mustOpen(t, o)
	defer l.Close()
	if _, err := l.Create(1, firstState(), nil); err != nil {
		t.Fatal(err)
	}
	drain(l)
	next, n := uint64(2), 0
	write := func(times int) {
		for range times {
			l.Append(Write{Group: 1, Entries: entries(next, next, 1, 16<<10), Sync: true, Done: ok(t, &n)})
			next++
			drain(l)
		}
	}
	write(2)
	disk.SetCapacity(disk.Used() + 64<<10)
	for l.Stats().SpaceErr == nil && next < 200 {
		write(1)
	}
	s := l.Stats()
	if !errors.Is(s.SpaceErr, ErrNoReserve) || !errors.Is(s.SpaceErr, syscall.ENOSPC) || s.Err != nil {
		t.Fatalf("the disk is full: %+v", s)
	}
	write(20) // what cannot be refused
	sim.Advance(5 * retrySpace)
	drain(l)
	if l.Stats().SpaceErr == nil {
		t.Fatal("SpaceErr cleared without space")
	}
	disk.SetCapacity(0)
	sim.Advance(2 * retrySpace)
	drain(l)
	if s := l.Stats(); s.SpaceErr != nil || !s.Reserve {
		t.Fatalf("there is space again: %+v", s)
	}
	write(300)
	if s := l.Stats(); n != int(next-2) || s.Switches < 2 || s.SpaceErr != nil {
		t.Fatalf("%d of %d writes, %+v", n, next-2, s)
	}
}

// TestWritesThatAgeShowAsStalled is design rule 11: both a write in the queue and one that the disk does not finish.
func TestWritesThatAgeShowAsStalled(t *testing.T) {
	disk := vfs.NewMem(1)
	o, sim := memOptions(disk)
	l := mustOpen(t, o)
	defer l.Close()
	if _, err := l.Create(1, firstState(), nil); err != nil {
		t.Fatal(err)
	}
	drain(l)
	sim.Advance(time.Minute)
	if d := l.Stalled(); d != 0 {
		t.Fatalf("idle, and stalled for %v", d)
	}
	l.Append(Write{Group: 1, Entries: entries(2, 2, 1, 10), Sync: true})
	sim.Advance(1500 * time.Millisecond)
	if d := l.Stalled(); d != 1500*time.Millisecond {
		t.Fatalf("queued for 1.5 s: %v", d)
	}
	var during time.Duration
	disk.SetHook(func(op vfs.Op, name string, _ time.Duration) {
		if op == vfs.OpSync && during == 0 {
			l.Append(Write{Group: 1, Entries: entries(3, 3, 1, 10), Sync: true}) // younger
			sim.Advance(2 * time.Second)
			during = l.Stalled()
		}
	})
	l.Step()
	disk.SetHook(nil)
	if during != 3500*time.Millisecond {
		t.Fatalf("during an fdatasync that takes 2 s: %v", during)
	}
	if d := l.Stalled(); d != 2*time.Second {
		t.Fatalf("the younger write waits for %v", d)
	}
	drain(l)
	if d := l.Stalled(); d != 0 {
		t.Fatalf("all written, and stalled for %v", d)
	}
}

func TestNewerFormatIsRefusedAndLeftAlone(t *testing.T) {
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	l := mustOpen(t, o)
	if _, err := l.Create(1, firstState(), nil); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	img := takeImage(t, disk, o.Dir)
	name := img.logs()[0]
	h := img[name][:headerSize]
	le.PutUint32(h[8:], formatVersion+1)
	le.PutUint32(h[12:], crc32.Update(crc32.Checksum(h[:12], castagnoli), castagnoli, h[16:]))
	disk = img.disk(t, o.Dir)
	o.FS = disk
	if _, err := Open(o); !errors.Is(err, ErrNewerFormat) {
		t.Fatalf("open: %v", err)
	}
	if !maps.EqualFunc(img, takeImage(t, disk, o.Dir), slices.Equal[[]byte]) {
		t.Fatal("the directory was changed")
	}
}

// TestZerosNeverOvertakeABlock runs the background within the writer's own calls, at every moment of a write, also after the
// writer has overtaken it.
func TestZerosNeverOvertakeABlock(t *testing.T) {
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	o.FileBytes, o.MaxBytes, o.CacheBytes = 4<<20, 32<<20, 1
	l := mustOpen(t, o)
	if _, err := l.Create(1, firstState(), nil); err != nil {
		t.Fatal(err)
	}
	l.Step() // without the background: most of the file is not pre-written
	inside, ran, resting := false, 0, true
	disk.SetHook(func(op vfs.Op, name string, _ time.Duration) {
		if inside || resting || op&(vfs.OpWrite|vfs.OpSync) == 0 {
			return
		}
		inside = true
		defer func() { inside = false }()
		for range 3 {
			if l.StepBackground() {
				ran++
			}
		}
	})
	var want []raftpb.Entry
	for i := range uint64(120) {
		es := entries(2+i, 2+i, 1, int(i%7)*20<<10+10)
		want = append(want, es...)
		resting = i%60 < 40
		l.Append(Write{Group: 1, Entries: es, Sync: i%3 == 0})
		l.Step()
	}
	disk.SetHook(nil)
	if ran == 0 || l.Stats().Switches == 0 {
		t.Fatalf("%d background steps within writes: %+v", ran, l.Stats())
	}
	l.Group(1).SetApplied(121)
	checkEntries(t, l.Group(1), want)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	defer l.Close()
	checkEntries(t, l.Group(1), want)
}

// TestFilesThatCannotBeRecycledAreKeptAndTriedAgain: nothing is lost from sight, writes go on, and the space comes back.
func TestFilesThatCannotBeRecycledAreKeptAndTriedAgain(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpRename, vfs.OpRename | vfs.OpRemove} {
		t.Run(fmt.Sprint(op), func(t *testing.T) {
			disk := vfs.NewMem(1)
			o, sim := memOptions(disk)
			l := mustOpen(t, o)
			defer l.Close()
			if _, err := l.Create(1, firstState(), nil); err != nil {
				t.Fatal(err)
			}
			n, next := 0, uint64(2)
			write := func(times int) {
				for range times {
					l.Append(Write{Group: 1, Entries: entries(next, next, 1, 16<<10), Sync: true, Done: ok(t, &n)})
					l.Group(1).SetApplied(next)
					l.Checkpoint(1, Checkpoint{Index: next, Term: 1}, nil)
					next++
					drain(l)
				}
			}
			write(20)
			fault := disk.Inject(vfs.Fault{Ops: op, Match: "*.wal", Count: -1})
			write(150)
			if fault.Fired() == 0 || n != 170 || l.Stats().Err != nil {
				t.Fatalf("fired %d, %d done, %+v", fault.Fired(), n, l.Stats())
			}
			var onDisk int64
			names, err := disk.List(o.Dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if _, isLog := parseName(name); isLog {
					info, err := disk.Stat(filepath.Join(o.Dir, name))
					if err != nil {
						t.Fatal(err)
					}
					onDisk += info.Size
				}
			}
			if s := l.Stats(); s.Bytes < onDisk {
				t.Errorf("%d bytes on disk, Stats tell of %d", onDisk, s.Bytes)
			}
			fault.Remove()
			sim.Advance(2 * retrySpace)
			write(20)
			if s := l.Stats(); s.Bytes > o.MaxBytes+3*o.FileBytes || s.SpaceErr != nil {
				t.Errorf("after the disk is well again: %+v", s)
			}
		})
	}
}
