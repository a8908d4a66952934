package sim

import (
	"testing"
	"time"
)

func TestReadingsAreWhatTimeNowGives(t *testing.T) {
	wall := time.UnixMilli(1_700_000_000_123)
	a := reading(wall, time.Second)
	b := reading(wall.Add(-time.Hour), 3*time.Second) // the wall clock was set back
	if !a.Round(0).Equal(wall) || a.UnixNano() != wall.UnixNano() || b.Unix() != wall.Unix()-3600 {
		t.Errorf("wall clock: %v and %v", a, b)
	}
	if d := b.Sub(a); d != 2*time.Second || !a.Before(b) || !b.After(a.Add(time.Second)) || a.Equal(b) {
		t.Errorf("%v apart by the monotonic clock", d)
	}
	if d := b.Round(0).Sub(a.Round(0)); d != -time.Hour {
		t.Errorf("%v apart by the wall clock", d)
	}
	now := time.Now() // its layout is what reading writes
	if got := reading(now, time.Minute); got.UnixNano() != now.UnixNano() || got.Add(time.Hour).Sub(got) != time.Hour {
		t.Errorf("%v for %v", got, now)
	}
}
