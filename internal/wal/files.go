package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/chronik-go/chronik/internal/vfs"
)

// file is one log file.
type file struct {
	seq  uint32
	name string
	f    vfs.File
	pins int // groups for which this is the oldest file needed; fileSet.mu
	// ahead writes the zeros, nil: not opened. It is not f, because a kernel tells each descriptor once that bytes of a file were lost:
	// a background sync that hears of it would take the word from the writer, who would go on and acknowledge what was among them.
	ahead vfs.File

	// zeroMu is held while zeros are written ahead, and by the writer when it moves ready itself, so that zeros never
	// overtake a block.
	zeroMu sync.Mutex
	ready  atomic.Int64 // pre-written up to here
	refs   atomic.Int32 // readers: a file is not reused under them
	end    atomic.Int64 // where the log ended in it, once it goes on in another
}

// claim makes sure that no zeros will be written below end.
func (f *file) claim(end int64) {
	if end <= f.ready.Load() {
		return
	}
	f.zeroMu.Lock()
	if end > f.ready.Load() {
		f.ready.Store(end)
	}
	f.zeroMu.Unlock()
}

// close closes the file. Everything in it was synced or is not wanted.
func (f *file) close() error {
	err := f.f.Close()
	if f.ahead != nil {
		err = errors.Join(err, f.ahead.Close())
		f.ahead = nil
	}
	return err
}

// fileSet is the directory: the files of the log, oldest first, the one prepared to follow, and those to be reused.
type fileSet struct {
	fs  vfs.FS
	dir string
	max int64 // FileBytes

	mu      sync.Mutex
	list    []*file // the last is the active one
	bySeq   map[uint32]*file
	next    *file   // empty, valid, its name durable
	dying   []*file // nothing live in them, but a restart may still look for them
	freed   []*file // may be reused or deleted
	spares  []string
	nextSeq uint32

	prep sync.Mutex // held while a file is prepared, by the writer or in the background
}

func (s *fileSet) active() *file {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list[len(s.list)-1]
}

func (s *fileSet) activate(f *file) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, f)
	s.bySeq[f.seq] = f
}

func (s *fileSet) pin(seq uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.bySeq[seq]; f != nil {
		f.pins++
	}
}

func (s *fileSet) unpin(seq uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.bySeq[seq]; f != nil {
		f.pins--
	}
}

// hold keeps file seq from being reused until release; nil if it is gone.
func (s *fileSet) hold(seq uint32) *file {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.bySeq[seq]
	if f != nil {
		f.refs.Add(1)
	}
	return f
}

func (f *file) release() { f.refs.Add(-1) }

func (s *fileSet) stats(st *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Files, st.Reserve, st.Bytes = len(s.list), s.next != nil, s.bytesLocked()
	if len(s.list) > 0 {
		st.OldestPins = s.list[0].pins
	}
}

func (s *fileSet) bytesLocked() int64 {
	var n int64
	for _, l := range [][]*file{s.list, s.dying, s.freed} {
		for _, f := range l {
			n += f.ready.Load()
		}
	}
	if s.next != nil {
		n += s.next.ready.Load()
	}
	return n + int64(len(s.spares))*s.max
}

// takeNext returns the prepared file, nil if there is none.
func (s *fileSet) takeNext() *file {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.next
	s.next = nil
	return f
}

// nextFile returns the file to go on in: the prepared one, or else one made now.
func (l *Log) nextFile() (*file, error) {
	s := &l.files
	if f := s.takeNext(); f != nil {
		return f, nil
	}
	s.prep.Lock()
	defer s.prep.Unlock()
	if f := s.takeNext(); f != nil {
		return f, nil
	}
	return s.makeFile()
}

// makeFile makes an empty log file under the next sequence number, out of a spare one if there is one, and makes its name
// durable. The header is written under the spare's name: no file ever has a log file's name and another's header. prep is held.
func (s *fileSet) makeFile() (*file, error) {
	s.mu.Lock()
	spare := filepath.Join(s.dir, "new"+spareSuffix)
	reuse := len(s.spares) > 0
	if reuse {
		spare = s.spares[len(s.spares)-1]
		s.spares = s.spares[:len(s.spares)-1]
	}
	seq := s.nextSeq
	s.nextSeq++
	s.mu.Unlock()

	open := s.fs.Create
	if reuse {
		open = s.fs.OpenReadWrite
	}
	f, err := open(spare)
	if err != nil {
		return nil, err
	}
	nf := &file{seq: seq, name: fileName(s.dir, seq), f: f}
	if err := s.initFile(nf, spare); err != nil {
		return nil, errors.Join(err, f.Close(), s.discard(spare), s.discard(nf.name))
	}
	// The handle was opened under the spare's name; reopen so that errors name the file an operator finds.
	g, err := s.fs.OpenReadWrite(nf.name)
	if err != nil {
		return nil, errors.Join(err, f.Close(), s.discard(nf.name))
	}
	nf.f = g
	return nf, f.Close()
}

