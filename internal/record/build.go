package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// Recompress returns a new batch with batch's records under another codec, at its level; everything else in the header stays, except
// length and CRC. batch is one whole batch, its CRC checked by the caller; it is not changed. The records pass through as a
// stream: memory is the formats' windows and the result. No more than maxBytes are decompressed, and the result has no more than
// maxOut (ErrTooLarge both); a batch that cannot be decompressed is ErrCorrupt, one that holds fewer or more records than its
// header says ErrInvalid.
func Recompress(batch []byte, to Codec, levels Levels, maxBytes, maxOut int) ([]byte, error) {
	h, err := checkFrame(batch)
	if err != nil {
		return nil, err
	}
	if !to.Valid() {
		return nil, fmt.Errorf("unknown compression codec %d", int8(to))
	}
	body := batch[BatchOverhead:h.Size()]
	var src io.Reader = bytes.NewReader(body)
	if h.Codec() != None {
		r, release, err := decompressor(h.Codec(), body)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, h.Codec(), err)
		}
		defer release()
		src = r
	}
	out := &capped{b: append(make([]byte, 0, BatchOverhead+min(len(body), maxOut)), batch[:BatchOverhead]...), most: maxOut}
	if err := pipe(h, src, to, levels, out, maxBytes); err != nil {
		return nil, err
	}
	attrs := h.Attributes&^attrCodec | int16(to)
	binary.BigEndian.PutUint16(out.b[posAttributes:], uint16(attrs))
	return seal(out.b)
}

// pipe moves the records of src, decompressed, into out under another codec, and counts them.
func pipe(h Header, src io.Reader, to Codec, levels Levels, out io.Writer, maxBytes int) error {
	w, release, err := compressor(to, levels, out)
	if err != nil {
		return err
	}
	defer release()
	var count recordCounter
	buf := make([]byte, 32<<10)
	for total := 0; ; {
		n, err := src.Read(buf)
		if total += n; total > maxBytes {
			return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, maxBytes)
		}
		count.pass(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrCorrupt, h.Codec(), err)
		}
	}
	if !count.is(h.Count) {
		return fmt.Errorf("%w: the header says %d records, the body does not hold as many", ErrInvalid, h.Count)
	}
	return w.Close()
}

// recordCounter walks the lengths of uncompressed records as they pass, as countMatches does where all are there.
type recordCounter struct {
	n     int64
	left  uint64 // of the record that is passing
	value uint64 // of a length, as far as it has come
	shift uint
	bad   bool
}

func (c *recordCounter) pass(b []byte) {
	for len(b) > 0 && !c.bad {
		if c.left > 0 {
			n := min(c.left, uint64(len(b)))
			c.left -= n
			b = b[n:]
			continue
		}
		x := b[0]
		b = b[1:]
		c.value |= uint64(x&0x7f) << c.shift
		if c.shift += 7; x >= 0x80 {
			c.bad = c.shift >= 64
			continue
		}
		size := int64(c.value>>1) ^ -int64(c.value&1)
		c.bad = size <= 0
		c.left, c.value, c.shift = uint64(size), 0, 0
		c.n++
	}
}

func (c *recordCounter) is(count int32) bool {
	return !c.bad && c.left == 0 && c.shift == 0 && c.n == int64(count)
}

// seal sets length and CRC of a batch whose other fields are set.
func seal(b []byte) ([]byte, error) {
	if len(b)-LogOverhead > math.MaxInt32 {
		return nil, fmt.Errorf("%w: a batch of %d bytes", ErrInvalid, len(b))
	}
	binary.BigEndian.PutUint32(b[posLength:], uint32(len(b)-LogOverhead))
	setCRC(b)
	return b, nil
}

// Builder builds one batch: for tests, tools and internal topics. Make it with NewBuilder, set fields before Build, add
// records, then Build; Reset begins another batch with the same fields. It is not safe for concurrent use.
type Builder struct {
	BaseOffset    int64
	LeaderEpoch   int32
	Codec         Codec
	ProducerID    int64
	ProducerEpoch int16
	BaseSequence  int32
	Transactional bool
	Control       bool
	AppendTime    bool // LogAppendTime; the batch's MaxTimestamp is then the records' largest, for all of them

	body  []byte
	count int32
	last  int32 // offset delta of the last record
	first int64 // timestamp of the first record: the base
	max   int64
}

