// Package clock is time as Chronik needs it, so that a simulator can own it.
package clock

import "time"

// Clock tells the time and calls back. Implementations are safe for concurrent use.
type Clock interface {
	// Now returns the wall time; differences of two readings are monotonic where the platform allows.
	Now() time.Time
	// AfterFunc calls f once, d from now, on a goroutine of the clock's own (System) or on the simulator's thread. f must
	// not block.
	AfterFunc(d time.Duration, f func()) Timer
}

// Timer is a pending callback.
type Timer interface {
	// Stop prevents the callback if it has not begun, and reports whether it did.
	Stop() bool
	// Reset makes the callback due d from now, and reports whether it had still been pending.
	Reset(d time.Duration) bool
}

// System is the machine's clock.
type System struct{}

// Now implements Clock.
func (System) Now() time.Time { return time.Now() }

// AfterFunc implements Clock.
func (System) AfterFunc(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }
