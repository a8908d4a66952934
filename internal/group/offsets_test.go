package group

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/record"
)

func at(topic string, p int32, offset int64) []CommitPartition {
	return []CommitPartition{{Topic: topic, Partition: p, Offset: offset, LeaderEpoch: -1}}
}

// outside is a commit of somebody who is no member.
func outside(parts []CommitPartition) CommitRequest {
	return CommitRequest{Generation: -1, Partitions: parts}
}

func TestCommitErrors(t *testing.T) {
	w := newWorld(t, 1)
	w.commit(CommitRequest{Generation: 3, Member: "m", Version: 8}).is(ErrIllegalGeneration)
	w.commit(CommitRequest{Generation: 3, Member: "m", Version: 9}).is(ErrGroupNotFound)
	ids, gen := w.stable(2)
	i := "i"
	parts := at("t", 0, 5)
	for _, c := range []struct {
		name string
		req  CommitRequest
		want error
	}{
		{"from outside while there are members", outside(parts), ErrUnknownMember},
		{"an unknown member", CommitRequest{Member: "x", Generation: gen}, ErrUnknownMember},
		{"an unknown instance", CommitRequest{Member: ids[0], Instance: &i, Generation: gen}, ErrUnknownMember},
		{"an old generation", CommitRequest{Member: ids[0], Generation: gen - 1}, ErrIllegalGeneration},
		{"a generation to come", CommitRequest{Member: ids[0], Generation: gen + 1}, ErrIllegalGeneration},
		{"a member without generation", CommitRequest{Member: ids[0], Generation: -1}, ErrIllegalGeneration},
		{"a member", CommitRequest{Member: ids[0], Generation: gen, Partitions: parts}, nil},
	} {
		t.Run(c.name, func(t *testing.T) { w.commit(c.req).is(c.want) })
	}
	first := w.join(request(ids[0]))
	w.commit(CommitRequest{Member: ids[1], Generation: gen, Partitions: parts}).ok() // while others join it may still commit
	w.join(request(ids[1]))
	w.commit(CommitRequest{Member: ids[1], Generation: first.ok().Generation, Partitions: parts}).is(ErrRebalanceInProgress)
}

func TestMetadataTooLargeIsAnErrorOfItsPartition(t *testing.T) {
	w := newWorld(t, 1)
	parts := append(at("t", 0, 5), at("t", 1, 6)...)
	parts[0].Metadata = strings.Repeat("x", 4097)
	parts[1].Metadata = strings.Repeat("x", 4096)
	each := w.commit(outside(parts)).ok()
	if !errors.Is(each[0], ErrMetadataTooLarge) || each[1] != nil {
		t.Fatal(each)
	}
	if got := w.fetch("g"); len(got) != 1 || got[0].Partition != 1 {
		t.Errorf("%+v", got)
	}
	// Refused as a whole, it leaves no group.
	req := outside(parts[:1])
	req.Group = "other"
	w.commit(req).ok()
	w.describe("other").is(ErrGroupNotFound)
}

func TestCommitIsAnsweredAndSeenOnceItIsCommitted(t *testing.T) {
	w := newWorld(t, 1)
	w.commit(outside(at("t", 0, 1))).ok()
	w.log.hold = true
	c := w.commit(outside(at("t", 0, 2)))
	c.waits()
	if got := w.fetch("g"); got[0].Offset != 1 {
		t.Errorf("an offset that is not committed is fetched: %+v", got)
	}
	w.log.release(nil)
	c.ok()
	if got := w.fetch("g"); got[0].Offset != 2 {
		t.Errorf("%+v", got)
	}
}

func TestAppendErrors(t *testing.T) {
	for _, c := range []struct{ err, commit, join error }{
		{&multiraft.NotLeaderError{}, ErrNotCoordinator, ErrNotCoordinator},
		{multiraft.ErrOverloaded, ErrNotAvailable, ErrNotAvailable},
		{partition.ErrStorage, ErrNotCoordinator, ErrNotCoordinator},
		{partition.ErrRecordTooLarge, ErrCommitTooLarge, ErrGroupTooLarge},
	} {
		w := newWorld(t, 1)
		w.log.fail = c.err
		each := w.commit(outside(at("t", 0, 1))).ok()
		if !errors.Is(each[0], c.commit) {
			t.Errorf("commit on %v: %v", c.err, each)
		}
		w.describe("g").is(ErrGroupNotFound)
		j := w.join(request(""))
		w.clock.Advance(3 * time.Second)
		r := j.is(c.join)
		// The member can come back, and the generation that nobody was told is not given to anybody.
		w.log.fail = nil
		if got := w.join(request(r.Member)).ok(); got.Generation != 2 {
			t.Errorf("generation %d", got.Generation)
		}
	}
}

