package sim

import (
	"maps"
	"math"
	"slices"

	"github.com/chronik-go/chronik/internal/group"
)

// removal is a request that offsets be removed: of one partition, or of the whole group, with it.
type removal struct {
	part       *partModel // nil: the group
	call, back int64
	refused    bool
}

// beginRemoval enters one. Until its answer is there, it may come about at any time.
func (g *consumerGroup) beginRemoval(part *partModel) *removal {
	g.tick++
	r := &removal{part: part, call: g.tick, back: math.MaxInt64}
	g.removals = append(g.removals, r)
	return r
}

// carriedOut checks a removal that a coordinator calls done: what it was about is gone, unless it was committed again since.
func (g *consumerGroup) carriedOut(r *removal) {
	g.tick++
	r.back = g.tick
	for _, p := range g.parts {
		if r.part != nil && r.part != p {
			continue
		}
		if o := g.state[p]; o != nil && !o.removal && o.call < r.call && !o.late && !o.unknown {
			g.w.fail("%s: the offset of %s was removed, it is said, and commit %d of it is in the log, the last one", g.name, p, o.id)
		}
	}
}

// removeOffset checks a tombstone of an offset: somebody has asked for it, or its time was up.
func (g *consumerGroup) removeOffset(at int64, b *groupBatch, part *partModel, ragged bool) {
	if before := g.state[part]; before != nil && !before.removal && !ragged && !g.mayExpire(before, b.stamp) {
		asked := slices.ContainsFunc(g.removals, func(r *removal) bool {
			return (r.part == nil || r.part == part) && !r.refused && r.back > before.call
		})
		if !asked {
			g.w.fail("%s: the offset of %s is removed at offset %d of %s, %v after it was committed: nobody has asked for that, and its time is not up", g.name, part,
				at, group.Topic, g.w.clk.Now().Sub(before.begun))
		}
		g.w.counts["offsets deleted"]++
	} else if before != nil && !before.removal {
		g.w.counts["offsets expired"]++
	}
	g.gone(part, at)
}

// mayExpire says whether nobody has had a use for an offset for the retention time (KIP-211), by the coordinator's clock, which is that of
// its records, and by the simulator's.
func (g *consumerGroup) mayExpire(o *offsetOp, now int64) bool {
	since := o.stamp
	if gen := g.generations[g.generation]; gen != nil && g.next.epoch == 0 {
		if len(gen.members) > 0 {
			return false
		}
		if gen.since >= 0 {
			since = gen.since
		}
	}
	return len(g.next.members) == 0 && now-since >= g.w.set.retention.Milliseconds() && g.w.clk.Now().Sub(o.begun) >= g.w.surely(g.w.set.retention)
}

// gone notes that a partition has no committed offset from here on.
func (g *consumerGroup) gone(part *partModel, at int64) {
	g.tick++
	o := &offsetOp{id: len(g.ops) + 1, part: part, removal: true, offset: -1, generation: -1, back: g.tick, at: at, applied: true, version: g.versions(part) + 1}
	if before := g.state[part]; before != nil {
		o.call = before.call // it is behind that one in the log
	}
	g.ops = append(g.ops, o)
	g.state[part], g.removed[part] = o, o.version
}

// removeClassic checks a tombstone of a classic group: it becomes a consumer group, or has no members.
func (g *consumerGroup) removeClassic(at int64, b *groupBatch, ragged bool) {
	gen := g.generations[g.generation]
	lives := gen != nil && len(gen.members) > 0
	if lives && b.has(g, kindEpoch) { // its epochs go on from the generation; those of one without members begin anew
		g.w.counts["groups upgraded"]++
		g.statics, gen.upgraded = nil, true
		return
	}
	if lives && !ragged {
		g.w.fail("%s: it is removed at offset %d, with the members %v", g.name, at, gen.members)
	}
	g.generation, g.generations, g.statics = 0, map[int32]*generation{}, nil
	g.w.counts["classic groups removed"]++
}

// loadedWhole compares what a coordinator has read of the log, from its beginning to its end, with what is known of it: the last record of
// each key is there. Where records were compacted away before anybody had seen them, tombstones may have gone the same way.
func (l *groupLog) loadedWhole(seen map[string]int64) {
	if seen == nil || l.logs.w.failed != nil {
		return
	}
	for _, key := range sortedKeys(l.last) {
		last := l.last[key]
		if at, ok := seen[key]; last.tombstone || ok && at >= last.at {
			continue
		}
		if !l.ragged {
			l.logs.w.fail("%s-%d: the last record of a key, %s of %s at offset %d, is gone", group.Topic, l.index, last.e.what, last.e.g.name, last.at)
			return
		}
		g := last.e.g
		switch {
		case last.e.part != nil:
			g.gone(last.e.part, last.at)
		case last.e.kind == kindClassic:
			g.generation, g.generations, g.statics = 0, map[int32]*generation{}, nil
		case last.e.kind == kindEpoch:
			g.next.end()
		case last.e.kind == kindMember:
			delete(g.next.members, last.e.member)
			g.next.drop(last.e.member)
		case last.e.kind == kindCurrent:
			g.next.drop(last.e.member)
		}
		last.tombstone = true
		l.last[key] = last
		l.logs.w.counts["records whose tombstones nobody has seen"]++
	}
	if l.ragged {
		l.ragged = false
		for _, g := range l.logs.groups {
			g.next.exclusive()
		}
	}
	l.logs.w.counts["logs of groups read whole"]++
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
