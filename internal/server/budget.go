package server

import (
	"context"
	"errors"
	"sync"
)

var errClosed = errors.New("server: closed")

// budget counts the bytes of frames in flight, node-wide. Who needs more than is left waits, which stops a socket being
// read.
//
// Frames that are half read may wait for each other's bytes. So that one of them can always end, a growing frame that finds
// the budget empty may take the overdraft: there is one, so the bound is the limit plus one frame.
type budget struct {
	limit int64

	mu        sync.Mutex
	used      int64
	overdraft *account
	closed    bool
	waiters   map[*account]chan struct{}
}

// account is one frame's share.
type account struct {
	b     *budget
	bytes int64
}

func newBudget(limit int64) *budget {
	return &budget{limit: limit, waiters: map[*account]chan struct{}{}}
}

// grow takes n more bytes for a, waiting for them until ctx ends.
func (a *account) grow(ctx context.Context, n int64) error {
	b := a.b
	for {
		b.mu.Lock()
		if b.closed {
			b.mu.Unlock()
			return errClosed
		}
		if b.used+n > b.limit && a.bytes > 0 && b.overdraft == nil {
			b.overdraft = a
		}
		if b.used+n <= b.limit || b.used == 0 || b.overdraft == a {
			b.used += n
			a.bytes += n
			b.mu.Unlock()
			return nil
		}
		ready := make(chan struct{})
		b.waiters[a] = ready
		b.mu.Unlock()
		select {
		case <-ready:
		case <-ctx.Done():
			b.mu.Lock()
			delete(b.waiters, a)
			b.mu.Unlock()
			return ctx.Err()
		}
	}
}

// release gives everything back.
func (a *account) release() {
	b := a.b
	b.mu.Lock()
	b.used -= a.bytes
	a.bytes = 0
	if b.overdraft == a {
		b.overdraft = nil
	}
	b.wakeLocked()
	b.mu.Unlock()
}

// settle ends a's hold on the overdraft: its frame is whole and asks for no more.
func (a *account) settle() {
	b := a.b
	b.mu.Lock()
	if b.overdraft == a {
		b.overdraft = nil
		b.wakeLocked()
	}
	b.mu.Unlock()
}

func (b *budget) wakeLocked() {
	for a, ready := range b.waiters {
		close(ready)
		delete(b.waiters, a)
	}
}

func (b *budget) close() {
	b.mu.Lock()
	b.closed = true
	b.wakeLocked()
	b.mu.Unlock()
}

func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}
