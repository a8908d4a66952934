package broker

import (
	"container/list"
	"context"
	"fmt"
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

// more takes up to n bytes beyond what its caller has, of those that nobody waits for.
func (m *memory) more(n int64) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.queue.Len() > 0 {
		return 0
	}
	n = max(min(n, m.limit-m.used), 0)
	m.used += n
	return n
}

// short says whether somebody waits.
func (m *memory) short() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.queue.Len() > 0
}

func (m *memory) inUse() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

// reserve counts what a request's answer takes, before it is made; what is small is not counted.
func (b *Broker) reserve(ctx context.Context, rc *RequestContext, n int64) error {
	if n < decodedMin {
		return nil
	}
	if !b.answers.await(ctx, n, memoryPatience, nil) {
		b.metrics.starved(rc.Key)
		return fmt.Errorf("API key %d, version %d: an answer of about %d KiB: %w", rc.Key, rc.Version, n>>10, errBusy)
	}
	rc.held += n
	return nil
}

// reserveAnswer is reserve for answers of any size, which a request of a few bytes may ask for: the same group named a thousand times, or
// the same offset, whose metadata is a thousand times as long as its number.
func (b *Broker) reserveAnswer(ctx context.Context, rc *RequestContext, n int64) error {
	if err := b.mayAnswer(rc, n); err != nil {
		return err
	}
	return b.reserve(ctx, rc, n)
}

// mayAnswer refuses an answer of n bytes if that is more than MaxAnswerBytes.
func (b *Broker) mayAnswer(rc *RequestContext, n int64) error {
	if most := int64(b.cfg.MaxAnswerBytes); n > most {
		return fmt.Errorf("API key %d, version %d: an answer of about %d KiB, at most %d are given: ask for less at a time", rc.Key, rc.Version, n>>10, most>>10)
	}
	return nil
}

// keep gives back what was reserved beyond n bytes.
func (b *Broker) keep(rc *RequestContext, n int64) {
	if over := rc.held - n; over > 0 {
		rc.held = n
		b.answers.give(over)
	}
}

// Pressed says whether requests wait for memory that answers hold: internal/server then cuts clients that do not read.
func (b *Broker) Pressed() bool { return b.fetchHeld.short() || b.answers.short() }
