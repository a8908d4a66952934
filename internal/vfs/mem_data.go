package vfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

const (
	sectorSize  = 512  // what a disk writes atomically
	pageSize    = 4096 // what is allocated and shared
	pageSectors = pageSize / sectorSize
	chunkPages  = 64
	chunkSize   = pageSize * chunkPages
	allSectors  = uint8(1<<pageSectors - 1)
)

type page [pageSize]byte

var zeroPage page

// pageState is one page of a file, twice: as a reader sees it and as the disk certainly holds it. nil is a page of zeros.
// Pages are shared between the two, and between clones of a disk, and copied when written: a sync moves pointers.
type pageState struct {
	cur, dur *page
	dirty    uint8 // sectors written since they were last synced; bit i is sector i
	lost     uint8 // sectors a failed sync gave up: readers see them, the disk does not have them, no later sync brings them
	owned    bool  // nothing else refers to cur, it may be written in place
}

// chunk is chunkPages pages. pages stays nil as long as all of it is zeros, so that a preallocated file costs next to nothing.
type chunk struct {
	alloc uint64 // pages that take space on the disk
	pages *[chunkPages]pageState
}

// fileData is the content of one file: what readers see, what is on the disk, and what may or may not be.
//
// Bytes at or past size are zero in cur, bytes at or past durSize are zero in dur.
type fileData struct {
	chunks    map[int64]*chunk
	unsettled map[int64]struct{} // chunks with dirty or lost sectors
	size      int64
	// durSize is the length on the disk. cut is the smallest length since the last sync: where cut < durSize a truncation is
	// pending, and what was written past cut since then can only be on the disk if the truncation is.
	durSize, cut int64
	pages        int64 // allocated
}

func newFileData() *fileData {
	return &fileData{chunks: make(map[int64]*chunk), unsettled: make(map[int64]struct{})}
}

// page returns page number n, or nil if it is all zeros and create is false.
func (d *fileData) page(n int64, create bool) *pageState {
	c := d.chunks[n/chunkPages]
	if c == nil {
		if !create {
			return nil
		}
		c = &chunk{}
		d.chunks[n/chunkPages] = c
	}
	if c.pages == nil {
		if !create {
			return nil
		}
		c.pages = new([chunkPages]pageState)
	}
	return &c.pages[n%chunkPages]
}

// allocate makes page n take space. take is asked before and may refuse.
func (d *fileData) allocate(n int64, take func() bool) bool {
	c := d.chunks[n/chunkPages]
	if c != nil && c.alloc&(1<<(n%chunkPages)) != 0 {
		return true
	}
	if !take() {
		return false
	}
	if c == nil {
		c = &chunk{}
		d.chunks[n/chunkPages] = c
	}
	c.alloc |= 1 << (n % chunkPages)
	d.pages++
	return true
}

// settled says that the disk holds what readers see: no outcome of a power cut differs.
func (d *fileData) settled() bool {
	return len(d.unsettled) == 0 && d.durSize == d.size && d.cut == d.size
}

func (d *fileData) markUnsettled(n int64) { d.unsettled[n/chunkPages] = struct{}{} }

// own makes the current content of the page writable in place.
func (p *pageState) own() *page {
	if !p.owned {
		p.cur, p.owned = p.cur.clone(), true
	}
	return p.cur
}

// clone copies a page; nil is a page of zeros. What append allocates is not cleared first, other than new(page).
func (pg *page) clone() *page {
	if pg == nil {
		return new(page)
	}
	return (*page)(append([]byte(nil), pg[:]...))
}

// sectorMask returns the sectors that bytes [from, to) of a page touch.
func sectorMask(from, to int) uint8 {
	first, last := from/sectorSize, (to-1)/sectorSize
	return allSectors >> (pageSectors - 1 - (last - first)) << first
}

