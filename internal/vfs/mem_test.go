package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// durableFile returns an open file whose name and content are durable.
func durableFile(t *testing.T, m *Mem, name string, content []byte) File {
	t.Helper()
	f := must(m.Create(name))
	_, err := f.WriteAt(content, 0)
	check(t, err)
	check(t, f.Sync())
	check(t, m.SyncDir("/"))
	return f
}

// content reads all of name.
func content(t *testing.T, m *Mem, name string) []byte {
	t.Helper()
	b, err := ReadFile(m, name, 1<<30)
	check(t, err)
	return b
}

func sectors(fill ...byte) []byte {
	var b []byte
	for _, f := range fill {
		b = append(b, bytes.Repeat([]byte{f}, sectorSize)...)
	}
	return b
}

func TestPowerCutKeepsWhatWasSynced(t *testing.T) {
	m := NewMem(1)
	want := sectors(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
	durableFile(t, m, "f", want)
	for seed := range uint64(200) {
		if got := content(t, m.CrashClone(seed), "f"); !bytes.Equal(got, want) {
			t.Fatalf("seed %d: a synced file changed", seed)
		}
	}
	if rep := m.Crash(3); rep != (CutReport{}) {
		t.Errorf("a power cut with nothing unsynced reports %+v", rep)
	}
	if got := content(t, m, "f"); !bytes.Equal(got, want) {
		t.Error("a synced file changed in Crash")
	}
}

// An unsynced overwrite shows every outcome a disk has: nothing, all, a later sector without an earlier one, an earlier one
// without a later one; but never half a sector.
func TestPowerCutTearsUnsyncedWritesBySector(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "f", sectors(1, 1, 1, 1))
	_, err := f.WriteAt(sectors(2, 2), sectorSize)
	check(t, err)
	seen := map[string]int{}
	for seed := range uint64(300) {
		got := content(t, m.CrashClone(seed), "f")
		if len(got) != 4*sectorSize {
			t.Fatalf("seed %d: %d bytes", seed, len(got))
		}
		var s []byte
		for i := 0; i < len(got); i += sectorSize {
			if !bytes.Equal(got[i:i+sectorSize], bytes.Repeat(got[i:i+1], sectorSize)) {
				t.Fatalf("seed %d: a sector was torn", seed)
			}
			s = append(s, '0'+got[i])
		}
		seen[string(s)]++
	}
	for _, want := range []string{"1111", "1221", "1211", "1121"} {
		if seen[want] == 0 {
			t.Errorf("300 power cuts never left %s; they left %v", want, seen)
		}
	}
	if len(seen) != 4 {
		t.Errorf("impossible outcomes among %v", seen)
	}
	if got := content(t, m.CrashCloneWith(LoseUnsynced()), "f"); !bytes.Equal(got, sectors(1, 1, 1, 1)) {
		t.Error("LoseUnsynced kept something")
	}
	c := m.CrashCloneWith(KeepUnsynced())
	if got := content(t, c, "f"); !bytes.Equal(got, sectors(1, 2, 2, 1)) {
		t.Error("KeepUnsynced lost something")
	}
	if cut := c.Stats().Cut; cut.SectorsKept != 2 || cut.SectorsLost != 0 {
		t.Errorf("report %+v, want 2 sectors kept", cut)
	}
}

// A file that grew may come back short, whole, in between, or long with zeros where the bytes did not arrive.
func TestPowerCutLeavesAnyLengthOfAGrownFile(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "f", sectors(1))
	_, err := f.WriteAt(sectors(2, 2, 2), sectorSize)
	check(t, err)
	seen := map[string]bool{}
	for seed := range uint64(500) {
		got := content(t, m.CrashClone(seed), "f")
		if !bytes.Equal(got[:sectorSize], sectors(1)) {
			t.Fatal("the synced part changed")
		}
		var s []byte
		for i := 0; i < len(got); i += sectorSize {
			s = append(s, '0'+got[i])
		}
		seen[string(s)] = true
	}
	for _, want := range []string{"1", "12", "122", "1222", "1000", "1002", "1020", "10"} {
		if !seen[want] {
			t.Errorf("no power cut left %s", want)
		}
	}
	if n := m.CrashCloneWith(LoseUnsynced()).Stats().Cut.LengthsLost; n != 1 {
		t.Errorf("the report counts %d lost lengths, want 1", n)
	}
	check(t, f.SyncData())
	if got := content(t, m.CrashCloneWith(LoseUnsynced()), "f"); !bytes.Equal(got, sectors(1, 2, 2, 2)) {
		t.Error("SyncData did not make the length durable")
	}
}