func TestAssignmentThatCannotBeWrittenRebalances(t *testing.T) {
	w := newWorld(t, 1)
	j := w.join(request(""))
	w.clock.Advance(3 * time.Second)
	r := j.ok()
	w.log.fail = partition.ErrRecordTooLarge
	w.assign(r).is(ErrGroupTooLarge)
	w.log.fail = nil
	if err := w.beat(r.Member, 1); !errors.Is(err, ErrRebalanceInProgress) {
		t.Error(err)
	}
}

func TestUnknownOutcomeIsLookedUpInTheLog(t *testing.T) {
	for _, committed := range []bool{false, true} {
		w := newWorld(t, 1)
		w.commit(outside(at("t", 0, 1))).ok()
		w.log.hold = true
		c := w.commit(outside(at("t", 0, 2)))
		if committed {
			w.log.held = append([]func(error){func(error) {
				b, _ := encodeBatch(0, []keyValue{offsetRecord("g", topicPartition{"t", 0}, &offset{offset: 2, expires: -1, leaderEpoch: -1})})
				record.SetOffset(b, w.log.end, 1)
				w.log.batches, w.log.end = append(w.log.batches, b), w.log.end+1
			}}, w.log.held...)
		}
		w.log.release(multiraft.ErrUnknownOutcome)
		if each := c.ok(); !errors.Is(each[0], ErrNotCoordinator) {
			t.Errorf("%v", each)
		}
		w.settle()
		want := int64(1)
		if committed {
			want = 2
		}
		if got := w.fetch("g"); got[0].Offset != want {
			t.Errorf("committed %v: %+v", committed, got)
		}
	}
}

// What an earlier life of the shard wrote may be committed after it was dropped: the next one must not read before that.
func TestLoadWaitsForEarlierWrites(t *testing.T) {
	w := newWorld(t, 1)
	w.log.hold = true
	first, second := w.commit(outside(at("t", 0, 1))), w.commit(outside(at("t", 0, 2)))
	held := w.log.held
	w.log.held, w.log.hold = nil, false
	held[0](multiraft.ErrUnknownOutcome)
	w.settle()
	c := &call[[]FetchedOffset]{t: t, what: "fetch"}
	w.lead().Fetch(FetchRequest{Group: "g", Epoch: -1, All: true}, c.done)
	c.is(ErrLoading)
	held[1](nil)
	w.settle()
	if got := w.fetch("g"); len(got) != 1 || got[0].Offset != 2 {
		t.Errorf("%+v", got)
	}
	first.ok()
	if each := second.ok(); each[0] != nil {
		t.Errorf("it is committed: %v", each)
	}
}

func TestFetchNamesWhatIsAsked(t *testing.T) {
	w := newWorld(t, 1)
	parts := append(at("b", 0, 5), at("a", 1, 6)...)
	parts[0].LeaderEpoch, parts[0].Metadata = 7, "m"
	w.commit(outside(parts)).ok()
	c := &call[[]FetchedOffset]{t: t, what: "fetch"}
	w.lead().Fetch(FetchRequest{Group: "g", Epoch: -1, Partitions: []Partition{{"b", 0}, {"b", 1}}}, c.done)
	got := c.ok()
	if got[0] != (FetchedOffset{"b", 0, 5, 7, "m"}) || got[1] != (FetchedOffset{"b", 1, -1, -1, ""}) {
		t.Errorf("%+v", got)
	}
	if all := w.fetch("g"); all[0].Topic != "a" || all[1].Topic != "b" || len(all) != 2 {
		t.Errorf("%+v", all)
	}
	if none := w.fetch("unknown"); len(none) != 0 {
		t.Errorf("%+v", none)
	}
}

