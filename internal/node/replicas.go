package node

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// replicas makes this node's partitions what the metadata image says. Only the image creates and deletes them, never a
// message (design rule 4).
type replicas struct {
	core *Core
	wake chan struct{}

	// The goroutine's own.
	seen map[string]*metadata.Topic // as last carried out, by name

	mu     sync.Mutex
	index  uint64 // image index carried out
	failed map[uint64]error
	waits  []chan struct{}
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
	for _, name := range slices.Sorted(maps.Keys(r.seen)) {
		old := r.seen[name]
		if now := img.Topics[name]; now == nil || now.ID != old.ID {
			r.drop(old)
			delete(r.seen, name)
		}
	}
	for _, name := range names {
		topic := img.Topics[name]
		if r.seen[name] != topic {
			r.open(topic)
			r.seen[name] = topic
		}
	}
	r.orphans(img)
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
}

func (r *replicas) open(topic *metadata.Topic) {
	self, dir := r.core.cfg.ID(), r.core.env.Identity.Dir
	for _, p := range topic.Partitions {
		for _, rep := range p.Replicas {
			if rep.Node != self || rep.Dir != dir {
				continue
			}
			if _, ok := r.core.manager.Group(p.Group); ok || r.hasFailed(p.Group) {
				continue
			}
			if err := r.core.manager.Open(topic, p, rep); err != nil {
				r.core.log.Error("a partition does not open; its other replicas go on without this one", "topic", topic.Name, "partition", p.Index, "group", p.Group, "error", err)
				r.fail(p.Group, err)
			}
		}
	}
}

func (r *replicas) drop(topic *metadata.Topic) {
	for _, p := range topic.Partitions {
		if _, ok := r.core.manager.Group(p.Group); !ok {
			continue
		}
		if err := r.core.manager.Delete(p.Group); err != nil {
			r.core.log.Error("deleting a partition", "topic", topic.Name, "partition", p.Index, "error", err)
		}
	}
}

// orphans deletes groups of the log that were deleted while this node was away. A group that the image does not know yet
// (it is above NextGroup) stays: the image may be older than the log.
func (r *replicas) orphans(img *metadata.Image) {
	for _, g := range r.core.env.WAL.Groups() {
		if g == metadata.MetadataGroup || g >= img.NextGroup {
			continue
		}
		if _, ok := img.Groups[g]; ok {
			continue
		}
		if err := r.core.manager.Delete(g); err != nil {
			r.core.log.Error("deleting a partition", "group", g, "error", err)
		}
	}
}

func (r *replicas) hasFailed(group uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed[group] != nil
}

func (r *replicas) fail(group uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed[group] = err
}
