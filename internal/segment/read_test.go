package segment

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

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
	o := onDisk(t, small)
	l := o.open()
	if err := l.AllowHoles(3000, 0); err != nil {
		t.Fatal(err)
	}
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
