package segment

import (
	"errors"
	"fmt"
	"io"

	"github.com/chronik-go/chronik/internal/record"
)

// Lost is a range of offsets [From, To) whose batches are not what was written, or gone.
type Lost struct {
	From, To int64
	File     string // the segment's .log file
	Offset   int64  // bytes from the file's first to where the damage begins
	Reason   string
}

// Error makes a DamageError of it.
func (x Lost) Error() *DamageError {
	return &DamageError{File: x.File, Offset: x.Offset, Reason: fmt.Sprintf("offsets %d to %d: %s", x.From, x.To-1, x.Reason)}
}

// batchFile is the bytes of a segment that are read batch by batch, by recovery, the scrubber and the offline check.
type batchFile struct {
	name  string
	r     io.ReaderAt
	base  int64 // of the segment
	size  int64 // bytes that belong to it
	end   int64 // no batch may hold this offset or one after it; -1: unknown
	holes int64 // below it batches may be missing between others
	// ahead: r reads ahead, so that a small read costs little and a large one is a copy for nothing.
	ahead bool
	// latest: no batch behind damage begins after this offset; 0: it may begin anywhere. A batch's offset lies before what its CRC covers.
	latest int64
	// check says what else is wrong with a batch that is sound in itself; may be nil.
	check func(record.Header) error
}

// batch reads and checks the batch at pos, CRC included, which must begin at offset next (-1: anywhere from base on). buf is
// used if it is large enough, and returned grown; the batch is valid until the next call with it.
func (f *batchFile) batch(pos, next int64, buf []byte) (h record.Header, b, grown []byte, err error) {
	if f.size-pos < record.BatchOverhead {
		return h, nil, buf, f.bad(pos, fmt.Sprintf("%d bytes are no batch", f.size-pos), nil)
	}
	if len(buf) < record.BatchOverhead {
		buf = make([]byte, walkChunk)
	}
	want := min(int64(len(buf)), f.size-pos)
	if f.ahead {
		want = record.BatchOverhead
	}
	if err := f.read(buf[:want], pos); err != nil {
		return h, nil, buf, err
	}
	if h, err = record.CheckHeader(buf[:want]); err != nil {
		return h, nil, buf, f.bad(pos, "bad batch header", err)
	}
	if err := f.place(h, pos, next); err != nil {
		return h, nil, buf, err
	}
	if n := h.Size(); n > int(want) {
		if n > len(buf) {
			buf = append(make([]byte, 0, n), buf[:want]...)[:n]
		}
		if err := f.read(buf[want:n], pos+want); err != nil {
			return h, nil, buf, err
		}
	}
	b = buf[:h.Size()]
	if _, err := record.Check(b); err != nil {
		return h, nil, buf, f.bad(pos, "batch", err)
	}
	if f.check != nil {
		if err := f.check(h); err != nil {
			return h, nil, buf, f.bad(pos, "batch", err)
		}
	}
	return h, b, buf, nil
}

// place checks that a batch fits between its neighbours.
func (f *batchFile) place(h record.Header, pos, next int64) error {
	switch {
	case int64(h.Size()) > f.size-pos:
		return f.bad(pos, fmt.Sprintf("batch of %d bytes, %d left", h.Size(), f.size-pos), nil)
	case h.BaseOffset < f.base || next >= 0 && !mayFollow(h.BaseOffset, next, f.holes):
		return f.bad(pos, fmt.Sprintf("batch begins at offset %d, expected %d", h.BaseOffset, max(next, f.base)), nil)
	case f.end >= 0 && h.LastOffset() >= f.end:
		return f.bad(pos, fmt.Sprintf("batch ends at offset %d, the segment at %d", h.LastOffset(), f.end-1), nil)
	}
	return nil
}

func (f *batchFile) bad(pos int64, reason string, err error) error {
	return &DamageError{File: f.name, Offset: pos, Reason: reason, Err: err}
}

// read fills b. A file that is shorter than it was is damage, any other failure the file system's.
func (f *batchFile) read(b []byte, pos int64) error {
	n, err := f.r.ReadAt(b, pos)
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return f.bad(pos+int64(n), "file is shorter than it was", err)
	}
	return ioErr("read", f.name, err)
}

// resync finds the first sound batch behind damage at pos: one whose offset is not below next and whose CRC matches. A flipped
// bit in the records of a batch leaves its length readable, one in its header does not: then every byte is tried.
// ok is false if there is none in the file. n is how many bytes were looked through.
func (f *batchFile) resync(pos, next int64, buf []byte) (h record.Header, at, n int64, ok bool, err error) {
	sound := func(p int64) (bool, error) {
		var e error
		h, _, buf, e = f.batch(p, -1, buf)
		var damaged *DamageError
		if e != nil && !errors.As(e, &damaged) {
			return false, e
		}
		return e == nil && h.BaseOffset >= next && (f.latest == 0 || h.BaseOffset <= f.latest), nil
	}
	var head [record.BatchOverhead]byte
	if f.size-pos >= record.BatchOverhead && f.read(head[:], pos) == nil {
		if d, err := record.CheckHeader(head[:]); err == nil && int64(d.Size()) < f.size-pos {
			if ok, err := sound(pos + int64(d.Size())); ok || err != nil {
				return h, pos + int64(d.Size()), int64(d.Size()), ok, err
			}
		}
	}
	window := make([]byte, scanChunk+record.BatchOverhead)
	for from := pos + 1; f.size-from >= record.BatchOverhead; from += scanChunk {
		w := window[:min(int64(len(window)), f.size-from)]
		if err := f.read(w, from); err != nil {
			var damaged *DamageError
			if errors.As(err, &damaged) {
				return h, 0, from - pos, false, nil // the file ends here
			}
			return h, 0, 0, false, err
		}
		for i := 0; i < scanChunk && i+record.BatchOverhead <= len(w); i++ {
			if w[i+magicAt] != record.MagicV2 { // spares an error made for every byte
				continue
			}
			if c, err := record.CheckHeader(w[i:]); err != nil || c.BaseOffset < next || f.latest > 0 && c.BaseOffset > f.latest || f.place(c, from+int64(i), -1) != nil {
				continue
			}
			if ok, err := sound(from + int64(i)); ok || err != nil {
				return h, from + int64(i), from + int64(i) - pos, ok, err
			}
		}
	}
	return h, 0, f.size - pos, false, nil
}

// magicAt is where a batch has its format's number.
const magicAt = 16

// slotReader reads a slot's file.
type slotReader struct{ s *slot }

// ReadAt implements io.ReaderAt.
func (r slotReader) ReadAt(b []byte, off int64) (int, error) {
	f, err := r.s.acquire(false)
	if err != nil {
		return 0, err
	}
	defer r.s.release()
	return f.ReadAt(b, off)
}
