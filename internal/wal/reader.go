package wal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/chronik-go/chronik/internal/vfs"
)

const readWindow = 1 << 20

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
		if int64(cap(r.buf)) < n {
			r.buf = make([]byte, max(n, readWindow))
		}
		want := min(int64(cap(r.buf)), max(n, readWindow), r.size-off)
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
// wrong are marked.
func (r *reader) blockAt(off, limit int64) (b *block, ok bool, err error) {
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
		crc := uint32(0)
		for left := int64(rec.bodyLen); left > 0; {
			p, err := r.at(at, min(left, readWindow))
			if err != nil {
				return nil, false, err
			}
			if len(p) == 0 {
				break
			}
			crc = crc32.Update(crc, castagnoli, p)
			if keep {
				b.body[i] = append(b.body[i], p...)
			}
			at += int64(len(p))
			left -= int64(len(p))
		}
		if crc != rec.bodyCRC {
			b.bad[i], b.anBad = true, true
		}
	}
	return b, true, nil
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
