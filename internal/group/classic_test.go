package group

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/chronik-go/chronik/internal/multiraft"
)

func TestFirstRebalanceWaitsForLateComers(t *testing.T) {
	w := newWorld(t, 1)
	a := w.join(request(""))
	w.clock.Advance(2 * time.Second)
	b := w.join(request(""))
	w.clock.Advance(time.Second) // 3 s after the first: b's coming puts the end off
	a.waits()
	w.clock.Advance(3 * time.Second)
	ra, rb := a.ok(), b.ok()
	if ra.Generation != 1 || rb.Generation != 1 || ra.Leader != ra.Member || rb.Leader != ra.Member {
		t.Fatalf("%+v\n%+v", ra, rb)
	}
	if len(ra.Members) != 2 || rb.Members != nil {
		t.Fatalf("the leader knows %d members, the other %d", len(ra.Members), len(rb.Members))
	}
	sb := w.sync(SyncRequest{Group: "g", Generation: 1, Member: rb.Member})
	sb.waits()
	sa := w.assign(ra)
	if got := string(sa.ok().Assignment); got != "for "+ra.Member {
		t.Errorf("the leader got %q", got)
	}
	if got := string(sb.ok().Assignment); got != "for "+rb.Member {
		t.Errorf("the other got %q", got)
	}
	if err := w.beat(rb.Member, 1); err != nil {
		t.Error(err)
	}
}

func TestFirstRebalanceEndsAtItsTimeoutHoweverManyCome(t *testing.T) {
	w := newWorld(t, 1)
	a := w.join(request(""))
	for range 40 {
		w.clock.Advance(2 * time.Second)
		if a.ended {
			break
		}
		w.join(request(""))
	}
	if r := a.ok(); len(r.Members) < 25 || len(r.Members) > 31 {
		t.Errorf("%d members at the end of 60 s", len(r.Members))
	}
}

func TestMemberIDIsRequiredOfNewDynamicMembers(t *testing.T) {
	need := func(r *JoinRequest) { r.RequireMemberID = true }
	w := newWorld(t, 1)
	r := w.join(request("", need)).is(ErrMemberIDRequired)
	if r.Member != "client-id1" {
		t.Fatalf("member id %q", r.Member)
	}
	j := w.join(request(r.Member, need))
	w.clock.Advance(3 * time.Second)
	if got := j.ok(); got.Member != r.Member || got.Leader != r.Member {
		t.Fatalf("%+v", got)
	}
	// One that is not used in time is forgotten, and was never a reason to wait.
	lost := w.join(request("", need)).is(ErrMemberIDRequired)
	for range 3 {
		w.clock.Advance(5 * time.Second)
		if err := w.beat(r.Member, 1); err != nil {
			t.Fatal(err)
		}
	}
	w.join(request(lost.Member, need)).is(ErrUnknownMember)
	// A static member has its id at once.
	if w.join(request("", need, static("i"))); w.state("g") != PreparingRebalance {
		t.Error("the static member did not join")
	}
}

func TestProtocolIsTheOneMostMembersWantOfThoseAllHave(t *testing.T) {
	with := func(names ...string) func(*JoinRequest) {
		return func(r *JoinRequest) {
			r.Protocols = nil
			for _, n := range names {
				r.Protocols = append(r.Protocols, Protocol{n, []byte("of " + n)})
			}
		}
	}
	w := newWorld(t, 1)
	a := w.join(request("", with("only-a", "range", "sticky")))
	w.join(request("", with("sticky", "range")))
	c := w.join(request("", with("sticky", "range", "only-c")))
	w.join(request("", with("other"))).is(ErrInconsistentProtocol)
	w.join(request("", func(r *JoinRequest) { r.ProtocolType = "connect" })).is(ErrInconsistentProtocol)
	w.clock.Advance(10 * time.Second)
	if r := a.ok(); r.Protocol != "sticky" || string(r.Members[0].Metadata) != "of sticky" {
		t.Errorf("%+v", r)
	}
	if r := c.ok(); r.Protocol != "sticky" {
		t.Errorf("%+v", r)
	}
}

