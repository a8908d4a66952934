// Package record reads, checks and builds Kafka record batches of format v2 (KIP-98), the unit that producers send,
// Raft replicates and segments store. Nothing here does I/O, starts goroutines or keeps its arguments.
//
// Bytes come from the network and from disks: every length is checked against what is there before it is used, and
// nothing is allocated because a header said so.
package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// BatchOverhead is the size in bytes of a batch header, which is also the size of the smallest batch (one without records,
// left behind by compaction).
const BatchOverhead = 61

// LogOverhead is the size in bytes of what comes before the part that Header.Length counts: base offset and length.
const LogOverhead = 12

// MagicV2 is the only format version this package reads.
const MagicV2 = 2

// Positions of the header's fields, in bytes from the batch's first; all integers are big-endian.
const (
	posBaseOffset      = 0
	posLength          = 8
	posLeaderEpoch     = 12
	posMagic           = 16
	posCRC             = 17
	posAttributes      = 21 // the CRC covers from here to the batch's end
	posLastOffsetDelta = 23
	posBaseTimestamp   = 27
	posMaxTimestamp    = 35
	posProducerID      = 43
	posProducerEpoch   = 51
	posBaseSequence    = 53
	posCount           = 57
)

// Bits of Header.Attributes.
const (
	attrCodec         = 0x07
	attrAppendTime    = 0x08
	attrTransactional = 0x10
	attrControl       = 0x20
	attrDeleteHorizon = 0x40
)

// NoTimestamp, NoProducerID and NoSequence are what Kafka writes where there is none.
const (
	NoTimestamp  int64 = -1
	NoProducerID int64 = -1
	NoSequence   int32 = -1
)

// What is wrong with a batch. They come wrapped with detail; match them with errors.Is.
var (
	// ErrEmpty: no bytes at all.
	ErrEmpty = errors.New("empty record set")
	// ErrTruncated: fewer bytes than the header says, or than a header has.
	ErrTruncated = errors.New("truncated record batch")
	// ErrMagic: a format other than v2.
	ErrMagic = errors.New("unsupported record batch format")
	// ErrCorrupt: the CRC does not match, or a length cannot be.
	ErrCorrupt = errors.New("corrupt record batch")
	// ErrInvalid: the bytes arrived as they were sent, and say something that is not allowed.
	ErrInvalid = errors.New("invalid record batch")
	// ErrMultiple: more bytes follow the batch where exactly one batch was wanted. It also matches ErrInvalid.
	ErrMultiple = fmt.Errorf("%w: more than one batch", ErrInvalid)
	// ErrTooLarge: the records are larger, decompressed, than the caller allows.
	ErrTooLarge = errors.New("records too large when decompressed")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// TimestampType says who set a batch's timestamps.
type TimestampType int8

// The two types of message.timestamp.type.
const (
	CreateTime    TimestampType = 0
	LogAppendTime TimestampType = 1
)

// String returns the name Kafka's configuration uses.
func (t TimestampType) String() string {
	if t == LogAppendTime {
		return "LogAppendTime"
	}
	return "CreateTime"
}

// Header is a batch's header, as it is in the bytes: nothing in it has been checked except by the function that
// returned it.
type Header struct {
	BaseOffset      int64
	Length          int32 // bytes after this field: the batch's size less LogOverhead
	LeaderEpoch     int32
	Magic           int8
	CRC             uint32 // CRC-32C of everything from Attributes on
	Attributes      int16
	LastOffsetDelta int32
	BaseTimestamp   int64 // ms since 1970
	MaxTimestamp    int64 // ms since 1970; under LogAppendTime the timestamp of every record
	ProducerID      int64 // NoProducerID if not idempotent
	ProducerEpoch   int16
	BaseSequence    int32
	Count           int32 // records; less than LastOffsetDelta+1 once compacted
}

// ParseHeader decodes a header and checks nothing but that b holds one: fewer than 61 bytes are ErrTruncated.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < BatchOverhead {
		return Header{}, fmt.Errorf("%w: %d bytes, a header has %d", ErrTruncated, len(b), BatchOverhead)
	}
	be := binary.BigEndian
	return Header{
		BaseOffset:      int64(be.Uint64(b[posBaseOffset:])),
		Length:          int32(be.Uint32(b[posLength:])),
		LeaderEpoch:     int32(be.Uint32(b[posLeaderEpoch:])),
		Magic:           int8(b[posMagic]),
		CRC:             be.Uint32(b[posCRC:]),
		Attributes:      int16(be.Uint16(b[posAttributes:])),
		LastOffsetDelta: int32(be.Uint32(b[posLastOffsetDelta:])),
		BaseTimestamp:   int64(be.Uint64(b[posBaseTimestamp:])),
		MaxTimestamp:    int64(be.Uint64(b[posMaxTimestamp:])),
		ProducerID:      int64(be.Uint64(b[posProducerID:])),
		ProducerEpoch:   int16(be.Uint16(b[posProducerEpoch:])),
		BaseSequence:    int32(be.Uint32(b[posBaseSequence:])),
		Count:           int32(be.Uint32(b[posCount:])),
	}, nil
}

// Size returns the whole batch's size in bytes, if Length tells the truth.
func (h Header) Size() int { return int(h.Length) + LogOverhead }

// LastOffset returns the offset of the batch's last record (or of the place where it was before compaction).
func (h Header) LastOffset() int64 { return h.BaseOffset + int64(h.LastOffsetDelta) }

// Codec returns the compression of the records. It may be one that does not exist: see Codec.Valid.
func (h Header) Codec() Codec { return Codec(h.Attributes & attrCodec) }

// IsControl reports whether the batch holds transaction markers instead of records. Only brokers write such.
func (h Header) IsControl() bool { return h.Attributes&attrControl != 0 }

// IsTransactional reports whether the batch belongs to a transaction.
func (h Header) IsTransactional() bool { return h.Attributes&attrTransactional != 0 }

// DeleteHorizon returns when, in ms since 1970, compaction may remove the batch's tombstones; false if it has yet to be set
// (KIP-534). It lies where other batches have their base timestamp, and serves as that as well.
func (h Header) DeleteHorizon() (ms int64, set bool) {
	return h.BaseTimestamp, h.Attributes&attrDeleteHorizon != 0
}

// TimestampType returns who set the timestamps.
func (h Header) TimestampType() TimestampType {
	if h.Attributes&attrAppendTime != 0 {
		return LogAppendTime
	}
	return CreateTime
}

// LastSequence returns the sequence number of the last record; sequences wrap from 2³¹-1 to 0.
func (h Header) LastSequence() int32 {
	if h.BaseSequence < 0 {
		return NoSequence
	}
	return int32((int64(h.BaseSequence) + int64(h.LastOffsetDelta)) & 0x7fffffff)
}
