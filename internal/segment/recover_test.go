package segment

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func mustRead(t testing.TB, fsys vfs.FS, name string) []byte {
	t.Helper()
	b, err := readFile(fsys, name, 1<<30)
	if err != nil || b == nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b
}

func overwrite(t testing.TB, fsys vfs.FS, name string, off int64, b []byte) {
	t.Helper()
	f, err := fsys.OpenReadWrite(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func truncate(t testing.TB, fsys vfs.FS, name string, n int64) {
	t.Helper()
	f, err := fsys.OpenReadWrite(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(n); err != nil {
		t.Fatal(err)
	}
}

// TestReopenedLogContinuesAsIfNeverClosed appends to one log in one go and to another with restarts, clean and not: all files
// that Kafka knows must be equal.
func TestReopenedLogContinuesAsIfNeverClosed(t *testing.T) {
	steady := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: small, start: -1}
	mem := vfs.NewMem(2)
	often := opener{t: t, fs: mem, dir: "/data/t-0", cfg: small, start: -1}
	a, b := steady.open(), often.open()
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range 400 {
		all := fill(t, a, 1, int32(i/90))
		if err := b.Append(all); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(4) == 0 {
			flush(t, b)
		}
		switch rng.IntN(12) {
		case 0:
			closeLog(t, b)
			b = often.open()
		case 1: // the process is killed: what was written stays
			mem.Kill()
			b = often.open()
		}
		if b.EndOffset() != a.EndOffset() || b.Damage() != nil {
			t.Fatalf("batch %d: end %d, want %d; %v", i, b.EndOffset(), a.EndOffset(), b.Damage())
		}
	}
	closeLog(t, a)
	closeLog(t, b)
	for _, ext := range []string{logExt, indexExt, timeExt, ""} {
		if err := same(drop(content(t, steady.fs, steady.dir, ext)), drop(content(t, often.fs, often.dir, ext))); err != nil {
			t.Fatalf("%q: %v", ext, err)
		}
	}
}

func drop(m map[string][]byte) map[string][]byte { delete(m, pointFile); return m }

// TestPowerCutKeepsWhatWasFlushed cuts the power at random moments; unsynced writes survive in part, sector by sector.
func TestPowerCutKeepsWhatWasFlushed(t *testing.T) {
	for seed := uint64(0); seed < 60; seed++ {
		mem := vfs.NewMem(seed)
		o := opener{t: t, fs: mem, dir: "/data/t-0", cfg: small, start: -1}
		rng := rand.New(rand.NewPCG(seed, 9))
		if err := mem.MkdirAll("/data"); err != nil {
			t.Fatal(err)
		}
		if err := mem.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		var all []byte
		var flushed int64
		l := o.open()
		for cut := range 4 {
			for range rng.IntN(60) {
				all = append(all, fill(t, l, 1, int32(cut))...)
				if rng.IntN(8) == 0 {
					flushed = flush(t, l)
				}
			}
			mem.Crash(seed*10 + uint64(cut))
			o.start = 0
			l = o.open()
			if l.Damage() != nil || l.EndOffset() < flushed {
				t.Fatalf("seed %d cut %d: ends at %d of %d flushed; %v", seed, cut, l.EndOffset(), flushed, l.Damage())
			}
			got := readAll(t, l, 0, l.EndOffset(), 1<<20)
			if !bytes.HasPrefix(all, got) {
				t.Fatalf("seed %d cut %d: what is left is no prefix", seed, cut)
			}
			all = got
			recs := recordsOf(t, all)
			for off := int64(0); off < l.EndOffset(); off += 5 {
				if b, err := l.Read(off, l.EndOffset(), 1, nil); err != nil || len(b) == 0 {
					t.Fatalf("seed %d cut %d: offset %d: %v", seed, cut, off, err)
				}
				want := firstAt(recs, t0+10*off)
				if at, _, _, err := l.OffsetForTimestamp(t0+10*off, l.EndOffset()); err != nil || at != want {
					t.Fatalf("seed %d cut %d: timestamp of %d: %d, want %d, %v", seed, cut, off, at, want, err)
				}
			}
			if e := l.latestEpoch(); e > int32(cut) {
				t.Fatalf("epoch %d", e)
			}
		}
	}
}

// TestPowerCutWithinAFlushIsNoDamage cuts the power before each of a flush's operations: what it was about to vouch for may be
// missing, and that is no damage, since nobody has been told.
func TestPowerCutWithinAFlushIsNoDamage(t *testing.T) {
	for seed := range uint64(6) {
		for at := 0; ; at++ {
			mem := vfs.NewMem(seed)
			o := opener{t: t, fs: mem, dir: "/data/t-0", cfg: small, start: -1}
			if err := vfs.MkdirAllSync(mem, "/data"); err != nil {
				t.Fatal(err)
			}
			l := o.open()
			all := fill(t, l, 7, 1)
			flushed := flush(t, l)
			all = append(all, fill(t, l, 45, 1)...) // in several segments
			var cut *vfs.Mem
			n := 0
			mem.SetHook(func(vfs.Op, string, time.Duration) {
				if n++; n == at+1 {
					cut = mem.CrashClone(seed*1000 + uint64(at))
				}
			})
			flush(t, l)
			mem.SetHook(nil)
			closeLog(t, l)
			if cut == nil {
				if at < 5 {
					t.Fatalf("a flush of %d operations", at)
				}
				break
			}
			o.fs, o.start = cut, 0
			l = o.open()
			if l.Damage() != nil || l.EndOffset() < flushed {
				t.Fatalf("seed %d, cut before operation %d: ends at %d of %d flushed; %v", seed, at, l.EndOffset(), flushed, l.Damage())
			}
			if got := readAll(t, l, 0, l.EndOffset(), 1<<20); !bytes.HasPrefix(all, got) {
				t.Fatalf("seed %d, cut before operation %d: what is left is no prefix", seed, at)
			}
			closeLog(t, l)
		}
	}
}

func TestTornTailIsCutAtTheLastSoundBatch(t *testing.T) {
	for name, tail := range map[string][]byte{
		"zeros":           make([]byte, 500),
		"garbage":         bytes.Repeat([]byte{0xa5}, 500),
		"half a batch":    batchAt(t, 0, 1, 3, 500, record.None)[:300],
		"the wrong batch": batchAt(t, 12345, 1, 3, 500, record.None),
	} {
		t.Run(name, func(t *testing.T) {
			o := onDisk(t, Config{IndexIntervalBytes: 300})
			l := o.open()
			all := fill(t, l, 50, 1)
			flush(t, l)
			all = append(all, fill(t, l, 20, 1)...)
			end := l.EndOffset()
			overwrite(t, o.fs, l.file(fileName(0, logExt)), int64(len(all)), tail)
			l2 := o.open() // the process of l is dead
			defer closeLog(t, l2)
			if l2.EndOffset() != end || l2.Damage() != nil || l2.Size() != int64(len(all)) {
				t.Fatalf("end %d, want %d, %v", l2.EndOffset(), end, l2.Damage())
			}
			if got := mustRead(t, o.fs, l.file(fileName(0, logExt))); !bytes.Equal(got, all) {
				t.Fatalf("%d bytes left, want %d", len(got), len(all))
			}
			fill(t, l2, 5, 1)
			readAll(t, l2, 0, l2.EndOffset(), 1000)
		})
	}
}

// TestLossBelowTheRecoveryPointIsDamage: what was flushed may not go quietly (RAFT.md 7 and 8).
func TestLossBelowTheRecoveryPointIsDamage(t *testing.T) {
	cases := map[string]func(o opener, l *Log){
		"last segment truncated": func(o opener, l *Log) {
			s := l.segs[len(l.segs)-1]
			truncate(t, o.fs, s.log.path(), s.size-1)
		},
		"last segment missing": func(o opener, l *Log) {
			_ = o.fs.Remove(l.segs[len(l.segs)-1].log.path())
		},
		"all segments missing": func(o opener, l *Log) {
			for _, s := range l.segs {
				_ = o.fs.Remove(s.log.path())
			}
		},
	}
	for name, f := range cases {
		t.Run(name, func(t *testing.T) {
			o := onDisk(t, small)
			l := o.open()
			all := fill(t, l, 101, 1)
			closeLog(t, l)
			f(o, l)
			l2 := o.open()
			defer closeLog(t, l2)
			if l2.Damage() == nil || l2.Damage().File == "" || l2.EndOffset() >= l.EndOffset() {
				t.Fatalf("damage %v, end %d of %d", l2.Damage(), l2.EndOffset(), l.EndOffset())
			}
			if got := readAll(t, l2, 0, l2.EndOffset(), 1000); !bytes.HasPrefix(all, got) {
				t.Fatal("no prefix")
			}
			if err := l2.Reset(l2.EndOffset()); err != nil || l2.Damage() != nil {
				t.Fatal(err, l2.Damage())
			}
		})
	}
}

func TestDamageInTheMiddleIsNamed(t *testing.T) {
	o := onDisk(t, small)
	l := o.open()
	fill(t, l, 200, 1)
	closeLog(t, l)
	s := l.segs[1]
	raw := mustRead(t, o.fs, s.log.path())
	h, _ := record.ParseHeader(raw)
	second := int64(h.Size()) // position of the segment's second batch
	h2, _ := record.ParseHeader(raw[second:])
	file := s.log.path()
	for name, c := range map[string]struct {
		at      int64
		checked bool
	}{"records": {second + 70, true}, "length": {second + 8, false}, "offset": {second + 7, false}, "magic": {second + 16, false}, "last offset": {second + 23, false}, "leader epoch": {second + 12, true}} {
		t.Run(name, func(t *testing.T) {
			overwrite(t, o.fs, file, c.at, []byte{raw[c.at] ^ 0x41})
			defer overwrite(t, o.fs, file, c.at, raw[c.at:c.at+1])
			l := o.open() // trusts sealed segments: it must not notice, nor cut
			defer closeLog(t, l)
			if l.Damage() != nil || l.EndOffset() == 0 {
				t.Fatal(l.Damage())
			}
			var damaged *DamageError
			_, err := l.ReadChecked(h2.BaseOffset, l.EndOffset(), 1, nil)
			if !errors.As(err, &damaged) || damaged.File != file || damaged.Offset != second {
				t.Fatalf("%v, want %s at %d", err, file, second)
			}
			if _, err := l.Read(h2.BaseOffset, l.EndOffset(), 1, nil); c.checked != (err == nil) {
				t.Fatalf("unchecked read: %v", err)
			}
			readAll(t, l, 0, s.base, 1000)
		})
	}
}

// TestATruncatedSealedSegmentIsDamageNotTheEnd: nothing and no error would look like the end of the log to a consumer.
func TestATruncatedSealedSegmentIsDamageNotTheEnd(t *testing.T) {
	o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: small, start: -1}
	l := o.open()
	fill(t, l, 200, 1)
	closeLog(t, l)
	s := l.segs[1]
	raw := mustRead(t, o.fs, s.log.path())
	for _, n := range []int64{0, 1, record.BatchOverhead - 1, record.BatchOverhead, s.size / 2, s.size - 1} {
		restore(t, o.fs, s.log.path(), raw)
		truncate(t, o.fs, s.log.path(), n)
		l := o.open()
		for off := l.segs[1].base; ; {
			b, err := l.Read(off, l.EndOffset(), 700, nil)
			var damaged *DamageError
			if errors.As(err, &damaged) && damaged.File == s.log.path() {
				break
			}
			if err != nil || len(b) == 0 || off >= l.segs[2].base {
				t.Fatalf("%d bytes left: read at %d: %d bytes, %v", n, off, len(b), err)
			}
			_ = record.Each(b, func(h record.Header, _ []byte) error { off = h.LastOffset() + 1; return nil })
		}
		closeLog(t, l)
	}
}

func TestIndexesAreBuiltAnewWhenMissingOrDamaged(t *testing.T) {
	o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: small, start: -1}
	l := o.open()
	all := fill(t, l, 300, 1)
	closeLog(t, l)
	before := content(t, o.fs, o.dir, indexExt)
	beforeTimes := content(t, o.fs, o.dir, timeExt)
	sealed, active := l.segs[1], l.segs[len(l.segs)-1]
	recs := recordsOf(t, all)
	damage := map[string]func(name string){
		"missing":   func(name string) { _ = o.fs.Remove(name) },
		"truncated": func(name string) { truncate(t, o.fs, name, 7) },
		"garbage":   func(name string) { overwrite(t, o.fs, name, 0, bytes.Repeat([]byte{0x11}, 64)) },
		"zeros":     func(name string) { overwrite(t, o.fs, name, 8, make([]byte, 40)) },
	}
	for name, f := range damage {
		for _, s := range []*segment{sealed, active} {
			for _, ext := range []string{indexExt, timeExt} {
				t.Run(fmt.Sprintf("%s %s of %d", name, ext, s.base), func(t *testing.T) {
					file := filepath.Join(o.dir, fileName(s.base, ext))
					f(file)
					l := o.open()
					for off := l.EndOffset() - 1; off >= 0; off-- {
						if b, err := l.Read(off, l.EndOffset(), 1, nil); err != nil || len(b) == 0 {
							t.Fatalf("offset %d: %v", off, err)
						}
					}
					for ts := t0; ts < t0+10*l.EndOffset(); ts += 170 {
						want := firstAt(recs, ts)
						if off, _, _, err := l.OffsetForTimestamp(ts, l.EndOffset()); err != nil || off != want {
							t.Fatalf("timestamp %d: %d, want %d, %v", ts, off, want, err)
						}
					}
					closeLog(t, l)
					for _, c := range []struct {
						ext  string
						want map[string][]byte
					}{{indexExt, before}, {timeExt, beforeTimes}} {
						// An active segment's damage below what is known to be synced is found when it is used; every use must be right.
						if got := content(t, o.fs, o.dir, c.ext); s == sealed && name != "zeros" && name != "garbage" && same(got, c.want) != nil {
							t.Fatalf("%s: %v", c.ext, same(got, c.want))
						}
					}
					for n, b := range before { // as it was, for the next
						restore(t, o.fs, filepath.Join(o.dir, n), b)
					}
					for n, b := range beforeTimes {
						restore(t, o.fs, filepath.Join(o.dir, n), b)
					}
				})
			}
		}
	}
}

