package group

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group/consumer"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// subscribes is a classic consumer's join, which says what it owns if it is a cooperative one.
func subscribes(member string, owned []int32, topics ...string) JoinRequest {
	return request(member, func(r *JoinRequest) {
		meta := kmsg.ConsumerMemberMetadata{Version: 1, Topics: topics}
		if owned != nil {
			meta.OwnedPartitions = []kmsg.ConsumerMemberMetadataOwnedPartition{{Topic: topics[0], Partitions: owned}}
		}
		r.Protocols = []Protocol{{"range", meta.AppendTo(nil)}}
	})
}

func assigned(t testing.TB, b []byte) []int32 {
	t.Helper()
	var a kmsg.ConsumerMemberAssignment
	if err := a.ReadFrom(b); err != nil {
		t.Fatalf("an assignment of %x: %v", b, err)
	}
	var out []int32
	for _, topic := range a.Topics {
		out = append(out, topic.Partitions...)
	}
	return out
}

func assignment(partitions ...int32) []byte {
	a := kmsg.ConsumerMemberAssignment{Version: 1, Topics: []kmsg.ConsumerMemberAssignmentTopic{{Topic: "t", Partitions: partitions}}}
	return a.AppendTo(nil)
}

// classicPair makes a classic group of two members with two partitions each.
func classicPair(w *world) (ids []string, generation int32) {
	w.t.Helper()
	joins := []*call[JoinResult]{w.join(subscribes("", nil, "t")), w.join(subscribes("", nil, "t"))}
	for !joins[1].ended {
		w.clock.Advance(time.Second)
	}
	req := SyncRequest{Group: "g"}
	for i, j := range joins {
		r := j.ok()
		ids = append(ids, r.Member)
		if generation = r.Generation; r.Leader == r.Member {
			req.Member = r.Member
		}
		req.Assignments = append(req.Assignments, Assignment{r.Member, assignment(int32(2*i), int32(2*i+1))})
	}
	req.Generation = generation
	w.sync(req).ok()
	for _, id := range ids {
		w.sync(SyncRequest{Group: "g", Generation: generation, Member: id}).ok()
	}
	return ids, generation
}

// rejoin has a classic member join and sync, and returns what it owns then.
func (w *world) rejoin(id string, owned []int32) (generation int32, now []int32) {
	w.t.Helper()
	r := w.join(subscribes(id, owned, "t")).ok()
	if r.Leader != "" || len(r.Members) != 0 || r.ProtocolType != "consumer" || r.Protocol != "range" {
		w.t.Fatalf("a member that is to assign nothing is told %+v", r)
	}
	s := w.sync(SyncRequest{Group: "g", Generation: r.Generation, Member: r.Member}).ok()
	return r.Generation, assigned(w.t, s.Assignment)
}

