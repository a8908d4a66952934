// Command gen writes a log of every codec and shape of record into a directory, for Kafka's DumpLogSegments to read. It
// prints how many batches and records there are.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/vfs"
)

func main() {
	dir := flag.String("dir", "", "directory to write, which must be missing or empty")
	flag.Parse()
	if err := run(*dir); err != nil {
		slog.Error("gen", "error", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	if dir == "" {
		return fmt.Errorf("-dir is missing")
	}
	fsys := vfs.OS{}
	cfg := segment.Config{SegmentBytes: 96 << 10}
	l, err := segment.Open(segment.NewFiles(fsys, 16), clock.System{}, dir, cfg, 0, slog.Default())
	if err != nil {
		return err
	}
	records := 0
	const batches = 600
	for i := range batches {
		b, n, err := batch(i, l.EndOffset())
		if err != nil {
			return err
		}
		if err := l.Append(b); err != nil {
			return err
		}
		records += n
		if i%100 == 99 { // indexes are continued after a restart, of which every other one is a killed process's
			if i%200 == 199 {
				if err := l.Close(); err != nil {
					return err
				}
			} else if _, err := l.Flush(); err != nil {
				return err
			}
			if l, err = segment.Open(segment.NewFiles(fsys, 16), clock.System{}, dir, cfg, 0, slog.Default()); err != nil {
				return err
			}
		}
	}
	end := l.EndOffset()
	if err := l.Close(); err != nil {
		return err
	}
	snapshot := []segment.ProducerEntry{
		{ProducerID: 7, ProducerEpoch: 1, LastSequence: 41, LastOffset: end - 1, OffsetDelta: 3, Timestamp: 1_700_000_000_000, CoordinatorEpoch: -1, TxnFirstOffset: -1},
		{ProducerID: 8, LastSequence: 9, LastOffset: 12, Timestamp: 1_700_000_000_500, CoordinatorEpoch: 2, TxnFirstOffset: 10},
	}
	if err := segment.WriteProducerSnapshot(fsys, filepath.Join(dir, segment.ProducerSnapshotName(end)), snapshot); err != nil {
		return err
	}
	fmt.Println(batches, records)
	return nil
}

// batch builds the i-th batch: codecs take turns, and so do plain, idempotent, LogAppendTime and header-laden ones.
func batch(i int, base int64) ([]byte, int, error) {
	b := record.NewBuilder()
	b.BaseOffset, b.LeaderEpoch, b.Codec = base, int32(1+i/150), record.Codec(i%5)
	if i%3 == 1 {
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = 7, 1, int32(i)
	}
	n := 1 + i%12
	for j := range n {
		ts := int64(1_700_000_000_000 + 50*i - 120*(j%3))
		value := []byte(strings.Repeat(fmt.Sprintf("value %d of batch %d; ", j, i), 1+(i*7+j)%60))
		switch j % 4 {
		case 0:
			b.Add(ts, nil, value)
		case 1:
			b.Add(ts, fmt.Appendf(nil, "key-%d", j), value, record.RecordHeader{Key: []byte("h"), Value: []byte("1")},
				record.RecordHeader{Key: []byte("null")})
		case 2:
			b.Add(ts, fmt.Appendf(nil, "key-%d", j), nil)
		case 3:
			b.Add(ts, []byte{}, []byte{})
		}
	}
	out, err := b.Build()
	if err == nil && i%7 == 3 {
		record.SetAppendTime(out, int64(1_700_000_000_000+50*i))
	}
	return out, n, err
}
