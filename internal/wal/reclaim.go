package wal

import (
	"sort"

	"go.etcd.io/raft/v3/raftpb"
)

const (
	smallCarry = 64 << 10 // a group with no more live bytes than this is carried forward rather than asked for a checkpoint
	carryBytes = 1 << 20  // carried in one step, so that writes never wait behind much of it; one larger group alone is allowed
	carryMax   = 64 << 20 // a group with more live bytes than this is never carried: raft's uncommitted tail is smaller
	carryCount = 512
)

// carried is a group to be carried forward in the coming step.
type carried struct {
	g    *Group
	from uint64         // first live index, when looked at
	old  []raftpb.Entry // live entries from there that were not in memory, read beforehand
}

// pressure says how full the log is: soft, the oldest file should go; hard, at almost any cost.
func (l *Log) pressure() (oldest *file, pins int, soft, hard bool) {
	s := &l.files
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) < 2 {
		return nil, 0, false, false
	}
	var n int64
	for _, f := range s.list {
		n += f.ready.Load()
	}
	maxFiles := int(8 + 2*l.opt.MaxBytes/l.opt.FileBytes) // restarts leave short files
	soft = n > l.opt.MaxBytes-l.opt.FileBytes || len(s.list) > maxFiles
	hard = n > l.opt.MaxBytes+l.opt.MaxBytes/2
	return s.list[0], s.list[0].pins, soft, hard
}

// reclaim lets go of the oldest files as long as there is pressure and nothing live in them, and says whether the writer
// should step again: to declare them gone, or to carry groups out of the oldest.
func (l *Log) reclaim() (more bool) {
	w := &l.wr
	freed := l.freeDeclared()
	for {
		oldest, pins, soft, _ := l.pressure()
		if !soft || pins > 0 {
			break
		}
		s := &l.files
		s.mu.Lock()
		s.list = s.list[1:]
		s.dying = append(s.dying, oldest)
		w.first = s.list[0].seq
		s.mu.Unlock()
		l.forget(w.first)
		more = true
	}
	if freed {
		l.wakeBackground()
	}
	return more || l.carryDue()
}

// freeDeclared hands over the files that a durable block says are not needed.
func (l *Log) freeDeclared() bool {
	s := &l.files
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for n < len(s.dying) && s.dying[n].seq < l.wr.declare {
		delete(s.bySeq, s.dying[n].seq)
		n++
	}
	s.freed = append(s.freed, s.dying[:n]...)
	s.dying = s.dying[n:]
	return n > 0
}

// forget drops what groups and tombstones know of files before seq.
func (l *Log) forget(seq uint32) {
	l.mu.Lock()
	groups := make([]*Group, 0, len(l.groups))
	for _, g := range l.groups {
		groups = append(groups, g)
	}
	for id, t := range l.removed {
		if t.pos != 0 && t.pos.seq() < seq {
			delete(l.removed, id)
		}
	}
	l.mu.Unlock()
	for _, g := range groups {
		g.trimFiles(seq)
	}
}

// carryDue says whether it is time to look for groups that hold the oldest file: at a new file, and now and then after.
func (l *Log) carryDue() bool {
	oldest, pins, soft, _ := l.pressure()
	if !soft || pins == 0 || oldest == nil || l.wr.credit <= 0 {
		return false
	}
	s := l.wr.scanned
	return s.seq() != l.wr.end.seq() || l.wr.end.off()-s.off() > l.opt.FileBytes/16
}

// planCarry chooses the groups to be carried forward in this step, and asks for checkpoints of those that are too large.
func (l *Log) planCarry() []carried {
	if !l.carryDue() || l.failure() != nil {
		return nil
	}
	oldest, _, _, hard := l.pressure()
	var plan []carried
	var bytes int64
	groups, rest := l.pinning(oldest.seq), false
	for _, g := range groups {
		g.mu.Lock()
		live := g.liveBytes(carryMax)
		hint, hinted := g.lastIn(oldest.seq), g.w.hinted
		damaged := g.damage != nil
		if live > smallCarry && !damaged {
			g.w.hinted = oldest.seq
		}
		g.mu.Unlock()
		if live > smallCarry && !damaged {
			if hinted != oldest.seq {
				l.opt.OnPinned(g.id, hint)
			}
			if !hard || live > min(carryMax, l.opt.MaxBytes/2) {
				continue
			}
		}
		if len(plan) > 0 && (bytes+live > carryBytes || len(plan) == carryCount) {
			rest = true
			break
		}
		if c, ok := l.readLive(g); ok {
			plan = append(plan, c)
			bytes += live
		}
	}
	if !rest {
		l.wr.scanned = l.wr.end
	}
	return plan
}

// pinning returns the groups for which seq is the oldest file needed, by id.
func (l *Log) pinning(seq uint32) []*Group {
	l.mu.Lock()
	var groups []*Group
	for _, g := range l.groups {
		if g.w.pin == seq { // only steps write it
			groups = append(groups, g)
		}
	}
	l.mu.Unlock()
	sort.Slice(groups, func(i, j int) bool { return groups[i].id < groups[j].id })
	return groups
}

// readLive reads a group's live entries that are not in memory.
func (l *Log) readLive(g *Group) (carried, bool) {
	g.mu.Lock()
	c := carried{g: g, from: g.cp.Index + 1}
	to := g.tailFirst()
	damaged := g.damage != nil
	g.mu.Unlock()
	for at := c.from; at < to && !damaged; {
		es, err := g.readFile(at, to, carryMax)
		if err != nil || len(es) == 0 {
			return c, g.Damage() != nil // found damaged just now: that is what is to be carried
		}
		c.old = append(c.old, es...)
		at += uint64(len(es))
	}
	return c, true
}

// capture takes the group as all writes queued so far make it. Nil if it changed too much since it was planned. Log.mu is held.
func (c *carried) capture(l *Log) *item {
	g := c.g
	if l.groups[g.id] != g {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	cp := g.cp
	it := &item{kind: KindFullBegin, group: g.id, g: g, hs: g.hs, hasHS: true, cp: &cp, damage: g.damage, sync: true}
	if g.damage == nil {
		first, tf := cp.Index+1, g.tailFirst()
		if first < tf {
			if first < c.from || tf > c.from+uint64(len(c.old)) || g.stable+1 < tf {
				return nil
			}
			old := c.old[first-c.from : tf-c.from]
			for i := range old {
				if old[i].Term != g.runTerm(old[i].Index) {
					return nil
				}
			}
			it.entries = append(it.entries, old...)
			first = tf
		}
		it.entries = append(it.entries, g.tail[first-tf:]...)
	}
	g.staged++
	it.seq = g.staged
	l.stats.carried.Add(1)
	size := int64(len(cp.State)) + 3*recordSize
	for i := range it.entries {
		size += int64(len(it.entries[i].Data)) + recordSize
	}
	l.stats.carriedBytes.Add(uint64(size))
	return it
}
