package clock

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestSimRunsCallbacksByTimeThenArmingOrder(t *testing.T) {
	s := NewSim(epoch)
	var got []string
	note := func(name string) func() {
		return func() { got = append(got, fmt.Sprintf("%s@%d", name, s.Now().Sub(epoch)/time.Millisecond)) }
	}
	s.AfterFunc(20*time.Millisecond, note("c"))
	s.AfterFunc(10*time.Millisecond, note("a"))
	s.AfterFunc(10*time.Millisecond, note("b"))
	s.AfterFunc(-time.Second, note("now"))
	if len(got) != 0 {
		t.Fatalf("ran before the clock was driven: %v", got)
	}
	if n := s.Advance(15 * time.Millisecond); n != 3 {
		t.Errorf("Advance ran %d callbacks, want 3", n)
	}
	if now := s.Now(); !now.Equal(epoch.Add(15 * time.Millisecond)) {
		t.Errorf("Now = %v after Advance(15ms)", now)
	}
	s.RunUntil(epoch.Add(20 * time.Millisecond)) // at its deadline, not after it
	if want := []string{"now@0", "a@10", "b@10", "c@20"}; !slices.Equal(got, want) {
		t.Errorf("ran %v, want %v", got, want)
	}
}

func TestSimCallbackArmsWithinTheSameAdvance(t *testing.T) {
	s := NewSim(epoch)
	var at []time.Duration
	var tick func()
	tick = func() {
		at = append(at, s.Now().Sub(epoch))
		s.AfterFunc(10, tick)
	}
	s.AfterFunc(10, tick)
	s.Advance(35)
	if want := []time.Duration{10, 20, 30}; !slices.Equal(at, want) {
		t.Errorf("ticked at %v, want %v", at, want)
	}
	if next, ok := s.NextDeadline(); !ok || next.Sub(epoch) != 40 {
		t.Errorf("NextDeadline = %v, %v; want +40", next, ok)
	}
}

func TestSimStopAndReset(t *testing.T) {
	s := NewSim(epoch)
	runs := 0
	tm := s.AfterFunc(10, func() { runs++ })
	if !tm.Stop() || tm.Stop() {
		t.Error("Stop must report true once, then false")
	}
	s.Advance(20)
	if runs != 0 || s.Pending() != 0 {
		t.Fatalf("a stopped callback ran %d times, %d pending", runs, s.Pending())
	}
	if tm.Reset(5) {
		t.Error("Reset of a stopped timer reported it pending")
	}
	if !tm.Reset(50) {
		t.Error("Reset of a pending timer reported it idle")
	}
	s.Advance(49)
	if runs != 0 {
		t.Fatal("ran at its old deadline")
	}
	s.Advance(1)
	if runs != 1 || tm.Stop() {
		t.Fatalf("runs = %d, want 1 and nothing left to stop", runs)
	}
	tm.Reset(1)
	s.Advance(1)
	if runs != 2 {
		t.Fatalf("a timer that had run did not run again after Reset")
	}
}

func TestSimResetQueuesBehindItsInstant(t *testing.T) {
	s := NewSim(epoch)
	var got []string
	a := s.AfterFunc(10, func() { got = append(got, "a") })
	s.AfterFunc(10, func() { got = append(got, "b") })
	a.Reset(10)
	s.Advance(10)
	if !slices.Equal(got, []string{"b", "a"}) {
		t.Errorf("ran %v, want [b a]", got)
	}
}

func TestSimRunNextStepsOneCallback(t *testing.T) {
	s := NewSim(epoch)
	runs := 0
	s.AfterFunc(time.Hour, func() { runs++ })
	s.AfterFunc(time.Hour, func() { runs++ })
	if !s.RunNext() || runs != 1 || !s.Now().Equal(epoch.Add(time.Hour)) {
		t.Fatalf("after one RunNext: %d runs at %v", runs, s.Now())
	}
	if !s.RunNext() || s.RunNext() {
		t.Error("RunNext must report whether a callback was pending")
	}
	if _, ok := s.NextDeadline(); ok {
		t.Error("NextDeadline of an idle clock")
	}
}

