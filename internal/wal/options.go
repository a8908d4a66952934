package wal

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/vfs"
)

// Defaults of Options.
const (
	DefaultFileBytes  = 64 << 20
	DefaultMaxBytes   = 512 << 20
	DefaultCacheBytes = 48 << 20

	minFileBytes = 64 << 10
	maxFileBytes = 1 << 30 // positions keep 32 bits for the offset, and an oversized block may make a file longer
)

// Options configure a Log. FS and Dir are required.
type Options struct {
	FS     vfs.FS
	Dir    string
	Clock  clock.Clock
	Logger *slog.Logger
	// FileBytes is the size of one log file, default 64 MiB. It should exceed the largest write; a larger one still goes
	// through, in a file of its own that is longer.
	FileBytes int64
	// MaxBytes is the soft bound of all files together, default 512 MiB, at least 4*FileBytes. Near it the oldest file is
	// recycled as soon as nothing live is in it: small groups are carried forward, larger ones are asked for a checkpoint
	// (OnPinned). Beyond one and a half times MaxBytes larger groups are carried forward too.
	MaxBytes int64
	// CacheBytes bounds the entries kept in memory for readers, over all groups, default 48 MiB. Entries above a group's
	// applied index and entries not yet written are never evicted, so the bound can be exceeded by those.
	CacheBytes int64
	// OnFatal is told once, on a step, that a write or fsync failed: the log has stopped, every pending Done got the error,
	// and nothing is retried (an fsync that failed once proves nothing when it succeeds later).
	OnFatal func(error)
	// OnPinned is a hint, on a step: the oldest file can go once group has a checkpoint at or above index. Given once per
	// file and group. It must not block.
	OnPinned func(group, index uint64)
}

func (o *Options) fill() error {
	if o.FS == nil || o.Dir == "" {
		return errors.New("wal: options need FS and Dir")
	}
	if o.Clock == nil {
		o.Clock = clock.System{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.FileBytes == 0 {
		o.FileBytes = DefaultFileBytes
	}
	if o.FileBytes < minFileBytes || o.FileBytes > maxFileBytes {
		return fmt.Errorf("wal: FileBytes %d is outside %d..%d", o.FileBytes, minFileBytes, maxFileBytes)
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = max(DefaultMaxBytes, 4*o.FileBytes)
	}
	o.MaxBytes = max(o.MaxBytes, 4*o.FileBytes)
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.OnFatal == nil {
		o.OnFatal = func(error) {}
	}
	if o.OnPinned == nil {
		o.OnPinned = func(uint64, uint64) {}
	}
	return nil
}

// Errors of the log, matched with errors.Is.
var (
	// ErrLocked says that another process, or another Log of this one, has the directory open. It also matches vfs.ErrLocked.
	ErrLocked = errors.New("wal: the directory is in use")
	// ErrNewerFormat says that a newer version of Chronik wrote the directory; nothing in it was changed.
	ErrNewerFormat = errors.New("wal: the log was written in a newer format")
	// ErrCorrupt is matched by every *CorruptionError.
	ErrCorrupt = errors.New("wal: the log is damaged")
	// ErrClosed is given to writes that come after Close.
	ErrClosed = errors.New("wal: closed")
	// ErrUnknownGroup is given to writes for a group that was never created, or was removed.
	ErrUnknownGroup = errors.New("wal: unknown group")
	// ErrGroupExists is returned by Create for a live group.
	ErrGroupExists = errors.New("wal: the group exists")
	// ErrOutOfOrder is given to a write that would leave a hole in a group's log, or cut below its checkpoint. It is a
	// mistake of the caller; nothing was written.
	ErrOutOfOrder = errors.New("wal: write out of order")
	// ErrDamaged is given to writes for a group that recovery found damaged: it accepts only Remove.
	ErrDamaged = errors.New("wal: the group is damaged")
	// ErrNoReserve is matched by Stats.SpaceErr: the disk is too full to prepare the next file. Writes still succeed; those
	// that can be refused should be, until it clears.
	ErrNoReserve = errors.New("wal: no space to prepare the next log file")
)

// CorruptionError says that bytes which had been made durable are no longer what they were.
type CorruptionError struct {
	File   string // path of the file
	Offset int64  // where the damage begins, in bytes
	Reason string
	// Groups names the groups hit, if that is known.
	Groups []uint64
}

// Error implements error.
func (e *CorruptionError) Error() string {
	return fmt.Sprintf("wal: %s is damaged at offset %d: %s", e.File, e.Offset, e.Reason)
}

// Is makes every CorruptionError match ErrCorrupt.
func (e *CorruptionError) Is(target error) bool { return target == ErrCorrupt }

// Stats describes a Log at one moment. Counters count from Open.
type Stats struct {
	Groups       int   // live groups
	Files        int   // log files, the active one included
	Bytes        int64 // size of all files on disk, prepared and spare ones included
	MaxBytes     int64 // the soft bound
	OldestPins   int   // groups that keep the oldest file from being recycled
	Reserve      bool  // the next file is ready
	Commits      uint64
	Writes       uint64 // writes carried by those commits
	Syncs        uint64 // fdatasyncs on the writer's path
	BytesWritten uint64
	Switches     uint64 // times the log went on in a new file
	Recycled     uint64 // files reused
	Carried      uint64 // groups carried forward
	CarriedBytes uint64 // the part of BytesWritten that this took
	QueuedBytes  int64  // payload of writes not yet taken by the writer
	CacheBytes   int64
	ColdReads    uint64        // reads of entries from files
	LastSync     time.Duration // how long the latest fdatasync took
	// SpaceErr matches ErrNoReserve while the disk is too full to prepare the next file; nil otherwise.
	SpaceErr error
	// Err is the failure that stopped the log, nil while it runs.
	Err error
}
