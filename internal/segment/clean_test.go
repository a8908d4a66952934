package segment

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// compacted makes a log of single-record batches, one key after the other from the list ("-" before a key: a tombstone), sealed and
// flushed, and its model.
func compacted(t testing.TB, o opener, list ...string) (*Log, *compactModel) {
	t.Helper()
	m := &compactModel{last: map[int64]int64{}, keep: time.Minute, lookups: true}
	l := o.open()
	for _, k := range list {
		b := record.NewBuilder()
		b.BaseOffset, b.LeaderEpoch = int64(len(m.recs)), 1
		r := modelRecord{key: k, value: "v", ts: t0 + 10*b.BaseOffset}
		v := []byte("v")
		if k[0] == '-' {
			r, v = modelRecord{key: k[1:], null: true, ts: r.ts}, nil
		}
		m.recs = append(m.recs, r)
		out, err := b.Add(r.ts, []byte(r.key), v, record.RecordHeader{Key: []byte("h"), Value: []byte(r.key)}).Build()
		if err == nil {
			err = l.Append(out)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	seal(t, l)
	return l, m
}

func seal(t testing.TB, l *Log) {
	t.Helper()
	if _, err := l.RollOld(time.Now().Add(1000*time.Hour), Config{}); err != nil {
		t.Fatal(err)
	}
	flush(t, l)
}

// offsets lists the records that are left.
func offsets(t testing.TB, l *Log) (out []int64) {
	t.Helper()
	for next := l.StartOffset(); next < l.EndOffset(); {
		b, err := l.Read(next, l.EndOffset(), 1, nil)
		if err != nil {
			t.Fatalf("at %d: %v", next, err)
		}
		if len(b) == 0 {
			break // a hole up to the end
		}
		h, _ := record.ParseHeader(b)
		next = h.LastOffset() + 1
		if err := record.Records(b, 8<<20, func(r record.Record) error {
			out = append(out, h.BaseOffset+int64(r.OffsetDelta))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func wantOffsets(t testing.TB, l *Log, want ...int64) {
	t.Helper()
	if got := offsets(t, l); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("offsets %v are left, want %v", got, want)
	}
}

// TestTombstonesStayUntilTheirHorizon: a tombstone gets its horizon from the first pass that meets it (KIP-534), and goes with the first
// after that; what was removed is remembered.
func TestTombstonesStayUntilTheirHorizon(t *testing.T) {
	o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: small, start: 0}
	l, m := compacted(t, o, "a", "b", "-a", "c")
	begin := time.UnixMilli(t0).Add(time.Hour)
	keys := NewOffsetMap(1 << 16)
	clean(t, l, m.options(begin, keys))
	wantOffsets(t, l, 1, 2, 3)
	b, err := l.Read(2, 4, 1, nil)
	h, _ := record.ParseHeader(b)
	if at, set := h.DeleteHorizon(); err != nil || !set || at != begin.Add(time.Minute).UnixMilli() {
		t.Fatalf("horizon %d %v, %v", at, set, err)
	}
	p := l.CleanPoint()
	if p.DeleteAt != begin.Add(time.Minute).UnixMilli() || p.Horizon != 0 || p.Clean != 4 || p.Holes != 4 {
		t.Fatalf("%+v", p)
	}
	clean(t, l, m.options(begin.Add(59*time.Second), keys))
	wantOffsets(t, l, 1, 2, 3)
	o2 := m.options(begin.Add(time.Hour), keys)
	o2.KeepTombstones = 2 // a follower is about to get it
	clean(t, l, o2)
	wantOffsets(t, l, 1, 2, 3)
	closeLog(t, l)
	l = o.open()
	defer closeLog(t, l)
	if got := l.CleanPoint(); got != p {
		t.Fatalf("%+v after reopening, %+v before", got, p)
	}
	clean(t, l, m.options(begin.Add(time.Hour), keys))
	wantOffsets(t, l, 1, 3)
	if p := l.CleanPoint(); p.Horizon != 3 || p.DeleteAt != -1 {
		t.Fatalf("%+v", p)
	}
}

// TestCleaningStopsWhereItMust: not the active segment, nothing above the limit, nothing that is not flushed, nothing too young.
func TestCleaningStopsWhereItMust(t *testing.T) {
	o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: Config{SegmentBytes: 200, IndexIntervalBytes: 100}, start: 0}
	var list []string
	for range 20 {
		list = append(list, "a")
	}
	l, m := compacted(t, o, list...)
	defer closeLog(t, l)
	now := time.UnixMilli(t0).Add(time.Hour)
	ends := map[int64]bool{}
	for _, s := range l.segs {
		ends[s.end] = true
	}
	for limit := int64(0); limit < 20; limit++ {
		able, err := l.Cleanable(limit, now, 0)
		if err != nil || able.To > limit || !ends[able.To] && able.To != 0 || able.To+4 < limit {
			t.Fatalf("limit %d: %+v %v", limit, able, err)
		}
	}
	if able, err := l.Cleanable(100, time.UnixMilli(t0+100), 50*time.Millisecond); err != nil || able.To > 6 || able.To == 0 {
		t.Fatalf("%+v %v: timestamps are 10 ms apart", able, err)
	}
	if err := l.Append(batchAt(t, 20, 1, 1, 80, record.None)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.RollOld(now, Config{}); err != nil {
		t.Fatal(err)
	}
	if able, err := l.Cleanable(100, now, 0); err != nil || able.To != 20 {
		t.Fatalf("%+v %v: offset 20 is not flushed", able, err)
	}
	opts := m.options(now, NewOffsetMap(1<<16))
	opts.Limit = 9
	done := clean(t, l, opts)
	if got := offsets(t, l); got[0] != done.To-1 || len(got) != int(21-done.To+1) {
		t.Fatalf("%v left, clean to %d", got, done.To)
	}
}

// TestMergedSegmentsShrinkTheLog: what is left of many segments goes into few, within segment.bytes, and readers that were in the old
// files go on.
func TestMergedSegmentsShrinkTheLog(t *testing.T) {
	o := onDisk(t, Config{SegmentBytes: 600, IndexIntervalBytes: 100})
	var list []string
	for i := range 300 {
		list = append(list, fmt.Sprintf("k%d", i%40))
	}
	l, m := compacted(t, o, list...)
	defer closeLog(t, l)
	before, size := l.Segments(), l.Size()
	done := clean(t, l, m.options(time.Now(), NewOffsetMap(1<<16)))
	if l.Segments() > 8 || l.Size() > size/5 || done.Segments != before-1 || done.Records != 260 {
		t.Fatalf("%d segments of %d bytes, from %d of %d; %+v", l.Segments(), l.Size(), before, size, done)
	}
	for _, s := range l.segs {
		if s.size > 600 {
			t.Errorf("segment of %d bytes", s.size)
		}
	}
	m.check(t, l, time.Now(), "merged")
	for i := 0; ; i++ { // what has become small may still fit together
		again := clean(t, l, m.options(time.Now(), NewOffsetMap(1<<16)))
		if again.Written == 0 && again.Swaps == 0 {
			break
		}
		if i == 3 {
			t.Fatalf("nothing to do, and it wrote %+v", again)
		}
	}
}

// TestBatchesThatCannotBeOpenedStay: one that inflates beyond the bound, and one whose records make no sense, are kept whole, and
// nothing that they may replace is removed on their account.
func TestBatchesThatCannotBeOpenedStay(t *testing.T) {
	o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: small, start: 0}
	l, m := compacted(t, o, "a")
	defer closeLog(t, l)
	bomb := record.NewBuilder()
	bomb.BaseOffset, bomb.LeaderEpoch, bomb.Codec = 1, 1, record.Gzip
	b, err := bomb.Add(t0, []byte("a"), []byte("x")).Add(t0, []byte("b"), make([]byte, 1<<20)).Build()
	if err != nil {
		t.Fatal(err)
	}
	ctl := record.NewBuilder()
	ctl.BaseOffset, ctl.LeaderEpoch, ctl.Control, ctl.Transactional, ctl.ProducerID, ctl.ProducerEpoch = 3, 1, true, true, 9, 1
	marker, err := ctl.Add(t0, []byte{0, 0, 0, 1}, []byte{0, 0, 0, 0, 0, 0}).Build()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{b, marker, marker} {
		record.SetOffset(b, l.EndOffset(), 1)
		if err := l.Append(b); err != nil {
			t.Fatal(err)
		}
	}
	seal(t, l)
	opts := m.options(time.Now(), NewOffsetMap(1<<16))
	opts.MaxInflated = 64 << 10
	done := clean(t, l, opts)
	if done.Opaque != 1 || done.Records != 0 {
		t.Errorf("%+v", done)
	}
	if got, err := l.Read(1, 3, 1<<20, nil); err != nil || !bytes.Equal(got, b) {
		t.Fatal("the bomb is not what it was", err)
	}
	wantOffsets(t, l, 0, 1, 2, 3, 4)
}

// TestRecordsWithoutAKeyGo, as in Kafka, when a topic becomes a compacted one.
func TestRecordsWithoutAKeyGo(t *testing.T) {
	o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: small, start: 0}
	l, m := compacted(t, o, "a")
	defer closeLog(t, l)
	for i := int64(1); i < 4; i++ {
		b := record.NewBuilder()
		b.BaseOffset, b.LeaderEpoch = i, 1
		out, _ := b.Add(t0, nil, []byte("no key")).Build()
		if err := l.Append(out); err != nil {
			t.Fatal(err)
		}
	}
	seal(t, l)
	clean(t, l, m.options(time.Now(), NewOffsetMap(1<<16)))
	wantOffsets(t, l, 0)
	// The last batch stands where it was, so that no reader is left waiting in front of the end.
	b, err := l.Read(1, 4, 1, nil)
	if h, e := record.ParseHeader(b); err != nil || e != nil || h.LastOffset() != 3 || h.Count != 0 {
		t.Fatalf("%+v %v %v", h, err, e)
	}
}

// TestADamagedCleanPointTrustsNothing: holes are then legal everywhere, nothing counts as clean, and no log may be brought up to date
// from this one.
func TestADamagedCleanPointTrustsNothing(t *testing.T) {
	mem := vfs.NewMem(1)
	o := opener{t: t, fs: mem, dir: "/data/t-0", cfg: small, start: 0}
	l, m := compacted(t, o, "a", "b", "a", "c", "a")
	clean(t, l, m.options(time.Now(), NewOffsetMap(1<<16)))
	closeLog(t, l)
	if err := mem.FlipBit("/data/t-0/"+cleanFile, 5, 1); err != nil {
		t.Fatal(err)
	}
	l = o.open()
	defer closeLog(t, l)
	if p := l.CleanPoint(); p.Horizon != 5 || p.Holes != 5 || p.Clean != 0 || l.Damage() != nil {
		t.Fatalf("%+v %v", p, l.Damage())
	}
	wantOffsets(t, l, 1, 3, 4)
}

// TestCleaningGivesWayToWhatReplacesTheLog: segments that go while a pass is under way end it.
func TestCleaningGivesWayToWhatReplacesTheLog(t *testing.T) {
	o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: Config{SegmentBytes: 200, IndexIntervalBytes: 100}, start: 0}
	l, m := compacted(t, o, "a", "b", "a", "b", "a", "b", "a", "b", "a", "b")
	defer closeLog(t, l)
	c, err := l.Clean(m.options(time.Now(), NewOffsetMap(1<<16)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Step(100); err != nil {
		t.Fatal(err)
	}
	if err := l.Reset(50); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		var done bool
		if done, err = c.Step(100); done {
			t.Fatal("it came to an end")
		}
	}
	c.Abort()
	if !errors.Is(err, ErrReplaced) || l.CleanPoint().Clean != 0 || l.EndOffset() != 50 {
		t.Fatalf("%v %+v", err, l.CleanPoint())
	}
}

// TestAFileThatComesTooLateLeavesNothing: the log is emptied when a pass has written a segment and its indexes, and not put them in their place.
func TestAFileThatComesTooLateLeavesNothing(t *testing.T) {
	mem := vfs.NewMem(1)
	o := opener{t: t, fs: mem, dir: "/data/t-0", cfg: Config{SegmentBytes: 200, IndexIntervalBytes: 100}, start: 0}
	l, m := compacted(t, o, "a", "b", "a", "b", "a", "b", "a", "b", "a", "b")
	defer closeLog(t, l)
	c, err := l.Clean(m.options(time.Now(), NewOffsetMap(1<<16)))
	if err != nil {
		t.Fatal(err)
	}
	mem.SetHook(func(op vfs.Op, name string, _ time.Duration) {
		if op == vfs.OpSync && strings.HasSuffix(name, timeExt+cleanedExt) {
			mem.SetHook(nil)
			if err := l.Reset(50); err != nil {
				t.Error(err)
			}
		}
	})
	for err == nil {
		var done bool
		if done, err = c.Step(100); done {
			t.Fatal("it came to an end")
		}
	}
	c.Abort()
	names, lerr := mem.List(o.dir)
	if !errors.Is(err, ErrReplaced) || lerr != nil || slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, cleanedExt) }) {
		t.Fatalf("%v, left %v (%v)", err, names, lerr)
	}
}

