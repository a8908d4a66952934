package wal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/chronik-go/chronik/internal/vfs"
)

// A reader reads ahead by minWindow where it jumps, up to readWindow where it goes on.
const (
	minWindow  = 16 << 10
	readWindow = 1 << 20
)

// reader reads one file's blocks, for recovery and for Scan. It holds one window of the file in memory, more only for a
// directory or a body that is larger.
type reader struct {
	f    vfs.File
	name string
	seq  uint32
	size int64

	buf   []byte
	start int64
	n     int
	dir   []byte
	ahead int64 // how much the last read took
}

// block is what a page-aligned place in a file was found to hold. Its records are valid until the reader reads the next.
type block struct {
	frame
	off   int64
	recs  []record
	bad   []bool   // the record's body is not what was written
	body  [][]byte // bodies of records that are not entries
	anBad bool     // one of bad
}

// end returns where the next block begins.
func (b *block) end() int64 { return b.off + alignUp(int64(b.blockLen)) }

// at returns up to n bytes at off, fewer only at the end of the file; they are valid until the next call.
func (r *reader) at(off, n int64) ([]byte, error) {
	if off >= r.size {
		return nil, nil
	}
	n = min(n, r.size-off)
	if off < r.start || off+n > r.start+int64(r.n) {
		if end := r.start + int64(r.n); off >= r.start && off <= end && r.n > 0 {
			r.ahead = min(2*r.ahead, readWindow)
		} else {
			r.ahead = minWindow
		}
		want := min(max(n, r.ahead), r.size-off)
		if int64(cap(r.buf)) < want {
			r.buf = make([]byte, want)
		}
		got, err := r.f.ReadAt(r.buf[:want], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("wal: read %s at %d: %w", r.name, off, err)
		}
		r.start, r.n = off, got
		n = min(n, int64(got))
	}
	from := off - r.start
	return r.buf[from : from+n], nil
}

// drop gives the window's memory back.
func (r *reader) drop() { r.buf, r.start, r.n, r.dir = nil, 0, 0, nil }

// frameAt returns the frame at off, if a valid one is there, and leaves its directory in r.dir. A block may not reach
// beyond limit.
func (r *reader) frameAt(off, limit int64) (frame, bool, error) {
	limit = min(limit, r.size)
	head, err := r.at(off, frameSize)
	if err != nil {
		return frame{}, false, err
	}
	f, ok := parseFrame(head, limit-off)
	if !ok {
		return frame{}, false, nil
	}
	n := int64(frameSize) + int64(f.dirLen)
	if head, err = r.at(off, n); err != nil || int64(len(head)) < n {
		return frame{}, false, err
	}
	if !checkFrame(head, r.seq, off) {
		return frame{}, false, nil
	}
	r.dir = append(r.dir[:0], head[frameSize:]...)
	return f, true, nil
}

// blockAt reads and judges the block at off. ok is false if its frame or directory is not valid; records whose bodies are
// wrong are marked. The bodies of entries are not looked at if lazy is set.
func (r *reader) blockAt(off, limit int64, lazy bool) (b *block, ok bool, err error) {
	f, ok, err := r.frameAt(off, limit)
	if err != nil || !ok {
		return nil, false, err
	}
	b = &block{frame: f, off: off}
	if b.recs, err = parseDir(r.dir, f, nil); err != nil {
		return nil, false, nil
	}
	b.bad = make([]bool, len(b.recs))
	b.body = make([][]byte, len(b.recs))
	at := off + frameSize + int64(f.dirLen)
	for i := range b.recs {
		rec := &b.recs[i]
		keep := rec.kind != KindEntry && rec.kind != KindFullEntry
		if lazy && !keep {
			at += int64(rec.bodyLen)
			continue
		}
		var into *[]byte
		if keep {
			into = &b.body[i]
		}
		crc, err := r.checksum(at, int64(rec.bodyLen), into)
		if err != nil {
			return nil, false, err
		}
		if crc != rec.bodyCRC {
			b.bad[i], b.anBad = true, true
		}
		at += int64(rec.bodyLen)
	}
	return b, true, nil
}

// checksum returns that of n bytes at off, fewer where the file ends, and keeps them in into if that is set.
func (r *reader) checksum(off, n int64, into *[]byte) (crc uint32, err error) {
	for n > 0 {
		p, err := r.at(off, min(n, readWindow))
		if err != nil {
			return 0, err
		}
		if len(p) == 0 {
			break
		}
		crc = crc32.Update(crc, castagnoli, p)
		if into != nil {
			*into = append(*into, p...)
		}
		off += int64(len(p))
		n -= int64(len(p))
	}
	return crc, nil
}

// nextFrame looks for a valid frame at a page in [off, limit).
func (r *reader) nextFrame(off, limit int64) (f frame, at int64, ok bool, err error) {
	for off = alignUp(off); off < min(limit, r.size); off += blockAlign {
		f, ok, err = r.frameAt(off, limit)
		if err != nil || ok {
			return f, off, ok, err
		}
	}
	return frame{}, 0, false, nil
}

// maxDurable returns the largest X stated by a block at or after off, and below it the first of those blocks.
func (r *reader) maxDurable(off int64) (x pos, err error) {
	for {
		f, at, ok, err := r.nextFrame(off, r.size)
		if err != nil || !ok {
			return x, err
		}
		x = max(x, f.durable)
		off = at + blockAlign
	}
}
