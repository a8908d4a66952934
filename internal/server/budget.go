package server

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

var errClosed = errors.New("server: closed")

// budget counts the bytes of frames in flight, node-wide. Who needs more than is left waits, which stops a socket being
// read. Waiters are served in the order they came, and each wakes for its own bytes only: with thousands of sockets
// stopped, a release must not wake them all.
//
// Frames that are half read may wait for each other's bytes. So that one of them can always end, a growing frame that finds
// the budget empty may take the overdraft: there is one, so the bound is the limit plus one frame.
type budget struct {
	limit int64

	mu        sync.Mutex
	used      int64
	overdraft *account
	closed    bool
	queue     list.List // of *claim
}

// account is one frame's share. It is used by one goroutine.
type account struct {
	b     *budget
	bytes int64
	grown int // how often bytes were asked for
}

// claim is one wait for bytes; ready is closed when they are granted, or the budget closed.
type claim struct {
	a       *account
	n       int64
	ready   chan struct{}
	granted bool
}

func newBudget(limit int64) *budget { return &budget{limit: limit} }

// grow takes n more bytes for a, waiting for them until ctx ends.
func (a *account) grow(ctx context.Context, n int64) error {
	a.grown++
	b := a.b
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return errClosed
	}
	// Nobody overtakes who waits, but for the holder of the overdraft, on whose end the others wait.
	if b.overdraft == a || b.queue.Len() == 0 && b.fits(n) {
		b.takeLocked(a, n)
		b.mu.Unlock()
		return nil
	}
	c := &claim{a: a, n: n, ready: make(chan struct{})}
	e := b.queue.PushBack(c)
	b.serveLocked()
	b.mu.Unlock()
	select {
	case <-c.ready:
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case c.granted: // also if ctx ended at the same moment: the caller releases what a holds
		return nil
	case b.closed:
		return errClosed
	}
	b.queue.Remove(e)
	b.serveLocked() // it may have stood in the way of a smaller claim
	return ctx.Err()
}

func (b *budget) fits(n int64) bool { return b.used+n <= b.limit || b.used == 0 }

func (b *budget) takeLocked(a *account, n int64) {
	b.used += n
	a.bytes += n
}

// serveLocked grants what can be granted, in order; then, if the overdraft is free, the first growing frame in line gets it.
func (b *budget) serveLocked() {
	for e := b.queue.Front(); e != nil && b.fits(e.Value.(*claim).n); e = b.queue.Front() {
		b.grantLocked(e)
	}
	if b.overdraft != nil {
		return
	}
	for e := b.queue.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*claim); c.a.bytes > 0 {
			b.overdraft = c.a
			b.grantLocked(e)
			return
		}
	}
}

func (b *budget) grantLocked(e *list.Element) {
	c := b.queue.Remove(e).(*claim)
	b.takeLocked(c.a, c.n)
	c.granted = true
	close(c.ready)
}

// release gives everything back.
func (a *account) release() {
	a.settle()
	a.b.give(a.handOver())
}

// handOver returns what a holds, which is the caller's to give back; a is then as new. It must be settled.
func (a *account) handOver() (n int64) {
	n, a.bytes, a.grown = a.bytes, 0, 0
	return n
}

// give gives n bytes back.
func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	b.serveLocked()
}

// settle ends a's hold on the overdraft: its frame is whole and asks for no more.
func (a *account) settle() {
	if a.grown < 2 {
		return // the overdraft is for growing frames
	}
	b := a.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.overdraft == a {
		b.overdraft = nil
		b.serveLocked()
	}
}

func (b *budget) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for e := b.queue.Front(); e != nil; e = b.queue.Front() {
		close(b.queue.Remove(e).(*claim).ready)
	}
}

func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}
