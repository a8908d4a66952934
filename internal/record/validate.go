package record

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// Check checks the batch that b begins with, as stored or replicated: format, length, CRC-32C, and that offsets do not
// overflow. Records removed by compaction are fine. More bytes may follow the batch. It allocates nothing unless it fails.
func Check(b []byte) (Header, error) {
	h, err := checkFrame(b)
	if err != nil {
		return Header{}, err
	}
	if crc := crc32.Checksum(b[posAttributes:h.Size()], castagnoli); crc != h.CRC {
		return Header{}, fmt.Errorf("%w: CRC-32C is %08x, the header says %08x", ErrCorrupt, crc, h.CRC)
	}
	if err := checkStored(h); err != nil {
		return Header{}, err
	}
	return h, nil
}

// CheckHeader checks what can be checked of the batch that b begins with without reading its records: format, lengths,
// and that offsets do not overflow. b may end before the batch does, but not before its header does.
func CheckHeader(b []byte) (Header, error) {
	h, err := checkShape(b)
	if err != nil {
		return Header{}, err
	}
	if err := checkStored(h); err != nil {
		return Header{}, err
	}
	return h, nil
}

// Validate checks that b is exactly one whole, sound batch as a producer may send it, or a control batch: format, length,
// one CRC-32C pass, a known codec, at least one record and as many as the offsets say. It does not decompress. It
// allocates nothing unless it fails.
//
// Errors: ErrEmpty, ErrTruncated, ErrMagic, ErrCorrupt, ErrMultiple, ErrInvalid. Whether a client may send control
// batches or this timestamp type is the caller's question.
func Validate(b []byte) (Header, error) {
	h, err := Check(b)
	if err != nil {
		return Header{}, err
	}
	switch {
	case h.Size() != len(b):
		return Header{}, fmt.Errorf("%w: %d bytes follow the first, of %d", ErrMultiple, len(b)-h.Size(), h.Size())
	case h.Count <= 0:
		return Header{}, fmt.Errorf("%w: %d records", ErrInvalid, h.Count)
	case int64(h.Count) != int64(h.LastOffsetDelta)+1:
		return Header{}, fmt.Errorf("%w: %d records, but a last offset delta of %d", ErrInvalid, h.Count, h.LastOffsetDelta)
	case !h.Codec().Valid():
		return Header{}, fmt.Errorf("%w: unknown compression codec %d", ErrInvalid, h.Codec())
	case h.Codec() == None && !countMatches(b[BatchOverhead:], h.Count):
		return Header{}, fmt.Errorf("%w: the header says %d records, the body does not hold as many", ErrInvalid, h.Count)
	case h.ProducerID >= 0 && (h.BaseSequence < 0 || h.ProducerEpoch < 0) && !h.IsControl():
		return Header{}, fmt.Errorf("%w: producer %d with epoch %d, sequence %d", ErrInvalid, h.ProducerID, h.ProducerEpoch, h.BaseSequence)
	case h.ProducerID < 0 && h.IsTransactional():
		return Header{}, fmt.Errorf("%w: transactional without a producer id", ErrInvalid)
	}
	return h, nil
}

// checkFrame checks that b holds the whole of the batch it begins with.
func checkFrame(b []byte) (Header, error) {
	h, err := checkShape(b)
	if err != nil {
		return Header{}, err
	}
	if h.Size() > len(b) {
		return Header{}, fmt.Errorf("%w: %d bytes of %d", ErrTruncated, len(b), h.Size())
	}
	return h, nil
}

func checkShape(b []byte) (Header, error) {
	if len(b) == 0 {
		return Header{}, ErrEmpty
	}
	// Messages of the formats before v2 have the magic at the same place and may be shorter than a v2 header: a client
	// that sends one should hear of the format, not of missing bytes.
	if len(b) > posMagic && b[posMagic] != MagicV2 {
		return Header{}, fmt.Errorf("%w: magic %d", ErrMagic, int8(b[posMagic]))
	}
	h, err := ParseHeader(b)
	if err != nil {
		return Header{}, err
	}
	if h.Size() < BatchOverhead {
		return Header{}, fmt.Errorf("%w: length %d is below the header's", ErrCorrupt, h.Length)
	}
	return h, nil
}

func checkStored(h Header) error {
	switch {
	case h.LastOffsetDelta < 0:
		return fmt.Errorf("%w: last offset delta %d", ErrInvalid, h.LastOffsetDelta)
	case h.BaseOffset < 0 || h.BaseOffset > math.MaxInt64-1-int64(h.LastOffsetDelta):
		return fmt.Errorf("%w: base offset %d with last offset delta %d", ErrInvalid, h.BaseOffset, h.LastOffsetDelta)
	case h.Count < 0 || int64(h.Count) > int64(h.LastOffsetDelta)+1:
		return fmt.Errorf("%w: %d records, but a last offset delta of %d", ErrInvalid, h.Count, h.LastOffsetDelta)
	}
	return nil
}

// Each calls fn for every batch in b, in order, with the batch's own bytes (not a copy). It looks at lengths only: whether
// a batch is sound, or one at all (partitions put command frames of the same shape into entries), is fn's question.
// It stops at fn's first error and returns it. Bytes that are not a whole batch are ErrTruncated or ErrCorrupt.
func Each(b []byte, fn func(h Header, batch []byte) error) error {
	for len(b) > 0 {
		h, err := ParseHeader(b)
		if err != nil {
			return err
		}
		n := h.Size()
		if n < BatchOverhead {
			return fmt.Errorf("%w: length %d is below the header's", ErrCorrupt, h.Length)
		}
		if n > len(b) {
			return fmt.Errorf("%w: %d bytes of %d", ErrTruncated, len(b), n)
		}
		if err := fn(h, b[:n:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// SetOffset sets the base offset and the leader epoch of the batch that b begins with, in place. Both lie before what
// the CRC covers. b must hold a header.
func SetOffset(b []byte, base int64, leaderEpoch int32) {
	binary.BigEndian.PutUint64(b[posBaseOffset:], uint64(base))
	binary.BigEndian.PutUint32(b[posLeaderEpoch:], uint32(leaderEpoch))
}

// SetAppendTime turns batch b, which must be exactly one whole batch, into one of LogAppendTime: every record's timestamp
// is then ts (ms since 1970). It sets the CRC anew.
func SetAppendTime(b []byte, ts int64) {
	attrs := binary.BigEndian.Uint16(b[posAttributes:])
	binary.BigEndian.PutUint16(b[posAttributes:], attrs|attrAppendTime)
	binary.BigEndian.PutUint64(b[posMaxTimestamp:], uint64(ts))
	setCRC(b)
}

func setCRC(b []byte) {
	binary.BigEndian.PutUint32(b[posCRC:], crc32.Checksum(b[posAttributes:], castagnoli))
}

// countMatches walks the lengths of uncompressed records: there must be count of them, and nothing after. A header that
// claims more than there is would take offsets that no record has, and stop consumers there.
func countMatches(body []byte, count int32) bool {
	for range count {
		n, w := binary.Varint(body)
		if w <= 0 || n <= 0 || n > int64(len(body)-w) {
			return false
		}
		body = body[w+int(n):]
	}
	return len(body) == 0
}
