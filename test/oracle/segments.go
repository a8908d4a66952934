package oracle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// SameSegments compares the partitions' log files on the disks of all their replicas, byte by byte. replicas names the nodes'
// data directories. Followers get until the end of ctx to catch up; it holds once all are equal.
func SameSegments(ctx context.Context, replicas map[TP][]string) error {
	for {
		err := sameSegments(replicas)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the replicas' segments differ: %w", err)
		case <-time.After(100 * time.Millisecond): // between two looks
		}
	}
}

func sameSegments(replicas map[TP][]string) error {
	for tp, dirs := range replicas {
		var sums []string
		for _, dir := range dirs {
			sum, err := logSum(dir, tp)
			if err != nil {
				return fmt.Errorf("%v: %w", tp, err)
			}
			sums = append(sums, sum)
		}
		for _, sum := range sums[min(1, len(sums)):] {
			if sum != sums[0] {
				return fmt.Errorf("%v: %s in %s", tp, strings.Join(sums, ", "), strings.Join(dirs, ", "))
			}
		}
	}
	return nil
}

// logSum hashes the bytes of a partition's .log files in order of offset. A replica that fetched everything anew has them in a
// directory of a later generation, and the earlier one has to go.
func logSum(dir string, tp TP) (string, error) {
	var paths []string
	under := fmt.Sprintf("%s%c%d.", filepath.Join(dir, "topics", tp.Topic), filepath.Separator, tp.Partition)
	err := filepath.WalkDir(filepath.Join(dir, "topics", tp.Topic), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // retention and catch-up delete files
		}
		if err == nil && !d.IsDir() && filepath.Ext(path) == ".log" && strings.HasPrefix(path, under) {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	slices.SortFunc(paths, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	h := sha256.New()
	size := 0
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		size += len(b)
		h.Write(b)
	}
	return fmt.Sprintf("%d bytes %x", size, h.Sum(nil)[:8]), nil
}
