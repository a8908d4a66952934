package partition

import (
	"errors"
	"slices"
	"testing"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/transport"
)

// What a follower is sent to catch up goes into its segments before raft has a say: only sound batches, of the range asked for,
// without a gap. Whatever is wrong with a chunk whose own sum is right ends the attempt and leaves nothing behind.
func TestDeltaChunksAreChecked(t *testing.T) {
	flip := func(b []byte, at int) []byte {
		b = slices.Clone(b)
		b[at] ^= 1
		return b
	}
	for _, tc := range []struct {
		name    string
		chunk   func(all []byte, sizes []int) []byte
		promise int64
	}{
		{"a record differs", func(all []byte, sizes []int) []byte { return flip(all[:sizes[0]], sizes[0]-3) }, 0},
		{"the second batch differs", func(all []byte, sizes []int) []byte { return flip(all[:sizes[0]+sizes[1]], sizes[0]+sizes[1]-3) }, 0},
		{"a batch is left out", func(all []byte, sizes []int) []byte {
			return append(slices.Clone(all[:sizes[0]]), all[sizes[0]+sizes[1]:sizes[0]+sizes[1]+sizes[2]]...)
		}, 0},
		{"fewer than promised", func(all []byte, sizes []int) []byte { return all[:sizes[0]] }, 1},
		{"half a batch at the end", func(all []byte, sizes []int) []byte { return all[:sizes[0]+sizes[1]-1] }, 0},
		{"more than was asked for", func(all []byte, _ []int) []byte { return all }, 0},
		{"later than was asked for", func(all []byte, sizes []int) []byte { return all[sizes[0] : sizes[0]+sizes[1]] }, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t, 2, nil)
			c.elect(0, false)
			c.fill(4)
			c.drop = func(transport.Envelope) int { return 0 } // the test speaks for the leader
			f := c.nodes[1]
			_, r := c.stage(1, 0)
			c.fill(4)
			c.settle()
			f.p.stageMu.Lock()
			session := f.p.stage.session
			f.p.stageMu.Unlock()
			all := c.leader.from(0)
			var sizes []int
			if err := record.Each(all, func(h record.Header, _ []byte) error { sizes = append(sizes, h.Size()); return nil }); err != nil {
				t.Fatal(err)
			}
			bad := deltaChunk{status: chunkOK, last: true, session: session, batches: tc.chunk(all, sizes)}
			if end, err := batchesEnd(bad.batches); err == nil {
				bad.end = end + tc.promise
			} else {
				bad.end = 1
			}
			f.p.Receive(transport.Envelope{Kind: transport.KindDeltaChunk, Body: bad.encode()}, c.peer(1, 0))
			c.settle()
			if r.n != 1 || !errors.Is(r.err, errDelta) {
				t.Errorf("staging: %d answers, %v", r.n, r.err)
			}
			if end := f.p.EndOffset(); end != 0 {
				t.Errorf("the follower's segments end at %d", end)
			}
			c.drop = nil
			snap, again := c.stage(1, 0)
			c.fetched(again)
			if err := f.install(snap); err != nil {
				t.Fatal(err)
			}
			c.agree()
		})
	}
}
