package broker

import (
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/transport"
)

// findTopic resolves a topic by name, or by id where the version has ids (Produce and Fetch from 13).
func findTopic(img *metadata.Image, byID bool, name string, id [16]byte) (*metadata.Topic, *kerr.Error) {
	if byID {
		if t := img.TopicsByID[id]; t != nil {
			return t, nil
		}
		return nil, kerr.UnknownTopicID
	}
	if t := img.Topics[name]; t != nil {
		return t, nil
	}
	return nil, kerr.UnknownTopicOrPartition
}

// findPartition resolves a partition of a topic.
func findPartition(t *metadata.Topic, index int32) (*metadata.Partition, *kerr.Error) {
	if index < 0 || int(index) >= len(t.Partitions) {
		return nil, kerr.UnknownTopicOrPartition
	}
	return t.Partitions[index], nil
}

// hint is the leader that an error may name (KIP-951). Node -1: none.
type hint struct {
	node, epoch int32
}

var noHint = hint{-1, -1}

// hintFor names the leader of a group, if it is another node that clients can be sent to. In one-address mode nobody is
// sent anywhere.
func (b *Broker) hintFor(img *metadata.Image, mode ListenerConfig, group uint64) hint {
	node, epoch := b.cfg.Cluster.Leader(group)
	if mode.OneAddress || node < 0 || epoch < 0 || node == b.cfg.Cluster.NodeID() || img.Nodes[node] == nil || !b.cfg.Cluster.Live(node) {
		return noHint
	}
	return hint{node, epoch}
}

// routeKey is a partition, by the group id that is never reused.
type routeKey uint64

// route is the state of one connection's produces to one partition while any is under way. It keeps design rule 21: batches
// go one way, to one leader of one term; the first that fails for want of a leader or of room takes along those behind it,
// since one of them that got through would have overtaken it.
type route struct {
	outstanding int
	failed      bool
	node, epoch int32
	// incarnation numbers the routes of a connection, so that the leader's side can tell this one from its successor.
	incarnation uint32
}

// enter counts one more batch on its way to (node, epoch) and returns the route's incarnation. ok is false when the batch
// must fail, since one before it has, or went another way and is not answered yet. leave must follow in either case.
func (c *conn) enter(group uint64, node, epoch int32) (incarnation uint32, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.routes[routeKey(group)]
	if r == nil {
		if c.routes == nil {
			c.routes = map[routeKey]*route{}
		}
		r = &route{node: node, epoch: epoch, incarnation: uint32(c.b.incarnations.Add(1))}
		c.routes[routeKey(group)] = r
	}
	r.outstanding++
	if r.node != node || r.epoch != epoch {
		r.failed = true
	}
	return r.incarnation, !r.failed
}

// broken marks the route of a batch that failed, unless it is a newer one already.
func (c *conn) broken(group uint64, incarnation uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.routes[routeKey(group)]; r != nil && r.incarnation == incarnation {
		r.failed = true
	}
}

// leave counts a batch out, when its answer is on its way to the client.
func (c *conn) leave(group uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.routes[routeKey(group)]
	if r == nil {
		return
	}
	if r.outstanding--; r.outstanding <= 0 {
		delete(c.routes, routeKey(group))
	}
}

// breaksRoute says whether a failed batch takes along those behind it: where it failed for reasons of the cluster's. A batch
// refused for what it holds does not (idempotent successors fail by their sequence).
func breaksRoute(err error) bool {
	for _, e := range []error{
		multiraft.ErrNotLeader, multiraft.ErrOverloaded, multiraft.ErrUnknownOutcome, multiraft.ErrStopped, multiraft.ErrFenced,
		transport.ErrNotSent, transport.ErrUnknownOutcome, transport.ErrPeerDown, transport.ErrPeerUnknown, transport.ErrOverloaded,
		transport.ErrClosed,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// hopFailures is the leader's side of a broken route: batches of the same incarnation that are still on the peer stream must
// fail too. It is bounded; what falls out is old enough for its stream to be empty.
type hopFailures struct {
	mu    sync.Mutex
	m     map[hopKey]uint32
	order []hopKey // ring
	next  int
}

type hopKey struct {
	from  int32
	conn  uint64
	group uint64
}

const maxHopFailures = 8192

func (h *hopFailures) add(k hopKey, incarnation uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.m == nil {
		h.m = map[hopKey]uint32{}
	}
	if _, ok := h.m[k]; !ok {
		if len(h.order) < maxHopFailures {
			h.order = append(h.order, k)
		} else {
			delete(h.m, h.order[h.next])
			h.order[h.next] = k
			h.next = (h.next + 1) % maxHopFailures
		}
	}
	h.m[k] = incarnation
}

func (h *hopFailures) has(k hopKey, incarnation uint32) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	got, ok := h.m[k]
	return ok && got == incarnation
}

// news remembers since when this node has been seeing produces that a leader's move misdirected.
type news struct {
	clk clock.Clock
	age time.Duration
	mu  sync.Mutex
	m   map[uint64]moved
}

type moved struct {
	epoch int32
	since time.Time
}

// maxNews bounds the map: forgetting costs stale clients a few more seconds of proxying.
const maxNews = 16384

// old says whether the move of a group's leadership to epoch is old news, so that a client that hasn't heard is told.
func (n *news) old(group uint64, epoch int32) bool {
	now := n.clk.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	m, ok := n.m[group]
	if !ok || m.epoch != epoch {
		if n.m == nil || len(n.m) >= maxNews {
			n.m = map[uint64]moved{}
		}
		n.m[group] = moved{epoch, now}
		return false
	}
	return now.Sub(m.since) >= n.age
}
