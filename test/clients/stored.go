package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chronik-go/chronik/internal/record"
)

// codecRecords is how many records a client sends in each codec.
const codecRecords = 1000

// checkStored looks at a codec's topic on every node's disk: all records, in offset order, valid, and as the client sent them.
func checkStored(ctx context.Context, c *cluster, topic, codec string) error {
	want, err := record.ParseCodec(codec)
	if err != nil || c.peer {
		return err
	}
	for _, n := range c.nodes.Nodes {
		if err := awaitStored(ctx, n.Dir, topic, want); err != nil {
			return fmt.Errorf("node %d's disk: %s: %w", n.ID, topic, err)
		}
	}
	return nil
}

// awaitStored reads the segments until they hold what they should: followers apply a moment later than the leader.
func awaitStored(ctx context.Context, data, topic string, want record.Codec) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := readStored(data, topic, want)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

func readStored(data, topic string, want record.Codec) error {
	paths, err := logFiles(data, topic)
	if err != nil {
		return err
	}
	next, inCodec := int64(0), 0
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		err = record.Each(b, func(h record.Header, batch []byte) error {
			if _, err := record.Validate(batch); err != nil {
				return err
			}
			if h.BaseOffset != next {
				return fmt.Errorf("a batch at offset %d after offset %d", h.BaseOffset, next-1)
			}
			next = h.LastOffset() + 1
			if h.Codec() == want {
				inCodec += int(h.Count)
			} else if h.Codec() != record.None {
				return fmt.Errorf("a batch is stored as %s, sent as %s", h.Codec(), want)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
	}
	// Clients send a batch as it is when compression makes it longer, which happens to batches of one or two records.
	if next < codecRecords || inCodec*100 < int(next)*99 {
		return fmt.Errorf("%d of %d records are stored as %s, there should be %d", inCodec, next, want, codecRecords)
	}
	return nil
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
