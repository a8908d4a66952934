package consumer

import (
	"encoding/binary"
	"slices"
)

// Record is a record to be written. A nil value is a tombstone.
type Record struct{ Key, Value []byte }

// Size is about what it takes in a batch.
func (r Record) Size() int { return len(r.Key) + len(r.Value) + 32 }

// Change is what one batch of records does to a group: it is done already, and to be undone if the batch is not written.
type Change struct {
	Records []Record
	undo    []func()
}

// Size is about what the records take in a batch.
func (ch *Change) Size() (n int) {
	for _, r := range ch.Records {
		n += r.Size()
	}
	return n
}

// EpochFirst puts the group's new epoch before everything else, for a change that takes several batches: a group that lost the rest then
// has a target to be computed, whatever else it has.
func (ch *Change) EpochFirst() {
	epochs := 0
	var last Record
	for _, r := range ch.Records {
		if r.Value != nil && binary.BigEndian.Uint16(r.Key) == kindGroup {
			last = r
			epochs++
		}
	}
	if epochs == 0 {
		return
	}
	rest := slices.DeleteFunc(ch.Records, func(r Record) bool { return r.Value != nil && binary.BigEndian.Uint16(r.Key) == kindGroup })
	ch.Records = append([]Record{last}, rest...)
}

// Undo makes the group what it was before.
func (ch *Change) Undo() { ch.back(0, 0) }

func (ch *Change) back(records, undo int) {
	for i := len(ch.undo) - 1; i >= undo; i-- {
		ch.undo[i]()
	}
	ch.Records, ch.undo = ch.Records[:records], ch.undo[:undo]
}

// Try runs f, whose changes are undone if it fails.
func (ch *Change) Try(f func() error) error {
	records, undo := len(ch.Records), len(ch.undo)
	err := f()
	if err != nil {
		ch.back(records, undo)
	}
	return err
}

func (ch *Change) write(key, value []byte, undo func()) {
	ch.Records = append(ch.Records, Record{key, value})
	ch.undo = append(ch.undo, undo)
}

// member puts or removes (nil) a member.
func (ch *Change) member(g *Group, id string, m *Member) {
	old := g.members[id]
	if old == nil && m == nil {
		return
	}
	g.setMember(id, m)
	var value []byte
	if m != nil {
		value = m.encode()
	}
	ch.write(key(kindMember, g.ID, id), value, func() { g.setMember(id, old) })
}

// epoch sets the group's epoch, which is that of topics with a hash.
func (ch *Change) epoch(g *Group, epoch int32, hash int64) {
	oldEpoch, oldHash, written, dirty := g.epoch, g.hash, g.written, g.dirty
	g.epoch, g.hash, g.written, g.dirty = epoch, hash, true, false
	ch.write(key(kindGroup, g.ID, ""), encodeGroup(epoch, hash), func() {
		g.epoch, g.hash, g.written, g.dirty = oldEpoch, oldHash, written, dirty
	})
}

// target sets what a member is to have; known false removes it.
func (ch *Change) target(g *Group, id string, a Assignment, known bool) {
	old, was := g.target[id]
	if was == known && old.Equal(a) {
		return
	}
	g.setTarget(id, a, known)
	var value []byte
	if known {
		value = encodeTarget(a)
	}
	ch.write(key(kindTarget, g.ID, id), value, func() { g.setTarget(id, old, was) })
}

func (ch *Change) targetEpoch(g *Group, epoch int32, now int64) {
	oldEpoch, oldTime := g.targetEpoch, g.computed
	g.targetEpoch, g.computed = epoch, now
	ch.write(key(kindTargetEpoch, g.ID, ""), encodeTargetEpoch(epoch, now), func() { g.targetEpoch, g.computed = oldEpoch, oldTime })
}

// current sets what a member has; nil removes it.
func (ch *Change) current(g *Group, id string, c *Current) {
	old := g.current[id]
	if old == nil && c == nil {
		return
	}
	g.setCurrent(id, c)
	var value []byte
	if c != nil {
		value = c.encode()
	}
	ch.write(key(kindCurrent, g.ID, id), value, func() { g.setCurrent(id, old) })
}

// resolve sets what a regular expression matches; nil forgets it.
func (ch *Change) resolve(g *Group, expression string, r *Resolved) {
	old := g.resolved[expression]
	g.setResolved(expression, r)
	var value []byte
	if r != nil {
		value = r.encode()
	}
	ch.write(key(kindRegex, g.ID, expression), value, func() { g.setResolved(expression, old) })
}

// remove takes a member out, with all that is known of it.
func (ch *Change) remove(g *Group, id string) {
	ch.current(g, id, nil)
	ch.target(g, id, nil, false)
	ch.member(g, id, nil)
}

// Bury writes the tombstones of all that there is of a group; the group itself is left as it is.
func (g *Group) Bury(ch *Change) {
	nothing := func() {}
	for _, id := range g.ids {
		for _, kind := range []int16{kindCurrent, kindTarget, kindMember} {
			ch.write(key(kind, g.ID, id), nil, nothing)
		}
	}
	for _, expression := range sortedKeys(g.resolved) {
		ch.write(key(kindRegex, g.ID, expression), nil, nothing)
	}
	if g.targetEpoch > 0 {
		ch.write(key(kindTargetEpoch, g.ID, ""), nil, nothing)
	}
	if g.written {
		ch.write(key(kindGroup, g.ID, ""), nil, nothing)
	}
}
