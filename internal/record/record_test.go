package record

import (
	"bytes"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/twmb/franz-go/pkg/kmsg"
)

var codecs = []Codec{None, Gzip, Snappy, LZ4, Zstd}

// kept is a Record that outlives the callback.
type kept struct {
	Delta      int32
	Timestamp  int64
	Key, Value []byte
	Headers    []RecordHeader
}

func keep(r Record) kept {
	k := kept{Delta: r.OffsetDelta, Timestamp: r.Timestamp, Key: clone(r.Key), Value: clone(r.Value)}
	for _, h := range r.Headers {
		k.Headers = append(k.Headers, RecordHeader{Key: clone(h.Key), Value: clone(h.Value)})
	}
	return k
}

func clone(b []byte) []byte {
	if b == nil {
		return nil
	}
	return append([]byte{}, b...)
}

func all(t testing.TB, batch []byte) []kept {
	t.Helper()
	var out []kept
	if err := Records(batch, 64<<20, func(r Record) error { out = append(out, keep(r)); return nil }); err != nil {
		t.Fatalf("Records: %v", err)
	}
	return out
}

// sample is records with everything that can differ: null, empty, large, headers that repeat.
func sample(n int) []kept {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	out := make([]kept, n)
	for i := range out {
		out[i] = kept{Delta: int32(i), Timestamp: 1_700_000_000_000 + int64(rng.IntN(2000)-1000)}
		switch i % 4 {
		case 0:
			out[i].Value = []byte(strings.Repeat(fmt.Sprintf("value %d ", i), rng.IntN(200)+1))
		case 1:
			out[i].Key, out[i].Value = []byte{}, []byte{}
		case 2:
			out[i].Key = fmt.Appendf(nil, "key %d", i)
		case 3:
			out[i].Key = fmt.Appendf(nil, "k%d", i)
			out[i].Value = make([]byte, rng.IntN(5000))
			for j := range out[i].Value {
				out[i].Value[j] = byte(rng.Uint32())
			}
			out[i].Headers = []RecordHeader{{Key: []byte("h"), Value: []byte("1")}, {Key: []byte("h")}, {Key: []byte(""), Value: []byte{}}}
		}
	}
	return out
}

func build(t testing.TB, c Codec, recs []kept) []byte {
	t.Helper()
	b := NewBuilder()
	b.Codec, b.BaseOffset, b.LeaderEpoch = c, 1000, 7
	for _, r := range recs {
		b.AddAt(r.Delta, r.Timestamp, r.Key, r.Value, r.Headers...)
	}
	batch, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return batch
}

func TestBuiltBatchesReadBackInEveryCodec(t *testing.T) {
	for _, c := range codecs {
		for _, n := range []int{1, 3, 100, 2000} {
			want := sample(n)
			batch := build(t, c, want)
			h, err := Validate(batch)
			if err != nil {
				t.Fatalf("%s: %v", c, err)
			}
			if h.Codec() != c || h.BaseOffset != 1000 || h.LastOffset() != 1000+int64(n)-1 || h.LeaderEpoch != 7 || h.Size() != len(batch) {
				t.Fatalf("%s: header %+v", c, h)
			}
			if got := all(t, batch); !reflect.DeepEqual(got, want) {
				t.Fatalf("%s, %d records: read back something else", c, n)
			}
		}
	}
}