func TestClassicGroupIsUpgradedAndDowngradedWithLiveMembers(t *testing.T) {
	for _, cooperative := range []bool{false, true} {
		t.Run(fmt.Sprintf("cooperative %v", cooperative), func(t *testing.T) {
			w, _ := newConsumerWorld(t, 2, map[string]int{"t": 4})
			ids, generation := classicPair(w)
			n := w.consume(enters("new", "t")).ok()
			if n.Epoch != generation+1 || len(n.Assignment) != 0 {
				t.Fatalf("the newcomer is told %+v, the generation was %d", n, generation)
			}
			if d := w.describeConsumer(); len(d.Members) != 3 || d.State != "Reconciling" {
				t.Fatalf("%+v", d)
			}
			w.move(1)
			owns := map[string][]int32{ids[0]: {0, 1}, ids[1]: {2, 3}}
			gen := map[string]int32{ids[0]: generation, ids[1]: generation}
			total := func() (n int) {
				for _, o := range owns {
					n += len(o)
				}
				return n
			}
			for range 6 {
				for _, id := range ids {
					err := w.beat(id, gen[id])
					if err == nil {
						continue
					}
					if !errors.Is(err, ErrRebalanceInProgress) {
						t.Fatal(err)
					}
					var had []int32
					if cooperative {
						had = append([]int32{}, owns[id]...)
					}
					gen[id], owns[id] = w.rejoin(id, had)
				}
				if r := w.consume(lives("new", n)).ok(); r.Changed {
					n = r
				}
			}
			if total()+len(n.Assignment) != 4 || len(n.Assignment) != 1 {
				t.Fatalf("classic members own %v, the new one %v", owns, n.Assignment)
			}
			each := w.commit(CommitRequest{Generation: gen[ids[0]], Member: ids[0], Version: 8, Partitions: at("t", owns[ids[0]][0], 7)}).ok()
			if each[0] != nil {
				t.Error(each[0])
			}
			if _, err := w.commit(CommitRequest{Generation: gen[ids[0]] - 1, Member: ids[0], Version: 8, Partitions: at("t", 0, 7)}).get(); !errors.Is(err, ErrIllegalGeneration) {
				t.Errorf("a commit of an old generation: %v", err)
			}
			// The last member by the consumer protocol goes: the group is a classic one again, and rebalances.
			w.consume(leaves("new")).ok()
			if s := w.state("g"); s != PreparingRebalance {
				t.Fatalf("the group is %v", s)
			}
			w.move(0)
			if s := w.state("g"); s != Stable {
				t.Fatalf("after a move the group is %v", s)
			}
			var joins []*call[JoinResult]
			for _, id := range ids {
				if err := w.beat(id, gen[id]); err == nil {
					t.Errorf("%s, of generation %d, is not told to join", id, gen[id])
				}
			}
			for _, id := range ids {
				joins = append(joins, w.join(subscribes(id, nil, "t")))
			}
			w.clock.Advance(time.Minute)
			leaders := 0
			for _, j := range joins {
				if r := j.ok(); r.Leader == r.Member {
					leaders++
				}
			}
			if leaders != 1 {
				t.Errorf("%d leaders", leaders)
			}
			if got := w.fetch("g"); len(got) != 1 || got[0].Offset != 7 {
				t.Errorf("offsets: %+v", got)
			}
		})
	}
}

func TestClassicMemberJoinsAConsumerGroup(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 4})
	a := w.consume(enters("a", "t")).ok()
	req := subscribes("", nil, "t")
	req.RequireMemberID = true
	id := w.join(req).is(ErrMemberIDRequired).Member
	gen, owns := w.rejoin(id, nil)
	if len(owns) != 0 || gen != a.Epoch+1 {
		t.Fatalf("it owns %v in %d while the other has everything", owns, gen)
	}
	if err := w.beat(id, gen); err != nil {
		t.Fatalf("it is to wait: %v", err)
	}
	a = w.consume(lives("a", a)).ok()
	w.consume(lives("a", a)).ok()
	if err := w.beat(id, gen); !errors.Is(err, ErrRebalanceInProgress) {
		t.Fatalf("what it waits for is free: %v", err)
	}
	if gen, owns = w.rejoin(id, nil); len(owns) != 2 {
		t.Fatalf("it owns %v", owns)
	}
	d := w.describeConsumer()
	if d.State != "Stable" || (d.Members[0].Classic == nil) == (d.Members[1].Classic == nil) {
		t.Errorf("%+v", d)
	}
	for name, c := range map[string]struct {
		got  error
		want error
	}{
		"another generation":         {w.beat(id, gen+1), ErrIllegalGeneration},
		"an unknown member":          {w.beat("nobody", gen), ErrUnknownMember},
		"one by the other protocol":  {w.beat("a", a.Epoch), ErrUnknownMember},
		"a sync of none":             {w.sync(SyncRequest{Group: "g", Generation: gen, Member: "nobody"}).err, ErrUnknownMember},
		"a sync of another":          {w.sync(SyncRequest{Group: "g", Generation: gen - 1, Member: id}).err, ErrIllegalGeneration},
		"a sync of another protocol": {w.sync(SyncRequest{Group: "g", Generation: gen, Member: id, Protocol: ptr("x")}).err, ErrInconsistentProtocol},
		"an odd type":                {w.join(request("", func(r *JoinRequest) { r.ProtocolType = "connect" })).err, ErrInconsistentProtocol},
		"unreadable":                 {w.join(request("", func(r *JoinRequest) { r.Protocols = []Protocol{{"range", []byte{1}}} })).err, ErrInconsistentProtocol},
		"nothing in common":          {w.join(request("", func(r *JoinRequest) { r.Protocols[0] = Protocol{"x", subscribes("", nil, "t").Protocols[0].Metadata} })).err, ErrInconsistentProtocol},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
	each, err := w.leave(LeaveMember{Member: id}, LeaveMember{Member: "nobody"})
	if err != nil || each[0] != nil || !errors.Is(each[1], ErrUnknownMember) {
		t.Errorf("leaving: %v, %v", each, err)
	}
	if a = w.consume(lives("a", a)).ok(); len(a.Assignment) != 4 {
		t.Errorf("after it has left: %+v", a)
	}
}