func TestJoinErrors(t *testing.T) {
	w := newWorld(t, 1)
	for _, c := range []struct {
		name   string
		change func(*JoinRequest)
		want   error
	}{
		{"no group id", func(r *JoinRequest) { r.Group = "" }, ErrInvalidGroupID},
		{"session too short", func(r *JoinRequest) { r.SessionTimeout = 5999 }, ErrInvalidSessionTimeout},
		{"session too long", func(r *JoinRequest) { r.SessionTimeout = 1_800_001 }, ErrInvalidSessionTimeout},
		{"a member of no group", func(r *JoinRequest) { r.Group, r.Member = "none", "m" }, ErrUnknownMember},
		{"no protocol type", func(r *JoinRequest) { r.ProtocolType = "" }, ErrInconsistentProtocol},
		{"no protocols", func(r *JoinRequest) { r.Protocols = nil }, ErrInconsistentProtocol},
	} {
		t.Run(c.name, func(t *testing.T) { w.join(request("", c.change)).is(c.want) })
	}
	if all, err := w.lead().List(nil, nil); err != nil || len(all) != 0 {
		t.Errorf("refused joins left groups: %v, %v", all, err)
	}
	ids, _ := w.stable(1)
	w.join(request("stranger")).is(ErrUnknownMember)
	w.join(request(ids[0], static("i"))).is(ErrUnknownMember)
}

func TestGroupHasAtMostMaxSizeMembers(t *testing.T) {
	w := newWorld(t, 1, func(c *Config) { c.Settings.MaxGroupSize = 2 })
	ids, gen := w.stable(2)
	w.join(request("")).is(ErrGroupFull)
	if err := w.beat(ids[0], gen); err != nil {
		t.Errorf("a member after a refused join: %v", err)
	}
	w.join(request(ids[1], func(r *JoinRequest) { r.Protocols[0].Metadata = []byte("new") })).waits()
}

func TestGroupBytesAreBounded(t *testing.T) {
	big := func(r *JoinRequest) { r.Protocols[0].Metadata = make([]byte, 600) }
	w := newWorld(t, 1, func(c *Config) { c.Limits.GroupBytes = 1000; c.Limits.GroupsPerShard = 1; c.Limits.MemberIDs = 1 })
	w.join(request("", big)).waits()
	w.join(request("", big)).is(ErrGroupFull)
	w.join(request("", func(r *JoinRequest) { r.Group = "other" })).is(ErrNotAvailable)
	need := func(r *JoinRequest) { r.RequireMemberID = true }
	w.join(request("", need)).is(ErrMemberIDRequired)
	w.join(request("", need)).is(ErrNotAvailable)
}

// TestMemoryOfAllGroupsIsBounded: many groups, each within its own bounds, don't get more than the node has for all. What goes makes room,
// who is in stays in, and what a coordinator loads it counts, but does not refuse.
func TestMemoryOfAllGroupsIsBounded(t *testing.T) {
	const limit = 100_000
	w := newWorld(t, 1, func(c *Config) { c.Limits.Bytes = limit })
	note := strings.Repeat("x", 3000)
	commit := func(group string, partitions ...int32) error {
		req := CommitRequest{Group: group, Generation: -1, Version: 9}
		for _, p := range partitions {
			req.Partitions = append(req.Partitions, CommitPartition{Topic: "t", Partition: p, LeaderEpoch: -1, Metadata: note})
		}
		each, err := w.commit(req).get()
		return cmp.Or(err, errors.Join(each...))
	}
	groups := 0
	for ; groups < 100; groups++ {
		if err := commit(fmt.Sprint("g", groups), 0, 1); err != nil {
			if !errors.Is(err, ErrNotAvailable) {
				t.Fatal(err)
			}
			break
		}
	}
	if used := w.lead().Memory(); groups < 10 || used > limit || used < limit*9/10 {
		t.Fatalf("%d groups of two offsets, %d bytes", groups, used)
	}
	if err := commit("g0", 1); err != nil {
		t.Errorf("an offset committed again: %v", err)
	}
	if err := commit("g0", 2, 3); !errors.Is(err, ErrNotAvailable) {
		t.Errorf("more offsets of a group that is there: %v", err)
	}
	w.join(request("", func(r *JoinRequest) { r.Protocols[0].Metadata = make([]byte, 10_000) })).is(ErrGroupFull)
	before := w.lead().Memory()
	w.move(0)
	if after := w.lead().Memory(); after != before {
		t.Errorf("%d bytes before loading, %d after", before, after)
	}
	for i := range groups {
		w.delete(fmt.Sprint("g", i)).ok()
	}
	if used := w.lead().Memory(); used != 0 {
		t.Errorf("%d bytes of no groups", used)
	}
	if err := commit("new", 0, 1, 2, 3); err != nil {
		t.Error(err)
	}
}

