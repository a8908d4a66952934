package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/wal"
)

// Pauses before a lost replica is asked to be replaced again.
const (
	replaceRetry   = 2 * time.Second
	replaceTimeout = 10 * time.Second
)

// replacer has those of this node's replicas replaced that can't serve any more, because what they had promised is damaged. The
// controller decides; the image then names another replica on this node, and that one starts empty.
type replacer struct {
	core *Core
	wake chan struct{}

	mu   sync.Mutex
	lost []lostReplica
}

type lostReplica struct {
	group, replica uint64
	refused        string // as last logged
}

func newReplacer(c *Core) *replacer { return &replacer{core: c, wake: make(chan struct{}, 1)} }

// beyondRepair says whether an error means that a replica must be replaced: its log, or the record of what it had applied, is
// not what was made durable.
func beyondRepair(err error) bool {
	var log *multiraft.DamagedError
	var files *partition.DamagedError
	return errors.As(err, &log) || errors.As(err, &files) || errors.Is(err, wal.ErrDamaged)
}

// add has a replica replaced. It does not block.
func (r *replacer) add(group, replica uint64) {
	r.mu.Lock()
	if !slices.ContainsFunc(r.lost, func(l lostReplica) bool { return l.group == group && l.replica == replica }) {
		r.lost = append(r.lost, lostReplica{group: group, replica: replica})
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *replacer) run(ctx context.Context) {
	for {
		if r.step(ctx) {
			if clock.Sleep(ctx, r.core.env.Clock, replaceRetry) != nil {
				return
			}
			continue
		}
		if _, err := clock.Recv(r.core.env.Clock, ctx, r.wake); err != nil {
			return
		}
	}
}

// step asks once for each replica that is lost, and says whether some must be asked for again.
func (r *replacer) step(ctx context.Context) (again bool) {
	r.mu.Lock()
	all := slices.Clone(r.lost)
	r.mu.Unlock()
	c := r.core
	for _, l := range all {
		attempt, cancel := clock.WithTimeout(ctx, c.env.Clock, replaceTimeout)
		err := c.controller.ReplaceReplica(attempt, l.group, l.replica)
		cancel()
		if ctx.Err() != nil {
			return false
		}
		if err == nil {
			c.log.Warn("a replica that can't be trusted any more is replaced", "group", l.group, "replica", l.replica)
		} else if text := err.Error(); text != l.refused {
			if errors.Is(err, controller.ErrNoQuorum) || errors.Is(err, controller.ErrPolicy) {
				c.log.Error("a replica that can't be trusted any more is NOT replaced", "group", l.group, "replica", l.replica, "error", err)
			} else {
				c.log.Warn("replacing a replica: not yet", "group", l.group, "replica", l.replica, "error", err)
			}
			l.refused = text
		}
		again = again || err != nil
		r.settle(l, err == nil)
	}
	return again
}

// settle drops a replica that has been replaced, or remembers why it was not.
func (r *replacer) settle(l lostReplica, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.lost, func(x lostReplica) bool { return x.group == l.group && x.replica == l.replica })
	switch {
	case i < 0:
	case done:
		r.lost = slices.Delete(r.lost, i, i+1)
	default:
		r.lost[i] = l
	}
}
