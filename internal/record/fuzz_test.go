package record

import (
	"encoding/binary"
	"errors"
	"runtime"
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
		if _, err := Check(batch); err != nil {
			return // the caller has looked at that
		}
		const limit = 256 << 10
		target := Codec(to % 5)
		out, err := Recompress(batch, target, Levels{}, limit, limit)
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
		if _, err := Recompress(b, None, Levels{}, 1<<20, 1<<20); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: four records claimed, three there: %v", c, err)
		}
	}
}

func compressed(t testing.TB, c Codec, b []byte) []byte {
	t.Helper()
	out, err := compress(c, nil, b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// bomb is one record of so many zeros, which compress a thousandfold.
func bomb(t testing.TB, c Codec, size int) []byte {
	t.Helper()
	b := NewBuilder()
	b.Codec = None
	b.Add(1, nil, make([]byte, size))
	plain, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return rebody(plain, c, compressed(t, c, plain[BatchOverhead:]))
}

// allocated is what fn allocates, in bytes, all of it counted.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A batch that is small and becomes large is refused at the cap, and on the way there it costs windows and not what it claims
// or holds.
func TestBombsCostWindows(t *testing.T) {
	const size, limit = 64 << 20, 4 << 20
	for _, c := range []Codec{Gzip, Snappy, LZ4, Zstd} {
		b := bomb(t, c, size)
		for range 2 { // the second time with pooled readers
			got := allocated(func() {
				if _, err := Recompress(b, LZ4, Levels{}, limit, limit); !errors.Is(err, ErrTooLarge) {
					t.Errorf("%s: %v", c, err)
				}
			})
			if got > 24<<20 {
				t.Errorf("%s: %d bytes became %d MiB of memory", c, len(b), got>>20)
			}
			got = allocated(func() {
				if err := Records(b, limit, func(Record) error { return nil }); !errors.Is(err, ErrTooLarge) {
					t.Errorf("%s: %v", c, err)
				}
			})
			if got > 24<<20 {
				t.Errorf("%s: records of %d bytes took %d MiB of memory", c, len(b), got>>20)
			}
		}
	}
}

// What a few bytes claim to be (a window, a block, a content size) is at most allocated once, as far as the format has it, and
// never what it says beyond that.
func TestClaimsInCompressedBytesAreBounded(t *testing.T) {
	plain := build(t, None, sample(1))
	for name, c := range map[string]struct {
		codec Codec
		body  []byte
	}{
		"zstd window of 3.75 TiB":       {Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 1, 0, 0}},
		"zstd window of 32 MiB":         {Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x78, 1, 0, 0}},
		"zstd content of 2^63":          {Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 0, 0}},
		"snappy block of 4 GiB":         {Snappy, []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2, 3}},
		"snappy frame of 2 GiB":         {Snappy, append(compressed(t, Snappy, nil), 0x7f, 0xff, 0xff, 0xff, 'a')},
		"lz4 blocks of 4 MiB, none":     {LZ4, []byte{0x04, 0x22, 0x4d, 0x18, 0x64, 0x70, 0xb9, 0xff, 0xff, 0x3f, 0x00}},
		"lz4 content of 2^63":           {LZ4, []byte{0x04, 0x22, 0x4d, 0x18, 0x6c, 0x40, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 0}},
		"gzip with a header of nothing": {Gzip, []byte{0x1f, 0x8b, 8, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff}},
	} {
		b := rebody(plain, c.codec, c.body)
		got := allocated(func() {
			if err := Records(b, 64<<20, func(Record) error { return nil }); err == nil {
				t.Errorf("%s: accepted", name)
			}
		})
		if got > zstdMaxWindow+4<<20 {
			t.Errorf("%s: %d KiB of memory for %d bytes", name, got>>10, len(c.body))
		}
		t.Logf("%s: %d KiB", name, got>>10)
	}
}
