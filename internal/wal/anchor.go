package wal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"

	"github.com/chronik-go/chronik/internal/vfs"
)

// The anchor is a small file beside the log that says how far the log was durable at some moment. Blocks say so too, but only
// of what lies before them: a log that lost its end, a truncated or deleted last file for one, looks like a shorter sound
// one. The anchor tells the two apart. It is a lower bound, written after an fdatasync returned and not itself synced (but
// by Close): a stale one, or none, proves nothing and is no error.
const (
	anchorName  = "DURABLE"
	anchorMagic = "CHRONANC"
	anchorSize  = 32
	anchorEvery = 1 << 20 // bytes of log between two anchors under load
)

type anchor struct {
	f    vfs.File // nil: there is none, and none is written
	said pos
}

func encodeAnchor(x pos) []byte {
	b := make([]byte, anchorSize)
	copy(b, anchorMagic)
	le.PutUint32(b[8:], formatVersion)
	le.PutUint64(b[16:], uint64(x))
	le.PutUint32(b[12:], crc32.Update(crc32.Checksum(b[:12], castagnoli), castagnoli, b[16:]))
	return b
}

// readAnchor returns the position that dir's anchor states, 0 if there is none that can be read.
func readAnchor(fsys vfs.FS, dir string) (pos, error) {
	f, err := fsys.Open(filepath.Join(dir, anchorName))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("wal: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	b := make([]byte, anchorSize)
	if n, err := f.ReadAt(b, 0); n < anchorSize {
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("wal: read %s: %w", f.Name(), err)
		}
		return 0, nil
	}
	if string(b[:8]) != anchorMagic || le.Uint32(b[12:]) != crc32.Update(crc32.Checksum(b[:12], castagnoli), castagnoli, b[16:]) {
		return 0, nil
	}
	if v := le.Uint32(b[8:]); v > formatVersion {
		return 0, fmt.Errorf("%s: %w: version %d, this server knows %d", f.Name(), ErrNewerFormat, v, formatVersion)
	}
	return pos(le.Uint64(b[16:])), nil
}

// openAnchor opens the anchor for writing, and makes it, durably, if it is missing.
func (l *Log) openAnchor() error {
	name := filepath.Join(l.opt.Dir, anchorName)
	f, err := l.opt.FS.OpenReadWrite(name)
	if errors.Is(err, fs.ErrNotExist) {
		if f, err = l.opt.FS.Create(name); err == nil {
			err = l.opt.FS.SyncDir(l.opt.Dir)
		}
	}
	if err != nil {
		if f != nil {
			_ = f.Close()
		}
		return fmt.Errorf("wal: anchor: %w", err)
	}
	l.wr.anchor = anchor{f: f}
	return nil
}

// putAnchor states what is durable now. It is an aid to telling damage, so its own failure stops nothing: a sick disk
// fails the next commit as well.
func (l *Log) putAnchor() {
	a := &l.wr.anchor
	if a.f == nil || a.said == l.wr.durable {
		return
	}
	a.said = l.wr.durable
	if _, err := a.f.WriteAt(encodeAnchor(a.said), 0); err != nil {
		l.opt.Logger.Warn("cannot note how far the log is durable", slog.String("file", a.f.Name()), slog.Any("error", err))
	}
}

// anchorDue says whether the log has gone far enough since the last anchor to state a new one.
func (l *Log) anchorDue() bool {
	said, now := l.wr.anchor.said, l.wr.durable
	return said.seq() != now.seq() || now.off()-said.off() >= anchorEvery
}

func (l *Log) closeAnchor() error {
	a := &l.wr.anchor
	if a.f == nil {
		return nil
	}
	err := a.f.Close()
	a.f = nil
	return err
}
