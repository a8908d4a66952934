package partition

import (
	"errors"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/segment"
)

// Scrub is one pass over a partition's records on disk: each Step reads on, and what it finds damaged is reported.
type Scrub struct {
	p          *Partition
	s          *segment.Scrubber
	generation uint64
}

// Scrub begins a pass. It is one caller's.
func (p *Partition) Scrub() *Scrub { return &Scrub{p: p} }

// Step reads about max bytes. A partition that is closed meanwhile is through.
func (c *Scrub) Step(max int64) (out segment.Scrubbed, err error) {
	p := c.p
	p.genMu.RLock()
	defer p.genMu.RUnlock()
	if p.log == nil {
		return segment.Scrubbed{Done: true}, nil
	}
	if c.s == nil || c.generation != p.generation {
		c.s, c.generation = p.log.Scrub(), p.generation
	}
	out, err = c.s.Step(max)
	for _, x := range out.Lost {
		if d := damageOfLost(x); d.To > p.logStart.Load() {
			p.Report(d)
		}
	}
	if err == nil {
		p.scrubbed(&out)
	}
	if errors.Is(err, segment.ErrClosed) || errors.Is(err, multiraft.ErrStopped) {
		return segment.Scrubbed{Done: true}, nil
	}
	return out, err
}
