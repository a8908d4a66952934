package segment

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/chronik-go/chronik/internal/vfs"
)

// ErrClosed is returned by every call on a log after Close or Discard.
var ErrClosed = errors.New("segment: log is closed")

// OffsetError says that an offset lies outside a log.
type OffsetError struct {
	Offset     int64
	Start, End int64 // what the log holds: [Start, End)
}

func (e *OffsetError) Error() string {
	return fmt.Sprintf("offset %d is outside the log's [%d, %d)", e.Offset, e.Start, e.End)
}

// SequenceError refuses an append that does not continue the log. Nothing was written.
type SequenceError struct {
	Got, Want int64 // base offset of the batch, and what should have come
}

func (e *SequenceError) Error() string {
	return fmt.Sprintf("batch begins at offset %d, the log continues at %d", e.Got, e.Want)
}

// DamageError says that a file does not hold what it should: bytes that were written, and are wrong or gone. The log stays
// readable where it is sound; the replica should be quarantined and refetched.
type DamageError struct {
	File   string
	Offset int64 // bytes from the file's first
	Reason string
	Err    error // may be nil
}

func (e *DamageError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("damaged: %s at byte %d: %s: %v", e.File, e.Offset, e.Reason, e.Err)
	}
	return fmt.Sprintf("damaged: %s at byte %d: %s", e.File, e.Offset, e.Reason)
}

func (e *DamageError) Unwrap() error { return e.Err }

// EpochError says that batches' leader epochs, which no CRC covers, contradict each other: one is lower than an earlier one.
type EpochError struct {
	File   string
	Offset int64 // bytes from the file's first: of the batch with the lower epoch
	Reason string
	// From is the offset of the first batch with a higher epoch than that.
	From int64
}

func (e *EpochError) Error() string {
	return fmt.Sprintf("damaged: %s at byte %d: %s", e.File, e.Offset, e.Reason)
}

// IOError is an operation that the file system refused. errors.Is sees through it (syscall.EIO, syscall.ENOSPC).
type IOError struct {
	Op   string
	File string
	Err  error
}

func (e *IOError) Error() string { return fmt.Sprintf("%s %s: %v", e.Op, e.File, e.Err) }

func (e *IOError) Unwrap() error { return e.Err }

func ioErr(op, file string, err error) error {
	var already *IOError
	if err == nil || errors.As(err, &already) {
		return err
	}
	return &IOError{Op: op, File: file, Err: err}
}

// syncErr is the error of a failed sync, which matches syscall.EIO whatever its number was: a write that a full disk refused
// may be tried again, but after a sync that did (delayed allocation, a quota) what was written before it may be gone.
func syncErr(file string, err error) error {
	if !errors.Is(err, syscall.EIO) {
		err = fmt.Errorf("%w (%v)", syscall.EIO, err)
	}
	return &IOError{Op: "sync", File: file, Err: err}
}

func syncDir(fsys vfs.FS, dir string) error {
	if err := fsys.SyncDir(dir); err != nil {
		return syncErr(dir, err)
	}
	return nil
}