// Until it is synced a truncation may not have happened; then what was written past it cannot be there either. If it has
// happened, none of the old bytes past it are.
func TestPowerCutOrdersTruncationBeforeWhatFollows(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "f", sectors(1, 1, 1))
	check(t, f.Truncate(sectorSize))
	_, err := f.WriteAt(sectors(2, 2, 2), 2*sectorSize)
	check(t, err)
	seen := map[string]bool{}
	for seed := range uint64(500) {
		var s []byte
		for got := content(t, m.CrashClone(seed), "f"); len(got) > 0; got = got[sectorSize:] {
			s = append(s, '0'+got[0])
		}
		seen[string(s)] = true
	}
	for s := range seen {
		switch s {
		case "111", "1", "10", "100", "102", "1000", "1002", "1020", "1022", "10000", "10002", "10020", "10022", "10200", "10202", "10220", "10222":
		default:
			t.Errorf("impossible outcome %s", s)
		}
	}
	for _, want := range []string{"111", "1", "10222"} {
		if !seen[want] {
			t.Errorf("no power cut left %s; seen %v", want, seen)
		}
	}
}

// Bytes past a truncated end read as zeros when the file grows again, also after the power failed.
func TestTruncateWithinASector(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "f", sectors(1, 1))
	check(t, f.Truncate(100))
	check(t, f.Truncate(2*sectorSize))
	want := append(bytes.Repeat([]byte{1}, 100), make([]byte, 2*sectorSize-100)...)
	if got := content(t, m, "f"); !bytes.Equal(got, want) {
		t.Fatal("old bytes came back")
	}
	check(t, f.Sync())
	if got := content(t, m.CrashCloneWith(LoseUnsynced()), "f"); !bytes.Equal(got, want) {
		t.Fatal("old bytes came back after a power cut")
	}
}

func TestKillKeepsWhatThePageCacheHolds(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "f", sectors(1))
	l := must(m.Lock("LOCK"))
	_, err := f.WriteAt(sectors(2), 0)
	check(t, err)
	must(m.Create("unsynced name")).Close()
	m.Kill()
	if got := content(t, m, "f"); !bytes.Equal(got, sectors(2)) {
		t.Fatal("kill -9 lost a write")
	}
	if names := must(m.List("/")); !slices.Equal(names, []string{"LOCK", "f", "unsynced name"}) {
		t.Fatalf("after kill -9: %v", names)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a handle survived its process: %v", err)
	}
	if err := l.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a lock survived its process: %v", err)
	}
	must(m.Lock("LOCK"))
	m.CrashWith(LoseUnsynced())
	if got := content(t, m, "f"); !bytes.Equal(got, sectors(1)) {
		t.Error("kill -9 made an unsynced write durable")
	}
	if names := must(m.List("/")); !slices.Equal(names, []string{"f"}) {
		t.Errorf("after the power cut: %v", names)
	}
}

func TestCrashKillsHandlesAndReleasesLocks(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "f", sectors(1))
	l := must(m.Lock("f"))
	m.Crash(1)
	_, rerr := f.ReadAt(make([]byte, 1), 0)
	_, werr := f.WriteAt(sectors(9), 0)
	_, verr := f.WriteVecAt([][]byte{sectors(9)}, 0)
	for i, err := range []error{rerr, werr, verr, f.Sync(), f.SyncData(), f.Truncate(0), f.StartWriteback(0, 1), f.Close(), l.Close()} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("operation %d after the crash: %v, want fs.ErrClosed", i, err)
		}
	}
	if got := content(t, m, "f"); !bytes.Equal(got, sectors(1)) {
		t.Error("a dead handle wrote")
	}
	must(m.Lock("f"))
}

