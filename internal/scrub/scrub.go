// Package scrub reads everything a node has on its disk again and again, the write-ahead log and every partition's segments, at a
// bounded rate, so that damage is found while other replicas still hold what it hit.
package scrub

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/wal"
)

// chunk is what one step reads at a time: small enough that a disk's other users hardly notice.
const chunk = 256 << 10

// idle is how long a step asks to wait that has nothing to do.
const idle = time.Second

// Config is what a Scrubber needs.
type Config struct {
	Log        *wal.Log
	Partitions func() []*partition.Partition
	Clock      clock.Clock
	Logger     *slog.Logger
	// Rate returns how many bytes to read in a second, as it is configured now; 0 pauses.
	Rate func() int64
	// Interval returns how long a pass takes at least, from its beginning to the next one's.
	Interval func() time.Duration
	// Busy says that the disk has no time for this now; may be nil.
	Busy func() bool
	// OnLog is told of damage to the write-ahead log.
	OnLog func(wal.Hit)
}

// Scrubber goes round and round. Step is one caller's; Stats is safe beside it.
type Scrubber struct {
	cfg    Config
	began  time.Time // of the pass
	log    *wal.Scrubber
	rest   []*partition.Partition // still to be read in this pass
	now    *partition.Scrub
	tokens float64
	at     time.Time
	inPass bool

	bytes, passes, logHits, pass, size atomic.Int64
	lastPass                           atomic.Int64 // Unix, in seconds
}

// Stats is what has been read.
type Stats struct {
	Bytes    int64 // since start
	Passes   int64 // completed
	LogHits  int64 // places in the write-ahead log found damaged
	Pass     int64 // bytes read in the pass under way
	Size     int64 // bytes it has to read, about
	LastPass int64 // when the last one was completed, Unix seconds; 0: none yet
}

// New makes a scrubber that begins with its first step.
func New(cfg Config) *Scrubber { return &Scrubber{cfg: cfg, at: cfg.Clock.Now()} }

// Stats returns the figures of this moment.
func (s *Scrubber) Stats() Stats {
	return Stats{Bytes: s.bytes.Load(), Passes: s.passes.Load(), LogHits: s.logHits.Load(), Pass: s.pass.Load(), Size: s.size.Load(), LastPass: s.lastPass.Load()}
}

// Step reads one chunk, if the rate allows, and says how long to wait before the next.
func (s *Scrubber) Step() (wait time.Duration) {
	now := s.cfg.Clock.Now()
	rate := float64(s.cfg.Rate())
	if rate <= 0 || s.cfg.Busy != nil && s.cfg.Busy() {
		s.at = now
		return idle
	}
	s.tokens = min(rate, s.tokens+max(0, now.Sub(s.at).Seconds())*rate)
	s.at = now
	if s.tokens <= 0 {
		return max(time.Millisecond, min(idle, time.Duration(-s.tokens/rate*float64(time.Second))))
	}
	if !s.inPass {
		if left := s.began.Add(s.cfg.Interval()).Sub(now); !s.began.IsZero() && left > 0 {
			return min(left, idle)
		}
		s.begin(now)
	}
	n, done := s.read()
	s.tokens -= float64(n)
	s.bytes.Add(n)
	s.pass.Add(n)
	if done {
		s.inPass = false
		s.passes.Add(1)
		s.lastPass.Store(now.Unix())
	}
	return 0
}

func (s *Scrubber) begin(now time.Time) {
	s.began, s.inPass = now, true
	s.log = s.cfg.Log.Scrub()
	s.rest = s.cfg.Partitions()
	s.now = nil
	size := s.cfg.Log.Stats().Bytes
	for _, p := range s.rest {
		size += p.Size()
	}
	s.pass.Store(0)
	s.size.Store(size)
}

// read reads a chunk of what comes next. Files that can't be read are somebody else's trouble: whoever writes to that disk meets it,
// and stops the node.
func (s *Scrubber) read() (n int64, done bool) {
	switch {
	case s.log != nil:
		out, err := s.log.Step(chunk)
		for _, h := range out.Hits {
			s.logHits.Add(1)
			s.cfg.OnLog(h)
		}
		if err != nil {
			s.cfg.Logger.Error("scrubbing the write-ahead log", "error", err)
		}
		if out.Done || err != nil {
			s.log = nil
		}
		return out.Bytes, false
	case s.now != nil:
		out, err := s.now.Step(chunk)
		if err != nil {
			s.cfg.Logger.Error("scrubbing a partition", "error", err)
		}
		if out.Done || err != nil {
			s.now = nil
		}
		return out.Bytes, false
	case len(s.rest) > 0:
		s.now, s.rest = s.rest[0].Scrub(), s.rest[1:]
		return 0, false
	}
	return 0, true
}
