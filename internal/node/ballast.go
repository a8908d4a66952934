package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/vfs"
)

// ballast is a file that only takes up room. Where the disk runs full between two looks of space, because somebody else
// fills it, committed entries still have to be written out: then the ballast is given back, once, and writes are refused
// until there is room for it again (design rule 11: never a skipped apply).
type ballast struct {
	fs   vfs.FS
	clk  clock.Clock
	name string
	// bytes is how large the file is.
	bytes int64
	log   *slog.Logger

	mu   sync.Mutex
	held bool
}

const (
	ballastName  = "reserve"
	ballastBytes = 64 << 20
	ballastChunk = 1 << 20
)

func newBallast(fsys vfs.FS, clk clock.Clock, dir string, bytes int64, log *slog.Logger) *ballast {
	b := &ballast{fs: fsys, clk: clk, name: filepath.Join(dir, ballastName), bytes: bytes, log: log}
	if info, err := fsys.Stat(b.name); err == nil && info.Size >= bytes {
		b.held = true
	}
	return b
}

// release gives the room back and says whether there was any.
func (b *ballast) release() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.held {
		return false
	}
	b.held = false
	if err := b.fs.Remove(b.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.log.Error("the disk's reserve can't be given back", "file", b.name, "error", err)
		return false
	}
	b.log.Error("the disk is full: its reserve was given back to what is committed already")
	return true
}

// take fills the file, at a pace that writes don't notice, unless it is there. free is the room on the disk.
func (b *ballast) take(ctx context.Context, free, kept uint64) {
	b.mu.Lock()
	held := b.held
	b.mu.Unlock()
	if held || free < kept+2*uint64(b.bytes) {
		return
	}
	if err := b.fill(ctx); err != nil {
		b.log.Warn("no reserve is kept on the disk", "file", b.name, "error", errors.Join(err, b.fs.Remove(b.name)))
		return
	}
	b.mu.Lock()
	b.held = ctx.Err() == nil
	b.mu.Unlock()
}

func (b *ballast) fill(ctx context.Context) (err error) {
	f, err := b.fs.Create(b.name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	zeros := make([]byte, min(ballastChunk, b.bytes))
	for off := int64(0); off < b.bytes; off += ballastChunk {
		if _, err := f.WriteAt(zeros, off); err != nil {
			return err
		}
		if err := f.StartWriteback(off, ballastChunk); err != nil {
			return err
		}
		if clock.Sleep(ctx, b.clk, 20*time.Millisecond) != nil {
			return nil // half a file is filled again at the next start
		}
	}
	return f.Sync() // blocks are there once it returns, whatever the file system delays
}