// discard removes what is left of a file that could not be made, under whichever name.
func (s *fileSet) discard(name string) error {
	if err := s.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s *fileSet) initFile(nf *file, spare string) error {
	size, err := nf.f.Size()
	if err != nil {
		return err
	}
	if size > s.max {
		if err := nf.f.Truncate(s.max); err != nil {
			return err
		}
		size = s.max
	}
	if _, err := nf.f.WriteAt(encodeHeader(nf.seq), 0); err != nil {
		return err
	}
	if err := nf.f.Sync(); err != nil {
		return err
	}
	if err := s.fs.Rename(spare, nf.name); err != nil {
		return err
	}
	nf.ready.Store(max(size, headerSize))
	return s.fs.SyncDir(s.dir)
}

const zeroChunk = 1 << 20

var zeros = make([]byte, zeroChunk)

// zeroAhead pre-writes one chunk of f, durably, and says whether f is still shorter than a log file. Blocks then overwrite
// bytes that exist, so that an fdatasync has no metadata to write. prep is held.
func (s *fileSet) zeroAhead(f *file) (more bool, err error) {
	if f.ahead == nil {
		if f.ahead, err = s.fs.OpenReadWrite(f.name); err != nil {
			return false, fmt.Errorf("pre-write: %w", err)
		}
	}
	f.zeroMu.Lock()
	from := f.ready.Load()
	n := min(zeroChunk, s.max-from)
	if n <= 0 {
		f.zeroMu.Unlock()
		return false, nil
	}
	_, err = f.ahead.WriteAt(zeros[:n], from)
	if err == nil {
		f.ready.Store(from + n)
	}
	f.zeroMu.Unlock()
	if err != nil {
		return false, fmt.Errorf("pre-write %s: %w", f.name, err)
	}
	if err := f.ahead.SyncData(); err != nil {
		return false, &syncError{fmt.Errorf("fdatasync %s: %w", f.name, err)}
	}
	return from+n < s.max, nil
}

// syncError is a failed fdatasync: for the active file it is fatal, blocks may have been among the pages lost.
type syncError struct{ error }

func (e *syncError) Unwrap() error { return e.error }

// reclaimOne moves one freed file to the spares, or deletes it if there is no use for it. done is false if a reader still
// has the file, or there is none, or it can be neither renamed nor removed now: then it stays freed. prep is held.
func (s *fileSet) reclaimOne(keep int) (done, reused bool, err error) {
	s.mu.Lock()
	if len(s.freed) == 0 || s.freed[0].refs.Load() > 0 {
		s.mu.Unlock()
		return false, false, nil
	}
	f := s.freed[0]
	reused = len(s.spares) < keep
	s.mu.Unlock()
	spare := filepath.Join(s.dir, fmt.Sprintf("%010d%s", f.seq, spareSuffix))
	if reused {
		if err = s.fs.Rename(f.name, spare); err != nil {
			reused = false
		}
	}
	if !reused {
		if rerr := s.fs.Remove(f.name); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			return false, false, errors.Join(err, rerr)
		}
	}
	s.mu.Lock()
	if s.freed = s.freed[1:]; reused {
		s.spares = append(s.spares, spare)
	}
	s.mu.Unlock()
	// A name that comes back after a power cut is that of a file which a durable block says is not needed.
	return true, reused, errors.Join(err, f.close(), s.fs.SyncDir(s.dir))
}

// dropNext gives up the file prepared to follow: nothing is in it. ok is false if the writer has gone on in it meanwhile.
func (s *fileSet) dropNext(f *file) (ok bool, err error) {
	s.mu.Lock()
	if s.next != f {
		s.mu.Unlock()
		return false, nil
	}
	s.next = nil
	s.mu.Unlock()
	return true, errors.Join(f.close(), s.fs.Remove(f.name))
}

func (s *fileSet) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range [][]*file{s.list, s.dying, s.freed} {
		for _, f := range l {
			_ = f.close() // nothing was written since the last sync
		}
	}
	if s.next != nil {
		_ = s.next.close()
	}
	s.list, s.dying, s.freed, s.next = s.list[:0], nil, nil, nil
	clear(s.bySeq)
}
