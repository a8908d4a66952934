package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/chronik-go/chronik/internal/vfs"
)

// epochFile is Kafka's leader-epoch-checkpoint: a version, a count, then a line for each epoch with its first offset.
const epochFile = "leader-epoch-checkpoint"

type epochStart struct {
	epoch int32
	start int64
}

// epochs is ascending in both fields.
type epochs []epochStart

// note records that a batch of epoch begins at offset; batches come in order.
func (e epochs) note(epoch int32, offset int64) (epochs, bool) {
	if epoch < 0 || len(e) > 0 && e[len(e)-1].epoch >= epoch {
		return e, false
	}
	return append(e, epochStart{epoch, offset}), true
}

// at returns the epoch of the batch that begins at offset, if it is known.
func (e epochs) at(offset int64) (epoch int32, known bool) {
	i := sort.Search(len(e), func(i int) bool { return e[i].start > offset })
	if i == 0 {
		return -1, false
	}
	return e[i-1].epoch, true
}

// below drops what begins at or after end.
func (e epochs) below(end int64) epochs {
	return e[:sort.Search(len(e), func(i int) bool { return e[i].start >= end })]
}

// from makes start the first offset: epochs that end before it go, the one that holds it begins there.
func (e epochs) from(start int64) epochs {
	i := sort.Search(len(e), func(i int) bool { return e[i].start > start })
	if i == 0 {
		return e
	}
	out := append(epochs(nil), e[i-1:]...)
	out[0].start = start
	return out
}

// end answers OffsetForLeaderEpoch as Kafka's LeaderEpochFileCache.endOffsetFor does for the epochs it knows.
func (e epochs) end(epoch int32, logEnd int64) (int32, int64) {
	if len(e) == 0 || epoch == -1 {
		return -1, -1
	}
	i := sort.Search(len(e), func(i int) bool { return e[i].epoch > epoch })
	switch i {
	case 0: // older than anything here: its records are gone
		return epoch, e[0].start
	case len(e):
		return e[i-1].epoch, logEnd
	default:
		return e[i-1].epoch, e[i].start
	}
}

func (e epochs) encode() []byte {
	b := fmt.Appendf(nil, "0\n%d\n", len(e))
	for _, x := range e {
		b = fmt.Appendf(b, "%d %d\n", x.epoch, x.start)
	}
	return b
}

var errEpochFormat = errors.New("not a leader epoch checkpoint of version 0")

func decodeEpochs(b []byte) (epochs, error) {
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	if len(lines) < 2 || lines[0] != "0" {
		return nil, errEpochFormat
	}
	n, err := strconv.Atoi(lines[1])
	if err != nil || n != len(lines)-2 {
		return nil, errEpochFormat
	}
	out := make(epochs, 0, n)
	for _, line := range lines[2:] {
		a, b, _ := strings.Cut(line, " ")
		epoch, err1 := strconv.ParseInt(a, 10, 32)
		start, err2 := strconv.ParseInt(b, 10, 64)
		if err1 != nil || err2 != nil || epoch < 0 || start < 0 {
			return nil, errEpochFormat
		}
		if k := len(out); k > 0 && (out[k-1].epoch >= int32(epoch) || out[k-1].start > start) {
			return nil, errEpochFormat
		}
		out = append(out, epochStart{int32(epoch), start})
	}
	return out, nil
}

// readFile returns a small file's content; a missing one is nil.
func readFile(fsys vfs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, ioErr("open", name, err)
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return nil, ioErr("stat", name, err)
	}
	if n > limit {
		return nil, &DamageError{File: name, Offset: limit, Reason: fmt.Sprintf("%d bytes, expected at most %d", n, limit)}
	}
	b := make([]byte, n)
	if m, err := f.ReadAt(b, 0); int64(m) != n {
		return nil, ioErr("read", name, err)
	}
	return b, nil
}

// replaceFile writes name whole or not at all, and durably once the directory is synced (which the caller does).
func replaceFile(fsys vfs.FS, name string, b []byte) error {
	tmp := name + tmpExt
	f, err := fsys.Create(tmp)
	if err != nil {
		return ioErr("create", tmp, err)
	}
	if _, err = f.WriteAt(b, 0); err != nil {
		err = ioErr("write", tmp, err)
	} else if err = f.Sync(); err != nil {
		err = syncErr(tmp, err)
	}
	if cerr := f.Close(); err == nil {
		err = ioErr("close", tmp, cerr)
	}
	if err != nil {
		return err
	}
	return ioErr("rename", name, fsys.Rename(tmp, name))
}

const tmpExt = ".tmp"

func (l *Log) file(name string) string { return filepath.Join(l.dir, name) }

// EpochEnd returns the largest epoch in the log that is not above epoch, and the offset after its last record; for an epoch
// older than anything in the log, epoch itself and the first offset (as Kafka does); (-1, -1) if the log has no epochs.
// Whether epoch is one that the group has not reached yet is the caller's question.
func (l *Log) EpochEnd(epoch int32) (int32, int64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.epochs.end(epoch, l.end)
}
