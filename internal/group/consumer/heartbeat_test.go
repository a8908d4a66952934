package consumer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestPartitionsMoveOnlyWhenTheyAreGivenBack(t *testing.T) {
	w := newWorld(t, topic(1, 4))
	a := w.ok(joinOf("a", "t1"))
	if a.Epoch != 2 || !a.Changed || len(a.Assignment) != 4 {
		t.Fatalf("the first member is told %+v", a)
	}
	b := w.ok(joinOf("b", "t1"))
	if b.Epoch != 3 || len(b.Assignment) != 0 || w.g.State() != "Reconciling" {
		t.Fatalf("the second member is told %+v while the first has everything; the group is %s", b, w.g.State())
	}
	a2 := w.ok(beatOf("a", 2, a.Assignment))
	if a2.Epoch != 2 || !a2.Changed || len(a2.Assignment) != 2 {
		t.Fatalf("who has to give back is told %+v", a2)
	}
	if again := w.ok(beatOf("a", 2, a.Assignment)); again.Changed || again.Epoch != 2 {
		t.Fatalf("before it has given back it is told %+v", again)
	}
	if b = w.ok(beatOf("b", 3, nil)); len(b.Assignment) != 0 {
		t.Fatalf("the second member gets %v before the first has given it back", b.Assignment)
	}
	if a2 = w.ok(beatOf("a", 2, a2.Assignment)); a2.Epoch != 3 {
		t.Fatalf("who has given back is told %+v", a2)
	}
	b = w.ok(beatOf("b", 3, nil))
	if len(b.Assignment) != 2 || !b.Changed || len(b.Assignment.and(a2.Assignment)) != 0 || w.g.State() != "Stable" {
		t.Fatalf("the second member is told %+v, the group is %s", b, w.g.State())
	}
}

func TestLostAnswerIsGivenAgainAndOtherEpochsAreFenced(t *testing.T) {
	w := newWorld(t, topic(1, 2))
	w.ok(joinOf("a", "t1"))
	if again := w.ok(joinOf("a", "t1")); again.Epoch != 2 || len(again.Assignment) != 2 {
		t.Errorf("joining again after a lost answer: %+v", again)
	}
	w.topics(topic(1, 3))
	if a := w.ok(beatOf("a", 2, parts(1, 0, 1))); a.Epoch != 3 || len(a.Assignment) != 3 {
		t.Fatalf("after a new partition: %+v", a)
	}
	if a := w.ok(beatOf("a", 2, parts(1, 0, 1))); a.Epoch != 3 {
		t.Errorf("with the epoch before: %+v", a)
	}
	w.refused(beatOf("a", 2, parts(1, 7)), ErrFencedMemberEpoch)
	w.refused(&Heartbeat{Version: 1, Group: "g", Member: "a", Epoch: 2, RebalanceTimeout: -1}, ErrFencedMemberEpoch)
	w.refused(beatOf("a", 1, nil), ErrFencedMemberEpoch)
	w.refused(beatOf("a", 4, nil), ErrFencedMemberEpoch)
	w.refused(joinOf("a", "t1"), ErrFencedMemberEpoch)
	w.refused(beatOf("b", 3, nil), ErrUnknownMember)
}

func TestDeletedTopicsAreTakenBack(t *testing.T) {
	w := newWorld(t, topic(1, 2), topic(2, 2))
	a := w.ok(joinOf("a", "t1", "t2"))
	w.topics(topic(1, 2))
	a = w.ok(beatOf("a", a.Epoch, a.Assignment))
	if !a.Assignment.Equal(parts(1, 0, 1)) {
		t.Fatalf("it keeps %v", a.Assignment)
	}
	// Made again under its name it is another topic.
	w.ok(beatOf("a", a.Epoch, a.Assignment))
	w.topics(topic(1, 2), Topic{"t2", topicID(9), 1})
	if a = w.ok(beatOf("a", w.g.Current("a").Epoch, a.Assignment)); !a.Assignment.Has(Partition{topicID(9), 0}) {
		t.Fatalf("the new topic is missing: %v", a.Assignment)
	}
}

func static(hb *Heartbeat, instance string) *Heartbeat {
	hb.Instance = &instance
	return hb
}

