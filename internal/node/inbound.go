package node

import (
	"context"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/transport"
)

// What comes from other nodes goes where it belongs: Core is a transport.Handler.

// HandleEnvelopes implements transport.Handler.
func (c *Core) HandleEnvelopes(from int32, envs []transport.Envelope) {
	rest := envs[:0]
	for _, e := range envs {
		if e.Kind != transport.KindLeaders {
			rest = append(rest, e)
			continue
		}
		if err := c.view.HandleGossip(from, e.Body); err != nil {
			c.log.Warn("gossip of a peer is of no use", "peer", from, "error", err)
		}
	}
	if len(rest) > 0 {
		c.groups.HandleEnvelopes(from, rest)
	}
}

// HandleDropped implements transport.Handler.
func (c *Core) HandleDropped(peer int32, group, to uint64, snapshot bool) {
	if group != 0 {
		c.groups.HandleDropped(peer, group, to, snapshot)
	}
}

// HandlePeerUp implements transport.Handler.
func (c *Core) HandlePeerUp(peer int32) { c.view.PeerUp(peer) }

// HandlePeerDown implements transport.Handler.
func (c *Core) HandlePeerDown(peer int32) {
	c.view.PeerDown(peer)
	c.groups.HandlePeerDown(peer)
}

// HandleCall implements transport.Handler.
func (c *Core) HandleCall(ctx context.Context, from int32, method uint16, body []byte) ([]byte, error) {
	if method == controller.Method {
		return c.controller.HandleCall(ctx, from, method, body)
	}
	return c.broker.HandleCall(ctx, from, method, body)
}

// HandleForward implements transport.Handler.
func (c *Core) HandleForward(from int32, method uint16, body []byte, reply func([]byte, error)) {
	c.broker.HandleForward(from, method, body, reply)
}

var _ transport.Handler = (*Core)(nil)
