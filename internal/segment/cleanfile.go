package segment

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// How a cleaned file takes the place of those it was made from, so that a crash at any moment leaves the one or the others:
//
//	<base>.log.cleaned        is written and synced, and its indexes (<base>.index.cleaned, ….timeindex.cleaned); a start removes them
//	cleaner-checkpoint        is replaced: from now on holes are legal there
//	<base>-<end>.swap         is what the file is renamed to, durably. From here on there is no way back: a start goes on
//	                          with what follows
//	                          the segments in [base, end), all but <base>.log itself, and its old indexes are deleted, durably
//	<base>.log                is what the file is renamed to, and the indexes after it
const (
	cleanedExt = ".cleaned"
	swapExt    = ".swap"
)

func swapName(base, end int64) string { return fmt.Sprintf("%020d-%020d%s", base, end, swapExt) }

func parseSwap(name string) (base, end int64, ok bool) {
	text, found := strings.CutSuffix(name, swapExt)
	a, b, cut := strings.Cut(text, "-")
	if !found || !cut || len(a) != 20 || len(b) != 20 {
		return 0, 0, false
	}
	base, err1 := strconv.ParseInt(a, 10, 64)
	end, err2 := strconv.ParseInt(b, 10, 64)
	return base, end, err1 == nil && err2 == nil && base >= 0 && end > base
}

// finishSwaps carries on what a crash has interrupted, and returns the names that are there then.
func (l *Log) finishSwaps(names []string) ([]string, error) {
	changed := false
	for _, name := range names {
		if strings.HasSuffix(name, cleanedExt) {
			if err := l.removeFile(name); err != nil {
				return nil, err
			}
			changed = true
		}
	}
	for _, name := range names {
		base, end, ok := parseSwap(name)
		if !ok {
			continue
		}
		changed = true
		l.logger.Info("going on with a cleaned segment that a crash has interrupted", "dir", l.dir, "base", base, "end", end)
		if err := l.removeSwapped(names, base, end); err != nil {
			return nil, err
		}
		if err := l.files.fs.Rename(l.file(name), l.file(fileName(base, logExt))); err != nil {
			return nil, ioErr("rename", l.file(name), err)
		}
		if err := syncDir(l.files.fs, l.dir); err != nil {
			return nil, err
		}
	}
	if !changed {
		return names, nil
	}
	return l.list()
}

// removeSwapped deletes, durably, the files in whose place a cleaned one comes, apart from the .log that it replaces by its name.
func (l *Log) removeSwapped(names []string, from, end int64) error {
	for _, name := range names {
		base, ext, ok := parseName(name)
		if !ok || base < from || base >= end || base == from && ext == logExt || ext != logExt && ext != indexExt && ext != timeExt {
			continue
		}
		if err := l.removeFile(name); err != nil {
			return err
		}
	}
	return syncDir(l.files.fs, l.dir)
}

// output is the file that a pass writes. As long as all is equal to the one source that there is, nothing is written.
type output struct {
	first int // of the sources, the one that it begins with
	base  int64
	same  bool
	f     vfs.File // nil: not begun
	size  int64
	wrote int64 // bytes in the file; the rest is in buf
	buf   []byte
	x     indexer
}

const outputBuffer = 1 << 20

func (o *output) begin(s *segment, i int) {
	*o = output{first: i, base: s.base, same: true, buf: o.buf[:0], x: newIndexer(s.base)}
}

func (o *output) tmp(l *Log, ext string) string { return l.file(fileName(o.base, ext) + cleanedExt) }

// add appends what is left of a batch.
func (o *output) add(c *Cleaning, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	h, err := record.CheckHeader(b)
	if err != nil {
		return err
	}
	if o.size+int64(len(b)) > math.MaxInt32 {
		return fmt.Errorf("segment: cleaned, %s would be larger than a segment can be", fileName(o.base, logExt))
	}
	o.x.add(h, o.size, c.l.interval())
	o.size += int64(len(b))
	if o.same {
		return nil
	}
	if o.buf = append(o.buf, b...); len(o.buf) >= outputBuffer && c.prefixed() {
		return o.spill(c)
	}
	return nil
}

