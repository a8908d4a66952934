package segment

import (
	"testing"

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
