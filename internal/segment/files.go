package segment

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/chronik-go/chronik/internal/vfs"
)

// Files is the open files of all logs of a node: at most maxOpen of them, least recently used first to go. A file in use
// stays open until it is released, so that the bound can be exceeded by as many files as are in use at one moment.
//
// A segment with bytes that are not on disk yet must be synced before it may be closed, and whoever opens another file
// should not wait for that. So only clean files make room; while there are none, the bound may be exceeded by a quarter until
// the logs' Flush has made some. Past that, whoever opens a file syncs one, which also slows down what makes them dirty.
//
// It is safe for concurrent use.
type Files struct {
	fs      vfs.FS
	maxOpen int // clean files go above this
	hardMax int // dirty ones, too, above this

	mu     sync.Mutex
	ready  sync.Cond // a slot is no longer busy
	open   int
	clean  slot  // rings of open files that nobody uses; next is the most recently used, prev the least
	dirty  slot  // of these, the ones that must be synced before they are closed
	failed error // of a sync while evicting: from then on nothing may be believed durable
}

// NewFiles returns a cache over fs. maxOpen below 16 is taken as 16.
func NewFiles(fs vfs.FS, maxOpen int) *Files {
	maxOpen = max(maxOpen, 16)
	f := &Files{fs: fs, maxOpen: maxOpen, hardMax: maxOpen + maxOpen/4}
	f.ready.L = &f.mu
	f.clean.next, f.clean.prev = &f.clean, &f.clean
	f.dirty.next, f.dirty.prev = &f.dirty, &f.dirty
	return f
}

// FS returns the file system beneath.
func (f *Files) FS() vfs.FS { return f.fs }

// Open returns how many files are open.
func (f *Files) Open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open
}

func (f *Files) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

// slot is one file of a log, open or not.
type slot struct {
	files *Files
	dir   *string
	base  int64
	ext   string

	// Guarded by files.mu.
	next, prev *slot // in a ring if the file is open and nobody uses it
	file       vfs.File
	refs       int32
	busy       bool // being opened, or synced and closed: everybody waits
	gone       bool // the file was removed: it is not opened again, and closed by its last user

	// written since the last sync. Only who has acquired the slot sets it.
	dirty atomic.Bool
}

// rebuildable reports whether the file may be closed without a sync. An index is: what a restart believes of it is what
// Flush synced, or what matches a sum, every entry that is used is checked against the log, and it is built anew if need be.
// (The sync comes later, through another descriptor: enough on every system we know, but no more than that.) An old
// recovery point is as good as a new one.
func (s *slot) rebuildable() bool { return s.ext != logExt }

func (f *Files) slot(dir *string, base int64, ext string) slot {
	return slot{files: f, dir: dir, base: base, ext: ext}
}

func (s *slot) path() string { return filepath.Join(*s.dir, s.name()) }

func (s *slot) name() string {
	if s.base < 0 {
		return s.ext
	}
	return fileName(s.base, s.ext)
}

// fileName is Kafka's: the base offset in 20 digits.
func fileName(base int64, ext string) string { return fmt.Sprintf("%020d%s", base, ext) }

