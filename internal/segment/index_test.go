package segment

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// TestSearchFileFindsTheLastEntryNotAbove compares with a walk over the entries, for files below, at and far above what one
// read takes.
func TestSearchFileFindsTheLastEntryNotAbove(t *testing.T) {
	mem := vfs.NewMem(1)
	if err := mem.MkdirAll("/d"); err != nil {
		t.Fatal(err)
	}
	files, dir := NewFiles(mem, 16), "/d"
	for _, n := range []int{0, 1, 2, 3, searchBlock/indexEntrySize - 1, searchBlock / indexEntrySize, searchBlock/indexEntrySize + 1, 5000} {
		s := files.slot(&dir, int64(n), indexExt)
		var b []byte
		for i := range n {
			b = indexEntry{rel: uint32(3*i + 2), pos: uint32(i)}.append(b)
		}
		if err := writeSlot(&s, true, b, 0); err != nil {
			t.Fatal(err)
		}
		for rel := uint32(0); rel < uint32(3*n+5); rel++ {
			var got [indexEntrySize]byte
			found, err := searchFile(&s, int64(len(b)), got[:], func(b []byte) bool { return decodeIndexEntry(b).rel > rel })
			if err != nil {
				t.Fatal(err)
			}
			want := min(int(rel+1)/3, n) // entries that are not above
			if found != (want > 0) || found && decodeIndexEntry(got[:]).pos != uint32(want-1) {
				t.Fatalf("%d entries, %d sought: %v %+v, want entry %d", n, rel, found, decodeIndexEntry(got[:]), want-1)
			}
		}
		s.closeIdle()
	}
	s := files.slot(&dir, 5000, indexExt)
	if _, err := searchFile(&s, 8*6000, make([]byte, 8), func([]byte) bool { return false }); err == nil {
		t.Fatal("a file shorter than it was is no error")
	}
	s.closeIdle()
}

// TestAppendsGoOnWhileAnIndexIsBuilt: a sealed segment's index is missing, and what looks for it has the whole segment to read.
func TestAppendsGoOnWhileAnIndexIsBuilt(t *testing.T) {
	mem := vfs.NewMem(1)
	o := opener{t: t, fs: mem, dir: "/data/t-0", cfg: small}
	l := o.open()
	fill(t, l, 100, 1)
	if l.Segments() < 2 {
		t.Fatal("one segment")
	}
	closeLog(t, l)
	if err := mem.Remove(filepath.Join(o.dir, fileName(0, indexExt))); err != nil {
		t.Fatal(err)
	}
	l = o.open()
	defer closeLog(t, l)
	first, read := fileName(0, logExt), false
	mem.SetHook(func(op vfs.Op, name string, _ time.Duration) {
		if op != vfs.OpRead || filepath.Base(name) != first {
			return
		}
		mem.SetHook(nil)
		read = true
		done := make(chan error, 1)
		go func() { done <- l.Append(batchAt(t, l.EndOffset(), 1, 1, 10, record.None)) }()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("an append waits for the index of a sealed segment")
		}
	})
	if _, _, _, err := l.OffsetForTimestamp(1, l.EndOffset()); err != nil || !read {
		t.Fatal(err, read)
	}
	readAll(t, l, 0, l.EndOffset(), 1000)
}

// TestScrubGoesOnPastAWrongIndexThatIsGone: a segment is deleted while it is scrubbed, after its index was found wrong.
func TestScrubGoesOnPastAWrongIndexThatIsGone(t *testing.T) {
	mem := vfs.NewMem(1)
	o := opener{t: t, fs: mem, dir: "/data/t-0", cfg: small}
	l := o.open()
	defer closeLog(t, l)
	fill(t, l, 100, 1)
	flush(t, l)
	bases := l.Bases(0, l.EndOffset())
	if err := mem.FlipBit(filepath.Join(o.dir, fileName(0, indexExt)), 7, 0); err != nil || len(bases) < 2 {
		t.Fatal(err, bases)
	}
	c := l.Scrub()
	out, err := c.Step(1)
	l.SetStartOffset(bases[1])
	if err == nil {
		err = l.Tidy()
	}
	for err == nil && !out.Done {
		if out, err = c.Step(1); len(out.Lost) > 0 {
			t.Errorf("%+v", out.Lost)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}