func TestStaticMemberComesBackToItsPartitions(t *testing.T) {
	w := newWorld(t, topic(1, 6))
	a := w.ok(static(joinOf("a", "t1"), "i"))
	b := w.ok(joinOf("b", "t1"))
	a = w.ok(beatOf("a", a.Epoch, nil))
	b = w.ok(beatOf("b", b.Epoch, nil))
	if len(a.Assignment) != 3 || len(b.Assignment) != 3 {
		t.Fatalf("%+v %+v", a, b)
	}
	w.refused(static(joinOf("a2", "t1"), "i"), ErrUnreleasedInstance)
	w.refused(static(beatOf("a2", a.Epoch, nil), "i"), ErrFencedInstance)
	w.refused(static(beatOf("a", a.Epoch, nil), "j"), ErrUnknownMember)
	w.ok(static(&Heartbeat{Version: 1, Group: "g", Member: "a", Epoch: -2}, "i"))
	w.refused(static(beatOf("a", a.Epoch, nil), "i"), ErrFencedMemberEpoch)
	w.reload()
	if b2 := w.ok(beatOf("b", b.Epoch, b.Assignment)); b2.Changed || b2.Epoch != b.Epoch {
		t.Errorf("the other member is bothered: %+v", b2)
	}
	a2 := w.ok(static(joinOf("a2", "t1"), "i"))
	if !a2.Assignment.Equal(a.Assignment) || a2.Epoch != a.Epoch {
		t.Errorf("it had %v in epoch %d and comes back to %v in epoch %d", a.Assignment, a.Epoch, a2.Assignment, a2.Epoch)
	}
	if w.g.Member("a") != nil || w.g.Size() != 2 {
		t.Errorf("members: %v", w.g.Members())
	}
}

func TestRegularExpressionsAreResolvedHere(t *testing.T) {
	w := newWorld(t, topic(1, 1), topic(11, 1), Topic{"u", topicID(30), 2})
	regex := func(id, expression string) *Heartbeat {
		hb := joinOf(id)
		hb.Topics, hb.Regex = nil, &expression
		return hb
	}
	w.refused(regex("a", "("), ErrInvalidRegularExpression)
	w.refused(regex("a", "t1)|(u"), ErrInvalidRegularExpression)
	if w.g.Size() != 0 {
		t.Fatal("who was refused is a member")
	}
	a := w.ok(regex("a", "t1|u"))
	if !a.Assignment.Equal(NewAssignment(append(parts(1, 0), parts(30, 0, 1)...))) {
		t.Fatalf("whole names alone are matched: %v", a.Assignment)
	}
	w.topics(topic(1, 1), topic(11, 1), Topic{"u", topicID(30), 2}, topic(12, 1))
	if a = w.ok(beatOf("a", a.Epoch, a.Assignment)); a.Changed {
		t.Errorf("another topic changes %+v", a)
	}
	hb := beatOf("a", a.Epoch, a.Assignment)
	all := "t.*"
	hb.Regex = &all
	w.ok(hb)
	if a = w.ok(beatOf("a", a.Epoch, parts(1, 0))); !a.Assignment.Equal(NewAssignment(slices.Concat(parts(1, 0), parts(11, 0), parts(12, 0)))) {
		t.Fatalf("%+v", a)
	}
	w.topics(topic(1, 1), topic(11, 1), topic(12, 1), topic(13, 1))
	if a = w.ok(beatOf("a", a.Epoch, a.Assignment)); !a.Assignment.Has(Partition{topicID(13), 0}) {
		t.Fatalf("a new topic is not seen: %v", a.Assignment)
	}
	w.reload()
	if !w.g.Subscribes("t13") || w.g.Subscribes("u") || len(w.g.resolved) != 1 {
		t.Errorf("after a reload: %v", w.g.resolved)
	}
	w.ok(&Heartbeat{Version: 1, Group: "g", Member: "a", Epoch: -1})
	if len(w.g.resolved) != 0 {
		t.Errorf("nobody is left and %v is kept", w.g.resolved)
	}
}

