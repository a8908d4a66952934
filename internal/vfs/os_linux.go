package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// maxIovecs is Linux's UIO_MAXIOV: pwritev refuses longer vectors.
const maxIovecs = 1024

func flock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// FreeSpace implements FS: what an unprivileged process may still use.
func (OS) FreeSpace(dir string) (uint64, error) {
	st, err := statfs(dir)
	return st.Bavail * uint64(st.Bsize), err
}

// TotalSpace implements FS.
func (OS) TotalSpace(dir string) (uint64, error) {
	st, err := statfs(dir)
	return st.Blocks * uint64(st.Bsize), err
}

func statfs(dir string) (st unix.Statfs_t, err error) {
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			return st, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return unix.Statfs_t{}, &fs.PathError{Op: "statfs", Path: dir, Err: err}
		}
	}
}

// WriteVecAt implements File with pwritev, again for what a short write left.
func (f *osFile) WriteVecAt(bufs [][]byte, off int64) (int, error) {
	if off < 0 {
		return 0, &fs.PathError{Op: "pwritev", Path: f.Name(), Err: unix.EINVAL}
	}
	var total int
	for bufs = consume(bufs, 0); len(bufs) > 0; {
		var n int
		err := f.control("pwritev", func(fd int) (err error) {
			n, err = unix.Pwritev(fd, bufs[:min(len(bufs), maxIovecs)], off)
			return err
		})
		if n > 0 {
			total += n
			off += int64(n)
			bufs = consume(bufs, n)
		}
		if err != nil {
			return total, err
		}
		if n <= 0 {
			// Bytes were offered and none taken, without a reason given: do not spin on it.
			return total, &fs.PathError{Op: "pwritev", Path: f.Name(), Err: io.ErrShortWrite}
		}
	}
	return total, nil
}

// SyncData implements File with fdatasync.
func (f *osFile) SyncData() error { return f.control("fdatasync", unix.Fdatasync) }

// StartWriteback implements File with sync_file_range(SYNC_FILE_RANGE_WRITE): it queues dirty pages and does not wait for
// them, although the call itself may wait for room in the device's queue.
func (f *osFile) StartWriteback(off, n int64) error {
	if n <= 0 {
		return nil // to the kernel, 0 means up to the end of the file
	}
	err := f.control("sync_file_range", func(fd int) error {
		return unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
	})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ESPIPE) {
		return nil // a file system or sandbox without it: it was only ever a hint
	}
	return err
}

// dropCache is posix_fadvise(POSIX_FADV_DONTNEED).
func (f *osFile) dropCache(off, n int64) {
	_ = f.control("fadvise", func(fd int) error { return unix.Fadvise(fd, off, n, unix.FADV_DONTNEED) })
}