// TestAgreesWithKmsg builds a batch with the types of franz-go, an independent implementation of the format, and reads it
// here; then the other way round.
func TestAgreesWithKmsg(t *testing.T) {
	rb := kmsg.NewRecordBatch()
	rb.FirstOffset, rb.PartitionLeaderEpoch, rb.Magic = 42, 9, 2
	rb.Attributes, rb.LastOffsetDelta = 0x10, 1
	rb.FirstTimestamp, rb.MaxTimestamp = 5000, 5010
	rb.ProducerID, rb.ProducerEpoch, rb.FirstSequence, rb.NumRecords = 77, 3, 12, 2
	one := kmsg.Record{Key: nil, Value: []byte("v"), Headers: []kmsg.Header{{Key: "a", Value: nil}}}
	two := kmsg.Record{TimestampDelta64: 10, OffsetDelta: 1, Key: []byte{}, Value: nil}
	for _, r := range []*kmsg.Record{&one, &two} {
		r.Length = int32(len(r.AppendTo(nil)) - 1) // a length below 64 takes one byte
		rb.Records = r.AppendTo(rb.Records)
	}
	raw := rb.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))

	h, err := Validate(raw)
	if err != nil {
		t.Fatal(err)
	}
	want := Header{BaseOffset: 42, Length: int32(len(raw) - 12), LeaderEpoch: 9, Magic: 2, CRC: h.CRC, Attributes: 0x10, LastOffsetDelta: 1,
		BaseTimestamp: 5000, MaxTimestamp: 5010, ProducerID: 77, ProducerEpoch: 3, BaseSequence: 12, Count: 2}
	if h != want || !h.IsTransactional() || h.IsControl() {
		t.Fatalf("header\n%+v, want\n%+v", h, want)
	}
	got := all(t, raw)
	if len(got) != 2 || got[0].Key != nil || string(got[0].Value) != "v" || len(got[0].Headers) != 1 || got[0].Headers[0].Value != nil ||
		got[1].Key == nil || got[1].Value != nil || got[1].Timestamp != 5010 {
		t.Fatalf("records %+v", got)
	}

	ours := NewBuilder()
	ours.BaseOffset, ours.LeaderEpoch, ours.Transactional, ours.ProducerID, ours.ProducerEpoch, ours.BaseSequence = 42, 9, true, 77, 3, 12
	ours.Add(5000, nil, []byte("v"), RecordHeader{Key: []byte("a")}).Add(5010, []byte{}, nil)
	built, err := ours.Build()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(built, raw) {
		t.Fatalf("built\n%x, kmsg\n%x", built, raw)
	}
	var back kmsg.RecordBatch
	if err := back.ReadFrom(built); err != nil || back.NumRecords != 2 || uint32(back.CRC) != h.CRC {
		t.Fatalf("kmsg reads %+v: %v", back, err)
	}
}

func TestForeignCompressorsAreRead(t *testing.T) {
	want := sample(50)
	plain := build(t, None, want)
	body := plain[BatchOverhead:]
	var gz bytes.Buffer
	zw := stdgzip.NewWriter(&gz)
	if _, err := zw.Write(body); err != nil || zw.Close() != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		c    Codec
		body []byte
	}{
		"standard library's gzip": {Gzip, gz.Bytes()},
		"bare snappy block":       {Snappy, s2.EncodeSnappy(nil, body)},
		"concatenated xerial":     {Snappy, append(compressed(t, Snappy, body[:1000]), compressed(t, Snappy, body[1000:])...)},
	}
	for name, c := range cases {
		if got := all(t, rebody(plain, c.c, c.body)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: read something else", name)
		}
	}
}

// rebody puts another body and codec into a batch and repairs length and CRC.
func rebody(batch []byte, c Codec, body []byte) []byte {
	out := append(append([]byte{}, batch[:BatchOverhead]...), body...)
	out[22] = out[22]&^attrCodec | byte(c)
	out, err := seal(out)
	if err != nil {
		panic(err)
	}
	return out
}

func mutate(b []byte, fix bool, f func([]byte) []byte) []byte {
	out := f(append([]byte{}, b...))
	if fix {
		setCRC(out)
	}
	return out
}

func TestValidateTellsErrorsApart(t *testing.T) {
	good := build(t, None, sample(5))
	put32 := func(pos int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint32(b[pos:], v); return b }
	}
	cases := []struct {
		name string
		b    []byte
		want error
	}{
		{"nothing", nil, ErrEmpty},
		{"half a header", good[:30], ErrTruncated},
		{"half a batch", good[:len(good)-1], ErrTruncated},
		{"old magic", mutate(good, true, func(b []byte) []byte { b[16] = 1; return b }), ErrMagic},
		{"old magic, shorter than a v2 header", mutate(good, false, func(b []byte) []byte { b[16] = 0; return b[:34] }), ErrMagic},
		{"command frame", mutate(good, true, func(b []byte) []byte { b[16] = 0x80; return b }), ErrMagic},
		{"bit flip in the records", mutate(good, false, func(b []byte) []byte { b[len(b)-3] ^= 4; return b }), ErrCorrupt},
		{"bit flip in the attributes", mutate(good, false, func(b []byte) []byte { b[22] ^= 8; return b }), ErrCorrupt},
		{"negative length", mutate(good, false, put32(8, 0xffffffff)), ErrCorrupt},
		{"length below the header's", mutate(good, false, put32(8, 48)), ErrCorrupt},
		{"length of 2 GiB", mutate(good, false, put32(8, 0x7fffffff)), ErrTruncated},
		{"two batches", append(append([]byte{}, good...), good...), ErrMultiple},
		{"garbage after the batch", append(append([]byte{}, good...), 0), ErrMultiple},
		{"no records", mutate(good, true, put32(57, 0)), ErrInvalid},
		{"negative count", mutate(good, true, put32(57, 0xffffffff)), ErrInvalid},
		{"count and offsets differ", mutate(good, true, put32(57, 4)), ErrInvalid},
		{"more records than offsets", mutate(good, true, put32(57, 6)), ErrInvalid},
		{"negative last offset delta", mutate(good, true, put32(23, 0x80000000)), ErrInvalid},
		{"offset overflow", mutate(good, true, func(b []byte) []byte { binary.BigEndian.PutUint64(b, 1<<63-3); return b }), ErrInvalid},
		{"unknown codec", mutate(good, true, func(b []byte) []byte { b[22] |= 5; return b }), ErrInvalid},
		{"producer without sequence", mutate(good, true, func(b []byte) []byte { binary.BigEndian.PutUint64(b[43:], 5); return b }), ErrInvalid},
		{"transaction without producer", mutate(good, true, func(b []byte) []byte { b[22] |= 0x10; return b }), ErrInvalid},
	}
	kinds := []error{ErrEmpty, ErrTruncated, ErrMagic, ErrCorrupt, ErrMultiple}
	for _, c := range cases {
		_, err := Validate(c.b)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		for _, k := range kinds {
			if k != c.want && errors.Is(err, k) {
				t.Errorf("%s: %v also matches %v", c.name, err, k)
			}
		}
	}
	if !errors.Is(ErrMultiple, ErrInvalid) {
		t.Error("ErrMultiple must match ErrInvalid")
	}
}

