package segment

import (
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/record"
)

// Open opens the log in dir, which it makes if it is missing, and recovers: what lies above the recovery point is checked
// batch by batch, CRC included, and cut at the first that is not sound; what lies below it is trusted, and checked when it
// is read. Indexes are completed or built anew.
//
// logStart is the logical start, known from the checkpoint, or -1: then it is the first file's base. Whether the end that
// was found reaches the checkpoint's is the caller's question; Damage says whether recovery itself missed anything.
//
// Errors are the file system's (*IOError). Damaged files are none.
func Open(files *Files, clk clock.Clock, dir string, cfg Config, logStart int64, logger *slog.Logger) (*Log, error) {
	return OpenDurable(files, clk, dir, cfg, logStart, 0, logger)
}

// OpenDurable is Open for a log of which everything below the offset durable is known to have been flushed, and can be had from
// nowhere on this node: what is not sound there is no torn tail. Nothing of it is cut or deleted. Lost says what is damaged or
// missing, reads of that fail with a *DamageError, and the log goes on behind it, at durable at the least.
func OpenDurable(files *Files, clk clock.Clock, dir string, cfg Config, logStart, durable int64, logger *slog.Logger) (*Log, error) {
	if logger == nil {
		logger = slog.Default()
	}
	l := &Log{files: files, clk: clk, dir: filepath.Clean(dir), cfg: cfg.withDefaults(), logger: logger}
	l.point = files.slot(&l.dir, -1, pointFile)
	l.pointBase, l.pointSynced = -1, -1
	names, err := l.list()
	if err != nil {
		return nil, err
	}
	if names, err = l.finishSwaps(names); err != nil {
		return nil, err
	}
	if l.cleaned, err = l.readCleanPoint(); err != nil {
		return nil, err
	}
	r := recovery{l: l, logStart: logStart, durable: durable}
	if err := r.scan(names); err != nil {
		return nil, err
	}
	if err := r.reachDurable(); err != nil {
		return nil, err
	}
	l.boundCleanPoint()
	return l, nil
}

func (l *Log) list() ([]string, error) {
	names, err := l.files.fs.List(l.dir)
	if errors.Is(err, errNotExist) {
		if err := l.files.fs.MkdirAll(l.dir); err != nil {
			return nil, ioErr("mkdir", l.dir, err)
		}
		return nil, nil
	}
	return names, ioErr("list", l.dir, err)
}

// recovery is the state of one Open.
type recovery struct {
	l        *Log
	logStart int64
	durable  int64 // below it nothing is cut
	point    recoveryPoint
	havePt   bool
	ptBad    bool // the file is there and makes no sense
	epochsOK bool
	seal     bool // the last segment ends in bytes that are no batches and stay
	buf      []byte
}

// BaseOffset returns the base offset of the segment that a file belongs to, by its name.
func BaseOffset(file string) (int64, bool) {
	base, _, ok := parseName(filepath.Base(file))
	return base, ok
}

// parseName takes a segment's file name apart.
func parseName(name string) (base int64, ext string, ok bool) {
	i := strings.IndexByte(name, '.')
	if i != 20 {
		return 0, "", false
	}
	base, err := strconv.ParseInt(name[:i], 10, 64)
	if err != nil || base < 0 {
		return 0, "", false
	}
	return base, name[i:], true
}

func (r *recovery) scan(names []string) error {
	if err := r.collect(names); err != nil {
		return err
	}
	if err := r.dropDead(); err != nil {
		return err
	}
	if err := r.readPoint(names); err != nil {
		return err
	}
	if err := r.readEpochs(names); err != nil {
		return err
	}
	l := r.l
	l.start = max(r.logStart, 0)
	if len(l.segs) == 0 {
		l.end, l.flushed = l.start, l.start
		l.clean = true
		if r.havePt && r.point.offset > l.start {
			r.lost(l.file(pointFile), 0, fmt.Sprintf("no segments, but offsets below %d were flushed", r.point.offset))
		}
		return nil
	}
	if err := r.segments(); err != nil {
		return err
	}
	if r.logStart < 0 {
		l.start = l.segs[0].base
	}
	if l.start > l.end {
		return r.startAbove()
	}
	l.start = max(min(l.start, l.end), l.segs[0].base)
	if e := l.epochs.below(l.end); len(e) != len(l.epochs) {
		l.epochs, l.epochsDirty = e, true
	}
	for _, s := range l.segs {
		l.bytes += s.size
	}
	return nil
}

