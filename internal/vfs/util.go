package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
)

// ReadFile returns the whole content of name. A file longer than limit bytes is an error, before anything is allocated.
func ReadFile(fsys FS, name string, limit int64) (data []byte, err error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("vfs: %s has %d bytes, more than the %d allowed", name, size, limit)
	}
	data = make([]byte, size)
	if n, err := f.ReadAt(data, 0); err != nil && (!errors.Is(err, io.EOF) || n < len(data)) {
		return nil, fmt.Errorf("vfs: read %s: %w", name, err)
	}
	return data, nil
}

// WriteFileAtomic replaces name by a file with this content: a crash at any moment leaves the old file or the new one, and
// when it returns nil the new one is durable. The content goes through name + ".tmp", so that one writer at a time may
// write one name; a ".tmp" left by a crash is overwritten by the next call.
func WriteFileAtomic(fsys FS, name string, data []byte) error {
	tmp := name + ".tmp"
	f, err := fsys.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync() // before the rename: otherwise the name may survive a power cut without the bytes
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, fsys.Remove(tmp))
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return errors.Join(err, fsys.Remove(tmp))
	}
	return fsys.SyncDir(filepath.Dir(name))
}

// MkdirAllSync creates dir and its missing parents and makes the names of all it created durable. A dir that existed
// before is synced into its parent all the same: an earlier call may have been cut off between the two.
func MkdirAllSync(fsys FS, dir string) error {
	dir = filepath.Clean(dir)
	top := dir // the highest directory of the path that is created here, or dir itself
	existed := false
	for p := dir; ; p = filepath.Dir(p) {
		_, err := fsys.Stat(p)
		if err == nil {
			existed = p == dir
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		top = p
		if filepath.Dir(p) == p {
			break
		}
	}
	if err := fsys.MkdirAll(dir); err != nil {
		return err
	}
	// From the bottom up: when the topmost name becomes durable, the whole new tree below it is.
	for p := dir; ; p = filepath.Dir(p) {
		parent := filepath.Dir(p)
		if parent == p {
			return nil
		}
		if err := fsys.SyncDir(parent); err != nil {
			if existed && errors.Is(err, fs.ErrPermission) {
				return nil // made by an administrator, in a place this process may not read: theirs to make durable
			}
			return err
		}
		if p == top {
			return nil
		}
	}
}

// DropCache asks the system to forget what it holds in memory of f's bytes [off, off+n), as far as they are on disk: who reads
// everything once should neither read memory where the disk is meant nor push out what others use. It promises nothing.
func DropCache(f File, off, n int64) {
	if d, ok := f.(interface{ dropCache(off, n int64) }); ok && n > 0 {
		d.dropCache(off, n)
	}
}
