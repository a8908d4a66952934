package cli

import (
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
	replayed    bool // the write-ahead log could be read
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
	v.replayed = true
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

func (v *verifier) note(format string, args ...any) {
	fmt.Fprintf(v.out, "note     "+format+"\n", args...)
}

func (v *verifier) partition(topic, dir string) error {
	index, group := groupOf(dir)
	name := fmt.Sprintf("%s-%s", topic, index)
	g, known := v.checkpoints[group]
	if v.replayed && !known {
		v.note("%s: the write-ahead log has no group %d: if it was deleted, the next start removes %s; if its log was lost, that start says so", name, group, dir)
		return nil
	}
	gens := map[uint64]string{}
	for _, sub := range subdirs(dir) {
		if gen, err := strconv.ParseUint(filepath.Base(sub), 16, 64); err == nil {
			gens[gen] = sub
		}
	}
	if !known || g.Damage != nil { // told of already: nothing is known of the segments
		for _, gen := range slices.Sorted(maps.Keys(gens)) {
			if err := v.generation(name, gens[gen], -1, -1); err != nil {
				return err
			}
		}
		return nil
	}
	s, err := partition.Summarize(g.Checkpoint.State)
	if err != nil {
		v.bad("%s: the checkpoint of group %d: %v", name, group, err)
		return nil
	}
	inUse, foreign, ok := s.Directory(slices.Sorted(maps.Keys(gens)))
	for _, gen := range slices.Sorted(maps.Keys(gens)) {
		if ok && gen != inUse {
			v.note("%s: %s is not in use: the next start removes it", name, gens[gen])
		}
	}
	switch sub, has := gens[inUse]; {
	case !ok:
		v.bad("%s: no segments in %s, the checkpoint ends at offset %d", name, dir, s.End)
		return nil
	case !has:
		fmt.Fprintf(v.out, "ok       %s: no segments yet\n", name)
		return nil
	case s.New:
		return v.generation(name, sub, 0, -1)
	case foreign:
		// A snapshot, installed just before a crash: its log may begin later than it says, if the leader's had moved meanwhile.
		if y, err := segment.ReadLayout(vfs.OS{}, sub, s.Start); err == nil && len(y.Segments) > 0 {
			s.Start = max(s.Start, min(y.Segments[0].Base, s.End))
		}
		fallthrough
	default:
		return v.generation(name, sub, s.Start, s.End)
	}
}

// generation checks one directory of segments; start and flushed are what the checkpoint says of it, -1 if it says nothing.
func (v *verifier) generation(name, dir string, start, flushed int64) error {
	rep, err := segment.VerifyDir(vfs.OS{}, dir, start, flushed)
	if err != nil {
		return err
	}
	marked, err := partition.Marked(vfs.OS{}, dir)
	if err != nil {
		return err
	}
	for _, d := range marked {
		if d.Rough && d.To == math.MaxInt64 {
			v.bad("%s: the server's mark of damaged records, %s, can't be read: it goes over all of the log when it starts", name, d.File)
			continue
		}
		v.bad("%s: marked by the server: offsets %d to %d, %s at byte %d: %s; it fetches them anew from another replica", name, d.From, d.To-1, d.File, d.Byte, d.Reason)
	}
	for _, x := range rep.Removed {
		v.note("%s: %s is of work that a crash ended, and the next start removes it: %s", name, x.File, x.Why)
	}
	for _, n := range rep.Notes {
		v.note("%s: %s", name, n)
	}
	for _, x := range rep.Missing {
		v.bad("%s: %s", name, strings.TrimPrefix(x.Error(), "damaged: "))
	}
	var bytes, batches int64
	for _, f := range rep.Files {
		v.file(name, f)
		bytes, batches = bytes+f.Bytes, batches+f.Batches
	}
	if rep.Sound() && len(marked) == 0 {
		fmt.Fprintf(v.out, "ok       %s: %d segments, %d bytes, %d batches, offsets %d to %d\n", name, len(rep.Files), bytes, batches, rep.Start, rep.End-1)
	}
	return nil
}

// file tells of one segment.
func (v *verifier) file(name string, f segment.FileReport) {
	if f.Dropped != "" {
		v.note("%s: %s is removed by the next start: %s", name, f.File, f.Dropped)
		return
	}
	if f.Swap {
		v.note("%s: %s is a compacted segment that a crash kept from its place: the next start removes what it was made from, and makes it %020d.log", name, f.File, f.Base)
	}
	for _, x := range f.Lost {
		v.bad("%s: %s", name, strings.TrimPrefix(x.Error().Error(), "damaged: "))
	}
	if f.Torn >= 0 {
		v.note("%s: %s ends in bytes that were never known to be on disk, from byte %d on: the next start cuts them off, and the write-ahead log has what was in them", name, f.File, f.Torn)
	}
	if f.Index != nil {
		v.note("%s: %s: %v; the index is built anew when it is needed", name, f.File, f.Index)
	}
}
