package vfs

import (
	"maps"
	"math/bits"
	"math/rand/v2"
	"slices"
)

// PowerCut says what becomes of unsynced state when the power fails. Synced state survives every one.
type PowerCut struct {
	seed uint64
	keep float64 // the chance of each thing unsynced
	vary bool    // keep is drawn anew for the names and for each file
}

// RandomCut decides from seed, for every sector, length and name by itself whether it survives. How likely that is varies from
// file to file: often nothing does, or all.
func RandomCut(seed uint64) PowerCut { return PowerCut{seed: seed, vary: true} }

// LoseUnsynced leaves exactly what was synced, or written back before by StartWriteback or by the kernel's own choice.
func LoseUnsynced() PowerCut { return PowerCut{} }

// KeepUnsynced leaves everything as it was written, except what a failed sync lost.
func KeepUnsynced() PowerCut { return PowerCut{keep: 1} }

func (c PowerCut) draw(rng *rand.Rand) float64 {
	if !c.vary {
		return c.keep
	}
	switch rng.IntN(4) {
	case 0:
		return 0
	case 1:
		return 1
	default:
		return rng.Float64()
	}
}

// CutReport counts what a power cut did, so that a test can tell whether it did anything.
type CutReport struct {
	SectorsKept, SectorsLost int // unsynced sectors, lost ones of failed syncs included
	LengthsLost              int // files whose last length did not survive
	NamesKept, NamesLost     int // unsynced creations, removals and renames
}

func (r *CutReport) add(o CutReport) {
	r.SectorsKept += o.SectorsKept
	r.SectorsLost += o.SectorsLost
	r.LengthsLost += o.LengthsLost
	r.NamesKept += o.NamesKept
	r.NamesLost += o.NamesLost
}

// Crash cuts the power and turns it on again: RandomCut(seed). Every open file is dead (fs.ErrClosed) and every lock free.
func (m *Mem) Crash(seed uint64) CutReport { return m.CrashWith(RandomCut(seed)) }

// CrashWith is Crash with a given fate of unsynced state.
func (m *Mem) CrashWith(cut PowerCut) CutReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	root, rep := m.image(cut, true)
	m.root, m.pending = root, nil
	m.dropHandles()
	m.stats.Crashes++
	m.stats.Cut.add(rep)
	return rep
}

// CrashClone returns the disk as a power cut at this moment would leave it: RandomCut(seed). m itself goes on undisturbed,
// so that one run can be cut at every point. The clone has m's capacity and clock, and no faults.
func (m *Mem) CrashClone(seed uint64) *Mem { return m.CrashCloneWith(RandomCut(seed)) }

// CrashCloneWith is CrashClone with a given fate of unsynced state. The clone's Stats hold the report.
func (m *Mem) CrashCloneWith(cut PowerCut) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := NewMem(cut.seed)
	c.capacity, c.now, c.ticks = m.capacity, m.now, m.ticks
	c.root, c.stats.Cut = m.image(cut, false)
	c.used = c.root.countPages()
	return c
}

// Kill ends the process that uses the disk (kill -9): open files are dead and locks free, but everything written stays,
// synced or not, because the kernel lives on. A later power cut can still take what was not synced.
func (m *Mem) Kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropHandles()
	m.stats.Kills++
}

// dropHandles makes every open file and lock a thing of the past, and counts used space anew: files that only a handle kept
// are gone.
func (m *Mem) dropHandles() {
	m.gen++
	m.locks = make(map[*inode]*memLock)
	m.root.forgetOpens()
	m.used = m.root.countPages()
}

// image builds the tree that survives. last says that m's own is of no more use.
func (m *Mem) image(cut PowerCut, last bool) (*inode, CutReport) {
	c := imager{
		last: last, cut: cut, rng: rand.New(rand.NewPCG(cut.seed, 0x63757421)),
		names: make(map[*inode]map[string]*inode), done: make(map[*inode]*inode),
	}
	c.surviveNames(m.pending)
	return c.copy(m.root), c.rep
}

type imager struct {
	last  bool // what is durable as it is need not be copied
	cut   PowerCut
	rng   *rand.Rand
	rep   CutReport
	names map[*inode]map[string]*inode // of directories in which an unsynced name survived
	done  map[*inode]*inode
}

