package segment

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"path/filepath"
	"slices"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// FileReport is what a segment's file was found to hold.
type FileReport struct {
	SegmentFile
	Bytes    int64 // of the sound batches, up to the end or to Torn
	From, To int64 // offsets of the sound batches: [From, To)
	Batches  int64
	Lost     []Lost
	// Torn, if not negative, is the byte from which on the file holds no whole batches and was not known to be on disk: what a
	// power cut leaves, and what the next start cuts off. The write-ahead log has it.
	Torn int64
	// Dropped says why the next start removes the file after all: it lies behind a torn one, or below the log start.
	Dropped string
	// Index says what is wrong with the segment's indexes, nil if nothing; they are built anew when they are needed.
	Index error
}

// DirReport is what a log's directory was found to hold, as the next start will take it.
type DirReport struct {
	Files   []FileReport
	Removed []Leftover
	// Missing is damage to the log that is none of a file that is there.
	Missing []DamageError
	// Notes tell of what is not as it should be and does no harm.
	Notes []string
	// Start and End are the offsets that the log has after the next start.
	Start, End int64
}

// Sound says that nothing is lost.
func (r *DirReport) Sound() bool {
	return len(r.Missing) == 0 && !slices.ContainsFunc(r.Files, func(f FileReport) bool { return len(f.Lost) > 0 })
}

// dirCheck is the state of one VerifyDir.
type dirCheck struct {
	fs       vfs.FS
	dir      string
	flushed  int64 // everything below it was on disk
	holes    int64
	epochs   epochs // known from the file, or read so far
	believed bool   // the file can be believed
	blind    bool   // the recovery point can't be read
	out      *DirReport
}

// VerifyDir reads a log's directory, whoever uses it, and changes nothing. Everything below the offset flushed is known to have been
// on disk, beside what the recovery point says; -1 if only that is to count. start is where the log starts, -1 if that is not known.
// Offsets that compaction may have removed, by the cleaner's checkpoint, are no damage, nor is what a crash leaves of a compaction,
// of a deletion, or of batches that were not known to be on disk.
func VerifyDir(fsys vfs.FS, dir string, start, flushed int64) (*DirReport, error) {
	y, err := ReadLayout(fsys, dir, start)
	if err != nil {
		return nil, err
	}
	c := &dirCheck{fs: fsys, dir: dir, flushed: flushed, out: &DirReport{Removed: y.Removed, Start: max(start, 0), End: max(start, 0)}}
	if err := c.checkpoints(); err != nil {
		return nil, err
	}
	cut := ""
	next := int64(-1)
	for _, s := range y.Segments {
		r := FileReport{SegmentFile: s, From: s.Base, To: s.Base, Torn: -1, Dropped: cut}
		if cut == "" {
			if err := c.file(&r); err != nil {
				return c.out, err
			}
			if next = r.To; r.End >= 0 && r.Torn < 0 {
				next = r.End
			}
			if r.Torn >= 0 {
				cut = fmt.Sprintf("it comes after byte %d of %s, where the log ends", r.Torn, filepath.Base(r.File))
			}
		}
		c.out.Files = append(c.out.Files, r)
	}
	c.ends(start, next)
	return c.out, nil
}

// checkpoints reads the small files.
func (c *dirCheck) checkpoints() error {
	small := func(name string, limit int64) ([]byte, bool, error) {
		b, err := readFile(c.fs, filepath.Join(c.dir, name), limit)
		if d := damageOf(err); d != nil {
			return nil, true, nil
		}
		return b, b != nil, err
	}
	b, _, err := small(pointFile, pointBytes)
	if err != nil {
		return err
	}
	p, havePoint := decodePoint(b)
	if havePoint {
		c.flushed = max(c.flushed, p.offset)
	} else if len(bytes.Trim(b, "\x00")) > 0 { // created and never written before a power cut is as good as none
		c.blind = true
		c.note("%s can't be read: the next start reads the log from its first byte", pointFile)
	}
	b, there, err := small(epochFile, 16<<20)
	if err != nil {
		return err
	}
	if there {
		e, err := decodeEpochs(b)
		switch {
		case err != nil:
			c.note("%s can't be read: it is built anew from the batches", epochFile)
		case !havePoint || p.esum < 0 || p.esum == int64(crc32.Checksum(b, castagnoli)):
			c.epochs, c.believed = e, true
		}
	}
	clean, ok, err := loadCleanPoint(c.fs, c.dir)
	if err != nil {
		return err
	}
	if c.holes = clean.Holes; !ok {
		c.missing(cleanFile, 0, "it can't be read: batches may be missing anywhere in this log, and nobody is brought up to date from it")
	}
	return nil
}

func (c *dirCheck) note(format string, args ...any) {
	c.out.Notes = append(c.out.Notes, fmt.Sprintf(format, args...))
}

