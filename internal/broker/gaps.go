package broker

import (
	"fmt"
	"math"
	"time"

	"github.com/chronik-go/chronik/internal/record"
)

// A route (route.go) fails what follows a failed batch until the failure is answered. Batches that the client had sent before
// it read that answer may arrive later still. With a producer that the partition knows, their sequences give them away
// (OUT_OF_ORDER_SEQUENCE); of one that it does not know, any first sequence is welcome, so the second batch would be written
// and the first, sent again, would come after it. So a connection remembers where an idempotent producer's batches tore,
// and lets none of them pass but the one that tore, until it comes again, or the producer's epoch changes.
//
// The client may send it again on another connection, to another node. What is left here must not stand in the way should
// this node lead next: the gap is closed once the partition has the batch that tore, and forgotten after gapAge in any case
// (by then what was in the socket has been read).

// gapAge is far above the time that bytes spend in a socket, and below what clients allow for a delivery.
const gapAge = 5 * time.Second

// maxGaps bounds one connection's; what finds no room is left to the partition's own checks.
const maxGaps = 4096

// sequence is a batch's place among its producer's. id -1: the producer is not idempotent.
type sequence struct {
	id    int64
	epoch int16
	base  int32
}

// sequenceOf reads it from a batch; one that can't be read is the partition's to refuse.
func sequenceOf(records []byte) sequence {
	h, err := record.ParseHeader(records)
	if err != nil || h.ProducerID < 0 {
		return sequence{id: -1}
	}
	return sequence{h.ProducerID, h.ProducerEpoch, h.BaseSequence}
}

// before says whether s comes before t; sequences wrap at 2^31.
func (s sequence) before(t sequence) bool {
	d := (t.base - s.base) & math.MaxInt32
	return d != 0 && d < 1<<30
}

type gapKey struct {
	group    uint64
	producer int64
}

type gap struct {
	sequence
	since time.Time
}

// tear remembers that a batch failed for reasons of the cluster's: the first of its producer's, if several did.
func (c *conn) tear(group uint64, s sequence) {
	if s.id < 0 {
		return
	}
	k, now := gapKey{group, s.id}, c.b.cfg.Clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if g, ok := c.gaps[k]; ok && !g.over(now) && g.epoch == s.epoch && !s.before(g.sequence) {
		return
	} else if !ok && len(c.gaps) >= maxGaps && !c.sweepLocked(now) {
		return
	}
	if c.gaps == nil {
		c.gaps = map[gapKey]gap{}
	}
	c.gaps[k] = gap{s, now}
}

// passes says why a batch must not pass: one before it failed and has not come again. Empty: it may. written says whether the
// partition has a batch, as far as is known here.
func (c *conn) passes(group uint64, s sequence, written func(sequence) bool) (reason string) {
	if s.id < 0 {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.gaps) == 0 {
		return ""
	}
	k := gapKey{group, s.id}
	g, ok := c.gaps[k]
	if !ok {
		return ""
	}
	if s.epoch != g.epoch || !g.before(s) || g.over(c.b.cfg.Clock.Now()) || written(g.sequence) {
		delete(c.gaps, k)
		return ""
	}
	return fmt.Sprintf("the batch of sequence %d, before it, failed on this connection and has not been sent again", g.base)
}

func (g gap) over(now time.Time) bool { return now.Sub(g.since) >= gapAge }

// sweepLocked drops what is over, and says whether there is room now.
func (c *conn) sweepLocked(now time.Time) bool {
	for k, g := range c.gaps {
		if g.over(now) {
			delete(c.gaps, k)
		}
	}
	return len(c.gaps) < maxGaps
}

// written says whether this node's replica of a partition has applied the batch with that sequence, or one after it.
func (b *Broker) written(topic string, index int32, s sequence) bool {
	p, ok := b.cfg.Partitions.Lookup(topic, index)
	if !ok {
		return false
	}
	epoch, last, ok := p.LastSequence(s.id)
	return ok && epoch == s.epoch && !(sequence{base: last}).before(s)
}
