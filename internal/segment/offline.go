package segment

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// FileReport is what a segment's file was found to hold.
type FileReport struct {
	File     string
	Base     int64
	Bytes    int64
	From, To int64 // offsets of the sound batches: [From, To)
	Batches  int64
	Lost     []Lost
	// Torn, if not negative, is the byte from which on the last file holds no whole batches and was not known to be on disk: what a
	// power cut leaves, and what the next start cuts off.
	Torn int64
	// Index says what is wrong with the segment's indexes, nil if nothing; they are built anew when they are needed.
	Index error
}

// VerifyDir reads a log's directory, whoever uses it, and changes nothing. Everything below the offset flushed is known to have been
// on disk, beside what the recovery point says; -1 if only that is to count. Offsets that compaction may have removed, by the cleaner's
// checkpoint, are no damage.
func VerifyDir(fsys vfs.FS, dir string, flushed int64) ([]FileReport, error) {
	names, err := fsys.List(dir)
	if err != nil {
		return nil, ioErr("list", dir, err)
	}
	var epoch epochs
	if b, err := readFile(fsys, filepath.Join(dir, epochFile), 16<<20); err == nil && b != nil {
		epoch, _ = decodeEpochs(b)
	}
	if b, err := readFile(fsys, filepath.Join(dir, pointFile), pointBytes); err == nil {
		if p, ok := decodePoint(b); ok {
			flushed = max(flushed, p.offset)
		}
	}
	clean, _, err := loadCleanPoint(fsys, dir)
	if err != nil {
		return nil, err
	}
	var bases []int64
	for _, name := range names {
		if base, ext, ok := parseName(name); ok && ext == logExt {
			bases = append(bases, base)
		}
	}
	var out []FileReport
	for i, base := range bases {
		end := int64(-1)
		if i+1 < len(bases) {
			end = bases[i+1]
		}
		r, err := verifyFile(fsys, dir, base, end, flushed, clean.Holes, epoch)
		if err != nil {
			return out, err
		}
		out = append(out, r)
	}
	return out, nil
}

func verifyFile(fsys vfs.FS, dir string, base, end, flushed, holes int64, known epochs) (r FileReport, err error) {
	r = FileReport{File: filepath.Join(dir, fileName(base, logExt)), Base: base, From: base, To: base, Torn: -1}
	idx := &offlineIndex{fs: fsys, dir: dir, base: base}
	next := base
	err = ScanFile(fsys, r.File, end, holes, known.check, func(h record.Header, b []byte, pos int64, bad *DamageError) error {
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
		idx.batch(h, pos)
		return nil
	})
	if err != nil {
		return r, err
	}
	open := len(r.Lost) > 0 && r.Lost[len(r.Lost)-1].To < 0
	switch last := end < 0; {
	case open && last && next >= flushed:
		r.Torn = r.Lost[len(r.Lost)-1].Offset
		r.Lost = r.Lost[:len(r.Lost)-1]
	case open && last:
		r.Lost[len(r.Lost)-1].To = max(flushed, next+1)
	case open:
		r.Lost[len(r.Lost)-1].To = end
	case last && next < flushed && flushed > holes:
		r.Lost = append(r.Lost, Lost{From: next, To: flushed, File: r.File, Offset: r.Bytes, Reason: "the file ends here, and more had been flushed"})
	case !last && next < end && end > holes:
		r.Lost = append(r.Lost, Lost{From: next, To: end, File: r.File, Offset: r.Bytes, Reason: "batches are missing at the segment's end"})
	}
	if len(r.Lost) == 0 {
		r.Index = idx.finish(end >= 0)
	}
	return r, nil
}

func reason(d *DamageError) string {
	if d.Err != nil {
		return d.Reason + ": " + d.Err.Error()
	}
	return d.Reason
}

// ScanFile reads one segment file, batch by batch. fn is given each sound batch, and each place where there is none (bad is set, and
// the next batch it gets is the first sound one behind it). end is the offset that the next segment begins at, -1 if unknown; below holes
// offsets may be missing between batches; check may be nil. Batches are valid until fn returns; an error of fn ends the scan.
func ScanFile(fsys vfs.FS, name string, end, holes int64, check func(record.Header) error, fn func(h record.Header, b []byte, pos int64, bad *DamageError) error) (err error) {
	base, ext, ok := parseName(filepath.Base(name))
	if !ok || ext != logExt {
		return fmt.Errorf("%s is not named like a segment's .log file", name)
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
	f := &batchFile{name: name, r: &window{r: file, keep: true}, base: base, size: size, end: end, holes: math.MaxInt64, check: check}
	var buf []byte
	next := int64(-1)
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
	begun bool
	x     indexCheck
	err   error
}

func (o *offlineIndex) batch(h record.Header, pos int64) {
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

func (o *offlineIndex) finish(sealed bool) error {
	if o.err != nil {
		return o.err
	}
	if !sealed { // of the segment that was written last the index may be ahead of what a power cut left, or behind
		return nil
	}
	if err := o.x.finish(); err != nil {
		return err
	}
	if o.x.on && (len(o.x.ib)%indexEntrySize != 0 || len(o.x.tb)%timeEntrySize != 0) {
		return errors.New("index is not whole entries")
	}
	return nil
}