func TestClassicMemberOfAConsumerGroupHasToComeInTime(t *testing.T) {
	for _, c := range []struct {
		name string
		wait func(w *world, id string, gen int32)
	}{
		{"it is silent", func(w *world, id string, gen int32) {}},
		{"it does not join again", func(w *world, id string, gen int32) { _ = w.beat(id, gen) }},
	} {
		w, _ := newConsumerWorld(t, 1, map[string]int{"t": 2})
		a := w.consume(enters("a", "t")).ok()
		id := w.join(subscribes("", nil, "t")).ok().Member
		gen, _ := w.rejoin(id, nil)
		w.consume(enters("b", "t")).ok() // a new epoch
		for range 70 {
			w.clock.Advance(time.Second)
			c.wait(w, id, gen)
			if r, err := w.consume(lives("a", a)).get(); err == nil {
				if a.Epoch = r.Epoch; r.Changed {
					a.Assignment = r.Assignment
				}
			}
		}
		if d := w.describeConsumer(); slices.ContainsFunc(d.Members, func(m consumer.DescribedMember) bool { return m.ID == id }) {
			t.Errorf("%s, and is still there", c.name)
		}
	}
}

func TestClassicMemberThatDoesNotSyncIsRemovedFromAConsumerGroup(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 2})
	a := w.consume(enters("a", "t")).ok()
	j := w.join(subscribes("", nil, "t")).ok()
	for range 70 {
		w.clock.Advance(time.Second)
		_ = w.beat(j.Member, j.Generation)
		r := w.consume(lives("a", a)).ok()
		if a.Epoch = r.Epoch; r.Changed {
			a.Assignment = r.Assignment
		}
	}
	if d := w.describeConsumer(); len(d.Members) != 1 {
		t.Errorf("%+v", d.Members)
	}
}

func TestStaticMemberChangesItsProtocol(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 2})
	hb := enters("a", "t")
	hb.Instance = ptr("i")
	a := w.consume(hb).ok()
	req := subscribes("", nil, "t")
	req.Instance = ptr("i")
	r := w.join(req).ok()
	w.consume(func() consumer.Heartbeat { h := lives("a", a); h.Instance = ptr("i"); return h }()).is(ErrGroupNotFound)
	// It was the only one: the group is a classic one.
	j := w.join(JoinRequest(func() JoinRequest { q := subscribes(r.Member, nil, "t"); q.Instance = ptr("i"); return q }()))
	if j := j.ok(); j.Leader != r.Member || j.Generation <= r.Generation {
		t.Errorf("%+v after %+v", j, r)
	}
	// And back.
	hb.Member = "b"
	if b := w.consume(hb).ok(); len(b.Assignment) != 2 && b.Epoch <= a.Epoch {
		t.Errorf("%+v", b)
	}
	if d := w.describeConsumer(); len(d.Members) != 1 || d.Members[0].ID != "b" {
		t.Errorf("%+v", d)
	}
}

