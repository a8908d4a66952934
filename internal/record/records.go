package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Record is one record of a batch. The byte slices lie in the batch or in a buffer that the next record overwrites: they
// are good until the function that was handed the Record returns.
type Record struct {
	OffsetDelta int32  // offset = the batch's base offset + OffsetDelta
	Timestamp   int64  // ms since 1970; under LogAppendTime the batch's MaxTimestamp
	Key         []byte // nil is null, which is not the same as empty
	Value       []byte // nil is null: a tombstone in a compacted topic
	Headers     []RecordHeader
}

// RecordHeader is a header of a record (KIP-82). Keys may repeat and are never null.
type RecordHeader struct {
	Key   []byte
	Value []byte // nil is null
}

// minRecord is the size in bytes of the smallest record after its length: attributes, two deltas, two null lengths, no
// headers.
const minRecord = 6

// recordBuf is what reading compressed records needs, kept between batches.
type recordBuf struct {
	chunk   []byte // decompressed bytes, [r:w] not yet consumed
	r, w    int
	headers []RecordHeader
}

const (
	chunkStart = 4 << 10
	chunkKeep  = 256 << 10 // larger ones go back to the garbage collector
)

var recordBufs = sync.Pool{New: func() any { return &recordBuf{chunk: make([]byte, chunkStart)} }}

// Records calls fn for each record of batch (one whole batch, its CRC checked by the caller), in order, and stops at fn's
// first error and returns it. Compressed records are decompressed as a stream: memory is a record's size, never the
// batch's, and no more than maxBytes are decompressed (ErrTooLarge). A batch whose records are not exactly what its header
// says is ErrInvalid, one that cannot be decompressed ErrCorrupt.
//
// Records of a control batch are its markers.
func Records(batch []byte, maxBytes int, fn func(Record) error) error {
	h, err := checkFrame(batch)
	if err != nil {
		return err
	}
	if h.Count < 0 {
		return fmt.Errorf("%w: %d records", ErrInvalid, h.Count)
	}
	body := batch[BatchOverhead:h.Size()]
	if h.Count == 0 && len(body) == 0 {
		return nil // compaction leaves such: there is no stream to decompress, whatever the codec
	}
	if !h.Codec().Valid() {
		return fmt.Errorf("%w: unknown compression codec %d", ErrInvalid, h.Codec())
	}
	buf := recordBufs.Get().(*recordBuf)
	defer func() {
		clear(buf.headers[:cap(buf.headers)]) // they point into the caller's batch
		if len(buf.chunk) <= chunkKeep && cap(buf.headers) <= 1024 {
			recordBufs.Put(buf)
		}
	}()
	if h.Codec() == None {
		return plainRecords(h, body, buf, fn)
	}
	src, release, err := decompressor(h.Codec(), body)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, h.Codec(), err)
	}
	defer release()
	return streamRecords(h, src, maxBytes, buf, fn)
}

func plainRecords(h Header, body []byte, buf *recordBuf, fn func(Record) error) error {
	for i := int32(0); i < h.Count; i++ {
		size, n := binary.Varint(body)
		if n <= 0 || size < minRecord || size > int64(len(body)-n) {
			return fmt.Errorf("%w: record %d of %d: length %d, %d bytes left", ErrInvalid, i, h.Count, size, len(body))
		}
		rec, err := parseRecord(h, body[n:n+int(size)], buf)
		if err != nil {
			return fmt.Errorf("record %d of %d: %w", i, h.Count, err)
		}
		if err := fn(rec); err != nil {
			return err
		}
		body = body[n+int(size):]
	}
	if len(body) > 0 {
		return fmt.Errorf("%w: %d bytes after the last of %d records", ErrInvalid, len(body), h.Count)
	}
	return nil
}

