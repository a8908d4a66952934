package broker

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
)

// InitProducerId (key 22), 0–5.
//
// v2  flexible
// v3  the producer's former id and epoch (KIP-360); they matter to transactions only
// v4  PRODUCER_FENCED; v5 KIP-890
//
// Idempotent producers get an id that nobody had before, at epoch 0. Transactions don't exist yet: a transactional id gets
// 35, which is fatal to the client, not 15, at which Java asks for ever.

// producerIDBlock is how many ids are taken from the controller at a time; what a node has left when it stops is lost.
const producerIDBlock = 1000

// producerIDs hands out ids of a block. turn holds the right to take from it: a channel, so that waiting for the controller
// ends with the request.
type producerIDs struct {
	turn      chan struct{}
	next, end int64
}

func newProducerIDs() producerIDs {
	p := producerIDs{turn: make(chan struct{}, 1)}
	p.turn <- struct{}{}
	return p
}

func (b *Broker) nextProducerID(ctx context.Context) (int64, error) {
	p := &b.producerIDs
	if _, err := clock.Recv(b.cfg.Clock, ctx, p.turn); err != nil {
		return -1, err
	}
	defer func() { p.turn <- struct{}{} }()
	if p.next == p.end {
		first, err := b.cfg.Controller.AllocateProducerIDs(ctx, producerIDBlock)
		if err != nil {
			return -1, fmt.Errorf("allocating producer ids: %w", err)
		}
		p.next, p.end = first, first+producerIDBlock
	}
	id := p.next
	p.next++
	return id, nil
}

func handleInitProducerID(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.InitProducerIDRequest)
	resp := kmsg.NewPtrInitProducerIDResponse()
	resp.ProducerID, resp.ProducerEpoch = -1, -1
	if req.TransactionalID != nil {
		k := kerr.UnsupportedVersion
		if *req.TransactionalID == "" {
			k = kerr.InvalidRequest
		}
		b.metrics.refusal(rc.Key, k)
		resp.ErrorCode = k.Code
		return resp, nil
	}
	if (req.ProducerID < 0) != (req.ProducerEpoch < 0) {
		b.metrics.refusal(rc.Key, kerr.InvalidRequest) // an id and its epoch go together
		resp.ErrorCode = kerr.InvalidRequest.Code
		return resp, nil
	}
	ctx, cancel := clock.WithTimeout(ctx, b.cfg.Clock, b.cfg.RequestTimeout)
	defer cancel()
	id, err := b.nextProducerID(ctx)
	if err != nil {
		b.log.Warn("no producer id", "error", err)
		// Clients retry it, as they do just after a broker's start.
		k := kerr.CoordinatorLoadInProgress
		b.metrics.refusal(rc.Key, k)
		resp.ErrorCode = k.Code
		return resp, nil
	}
	resp.ProducerID, resp.ProducerEpoch = id, 0
	return resp, nil
}
