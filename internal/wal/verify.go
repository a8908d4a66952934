package wal

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/vfs"
)

// Report is what a log directory was found to hold, judged as Open would.
type Report struct {
	Files  int
	End    string // file and offset at which the log ends
	Groups []GroupReport
	// Corrupt is damage that can't be laid to groups, and for which Open would refuse; nil if there is none.
	Corrupt *CorruptionError
}

// GroupReport is what a log holds of one group.
type GroupReport struct {
	Group       uint64
	Hard        raftpb.HardState
	Checkpoint  Checkpoint
	First, Last uint64  // entries
	Damage      *Damage // nil if sound
}

// Verify reads a log directory as Open does, and changes nothing. It takes no lock: beside a running server it may see a file
// that is being reused. Errors are the file system's, and ErrNewerFormat.
func Verify(fsys vfs.FS, dir string) (rep Report, err error) {
	l := &Log{opt: Options{FS: fsys, Dir: dir, Logger: slog.New(slog.DiscardHandler)}, groups: map[uint64]*Group{}, removed: map[uint64]*tombstone{}}
	names, err := fsys.List(dir)
	if err != nil {
		return rep, fmt.Errorf("wal: %w", err)
	}
	var all []*found
	defer func() {
		for _, f := range all {
			_ = f.f.Close() // read only
		}
	}()
	for _, name := range names {
		seq, ok := parseName(name)
		if !ok {
			continue
		}
		f, err := openFound(fsys.Open, fileName(dir, seq), seq)
		if f != nil {
			all = append(all, f)
		}
		if err != nil && !errors.As(err, &rep.Corrupt) {
			return rep, err
		}
	}
	rep.Files = len(all)
	anchored, err := readAnchor(fsys, dir)
	if err != nil {
		return rep, err
	}
	r, end, keep, err := l.replayFiles(all, anchored)
	if err != nil && !errors.As(err, &rep.Corrupt) {
		return rep, err
	}
	if rep.Corrupt != nil {
		return rep, nil
	}
	rep.End = fmt.Sprintf("%s at byte %d", fileName(dir, end.seq()), end.off())
	first := uint32(0)
	if len(keep) > 0 {
		first = keep[0].seq
	}
	r.build(first)
	for _, id := range l.Groups() {
		g := l.groups[id]
		rep.Groups = append(rep.Groups, GroupReport{Group: id, Hard: g.hs, Checkpoint: g.cp, First: g.first, Last: g.last, Damage: g.damage})
	}
	slices.SortFunc(rep.Groups, func(a, b GroupReport) int { return int(a.Group) - int(b.Group) })
	return rep, nil
}