// dropDead deletes the segments that lie wholly below the start. Tidy had done so before the power failed, but each deletion
// survives a power cut or not by itself, so that what has come back may have holes: it must not be taken for a log that ends
// at the first one.
func (r *recovery) dropDead() error {
	l := r.l
	for len(l.segs) > 1 && l.segs[1].base <= r.logStart {
		s := l.segs[0]
		l.segs = l.segs[1:]
		l.newNames = true
		if err := l.deleteSegment(s); err != nil {
			return err
		}
	}
	return nil
}

// startAbove makes an empty log at the start: what was found ends below it. Nothing that is found there may be read, and the
// file that the next batch was to go to was a name not yet synced. It is damage only if more had been flushed.
func (r *recovery) startAbove() error {
	l := r.l
	last := l.segs[len(l.segs)-1]
	if r.havePt && r.point.offset > l.start {
		r.lost(last.log.path(), last.size, fmt.Sprintf("log ends at offset %d, its start is %d, and offsets below %d were flushed", l.end, l.start, r.point.offset))
	}
	for i := len(l.segs) - 1; i >= 0; i-- {
		if err := l.deleteSegment(l.segs[i]); err != nil {
			return err
		}
	}
	l.segs, l.newNames, l.clean = nil, true, false
	l.end, l.flushed = l.start, l.start
	return nil
}

// lost notes damage: something that was flushed is gone.
func (r *recovery) lost(file string, off int64, reason string) {
	if r.l.damage == nil {
		r.l.damage = &DamageError{File: file, Offset: off, Reason: reason}
		r.l.logger.Error("segment log is damaged", "dir", r.l.dir, "file", file, "byte", off, "reason", reason)
	}
}

// collect finds the segments and removes what belongs to none: indexes without a log, files half replaced.
func (r *recovery) collect(names []string) error {
	l := r.l
	type indexes struct{ index, times bool }
	found := map[int64]*indexes{}
	for _, name := range names { // sorted, so that segments come in order
		if base, ext, ok := parseName(name); ok && ext == logExt {
			info, err := l.files.fs.Stat(l.file(name))
			if err != nil {
				return ioErr("stat", l.file(name), err)
			}
			l.segs = append(l.segs, l.newSegment(base, info.Size))
			found[base] = &indexes{}
		}
	}
	for _, name := range names {
		base, ext, ok := parseName(name)
		in := found[base]
		switch {
		case strings.HasSuffix(name, tmpExt), ok && in == nil && (ext == indexExt || ext == timeExt):
			if err := l.removeFile(name); err != nil {
				return err
			}
		case ok && ext == indexExt:
			in.index = true
		case ok && ext == timeExt:
			in.times = true
		case name == pointFile:
			l.pointOn = true
		}
	}
	for i, s := range l.segs {
		s.hasIndex = found[s.base].index && found[s.base].times
		s.end = s.base
		if i+1 < len(l.segs) {
			s.end = l.segs[i+1].base
		}
	}
	return nil
}

func (r *recovery) readPoint([]string) error {
	if !r.l.pointOn {
		return nil
	}
	b, err := readFile(r.l.files.fs, r.l.file(pointFile), pointBytes)
	var damaged *DamageError
	if err != nil && !errors.As(err, &damaged) {
		return err
	}
	r.point, r.havePt = decodePoint(b)
	// Created and never written before a power cut is not damaged.
	r.ptBad = !r.havePt && len(strings.Trim(string(b), "\x00")) > 0
	r.l.parentDone = r.havePt
	if r.havePt {
		r.l.pointBase = r.point.base
	}
	return nil
}

func (r *recovery) readEpochs([]string) error {
	b, err := readFile(r.l.files.fs, r.l.file(epochFile), 16<<20)
	var damaged *DamageError
	if err != nil && !errors.As(err, &damaged) {
		return err
	}
	if b == nil && damaged == nil {
		r.l.epochsDirty = true
		return nil
	}
	sum := int64(crc32.Checksum(b, castagnoli))
	if damaged == nil && (!r.havePt || r.point.esum < 0 || r.point.esum == sum) {
		r.l.epochSum = sum
		if e, err := decodeEpochs(b); err == nil {
			r.l.epochs, r.epochsOK = e, true
			return nil
		}
	}
	r.l.epochsDirty = true
	return nil
}