func TestHeartbeatsThatCannotBeRight(t *testing.T) {
	w := newWorld(t, topic(1, 1))
	empty, odd := "", "odd"
	for name, edit := range map[string]func(*Heartbeat) error{
		"no member id":         func(h *Heartbeat) error { h.Member = ""; return ErrInvalidRequest },
		"no group":             func(h *Heartbeat) error { h.Group = ""; return ErrInvalidRequest },
		"an empty instance":    func(h *Heartbeat) error { h.Instance = &empty; return ErrInvalidRequest },
		"an empty rack":        func(h *Heartbeat) error { h.Rack = &empty; return ErrInvalidRequest },
		"epoch -3":             func(h *Heartbeat) error { h.Epoch = -3; return ErrInvalidRequest },
		"epoch -2, no static":  func(h *Heartbeat) error { h.Epoch = -2; return ErrInvalidRequest },
		"no rebalance timeout": func(h *Heartbeat) error { h.RebalanceTimeout = -1; return ErrInvalidRequest },
		"owning unsaid":        func(h *Heartbeat) error { h.OwnedSaid = false; return ErrInvalidRequest },
		"owning something":     func(h *Heartbeat) error { h.Owned = parts(1, 0); return ErrInvalidRequest },
		"no subscription":      func(h *Heartbeat) error { h.Topics = nil; return ErrInvalidRequest },
		"an odd assignor":      func(h *Heartbeat) error { h.Assignor = &odd; return ErrUnsupportedAssignor },
	} {
		hb := joinOf("a", "t1")
		want := edit(hb)
		if _, err := w.heartbeat(hb); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if w.env.MaxSize = 1; w.ok(joinOf("a", "t1")).Epoch == 0 {
		t.Error("no epoch")
	}
	w.refused(joinOf("b", "t1"), ErrGroupFull)
	w.env.MaxSize, w.env.MaxBytes = 10, 10
	w.refused(joinOf("b", "a-long-name"), ErrGroupFull)
	w.env.MaxBytes = 1 << 20
	hb := joinOf("", "t1")
	hb.Version = 0
	if a := w.ok(hb); a.Member != "id1" {
		t.Errorf("a member without an id gets %q", a.Member)
	}
}

func TestCommitsAreFencedByEpoch(t *testing.T) {
	w := newWorld(t, topic(1, 2))
	w.ok(joinOf("a", "t1"))
	w.topics(topic(1, 3))
	a := w.ok(beatOf("a", 2, parts(1, 0, 1)))
	for _, c := range []struct {
		id      string
		epoch   int32
		version int16
		at      Assignment
		want    error
	}{
		{"a", a.Epoch, 9, parts(1, 0, 1, 2), nil},
		{"a", a.Epoch, 8, parts(1, 0), ErrUnsupportedVersion},
		{"a", a.Epoch - 1, 9, parts(1, 0), nil}, // it had it in that epoch
		{"a", a.Epoch - 1, 9, parts(1, 0, 2), ErrStaleMemberEpoch},
		{"a", a.Epoch - 1, 9, parts(1, 5), ErrStaleMemberEpoch},
		{"a", a.Epoch + 1, 9, parts(1, 0), ErrStaleMemberEpoch},
		{"b", a.Epoch, 9, parts(1, 0), ErrUnknownMember},
		{"", -1, 9, parts(1, 0), ErrUnknownMember},
	} {
		if err := w.g.MayCommit(c.id, c.epoch, c.version, c.at); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	id, other := "a", "b"
	for _, c := range []struct {
		id    *string
		epoch int32
		want  error
	}{{nil, -1, nil}, {&id, a.Epoch, nil}, {&id, a.Epoch + 1, ErrStaleMemberEpoch}, {&other, a.Epoch, ErrUnknownMember}, {nil, 3, ErrUnknownMember}} {
		if err := w.g.MayFetch(c.id, c.epoch); !errors.Is(err, c.want) {
			t.Errorf("fetch as %v in %d: %v", c.id, c.epoch, err)
		}
	}
}

func TestAssignorThatMostMembersAskFor(t *testing.T) {
	w := newWorld(t, topic(1, 4), topic(2, 4))
	name := Range
	for _, id := range []string{"a", "b", "c"} {
		hb := joinOf(id, "t1", "t2")
		if id != "c" {
			hb.Assignor = &name
		}
		w.ok(hb)
	}
	if got := w.g.Describe(w.env.Assignors).Assignor; got != Range {
		t.Errorf("the assignor is %s", got)
	}
	if got := w.g.target["a"]; !got.Equal(NewAssignment(append(parts(1, 0, 1), parts(2, 0, 1)...))) {
		t.Errorf("a has %v", got)
	}
	w.remove("a")
	w.remove("b")
	if got := w.g.Describe(w.env.Assignors).Assignor; got != Uniform {
		t.Errorf("the assignor is %s", got)
	}
}

func TestChangeThatIsCutOffLeavesAGroupThatGoesOn(t *testing.T) {
	build := func(t *testing.T) *world {
		w := newWorld(t, topic(1, 6))
		w.ok(joinOf("a", "t1"))
		w.ok(joinOf("b", "t1"))
		return w
	}
	changes := map[string]func(w *world, ch *Change){
		"a member goes":  func(w *world, ch *Change) { w.g.Remove(ch, w.env, "a") },
		"a member comes": func(w *world, ch *Change) { _, _ = w.g.Heartbeat(ch, w.env, joinOf("c", "t1")) },
		"one comes and another goes": func(w *world, ch *Change) {
			_, _ = w.g.Heartbeat(ch, w.env, joinOf("c", "t1"))
			w.g.Remove(ch, w.env, "a")
		},
	}
	for name, change := range changes {
		for cut := 0; ; cut++ {
			w := build(t)
			ch := &Change{}
			change(w, ch)
			if ch.EpochFirst(); cut > len(ch.Records) {
				break
			}
			ch.Records = ch.Records[:cut]
			w.write(ch)
			w.reload()
			for range 12 {
				for _, id := range []string{"a", "b", "c"} {
					if w.g.Member(id) == nil {
						continue
					}
					if cur := w.g.Current(id); cur.Epoch > 0 {
						w.ok(beatOf(id, cur.Epoch, cur.Assigned))
					} else {
						w.ok(joinOf(id, "t1")) // it never got an answer
					}
				}
			}
			total := 0
			for _, id := range w.g.Members() {
				total += len(w.g.Current(id).Assigned)
			}
			if w.g.State() != "Stable" || total != 6 {
				t.Errorf("%s, cut after %d records: the group is %s, %d of 6 partitions are owned", name, cut, w.g.State(), total)
			}
		}
	}
}

// Most heartbeats do not say what a member has: it has not given anything back with them.
func TestWhoSaysNothingHasNotGivenBack(t *testing.T) {
	w := newWorld(t, topic(1, 4))
	a := w.ok(joinOf("a", "t1"))
	b := w.ok(joinOf("b", "t1"))
	silent := func() Answer {
		return w.ok(&Heartbeat{Version: 1, Group: "g", Member: "a", Epoch: a.Epoch, RebalanceTimeout: -1})
	}
	if told := silent(); !told.Changed || len(told.Assignment) != 2 {
		t.Fatalf("who has to give back is told %+v", told)
	}
	for range 2 {
		if told := silent(); told.Epoch != a.Epoch {
			t.Fatalf("who has said nothing is told %+v", told)
		}
		if got := w.ok(beatOf("b", b.Epoch, nil)); len(got.Assignment) != 0 {
			t.Fatalf("the second member gets %v, and the first has not said that it gave it back", got.Assignment)
		}
	}
}

// A static member that leaves for a while is thought to use what it has until its session ends, whoever comes meanwhile.
func TestAStaticMemberThatIsAwayKeepsItsPartitions(t *testing.T) {
	w := newWorld(t, topic(1, 4))
	a := w.ok(static(joinOf("a", "t1"), "i"))
	w.ok(static(&Heartbeat{Version: 1, Group: "g", Member: "a", Epoch: -2}, "i"))
	w.reload()
	b := w.ok(joinOf("b", "t1"))
	for range 2 {
		if b = w.ok(beatOf("b", b.Epoch, b.Assignment)); len(b.Assignment) != 0 {
			t.Fatalf("a newcomer gets %v, of a static member that is away", b.Assignment)
		}
	}
	a2 := w.ok(static(joinOf("a2", "t1"), "i"))
	if len(a2.Assignment) != 2 || len(a2.Assignment.minus(a.Assignment)) != 0 {
		t.Errorf("it comes back to %v, and had %v", a2.Assignment, a.Assignment)
	}
}

// A regular expression of a few bytes can stand for millions of steps for each name, taken under the coordinator's lock: such ones are refused.
func TestRegularExpressionsAreBounded(t *testing.T) {
	w := newWorld(t, topic(1, 1))
	with := func(id, expression string) *Heartbeat {
		hb := joinOf(id)
		hb.Topics, hb.Regex = nil, &expression
		return hb
	}
	for _, bad := range []string{"(" + strings.Repeat("[ab]?", 50) + "){0,1000}", "((a*b*c*){20}d){50}", strings.Repeat("a", 32_767)} {
		w.refused(with("a", bad), ErrInvalidRegularExpression)
	}
	names := make([]string, 200)
	for i := range names {
		names[i] = fmt.Sprintf("orders\\.region-%03d\\.v1", i)
	}
	for i, good := range []string{".*", "t{1,3}[0-9]{0,9}", strings.Join(names, "|"), "(a|b)*", "[a-z]{0,249}", `\p{L}+`} {
		w.ok(with(fmt.Sprint("m", i), good))
	}
}