// acquire opens the file if it is not open (creating it if asked) and keeps it so until release.
func (s *slot) acquire(create bool) (vfs.File, error) {
	f := s.files
	f.mu.Lock()
	for s.busy {
		f.ready.Wait()
	}
	if s.file != nil {
		s.unlink()
		s.refs++
		file := s.file
		f.mu.Unlock()
		return file, nil
	}
	if s.gone {
		f.mu.Unlock()
		return nil, &IOError{Op: "open", File: s.path(), Err: fs.ErrNotExist}
	}
	s.busy = true
	f.open++ // already: opens under way count
	victims := f.evictLocked()
	f.mu.Unlock()
	f.closeVictims(victims)

	var file vfs.File
	var err error
	if create {
		file, err = f.fs.Create(s.path())
	} else {
		file, err = f.fs.OpenReadWrite(s.path())
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	s.busy = false
	f.ready.Broadcast()
	if err != nil {
		f.open--
		return nil, ioErr("open", s.path(), err)
	}
	s.file, s.refs = file, s.refs+1
	return file, nil
}

func (s *slot) release() {
	f := s.files
	f.mu.Lock()
	s.refs--
	var victims []victim
	if s.refs == 0 {
		s.link()
		if s.gone {
			victims = append(victims, s.takeLocked())
		} else if f.open > f.maxOpen {
			victims = f.evictLocked()
		}
	}
	f.mu.Unlock()
	f.closeVictims(victims)
}

// forget ends the slot: its file is about to be removed or was replaced. Who holds it keeps it.
func (s *slot) forget() {
	s.close(true)
}

// closeIdle closes the file unless it is in use; it may be opened again.
func (s *slot) closeIdle() {
	s.close(false)
}

func (s *slot) close(forget bool) {
	f := s.files
	f.mu.Lock()
	for s.busy {
		f.ready.Wait()
	}
	if forget {
		s.gone = true
		s.dirty.Store(false) // nobody needs these bytes on disk any more
	}
	var victims []victim
	if s.file != nil && s.refs == 0 {
		victims = append(victims, s.takeLocked())
	}
	f.mu.Unlock()
	f.closeVictims(victims)
}

// victim is a file that was taken from its slot to be closed, after a sync if it needs one.
type victim struct {
	s    *slot
	file vfs.File
	sync bool // the slot is busy until it is done
}

// takeLocked takes the file from a slot that nobody uses.
func (s *slot) takeLocked() victim {
	v := victim{s, s.file, !s.rebuildable() && s.dirty.Load()}
	s.unlink()
	s.file = nil
	s.busy = v.sync
	s.files.open--
	return v
}

// evictLocked takes the least recently used of the files that nobody uses: clean ones until the bound holds, dirty ones only
// until its overshoot does.
func (f *Files) evictLocked() []victim {
	var out []victim
	for f.open > f.maxOpen && f.clean.prev != &f.clean {
		out = append(out, f.clean.prev.takeLocked())
	}
	for f.open > f.hardMax && f.dirty.prev != &f.dirty {
		out = append(out, f.dirty.prev.takeLocked())
	}
	return out
}

// closeVictims closes files outside the lock. A dirty segment is synced first: that another descriptor's fdatasync would
// cover and report what was written through this one is more than vfs promises. Who wants the file meanwhile waits, so that
// a Flush cannot return before the bytes are on disk, or with the failure unknown.
func (f *Files) closeVictims(victims []victim) {
	for _, v := range victims {
		var err error
		if v.sync {
			if err = v.file.SyncData(); err != nil {
				err = syncErr(v.s.path(), err)
			}
		}
		_ = v.file.Close() // everything written was synced or is not wanted
		if !v.sync {
			continue
		}
		f.mu.Lock()
		if err == nil {
			v.s.dirty.Store(false)
		} else if f.failed == nil {
			f.failed = err
		}
		v.s.busy = false
		f.ready.Broadcast()
		f.mu.Unlock()
	}
}

// link puts a slot whose file is open and unused at the head of its ring.
func (s *slot) link() {
	head := &s.files.clean
	if !s.rebuildable() && s.dirty.Load() {
		head = &s.files.dirty
	}
	s.next, s.prev = head.next, head
	head.next.prev, head.next = s, s
}

func (s *slot) unlink() {
	if s.next == nil {
		return // in use
	}
	s.prev.next, s.next.prev = s.next, s.prev
	s.next, s.prev = nil, nil
}

// readAt fills b from off, or fails.
func (s *slot) readAt(b []byte, off int64) error {
	f, err := s.acquire(false)
	if err != nil {
		return err
	}
	defer s.release()
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	return ioErr("read", s.path(), err)
}

// sync makes what was written so far durable.
func (s *slot) sync() error {
	f, err := s.acquire(false)
	if err != nil {
		return err
	}
	defer s.release()
	s.dirty.Store(false)
	if err := f.SyncData(); err != nil {
		s.dirty.Store(true)
		return syncErr(s.path(), err)
	}
	return s.files.err()
}
