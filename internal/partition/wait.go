package partition

import "sync"

// Waiter waits for news of one or many partitions: a long poll. It fires when a high watermark passes the offset it was given
// for, when a partition's leadership changes here, or when a partition closes. The one who waits then looks again, and may
// wait again with the same Waiter. Cancel when done with it.
type Waiter struct {
	c chan struct{}

	mu   sync.Mutex
	regs map[*Partition]*waitNode
}

// waitNode is a Waiter's place in a partition's ring; the partition's waitMu guards it.
type waitNode struct {
	w          *Waiter
	offset     int64
	prev, next *waitNode
}

// NewWaiter makes a waiter whose firing is read from C.
func NewWaiter() *Waiter { return &Waiter{c: make(chan struct{}, 1)} }

func (w *Waiter) fire() {
	select {
	case w.c <- struct{}{}:
	default: // it has fired and nobody has looked yet
	}
}

// C receives a value after the waiter fired; firings between two receives are one.
func (w *Waiter) C() <-chan struct{} { return w.c }

// Wait lets w fire once when the high watermark passes offset (a record at offset can be read) or leadership changes or the
// partition closes. If the record is there already it fires at once. Waiting again on the same partition replaces the offset.
func (p *Partition) Wait(offset int64, w *Waiter) {
	w.mu.Lock()
	if w.regs == nil {
		w.regs = make(map[*Partition]*waitNode)
	}
	n := w.regs[p]
	if n == nil {
		n = &waitNode{w: w}
		w.regs[p] = n
	}
	w.mu.Unlock()

	p.waitMu.Lock()
	// Checked under waitMu: Apply publishes first and looks for waiters after.
	ready := p.hw.Load() > offset || p.closed.Load()
	n.unlink()
	if !ready {
		n.offset = offset
		n.prev, n.next = p.waiters.prev, &p.waiters
		n.prev.next, p.waiters.prev = n, n
	}
	p.waitMu.Unlock()
	if ready {
		w.fire()
	}
}

// Cancel ends w's wait for this partition.
func (p *Partition) Cancel(w *Waiter) {
	w.mu.Lock()
	n := w.regs[p]
	delete(w.regs, p)
	w.mu.Unlock()
	if n != nil {
		p.waitMu.Lock()
		n.unlink()
		p.waitMu.Unlock()
	}
}

// Cancel ends all waits. A firing under way may still arrive.
func (w *Waiter) Cancel() {
	w.mu.Lock()
	regs := w.regs
	w.regs = nil
	w.mu.Unlock()
	for p, n := range regs {
		p.waitMu.Lock()
		n.unlink()
		p.waitMu.Unlock()
	}
}

func (n *waitNode) unlink() {
	if n.next != nil {
		n.prev.next, n.next.prev = n.next, n.prev
		n.prev, n.next = nil, nil
	}
}

// wake fires those who wait for less than hw.
func (p *Partition) wake(hw int64) { p.wakeWhere(func(n *waitNode) bool { return n.offset < hw }) }

// wakeAll fires everybody: leadership changed.
func (p *Partition) wakeAll() { p.wakeWhere(func(*waitNode) bool { return true }) }

func (p *Partition) wakeWhere(due func(*waitNode) bool) {
	var fired []*Waiter
	p.waitMu.Lock()
	for n := p.waiters.next; n != &p.waiters; {
		next := n.next
		if due(n) {
			n.unlink()
			fired = append(fired, n.w)
		}
		n = next
	}
	p.waitMu.Unlock()
	for _, w := range fired {
		w.fire()
	}
}
