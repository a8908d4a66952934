package wal

import (
	"fmt"
	"hash/crc32"
	"io"
	"sort"
	"time"
)

const (
	blockTarget = 8 << 20 // a block is closed at about this size, so that recovery needs little memory
	dirTarget   = 4 << 20
	smallBody   = 2 << 10 // bodies up to this size are copied together: cheaper than a vector element
	maxVec      = 1024    // IOV_MAX
	sealAfter   = 250 * time.Millisecond
)

// writer is the state of Step; stepMu guards it.
type writer struct {
	b       builder
	ib      builder    // for index blocks, written in the middle of another
	end     pos        // where the next block goes
	durable pos        // fsyncs covered everything below
	stated  pos        // the X of the latest block
	prev    pos        // where the log ended before the active file
	first   uint32     // the oldest file needed, as the next block will say
	saidFir uint32     // as the latest block said
	declare uint32     // as a durable block says: older files may go
	begun   int64      // where the active file's index ends
	touched []*counter // groups with records in the active file
	spare   []*item
	arena   []loc
	scanned pos // when pinned groups were last looked for
	// credit is how many bytes may be written to carry groups forward: four for each byte of other writes, and one file's
	// worth at Open. Without it a log whose live groups alone exceed the bound would carry them round for ever (and Close
	// would not return).
	credit int64
	vec    [][]byte
	anchor anchor
}

// builder collects one block: a directory of records and the bodies.
type builder struct {
	head   []byte // room for the frame, then the directory
	bodies [][]byte
	small  []byte
	open   int // where in small the last body element begins, -1 if the last element is not of small
	size   int64
	count  uint32
	marks  []*pos     // set to the block's place once it is known
	counts []*counter // whose records are in the block
	from   int        // the block's first location in the arena
}

func (b *builder) reset(arena int) {
	if cap(b.head) > 1<<20 {
		b.head = nil
	}
	if cap(b.small) > 1<<20 {
		b.small = nil
	}
	b.head = append(b.head[:0], zeroPage[:frameSize]...)
	clear(b.bodies)
	b.bodies, b.small, b.marks, b.counts = b.bodies[:0], b.small[:0], b.marks[:0], b.counts[:0]
	b.open, b.size, b.count, b.from = -1, 0, 0, arena
}

// add appends a record; body is referenced, unless it is small. It returns where in the bodies it lies and its checksum.
func (b *builder) add(r record, body []byte) (off int64, crc uint32) {
	r.bodyLen = uint32(len(body))
	r.bodyCRC = crc32.Checksum(body, castagnoli)
	b.head = appendRecord(b.head, &r)
	b.count++
	off = b.size
	b.size += int64(len(body))
	switch {
	case len(body) == 0:
	case len(body) > smallBody:
		b.bodies = append(b.bodies, body)
		b.open = -1
	default:
		if b.open < 0 {
			b.open = len(b.small)
			b.bodies = append(b.bodies, nil)
		}
		b.small = append(b.small, body...)
		b.bodies[len(b.bodies)-1] = b.small[b.open:]
	}
	return off, r.bodyCRC
}

func (b *builder) full() bool { return b.size >= blockTarget || len(b.head) >= dirTarget }