func TestCheckAcceptsCompactedBatches(t *testing.T) {
	b := NewBuilder()
	b.BaseOffset = 10
	b.AddAt(2, 1, []byte("k"), nil).AddAt(5, 2, []byte("l"), nil)
	batch, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if h, err := Check(append(batch, "more"...)); err != nil || h.LastOffset() != 15 || h.Count != 2 {
		t.Fatalf("%+v %v", h, err)
	}
	if _, err := Validate(batch); !errors.Is(err, ErrInvalid) {
		t.Fatalf("a producer's batch with gaps: %v", err)
	}
	for _, c := range codecs { // compaction can leave a header alone
		empty := rebody(batch, c, nil)
		binary.BigEndian.PutUint32(empty[57:], 0)
		setCRC(empty)
		if h, err := Check(empty); err != nil || h.Count != 0 {
			t.Fatalf("%+v %v", h, err)
		}
		if got := all(t, empty); len(got) != 0 {
			t.Fatalf("%d records", len(got))
		}
	}
}

func TestValidateAllocatesNothing(t *testing.T) {
	good := build(t, Zstd, sample(100))
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Validate(good); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestSetOffsetAndAppendTime(t *testing.T) {
	b := build(t, LZ4, sample(10))
	SetOffset(b, 1<<40, 99)
	h, err := Validate(b)
	if err != nil || h.BaseOffset != 1<<40 || h.LeaderEpoch != 99 {
		t.Fatalf("%+v %v", h, err)
	}
	SetAppendTime(b, 123456)
	if h, err = Validate(b); err != nil || h.TimestampType() != LogAppendTime || h.MaxTimestamp != 123456 || h.Codec() != LZ4 {
		t.Fatalf("%+v %v", h, err)
	}
	for _, r := range all(t, b) {
		if r.Timestamp != 123456 {
			t.Fatalf("timestamp %d", r.Timestamp)
		}
	}
}

func TestEachWalksWholeBatches(t *testing.T) {
	a, b := build(t, None, sample(2)), build(t, Gzip, sample(3))
	var got [][]byte
	walk := func(in []byte) error {
		got = got[:0]
		return Each(in, func(_ Header, batch []byte) error { got = append(got, batch); return nil })
	}
	both := append(append([]byte{}, a...), b...)
	if err := walk(both); err != nil || len(got) != 2 || !bytes.Equal(got[0], a) || !bytes.Equal(got[1], b) {
		t.Fatalf("%d batches, %v", len(got), err)
	}
	if err := walk(both[:len(both)-1]); !errors.Is(err, ErrTruncated) || len(got) != 1 {
		t.Fatalf("%d batches, %v", len(got), err)
	}
	binary.BigEndian.PutUint32(both[8:], 0)
	if err := walk(both); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	stop := errors.New("stop")
	if err := Each(b, func(Header, []byte) error { return stop }); err != stop {
		t.Fatal(err)
	}
}

func TestRecompressBetweenAllCodecs(t *testing.T) {
	want := sample(300)
	for _, from := range codecs {
		batch := build(t, from, want)
		before := append([]byte{}, batch...)
		for _, to := range codecs {
			out, err := Recompress(batch, to, Levels{}, 16<<20, 16<<20)
			if err != nil {
				t.Fatalf("%s to %s: %v", from, to, err)
			}
			h, err := Validate(out)
			if err != nil || h.Codec() != to || h.BaseOffset != 1000 || h.Count != 300 {
				t.Fatalf("%s to %s: %+v %v", from, to, h, err)
			}
			if got := all(t, out); !reflect.DeepEqual(got, want) {
				t.Fatalf("%s to %s: other records", from, to)
			}
		}
		if !bytes.Equal(before, batch) {
			t.Fatalf("%s: the source changed", from)
		}
		if _, err := Recompress(batch, Gzip, Levels{}, 1000, 16<<20); !errors.Is(err, ErrTooLarge) {
			t.Fatalf("%s: %v", from, err)
		}
	}
}

// Every level that Kafka takes gives sound batches; a codec's hardest is smaller than its fastest, and none is its default.
func TestRecompressAtEveryLevel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var want []kept
	for i := range 400 {
		v := make([]byte, 0, 200)
		for len(v) < 180 {
			v = fmt.Appendf(v, "word%d ", rng.IntN(300))
		}
		want = append(want, kept{Delta: int32(i), Timestamp: 1_700_000_000_000, Value: v})
	}
	batch := build(t, None, want)
	at := func(to Codec, l Levels) []byte {
		t.Helper()
		out, err := Recompress(batch, to, l, 16<<20, 16<<20)
		if err != nil {
			t.Fatalf("%s at %+v: %v", to, l, err)
		}
		if h, err := Validate(out); err != nil || h.Count != 400 || !reflect.DeepEqual(all(t, out), want) {
			t.Fatalf("%s at %+v: %+v %v", to, l, h, err)
		}
		return out
	}
	for _, c := range []struct {
		codec                  Codec
		of                     func(n int32) Levels
		fast, hard, normal, hi int32
	}{
		{Gzip, func(n int32) Levels { return Levels{Gzip: n} }, 1, 9, -1, 9},
		{LZ4, func(n int32) Levels { return Levels{LZ4: n} }, 9, 17, 9, 17},
		{Zstd, func(n int32) Levels { return Levels{Zstd: n} }, -131072, 22, 3, 22},
	} {
		for n := int32(-1); n <= c.hi; n++ {
			at(c.codec, c.of(n))
		}
		fast, hard := at(c.codec, c.of(c.fast)), at(c.codec, c.of(c.hard))
		if len(hard) >= len(fast) {
			t.Errorf("%s: %d bytes at level %d, %d at %d", c.codec, len(fast), c.fast, len(hard), c.hard)
		}
		if normal := at(c.codec, c.of(c.normal)); !bytes.Equal(normal, at(c.codec, Levels{})) || !bytes.Equal(normal, build(t, c.codec, want)) {
			t.Errorf("%s: level %d is not the default", c.codec, c.normal)
		}
	}
}

