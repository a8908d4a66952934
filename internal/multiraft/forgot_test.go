package multiraft

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chronik-go/chronik/internal/vfs"
)

// spoilEnd changes a bit in the last page of a log that was written, and takes its anchor away: what is left looks like a log whose last write
// a power cut has interrupted.
func spoilEnd(t *testing.T, fs *vfs.Mem, dir string) {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	slices.Reverse(names)
	for _, name := range names {
		if !strings.HasSuffix(name, ".wal") {
			continue
		}
		name = filepath.Join(dir, name)
		b, err := vfs.ReadFile(fs, name, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		for at := len(b) - 1; at >= 4096; at-- {
			if b[at] != 0 {
				if err := errors.Join(fs.FlipBit(name, int64(at), 0), fs.Remove(filepath.Join(dir, "DURABLE"))); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
	}
	t.Fatal("nothing is written in the log")
}

// A bit changes in the last block of a log, and the anchor that would tell was lost with the power: a restart takes the block for a torn
// write. The leader knows better, and the replica is to be replaced instead of panicking (simulator, seed 1479).
func TestAReplicaThatForgotWhatItAcknowledgedIsFencedAsDamaged(t *testing.T) {
	fenced := map[int32]error{}
	c := newCluster(t, 3, func(c *cluster) {
		c.tune = func(cfg *Config) {
			id := cfg.NodeID
			cfg.OnFence = func(_ *Replica, err error) { fenced[id] = err }
		}
	})
	l := c.leader()
	f := c.others(l)[0]
	var want []string
	for i := range 5 {
		want = append(want, fmt.Sprint("entry ", i))
		c.mustPropose(l, want[i])
	}
	c.expect(want...)
	had := c.nodes[f].log.Group(testGroup).LastIndex()
	c.kill(f)
	spoilEnd(t, c.nodes[f].fs, c.nodes[f].dir)
	c.restart(f)
	if now := c.nodes[f].log.Group(testGroup).LastIndex(); now >= had || c.nodes[f].log.Group(testGroup).Damage() != nil {
		t.Fatalf("the log ended at %d and ends at %d, damage %v: nothing was forgotten without a trace", had, now, c.nodes[f].log.Group(testGroup).Damage())
	}
	for range 20 {
		if c.tick(1); fenced[f] != nil {
			break
		}
	}
	var damaged *DamagedError
	if !errors.As(fenced[f], &damaged) || len(fenced) != 1 {
		t.Fatalf("fenced: %v", fenced)
	}
	// It has no say after a restart either, whether or not there is a leader to tell it again.
	c.kill(f)
	for _, id := range c.others(f) {
		c.kill(id)
	}
	c.restart(f)
	c.settle()
	if !c.replica(f).Fenced() {
		t.Error("after a restart it takes part")
	}
	for _, id := range c.others(f) {
		c.restart(id)
	}
	c.tick(50)
	l = c.leader()
	c.mustPropose(l, "one more")
	for _, id := range c.others(f) {
		for i := 0; i < 30 && len(c.sm(id).list()) <= len(want); i++ {
			c.tick(1)
		}
		if got := c.sm(id).list(); !slices.Equal(got, append(slices.Clone(want), "one more")) {
			t.Errorf("node %d applied %q", id, got)
		}
	}
}
