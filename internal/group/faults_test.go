package group

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/multiraft"
)

// Where only a static member is left that does not come, the rebalance goes on, and nobody turns round in it without a pause: not
// either where that member has said that it needs no time.
func TestRebalanceOfAnAbsentStaticMemberIsNotABusyLoop(t *testing.T) {
	w := newWorld(t, 1)
	a, b := w.join(request("", static("i"))), w.join(request(""))
	w.clock.Advance(6 * time.Second)
	w.assign(a.ok())
	w.sync(SyncRequest{Group: "g", Generation: 1, Member: b.ok().Member}).ok()
	hurried := func(r *JoinRequest) { r.RebalanceTimeout = 0 }
	next := w.join(request("", hurried, static("i"))).ok() // its next life
	w.leave(LeaveMember{Member: b.value.Member})
	w.clock.Advance(3 * time.Second)
	if err := w.heartbeat(HeartbeatRequest{Group: "g", Member: next.Member, Generation: 1}); !errors.Is(err, ErrRebalanceInProgress) {
		t.Fatal(err)
	}
	if r := w.join(request(next.Member, hurried, static("i"))).ok(); r.Generation != 2 {
		t.Errorf("%+v", r)
	}
}

// A group is deleted when all of its tombstones are committed, also where the leadership goes in between.
func TestDeleteIsNotAnsweredByItsFirstBatch(t *testing.T) {
	w := newWorld(t, 2)
	var parts []CommitPartition
	for i := range 3000 {
		parts = append(parts, at(strings.Repeat("t", 200), int32(i), 1)...)
	}
	w.commit(outside(parts)).ok()
	w.log.hold = true
	del := w.delete("g")
	if len(w.log.held) < 2 {
		t.Fatalf("%d batches", len(w.log.held))
	}
	first, rest := w.log.held[0], w.log.held[1:]
	// The first batch reaches the others before the leadership goes, the rest does not.
	w.log.leader, w.log.term = 1, 2
	w.nodes[0].Observe()
	w.log.leader, w.log.term = 0, 1
	first(nil)
	w.log.leader, w.log.term = 1, 2
	del.waits()
	for _, f := range rest {
		f(&multiraft.NotLeaderError{LeaderNode: -1})
	}
	del.is(ErrNotCoordinator)
}

// Whoever asks again for its place in a generation is answered when that one is committed, not the one before.
func TestLostJoinAnswerWaitsForItsOwnGeneration(t *testing.T) {
	w := newWorld(t, 1)
	a, b := w.join(request("")), w.join(request(""))
	w.log.hold = true
	w.clock.Advance(6 * time.Second)
	first, second := "client-id1", "client-id2"
	more := func(r *JoinRequest) { r.Protocols = append(r.Protocols, Protocol{"more", nil}) }
	w.join(request(second, more))
	w.join(request(first))
	again := w.join(request(first))
	if len(w.log.held) != 2 {
		t.Fatalf("%d writes under way", len(w.log.held))
	}
	w.log.held[0](nil)
	if a.ok().Generation != 1 || b.ok().Generation != 1 {
		t.Fatalf("%+v %+v", a.value, b.value)
	}
	again.waits()
	w.log.held[1](nil)
	if r := again.ok(); r.Generation != 2 {
		t.Errorf("%+v", r)
	}
}

// A write of the classic group that fails after the group has begun to become a consumer group leaves no timer of its members behind.
func TestFailedWriteOfAGroupThatIsUpgraded(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 4})
	instance := "i"
	join := subscribes("", nil, "t")
	join.Instance = &instance
	first := w.join(join)
	w.clock.Advance(3 * time.Second)
	r := first.ok()
	w.sync(SyncRequest{Group: "g", Generation: r.Generation, Member: r.Member, Assignments: []Assignment{{r.Member, assignment(0, 1, 2, 3)}}}).ok()
	w.log.hold = true
	w.join(join) // the member's next life
	up := w.consume(enters("m", "t"))
	if len(w.log.held) != 2 {
		t.Fatalf("%d writes under way", len(w.log.held))
	}
	w.log.held[0](fmt.Errorf("%w: later", multiraft.ErrOverloaded))
	w.log.held[1](nil)
	up.ok()
	w.log.hold = false
	for range 6 {
		w.clock.Advance(10 * time.Second)
	}
}

// What one request can make the coordinator do grows with its size, and not with its square: nobody else's group waits for it.
func TestManyProtocolsAreCountedOnce(t *testing.T) {
	many := func(r *JoinRequest) {
		r.Protocols = make([]Protocol, 150_000)
		for i := range r.Protocols {
			r.Protocols[i].Name = fmt.Sprintf("%06x", i)
		}
	}
	w := newWorld(t, 1)
	a, b := w.join(request("", many)), w.join(request("", many))
	b.is(ErrGroupFull) // what a protocol takes beside its name counts, too
	w.clock.Advance(6 * time.Second)
	if r := a.ok(); r.Protocol != "000000" {
		t.Errorf("protocol %q", r.Protocol)
	}
}