// NewBuilder returns a builder of batches that are neither compressed nor idempotent.
func NewBuilder() *Builder {
	return &Builder{ProducerID: NoProducerID, ProducerEpoch: -1, BaseSequence: NoSequence, last: -1}
}

// Add adds a record at the next offset. ts is in ms since 1970; nil key or value are null. Nothing given is kept.
func (b *Builder) Add(ts int64, key, value []byte, headers ...RecordHeader) *Builder {
	return b.AddAt(b.last+1, ts, key, value, headers...)
}

// AddAt is Add at a given distance from the base offset, which must be above the last one's: compaction leaves such gaps.
func (b *Builder) AddAt(delta int32, ts int64, key, value []byte, headers ...RecordHeader) *Builder {
	if b.count == 0 {
		b.first, b.max = ts, ts
	}
	b.max = max(b.max, ts)
	var scratch [64]byte
	rec := appendRecord(scratch[:0], ts-b.first, delta, key, value, headers)
	b.body = binary.AppendVarint(b.body, int64(len(rec)))
	b.body = append(b.body, rec...)
	b.count++
	b.last = delta
	return b
}

// appendRecord appends what follows a record's length.
func appendRecord(rec []byte, tsDelta int64, delta int32, key, value []byte, headers []RecordHeader) []byte {
	rec = append(rec, 0)
	rec = binary.AppendVarint(rec, tsDelta)
	rec = binary.AppendVarint(rec, int64(delta))
	rec = appendBytes(rec, key)
	rec = appendBytes(rec, value)
	rec = binary.AppendVarint(rec, int64(len(headers)))
	for _, h := range headers {
		rec = binary.AppendVarint(rec, int64(len(h.Key)))
		rec = append(rec, h.Key...)
		rec = appendBytes(rec, h.Value)
	}
	return rec
}

func appendBytes(dst, v []byte) []byte {
	if v == nil {
		return binary.AppendVarint(dst, -1)
	}
	dst = binary.AppendVarint(dst, int64(len(v)))
	return append(dst, v...)
}

// Len returns the number of records added.
func (b *Builder) Len() int { return int(b.count) }

// Size returns the batch's size in bytes before compression.
func (b *Builder) Size() int { return BatchOverhead + len(b.body) }

// Build returns the batch, in memory of its own.
func (b *Builder) Build() ([]byte, error) {
	if b.count == 0 {
		return nil, errors.New("a batch without records")
	}
	out := make([]byte, BatchOverhead, BatchOverhead+len(b.body))
	be := binary.BigEndian
	be.PutUint64(out[posBaseOffset:], uint64(b.BaseOffset))
	be.PutUint32(out[posLeaderEpoch:], uint32(b.LeaderEpoch))
	out[posMagic] = MagicV2
	be.PutUint16(out[posAttributes:], b.attributes())
	be.PutUint32(out[posLastOffsetDelta:], uint32(b.last))
	be.PutUint64(out[posBaseTimestamp:], uint64(b.first))
	be.PutUint64(out[posMaxTimestamp:], uint64(b.max))
	be.PutUint64(out[posProducerID:], uint64(b.ProducerID))
	be.PutUint16(out[posProducerEpoch:], uint16(b.ProducerEpoch))
	be.PutUint32(out[posBaseSequence:], uint32(b.BaseSequence))
	be.PutUint32(out[posCount:], uint32(b.count))
	out, err := compress(b.Codec, out, b.body)
	if err != nil {
		return nil, err
	}
	return seal(out)
}

func (b *Builder) attributes() uint16 {
	a := uint16(b.Codec) & attrCodec
	if b.AppendTime {
		a |= attrAppendTime
	}
	if b.Transactional {
		a |= attrTransactional
	}
	if b.Control {
		a |= attrControl
	}
	return a
}

// Reset drops the records and keeps the fields.
func (b *Builder) Reset() {
	b.body, b.count, b.last = b.body[:0], 0, -1
}
