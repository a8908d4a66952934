package record

import (
	"encoding/binary"
	"errors"
	"testing"
)

// FuzzRecompress opens a batch of any codec and any content and stores it anew in any other: what comes out is a sound batch
// with the same records, and no more is opened than the cap allows.
func FuzzRecompress(f *testing.F) {
	for _, c := range codecs {
		b := build(f, c, sample(3))
		f.Add(byte(c), byte(Zstd), b[BatchOverhead:], int32(3))
		f.Add(byte(c), byte(None), b[BatchOverhead:len(b)-1], int32(3))
	}
	frame := build(f, None, sample(1))[:BatchOverhead]
	f.Fuzz(func(t *testing.T, from, to byte, body []byte, count int32) {
		batch := rebody(frame, Codec(from&attrCodec), body)
		binary.BigEndian.PutUint32(batch[23:], uint32(count-1))
		binary.BigEndian.PutUint32(batch[57:], uint32(count))
		const limit = 256 << 10
		target := Codec(to % 5)
		out, err := Recompress(batch, target, limit)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("untyped: %v", err)
			}
			return
		}
		h, err := Check(out)
		if err != nil || h.Codec() != target || h.Count != count {
			t.Fatalf("%+v, %v", h, err)
		}
		n := int32(0)
		was := Records(batch, limit, func(Record) error { return nil })
		if err := Records(out, limit, func(Record) error { n++; return nil }); (err == nil) != (was == nil) || err == nil && n != count {
			t.Fatalf("%d records of %d, %v; before: %v", n, count, err, was)
		}
	})
}

// A batch that is opened for another codec is looked at as an uncompressed one is: a header that claims more records than there
// are would take offsets that no record has, and stop consumers there.
func TestRecompressCountsTheRecords(t *testing.T) {
	for _, c := range codecs {
		b := build(t, c, sample(3))
		binary.BigEndian.PutUint32(b[57:], 4)
		if _, err := Recompress(b, None, 1<<20); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: four records claimed, three there: %v", c, err)
		}
	}
}
