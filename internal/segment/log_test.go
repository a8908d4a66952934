package segment

import (
	"bytes"
	"errors"
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
	l := onDisk(t, Config{SegmentAge: time.Minute}).open()
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

// With jitter segments end before their time, each by another part of it, and the same ones whenever they are asked.
func TestJitterSpreadsTheEndsOfSegments(t *testing.T) {
	cfg := Config{SegmentAge: time.Hour, SegmentJitter: 10 * time.Minute}
	l := onDisk(t, cfg).open()
	defer closeLog(t, l)
	ages := map[time.Duration]bool{}
	for base := range int64(100) {
		s := &segment{base: base}
		age := l.ageOf(s, cfg)
		if age <= 50*time.Minute || age > time.Hour || age != l.ageOf(s, cfg) {
			t.Fatalf("the segment at %d ends at %v", base, age)
		}
		ages[age] = true
		if more := l.ageOf(s, Config{SegmentAge: time.Second, SegmentJitter: time.Hour}); more <= 0 || more > time.Second {
			t.Fatalf("with more jitter than age it ends at %v", more)
		}
	}
	if len(ages) < 90 {
		t.Errorf("%d ages of 100 segments", len(ages))
	}
	b := record.NewBuilder()
	add := func(base, ts int64) {
		t.Helper()
		b.BaseOffset = base
		b.Add(ts, nil, []byte("v"))
		out, err := b.Build()
		if err == nil {
			err = l.Append(out)
		}
		if err != nil {
			t.Fatal(err)
		}
		b = record.NewBuilder()
	}
	add(0, t0)
	age := l.ageOf(l.segs[0], cfg)
	if add(1, t0+age.Milliseconds()); l.Segments() != 1 {
		t.Fatal("it ended too early")
	}
	if add(2, t0+age.Milliseconds()+1); l.Segments() != 2 {
		t.Fatal("it did not end in its time")
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
	byTime := l.RetentionStart(now, Config{RetentionAge: time.Duration(5*end) * time.Millisecond})
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
	if got := l.RetentionStart(now.Add(time.Hour), Config{RetentionAge: time.Minute}); got != end {
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
	if e, end := l.EpochEnd(3); e != -1 || end != -1 || l.latestEpoch() != -1 {
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
		}{{1, 1, 0}, {2, 2, ends[2]}, {3, 3, ends[3]}, {5, 3, ends[3]}, {7, 7, ends[7]}, {9, 7, ends[7]}, {-1, -1, -1}, {-2, -2, 0}} {
			if e, end := l.EpochEnd(c.ask); e != c.epoch || end != c.end {
				t.Errorf("epoch %d: %d ends at %d, want %d at %d", c.ask, e, end, c.epoch, c.end)
			}
		}
		if l.latestEpoch() != 7 {
			t.Error(l.latestEpoch())
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

// TestADiscardedLogIsNotFlushed: what is to be deleted costs no sync, and keeps no file open.
func TestADiscardedLogIsNotFlushed(t *testing.T) {
	mem := vfs.NewMem(1)
	o := opener{t: t, fs: mem, dir: "/data/t-0", cfg: small}
	files := NewFiles(mem, 64)
	l, err := Open(files, clock.System{}, o.dir, o.cfg, 0, quiet)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, l, 50, 1)
	before := mem.Stats()
	l.Discard()
	if after := mem.Stats(); after.Syncs != before.Syncs || after.DirSyncs != before.DirSyncs || files.Open() != 0 {
		t.Errorf("%d syncs, %d of directories; %d files are open", after.Syncs-before.Syncs, after.DirSyncs-before.DirSyncs, files.Open())
	}
	if err := l.Append(batchAt(t, l.EndOffset(), 1, 1, 10, record.None)); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	closeLog(t, l)
}
