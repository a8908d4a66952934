package wal

// The written view: what replaying the files would make of a group. The writer moves it forward as blocks are written
// (publish); recovery builds it from the same steps.

// maxHistory is how many entries below its checkpoint a group keeps findable, for followers a little behind.
const maxHistory = 1 << 16

// publish makes an item that has been written part of the written view.
func (g *Group) publish(it *item, locs []loc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if it.hasHS {
		g.w.hsPos = it.hsPos
	}
	switch it.kind {
	case KindCreate, KindInstall, KindFullBegin:
		g.w.cpPos, g.w.cpIndex, g.w.cpBytes = it.cpPos, it.cp.Index, len(it.cp.State)
		g.locs, g.locFirst = nil, it.cp.Index+1
	case KindCheckpoint:
		g.w.cpPos, g.w.cpIndex, g.w.cpBytes = it.cpPos, it.cp.Index, len(it.cp.State)
		if g.locFirst+maxHistory < g.w.cpIndex+1 {
			g.trimLocs(g.w.cpIndex + 1 - maxHistory)
		}
	}
	if len(locs) > 0 {
		g.putLocs(it.entries[0].Index, locs)
		if it.seq >= g.truncSeq {
			g.stable = it.entries[len(it.entries)-1].Index
		}
	}
	if it.kind == KindFullBegin {
		g.raiseFirst(g.locFirst)
	}
	g.w.pin = g.needs()
}

// putLocs replaces the locations from index on.
func (g *Group) putLocs(index uint64, locs []loc) {
	g.cutLocs(index)
	g.locs = append(g.locs, locs...)
}

func (g *Group) putLoc(index uint64, c loc) {
	g.cutLocs(index)
	g.locs = append(g.locs, c)
}

// cutLocs makes room for index as the next one.
func (g *Group) cutLocs(index uint64) {
	switch {
	case len(g.locs) == 0 || index < g.locFirst:
		g.locs, g.locFirst = g.locs[:0], index
	default:
		g.locs = g.locs[:min(index-g.locFirst, uint64(len(g.locs)))]
	}
}

// trimLocs forgets locations below index, and with them what readers could find there.
func (g *Group) trimLocs(index uint64) {
	if index <= g.locFirst {
		return
	}
	n := min(index-g.locFirst, uint64(len(g.locs)))
	g.locFirst += n
	if g.locs = g.locs[n:]; len(g.locs) == 0 {
		g.locs = nil
	}
	g.raiseFirst(min(index, g.cp.Index+1))
}

// trimFiles forgets locations in files before seq, which are about to be reused.
func (g *Group) trimFiles(seq uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for n < len(g.locs) && g.locs[n].seq < seq {
		n++
	}
	if n > 0 {
		g.trimLocs(g.locFirst + uint64(n))
	}
}

// firstLive returns the position in locs of the first entry above the written checkpoint.
func (g *Group) firstLive() int {
	if g.w.cpIndex < g.locFirst {
		return 0
	}
	return int(min(g.w.cpIndex+1-g.locFirst, uint64(len(g.locs))))
}

// needs returns the oldest file a replay of the group would need.
func (g *Group) needs() uint32 {
	p := min(g.w.cpPos, g.w.hsPos)
	if i := g.firstLive(); i < len(g.locs) {
		p = min(p, g.locs[i].place())
	}
	return p.seq()
}

// liveBytes returns the size of what carrying the group forward would write, counted up to cap.
func (g *Group) liveBytes(limit int64) int64 {
	n := int64(g.w.cpBytes) + 3*recordSize
	for _, c := range g.locs[g.firstLive():] {
		if n += c.bytes() + recordSize; n > limit {
			break
		}
	}
	return n
}

// lastIn returns the index of the group's last live entry in file seq, which a checkpoint would have to reach.
func (g *Group) lastIn(seq uint32) uint64 {
	index := g.w.cpIndex
	for i := g.firstLive(); i < len(g.locs) && g.locs[i].seq <= seq; i++ {
		index = g.locFirst + uint64(i)
	}
	return index
}
