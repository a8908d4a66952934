package multiraft

import (
	"sync"
	"sync/atomic"
)

// mailbox is the inbox of a worker: many posters, one taker, order kept. A condition variable wakes the taker: at this rate
// of small messages it costs less than a channel operation each.
type mailbox[E any] struct {
	mu     sync.Mutex
	cond   sync.Cond
	items  []E
	spare  []E // the last batch's array, cleared, for reuse
	tick   bool
	closed bool
	// due: there are items, or a tick.
	due atomic.Bool
}

func (m *mailbox[E]) init() { m.cond.L = &m.mu }

// post adds items, or returns false if the mailbox is closed.
func (m *mailbox[E]) post(items ...E) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.items = append(m.items, items...)
	m.due.Store(len(m.items) > 0 || m.tick)
	if len(m.items) == len(items) {
		m.cond.Signal()
	}
	return true
}

func (m *mailbox[E]) postTick() {
	m.mu.Lock()
	m.tick = true
	m.due.Store(true)
	m.cond.Signal()
	m.mu.Unlock()
}

// take empties the mailbox. The slice is the taker's until the next give.
func (m *mailbox[E]) take() (items []E, tick bool) {
	m.mu.Lock()
	items, tick = m.items, m.tick
	m.items, m.tick = m.spare[:0], false
	m.due.Store(false)
	m.spare = nil
	m.mu.Unlock()
	return items, tick
}

// maxSpare bounds the array kept from a burst.
const maxSpare = 4096

// give hands a taken slice back for reuse.
func (m *mailbox[E]) give(items []E) {
	if cap(items) == 0 || cap(items) > maxSpare {
		return
	}
	clear(items)
	m.mu.Lock()
	m.spare = items[:0]
	m.mu.Unlock()
}

func (m *mailbox[E]) empty() bool { return !m.due.Load() }

func (m *mailbox[E]) close() {
	m.mu.Lock()
	m.closed = true
	m.cond.Broadcast()
	m.mu.Unlock()
}

// run calls step whenever there is work, until the mailbox has been closed and emptied.
func (m *mailbox[E]) run(step func() bool) {
	for {
		for step() {
		}
		m.mu.Lock()
		for len(m.items) == 0 && !m.tick && !m.closed {
			m.cond.Wait()
		}
		done := m.closed && len(m.items) == 0
		m.mu.Unlock()
		if done {
			return
		}
	}
}
