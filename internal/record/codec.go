package record

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Codec is how a batch's records are compressed: the low three bits of its attributes.
type Codec int8

// The codecs of Kafka.
const (
	None   Codec = 0
	Gzip   Codec = 1
	Snappy Codec = 2
	LZ4    Codec = 3
	Zstd   Codec = 4
)

var codecNames = [...]string{"none", "gzip", "snappy", "lz4", "zstd"}

// Valid reports whether the codec is one of the five.
func (c Codec) Valid() bool { return c >= None && c <= Zstd }

// String returns the codec's name as compression.type spells it.
func (c Codec) String() string {
	if !c.Valid() {
		return fmt.Sprintf("codec(%d)", int8(c))
	}
	return codecNames[c]
}

// ParseCodec is the inverse of String; "uncompressed" is another name of None. Other values of compression.type
// ("producer") are no codecs and fail.
func ParseCodec(s string) (Codec, error) {
	for c, name := range codecNames {
		if s == name {
			return Codec(c), nil
		}
	}
	if s == "uncompressed" {
		return None, nil
	}
	return None, fmt.Errorf("unknown compression codec %q", s)
}

// zstdMaxWindow bounds what a frame's header can make the decoder keep. The reference encoder's levels up to 19 stay
// within 8 MiB, and its decoder refuses more than 128 MiB; 32 MiB is level 20.
const zstdMaxWindow = 32 << 20

var (
	gzipReaders sync.Pool // *gzip.Reader
	lz4Readers  = sync.Pool{New: func() any { return lz4.NewReader(nil) }}
	zstdReaders sync.Pool // *zstd.Decoder
	// Writers by how hard they try, as Levels' steps count.
	gzipWriters [gzip.BestCompression + 1]sync.Pool // *gzip.Writer
	lz4Writers  [lz4Steps]sync.Pool                 // *lz4.Writer
	zstdWriters [zstdSteps]sync.Pool                // *zstd.Encoder
)

// decompressor returns a reader of src decompressed, and what gives its resources back; after that the reader must not
// be used. Memory is bounded by the formats' blocks and windows, whatever src claims.
func decompressor(c Codec, src []byte) (io.Reader, func(), error) {
	switch c {
	case Gzip:
		zr, _ := gzipReaders.Get().(*gzip.Reader)
		if zr == nil {
			zr = new(gzip.Reader)
		}
		if err := zr.Reset(bytes.NewReader(src)); err != nil {
			gzipReaders.Put(zr)
			return nil, nil, err
		}
		return zr, func() { gzipReaders.Put(zr) }, nil
	case Snappy:
		return newSnappyReader(src), func() {}, nil
	case LZ4:
		lr := lz4Readers.Get().(*lz4.Reader)
		lr.Reset(bytes.NewReader(src))
		return lr, func() { lr.Reset(nil); lz4Readers.Put(lr) }, nil
	case Zstd:
		zr, _ := zstdReaders.Get().(*zstd.Decoder)
		if zr == nil {
			var err error
			// Concurrency 1 decodes on the caller's goroutine: none is started, so none can leak from the pool.
			zr, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(zstdMaxWindow))
			if err != nil {
				return nil, nil, err
			}
		}
		if err := zr.Reset(bytes.NewReader(src)); err != nil {
			return nil, nil, err
		}
		return zr, func() { _ = zr.Reset(nil); zstdReaders.Put(zr) }, nil
	default:
		return nil, nil, fmt.Errorf("unknown compression codec %d", int8(c))
	}
}

// compress appends src, compressed, to dst.
func compress(c Codec, dst, src []byte) ([]byte, error) {
	out := &capped{b: dst, most: math.MaxInt}
	w, release, err := compressor(c, Levels{}, out)
	if err != nil {
		return nil, err
	}
	defer release()
	if _, err := w.Write(src); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.b, nil
}

// compressor returns a writer that passes what it is given on to out, compressed; all of it once it is closed. release gives its
// resources back; after that the writer must not be used.
func compressor(c Codec, levels Levels, out io.Writer) (io.WriteCloser, func(), error) {
	switch c {
	case None:
		return asIs{out}, func() {}, nil
	case Gzip:
		step := levels.gzip()
		pool := &gzipWriters[step]
		zw, _ := pool.Get().(*gzip.Writer)
		if zw == nil {
			level := step
			if step == 0 {
				level = gzip.DefaultCompression
			}
			var err error
			if zw, err = gzip.NewWriterLevel(nil, level); err != nil {
				return nil, nil, err
			}
		}
		zw.Reset(out)
		return zw, func() { zw.Reset(nil); pool.Put(zw) }, nil
	case Snappy:
		return &snappyWriter{out: out}, func() {}, nil
	case LZ4:
		step := levels.lz4()
		pool := &lz4Writers[step]
		lw, _ := pool.Get().(*lz4.Writer)
		if lw == nil {
			lw = lz4.NewWriter(nil)
			// What the Java client writes: 64 KiB independent blocks, no checksum of the content.
			if err := lw.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false), lz4.CompressionLevelOption(lz4Levels[step])); err != nil {
				return nil, nil, err
			}
		}
		lw.Reset(out)
		return lw, func() { lw.Reset(nil); pool.Put(lw) }, nil
	case Zstd:
		step := levels.zstd()
		pool := &zstdWriters[step]
		zw, _ := pool.Get().(*zstd.Encoder)
		if zw == nil {
			var err error
			// Concurrency 1 encodes on the caller's goroutine, as for decoders. The window is that of the reference encoder's
			// default level.
			zw, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true), zstd.WithWindowSize(zstdWindow),
				zstd.WithLowerEncoderMem(true), zstd.WithEncoderLevel(zstdLevels[step]))
			if err != nil {
				return nil, nil, err
			}
		}
		zw.Reset(out)
		return zw, func() { zw.Reset(nil); pool.Put(zw) }, nil
	default:
		return nil, nil, fmt.Errorf("unknown compression codec %d", int8(c))
	}
}

