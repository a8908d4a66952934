package vfs

import (
	"path"
	"strings"
	"syscall"
	"time"
)

// Op is a kind of operation on a disk, or with | several of them.
type Op uint16

// The kinds of operation.
const (
	OpRead      Op = 1 << iota // ReadAt
	OpWrite                    // WriteAt, WriteVecAt
	OpSync                     // Sync, SyncData
	OpSyncDir                  // SyncDir
	OpCreate                   // Create
	OpOpen                     // Open, OpenReadWrite
	OpRemove                   // Remove, RemoveAll
	OpRename                   // Rename
	OpMkdir                    // MkdirAll
	OpTruncate                 // Truncate
	OpStat                     // Stat, List, Size, FreeSpace
	OpLock                     // Lock
	OpWriteback                // StartWriteback

	OpAny     Op = 1<<iota - 1
	OpChanges    = OpWrite | OpSync | OpSyncDir | OpCreate | OpRemove | OpRename | OpMkdir | OpTruncate
)

// Fault makes operations fail, stall, or both.
type Fault struct {
	Ops Op // which operations; 0 is OpAny
	// Match is a path.Match pattern: of the whole cleaned path if it contains a slash, of the last name otherwise. Empty
	// matches all. A file goes by the name it was opened under, a rename by the old name.
	Match string
	Skip  int // so many matching operations pass first
	Count int // so many are hit then; 0 is one, a negative number all
	// Err is what they return, in a *fs.PathError; nil is syscall.EIO, unless there is a Delay. A failing write may have
	// written any part of its bytes; a failing sync loses dirty sectors for good; any other failing operation does nothing.
	Err   error
	Delay time.Duration // the operation takes that much longer: see TakeStall
}

// Injected is a fault in place.
type Injected struct {
	m     *Mem
	fault Fault
	skip  int
	left  int // negative: no end
	fired uint64
}

// Inject puts a fault in place. Of several that match an operation, the first decides the error, all are counted, and their
// delays add up.
func (m *Mem) Inject(f Fault) *Injected {
	if _, err := path.Match(f.Match, ""); err != nil {
		panic("vfs: bad pattern " + f.Match)
	}
	if f.Ops == 0 {
		f.Ops = OpAny
	}
	if f.Count == 0 {
		f.Count = 1
	}
	if f.Err == nil && f.Delay == 0 {
		f.Err = syscall.EIO
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	i := &Injected{m: m, fault: f, skip: f.Skip, left: f.Count}
	m.faults = append(m.faults, i)
	return i
}

// Fired returns how many operations the fault has hit: a test that injects one and finds 0 has tested nothing.
func (i *Injected) Fired() uint64 {
	i.m.mu.Lock()
	defer i.m.mu.Unlock()
	return i.fired
}

// Remove takes the fault away. Crash and Kill do not.
func (i *Injected) Remove() {
	i.m.mu.Lock()
	defer i.m.mu.Unlock()
	i.left = 0
	i.m.dropSpent()
}

func (m *Mem) dropSpent() {
	kept := m.faults[:0]
	for _, i := range m.faults {
		if i.left != 0 {
			kept = append(kept, i)
		}
	}
	clear(m.faults[len(kept):])
	m.faults = kept
}

func (i *Injected) hits(op Op, name string) bool {
	if i.fault.Ops&op == 0 {
		return false
	}
	if i.fault.Match != "" {
		if !strings.Contains(i.fault.Match, "/") {
			name = path.Base(name)
		}
		if ok, _ := path.Match(i.fault.Match, name); !ok {
			return false
		}
	}
	if i.skip > 0 {
		i.skip--
		return false
	}
	return true
}

// Hook is called at the beginning of every operation on a live file or a name, before it has any effect and without locks:
// it may clone the disk as it is at this moment, count, or block until a test lets the operation go on. delay is what the
// faults add to it.
type Hook func(op Op, name string, delay time.Duration)

// SetHook sets the hook, or takes it away with nil.
func (m *Mem) SetHook(h Hook) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = h
}

// TakeStall returns by how much faults have delayed the operations since the last call. Nothing here sleeps: a simulator
// calls TakeStall after it has stepped an actor, and does not step that actor again before so much simulated time has passed.
// To have an operation itself begin late, it holds the actor back before the step. A test with goroutines blocks in the hook.
func (m *Mem) TakeStall() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.stalled
	m.stalled = 0
	return d
}

// enter begins an operation: it returns with m.mu held, and the error of a fault that fired.
func (m *Mem) enter(op Op, name string) (err error) {
	m.mu.Lock()
	return m.begin(op, name)
}

// begin is enter for who holds m.mu already. It lets go of it while the hook runs.
func (m *Mem) begin(op Op, name string) (err error) {
	m.stats.count(op)
	var delay time.Duration
	if len(m.faults) > 0 {
		spent, clean := false, cleanPath(name)
		for _, i := range m.faults {
			if !i.hits(op, clean) {
				continue
			}
			i.fired++
			if i.left > 0 {
				i.left--
			}
			spent = spent || i.left == 0
			delay += i.fault.Delay
			if i.fault.Delay > 0 {
				m.stats.Stalls++
			}
			if err == nil && i.fault.Err != nil {
				err = i.fault.Err
				m.stats.failed(op)
			}
		}
		if spent {
			m.dropSpent()
		}
	}
	m.stalled += delay
	if h := m.hook; h != nil {
		m.mu.Unlock()
		h(op, name, delay)
		m.mu.Lock()
	}
	return err
}

// MemStats counts what a disk did and what was done to it, over all its crashes.
type MemStats struct {
	Reads, Writes, Syncs, DirSyncs                     uint64
	BytesWritten                                       uint64
	FailedReads, FailedWrites, FailedSyncs, FailedElse uint64 // by injected faults; a failed SyncDir is among FailedSyncs
	NoSpace                                            uint64 // writes that ran into the capacity
	Stalls, BitFlips                                   uint64
	Crashes, Kills                                     uint64
	Cut                                                CutReport // of all power cuts together
}

func (s *MemStats) count(op Op) {
	switch op {
	case OpRead:
		s.Reads++
	case OpWrite:
		s.Writes++
	case OpSync:
		s.Syncs++
	case OpSyncDir:
		s.DirSyncs++
	}
}

func (s *MemStats) failed(op Op) {
	switch op {
	case OpRead:
		s.FailedReads++
	case OpWrite:
		s.FailedWrites++
	case OpSync, OpSyncDir:
		s.FailedSyncs++
	default:
		s.FailedElse++
	}
}

// Stats returns the counts so far.
func (m *Mem) Stats() MemStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats
}

// FlipBit inverts one bit (0 to 7) of the byte at off, on the disk and for readers, without any operation failing.
func (m *Mem) FlipBit(name string, off int64, bit uint) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	ino, err := m.find(name)
	if err == nil && (ino.isDir() || off < 0 || off >= ino.data.size) {
		err = syscall.EINVAL
	}
	if err != nil {
		return pathErr("flip", name, err)
	}
	ino.data.flip(off, bit)
	m.stats.BitFlips++
	return nil
}

// DropCaches makes readers see what the disk holds where a failed sync left a difference, as the kernel does when it evicts
// the page some time later.
func (m *Mem) DropCaches() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.root.eachFile(func(d *fileData) { d.dropCache() })
}