func restore(t testing.TB, fsys vfs.FS, name string, b []byte) {
	t.Helper()
	if err := replaceFile(fsys, name, b); err != nil {
		t.Fatal(err)
	}
}

// TestOpenReadsLittle: a node opens thousands of logs at each start, so the number of operations counts: a log that was
// closed is not read, one that was killed above its recovery point and back to the last index entry in a file.
func TestOpenReadsLittle(t *testing.T) {
	mem := vfs.NewMem(1)
	disk := &faulty{FS: mem}
	o := opener{t: t, fs: disk, dir: "/data/t-0", cfg: Config{IndexIntervalBytes: 300}, start: -1}
	l := o.open()
	fill(t, l, 2000, 1)
	flush(t, l)
	tail := int64(len(fill(t, l, 3, 1)))
	end := l.EndOffset()
	for _, c := range []struct {
		name       string
		opens, max int64 // files opened, bytes read
	}{
		// 700 bytes are an index interval and a batch.
		{"killed", 6, pointBytes + 4096 + spillEntries*700 + walkChunk + tail},
		{"closed", 5, pointBytes + 4096},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "closed" {
				closeLog(t, l)
			}
			mem.Kill()
			disk.opens.Store(0)
			disk.readBytes.Store(0)
			l = o.open()
			if l.EndOffset() != end || l.Damage() != nil {
				t.Fatalf("ends at %d of %d, %v", l.EndOffset(), end, l.Damage())
			}
			if n, b := disk.opens.Load(), disk.readBytes.Load(); n > c.opens || b > c.max {
				t.Fatalf("%d files opened and %d bytes read of %d, want at most %d and %d", n, b, l.Size(), c.opens, c.max)
			}
		})
	}
	closeLog(t, l)
}

