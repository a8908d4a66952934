package vfs

import (
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxPendingNames bounds the unsynced operations on names. Past it the oldest half becomes durable, as a journal's own timer
// would see to: a long simulation that never syncs a directory stays small.
const maxPendingNames = 1024

// inode is a file (data) or a directory (cur and dur: the names readers see, and those certainly on the disk).
type inode struct {
	data     *fileData
	cur, dur map[string]*inode
	mtime    time.Time
	links    int // names that lead here, as readers see it
	opens    int // live handles
}

func newDir(now time.Time) *inode {
	return &inode{cur: make(map[string]*inode), dur: make(map[string]*inode), mtime: now}
}

func (i *inode) isDir() bool { return i.data == nil }

// countPages returns the pages allocated in the tree.
func (i *inode) countPages() int64 {
	if !i.isDir() {
		return i.data.pages
	}
	var n int64
	for _, c := range i.cur {
		n += c.countPages()
	}
	return n
}

func (i *inode) forgetOpens() {
	i.opens = 0
	for _, c := range i.cur {
		c.forgetOpens()
	}
}

// nameChange sets one name of a directory; to is nil where the name goes away.
type nameChange struct {
	dir  *inode
	name string
	to   *inode
}

func (c nameChange) applyTo(names map[string]*inode) {
	if c.to == nil {
		delete(names, c.name)
	} else {
		names[c.name] = c.to
	}
}

// nameOp is one unsynced operation on names. It survives a power cut whole or not at all (a rename never shows half), and
// independently of the others, except that it cannot survive without an earlier one it builds on:
//
//   - one that set a name it sets;
//   - for the removal of a directory, one that changed a name in it (a directory on disk is empty when it goes);
//   - for a rename, one that made a directory on the way to the new name (nothing synced is lost by moving it).
//
// So what was synced and not removed is always found, under a name it was given.
type nameOp struct {
	changes []nameChange
	removed *inode   // a directory that goes away
	via     []*inode // directories on the way to a rename's new name
}

// nameSet is what a set of operations touched.
type nameSet struct {
	names map[nameKey]struct{}
	dirs  map[*inode]struct{}
	made  map[*inode]struct{}
}

type nameKey struct {
	dir  *inode
	name string
}

func newNameSet() nameSet {
	return nameSet{make(map[nameKey]struct{}), make(map[*inode]struct{}), make(map[*inode]struct{})}
}

func (s nameSet) add(op *nameOp) {
	for _, c := range op.changes {
		s.names[nameKey{c.dir, c.name}] = struct{}{}
		s.dirs[c.dir] = struct{}{}
		if c.to != nil {
			s.made[c.to] = struct{}{}
		}
	}
}

// dependsOn reports whether op builds on any of the earlier operations in s.
func (op *nameOp) dependsOn(s nameSet) bool {
	for _, c := range op.changes {
		if _, ok := s.names[nameKey{c.dir, c.name}]; ok {
			return true
		}
	}
	if _, ok := s.dirs[op.removed]; ok {
		return true
	}
	for _, d := range op.via {
		if _, ok := s.made[d]; ok {
			return true
		}
	}
	return false
}

// apply carries out op for readers and notes it as unsynced.
func (m *Mem) apply(op *nameOp) {
	for _, c := range op.changes {
		if old := c.dir.cur[c.name]; old != nil {
			old.links--
			m.release(old)
		}
		if c.to != nil {
			c.to.links++
		}
		c.applyTo(c.dir.cur)
		c.dir.mtime = m.time()
	}
	if m.pending = append(m.pending, op); len(m.pending) > maxPendingNames {
		// A prefix needs nothing outside of it.
		commitOps(m.pending[:maxPendingNames/2])
		m.pending = append([]*nameOp(nil), m.pending[maxPendingNames/2:]...)
	}
}

// release gives the space of a file back once neither a name nor a handle leads to it.
func (m *Mem) release(i *inode) {
	if i.links == 0 && i.opens == 0 && !i.isDir() {
		m.used -= i.data.pages
	}
}

func commitOps(ops []*nameOp) {
	for _, op := range ops {
		for _, c := range op.changes {
			c.applyTo(c.dir.dur)
		}
	}
}

// commitDir makes every operation that touched dir durable, with those it builds on.
func (m *Mem) commitDir(dir *inode) {
	needed := make([]bool, len(m.pending))
	// Backwards, with what the needed operations so far build on.
	names, removed, via := make(map[nameKey]struct{}), make(map[*inode]struct{}), make(map[*inode]struct{})
	for i := len(m.pending) - 1; i >= 0; i-- {
		op := m.pending[i]
		for _, c := range op.changes {
			_, named := names[nameKey{c.dir, c.name}]
			_, emptied := removed[c.dir]
			_, made := via[c.to]
			needed[i] = needed[i] || c.dir == dir || named || emptied || made && c.to != nil
		}
		if !needed[i] {
			continue
		}
		for _, c := range op.changes {
			names[nameKey{c.dir, c.name}] = struct{}{}
		}
		if op.removed != nil {
			removed[op.removed] = struct{}{}
		}
		for _, d := range op.via {
			via[d] = struct{}{}
		}
	}
	var now, later []*nameOp
	for i, op := range m.pending {
		if needed[i] {
			now = append(now, op)
		} else {
			later = append(later, op)
		}
	}
	commitOps(now)
	m.pending = later
}

// place is where a path leads: the directories on the way, the last name, and what it names, if anything. The root has
// neither parent nor name.
type place struct {
	via  []*inode // root first, parent last
	name string
	ino  *inode
}

func (p place) parent() *inode { return p.via[len(p.via)-1] }

// walk follows a path. All but its last name must be directories that exist.
func (m *Mem) walk(path string) (place, error) {
	if path == "" {
		return place{}, syscall.ENOENT
	}
	at := place{ino: m.root}
	for name := range strings.SplitSeq(strings.Trim(cleanPath(path), "/"), "/") {
		if name == "" {
			break
		}
		if at.ino == nil {
			return place{}, syscall.ENOENT
		}
		if !at.ino.isDir() {
			return place{}, syscall.ENOTDIR
		}
		at.via, at.name, at.ino = append(at.via, at.ino), name, at.ino.cur[name]
	}
	return at, nil
}

// find is walk to something that exists, without noting the way.
func (m *Mem) find(path string) (*inode, error) {
	if path == "" {
		return nil, syscall.ENOENT
	}
	at := m.root
	for name := range strings.SplitSeq(strings.Trim(cleanPath(path), "/"), "/") {
		switch {
		case name == "":
			return at, nil
		case !at.isDir():
			return nil, syscall.ENOTDIR
		}
		if at = at.cur[name]; at == nil {
			return nil, syscall.ENOENT
		}
	}
	return at, nil
}

// cleanPath makes a path absolute: the working directory of a simulated process is the root.
func cleanPath(path string) string {
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return filepath.ToSlash(filepath.Clean(path))
}

// eachFile calls fn for every file in the tree, in no particular order.
func (i *inode) eachFile(fn func(*fileData)) {
	if !i.isDir() {
		fn(i.data)
		return
	}
	for _, c := range i.cur {
		c.eachFile(fn)
	}
}
