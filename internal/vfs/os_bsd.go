//go:build darwin || freebsd

package vfs

import (
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func flock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// FreeSpace implements FS.
func (OS) FreeSpace(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return uint64(max(st.Bavail, 0)) * uint64(st.Bsize), nil
}

// TotalSpace implements FS.
func (OS) TotalSpace(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return st.Blocks * uint64(st.Bsize), nil
}

// WriteVecAt implements File, one buffer at a time.
func (f *osFile) WriteVecAt(bufs [][]byte, off int64) (int, error) {
	if off < 0 {
		return 0, &fs.PathError{Op: "pwritev", Path: f.Name(), Err: syscall.EINVAL}
	}
	var total int
	for _, b := range bufs {
		n, err := f.WriteAt(b, off+int64(total))
		total += n
		if err != nil {
			return total, err
		}
	}
	consume(bufs, total)
	return total, nil
}

// SyncData implements File. There is no cheaper call that is honest here: on darwin, os.File.Sync is F_FULLFSYNC.
func (f *osFile) SyncData() error { return f.Sync() }

// StartWriteback implements File: there is nothing to ask for.
func (f *osFile) StartWriteback(int64, int64) error { return nil }
