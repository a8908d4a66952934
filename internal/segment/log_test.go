package segment

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

func TestAppendedBatchesReadBackByteForByte(t *testing.T) {
	l := onDisk(t, small).open()
	defer closeLog(t, l)
	want := fill(t, l, 300, 1)
	if l.Segments() < 5 {
		t.Fatalf("%d segments", l.Segments())
	}
	for _, maxBytes := range []int{0, 1, 500, 5000, 1 << 20} {
		if got := readAll(t, l, 0, l.EndOffset(), maxBytes); !bytes.Equal(got, want) {
			t.Fatalf("maxBytes %d: other bytes", maxBytes)
		}
	}
	var concat []byte
	for _, s := range l.segs {
		concat = append(concat, content(t, vfs.OS{}, l.dir, logExt)[fileName(s.base, logExt)]...)
	}
	if !bytes.Equal(concat, want) {
		t.Fatal("the files hold other bytes than were appended")
	}
	if l.Size() != int64(len(want)) {
		t.Fatalf("Size %d, %d appended", l.Size(), len(want))
	}
}

func TestOneAppendMaySpanSegments(t *testing.T) {
	a, b := onDisk(t, small).open(), onDisk(t, small).open()
	defer closeLog(t, a)
	defer closeLog(t, b)
	all := fill(t, a, 200, 1)
	if err := b.Append(all); err != nil {
		t.Fatal(err)
	}
	for _, ext := range []string{logExt, indexExt, timeExt} {
		for _, l := range []*Log{a, b} {
			if _, err := l.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if ext == logExt {
			if err := same(content(t, vfs.OS{}, a.dir, ext), content(t, vfs.OS{}, b.dir, ext)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestReadFindsTheBatchOfEveryOffset(t *testing.T) {
	o := onDisk(t, small)
	l := o.open()
	fill(t, l, 300, 1)
	check := func(l *Log) {
		t.Helper()
		order := rand.New(rand.NewPCG(1, 2)).Perm(int(l.EndOffset()))
		for _, off := range order {
			b, err := l.Read(int64(off), l.EndOffset(), 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			h, err := record.Check(b)
			if err != nil || h.BaseOffset > int64(off) || h.LastOffset() < int64(off) || h.Size() != len(b) {
				t.Fatalf("offset %d: batch %d-%d, %v", off, h.BaseOffset, h.LastOffset(), err)
			}
		}
	}
	check(l)
	closeLog(t, l)
	l = o.open() // indexes come from the files now
	defer closeLog(t, l)
	check(l)
}

func TestReadNeverReturnsTheLimit(t *testing.T) {
	l := onDisk(t, small).open()
	defer closeLog(t, l)
	fill(t, l, 100, 1)
	end := l.EndOffset()
	for limit := int64(0); limit <= end+5; limit++ {
		for off := max(0, limit-6); off <= min(limit, end); off++ {
			b, err := l.Read(off, limit, 1<<20, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := record.Each(b, func(h record.Header, _ []byte) error {
				if h.LastOffset() >= limit {
					t.Fatalf("read at %d below %d returned batch %d-%d", off, limit, h.BaseOffset, h.LastOffset())
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestReadReturnsOneBatchHoweverLarge(t *testing.T) {
	l := onDisk(t, small).open()
	defer closeLog(t, l)
	big := batchAt(t, 0, 1, 3, 100_000, record.None) // larger than a segment, too
	if err := l.Append(append(append([]byte{}, big...), batchAt(t, 3, 1, 1, 100, record.None)...)); err != nil {
		t.Fatal(err)
	}
	got, err := l.Read(1, 4, 10, make([]byte, 0, 64))
	if err != nil || !bytes.Equal(got, big) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if l.Segments() != 2 {
		t.Fatalf("%d segments", l.Segments())
	}
	buf := make([]byte, 1<<20)
	got, err = l.Read(3, 4, 1000, buf)
	if err != nil || &got[0] != &buf[0] {
		t.Fatalf("the buffer was not used: %v", err)
	}
}

func TestReadOutsideTheLog(t *testing.T) {
	l := onDisk(t, small).open()
	_, err := l.Read(1, 10, 100, nil)
	wantOffsetError(t, err, 0, 0)
	if b, err := l.Read(0, 10, 100, nil); err != nil || len(b) != 0 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	fill(t, l, 20, 1)
	end := l.EndOffset()
	l.SetStartOffset(10)
	_, err = l.Read(9, end, 100, nil)
	wantOffsetError(t, err, 10, end)
	_, err = l.Read(end+1, end+5, 100, nil)
	wantOffsetError(t, err, 10, end)
	if b, err := l.Read(end, end+5, 100, nil); err != nil || len(b) != 0 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	l.SetStartOffset(3)
	if l.StartOffset() != 10 {
		t.Fatal("the start went back")
	}
	l.SetStartOffset(end + 100)
	if l.StartOffset() != end {
		t.Fatal("the start went past the end")
	}
	closeLog(t, l)
	closeLog(t, l)
	if _, err := l.Read(end, end, 1, nil); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if err := l.Append(batchAt(t, end, 1, 1, 10, record.None)); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

// TestApplyRefusesAnOffsetThatIsNotTheEnd is the log's half of RAFT.md rule 1: what does not continue the log is refused
// whole, so that the replica can be quarantined.
func TestApplyRefusesAnOffsetThatIsNotTheEnd(t *testing.T) {
	l := onDisk(t, small).open()
	defer closeLog(t, l)
	fill(t, l, 10, 1)
	end := l.EndOffset()
	before := l.Size()
	good := batchAt(t, end, 1, 2, 100, record.None)
	for _, base := range []int64{end - 1, end + 1, 0} {
		var se *SequenceError
		if err := l.Append(batchAt(t, base, 1, 1, 50, record.None)); !errors.As(err, &se) || se.Want != end || se.Got != base {
			t.Fatalf("%d: %v", base, err)
		}
		if err := l.Append(append(append([]byte{}, good...), batchAt(t, base, 1, 1, 50, record.None)...)); !errors.As(err, &se) {
			t.Fatalf("%d second: %v", base, err)
		}
	}
	for _, b := range [][]byte{good[:50], good[:len(good)-1], append(append([]byte{}, good...), 1, 2, 3)} {
		if err := l.Append(b); !errors.Is(err, record.ErrTruncated) {
			t.Fatal(err)
		}
	}
	if l.EndOffset() != end || l.Size() != before {
		t.Fatal("something was written")
	}
	if err := l.Append(good); err != nil {
		t.Fatal(err)
	}
}

func TestRollByTimeAndByFullIndex(t *testing.T) {
	at := func(base, ts int64) []byte {
		b := record.NewBuilder()
		b.BaseOffset = base
		b.Add(ts, nil, make([]byte, 100))
		out, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	l := onDisk(t, Config{SegmentMs: time.Minute}).open()
	defer closeLog(t, l)
	for i, c := range []struct{ ts, segments int64 }{{t0, 1}, {t0 + 60_000, 1}, {t0 + 60_001, 2}, {t0 + 60_002, 2}, {t0 + 130_000, 3}} {
		if err := l.Append(at(int64(i), c.ts)); err != nil {
			t.Fatal(err)
		}
		if int64(l.Segments()) != c.segments {
			t.Fatalf("batch %d: %d segments", i, l.Segments())
		}
	}
	f := onDisk(t, Config{IndexIntervalBytes: 1, IndexBytes: 10 * timeEntrySize}).open()
	defer closeLog(t, f)
	for i := range int64(100) {
		if err := f.Append(at(i, t0+i)); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, f)
	if f.Segments() < 8 {
		t.Fatalf("%d segments", f.Segments())
	}
	for name, b := range content(t, vfs.OS{}, f.dir, timeExt) {
		if len(b) > 10*timeEntrySize {
			t.Fatalf("%s: %d bytes", name, len(b))
		}
	}
}

// TestRetentionDecidesAndSetStartApplies is the log's half of RAFT.md rule 2: RetentionStart only says what the leader should
// propose; files go when the start has moved.
func TestRetentionDecidesAndSetStartApplies(t *testing.T) {
	o := onDisk(t, small)
	l := o.open()
	fill(t, l, 300, 1)
	flush(t, l)
	size, end, segments := l.Size(), l.EndOffset(), l.Segments()
	now := time.UnixMilli(t0 + 10*end + 1000)
	if got := l.RetentionStart(now, Config{}); got != 0 {
		t.Fatalf("no retention: %d", got)
	}
	byBytes := l.RetentionStart(now, Config{RetentionBytes: size / 2})
	byTime := l.RetentionStart(now, Config{RetentionMs: time.Duration(5*end) * time.Millisecond})
	if byBytes <= 0 || byTime <= 0 || byBytes >= end || byTime >= end || l.StartOffset() != 0 || l.Segments() != segments {
		t.Fatalf("by bytes %d, by time %d of %d", byBytes, byTime, end)
	}
	l.SetStartOffset(byBytes)
	if l.Segments() != segments {
		t.Fatal("files went before Tidy")
	}
	if err := l.Tidy(); err != nil {
		t.Fatal(err)
	}
	if l.segs[0].base != byBytes || l.Size() < size/2 || l.Size()-l.segs[0].size >= size/2 {
		t.Fatalf("first segment %d, size %d", l.segs[0].base, l.Size())
	}
	if n := len(content(t, o.fs, o.dir, logExt)); n != l.Segments() {
		t.Fatalf("%d files, %d segments", n, l.Segments())
	}
	readAll(t, l, byBytes, end, 1000)
	if got := l.RetentionStart(now.Add(time.Hour), Config{RetentionMs: time.Minute}); got != end {
		t.Fatalf("all expired: %d", got)
	}
	l.SetStartOffset(end)
	if err := l.Tidy(); err != nil {
		t.Fatal(err)
	}
	if l.Segments() != 1 || l.Size() != 0 {
		t.Fatalf("%d segments, %d bytes", l.Segments(), l.Size())
	}
	fill(t, l, 3, 2)
	readAll(t, l, end, l.EndOffset(), 1000)
	closeLog(t, l)
	o.start = end
	l = o.open()
	defer closeLog(t, l)
	if l.StartOffset() != end || l.EndOffset() <= end || l.Damage() != nil {
		t.Fatalf("[%d, %d) after reopening, %v", l.StartOffset(), l.EndOffset(), l.Damage())
	}
}

func TestStartOffsetInsideABatchSurvivesReopening(t *testing.T) {
	o := onDisk(t, small)
	l := o.open()
	fill(t, l, 100, 1)
	l.SetStartOffset(77)
	if err := l.Tidy(); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	o.start = 77
	l = o.open()
	defer closeLog(t, l)
	b, err := l.Read(77, l.EndOffset(), 1, nil)
	h, herr := record.Check(b)
	if err != nil || herr != nil || l.StartOffset() != 77 || h.BaseOffset > 77 || h.LastOffset() < 77 {
		t.Fatalf("%+v %v %v", h, err, herr)
	}
}

func TestEpochEnds(t *testing.T) {
	o := onDisk(t, small)
	l := o.open()
	if e, end := l.EpochEnd(3); e != -1 || end != -1 || l.LatestEpoch() != -1 {
		t.Fatal(e, end)
	}
	ends := map[int32]int64{}
	for _, epoch := range []int32{2, 3, 7} {
		fill(t, l, 40, epoch)
		ends[epoch] = l.EndOffset()
	}
	check := func(l *Log) {
		t.Helper()
		for _, c := range []struct {
			ask, epoch int32
			end        int64
		}{{1, 1, 0}, {2, 2, ends[2]}, {3, 3, ends[3]}, {5, 3, ends[3]}, {7, 7, ends[7]}, {9, 7, ends[7]}, {-1, -1, -1}} {
			if e, end := l.EpochEnd(c.ask); e != c.epoch || end != c.end {
				t.Errorf("epoch %d: %d ends at %d, want %d at %d", c.ask, e, end, c.epoch, c.end)
			}
		}
		if l.LatestEpoch() != 7 {
			t.Error(l.LatestEpoch())
		}
	}
	check(l)
	closeLog(t, l)
	want := string(mustRead(t, o.fs, l.file(epochFile)))
	if want != "0\n3\n2 0\n3 "+itoa(ends[2])+"\n7 "+itoa(ends[3])+"\n" {
		t.Fatalf("file %q", want)
	}
	check2 := func(damage func()) {
		t.Helper()
		damage()
		l := o.open()
		check(l)
		closeLog(t, l)
		if got := string(mustRead(t, o.fs, l.file(epochFile))); got != want {
			t.Fatalf("file %q, want %q", got, want)
		}
	}
	check2(func() {})
	check2(func() { _ = o.fs.Remove(l.file(epochFile)) })
	check2(func() { overwrite(t, o.fs, l.file(epochFile), 0, []byte("garbage")) })
	l = o.open()
	defer closeLog(t, l)
	l.SetStartOffset(ends[2] + 5)
	if e, end := l.EpochEnd(2); e != 2 || end != ends[2]+5 {
		t.Fatal(e, end)
	}
	if e, end := l.EpochEnd(3); e != 3 || end != ends[3] {
		t.Fatal(e, end)
	}
}

func TestTimestampLookupFindsTheFirstRecord(t *testing.T) {
	o := onDisk(t, small)
	l := o.open()
	all := fill(t, l, 300, 4)
	type rec struct{ off, ts int64 }
	var recs []rec
	if err := record.Each(all, func(h record.Header, b []byte) error {
		return record.Records(b, 1<<20, func(r record.Record) error {
			recs = append(recs, rec{h.BaseOffset + int64(r.OffsetDelta), r.Timestamp})
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	end := l.EndOffset()
	check := func(l *Log, start, limit int64) {
		t.Helper()
		for ts := t0 - 5; ts < t0+10*end+60; ts += 3 {
			want := rec{-1, -1}
			for _, r := range recs {
				if r.off >= start && r.off < limit && r.ts >= ts {
					want = r
					break
				}
			}
			off, got, epoch, err := l.OffsetForTimestamp(ts, limit)
			if err != nil || off != want.off || got != want.ts || (off >= 0) != (epoch == 4) {
				t.Fatalf("timestamp %d in [%d, %d): %d at %d epoch %d, %v; want %+v", ts, start, limit, off, got, epoch, err, want)
			}
		}
		want := rec{-1, -1}
		for _, r := range recs {
			if r.off >= start && r.off < limit && r.ts > want.ts {
				want = r
			}
		}
		off, got, err := l.MaxTimestamp(limit)
		if err != nil || off != want.off || got != want.ts {
			t.Fatalf("max timestamp in [%d, %d): %d at %d, %v; want %+v", start, limit, off, got, err, want)
		}
	}
	check(l, 0, end)
	closeLog(t, l)
	l = o.open()
	defer closeLog(t, l)
	check(l, 0, end)
	l.SetStartOffset(333)
	check(l, 333, end)
	// A limit is always a batch's boundary.
	b, err := l.Read(500, end, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	h, _ := record.ParseHeader(b)
	check(l, 333, h.BaseOffset)
	if off, ts, err := l.MaxTimestamp(333); off != -1 || ts != -1 || err != nil {
		t.Fatal(off, ts, err)
	}
}

// TestReplayComparesAndSkips is the segment half of RAFT.md rule 7: entries after a checkpoint are applied again, and what the
// segment already holds is recognised by offset and CRC.
func TestReplayComparesAndSkips(t *testing.T) {
	o := onDisk(t, small)
	l := o.open()
	all := fill(t, l, 120, 1)
	flush(t, l)
	closeLog(t, l)
	l = o.open()
	defer closeLog(t, l)
	end, skipped := l.EndOffset(), 0
	err := record.Each(all, func(h record.Header, b []byte) error {
		got, crc, ok := l.BatchAt(h.BaseOffset)
		if !ok || crc != h.CRC || got != h {
			t.Fatalf("batch at %d: %+v %v", h.BaseOffset, got, ok)
		}
		if h.LastOffsetDelta > 0 {
			if _, _, ok := l.BatchAt(h.BaseOffset + 1); ok {
				t.Fatalf("a batch in the middle of one, at %d", h.BaseOffset+1)
			}
		}
		skipped++
		return nil
	})
	if err != nil || skipped != 120 {
		t.Fatal(skipped, err)
	}
	if _, _, ok := l.BatchAt(end); ok {
		t.Fatal("a batch at the end")
	}
}

// TestDeltaByOffsetsMakesIdenticalLogs is the segment half of RAFT.md rule 13: a follower takes a range of offsets, whole
// batches, resuming where it stopped, into segments that end wherever its own do.
func TestDeltaByOffsetsMakesIdenticalLogs(t *testing.T) {
	leader := onDisk(t, small).open()
	defer closeLog(t, leader)
	want := fill(t, leader, 300, 1)
	o := onDisk(t, Config{SegmentBytes: 3000})
	follower := o.open()
	for i := 0; follower.EndOffset() < leader.EndOffset(); i++ {
		b, err := leader.ReadChecked(follower.EndOffset(), leader.EndOffset(), 1000, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := follower.Append(b); err != nil {
			t.Fatal(err)
		}
		if i%20 == 7 { // a restart on the way
			flush(t, follower)
			closeLog(t, follower)
			follower = o.open()
		}
	}
	defer closeLog(t, follower)
	if got := readAll(t, follower, 0, follower.EndOffset(), 1<<20); !bytes.Equal(got, want) {
		t.Fatal("the follower holds other bytes")
	}
	// One that ends below the leader's start is resynchronised whole.
	if err := follower.Reset(leader.segs[2].base); err != nil {
		t.Fatal(err)
	}
	if follower.StartOffset() != leader.segs[2].base || follower.EndOffset() != leader.segs[2].base || follower.Size() != 0 {
		t.Fatal("not empty after Reset")
	}
	closeLog(t, follower)
	follower = o.open()
	defer closeLog(t, follower)
	if follower.EndOffset() != leader.segs[2].base || follower.Damage() != nil {
		t.Fatalf("end %d after reopening, %v", follower.EndOffset(), follower.Damage())
	}
	if err := follower.Append(readAll(t, leader, leader.segs[2].base, leader.EndOffset(), 1<<20)); err != nil {
		t.Fatal(err)
	}
}

func TestCompactedLogsHaveGaps(t *testing.T) {
	cfg := small
	cfg.Compacted = true
	o := onDisk(t, cfg)
	l := o.open()
	var bases []int64
	for base := int64(0); base < 3000; base += 7 {
		bases = append(bases, base)
		if err := l.Append(batchAt(t, base, 1, 2, 120, record.None)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(l *Log) {
		t.Helper()
		for off := int64(0); off < l.EndOffset(); off++ {
			b, err := l.Read(off, l.EndOffset(), 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			h, _ := record.ParseHeader(b)
			if want := (off + 5) / 7 * 7; h.BaseOffset != want {
				t.Fatalf("offset %d: batch %d, want %d", off, h.BaseOffset, want)
			}
		}
	}
	check(l)
	closeLog(t, l)
	l = o.open()
	defer closeLog(t, l)
	check(l)
	if l.EndOffset() != bases[len(bases)-1]+2 {
		t.Fatal(l.EndOffset())
	}
}

func TestReadsBesideAppendFlushAndDeletion(t *testing.T) {
	o := opener{fs: vfs.NewMem(1), dir: "/data/t-0", cfg: small}
	files := NewFiles(o.fs, 16)
	l, err := Open(files, clock.System{}, o.dir, o.cfg, -1, quiet)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	reader := func(seed uint64) {
		defer wg.Done()
		rng := rand.New(rand.NewPCG(seed, 1))
		var buf []byte
		from := int64(0)
		for {
			select {
			case <-done:
				return
			default:
			}
			end := l.EndOffset()
			if rng.IntN(10) == 0 {
				from = l.StartOffset() + rng.Int64N(max(1, end-l.StartOffset()))
			}
			b, err := l.ReadChecked(from, end, 2000, buf)
			var oe *OffsetError
			if errors.As(err, &oe) {
				from = oe.Start
				continue
			}
			if err != nil {
				t.Error(err)
				return
			}
			_ = record.Each(b, func(h record.Header, _ []byte) error { from = h.LastOffset() + 1; return nil })
			buf = b
			if _, _, _, err := l.OffsetForTimestamp(t0+10*from, end); err != nil {
				t.Error(err)
				return
			}
		}
	}
	for i := range 3 {
		wg.Add(1)
		go reader(uint64(i))
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-done:
				return
			default:
			}
			if end, err := l.Flush(); err != nil || end > l.EndOffset() {
				t.Errorf("flush: %d, %v", end, err)
				return
			}
			l.Writeback()
		}
	}()
	for i := range 800 {
		fill(t, l, 1, int32(i/100))
		if i%50 == 49 {
			l.SetStartOffset(l.RetentionStart(time.Now(), Config{RetentionBytes: 30_000}))
			if err := l.Tidy(); err != nil {
				t.Error(err)
			}
		}
	}
	close(done)
	wg.Wait()
	closeLog(t, l)
	if n := files.Open(); n != 0 {
		t.Fatalf("%d files open after Close", n)
	}
}

func TestOpenFilesAreBounded(t *testing.T) {
	o := onDisk(t, small)
	files := NewFiles(o.fs, 20)
	var logs []*Log
	var want [][]byte
	for range 30 {
		o.dir = t.TempDir()
		l, err := Open(files, clock.System{}, o.dir, o.cfg, -1, quiet)
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, l)
		want = append(want, fill(t, l, 50, 1))
		if n := files.Open(); n > 20 {
			t.Fatalf("%d files open", n)
		}
	}
	for i, l := range logs {
		if got := readAll(t, l, 0, l.EndOffset(), 1<<20); !bytes.Equal(got, want[i]) {
			t.Fatal("other bytes")
		}
		flush(t, l)
		if n := files.Open(); n > 20 {
			t.Fatalf("%d files open", n)
		}
	}
	for _, l := range logs {
		closeLog(t, l)
	}
	if n := files.Open(); n != 0 {
		t.Fatalf("%d files open after Close", n)
	}
}

func TestRemoveDeletesTheDirectory(t *testing.T) {
	o := onDisk(t, small)
	l := o.open()
	fill(t, l, 50, 1)
	flush(t, l)
	if err := l.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := o.fs.Stat(o.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	closeLog(t, l)
}

func TestProducerSnapshotsRoundTripAndAreChecked(t *testing.T) {
	fsys := vfs.OS{}
	name := t.TempDir() + "/" + ProducerSnapshotName(42)
	want := []ProducerEntry{{1, 2, 3, 4, 5, 6, 7, 8}, {1 << 40, -1, -1, -1, 0, t0, -1, -1}}
	for _, entries := range [][]ProducerEntry{want, {}} {
		if err := WriteProducerSnapshot(fsys, name, entries); err != nil {
			t.Fatal(err)
		}
		got, err := ReadProducerSnapshot(fsys, name)
		if err != nil || len(got) != len(entries) {
			t.Fatal(got, err)
		}
		for i := range got {
			if got[i] != entries[i] {
				t.Fatalf("%+v", got[i])
			}
		}
	}
	if err := WriteProducerSnapshot(fsys, name, want); err != nil {
		t.Fatal(err)
	}
	raw := mustRead(t, fsys, name)
	var damaged *DamageError
	for i := range raw {
		bad := append([]byte{}, raw...)
		bad[i] ^= 1
		overwrite(t, fsys, name, 0, bad)
		if _, err := ReadProducerSnapshot(fsys, name); !errors.As(err, &damaged) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	if _, err := ReadProducerSnapshot(fsys, name+"x"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}