func TestSyncErrors(t *testing.T) {
	w := newWorld(t, 1)
	ids, gen := w.stable(2)
	text := func(s string) *string { return &s }
	for _, c := range []struct {
		name string
		req  SyncRequest
		want error
	}{
		{"no group id", SyncRequest{}, ErrInvalidGroupID},
		{"unknown group", SyncRequest{Group: "none", Member: ids[0]}, ErrUnknownMember},
		{"unknown member", SyncRequest{Group: "g", Member: "x", Generation: gen}, ErrUnknownMember},
		{"unknown instance", SyncRequest{Group: "g", Member: ids[0], Instance: text("i"), Generation: gen}, ErrUnknownMember},
		{"old generation", SyncRequest{Group: "g", Member: ids[0], Generation: gen - 1}, ErrIllegalGeneration},
		{"generation to come", SyncRequest{Group: "g", Member: ids[0], Generation: gen + 1}, ErrIllegalGeneration},
		{"another type", SyncRequest{Group: "g", Member: ids[0], Generation: gen, ProtocolType: text("connect")}, ErrInconsistentProtocol},
		{"another protocol", SyncRequest{Group: "g", Member: ids[0], Generation: gen, Protocol: text("sticky")}, ErrInconsistentProtocol},
		{"the same names", SyncRequest{Group: "g", Member: ids[0], Generation: gen, ProtocolType: text("consumer"), Protocol: text("range")}, nil},
	} {
		t.Run(c.name, func(t *testing.T) { w.sync(c.req).is(c.want) })
	}
	w.join(request(ids[0])).waits() // the leader joins again: a rebalance
	w.sync(SyncRequest{Group: "g", Member: ids[1], Generation: gen}).is(ErrRebalanceInProgress)
}

func TestHeartbeatErrors(t *testing.T) {
	w := newWorld(t, 1)
	if err := w.heartbeat(HeartbeatRequest{}); !errors.Is(err, ErrInvalidGroupID) {
		t.Errorf("no group id: %v", err)
	}
	if err := w.beat("m", 1); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("unknown group: %v", err)
	}
	a, b := w.join(request("")), w.join(request(""))
	w.clock.Advance(6 * time.Second)
	ra, rb := a.ok(), b.ok()
	if err := w.beat(rb.Member, 1); err != nil || w.state("g") != CompletingRebalance {
		t.Errorf("before the assignment: %v, %v", err, w.state("g"))
	}
	w.assign(ra).ok()
	for _, c := range []struct {
		member     string
		generation int32
		want       error
	}{{"x", 1, ErrUnknownMember}, {rb.Member, 0, ErrIllegalGeneration}, {rb.Member, 2, ErrIllegalGeneration}, {rb.Member, 1, nil}} {
		if err := w.beat(c.member, c.generation); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	w.join(request("")).waits()
	if err := w.beat(rb.Member, 1); !errors.Is(err, ErrRebalanceInProgress) {
		t.Errorf("in a rebalance: %v", err)
	}
}

