package sim

import (
	"cmp"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/vfs"
)

// operator is a person who changes what nodes the cluster has, as the manual says: processes are started and stopped by hand, the rest is
// asked of the cluster, as often as it takes while things go wrong.
type operator struct {
	*client
	ch *change
}

// operate begins a change.
func (w *world) operate(ch *change, do func(o *operator)) {
	w.change = ch
	o := &operator{ch: ch}
	o.client = w.newClient("operator", func(*client) {
		do(o)
		ch.over = true
		w.log("%s: done", ch.kind)
	})
}

// replace empties a node's disk, and has another node take its place.
func (w *world) replace(n *node, tried bool) {
	n.wipe()
	w.operate(&change{kind: "a wiped node is replaced", old: n}, func(o *operator) {
		if tried {
			o.refusedNow(n)
		}
		o.switchOff(n)
		o.ch.new = w.addNode()
		// The same machine.
		o.ch.new.elapsed, o.ch.new.since, o.ch.new.rate, o.ch.new.skew = n.elapsed, n.since, n.rate, n.skew
		o.arrive(o.ch.new)
		o.remove(n)
		w.counts["wiped disks filled again"]++
	})
}

// join starts the new node, and gives it a replica.
func (o *operator) join() {
	n := o.ch.new
	o.arrive(n)
	for !o.holds(n) {
		o.give(n)
	}
	o.w.counts["nodes joined"]++
}

// drain moves everything away from a node, and removes it. If again, the node is started once more with what it has.
func (o *operator) drain(again bool) {
	n, w := o.ch.old, o.w
	o.remove(n)
	w.counts["nodes removed"]++
	if again {
		n.off = false
		w.stand(n, removed)
		o.refusedNow(n)
	}
	o.switchOff(n)
}

// refusedNow starts a node that must not come back, and waits until it has been told so.
func (o *operator) refusedNow(n *node) {
	o.ch.doing = "a node that must not come back is to be told so"
	before := n.refused
	for n.refused == before && o.w.failed == nil {
		if n.proc == nil {
			n.boot(-1, vfs.LoseUnsynced())
		}
		o.sleep(o.between(100*ms, 400*ms))
	}
}

// switchOff ends a node for good.
func (o *operator) switchOff(n *node) {
	if n.proc != nil {
		n.killNow()
	}
	o.w.stand(n, discarded)
}

// arrive starts a new node and waits until it serves.
func (o *operator) arrive(n *node) {
	o.ch.doing = "a new node is to arrive"
	n.boot(-1, vfs.LoseUnsynced())
	for !n.up() || !n.proc.registered {
		o.sleep(50 * ms) // where it dies meanwhile, it is started again
	}
	o.w.log("node %d is there", n.id)
}

// some is a node that runs, and what it knows of the cluster; nil if there is none.
func (o *operator) some() (*node, *metadata.Image) {
	nodes := o.w.staying()
	if len(nodes) == 0 {
		return nil, nil
	}
	if n := nodes[o.rng.IntN(len(nodes))]; n.up() && n.proc.registered && !n.proc.frozen {
		return n, image(n)
	}
	return nil, nil
}

// partitionsOf lists an image's partitions in order.
func partitionsOf(img *metadata.Image) (all []metadata.PartitionRef) {
	for _, t := range img.Topics {
		for _, p := range t.Partitions {
			all = append(all, metadata.PartitionRef{Topic: t, Partition: p})
		}
	}
	slices.SortFunc(all, func(a, b metadata.PartitionRef) int { return cmp.Compare(a.Partition.Group, b.Partition.Group) })
	return all
}

func targetNodes(p *metadata.Partition) (out []int32) {
	for _, r := range p.Target() {
		out = append(out, r.Node)
	}
	return out
}

// holds says whether a node has a replica that counts.
func (o *operator) holds(n *node) bool {
	_, img := o.some()
	return img != nil && slices.ContainsFunc(partitionsOf(img), func(ref metadata.PartitionRef) bool {
		return slices.Contains(nodesOf(ref.Partition), n.id)
	})
}

// give has a replica of some partition moved to a node, if nothing is on its way there.
func (o *operator) give(n *node) {
	o.ch.doing = "a node that has joined is to get a replica"
	from, img := o.some()
	if img != nil && len(img.Topics) > 0 {
		all := partitionsOf(img)
		coming := slices.ContainsFunc(all, func(ref metadata.PartitionRef) bool { return slices.Contains(targetNodes(ref.Partition), n.id) })
		if p := all[o.rng.IntN(len(all))]; !coming {
			to := targetNodes(p.Partition)
			to[o.rng.IntN(len(to))] = n.id
			o.ask(from, []controller.Reassignment{{Topic: p.Topic.Name, Partition: p.Partition.Index, Nodes: to}})
		}
	}
	o.sleep(o.between(100*ms, 500*ms))
}

// ask asks a node for moves and waits for its answer.
func (o *operator) ask(n *node, moves []controller.Reassignment) {
	for over := o.w.reassign(n, moves); !over(); {
		o.sleep(20 * ms)
	}
}

