package wal

import (
	"errors"
	"fmt"
	"log/slog"
	"sort"

	"go.etcd.io/raft/v3/raftpb"
)

// replay rebuilds the groups from the files. It decides for every bad block whether it is a torn tail or damage (design
// rule 8): what earlier fsyncs covered (X, stated by later blocks) was acknowledged, so a bad block below X is damage; at or
// above the largest X it is an unfinished write, and the log ends before it.
type replay struct {
	log    *Log
	groups map[uint64]*replayed
	holes  []hole
	lost   []uint32 // files that later ones refer to and that are not there
	first  uint32   // the largest "oldest file needed" seen
	anchor pos      // everything below was durable once, whatever the blocks say
	flawed bool     // something was bad that is not a torn tail
}

// hole is a range of a file whose directory is lost, so that it is not yet known which groups it hit.
type hole struct {
	f        *found
	off, end int64
	reason   string
}

// replayFiles replays all files. Where that finds something wrong it is done once more, with only the files that are needed:
// what happened to older ones, which may be partly gone, hurts no group.
func (l *Log) replayFiles(all []*found, anchor pos) (r *replay, end pos, keep []*found, err error) {
	r = &replay{log: l, groups: map[uint64]*replayed{}, anchor: anchor}
	end, keep, err = r.run(all)
	if err != nil && !errors.Is(err, ErrCorrupt) || !r.doubtful(err) {
		return r, end, keep, err
	}
	n := sort.Search(len(all), func(i int) bool { return all[i].seq >= r.first })
	if n == 0 {
		return r, end, keep, err
	}
	r = &replay{log: l, groups: map[uint64]*replayed{}, anchor: anchor, first: r.first}
	end, keep, err = r.run(all[n:])
	return r, end, keep, err
}

func (r *replay) doubtful(err error) bool {
	if err != nil || r.flawed || len(r.lost) > 0 {
		return true
	}
	for _, g := range r.groups {
		if g.damage != nil {
			return true
		}
	}
	return false
}

// run replays all files and returns where the log ends, and the files that are part of it.
func (r *replay) run(all []*found) (end pos, keep []*found, err error) {
	all, err = r.chain(all)
	if err != nil {
		return 0, nil, err
	}
	for i, f := range all {
		limit, tail := f.size, i == len(all)-1
		if !tail {
			limit = all[i+1].prev.off()
		}
		stop, err := r.file(f, min(limit, f.size), tail)
		if f.drop(); err != nil {
			return 0, nil, err
		}
		if !tail && stop < limit {
			r.holes, r.flawed = append(r.holes, hole{f, stop, limit, "the file was cut short"}), true
		}
		if end = mkPos(f.seq, stop); stop == headerSize {
			end = f.prev // nothing in it: the log ends where it ended before
			continue
		}
		keep = append(keep, f)
	}
	if err := r.verdict(&keep); err != nil {
		return 0, nil, err
	}
	if err := r.checkEnd(end); err != nil {
		return 0, nil, err
	}
	return end, keep, r.checkLive(all)
}

// checkEnd refuses a log that ends before what was once durable: its end was truncated, overwritten or deleted.
func (r *replay) checkEnd(end pos) error {
	if end >= r.anchor {
		return nil
	}
	e := &CorruptionError{File: fileName(r.log.opt.Dir, r.anchor.seq()), Offset: headerSize,
		Reason: fmt.Sprintf("the log was durable up to offset %d of this file, which is missing or no longer holds it; %s", r.anchor.off(), advice)}
	if end.seq() == r.anchor.seq() {
		e.Offset = end.off()
	}
	return e
}

