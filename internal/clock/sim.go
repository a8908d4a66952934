package clock

import (
	"container/heap"
	"fmt"
	"sync"
	"time"
)

// maxCallbacksPerInstant bounds how many callbacks one instant of simulated time may run: a callback that arms itself
// again with no delay would otherwise hang the simulation without a word.
const maxCallbacksPerInstant = 1_000_000

// Sim is a clock that stands still until its driver moves it. Callbacks run on the driver's thread, inside RunNext,
// RunUntil or Advance, ordered by the time they are due and, within one instant, by the order in which they were armed: a run
// repeats exactly. Now returns the due time of the callback that is running.
//
// All methods are safe for concurrent use, except that only one thread at a time may drive, and a callback may not drive.
type Sim struct {
	mu      sync.Mutex
	now     time.Time
	seq     uint64 // of the next timer armed
	timers  timerHeap
	driving bool
	burst   int // callbacks run since time last moved
}

var _ Clock = (*Sim)(nil)

// NewSim returns a clock that reads start. A monotonic reading of start is dropped: it would keep Sub and Before from
// seeing simulated time.
func NewSim(start time.Time) *Sim { return &Sim{now: start.Round(0)} }

// Now implements Clock.
func (s *Sim) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// AfterFunc implements Clock. With d <= 0 the callback is due at once, but still runs only when the clock is driven.
func (s *Sim) AfterFunc(d time.Duration, f func()) Timer {
	if f == nil {
		panic("clock: AfterFunc without a function")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &simTimer{clock: s, f: f, index: idle}
	s.arm(t, d)
	return t
}

// NextDeadline returns when the next callback is due; ok is false when none is pending. It is never before Now.
func (s *Sim) NextDeadline() (at time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.timers) == 0 {
		return time.Time{}, false
	}
	return s.timers[0].at, true
}

// Pending returns the number of callbacks waiting.
func (s *Sim) Pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.timers)
}

// RunNext moves the clock to the next deadline and runs that one callback. It reports false, and does nothing, when none is
// pending.
func (s *Sim) RunNext() bool {
	defer s.drive()()
	return s.runOne(nil)
}

// RunUntil runs every callback due at or before t, those armed on the way included, and leaves the clock at t. A t in the
// past runs nothing and does not move the clock back. It returns the number of callbacks run.
func (s *Sim) RunUntil(t time.Time) int {
	defer s.drive()()
	n := 0
	for s.runOne(&t) {
		n++
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moveTo(t)
	return n
}

// Advance moves the clock by d: RunUntil(Now + d). Advance(0) runs what is due now.
func (s *Sim) Advance(d time.Duration) int { return s.RunUntil(s.Now().Add(d)) }

// drive claims the clock for its one driver and returns the function that gives it back.
func (s *Sim) drive() func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.driving {
		panic("clock: the simulated clock is driven from two places, or from one of its own callbacks")
	}
	s.driving = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.driving = false
	}
}

// runOne runs the first callback, unless it is due after limit.
func (s *Sim) runOne(limit *time.Time) bool {
	s.mu.Lock()
	if len(s.timers) == 0 || limit != nil && s.timers[0].at.After(*limit) {
		s.mu.Unlock()
		return false
	}
	t := heap.Pop(&s.timers).(*simTimer)
	s.moveTo(t.at)
	s.burst++
	burst, now := s.burst, s.now
	s.mu.Unlock()
	if burst > maxCallbacksPerInstant {
		panic(fmt.Sprintf("clock: %d callbacks at %v and time does not move: something arms itself without a delay", burst, now))
	}
	t.f() // without the lock: it may read the clock, arm and stop timers
	return true
}

func (s *Sim) moveTo(t time.Time) {
	if t.After(s.now) {
		s.now, s.burst = t.Round(0), 0
	}
}

func (s *Sim) arm(t *simTimer, d time.Duration) {
	t.at, t.seq = s.now.Add(max(d, 0)), s.seq
	s.seq++
	heap.Push(&s.timers, t)
}

// idle is the index of a timer that is not in the heap: it ran, runs, or was stopped.
const idle = -1

type simTimer struct {
	clock *Sim
	f     func()
	at    time.Time
	seq   uint64
	index int
}

// Stop implements Timer.
func (t *simTimer) Stop() bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	return t.disarm()
}

// Reset implements Timer. A timer that is reset queues behind those already armed for the same instant.
func (t *simTimer) Reset(d time.Duration) bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	was := t.disarm()
	t.clock.arm(t, d)
	return was
}

func (t *simTimer) disarm() bool {
	if t.index == idle {
		return false
	}
	heap.Remove(&t.clock.timers, t.index)
	return true
}

// timerHeap orders timers by due time, then by arming order.
type timerHeap []*simTimer

func (h timerHeap) Len() int { return len(h) }

func (h timerHeap) Less(i, j int) bool {
	if c := h[i].at.Compare(h[j].at); c != 0 {
		return c < 0
	}
	return h[i].seq < h[j].seq
}

func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *timerHeap) Push(x any) {
	t := x.(*simTimer)
	t.index = len(*h)
	*h = append(*h, t)
}

func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = idle
	return t
}
