package multiraft

import (
	"testing"

	"github.com/chronik-go/chronik/internal/transport"
)

// A leader whose records are damaged hands over to a follower that is sound, and none of the unfit ones takes the leadership back,
// not even when the sound one dies: until nobody has led for long.
func TestUnfitReplicaLeavesTheLeadToTheOthers(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	others := c.others(l)
	c.replica(l).SetUnfit(true)
	c.replica(others[0]).SetUnfit(true)
	c.tick(30)
	if got := c.leader(); got != others[1] {
		t.Fatalf("node %d leads, want the sound one, %d", got, others[1])
	}
	// It votes and appends: what it acknowledges is in its log.
	c.mustPropose(others[1], "b")
	c.expect("a", "b")
	// Asked to lead, it declines, and the leader knows better the next time.
	c.replica(others[1]).TransferLeadership(l)
	c.tick(30)
	if got := c.leader(); got != others[1] {
		t.Fatalf("node %d leads after a transfer to an unfit replica", got)
	}
	c.mustPropose(others[1], "c")

	c.kill(others[1])
	for range 10 * 10 {
		c.tick(1)
		c.settle()
		for _, id := range c.order {
			if !c.nodes[id].down && c.replica(id).Status().IsLeader {
				t.Fatalf("node %d, which is unfit, stood for election at once", id)
			}
		}
	}
	// Better one that can't serve everything than none, and without a leader nothing can be mended.
	c.tick(reluctance * 10 * 2)
	reluctant := c.leader()
	c.mustPropose(reluctant, "d")
	c.restart(others[1])
	c.tick(60)
	if got := c.leader(); got != others[1] {
		t.Fatalf("node %d leads, want the sound one again, %d", got, others[1])
	}
	c.expect("a", "b", "c", "d")
}

// The sound follower of an unfit one is elected with its vote, although the unfit one's own clock stands still.
func TestUnfitReplicaVotes(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	others := c.others(l)
	c.replica(others[0]).SetUnfit(true)
	c.tick(5)
	c.cut = func(from, to int32, _ *transport.Envelope) bool { return from == l || to == l }
	c.tick(60)
	if !c.replica(others[1]).Status().Ready {
		t.Fatal("the sound follower was not elected: the other one held on to a leader it had not heard of for long")
	}
	c.mustPropose(others[1], "b")
}

func TestUnfitReplicaLeadsAlone(t *testing.T) {
	c := newCluster(t, 1)
	l := c.leader()
	c.replica(l).SetUnfit(true)
	c.tick(60)
	c.mustPropose(c.leader(), "a")
	c.kill(l)
	c.start(l)
	sm := &listSM{}
	sm.decode(c.nodes[l].log.Group(testGroup).Checkpoint().State)
	c.nodes[l].sm[testGroup] = sm
	if _, err := c.nodes[l].svc.Register(RegisterOptions{Topic: "t", Group: testGroup, Replica: replicaOf(l), Members: c.members(), SM: sm, Unfit: true}); err != nil {
		t.Fatal(err)
	}
	c.mustPropose(c.leader(), "b")
}

// A node without room gives up all it leads and takes none of it back, until it has room; where no node has any, somebody leads
// all the same, and soon.
func TestUnfitNodeLeavesTheLeadOfAllItsGroups(t *testing.T) {
	c := newCluster(t, 3)
	const other = testGroup + 1
	for _, id := range c.order {
		c.register(id, other, false)
	}
	l := c.leader()
	c.mustPropose(l, "a")
	svc := func(id int32) *Service { return c.nodes[id].svc }
	svc(l).SetUnfit(true)
	for range 100 {
		c.tick(1)
		c.settle()
	}
	for _, group := range []uint64{testGroup, other} {
		for range 100 {
			if r, ok := svc(l).Group(group); !ok || r.Status().IsLeader {
				t.Fatalf("group %d: node %d, which has no room, leads", group, l)
			}
			c.tick(1)
			c.settle()
		}
	}
	now := c.leader()
	c.mustPropose(now, "b")
	// It is passed by when the leader goes, too: the third leads.
	c.kill(now)
	c.tick(60)
	third := c.leader()
	if third == l {
		t.Fatalf("node %d, which has no room, was elected before the one that has", l)
	}
	c.mustPropose(third, "c")
	c.restart(now)
	// None has room: the leader stays, and after it dies another comes within a few election timeouts.
	for _, id := range c.order {
		svc(id).SetUnfit(true)
	}
	c.tick(60)
	c.mustPropose(c.leader(), "d")
	gone := c.leader()
	c.kill(gone)
	c.tick((nodeReluctance + 4) * 10)
	c.mustPropose(c.leader(), "e")
	c.restart(gone)
	for _, id := range c.order {
		svc(id).SetUnfit(false)
	}
	c.tick(60)
	c.mustPropose(c.leader(), "f")
	c.expect("a", "b", "c", "d", "e", "f")
}
