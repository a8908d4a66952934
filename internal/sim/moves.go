package sim

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
)

// move is a reassignment that was asked for, or the cancelling of one.
type move struct {
	topic  string
	index  int32
	to     []int32 // nodes, in order; nil where it is turned back
	cancel bool
	before []int32 // where its replicas were when it was asked for, as the node that was asked knew; nil: it did not know the topic yet
	// What came of it: unknown until the answer is there, and for ever where its node dies.
	known, accepted bool
	throttled       bool // there was a throttle when it was asked for
	// If accepted, it began in one of the images after from, which the node that was asked had then, up to image. A request that is sent again
	// because its answer was lost is answered later than it was carried out.
	from, image uint64
}

// reassign asks a node, which runs, for moves, and returns when it has answered, or has died: a client may call it. over is set by then.
func (w *world) reassign(n *node, asks []controller.Reassignment) (over func() bool) {
	p, done := n.proc, false
	var moves []*move
	for _, a := range asks {
		moves = append(moves, w.newMove(n, a.Topic, a.Partition, a.Nodes, a.Cancel))
	}
	w.spawn(p, func() {
		ctx, cancel := clock.WithTimeout(never, machineClock{p}, 5*time.Second)
		defer cancel()
		for i, res := range p.core.Controller().Reassign(ctx, asks, true) {
			m := moves[i]
			m.ended(res)
			w.log("%s-%d goes to nodes %v (turned back: %v): %v", m.topic, m.index, asks[i].Nodes, m.cancel, res.Err)
			if res.Err == nil {
				w.counts["moves of replicas begun"]++
			}
		}
		done = true
	})
	return func() bool { return done || p.dead }
}

func (w *world) newMove(n *node, topic string, index int32, to []int32, cancel bool) *move {
	m := &move{topic: topic, index: index, to: slices.Clone(to), cancel: cancel, throttled: w.underThrottle(topic)}
	slices.Sort(m.to)
	img := n.proc.core.Metadata().Image()
	m.from = img.Index
	if t := img.Topics[topic]; t != nil && int(index) < len(t.Partitions) {
		m.before = nodesOf(t.Partitions[index])
	}
	w.moves = append(w.moves, m)
	return m
}

// nodesOf lists the nodes of a partition's replicas, in order.
func nodesOf(p *metadata.Partition) (nodes []int32) {
	for _, r := range p.Replicas {
		nodes = append(nodes, r.Node)
	}
	slices.Sort(nodes)
	return nodes
}

// ended notes the answer. Only what the controller itself refuses is refused for certain.
func (m *move) ended(r controller.ReassignResult) {
	var refused *controller.Error
	m.known = r.Err == nil || errors.As(r.Err, &refused)
	m.accepted, m.image = r.Err == nil, r.Index
}

// checkMoves sees to it that every partition is where the last reassignment wanted it, whole, or where an earlier one did if that was
// turned back: nothing in between, nothing under way, no replica left on another node.
func (w *world) checkMoves() {
	img := w.intact().proc.core.Metadata().Image()
	for _, t := range img.Topics {
		for _, p := range t.Partitions {
			w.checkMoved(t, p)
		}
	}
}

func (w *world) checkMoved(t *metadata.Topic, p *metadata.Partition) {
	name := fmt.Sprintf("%s-%d", t.Name, p.Index)
	now := nodesOf(p)
	for _, n := range w.nodes {
		if n.ruined || n.proc == nil || slices.Contains(now, n.id) || p.Change != nil {
			continue
		}
		if v, ok := n.proc.core.Partitions().Lookup(t.Name, p.Index); ok && v.Group() == p.Group {
			w.fail("%s: node %d still holds a replica, and its replicas are on %v", name, n.id, now)
		}
	}
	if p.Change == nil && !comesAndGoes(t.Name) { // under way for ever: only where a node is ruined, see equalReplicas
		w.checkWanted(t.Name, p.Index, now)
	}
}

// checkWanted holds where a partition's replicas are in the end against what was asked.
func (w *world) checkWanted(topic string, index int32, now []int32) {
	asked := slices.DeleteFunc(slices.Clone(w.moves), func(m *move) bool { return m.topic != topic || m.index != index || m.known && !m.accepted })
	if len(asked) == 0 {
		return
	}
	w.counts["partitions moved, whole"]++
	if slices.ContainsFunc(asked, func(m *move) bool { return m.throttled && m.accepted }) {
		w.counts["partitions moved under a throttle, whole"]++
	}
	var last []*move // those that none surely follows
	open := false
	for _, m := range asked {
		switch {
		case !m.known:
			open = true
		case !slices.ContainsFunc(asked, func(x *move) bool { return x.known && x.from >= m.image && m.from < x.image }):
			last = append(last, m)
		}
	}
	switch {
	case open || slices.ContainsFunc(last, func(m *move) bool { return m.cancel }):
		if !slices.ContainsFunc(asked, func(m *move) bool { return m.before == nil || slices.Equal(m.to, now) || slices.Equal(m.before, now) }) {
			w.fail("%s-%d: its replicas are on %v in the end, which no reassignment wanted", topic, index, now)
		}
	case !slices.ContainsFunc(last, func(m *move) bool { return slices.Equal(m.to, now) }):
		w.fail("%s-%d: its replicas are on %v in the end, the last reassignment wanted %v", topic, index, now, last[len(last)-1].to)
	}
}
