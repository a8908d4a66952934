package partition

import (
	"errors"
	"testing"

	"github.com/chronik-go/chronik/internal/multiraft"
)

// What was decided from one term's state must not enter the log in another, though the same replica leads again.
func TestBatchBoundToATermIsRefusedInAnother(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	p := c.leader.p
	term := p.Leading()
	var got []error
	produce := func(term uint64) {
		p.ProduceIn(term, makeBatch(t, batchSpec{}), func(r ProduceResult) { got = append(got, r.Err) })
		c.propose(false)
		c.flow()
	}
	produce(term)
	c.elect(0, false)
	if p.Leading() <= term {
		t.Fatalf("term %d after %d", p.Leading(), term)
	}
	end := p.EndOffset()
	produce(term)
	produce(p.Leading())
	if len(got) != 3 || got[0] != nil || !errors.Is(got[1], multiraft.ErrNotLeader) || got[2] != nil {
		t.Fatalf("%v", got)
	}
	if p.EndOffset() != end+1 {
		t.Errorf("the log ends at %d, before it was %d", p.EndOffset(), end)
	}
}