// segments recovers every segment from the recovery point's on.
func (r *recovery) segments() error {
	l := r.l
	from, pos, offset := r.begin()
	if !r.epochsOK && (from > 0 || pos > 0) {
		if err := r.rebuildEpochs(from, pos); err != nil {
			return err
		}
	}
	for i := from; i < len(l.segs); i++ {
		s := l.segs[i]
		if offset >= 0 && s.base != offset && offset < r.durable {
			if prev := l.segs[i-1]; s.base > max(offset, l.cleaned.Holes) {
				r.missing(Lost{From: offset, To: s.base, File: prev.log.path(), Offset: prev.size, Reason: "batches are missing"})
			}
			l.segs[i-1].end = s.base
		} else if offset >= 0 && s.base != offset {
			// Where compaction has left something out, here or where it was fetched from, that was flushed. Above, bytes of the file before
			// were lost with the power, also where a delta that was under way had leave to make holes.
			return r.cut(i-1, l.segs[i-1].size, fmt.Errorf("the next segment begins at %d, not at %d", s.base, offset))
		}
		bad, err := r.segment(s, pos)
		if err != nil {
			return err
		}
		if bad != nil {
			return r.cut(i, s.size, bad)
		}
		offset, pos = s.end, 0
		if i+1 < len(l.segs) {
			s.x.addTime()
			if err := l.spill(s); err != nil {
				return err
			}
		}
	}
	return r.finish()
}

// begin returns from where on nothing is trusted.
func (r *recovery) begin() (from int, pos, offset int64) {
	l, p := r.l, r.point
	if !r.havePt {
		return 0, 0, -1
	}
	for i, s := range l.segs {
		if s.base != p.base {
			continue
		}
		if s.size < p.pos {
			r.lost(s.log.path(), s.size, fmt.Sprintf("%d bytes of %d that were flushed", s.size, p.pos))
			return 0, 0, -1
		}
		l.flushed = p.offset
		return i, p.pos, -1
	}
	if last := l.segs[len(l.segs)-1]; last.base < p.base && p.offset > r.logStart { // else the file was deleted
		r.lost(l.file(fileName(p.base, logExt)), 0, "file is missing")
	}
	return 0, 0, -1
}

// segment recovers s, of which [0, trusted) is known to be on disk. bad says why it was cut; s.size and s.end are then what
// is left.
func (r *recovery) segment(s *segment, trusted int64) (bad, err error) {
	l := r.l
	fileSize := s.size
	pos, next := int64(0), s.base
	if trusted > 0 {
		if pos, next, err = r.loadIndex(s, trusted); err != nil {
			return nil, err
		}
	} else if err := r.dropIndex(s); err != nil {
		return nil, err
	}
	s.loaded = true
	// Between the last index entry and the recovery point headers are enough: what was flushed is trusted.
	if pos < trusted {
		err = walk(&s.log, pos, trusted, next, l.cleaned.Holes, func(h record.Header, at int64) (bool, error) {
			r.take(s, h, at)
			pos, next = at+int64(h.Size()), h.LastOffset()+1
			return false, nil
		})
		var damaged *DamageError
		if errors.As(err, &damaged) {
			r.lost(damaged.File, damaged.Offset, damaged.Reason)
			return r.again(s, fileSize) // it may be the batch before that lies: a header alone is no proof
		}
		if err != nil {
			return nil, err
		}
	}
	if trusted > 0 {
		next = r.point.offset
		s.x.maxTs, s.x.maxOff = r.point.maxTs, r.point.maxOff
	}
	bad, err = r.check(s, trusted, fileSize, next)
	return bad, err
}

// take adds a batch that recovery found sound to a segment's state. What loadIndex kept is not indexed twice.
func (r *recovery) take(s *segment, h record.Header, pos int64) {
	kept := s.x.since < 0
	if kept {
		s.x.since = 0 // the batch of the last index entry itself
	}
	s.x.add(h, pos, r.l.cfg.IndexIntervalBytes)
	r.note(h)
}

// note adds a batch's leader epoch to the log's, unless it lies wholly below the log start: nobody asks for those, and a damaged one, which
// nobody could mend, would make all that follows look wrong.
func (r *recovery) note(h record.Header) {
	if h.LastOffset() < r.logStart {
		return
	}
	if e, changed := r.l.epochs.note(h.LeaderEpoch, h.BaseOffset); changed {
		r.l.epochs, r.l.epochsDirty = e, true
	}
}

