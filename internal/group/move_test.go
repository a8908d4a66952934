package group

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/record"
)

func TestGroupSurvivesAMoveOfItsCoordinator(t *testing.T) {
	w := newWorld(t, 2)
	ids, gen := w.stable(2)
	w.commit(CommitRequest{Member: ids[0], Generation: gen, Partitions: at("t", 0, 7)}).ok()
	w.move(1)
	for _, id := range ids {
		if err := w.beat(id, gen); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		if s := w.sync(SyncRequest{Group: "g", Generation: gen, Member: id}).ok(); string(s.Assignment) != "for "+id {
			t.Errorf("%s has %q", id, s.Assignment)
		}
	}
	if err := w.beat(ids[0], gen-1); !errors.Is(err, ErrIllegalGeneration) {
		t.Errorf("a stale generation: %v", err)
	}
	w.commit(CommitRequest{Member: ids[0], Generation: gen - 1, Partitions: at("t", 0, 3)}).is(ErrIllegalGeneration)
	if got := w.fetch("g"); got[0].Offset != 7 {
		t.Errorf("%+v", got)
	}
	// The old coordinator knows that it is none.
	c := &call[struct{}]{t: t, what: "heartbeat"}
	w.nodes[0].Heartbeat(HeartbeatRequest{Group: "g", Member: ids[0], Generation: gen}, func(err error) { c.done(struct{}{}, err) })
	c.is(ErrNotCoordinator)
	// Sessions go on: who does not find the new one loses its place.
	w.clock.Advance(9 * time.Second)
	if err := w.beat(ids[0], gen); err != nil {
		t.Error(err)
	}
	w.clock.Advance(2 * time.Second)
	if err := w.beat(ids[1], gen); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("silent after the move: %v", err)
	}
}

// A generation that members were told of is never given to others, though its assignment was not there yet when the
// coordinator moved; and its leader can still bring that.
func TestGenerationSurvivesAMoveBeforeItsAssignment(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.join(request("")), w.join(request(""))
	w.clock.Advance(6 * time.Second)
	ra, rb := a.ok(), b.ok()
	w.move(1)
	if s := w.state("g"); s != CompletingRebalance {
		t.Fatalf("%v", s)
	}
	s := w.sync(SyncRequest{Group: "g", Generation: 1, Member: rb.Member})
	s.waits()
	w.assign(ra).ok()
	if got := string(s.ok().Assignment); got != "for "+rb.Member {
		t.Errorf("%q", got)
	}
	c := w.join(request(""))
	w.join(request(ra.Member))
	w.join(request(rb.Member))
	if r := c.ok(); r.Generation != 2 {
		t.Errorf("generation %d", r.Generation)
	}
}

func TestWaitingMembersAreSentToTheNewCoordinator(t *testing.T) {
	w := newWorld(t, 2)
	ids, gen := w.stable(3)
	j := w.join(request(ids[0]))
	w.move(1)
	j.is(ErrNotCoordinator)
	if err := w.beat(ids[1], gen); err != nil {
		t.Errorf("the rebalance was the old coordinator's: %v", err)
	}
	a, b, c := w.join(request(ids[0])), w.join(request(ids[1])), w.join(request(ids[2]))
	s := w.sync(SyncRequest{Group: "g", Generation: a.ok().Generation, Member: ids[1]})
	b.ok()
	c.ok()
	s.waits()
	w.move(0)
	s.is(ErrNotCoordinator)
}

// Answers to a join leave when the generation is in the log; if the leadership goes before that, nobody is told of it.
func TestJoinIsAnsweredOnceTheGenerationIsCommitted(t *testing.T) {
	w := newWorld(t, 2)
	w.log.hold = true
	a := w.join(request(""))
	w.clock.Advance(3 * time.Second)
	a.waits()
	w.move(1)
	a.is(ErrNotCoordinator)
	w.describe("g").is(ErrGroupNotFound)
}

func TestLoadingIsDoneInChunksAndRefusesMeanwhile(t *testing.T) {
	w := newWorld(t, 2, func(c *Config) { c.Limits.LoadBytes = 100 })
	for i := range 20 {
		w.commit(outside(at("t", int32(i), int64(i)))).ok()
	}
	w.log.leader, w.log.term = 1, 2
	c := w.nodes[1]
	try := &call[[]FetchedOffset]{t: t, what: "fetch"}
	c.Fetch(FetchRequest{Group: "g", Epoch: -1, All: true}, try.done)
	try.is(ErrLoading)
	if _, err := c.List(nil, nil); !errors.Is(err, ErrLoading) {
		t.Errorf("list: %v", err)
	}
	beat := &call[struct{}]{t: t, what: "heartbeat"}
	c.Heartbeat(HeartbeatRequest{Group: "g", Member: "m"}, func(err error) { beat.done(struct{}{}, err) })
	beat.ok() // the session begins anew once the group is loaded
	steps := 1
	for c.Step() {
		steps++
	}
	if steps < 10 {
		t.Errorf("%d steps", steps)
	}
	if got := w.fetch("g"); len(got) != 20 || got[7].Offset != 7 {
		t.Errorf("%+v", got)
	}
	if reads := w.log.reads; reads < 10 {
		t.Errorf("%d reads", reads)
	}
}

