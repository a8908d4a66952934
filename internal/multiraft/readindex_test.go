package multiraft

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/transport"
)

// Rule 17: each round of reads has a context of its own. Answers to an earlier round, which were long on their way, say nothing of
// a quorum now: the leader may have been replaced since.
func TestAnswersToAnOldRoundConfirmNoNewRead(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.mustPropose(l, "a")
	c.expect("a")
	type held struct {
		from int32
		env  transport.Envelope
	}
	var late []held
	c.cut = func(from, to int32, env *transport.Envelope) bool {
		if to == l && env.Raft.Type == raftpb.MsgHeartbeatResp && len(env.Raft.Context) > 0 {
			late = append(late, held{from, *env})
			return true
		}
		return false
	}
	var first, second []error
	c.replica(l).ReadIndex(func(err error) { first = append(first, err) })
	for range 50 { // it leads on, by the answers to what it appends, and gives the round up
		c.propose(l, "b")
		c.tick(1)
	}
	if len(first) != 1 || first[0] == nil || len(late) == 0 || !c.replica(l).IsLeader() {
		t.Fatalf("the first round: %v, %d answers held, leader %v", first, len(late), c.replica(l).IsLeader())
	}
	c.cut = func(from, to int32, _ *transport.Envelope) bool { return from == l || to == l }
	c.replica(l).ReadIndex(func(err error) { second = append(second, err) })
	c.settle()
	for _, m := range late {
		c.nodes[l].svc.HandleEnvelopes(m.from, c.wire(m.env))
	}
	c.settle()
	if len(second) != 0 {
		t.Fatalf("a read was answered by a round that began before it: %v", second)
	}
}
