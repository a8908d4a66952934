package vfs

import (
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// unlimited is the free space of a Mem without a capacity.
const unlimited = 1 << 40

// Mem is a disk in memory that behaves as badly as a real one may. It knows, for every 512-byte sector, file length and
// name, what is durable and what is not; Crash and CrashClone cut the power, and every unsynced thing by itself survives or
// not. Kill is kill -9. Inject makes operations fail or stall, SetCapacity fills the disk, FlipBit damages it.
//
// Mem is stricter than most file systems where they differ: a synced file whose name was not synced into its directory may be
// gone, a directory not synced into its parent takes with it all it holds, unsynced changes of unrelated names survive in
// any combination, and a grown length can survive without the bytes (zeros are read).
//
// The same calls in the same order on the same seed give the same disk: all chance comes from the seed of NewMem and from
// those of the crashes. Paths are those of a Unix file system with the root as working directory.
type Mem struct {
	mu       sync.Mutex
	rng      *rand.Rand
	root     *inode
	pending  []*nameOp // unsynced changes of names, oldest first
	gen      uint64    // of open handles: Crash and Kill begin a new one
	locks    map[*inode]*memLock
	used     int64 // allocated pages, of names and handles
	capacity int64 // in bytes; 0: no bound
	now      func() time.Time
	ticks    int64 // readings of the built-in clock
	faults   []*Injected
	hook     Hook
	stalled  time.Duration
	stats    MemStats
}

var _ FS = (*Mem)(nil)

// NewMem returns an empty disk without bounds and faults. Its modification times count microseconds from 1970, one for each
// reading, unless SetNow gives it a clock.
func NewMem(seed uint64) *Mem {
	m := &Mem{rng: rand.New(rand.NewPCG(seed, 0x6d656d)), locks: make(map[*inode]*memLock)}
	m.root = newDir(time.UnixMicro(0))
	m.root.links = 1
	return m
}

// SetNow makes modification times come from now, which must not use the disk.
func (m *Mem) SetNow(now func() time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = now
}

// SetCapacity bounds the bytes allocated, in pages of 4 KiB; 0 lifts the bound. Writes past it take what fits and fail with
// syscall.ENOSPC. Overwriting allocated pages always works, holes take no space, and names are free.
func (m *Mem) SetCapacity(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity = bytes
}

// Used returns the bytes allocated.
func (m *Mem) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used * pageSize
}

func (m *Mem) time() time.Time {
	if m.now != nil {
		return m.now()
	}
	m.ticks++
	return time.UnixMicro(m.ticks)
}

func pathErr(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	err := m.enter(OpCreate, name)
	defer m.mu.Unlock()
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	at, err := m.createAt(name)
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	m.used -= at.data.truncate(0)
	return m.handle(at, name, true), nil
}

// createAt finds a file or makes an empty one.
func (m *Mem) createAt(name string) (*inode, error) {
	at, err := m.walk(name)
	switch {
	case err != nil:
		return nil, err
	case at.ino == nil:
		ino := &inode{data: newFileData(), mtime: m.time()}
		m.apply(&nameOp{changes: []nameChange{{at.parent(), at.name, ino}}})
		return ino, nil
	case at.ino.isDir():
		return nil, syscall.EISDIR
	}
	return at.ino, nil
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) { return m.open(name, false) }

// OpenReadWrite implements FS.
func (m *Mem) OpenReadWrite(name string) (File, error) { return m.open(name, true) }

func (m *Mem) open(name string, write bool) (File, error) {
	err := m.enter(OpOpen, name)
	defer m.mu.Unlock()
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	ino, err := m.find(name)
	if err == nil && ino.isDir() {
		err = syscall.EISDIR
	}
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	return m.handle(ino, name, write), nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	err := m.enter(OpRemove, name)
	defer m.mu.Unlock()
	if err != nil {
		return pathErr("remove", name, err)
	}
	at, err := m.walk(name)
	if err == nil {
		err = m.removeAt(at)
	}
	return pathErr("remove", name, err)
}

func (m *Mem) removeAt(at place) error {
	op := &nameOp{}
	switch {
	case at.ino == nil:
		return syscall.ENOENT
	case len(at.via) == 0:
		return syscall.EBUSY // the root
	case at.ino.isDir():
		if len(at.ino.cur) > 0 {
			return syscall.ENOTEMPTY
		}
		op.removed = at.ino
	}
	op.changes = []nameChange{{at.parent(), at.name, nil}}
	m.apply(op)
	return nil
}

// RemoveAll implements FS. It is many removals, each of which may survive a power cut without the others.
func (m *Mem) RemoveAll(name string) error {
	err := m.enter(OpRemove, name)
	defer m.mu.Unlock()
	if err != nil {
		return pathErr("unlinkat", name, err)
	}
	at, err := m.walk(name)
	if err == syscall.ENOENT || err == nil && at.ino == nil {
		return nil
	}
	if err == nil {
		err = m.removeTree(at)
	}
	return pathErr("unlinkat", name, err)
}

func (m *Mem) removeTree(at place) error {
	if at.ino.isDir() {
		via := append(slices.Clone(at.via), at.ino)
		for _, name := range slices.Sorted(maps.Keys(at.ino.cur)) {
			if err := m.removeTree(place{via: via, name: name, ino: at.ino.cur[name]}); err != nil {
				return err
			}
		}
	}
	return m.removeAt(at)
}