func TestMigrationPolicy(t *testing.T) {
	policy := func(up, down bool) *world {
		w, _ := newConsumerWorld(t, 1, map[string]int{"t": 4})
		w.lead().cfg.Settings.ConsumerUpgrade, w.lead().cfg.Settings.ConsumerDowngrade = up, down
		return w
	}
	w := policy(false, true)
	classicPair(w)
	w.consume(enters("a", "t")).is(ErrGroupNotFound)
	w = policy(true, false)
	ids, gen := classicPair(w)
	w.consume(enters("a", "t")).ok()
	w.consume(leaves("a")).ok()
	if err := w.beat(ids[0], gen); !errors.Is(err, ErrRebalanceInProgress) {
		t.Error(err)
	}
	if _, owns := w.rejoin(ids[0], nil); len(owns) != 2 {
		t.Errorf("a consumer group of classic members alone assigns %v", owns)
	}
	if d := w.describeConsumer(); len(d.Members) != 2 {
		t.Errorf("%+v", d)
	}
	w = policy(false, false)
	w.consume(enters("a", "t")).ok()
	w.join(subscribes("", nil, "t")).is(ErrInconsistentProtocol)
}

func TestUpgradeThatIsNotWrittenLeavesTheClassicGroup(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 4})
	ids, gen := classicPair(w)
	bad := "("
	hb := enters("a")
	hb.Regex = &bad
	w.consume(hb).is(consumer.ErrInvalidRegularExpression)
	if err := w.beat(ids[0], gen); err != nil {
		t.Fatalf("after a newcomer was refused: %v", err)
	}
	w.log.fail = multiraft.ErrOverloaded
	w.consume(enters("a", "t")).is(ErrNotAvailable)
	w.log.fail = nil
	if err := w.beat(ids[0], gen); !errors.Is(err, ErrRebalanceInProgress) {
		t.Fatalf("after an upgrade that was not written: %v", err)
	}
	joins := []*call[JoinResult]{w.join(subscribes(ids[0], nil, "t")), w.join(subscribes(ids[1], nil, "t"))}
	for _, j := range joins {
		if r := j.ok(); r.Generation != gen+1 {
			t.Errorf("%+v", r)
		}
	}
	// A classic group in the middle of a rebalance: whoever waits is told to join again.
	third := w.join(subscribes("", nil, "t"))
	third.waits()
	w.consume(enters("a", "t")).ok()
	third.is(ErrRebalanceInProgress)
	if d := w.describeConsumer(); len(d.Members) != 4 {
		t.Errorf("%+v", d)
	}
}

func TestDowngradeThatIsNotWrittenIsTriedWithTheNextEpoch(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 4})
	ids, _ := classicPair(w)
	w.consume(enters("a", "t")).ok()
	w.log.hold = true
	left := w.consume(leaves("a"))
	held := w.log.held
	w.log.held, w.log.hold, w.log.fail = nil, false, multiraft.ErrOverloaded
	held[0](nil)
	left.ok()
	w.log.fail = nil
	if list, _ := w.lead().List(nil, nil); list[0].Type != TypeConsumer {
		t.Fatalf("%+v", list)
	}
	for _, id := range ids {
		w.rejoin(id, nil)
	}
	if each, err := w.leave(LeaveMember{Member: ids[1]}); err != nil || each[0] != nil {
		t.Fatal(each, err)
	}
	if list, _ := w.lead().List(nil, nil); list[0].Type != TypeClassic {
		t.Errorf("%+v", list)
	}
}

// While a consumer group is written as a classic one, requests wait for that. Then they are the classic group's.
// beginDowngrade has the only member of the consumer protocol leave a group of classic ones: that the group becomes classic is the one
// append that is held then.
func beginDowngrade(w *world) {
	w.t.Helper()
	w.consume(enters("a", "t")).ok()
	w.log.hold = true
	left := w.consume(leaves("a"))
	held := w.log.held
	w.log.held = nil
	held[0](nil) // and what the group writes now is the downgrade
	left.ok()
	if len(w.log.held) != 1 {
		w.t.Fatalf("%d appends are under way", len(w.log.held))
	}
}

