package wal

import (
	"testing"
	"time"
)

// The ancestor's group commit answered its callers with a lock held that they needed for their next write. Here whoever is
// called back may use the log at once: write, ask for a checkpoint, remove the group, look at it.
func TestCallbacksMayWrite(t *testing.T) {
	l := mustOpen(t, testOptions(t))
	g, err := l.Create(1, firstState(), nil)
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	ended := make(chan error, 1)
	go func() {
		done := make(chan error, 1)
		l.Append(Write{Group: 1, Entries: entries(2, 2, 1, 100), Sync: true, Done: func(err error) {
			_, _, _ = g.LastIndex(), l.Stats(), l.Stalled()
			l.Append(Write{Group: 1, Entries: entries(3, 3, 1, 100), Sync: true, Done: func(error) {
				l.Checkpoint(1, Checkpoint{Index: 3, Term: 1}, func(error) {
					if _, err := l.Create(2, firstState(), func(error) { l.Remove(1, func(err error) { done <- err }) }); err != nil {
						done <- err
					}
				})
			}})
		}})
		err := <-done
		if cerr := l.Close(); err == nil {
			err = cerr
		}
		ended <- err
	}()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("a callback that uses the log never returns") // nor would Close
	}
}