func consumerMetadata(topics ...string) []byte {
	m := kmsg.NewConsumerMemberMetadata()
	m.Version, m.Topics = 1, topics
	return m.AppendTo(nil)
}

func subscribing(topics ...string) func(*JoinRequest) {
	return func(r *JoinRequest) { r.Protocols[0].Metadata = consumerMetadata(topics...) }
}

func (w *world) deleteOffsets(parts ...Partition) *call[[]error] {
	c := &call[[]error]{t: w.t, what: "delete offsets"}
	w.lead().DeleteOffsets("g", parts, c.done)
	return c
}

func TestDeleteOffsets(t *testing.T) {
	w := newWorld(t, 1)
	w.deleteOffsets(Partition{"t", 0}).is(ErrGroupNotFound)
	w.commit(outside(append(append(at("t", 0, 1), at("u", 0, 1)...), at("v", 0, 1)...))).ok()
	w.stable(1, subscribing("u"))
	each := w.deleteOffsets(Partition{"t", 0}, Partition{"u", 0}, Partition{"none", 0}).ok()
	if each[0] != nil || !errors.Is(each[1], ErrSubscribed) || each[2] != nil {
		t.Errorf("%v", each)
	}
	if got := w.fetch("g"); len(got) != 2 || got[0].Topic != "u" {
		t.Errorf("%+v", got)
	}
	c := &call[[]error]{t: t, what: "delete offsets"}
	w.lead().DeleteOffsets("", nil, c.done)
	c.is(ErrInvalidGroupID)
	// The last offset does not take the group with it.
	w3 := newWorld(t, 1)
	w3.commit(outside(at("t", 0, 1))).ok()
	w3.deleteOffsets(Partition{"t", 0}).ok()
	w3.deleteOffsets(Partition{"t", 0}).ok()
	w3.clock.Advance(11 * time.Minute)
	w3.describe("g").is(ErrGroupNotFound)
	w2 := newWorld(t, 1)
	w2.stable(1, func(r *JoinRequest) { r.ProtocolType = "connect" })
	w2.deleteOffsets(Partition{"t", 0}).is(ErrNonEmptyGroup)
}

func TestDeleteGroup(t *testing.T) {
	w := newWorld(t, 2)
	w.delete("").is(ErrGroupNotFound)
	w.delete("g").is(ErrGroupNotFound)
	ids, _ := w.stable(1)
	w.delete("g").is(ErrNonEmptyGroup)
	w.leave(LeaveMember{Member: ids[0]})
	// A commit under way is in the log before the tombstones, and goes with them.
	w.log.hold = true
	c := w.commit(outside(at("t", 0, 1)))
	d := w.delete("g")
	w.commit(outside(at("t", 1, 1))).is(ErrNotAvailable)
	w.join(request("")).is(ErrNotAvailable)
	w.log.release(nil)
	c.ok()
	d.ok()
	w.describe("g").is(ErrGroupNotFound)
	w.move(1)
	w.describe("g").is(ErrGroupNotFound)
	if got := w.fetch("g"); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestDeleteThatFailsLeavesWhatTheLogHas(t *testing.T) {
	w := newWorld(t, 1)
	w.commit(outside(at("t", 0, 1))).ok()
	w.log.fail = multiraft.ErrOverloaded
	w.delete("g").is(ErrNotAvailable)
	w.log.fail = nil
	w.settle()
	if got := w.fetch("g"); len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

// That the group has become empty could not be written: in the log it has a member, and its offsets stay until it has none there (simulator, seed 3161).
func TestNothingExpiresBeforeItIsWrittenThatTheGroupIsEmpty(t *testing.T) {
	w := newWorld(t, 2)
	ids, gen := w.stable(1)
	w.commit(CommitRequest{Member: ids[0], Generation: gen, Partitions: at("t", 0, 1)}).ok()
	w.log.fail = multiraft.ErrOverloaded
	w.clock.Advance(8 * 24 * time.Hour)
	w.log.fail = nil
	if s := w.state("g"); s != Empty {
		t.Fatalf("the group is %v", s)
	}
	w.log.hold = true
	w.clock.Advance(time.Hour) // beyond the next look
	if len(w.log.held) == 0 {
		t.Fatal("it is not tried again")
	}
	w.log.held[0](nil)
	w.move(1)
	if got := w.fetch("g"); len(got) != 1 || w.state("g") != Empty {
		t.Fatalf("in the log the group is %v, with %+v", w.state("g"), got)
	}
	w.clock.Advance(8 * 24 * time.Hour)
	w.describe("g").is(ErrGroupNotFound)
}

func TestOffsetsExpire(t *testing.T) {
	day := 24 * time.Hour
	for _, c := range []struct {
		name    string
		prepare func(w *world)
		kept    time.Duration // still there after it
		gone    time.Duration
	}{
		{"of nobody's group, after the commit", func(w *world) { w.commit(outside(at("t", 0, 1))).ok() }, 7*day - time.Hour, 7*day + time.Hour},
		{"by a retention of its own", func(w *world) {
			req := outside(at("t", 0, 1))
			req.RetentionMs = day.Milliseconds()
			w.commit(req).ok()
		}, day - time.Hour, day + time.Hour},
		{"of a group that is empty, since it is", func(w *world) {
			ids, gen := w.stable(1, func(r *JoinRequest) { r.SessionTimeout = 1_800_000 })
			w.commit(CommitRequest{Member: ids[0], Generation: gen, Partitions: at("t", 0, 1)}).ok()
			for range 2 * 24 * 5 {
				w.clock.Advance(29 * time.Minute)
				if err := w.beat(ids[0], gen); err != nil {
					w.t.Fatal(err)
				}
			}
			w.leave(LeaveMember{Member: ids[0]})
		}, 7*day - time.Hour, 7*day + time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 2)
			c.prepare(w)
			w.clock.Advance(c.kept)
			if got := w.fetch("g"); len(got) != 1 {
				t.Fatalf("after %v: %+v", c.kept, got)
			}
			w.clock.Advance(c.gone - c.kept)
			w.describe("g").is(ErrGroupNotFound)
			w.move(1)
			w.describe("g").is(ErrGroupNotFound)
		})
	}
}