// TestCommitsWaitForADowngrade: what is in the log behind a classic group's generation is that generation's. A commit that comes while the
// downgrade is being written is the new group's to judge (simulator seed 6008: one of the old generation was taken).
func TestCommitsWaitForADowngrade(t *testing.T) {
	for name, written := range map[string]error{"written": nil, "not written": &multiraft.NotLeaderError{LeaderNode: -1}} {
		t.Run(name, func(t *testing.T) {
			w, _ := newConsumerWorld(t, 1, map[string]int{"t": 4})
			ids, generation := classicPair(w)
			beginDowngrade(w)
			req := CommitRequest{Member: ids[0], Generation: generation, Version: 8,
				Partitions: []CommitPartition{{Topic: "t", Partition: 0, Offset: 5, LeaderEpoch: -1}}}
			commit := w.commit(req)
			commit.waits()
			if len(w.log.held) != 1 {
				t.Fatalf("%d appends are under way: the commit is behind the downgrade", len(w.log.held))
			}
			held := w.log.held
			w.log.held, w.log.hold = nil, false
			held[0](written)
			if _, err := commit.get(); (err == nil) != (written != nil) || err != nil && !errors.Is(err, ErrIllegalGeneration) {
				t.Errorf("the commit: %v", err)
			}
		})
	}
}

func TestRequestsThatWaitForADowngradeBeginAnew(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 4})
	ids, generation := classicPair(w)
	beginDowngrade(w)
	leave := &call[[]error]{t: t, what: "leave"}
	w.lead().Leave("g", []LeaveMember{{Member: ids[1]}}, leave.done)
	beat := &call[struct{}]{t: t, what: "heartbeat"}
	w.lead().Heartbeat(HeartbeatRequest{Group: "g", Member: ids[0], Generation: generation}, func(err error) { beat.done(struct{}{}, err) })
	join, sync := w.join(subscribes(ids[0], nil, "t")), w.sync(SyncRequest{Group: "g", Member: ids[1], Generation: generation})
	for _, waits := range []bool{!leave.ended, !beat.ended, !join.ended, !sync.ended} {
		if !waits {
			t.Fatal("answered before the group is written")
		}
	}
	held := w.log.held
	w.log.held, w.log.hold = nil, false
	held[0](nil)
	if each := leave.ok(); len(each) != 1 || each[0] != nil {
		t.Errorf("leave: %v", each)
	}
	beat.is(ErrIllegalGeneration) // the members' generation is an older one
	sync.is(ErrUnknownMember)     // it has left
	for !join.ended {
		w.clock.Advance(time.Second)
	}
	if r := join.ok(); r.Leader != ids[0] {
		t.Errorf("%+v", r)
	}
	if list, _ := w.lead().List(nil, nil); list[0].Type != TypeClassic {
		t.Errorf("%+v", list)
	}
}

// A member by a cooperative protocol gives back what its last assignment left out only once it has seen that: if the group becomes a
// consumer group meanwhile, nobody else has it before the member has joined again (simulator, seed 652).
func TestUpgradeWaitsForWhatACooperativeMemberIsAboutToGiveBack(t *testing.T) {
	w, _ := newConsumerWorld(t, 2, map[string]int{"t": 4})
	ids, _ := classicPair(w)
	joins := []*call[JoinResult]{w.join(subscribes(ids[0], []int32{0, 1}, "t")), w.join(subscribes(ids[1], []int32{2, 3}, "t"))}
	for !joins[1].ended {
		w.clock.Advance(time.Second)
	}
	generation := joins[0].ok().Generation
	leader := slices.IndexFunc(joins, func(j *call[JoinResult]) bool { r := j.ok(); return r.Leader == r.Member })
	w.sync(SyncRequest{Group: "g", Member: ids[leader], Generation: generation, Assignments: []Assignment{{ids[0], assignment(0)}, {ids[1], assignment(2, 3)}}}).ok()

	n := w.consume(enters("new", "t")).ok()
	for range 5 {
		if slices.ContainsFunc(n.Assignment, func(p consumer.Partition) bool { return p.Index != 0 && p.Index != 2 && p.Index != 3 }) {
			t.Fatalf("the newcomer has what %s has not given back: %v", ids[0], n.Assignment)
		}
		w.clock.Advance(100 * time.Millisecond)
		if r := w.consume(lives("new", n)).ok(); r.Changed {
			n = r
		}
	}
	s := w.sync(SyncRequest{Group: "g", Generation: generation, Member: ids[0]}).ok()
	if got := assigned(t, s.Assignment); !slices.Equal(got, []int32{0}) {
		t.Fatalf("%s is told to have %v", ids[0], got)
	}
	if err := w.beat(ids[0], generation); !errors.Is(err, ErrRebalanceInProgress) {
		t.Fatalf("%s, which is to give something back, is told %v", ids[0], err)
	}
	w.rejoin(ids[0], []int32{0})
	for range 5 {
		w.clock.Advance(100 * time.Millisecond)
		if r := w.consume(lives("new", n)).ok(); r.Changed {
			n = r
		}
	}
	if len(n.Assignment) != 1 || n.Assignment[0].Index != 1 {
		t.Fatalf("in the end the newcomer has %v", n.Assignment)
	}
}

