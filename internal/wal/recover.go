package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/chronik-go/chronik/internal/vfs"
)

// found is a log file met by Open.
type found struct {
	reader
	header error // what is wrong with its header
	blank  bool  // no valid block in it
	frame        // of its first valid block
}

// Open opens the log in o.Dir, which is made if it is missing, and recovers what it holds in one pass. What is wrong with
// single groups is told by Group.Damage. Errors: ErrLocked, ErrNewerFormat, *CorruptionError if damage cannot be laid to
// known groups (nothing was changed then), or the file system's.
func Open(o Options) (*Log, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	if err := vfs.MkdirAllSync(o.FS, o.Dir); err != nil {
		return nil, fmt.Errorf("wal: %w", err)
	}
	lock, err := o.FS.Lock(filepath.Join(o.Dir, lockName))
	if errors.Is(err, vfs.ErrLocked) {
		return nil, fmt.Errorf("%w: %s: %w", ErrLocked, o.Dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("wal: lock: %w", err)
	}
	l := &Log{opt: o, lock: lock, groups: map[uint64]*Group{}, removed: map[uint64]*tombstone{}}
	l.wake = sync.NewCond(&l.mu)
	l.back.wake = sync.NewCond(&l.back.mu)
	l.back.due = true
	l.cache.limit = o.CacheBytes
	l.files = fileSet{fs: o.FS, dir: o.Dir, max: o.FileBytes, bySeq: map[uint32]*file{}, nextSeq: 1}
	all, err := l.openFiles()
	if err == nil {
		err = l.recover(all)
	}
	if err != nil {
		for _, f := range all {
			_ = f.f.Close()
		}
		l.files.close()
		return nil, errors.Join(err, l.closeAnchor(), lock.Close())
	}
	return l, nil
}

// openFiles opens the files of the directory, oldest first, and looks at their headers and first blocks.
func (l *Log) openFiles() (all []*found, err error) {
	names, err := l.opt.FS.List(l.opt.Dir)
	if err != nil {
		return nil, fmt.Errorf("wal: %w", err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, spareSuffix) {
			l.files.spares = append(l.files.spares, filepath.Join(l.opt.Dir, name))
			continue
		}
		seq, ok := parseName(name)
		if !ok {
			continue
		}
		l.files.nextSeq = max(l.files.nextSeq, seq+1)
		f, err := openFound(l.opt.FS.OpenReadWrite, fileName(l.opt.Dir, seq), seq)
		if f != nil {
			all = append(all, f)
		}
		if err != nil {
			return all, err
		}
		if f.header != nil {
			l.opt.Logger.Warn("a log file has a damaged header", slog.String("file", f.name), slog.Any("reason", f.header), slog.Bool("blocks", !f.blank))
		}
	}
	return all, nil
}

func openFound(open func(string) (vfs.File, error), name string, seq uint32) (*found, error) {
	f, err := open(name)
	if err != nil {
		return nil, fmt.Errorf("wal: %w", err)
	}
	fo := &found{reader: reader{f: f, name: name, seq: seq}}
	if fo.size, err = f.Size(); err != nil {
		return fo, fmt.Errorf("wal: size of %s: %w", name, err)
	}
	if fo.size > math.MaxUint32 {
		return fo, &CorruptionError{File: name, Offset: fo.size, Reason: "the file is longer than a log file can be; " + advice}
	}
	head, err := fo.at(0, headerSize)
	if err != nil {
		return fo, err
	}
	if fo.header = checkHeader(head, seq); errors.Is(fo.header, ErrNewerFormat) {
		return fo, fmt.Errorf("%s: %w", name, fo.header)
	}
	fr, _, ok, err := fo.nextFrame(headerSize, fo.size)
	fo.frame, fo.blank = fr, !ok
	return fo, err
}

// recover replays the files and begins a new one.
func (l *Log) recover(all []*found) error {
	anchored, err := readAnchor(l.opt.FS, l.opt.Dir)
	if err != nil {
		return err
	}
	r, end, keep, err := l.replayFiles(all, anchored)
	if err != nil {
		return err
	}
	if err := l.settle(keep, end); err != nil {
		return err
	}
	var drop []*file
	for _, fo := range all {
		f := &file{seq: fo.seq, name: fo.name, f: fo.f}
		f.ready.Store(max(fo.size, headerSize))
		if i := slices.Index(keep, fo); i >= 0 {
			f.end.Store(end.off())
			if i+1 < len(keep) {
				f.end.Store(keep[i+1].prev.off())
			}
			l.files.activate(f)
		} else {
			drop = append(drop, f)
		}
	}
	first := l.files.nextSeq
	if len(keep) > 0 {
		first = keep[0].seq
	}
	counts := r.build(first)
	if err := l.openAnchor(); err != nil {
		return err
	}
	if err := l.begin(end, first, counts); err != nil {
		return err
	}
	l.files.freed = append(l.files.freed, drop...) // only now: a new file says, durably, that they are void
	l.dropSpares()
	return nil
}

// begin starts the file that this run of the log writes first. A new file, even after a clean stop, makes the cut behind
// the old one's last block binding: whatever a torn write left there is never read again.
func (l *Log) begin(end pos, first uint32, counts []*counter) error {
	next, err := l.nextFile()
	if err != nil {
		return fmt.Errorf("wal: new log file: %w", err)
	}
	l.files.activate(next)
	if next.ready.Load() < l.files.max {
		if _, err := l.files.zeroAhead(next); err != nil {
			return fmt.Errorf("wal: %w", err)
		}
	}
	w := &l.wr
	w.prev, w.durable = end, end
	w.first, w.saidFir, w.declare = first, first, 0
	w.credit = l.opt.FileBytes // enough that restarts without a write get rid of the files they leave
	w.end = mkPos(next.seq, headerSize)
	if err := l.writeIndex(counts, flagAll); err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	w.begun = w.end.off()
	if err := l.syncActive(); err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	return nil
}

// dropSpares deletes left over spare files but one.
func (l *Log) dropSpares() {
	s := &l.files
	for len(s.spares) > 1 {
		last := s.spares[len(s.spares)-1]
		s.spares = s.spares[:len(s.spares)-1]
		if err := s.fs.Remove(last); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.opt.Logger.Warn("cannot delete a spare log file", slog.String("file", last), slog.Any("error", err))
		}
	}
}
