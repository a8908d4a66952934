package node

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
)

// replicas makes this node's partitions what the metadata image says. Only the image creates and deletes them, never a
// message (design rule 4).
type replicas struct {
	core *Core
	wake chan struct{}

	// The goroutine's own.
	seen map[string]*metadata.Topic // as last carried out, by name
	set  [2]map[string]string       // the broker configs then: those of all, and this node's
	left map[uint64]string          // directories found at the start that are not known to be a replica's yet, by log

	mu     sync.Mutex
	index  uint64              // image index carried out
	failed map[uint64]*failure // by replica
	waits  []chan struct{}
}

// failure is why a replica did not open. Again: it is to be tried once more.
type failure struct {
	err   error
	again bool
}

func (r *replicas) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *replicas) run(ctx context.Context) {
	for {
		r.reconcile(r.core.machine.Image())
		if _, err := clock.Recv(r.core.env.Clock, ctx, r.wake); err != nil {
			return
		}
	}
}

// settled waits until an image of index or later has been carried out.
func (r *replicas) settled(ctx context.Context, index uint64) error {
	for {
		r.mu.Lock()
		if r.index >= index {
			r.mu.Unlock()
			return nil
		}
		wait := make(chan struct{})
		r.waits = append(r.waits, wait)
		r.mu.Unlock()
		if _, err := clock.Recv(r.core.env.Clock, ctx, wait); err != nil {
			return err
		}
	}
}

func (r *replicas) reconcile(img *metadata.Image) {
	r.nodes(img)
	names := make([]string, 0, len(img.Topics))
	for name := range img.Topics {
		names = append(names, name)
	}
	slices.Sort(names)
	// First what goes: a topic made again under an old name takes its place.
	gone := map[uuid.UUID]string{}
	for _, name := range slices.Sorted(maps.Keys(r.seen)) {
		old := r.seen[name]
		if now := img.Topics[name]; now == nil || now.ID != old.ID {
			r.drop(old)
			delete(r.seen, name)
			gone[old.ID] = name
		}
	}
	r.core.coordinator.DropTopics(gone)
	again := r.tryAgain()
	for _, name := range names {
		topic := img.Topics[name]
		if r.seen[name] != topic || again {
			r.open(topic)
			if old := r.seen[name]; old != nil && !maps.Equal(old.Configs, topic.Configs) {
				r.core.manager.Reconfigure(name)
			}
			r.seen[name] = topic
		}
	}
	set := [2]map[string]string{img.BrokerConfigs[-1], img.BrokerConfigs[r.core.cfg.ID()]}
	if !maps.Equal(set[0], r.set[0]) || !maps.Equal(set[1], r.set[1]) {
		r.core.manager.Reconfigure("")
	}
	r.set = set
	if again {
		r.triedAgain()
	}
	r.orphans(img)
	r.leftovers(img)
	r.mu.Lock()
	r.index = img.Index
	for _, w := range r.waits {
		close(w)
	}
	r.waits = nil
	r.mu.Unlock()
}

// nodes keeps peers and the metadata group's members in step with the registered nodes.
func (r *replicas) nodes(img *metadata.Image) {
	c := r.core
	var members []multiraft.Member
	for _, n := range nodesOf(img) {
		if n.MetadataReplica != 0 {
			members = append(members, multiraft.Member{Replica: n.MetadataReplica, Node: n.ID})
		}
		if n.ID != c.cfg.ID() && n.RaftAddr != "" {
			if err := c.env.Peers.AddPeer(n.ID, n.RaftAddr); err != nil {
				c.log.Error("a registered node can't be reached by its address", "node", n.ID, "addr", n.RaftAddr, "error", err)
			}
		}
	}
	if len(members) > 0 {
		c.metadata.SetMembers(members)
	}
	// Who was removed is not dialled any more. A node that is not in the image itself knows nobody better than --peers.
	forget, ok := c.env.Peers.(interface{ RemovePeer(id int32) })
	if img.Nodes[c.cfg.ID()] == nil || !ok {
		return
	}
	for _, id := range c.env.Peers.Peers() {
		if img.Nodes[id] == nil {
			c.log.Info("a node is no longer one of the cluster", "node", id)
			forget.RemovePeer(id)
		}
	}
}

// dials says whether a node named in --peers is worth connecting to: not one that was removed from the cluster since.
func (c *Core) dials(node int32) bool {
	img := c.machine.Image()
	return img.Nodes[c.cfg.ID()] == nil || img.Nodes[node] != nil
}

