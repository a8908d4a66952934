// Package cluster is what a node knows of the others at this moment: who leads what, who is reachable, and how far each
// node's metadata has come. None of it is decided here; it is observed from raft and gossiped between nodes, and it may be
// old. What must be right is decided by raft groups; this tells clients where to ask.
package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/transport"
)

// Sender sends gossip; transport.Client is one.
type Sender interface {
	Send(node int32, env transport.Envelope)
}

// View is the node's picture of the cluster. It is safe for concurrent use.
//
// A leadership enters it when a local replica has it and serves (its term's no-op applied), or by the gossip of the leader,
// which is sent at that moment: whoever is sent to a leader finds it serving. A later term replaces an earlier one, never
// the other way round, so the epochs told to clients never fall (design rule 23).
type View struct {
	self   int32
	images metadata.Source
	sender Sender
	clk    clock.Clock

	mu      sync.Mutex
	leaders map[uint64]leadership
	indexes map[int32]uint64 // metadata index each node has reached
	live    map[int32]bool
	own     map[uint64]uint64 // group -> term that this node leads and serves
	news    map[uint64]uint64 // part of own not yet sent to everybody
	told    uint64            // own metadata index last sent
	full    map[int32]bool    // peers to be told everything
	heard   map[int32]bool    // peers that have said something since they came up
	changed chan struct{}     // closed at the next change
	wake    chan struct{}     // capacity 1: there is something to send
}

type leadership struct {
	term uint64
	node int32
}

// NewView makes an empty view of node self.
func NewView(self int32, images metadata.Source, sender Sender, clk clock.Clock) *View {
	return &View{
		self: self, images: images, sender: sender, clk: clk,
		leaders: make(map[uint64]leadership), indexes: make(map[int32]uint64), live: make(map[int32]bool),
		own: make(map[uint64]uint64), news: make(map[uint64]uint64), full: make(map[int32]bool), heard: make(map[int32]bool),
		changed: make(chan struct{}), wake: make(chan struct{}, 1),
	}
}

// NodeID returns this node's id.
func (v *View) NodeID() int32 { return v.self }

// Image returns the current metadata.
func (v *View) Image() *metadata.Image { return v.images.Image() }

// ImageIndex returns the metadata index a node is known to have reached, 0 if unknown.
func (v *View) ImageIndex(node int32) uint64 {
	if node == v.self {
		return v.images.Image().Index
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.indexes[node]
}

// Leader returns the last known leader of a group and its epoch; node -1 if none is known.
func (v *View) Leader(group uint64) (node int32, epoch int32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	l, ok := v.leaders[group]
	if !ok {
		return -1, -1
	}
	return l.node, int32(l.term)
}

// Live says whether a node is reachable from here; itself always.
func (v *View) Live(node int32) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return node == v.self || v.live[node]
}

