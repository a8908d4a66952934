package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// Recompress returns a new batch with batch's records under another codec; everything else in the header stays, except
// length and CRC. batch is one whole batch, its CRC checked by the caller; it is not changed. No more than maxBytes are
// decompressed (ErrTooLarge); a batch that cannot be decompressed is ErrCorrupt, one that holds fewer or more records than its
// header says ErrInvalid.
func Recompress(batch []byte, to Codec, maxBytes int) ([]byte, error) {
	h, err := checkFrame(batch)
	if err != nil {
		return nil, err
	}
	if !to.Valid() {
		return nil, fmt.Errorf("unknown compression codec %d", int8(to))
	}
	plain := batch[BatchOverhead:h.Size()]
	if h.Codec() != None {
		src, release, err := decompressor(h.Codec(), plain)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, h.Codec(), err)
		}
		defer release()
		if plain, err = io.ReadAll(io.LimitReader(src, int64(maxBytes)+1)); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, h.Codec(), err)
		}
	}
	if len(plain) > maxBytes {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, maxBytes)
	}
	if !countMatches(plain, h.Count) {
		return nil, fmt.Errorf("%w: the header says %d records, the body does not hold as many", ErrInvalid, h.Count)
	}
	out := append(make([]byte, 0, BatchOverhead+len(plain)), batch[:BatchOverhead]...)
	if out, err = compress(to, out, plain); err != nil {
		return nil, err
	}
	attrs := h.Attributes&^attrCodec | int16(to)
	binary.BigEndian.PutUint16(out[posAttributes:], uint16(attrs))
	return seal(out)
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
	rec := append(scratch[:0], 0)
	rec = binary.AppendVarint(rec, ts-b.first)
	rec = binary.AppendVarint(rec, int64(delta))
	rec = appendBytes(rec, key)
	rec = appendBytes(rec, value)
	rec = binary.AppendVarint(rec, int64(len(headers)))
	for _, h := range headers {
		rec = binary.AppendVarint(rec, int64(len(h.Key)))
		rec = append(rec, h.Key...)
		rec = appendBytes(rec, h.Value)
	}
	b.body = binary.AppendVarint(b.body, int64(len(rec)))
	b.body = append(b.body, rec...)
	b.count++
	b.last = delta
	return b
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
