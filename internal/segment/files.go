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
// stays open until it is released, evicted or not, so that the bound can be exceeded by as many files as are in use at
// one moment. It is safe for concurrent use.
type Files struct {
	fs      vfs.FS
	maxOpen int

	mu     sync.Mutex
	opened sync.Cond // an open under way has ended
	open   int
	lru    slot  // ring; lru.next is the most recently used, lru.prev the least
	failed error // of a sync while evicting: from then on nothing may be believed durable
}

// NewFiles returns a cache over fs. maxOpen below 16 is taken as 16.
func NewFiles(fs vfs.FS, maxOpen int) *Files {
	f := &Files{fs: fs, maxOpen: max(maxOpen, 16)}
	f.opened.L = &f.mu
	f.lru.next, f.lru.prev = &f.lru, &f.lru
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
	next, prev *slot
	file       vfs.File
	refs       int
	opening    bool
	gone       bool // the file was removed: it is not opened again, and closed by its last user

	dirty atomic.Bool // written since the last sync
}

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
	for s.opening {
		f.opened.Wait()
	}
	if s.file != nil {
		if s.next != nil {
			s.unlink()
		}
		s.link()
		s.refs++
		file := s.file
		f.mu.Unlock()
		return file, nil
	}
	if s.gone {
		f.mu.Unlock()
		return nil, &IOError{Op: "open", File: s.path(), Err: fs.ErrNotExist}
	}
	s.opening = true
	f.mu.Unlock()

	var file vfs.File
	var err error
	if create {
		file, err = f.fs.Create(s.path())
	} else {
		file, err = f.fs.OpenReadWrite(s.path())
	}

	f.mu.Lock()
	s.opening = false
	f.opened.Broadcast()
	if err != nil {
		f.mu.Unlock()
		return nil, ioErr("open", s.path(), err)
	}
	s.file, s.refs = file, s.refs+1
	s.link()
	f.open++
	victims := f.evictLocked()
	f.mu.Unlock()
	f.closeVictims(victims)
	return file, nil
}

func (s *slot) release() {
	f := s.files
	f.mu.Lock()
	s.refs--
	var victims []victim
	if s.refs == 0 && s.gone {
		victims = append(victims, s.takeLocked())
	} else if f.open > f.maxOpen {
		victims = f.evictLocked()
	}
	f.mu.Unlock()
	f.closeVictims(victims)
}

// forget ends the slot: its file is about to be removed or was replaced. Who holds it keeps it.
func (s *slot) forget() {
	f := s.files
	f.mu.Lock()
	for s.opening {
		f.opened.Wait()
	}
	s.gone = true
	s.dirty.Store(false) // nobody needs these bytes on disk any more
	var victims []victim
	if s.file != nil && s.refs == 0 {
		victims = append(victims, s.takeLocked())
	}
	f.mu.Unlock()
	f.closeVictims(victims)
}

// closeIdle closes the file unless it is in use; it may be opened again.
func (s *slot) closeIdle() {
	f := s.files
	f.mu.Lock()
	var victims []victim
	if s.file != nil && s.refs == 0 {
		victims = append(victims, s.takeLocked())
	}
	f.mu.Unlock()
	f.closeVictims(victims)
}

type victim struct {
	s    *slot
	file vfs.File
}

func (s *slot) takeLocked() victim {
	v := victim{s, s.file}
	s.unlink()
	s.file = nil
	s.files.open--
	return v
}

// evictLocked takes the least recently used files that nobody uses, clean ones first, until the bound holds.
func (f *Files) evictLocked() []victim {
	var out []victim
	for _, cleanOnly := range []bool{true, false} {
		// Behind a bound full of dirty files each opening looks at only a few: the next opening looks at others.
		looked := 0
		for s := f.lru.prev; f.open > f.maxOpen && s != &f.lru && looked < 64; looked++ {
			prev := s.prev
			if s.refs == 0 && (!cleanOnly || !s.dirty.Load()) {
				out = append(out, s.takeLocked())
			}
			s = prev
		}
	}
	return out
}

// closeVictims closes files outside the lock. A dirty one is synced first: what another descriptor's fdatasync says of
// bytes written through this one is more than vfs promises.
func (f *Files) closeVictims(victims []victim) {
	for _, v := range victims {
		if v.s.dirty.Load() {
			if err := v.file.SyncData(); err != nil {
				f.mu.Lock()
				if f.failed == nil {
					f.failed = ioErr("fdatasync", v.s.path(), err)
				}
				f.mu.Unlock()
			}
		}
		_ = v.file.Close() // everything written was synced or is not wanted
	}
}

func (s *slot) link() {
	head := &s.files.lru
	s.next, s.prev = head.next, head
	head.next.prev, head.next = s, s
}

func (s *slot) unlink() {
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
		return ioErr("fdatasync", s.path(), err)
	}
	return s.files.err()
}
