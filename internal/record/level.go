package record

import (
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Levels say how hard the codecs try, as compression.gzip.level, compression.lz4.level and compression.zstd.level count (KIP-390). 0 is a
// codec's default; what lies outside of a codec's range counts as the nearest end of it.
type Levels struct {
	Gzip int32 // 1 to 9; -1 is the default, too
	LZ4  int32 // 1 to 17; 9 is the default
	Zstd int32 // up to 22; 3 is the default
}

// gzip returns the writers' step: the level, 0 for the default.
func (l Levels) gzip() int {
	if l.Gzip <= 0 {
		return 0
	}
	return int(min(l.Gzip, gzip.BestCompression))
}

// lz4Levels are the steps of LZ4. As in Kafka the default is the fast compressor, and every other level the one that searches; that of this
// program has nine depths to search to, which Kafka's levels from 10 on are the last of.
var lz4Levels = [lz4Steps]lz4.CompressionLevel{lz4.Fast, lz4.Level1, lz4.Level2, lz4.Level3, lz4.Level4, lz4.Level5, lz4.Level6, lz4.Level7, lz4.Level8, lz4.Level9}

const lz4Steps = 10

func (l Levels) lz4() int {
	switch {
	case l.LZ4 == 0, l.LZ4 == 9:
		return 0
	case l.LZ4 > 9:
		return lz4Steps - 1
	}
	return int(max(l.LZ4, 1))
}

// zstdLevels are the steps of zstd: below 3, 3 to 5, and from 6 on. The encoder's last one is left out: it takes more than 30 MB.
var zstdLevels = [zstdSteps]zstd.EncoderLevel{zstd.SpeedDefault, zstd.SpeedFastest, zstd.SpeedBetterCompression}

const zstdSteps = 3

func (l Levels) zstd() int {
	switch {
	case l.Zstd == 0:
		return 0
	case l.Zstd < 3:
		return 1
	case l.Zstd < 6:
		return 0
	}
	return 2
}