// chain returns the files that are part of the log, in order: each says where the log ended before it, what lies between
// is void.
func (r *replay) chain(all []*found) ([]*found, error) {
	tail := -1
	for i, f := range all {
		if !f.blank {
			tail = i
			r.first = max(r.first, f.first)
		}
	}
	if tail < 0 {
		if err := r.checkEnd(0); err != nil {
			return nil, err
		}
		return nil, r.checkBlank(all)
	}
	var out []*found
	for i := tail; i >= 0; {
		f := all[i]
		out = append(out, f)
		if f.prev == 0 || f.prev.seq() < r.first {
			break
		}
		for i--; i >= 0 && all[i].seq > f.prev.seq(); i-- {
		}
		if i < 0 || all[i].seq != f.prev.seq() {
			r.lost = append(r.lost, f.prev.seq())
			break
		}
		if all[i].blank {
			r.lost = append(r.lost, f.prev.seq())
			break
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out, nil
}

const advice = "restore the directory from a copy, or wipe the node and let it rejoin under a new identity"

// checkBlank tells a directory that was never used from one whose blocks are all destroyed: before Open first returned
// nothing was written behind the first block.
func (r *replay) checkBlank(all []*found) error {
	for _, f := range all {
		for off := int64(headerSize + blockAlign); off < f.size; {
			p, err := f.at(off, readWindow)
			if err != nil {
				return err
			}
			for i, c := range p {
				if c != 0 {
					return &CorruptionError{File: f.name, Offset: off + int64(i), Reason: "the log holds data but no readable block; " + advice}
				}
			}
			off += int64(len(p))
		}
	}
	return nil
}

// file replays one file up to limit and returns where it ends: behind its last block, or where bytes are missing. What is
// known to have been durable is not searched for a tear: entries there are checked only if they are live (checkLive).
func (r *replay) file(f *found, limit int64, tail bool) (int64, error) {
	var maxX pos
	var known bool
	off := int64(headerSize)
	for off < limit {
		at := mkPos(f.seq, off)
		b, ok, err := f.blockAt(off, limit, !tail || at < r.anchor)
		if err != nil {
			return 0, err
		}
		if ok && !b.anBad {
			r.apply(f, b)
			off = b.end()
			continue
		}
		if tail && !known {
			if maxX, err = f.maxDurable(off + blockAlign); err != nil {
				return 0, err
			}
			maxX, known = max(maxX, r.anchor), true
			if b, ok, err = f.blockAt(off, limit, false); err != nil { // again: the search used its memory
				return 0, err
			}
		}
		if tail && maxX <= at {
			r.log.opt.Logger.Info("the log ends", slog.String("file", f.name), slog.Int64("offset", off), slog.Bool("torn", ok))
			return off, nil
		}
		r.flawed = true
		if ok { // damage, but the directory tells to whom
			r.apply(f, b)
			off = b.end()
			continue
		}
		_, next, found, err := f.nextFrame(off+blockAlign, limit)
		if err != nil {
			return 0, err
		}
		if !found {
			next = limit
		}
		r.holes = append(r.holes, hole{f, off, next, "a block is damaged that had been made durable"})
		off = next
	}
	return off, nil
}

// checkLive verifies the entries above their group's checkpoint that file skipped.
func (r *replay) checkLive(files []*found) error {
	if len(files) == 0 {
		return nil
	}
	lazy := max(r.anchor, mkPos(files[len(files)-1].seq, 0))
	var live []*loc
	for _, g := range r.groups {
		for i := g.firstLive(); i < len(g.locs); i++ {
			if c := &g.locs[i]; c.typ() != locBad && c.place() < lazy {
				live = append(live, c)
			}
		}
	}
	sort.Slice(live, func(i, j int) bool { return live[i].place() < live[j].place() })
	for _, c := range live {
		n := sort.Search(len(files), func(i int) bool { return files[i].seq >= c.seq })
		if n == len(files) || files[n].seq != c.seq {
			continue // in a file that is not there: told by other means
		}
		crc, err := files[n].checksum(int64(c.off), c.bytes(), nil)
		if err != nil {
			return err
		}
		if crc != c.crc {
			c.size |= locBad << 30
		}
	}
	return nil
}

// verdict refuses what cannot be laid to known groups, and drops files that are not needed any more.
func (r *replay) verdict(keep *[]*found) error {
	for len(*keep) > 0 && (*keep)[0].seq < r.first {
		*keep = (*keep)[1:]
	}
	for _, h := range r.holes {
		if h.f.seq >= r.first {
			return &CorruptionError{File: h.f.name, Offset: h.off, Reason: h.reason + ", and no index tells which groups it hit; " + advice}
		}
	}
	for _, seq := range r.lost {
		if seq >= r.first {
			return &CorruptionError{File: fileName(r.log.opt.Dir, seq), Reason: "the file is missing, or no block of it is readable; " + advice}
		}
	}
	if r.first > 0 && len(*keep) > 0 && (*keep)[0].seq != r.first {
		return &CorruptionError{File: fileName(r.log.opt.Dir, r.first), Reason: "the oldest file of the log is missing; " + advice}
	}
	return nil
}

// replayed is a group under reconstruction.
type replayed struct {
	*Group
	known   bool    // its checkpoint is known
	start   run     // where its entries last began anew, and the term there
	exact   bool    // last is known: not so behind a first checkpoint, whose later entries may be in a file that is gone
	baseBad *Damage // its checkpoint was damaged; a newer one mends it
	full    *fullState
	removed pos // of the removal record
}

// fullState is a group carried forward, until its end record says that it is whole.
type fullState struct {
	cp     Checkpoint
	hs     raftpb.HardState
	at     pos
	damage *Damage
	bad    *Damage
	locs   []loc
	terms  []uint64
	broken bool
}

func (r *replay) group(id uint64) *replayed {
	g := r.groups[id]
	if g == nil {
		g = &replayed{Group: &Group{id: id, log: r.log, count: &counter{id: id}}}
		r.groups[id] = g
	}
	return g
}

func (g *replayed) hurt(file string, off int64, reason string) {
	g.removed = 0
	if g.damage == nil {
		g.damage = &Damage{File: file, Offset: off, Reason: reason}
	}
}

// apply replays a block's records.
func (r *replay) apply(f *found, b *block) {
	r.first = max(r.first, b.first)
	at := mkPos(f.seq, b.off)
	body := b.off + frameSize + int64(b.dirLen)
	for i := range b.recs {
		rec := &b.recs[i]
		c := loc{seq: f.seq, off: uint32(body), size: rec.bodyLen&maxEntrySize | uint32(rec.flag&3)<<30, crc: rec.bodyCRC}
		body += int64(rec.bodyLen)
		if rec.kind == KindIndex {
			r.index(f, rec, b.body[i], b.bad[i])
			continue
		}
		if b.bad[i] {
			c.size |= locBad << 30
		}
		r.group(rec.group).apply(f.name, at, rec, c, b.body[i], b.bad[i])
	}
}

// index checks the groups of the file before against their sequence numbers: who has less lost a record in a hole.
func (r *replay) index(f *found, rec *record, body []byte, bad bool) {
	if bad || len(body)%16 != 0 {
		return
	}
	var rest []hole
	resolved := len(r.holes) > 0
	for _, h := range r.holes {
		if rec.flag&flagAll == 0 && h.f.seq != f.prev.seq() {
			rest = append(rest, h)
		}
	}
	for ; len(body) > 0; body = body[16:] {
		id, n := le.Uint64(body), le.Uint64(body[8:])
		g := r.groups[id]
		if g == nil && !resolved {
			continue // its records were in files that are not needed any more
		}
		if g == nil {
			g = r.group(id)
		}
		if g.count.n >= n {
			continue
		}
		name, off, reason := f.name, int64(headerSize), "records of the group are missing"
		if resolved {
			name, off, reason = r.holes[0].f.name, r.holes[0].off, r.holes[0].reason
		}
		g.hurt(name, off, reason)
		g.count.n = n
	}
	r.holes = rest
}

func (g *replayed) apply(file string, at pos, rec *record, c loc, body []byte, bad bool) {
	if rec.kind == KindCreate && g.removed != 0 && rec.seq == 1 {
		g.count.n = 0 // made anew after its tombstone was forgotten, while the file with that was still there
	}
	if g.count.n != 0 && rec.seq != g.count.n+1 {
		g.hurt(file, at.off(), fmt.Sprintf("records of the group are missing before number %d", rec.seq))
	}
	g.count.n = max(g.count.n, rec.seq)
	if rec.kind != KindFullEntry && rec.kind != KindFullEnd {
		g.full = nil
	}
	switch rec.kind {
	case KindEntry:
		g.entry(file, rec, c)
	case KindHardState:
		if hs, ok := decodeHardState(rec.inline); ok {
			g.hs, g.w.hsPos = hs, at
		} else {
			g.hurt(file, at.off(), "hard state record is too short")
		}
	case KindCheckpoint, KindInstall, KindCreate, KindFullBegin:
		g.base(file, at, rec, body, bad)
	case KindFullEntry:
		if s := g.full; s != nil {
			s.broken = s.broken || rec.index != s.cp.Index+1+uint64(len(s.locs))
			s.locs, s.terms = append(s.locs, c), append(s.terms, rec.term)
		}
	case KindFullEnd:
		g.fullEnd()
	case KindRemove:
		*g.Group = Group{id: g.id, log: g.log, count: g.count}
		*g = replayed{Group: g.Group, removed: at}
	default:
		g.hurt(file, at.off(), fmt.Sprintf("unknown %s record", rec.kind))
	}
}

func (g *replayed) entry(file string, rec *record, c loc) {
	i := rec.index
	switch {
	case g.exact && i > g.last+1:
		g.hurt(file, int64(c.off), fmt.Sprintf("entry %d follows entry %d", i, g.last))
		return
	case g.known && i <= g.w.cpIndex:
		g.hurt(file, int64(c.off), fmt.Sprintf("entry %d lies below the checkpoint at %d", i, g.w.cpIndex))
		return
	}
	if !g.exact && i != g.last+1 {
		g.runs = g.runs[:0] // between the checkpoint and here terms are not known
	}
	g.putLoc(i, c)
	g.putTerm(i, rec.term)
	g.last, g.exact = i, true
}

// base applies a record that carries a checkpoint.
func (g *replayed) base(file string, at pos, rec *record, body []byte, bad bool) {
	cp, damage, err := decodeBase(body, rec.index, rec.term)
	var wrong *Damage
	if bad || err != nil {
		wrong = &Damage{File: file, Offset: at.off(), Reason: fmt.Sprintf("the %s record at index %d is damaged", rec.kind, rec.index)}
	}
	hs, ok := decodeHardState(rec.inline)
	if !ok && rec.kind != KindInstall {
		g.hurt(file, at.off(), fmt.Sprintf("%s record is too short", rec.kind))
		return
	}
	switch rec.kind {
	case KindFullBegin:
		if rec.flag&flagDamaged != 0 && damage == nil {
			damage = &Damage{File: file, Offset: at.off(), Reason: "the group was damaged before"}
		}
		g.full = &fullState{cp: cp, hs: hs, at: at, damage: damage, bad: wrong}
		return
	case KindCreate:
		g.removed, g.damage = 0, nil // only a group that is gone is made anew, so nothing before matters
		g.hs, g.w.hsPos, g.exact = hs, at, true
		g.reset(cp)
	case KindInstall:
		g.exact = true
		g.reset(cp)
	case KindCheckpoint:
		g.hs, g.w.hsPos = hs, at
		g.checkpoint(file, at, cp)
	}
	g.known, g.baseBad = true, wrong
	g.w.cpPos, g.w.cpIndex, g.w.cpBytes = at, cp.Index, len(cp.State)
}

func (g *replayed) reset(cp Checkpoint) {
	g.cp, g.last, g.start = cp, cp.Index, run{cp.Index, cp.Term}
	g.locs, g.locFirst = nil, cp.Index+1
	g.runs = append(g.runs[:0], run{cp.Index, cp.Term})
}

func (g *replayed) checkpoint(file string, at pos, cp Checkpoint) {
	switch {
	case !g.exact:
		g.reset(cp)
		return
	case g.last < cp.Index:
		g.hurt(file, at.off(), fmt.Sprintf("checkpoint at %d above the last entry %d", cp.Index, g.last))
		g.reset(cp)
		return
	}
	g.cp = cp
	if len(g.runs) == 0 || g.runs[0].from > cp.Index {
		g.runs = append([]run{{cp.Index, cp.Term}}, g.runs...)
	}
}

// fullEnd makes a carried group replace everything before it, damage included.
func (g *replayed) fullEnd() {
	s := g.full
	if g.full = nil; s == nil || s.broken {
		return // its begin lay in a hole: the sequence numbers told
	}
	g.reset(s.cp)
	g.removed, g.known, g.exact, g.damage, g.baseBad = 0, true, true, s.damage, s.bad
	g.hs = s.hs
	g.w = written{cpIndex: s.cp.Index, cpPos: s.at, hsPos: s.at, cpBytes: len(s.cp.State)}
	for i, t := range s.terms {
		g.putTerm(s.cp.Index+1+uint64(i), t)
	}
	g.locs = s.locs
	g.last = s.cp.Index + uint64(len(s.locs))
}

// build turns what was replayed into the log's groups and tombstones, and returns all their counters.
func (r *replay) build(first uint32) []*counter {
	l := r.log
	ids := make([]uint64, 0, len(r.groups))
	for id := range r.groups {
		ids = append(ids, id)
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	counts := make([]*counter, 0, len(ids))
	for _, id := range ids {
		g := r.groups[id]
		g.count.done = g.count.n
		if g.removed != 0 {
			if g.removed.seq() >= first {
				l.removed[id] = &tombstone{count: g.count, pos: g.removed}
				counts = append(counts, g.count)
			}
			continue
		}
		g.settle(first)
		if d := g.damage; d != nil {
			l.opt.Logger.Error("a group's log is damaged: its replica is quarantined until it is replaced", slog.Uint64("group", id),
				slog.String("file", d.File), slog.Int64("offset", d.Offset), slog.String("reason", d.Reason))
		}
		l.groups[id] = g.Group
		l.files.pin(g.w.pin)
		counts = append(counts, g.count)
	}
	return counts
}

// settle finds what is still wrong with a group now that everything was read, and makes its readers' view.
func (g *replayed) settle(first uint32) {
	if !g.known {
		g.hurt(fileName(g.log.opt.Dir, first), headerSize, "no checkpoint of the group was found")
	}
	if g.baseBad != nil {
		g.hurt(g.baseBad.File, g.baseBad.Offset, g.baseBad.Reason)
	}
	lowest := g.locFirst
	for i, c := range g.locs {
		if index := g.locFirst + uint64(i); c.typ() == locBad {
			if index > g.w.cpIndex {
				g.hurt(fileName(g.log.opt.Dir, c.seq), int64(c.off), fmt.Sprintf("entry %d does not have the checksum it was written with", index))
			}
			lowest = index + 1
		}
	}
	if len(g.locs) > 0 && g.locFirst > g.w.cpIndex+1 {
		g.hurt(fileName(g.log.opt.Dir, g.locs[0].seq), int64(g.locs[0].off), fmt.Sprintf("entries %d to %d are missing", g.w.cpIndex+1, g.locFirst-1))
	}
	if g.damage != nil {
		// Nothing of it is to be trusted but term and vote. It holds the oldest file, so that it is carried on as damaged
		// until it is removed, and is never mistaken for a group that was not here.
		g.reset(g.cp)
		at := mkPos(first, 0)
		g.w.cpPos, g.w.hsPos, g.w.cpIndex = at, at, g.cp.Index
		lowest = g.locFirst
	}
	if len(g.locs) == 0 {
		g.locFirst, lowest = g.cp.Index+1, g.cp.Index+1
	}
	if n := int(lowest - g.locFirst); n > 0 {
		g.locs, g.locFirst = g.locs[n:], lowest
	}
	for len(g.locs) > 0 && g.locs[0].seq < first && g.locFirst <= g.w.cpIndex {
		g.locs, g.locFirst = g.locs[1:], g.locFirst+1
	}
	g.settleTerms()
	g.hs.Commit = max(min(g.hs.Commit, g.last), g.cp.Index)
	g.stable, g.applied = g.last, g.cp.Index
	g.w.pin = g.needs()
}

// settleTerms keeps the terms of the entries found, and that of the index before them if the checkpoint tells it; otherwise
// the first entry serves for that. Below, the replay began in the middle and knows nothing.
func (g *replayed) settleTerms() {
	g.first = g.locFirst
	var runs []run
	if g.cp.Index+1 == g.locFirst {
		runs = append(runs, run{g.cp.Index, g.cp.Term})
	} else if g.start.from+1 == g.locFirst && g.start.from > 0 {
		runs = append(runs, g.start)
	} else {
		g.first++
	}
	if len(g.locs) > 0 {
		runs = append(runs, run{g.locFirst, g.runTerm(g.locFirst)})
	}
	for _, r := range g.runs {
		if r.from > g.locFirst {
			runs = append(runs, r)
		}
	}
	g.runs = runs
}