func TestCrashCloneLeavesTheOriginalAlone(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "f", sectors(1, 1))
	_, err := f.WriteAt(sectors(2), 0)
	check(t, err)
	c := m.CrashCloneWith(KeepUnsynced())
	_, err = f.WriteAt(sectors(3, 3), 0)
	check(t, err)
	cf := must(c.OpenReadWrite("f"))
	_, err = cf.WriteAt(sectors(4), sectorSize)
	check(t, err)
	if got := content(t, m, "f"); !bytes.Equal(got, sectors(3, 3)) {
		t.Error("the clone's write reached the original")
	}
	if got := content(t, c, "f"); !bytes.Equal(got, sectors(2, 4)) {
		t.Error("the original's write reached the clone")
	}
}

// A disk may hold any version a sector ever had since its last sync, as the kernel writes back when it likes.
func TestPowerCutMayLeaveAnIntermediateVersion(t *testing.T) {
	seen := map[byte]bool{}
	for seed := range uint64(200) {
		m := NewMem(seed)
		f := durableFile(t, m, "f", sectors(1))
		for v := byte(2); v <= 4; v++ {
			_, err := f.WriteAt(sectors(v), 0)
			check(t, err)
			check(t, f.StartWriteback(0, sectorSize))
		}
		seen[content(t, m.CrashClone(seed), "f")[0]] = true
	}
	for v := byte(1); v <= 4; v++ {
		if !seen[v] {
			t.Errorf("version %d never survived", v)
		}
	}
}

// The same without anybody asking for write-back: the kernel writes when it likes.
func TestKernelWritesBackUnasked(t *testing.T) {
	seen := map[byte]bool{}
	for seed := range uint64(300) {
		m := NewMem(seed)
		f := durableFile(t, m, "f", sectors(1))
		for v := byte(2); v <= 4; v++ {
			_, err := f.WriteAt(sectors(v), 0)
			check(t, err)
		}
		seen[content(t, m.CrashClone(seed), "f")[0]] = true
	}
	if !seen[1] || !seen[4] || !seen[2] && !seen[3] {
		t.Errorf("versions that survived: %v; want the first, the last and one between", seen)
	}
}

// Writing a lost sector again makes it dirty again: eviction does not take it, and the next sync brings it to the disk. That
// holds for zeros written where a truncation was lost, too.
func TestWritingALostSectorAgainHealsIt(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "f", bytes.Repeat([]byte{1}, 4*pageSize))
	fail := func() {
		t.Helper()
		m.Inject(Fault{Ops: OpSync})
		if err := f.Sync(); err == nil {
			t.Fatal("the fault did not fire")
		}
	}
	two := bytes.Repeat([]byte{2}, pageSize)
	_, err := f.WriteAt(two, 0)
	check(t, err)
	fail()
	_, err = f.WriteAt(two, 0)
	check(t, err)
	m.DropCaches()
	if !bytes.Equal(content(t, m, "f")[:pageSize], two) {
		t.Error("eviction took a dirty page")
	}
	check(t, f.Sync())
	if !bytes.Equal(content(t, m.CrashCloneWith(LoseUnsynced()), "f")[:pageSize], two) {
		t.Error("what was written again is not durable")
	}
	check(t, f.Truncate(0))
	fail()
	_, err = f.WriteAt(make([]byte, 4*pageSize), 0)
	check(t, err)
	check(t, f.Sync())
	if !bytes.Equal(content(t, m.CrashCloneWith(LoseUnsynced()), "f"), make([]byte, 4*pageSize)) {
		t.Error("zeros written over a lost truncation are not durable")
	}
}

