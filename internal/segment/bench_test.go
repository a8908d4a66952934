package segment

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// BenchmarkAppend appends batches of one size with Writeback after each, and a Flush for every 64 MiB, which is counted.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			l := onDisk(b, Config{}).open()
			batch := batchAt(b, 0, 1, 10, size, record.None)
			b.SetBytes(int64(len(batch)))
			b.ReportAllocs()
			unflushed, kept := 0, int64(0)
			for b.Loop() {
				record.SetOffset(batch, l.EndOffset(), 1)
				if err := l.Append(batch); err != nil {
					b.Fatal(err)
				}
				l.Writeback()
				if unflushed += len(batch); unflushed >= 64<<20 {
					flush(b, l)
					unflushed = 0
					if kept++; kept%16 == 0 { // a GiB is enough for the disk
						l.SetStartOffset(l.EndOffset())
						if err := l.Tidy(); err != nil {
							b.Fatal(err)
						}
					}
				}
			}
			flush(b, l)
			b.StopTimer()
			closeLog(b, l)
		})
	}
}

// BenchmarkReadSequential reads a warm GiB of 64 KiB batches from its beginning, a MiB at a time, again and again.
func BenchmarkReadSequential(b *testing.B) {
	l := onDisk(b, Config{SegmentBytes: 256 << 20}).open()
	defer closeLog(b, l)
	batch := batchAt(b, 0, 1, 10, 64<<10, record.None)
	for l.Size() < 1<<30 {
		record.SetOffset(batch, l.EndOffset(), 1)
		if err := l.Append(batch); err != nil {
			b.Fatal(err)
		}
		l.Writeback()
	}
	flush(b, l)
	for _, checked := range []bool{false, true} {
		b.Run(fmt.Sprintf("checked=%v", checked), func(b *testing.B) {
			read := l.Read
			if checked {
				read = l.ReadChecked
			}
			buf := make([]byte, 1<<20)
			b.ReportAllocs()
			from, end, total, n := int64(0), l.EndOffset(), int64(0), int64(0)
			for b.Loop() {
				got, err := read(from, end, len(buf), buf)
				if err != nil || len(got) == 0 {
					b.Fatal(len(got), err)
				}
				total += int64(len(got))
				n++
				if from += int64(len(got)/len(batch)) * 10; from >= end {
					from = 0
				}
			}
			b.SetBytes(total / n)
		})
	}
}

// BenchmarkReadAtRandom reads one batch at a random offset: the index's cost.
func BenchmarkReadAtRandom(b *testing.B) {
	l := onDisk(b, Config{}).open()
	defer closeLog(b, l)
	batch := batchAt(b, 0, 1, 10, 1<<10, record.None)
	for l.Size() < 64<<20 {
		record.SetOffset(batch, l.EndOffset(), 1)
		if err := l.Append(batch); err != nil {
			b.Fatal(err)
		}
	}
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	end := l.EndOffset()
	for off := int64(0); b.Loop(); off = (off + 7_368_787) % end {
		if got, err := l.Read(off, end, 1, buf); err != nil || len(got) == 0 {
			b.Fatal(len(got), err)
		}
	}
}

// BenchmarkIdleLogs opens logs that hold a few batches each, as a node does at its start, and measures the heap they keep:
// bytes/log freshly opened, and bytes/active after an append and a read of each (files are closed by the cache).
func BenchmarkIdleLogs(b *testing.B) {
	const n = 10_000
	root := b.TempDir()
	files := NewFiles(vfs.OS{}, 256)
	batch := batchAt(b, 0, 1, 2, 1000, record.None)
	for i := range n {
		l, err := Open(files, clock.System{}, filepath.Join(root, fmt.Sprintf("topic-%05d", i)), Config{}, 0, quiet)
		if err != nil {
			b.Fatal(err)
		}
		record.SetOffset(batch, 0, 1)
		if err := l.Append(batch); err != nil {
			b.Fatal(err)
		}
		l.shut(func(s *segment) { s.forget() }) // no sync: this is about memory
	}
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for b.Loop() {
		logs := make([]*Log, n)
		before := heap()
		begun := clock.System{}.Now()
		for i := range logs {
			l, err := Open(files, clock.System{}, filepath.Join(root, fmt.Sprintf("topic-%05d", i)), Config{}, 0, quiet)
			if err != nil {
				b.Fatal(err)
			}
			logs[i] = l
		}
		took := clock.System{}.Now().Sub(begun)
		opened := heap()
		buf := make([]byte, 4096)
		for i, l := range logs {
			record.SetOffset(batch, l.EndOffset(), 1)
			if err := l.Append(batch); err != nil {
				b.Fatal(err)
			}
			if _, err := l.Read(0, l.EndOffset(), len(buf), buf); err != nil {
				b.Fatal(err)
			}
			l.segs[0].log.dirty.Store(false) // as if flushed: this is about memory
			_ = i
		}
		active := heap()
		b.ReportMetric(float64(opened-before)/n, "bytes/log")
		b.ReportMetric(float64(active-before)/n, "bytes/active")
		b.ReportMetric(took.Seconds()*1e3, "open-ms")
		for _, l := range logs {
			l.shut(func(s *segment) { s.forget() })
			l.point.forget()
		}
		runtime.KeepAlive(logs)
	}
}

// BenchmarkClean compacts a million records of 260 bytes on disk, in batches of 60, of which each key has ten on average. MB/s are of the log as
// it was; the map's memory is reported.
func BenchmarkClean(b *testing.B) {
	for _, codec := range []record.Codec{record.None, record.LZ4} {
		b.Run(codec.String(), func(b *testing.B) {
			var read, left int64
			var keys *OffsetMap
			entries := 0
			for b.Loop() {
				b.StopTimer()
				l := onDisk(b, Config{SegmentBytes: 16 << 20}).open()
				rng := rand.New(rand.NewPCG(1, 2))
				value := bytes.Repeat([]byte("0123456789abcdef"), 15)
				for off := int64(0); off < 1<<20; {
					bd := record.NewBuilder()
					bd.BaseOffset, bd.LeaderEpoch, bd.Codec = off, 1, codec
					for range 60 {
						binary.BigEndian.PutUint64(value, rng.Uint64())
						bd.Add(t0, fmt.Appendf(nil, "key-%d", rng.IntN(100_000)), value)
					}
					batch, err := bd.Build()
					if err != nil {
						b.Fatal(err)
					}
					if err := l.Append(batch); err != nil {
						b.Fatal(err)
					}
					off += 60
				}
				flush(b, l)
				keys = NewOffsetMap(128 << 20)
				b.SetBytes(l.Size())
				b.StartTimer()
				c, err := l.Clean(CleanOptions{Limit: math.MaxInt64, Now: time.UnixMilli(t0), DeleteRetention: time.Hour, KeepTombstones: math.MaxInt64, Map: keys, MaxInflated: 64 << 20})
				if err != nil {
					b.Fatal(err)
				}
				for done := false; !done; {
					if done, err = c.Step(512 << 10); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				read, left, entries = c.Progress().Before, l.Size(), c.Progress().Keys
				closeLog(b, l)
				b.StartTimer()
			}
			b.ReportMetric(float64(keys.Bytes())/(1<<20), "map-MiB")
			b.ReportMetric(float64(entries), "keys")
			b.ReportMetric(float64(left)/float64(max(read, 1)), "left/before")
		})
	}
}
