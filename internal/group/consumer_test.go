package group

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/group/consumer"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// catalog is the metadata of a world: topics by name, and their partitions.
type catalog struct{ img *metadata.Image }

func (c *catalog) set(topics map[string]int) {
	img := &metadata.Image{Topics: map[string]*metadata.Topic{}, TopicsByID: map[uuid.UUID]*metadata.Topic{}}
	for name, n := range topics {
		t := &metadata.Topic{Name: name, ID: [16]byte{name[0], name[len(name)-1], 1}, Partitions: make([]*metadata.Partition, n)}
		img.Topics[name], img.TopicsByID[t.ID] = t, t
	}
	c.img = img
}

func newConsumerWorld(t testing.TB, nodes int, topics map[string]int) (*world, *catalog) {
	c := &catalog{}
	c.set(topics)
	return newWorld(t, nodes, func(cfg *Config) { cfg.Image = func() *metadata.Image { return c.img } }), c
}

func (w *world) consume(hb consumer.Heartbeat) *call[ConsumerAnswer] {
	c := &call[ConsumerAnswer]{t: w.t, what: fmt.Sprintf("heartbeat of %q in epoch %d", hb.Member, hb.Epoch)}
	w.lead().ConsumerHeartbeat(hb, c.done)
	return c
}

// enters is a join of a consumer group.
func enters(member string, topics ...string) consumer.Heartbeat {
	return consumer.Heartbeat{Version: 1, Group: "g", Member: member, ClientID: "client", RebalanceTimeout: 10_000, Topics: topics, OwnedSaid: true}
}

// lives is a heartbeat with what the member owns.
func lives(member string, a ConsumerAnswer) consumer.Heartbeat {
	return consumer.Heartbeat{Version: 1, Group: "g", Member: member, ClientID: "client", Epoch: a.Epoch, RebalanceTimeout: -1, Owned: a.Assignment, OwnedSaid: true}
}

func leaves(member string) consumer.Heartbeat {
	return consumer.Heartbeat{Version: 1, Group: "g", Member: member, Epoch: -1}
}

func (w *world) describeConsumer() consumer.Description {
	w.t.Helper()
	c := &call[consumer.Description]{t: w.t, what: "describe"}
	w.lead().DescribeConsumer("g", c.done)
	return c.ok()
}

func TestConsumerGroupSurvivesItsCoordinator(t *testing.T) {
	w, _ := newConsumerWorld(t, 3, map[string]int{"t": 4})
	a := w.consume(enters("a", "t")).ok()
	b := w.consume(enters("b", "t")).ok()
	if len(a.Assignment) != 4 || len(b.Assignment) != 0 {
		t.Fatalf("%+v %+v", a, b)
	}
	w.move(1)
	w.move(2)
	if d := w.describeConsumer(); d.State != "Reconciling" || d.Epoch != 3 || len(d.Members) != 2 {
		t.Fatalf("after two moves: %+v", d)
	}
	a = w.consume(lives("a", a)).ok() // has to give back
	a = w.consume(lives("a", a)).ok()
	w.move(0)
	b = w.consume(lives("b", b)).ok()
	if len(a.Assignment) == 0 && len(b.Assignment) != 2 {
		t.Fatalf("%+v %+v", a, b)
	}
	if list, err := w.lead().List(nil, []string{"consumer"}); err != nil || len(list) != 1 || list[0].Type != TypeConsumer || list[0].State != "Stable" {
		t.Errorf("%+v, %v", list, err)
	}
	if list, _ := w.lead().List(nil, []string{"classic"}); len(list) != 0 {
		t.Errorf("listed as classic: %+v", list)
	}
	if _, err := w.describe("g").get(); !errors.Is(err, ErrGroupNotFound) {
		t.Errorf("described as a classic group: %v", err)
	}
}

func TestConsumerWhoIsSilentGoes(t *testing.T) {
	w, _ := newConsumerWorld(t, 2, map[string]int{"t": 2})
	a := w.consume(enters("a", "t")).ok()
	w.consume(enters("b", "t")).ok()
	for range 16 {
		w.clock.Advance(5 * time.Second)
		r, err := w.consume(lives("a", a)).get()
		if err != nil {
			t.Fatal(err)
		}
		if a.Epoch = r.Epoch; r.Changed {
			a.Assignment = r.Assignment
		}
	}
	if d := w.describeConsumer(); len(d.Members) != 1 || len(a.Assignment) != 2 {
		t.Fatalf("%+v, and a has %v", d, a.Assignment)
	}
	// A new coordinator gives everybody a whole session.
	w.clock.Advance(40 * time.Second)
	w.move(1)
	w.clock.Advance(40 * time.Second)
	w.consume(lives("a", a)).ok()
	w.clock.Advance(46 * time.Second)
	w.consume(lives("a", a)).is(consumer.ErrUnknownMember)
	if d := w.describeConsumer(); d.State != "Empty" {
		t.Errorf("%+v", d)
	}
}