// prefixed says whether what comes before buf is in the file.
func (c *Cleaning) prefixed() bool { return c.out.wrote+int64(len(c.out.buf)) == c.out.size }

func (o *output) spill(c *Cleaning) error {
	if err := o.create(c.l); err != nil {
		return err
	}
	if _, err := o.f.WriteAt(o.buf, o.wrote); err != nil {
		return ioErr("write", o.f.Name(), err)
	}
	o.wrote += int64(len(o.buf))
	c.done.Written += int64(len(o.buf))
	o.buf = o.buf[:0]
	return nil
}

func (o *output) create(l *Log) (err error) {
	if o.f == nil {
		if o.f, err = l.files.fs.Create(o.tmp(l, logExt)); err != nil {
			return ioErr("create", o.tmp(l, logExt), err)
		}
	}
	return nil
}

// copyPrefix copies a piece of the source that was equal so far, and says whether more is to be copied. What came after it waits in buf.
func (o *output) copyPrefix(c *Cleaning) (more bool, err error) {
	if err := o.create(c.l); err != nil {
		return false, err
	}
	n := min(o.size-o.wrote-int64(len(o.buf)), outputBuffer)
	if n <= 0 {
		return false, nil
	}
	b := make([]byte, n)
	src := &c.srcs[o.first].log
	if err := src.readAt(b, o.wrote); err != nil {
		return false, shortRead(src, o.wrote, err)
	}
	if _, err := o.f.WriteAt(b, o.wrote); err != nil {
		return false, ioErr("write", o.f.Name(), err)
	}
	o.wrote += n
	c.done.Read += n
	c.done.Written += n
	return !c.prefixed(), nil
}

// takes says whether the next source surely fits behind what is there.
func (o *output) takes(c *Cleaning) bool {
	s, cfg := c.srcs[c.i], c.l.config()
	entries := s.size/int64(max(cfg.IndexIntervalBytes, 1)) + 1
	return c.i-o.first < maxGroup && o.size+s.size <= cfg.SegmentBytes && c.ends[c.i]-o.base <= math.MaxInt32 &&
		int64(len(o.x.idx))+entries <= int64(cfg.IndexBytes/indexEntrySize) &&
		int64(len(o.x.tim))+entries < int64(cfg.IndexBytes/timeEntrySize-1)
}

// drop gives the file up.
func (o *output) drop(l *Log) {
	if o.f != nil {
		_ = o.f.Close()
		for _, ext := range []string{logExt, indexExt, timeExt} { // the indexes may not be there yet; what stays goes at the next start
			_ = l.files.fs.Remove(o.tmp(l, ext))
		}
		o.f = nil
	}
}

// swap puts the file, durably and at once, in the place of its sources.
func (o *output) swap(c *Cleaning) error {
	l := c.l
	if err := o.seal(c); err != nil {
		return err
	}
	group, end := c.srcs[o.first:c.i], c.ends[c.i-1]
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	if c.stale() || l.indexOf(group) < 0 {
		return ErrReplaced
	}
	if err := l.pointBeyond(end); err != nil {
		return err
	}
	p := l.CleanPoint()
	p.Holes, p.Horizon = max(p.Holes, c.holes), max(p.Horizon, c.point.Horizon)
	if err := l.setCleanPoint(p); err != nil {
		return l.fail(err)
	}
	release, err := l.hold(group)
	if err != nil {
		return err
	}
	defer release()
	fsys, swap := l.files.fs, l.file(swapName(o.base, end))
	if err := syncDir(fsys, l.dir); err != nil {
		return l.fail(err)
	}
	if err := fsys.Rename(o.tmp(l, logExt), swap); err != nil {
		return ioErr("rename", swap, err)
	}
	_ = o.f.Close() // synced; the name is no longer this one's
	o.f = nil
	if err := syncDir(fsys, l.dir); err != nil {
		return l.fail(err)
	}
	// There is no way back from here.
	if c.o.Removing != nil {
		c.o.Removing(true)
		defer c.o.Removing(false)
	}
	if err := o.place(l, group, end, swap); err != nil {
		return l.fail(syncErr(swap, err)) // whatever it was, files and memory no longer agree
	}
	return nil
}