// surviveNames decides each unsynced operation on names by itself. One that builds on a lost one is lost as well: see nameOp.
func (c *imager) surviveNames(pending []*nameOp) {
	keep := c.cut.draw(c.rng)
	lost := newNameSet()
	for _, op := range pending {
		survives := c.rng.Float64() < keep // drawn in any case, so that one outcome does not shift the others
		if !survives || op.dependsOn(lost) {
			lost.add(op)
			c.rep.NamesLost++
			continue
		}
		c.rep.NamesKept++
		for _, ch := range op.changes {
			if c.names[ch.dir] == nil {
				c.names[ch.dir] = maps.Clone(ch.dir.dur)
			}
			ch.applyTo(c.names[ch.dir])
		}
	}
}

// copy returns the surviving inode of ino, with all below it, in sorted order.
func (c *imager) copy(ino *inode) *inode {
	if n := c.done[ino]; n != nil {
		n.links++
		return n
	}
	n := &inode{mtime: ino.mtime, links: 1}
	c.done[ino] = n
	if !ino.isDir() {
		n.data = c.copyData(ino.data)
		return n
	}
	entries := ino.dur
	if e := c.names[ino]; e != nil {
		entries = e
	}
	n.cur, n.dur = make(map[string]*inode), make(map[string]*inode)
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		child := c.copy(entries[name])
		n.cur[name], n.dur[name] = child, child
	}
	return n
}

// copyData decides the fate of one file's content.
func (c *imager) copyData(d *fileData) *fileData {
	keep := c.cut.draw(c.rng)
	truncated := d.cut >= d.durSize || c.rng.Float64() < keep
	size := d.durSize
	if truncated {
		size = c.survivingSize(d, keep)
	}
	if c.last && d.settled() {
		return d
	}
	if size != d.size {
		c.rep.LengthsLost++
	}
	n := newFileData()
	n.size, n.durSize, n.cut = size, size, size
	for _, ci := range slices.Sorted(maps.Keys(d.chunks)) {
		old := d.chunks[ci]
		if ci*chunkSize >= size {
			continue
		}
		nc := &chunk{alloc: old.alloc}
		if old.pages != nil {
			nc.pages = new([chunkPages]pageState)
			for i := range old.pages {
				pn := ci*chunkPages + int64(i)
				pg := clipPage(c.copyPage(d, pn, &old.pages[i], keep, truncated), size-pn*pageSize)
				nc.pages[i] = pageState{cur: pg, dur: pg}
				if pg != nil {
					nc.alloc |= 1 << i
				}
			}
		}
		for i := range int64(chunkPages) {
			if (ci*chunkPages+i)*pageSize >= size {
				nc.alloc &^= 1 << i
			} else if nc.alloc&(1<<i) != 0 {
				n.pages++
			}
		}
		n.chunks[ci] = nc
	}
	return n
}

// survivingSize draws the length of a file whose truncation, if there was one, survived: the new one, the one before it
// grew, or something between, since a file grows on the disk as its data is written out.
func (c *imager) survivingSize(d *fileData, keep float64) int64 {
	if d.size <= d.cut || c.rng.Float64() < keep {
		return d.size
	}
	if keep > 0 && c.rng.IntN(3) == 0 {
		return max(d.cut, (d.cut+c.rng.Int64N(d.size-d.cut))/sectorSize*sectorSize)
	}
	return d.cut
}

// copyPage draws, for every dirty sector of a page, the old or the new content.
func (c *imager) copyPage(d *fileData, n int64, p *pageState, keep float64, truncated bool) *page {
	old := p.dur
	if truncated {
		old = d.onDisk(n, p)
	}
	c.rep.SectorsLost += bits.OnesCount8(p.lost)
	if p.dirty == 0 {
		return old
	}
	var mask uint8
	for s := range pageSectors {
		if p.dirty&(1<<s) == 0 {
			continue
		}
		survives := c.rng.Float64() < keep
		if !truncated && n*pageSize+int64(s+1)*sectorSize > d.cut {
			survives = false // it lies where the file, on the disk, never ended
		}
		if survives {
			mask |= 1 << s
			c.rep.SectorsKept++
		} else {
			c.rep.SectorsLost++
		}
	}
	return mix(old, p.cur, mask)
}
