package segment

import (
	"errors"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// TestAGapAboveTheHolesIsDamage: compaction makes gaps legal where it has been, and nowhere else.
func TestAGapAboveTheHolesIsDamage(t *testing.T) {
	o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: small, start: 0}
	l, m := compacted(t, o, "a", "b", "a")
	defer closeLog(t, l)
	clean(t, l, m.options(time.Now(), NewOffsetMap(1<<16)))
	var wrong *SequenceError
	if err := l.Append(batchAt(t, 5, 1, 1, 80, record.None)); !errors.As(err, &wrong) {
		t.Fatalf("a gap from 3 to 5: %v", err)
	}
	if err := l.Advance(7); !errors.As(err, &wrong) {
		t.Fatalf("advanced: %v", err)
	}
	if err := l.AllowHoles(7, 2); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(batchAt(t, 5, 1, 1, 80, record.None)); err != nil {
		t.Fatal(err)
	}
	if err := l.Advance(7); err != nil || l.EndOffset() != 7 {
		t.Fatal(err, l.EndOffset())
	}
	flush(t, l)
	closeLog(t, l)
	l = o.open()
	defer closeLog(t, l)
	if p := l.CleanPoint(); l.EndOffset() != 7 || p.Horizon != 2 || l.Damage() != nil {
		t.Fatalf("ends at %d, %+v, %v", l.EndOffset(), p, l.Damage())
	}
	wantOffsets(t, l, 1, 2, 5)
}

// TestALogFilledFromACompactedOneBeginsWhereThatDoes: the front of the other log is compacted away, so that the first batch lies above
// the start, or there is none at all. The log goes on beginning at its start, also after a restart: what the other replicas serve it serves.
func TestALogFilledFromACompactedOneBeginsWhereThatDoes(t *testing.T) {
	for name, tc := range map[string]struct {
		base   int64 // of the only batch, -1: none
		hollow int64
	}{
		"the first batch lies above the start": {2, 3},
		"no batch is left":                     {-1, 7},
		"far from the start":                   {1 << 33, 1<<33 + 1},
	} {
		t.Run(name, func(t *testing.T) {
			o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: small, start: 0}
			l := o.open()
			if err := l.AllowHoles(tc.hollow, 0); err != nil {
				t.Fatal(err)
			}
			if tc.base >= 0 {
				if err := l.Append(batchAt(t, tc.base, 1, 1, 80, record.None)); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Advance(tc.hollow); err != nil {
				t.Fatal(err)
			}
			flush(t, l)
			for range 2 {
				if l.StartOffset() != 0 || l.EndOffset() != tc.hollow || l.Damage() != nil {
					t.Fatalf("log from %d to %d, want 0 to %d; %v", l.StartOffset(), l.EndOffset(), tc.hollow, l.Damage())
				}
				if b, err := l.Read(0, l.EndOffset(), 1<<10, nil); err != nil || (len(b) > 0) != (tc.base >= 0) {
					t.Fatalf("read from the start: %d bytes, %v", len(b), err)
				}
				closeLog(t, l)
				l = o.open()
			}
			closeLog(t, l)
		})
	}
}

// TestAPowerCutMakesNoHole: what compaction may leave out is known of what was flushed. Above that a gap is a file whose bytes were lost with
// the power, although gaps are allowed there, for a delta that was to come: the log ends at the gap, and what is missing comes again
// (simulator, seed 1826).
func TestAPowerCutMakesNoHole(t *testing.T) {
	for name, durable := range map[string]int64{"nothing is flushed": 0, "a part is flushed": 1} {
		t.Run(name, func(t *testing.T) {
			o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/t-0", cfg: small, start: 0}
			l := o.open()
			var end int64
			for ; l.Segments() < 4; end++ {
				if err := l.Append(batchAt(t, end, 1, 1, 80, record.None)); err != nil {
					t.Fatal(err)
				}
			}
			bases := l.Bases(0, end)
			if err := l.AllowHoles(1000, 0); err != nil {
				t.Fatal(err)
			}
			closeLog(t, l)
			lost := bases[1]
			if durable > lost {
				t.Fatalf("segments begin at %v", bases)
			}
			truncate(t, o.fs, l.file(fileName(lost, logExt)), 0) // a name that was kept, and bytes that were not
			_ = o.fs.Remove(o.dir + "/" + pointFile)
			l, err := OpenDurable(NewFiles(o.fs, 64), clock.System{}, o.dir, o.cfg, 0, durable, quiet)
			if err != nil {
				t.Fatal(err)
			}
			defer closeLog(t, l)
			if l.EndOffset() != lost || l.Damage() != nil || len(l.Lost()) > 0 {
				t.Fatalf("the log ends at %d, its second segment, of which nothing is left, began at %d; damage %v, lost %v", l.EndOffset(), lost, l.Damage(), l.Lost())
			}
		})
	}
}
