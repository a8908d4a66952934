package node

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// space watches the disk. Below the reserve, writes are refused while what was accepted can still be written out: committed
// entries must be applied, and the log must go on (design rule 11). Reads go on; writes resume when there is room again.
type space struct {
	fs  vfs.FS
	clk clock.Clock
	dir string
	// kept is how many bytes are kept free.
	kept uint64
	wal  *wal.Log
	log  *slog.Logger
	err  atomic.Pointer[error]
	// full is told when the disk becomes full, and when there is room again: the node gives its leaderships to others then, and
	// takes none.
	full func(bool)
	// reserve is given back when the disk is full all the same.
	reserve *ballast
	said    time.Time // when the log said last that writes are refused
}

// reserveBytes is kept free: the uncommitted tail of many groups, their segments, and two files of the log.
const reserveBytes = 256 << 20

// spaceInterval is how often the disk is looked at.
const spaceInterval = time.Second

// spaceReminder is how often the log says again that writes are refused.
const spaceReminder = 5 * time.Minute

func newSpace(env CoreConfig, tune Tuning, logger *slog.Logger, full func(bool)) *space {
	s := &space{
		fs: env.FS, clk: env.Clock, dir: env.Config.DataDir, wal: env.WAL, log: logger, full: full,
		kept: uint64(cmp.Or(tune.Reserve, reserveBytes)),
	}
	s.reserve = newBallast(s.fs, s.clk, s.dir, cmp.Or(tune.Ballast, ballastBytes), logger)
	s.look()
	return s
}

// writable says why nothing may be written now, nil if all is well.
func (s *space) writable() error {
	if e := s.err.Load(); e != nil {
		return *e
	}
	return nil
}

// watch looks again and again, until ctx ends, and calls room each time the disk takes writes.
func (s *space) watch(ctx context.Context, room func()) {
	for clock.Sleep(ctx, s.clk, spaceInterval) == nil {
		s.reserve.take(ctx, s.look(), s.kept)
		if s.writable() == nil {
			room()
		}
	}
}

// look judges the room on the disk, and returns it (0 if unknown).
func (s *space) look() (free uint64) {
	free, err := s.fs.FreeSpace(s.dir)
	var now error
	switch {
	case err != nil:
		s.log.Warn("free space of the data directory unknown", "error", err)
	case free < s.kept:
		now = fmt.Errorf("%w: %d MiB free in %s, %d are kept in reserve: free some space", partition.ErrStorage, free>>20, s.dir, s.kept>>20)
	default:
		if e := s.wal.Stats().SpaceErr; e != nil {
			now = fmt.Errorf("%w: %w", partition.ErrStorage, e)
		}
	}
	was := s.err.Load()
	switch {
	case now != nil && was == nil:
		s.log.Error("refusing writes, and leaving leaderships to nodes with room", "error", now)
		s.said = s.clk.Now()
	case now != nil && s.clk.Now().Sub(s.said) >= spaceReminder:
		s.log.Error("still refusing writes", "error", now)
		s.said = s.clk.Now()
	case now == nil && was != nil:
		s.log.Info("taking writes again", "free_mib", free>>20)
	}
	if now == nil {
		s.err.Store(nil)
	} else {
		s.err.Store(&now)
	}
	if (now == nil) != (was == nil) {
		s.full(now != nil)
	}
	return free
}
