package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/record"
)

// readKcat reads partition 0 from its beginning to its end and compares.
func readKcat(ctx context.Context, broker, topic string, text *corpus) error {
	got := newCheck(text)
	cmd := exec.CommandContext(ctx, "kcat", "-C", "-q", "-e", "-b", broker, "-t", topic, "-p", "0", "-o", "beginning", "-X", "check.crcs=true")
	var complaints tail
	cmd.Stdout, cmd.Stderr = got, &complaints
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("kcat: %w\n%s", err, &complaints)
	}
	return got.result()
}

// readFranz reads as many lines as there should be, looks whether there are more, and compares.
func readFranz(ctx context.Context, broker, topic string, text *corpus) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	got := newCheck(text)
	for got.lines < text.lines {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("%d lines of %d arrived: %w", got.lines, text.lines, ctx.Err())
		}
		for _, e := range fetches.Errors() {
			return e.Err
		}
		var gap error
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset != int64(got.lines) && gap == nil {
				gap = fmt.Errorf("record %d has offset %d", got.lines, r.Offset)
			}
			got.line(r.Value)
		})
		if gap != nil {
			return gap
		}
	}
	return got.result()
}

// stored is what a node's disk holds of a partition.
type stored struct {
	batches, records map[record.Codec]int
	bytes            int64
}

// String names the codecs, the commonest first.
func (s stored) String() string {
	var out []string
	for c, n := range s.batches {
		out = append(out, fmt.Sprintf("%08d%s", n, c))
	}
	slices.Sort(out)
	slices.Reverse(out)
	for i := range out {
		out[i] = out[i][8:]
	}
	return strings.Join(out, "+")
}

// check fails unless the records are stored as the client sent them. Clients send a batch as it is when compressing makes it
// longer, which happens to batches of a line or two.
func (s stored) check(codec string) error {
	want, err := record.ParseCodec(codec)
	if err != nil {
		return err
	}
	total := 0
	for c, n := range s.records {
		total += n
		if c != want && c != record.None {
			return fmt.Errorf("%d records are stored as %s, sent as %s", n, c, codec)
		}
	}
	if plain := s.records[record.None]; want != record.None && plain*100 > total {
		return fmt.Errorf("%d of %d records are stored without compression, sent as %s", plain, total, codec)
	}
	return nil
}

// awaitStored reads the partition's segments of one node until they hold the whole text, within a bound: followers apply a
// moment later than the leader.
func awaitStored(ctx context.Context, data, topic string, text *corpus) (stored, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		s, err := readStored(data, topic, text)
		if err == nil {
			return s, nil
		}
		if pause(ctx) != nil {
			return stored{}, err
		}
	}
}

func readStored(data, topic string, text *corpus) (stored, error) {
	s := stored{batches: map[record.Codec]int{}, records: map[record.Codec]int{}}
	got := newCheck(text)
	paths, err := logFiles(data, topic)
	if err != nil {
		return s, err
	}
	next := int64(0)
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return s, err
		}
		s.bytes += int64(len(b))
		err = record.Each(b, func(h record.Header, batch []byte) error {
			if _, err := record.Validate(batch); err != nil {
				return err
			}
			if h.BaseOffset != next {
				return fmt.Errorf("a batch at offset %d after offset %d", h.BaseOffset, next-1)
			}
			next = h.LastOffset() + 1
			s.batches[h.Codec()]++
			s.records[h.Codec()] += int(h.Count)
			return record.Records(batch, 64<<20, func(r record.Record) error { got.line(r.Value); return nil })
		})
		if err != nil {
			return s, fmt.Errorf("%s: %w", path, err)
		}
	}
	return s, got.result()
}

// logFiles lists the topic's .log files in order of offset.
func logFiles(data, topic string) ([]string, error) {
	var paths []string
	err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another topic's, just deleted
		}
		if err == nil && !d.IsDir() && filepath.Ext(path) == ".log" && strings.Contains(path, "/"+topic+"/") {
			paths = append(paths, path)
		}
		return err
	})
	slices.Sort(paths)
	return paths, err
}