func TestSilentMemberLosesItsSessionAndItsPlace(t *testing.T) {
	w := newWorld(t, 1)
	ids, gen := w.stable(2)
	for range 3 {
		w.clock.Advance(4 * time.Second)
		err := w.beat(ids[0], gen)
		if err != nil && !errors.Is(err, ErrRebalanceInProgress) {
			t.Fatal(err)
		}
	}
	if s := w.state("g"); s != PreparingRebalance {
		t.Fatalf("after 12 s without a heartbeat of one: %v", s)
	}
	if err := w.beat(ids[1], gen); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("the silent one: %v", err)
	}
	if r := w.join(request(ids[0])).ok(); r.Generation != gen+1 || len(r.Members) != 1 {
		t.Errorf("the other: %+v", r)
	}
}

func TestMemberThatDoesNotRejoinIsRemovedAtTheRebalanceTimeout(t *testing.T) {
	w := newWorld(t, 1)
	ids, gen := w.stable(2)
	j := w.join(request("")) // a third
	first := w.join(request(ids[0]))
	for range 14 {
		w.clock.Advance(4 * time.Second)
		if err := w.beat(ids[1], gen); !errors.Is(err, ErrRebalanceInProgress) {
			t.Fatal(err) // it lives, but does not join
		}
	}
	j.waits()
	w.clock.Advance(4 * time.Second)
	if r := first.ok(); len(r.Members) != 2 || r.Generation != gen+1 {
		t.Errorf("%+v", r)
	}
	j.ok()
	if err := w.beat(ids[1], gen); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("who stayed away: %v", err)
	}
}

func TestMemberThatDoesNotSyncIsRemoved(t *testing.T) {
	w := newWorld(t, 1)
	a, b := w.join(request("")), w.join(request(""))
	w.clock.Advance(6 * time.Second)
	ra, rb := a.ok(), b.ok()
	for range 14 {
		w.clock.Advance(4 * time.Second)
		if err := errors.Join(w.beat(ra.Member, 1), w.beat(rb.Member, 1)); err != nil {
			t.Fatal(err)
		}
	}
	// The leader does: the other is what the group waits for. What the leader had is over with the rebalance.
	w.assign(ra).ok()
	w.clock.Advance(4 * time.Second)
	if err := w.beat(rb.Member, 1); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("who did not sync: %v", err)
	}
	if err := w.beat(ra.Member, 1); !errors.Is(err, ErrRebalanceInProgress) {
		t.Errorf("who did: %v", err)
	}
}

func TestLeaderThatDoesNotAssignLosesTheLead(t *testing.T) {
	w := newWorld(t, 1)
	a, b := w.join(request("")), w.join(request(""))
	w.clock.Advance(6 * time.Second)
	ra, rb := a.ok(), b.ok()
	s := w.sync(SyncRequest{Group: "g", Generation: 1, Member: rb.Member})
	w.clock.Advance(12 * time.Second) // the leader's session ends
	s.is(ErrRebalanceInProgress)
	if r := w.join(request(rb.Member)).ok(); r.Leader != rb.Member || r.Generation != 2 {
		t.Errorf("%+v", r)
	}
	if err := w.beat(ra.Member, 1); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("the old leader: %v", err)
	}
}

func TestLostAnswersAreGivenAgain(t *testing.T) {
	w := newWorld(t, 1)
	a, b := w.join(request("")), w.join(request(""))
	w.clock.Advance(6 * time.Second)
	ra, rb := a.ok(), b.ok()
	if r := w.join(request(ra.Member)).ok(); r.Generation != 1 || len(r.Members) != 2 {
		t.Errorf("the leader's join again: %+v", r)
	}
	if r := w.join(request(rb.Member)).ok(); r.Generation != 1 || r.Members != nil {
		t.Errorf("a join again: %+v", r)
	}
	w.assign(ra).ok()
	for range 2 {
		if r := w.sync(SyncRequest{Group: "g", Generation: 1, Member: rb.Member}).ok(); string(r.Assignment) != "for "+rb.Member {
			t.Errorf("sync again: %q", r.Assignment)
		}
	}
	if r := w.join(request(rb.Member)).ok(); r.Generation != 1 {
		t.Errorf("a join again, stable: %+v", r)
	}
	if w.state("g") != Stable {
		t.Errorf("the group is %v", w.state("g"))
	}
}