// TestReadersGoOnThroughASwap reads while passes replace files underneath.
func TestReadersGoOnThroughASwap(t *testing.T) {
	o := onDisk(t, Config{SegmentBytes: 2000, IndexIntervalBytes: 200})
	l, err := Open(NewFiles(vfs.OS{}, 16), clock.System{}, o.dir, o.cfg, 0, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer closeLog(t, l)
	m := &compactModel{last: map[int64]int64{}}
	rng := rand.New(rand.NewPCG(3, 3))
	for range 300 {
		if err := l.Append(m.batch(t, rng, 30, -1)); err != nil {
			t.Fatal(err)
		}
	}
	stop, failed := make(chan struct{}), make(chan error, 3)
	end := l.EndOffset()
	for i := range 3 {
		go func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for {
				select {
				case <-stop:
					failed <- nil
					return
				default:
				}
				from := r.Int64N(end)
				if _, err := l.ReadChecked(from, end, 3000, nil); err != nil {
					failed <- fmt.Errorf("read at %d: %w", from, err)
					return
				}
				if _, _, _, err := l.OffsetForTimestamp(t0+10*from, end); err != nil {
					failed <- fmt.Errorf("timestamp of %d: %w", from, err)
					return
				}
			}
		}()
	}
	for range 12 {
		for range 20 {
			if err := l.Append(m.batch(t, rng, 30, -1)); err != nil {
				t.Fatal(err)
			}
		}
		flush(t, l)
		clean(t, l, m.options(time.Now(), NewOffsetMap(1<<16)))
	}
	close(stop)
	for range 3 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}
