package wal

import (
	"slices"
	"sync"
	"sync/atomic"
)

// cache bounds what all groups keep in memory. Entries leave in the order in which they came (a queue of tickets), except
// that those not yet applied or not yet written go to the end of the queue again.
//
// Lock order: neither trim nor push may be called with a group's lock held; tickets are taken out before a group is locked.
type cache struct {
	limit int64
	bytes atomic.Int64

	mu    sync.Mutex
	queue []ticket
	head  int
	limbo int    // tickets that dropStale has taken out of the queue to look at
	sweep int    // tickets at which it is due again
	last  uint64 // window ids
}

// ticket stands for entries of a group up to index, or for a window read ahead.
type ticket struct {
	g      *Group
	index  uint64
	window uint64
	bytes  int64
}

const (
	ticketBytes = 256 << 10 // a ticket grows to about this many bytes
	trimSteps   = 64        // tickets looked at in one call: bounds the time taken from the caller
	sweepLeast  = 4096      // tickets for which it is worth while to look for those that stand for nothing
)

// push notes that a group's entries up to index came into memory.
func (c *cache) push(t ticket) {
	c.mu.Lock()
	if n := len(c.queue); t.window == 0 && n > c.head {
		if l := &c.queue[n-1]; l.g == t.g && l.window == 0 && l.bytes+t.bytes <= ticketBytes {
			l.index = max(l.index, t.index)
			l.bytes += t.bytes
			c.mu.Unlock()
			return
		}
	}
	c.queue = append(c.queue, t)
	c.mu.Unlock()
	c.dropStale()
	c.trim()
}

// dropStale removes the tickets whose entries have left memory by other ways, so that the queue stays as short as what it stands for: all
// of them, wherever they are, each time it has doubled. Meanwhile others find it empty, or only what came since.
func (c *cache) dropStale() {
	c.mu.Lock()
	old := c.queue[c.head:]
	if c.limbo > 0 || len(old) < max(c.sweep, sweepLeast) {
		c.mu.Unlock()
		return
	}
	c.queue, c.head, c.limbo = nil, 0, len(old)
	c.mu.Unlock()
	keep := make([]ticket, 0, len(old)/2)
	for _, t := range old {
		if !t.stale() {
			keep = append(keep, t)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue, c.head, c.limbo = append(keep, c.queue[c.head:]...), 0, 0
	c.sweep = 2 * len(c.queue)
}

func (t *ticket) stale() bool {
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	if t.window != 0 {
		return !slices.ContainsFunc(t.g.cold, func(w window) bool { return w.id == t.window })
	}
	return len(t.g.tail) == 0 || t.g.tailFirst() > t.index
}

func (c *cache) pop() ticket {
	t := c.queue[c.head]
	c.queue[c.head] = ticket{}
	if c.head++; c.head > 1024 && c.head > len(c.queue)/2 {
		n := copy(c.queue, c.queue[c.head:])
		clear(c.queue[n:]) // let go of groups that are gone
		c.queue = c.queue[:n]
		c.head = 0
	}
	return t
}

// trim evicts until the cache is within its bound, or the steps of one call are used up.
func (c *cache) trim() {
	for i := 0; i < trimSteps && c.bytes.Load() > c.limit; i++ {
		c.mu.Lock()
		if c.head == len(c.queue) {
			c.mu.Unlock()
			return
		}
		t := c.pop()
		c.mu.Unlock()
		if t.window != 0 {
			t.g.evictWindow(t.window)
			continue
		}
		if t.g.evict(t.index) {
			c.mu.Lock()
			c.queue = append(c.queue, t)
			c.mu.Unlock()
		}
	}
}

func (c *cache) windowID() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	return c.last
}
