package node

import (
	"context"
	"errors"

	"github.com/chronik-go/chronik/internal/broker"
	"github.com/chronik-go/chronik/internal/controller/bootstrap"
	"github.com/chronik-go/chronik/internal/transport"
)

// peers is the node's transport.Handler: what comes from other nodes goes where it belongs. Until the node belongs to a
// cluster and has opened its core, only first contact is answered; what comes earlier is dropped, and raft sends it again.
type peers struct {
	node *Node
}

var errStarting = errors.New("the node is still starting")

// HandleEnvelopes implements transport.Handler.
func (p *peers) HandleEnvelopes(from int32, envs []transport.Envelope) {
	if c := p.node.core.Load(); c != nil {
		c.HandleEnvelopes(from, envs)
	}
}

// HandleDropped implements transport.Handler.
func (p *peers) HandleDropped(peer int32, group, to uint64, snapshot bool) {
	if c := p.node.core.Load(); c != nil {
		c.HandleDropped(peer, group, to, snapshot)
	}
}

// HandlePeerUp implements transport.Handler.
func (p *peers) HandlePeerUp(peer int32) {
	if c := p.node.core.Load(); c != nil {
		c.HandlePeerUp(peer)
	}
}

// HandlePeerDown implements transport.Handler.
func (p *peers) HandlePeerDown(peer int32) {
	if c := p.node.core.Load(); c != nil {
		c.HandlePeerDown(peer)
	}
}

// HandleCall implements transport.Handler.
func (p *peers) HandleCall(ctx context.Context, from int32, method uint16, body []byte) ([]byte, error) {
	c := p.node.core.Load()
	if c == nil {
		return nil, errStarting
	}
	return c.HandleCall(ctx, from, method, body)
}

// HandleForward implements transport.Handler.
func (p *peers) HandleForward(from int32, method uint16, body []byte, reply func([]byte, error)) {
	c := p.node.core.Load()
	if c == nil {
		reply(nil, errStarting)
		return
	}
	c.HandleForward(from, method, body, reply)
}

// hello is what this node tells in a first contact.
func (p *peers) hello(transport.PeerInfo) transport.PeerInfo {
	in := p.node.formation.Answer()
	info := transport.PeerInfo{ClusterID: in.ClusterID}
	for _, f := range in.Set {
		info.Founding = append(info.Founding, transport.Founder{NodeID: f.Node, Dir: f.Dir})
	}
	return info
}

// ask is first contact with a peer.
func (p *peers) ask(ctx context.Context, addr string) (bootstrap.Info, error) {
	info, err := p.node.client.Hello(ctx, addr)
	if err != nil {
		return bootstrap.Info{}, err
	}
	in := bootstrap.Info{Node: info.NodeID, Dir: info.Dir, ClusterID: info.ClusterID}
	for _, f := range info.Founding {
		in.Set = append(in.Set, bootstrap.Founder{Node: f.NodeID, Dir: f.Dir})
	}
	return in, nil
}

var _ transport.Handler = (*peers)(nil)
var _ broker.Forwarder = (*transport.Client)(nil)