// LiveNodes returns the registered nodes that are reachable, by ascending id.
func (v *View) LiveNodes() []int32 {
	img := v.images.Image()
	out := make([]int32, 0, len(img.Nodes))
	for id := range img.Nodes {
		if v.Live(id) {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// Await calls cond now and after every change, until it returns true or ctx ends.
func (v *View) Await(ctx context.Context, cond func() bool) error {
	for {
		v.mu.Lock()
		changed := v.changed
		v.mu.Unlock()
		if cond() {
			return nil
		}
		if _, err := clock.Recv(v.clk, ctx, changed); err != nil {
			return err
		}
	}
}

// Observe takes a local replica's view of its leadership (multiraft.Config.OnLeader). It does not block.
func (v *View) Observe(r *multiraft.Replica, st multiraft.Status) {
	v.mu.Lock()
	defer v.mu.Unlock()
	group := r.GroupID()
	if st.Ready {
		v.learn(group, st.Term, v.self)
		v.own[group], v.news[group] = st.Term, st.Term
		v.poke()
	} else {
		delete(v.own, group)
		delete(v.news, group)
	}
	v.change()
}

func (v *View) learn(group, term uint64, node int32) {
	if old, ok := v.leaders[group]; !ok || term > old.term || term == old.term && old.node < 0 {
		v.leaders[group] = leadership{term, node}
	}
}

// ImageChanged says that this node's metadata moved.
func (v *View) ImageChanged() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.poke()
	v.change()
}

// PeerUp and PeerDown report a change of connectivity. A peer that is back is told everything.
func (v *View) PeerUp(node int32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.live[node] = true
	v.full[node] = true
	delete(v.heard, node)
	v.poke()
	v.change()
}

// PeerDown is the opposite of PeerUp.
func (v *View) PeerDown(node int32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.live, node)
	delete(v.full, node)
	delete(v.heard, node)
	v.change()
}

func (v *View) change() {
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *View) poke() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// Wake receives when Step has something to send.
func (v *View) Wake() <-chan struct{} { return v.wake }

// Refresh makes the next Step tell every peer everything (gossip may be lost), and forgets groups that are gone.
func (v *View) Refresh() {
	img := v.images.Image()
	v.mu.Lock()
	defer v.mu.Unlock()
	for id := range v.live {
		v.full[id] = true
	}
	for g := range v.leaders {
		if _, ok := img.Groups[g]; !ok && g != metadata.MetadataGroup && g < img.NextGroup {
			delete(v.leaders, g)
		}
	}
	v.poke()
}

// Step sends what is new: to every live peer the leaderships gained since the last one and the metadata index, to peers that
// have come back all of them.
func (v *View) Step() (more bool) {
	index := v.images.Image().Index
	v.mu.Lock()
	news, full, fresh := v.news, v.full, index != v.told
	v.news, v.full, v.told = make(map[uint64]uint64), make(map[int32]bool), index
	peers := make([]int32, 0, len(v.live))
	for id := range v.live {
		peers = append(peers, id)
	}
	slices.Sort(peers)
	var all, some []byte
	if len(full) > 0 {
		all = encodeGossip(index, v.own)
	}
	if len(news) > 0 || fresh {
		some = encodeGossip(index, news)
	}
	v.mu.Unlock()
	for _, id := range peers {
		body := some
		if full[id] {
			body = all
		}
		if body != nil {
			v.sender.Send(id, transport.Envelope{Kind: transport.KindLeaders, Body: body})
		}
	}
	return false
}

// HandleGossip takes a KindLeaders body from a peer. One that speaks for the first time since it came up is told everything again: a node that is
// still starting can be reached, and drops what it is told (a node's first Step tells all its peers something).
func (v *View) HandleGossip(from int32, body []byte) error {
	index, own, err := decodeGossip(body)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.heard[from] && v.live[from] {
		v.heard[from], v.full[from] = true, true
		v.poke()
	}
	if index > v.indexes[from] {
		v.indexes[from] = index
	}
	for _, l := range own {
		v.learn(l[0], l[1], from)
	}
	v.change()
	return nil
}

const gossipVersion = 1

// encodeGossip: version, metadata index, count, then group and term for each; all but the version are uvarints.
func encodeGossip(index uint64, own map[uint64]uint64) []byte {
	groups := make([]uint64, 0, len(own))
	for g := range own {
		groups = append(groups, g)
	}
	slices.Sort(groups)
	b := make([]byte, 0, 16+len(groups)*6)
	b = append(b, gossipVersion)
	b = binary.AppendUvarint(b, index)
	b = binary.AppendUvarint(b, uint64(len(groups)))
	for _, g := range groups {
		b = binary.AppendUvarint(b, g)
		b = binary.AppendUvarint(b, own[g])
	}
	return b
}

var errGossip = errors.New("leader gossip does not decode")

func decodeGossip(b []byte) (index uint64, own [][2]uint64, err error) {
	if len(b) == 0 || b[0] != gossipVersion {
		return 0, nil, errGossip
	}
	b = b[1:]
	next := func() uint64 {
		x, n := binary.Uvarint(b)
		if n <= 0 {
			err, b = errGossip, nil
			return 0
		}
		b = b[n:]
		return x
	}
	index = next()
	n := next()
	if err != nil || n > uint64(len(b)/2) {
		return 0, nil, errGossip
	}
	own = make([][2]uint64, 0, n)
	for range n {
		own = append(own, [2]uint64{next(), next()})
	}
	if err != nil || len(b) != 0 {
		return 0, nil, errGossip
	}
	return index, own, nil
}