func TestLeave(t *testing.T) {
	w := newWorld(t, 1)
	if each, err := w.leave(LeaveMember{Member: "x"}); err != nil || !errors.Is(each[0], ErrUnknownMember) {
		t.Errorf("unknown group: %v, %v", each, err)
	}
	ids, gen := w.stable(3)
	i := "i"
	each, err := w.leave(LeaveMember{Member: "x"}, LeaveMember{Member: ids[0]}, LeaveMember{Instance: &i}, LeaveMember{Member: ids[0], Instance: &i})
	if err != nil || !errors.Is(each[0], ErrUnknownMember) || each[1] != nil || !errors.Is(each[2], ErrUnknownMember) || !errors.Is(each[3], ErrUnknownMember) {
		t.Errorf("%v, %v", each, err)
	}
	if err := w.beat(ids[1], gen); !errors.Is(err, ErrRebalanceInProgress) {
		t.Errorf("who stays: %v", err)
	}
	// All go: the group is empty, with a generation of its own.
	waiting := w.join(request(ids[1]))
	w.leave(LeaveMember{Member: ids[1]}, LeaveMember{Member: ids[2]})
	waiting.is(ErrUnknownMember)
	if s := w.state("g"); s != Empty {
		t.Errorf("without members: %v", s)
	}
	c := &call[[]error]{t: t, what: "leave"}
	w.lead().Leave("", nil, c.done)
	c.is(ErrInvalidGroupID)
}

func TestNewMemberOfEmptyGroupGoesOnFromItsGeneration(t *testing.T) {
	w := newWorld(t, 1)
	ids, gen := w.stable(1)
	w.leave(LeaveMember{Member: ids[0]})
	j := w.join(request(""))
	w.clock.Advance(3 * time.Second)
	if r := j.ok(); r.Generation != gen+2 { // the empty one is a generation too
		t.Errorf("generation %d after %d", r.Generation, gen)
	}
}

func TestStaticMemberTakesItsPlaceWithoutRebalance(t *testing.T) {
	for _, skip := range []bool{false, true} {
		w := newWorld(t, 1)
		ids, gen := w.stable(1, static("i"))
		r := w.join(request("", static("i"), func(r *JoinRequest) { r.CanSkipAssignment = skip })).ok()
		if r.Generation != gen || r.Member == ids[0] || w.state("g") != Stable {
			t.Fatalf("%+v, %v", r, w.state("g"))
		}
		if skip && (!r.SkipAssignment || r.Leader != r.Member || len(r.Members) != 1) {
			t.Errorf("v9: %+v", r)
		}
		if !skip && (r.SkipAssignment || r.Leader == r.Member || r.Members != nil) {
			t.Errorf("before v9: %+v", r)
		}
		if s := w.sync(SyncRequest{Group: "g", Generation: gen, Member: r.Member}).ok(); string(s.Assignment) != "for "+ids[0] {
			t.Errorf("assignment %q", s.Assignment)
		}
		// The old life is fenced, where it says who it is.
		i := "i"
		for _, c := range []struct {
			instance *string
			want     error
		}{{&i, ErrFencedInstance}, {nil, ErrUnknownMember}} {
			if err := w.heartbeat(HeartbeatRequest{Group: "g", Generation: gen, Member: ids[0], Instance: c.instance}); !errors.Is(err, c.want) {
				t.Errorf("heartbeat of the old life: %v, want %v", err, c.want)
			}
			w.sync(SyncRequest{Group: "g", Generation: gen, Member: ids[0], Instance: c.instance}).is(c.want)
			w.commit(CommitRequest{Generation: gen, Member: ids[0], Instance: c.instance, Partitions: []CommitPartition{{Topic: "t"}}}).is(c.want)
			if each, _ := w.leave(LeaveMember{Member: ids[0], Instance: c.instance}); !errors.Is(each[0], c.want) {
				t.Errorf("leave of the old life: %v, want %v", each, c.want)
			}
		}
		w.join(request(ids[0], static("i"))).is(ErrFencedInstance)
	}
}

