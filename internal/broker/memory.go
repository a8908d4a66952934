package broker

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
)

// memory counts bytes that requests hold, for the node. Who needs more than is left waits in line, which holds its connection
// up and no other: a flood of requests is served late or refused, and costs no more than the limit.
type memory struct {
	clk   clock.Clock
	limit int64

	mu    sync.Mutex
	used  int64
	queue list.List // of *memoryClaim
}

type memoryClaim struct {
	n       int64
	granted chan struct{} // closed with mu held
}

// take counts n bytes that are held already.
func (m *memory) take(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used += n
}

// give takes n bytes off the count, and lets those go on who waited for them.
func (m *memory) give(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used -= n
	m.serveLocked()
}

// serveLocked grants what fits, in order. One claim always fits alone.
func (m *memory) serveLocked() {
	for e := m.queue.Front(); e != nil; e = m.queue.Front() {
		c := e.Value.(*memoryClaim)
		if m.used > 0 && m.used+c.n > m.limit {
			return
		}
		m.used += c.n
		m.queue.Remove(e)
		close(c.granted)
	}
}

// await waits for n bytes, no longer than patience nor than ctx and stop allow, and takes them. False: there are none.
func (m *memory) await(ctx context.Context, n int64, patience time.Duration, stop <-chan struct{}) bool {
	c := &memoryClaim{n: n, granted: make(chan struct{})}
	m.mu.Lock()
	e := m.queue.PushBack(c)
	m.serveLocked()
	m.mu.Unlock()
	select {
	case <-c.granted:
		return true
	default:
	}
	late, end := clock.After(m.clk, patience)
	defer end()
	clock.Select(m.clk, c.granted, late, ctx.Done(), stop)
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-c.granted: // also if it came too late
		return true
	default:
	}
	m.queue.Remove(e)
	m.serveLocked() // it may have stood in the way of a smaller one
	return false
}

// left is what is not held, not below zero.
func (m *memory) left() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(m.limit-m.used, 0)
}

func (m *memory) inUse() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}