func TestConsumerThatDoesNotGiveBackIsRemoved(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 2})
	a := w.consume(enters("a", "t")).ok()
	b := w.consume(enters("b", "t")).ok()
	for range 4 {
		w.consume(lives("a", a)).ok() // it lives, and keeps what it had
		w.consume(lives("b", b)).ok()
		w.clock.Advance(3 * time.Second)
	}
	w.consume(lives("a", a)).is(consumer.ErrUnknownMember)
	if b = w.consume(lives("b", b)).ok(); len(b.Assignment) != 2 {
		t.Errorf("%+v", b)
	}
}

func TestWhatIsNotWrittenHasNotHappened(t *testing.T) {
	for _, c := range []struct{ err, want error }{
		{multiraft.ErrOverloaded, ErrNotAvailable},
		{&multiraft.NotLeaderError{LeaderNode: -1}, ErrNotCoordinator},
		{multiraft.ErrUnknownOutcome, ErrNotCoordinator},
	} {
		w, _ := newConsumerWorld(t, 1, map[string]int{"t": 2})
		a := w.consume(enters("a", "t")).ok()
		w.log.hold = true
		b := w.consume(enters("b", "t"))
		again := w.consume(lives("a", a))
		b.waits()
		again.waits() // what it is told depends on b
		held := w.log.held
		w.log.held, w.log.hold = nil, false
		for _, f := range held {
			f(c.err)
		}
		b.is(c.want)
		w.settle()
		if errors.Is(c.err, multiraft.ErrOverloaded) {
			if r := again.ok(); r.Changed || r.Epoch != a.Epoch {
				t.Errorf("%v: the member that was there is told %+v", c.err, r)
			}
		}
		if d := w.describeConsumer(); len(d.Members) != 1 || d.Epoch != a.Epoch || d.State != "Stable" {
			t.Errorf("%v: %+v", c.err, d)
		}
		if b := w.consume(enters("b", "t")).ok(); b.Epoch != 3 {
			t.Errorf("%v: %+v", c.err, b)
		}
	}
}

func TestManyConsumersComeInFewWrites(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 100})
	w.consume(enters("m", "t")).ok()
	w.log.hold = true
	var joins []*call[ConsumerAnswer]
	for i := range 50 {
		joins = append(joins, w.consume(enters(fmt.Sprint("m", i), "t")))
	}
	before := len(w.log.batches)
	w.log.release(nil)
	for _, j := range joins {
		j.ok()
	}
	if n := len(w.log.batches) - before; n != 2 {
		t.Errorf("50 members took %d writes", n)
	}
}

func TestLargeChangesAreWrittenInParts(t *testing.T) {
	w, _ := newConsumerWorld(t, 2, map[string]int{"t": 100_000})
	a := w.consume(enters("a", "t")).ok()
	if len(w.log.batches) < 2 || len(a.Assignment) != 100_000 {
		t.Fatalf("%d batches, %d partitions", len(w.log.batches), len(a.Assignment))
	}
	w.move(1)
	if r := w.consume(lives("a", a)).ok(); r.Changed || r.Epoch != a.Epoch {
		t.Errorf("after a move: epoch %d", r.Epoch)
	}
}

func TestNewPartitionsReachConsumers(t *testing.T) {
	w, c := newConsumerWorld(t, 1, map[string]int{"t": 1})
	a := w.consume(enters("a", "t")).ok()
	c.set(map[string]int{"t": 1, "other": 1})
	if r := w.consume(lives("a", a)).ok(); r.Epoch != a.Epoch {
		t.Errorf("another topic began epoch %d", r.Epoch)
	}
	c.set(map[string]int{"t": 3})
	if r := w.consume(lives("a", a)).ok(); len(r.Assignment) != 3 || r.Epoch != a.Epoch+1 {
		t.Errorf("%+v", r)
	}
}

func TestEmptyGroupsChangeTheirType(t *testing.T) {
	w, _ := newConsumerWorld(t, 2, map[string]int{"t": 1})
	commit := func(generation int32, member string) {
		t.Helper()
		if each := w.commit(CommitRequest{Generation: generation, Member: member, Version: 9, Partitions: at("t", 0, int64(generation)+2)}).ok(); each[0] != nil {
			t.Fatal(each[0])
		}
	}
	ids, generation := w.stable(1)
	w.consume(enters("a", "t")).is(ErrGroupNotFound) // as a consumer group
	commit(generation, ids[0])
	if each, err := w.leave(LeaveMember{Member: ids[0]}); err != nil || each[0] != nil {
		t.Fatal(err, each)
	}
	a := w.consume(enters("a", "t")).ok()
	commit(a.Epoch, "a")
	w.join(request("")).is(ErrInconsistentProtocol)
	w.sync(SyncRequest{Group: "g", Generation: 1, Member: "a"}).is(ErrUnknownMember)
	if err := w.beat("a", a.Epoch); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("a classic heartbeat: %v", err)
	}
	w.move(1)
	if d := w.describeConsumer(); len(d.Members) != 1 {
		t.Fatalf("%+v", d)
	}
	w.consume(leaves("a")).ok()
	w.stable(1)
	w.move(0)
	if s := w.state("g"); s != Stable {
		t.Errorf("the classic group is %v after a move", s)
	}
	if got := w.fetch("g"); len(got) != 1 || got[0].Offset != int64(a.Epoch)+2 {
		t.Errorf("offsets: %+v", got)
	}
}