func TestDecompressionIsCapped(t *testing.T) {
	b := NewBuilder()
	for range 100 {
		b.Add(1, nil, make([]byte, 100_000)) // 10 MB of zeros
	}
	for _, c := range codecs[1:] {
		b.Codec = c
		batch, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		err = Records(batch, 1<<20, func(Record) error { n++; return nil })
		if !errors.Is(err, ErrTooLarge) || n == 0 || n > 11 {
			t.Errorf("%s: %d records, %v", c, n, err)
		}
		size := b.Size() - BatchOverhead
		if err := Records(batch, size, func(Record) error { return nil }); err != nil {
			t.Errorf("%s: exactly the cap: %v", c, err)
		}
		if err := Records(batch, size-1, func(Record) error { return nil }); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: one below: %v", c, err)
		}
	}
}

func TestHostileLengthsCostNothing(t *testing.T) {
	plain := build(t, None, sample(1))
	record := binary.AppendVarint(nil, 1<<30) // a record of 1 GiB, and nothing of it
	type hostile struct {
		name  string
		batch []byte
		cap   uint64 // bytes allocated for each reading
	}
	const little = 512 << 10
	var cases []hostile
	for _, c := range codecs {
		body, err := compress(c, nil, record)
		if err != nil {
			t.Fatal(err)
		}
		cases = append(cases, hostile{c.String() + " record length", rebody(plain, c, body), little})
	}
	bare := append(binary.AppendUvarint(nil, 1<<31), "abc"...)
	framed := append(compressed(t, Snappy, nil), 0x7f, 0xff, 0xff, 0xff, 'a')
	// A zstd frame with a window descriptor of 2 GiB, and one of 32 MiB that is allowed, before a raw block of 5 bytes.
	window := func(d byte) []byte { return []byte{0x28, 0xb5, 0x2f, 0xfd, 0, d, 0x29, 0, 0, 1, 2, 3, 4, 5} }
	cases = append(cases, hostile{"snappy block", rebody(plain, Snappy, bare), little}, hostile{"snappy frame", rebody(plain, Snappy, framed), little},
		hostile{"zstd window", rebody(plain, Zstd, window(21<<3)), little}, hostile{"zstd largest window", rebody(plain, Zstd, window(15<<3)), 2 * zstdMaxWindow})
	for _, c := range cases {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 20 {
			if err := Records(c.batch, 2<<30, func(Record) error { return nil }); err == nil {
				t.Errorf("%s: accepted", c.name)
			}
		}
		runtime.ReadMemStats(&after)
		if got := (after.TotalAlloc - before.TotalAlloc) / 20; got > c.cap {
			t.Errorf("%s: %d bytes allocated", c.name, got)
		}
	}
}

