package broker

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
)

// sessionClient fetches incrementally.
type sessionClient struct {
	t         *testing.T
	c         *client
	version   int16
	id, epoch int32
}

func (s *sessionClient) full(topic *metadata.Topic, offsets ...int64) *kmsg.FetchResponse {
	s.t.Helper()
	req := fetchReq(topic, 0, offsets...)
	req.SessionEpoch = 0
	resp := ask[*kmsg.FetchResponse](s.c, s.version, req)
	if resp.ErrorCode != 0 {
		s.t.Fatalf("%+v", resp)
	}
	s.id, s.epoch = resp.SessionID, 1
	return resp
}

func (s *sessionClient) next(edit func(*kmsg.FetchRequest)) *kmsg.FetchResponse {
	s.t.Helper()
	req := fetchReq(&metadata.Topic{}, 0)
	req.Topics, req.SessionID, req.SessionEpoch = nil, s.id, s.epoch
	if edit != nil {
		edit(req)
	}
	resp := ask[*kmsg.FetchResponse](s.c, s.version, req)
	if resp.ErrorCode == 0 {
		s.epoch = nextEpoch(s.epoch)
	}
	return resp
}

func indices(r *kmsg.FetchResponse) []int32 {
	out := []int32{}
	for _, t := range r.Topics {
		for _, p := range t.Partitions {
			out = append(out, p.Partition)
		}
	}
	return out
}

func TestFetchSessionForgetsAndAdds(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 3)
	for i := range int32(3) {
		fillPart(t, f, topic, i, 1, 10)
	}
	for _, v := range []int16{7, 11, 12, 13, 17, 18} {
		s := &sessionClient{t: t, c: f.nodes[1].dial(t), version: v}
		if got := indices(s.full(topic, 0, 0)); !slices.Equal(got, []int32{0, 1}) || s.id <= 0 {
			t.Fatalf("v%d: %v, session %d", v, got, s.id)
		}
		// Data that is not taken comes again.
		if got := indices(s.next(nil)); !slices.Equal(got, []int32{0, 1}) {
			t.Errorf("v%d again: %v", v, got)
		}
		got := indices(s.next(func(r *kmsg.FetchRequest) {
			forget := kmsg.NewFetchRequestForgottenTopic()
			forget.Topic, forget.TopicID, forget.Partitions = "t", topic.ID, []int32{0, 99}
			r.ForgottenTopics = append(r.ForgottenTopics, forget)
			add := fetchReq(topic, 0, 0, 0, 0).Topics[0]
			add.Partitions = add.Partitions[2:]
			r.Topics = append(r.Topics, add)
		}))
		if !slices.Equal(got, []int32{1, 2}) {
			t.Errorf("v%d after forgetting 0 and adding 2: %v", v, got)
		}
		// What moved on has nothing to say.
		got = indices(s.next(func(r *kmsg.FetchRequest) {
			move := fetchReq(topic, 0, 0, 1).Topics[0]
			move.Partitions = move.Partitions[1:]
			r.Topics = append(r.Topics, move)
		}))
		if !slices.Equal(got, []int32{2}) {
			t.Errorf("v%d after taking 1: %v", v, got)
		}
		// The end of a session: a full request that names it.
		end := fetchReq(topic, 0, 0)
		end.SessionID, end.SessionEpoch = s.id, -1
		if r := ask[*kmsg.FetchResponse](s.c, v, end); r.ErrorCode != 0 || r.SessionID != 0 || len(indices(r)) != 1 {
			t.Errorf("v%d: %+v", v, r)
		}
		if r := s.next(nil); r.ErrorCode != 70 || len(r.Topics) != 0 {
			t.Errorf("v%d after its end: %+v", v, r)
		}
	}
	if n := f.nodes[1].counter(t, "chronik_broker_fetch_session_partitions"); n != 0 {
		t.Errorf("%v partitions of no session", n)
	}
}

// An error is told each time, and what follows it is news.
func TestFetchSessionTellsOfErrorsAndTheirEnd(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 2)
	s := &sessionClient{t: t, c: f.nodes[1].dial(t), version: 12}
	s.full(topic, 0, 0)
	f.lead(f.part("t", 1), -1, 4)
	for range 2 {
		r := s.next(nil)
		if got := indices(r); !slices.Equal(got, []int32{1}) || r.Topics[0].Partitions[0].ErrorCode != 6 {
			t.Fatalf("%+v", r)
		}
	}
	f.lead(f.part("t", 1), 1, 5)
	if r := s.next(nil); !slices.Equal(indices(r), []int32{1}) || r.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Errorf("the error's end is no news: %+v", r)
	}
	if r := s.next(nil); len(indices(r)) != 0 {
		t.Errorf("%+v", r)
	}
}