func streamRecords(h Header, src io.Reader, maxBytes int, buf *recordBuf, fn func(Record) error) error {
	buf.r, buf.w = 0, 0
	left := int64(maxBytes)
	for i := int32(0); i < h.Count; i++ {
		// A varint of a length is at most 5 bytes; near the end of the batch there may be fewer.
		if err := buf.fill(src, binary.MaxVarintLen32, &left); err != nil && !errors.Is(err, io.EOF) {
			return streamErr(h, i, err)
		}
		size, n := binary.Varint(buf.chunk[buf.r:buf.w])
		if n <= 0 || size < minRecord {
			return fmt.Errorf("%w: record %d of %d: length %d, %d bytes left", ErrInvalid, i, h.Count, size, buf.w-buf.r)
		}
		if size > int64(buf.w-buf.r-n)+left {
			return streamErr(h, i, ErrTooLarge)
		}
		buf.r += n
		if err := buf.fill(src, int(size), &left); err != nil {
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("%w: record %d of %d: length %d, %d bytes left", ErrInvalid, i, h.Count, size, buf.w-buf.r)
			}
			return streamErr(h, i, err)
		}
		rec, err := parseRecord(h, buf.chunk[buf.r:buf.r+int(size)], buf)
		if err != nil {
			return fmt.Errorf("record %d of %d: %w", i, h.Count, err)
		}
		if err := fn(rec); err != nil {
			return err
		}
		buf.r += int(size)
	}
	// Reading on to the end has the decompressor check its own sums, too.
	err := buf.fill(src, 1, &left)
	switch {
	case err == nil:
		return fmt.Errorf("%w: more bytes after the last of %d records", ErrInvalid, h.Count)
	case errors.Is(err, io.EOF):
		return nil
	default:
		return streamErr(h, h.Count, err)
	}
}

func streamErr(h Header, i int32, err error) error {
	if errors.Is(err, ErrTooLarge) {
		return fmt.Errorf("record %d of %d: %w", i, h.Count, err)
	}
	return fmt.Errorf("%w: record %d of %d: %s: %w", ErrCorrupt, i, h.Count, h.Codec(), err)
}

// fill reads until n bytes are unconsumed. io.EOF: the stream ended before (what there is can be used). The chunk grows as
// bytes arrive, so that a length which lies costs nothing.
func (b *recordBuf) fill(src io.Reader, n int, left *int64) error {
	for empty := 0; b.w-b.r < n; {
		if b.r > 0 && (b.r == b.w || len(b.chunk)-b.r < n) {
			copy(b.chunk, b.chunk[b.r:b.w])
			b.r, b.w = 0, b.w-b.r
		}
		if b.w == len(b.chunk) {
			grown := make([]byte, 2*len(b.chunk))
			copy(grown, b.chunk[:b.w])
			b.chunk = grown
		}
		room := b.chunk[b.w:]
		if int64(len(room)) > *left {
			room = room[:*left]
		}
		if len(room) == 0 {
			// One byte tells the end of the stream from a stream beyond the cap.
			var probe [1]byte
			switch m, err := src.Read(probe[:]); {
			case m > 0:
				return ErrTooLarge
			case err != nil:
				return err
			}
		} else {
			m, err := src.Read(room)
			b.w += m
			*left -= int64(m)
			if m > 0 {
				empty = 0
				continue
			}
			if err != nil {
				return err
			}
		}
		if empty++; empty > 100 {
			return io.ErrNoProgress
		}
	}
	return nil
}

// parseRecord decodes what follows a record's length; b is exactly that.
func parseRecord(h Header, b []byte, buf *recordBuf) (Record, error) {
	d := decoder{b: b}
	d.skip(1) // attributes: none are defined
	tsDelta := d.varint()
	offDelta := d.varint()
	rec := Record{OffsetDelta: int32(offDelta), Timestamp: h.BaseTimestamp + tsDelta}
	rec.Key = d.bytes()
	rec.Value = d.bytes()
	n := d.varint()
	if d.bad || offDelta < 0 || offDelta > int64(h.LastOffsetDelta) || n < 0 || n > int64(len(d.b)/2) {
		return Record{}, fmt.Errorf("%w: offset delta %d, %d headers, %d bytes left", ErrInvalid, offDelta, n, len(d.b))
	}
	if h.TimestampType() == LogAppendTime {
		rec.Timestamp = h.MaxTimestamp
	}
	buf.headers = buf.headers[:0]
	for ; n > 0 && !d.bad; n-- {
		key := d.bytes()
		if key == nil {
			d.bad = true
		}
		buf.headers = append(buf.headers, RecordHeader{Key: key, Value: d.bytes()})
	}
	if d.bad || len(d.b) > 0 {
		return Record{}, fmt.Errorf("%w: malformed, %d bytes left over", ErrInvalid, len(d.b))
	}
	if len(buf.headers) > 0 {
		rec.Headers = buf.headers
	}
	return rec, nil
}

// decoder reads a record's fields; bad once anything did not fit.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) skip(n int) {
	if n > len(d.b) {
		d.bad, d.b = true, nil
		return
	}
	d.b = d.b[n:]
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

// bytes reads a length and as many bytes; -1 is null, which comes back nil.
func (d *decoder) bytes() []byte {
	n := d.varint()
	if d.bad || n == -1 {
		return nil
	}
	if n < 0 || n > int64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}