func TestLoadThatLosesTheLeadershipIsGivenUp(t *testing.T) {
	w := newWorld(t, 2, func(c *Config) { c.Limits.LoadBytes = 100 })
	for i := range 5 {
		w.commit(outside(at("t", int32(i), int64(i)))).ok()
	}
	w.log.leader, w.log.term = 1, 2
	w.nodes[1].Observe()
	w.nodes[1].Step()
	w.move(0)
	if got := w.fetch("g"); len(got) != 5 {
		t.Errorf("%+v", got)
	}
	w.move(1)
	if got := w.fetch("g"); len(got) != 5 {
		t.Errorf("%+v", got)
	}
}

// What is in the log is what Kafka would have written, field by field.
func TestRecordsAreKafkas(t *testing.T) {
	w := newWorld(t, 1)
	ids, gen := w.stable(1, static("i"))
	parts := at("t", 3, 42)
	parts[0].LeaderEpoch, parts[0].Metadata = 5, "note"
	w.commit(CommitRequest{Member: ids[0], Instance: ptr("i"), Generation: gen, Partitions: parts}).ok()
	w.leave(LeaveMember{Instance: ptr("i")})
	w.delete("g").ok()
	var keys, values [][]byte
	for _, b := range w.log.batches {
		err := record.Records(b, 1<<20, func(r record.Record) error {
			keys, values = append(keys, bytes.Clone(r.Key)), append(values, bytes.Clone(r.Value))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// The generation, its assignment, the commit, the empty generation, two tombstones.
	if len(keys) != 6 || values[4] != nil || values[5] != nil {
		t.Fatalf("%d records", len(keys))
	}
	var gk kmsg.GroupMetadataKey
	var gv kmsg.GroupMetadataValue
	if err := errors.Join(gk.ReadFrom(keys[1]), gv.ReadFrom(values[1])); err != nil {
		t.Fatal(err)
	}
	m := gv.Members[0]
	if gk.Version != 2 || gk.Group != "g" || gv.Version != 3 || gv.ProtocolType != "consumer" || gv.Generation != 1 || *gv.Protocol != "range" ||
		*gv.Leader != ids[0] || m.MemberID != ids[0] || *m.InstanceID != "i" || m.ClientID != "client" || m.ClientHost != "/10.0.0.1" ||
		m.SessionTimeoutMillis != 10_000 || m.RebalanceTimeoutMillis != 60_000 || string(m.Subscription) != "sub" || string(m.Assignment) != "for "+ids[0] {
		t.Errorf("%+v\n%+v", gk, gv)
	}
	var ok kmsg.OffsetCommitKey
	var ov kmsg.OffsetCommitValue
	if err := errors.Join(ok.ReadFrom(keys[2]), ov.ReadFrom(values[2])); err != nil {
		t.Fatal(err)
	}
	if ok != (kmsg.OffsetCommitKey{Version: 1, Group: "g", Topic: "t", Partition: 3}) || ov.Version != 3 || ov.Offset != 42 || ov.LeaderEpoch != 5 ||
		ov.Metadata != "note" || ov.CommitTimestamp == 0 {
		t.Errorf("%+v\n%+v", ok, ov)
	}
	if !bytes.Equal(keys[4], keys[2]) || !bytes.Equal(keys[5], keys[1]) {
		t.Error("the tombstones are of other keys")
	}
}

func ptr[T any](v T) *T { return &v }

// Records of protocols that this version does not know, of a later Kafka, and garbage do not stand in the way.
func TestUnknownRecordsAreSkipped(t *testing.T) {
	w := newWorld(t, 2)
	b, err := encodeBatch(0, []keyValue{{[]byte{0, 3, 0, 1, 'x'}, []byte{0, 0}}, {[]byte{1}, nil}, {[]byte{0, 1, 0}, []byte{9}}, {nil, nil}})
	if err != nil {
		t.Fatal(err)
	}
	w.log.batches, w.log.end = append(w.log.batches, b), 4
	w.commit(outside(at("t", 0, 1))).ok()
	w.move(1)
	if got := w.fetch("g"); len(got) != 1 {
		t.Errorf("%+v", got)
	}
}