// What a classic member of a consumer group has still to give back it has in the classic group, too, until it joins that: should another
// member come by the consumer protocol before, it must wait as the one before it did (simulator, seed 652).
func TestDowngradeRemembersWhatAMemberHasNotGivenBack(t *testing.T) {
	w, _ := newConsumerWorld(t, 2, map[string]int{"t": 4})
	ids, generation := classicPair(w)
	w.consume(enters("first", "t")).ok()
	w.consume(leaves("first")).ok()
	if s := w.state("g"); s != PreparingRebalance {
		t.Fatalf("the group is %v", s)
	}
	n := w.consume(enters("second", "t")).ok()
	for range 5 {
		if len(n.Assignment) > 0 {
			t.Fatalf("the newcomer has %v, and nobody has given anything back", n.Assignment)
		}
		w.clock.Advance(100 * time.Millisecond)
		if r := w.consume(lives("second", n)).ok(); r.Changed {
			n = r
		}
	}
	for _, id := range ids {
		if err := w.beat(id, generation); err == nil {
			t.Errorf("%s, of generation %d, is not told to join", id, generation)
		}
		w.rejoin(id, nil)
	}
	for range 5 {
		w.clock.Advance(100 * time.Millisecond)
		if r := w.consume(lives("second", n)).ok(); r.Changed {
			n = r
		}
	}
	if len(n.Assignment) != 1 {
		t.Fatalf("in the end the newcomer has %v", n.Assignment)
	}
}

// A classic member that was handed an id and has not joined with it is nobody yet: a consumer that comes meanwhile is taken in, and not told
// for good that there is no such group. The classic one joins then, if it comes at all.
func TestConsumerComesBetweenAnIDAndItsJoin(t *testing.T) {
	for _, comes := range []bool{true, false} {
		w, _ := newConsumerWorld(t, 1, map[string]int{"t": 4})
		first := subscribes("", nil, "t")
		first.RequireMemberID = true
		id := w.join(first).is(ErrMemberIDRequired).Member
		a := w.consume(enters("a", "t")).ok()
		if len(a.Assignment) != 4 {
			t.Fatalf("%+v", a)
		}
		members := 1
		if comes {
			if r := w.join(subscribes(id, nil, "t")).ok(); r.Member != id {
				t.Errorf("%+v", r)
			}
			members++
		}
		if d := w.describeConsumer(); len(d.Members) != members {
			t.Errorf("%+v", d)
		}
		w.clock.Advance(11 * time.Second) // the id's time is over
		w.consume(lives("a", a)).ok()
	}
}

// What a classic member asks while its group becomes a consumer group, and does not, the classic group answers: the member is not told that
// nobody knows it.
func TestRequestsThatWaitForAnUpgradeThatFailsBeginAnew(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 4})
	ids, gen := classicPair(w)
	w.log.hold = true
	up := w.consume(enters("a", "t"))
	beat := &call[struct{}]{t: t, what: "heartbeat"}
	w.lead().Heartbeat(HeartbeatRequest{Group: "g", Member: ids[0], Generation: gen}, func(err error) { beat.done(struct{}{}, err) })
	second := w.consume(enters("b", "t"))
	join := w.join(subscribes(ids[1], nil, "t"))
	beat.waits()
	join.waits()
	w.log.release(multiraft.ErrOverloaded)
	up.is(ErrNotAvailable)
	beat.is(ErrRebalanceInProgress)
	second.ok() // tries once more
	join.ok()
	if d := w.describeConsumer(); len(d.Members) != 3 {
		t.Errorf("%+v", d)
	}
}
