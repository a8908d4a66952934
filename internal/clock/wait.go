package clock

import (
	"context"
	"sync"
	"time"
)

// Scheduler is a Clock that also decides who runs: the simulator's. Code that waits for others (a request for its outcome, a
// long poll for news) does it through the functions below, so that a whole cluster runs on one thread: where production blocks
// a goroutine in a select, the simulator puts a coroutine aside.
type Scheduler interface {
	Clock
	// WaitUntil returns once ready has returned true. ready does not block, and may be called any number of times until then; what
	// it takes from a channel it takes on returning true.
	WaitUntil(ready func() bool)
	// Go runs f beside the caller.
	Go(f func())
}

// Recv receives a value from ch, or returns ctx's error if that ends first.
func Recv[T any](c Clock, ctx context.Context, ch <-chan T) (v T, err error) {
	s, ok := c.(Scheduler)
	if !ok {
		select {
		case v = <-ch:
			return v, nil
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
	s.WaitUntil(func() bool {
		select {
		case v = <-ch:
			return true
		default:
			err = ctx.Err()
			return err != nil
		}
	})
	return v, err
}

// selectMax is how many channels Select takes.
const selectMax = 6

// Select waits until it has received from one of at most six channels, and returns which one. Nil channels are never ready.
func Select(c Clock, chans ...<-chan struct{}) (chosen int) {
	var ch [selectMax]<-chan struct{}
	if copy(ch[:], chans) < len(chans) {
		panic("clock: Select of too many channels")
	}
	if s, ok := c.(Scheduler); ok {
		s.WaitUntil(func() bool {
			for i := range chans {
				select {
				case <-ch[i]:
					chosen = i
					return true
				default:
				}
			}
			return false
		})
		return chosen
	}
	select {
	case <-ch[0]:
		return 0
	case <-ch[1]:
		return 1
	case <-ch[2]:
		return 2
	case <-ch[3]:
		return 3
	case <-ch[4]:
		return 4
	case <-ch[5]:
		return 5
	}
}

// After returns a channel that is closed d from now, and a function that gives the timer back.
func After(c Clock, d time.Duration) (<-chan struct{}, func()) {
	ch := make(chan struct{})
	if d <= 0 {
		close(ch)
		return ch, func() {}
	}
	t := c.AfterFunc(d, func() { close(ch) })
	return ch, func() { t.Stop() }
}

// Sleep waits d, or until ctx ends, whose error it returns then.
func Sleep(ctx context.Context, c Clock, d time.Duration) error {
	fired, stop := After(c, d)
	defer stop()
	_, err := Recv(c, ctx, fired)
	return err
}

// WithTimeout is context.WithTimeout by a clock.
func WithTimeout(ctx context.Context, c Clock, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := c.(System); ok {
		return context.WithTimeout(ctx, d)
	}
	inner, cancel := context.WithCancelCause(ctx)
	timed := &timedContext{Context: inner, at: c.Now().Add(d)}
	if at, ok := ctx.Deadline(); ok && at.Before(timed.at) {
		timed.at = at
	}
	t := c.AfterFunc(d, func() { cancel(context.DeadlineExceeded) })
	return timed, func() {
		t.Stop()
		cancel(context.Canceled)
	}
}

// timedContext has a deadline by a clock that is not the system's.
type timedContext struct {
	context.Context
	at time.Time
}

// Deadline implements context.Context.
func (c *timedContext) Deadline() (time.Time, bool) { return c.at, true }

// Err implements context.Context.
func (c *timedContext) Err() error {
	if c.Context.Err() == nil {
		return nil
	}
	if cause := context.Cause(c.Context); cause == context.DeadlineExceeded {
		return cause
	}
	return context.Canceled
}

// Group runs functions beside each other and waits for all of them: goroutines, or what the Scheduler has for them. Its zero
// value with a Clock is ready for use, by one caller.
type Group struct {
	Clock Clock

	wg   sync.WaitGroup
	left int // on a Scheduler
}

// Go runs f beside the caller.
func (g *Group) Go(f func()) {
	s, ok := g.Clock.(Scheduler)
	if !ok {
		g.wg.Go(f)
		return
	}
	g.left++
	s.Go(func() {
		defer func() { g.left-- }()
		f()
	})
}

// Wait returns once all have ended.
func (g *Group) Wait() {
	if s, ok := g.Clock.(Scheduler); ok {
		s.WaitUntil(func() bool { return g.left == 0 })
		return
	}
	g.wg.Wait()
}