// scanChunk is what recovery reads at a time.
const scanChunk = 1 << 20

// check reads [pos, size) whole and takes every sound batch; the first that is not ends it.
func (r *recovery) check(s *segment, pos, size, next int64) (bad, err error) {
	for pos < size && bad == nil {
		if want := min(scanChunk, size-pos); int64(len(r.buf)) < want {
			r.buf = make([]byte, want)
		}
		have := r.buf[:min(int64(len(r.buf)), size-pos)]
		if err := s.log.readAt(have, pos); err != nil {
			return nil, err
		}
		used := 0
		for bad == nil && used < len(have) {
			h, cerr := record.Check(have[used:])
			switch {
			case errors.Is(cerr, record.ErrTruncated) && pos+int64(len(have)) < size && used > 0:
				// The rest comes with the next chunk.
			case errors.Is(cerr, record.ErrTruncated) && pos+int64(len(have)) < size && r.grow(have, size-pos):
			case cerr != nil:
				bad = cerr
			default:
				if bad = checkPlace(&s.log, h, pos+int64(used), size, next, r.l.cleaned.Holes); bad == nil {
					bad = r.checkEpoch(h)
				}
				if bad == nil {
					r.take(s, h, pos+int64(used))
					next = h.LastOffset() + 1
					used += h.Size()
					continue
				}
			}
			break
		}
		if err := r.settle(s, have[:used], pos); err != nil {
			return nil, err
		}
		pos += int64(used)
		if bad != nil && max(next, s.base) < r.durable {
			if pos, next, err = r.stepOver(s, pos, size, max(next, s.base), bad); err != nil {
				return nil, err
			}
			bad = nil
		}
	}
	s.size, s.end = pos, max(next, s.base)
	return bad, nil
}

// settle writes what was read over itself, for the next Flush to make durable. To sync it is not enough: where the process before
// this one stopped because a sync had failed, the kernel keeps the pages it could not write and calls them clean, so that a
// later sync succeeds without writing anything ("Can applications recover from fsync failures?", USENIX ATC 2020).
func (r *recovery) settle(s *segment, b []byte, pos int64) error {
	if len(b) == 0 {
		return nil
	}
	return writeSlot(&s.log, false, b, pos)
}

// checkEpoch: leader epochs never go back. They lie before what the CRC covers, so that this is all that can be said of one.
func (r *recovery) checkEpoch(h record.Header) error {
	if e := r.l.epochs; len(e) > 0 && h.LeaderEpoch >= 0 && h.LeaderEpoch < e[len(e)-1].epoch && h.BaseOffset >= e[len(e)-1].start {
		return fmt.Errorf("leader epoch %d after %d", h.LeaderEpoch, e[len(e)-1].epoch)
	}
	return nil
}

// grow makes the buffer hold the batch that have begins with, if the file has that many bytes.
func (r *recovery) grow(have []byte, left int64) bool {
	h, err := record.ParseHeader(have)
	if err != nil || int64(h.Size()) > left || h.Size() <= len(r.buf) {
		return false
	}
	r.buf = make([]byte, h.Size())
	return true
}

// dropIndex forgets the indexes of a segment that is read from its first byte.
func (r *recovery) dropIndex(s *segment) error {
	if !s.hasIndex {
		return nil
	}
	return r.truncateIndex(s, 0, 0)
}

// truncateIndex leaves the given bytes of the index files, if they are longer.
func (r *recovery) truncateIndex(s *segment, ilen, tlen int64) error {
	s.ilen, s.tlen = ilen, tlen
	for _, f := range []struct {
		s *slot
		n int64
	}{{s.index, ilen}, {s.times, tlen}} {
		if err := truncateSlot(f.s, f.n); err != nil {
			return err
		}
	}
	return nil
}

func truncateSlot(s *slot, n int64) error {
	f, err := s.acquire(false)
	if err != nil {
		return err
	}
	defer s.release()
	size, err := f.Size()
	if err != nil || size <= n {
		return ioErr("stat", s.path(), err)
	}
	s.dirty.Store(true)
	return ioErr("truncate", s.path(), f.Truncate(n))
}