func TestEmptyConsumerGroupIsDeletedAndExpires(t *testing.T) {
	for _, how := range []string{"deleted", "expired"} {
		w, _ := newConsumerWorld(t, 2, map[string]int{"t": 1})
		a := w.consume(enters("a", "t")).ok()
		w.commit(CommitRequest{Generation: a.Epoch, Member: "a", Version: 9, Partitions: at("t", 0, 5)}).ok()
		w.delete("g").is(ErrNonEmptyGroup)
		w.consume(leaves("a")).ok()
		if how == "deleted" {
			w.delete("g").ok()
		} else {
			w.clock.Advance(7*24*time.Hour - time.Hour)
			if len(w.fetch("g")) != 1 {
				t.Fatal("the offset expired too early")
			}
			w.clock.Advance(2 * time.Hour)
		}
		w.move(1)
		if list, err := w.lead().List(nil, nil); err != nil || len(list) != 0 {
			t.Errorf("%s: %+v, %v", how, list, err)
		}
	}
}

func TestOffsetsThatAConsumerSubscribesToDoNotExpire(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 1, "u": 1})
	a := w.consume(enters("a", "t")).ok()
	for _, topic := range []string{"t", "u"} {
		w.commit(CommitRequest{Generation: a.Epoch, Member: "a", Version: 9, Partitions: at(topic, 0, 5)}).ok()
	}
	for range 8 * 24 * 60 * 2 {
		w.clock.Advance(30 * time.Second)
		w.consume(lives("a", a)).ok()
	}
	if got := w.fetch("g"); len(got) != 1 || got[0].Topic != "t" {
		t.Errorf("left: %+v", got)
	}
	c := &call[[]error]{t: t, what: "delete offsets"}
	w.lead().DeleteOffsets("g", []Partition{{"t", 0}, {"u", 0}}, c.done)
	if each := c.ok(); !errors.Is(each[0], ErrSubscribed) || each[1] != nil {
		t.Errorf("%v", each)
	}
}

func TestRefusedConsumersLeaveNothingBehind(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 1})
	bad := "("
	hb := enters("a")
	hb.Regex = &bad
	w.consume(hb).is(consumer.ErrInvalidRegularExpression)
	w.consume(lives("a", ConsumerAnswer{Answer: consumer.Answer{Epoch: 3}})).is(ErrGroupNotFound)
	if list, _ := w.lead().List(nil, nil); len(list) != 0 || len(w.log.batches) != 0 {
		t.Errorf("%+v and %d batches", list, len(w.log.batches))
	}
}

func TestRequestsThatWaitForAConsumerGroupAreBounded(t *testing.T) {
	w, _ := newConsumerWorld(t, 1, map[string]int{"t": 1})
	a := w.consume(enters("a", "t")).ok()
	w.lead().cfg.Limits.MemberIDs = 3
	w.log.hold = true
	first := w.consume(enters("b", "t"))
	var waiting []*call[ConsumerAnswer]
	for range 3 {
		waiting = append(waiting, w.consume(lives("a", a)))
	}
	w.consume(lives("a", a)).is(ErrNotAvailable)
	if _, err := w.leave(LeaveMember{Member: "a"}); !errors.Is(err, ErrNotAvailable) {
		t.Errorf("leave: %v", err)
	}
	d := &call[consumer.Description]{t: t, what: "describe"}
	w.lead().DescribeConsumer("g", d.done)
	d.is(ErrNotAvailable)
	w.lead().Close()
	for _, c := range waiting {
		c.is(ErrNotCoordinator)
	}
	w.log.release(nil)
	first.ok() // it is committed all the same
}

// What is set for a group counts from its members' next heartbeat on, whatever counted when they joined.
func TestAGroupsOwnTimeoutsCountAtOnce(t *testing.T) {
	session, interval := 45*time.Second, 5*time.Second
	c := &catalog{}
	c.set(map[string]int{"a": 1})
	w := newWorld(t, 1, func(cfg *Config) {
		cfg.Image = func() *metadata.Image { return c.img }
		cfg.Consumer = func(string) (time.Duration, time.Duration) { return session, interval }
	})
	m := w.consume(enters("m", "a")).ok()
	if m.Interval != 5*time.Second {
		t.Errorf("told to send a heartbeat every %v", m.Interval)
	}
	session, interval = 60*time.Second, 10*time.Second
	if a := w.consume(lives("m", m)).ok(); a.Interval != 10*time.Second {
		t.Errorf("told to send a heartbeat every %v after the change", a.Interval)
	}
	w.clock.Advance(59 * time.Second)
	if d := w.describeConsumer(); len(d.Members) != 1 {
		t.Errorf("gone before its session's end: %+v", d)
	}
	w.clock.Advance(2 * time.Second)
	if d := w.describeConsumer(); len(d.Members) != 0 {
		t.Errorf("there after its session's end: %+v", d)
	}
}
