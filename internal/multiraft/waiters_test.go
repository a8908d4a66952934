package multiraft

import (
	"errors"
	"testing"
)

// A proposal that a snapshot jumped over may be in what the snapshot holds: nobody may call it lost, or the producer would write
// it again.
func TestProposalUnderASnapshotIsUnknown(t *testing.T) {
	var l waiterList
	got := map[uint64]error{}
	l.list = []waiter{{index: 5, term: 2}, {index: 6, term: 2}, {index: 9, term: 2}, {index: 10, term: 4}}
	for i := range l.list {
		index := l.list[i].index
		l.list[i].single = func(err error) { got[index] = err }
	}
	l.covered(6, 3)
	for _, index := range []uint64{5, 6} {
		if !errors.Is(got[index], ErrUnknownOutcome) {
			t.Errorf("index %d, below the snapshot: %v", index, got[index])
		}
	}
	if !errors.Is(got[9], ErrNotLeader) {
		t.Errorf("index 9 of term 2, above a snapshot of term 3: %v", got[9])
	}
	if err, ok := got[10]; ok {
		t.Errorf("index 10 of term 4 may yet be committed: %v", err)
	}
}
