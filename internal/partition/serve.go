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

// stepServe sends one chunk, if the node's rates allow, and says whether there is more to send.
func (p *Partition) stepServe() (again task) {
	now := p.m.cfg.Clock.Now()
	if wait := p.m.rate.Wait(now); wait > 0 {
		p.serveLater(wait)
		return 0
	}
	r, wait := p.nextServe(now)
	if r == nil {
		if wait > 0 {
			p.serveLater(wait)
		}
		return 0
	}
	throttled := p.throttles(r)
	c, next := p.readChunk(r, throttled)
	c.spare, c.slowed = r.peer.Spare, throttled
	body := c.encode()
	p.m.rate.Spend(len(body))
	if throttled {
		p.m.cfg.Throttle.Leader.Spend(len(body))
	}
	r.peer.Send(transport.KindDeltaChunk, body)

	p.stageMu.Lock()
	defer p.stageMu.Unlock()
	p.noteCursor(r.peer.Replica, next)
	for i := range p.serveQ {
		q := p.serveQ[i]
		if q.peer.Replica != r.peer.Replica || q.session != r.session || q.from != r.from || q.chunks != r.chunks {
			continue // another, or replaced meanwhile
		}
		p.serveQ = append(p.serveQ[:i], p.serveQ[i+1:]...)
		if !c.last {
			q.from, q.chunks = next, q.chunks-1
			p.serveQ = append(p.serveQ, q) // behind the other followers
		}
		break
	}
	if len(p.serveQ) > 0 {
		return taskServe
	}
	return 0
}

// throttles says whether what a request is sent counts against leader.replication.throttled.rate.
func (p *Partition) throttles(r *deltaRequest) bool {
	return r.peer.Spare && p.m.cfg.Throttle.Sends(p.topic, p.index)
}

// nextServe returns the first request that may be served now, nil if there is none; wait is then how long those that are throttled
// have to. They are told so: a follower that hears nothing looks for another leader to ask.
func (p *Partition) nextServe(now time.Time) (next *deltaRequest, wait time.Duration) {
	p.stageMu.Lock()
	var tell []deltaRequest
	for i := range p.serveQ {
		q := &p.serveQ[i]
		if p.throttles(q) {
			if w := p.m.cfg.Throttle.Leader.Wait(now); w > 0 {
				if wait == 0 || w < wait {
					wait = w
				}
				if !q.told {
					q.told = true
					p.noteCursor(q.peer.Replica, q.from)
					tell = append(tell, *q)
				}
				continue
			}
		}
		r := *q
		next = &r
		break
	}
	p.stageMu.Unlock()
	for _, q := range tell {
		c := deltaChunk{status: chunkThrottled, spare: true, slowed: true, session: q.session, from: q.from, start: p.logStart.Load()}
		q.peer.Send(transport.KindDeltaChunk, c.encode())
	}
	return next, wait
}

// serveLater sees to it that requests which wait for a budget are looked at again.
func (p *Partition) serveLater(wait time.Duration) {
	p.stageMu.Lock()
	armed := p.serveArmed
	p.serveArmed = true
	p.stageMu.Unlock()
	if armed {
		return
	}
	p.m.later(wait, func() {
		p.stageMu.Lock()
		p.serveArmed = false
		p.stageMu.Unlock()
		p.m.enqueue(p, taskServe)
	})
}

// readChunk reads what a request asks for next. Any replica may answer with what it knows to be committed.
func (p *Partition) readChunk(r *deltaRequest, throttled bool) (c deltaChunk, next int64) {
	var err error
	size := p.m.cfg.Limits.DeltaChunkBytes
	if r.kib > 0 {
		size = min(size, int(r.kib)<<10)
	}
	if throttled {
		size = p.m.cfg.Throttle.Leader.Piece(size)
	}
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
	c.batches, err = p.readBatches(r.from, to, size, nil)
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
