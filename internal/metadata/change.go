package metadata

import (
	"slices"

	"github.com/google/uuid"
)

// Change is a change of a partition's replicas under way: a reassignment, the replacement of a lost replica, or the way back
// from either. The image says what is to be; the leader of the partition's group brings the group's configuration there and
// says so, and then Target becomes the partition's Replicas.
type Change struct {
	// Adding are the replicas made for this change, beside those in Replicas. They start empty.
	Adding []Replica
	// Target names the replicas that are to be, in order of preference: each is in Replicas or in Adding.
	Target []uint64
	// Lost names those of Replicas or Adding that can't serve any more: their nodes have dropped them, and no change goes
	// back to them.
	Lost []uint64
	// Number tells the change from those before and after it with the same target: it is the index of the metadata that it was decided
	// on. One that is turned to another target gets another number.
	Number uint64
}

// All returns every replica that the group may know: those before the change under way, then those it adds.
func (p *Partition) All() []Replica {
	if p.Change == nil {
		return p.Replicas
	}
	return slices.Concat(p.Replicas, p.Change.Adding)
}

// Replica finds a replica by its id.
func (p *Partition) Replica(id uint64) (Replica, bool) {
	for _, r := range p.Replicas {
		if r.ID == id {
			return r, true
		}
	}
	if p.Change != nil {
		for _, r := range p.Change.Adding {
			if r.ID == id {
				return r, true
			}
		}
	}
	return Replica{}, false
}

// Lost says whether a replica can't serve any more.
func (p *Partition) Lost(id uint64) bool {
	return p.Change != nil && slices.Contains(p.Change.Lost, id)
}

// Held returns the replica that a node's directory is to hold. A node never holds two: one that is lost makes way at once
// for the one that takes its place.
func (p *Partition) Held(node int32, dir uuid.UUID) (Replica, bool) {
	for _, r := range p.All() {
		if r.Node == node && r.Dir == dir && !p.Lost(r.ID) {
			return r, true
		}
	}
	return Replica{}, false
}

// Target returns the replicas that the partition is to have, in order of preference.
func (p *Partition) Target() []Replica {
	if p.Change == nil {
		return p.Replicas
	}
	out := make([]Replica, 0, len(p.Change.Target))
	for _, id := range p.Change.Target {
		if r, ok := p.Replica(id); ok {
			out = append(out, r)
		}
	}
	return out
}

// Moves returns the nodes that get a replica, and those that lose theirs, by the change under way. A replica replaced by
// another on its node does neither.
func (p *Partition) Moves() (adding, removing []int32) {
	if p.Change == nil {
		return nil, nil
	}
	had, has := nodesIn(p.Replicas), nodesIn(p.Target())
	for _, n := range has {
		if !slices.Contains(had, n) {
			adding = append(adding, n)
		}
	}
	for _, n := range had {
		if !slices.Contains(has, n) {
			removing = append(removing, n)
		}
	}
	return adding, removing
}

// Nodes returns the nodes that clients are told as the partition's replicas: those that it is to have, the preferred
// leader first, then those that it still has, as Kafka lists them during a reassignment (KIP-455).
func (p *Partition) Nodes() []int32 {
	_, removing := p.Moves()
	return append(nodesIn(p.Target()), removing...)
}

func nodesIn(rs []Replica) []int32 {
	out := make([]int32, len(rs))
	for i, r := range rs {
		out[i] = r.Node
	}
	return out
}

// LogOf is the id of a replica's log on its node.
func (p *Partition) LogOf(r Replica) uint64 {
	if r.Log == 0 {
		return p.Group
	}
	return r.Log
}

// Founding returns the replica ids that initialise the group.
func (p *Partition) Founding() []uint64 {
	if p.Founders != nil {
		return p.Founders
	}
	out := make([]uint64, len(p.Replicas))
	for i, r := range p.Replicas {
		out[i] = r.ID
	}
	return out
}