// Linux reports a failed write-back once and takes the pages for clean: readers see data the disk will never get.
func TestFailedSyncLosesDataForGood(t *testing.T) {
	m := NewMem(1)
	old := bytes.Repeat([]byte{1}, 64*sectorSize)
	f := durableFile(t, m, "f", old)
	want := bytes.Repeat([]byte{2}, 64*sectorSize)
	_, err := f.WriteAt(want, 0)
	check(t, err)
	in := m.Inject(Fault{Ops: OpSync})
	if err := f.SyncData(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("SyncData = %v, want EIO", err)
	}
	check(t, f.SyncData()) // a retry "succeeds"
	if in.Fired() != 1 || m.Stats().FailedSyncs != 1 {
		t.Errorf("fired %d times, counted %d", in.Fired(), m.Stats().FailedSyncs)
	}
	if got := content(t, m, "f"); !bytes.Equal(got, want) {
		t.Fatal("the page cache lost its content at once")
	}
	c := m.CrashCloneWith(KeepUnsynced())
	got := content(t, c, "f")
	lost := bytes.Count(got, []byte{1}) / sectorSize
	if lost == 0 || lost == 64 {
		t.Fatalf("%d of 64 sectors lost, want some and not all", lost)
	}
	if n := c.Stats().Cut.SectorsLost; n != lost {
		t.Errorf("the report counts %d lost sectors, there are %d", n, lost)
	}
	_, err = f.WriteAt(sectors(3), 0) // only writing again brings a sector to the disk
	check(t, err)
	check(t, f.SyncData())
	copy(got, sectors(3))
	if !bytes.Equal(content(t, m.CrashCloneWith(LoseUnsynced()), "f"), got) {
		t.Error("a sector written again and synced is not durable, or a lost one came back")
	}
	m.DropCaches()
	if !bytes.Equal(content(t, m, "f"), got) {
		t.Error("after eviction readers do not see what the disk holds")
	}
}

func TestWriteFaultsWriteAPart(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "a.log", nil)
	other := durableFile(t, m, "b.idx", nil)
	in := m.Inject(Fault{Ops: OpWrite, Match: "*.log", Skip: 1, Count: 20, Err: syscall.ENOSPC})
	if _, err := f.WriteAt(sectors(1), 0); err != nil {
		t.Fatalf("the write to be skipped failed: %v", err)
	}
	partly := false
	for range 20 {
		_, err := other.WriteAt(sectors(1), 0)
		check(t, err)
		n, err := f.WriteVecAt([][]byte{sectors(1), sectors(2)}, sectorSize)
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("err = %v", err)
		}
		partly = partly || n > 0 && n < 2*sectorSize
		if size := must(f.Size()); size < int64(n) {
			t.Fatalf("%d bytes reported written, the file has %d", n, size)
		}
	}
	if !partly || in.Fired() != 20 {
		t.Errorf("partly = %v, fired = %d", partly, in.Fired())
	}
	if _, err := f.WriteAt(sectors(1), 0); err != nil {
		t.Errorf("the fault outlived its count: %v", err)
	}
}

func TestReadFaultsAndBitFlips(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "d", bytes.Repeat([]byte{7}, 10000))
	in := m.Inject(Fault{Ops: OpRead, Match: "/d", Count: -1})
	for range 3 {
		if n, err := f.ReadAt(make([]byte, 10), 0); n != 0 || !errors.Is(err, syscall.EIO) {
			t.Fatalf("ReadAt = %d, %v", n, err)
		}
	}
	if in.Fired() != 3 {
		t.Errorf("fired %d times", in.Fired())
	}
	in.Remove()
	want := content(t, m, "d")
	clone := m.CrashClone(1)
	check(t, m.FlipBit("d", 4100, 3))
	want[4100] ^= 8
	if !bytes.Equal(content(t, m, "d"), want) {
		t.Error("readers do not see the flipped bit, or something else changed")
	}
	if !bytes.Equal(content(t, m.CrashCloneWith(LoseUnsynced()), "d"), want) {
		t.Error("the flipped bit is not on the disk")
	}
	if content(t, clone, "d")[4100] != 7 {
		t.Error("the flip reached an older clone")
	}
	if err := m.FlipBit("d", 10000, 0); err == nil {
		t.Error("flipped a bit past the end")
	}
	// An overwrite heals it.
	_, err := f.WriteAt([]byte{7}, 4100)
	check(t, err)
	check(t, f.Sync())
	if content(t, m.CrashCloneWith(LoseUnsynced()), "d")[4100] != 7 {
		t.Error("the overwrite is not durable")
	}
}

