package cleaner

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/leaktest"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/segment"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// fake is a partition of which a pass takes so many bytes.
type fake struct {
	w      *world
	name   string
	st     partition.CleanState
	absent bool
	bytes  int64
	fail   error
	aborts int
}

type world struct {
	clk    *clock.Sim
	parts  []*fake
	set    Settings
	busy   bool
	passes []string // begun
	keys   *segment.OffsetMap
	open   int
}

func (f *fake) CleanState(time.Time) (partition.CleanState, bool) { return f.st, !f.absent }
func (f *fake) Name() string                                      { return f.name }
func (f *fake) Clean(keys *segment.OffsetMap, _ time.Time) (Pass, error) {
	f.w.passes = append(f.w.passes, f.name)
	f.w.keys = keys
	f.w.open++
	keys.Reset(100)
	return &fakePass{f: f, left: f.bytes}, nil
}

type fakePass struct {
	f    *fake
	left int64
	at   segment.Cleaned
}

func (p *fakePass) Step(n int64) (bool, error) {
	if p.f.fail != nil {
		p.f.w.open--
		return false, p.f.fail
	}
	n = min(n, p.left)
	p.left -= n
	p.at.Read += n / 2
	p.at.Written += n - n/2
	if p.left > 0 {
		return false, nil
	}
	p.f.w.open--
	p.f.st.Due = false
	p.at.Swaps, p.at.Before, p.at.After, p.at.Records, p.at.Keys = 1, 100, 40, 7, 3
	return true, nil
}
func (p *fakePass) Progress() segment.Cleaned { return p.at }
func (p *fakePass) Abort()                    { p.f.aborts++; p.f.w.open-- }

func newWorld(parts ...*fake) (*world, *Cleaner) {
	w := &world{clk: clock.NewSim(time.UnixMilli(1_700_000_000_000)), parts: parts}
	w.set = Settings{Enabled: true, BytesPerSecond: 1e12, MapBytes: 1 << 20, StepBytes: 64 << 10, Backoff: 15 * time.Second}
	for _, p := range parts {
		p.w = w
	}
	return w, New(Config{Clock: w.clk, Logger: slog.New(slog.DiscardHandler), Settings: func() Settings { return w.set },
		Busy: func() bool { return w.busy },
		Partitions: func() (out []Partition) {
			for _, p := range w.parts {
				out = append(out, p)
			}
			return out
		}})
}

// run lets a time pass.
func (w *world) run(c *Cleaner, d time.Duration) {
	for end := w.clk.Now().Add(d); w.clk.Now().Before(end); {
		wait := c.Step()
		w.clk.Advance(min(max(wait, time.Microsecond), end.Sub(w.clk.Now())))
	}
}

func dirty(name string, ratio float64, due, urgent bool) *fake {
	f := &fake{name: name, bytes: 200 << 10}
	f.st.Dirty, f.st.Clean = int64(ratio*1000), 1000-int64(ratio*1000)
	f.st.Due, f.st.Urgent = due, urgent
	return f
}

func TestWhatWaitedTooLongComesFirstThenTheDirtiest(t *testing.T) {
	none := dirty("clean", 0.1, false, false)
	gone := dirty("closed", 1, true, true)
	gone.absent = true
	w, c := newWorld(none, dirty("half", 0.5, true, false), dirty("most", 0.9, true, false), gone, dirty("old", 0.2, true, true))
	w.run(c, 10*time.Second)
	if want := []string{"old", "most", "half"}; !slices.Equal(w.passes, want) {
		t.Fatalf("passes %v, want %v", w.passes, want)
	}
	s := c.Stats()
	if s.Passes != 3 || s.Read+s.Written != 3*200<<10 || s.Reclaimed != 180 || s.Records != 21 || s.Failed != 0 || s.Keys != 3 {
		t.Fatalf("%+v", s)
	}
	if s.MapBytes != 0 || s.Dirtiest != 0.9 && s.Dirtiest != 0.5 {
		t.Fatalf("at rest it keeps %d bytes; dirtiest %v", s.MapBytes, s.Dirtiest)
	}
}

func TestTheRateBoundsReadingAndWriting(t *testing.T) {
	p := dirty("a", 1, true, false)
	p.bytes = 1 << 40
	w, c := newWorld(p)
	w.set.BytesPerSecond = 100 << 10
	w.run(c, 20*time.Second)
	if s := c.Stats(); s.Read+s.Written < 19*100<<10 || s.Read+s.Written > 21*100<<10+w.set.StepBytes {
		t.Fatalf("%d bytes in 20 s at 100 KiB a second", s.Read+s.Written)
	}
	w.busy = true
	before := c.Stats()
	w.run(c, 10*time.Second)
	if c.Stats() != before {
		t.Fatal("it goes on while the disk is busy")
	}
	w.busy, w.set.Enabled = false, false
	w.run(c, 10*time.Second)
	if c.Stats() != before {
		t.Fatal("it goes on though it is switched off")
	}
	w.set.Enabled = true
	w.run(c, time.Second)
	if c.Stats() == before {
		t.Fatal("it does not go on again")
	}
	c.Close()
	if p.aborts != 1 || w.open != 0 {
		t.Fatalf("closed with a pass under way: aborted %d times, %d open", p.aborts, w.open)
	}
}

func TestItRestsWhenThereIsNothingToDoAndAfterFailures(t *testing.T) {
	p := dirty("a", 1, true, false)
	p.fail = errors.New("no")
	w, c := newWorld(p)
	w.run(c, 60*time.Second)
	if n := len(w.passes); n < 4 || n > 5 {
		t.Fatalf("a pass that fails was begun %d times in a minute, with a backoff of 15 s", n)
	}
	if s := c.Stats(); s.Failed != int64(len(w.passes)) || s.Passes != 0 {
		t.Fatalf("%+v", s)
	}
	p.fail = nil
	w.run(c, 16*time.Second)
	if c.Stats().Passes != 1 {
		t.Fatal("it is not tried again")
	}
	p.st.Due = true
	w.run(c, 16*time.Second)
	if c.Stats().Passes != 2 {
		t.Fatal("what becomes due again is not cleaned again")
	}
}

func TestTheMapIsMadeAnewForAnotherSize(t *testing.T) {
	a, b := dirty("a", 1, true, false), dirty("b", 0.5, true, false)
	w, c := newWorld(a, b)
	w.run(c, time.Second)
	first := w.keys
	a.st.Due, w.set.MapBytes = true, 2<<20
	w.run(c, 20*time.Second)
	if w.keys == first {
		t.Fatal("the map has its old size")
	}
	second := w.keys
	b.st.Due = true
	w.run(c, 20*time.Second)
	if w.keys != second {
		t.Fatal("each pass makes a map")
	}
	if want := fmt.Sprint([]string{"a", "b", "a", "b"}); fmt.Sprint(w.passes) != want {
		t.Fatalf("passes %v", w.passes)
	}
}

// Who bounds the process's memory hears what keys take while they are there, and that they are given back.
func TestMemoryOfKeysIsTold(t *testing.T) {
	w, c := newWorld(dirty("a", 0.9, true, false))
	var told []int64
	c.cfg.Memory = func(n int64) { told = append(told, n) }
	w.run(c, time.Second)
	if len(told) != 2 || told[0] != 24*134 || told[1] != 0 {
		t.Errorf("%v", told)
	}
}
