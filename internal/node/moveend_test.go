package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// deposed is a leader that the others have replaced, unless err is nil.
type deposed struct {
	err  error
	term uint64
}

func (d deposed) Confirm(done func(error)) { done(d.err) }
func (d deposed) Term() uint64             { return d.term }

// The controller hears from a leader that a quorum has confirmed, in the term in which it saw its group where it is to be, and from no
// other: replicas are deleted on that word.
func TestOnlyAConfirmedLeaderEndsAChange(t *testing.T) {
	topic := &metadata.Topic{Name: "t"}
	part := &metadata.Partition{Group: 7, Change: &metadata.Change{Target: []uint64{1, 2, 3}}}
	for name, c := range map[string]struct {
		leader leader
		told   bool
	}{
		"it leads":                      {deposed{nil, 4}, true},
		"it does not and does not know": {deposed{errors.New("no quorum"), 4}, false},
		"it is not the leader any more": {deposed{&multiraft.NotLeaderError{Group: 7}, 5}, false},
		"it leads again, in a new term": {deposed{nil, 5}, false},
	} {
		core := &Core{ctx: context.Background(), log: slog.New(slog.DiscardHandler)}
		core.env.Clock = clock.System{}
		m := newMover(core)
		told := false
		m.endChange = func(context.Context, uint64, uint64, []uint64) error {
			told = true
			return nil
		}
		m.end([]ended{{metadata.PartitionRef{Topic: topic, Partition: part}, c.leader, 4}})
		core.tasks.Wait()
		if told != c.told {
			t.Errorf("%s: told %v", name, told)
		}
	}
}

// A group whose leader can't be confirmed does not keep the ends of others' changes from the controller.
func TestEndsOfChangesDoNotWaitForEachOther(t *testing.T) {
	core := &Core{ctx: context.Background(), log: slog.New(slog.DiscardHandler)}
	core.env.Clock = clock.System{}
	m := newMover(core)
	var told []uint64
	m.endChange = func(_ context.Context, group, _ uint64, _ []uint64) error {
		told = append(told, group)
		if group == 8 {
			return errors.New("refused")
		}
		return nil
	}
	of := func(group uint64, err error) ended {
		part := &metadata.Partition{Group: group, Change: &metadata.Change{Target: []uint64{1, 2, 3}}}
		return ended{metadata.PartitionRef{Topic: &metadata.Topic{Name: "t"}, Partition: part}, deposed{err, 4}, 4}
	}
	m.end([]ended{of(7, errors.New("no quorum")), of(8, nil), of(9, nil)})
	core.tasks.Wait()
	if !slices.Equal(told, []uint64{8, 9}) {
		t.Errorf("the controller was told of groups %v", told)
	}
}