// TestStaticMemberIsWhoTheLogSays: a new life that could not be written is nobody, and the old one is the member as before.
func TestStaticMemberIsWhoTheLogSays(t *testing.T) {
	w := newWorld(t, 1)
	again := func(client string) *call[JoinResult] {
		return w.join(request("", static("i"), func(r *JoinRequest) {
			r.ClientID, r.SessionTimeout, r.RebalanceTimeout, r.CanSkipAssignment = client, 20_000, 5_000, true
			r.Protocols = []Protocol{{"range", []byte("sub of " + client)}}
		}))
	}
	was := func(what string, want Description, id string) {
		t.Helper()
		if got := w.describe("g").ok(); !reflect.DeepEqual(got, want) {
			t.Fatalf("%s: the group is %+v, was %+v", what, got, want)
		}
		instance := "i"
		if err := w.heartbeat(HeartbeatRequest{Group: "g", Generation: 1, Member: id, Instance: &instance}); err != nil {
			t.Fatalf("%s: heartbeat of the member: %v", what, err)
		}
		if j := again("c"); j.err != nil || !j.value.SkipAssignment {
			t.Fatalf("%s: the next life: %+v, %v", what, j.value, j.err)
		}
		w.move(0)
		if d := w.describe("g").ok(); len(d.Members) != 1 || d.Members[0].ClientID != "c" {
			t.Fatalf("%s: in the log: %+v", what, d)
		}
	}

	ids, _ := w.stable(1, static("i"))
	first := w.describe("g").ok()
	w.log.fail = multiraft.ErrOverloaded
	if r := again("a").is(ErrNotAvailable); r.Member != "" || r.Members != nil {
		t.Errorf("a join that failed says %+v", r)
	}
	w.log.fail = nil
	was("one life", first, ids[0])

	// Two lives, one in the other's place, and neither is written.
	w = newWorld(t, 1)
	ids, _ = w.stable(1, static("i"))
	first = w.describe("g").ok()
	w.log.hold = true
	a, b := again("a"), again("b")
	w.log.release(multiraft.ErrOverloaded)
	a.is(ErrNotAvailable)
	b.is(ErrNotAvailable)
	was("two lives", first, ids[0])

	// Of two the first is written: it is the member once the second is not.
	w = newWorld(t, 1)
	w.stable(1, static("i"))
	w.log.hold = true
	a, b = again("a"), again("b")
	w.log.held[0](nil)
	w.log.held = w.log.held[1:]
	w.log.release(multiraft.ErrOverloaded)
	r := a.ok()
	b.is(ErrNotAvailable)
	second := w.describe("g").ok()
	if len(second.Members) != 1 || second.Members[0].ID != r.Member || second.Members[0].ClientID != "a" {
		t.Fatalf("%+v, the first life is %q", second, r.Member)
	}
	was("the second of two", second, r.Member)

	// A rebalance has begun meanwhile: what its generation says is what counts.
	w = newWorld(t, 1)
	w.stable(1, static("i"))
	w.log.hold = true
	a = again("a")
	w.join(request("", func(r *JoinRequest) { r.ClientID, r.RebalanceTimeout = "other", 5_000 }))
	w.clock.Advance(6 * time.Second) // longer than a rebalance waits
	w.log.held[0](multiraft.ErrOverloaded)
	w.log.held = w.log.held[1:]
	w.log.release(nil)
	a.is(ErrNotAvailable)
	before := w.describe("g").ok()
	w.move(0)
	if after := w.describe("g").ok(); len(after.Members) != 2 || len(before.Members) != 2 || after.Members[0].ID != before.Members[0].ID {
		t.Fatalf("in memory %+v, in the log %+v", before.Members, after.Members)
	}
}

