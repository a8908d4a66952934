package sim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/transport"
)

// This file is about changes of what nodes the cluster has, which take seconds and are an operator's doing (operator.go): a disk is emptied
// and its node replaced, a node joins, a node is drained and removed. They are faults like the others, drawn apart from them, since only one
// at a time is under way.
//
// The rule for disks that are lost: one at a time, and the next only once nothing counts on the one before. A group of three survives the loss of
// one disk, so that every group must have three voters or more, the metadata's too, and no other disk may be in doubt. That is over when all
// replicas of the node have been moved away, the node is removed, and its vote on the metadata is another's (DescribeQuorum says so): before that
// a majority may still be counted with a voter that has nothing. A disk on which bits have changed is in doubt until it is replaced,
// and while it is no other node leaves.

// changes are the faults of this kind.
var changes = []*fault{
	{name: "disk wiped", strike: wipeDisk},
	{name: "node joins", strike: joinNode},
	{name: "node removed", strike: drainNode},
}

// maxJoining is how many nodes may come in a run beside the founders.
const maxJoining = 3

// planChanges draws which of them happen, and when they are tried: what is not possible at that moment does not.
func planChanges(r *rand.Rand, set settings) (plan []event) {
	var drawn []*fault
	for _, f := range changes {
		if r.IntN(2) == 0 {
			drawn = append(drawn, f)
		}
	}
	interval := pick[time.Duration](r, 1, 2, 4) * time.Second
	if len(drawn) == 0 {
		return nil
	}
	for at := time.Duration(0); ; {
		at += interval/4 + time.Duration(r.Int64N(int64(interval)*7/4))
		if at > set.chaos {
			return plan
		}
		plan = append(plan, event{at, drawn[r.IntN(len(drawn))], r.Uint64()})
	}
}

// change is one change of what nodes the cluster has, from its beginning until nothing is left to do.
type change struct {
	kind     string
	old, new *node // who goes and who comes; nil: nobody
	doing    string
	over     bool
}

func (w *world) changing() bool { return w.change != nil && !w.change.over }

// leaving says whether a node is on its way out: until it is gone, the others must not lose anything.
func (w *world) leaving() bool { return w.changing() && w.change.old != nil }

// doubtful is a node on whose disk bits have changed, nil if there is none: it may be ruined with its next start.
func (w *world) doubtful() *node {
	if i := slices.IndexFunc(w.members, func(n *node) bool { return n.flips > 0 }); i >= 0 {
		return w.members[i]
	}
	return nil
}

// stand makes a node something else to the cluster.
func (w *world) stand(n *node, s standing) {
	n.standing = s
	w.members = slices.DeleteFunc(slices.Clone(w.nodes), func(n *node) bool { return n.standing != member })
}

// staying are the nodes that may be given replicas.
func (w *world) staying() (out []*node) {
	for _, n := range w.members {
		if !n.leaving && !n.ruined {
			out = append(out, n)
		}
	}
	return out
}

// newest is the latest metadata that a running node has, nil if there is none.
func (w *world) newest() (img *metadata.Image) {
	for _, n := range w.members {
		if n.up() && n.proc.core != nil {
			if i := n.proc.core.Metadata().Image(); img == nil || i.Index > img.Index {
				img = i
			}
		}
	}
	return img
}

func voters(img *metadata.Image) (n int) {
	for _, m := range img.Nodes {
		if m.Voter {
			n++
		}
	}
	return n
}

// addNode brings a machine with an empty disk, which does not run yet.
func (w *world) addNode() *node {
	n := newNode(w, int32(len(w.nodes)+1))
	w.nodes = append(w.nodes, n)
	w.links.grow()
	w.stand(n, member)
	return n
}

func (w *world) mayAdd() bool { return len(w.nodes) < w.set.nodes+maxJoining }

// wipeDisk empties a disk, a ruined one first. Its node is tried under its old id now and then, and replaced.
func wipeDisk(w *world, r *rand.Rand) bool {
	img := w.newest()
	if w.changing() || !w.mayAdd() || w.set.replication < 3 || img == nil || voters(img) < 3 {
		return false
	}
	n := w.members[r.IntN(len(w.members))]
	if d := w.doubtful(); d != nil {
		n = d
	}
	if img.Nodes[n.id] == nil {
		return false // it has not arrived
	}
	w.replace(n, r.IntN(3) > 0)
	return true
}

// wipe kills a node and empties its disk.
func (n *node) wipe() {
	w := n.w
	n.killNow()
	n.newDisk()
	n.ruined, n.full, n.syncFault = false, false, nil
	w.log("node %d: its disk is emptied", n.id)
	w.stand(n, wiped)
}

// joinNode brings a node more.
func joinNode(w *world, _ *rand.Rand) bool {
	if w.changing() || len(w.nodes) > w.set.nodes || w.newest() == nil {
		return false
	}
	w.operate(&change{kind: "a node joins", new: w.addNode()}, func(o *operator) { o.join() })
	return true
}