// Step carries out one group commit: it takes everything queued, writes it, makes it durable with one fdatasync if any of
// it asks for that, then calls every Done in order. It says whether there is more to do at once. Not to be called from a
// callback of the log.
func (l *Log) Step() (more bool) {
	l.stepMu.Lock()
	defer l.stepMu.Unlock()
	carry := l.planCarry()
	items, seal := l.take(carry)
	err := l.failure()
	before := l.stats.bytes.Load()
	if err == nil && (len(items) > 0 || l.wr.first > l.wr.declare) {
		err = l.commit(items)
	} else if err == nil && seal && l.wr.durable > l.wr.stated {
		err = l.writeEmpty()
		l.putAnchor()
	}
	if spent := int64(l.stats.bytes.Load() - before); len(carry) > 0 {
		l.wr.credit -= spent
	} else if len(items) > 0 {
		l.wr.credit = min(l.wr.credit+4*spent, l.opt.MaxBytes)
	}
	if err != nil {
		l.fail(err)
		err = l.failure()
	} else {
		l.publish(items)
	}
	for _, it := range items {
		if it.err != nil {
			it.finish(it.err)
		} else {
			it.finish(err)
		}
	}
	clear(items)
	if cap(items) <= 1<<14 {
		l.wr.spare = items[:0]
	}
	l.flightAt.Store(0)
	if err != nil {
		l.fatal.Do(func() { l.opt.OnFatal(err) })
	} else {
		more = l.reclaim()
		l.armSeal()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return more || len(l.queue) > 0
}

// take empties the queue, and behind it places what is to be carried forward, as it is at this moment of append order.
func (l *Log) take(carry []carried) (items []*item, seal bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	items, l.queue, l.wr.spare = l.queue, l.wr.spare, nil
	if len(items) > 0 {
		l.flightAt.Store(l.queueAt.UnixNano())
	}
	l.queued = 0
	seal, l.sealDue, l.nudge = l.sealDue, false, false
	for _, c := range carry {
		if it := c.capture(l); it != nil {
			items = append(items, it)
		}
	}
	return items, seal
}

// commit writes the items, in one block if they fit, and syncs if one of them asks.
func (l *Log) commit(items []*item) error {
	w := &l.wr
	w.arena = w.arena[:0]
	w.b.reset(0)
	sync := w.first > w.declare
	for _, it := range items {
		if it.err != nil {
			continue
		}
		sync = sync || it.sync
		if it.g == nil {
			continue // there is a later checkpoint, which may have been written only
		}
		if err := l.encode(it); err != nil {
			return err
		}
	}
	if w.b.count > 0 || w.first > w.declare {
		if err := l.writeBlock(&w.b); err != nil {
			return err
		}
	}
	l.stats.commits.Add(1)
	l.stats.writes.Add(uint64(len(items)))
	if sync {
		return l.syncActive()
	}
	return nil
}

// encode turns an item into records. The order matters for an item that spans blocks: the hard state first, so that no
// entry is ever found with a term above it.
func (l *Log) encode(it *item) error {
	w := &l.wr
	c := it.g.count
	it.locFrom, it.locTo = len(w.arena), len(w.arena)
	var body []byte
	var err error
	if it.cp != nil {
		if body, err = encodeBase(it.cp, it.damage); err != nil {
			return err
		}
	}
	entry := KindEntry
	switch it.kind {
	case KindEntry, KindInstall:
		if it.hasHS {
			l.record(it, record{kind: KindHardState, inline: encodeHardState(it.hs)}, nil, &it.hsPos)
		}
		if it.cp != nil {
			l.record(it, record{kind: KindInstall, index: it.cp.Index, term: it.cp.Term}, body, &it.cpPos)
		}
	case KindRemove:
		l.record(it, record{kind: KindRemove}, nil, &it.tomb.pos)
	default: // create, checkpoint, full state
		r := record{kind: it.kind, index: it.cp.Index, term: it.cp.Term, inline: encodeHardState(it.hs)}
		if it.damage != nil {
			r.flag = flagDamaged
		}
		l.record(it, r, body, &it.cpPos, &it.hsPos)
		entry = KindFullEntry
	}
	for i := range it.entries {
		e := &it.entries[i]
		off, crc := w.b.add(l.number(c, record{kind: entry, flag: uint8(e.Type), group: c.id, index: e.Index, term: e.Term}), e.Data)
		w.arena = append(w.arena, loc{off: uint32(off), size: uint32(len(e.Data)) | uint32(e.Type)<<30, crc: crc})
		if w.b.full() {
			if err := l.writeBlock(&w.b); err != nil {
				return err
			}
		}
	}
	it.locTo = len(w.arena)
	if it.kind == KindFullBegin {
		l.record(it, record{kind: KindFullEnd, index: it.cp.Index}, nil)
	}
	if w.b.full() {
		return l.writeBlock(&w.b)
	}
	return nil
}

func (l *Log) record(it *item, r record, body []byte, at ...*pos) {
	r.group = it.group
	l.wr.b.add(l.number(it.g.count, r), body)
	l.wr.b.marks = append(l.wr.b.marks, at...)
}

// number gives a record its place in the group's sequence.
func (l *Log) number(c *counter, r record) record {
	c.n++
	r.seq = c.n
	if !c.inBlock {
		c.inBlock = true
		l.wr.b.counts = append(l.wr.b.counts, c)
	}
	return r
}

// touch notes that a block with records of these groups was written, for the file's index.
func (l *Log) touch(counts []*counter) {
	seq := l.wr.end.seq()
	for _, c := range counts {
		c.done, c.inBlock = c.n, false
		if c.file != seq {
			c.file = seq
			l.wr.touched = append(l.wr.touched, c)
		}
	}
}

// writeBlock writes the block that b holds, in the next file if it does not fit this one, and empties b.
func (l *Log) writeBlock(b *builder) error {
	w := &l.wr
	total := int64(len(b.head)) + b.size
	used := w.end.off()
	if b != &w.ib && used > w.begun && used+alignUp(total) > l.opt.FileBytes {
		if err := l.switchFile(); err != nil {
			return err
		}
	}
	seq, off := w.end.seq(), w.end.off()
	if total > 1<<31 {
		return fmt.Errorf("block of %d bytes", total)
	}
	f := frame{blockLen: uint32(total), dirLen: uint32(len(b.head) - frameSize), count: b.count, durable: w.durable, prev: w.prev, first: w.first}
	putFrame(b.head, f, seq, off)
	bodies := off + int64(len(b.head))
	for i := b.from; b == &w.b && i < len(w.arena); i++ {
		w.arena[i].seq = seq
		w.arena[i].off += uint32(bodies)
	}
	for _, p := range b.marks {
		*p = w.end
	}
	if err := l.writeVec(b, off, alignUp(total)-total); err != nil {
		return err
	}
	l.touch(b.counts)
	w.end = mkPos(seq, off+alignUp(total))
	l.endHint.Store(uint64(w.end))
	w.stated, w.saidFir = w.durable, w.first
	l.stats.bytes.Add(uint64(alignUp(total)))
	b.reset(len(w.arena))
	return nil
}

func (l *Log) writeVec(b *builder, off, pad int64) error {
	w := &l.wr
	vec := append(w.vec[:0], b.head)
	vec = append(vec, b.bodies...)
	if pad > 0 {
		vec = append(vec, zeroPage[:pad])
	}
	w.vec = vec
	f := l.files.active()
	if step := min(1<<20, l.opt.FileBytes/32); off/step != (off+int64(len(b.head))+b.size+pad)/step {
		l.wakeBackground()
	}
	f.claim(off + int64(len(b.head)) + b.size + pad)
	for len(vec) > 0 {
		n := min(len(vec), maxVec)
		var want int64
		for _, v := range vec[:n] {
			want += int64(len(v))
		}
		got, err := f.f.WriteVecAt(vec[:n], off)
		if err == nil && int64(got) != want {
			err = io.ErrShortWrite
		}
		if err != nil {
			return fmt.Errorf("write %s at %d: %w", f.name, off, err)
		}
		off += want
		vec = vec[n:]
	}
	clear(w.vec)
	return nil
}

// writeEmpty writes a block without records: it states what is durable, and which files are needed.
func (l *Log) writeEmpty() error {
	l.wr.b.reset(0)
	l.wr.arena = l.wr.arena[:0]
	return l.writeBlock(&l.wr.b)
}

// syncActive makes everything written durable.
func (l *Log) syncActive() error {
	w := &l.wr
	if w.durable == w.end {
		return nil
	}
	f := l.files.active()
	begin := l.opt.Clock.Now()
	if err := f.f.SyncData(); err != nil {
		return fmt.Errorf("fdatasync %s: %w", f.name, err)
	}
	l.stats.syncs.Add(1)
	l.stats.lastSync.Store(uint64(l.opt.Clock.Now().Sub(begin)))
	w.durable = w.end
	l.durHint.Store(uint64(w.durable))
	w.declare = w.saidFir
	if l.anchorDue() {
		l.putAnchor()
	}
	return nil
}

// switchFile goes on in the next file. The old one is made durable first: the new file's blocks say so. The new file begins
// with the index of the groups in the old one.
func (l *Log) switchFile() error {
	w := &l.wr
	if err := l.syncActive(); err != nil {
		return err
	}
	next, err := l.nextFile()
	if err != nil {
		return fmt.Errorf("next log file: %w", err)
	}
	w.prev = w.end
	l.files.active().end.Store(w.end.off())
	w.end = mkPos(next.seq, headerSize)
	l.files.activate(next)
	l.stats.switches.Add(1)
	touched := w.touched
	w.touched = nil
	if err := l.writeIndex(touched, 0); err != nil {
		return err
	}
	w.begun = w.end.off()
	l.wakeBackground()
	return nil
}

// writeIndex writes a block that lists the latest sequence number of each group.
func (l *Log) writeIndex(list []*counter, flag uint8) error {
	sort.Slice(list, func(i, j int) bool { return list[i].id < list[j].id })
	body := make([]byte, 0, 16*len(list))
	for _, c := range list {
		body = le.AppendUint64(le.AppendUint64(body, c.id), c.done)
	}
	w := &l.wr
	w.ib.reset(0)
	w.ib.add(record{kind: KindIndex, flag: flag}, body)
	return l.writeBlock(&w.ib)
}

// publish makes what was written the written view, item by item.
func (l *Log) publish(items []*item) {
	for _, it := range items {
		if it.err != nil || it.g == nil {
			continue
		}
		if it.kind == KindRemove {
			l.files.unpin(it.g.w.pin)
			it.g.w.pin = 0
			continue
		}
		old := it.g.w.pin
		it.g.publish(it, l.wr.arena[it.locFrom:it.locTo])
		if now := it.g.w.pin; now != old {
			l.files.pin(now)
			l.files.unpin(old)
		}
	}
}

// armSeal sees to it that a pause in writing is used to state that the last writes are durable. Without that, damage to
// them could not be told from a torn tail.
func (l *Log) armSeal() {
	if l.wr.durable <= l.wr.stated {
		return
	}
	if l.sealer == nil {
		l.sealer = l.opt.Clock.AfterFunc(sealAfter, func() {
			l.mu.Lock()
			l.sealDue = true
			l.wake.Signal()
			l.mu.Unlock()
		})
		return
	}
	l.sealer.Reset(sealAfter)
}