// loadIndex keeps of the index files what is known to be right, and returns from which byte of the log and at which offset
// (-1: unknown) the walk that completes them begins. It leaves s.x as it was there.
func (r *recovery) loadIndex(s *segment, trusted int64) (pos, next int64, err error) {
	p := r.point
	ilen, tlen := p.ilen, p.tlen
	if !s.hasIndex {
		if ilen > 0 || tlen > 0 {
			r.l.logger.Warn("index is missing, building it anew", "file", s.log.path())
		}
		return 0, s.base, nil
	}
	isum, err := r.indexSum(s.index, p.isync, ilen)
	if err != nil {
		return 0, 0, err
	}
	tsum, err := r.indexSum(s.times, p.tsync, tlen)
	if err != nil {
		return 0, 0, err
	}
	if isum != int64(p.icrc) || tsum != int64(p.tcrc) {
		ilen, tlen = p.isync, p.tsync // what came after did not survive
		p.since = -1
	}
	if short, err := r.shorter(s, ilen, tlen); err != nil {
		return 0, 0, err
	} else if short {
		r.l.logger.Warn("index is damaged, building it anew", "file", s.log.path())
		ilen, tlen, p.since = 0, 0, -1
	}
	if err := r.truncateIndex(s, ilen, tlen); err != nil {
		return 0, 0, err
	}
	return r.resume(s, p.since, trusted)
}

// resume sets s.x from the last entries that were kept.
func (r *recovery) resume(s *segment, since, trusted int64) (pos, next int64, err error) {
	p := r.point
	s.isync, s.tsync = min(p.isync, s.ilen), min(p.tsync, s.tlen)
	if s.ilen == p.ilen && s.tlen == p.tlen && s.isync == p.isync && s.tsync == p.tsync {
		s.icrc, s.tcrc = p.icrc, p.tcrc
	}
	if s.tlen > 0 {
		var b [timeEntrySize]byte
		if err := s.times.readAt(b[:], s.tlen-timeEntrySize); err != nil {
			return 0, 0, err
		}
		e := decodeTimeEntry(b[:])
		s.x.lastTime, s.x.maxTs, s.x.maxOff = e.ts, e.ts, s.base+int64(e.rel)
	}
	if since >= 0 {
		s.x.since = since
		return trusted, p.offset, nil
	}
	if s.ilen == 0 {
		return 0, s.base, nil
	}
	var b [indexEntrySize]byte
	if err := s.index.readAt(b[:], s.ilen-indexEntrySize); err != nil {
		return 0, 0, err
	}
	e := decodeIndexEntry(b[:])
	s.syncedAt = int64(e.pos)
	if int64(e.pos) >= trusted {
		return r.startOver(s)
	}
	var hb [record.BatchOverhead]byte
	if err := s.log.readAt(hb[:], int64(e.pos)); err != nil {
		return 0, 0, err
	}
	if h, err := record.CheckHeader(hb[:]); err != nil || h.LastOffset() != s.base+int64(e.rel) {
		return r.startOver(s)
	}
	s.x.since = -1 // its entry is in the file already
	return int64(e.pos), -1, nil
}

// startOver drops indexes that contradict the log.
func (r *recovery) startOver(s *segment) (pos, next int64, err error) {
	r.l.logger.Warn("index contradicts the log, building it anew", "file", s.log.path())
	s.x = newIndexer(s.base)
	s.isync, s.tsync, s.icrc, s.tcrc, s.syncedAt = 0, 0, 0, 0, 0
	return 0, s.base, r.truncateIndex(s, 0, 0)
}

func (r *recovery) shorter(s *segment, ilen, tlen int64) (bool, error) {
	i, err := slotSize(s.index)
	if err != nil {
		return false, err
	}
	t, err := slotSize(s.times)
	return i < ilen || t < tlen, err
}

func slotSize(s *slot) (int64, error) {
	f, err := s.acquire(false)
	if err != nil {
		return 0, err
	}
	defer s.release()
	n, err := f.Size()
	return n, ioErr("stat", s.path(), err)
}

// indexSum returns the CRC-32C of a file's bytes [from, to), or -1 if there are fewer.
func (r *recovery) indexSum(s *slot, from, to int64) (int64, error) {
	n, err := slotSize(s)
	if err != nil || n < to {
		return -1, err
	}
	if from == to {
		return 0, nil
	}
	b := make([]byte, to-from)
	if err := s.readAt(b, from); err != nil {
		return -1, err
	}
	return int64(crc32.Checksum(b, castagnoli)), nil
}
