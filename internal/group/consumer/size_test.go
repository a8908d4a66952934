package consumer

import (
	"fmt"
	"runtime"
	"testing"
)

// Whether a classic member shares a protocol with the others is found in time that grows with what they have, and not with its square.
func TestManyProtocolsAreComparedOnce(t *testing.T) {
	list := func(prefix string) (out []Protocol) {
		for i := range 100_000 {
			out = append(out, Protocol{Name: fmt.Sprintf("%s%06x", prefix, i)})
		}
		return out
	}
	g := New("g")
	g.setMember("m", &Member{ID: "m", Classic: &Classic{Protocols: list("a")}})
	if g.shares(list("b")) {
		t.Error("nothing is shared")
	}
	if !g.shares(append(list("b"), Protocol{Name: "a000007"})) {
		t.Error("a000007 is shared")
	}
}

// What the uniform assignor needs for members whose subscriptions differ grows with the subscriptions, and not with members times topics.
func TestUnequalAssignmentsMemory(t *testing.T) {
	p := &problem{}
	for i := range 4000 {
		p.topics = append(p.topics, Topic{Name: fmt.Sprint(i), ID: TopicID{byte(i), byte(i >> 8)}, Partitions: 1})
	}
	for i := range 2000 {
		p.members = append(p.members, subscriber{id: fmt.Sprint(i), topics: []int{2 * i, 2*i + 1}})
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	out := assignUnequal(p)
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 100 {
		t.Errorf("%d MiB for 2,000 members with two topics each", n)
	}
	for i, a := range out {
		if len(a) != 2 {
			t.Fatalf("member %d has %d partitions", i, len(a))
		}
	}
}