func TestDamagedRecordsAreRefused(t *testing.T) {
	want := sample(40)
	for _, c := range codecs {
		good := build(t, c, want)
		trailing := rebody(good, c, append(append([]byte{}, good[BatchOverhead:]...), good[BatchOverhead:]...))
		short := rebody(good, c, good[BatchOverhead:len(good)-5])
		fewer := mutate(good, true, func(b []byte) []byte { binary.BigEndian.PutUint32(b[57:], 39); return b })
		more := mutate(good, true, func(b []byte) []byte { binary.BigEndian.PutUint32(b[57:], 41); return b })
		for name, b := range map[string][]byte{"trailing": trailing, "short": short, "fewer": fewer, "more": more} {
			err := Records(b, 64<<20, func(Record) error { return nil })
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s %s: %v", c, name, err)
			}
		}
	}
}

func TestRecordsStopsAtTheCallersError(t *testing.T) {
	stop := errors.New("enough")
	for _, c := range codecs {
		n := 0
		err := Records(build(t, c, sample(10)), 1<<20, func(Record) error {
			if n++; n == 3 {
				return stop
			}
			return nil
		})
		if err != stop || n != 3 {
			t.Errorf("%s: %d, %v", c, n, err)
		}
	}
}

func TestSequencesWrap(t *testing.T) {
	h := Header{BaseSequence: 1<<31 - 2, LastOffsetDelta: 3}
	if got := h.LastSequence(); got != 1 {
		t.Fatalf("%d", got)
	}
	if got := (Header{BaseSequence: -1, LastOffsetDelta: 3}).LastSequence(); got != -1 {
		t.Fatalf("%d", got)
	}
}

func TestCodecNames(t *testing.T) {
	for _, c := range codecs {
		if got, err := ParseCodec(c.String()); err != nil || got != c {
			t.Errorf("%s: %v %v", c, got, err)
		}
	}
	if c, err := ParseCodec("uncompressed"); err != nil || c != None {
		t.Error(c, err)
	}
	if _, err := ParseCodec("producer"); err == nil {
		t.Error("producer is no codec")
	}
	if s := Codec(6).String(); s != "codec(6)" {
		t.Error(s)
	}
}

func FuzzValidate(f *testing.F) {
	for _, c := range codecs {
		f.Add(build(f, c, sample(3)))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Validate(b)
		if err != nil {
			return
		}
		if h.Size() != len(b) || h.Count != h.LastOffsetDelta+1 || h.LastOffset() < h.BaseOffset {
			t.Fatalf("accepted %+v of %d bytes", h, len(b))
		}
		if again, err := Check(b); err != nil || again != h {
			t.Fatalf("Check disagrees: %v", err)
		}
	})
}

func FuzzRecords(f *testing.F) {
	for _, c := range codecs {
		b := build(f, c, sample(3))
		f.Add(byte(c), b[BatchOverhead:], int32(3))
	}
	frame := build(f, None, sample(1))[:BatchOverhead]
	f.Fuzz(func(t *testing.T, codec byte, body []byte, count int32) {
		batch := rebody(frame, Codec(codec&attrCodec), body)
		binary.BigEndian.PutUint32(batch[23:], 1000)
		binary.BigEndian.PutUint32(batch[57:], uint32(count))
		const limit = 1 << 20
		n, size := int32(0), 0
		err := Records(batch, limit, func(r Record) error {
			n++
			size += len(r.Key) + len(r.Value)
			return nil
		})
		if err == nil && n != count {
			t.Fatalf("%d records of %d, no error", n, count)
		}
		if size > limit+len(body) {
			t.Fatalf("%d bytes of records beyond the cap", size)
		}
		if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) {
			t.Fatalf("untyped: %v", err)
		}
	})
}

var _ io.Reader = (*snappyReader)(nil)
