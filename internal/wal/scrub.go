package wal

import (
	"fmt"

	"github.com/chronik-go/chronik/internal/vfs"
)

// Scrubber reads again what the log has made durable and checks every checksum in it, without any lock that a writer takes: bytes
// below the durable point are never written again, and a file that is read is not reused. It is one caller's.
type Scrubber struct {
	log *Log
	seq uint32 // the file being read
	off int64
}

// Hit is damage to what a live group needs. Group is 0 if no live group needs the damaged bytes.
type Hit struct {
	Group  uint64
	Damage Damage
}

// Scrubbed is what one step did.
type Scrubbed struct {
	Bytes int64
	Hits  []Hit
	Done  bool // the log is through
}

// Scrub begins a pass over the log.
func (l *Log) Scrub() *Scrubber { return &Scrubber{log: l} }

// Step reads on by about max bytes, at least a block. Errors are the file system's.
func (c *Scrubber) Step(max int64) (out Scrubbed, err error) {
	f, limit := c.file()
	if f == nil {
		return Scrubbed{Done: true}, nil
	}
	defer f.release()
	if f.seq != c.seq {
		c.seq, c.off = f.seq, headerSize
	}
	r := &reader{f: f.f, name: f.name, seq: f.seq, size: limit}
	begin := c.off
	vfs.DropCache(f.f, begin, min(max, limit-begin)) // the disk is meant, not the memory
	for c.off < limit && out.Bytes < max {
		b, ok, err := r.blockAt(c.off, limit, false)
		if err != nil {
			return out, err
		}
		switch {
		case !ok:
			_, next, found, err := r.nextFrame(c.off+blockAlign, limit)
			if err != nil {
				return out, err
			}
			if !found {
				next = limit
			}
			out.Hits = append(out.Hits, c.log.hits(c.log.Groups(), f, c.off, next, c.off, "a block is damaged that had been made durable")...)
			out.Bytes += next - c.off
			c.off = next
			continue
		case b.anBad:
			out.Hits = append(out.Hits, c.log.badRecords(f, b)...)
		}
		out.Bytes += b.end() - c.off
		c.off = b.end()
	}
	vfs.DropCache(f.f, begin, c.off-begin)
	if c.off >= limit {
		c.seq++
		c.off = headerSize
	}
	return out, nil
}

// file holds the file to go on with, and says up to where it is durable; nil at the log's end.
func (c *Scrubber) file() (f *file, limit int64) {
	s := &c.log.files
	durable := pos(c.log.durHint.Load())
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.list {
		if x.seq < c.seq {
			continue
		}
		limit = x.end.Load()
		if x.seq == durable.seq() {
			limit = durable.off()
		}
		off := int64(headerSize)
		if x.seq == c.seq {
			off = max(off, c.off)
		}
		if limit > off && x.seq <= durable.seq() {
			x.refs.Add(1)
			return x, limit
		}
	}
	return nil, 0
}

// badRecords names the groups that need a record of b, theirs, whose body is wrong.
func (l *Log) badRecords(f *file, b *block) (out []Hit) {
	at := b.off + frameSize + int64(b.dirLen)
	for i := range b.recs {
		n := int64(b.recs[i].bodyLen)
		if b.bad[i] {
			reason := fmt.Sprintf("the %s record at index %d does not have the checksum it was written with", b.recs[i].kind, b.recs[i].index)
			base := at
			if k := b.recs[i].kind; k != KindEntry && k != KindFullEntry {
				base = b.off // a checkpoint is known by its block
			}
			// Whoever else has a checkpoint in this block has lost nothing.
			out = append(out, l.hits([]uint64{b.recs[i].group}, f, at, at+n, base, reason)...)
		}
		at += n
	}
	return out
}

// hits names those of some groups that live and need bytes of [off, end) of a file, or whose checkpoint or hard state is in the block at base.
func (l *Log) hits(groups []uint64, f *file, off, end, base int64, reason string) (out []Hit) {
	d := Damage{File: f.name, Offset: off, Reason: reason}
	for _, id := range groups {
		if g := l.Group(id); g != nil && g.needsBytes(f.seq, off, end, base) {
			out = append(out, Hit{Group: id, Damage: d})
		}
	}
	if len(out) == 0 {
		out = append(out, Hit{Damage: d})
	}
	return out
}

// needsBytes says whether a restart would miss bytes of [off, end) of file seq, or the block at base.
func (g *Group) needsBytes(seq uint32, off, end, base int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	in := func(p pos) bool { return p.seq() == seq && (p.off() == base || p.off() >= off && p.off() < end) }
	if in(g.w.cpPos) || off == base && in(g.w.hsPos) {
		return true
	}
	for i, c := range g.locs {
		if g.locFirst+uint64(i) > g.w.cpIndex && c.seq == seq && int64(c.off) < end && int64(c.off)+max(c.bytes(), 1) > off {
			return true
		}
	}
	return false
}
