package multiraft

import (
	"bytes"
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
