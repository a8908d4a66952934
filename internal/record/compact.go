package record

import (
	"encoding/binary"
)

// Compaction says what of a batch survives.
type Compaction struct {
	// MaxBytes bounds what is decompressed, and the result (ErrTooLarge).
	MaxBytes int
	// Keep says whether the record at an offset survives. It is called once for each, in order.
	Keep func(offset int64, r Record) bool
	// Horizon is stamped on a batch that keeps tombstones and has no delete horizon yet, ms since 1970; below 0: none is.
	Horizon int64
}

// Compacted is what is left of a batch.
type Compacted struct {
	// Batch is nil if no record survives, the batch itself if nothing changes, and otherwise in memory of its own.
	Batch []byte
	// Tombstones is how many of the records left have a null value.
	Tombstones int
}

// Compact leaves out the records of a batch (one whole batch, its CRC checked by the caller) that do not survive. Base and last
// offset, leader epoch, producer, sequence and codec stay, and so does every survivor's offset; the largest timestamp is the
// survivors'. Compressed records pass twice, as a stream. Errors: ErrTooLarge, ErrCorrupt, ErrInvalid; then the batch is as it was.
func Compact(batch []byte, c Compaction) (Compacted, error) {
	h, err := checkFrame(batch)
	if err != nil {
		return Compacted{}, err
	}
	keep := make([]bool, 0, min(int(max(h.Count, 0)), len(batch))) // grows with what is there, not with what is claimed
	kept, tombstones, latest := 0, 0, NoTimestamp
	err = Records(batch, c.MaxBytes, func(r Record) error {
		ok := c.Keep(h.BaseOffset+int64(r.OffsetDelta), r)
		if keep = append(keep, ok); ok {
			kept++
			latest = max(latest, r.Timestamp)
			if r.Value == nil {
				tombstones++
			}
		}
		return nil
	})
	if err != nil {
		return Compacted{}, err
	}
	_, stamped := h.DeleteHorizon()
	stamp := tombstones > 0 && !stamped && c.Horizon >= 0
	switch {
	case kept == 0:
		return Compacted{}, nil
	case kept == len(keep) && !stamp:
		return Compacted{Batch: batch, Tombstones: tombstones}, nil
	}
	if stamp {
		h.BaseTimestamp = c.Horizon
		h.Attributes |= attrDeleteHorizon
	}
	if h.TimestampType() == CreateTime {
		h.MaxTimestamp = latest
	}
	h.Count = int32(kept)
	out, err := rewrite(batch, h, keep, c.MaxBytes)
	return Compacted{Batch: out, Tombstones: tombstones}, err
}

// rewrite makes a batch of the records that are kept, with h for a header.
func rewrite(batch []byte, h Header, keep []bool, maxBytes int) ([]byte, error) {
	out := &capped{b: append(make([]byte, 0, len(batch)), batch[:BatchOverhead]...), most: BatchOverhead + maxBytes}
	w, release, err := compressor(h.Codec(), Levels{}, out)
	if err != nil {
		return nil, err
	}
	defer release()
	var rec, frame []byte
	i := 0
	err = Records(batch, maxBytes, func(r Record) error {
		if i++; !keep[i-1] {
			return nil
		}
		rec = appendRecord(rec[:0], r.Timestamp-h.BaseTimestamp, r.OffsetDelta, r.Key, r.Value, r.Headers)
		frame = append(binary.AppendVarint(frame[:0], int64(len(rec))), rec...)
		_, err := w.Write(frame)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	putHeader(out.b, h)
	return seal(out.b)
}

// EmptyBatch returns a batch without records that stands for b, one whole batch: it has its offsets, leader epoch, producer and
// sequence. It is what Kafka leaves of a producer's last batch, so that the sequence survives the records (DefaultRecordBatch.writeEmptyHeader).
func EmptyBatch(b []byte) ([]byte, error) {
	h, err := checkFrame(b)
	if err != nil {
		return nil, err
	}
	out := append([]byte(nil), b[:BatchOverhead]...)
	h.Attributes &^= attrCodec | attrDeleteHorizon
	h.BaseTimestamp, h.Count = NoTimestamp, 0
	putHeader(out, h)
	return seal(out)
}

// putHeader sets what compaction changes of a header, apart from length and CRC.
func putHeader(b []byte, h Header) {
	be := binary.BigEndian
	be.PutUint16(b[posAttributes:], uint16(h.Attributes))
	be.PutUint64(b[posBaseTimestamp:], uint64(h.BaseTimestamp))
	be.PutUint64(b[posMaxTimestamp:], uint64(h.MaxTimestamp))
	be.PutUint32(b[posCount:], uint32(h.Count))
}