// Rename implements FS.
func (m *Mem) Rename(oldname, newname string) error {
	err := m.enter(OpRename, oldname)
	defer m.mu.Unlock()
	if err == nil {
		err = m.rename(oldname, newname)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: err}
	}
	return nil
}

func (m *Mem) rename(oldname, newname string) error {
	from, err := m.walk(oldname)
	if err != nil {
		return err
	}
	to, err := m.walk(newname)
	switch {
	case err != nil:
		return err
	case from.ino == nil:
		return syscall.ENOENT
	case to.ino != nil && to.ino.isDir():
		return syscall.EEXIST // as os.Rename has it: no directory is replaced
	case from.ino == to.ino:
		return nil
	case slices.Contains(to.via, from.ino):
		return syscall.EINVAL // a directory into itself
	case len(to.via) == 0 || len(from.via) == 0:
		return syscall.EBUSY
	case to.ino != nil && from.ino.isDir():
		return syscall.ENOTDIR
	}
	m.apply(&nameOp{via: to.via, changes: []nameChange{{to.parent(), to.name, from.ino}, {from.parent(), from.name, nil}}})
	return nil
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(dir string) error {
	err := m.enter(OpMkdir, dir)
	defer m.mu.Unlock()
	if err == nil {
		err = m.mkdirAll(cleanPath(dir))
	}
	return pathErr("mkdir", dir, err)
}

func (m *Mem) mkdirAll(dir string) error {
	at, err := m.walk(dir)
	if err == syscall.ENOENT {
		if err = m.mkdirAll(cleanPath(dir + "/..")); err == nil {
			at, err = m.walk(dir)
		}
	}
	switch {
	case err != nil:
		return err
	case at.ino == nil:
		m.apply(&nameOp{changes: []nameChange{{at.parent(), at.name, newDir(m.time())}}})
	case !at.ino.isDir():
		return syscall.ENOTDIR
	}
	return nil
}

// SyncDir implements FS. A failure leaves the names of dir unsynced.
func (m *Mem) SyncDir(dir string) error {
	err := m.enter(OpSyncDir, dir)
	defer m.mu.Unlock()
	if err != nil {
		return pathErr("sync", dir, err)
	}
	ino, err := m.findDir(dir)
	if err != nil {
		return pathErr("sync", dir, err)
	}
	m.commitDir(ino)
	return nil
}

func (m *Mem) findDir(dir string) (*inode, error) {
	ino, err := m.find(dir)
	if err == nil && !ino.isDir() {
		err = syscall.ENOTDIR
	}
	return ino, err
}

// List implements FS.
func (m *Mem) List(dir string) ([]string, error) {
	err := m.enter(OpStat, dir)
	defer m.mu.Unlock()
	if err != nil {
		return nil, pathErr("open", dir, err)
	}
	ino, err := m.findDir(dir)
	if err != nil {
		return nil, pathErr("open", dir, err)
	}
	return slices.Sorted(maps.Keys(ino.cur)), nil
}

// Stat implements FS.
func (m *Mem) Stat(name string) (FileInfo, error) {
	err := m.enter(OpStat, name)
	defer m.mu.Unlock()
	if err != nil {
		return FileInfo{}, pathErr("stat", name, err)
	}
	ino, err := m.find(name)
	if err != nil {
		return FileInfo{}, pathErr("stat", name, err)
	}
	fi := FileInfo{ModTime: ino.mtime, IsDir: ino.isDir()}
	if !fi.IsDir {
		fi.Size = ino.data.size
	}
	return fi, nil
}

// FreeSpace implements FS.
func (m *Mem) FreeSpace(dir string) (uint64, error) {
	_, free, err := m.space(dir)
	return free, err
}

// TotalSpace implements FS.
func (m *Mem) TotalSpace(dir string) (uint64, error) {
	total, _, err := m.space(dir)
	return total, err
}

func (m *Mem) space(dir string) (total, free uint64, err error) {
	err = m.enter(OpStat, dir)
	defer m.mu.Unlock()
	if err == nil {
		_, err = m.find(dir)
	}
	if err != nil {
		return 0, 0, pathErr("statfs", dir, err)
	}
	if m.capacity == 0 {
		return unlimited, unlimited, nil
	}
	return uint64(m.capacity), uint64(max(m.capacity-m.used*pageSize, 0)), nil
}

// Lock implements FS. Crash and Kill release it.
func (m *Mem) Lock(name string) (io.Closer, error) {
	err := m.enter(OpLock, name)
	defer m.mu.Unlock()
	if err != nil {
		return nil, pathErr("lock", name, err)
	}
	ino, err := m.createAt(name)
	if err != nil {
		return nil, pathErr("lock", name, err)
	}
	if m.locks[ino] != nil {
		return nil, pathErr("lock", name, ErrLocked)
	}
	l := &memLock{m: m, ino: ino, name: name}
	m.locks[ino] = l
	return l, nil
}

// memLock is a held lock.
type memLock struct {
	m    *Mem
	ino  *inode
	name string
}

// Close releases the lock. A second Close, or one after the process died, is fs.ErrClosed.
func (l *memLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.m.locks[l.ino] != l {
		return pathErr("close", l.name, fs.ErrClosed)
	}
	delete(l.m.locks, l.ino)
	return nil
}