// zstdWindow is how far back the encoder looks for what repeats.
const zstdWindow = 2 << 20

// asIs is the codec None.
type asIs struct{ io.Writer }

func (asIs) Close() error { return nil }

// capped collects what is written, up to most bytes.
type capped struct {
	b    []byte
	most int
}

func (c *capped) Write(p []byte) (int, error) {
	if len(p) > c.most-len(c.b) {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, c.most)
	}
	c.b = append(c.b, p...)
	return len(p), nil
}

// Snappy comes in two forms: the frames of snappy-java ("xerial"), which the Java client, librdkafka and franz-go write,
// and one bare block. Frames: a magic of 8 bytes, two versions of 4, then blocks, each after its length in 4 bytes.
var xerialMagic = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

const (
	xerialHeader = 16
	xerialBlock  = 32 << 10 // uncompressed; snappy-java's default
	// The densest element of the format copies 64 bytes for 3. A block that claims more than that is refused before the
	// memory for it is taken.
	snappyMaxRatio = 22
)

type snappyReader struct {
	src    []byte
	framed bool
	block  []byte // decompressed, what is left of it
	buf    []byte
}

func newSnappyReader(src []byte) *snappyReader {
	r := &snappyReader{src: src}
	if len(src) >= xerialHeader && bytes.HasPrefix(src, xerialMagic) {
		r.framed, r.src = true, src[xerialHeader:]
	}
	return r
}

func (r *snappyReader) Read(p []byte) (int, error) {
	for len(r.block) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.block)
	r.block = r.block[n:]
	return n, nil
}

func (r *snappyReader) next() error {
	if len(r.src) == 0 {
		return io.EOF
	}
	block := r.src
	if r.framed {
		// Concatenated streams repeat the header between blocks.
		if len(r.src) >= xerialHeader && bytes.HasPrefix(r.src, xerialMagic) {
			r.src = r.src[xerialHeader:]
			return nil
		}
		if len(r.src) < 4 {
			return fmt.Errorf("snappy: block length of %d bytes", len(r.src))
		}
		n := binary.BigEndian.Uint32(r.src)
		if uint64(n) > uint64(len(r.src)-4) {
			return fmt.Errorf("snappy: block of %d bytes, %d left", n, len(r.src)-4)
		}
		block = r.src[4 : 4+n]
		r.src = r.src[4+n:]
	} else {
		r.src = nil
	}
	n, err := s2.DecodedLen(block)
	if err != nil {
		return fmt.Errorf("snappy: %w", err)
	}
	if n > snappyMaxRatio*len(block) {
		return fmt.Errorf("snappy: block of %d bytes claims %d decompressed", len(block), n)
	}
	if cap(r.buf) < n {
		r.buf = make([]byte, n)
	}
	r.block, err = s2.Decode(r.buf[:n], block)
	if err != nil {
		return fmt.Errorf("snappy: %w", err)
	}
	return nil
}

// snappyWriter writes frames of blocks.
type snappyWriter struct {
	out     io.Writer
	begun   bool
	block   []byte // not yet written
	scratch []byte
}

// Write implements io.Writer.
func (w *snappyWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		take := min(len(p), xerialBlock-len(w.block))
		w.block = append(w.block, p[:take]...)
		p = p[take:]
		if len(w.block) == xerialBlock {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// Close writes what is left. It does not close what is beneath.
func (w *snappyWriter) Close() error { return w.flush() }

func (w *snappyWriter) flush() error {
	w.scratch = w.scratch[:0]
	if !w.begun {
		w.begun = true
		w.scratch = append(w.scratch, xerialMagic...)
		w.scratch = binary.BigEndian.AppendUint32(w.scratch, 1) // version
		w.scratch = binary.BigEndian.AppendUint32(w.scratch, 1) // oldest version that can read it
	}
	if len(w.block) > 0 {
		block := s2.EncodeSnappy(nil, w.block)
		w.scratch = binary.BigEndian.AppendUint32(w.scratch, uint32(len(block)))
		w.scratch = append(w.scratch, block...)
		w.block = w.block[:0]
	}
	_, err := w.out.Write(w.scratch)
	return err
}
