package transport

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"unsafe"

	"google.golang.org/grpc/mem"
)

// A frame is one gRPC message of a stream:
//
//	version u8 | kind u8 | header length u32 | payload CRC u32 | header CRC u32 | header | payload
//
// Integers are little-endian, CRCs are CRC-32C; the header CRC covers the ten bytes before it and the header. The header
// holds everything small (group, terms, lengths) and is parsed before the payload, which is the concatenation of the raw
// bytes whose lengths the header gives, and must be used up exactly. TCP's own checksum is 16 bits wide and not every
// state machine's entries carry one of their own, so the transport checks.
const (
	frameVersion    = 1
	framePrefix     = 14
	maxHeaderBytes  = 8 << 20
	coalesceBelow   = 2 << 10  // payloads smaller than this are gathered into one buffer
	coalesceChunk   = 32 << 10 // size of such a buffer
	frameEnvelopes  = 1
	frameForwards   = 2
	frameResponses  = 3
	frameKindsBound = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func frameErrorf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFrame, fmt.Sprintf(format, args...))
}

// frameWriter builds a frame. The zero value is ready; it may be reused after finish.
type frameWriter struct {
	head    []byte // prefix and header
	payload [][]byte
	size    int // bytes in payload
}

func (w *frameWriter) begin(kind byte) {
	if cap(w.head) > 1<<20 { // one huge frame should not be paid for for ever
		w.head = nil
	}
	w.head = append(w.head[:0], frameVersion, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	clear(w.payload)
	w.payload = w.payload[:0]
	w.size = 0
}

func (w *frameWriter) uvarint(v uint64) { w.head = binary.AppendUvarint(w.head, v) }
func (w *frameWriter) byte(b byte)      { w.head = append(w.head, b) }
func (w *frameWriter) bytes(b []byte)   { w.head = append(w.head, b...) }

// data appends b to the payload, without copying it.
func (w *frameWriter) data(b []byte) {
	if len(b) > 0 {
		w.payload = append(w.payload, b)
		w.size += len(b)
	}
}

// finish returns the frame. Its buffers refer to the payload slices; gRPC frees them once written. The frameWriter is free
// for the next frame.
func (w *frameWriter) finish() mem.BufferSlice {
	crc := uint32(0)
	for _, p := range w.payload {
		crc = crc32.Update(crc, castagnoli, p)
	}
	binary.LittleEndian.PutUint32(w.head[2:], uint32(len(w.head)-framePrefix))
	binary.LittleEndian.PutUint32(w.head[6:], crc)
	hcrc := crc32.Checksum(w.head[:10], castagnoli)
	hcrc = crc32.Update(hcrc, castagnoli, w.head[framePrefix:])
	binary.LittleEndian.PutUint32(w.head[10:], hcrc)

	pool := mem.DefaultBufferPool()
	out := make(mem.BufferSlice, 0, 2+len(w.payload))
	pending := [][]byte{w.head}
	size := len(w.head)
	flush := func() {
		if size == 0 {
			return
		}
		buf := pool.Get(size)
		n := 0
		for _, p := range pending {
			n += copy((*buf)[n:], p)
		}
		out = append(out, mem.NewBuffer(buf, pool))
		pending, size = pending[:0], 0
	}
	for _, p := range w.payload {
		if len(p) >= coalesceBelow {
			flush()
			out = append(out, mem.SliceBuffer(p))
			continue
		}
		if size+len(p) > coalesceChunk {
			flush()
		}
		pending = append(pending, p)
		size += len(p)
	}
	flush()
	clear(w.payload)
	w.payload = w.payload[:0]
	return out
}

// frameReader takes a frame apart. The zero value is ready; it may be reused for any number of frames.
type frameReader struct {
	kind    byte
	hdr     []byte // what is left of the header
	scratch []byte

	bufs    mem.BufferSlice
	off     int // into bufs[0]
	left    int // payload bytes not yet taken
	crc     uint32
	wantCRC uint32
}

// begin checks the frame's prefix and header. data stays the caller's; it must outlive the reading.
func (r *frameReader) begin(data mem.BufferSlice) error {
	total := data.Len()
	if total < framePrefix {
		return frameErrorf("%d bytes are too few", total)
	}
	if total > MaxFrameBytes {
		return frameErrorf("%d bytes are too many", total)
	}
	r.bufs, r.off, r.left = data, 0, total
	var prefix [framePrefix]byte
	r.copyOut(prefix[:])
	if prefix[0] != frameVersion {
		return frameErrorf("version %d", prefix[0])
	}
	r.kind = prefix[1]
	if r.kind == 0 || r.kind >= frameKindsBound {
		return frameErrorf("kind %d", r.kind)
	}
	n := int(binary.LittleEndian.Uint32(prefix[2:]))
	if n > r.left || n > maxHeaderBytes {
		return frameErrorf("header of %d bytes in a frame of %d", n, total)
	}
	if cap(r.scratch) < n || cap(r.scratch) > 1<<20 {
		r.scratch = make([]byte, n, max(n, 512))
	}
	r.hdr = r.scratch[:n]
	r.copyOut(r.hdr)
	crc := crc32.Checksum(prefix[:10], castagnoli)
	crc = crc32.Update(crc, castagnoli, r.hdr)
	if want := binary.LittleEndian.Uint32(prefix[10:]); crc != want {
		return frameErrorf("header CRC %08x, want %08x", crc, want)
	}
	r.wantCRC = binary.LittleEndian.Uint32(prefix[6:])
	r.crc = 0
	return nil
}

// end checks that everything was used up and arrived whole. Nothing taken from the frame may be believed before.
func (r *frameReader) end() error {
	r.bufs = nil
	if len(r.hdr) != 0 {
		return frameErrorf("%d header bytes left over", len(r.hdr))
	}
	if r.left != 0 {
		return frameErrorf("%d payload bytes left over", r.left)
	}
	if r.crc != r.wantCRC {
		return frameErrorf("payload CRC %08x, want %08x", r.crc, r.wantCRC)
	}
	return nil
}

func (r *frameReader) uvarint() (uint64, error) {
	v, n := binary.Uvarint(r.hdr)
	if n <= 0 {
		return 0, frameErrorf("header ends in a number")
	}
	r.hdr = r.hdr[n:]
	return v, nil
}

func (r *frameReader) byte() (byte, error) {
	if len(r.hdr) == 0 {
		return 0, frameErrorf("header ends early")
	}
	b := r.hdr[0]
	r.hdr = r.hdr[1:]
	return b, nil
}

// bytes returns the next n header bytes; they are overwritten by the next frame.
func (r *frameReader) bytes(n uint64) ([]byte, error) {
	if n > uint64(len(r.hdr)) {
		return nil, frameErrorf("%d bytes in a header that has %d left", n, len(r.hdr))
	}
	b := r.hdr[:n]
	r.hdr = r.hdr[n:]
	return b, nil
}

// length reads the length of a payload part, given what parts before it have claimed already.
func (r *frameReader) length(claimed int) (int, error) {
	v, err := r.uvarint()
	if err != nil {
		return 0, err
	}
	if v > uint64(r.left-claimed) {
		return 0, frameErrorf("payload part of %d bytes, %d are left", v, r.left-claimed)
	}
	return int(v), nil
}

// next is the part of the payload that lies in one buffer, at most n bytes.
func (r *frameReader) next(n int) []byte {
	for r.off == r.bufs[0].Len() {
		r.bufs, r.off = r.bufs[1:], 0
	}
	b := r.bufs[0].ReadOnlyData()[r.off:]
	if len(b) > n {
		b = b[:n]
	}
	r.off += len(b)
	r.left -= len(b)
	return b
}

func (r *frameReader) copyOut(dst []byte) {
	for len(dst) > 0 {
		dst = dst[copy(dst, r.next(len(dst))):]
	}
}

// take copies the next n payload bytes, which must have been checked with length, into new memory: the frame's one copy.
func (r *frameReader) take(n int) []byte {
	if n == 0 {
		return nil
	}
	// strings.Builder is the only way to get memory that is not cleared first; what it holds is ordinary garbage-collected
	// memory that nothing else refers to, so writing to it later is sound.
	var sb strings.Builder
	sb.Grow(n)
	for n > 0 {
		b := r.next(n)
		r.crc = crc32.Update(r.crc, castagnoli, b)
		sb.Write(b)
		n -= len(b)
	}
	s := sb.String()
	return unsafe.Slice(unsafe.StringData(s), len(s))
}