// open makes this node's replicas of a topic those that the image names, and tells them of each other.
func (r *replicas) open(topic *metadata.Topic) {
	c := r.core
	self, dir := c.cfg.ID(), c.env.Identity.Dir
	for _, p := range topic.Partitions {
		rep, held := p.Held(self, dir)
		have, open := c.manager.Group(p.Group)
		if open && (!held || have.ReplicaID() != rep.ID) {
			c.log.Info("a replica goes", "topic", topic.Name, "partition", p.Index, "group", p.Group, "replica", have.ReplicaID())
			if err := r.delete(p.Group); err != nil {
				c.log.Error("deleting a replica", "topic", topic.Name, "partition", p.Index, "error", err)
				continue
			}
			open = false
		}
		switch {
		case open:
			if g, ok := c.groups.Group(p.Group); ok {
				g.SetMembers(partition.Members(p))
			}
		case held && !r.hasFailed(rep.ID):
			err := c.manager.Open(topic, p, rep)
			if before := r.opened(rep.ID, err); err != nil && before == nil {
				c.log.Error("a partition does not open; its other replicas go on without this one", "topic", topic.Name, "partition", p.Index, "group", p.Group, "error", err)
			} else if err == nil && before != nil {
				c.log.Info("a partition opens that had failed to", "topic", topic.Name, "partition", p.Index, "group", p.Group, "reason", before)
			}
			if err != nil && beyondRepair(err) {
				c.replacer.add(p.Group, rep.ID)
			}
		}
	}
}

func (r *replicas) drop(topic *metadata.Topic) {
	for _, p := range topic.Partitions {
		if _, ok := r.core.manager.Group(p.Group); !ok {
			continue
		}
		if err := r.delete(p.Group); err != nil {
			r.core.log.Error("deleting a partition", "topic", topic.Name, "partition", p.Index, "error", err)
		}
	}
}

// delete removes a replica's log and files. The metadata that says so goes into the log first: without it a restart would begin
// at metadata that still has the replica, and once the removal's own record is gone with its file, the replica would be made
// anew, without its votes (design rule 4).
func (r *replicas) delete(group uint64) error {
	r.core.machine.CheckpointNow()
	return r.core.manager.Delete(group)
}

// orphans deletes what replicas have left in the log that went while this node was away. A log that the image does not know
// yet (it is above NextGroup) stays: the image may be older than the log.
func (r *replicas) orphans(img *metadata.Image) {
	self, dir := r.core.cfg.ID(), r.core.env.Identity.Dir
	var held map[uint64]bool
	for _, g := range r.core.env.WAL.Groups() {
		if g == metadata.MetadataGroup || g >= img.NextGroup {
			continue
		}
		if ref, ok := img.Groups[g]; ok {
			if rep, ok := ref.Partition.Held(self, dir); ok && ref.Partition.LogOf(rep) == g {
				continue
			}
		}
		if held == nil { // not a founder's: seldom
			held = logsOf(img, self, dir)
		}
		if held[g] {
			continue
		}
		r.core.machine.CheckpointNow() // as in delete
		if err := r.core.manager.DeleteLog(g); err != nil {
			r.core.log.Error("deleting what a replica has left", "log", g, "error", err)
		}
	}
}

// leftovers removes directories of replicas whose log is gone: the node died between the two. They are looked for once, at the
// start; those that the image does not know yet, or that have a log, are looked at again.
func (r *replicas) leftovers(img *metadata.Image) {
	c := r.core
	if r.left == nil {
		var err error
		if r.left, err = c.manager.Directories(); err != nil {
			c.log.Error("looking for what deleted partitions have left", "error", err)
			return // with the next image
		}
	}
	if len(r.left) == 0 {
		return
	}
	held := logsOf(img, c.cfg.ID(), c.env.Identity.Dir)
	for _, log := range slices.Sorted(maps.Keys(r.left)) {
		switch {
		case held[log]:
			delete(r.left, log) // goes, if it does, with its replica
		case log < img.NextGroup && c.env.WAL.Group(log) == nil:
			c.log.Info("removing what a deleted partition has left", "dir", r.left[log])
			c.manager.Discard(r.left[log])
			delete(r.left, log)
		}
	}
}

// logsOf returns the logs of all replicas that a node holds.
func logsOf(img *metadata.Image, node int32, dir uuid.UUID) map[uint64]bool {
	out := map[uint64]bool{}
	for _, t := range img.Topics {
		for _, p := range t.Partitions {
			if rep, ok := p.Held(node, dir); ok {
				out[p.LogOf(rep)] = true
			}
		}
	}
	return out
}

func (r *replicas) hasFailed(replica uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.failed[replica]
	return f != nil && !f.again
}

// opened notes how opening a replica ended, and returns why it had failed before, if it had.
func (r *replicas) opened(replica uint64, err error) (before error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.failed[replica]; f != nil {
		before = f.err
	}
	if err == nil {
		delete(r.failed, replica)
	} else {
		r.failed[replica] = &failure{err: err}
	}
	return before
}

// room says that the disk takes writes: what it refused to open is tried again. Damage is not mended by that.
func (r *replicas) room() {
	r.mu.Lock()
	again := false
	for _, f := range r.failed {
		if errors.Is(f.err, partition.ErrStorage) && !beyondRepair(f.err) {
			f.again, again = true, true
		}
	}
	r.mu.Unlock()
	if again {
		r.poke()
	}
}

// triedAgain forgets those that were to be tried once more and are not this node's any longer.
func (r *replicas) triedAgain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.failed, func(_ uint64, f *failure) bool { return f.again })
}

// tryAgain says whether a replica is to be tried once more.
func (r *replicas) tryAgain() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.failed {
		if f.again {
			return true
		}
	}
	return false
}
