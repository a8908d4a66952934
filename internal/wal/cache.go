package wal

import (
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

// dropStale removes tickets at the head whose entries have left memory by other ways, so that the queue stays as short as
// what it stands for.
func (c *cache) dropStale() {
	for range 2 {
		c.mu.Lock()
		if c.head == len(c.queue) {
			c.mu.Unlock()
			return
		}
		t := c.queue[c.head]
		c.mu.Unlock()
		t.g.mu.Lock()
		stale := t.window == 0 && (len(t.g.tail) == 0 || t.g.tailFirst() > t.index)
		t.g.mu.Unlock()
		if !stale {
			return
		}
		c.mu.Lock()
		if c.head < len(c.queue) && c.queue[c.head] == t {
			c.pop()
		}
		c.mu.Unlock()
	}
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