// write copies b to off and returns how much of it found space. rng decides whether the kernel happened to write back the
// sectors about to be overwritten: a disk may hold any version of a sector, not only the last one.
func (d *fileData) write(b []byte, off int64, rng *rand.Rand, take func() bool) int {
	done := 0
	for done < len(b) {
		n := (off + int64(done)) / pageSize
		from := int((off + int64(done)) % pageSize)
		part := b[done:min(len(b), done+pageSize-from)]
		if !d.allocate(n, take) {
			break
		}
		d.writePage(n, from, part, rng)
		done += len(part)
		d.size = max(d.size, off+int64(done))
	}
	return done
}

func (d *fileData) writePage(n int64, from int, b []byte, rng *rand.Rand) {
	p := d.page(n, false)
	if (p == nil || p.cur == nil && p.dur == nil) && string(b) == string(zeroPage[:len(b)]) {
		return // zeros over zeros: no outcome of a power cut differs
	}
	if p == nil {
		p = d.page(n, true)
	}
	mask := sectorMask(from, from+len(b))
	if p.dirty&mask != 0 && rng.IntN(8) == 0 {
		d.writeback(n, p, rng)
	}
	copy(p.own()[from:], b)
	p.dirty |= mask
	p.lost &^= mask
	d.markUnsettled(n)
}

// writeback puts about half of the dirty sectors of a page on the disk, as the kernel does when it pleases. Sectors past the
// end the disk knows stay away: they are not reachable there before the length is.
func (d *fileData) writeback(n int64, p *pageState, rng *rand.Rand) {
	var mask uint8
	for s := range pageSectors {
		end := n*pageSize + int64(s+1)*sectorSize
		if p.dirty&(1<<s) != 0 && end <= d.cut && rng.IntN(2) == 0 {
			mask |= 1 << s
		}
	}
	if mask != 0 {
		p.dur = mix(p.dur, p.cur, mask)
		p.dirty &^= mask
	}
}

// writebackRange is writeback for every dirty page that [off, off+length) touches.
func (d *fileData) writebackRange(off, length int64, rng *rand.Rand) {
	for _, ci := range slices.Sorted(maps.Keys(d.unsettled)) {
		for i := range int64(chunkPages) {
			n := ci*chunkPages + i
			if p := d.page(n, false); p != nil && p.dirty != 0 && n*pageSize < off+length && (n+1)*pageSize > off {
				d.writeback(n, p, rng)
			}
		}
	}
}

// read fills b from off, as far as the file goes.
func (d *fileData) read(b []byte, off int64) int {
	if off >= d.size {
		return 0
	}
	b = b[:min(int64(len(b)), d.size-off)]
	for done := 0; done < len(b); {
		at := off + int64(done)
		from := int(at % pageSize)
		src := &zeroPage
		if p := d.page(at/pageSize, false); p != nil && p.cur != nil {
			src = p.cur
		}
		done += copy(b[done:], src[from:])
	}
	return len(b)
}

// truncate sets the length and returns how many pages it gave back.
func (d *fileData) truncate(size int64) (freed int64) {
	if size >= d.size {
		d.size = size // a hole: reads as zeros and takes no space
		return 0
	}
	if from := int(size % pageSize); from != 0 {
		n := size / pageSize
		if p := d.page(n, false); p != nil && p.cur != nil {
			mask := sectorMask(from, pageSize)
			clear(p.own()[from:])
			p.dirty |= mask
			p.lost &^= mask
			d.markUnsettled(n)
		}
	}
	first := (size + pageSize - 1) / pageSize
	for ci, c := range d.chunks { // in any order: nothing here is random
		for i := max(first-ci*chunkPages, 0); i < chunkPages; i++ {
			if c.alloc&(1<<i) != 0 {
				c.alloc &^= 1 << i
				freed++
			}
			if c.pages == nil {
				continue
			}
			p := &c.pages[i]
			p.cur, p.owned, p.dirty, p.lost = nil, false, 0, 0
			if p.dur != nil {
				p.dirty = allSectors
				d.unsettled[ci] = struct{}{}
			}
		}
	}
	d.pages -= freed
	d.size = size
	d.cut = min(d.cut, size)
	return freed
}