func TestFullDisk(t *testing.T) {
	m := NewMem(1)
	m.SetCapacity(10 * pageSize)
	f := durableFile(t, m, "f", nil)
	n, err := f.WriteAt(bytes.Repeat([]byte{1}, 12*pageSize), 100)
	if want := 10*pageSize - 100; n != want || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("WriteAt = %d, %v; want %d, ENOSPC", n, err, want)
	}
	if free := must(m.FreeSpace("/")); free != 0 || m.Stats().NoSpace != 1 {
		t.Errorf("free = %d, NoSpace = %d", free, m.Stats().NoSpace)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{2}, 10*pageSize), 0); err != nil {
		t.Errorf("overwriting allocated pages: %v", err)
	}
	g := must(m.Create("g")) // names are free
	check(t, g.Truncate(1<<40))
	if n, err := g.WriteAt([]byte{1}, 1<<39); n != 0 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a hole took space: %d, %v", n, err)
	}
	check(t, f.Truncate(9*pageSize))
	if n, err := g.WriteAt(make([]byte, pageSize), 0); n != pageSize || err != nil {
		t.Errorf("after truncating: %d, %v", n, err)
	}
	check(t, m.Remove("f"))
	if m.Used() != 10*pageSize {
		t.Errorf("a removed file that is open freed its space: %d used", m.Used())
	}
	check(t, f.Close())
	if m.Used() != pageSize {
		t.Errorf("%d bytes used, want one page", m.Used())
	}
	g2 := must(m.Create("g"))
	if m.Used() != 0 {
		t.Errorf("creating over a file kept its space: %d used", m.Used())
	}
	_, err = g2.WriteAt(make([]byte, 10), 0)
	check(t, err)
	check(t, g.Sync())
	check(t, m.SyncDir("/"))
	m.Crash(1)
	if m.Used() != pageSize {
		t.Errorf("%d bytes used after a power cut, want one page", m.Used())
	}
	m.SetCapacity(0)
	if free := must(m.FreeSpace("/")); free < 1<<30 {
		t.Errorf("free = %d without a capacity", free)
	}
}

// Every kind of operation can be made to fail, and then has no effect on names.
func TestEveryOperationCanFail(t *testing.T) {
	m := NewMem(1)
	check(t, m.MkdirAll("d"))
	f := durableFile(t, m, "f", sectors(1))
	before := tree(t, m, "/")
	eperm := syscall.EPERM
	in := m.Inject(Fault{Count: -1, Err: eperm})
	_, e1 := m.Create("n")
	_, e2 := m.Open("f")
	_, e3 := m.OpenReadWrite("f")
	_, e4 := m.List("d")
	_, e5 := m.Stat("f")
	_, e6 := m.Lock("l")
	_, e7 := m.FreeSpace("/")
	_, e8 := f.Size()
	errs := []error{
		e1, e2, e3, e4, e5, e6, e7, e8, m.Remove("f"), m.RemoveAll("d"), m.Rename("f", "g"), m.MkdirAll("e"), m.SyncDir("/"),
		f.Truncate(0), f.Sync(), f.SyncData(), f.StartWriteback(0, 1),
	}
	for i, err := range errs {
		if !errors.Is(err, eperm) {
			t.Errorf("operation %d: %v, want EPERM", i, err)
		}
	}
	if in.Fired() != uint64(len(errs)) {
		t.Errorf("fired %d times for %d operations", in.Fired(), len(errs))
	}
	in.Remove()
	if after := tree(t, m, "/"); after != before {
		t.Errorf("failed operations changed the disk:\n%s\nwas:\n%s", after, before)
	}
}

func TestDelaysAddUpForTheDriver(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "f", nil)
	m.Inject(Fault{Ops: OpSync, Count: 2, Delay: time.Second})
	slow := m.Inject(Fault{Ops: OpWrite | OpSync, Count: -1, Delay: time.Millisecond})
	_, err := f.WriteAt(sectors(1), 0)
	check(t, err)
	check(t, f.Sync()) // delayed, not failed
	if d := m.TakeStall(); d != time.Second+2*time.Millisecond {
		t.Errorf("TakeStall = %v", d)
	}
	check(t, f.Sync())
	check(t, f.Sync())
	if d := m.TakeStall(); d != time.Second+2*time.Millisecond {
		t.Errorf("TakeStall = %v", d)
	}
	if d := m.TakeStall(); d != 0 || slow.Fired() != 4 || m.Stats().Stalls != 6 {
		t.Errorf("TakeStall = %v, fired %d, stalls %d", d, slow.Fired(), m.Stats().Stalls)
	}
}