// remove moves a node's replicas to others, stops it, and has it removed, until nothing in the cluster counts on it.
func (o *operator) remove(n *node) {
	for o.evacuate(n); !o.unregistered(n); o.evacuate(n) {
	}
	for !o.outOfTheQuorum(n) {
		o.sleep(o.between(50*ms, 300*ms))
	}
}

// evacuate asks for moves until no partition is on a node.
func (o *operator) evacuate(n *node) {
	o.ch.doing = "a node's replicas are to be moved away"
	for {
		from, img := o.some()
		if img != nil {
			left := 0
			var moves []controller.Reassignment
			for _, ref := range partitionsOf(img) {
				p := ref.Partition
				if !slices.ContainsFunc(p.All(), func(r metadata.Replica) bool { return r.Node == n.id }) {
					continue
				}
				left++
				if to := targetNodes(p); o.without(n, to) {
					moves = append(moves, controller.Reassignment{Topic: ref.Topic.Name, Partition: p.Index, Nodes: to})
				}
			}
			if left == 0 {
				return
			}
			if n.standing == member && n.off {
				// It was stopped, and has been given something since: nobody else may have that.
				n.off = false
				n.boot(-1, vfs.LoseUnsynced())
			}
			if len(moves) > 0 {
				o.ask(from, moves)
			}
		}
		o.sleep(o.between(100*ms, 400*ms))
	}
}

// without puts another node in the place of one that is to go, and says whether it was there and another is to be had: the one that has come
// for it, mostly.
func (o *operator) without(n *node, to []int32) bool {
	at := slices.Index(to, n.id)
	var spare []int32
	for _, m := range o.w.staying() {
		if !slices.Contains(to, m.id) {
			spare = append(spare, m.id)
		}
	}
	if at < 0 || len(spare) == 0 {
		return false
	}
	to[at] = spare[o.rng.IntN(len(spare))]
	if next := o.ch.new; next != nil && slices.Contains(spare, next.id) && o.rng.IntN(4) > 0 {
		to[at] = next.id
	}
	return true
}

// unregistered stops a node and has it removed. It says false where the node has been given something to hold meanwhile.
func (o *operator) unregistered(n *node) bool {
	o.ch.doing = "a stopped node is to be removed"
	n.off = true
	if n.proc != nil {
		n.killNow()
	}
	for {
		switch code, err := o.unregister(n.id); {
		case err != nil:
		case code == nil || code == kerr.BrokerIDNotRegistered:
			o.w.log("node %d is removed", n.id)
			return true
		default:
			o.w.counts["remove a node: "+text(code)]++
			if _, img := o.some(); img != nil && slices.ContainsFunc(partitionsOf(img), func(ref metadata.PartitionRef) bool {
				return slices.ContainsFunc(ref.Partition.All(), func(r metadata.Replica) bool { return r.Node == n.id })
			}) {
				return false
			}
		}
		o.sleep(o.between(50*ms, 300*ms))
	}
}

// unregister asks any node to remove one.
func (c *client) unregister(node int32) (*kerr.Error, error) {
	k := c.anyNode()
	if k == nil {
		return nil, errRefused
	}
	defer k.close(errReset)
	req := kmsg.NewPtrUnregisterBrokerRequest()
	req.BrokerID = node
	resp, err := k.ask(req, nil)
	if err != nil {
		return nil, err
	}
	return typed(resp.(*kmsg.UnregisterBrokerResponse).ErrorCode), nil
}

// outOfTheQuorum asks whether a node is no longer counted among those who know the metadata.
func (o *operator) outOfTheQuorum(n *node) bool {
	o.ch.doing = "a removed node's vote on the metadata is to be another's"
	voters, learners, err := o.quorum()
	all := append(voters, learners...)
	return err == nil && !slices.Contains(all, n.id) && !slices.Contains(all, -1) // -1 is who counts and is not known any more
}

// quorum asks any node who votes on the metadata, and who learns it.
func (c *client) quorum() (voters, learners []int32, err error) {
	k := c.anyNode()
	if k == nil {
		return nil, nil, errRefused
	}
	defer k.close(errReset)
	t := kmsg.NewDescribeQuorumRequestTopic()
	t.Topic, t.Partitions = metadata.MetadataTopic, append(t.Partitions, kmsg.NewDescribeQuorumRequestTopicPartition())
	req := kmsg.NewPtrDescribeQuorumRequest()
	req.Topics = append(req.Topics, t)
	got, err := k.ask(req, nil)
	if err != nil {
		return nil, nil, err
	}
	resp := got.(*kmsg.DescribeQuorumResponse)
	if code := typed(resp.ErrorCode); code != nil {
		return nil, nil, code
	}
	p := resp.Topics[0].Partitions[0]
	if code := typed(p.ErrorCode); code != nil {
		return nil, nil, code
	}
	for _, r := range p.CurrentVoters {
		voters = append(voters, r.ReplicaID)
	}
	for _, r := range p.Observers {
		learners = append(learners, r.ReplicaID)
	}
	slices.Sort(voters)
	slices.Sort(learners)
	return voters, learners, nil
}
