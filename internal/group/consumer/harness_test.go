package consumer

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// world is one group, its log and what there is to consume.
type world struct {
	t     testing.TB
	g     *Group
	log   []Record
	env   *Env
	ids   int
	known []Topic
}

func newWorld(t testing.TB, topics ...Topic) *world {
	w := &world{t: t, g: New("g")}
	w.env = &Env{Now: 1_700_000_000_000, MaxSize: 1000, MaxBytes: 1 << 20, Room: 1 << 30, Assignors: []string{Uniform, Range},
		NewID: func() string { w.ids++; return fmt.Sprint("id", w.ids) }}
	w.topics(topics...)
	return w
}

// topics sets what there is to consume.
func (w *world) topics(topics ...Topic) {
	version := uint64(1)
	if w.env.Topics != nil {
		version = w.env.Topics.Version + 1
	}
	w.known = topics
	w.env.Topics = NewTopics(version, slices.Clone(topics))
}

// write commits a change.
func (w *world) write(ch *Change) { w.log = append(w.log, ch.Records...) }

// reload makes the group again from its log, as another coordinator would.
func (w *world) reload() {
	w.t.Helper()
	g := New("g")
	for _, r := range w.log {
		k, err := ParseKey(r.Key)
		if err == nil {
			err = g.Replay(k, r.Value)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	g.Loaded()
	w.g = g
}

func (w *world) heartbeat(hb *Heartbeat) (Answer, error) {
	if err := hb.Check(w.env); err != nil {
		return Answer{}, err
	}
	ch := &Change{}
	a, err := w.g.Heartbeat(ch, w.env, hb)
	if err != nil && len(ch.Records) > 0 {
		w.t.Fatalf("refused with %v, and %d records", err, len(ch.Records))
	}
	w.write(ch)
	return a, err
}

// joinOf is a join.
func joinOf(id string, topics ...string) *Heartbeat {
	return &Heartbeat{Version: 1, Group: "g", Member: id, RebalanceTimeout: 60_000, Topics: append([]string{}, topics...), OwnedSaid: true}
}

// beatOf is a heartbeat that changes nothing, and says what the member owns.
func beatOf(id string, epoch int32, owned Assignment) *Heartbeat {
	return &Heartbeat{Version: 1, Group: "g", Member: id, Epoch: epoch, RebalanceTimeout: -1, Owned: owned, OwnedSaid: true}
}

func (w *world) ok(hb *Heartbeat) Answer {
	w.t.Helper()
	a, err := w.heartbeat(hb)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (w *world) refused(hb *Heartbeat, want error) {
	w.t.Helper()
	if _, err := w.heartbeat(hb); !errors.Is(err, want) {
		w.t.Fatalf("%v, want %v", err, want)
	}
}

func (w *world) remove(id string) {
	ch := &Change{}
	w.g.Remove(ch, w.env, id)
	w.write(ch)
}

// parts are partitions of the topic with number n.
func parts(n int, indexes ...int32) Assignment {
	var a []Partition
	for _, i := range indexes {
		a = append(a, Partition{topicID(n), i})
	}
	return NewAssignment(a)
}

func topic(n int, partitions int32) Topic {
	return Topic{Name: fmt.Sprint("t", n), ID: topicID(n), Partitions: partitions}
}