// A test with goroutines holds an operation in the hook; when the power fails meanwhile, the operation has not happened.
func TestPowerFailsDuringAStalledSync(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "f", sectors(1))
	_, err := f.WriteAt(sectors(2), 0)
	check(t, err)
	begun, release := make(chan struct{}), make(chan struct{})
	m.SetHook(func(op Op, name string, _ time.Duration) {
		if op == OpSync {
			close(begun)
			<-release
		}
	})
	done := make(chan error, 1)
	go func() { done <- f.Sync() }()
	<-begun
	m.CrashWith(LoseUnsynced())
	close(release)
	if err := <-done; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Sync = %v, want fs.ErrClosed", err)
	}
	m.SetHook(nil)
	if got := content(t, m, "f"); !bytes.Equal(got, sectors(1)) {
		t.Error("a sync of a dead process reached the disk")
	}
}

// A log file of 64 MiB written full of zeros, then synced after each small write, must not cost its size.
func TestPreallocatedFilesAreCheap(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "wal", nil)
	zeros := make([]byte, 1<<20)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range int64(64) {
		_, err := f.WriteAt(zeros, i<<20)
		check(t, err)
	}
	check(t, f.Sync())
	if m.Used() != 64<<20 {
		t.Errorf("%d bytes used, want 64 MiB", m.Used())
	}
	for i := range int64(1000) {
		_, err := f.WriteAt(sectors(byte(i+1)), i*sectorSize)
		check(t, err)
		check(t, f.SyncData())
	}
	for seed := range uint64(10) {
		m.CrashClone(seed)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 16<<20 {
		t.Errorf("%d bytes allocated", got)
	}
}

// The same seed and the same calls leave the same disk, power cuts and faults included.
func TestMemRepeatsExactly(t *testing.T) {
	run := func() string {
		m := NewMem(5)
		r := rand.New(rand.NewPCG(6, 6))
		check(t, m.MkdirAll("d"))
		m.Inject(Fault{Ops: OpWrite | OpSync, Skip: 20, Count: 10})
		var out string
		for round := range uint64(5) {
			for range 100 {
				name := fmt.Sprintf("d/%d", r.IntN(8))
				f, err := m.OpenReadWrite(name)
				if err != nil {
					f = must(m.Create(name))
				}
				b := bytes.Repeat([]byte{byte(r.Uint32())}, r.IntN(3000))
				n, err := f.WriteAt(b, int64(r.IntN(5000)))
				out += fmt.Sprint(n, err)
				if r.IntN(3) == 0 {
					out += fmt.Sprint(f.Sync())
				}
				check(t, f.Close())
				if r.IntN(10) == 0 {
					check(t, m.Rename(name, fmt.Sprintf("d/%d", r.IntN(8))))
				}
			}
			out += fmt.Sprint(m.Crash(round))
			check(t, m.MkdirAll("d"))
			out += tree(t, m, "/")
		}
		return out
	}
	first := run()
	for range 3 {
		if run() != first {
			t.Fatal("two runs from one seed differ")
		}
	}
}

func TestMemConcurrentUse(t *testing.T) {
	m := NewMem(1)
	f := durableFile(t, m, "shared", bytes.Repeat([]byte{0}, 8*pageSize))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			own := must(m.Create(fmt.Sprint("own", w)))
			for i := range 200 {
				b := bytes.Repeat([]byte{byte(w + 1)}, pageSize)
				if _, err := f.WriteAt(b, int64(w)*pageSize); err != nil {
					t.Error(err)
				}
				if _, err := f.ReadAt(b, int64(w)*pageSize); err != nil || b[0] != byte(w+1) || b[pageSize-1] != byte(w+1) {
					t.Errorf("read %v, %v", b[0], err)
				}
				if i%20 == 0 {
					if err := errors.Join(f.SyncData(), own.Sync(), m.SyncDir("/")); err != nil {
						t.Error(err)
					}
					c := m.CrashClone(uint64(i))
					if _, err := c.Stat("shared"); err != nil {
						t.Error(err)
					}
				}
			}
			if err := own.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := f.ReadAt(make([]byte, 1), 8*pageSize); !errors.Is(err, io.EOF) {
		t.Errorf("the file grew: %v", err)
	}
}
