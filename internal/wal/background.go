package wal

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
)

// background is the state of StepBackground.
type background struct {
	stepMu sync.Mutex // one step at a time

	mu      sync.Mutex
	wake    *sync.Cond
	due     bool
	stopped bool
	reads   []*prefetch
	spaceEr error
	stuck   bool // a freed file could not be recycled
	retry   clock.Timer
}

const (
	zeroWindow = 8 << 20 // pre-written ahead of the active file's blocks
	retrySpace = time.Second
)

func (b *background) spaceErr() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.spaceEr
}

func (b *background) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
	if b.retry != nil {
		b.retry.Stop()
	}
	b.wake.Broadcast()
}

func (l *Log) wakeBackground() {
	b := &l.back
	b.mu.Lock()
	b.due = true
	b.wake.Signal()
	b.mu.Unlock()
}

func (l *Log) runBackground() {
	defer l.wg.Done()
	b := &l.back
	for {
		b.mu.Lock()
		for !b.due && len(b.reads) == 0 && !b.stopped {
			b.wake.Wait()
		}
		stopped := b.stopped
		b.mu.Unlock()
		if stopped {
			l.dropReads()
			return
		}
		for l.StepBackground() {
			if b.isStopped() {
				break
			}
		}
	}
}

// BackgroundReady says whether StepBackground would find something to do.
func (l *Log) BackgroundReady() bool {
	b := &l.back
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.due || len(b.reads) > 0
}

func (b *background) isStopped() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stopped
}

// StepBackground does one piece of the work that writes should not wait for: a read ahead, a file recycled, the next file
// made, a chunk of zeros written. It says whether there is more to do at once.
func (l *Log) StepBackground() (more bool) {
	b := &l.back
	b.stepMu.Lock()
	defer b.stepMu.Unlock()
	if p := b.takeRead(); p != nil {
		p.run(l)
		return true
	}
	b.mu.Lock()
	b.due = false
	b.mu.Unlock()
	if b.isStopped() || l.failure() != nil {
		return false
	}
	l.files.prep.Lock()
	defer l.files.prep.Unlock()
	more, err := l.prepare()
	l.noteSpace(err)
	return more && err == nil
}

// prepare does one step towards: freed files recycled, the active file pre-written ahead, the next file ready.
func (l *Log) prepare() (more bool, err error) {
	s := &l.files
	done, reused, err := s.reclaimOne(1)
	if reused {
		l.stats.recycled.Add(1)
	}
	if l.noteStuck(err); done {
		return true, nil
	}
	active := s.active()
	used := l.usedOf(active)
	if ready := active.ready.Load(); ready < s.max && ready < used+zeroWindow {
		if _, err := s.zeroAhead(active); err != nil {
			var se *syncError
			if errors.As(err, &se) {
				l.fail(err)
			}
			return false, err
		}
		return true, nil
	}
	// The next file is prepared as the active one fills, twice as fast.
	s.mu.Lock()
	next, spare := s.next, len(s.spares) > 0
	s.mu.Unlock()
	if next == nil {
		if !spare && used*16 < s.max {
			return false, nil
		}
		f, err := s.makeFile()
		if err != nil {
			return false, err
		}
		s.mu.Lock()
		s.next = f
		s.mu.Unlock()
		return true, nil
	}
	if ready := next.ready.Load(); ready < s.max && ready < 2*used {
		more, err := s.zeroAhead(next)
		var se *syncError
		if errors.As(err, &se) { // what is on the disk now is not known, and nothing is in it: try with another file
			ok, derr := s.dropNext(next)
			if !ok {
				l.fail(err)
			}
			err = errors.Join(err, derr)
		}
		return more && err == nil, err
	}
	return false, nil
}

// usedOf returns how far the active file is filled; the background may see it a little late.
func (l *Log) usedOf(f *file) int64 {
	p := pos(l.endHint.Load())
	if p.seq() != f.seq {
		return headerSize
	}
	return p.off()
}

// noteStuck tells of a file that is not needed and could not be reused or deleted; that is tried again in a while.
func (l *Log) noteStuck(err error) {
	b := &l.back
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil && !b.stuck {
		l.opt.Logger.Warn("cannot recycle a log file", slog.String("dir", l.opt.Dir), slog.Any("error", err))
	}
	if b.stuck = err != nil; b.stuck {
		b.again(l)
	}
}

// again makes the background look once more in a while; mu is held.
func (b *background) again(l *Log) {
	switch {
	case b.stopped:
	case b.retry == nil:
		b.retry = l.opt.Clock.AfterFunc(retrySpace, l.wakeBackground)
	default:
		b.retry.Reset(retrySpace)
	}
}

// noteSpace keeps the reserve's state: an error means that the next file cannot be made ready, and is tried again in a while.
func (l *Log) noteSpace(err error) {
	b := &l.back
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		if b.spaceEr != nil {
			l.opt.Logger.Info("the write-ahead log has space again", slog.String("dir", l.opt.Dir))
		}
		b.spaceEr = nil
		return
	}
	if b.spaceEr == nil {
		l.opt.Logger.Error("cannot prepare the next log file; free space on the disk", slog.String("dir", l.opt.Dir), slog.Any("error", err))
	}
	b.spaceEr = fmt.Errorf("%w: %w", ErrNoReserve, err)
	b.again(l)
}
