package segment

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"path/filepath"

	"github.com/chronik-go/chronik/internal/vfs"
)

// cleanFile says what compaction has done to a log. A log that was never compacted, nor filled from one that was, has none.
const cleanFile = "cleaner-checkpoint"

// CleanPoint is what compaction has done to a log, as it is on disk in cleaner-checkpoint. It is replaced durably before the files
// are changed that it tells of, so that it may say more than is true, never less.
type CleanPoint struct {
	// Holes: below this offset batches may be missing between others. From it on a gap is damage.
	Holes int64
	// Horizon lies above every tombstone that was removed. A log that ends below it may hold a record that such a tombstone
	// deleted: it cannot be brought up to date from this one, only replaced by it (RAFT rule 13).
	Horizon int64
	// Clean: every key below this offset has been looked up in everything above it, up to here. Kafka's first dirty offset.
	Clean int64
	// DeleteAt is when, in ms since 1970, every tombstone that was kept because its time had not come may go; -1: there is none.
	DeleteAt int64
}

// mayFollow says whether a batch that begins at base may come where one at want is due.
func mayFollow(base, want, holes int64) bool { return base == want || base > want && base <= holes }

func (c CleanPoint) encode() []byte {
	b := fmt.Appendf(nil, "0 %d %d %d %d", c.Holes, c.Horizon, c.Clean, c.DeleteAt)
	return fmt.Appendf(b, " %08x\n", crc32.Checksum(b, castagnoli))
}

func decodeCleanPoint(b []byte) (c CleanPoint, ok bool) {
	text := bytes.TrimSuffix(b, []byte("\n"))
	cut := bytes.LastIndexByte(text, ' ')
	if cut < 0 || len(text) == len(b) {
		return CleanPoint{}, false
	}
	var version int
	n, err := fmt.Sscanf(string(text[:cut]), "%d %d %d %d %d", &version, &c.Holes, &c.Horizon, &c.Clean, &c.DeleteAt)
	ok = n == 5 && err == nil && version == 0 && c.Holes >= 0 && c.Horizon >= 0 && c.Clean >= 0 && c.DeleteAt >= -1 &&
		bytes.Equal(b, c.encode())
	return c, ok
}

// readCleanPoint returns a directory's clean point. One that is damaged says that there may be holes, and not up to where: then they
// may be anywhere, nothing counts as clean, and nobody else may be brought up to date from here.
func (l *Log) readCleanPoint() (CleanPoint, error) {
	c, ok, err := loadCleanPoint(l.files.fs, l.dir)
	if err == nil && !ok {
		l.logger.Error("the cleaner's checkpoint is damaged: batches may be missing anywhere in this log", "file", l.file(cleanFile))
	}
	return c, err
}

func loadCleanPoint(fsys vfs.FS, dir string) (c CleanPoint, ok bool, err error) {
	b, err := readFile(fsys, filepath.Join(dir, cleanFile), 4<<10)
	var damaged *DamageError
	if err != nil && !errors.As(err, &damaged) {
		return CleanPoint{}, false, err
	}
	if b == nil && damaged == nil {
		return CleanPoint{DeleteAt: -1}, true, nil
	}
	if c, ok := decodeCleanPoint(b); ok {
		return c, true, nil
	}
	return CleanPoint{Holes: math.MaxInt64, Horizon: math.MaxInt64, DeleteAt: -1}, false, nil
}

// boundCleanPoint makes a clean point that could not be read say no more than that anything may be missing of what there is.
func (l *Log) boundCleanPoint() {
	if l.cleaned.Holes == math.MaxInt64 {
		l.cleaned.Holes, l.cleaned.Horizon = l.end, l.end
	}
}

// setCleanPoint makes c durable, and then the log's. The caller holds flushMu, so that the directory's names are its own.
func (l *Log) setCleanPoint(c CleanPoint) error {
	l.mu.RLock()
	same := l.cleaned == c
	l.mu.RUnlock()
	if same {
		return nil
	}
	if err := replaceFile(l.files.fs, l.file(cleanFile), c.encode()); err != nil {
		return err
	}
	if err := syncDir(l.files.fs, l.dir); err != nil {
		return err
	}
	l.mu.Lock()
	l.cleaned = c
	l.mu.Unlock()
	return nil
}

// CleanPoint returns what compaction has done to the log, and to those it was filled from.
func (l *Log) CleanPoint() CleanPoint {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.cleaned
}

// AllowHoles prepares the log to take batches from one that was compacted: below an offset they may leave gaps, and tombstones below
// horizon may be missing. Both only grow. It is durable when it returns.
func (l *Log) AllowHoles(below, horizon int64) error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	c := l.CleanPoint()
	c.Holes, c.Horizon = max(c.Holes, below), max(c.Horizon, horizon)
	return l.fail(l.setCleanPoint(c))
}

// Advance moves the log's end to offset without a batch: the log that this one follows has none before it. Holes must be allowed up to
// there. It begins a new segment, whose name remembers the end.
func (l *Log) Advance(offset int64) error {
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	l.mu.Lock()
	end, holes, active := l.end, l.cleaned.Holes, l.activeLocked()
	if offset <= end {
		l.mu.Unlock()
		return nil
	}
	if offset > holes {
		l.mu.Unlock()
		return &SequenceError{Got: offset, Want: end}
	}
	l.mu.Unlock()
	if active == nil {
		var err error
		if active, err = l.roll(); err != nil { // its name tells a restart where the log starts
			return l.fail(err)
		}
	}
	l.mu.Lock()
	active.end, l.end, l.clean = offset, offset, false
	l.mu.Unlock()
	_, err := l.roll()
	return l.fail(err)
}