// A leader's next life is being written when another member joins again: that is told of the leader in the log (simulator, seed 7171).
func TestALeadersNextLifeIsToldOnceItIsWritten(t *testing.T) {
	w := newWorld(t, 1)
	var dynamic bool
	ids, _ := w.stable(2, func(r *JoinRequest) {
		if !dynamic {
			static("i")(r)
		}
		dynamic = true
	})
	if d := w.describe("g").ok(); d.Members[0].Instance == nil || d.Members[0].ID != ids[0] {
		t.Fatalf("the leader is not static: %+v", d)
	}
	again := func() string { return w.join(request(ids[1])).ok().Leader }
	w.log.hold = true
	next := w.join(request("", static("i")))
	if leader := again(); next.ended || leader != ids[0] {
		t.Errorf("before it is written, %s leads instead of %s", leader, ids[0])
	}
	w.log.release(nil)
	if id, leader := next.ok().Member, again(); leader != id {
		t.Errorf("once it is written, %s leads instead of %s", leader, id)
	}
}

func TestStaticMemberWithAnotherSubscriptionRebalancesOnlyIfTheProtocolChanges(t *testing.T) {
	w := newWorld(t, 1)
	of := func(names ...string) func(*JoinRequest) {
		return func(r *JoinRequest) {
			r.Protocols = nil
			for _, n := range names {
				r.Protocols = append(r.Protocols, Protocol{n, []byte(n)})
			}
		}
	}
	_, gen := w.stable(1, static("i"), of("range", "sticky"))
	if r := w.join(request("", static("i"), of("range"))).ok(); r.Generation != gen || w.state("g") != Stable {
		t.Errorf("the protocol stays: %+v, %v", r, w.state("g"))
	}
	if r := w.join(request("", static("i"), of("range", "sticky"))).ok(); r.Generation != gen {
		t.Errorf("the protocol stays: %+v", r)
	}
	if r := w.join(request("", static("i"), of("sticky", "range"))).ok(); r.Generation != gen+1 || r.Protocol != "sticky" {
		t.Errorf("the protocol changes: %+v", r)
	}
}

func TestTwoStaticMembersWithOneInstanceFenceEachOther(t *testing.T) {
	w := newWorld(t, 1)
	a := w.join(request("", static("i")))
	b := w.join(request("", static("i")))
	a.is(ErrFencedInstance)
	w.clock.Advance(10 * time.Second)
	if r := b.ok(); len(r.Members) != 1 {
		t.Errorf("%+v", r)
	}
}

func TestStaticMemberIsKeptThroughARebalanceUntilItsSessionEnds(t *testing.T) {
	w := newWorld(t, 1)
	_, gen := w.stable(1, static("i"))
	w.clock.Advance(5 * time.Second)
	j := w.join(request(""))
	j.waits()
	w.clock.Advance(5500 * time.Millisecond) // the static one's session ends: nobody else is waited for
	if r := j.ok(); len(r.Members) != 1 || r.Generation != gen+1 {
		t.Errorf("%+v", r)
	}
	// An administrator can send one away by its instance.
	w2 := newWorld(t, 1)
	w2.stable(1, static("i"))
	i := "i"
	if each, err := w2.leave(LeaveMember{Instance: &i}); err != nil || each[0] != nil || w2.state("g") != Empty {
		t.Errorf("%v, %v, %v", each, err, w2.state("g"))
	}
}

// A member's id is written down with two bytes for its length: of a client's or an instance's name that leaves no room it has the beginning.
func TestMemberOfAClientWithALongNameSurvivesAMove(t *testing.T) {
	for _, change := range []func(*JoinRequest){func(r *JoinRequest) { r.ClientID = strings.Repeat("é", 1<<15/2-1) }, static(strings.Repeat("i", 1<<15-1))} {
		w := newWorld(t, 2)
		ids, generation := w.stable(1, change)
		if len(ids[0]) >= 1<<15 || !utf8.ValidString(ids[0]) {
			t.Fatalf("an id of %d bytes", len(ids[0]))
		}
		w.move(1)
		if err := w.beat(ids[0], generation); err != nil {
			t.Errorf("after a move: %v", err)
		}
	}
}
