package consumer

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// classicJoin is a join by the classic protocol.
func classicJoin(id string, owned []int32, topics ...string) *ClassicJoin {
	meta := kmsg.ConsumerMemberMetadata{Version: 2, Topics: topics}
	if owned != nil {
		meta.OwnedPartitions = []kmsg.ConsumerMemberMetadataOwnedPartition{{Topic: topics[0], Partitions: owned}}
	}
	return &ClassicJoin{Member: id, SessionTimeout: 10_000, RebalanceTimeout: 10_000, Protocols: []Protocol{{"range", meta.AppendTo(nil)}}}
}

func (w *world) joinClassic(j *ClassicJoin) (Answer, error) {
	ch := &Change{}
	a, err := w.g.JoinClassic(ch, w.env, j)
	if err != nil && len(ch.Records) > 0 {
		w.t.Fatalf("refused with %v, and %d records", err, len(ch.Records))
	}
	w.write(ch)
	return a, err
}

// was is a member of a classic group, which had partitions of topic t1.
func was(id string, partitions ...int32) ClassicMember {
	j := classicJoin(id, nil, "t1")
	a := kmsg.ConsumerMemberAssignment{Version: 1, Topics: []kmsg.ConsumerMemberAssignmentTopic{{Topic: "t1", Partitions: partitions}}}
	return ClassicMember{Member{ID: id, RebalanceTimeout: 10_000, Classic: &Classic{SessionTimeout: 10_000, Protocols: j.Protocols}}, a.AppendTo(nil)}
}

func TestUpgradedMembersKeepWhatTheyOwn(t *testing.T) {
	w := newWorld(t, topic(1, 4))
	ch := &Change{}
	// The leader was mistaken: partition 1 has two owners, and partition 9 does not exist.
	if err := w.g.Upgrade(ch, w.env, 7, []ClassicMember{was("a", 1, 0), was("b", 1, 2, 3)}); err != nil {
		t.Fatal(err)
	}
	w.write(ch)
	w.reload()
	a, b := w.g.Current("a"), w.g.Current("b")
	if !a.Assigned.Equal(parts(1, 0, 1)) || !b.Assigned.Equal(parts(1, 2, 3)) || a.Epoch != 7 || w.g.Epoch() != 7 || w.g.State() != "Stable" || !w.g.AllClassic() {
		t.Fatalf("%+v %+v, epoch %d, %s", a, b, w.g.Epoch(), w.g.State())
	}
	if r, err := w.joinClassic(classicJoin("a", []int32{0, 1}, "t1")); err != nil || r.Epoch != 8 || !r.Assignment.Equal(a.Assigned) {
		t.Errorf("%+v, %v", r, err)
	}
	generation, members := w.g.Downgrade(w.env)
	var back kmsg.ConsumerMemberAssignment
	if err := back.ReadFrom(members[1].Assignment); err != nil || generation != 8 || len(members) != 2 || len(back.Topics) != 1 || len(back.Topics[0].Partitions) != 2 {
		t.Errorf("%d, %+v, %v", generation, members, err)
	}
	broken := was("c", 0)
	broken.Assignment = []byte{0}
	empty := New("g")
	ch = &Change{}
	if err := empty.Upgrade(ch, w.env, 1, []ClassicMember{was("a", 0), broken}); !errors.Is(err, ErrInconsistentProtocol) || len(ch.Records) != 0 || empty.Size() != 0 {
		t.Errorf("%v, %d records, %d members", err, len(ch.Records), empty.Size())
	}
}

// A classic group is caught before its leader has assigned anything, by its only member's next life, which goes by the consumer protocol and
// subscribes to what the one before did. It had nothing, without end (simulator, seed 3111).
func TestAnUpgradeBeforeTheAssignmentIsFollowedByOne(t *testing.T) {
	for _, reloaded := range []bool{false, true} {
		w := newWorld(t, topic(1, 4))
		old := was("a")
		instance := "i"
		old.Instance, old.Assignment = &instance, nil
		ch := &Change{}
		if err := w.g.Upgrade(ch, w.env, 7, []ClassicMember{old}); err != nil {
			t.Fatal(err)
		}
		w.write(ch)
		if reloaded {
			w.reload()
		}
		hb := joinOf("b", "t1")
		hb.Instance = &instance
		if a, err := w.heartbeat(hb); err != nil || a.Epoch != 8 || len(a.Assignment) != 4 {
			t.Errorf("reloaded %v: %+v, %v", reloaded, a, err)
		}
	}
}

func TestClassicStaticMemberTakesItsOldLifesPlace(t *testing.T) {
	w := newWorld(t, topic(1, 2))
	instance := "i"
	j := classicJoin("a", nil, "t1")
	j.Instance, j.New = &instance, true
	a, err := w.joinClassic(j)
	if err != nil || len(a.Assignment) != 2 {
		t.Fatal(a, err)
	}
	j = classicJoin("b", nil, "t1")
	j.Instance = &instance
	if _, err := w.joinClassic(j); !errors.Is(err, ErrFencedInstance) {
		t.Errorf("%v", err)
	}
	j.New = true
	b, err := w.joinClassic(j)
	if err != nil || !b.Assignment.Equal(a.Assignment) || b.Epoch != a.Epoch || w.g.Size() != 1 {
		t.Errorf("%+v, %v", b, err)
	}
	other := "j"
	j = classicJoin("b", nil, "t1")
	j.Instance = &other
	if _, err := w.joinClassic(j); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("%v", err)
	}
}
