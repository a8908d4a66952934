package clock

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// turns is a Scheduler whose coroutines are goroutines of which one runs at a time: enough to test what is built on it.
type turns struct {
	*Sim
	parked []*parked
}

type parked struct {
	ready func() bool
	wake  chan struct{}
	yield chan struct{}
}

var current *parked

func (s *turns) WaitUntil(ready func() bool) {
	if ready() {
		return
	}
	me := current
	me.ready = ready
	s.parked = append(s.parked, me)
	me.yield <- struct{}{}
	<-me.wake
}

func (s *turns) Go(f func()) {
	me := &parked{wake: make(chan struct{}), yield: make(chan struct{})}
	was := current
	current = me
	go func() {
		f()
		me.yield <- struct{}{}
	}()
	<-me.yield
	current = was
}

func (s *turns) run() {
	for {
		i := slices.IndexFunc(s.parked, func(p *parked) bool { return p.ready() })
		if i < 0 {
			if !s.RunNext() {
				return
			}
			continue
		}
		p := s.parked[i]
		current = p // until it yields: it may let others run in between
		s.parked = slices.Delete(s.parked, i, i+1)
		p.wake <- struct{}{}
		<-p.yield
	}
}

func TestWaitingIsTheSchedulersToDo(t *testing.T) {
	s := &turns{Sim: NewSim(epoch)}
	var got []string
	note := func(what string) { got = append(got, what+" at "+s.Now().Sub(epoch).String()) }
	values, closed := make(chan int, 1), make(chan struct{})
	s.AfterFunc(time.Second, func() { values <- 7 })
	s.AfterFunc(3*time.Second, func() { close(closed) })
	s.Go(func() {
		if v, err := Recv(s, context.Background(), values); v != 7 || err != nil {
			t.Errorf("received %d, %v", v, err)
		}
		note("received")
		ctx, cancel := WithTimeout(context.Background(), s, time.Second)
		defer cancel()
		if _, err := Recv(s, ctx, values); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting in vain ended with %v", err)
		}
		note("timed out")
		if n := Select(s, values2(nil), closed); n != 1 {
			t.Errorf("selected %d", n)
		}
		note("selected")
		g := Group{Clock: s}
		for _, d := range []time.Duration{2, 1} {
			g.Go(func() {
				if err := Sleep(context.Background(), s, d*time.Second); err != nil {
					t.Error(err)
				}
				note("slept")
			})
		}
		g.Wait()
		note("all slept")
	})
	s.run()
	want := []string{"received at 1s", "timed out at 2s", "selected at 3s", "slept at 4s", "slept at 5s", "all slept at 5s"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func values2(c chan struct{}) <-chan struct{} { return c }

func TestWaitingOnTheSystemsClock(t *testing.T) {
	ctx, cancel := WithTimeout(context.Background(), System{}, time.Millisecond)
	defer cancel()
	if _, err := Recv(System{}, ctx, make(chan int)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting in vain ended with %v", err)
	}
	closed := make(chan struct{})
	close(closed)
	if n := Select(System{}, nil, nil, closed); n != 2 {
		t.Errorf("selected %d", n)
	}
	g, ran := Group{Clock: System{}}, make(chan struct{}, 2)
	g.Go(func() { ran <- struct{}{} })
	g.Go(func() { ran <- struct{}{} })
	g.Wait()
	if len(ran) != 2 {
		t.Errorf("%d of 2 have run", len(ran))
	}
	if err := Sleep(ctx, System{}, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a sleep whose context has ended: %v", err)
	}
}

// A timed context's children end with it, and its error tells why.
func TestTimedContextEndsByItsClock(t *testing.T) {
	s := NewSim(epoch)
	ctx, cancel := WithTimeout(context.Background(), s, time.Second)
	defer cancel()
	child, cancelChild := context.WithCancel(ctx)
	defer cancelChild()
	longer, cancelLonger := WithTimeout(ctx, s, time.Hour)
	defer cancelLonger()
	if at, ok := longer.Deadline(); !ok || !at.Equal(epoch.Add(time.Second)) {
		t.Errorf("the deadline of a context within another is %v, %v", at, ok)
	}
	s.Advance(time.Second)
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) || !errors.Is(longer.Err(), context.DeadlineExceeded) || child.Err() == nil {
		t.Errorf("ended with %v, within it %v, %v", ctx.Err(), longer.Err(), child.Err())
	}
	other, cancelOther := WithTimeout(context.Background(), s, time.Second)
	cancelOther()
	if !errors.Is(other.Err(), context.Canceled) {
		t.Errorf("cancelled, it says %v", other.Err())
	}
}
