package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// verifier checks a data directory.
type verifier struct {
	out         io.Writer
	damaged     bool
	checkpoints map[uint64]wal.GroupReport
}

func verifyDir(dir string, out io.Writer) error {
	v := &verifier{out: out, checkpoints: map[uint64]wal.GroupReport{}}
	logDir, topics := filepath.Join(dir, "wal"), filepath.Join(dir, "topics")
	_, errLog := os.Stat(logDir)
	_, errTopics := os.Stat(topics)
	if errLog != nil && errTopics != nil {
		return fmt.Errorf("%s is not a data directory: it has neither wal nor topics", dir)
	}
	if errLog == nil {
		if err := v.wal(logDir); err != nil {
			return err
		}
	}
	if errTopics == nil {
		if err := v.topics(topics); err != nil {
			return err
		}
	}
	if v.damaged {
		return errDamage
	}
	fmt.Fprintln(out, "no damage found")
	return nil
}

func (v *verifier) bad(format string, args ...any) {
	v.damaged = true
	fmt.Fprintf(v.out, "DAMAGED  "+format+"\n", args...)
}

func (v *verifier) wal(dir string) error {
	rep, err := wal.Verify(vfs.OS{}, dir)
	if err != nil {
		return err
	}
	if c := rep.Corrupt; c != nil {
		v.bad("write-ahead log: %s at byte %d: %s", c.File, c.Offset, c.Reason)
		return nil
	}
	fmt.Fprintf(v.out, "ok       write-ahead log: %d files, %d groups, ends in %s\n", rep.Files, len(rep.Groups), rep.End)
	for _, g := range rep.Groups {
		v.checkpoints[g.Group] = g
		name := fmt.Sprintf("group %d", g.Group)
		if g.Group == metadata.MetadataGroup {
			name += " (the cluster's metadata)"
		}
		if d := g.Damage; d != nil {
			v.bad("%s: %s at byte %d: %s", name, d.File, d.Offset, d.Reason)
			continue
		}
		fmt.Fprintf(v.out, "ok       %s: term %d, vote %d, commit %d, checkpoint %d, entries %d to %d\n", name, g.Hard.Term, g.Hard.Vote, g.Hard.Commit, g.Checkpoint.Index, g.First, g.Last)
	}
	return nil
}

func (v *verifier) topics(dir string) error {
	for _, topic := range subdirs(dir) {
		for _, p := range subdirs(topic) {
			if err := v.partition(filepath.Base(topic), p); err != nil {
				return err
			}
		}
	}
	return nil
}

func subdirs(dir string) (out []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}

func (v *verifier) partition(topic, dir string) error {
	index, group := groupOf(dir)
	name := fmt.Sprintf("%s-%s", topic, index)
	end, start, inUse := int64(-1), int64(0), ""
	if g, ok := v.checkpoints[group]; ok && g.Damage == nil {
		s, err := partition.Summarize(g.Checkpoint.State)
		if err != nil {
			v.bad("%s: the checkpoint of group %d: %v", name, group, err)
		} else if len(g.Checkpoint.State) > 0 {
			end, start, inUse = s.End, s.Start, fmt.Sprintf("%016x", s.Generation)
		}
	}
	gens := subdirs(dir)
	if len(gens) == 0 && end > 0 {
		v.bad("%s: no segments in %s, the checkpoint ends at offset %d", name, dir, end)
	}
	for _, gen := range gens {
		flushed, begin := int64(-1), int64(-1)
		if filepath.Base(gen) == inUse {
			flushed, begin = end, start
		}
		if err := v.generation(name, gen, begin, flushed); err != nil {
			return err
		}
	}
	return nil
}

// generation checks one directory of segments; start and flushed are what the checkpoint says of it, -1 if it says nothing.
func (v *verifier) generation(name, dir string, start, flushed int64) error {
	files, err := segment.VerifyDir(vfs.OS{}, dir, flushed)
	if err != nil {
		return err
	}
	var bytes, batches, from, to int64
	sound := true
	for i, f := range files {
		if i == 0 {
			from = f.From
		}
		bytes, batches, to = bytes+f.Bytes, batches+f.Batches, f.To
		for _, x := range f.Lost {
			sound = false
			v.bad("%s: %s", name, strings.TrimPrefix(x.Error().Error(), "damaged: "))
		}
		if f.Torn >= 0 {
			fmt.Fprintf(v.out, "note     %s: %s ends in bytes that were never known to be on disk, from byte %d on: the next start cuts them off\n", name, f.File, f.Torn)
		}
		if f.Index != nil {
			fmt.Fprintf(v.out, "note     %s: %s: %v; the index is built anew when it is needed\n", name, f.File, f.Index)
		}
	}
	if len(files) == 0 && flushed > 0 {
		v.bad("%s: no segments in %s, the checkpoint ends at offset %d", name, dir, flushed)
		return nil
	}
	if len(files) > 0 && start >= 0 && start < flushed && files[0].Base > start {
		sound = false
		v.bad("%s: %s begins at offset %d, by the checkpoint the log starts at %d", name, files[0].File, files[0].Base, start)
	}
	if sound {
		fmt.Fprintf(v.out, "ok       %s: %d segments, %d bytes, %d batches, offsets %d to %d\n", name, len(files), bytes, batches, from, to-1)
	}
	return nil
}
