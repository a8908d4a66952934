package wal

import (
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/vfs"
)

// A sync fails and the process stops (fault 8). The one that follows reads from the page cache what the disk does not hold; what
// it acknowledges on that ground must survive a power cut (found by test/sim).
func TestRestartAfterAFailedSyncDoesNotTrustThePageCache(t *testing.T) {
	lost := 0
	for seed := range uint64(40) {
		mem := vfs.NewMem(seed)
		o := Options{FS: mem, Dir: "/w", Clock: clock.NewSim(time.Unix(1e9, 0)), FileBytes: 64 << 10, MaxBytes: 256 << 10}
		l := mustOpen(t, o)
		if _, err := l.Create(7, firstState(), nil); err != nil {
			t.Fatal(err)
		}
		last := uint64(1)
		write := func(n uint64, done func(error)) {
			l.Append(Write{Group: 7, Entries: entries(last+1, last+n, 1, 2000), Sync: true, Done: done})
			last += n
		}
		acked := 0
		for range seed % 30 {
			write(2, ok(t, &acked))
			drain(l)
		}
		durable := last
		fault := mem.Inject(vfs.Fault{Ops: vfs.OpSync, Count: -1})
		write(3, func(err error) {
			if err == nil {
				t.Error("acknowledged though the sync failed")
			}
		})
		l.Step()
		fault.Remove()
		mem.Kill()

		l = mustOpen(t, o)
		found := l.Group(7).LastIndex()
		if found < durable {
			t.Fatalf("seed %d: entries up to %d, %d were durable", seed, found, durable)
		}
		if found > durable {
			lost++
		}
		last = found
		write(1, ok(t, &acked)) // this log now stands on everything found
		l.Step()
		mem.Crash(seed)
		l = mustOpen(t, o)
		g := l.Group(7)
		if g == nil || g.Damage() != nil || g.LastIndex() != last {
			t.Fatalf("seed %d: after a power cut entries up to %d of %d, damage %v", seed, g.LastIndex(), last, g.Damage())
		}
		checkEntries(t, g, entries(2, last, 1, 2000))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if lost == 0 {
		t.Fatal("no run read what its failed sync had not written")
	}
}
