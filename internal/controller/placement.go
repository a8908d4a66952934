package controller

import (
	"hash/fnv"
	"slices"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/metadata"
)

// placer spreads replicas and preferred leaders over nodes. It is deterministic: the same state, liveness and request come
// to the same placement.
//
// A topic's own partitions are spread first (each topic uses all nodes evenly, however full they are), then what the nodes
// hold in all decides; what is equal after that falls to a rotation that starts at a place drawn from request and topic.
// Replicas of a partition go to as many racks as there are.
type placer struct {
	nodes []*spot // by node id
	live  int
}

// spot is a node as the placer sees it.
type spot struct {
	id   int32
	rack string
	live bool
	// What it holds in all, and of the topic being placed.
	replicas, leaders           int
	topicReplicas, topicLeaders int
}

func (r *round) placer() *placer {
	if r.places != nil {
		return r.places
	}
	p := &placer{}
	r.b.EachNode(func(n *metadata.Node) {
		p.nodes = append(p.nodes, &spot{id: n.ID, rack: n.Rack, live: r.c.cfg.Live == nil})
	})
	slices.SortFunc(p.nodes, func(a, b *spot) int { return int(a.id) - int(b.id) })
	if r.c.cfg.Live != nil {
		for _, id := range r.c.cfg.Live() {
			if s := p.spot(id); s != nil {
				s.live = true
			}
		}
	}
	for _, s := range p.nodes {
		if s.live {
			p.live++
		}
	}
	r.b.EachTopic(func(t *metadata.Topic) {
		for _, part := range t.Partitions {
			for i, rep := range part.Target() {
				p.add(rep.Node, i == 0)
			}
		}
	})
	r.places = p
	return p
}

func (p *placer) spot(id int32) *spot {
	i, ok := slices.BinarySearchFunc(p.nodes, id, func(s *spot, id int32) int { return int(s.id) - int(id) })
	if !ok {
		return nil
	}
	return p.nodes[i]
}

func (p *placer) add(node int32, leads bool) {
	if s := p.spot(node); s != nil {
		s.replicas++
		if leads {
			s.leaders++
		}
	}
}

// liveOf counts the nodes that are live.
func (p *placer) liveOf(nodes []int32) (n int) {
	for _, id := range nodes {
		if s := p.spot(id); s != nil && s.live {
			n++
		}
	}
	return n
}

// count takes partitions that were placed by hand into account.
func (p *placer) count(ps []*controllerpb.Placement) {
	for _, part := range ps {
		for i, node := range part.Nodes {
			p.add(node, i == 0)
		}
	}
}

// spread places n partitions of a topic, from first on, with factor replicas each. Nodes that are not live get replicas
// only where there are too few that are, never a preferred leader, and never so many that a partition could not commit.
func (p *placer) spread(request uuid.UUID, topic string, first, n, factor int) ([]*controllerpb.Placement, *Error) {
	switch {
	case factor < 1:
		return nil, refuse(ErrInvalidReplicationFactor, "topic %q: replication factor %d; at least 1 is needed, or -1 for the default", topic, factor)
	case factor > len(p.nodes):
		return nil, refuse(ErrInvalidReplicationFactor, "topic %q: replication factor %d is larger than the number of brokers, %d", topic, factor, len(p.nodes))
	case p.live < factor/2+1:
		return nil, refuse(ErrInvalidReplicationFactor, "topic %q: replication factor %d needs %d live brokers, there are %d of %d",
			topic, factor, factor/2+1, p.live, len(p.nodes))
	}
	for _, s := range p.nodes {
		s.topicReplicas, s.topicLeaders = 0, 0
	}
	h := fnv.New32a()
	h.Write(request[:])
	h.Write([]byte(topic))
	start := int(h.Sum32() % uint32(len(p.nodes)))
	out := make([]*controllerpb.Placement, n)
	flat := make([]int32, 0, n*factor)
	for i := range out {
		from := len(flat)
		racks := make(map[string]int, factor)
		for j := range factor {
			s := p.best(flat[from:], racks, j == 0, start+first+i)
			racks[s.rack]++
			s.replicas++
			s.topicReplicas++
			if j == 0 {
				s.leaders++
				s.topicLeaders++
			}
			flat = append(flat, s.id)
		}
		out[i] = &controllerpb.Placement{Nodes: flat[from:len(flat):len(flat)]}
	}
	p.level(out)
	return out, nil
}

// level moves followers from the nodes that hold most of the topic to those that hold least, where choosing one partition
// after the other left a difference of more than one. It only makes moves that keep a partition's racks as many as they are,
// between nodes that are both live.
func (p *placer) level(ps []*controllerpb.Placement) {
	for range p.nodes {
		if !p.levelOnce(ps) {
			return
		}
	}
}

// levelOnce makes at most one move for each partition, and reports whether it made any.
func (p *placer) levelOnce(ps []*controllerpb.Placement) (moved bool) {
	for _, part := range ps {
		var lo *spot
		for _, s := range p.nodes {
			if s.live && !slices.Contains(part.Nodes, s.id) && (lo == nil || s.topicReplicas < lo.topicReplicas) {
				lo = s
			}
		}
		if lo == nil {
			continue
		}
		for j := 1; j < len(part.Nodes); j++ {
			hi := p.spot(part.Nodes[j])
			if hi.topicReplicas < lo.topicReplicas+2 || !hi.live || hi.rack != lo.rack && p.rackIn(lo.rack, part.Nodes) {
				continue
			}
			hi.topicReplicas, hi.replicas = hi.topicReplicas-1, hi.replicas-1
			lo.topicReplicas, lo.replicas = lo.topicReplicas+1, lo.replicas+1
			part.Nodes[j], moved = lo.id, true
			break
		}
	}
	return moved
}

func (p *placer) rackIn(rack string, nodes []int32) bool {
	return slices.ContainsFunc(nodes, func(id int32) bool { return p.spot(id).rack == rack })
}

// best returns the node to take next: the smallest in order of the criteria.
func (p *placer) best(taken []int32, racks map[string]int, leader bool, rotate int) *spot {
	var best *spot
	var bestKey [5]int
	for i, s := range p.nodes {
		if slices.Contains(taken, s.id) || leader && !s.live {
			continue
		}
		dead := 0
		if !s.live {
			dead = 1
		}
		turn := ((i-rotate)%len(p.nodes) + len(p.nodes)) % len(p.nodes)
		key := [5]int{dead, racks[s.rack], s.topicReplicas, s.replicas, turn}
		if leader {
			key = [5]int{s.topicLeaders, s.topicReplicas, s.leaders, s.replicas, turn}
		}
		if best == nil || slices.Compare(key[:], bestKey[:]) < 0 {
			best, bestKey = s, key
		}
	}
	return best
}
