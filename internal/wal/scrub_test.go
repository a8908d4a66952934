package wal

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/chronik-go/chronik/internal/vfs"
)

func scrubAll(t *testing.T, l *Log) (hits []Hit, bytes int64) {
	t.Helper()
	for s := l.Scrub(); ; {
		out, err := s.Step(64 << 10)
		if err != nil {
			t.Fatal(err)
		}
		hits, bytes = append(hits, out.Hits...), bytes+out.Bytes
		if out.Done {
			return hits, bytes
		}
	}
}

// threeGroups opens a log with groups 1 to 3 on a disk in memory.
func threeGroups(t *testing.T) (*vfs.Mem, Options, *Log) {
	t.Helper()
	fs := vfs.NewMem(1)
	o := simOptions(fs)
	l := mustOpen(t, o)
	t.Cleanup(func() { l.Close() })
	for id := uint64(1); id <= 3; id++ {
		if _, err := l.Create(id, firstState(), nil); err != nil {
			t.Fatal(err)
		}
	}
	return fs, o, l
}

// The scrubber finds, in a log that runs, every flipped bit that a restart would stumble over, and names the groups it hit.
func TestScrubFindsWhatARestartWould(t *testing.T) {
	flips := 300
	if n, err := strconv.Atoi(os.Getenv("CHRONIK_DAMAGE_FLIPS")); err == nil {
		flips = n
	}
	fs, o, l := threeGroups(t)
	rng := rand.New(rand.NewPCG(3, 3))
	last := map[uint64]uint64{1: 1, 2: 1, 3: 1}
	for i := range 120 {
		id := uint64(i%3 + 1)
		to := last[id] + 1 + rng.Uint64N(4)
		l.Append(Write{Group: id, Entries: entries(last[id]+1, to, 1, 200+rng.IntN(1500)), Sync: true})
		last[id] = to
		if i%20 == 19 && id != 2 {
			l.Checkpoint(id, Checkpoint{Index: to - 3, Term: 1, ConfState: firstState().ConfState, State: []byte("state")}, nil)
		}
		for l.Step() {
		}
		for l.StepBackground() {
		}
	}
	if hits, bytes := scrubAll(t, l); len(hits) > 0 || bytes < 100<<10 {
		t.Fatalf("a sound log: %d bytes read, hits %+v", bytes, hits)
	}
	type place struct {
		name string
		to   int64
	}
	var where []place
	for _, f := range l.files.list {
		to := f.end.Load()
		if to == 0 {
			to = pos(l.durHint.Load()).off()
		}
		where = append(where, place{f.name, to})
	}
	found := 0
	for range flips {
		p := where[rng.IntN(len(where))]
		at, bit := headerSize+rng.Int64N(p.to-headerSize), uint(rng.IntN(8))
		if err := fs.FlipBit(p.name, at, bit); err != nil {
			t.Fatal(err)
		}
		hits, _ := scrubAll(t, l)
		rep, err := Verify(fs, o.Dir)
		if err != nil {
			t.Fatal(err)
		}
		named := map[uint64]bool{}
		for _, h := range hits {
			named[h.Group] = true
		}
		if rep.Corrupt != nil && len(hits) == 0 {
			t.Fatalf("%s byte %d: a restart says %v, the scrubber nothing", filepath.Base(p.name), at, rep.Corrupt)
		}
		for _, g := range rep.Groups {
			if g.Damage != nil && len(hits) == 0 {
				t.Fatalf("%s byte %d: a restart finds group %d damaged (%s), the scrubber nothing", filepath.Base(p.name), at, g.Group, g.Damage.Reason)
			}
		}
		if len(hits) > 0 {
			found++
		}
		if err := fs.FlipBit(p.name, at, bit); err != nil {
			t.Fatal(err)
		}
	}
	if found < flips/3 {
		t.Fatalf("%d of %d flips found: too few to prove anything", found, flips)
	}
	t.Logf("%d of %d flips found; the others lie in padding", found, flips)
}

// Groups share blocks. What is damaged of one group's record is that group's loss alone: a node whose metadata is said to be damaged stops,
// and must be emptied.
func TestScrubBlamesTheGroupWhoseRecordIsDamaged(t *testing.T) {
	fs, o, l := threeGroups(t)
	for l.Step() {
	}
	for id := uint64(1); id <= 3; id++ { // in one block, each with a hard state and a checkpoint
		l.Append(Write{Group: id, Entries: entries(2, 4, 1, 100), Sync: true})
		l.Checkpoint(id, Checkpoint{Index: 3, Term: 1, ConfState: firstState().ConfState, State: []byte("state")}, nil)
	}
	for l.Step() {
	}
	var records []Record
	if err := Scan(fs, o.Dir, func(r Record) error {
		if r.Bytes > 0 {
			records = append(records, r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	blocks := map[int64]map[uint64]bool{}
	blamed := 0
	for _, r := range records {
		flip := func() {
			if err := fs.FlipBit(r.File, r.Offset+int64(r.Bytes)/2, 1); err != nil {
				t.Fatal(err)
			}
		}
		flip()
		hits, _ := scrubAll(t, l)
		flip()
		if len(hits) == 0 {
			t.Errorf("%s of group %d: not found", r.Kind, r.Group)
		}
		for _, h := range hits {
			if h.Group != 0 && h.Group != r.Group {
				t.Errorf("%s of group %d at %d: group %d is blamed: %s", r.Kind, r.Group, r.Offset, h.Group, h.Damage.Reason)
			}
			if h.Group == r.Group {
				blamed++
			}
		}
		if r.Kind == KindCheckpoint || r.Kind == KindCreate {
			if at := l.Group(r.Group).w.cpPos.off(); blocks[at] == nil {
				blocks[at] = map[uint64]bool{r.Group: true}
			} else {
				blocks[at][r.Group] = true
			}
		}
	}
	shared := false
	for _, groups := range blocks {
		shared = shared || len(groups) > 1
	}
	if !shared || blamed < 3 {
		t.Fatalf("no two checkpoints share a block, or nothing was blamed (%d): this proves nothing; %v", blamed, blocks)
	}
}
