package segment

import (
	"bytes"
	"testing"

	"github.com/chronik-go/chronik/internal/vfs"
)

// Deleted files come back one by one when the power fails before the directory is synced: what they hold is below the log
// start, and the holes between them are no end of the log (found by test/sim).
func TestDeletedSegmentsThatComeBackAreNoLog(t *testing.T) {
	holes := 0
	for seed := range uint64(60) {
		mem := vfs.NewMem(seed)
		o := opener{t: t, fs: mem, dir: "/data/t-0", cfg: Config{SegmentBytes: 1 << 10, IndexIntervalBytes: 300}, start: -1}
		if err := vfs.MkdirAllSync(mem, "/data"); err != nil {
			t.Fatal(err)
		}
		l := o.open()
		fill(t, l, 40, 1)
		flush(t, l)
		// The recovery point is not synced: after the cut it may be that of the first flush, of a file since deleted.
		fill(t, l, 40, 1)
		end := flush(t, l)
		start := end - int64(seed%3)*end/4
		l.SetStartOffset(start)
		want := readAll(t, l, start, end, 1<<20)
		if err := l.Tidy(); err != nil {
			t.Fatal(err)
		}
		rep := mem.Crash(seed)
		if rep.NamesKept > 0 && rep.NamesLost > 0 {
			holes++
		}
		o.start = start
		l = o.open()
		if l.Damage() != nil || l.StartOffset() != start || l.EndOffset() != end {
			t.Fatalf("seed %d: log from %d to %d, want %d to %d; %v", seed, l.StartOffset(), l.EndOffset(), start, end, l.Damage())
		}
		if got := readAll(t, l, start, end, 1<<20); !bytes.Equal(got, want) {
			t.Fatalf("seed %d: other records than before", seed)
		}
		fill(t, l, 5, 2)
		if flush(t, l) <= end {
			t.Fatal("nothing more was written")
		}
		closeLog(t, l)
	}
	if holes == 0 {
		t.Fatal("no cut kept some deletions and lost others")
	}
}