// Partitions that gave data go behind the others, so that all get their turn under a limit.
func TestFetchSessionRotates(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 4)
	for i := range int32(4) {
		fillPart(t, f, topic, i, 50, 1000)
	}
	one := int32(len(f.part("t", 0).batches[0]))
	s := &sessionClient{t: t, c: f.nodes[1].dial(t), version: 12}
	served := map[int32]int{}
	count := func(r *kmsg.FetchResponse) {
		for _, p := range r.Topics[0].Partitions {
			if len(p.RecordBatches) > 0 {
				served[p.Partition]++
			}
		}
	}
	count(s.full(topic, 0, 0, 0, 0)) // all four
	for range 12 {
		count(s.next(func(r *kmsg.FetchRequest) { r.MaxBytes = one }))
	}
	for i := range int32(4) {
		if served[i] != 1+3 {
			t.Errorf("served %v: not in turn", served)
			break
		}
	}
}

func TestFetchSessionIsOfOneKindOfTopicNames(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	s := &sessionClient{t: t, c: f.nodes[1].dial(t), version: 12}
	s.full(topic, 0)
	s.version = 13
	if r := s.next(nil); r.ErrorCode != 106 {
		t.Errorf("%+v", r)
	}
}

func TestFetchSessionEpochWraps(t *testing.T) {
	if nextEpoch(math.MaxInt32) != 1 || nextEpoch(1) != 2 {
		t.Error("0 and -1 have meanings of their own: after the largest comes 1")
	}
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	s := &sessionClient{t: t, c: f.nodes[1].dial(t), version: 12}
	s.full(topic, 0)
	held := f.nodes[1].b.sessions.touch(s.id)
	held.mu.Lock()
	held.epoch = math.MaxInt32
	held.mu.Unlock()
	s.epoch = math.MaxInt32
	for _, want := range []int32{1, 2} {
		if r := s.next(nil); r.ErrorCode != 0 || s.epoch != want {
			t.Fatalf("%+v, epoch %d", r, s.epoch)
		}
	}
}

func sessionReq(id, epoch int32, parts int) *kmsg.FetchRequest {
	offsets := make([]int64, parts)
	req := fetchReq(&metadata.Topic{Name: "t"}, 0, offsets...)
	req.SetVersion(12)
	req.SessionID, req.SessionEpoch = id, epoch
	return req
}

func TestFetchSessionsAreCappedAndOldOnesMakeRoom(t *testing.T) {
	clk := clock.NewSim(time.Unix(1_700_000_000, 0))
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	sc := newSessionCache(clk, 2, 10, m)
	create := func(parts int) *session {
		t.Helper()
		p, kerror := sc.plan(sessionReq(0, 0, parts))
		if kerror != nil || len(p.parts) != parts || p.incremental {
			t.Fatalf("%+v %v", p, kerror)
		}
		return p.session
	}
	a, b := create(3), create(3)
	if a == nil || b == nil || a.id == b.id {
		t.Fatal("two sessions")
	}
	// Full: served, without a session. Sessions in use are not pushed out.
	if create(1) != nil {
		t.Fatal("a third")
	}
	clk.Advance(sessionIdle - time.Second)
	if _, kerror := sc.plan(sessionReq(a.id, 1, 0)); kerror != nil { // a is in use
		t.Fatal(kerror)
	}
	clk.Advance(time.Second)
	c := create(1)
	if c == nil {
		t.Fatal("the idle one made no room")
	}
	if _, kerror := sc.plan(sessionReq(b.id, 1, 0)); kerror == nil || kerror.Code != 70 {
		t.Errorf("pushed out: %v", kerror)
	}
	if _, kerror := sc.plan(sessionReq(a.id, 2, 0)); kerror != nil {
		t.Errorf("the one in use: %v", kerror)
	}
	// Partitions are capped over all sessions: a full request too large gets none ...
	clk.Advance(2 * sessionIdle)
	if create(11) != nil {
		t.Error("a session above the cap of partitions")
	}
	if len(sc.byID) != 0 || sc.parts != 0 || sc.lru.Len() != 0 {
		t.Errorf("%d sessions, %d partitions, %d in line", len(sc.byID), sc.parts, sc.lru.Len())
	}
	// ... and one that grows beyond what the others leave ends, so that nothing is left out in silence.
	d, e := create(4), create(4)
	grow := func(id, epoch int32, n int) *kmsg.FetchRequest {
		r := sessionReq(id, epoch, 0)
		r.Topics = fetchReq(&metadata.Topic{Name: "other"}, 0, make([]int64, n)...).Topics
		return r
	}
	if p, kerror := sc.plan(grow(d.id, 1, 2)); kerror != nil || len(p.parts) != 6 {
		t.Errorf("%+v %v", p, kerror)
	}
	if _, kerror := sc.plan(grow(e.id, 1, 1)); kerror == nil || kerror.Code != 70 {
		t.Errorf("no room: %v", kerror)
	}
	if len(sc.byID) != 1 || sc.parts != 6 || sc.byID[d.id] == nil {
		t.Errorf("%d sessions, %d partitions", len(sc.byID), sc.parts)
	}
}
