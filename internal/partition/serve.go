package partition

import (
	"time"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/transport"
)

// sender is multiraft.Peer as the delta needs it.
type sender = multiraft.Peer

// maxServe bounds the followers a partition serves at a time; more than one request of a replica is never kept.
const maxServe = 16

// cursorLife is how long a follower counts as catching up after its last request.
const cursorLife = 30 * time.Second

// deltaCursor is how far a follower that catches up has got: retention waits for it, within bounds.
type deltaCursor struct {
	replica uint64
	from    int64
	since   time.Time // of the first request
	seen    time.Time // of the last
}

// Receive implements multiraft.StateMachine. It only sorts messages: disks are for the manager's steps.
func (p *Partition) Receive(env transport.Envelope, from multiraft.Peer) {
	switch env.Kind {
	case transport.KindDeltaRequest:
		r, err := decodeDeltaRequest(env.Body)
		if err != nil {
			p.logger.Warn("delta request dropped", "from", from.Node, "error", err)
			return
		}
		r.peer = from
		if p.enqueueServe(r) {
			p.m.enqueue(p, taskServe)
		}
	case transport.KindProof:
		p.receiveProof(env.Body, from)
	case transport.KindDeltaChunk:
		c, err := decodeDeltaChunk(env.Body)
		if err != nil {
			p.logger.Warn("delta chunk dropped", "from", from.Node, "error", err)
			return // asked for again when the retry timer fires
		}
		if t := p.enqueueChunk(c, from); t != 0 {
			p.m.enqueue(p, t)
		}
	}
}

// enqueueServe keeps one request for each replica: a newer one replaces what the follower no longer waits for.
func (p *Partition) enqueueServe(r deltaRequest) bool {
	p.stageMu.Lock()
	defer p.stageMu.Unlock()
	if p.closed.Load() {
		return false
	}
	for i := range p.serveQ {
		if p.serveQ[i].peer.Replica == r.peer.Replica {
			p.serveQ[i] = r
			return true
		}
	}
	if len(p.serveQ) >= maxServe {
		return false
	}
	p.serveQ = append(p.serveQ, r)
	return true
}

// stepServe sends one chunk, if the node's rate allows, and says whether there is more to send.
func (p *Partition) stepServe() (again task) {
	p.stageMu.Lock()
	if len(p.serveQ) == 0 {
		p.stageMu.Unlock()
		return 0
	}
	r := p.serveQ[0]
	p.stageMu.Unlock()

	if wait := p.m.rate.wait(p.m.cfg.Clock.Now()); wait > 0 {
		p.m.later(wait, func() { p.m.enqueue(p, taskServe) })
		return 0
	}
	c, next := p.readChunk(&r)
	body := c.encode()
	p.m.rate.spend(len(body))
	r.peer.Send(transport.KindDeltaChunk, body)

	p.stageMu.Lock()
	defer p.stageMu.Unlock()
	p.noteCursor(r.peer.Replica, next)
	if len(p.serveQ) == 0 || p.serveQ[0].peer.Replica != r.peer.Replica {
		return 0
	}
	if q := &p.serveQ[0]; q.session == r.session && q.from == r.from && q.chunks == r.chunks {
		// Not replaced meanwhile: go on, or end it.
		head := *q
		p.serveQ = append(p.serveQ[:0], p.serveQ[1:]...)
		if !c.last {
			head.from, head.chunks = next, head.chunks-1
			p.serveQ = append(p.serveQ, head) // behind the other followers
		}
	}
	if len(p.serveQ) > 0 {
		return taskServe
	}
	return 0
}

// readChunk reads what a request asks for next. Any replica may answer with what it knows to be committed.
func (p *Partition) readChunk(r *deltaRequest) (c deltaChunk, next int64) {
	var err error
	c = deltaChunk{status: chunkUnavailable, last: true, session: r.session, from: r.from, start: p.logStart.Load()}
	to := min(r.to, p.hw.Load())
	switch {
	case r.from < c.start:
		c.status = chunkBelowStart
		return c, r.from
	case r.from >= to:
		return c, r.from
	}
	next = r.from
	c.batches, err = p.readBatches(r.from, to, p.m.cfg.Limits.DeltaChunkBytes, nil)
	if err == nil {
		next, err = batchesEnd(c.batches)
	}
	// What compaction has done is asked for after the records were read: they may lack no more than it says.
	_ = p.withLog(func(l *segment.Log) error {
		at := l.CleanPoint()
		c.holes, c.horizon = at.Holes, at.Horizon
		return nil
	})
	if err == nil && len(c.batches) == 0 && to <= c.holes {
		next = to // nothing is left up to there
	}
	if err != nil || next <= r.from {
		p.logger.Warn("cannot read for a follower that catches up", "offset", r.from, "error", err)
		c.batches = nil
		return c, r.from
	}
	c.status, c.last, c.end = chunkOK, r.chunks <= 1 || next >= to, next
	return c, next
}

// noteCursor is called with stageMu held.
func (p *Partition) noteCursor(replica uint64, at int64) {
	now := p.m.cfg.Clock.Now()
	for i := range p.senders {
		if p.senders[i].replica == replica {
			if c := &p.senders[i]; now.Sub(c.seen) < cursorLife {
				c.from, c.seen = at, now
			} else {
				*c = deltaCursor{replica, at, now, now}
			}
			return
		}
	}
	if len(p.senders) < maxServe {
		p.senders = append(p.senders, deltaCursor{replica, at, now, now})
	}
}

// pinned returns the lowest offset that a follower still has to fetch, or limit.
func (p *Partition) pinned(now time.Time, limit int64) int64 {
	p.stageMu.Lock()
	defer p.stageMu.Unlock()
	keep := p.senders[:0]
	for _, c := range p.senders {
		if now.Sub(c.seen) < cursorLife {
			keep = append(keep, c)
			limit = min(limit, c.from)
		}
	}
	p.senders = keep
	return limit
}
