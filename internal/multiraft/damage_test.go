package multiraft

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strings"
	"testing"
)

// Rule 8: a replica whose log lost what was durable neither votes nor leads. The others go on while they are a majority, and
// stop when they are not, rather than take its word.
func TestDamagedLogFencesTheReplica(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	const needle = "needle-0123456789"
	c.mustPropose(l, needle)
	want := []string{needle}
	for i := range 20 {
		want = append(want, strings.Repeat("x", 100+i))
		c.mustPropose(l, want[len(want)-1])
	}
	c.expect(want...)
	f := c.others(l)[0]
	n := c.nodes[f]
	c.stop(f)
	spoil(t, n, needle)
	c.restart(f)
	c.settle()
	if !c.replica(f).Fenced() {
		t.Fatal("the replica takes part with a damaged log")
	}
	c.mustPropose(c.leader(), "the others go on")
	c.kill(c.others(l)[1])
	c.tick(60)
	for _, id := range c.order {
		if !c.nodes[id].down && c.replica(id).Status().IsLeader {
			t.Fatalf("node %d leads with the vote of a damaged replica", id)
		}
	}
}

// Entries that are not committed yet are read from the file after a restart, by raft itself, which panics if that fails: what it panics for is
// damage, and the replica is to be replaced as any other whose log is damaged (simulator, seed 4514).
func TestDamageThatRaftReadsFencesAsDamage(t *testing.T) {
	fenced := map[int32]error{}
	c := newCluster(t, 3, func(c *cluster) {
		c.tune = func(cfg *Config) {
			id := cfg.NodeID
			cfg.OnFence = func(_ *Replica, err error) { fenced[id] = err }
		}
	})
	l := c.leader()
	others := c.others(l)
	c.expect()
	for _, id := range others {
		c.kill(id)
	}
	const needle = "needle-0123456789"
	for i := range 5 {
		c.propose(l, fmt.Sprintf("%s %d", needle, i))
	}
	c.settle()
	c.stop(l)
	c.restart(l)
	spoil(t, c.nodes[l], needle)
	c.restart(others[0])
	c.campaign(l)
	for range 60 {
		if c.tick(1); fenced[l] != nil {
			break
		}
	}
	var damaged *DamagedError
	if !errors.As(fenced[l], &damaged) || len(fenced) != 1 {
		t.Fatalf("fenced: %v", fenced)
	}
}

// spoil flips a bit where a node's log holds text.
func spoil(t *testing.T, n *simNode, text string) {
	t.Helper()
	names, err := n.fs.List(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		f, err := n.fs.Open(path.Join(n.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size, err := f.Size()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, size)
		if size > 0 {
			if _, err := f.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
		if i := bytes.Index(b, []byte(text)); i >= 0 {
			if err := n.fs.FlipBit(path.Join(n.dir, name), int64(i)+3, 2); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("the log does not hold the text")
}