func TestOffsetsOfTopicsNoLongerSubscribedExpire(t *testing.T) {
	w := newWorld(t, 1)
	long := func(r *JoinRequest) { r.SessionTimeout = 1_800_000 }
	ids, gen := w.stable(1, subscribing("t"), long)
	w.commit(CommitRequest{Member: ids[0], Generation: gen, Partitions: append(at("t", 0, 1), at("old", 0, 1)...)}).ok()
	for range 2 * 24 * 8 {
		w.clock.Advance(29 * time.Minute)
		if err := w.beat(ids[0], gen); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.fetch("g"); len(got) != 1 || got[0].Topic != "t" {
		t.Errorf("%+v", got)
	}
}

func TestOffsetsOfDeletedTopicsGo(t *testing.T) {
	w := newWorld(t, 2)
	w.commit(outside(append(at("t", 0, 1), at("u", 0, 1)...))).ok()
	w.lead().DropTopics(map[uuid.UUID]string{{1}: "t"})
	w.move(1)
	if got := w.fetch("g"); len(got) != 1 || got[0].Topic != "u" {
		t.Errorf("%+v", got)
	}
	w.lead().DropTopics(map[uuid.UUID]string{{2}: "u"})
	if got := w.fetch("g"); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// A topic is deleted and made again, and a consumer of the new one commits before the coordinator hears that the old one is gone: only
// what was committed for the old one goes with it.
func TestCommitsForATopicMadeAgainStay(t *testing.T) {
	image := metadata.Empty()
	is := func(id byte) {
		next := *image
		topic := &metadata.Topic{Name: "t", ID: uuid.UUID{id}, Partitions: make([]*metadata.Partition, 2)}
		next.Topics = map[string]*metadata.Topic{"t": topic}
		image = &next
	}
	w := newWorld(t, 2, func(c *Config) { c.Image = func() *metadata.Image { return image } })
	is(1)
	w.commit(outside(append(at("t", 0, 10), at("t", 1, 10)...))).ok()
	is(2)
	w.commit(outside(at("t", 1, 3))).ok()
	left := func(when string) {
		t.Helper()
		if got := w.fetch("g"); len(got) != 1 || got[0].Partition != 1 || got[0].Offset != 3 {
			t.Errorf("%s: %+v", when, got)
		}
	}
	w.lead().DropTopics(map[uuid.UUID]string{{1}: "t"})
	left("the old topic is gone")
	w.move(1)
	w.lead().DropTopics(map[uuid.UUID]string{{1}: "t"}) // another node hears of it later
	left("loaded")
	w.lead().DropTopics(map[uuid.UUID]string{{2}: "t"})
	if got := w.fetch("g"); len(got) != 0 {
		t.Errorf("both topics are gone: %+v", got)
	}
}

// A topic is deleted and made again. What was committed for the old one is nobody's from then on, also while that can't be written, and the
// next look at what has expired writes it.
func TestOffsetsOfADeletedTopicAreNotTheNextOnes(t *testing.T) {
	image := metadata.Empty()
	is := func(id byte) {
		next := *image
		topic := &metadata.Topic{Name: "t", ID: uuid.UUID{id}, Partitions: make([]*metadata.Partition, 1)}
		next.Topics = map[string]*metadata.Topic{"t": topic}
		image = &next
	}
	w := newWorld(t, 2, func(c *Config) { c.Image = func() *metadata.Image { return image } })
	is(1)
	w.commit(outside(at("t", 0, 10))).ok()
	is(2)
	none := func(when string) {
		t.Helper()
		if got := w.fetch("g"); len(got) != 0 {
			t.Errorf("%s: %+v", when, got)
		}
		one := &call[[]FetchedOffset]{t: t, what: "fetch"}
		w.lead().Fetch(FetchRequest{Group: "g", Epoch: -1, Partitions: []Partition{{"t", 0}}}, one.done)
		if got := one.ok(); len(got) != 1 || got[0].Offset != -1 {
			t.Errorf("%s: %+v", when, got)
		}
	}
	none("before the coordinator hears of it")
	w.log.fail = multiraft.ErrOverloaded
	w.lead().DropTopics(map[uuid.UUID]string{{1}: "t"})
	w.log.fail = nil
	none("not written")
	w.clock.Advance(11 * time.Minute)
	w.move(1)
	none("another coordinator")
}

// However long a client wants an offset to be kept, it is.
func TestRetentionBeyondTheEndOfTime(t *testing.T) {
	w := newWorld(t, 1)
	req := outside(at("t", 0, 1))
	req.RetentionMs = math.MaxInt64
	w.commit(req).ok()
	w.clock.Advance(30 * 24 * time.Hour)
	if got := w.fetch("g"); len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

func TestList(t *testing.T) {
	w := newWorld(t, 1)
	w.stable(1)
	req := outside(at("t", 0, 1))
	req.Group = "a"
	w.commit(req).ok()
	for _, c := range []struct {
		states, types []string
		want          string
	}{
		{nil, nil, "a g"}, {[]string{"stable"}, nil, "g"}, {[]string{"Empty", "Dead"}, nil, "a"}, {[]string{"nonsense"}, nil, ""},
		{nil, []string{"Classic"}, "a g"}, {nil, []string{"consumer"}, ""}, {[]string{"Stable"}, []string{"classic"}, "g"},
	} {
		all, err := w.lead().List(c.states, c.types)
		var ids []string
		for _, l := range all {
			ids = append(ids, l.ID)
		}
		if got := strings.Join(ids, " "); err != nil || got != c.want {
			t.Errorf("%v %v: %q, %v", c.states, c.types, got, err)
		}
	}
	all, _ := w.lead().List([]string{"Stable"}, nil)
	if all[0] != (Listed{"g", "consumer", "Stable", "classic"}) {
		t.Errorf("%+v", all)
	}
}

func TestPartitionOfIsJavas(t *testing.T) {
	// String.hashCode of well-known values: "polygenelubricants" is Integer.MIN_VALUE, whose sign must not survive.
	if got := PartitionOf("polygenelubricants", 50); got != 0 {
		t.Errorf("MIN_VALUE: %d", got)
	}
	// "hello" is 99162322; U+1F600 is two UTF-16 units: 31*0xd83d + 0xde00 = 1772899.
	if got := PartitionOf("hello", 1<<30); got != 99162322 {
		t.Errorf("hello: %d", got)
	}
	if got := PartitionOf("\U0001F600", 1<<30); got != 1772899 {
		t.Errorf("a surrogate pair: %d", got)
	}
}
