package vfs

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
)

var errNegativeOffset = errors.New("negative offset")

// memFile is an open file of a Mem.
type memFile struct {
	m      *Mem
	ino    *inode
	name   string
	gen    uint64
	write  bool
	closed bool // guarded by m.mu, like all of ino
}

var _ File = (*memFile)(nil)

func (m *Mem) handle(ino *inode, name string, write bool) *memFile {
	ino.opens++
	return &memFile{m: m, ino: ino, name: name, gen: m.gen, write: write}
}

// enter begins an operation: it returns with m.mu held, and an error if the file is dead or a fault fired.
func (f *memFile) enter(op Op) error {
	f.m.mu.Lock()
	if f.dead() {
		return fs.ErrClosed
	}
	err := f.m.begin(op, f.name)
	if f.dead() { // the operation was held up and the power failed meanwhile
		return fs.ErrClosed
	}
	return err
}

func (f *memFile) dead() bool { return f.closed || f.gen != f.m.gen }

// Name implements File.
func (f *memFile) Name() string { return f.name }

// ReadAt implements io.ReaderAt.
func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	err := f.enter(OpRead)
	defer f.m.mu.Unlock()
	if err == nil && off < 0 {
		err = errNegativeOffset
	}
	if err != nil {
		return 0, pathErr("read", f.name, err)
	}
	n := f.ino.data.read(b, off)
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	err := f.enter(OpWrite)
	defer f.m.mu.Unlock()
	n, err := f.writeAll([][]byte{b}, off, err)
	return n, pathErr("write", f.name, err)
}

// WriteVecAt implements File.
func (f *memFile) WriteVecAt(bufs [][]byte, off int64) (int, error) {
	err := f.enter(OpWrite)
	defer f.m.mu.Unlock()
	n, err := f.writeAll(bufs, off, err)
	consume(bufs, n) // as OS does: no caller may come to rely on bufs
	return n, pathErr("pwritev", f.name, err)
}

// writeAll writes bufs, or the random part of them that got through before the fault.
func (f *memFile) writeAll(bufs [][]byte, off int64, fault error) (int, error) {
	switch {
	case errors.Is(fault, fs.ErrClosed):
		return 0, fault
	case off < 0:
		return 0, errNegativeOffset
	case !f.write:
		return 0, syscall.EBADF
	}
	limit := 0
	for _, b := range bufs {
		limit += len(b)
	}
	if fault != nil {
		limit = f.m.rng.IntN(limit + 1)
	}
	total := 0
	for _, b := range bufs {
		b = b[:min(len(b), limit-total)]
		n := f.ino.data.write(b, off+int64(total), f.m.rng, f.m.takePage)
		total += n
		if n < len(b) {
			f.m.stats.NoSpace++
			fault = syscall.ENOSPC
			break
		}
	}
	if total > 0 {
		f.ino.mtime = f.m.time()
	}
	f.m.stats.BytesWritten += uint64(total)
	return total, fault
}

// takePage takes a page of space, if there is one.
func (m *Mem) takePage() bool {
	if m.capacity != 0 && (m.used+1)*pageSize > m.capacity {
		return false
	}
	m.used++
	return true
}

// Size implements File.
func (f *memFile) Size() (int64, error) {
	err := f.enter(OpStat)
	defer f.m.mu.Unlock()
	if err != nil {
		return 0, pathErr("stat", f.name, err)
	}
	return f.ino.data.size, nil
}

// Truncate implements File. Growing makes a hole, which takes no space until it is written.
func (f *memFile) Truncate(size int64) error {
	err := f.enter(OpTruncate)
	defer f.m.mu.Unlock()
	if err == nil && (size < 0 || !f.write) {
		err = syscall.EINVAL
	}
	if err != nil {
		return pathErr("truncate", f.name, err)
	}
	f.m.used -= f.ino.data.truncate(size)
	f.ino.mtime = f.m.time()
	return nil
}

// Sync implements File.
func (f *memFile) Sync() error { return f.sync("sync") }

// SyncData implements File. For data and length it is Sync.
func (f *memFile) SyncData() error { return f.sync("fdatasync") }

func (f *memFile) sync(op string) error {
	err := f.enter(OpSync)
	defer f.m.mu.Unlock()
	switch {
	case errors.Is(err, fs.ErrClosed):
	case err != nil:
		f.ino.data.failSync(f.m.rng)
	default:
		f.ino.data.sync()
	}
	return pathErr(op, f.name, err)
}

// StartWriteback implements File: some of the dirty sectors reach the disk, which promises nothing.
func (f *memFile) StartWriteback(off, n int64) error {
	err := f.enter(OpWriteback)
	defer f.m.mu.Unlock()
	if err != nil {
		return pathErr("sync_file_range", f.name, err)
	}
	f.ino.data.writebackRange(off, n, f.m.rng)
	return nil
}

// Close implements io.Closer. It syncs nothing.
func (f *memFile) Close() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.dead() {
		return pathErr("close", f.name, fs.ErrClosed)
	}
	f.closed = true
	f.ino.opens--
	f.m.release(f.ino)
	return nil
}