func TestSimNeverGoesBack(t *testing.T) {
	s := NewSim(epoch)
	s.Advance(time.Second)
	ran := false
	s.AfterFunc(0, func() { ran = true })
	s.RunUntil(epoch)
	s.Advance(-time.Second)
	if ran || !s.Now().Equal(epoch.Add(time.Second)) {
		t.Errorf("ran = %v, now = %v", ran, s.Now())
	}
}

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s did not panic", what)
		}
	}()
	f()
}

func TestSimRefusesMisuse(t *testing.T) {
	s := NewSim(epoch)
	s.AfterFunc(1, func() { s.Advance(1) })
	mustPanic(t, "driving from a callback", func() { s.Advance(1) })

	var again func()
	again = func() { s.AfterFunc(0, again) }
	s.AfterFunc(1, again)
	mustPanic(t, "a callback that never lets time move", func() { s.Advance(1) })
	mustPanic(t, "AfterFunc(nil)", func() { s.AfterFunc(1, nil) })
}

// The same seed gives the same history, and every callback runs exactly when a plain sorted list says.
func TestSimMatchesSortedListModel(t *testing.T) {
	type entry struct {
		id  int
		at  time.Time
		seq int
	}
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := NewSim(epoch)
		var model []entry
		var got, want []int
		timers := map[int]Timer{}
		seq := 0
		drop := func(id int) bool {
			n := len(model)
			model = slices.DeleteFunc(model, func(e entry) bool { return e.id == id })
			return len(model) < n
		}
		for op := range 400 {
			d := time.Duration(r.IntN(30) - 3)
			id := r.IntN(op + 1)
			switch r.IntN(5) {
			case 0, 1:
				timers[op] = s.AfterFunc(d, func() { got = append(got, op) })
				model = append(model, entry{op, s.Now().Add(max(d, 0)), seq})
				seq++
			case 2:
				if tm := timers[id]; tm != nil && tm.Stop() != drop(id) {
					t.Fatalf("seed %d: Stop disagrees", seed)
				}
			case 3:
				if tm := timers[id]; tm != nil {
					if tm.Reset(d) != drop(id) {
						t.Fatalf("seed %d: Reset disagrees", seed)
					}
					model = append(model, entry{id, s.Now().Add(max(d, 0)), seq})
					seq++
				}
			case 4:
				until := s.Now().Add(d)
				slices.SortFunc(model, func(a, b entry) int {
					if c := a.at.Compare(b.at); c != 0 {
						return c
					}
					return a.seq - b.seq
				})
				for len(model) > 0 && !model[0].at.After(until) {
					want, model = append(want, model[0].id), model[1:]
				}
				s.RunUntil(until)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d, operation %d: ran %v, want %v", seed, op, got, want)
			}
			if s.Pending() != len(model) {
				t.Fatalf("seed %d: %d pending, want %d", seed, s.Pending(), len(model))
			}
		}
	}
}

func TestSimConcurrentUse(t *testing.T) {
	s := NewSim(epoch)
	var wg sync.WaitGroup
	var mu sync.Mutex
	runs := 0
	stopped := 0
	for range 4 {
		wg.Go(func() {
			for i := range 500 {
				tm := s.AfterFunc(time.Duration(i%7), func() { mu.Lock(); runs++; mu.Unlock() })
				if i%3 == 0 && tm.Stop() {
					mu.Lock()
					stopped++
					mu.Unlock()
				}
				_ = s.Now()
			}
		})
	}
	for range 100 {
		s.Advance(1)
	}
	wg.Wait()
	s.Advance(10)
	if runs+stopped != 2000 {
		t.Errorf("%d ran, %d stopped; want 2000 together", runs, stopped)
	}
}

func TestSystemClock(t *testing.T) {
	done := make(chan time.Time, 1)
	start := System{}.Now()
	System{}.AfterFunc(time.Millisecond, func() { done <- System{}.Now() })
	select {
	case at := <-done:
		if at.Sub(start) < time.Millisecond {
			t.Errorf("ran after %v, want at least 1ms", at.Sub(start))
		}
	case <-time.After(time.Minute):
		t.Fatal("the callback did not run")
	}
	tm := System{}.AfterFunc(time.Hour, func() { t.Error("a stopped callback ran") })
	if !tm.Stop() {
		t.Error("Stop of a pending timer reported false")
	}
}
