package wal

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// Without the anchor it is what later blocks say to be durable that tells damage from a torn tail, also in the last file: a
// block that is bad below another that vouches for it is no unfinished write.
func TestDamageBelowALaterBlockIsNotATornTail(t *testing.T) {
	harmed := 0
	for seed := range uint64(1 + *crashSeeds/5) {
		img, m := settledLog(t, seed, seed%2 == 0)
		delete(img, anchorName)
		if n := openDamaged(t, img.clone(), m, true); n != 0 {
			t.Fatalf("seed %d: an undamaged log has %d damaged groups", seed, n)
		}
		blocks := map[string][]int64{} // of each file, those with records; behind them lies one that says that all is durable
		disk := img.disk(t, "/data/wal")
		if err := Scan(disk, "/data/wal", func(r Record) error {
			if r.Bad == "" && (len(blocks[r.File]) == 0 || blocks[r.File][len(blocks[r.File])-1] != r.Block) {
				blocks[r.File] = append(blocks[r.File], r.Block)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		last := slices.Max(slices.Collect(maps.Keys(blocks)))
		rng := rand.New(rand.NewPCG(seed, 79))
		for run := range 20 {
			bad := img.clone()
			off := blocks[last][rng.IntN(len(blocks[last]))] + rng.Int64N(frameSize+16) // its frame, or the head of its directory
			bad[filepath.Base(last)][off] ^= 1 << rng.IntN(8)
			t.Run(fmt.Sprintf("seed %d run %d: byte %d of %s", seed, run, off, last), func(t *testing.T) {
				if openDamaged(t, bad, m, true) != 0 {
					harmed++
				}
			})
			if t.Failed() {
				return
			}
		}
	}
	if harmed < 40 {
		t.Errorf("only %d logs were harmed", harmed)
	}
}

// Raft panics ("to_commit is out of range") over a commit index above the last entry. Whatever a hard state says, a restart does
// not hand it one.
func TestCommitNeverExceedsTheLog(t *testing.T) {
	o := testOptions(t)
	l := mustOpen(t, o)
	if _, err := l.Create(1, firstState(), nil); err != nil {
		t.Fatal(err)
	}
	l.Append(Write{Group: 1, Entries: entries(2, 9, 1, 10), HardState: raftpb.HardState{Term: 1, Commit: 50}, Sync: true})
	drain(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	defer l.Close()
	if g := l.Group(1); g.HardState().Commit != 9 || g.LastIndex() != 9 {
		t.Errorf("commit %d, last index %d, want 9", g.HardState().Commit, g.LastIndex())
	}
}
