package clock

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
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
	start   time.Time
	now     atomic.Int64 // nanoseconds since start
	driving atomic.Bool

	mu     sync.Mutex
	seq    uint64 // of the next timer armed
	timers timerHeap
	burst  int // callbacks run since time last moved
}

var _ Clock = (*Sim)(nil)

// NewSim returns a clock that reads start. A monotonic reading of start is dropped: it would keep Sub and Before from
// seeing simulated time. It runs for 292 years at most.
func NewSim(start time.Time) *Sim { return &Sim{start: start.Round(0)} }

// Now implements Clock.
func (s *Sim) Now() time.Time { return s.start.Add(time.Duration(s.now.Load())) }

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
	return s.start.Add(time.Duration(s.timers[0].at)), true
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
	s.drive()
	defer s.driving.Store(false)
	return s.runOne(math.MaxInt64)
}

// RunUntil runs every callback due at or before t, those armed on the way included, and leaves the clock at t. A t in the
// past runs nothing and does not move the clock back. It returns the number of callbacks run.
func (s *Sim) RunUntil(t time.Time) int {
	s.drive()
	defer s.driving.Store(false)
	n, limit := 0, int64(t.Sub(s.start))
	for s.runOne(limit) {
		n++
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moveTo(limit)
	return n
}

// Advance moves the clock by d: RunUntil(Now + d). Advance(0) runs what is due now.
func (s *Sim) Advance(d time.Duration) int { return s.RunUntil(s.Now().Add(d)) }

// drive claims the clock for its one driver.
func (s *Sim) drive() {
	if !s.driving.CompareAndSwap(false, true) {
		panic("clock: the simulated clock is driven from two places, or from one of its own callbacks")
	}
}

// runOne runs the first callback, unless it is due after limit.
func (s *Sim) runOne(limit int64) bool {
	s.mu.Lock()
	if len(s.timers) == 0 || s.timers[0].at > limit {
		s.mu.Unlock()
		return false
	}
	t := s.timers[0].t
	s.moveTo(s.timers[0].at)
	s.timers.remove(0)
	s.burst++
	burst := s.burst
	s.mu.Unlock()
	if burst > maxCallbacksPerInstant {
		panic(fmt.Sprintf("clock: %d callbacks at %v and time does not move: something arms itself without a delay", burst, s.Now()))
	}
	t.f() // without the lock: it may arm and stop timers
	return true
}

func (s *Sim) moveTo(at int64) {
	if at > s.now.Load() {
		s.now.Store(at)
		s.burst = 0
	}
}

func (s *Sim) arm(t *simTimer, d time.Duration) {
	at := s.now.Load() + int64(max(d, 0))
	if at < 0 {
		at = math.MaxInt64
	}
	s.timers.push(armed{at, s.seq, t})
	s.seq++
}

// idle is the index of a timer that is not in the heap: it ran, runs, or was stopped.
const idle = -1

type simTimer struct {
	clock *Sim
	f     func()
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
	t.clock.timers.remove(t.index)
	return true
}

// armed is a timer in the heap, beside what it is ordered by: comparing follows no pointer.
type armed struct {
	at  int64 // when it is due, nanoseconds since the clock's start
	seq uint64
	t   *simTimer
}

func (a *armed) before(b *armed) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

// timerHeap orders timers by due time, then by arming order. It is a binary heap of its own, not container/heap's: timers are
// most of what a simulation's clock does.
type timerHeap []armed

func (h *timerHeap) push(a armed) {
	*h = append(*h, a)
	h.up(len(*h)-1, a)
}

// remove takes out what is at i.
func (h *timerHeap) remove(i int) {
	old := *h
	old[i].t.index = idle
	last := len(old) - 1
	moved := old[last]
	old[last] = armed{}
	*h = old[:last]
	if i == last {
		return
	}
	if i > 0 && moved.before(&old[(i-1)/2]) {
		h.up(i, moved)
	} else {
		h.down(i, moved)
	}
}

// up puts a where it belongs on the way from i, which is free, to the top.
func (h timerHeap) up(i int, a armed) {
	for i > 0 {
		parent := (i - 1) / 2
		if !a.before(&h[parent]) {
			break
		}
		h[i] = h[parent]
		h[i].t.index = i
		i = parent
	}
	h[i] = a
	a.t.index = i
}

// down puts a where it belongs below i, which is free.
func (h timerHeap) down(i int, a armed) {
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && h[child+1].before(&h[child]) {
			child++
		}
		if !h[child].before(&a) {
			break
		}
		h[i] = h[child]
		h[i].t.index = i
		i = child
	}
	h[i] = a
	a.t.index = i
}
