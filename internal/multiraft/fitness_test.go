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