// seal makes the file's bytes durable, and its indexes beside it.
func (o *output) seal(c *Cleaning) error {
	l := c.l
	if err := o.spill(c); err != nil {
		return err
	}
	if err := o.f.Sync(); err != nil {
		return l.fail(syncErr(o.f.Name(), err))
	}
	o.x.addTime()
	for _, ext := range []string{indexExt, timeExt} {
		if err := writeSynced(l.files.fs, o.tmp(l, ext), o.index(ext)); err != nil {
			return l.fail(err)
		}
	}
	return nil
}

func (o *output) index(ext string) (b []byte) {
	if ext == indexExt {
		for _, e := range o.x.idx {
			b = e.append(b)
		}
		return b
	}
	for _, e := range o.x.tim {
		b = e.append(b)
	}
	return b
}

func writeSynced(fsys vfs.FS, name string, b []byte) error {
	f, err := fsys.Create(name)
	if err != nil {
		return ioErr("create", name, err)
	}
	if _, err = f.WriteAt(b, 0); err != nil {
		err = ioErr("write", name, err)
	} else if err = f.Sync(); err != nil {
		err = syncErr(name, err)
	}
	_ = f.Close() // synced, or an error already
	return err
}

// place ends the swap on disk and in memory. Readers of the old segments are held up by nothing: those that have their files go on with
// them, the others look again.
func (o *output) place(l *Log, group []*segment, end int64, swap string) error {
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	names, err := l.files.fs.List(l.dir)
	if err != nil {
		return ioErr("list", l.dir, err)
	}
	if err := l.removeSwapped(names, o.base, end); err != nil {
		return err
	}
	fsys := l.files.fs
	for _, r := range [][2]string{{swap, logExt}, {o.tmp(l, indexExt), indexExt}, {o.tmp(l, timeExt), timeExt}} {
		if err := fsys.Rename(r[0], l.file(fileName(o.base, r[1]))); err != nil {
			return ioErr("rename", r[0], err)
		}
	}
	if err := syncDir(fsys, l.dir); err != nil {
		return err
	}
	s := l.newSegment(o.base, o.size)
	s.end, s.loaded, s.hasIndex = end, true, true
	s.ilen, s.tlen = int64(len(o.x.idx)*indexEntrySize), int64(len(o.x.tim)*timeEntrySize)
	s.isync, s.tsync, s.syncedAt = s.ilen, s.tlen, s.size
	o.x.idx, o.x.tim = nil, nil
	s.x = o.x
	at := l.indexOf(group) // where it was: flushMu is held
	l.mu.Lock()
	l.segs = slices.Concat(l.segs[:at], []*segment{s}, l.segs[at+len(group):])
	l.bytes += s.size
	for _, old := range group {
		l.bytes -= old.size
		old.gone = true
	}
	l.clean = false
	l.mu.Unlock()
	l.cursors.clear()
	for _, old := range group {
		old.forget()
	}
	return nil
}

// indexOf returns where a group of segments is in the log, -1 if it is not there as it was.
func (l *Log) indexOf(group []*segment) int {
	segs := l.segments()
	at := slices.Index(segs, group[0])
	if at < 0 || at+len(group) > len(segs) || !slices.Equal(segs[at:at+len(group)], group) {
		return -1
	}
	return at
}

