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

// SameSegments waits until the topic's log files below all data directories hold the same bytes.
func SameSegments(ctx context.Context, dirs []string, topic string, partitions int) error {
	for {
		sums := make([]map[string]string, len(dirs))
		for i, dir := range dirs {
			var err error
			if sums[i], err = logSums(dir, topic); err != nil {
				return err
			}
		}
		same := len(sums[0]) == partitions
		for _, s := range sums[1:] {
			same = same && fmt.Sprint(s) == fmt.Sprint(sums[0])
		}
		if same {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the nodes' segments differ: %v", sums)
		case <-time.After(50 * time.Millisecond): // between two looks
		}
	}
}

// logSums hashes, for each partition of a topic, the bytes of its .log files in order of offset. A partition's directory is named after
// its group and replica; a replica that fetched everything anew has them in a directory of a later generation.
func logSums(dir, topic string) (map[string]string, error) {
	files := map[string][]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() || filepath.Ext(path) != ".log" {
			return err
		}
		rel, err := filepath.Rel(dir, filepath.Dir(path))
		if err == nil && strings.Contains(rel, "/"+topic+"/") {
			// topics/<topic>/<partition>.<group>/<generation>
			part := filepath.Base(filepath.Dir(rel))
			files[part] = append(files[part], path)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	sums := map[string]string{}
	for part, paths := range files {
		slices.Sort(paths)
		h := sha256.New()
		size := 0
		for _, p := range paths {
			b, err := os.ReadFile(p)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			size += len(b)
			h.Write(b)
		}
		sums[part] = fmt.Sprintf("%d bytes %x", size, h.Sum(nil)[:8])
	}
	return sums, nil
}