// FuzzRecover damages files of a log at random: opening and reading must not panic, and what is left is a prefix of what was
// there unless damage is reported.
func FuzzRecover(f *testing.F) {
	f.Add(uint64(1), uint16(3), []byte{1, 2, 3})
	f.Add(uint64(2), uint16(900), []byte{})
	f.Add(uint64(5), uint16(5000), bytes.Repeat([]byte{0xff}, 70))
	f.Fuzz(func(t *testing.T, which uint64, at uint16, patch []byte) {
		mem := vfs.NewMem(which)
		o := opener{t: t, fs: mem, dir: "/t-0", cfg: Config{SegmentBytes: 2000, IndexIntervalBytes: 200}, start: -1}
		l := o.open()
		all := fill(t, l, 15, 1)
		flush(t, l)
		all = append(all, fill(t, l, 15, 2)...)
		mem.Kill()
		names, err := mem.List(o.dir)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(o.dir, names[which%uint64(len(names))])
		if info, err := mem.Stat(name); err == nil {
			if len(patch) == 0 {
				truncate(t, mem, name, min(info.Size, int64(at)))
			} else {
				overwrite(t, mem, name, min(info.Size, int64(at)), patch)
			}
		}
		if _, err := VerifyDir(mem, o.dir, o.start, -1); err != nil {
			t.Fatal(err)
		}
		l = o.open()
		end := l.EndOffset()
		for from := l.StartOffset(); from < end; {
			b, err := l.ReadChecked(from, end, 600, nil)
			var damaged *DamageError
			if errors.As(err, &damaged) {
				break
			}
			if err != nil || len(b) == 0 {
				t.Fatalf("at %d: %d bytes, %v", from, len(b), err)
			}
			if err := record.Each(b, func(h record.Header, b []byte) error {
				from = h.LastOffset() + 1
				// Of a leader epoch that was changed it can be told only if it is out of order.
				record.SetOffset(b, h.BaseOffset, 1)
				if !bytes.Contains(all, b) {
					record.SetOffset(b, h.BaseOffset, 2)
				}
				if !bytes.Contains(all, b) {
					t.Fatalf("batch %d-%d was not written so", h.BaseOffset, h.LastOffset())
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		_, _, _, _ = l.OffsetForTimestamp(t0+100, end)
		_, _, _ = l.MaxTimestamp(end)
		_ = l.RetentionStart(time.Now(), Config{RetentionAge: 1, RetentionBytes: 1})
		if err := l.Append(batchAt(t, end, 3, 1, 10, record.None)); err != nil && !errors.As(err, new(*DamageError)) {
			t.Fatal(err)
		}
		_ = l.Close()
	})
}

// A batch's own offset lies before what its CRC covers. Behind damage in the active segment, whose end nobody knows, one with an offset
// that is far off must not be taken for where the log goes on: then all that lies between would be called lost, and nobody could bring it.
func TestWhereTheLogGoesOnBehindDamageIsNotBeyondIt(t *testing.T) {
	o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: Config{SegmentBytes: 1 << 20, IndexIntervalBytes: 300}, start: -1}
	l := o.open()
	all := fill(t, l, 20, 1)
	end := l.EndOffset()
	closeLog(t, l)
	file, second := l.segs[0].log.path(), int64(0)
	h, _ := record.ParseHeader(all)
	second = int64(h.Size())
	h2, _ := record.ParseHeader(all[second:])
	overwrite(t, o.fs, file, 70, []byte{all[70] ^ 1})                // a record of the first batch
	overwrite(t, o.fs, file, second+4, []byte{all[second+4] ^ 0x02}) // the offset of the second: 2^25 more
	_ = o.fs.Remove(o.dir + "/" + pointFile)                         // nothing is trusted: all is read
	got, err := OpenDurable(NewFiles(o.fs, 64), clock.System{}, o.dir, o.cfg, -1, end, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer closeLog(t, got)
	for _, x := range got.Lost() {
		if x.To > end {
			t.Errorf("offsets %d to %d are called lost, of a log that ends at %d", x.From, x.To, end)
		}
	}
	if n := len(got.Lost()); n != 1 || got.Lost()[0].From != 0 || got.Lost()[0].To != h2.LastOffset()+1 || got.EndOffset() != end {
		t.Errorf("lost: %+v, the log ends at %d of %d", got.Lost(), got.EndOffset(), end)
	}
}

// The first batch of a segment begins where the segment does, or in what compaction has left above it. One with another offset is
// damaged; what follows is not.
func TestASegmentsFirstBatchMustNotBeginAnywhere(t *testing.T) {
	o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: small, start: -1}
	l := o.open()
	fill(t, l, 200, 1)
	end := l.EndOffset()
	closeLog(t, l)
	s := l.segs[1]
	raw := mustRead(t, o.fs, s.log.path())
	h, _ := record.ParseHeader(raw)
	overwrite(t, o.fs, s.log.path(), 4, []byte{raw[4] ^ 0x02}) // its offset: 2^25 more
	_ = o.fs.Remove(o.dir + "/" + pointFile)                   // nothing is trusted: all is read
	got, err := OpenDurable(NewFiles(o.fs, 64), clock.System{}, o.dir, o.cfg, -1, end, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer closeLog(t, got)
	if x := got.Lost(); len(x) != 1 || x[0].From != s.base || x[0].To != h.LastOffset()+1 || got.EndOffset() != end {
		t.Errorf("lost: %+v, the log ends at %d of %d; damaged were offsets %d to %d", x, got.EndOffset(), end, s.base, h.LastOffset())
	}
	readAll(t, got, l.segs[2].base, end, 1000)
}

// TestALastOffsetThatChangedIsNotWhereTheLogEnds: the headers of what was flushed are walked without their sums, and one that says that its batch
// goes on for long makes the next look wrong. Which of them is, the sums tell (simulator, seed 77: the log was cut there, and ended far above).
func TestALastOffsetThatChangedIsNotWhereTheLogEnds(t *testing.T) {
	for _, known := range []bool{true, false} {
		mem := vfs.NewMem(1)
		o := opener{t: t, fs: mem, dir: "/data/t-0", cfg: Config{SegmentBytes: 1 << 20, IndexIntervalBytes: 100}}
		l := o.open()
		var at, bases []int64
		for range 20 {
			at, bases = append(at, l.Size()), append(bases, l.EndOffset())
			if err := l.Append(batchAt(t, l.EndOffset(), 1, 3, 50, record.None)); err != nil {
				t.Fatal(err)
			}
		}
		end, size := flush(t, l), l.Size()
		log := l.file(fileName(0, logExt))
		mem.Kill()
		if err := mem.FlipBit(log, at[10]+24, 2); err != nil {
			t.Fatal(err)
		}
		durable, wantEnd := int64(0), bases[10]
		if known {
			durable, wantEnd = end, end
		}
		l, err := OpenDurable(NewFiles(mem, 64), clock.System{}, o.dir, o.cfg, 0, durable, quiet)
		if err != nil {
			t.Fatal(err)
		}
		if l.EndOffset() != wantEnd || known && (l.Size() != size || len(l.Lost()) != 1 || l.Lost()[0].From != bases[10] || l.Lost()[0].To != bases[11]) {
			t.Errorf("durable %d: ends at %d, want %d; %d bytes of %d, lost %+v", durable, l.EndOffset(), wantEnd, l.Size(), size, l.Lost())
		}
		readAll(t, l, 0, bases[10], 1000)
		closeLog(t, l)
	}
}
