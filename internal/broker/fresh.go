package broker

import (
	"context"
	"sync"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
)

// A new partition's leader is elected at once, and the word of it takes a moment to every node. CreateTopics and
// CreatePartitions answer when the node asked has heard; a client that then asks another node for metadata would be told that
// there is no leader, and some take that for an error. So whoever asks for partitions that never had a leader, as far as this
// node knows, waits for a little. That is done once: what has none by then is leaderless, and nobody waits for it again.

// fresh are the partitions waited for, by group: until when. Those that have been waited for stay, as long as they exist and have
// no leader, so that they are known.
type fresh struct {
	mu    sync.Mutex
	until map[uint64]time.Time
}

// maxFresh bounds the groups that are remembered; beyond it nobody waits.
const maxFresh = 100_000

// awaitFresh waits until those of the partitions that never had a leader have one, or have been waited for long enough.
func (b *Broker) awaitFresh(ctx context.Context, rc *RequestContext, topics []*metadata.Topic) {
	if rc.Mode.OneAddress {
		return // this node is all that the client sees, whoever leads
	}
	var groups []uint64
	for _, t := range topics {
		for _, p := range t.Partitions {
			if _, epoch := b.cfg.Cluster.Leader(p.Group); epoch < 0 {
				groups = append(groups, p.Group)
			}
		}
	}
	if len(groups) == 0 {
		return
	}
	now := b.cfg.Clock.Now()
	groups, until := b.fresh.wait(b.cfg.Cluster.Image(), groups, now, b.cfg.AutoCreateWait)
	if len(groups) == 0 {
		return
	}
	ctx, cancel := clock.WithTimeout(ctx, b.cfg.Clock, until.Sub(now))
	defer cancel()
	// Late is no error: the answer says 5 for what has no leader yet.
	_ = b.cfg.Cluster.Await(ctx, func() bool {
		for len(groups) > 0 {
			if _, epoch := b.cfg.Cluster.Leader(groups[0]); epoch < 0 {
				return false
			}
			groups = groups[1:]
		}
		return true
	})
}

// wait returns which of these groups are worth waiting for, and until when.
func (f *fresh) wait(img *metadata.Image, groups []uint64, now time.Time, most time.Duration) (worth []uint64, until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.until == nil || len(f.until)+len(groups) > maxFresh {
		f.until = f.known(img)
	}
	for _, g := range groups {
		at, ok := f.until[g]
		if !ok {
			if len(f.until) >= maxFresh {
				continue
			}
			at = now.Add(most)
			f.until[g] = at
		}
		if now.Before(at) {
			worth = append(worth, g)
			if at.After(until) {
				until = at
			}
		}
	}
	return worth, until
}

// known is what is remembered without the groups that are gone.
func (f *fresh) known(img *metadata.Image) map[uint64]time.Time {
	out := map[uint64]time.Time{}
	for g, at := range f.until {
		if _, ok := img.Groups[g]; ok {
			out[g] = at
		}
	}
	return out
}
