// Package vfs is the file system as Chronik needs it: few calls, explicit offsets, explicit durability.
//
// Everything that touches a disk takes an FS, so that the same code runs on the operating system (OS) and on a simulated
// disk (Mem) that loses, tears and reorders unsynced writes at a power cut.
//
// Durability contract, for every implementation: bytes written are durable once Sync or SyncData of that File returned nil;
// a created, renamed or removed name is durable once SyncDir of its directory returned nil (a new directory's own name needs
// SyncDir of its parent: MkdirAllSync does that). Sync of a file promises nothing about its name. After a failed Sync nothing may
// be assumed about what was written before it, and the caller must not retry it (the kernel may have dropped the dirty
// pages: "Can applications recover from fsync failures?", USENIX ATC 2020).
//
// Errors are *fs.PathError or *os.LinkError around fs.ErrNotExist, fs.ErrClosed, syscall.EIO, syscall.ENOSPC and the like:
// match them with errors.Is.
package vfs

import (
	"errors"
	"io"
	"time"
)

// ErrLocked is matched by the error of FS.Lock when the lock is held, by another process or by this one.
var ErrLocked = errors.New("vfs: locked by another user of the directory")

// FS is a file system. Implementations are safe for concurrent use.
type FS interface {
	// Create creates name or truncates it, open for reading and writing.
	Create(name string) (File, error)
	// Open opens an existing file read-only.
	Open(name string) (File, error)
	// OpenReadWrite opens an existing file for reading and writing.
	OpenReadWrite(name string) (File, error)
	// Remove removes a file or an empty directory. Open files stay readable.
	Remove(name string) error
	// RemoveAll removes a tree; a missing one is no error.
	RemoveAll(name string) error
	// Rename replaces newname atomically.
	Rename(oldname, newname string) error
	// MkdirAll creates a directory and its parents.
	MkdirAll(dir string) error
	// SyncDir makes the names in dir durable.
	SyncDir(dir string) error
	// List returns the names in dir, sorted.
	List(dir string) ([]string, error)
	// Stat describes a name; a missing one is fs.ErrNotExist.
	Stat(name string) (FileInfo, error)
	// Lock takes an exclusive advisory lock on name (created if missing), released by Close or by the process's death.
	// A lock held by another process or by this one is ErrLocked.
	Lock(name string) (io.Closer, error)
	// FreeSpace returns the bytes available to this process on the device of dir.
	FreeSpace(dir string) (uint64, error)
	// TotalSpace returns the size in bytes of the device of dir.
	TotalSpace(dir string) (uint64, error)
}

// File is an open file. ReadAt and WriteAt are safe for concurrent use; the others belong to the file's owner.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// WriteVecAt writes bufs one after the other at off (pwritev): one call, no copy. bufs itself may be modified.
	WriteVecAt(bufs [][]byte, off int64) (int, error)
	// Size returns the file's length in bytes.
	Size() (int64, error)
	// Truncate sets the file's length.
	Truncate(size int64) error
	// Sync makes data and metadata durable (fsync).
	Sync() error
	// SyncData makes data durable, and the length if it changed (fdatasync).
	SyncData() error
	// StartWriteback asks the kernel to begin writing [off, off+n) out. It promises nothing.
	StartWriteback(off, n int64) error
	// Name returns the name the file was opened under.
	Name() string
}

// FileInfo describes a name.
type FileInfo struct {
	Size    int64
	ModTime time.Time
	IsDir   bool
}