// drainNode takes a node out of the cluster, without which a majority of the metadata's voters is left. Where the others are too few to hold all
// replicas, another node comes first.
func drainNode(w *world, r *rand.Rand) bool {
	img := w.newest()
	few := len(w.members) <= int(w.set.replication)
	if w.changing() || w.doubtful() != nil || img == nil || few && !w.mayAdd() {
		return false
	}
	n := w.members[r.IntN(len(w.members))]
	if m := img.Nodes[n.id]; m == nil || m.Voter && voters(img) < 3 {
		return false
	}
	n.leaving = true
	again := r.IntN(2) == 0
	w.operate(&change{kind: "a node is removed", old: n}, func(o *operator) {
		if few {
			o.ch.new = w.addNode()
			o.arrive(o.ch.new)
		}
		o.drain(again)
	})
	return true
}

// vote is one that a replica can give in a term.
type vote struct{ group, replica, term uint64 }

// checkVote sees to it that no replica votes for two others in a term, whatever becomes of its disk (etcd #16220).
func (w *world) checkVote(env *transport.Envelope) {
	m := &env.Raft
	if m.Type != raftpb.MsgVoteResp || m.Reject {
		return
	}
	v := vote{env.Group, m.From, m.Term}
	if to, ok := w.votes[v]; ok && to != m.To {
		w.fail("group %d: replica %d votes for both %d and %d in term %d", env.Group, m.From, to, m.To, m.Term)
	}
	w.votes[v] = m.To
}

// finishChange waits for the change under way: within a bound its node must be whole, or gone.
func (w *world) finishChange() {
	if w.changing() && !w.run(w.bound(equalWithin), func() bool { return w.change.over }) && w.failed == nil {
		w.fail("%s: %s, still %v after all was healed, and no throttle left: %s", w.change.kind, w.change.doing, w.bound(equalWithin), w.describe())
	}
}

// checkMembers holds the cluster as its nodes know it against what became of every node: who has gone is in no quorum and holds nothing, who is
// there is registered and takes part in the metadata.
func (w *world) checkMembers() {
	img := w.intact().proc.core.Metadata().Image()
	for _, n := range w.nodes {
		if in := img.Nodes[n.id] != nil; in != (n.standing == member) {
			w.fail("node %d: registered %v, and it stands %d", n.id, in, n.standing)
		}
		if n.standing != member && n.up() {
			w.fail("node %d runs, and stands %d", n.id, n.standing)
		}
	}
	for _, t := range img.Topics {
		for _, p := range t.Partitions {
			for _, r := range p.All() {
				if w.nodes[r.Node-1].standing != member {
					w.fail("%s-%d: a replica is on node %d, which was removed", t.Name, p.Index, r.Node)
				}
			}
		}
	}
	if have, want := voters(img), min(len(w.founders), len(w.members), 3); have < want {
		w.fail("%d nodes vote on the metadata of %d", have, len(w.members))
	}
}

// checkQuorums asks the leader of every group whom it counts: the replicas that the metadata names, and nobody else.
func (w *world) checkQuorums() {
	img := w.intact().proc.core.Metadata().Image()
	want := map[uint64][2][]uint64{} // voters and learners, by group
	for _, ref := range partitionsOf(img) {
		want[ref.Partition.Group] = [2][]uint64{sortedReplicas(ref.Partition.Replicas), nil}
	}
	var all [2][]uint64
	for _, n := range img.Nodes {
		i := 1
		if n.Voter {
			i = 0
		}
		all[i] = append(all[i], n.MetadataReplica)
	}
	slices.Sort(all[0])
	slices.Sort(all[1])
	want[metadata.MetadataGroup] = all
	wrong := map[uint64]string{}
	for g := range want {
		wrong[g] = "nobody leads"
	}
	ask := func(r *multiraft.Replica) {
		r.Configuration(func(c multiraft.Configuration, err error) {
			g := r.GroupID()
			have := [2][]uint64{append(slices.Sorted(slices.Values(c.Voters)), c.Outgoing...), slices.Sorted(slices.Values(c.Learners))}
			switch {
			case err != nil:
			case slices.Equal(have[0], want[g][0]) && slices.Equal(have[1], want[g][1]):
				delete(wrong, g)
			default:
				wrong[g] = fmt.Sprintf("voters and learners are replicas %v, they are to be %v", have, want[g])
			}
		})
	}
	right := w.run(w.bound(writableWithin), func() bool {
		for _, n := range w.members {
			for _, r := range n.proc.core.Groups().Replicas() {
				if wrong[r.GroupID()] != "" && r.Status().Ready {
					ask(r)
				}
			}
			w.touch(n.proc)
		}
		return len(wrong) == 0
	})
	for _, g := range slices.Sorted(maps.Keys(wrong)) {
		if !right {
			w.fail("group %d: %s", g, wrong[g])
		}
	}
	w.counts["quorums asked for"] += len(want)
}

func sortedReplicas(rs []metadata.Replica) (ids []uint64) {
	for _, r := range rs {
		ids = append(ids, r.ID)
	}
	slices.Sort(ids)
	return ids
}