// onDisk returns what the disk holds of page n if a pending truncation has reached it.
func (d *fileData) onDisk(n int64, p *pageState) *page {
	if p.dur == nil || d.cut >= d.durSize || d.cut >= (n+1)*pageSize {
		return p.dur
	}
	return clipPage(p.dur, d.cut-n*pageSize)
}

// clipPage returns pg with zeros from byte end on, without changing pg.
func clipPage(pg *page, end int64) *page {
	if pg == nil || end <= 0 {
		return nil
	}
	if end >= pageSize || string(pg[end:]) == string(zeroPage[end:]) {
		return pg
	}
	c := *pg
	clear(c[end:])
	return &c
}

// mix returns old with the sectors of mask taken from pg. Neither is changed.
func mix(old, pg *page, mask uint8) *page {
	switch {
	case mask == 0 || old == pg:
		return old
	case mask == allSectors && pg == nil:
		return nil
	}
	if mask == allSectors {
		return pg.clone()
	}
	c := old.clone()
	if pg == nil {
		pg = &zeroPage
	}
	for s := range pageSectors {
		if mask&(1<<s) != 0 {
			copy(c[s*sectorSize:(s+1)*sectorSize], pg[s*sectorSize:])
		}
	}
	return c
}

// sync makes everything durable but what an earlier sync lost.
func (d *fileData) sync() {
	for ci := range d.unsettled { // in any order: nothing here is random
		c, used, lost := d.chunks[ci], false, false
		for i := range c.pages {
			p := &c.pages[i]
			if p.lost == 0 {
				if p.dirty != 0 {
					p.dur, p.owned = p.cur, false
				}
			} else {
				p.dur = mix(d.onDisk(ci*chunkPages+int64(i), p), p.cur, p.dirty)
				lost = true
			}
			p.dirty = 0
			used = used || p.cur != nil || p.dur != nil
		}
		if !used {
			c.pages = nil
		}
		if c.alloc == 0 && c.pages == nil {
			delete(d.chunks, ci)
		}
		if !lost {
			delete(d.unsettled, ci)
		}
	}
	d.durSize, d.cut = d.size, d.size
}

// failSync is a sync that fails as Linux's does: some sectors reached the disk, the others are lost, and the kernel takes
// all of them for clean. A new length stays pending: the journal will write it some time.
func (d *fileData) failSync(rng *rand.Rand) {
	for _, ci := range slices.Sorted(maps.Keys(d.unsettled)) {
		c := d.chunks[ci]
		for i := range c.pages {
			p := &c.pages[i]
			if p.dirty != 0 {
				d.writeback(ci*chunkPages+int64(i), p, rng)
				p.lost |= p.dirty
				p.dirty = 0
			}
		}
	}
}

// dropCache makes readers see what the disk holds where a failed sync left a difference.
func (d *fileData) dropCache() {
	for ci := range d.unsettled {
		c := d.chunks[ci]
		for i := range c.pages {
			if p := &c.pages[i]; p.lost != 0 {
				n := ci*chunkPages + int64(i)
				p.cur, p.owned = mix(p.cur, clipPage(d.onDisk(n, p), d.size-n*pageSize), p.lost), false
				p.lost = 0
			}
		}
	}
}

// flip inverts one bit, on the disk and for readers.
func (d *fileData) flip(off int64, bit uint) {
	p := d.page(off/pageSize, true)
	flipped := func(pg *page) *page {
		c := pg.clone()
		c[off%pageSize] ^= 1 << (bit % 8)
		return c
	}
	shared := p.cur == p.dur
	p.cur, p.owned = flipped(p.cur), !shared
	switch {
	case shared:
		p.dur = p.cur
	case off < d.durSize:
		p.dur = flipped(p.dur)
	}
}
