package wal

import (
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

const (
	coldGap     = 4 << 10 // entries no further apart than this are read at once
	coldWindows = 4       // windows read ahead for one group: as many followers can be behind without undoing each other's
)

// prefetch is a read asked for.
type prefetch struct {
	g        *Group
	lo       uint64
	maxBytes uint64
	done     func()
}

// Prefetch asks for entries from lo on, up to maxBytes, to be read into memory on a background step; done, if set, is called
// there when they are, or when they cannot be read (Entries then tells why). It never blocks. A group has one read under way:
// while it has, others are refused, which their done is told at that read's end.
func (g *Group) Prefetch(lo, maxBytes uint64, done func()) {
	l := g.log
	p := &prefetch{g: g, lo: lo, maxBytes: maxBytes, done: done}
	g.mu.Lock()
	if q := g.prefetch; q != nil {
		first := q.done
		q.done = func() {
			if first != nil {
				first()
			}
			if done != nil {
				done()
			}
		}
		g.mu.Unlock()
		return
	}
	g.prefetch = p
	g.mu.Unlock()
	b := &l.back
	b.mu.Lock()
	b.reads = append(b.reads, p)
	b.wake.Signal()
	b.mu.Unlock()
}

func (b *background) takeRead() *prefetch {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.reads) == 0 {
		return nil
	}
	p := b.reads[0]
	b.reads = b.reads[1:]
	return p
}

// dropReads ends the reads that will not be done any more.
func (l *Log) dropReads() {
	for p := l.back.takeRead(); p != nil; p = l.back.takeRead() {
		p.end()
	}
}

func (p *prefetch) end() {
	p.g.mu.Lock()
	p.g.prefetch = nil
	done := p.done
	p.g.mu.Unlock()
	if done != nil {
		done()
	}
}

func (p *prefetch) run(l *Log) {
	defer p.end()
	g := p.g
	g.mu.Lock()
	lo, hi := p.lo, g.tailFirst()
	have := lo < g.first || g.cachedLocked(lo) != nil
	g.mu.Unlock()
	if have || lo >= hi {
		return
	}
	es, err := g.readFile(lo, hi, p.maxBytes)
	if err != nil || len(es) == 0 {
		return
	}
	w := window{id: l.cache.windowID()}
	g.mu.Lock()
	// What was cut off meanwhile must not be seen any more.
	for len(es) > 0 && (es[len(es)-1].Index > g.stable || g.runTerm(es[len(es)-1].Index) != es[len(es)-1].Term) {
		es = es[:len(es)-1]
	}
	if len(es) == 0 || es[0].Index < g.first || g.gone {
		g.mu.Unlock()
		return
	}
	for i := range es {
		w.bytes += entryBytes(&es[i])
	}
	w.entries = es
	if len(g.cold) == coldWindows {
		l.cache.bytes.Add(-g.cold[0].bytes)
		g.cold = slices.Delete(g.cold, 0, 1)
	}
	g.cold = append(g.cold, w)
	l.cache.bytes.Add(w.bytes)
	g.mu.Unlock()
	l.cache.push(ticket{g: g, index: es[len(es)-1].Index, window: w.id, bytes: w.bytes})
}

// span is a range of one file that holds consecutive entries.
type span struct {
	f        *file
	off, end int64
	locs     []loc
}

// readFile reads entries of [lo, hi), which are written and above first, from the files.
func (g *Group) readFile(lo, hi, maxBytes uint64) ([]raftpb.Entry, error) {
	g.mu.Lock()
	if lo < g.first || lo < g.locFirst {
		g.mu.Unlock()
		return nil, raft.ErrCompacted
	}
	hi = min(hi, g.stable+1, g.locFirst+uint64(len(g.locs)))
	if lo >= hi {
		g.mu.Unlock()
		return nil, raft.ErrUnavailable
	}
	var locs []loc
	var terms []uint64
	var size uint64
	for i := lo; i < hi; i++ {
		c := g.locs[i-g.locFirst]
		if size += uint64(c.bytes()) + 24; size > maxBytes && i > lo {
			break
		}
		locs = append(locs, c)
		terms = append(terms, g.runTerm(i))
	}
	spans := g.log.spans(locs)
	g.mu.Unlock()
	defer func() {
		for _, s := range spans {
			s.f.release()
		}
	}()
	g.log.stats.coldReads.Add(1)
	out := make([]raftpb.Entry, 0, len(locs))
	for _, s := range spans {
		buf := make([]byte, s.end-s.off)
		if _, err := s.f.f.ReadAt(buf, s.off); err != nil && err != io.EOF {
			return nil, fmt.Errorf("wal: read %s at %d: %w", s.f.name, s.off, err)
		}
		for _, c := range s.locs {
			i := len(out)
			from := int64(c.off) - s.off
			data := buf[from : from+c.bytes() : from+c.bytes()]
			if c.typ() == locBad || crc32.Checksum(data, castagnoli) != c.crc {
				return nil, g.spoil(s.f.name, int64(c.off), lo+uint64(i))
			}
			if len(data) == 0 {
				data = nil
			}
			out = append(out, raftpb.Entry{Term: terms[i], Index: lo + uint64(i), Type: raftpb.EntryType(c.typ()), Data: data})
		}
	}
	if len(out) == 0 {
		return nil, raft.ErrUnavailable
	}
	return out, nil
}

// spans groups locations that lie close together and holds their files; it ends early at a file that is gone.
func (l *Log) spans(locs []loc) []span {
	var out []span
	for i, c := range locs {
		if n := len(out); n > 0 {
			s := &out[n-1]
			if s.f.seq == c.seq && int64(c.off) >= s.end && int64(c.off)-s.end <= coldGap && int64(c.off)-s.off < blockTarget {
				s.end = int64(c.off) + c.bytes()
				s.locs = append(s.locs, locs[i])
				continue
			}
		}
		f := l.files.hold(c.seq)
		if f == nil {
			break
		}
		out = append(out, span{f: f, off: int64(c.off), end: int64(c.off) + c.bytes(), locs: []loc{c}})
	}
	return out
}

// spoil marks the group damaged, if it is a live entry that is bad. Below the checkpoint only the history ends there.
func (g *Group) spoil(file string, off int64, index uint64) error {
	reason := fmt.Sprintf("entry %d does not have the checksum it was written with", index)
	g.log.opt.Logger.Error("a log file is damaged", slog.Uint64("group", g.id), slog.String("file", file), slog.Int64("offset", off), slog.String("reason", reason))
	g.mu.Lock()
	if index <= min(g.cp.Index, g.w.cpIndex) {
		g.trimLocs(index + 1)
		g.mu.Unlock()
		return raft.ErrCompacted
	}
	if g.damage == nil {
		g.damage = &Damage{File: file, Offset: off, Reason: reason}
	}
	g.mu.Unlock()
	return &CorruptionError{File: file, Offset: off, Reason: reason, Groups: []uint64{g.id}}
}