func (c *dirCheck) missing(file string, at int64, format string, args ...any) {
	c.out.Missing = append(c.out.Missing, DamageError{File: filepath.Join(c.dir, file), Offset: at, Reason: fmt.Sprintf(format, args...)})
}

// ends judges the log's two ends. next is the offset after the last file that stays, -1 if there is none.
func (c *dirCheck) ends(start, next int64) {
	out := c.out
	if i := slices.IndexFunc(out.Files, func(f FileReport) bool { return f.Torn >= 0 }); c.blind && i >= 0 {
		c.missing(pointFile, 0, "it can't be read, so that what is cut off from byte %d of %s on may have been on disk", out.Files[i].Torn, filepath.Base(out.Files[i].File))
	}
	switch first := int64(-1); {
	case next < 0:
		if c.flushed > out.Start {
			c.missing("", 0, "no segments, and offsets below %d were on disk", c.flushed)
		}
		return
	case next < start:
		// Nothing of it may be read, and the next start makes an empty log.
		for i := range out.Files {
			f := &out.Files[i]
			f.Dropped, f.Lost, f.Torn = fmt.Sprintf("it lies below offset %d, where the log starts", start), nil, -1
		}
		if c.flushed > start {
			c.missing("", 0, "the segments end at offset %d, below the log start %d, and offsets below %d were on disk", next, start, c.flushed)
		}
		return
	case start < 0:
		out.Start = out.Files[0].Base
	default:
		if first = out.Files[0].Base; first > start && start < c.flushed {
			c.missing(filepath.Base(out.Files[0].File), 0, "it begins at offset %d, the log starts at %d", first, start)
		} else if first > start {
			for i := range out.Files {
				out.Files[i].Dropped, out.Files[i].Torn = fmt.Sprintf("a file before it did not survive a power cut, and nothing of the log was known to be on disk at offset %d, where it starts", start), -1
			}
			return
		}
	}
	out.End = next
	for i := range out.Files { // what lies below the start nobody reads
		f := &out.Files[i]
		f.Lost = slices.DeleteFunc(f.Lost, func(x Lost) bool {
			dead := x.To <= out.Start
			if dead {
				c.note("%s is damaged at byte %d, offsets %d to %d, which lie below the log start %d", f.File, x.Offset, x.From, x.To-1, out.Start)
			}
			return dead
		})
	}
}

// errTorn ends the scan of a file.
var errTorn = errors.New("torn")

// file reads one segment.
func (c *dirCheck) file(r *FileReport) error {
	idx := &offlineIndex{fs: c.fs, dir: c.dir, base: r.Base, none: r.Swap}
	next := r.Base
	err := ScanFile(c.fs, r.File, r.End, c.holes, c.epoch, func(h record.Header, b []byte, pos int64, bad *DamageError) error {
		if bad != nil && next >= c.flushed {
			r.Torn = pos
			return errTorn
		}
		if bad != nil {
			r.Lost = append(r.Lost, Lost{From: next, To: -1, File: r.File, Offset: bad.Offset, Reason: reason(bad)})
			return nil
		}
		if n := len(r.Lost); n > 0 && r.Lost[n-1].To < 0 {
			r.Lost[n-1].To = h.BaseOffset
		}
		if r.Batches == 0 {
			r.From = h.BaseOffset
		}
		r.Batches++
		r.Bytes = pos + int64(h.Size())
		next = h.LastOffset() + 1
		r.To = next
		if next > c.out.Start { // as recovery does
			c.epochs, _ = c.epochs.note(h.LeaderEpoch, h.BaseOffset)
		}
		idx.batch(h, pos)
		return nil
	})
	if err != nil && !errors.Is(err, errTorn) {
		return err
	}
	last := r.End < 0
	switch open := len(r.Lost) > 0 && r.Lost[len(r.Lost)-1].To < 0; {
	case open && last:
		r.Lost[len(r.Lost)-1].To = max(c.flushed, next+1)
		r.To = r.Lost[len(r.Lost)-1].To
	case open:
		r.Lost[len(r.Lost)-1].To = r.End
	case r.Torn >= 0:
	case last && next < c.flushed:
		r.Lost = append(r.Lost, Lost{From: next, To: c.flushed, File: r.File, Offset: r.Bytes, Reason: "the file ends here, and more had been flushed"})
		r.To = c.flushed
	case last, next >= r.End, r.End <= c.holes:
	case next < c.flushed:
		r.Lost = append(r.Lost, Lost{From: next, To: r.End, File: r.File, Offset: r.Bytes, Reason: "batches are missing at the segment's end"})
	default:
		r.Torn = r.Bytes
	}
	if len(r.Lost) == 0 && r.Torn < 0 && !last && r.End <= c.flushed { // of what was not flushed a start believes no index
		r.Index = idx.finish()
	}
	return nil
}

