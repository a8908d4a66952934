package server

import (
	"log/slog"
	"sync"
	"time"
)

// rateLog passes one line an interval for each message, and says with the next how many it kept back: clients that send
// garbage must not fill a disk with our log.
type rateLog struct {
	log   *slog.Logger
	every time.Duration

	mu   sync.Mutex
	last map[string]*rateState
}

type rateState struct {
	at         time.Time
	suppressed int
}

func newRateLog(log *slog.Logger, every time.Duration) *rateLog {
	return &rateLog{log: log, every: every, last: map[string]*rateState{}}
}

// Warn logs msg, which must be one of a few constant strings.
func (r *rateLog) Warn(msg string, args ...any) {
	now := time.Now()
	r.mu.Lock()
	st := r.last[msg]
	if st == nil {
		st = &rateState{}
		r.last[msg] = st
	}
	if !st.at.IsZero() && now.Sub(st.at) < r.every {
		st.suppressed++
		r.mu.Unlock()
		return
	}
	suppressed := st.suppressed
	st.at, st.suppressed = now, 0
	r.mu.Unlock()
	if suppressed > 0 {
		args = append(args, "suppressed", suppressed)
	}
	r.log.Warn(msg, args...)
}
