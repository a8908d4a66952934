package segment

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/chronik-go/chronik/internal/vfs"
)

// SegmentFile is one of the files that a log's batches are in.
type SegmentFile struct {
	File      string
	Base, End int64 // End is where the next one begins; -1 for the last
	// Swap: a compacted segment that a crash kept from its place. The next start removes those that it was made from, and gives it its name.
	Swap bool
}

// Leftover is a file that the next start removes.
type Leftover struct {
	File string
	Why  string
}

// Layout is what the next start makes of a log's directory before it reads a batch: swaps are carried through, and what a crash
// left of unfinished work goes (finishSwaps, collect and dropDead, which do it).
type Layout struct {
	Segments []SegmentFile // ascending
	Removed  []Leftover    // by name
}

// ReadLayout looks at a log's directory. Segments that lie wholly below the log start are removed; -1: it is not known.
func ReadLayout(fsys vfs.FS, dir string, logStart int64) (Layout, error) {
	names, err := fsys.List(dir)
	if err != nil {
		return Layout{}, ioErr("list", dir, err)
	}
	return layOut(dir, names, logStart), nil
}

func layOut(dir string, names []string, logStart int64) (out Layout) {
	slices.Sort(names)
	files := map[int64]SegmentFile{}
	remove := func(name, why string, args ...any) {
		out.Removed = append(out.Removed, Leftover{filepath.Join(dir, name), fmt.Sprintf(why, args...)})
	}
	for _, name := range names {
		if base, ext, ok := parseName(name); ok && ext == logExt {
			files[base] = SegmentFile{File: filepath.Join(dir, name), Base: base}
		}
	}
	swapped := map[string]string{} // what goes for a swap, and for which
	for _, swap := range names {
		from, end, ok := parseSwap(swap)
		if !ok {
			continue
		}
		for _, name := range names {
			base, ext, ok := parseName(name)
			if !ok || base < from || base >= end || ext != logExt && ext != indexExt && ext != timeExt {
				continue
			}
			swapped[name] = swap
			if ext == logExt {
				delete(files, base)
			}
		}
		files[from] = SegmentFile{File: filepath.Join(dir, swap), Base: from, Swap: true}
	}
	for _, s := range files {
		out.Segments = append(out.Segments, s)
	}
	slices.SortFunc(out.Segments, func(a, b SegmentFile) int { return int(min(max(a.Base-b.Base, -1), 1)) })
	below := out.dropBelow(logStart)
	for i := range out.Segments {
		if out.Segments[i].End = -1; i+1 < len(out.Segments) {
			out.Segments[i].End = out.Segments[i+1].Base
		}
	}
	for _, name := range names {
		base, ext, ok := parseName(name)
		_, has := files[base]
		from, _, swap := parseSwap(name)
		switch {
		case strings.HasSuffix(name, cleanedExt):
			remove(name, "a compaction had not finished it, and the segments that it was to replace are in use")
		case strings.HasSuffix(name, tmpExt):
			remove(name, "it was to replace a file, and was not finished")
		case swapped[name] != "":
			remove(name, "%s takes its place", swapped[name])
		case swap && below[from], ok && below[base] && (ext == logExt || ext == indexExt || ext == timeExt):
			remove(name, "it lies below offset %d, where the log starts", logStart)
		case ok && !has && (ext == indexExt || ext == timeExt):
			remove(name, "its segment is gone")
		}
	}
	return out
}

// dropBelow takes out the segments that lie wholly below the log start, and returns their bases.
func (y *Layout) dropBelow(logStart int64) map[int64]bool {
	below := map[int64]bool{}
	for len(y.Segments) > 1 && y.Segments[1].Base <= logStart {
		below[y.Segments[0].Base] = true
		y.Segments = y.Segments[1:]
	}
	return below
}