// epoch checks a batch's leader epoch: below what was flushed it is what the file says, above it does not go back.
func (c *dirCheck) epoch(h record.Header) error {
	if c.believed && h.BaseOffset < c.flushed {
		return c.epochs.check(h)
	}
	if n := len(c.epochs); n > 0 && h.LeaderEpoch >= 0 && h.LeaderEpoch < c.epochs[n-1].epoch && h.BaseOffset >= c.epochs[n-1].start {
		return fmt.Errorf("leader epoch %d after %d", h.LeaderEpoch, c.epochs[n-1].epoch)
	}
	return nil
}

func reason(d *DamageError) string {
	if d.Err != nil {
		return d.Reason + ": " + d.Err.Error()
	}
	return d.Reason
}

// batchesFrom returns the base offset of a file that holds batches, by its name.
func batchesFrom(name string) (base int64, ok bool) {
	if base, _, ok := parseSwap(name); ok {
		return base, true
	}
	base, ext, ok := parseName(name)
	return base, ok && (ext == logExt || ext == logExt+cleanedExt || ext == logExt+tmpExt)
}

// ScanFile reads one segment file, batch by batch. fn is given each sound batch, and each place where there is none (bad is set, and
// the next batch it gets is the first sound one behind it). end is the offset that the next segment begins at, -1 if unknown; below holes
// offsets may be missing between batches; check may be nil. Batches are valid until fn returns; an error of fn ends the scan.
func ScanFile(fsys vfs.FS, name string, end, holes int64, check func(record.Header) error, fn func(h record.Header, b []byte, pos int64, bad *DamageError) error) (err error) {
	base, ok := batchesFrom(filepath.Base(name))
	if !ok {
		return fmt.Errorf("%s is not named like a segment's .log file, or a compacted one's .swap or .log.cleaned", name)
	}
	file, err := fsys.Open(name)
	if err != nil {
		return ioErr("open", name, err)
	}
	defer func() { _ = file.Close() }() // read only
	size, err := file.Size()
	if err != nil {
		return ioErr("stat", name, err)
	}
	w := &window{r: file, keep: true}
	defer w.done()
	f := &batchFile{name: name, r: w, ahead: true, base: base, size: size, end: end, holes: math.MaxInt64, check: check}
	var buf []byte
	next := base
	for pos := int64(0); pos < size; {
		h, b, grown, err := f.batch(pos, next, buf)
		buf = grown
		if d := damageOf(err); d != nil {
			if err := fn(record.Header{}, nil, pos, d); err != nil {
				return err
			}
			_, at, _, ok, err := f.resync(pos, max(next, base), nil)
			if err != nil || !ok {
				return err
			}
			pos, next = at, -1
			continue
		}
		if err != nil {
			return err
		}
		if next >= 0 && !mayFollow(h.BaseOffset, next, holes) {
			if err := fn(record.Header{}, nil, pos, &DamageError{File: name, Offset: pos, Reason: fmt.Sprintf("batch begins at offset %d, expected %d", h.BaseOffset, next)}); err != nil {
				return err
			}
		}
		if err := fn(h, b, pos, nil); err != nil {
			return err
		}
		next = h.LastOffset() + 1
		pos += int64(h.Size())
	}
	return nil
}

// offlineIndex compares a segment's index files with its batches.
type offlineIndex struct {
	fs    vfs.FS
	dir   string
	base  int64
	none  bool // there are none that count
	begun bool
	x     indexCheck
	err   error
}

func (o *offlineIndex) batch(h record.Header, pos int64) {
	if o.none {
		return
	}
	if !o.begun {
		o.begun = true
		o.x.begun, o.x.on, o.x.sealed = true, true, true
		o.x.ib, o.err = readFile(o.fs, filepath.Join(o.dir, fileName(o.base, indexExt)), 64<<20)
		if o.err == nil {
			o.x.tb, o.err = readFile(o.fs, filepath.Join(o.dir, fileName(o.base, timeExt)), 64<<20)
		}
		if o.x.ib == nil || o.x.tb == nil {
			o.x.on = false // none yet
		}
	}
	if o.err == nil {
		o.err = o.x.batch(h, pos, o.base)
	}
}

// finish says what is wrong with the indexes of a sealed segment; of the one that was written last they may be ahead of what a power
// cut left, or behind.
func (o *offlineIndex) finish() error {
	if o.err != nil {
		return o.err
	}
	if err := o.x.finish(); err != nil {
		return err
	}
	if o.x.on && (len(o.x.ib)%indexEntrySize != 0 || len(o.x.tb)%timeEntrySize != 0) {
		return errors.New("index is not whole entries")
	}
	return nil
}
