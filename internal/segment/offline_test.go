package segment

import (
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/vfs"
)

// offlineWorld is a log with a history, and what a checkpoint would say of it.
type offlineWorld struct {
	t          testing.TB
	rng        *rand.Rand
	mem        *vfs.Mem
	clk        *clock.Sim
	l          *Log
	m          *compactModel
	cfg        Config
	start, end int64 // of the checkpoint
}

const offlineDir = "/data/t-0"

func newOfflineWorld(t testing.TB, seed uint64) *offlineWorld {
	w := &offlineWorld{t: t, rng: rand.New(rand.NewPCG(seed, 77)), mem: vfs.NewMem(seed), clk: clock.NewSim(time.UnixMilli(t0)),
		m: &compactModel{last: map[int64]int64{}}}
	w.cfg = Config{SegmentBytes: int64(700 + w.rng.IntN(1500)), IndexIntervalBytes: 200}
	if err := vfs.MkdirAllSync(w.mem, "/data"); err != nil {
		t.Fatal(err)
	}
	w.l = w.open(w.mem, 0)
	return w
}

func (w *offlineWorld) open(mem *vfs.Mem, durable int64) *Log {
	w.t.Helper()
	l, err := OpenDurable(NewFiles(mem, 64), w.clk, offlineDir, w.cfg, w.start, durable, quiet)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// checkpoint notes what is flushed, as the write-ahead log would.
func (w *offlineWorld) checkpoint() { w.start, w.end = w.l.StartOffset(), flush(w.t, w.l) }

// step does something to the log, of what a partition does.
func (w *offlineWorld) step() string {
	w.t.Helper()
	l, rng := w.l, w.rng
	try := func(err error) {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	switch rng.IntN(9) {
	case 0:
		w.checkpoint()
		return "checkpoint"
	case 1:
		flush(w.t, l)
		return "flush"
	case 2:
		_, err := l.RollOld(w.clk.Now().Add(time.Hour*24*365*20), Config{})
		try(err)
		return "roll"
	case 3:
		// The start moves, a checkpoint says so, and only then files go.
		l.SetStartOffset(l.StartOffset() + rng.Int64N(1+(l.EndOffset()-l.StartOffset())/3))
		w.checkpoint()
		try(l.Tidy())
		return "tidy"
	case 4, 5:
		clean(w.t, l, w.m.options(w.clk.Now(), NewOffsetMap(1<<16)))
		return "compaction"
	case 6:
		if l.EndOffset() == l.segs[0].base {
			return "nothing"
		}
		r, err := l.Rebuild(l.segs[0].base + rng.Int64N(l.EndOffset()-l.segs[0].base))
		try(err)
		for !r.Full() {
			b, err := l.ReadRetained(r.Next(), r.end, 600, nil)
			try(err)
			if len(b) == 0 {
				r.Skip(r.end)
				break
			}
			try(r.Append(b))
		}
		try(r.Commit())
		return "rebuild"
	default:
		for range 1 + rng.IntN(12) {
			try(l.Append(w.m.batch(w.t, rng, 12, -1)))
		}
		return "append"
	}
}

// foretold holds what VerifyDir says of a directory against what the next start makes of it.
func (w *offlineWorld) foretold(mem *vfs.Mem, what string) (rep *DirReport, l *Log) {
	t := w.t
	t.Helper()
	before, err := mem.List(offlineDir)
	if err != nil { // not even that had a durable name
		return nil, nil
	}
	if rep, err = VerifyDir(mem, offlineDir, w.start, w.end); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	l = w.open(mem, w.end)
	lost := l.Damage() != nil || len(l.Lost()) > 0
	if rep.Sound() == lost {
		t.Fatalf("%s: verify says sound=%v of %v, the start: %v %v\n%+v", what, rep.Sound(), before, l.Damage(), l.Lost(), rep)
	}
	start, end := l.StartOffset(), l.EndOffset()
	var bases []string
	for _, f := range rep.Files {
		if f.Dropped == "" {
			bases = append(bases, fileName(f.Base, logExt))
		}
	}
	after, err := mem.List(offlineDir)
	if err != nil {
		t.Fatal(err)
	}
	if start > w.start && w.start == w.end { // given up by the partition (open.go)
		start, end, after = w.start, w.end, nil
	}
	if !lost && (rep.Start != start || rep.End != end) {
		t.Fatalf("%s: verify says the log is [%d, %d), the start makes it [%d, %d) of %v\n%+v", what, rep.Start, rep.End, start, end, before, rep)
	}
	logs := slices.DeleteFunc(slices.Clone(after), func(n string) bool { return filepath.Ext(n) != logExt })
	if !lost && !slices.Equal(logs, bases) {
		t.Fatalf("%s: verify says %v stay, the start leaves %v of %v", what, bases, logs, before)
	}
	gone := map[string]bool{}
	for _, x := range rep.Removed {
		name := filepath.Base(x.File)
		if gone[name] = true; slices.Contains(after, name) && !slices.Contains(bases, name) && !strings.HasSuffix(name, indexExt) && !strings.HasSuffix(name, timeExt) {
			t.Fatalf("%s: %s should be removed (%s) and is there: %v", what, name, x.Why, after)
		}
	}
	for _, name := range before {
		_, _, swap := parseSwap(name)
		if !slices.Contains(after, name) && after != nil && !gone[name] && !swap && !slices.ContainsFunc(rep.Files, func(f FileReport) bool {
			base, _, _ := parseName(name)
			return f.Dropped != "" && f.Base == base
		}) {
			t.Fatalf("%s: %s was removed, and nothing said so: %+v", what, name, rep.Removed)
		}
	}
	return rep, l
}

// TestVerifyForetellsTheNextStart: the power fails before each operation of a log's life (appends, rolls, flushes, deletions, passes of
// compaction, repairs), and what is said of the directory is what the next start finds and does: never damage, nothing overlooked.
func TestVerifyForetellsTheNextStart(t *testing.T) {
	seen := map[string]int{}
	for seed := range 2 * compactSeeds() {
		w := newOfflineWorld(t, seed)
		what, n := "", 0
		w.mem.SetHook(func(op vfs.Op, name string, _ time.Duration) {
			switch op {
			case vfs.OpRead, vfs.OpOpen:
				return // nothing has changed
			}
			if n++; w.rng.IntN(4) > 0 {
				return
			}
			at := fmt.Sprintf("seed %d, cut before operation %d, %v %s, in %s", seed, n, op, name, what)
			rep, l := w.foretold(w.mem.CrashClone(seed<<32+uint64(n)), at)
			if rep == nil {
				return
			}
			if !rep.Sound() {
				t.Fatalf("%s: %+v", at, rep)
			}
			for _, f := range rep.Files {
				switch {
				case f.Dropped != "" && strings.Contains(f.Dropped, "did not survive"):
					seen["given up"]++
				case f.Dropped != "":
					seen["behind a torn one"]++
				case f.Swap:
					seen["swap"]++
				case f.Torn >= 0:
					seen["torn"]++
				}
			}
			for _, x := range rep.Removed {
				switch {
				case strings.HasSuffix(x.File, cleanedExt):
					seen["unfinished compaction"]++
				case strings.HasSuffix(x.File, tmpExt):
					seen["unfinished file"]++
				case strings.Contains(x.Why, "takes its place"):
					seen["replaced by a swap"]++
				case strings.Contains(x.Why, "lies below"):
					seen["below the start"]++
				case strings.Contains(x.Why, "segment is gone"):
					seen["index alone"]++
				}
			}
			closeLog(t, l)
		})
		for range 60 {
			if what = "append"; len(w.l.segs) == 0 {
				if err := w.l.Append(w.m.batch(t, w.rng, 12, -1)); err != nil {
					t.Fatal(err)
				}
				continue
			}
			what = w.step()
			w.clk.Advance(time.Second)
		}
		w.mem.SetHook(nil)
		closeLog(t, w.l)
	}
	for _, kind := range []string{"given up", "behind a torn one", "swap", "torn", "unfinished compaction", "unfinished file", "replaced by a swap", "below the start", "index alone"} {
		if seen[kind] == 0 {
			t.Errorf("no cut left this: %s (%v)", kind, seen)
		}
	}
}

// TestVerifyFindsWhatTheServerFinds: of a directory that a power cut left, damaged at random besides, it says damaged if and only if the
// server would find damage, at its start or by reading everything again.
func TestVerifyFindsWhatTheServerFinds(t *testing.T) {
	verdicts := map[bool]int{}
	for seed := range 40 * compactSeeds() {
		w := newOfflineWorld(t, seed)
		if err := w.l.Append(w.m.batch(t, w.rng, 12, -1)); err != nil {
			t.Fatal(err)
		}
		for range 25 {
			w.step()
			w.clk.Advance(time.Second)
		}
		mem := w.mem.CrashClone(seed)
		names, err := mem.List(offlineDir)
		if err != nil {
			continue
		}
		name := names[w.rng.IntN(len(names))]
		file := filepath.Join(offlineDir, name)
		info, err := mem.Stat(file)
		if err != nil || info.Size == 0 {
			continue
		}
		hurt := fmt.Sprintf("seed %d, bit flipped in %s", seed, name)
		if at := w.rng.Int64N(info.Size); w.rng.IntN(4) > 0 {
			err = mem.FlipBit(file, at, uint(w.rng.IntN(8)))
		} else {
			hurt = fmt.Sprintf("seed %d, %s cut from %d bytes to %d", seed, name, info.Size, at)
			f, e := mem.OpenReadWrite(file)
			if e != nil {
				t.Fatal(e)
			}
			if err = f.Truncate(at); err == nil {
				err = f.Sync()
			}
			_ = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		rep, err := VerifyDir(mem, offlineDir, w.start, w.end)
		if err != nil {
			t.Fatalf("%s: %v", hurt, err)
		}
		l := w.open(mem, w.end)
		var found []any
		if d := l.Damage(); d != nil {
			found = append(found, d)
		}
		for _, x := range l.Lost() {
			if x.To > w.start {
				found = append(found, x)
			}
		}
		if first := l.StartOffset(); first > w.start && w.start < w.end {
			found = append(found, fmt.Sprintf("begins at %d", first)) // the partition's diagnose
		}
		if l.StartOffset() <= w.start || w.start < w.end {
			for s, done := l.Scrub(), false; !done; {
				out, err := s.Step(math.MaxInt64)
				if err != nil {
					t.Fatalf("%s: %v", hurt, err)
				}
				for _, x := range out.Lost {
					if x.To > w.start {
						found = append(found, x)
					}
				}
				done = out.Done
			}
		}
		if name == cleanFile {
			found = append(found, "its sum") // the start logs it
		}
		if rep.Sound() != (len(found) == 0) {
			t.Fatalf("%s of [%d, %d): verify says sound=%v, the server finds %v\nin %v\n%+v", hurt, w.start, w.end, rep.Sound(), found, names, rep)
		}
		verdicts[rep.Sound()]++
		closeLog(t, l)
		closeLog(t, w.l)
	}
	if verdicts[true] < 20 || verdicts[false] < 20 {
		t.Errorf("sound and damaged: %v", verdicts)
	}
}