// pointBeyond sees to it that no start begins its recovery within segments below end: the recovery point that a power cut leaves must
// not be one that speaks of bytes of theirs.
func (l *Log) pointBeyond(end int64) error {
	l.mu.RLock()
	base := l.pointBase
	l.mu.RUnlock()
	if base < end {
		return ErrReplaced // emptied and filled anew
	}
	if l.pointSynced >= end {
		return nil
	}
	if err := l.point.sync(); err != nil {
		return l.fail(err)
	}
	l.pointSynced = base
	return nil
}

// hold keeps the files of segments open, so that who reads them goes on reading what was there, until release.
func (l *Log) hold(group []*segment) (release func(), err error) {
	var held []*slot
	release = func() {
		for _, s := range held {
			s.release()
		}
	}
	for _, s := range group {
		for _, x := range l.slotsOf(s) {
			if _, err := x.acquire(false); err != nil {
				release()
				return nil, err
			}
			held = append(held, x)
		}
	}
	return release, nil
}

func (l *Log) slotsOf(s *segment) []*slot {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if s.loaded && s.hasIndex {
		return []*slot{&s.log, s.index, s.times}
	}
	return []*slot{&s.log}
}

func (l *Log) config() Config {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.cfg
}

func (l *Log) interval() int32 { return l.config().IndexIntervalBytes }

// batchReader reads a segment's batches one after the other, each checked whole.
type batchReader struct {
	s                *segment
	name             string
	pos, size        int64 // of what is read next; bytes of the segment
	next, end, holes int64
	known            epochs
	buf, have        []byte
	read             int64 // bytes, ever
}

func (r *batchReader) open(l *Log, s *segment) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	r.s, r.name = s, filepath.Base(s.log.path())
	r.pos, r.size, r.next, r.end, r.holes, r.known = 0, s.size, s.base, s.end, l.cleaned.Holes, l.epochs
	r.have = nil
}

// batch returns the next batch, which is valid until the call after; nil at the end.
func (r *batchReader) batch() (h record.Header, b []byte, err error) {
	if r.pos >= r.size {
		return h, nil, nil
	}
	want := record.BatchOverhead
	for {
		if err := r.fill(want); err != nil {
			return h, nil, err
		}
		if h, err = record.CheckHeader(r.have); err != nil {
			return h, nil, r.bad("bad batch header", err)
		}
		if err := checkPlace(&r.s.log, h, r.pos, r.size, r.next, r.holes); err != nil {
			return h, nil, err
		}
		if h.LastOffset() >= r.end {
			return h, nil, r.bad(fmt.Sprintf("batch ends at offset %d, the segment at %d", h.LastOffset(), r.end-1), nil)
		}
		if want = h.Size(); want <= len(r.have) {
			break
		}
	}
	b = r.have[:want]
	if _, err = record.Check(b); err == nil {
		err = r.known.check(h)
	}
	if err != nil {
		return h, nil, r.bad("batch", err)
	}
	r.have = r.have[want:]
	r.pos += int64(want)
	r.next = h.LastOffset() + 1
	return h, b, nil
}

func (r *batchReader) bad(reason string, err error) error {
	return &DamageError{File: r.s.log.path(), Offset: r.pos, Reason: reason, Err: err}
}

// fill makes have hold n bytes at least, if the segment has as many.
func (r *batchReader) fill(n int) error {
	if len(r.have) >= n {
		return nil
	}
	size := int(min(max(int64(n), scanChunk), r.size-r.pos))
	if size < n {
		return r.bad(fmt.Sprintf("segment ends in a batch, after %d bytes", size), nil)
	}
	if len(r.buf) < size {
		grown := make([]byte, size)
		copy(grown, r.have)
		r.buf = grown
	} else {
		copy(r.buf, r.have)
	}
	kept := len(r.have)
	if err := r.s.log.readAt(r.buf[kept:size], r.pos+int64(kept)); err != nil {
		return shortRead(&r.s.log, r.pos, err)
	}
	r.read += int64(size - kept)
	r.have = r.buf[:size]
	return nil
}
