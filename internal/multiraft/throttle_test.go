package multiraft

import (
	"math"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/throttle"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
)

// throttledLearner is a cluster of three to which node 4 is added as a learner, with a clock that only the test moves. rates
// are those of the leader's and of the learner's budget, in bytes a second.
type throttledLearner struct {
	*cluster
	clk              *clock.Sim
	leader, follower int64
	bytes            int64 // of entries that the learner was sent
	begun            time.Time
}

func newThrottledLearner(t *testing.T, leader, follower int64) *throttledLearner {
	x := &throttledLearner{clk: clock.NewSim(time.Unix(1000, 0)), leader: leader, follower: follower}
	x.cluster = newCluster(t, 3, func(c *cluster) {
		c.tune = func(cfg *Config) {
			cfg.Clock = x.clk
			cfg.Throttle = &throttle.Replication{Node: cfg.NodeID,
				Leader: throttle.NewLimit(func() int64 { return x.leader }), Follower: throttle.NewLimit(func() int64 { return x.follower }),
				Replicas: func(string) (leader, follower throttle.Replicas) {
					return throttle.ParseReplicas("*"), throttle.ParseReplicas("0:4,7:4")
				}}
		}
		c.seen = func(_, to int32, env *transport.Envelope) {
			if to == 4 && env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgApp {
				x.bytes += entryBytes(env.Raft.Entries)
			}
		}
	})
	return x
}

// join adds the learner, which is up to date when it returns.
func (x *throttledLearner) join(leader int32) {
	x.t.Helper()
	const id = 4
	x.order = append(x.order, id)
	n := &simNode{id: id, c: x.cluster, fs: vfs.NewMem(id), dir: "/log"}
	x.nodes[id] = n
	x.start(id)
	x.register(id, testGroup, false)
	for _, o := range x.order[:3] {
		x.replica(o).SetMembers(x.members())
	}
	x.change(leader, raftpb.ConfChangeAddLearnerNode)
	x.tick(5)
	x.begun, x.bytes = x.clk.Now(), 0
}

func (x *throttledLearner) change(leader int32, typ raftpb.ConfChangeType) {
	x.t.Helper()
	done := false
	var err error
	cc := raftpb.ConfChangeV2{Changes: []raftpb.ConfChangeSingle{{Type: typ, NodeID: replicaOf(4)}}}
	x.replica(leader).ProposeConfChange(cc, func(e error) { done, err = true, e })
	for range 50 {
		if done {
			break
		}
		x.second(1)
	}
	if !done || err != nil {
		x.t.Fatalf("%v: done %v, error %v", typ, done, err)
	}
}

// second lets n tenths of a second pass, a tick each.
func (x *throttledLearner) second(tenths int) {
	for range tenths {
		x.clk.Advance(100 * time.Millisecond)
		x.tick(1)
	}
}

// What a learner is sent out of the log keeps within the budget, be it the sender's or the receiver's, while voters get
// everything at once; a raised rate counts at once.
func TestLearnersAreThrottled(t *testing.T) {
	const rate, size, count = 1000, 500, 100 // 50 s
	for name, rates := range map[string][2]int64{"leader": {rate, math.MaxInt64}, "follower": {math.MaxInt64, rate}, "both": {rate, 2 * rate}} {
		t.Run(name, func(t *testing.T) {
			x := newThrottledLearner(t, rates[0], rates[1])
			l := x.cluster.leader()
			x.join(l)
			for range count {
				x.mustPropose(l, strings.Repeat("x", size))
			}
			for _, id := range []int32{1, 2, 3} {
				if n := len(x.sm(id).list()); n != count {
					t.Fatalf("node %d, a voter, has applied %d of %d", id, n, count)
				}
			}
			for range 20 {
				x.second(10)
				elapsed := x.clk.Now().Sub(x.begun).Seconds()
				// A second's worth at the beginning, and an entry on credit with each of the two who count.
				if most := int64(rate*(elapsed+1)) + 2*size; x.bytes > most {
					t.Fatalf("%d bytes after %v s, at most %d", x.bytes, elapsed, most)
				}
			}
			if least := int64(rate * 10); x.bytes < least {
				t.Errorf("only %d bytes in 20 s", x.bytes)
			}
			if n := len(x.sm(4).list()); n == 0 || n == count {
				t.Fatalf("the learner has applied %d of %d: the test shows nothing", n, count)
			}
			x.leader, x.follower = 1<<20, 1<<20
			x.second(20)
			if n := len(x.sm(4).list()); n != count {
				t.Errorf("with the rate raised it has applied %d of %d", n, count)
			}
		})
	}
}

// Whom the group counts on is not throttled: made a voter, a replica that was held back gets everything at once.
func TestVotersAreNotThrottled(t *testing.T) {
	x := newThrottledLearner(t, 0, 0)
	l := x.cluster.leader()
	x.join(l)
	const count = 20
	for range count {
		x.mustPropose(l, strings.Repeat("x", 500))
	}
	x.second(20)
	if n := len(x.sm(4).list()); n != 0 {
		t.Fatalf("a learner with rate 0 has applied %d", n)
	}
	x.change(l, raftpb.ConfChangeAddNode)
	x.second(10)
	if n := len(x.sm(4).list()); n != count {
		t.Fatalf("a voter has applied %d of %d", n, count)
	}
	// Nor does a commit that needs it wait.
	down := int32(1)
	if down == l {
		down = 2
	}
	x.kill(down)
	x.mustPropose(l, "y")
}

// A leader knows of whom it can do without.
func TestSpareReplicas(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.tick(30)
	var others []int32
	for _, id := range c.order {
		if id != l {
			others = append(others, id)
		}
	}
	r := c.replica(l)
	for _, id := range others {
		if !r.spare(replicaOf(id)) {
			t.Errorf("all are there, and replica %d can't be spared", replicaOf(id))
		}
		if c.replica(id).spare(replicaOf(l)) {
			t.Error("a follower says that others can be spared")
		}
	}
	c.kill(others[0])
	c.propose(l, "more")
	c.nodes[l].svc.HandleDropped(others[0], testGroup, replicaOf(others[0]), false)
	c.tick(30)
	if r.spare(replicaOf(others[1])) {
		t.Error("with one of three gone, the second other one can't be spared")
	}
	if !r.spare(replicaOf(others[0])) {
		t.Error("the group commits without the one that is gone")
	}
}
