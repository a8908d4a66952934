package wal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/vfs"
)

// image is what a disk holds in the log's directory.
type image map[string][]byte

func takeImage(t testing.TB, disk *vfs.Mem, dir string) image {
	t.Helper()
	names, err := disk.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	img := image{}
	for _, n := range names {
		if n == lockName {
			continue
		}
		f, err := disk.Open(filepath.Join(dir, n))
		if err != nil {
			t.Fatal(err)
		}
		size, _ := f.Size()
		b := make([]byte, size)
		if n, err := f.ReadAt(b, 0); err != nil && err != io.EOF || int64(n) != size {
			t.Fatal(n, err)
		}
		f.Close()
		img[n] = b
	}
	return img
}

func (img image) clone() image {
	c := maps.Clone(img)
	for n := range c {
		c[n] = slices.Clone(c[n])
	}
	return c
}

// logs returns the names of the log files, oldest first.
func (img image) logs() []string {
	var names []string
	for n := range img {
		if strings.HasSuffix(n, fileSuffix) {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

func (img image) disk(t testing.TB, dir string) *vfs.Mem {
	t.Helper()
	m := vfs.NewMem(1)
	if err := m.MkdirAll(dir); err != nil {
		t.Fatal(err)
	}
	for _, n := range slices.Sorted(maps.Keys(img)) {
		f, err := m.Create(filepath.Join(dir, n))
		if err == nil && len(img[n]) > 0 {
			_, err = f.WriteAt(img[n], 0)
		}
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := m.SyncDir(dir); err != nil {
		t.Fatal(err)
	}
	return m
}

// settledLog runs random operations, with power cuts in between, and leaves a log all of whose bytes it has stated to be
// durable: closed, or idle for a moment and then killed.
func settledLog(t testing.TB, seed uint64, closed bool) (image, *model) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 77))
	disk := vfs.NewMem(seed)
	m := &model{rng: rng}
	for range 3 + rng.IntN(6) {
		m.groups = append(m.groups, &modelGroup{states: []groupState{{}}})
	}
	rounds := 1 + rng.IntN(4)
	for round := range rounds {
		o := simOptions(disk)
		sim := clock.NewSim(time.Unix(1e9, 0))
		o.Clock = sim
		l := mustOpen(t, o)
		m.l = l
		at, err := m.check(l)
		if err != nil {
			t.Fatal(err)
		}
		for i, g := range m.groups {
			g.states, g.acked = g.states[at[i]:at[i]+1], 0
		}
		for range 20 + rng.IntN(200) {
			m.op()
			for rng.IntN(3) == 0 && l.Step() {
			}
			if rng.IntN(4) == 0 {
				l.StepBackground()
			}
		}
		if round < rounds-1 {
			disk.Crash(rng.Uint64())
			continue
		}
		if !closed {
			i := rng.IntN(len(m.groups)) // a write that asks for durability, so that the seal covers everything
			s := m.cur(i)
			m.l.Remove(uint64(i+1), m.push(i, groupState{removed: s.exists || s.removed}))
			drain(l)
			sim.Advance(2 * sealAfter)
			drain(l)
			disk.Kill()
		} else if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range m.groups {
		g.acked = len(g.states) - 1
	}
	return takeImage(t, disk, "/data/wal"), m
}

// openDamaged opens a damaged log and checks that nothing is lost silently: a group is what it was, or has Damage, or Open
// refuses and says where and what to do. It returns the number of groups quarantined, -1 if Open refused.
func openDamaged(t testing.TB, img image, m *model, exact bool) int {
	t.Helper()
	disk := img.disk(t, "/data/wal")
	o := simOptions(disk)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	l, err := Open(o)
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 96<<20 {
		t.Fatalf("Open allocated %d bytes", grown)
	}
	if err != nil {
		var ce *CorruptionError
		if !errors.As(err, &ce) {
			if errors.Is(err, ErrNewerFormat) {
				return -1
			}
			t.Fatalf("Open: %v, want a *CorruptionError", err)
		}
		if !errors.Is(err, ErrCorrupt) || !strings.HasPrefix(ce.File, "/data/wal/") || ce.Offset < 0 ||
			!strings.Contains(err.Error(), "wipe the node") || !strings.Contains(err.Error(), ce.File) {
			t.Fatalf("Open: unhelpful error %q: %+v", err, ce)
		}
		if now := takeImage(t, disk, "/data/wal"); exact && !maps.EqualFunc(now, img, slices.Equal[[]byte]) {
			t.Fatal("Open refused the log, but changed it")
		}
		// The lock is free again: a second attempt says the same.
		if _, again := Open(o); again == nil || again.Error() != err.Error() {
			t.Fatalf("the second Open said %v, the first %v", again, err)
		}
		return -1
	}
	hurt := map[uint64]*Damage{}
	for pass := range 2 { // damage is still known after a restart
		for i, g := range m.groups {
			id := uint64(i + 1)
			lg := l.Group(id)
			if lg != nil && lg.Damage() != nil {
				hurt[id] = lg.Damage()
				if d := lg.Damage(); d.File == "" || d.Reason == "" {
					t.Fatalf("group %d: %+v says nothing", id, d)
				}
				continue
			}
			if exact && hurt[id] != nil {
				t.Fatalf("pass %d: the damage of group %d was forgotten: %v", pass, id, hurt[id])
			}
			if err := sameState(l, id, g.states[len(g.states)-1]); exact && err != nil {
				t.Fatalf("pass %d: silent loss in group %d: %v", pass, id, err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if pass == 0 {
			if l, err = Open(o); err != nil {
				if exact {
					t.Fatalf("the second Open: %v", err)
				}
				return len(hurt)
			}
		}
	}
	return len(hurt)
}

// damage does one thing to a file's bytes within [from, to).
func damage(b []byte, kind int, off, n int, v byte) []byte {
	if len(b) == 0 {
		return b
	}
	off %= len(b)
	end := min(len(b), off+n)
	switch kind % 7 {
	case 0: // a bit
		b[off] ^= 1 << (v % 8)
	case 1: // a sector reads as zeros
		off &^= 511
		clear(b[off:min(len(b), off+512)])
	case 2: // a page does
		off &^= 4095
		clear(b[off:min(len(b), off+4096)])
	case 3: // a range holds something else
		for i := off; i < end; i++ {
			b[i] = v ^ byte(i*7)
		}
	case 4:
		return b[:off]
	case 5: // everything from here on is gone
		clear(b[off:])
	case 6: // a page was written to a wrong place
		copy(b[off&^4095:], b[(n*4096)%len(b)&^4095:min(len(b), (n*4096)%len(b)&^4095+4096)])
	}
	return b
}

// usedBytes returns how far a log file holds anything but zeros.
func usedBytes(b []byte) int {
	n := len(b)
	for n > 0 && b[n-1] == 0 {
		n--
	}
	return n
}

// TestDamageBelowDurableIsNeverSilent is design rule 8's other half: whatever happens to bytes that were durable, in closed
// files and in the last one, the groups hit are named or Open refuses.
func TestDamageBelowDurableIsNeverSilent(t *testing.T) {
	var refused, quarantined, unharmed int
	for seed := range uint64(1 + *crashSeeds/5) {
		img, m := settledLog(t, seed, seed%2 == 0)
		if n := openDamaged(t, img.clone(), m, true); n != 0 {
			t.Fatalf("seed %d: an undamaged log has %d damaged groups", seed, n)
		}
		rng := rand.New(rand.NewPCG(seed, 78))
		logs := img.logs()
		for run := range 50 {
			bad := img.clone()
			name := logs[rng.IntN(len(logs))]
			if run%4 == 0 { // the last one that is used
				for _, n := range logs {
					if usedBytes(img[n]) > headerSize {
						name = n
					}
				}
			}
			kind, off, v := rng.IntN(9), rng.IntN(max(1, usedBytes(bad[name]))), byte(rng.Uint32())
			what := fmt.Sprintf("seed %d run %d: %s kind %d at %d", seed, run, name, kind, off)
			switch kind {
			case 7:
				delete(bad, name)
			case 8: // the anchor alone
				name = anchorName
				bad[name] = damage(bad[name], rng.IntN(6), rng.IntN(anchorSize), 8, v)
			default:
				bad[name] = damage(bad[name], kind, off, 1+rng.IntN(6000), v)
			}
			t.Run("", func(t *testing.T) {
				defer func() {
					if t.Failed() {
						t.Log(what)
					}
				}()
				switch n := openDamaged(t, bad, m, true); {
				case n < 0:
					refused++
				case n > 0:
					quarantined++
				default:
					unharmed++
				}
			})
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d refused, %d with groups quarantined, %d unharmed", refused, quarantined, unharmed)
	if refused < 10 || quarantined < 10 || unharmed < 10 {
		t.Errorf("the damage is not of all sorts: %d refused, %d quarantined, %d unharmed", refused, quarantined, unharmed)
	}
}

// reseal gives the block at off a checksum that fits what it holds now, as a hostile or broken writer would.
func reseal(b []byte, seq uint32, off int) {
	if off+frameSize > len(b) {
		return
	}
	n := int64(frameSize) + int64(le.Uint32(b[off+12:]))
	if n > int64(len(b)-off) {
		n = frameSize
	}
	head := b[off : off+int(n)]
	le.PutUint32(head[0:], blockMagic)
	le.PutUint32(head[4:], crc32.Update(seedCRC(seq, int64(off)), castagnoli, head[8:]))
}

// FuzzOpenDamaged damages a log as the input says. Open never panics and never allocates on a claim; as long as checksums are
// not forged, what it gives is what was written, or named damage, or an error.
func FuzzOpenDamaged(f *testing.F) {
	type base struct {
		img image
		m   *model
	}
	var bases []base
	for seed := range uint64(4) {
		img, m := settledLog(f, 100+seed, seed%2 == 0)
		bases = append(bases, base{img, m})
	}
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 1, 4, 0, 16, 0, 9, 1})
	f.Add([]byte{2, 2, 1, 0, 33, 0, 0, 1, 1, 5, 0, 40, 0, 9, 3})
	f.Add([]byte{0x83, 0, 3, 0, 8, 8, 0xff, 0xff, 0, 3, 0, 12, 2, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 8 || len(in) > 1+7*16 {
			return
		}
		forge := in[0]&0x80 != 0
		b := bases[int(in[0]&0x7f)%len(bases)]
		img := b.img.clone()
		logs := img.logs()
		exact := true
		for p := in[1:]; len(p) >= 7; p = p[7:] {
			name := logs[int(p[0])%len(logs)]
			if p[0] == 0xff {
				name, exact = anchorName, false // with the anchor and the log's end both damaged nothing can tell
			}
			if _, ok := img[name]; !ok {
				continue
			}
			off := int(p[2])<<12 | int(p[3])<<4 | int(p[4])&15
			n := int(p[5]) << (p[6] % 8)
			if p[1] == 0xfe && name != anchorName {
				delete(img, name)
				continue
			}
			img[name] = damage(img[name], int(p[1]), off, n, p[6])
			if forge && name != anchorName && len(img[name]) > 0 {
				seq, _ := parseName(name)
				reseal(img[name], seq, off%len(img[name])&^(blockAlign-1))
			}
		}
		openDamaged(t, img, b.m, exact && !forge)
	})
}

// TestACondemnedGroupStaysDamaged: what its owner has found out about a group outlives restarts, however the power fails, and being carried
// forward; until the group is removed it takes nothing else.
func TestACondemnedGroupStaysDamaged(t *testing.T) {
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	l := mustOpen(t, o)
	n := 0
	for id := uint64(1); id <= 2; id++ {
		if _, err := l.Create(id, firstState(), ok(t, &n)); err != nil {
			t.Fatal(err)
		}
		l.Append(Write{Group: id, HardState: raftpb.HardState{Term: 5, Vote: 2, Commit: 9}, Entries: entries(2, 9, 5, 50), Sync: true, Done: ok(t, &n)})
	}
	l.Condemn(1, Damage{Reason: "it has forgotten something"}, ok(t, &n))
	check := func(l *Log) {
		t.Helper()
		g := l.Group(1)
		if d := g.Damage(); d == nil || d.Reason != "it has forgotten something" || g.HardState().Term != 5 || g.HardState().Vote != 2 || g.Checkpoint().Index != 1 {
			t.Fatalf("damage %v, %+v, checkpoint %d", d, g.HardState(), g.Checkpoint().Index)
		}
		var got error
		l.Append(Write{Group: 1, Entries: entries(10, 10, 5, 50), Sync: true, Done: func(err error) { got = err }})
		drain(l)
		if !errors.Is(got, ErrDamaged) {
			t.Fatalf("a write for it: %v", got)
		}
		checkEntries(t, l.Group(2), entries(2, 9, 5, 50))
	}
	drain(l)
	if n != 5 {
		t.Fatalf("%d done", n)
	}
	check(l)
	l.Condemn(1, Damage{Reason: "again"}, ok(t, &n))
	check(l)
	for seed := range uint64(10) {
		o.FS = disk.CrashClone(seed)
		after := mustOpen(t, o)
		check(after)
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
	}
	o.FS = disk
	at := uint64(10)
	for range 400 { // the files that it was condemned in are reused
		l.Append(Write{Group: 2, Entries: entries(at, at, 5, 8<<10), Sync: true})
		l.Checkpoint(2, Checkpoint{Index: at, Term: 5}, nil)
		at++
		drain(l)
	}
	if l.Stats().Recycled == 0 {
		t.Fatal("no file was reused")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	defer l.Close()
	if d := l.Group(1).Damage(); d == nil || d.Reason != "it has forgotten something" {
		t.Fatalf("after it was carried forward: %v", d)
	}
	l.Remove(1, ok(t, &n))
	drain(l)
	g, err := l.Create(1, firstState(), ok(t, &n))
	if err != nil || g.Damage() != nil {
		t.Fatal(err, g.Damage())
	}
}
