package partition

import (
	"path/filepath"
	"time"
)

// task is a set of things to do for a partition.
type task uint16

const (
	taskFlush task = 1 << iota
	taskWriteback
	taskServe
	taskStage
	taskRetire
	taskMaintain
	taskSnapshots
	taskRepair
	taskProof
)

// Start runs the steps on a few goroutines of the manager's own. Close ends them.
func (m *Manager) Start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.started || m.closed {
		return
	}
	m.started = true
	for range m.cfg.Limits.Workers {
		m.wg.Go(m.work)
	}
}

func (m *Manager) work() {
	for {
		for m.Step() {
		}
		m.mu.Lock()
		for !m.closed && !m.due() {
			m.cond.Wait()
		}
		closed := m.closed
		m.mu.Unlock()
		if closed {
			return
		}
	}
}

func (m *Manager) pending() bool { return len(m.ready) > 0 || len(m.trash) > 0 }

// Ready says whether a step would find something to do.
func (m *Manager) Ready() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	// The alarm has rung where no timer is armed: that is quicker to see than what the time is.
	return !m.closed && (m.pending() || m.timerAt.IsZero())
}

// due is called with mu held.
func (m *Manager) due() bool { return m.pending() || !m.timerAt.After(m.cfg.Clock.Now()) }

// Step does one piece of background work and says whether more is ready. Several goroutines may step at a time; a partition
// is never worked on by two. A simulator calls it on its own thread, also after time has moved.
func (m *Manager) Step() (more bool) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return false
	}
	m.poll(m.cfg.Clock.Now())
	if len(m.trash) > 0 {
		dir := m.trash[0]
		m.trash = m.trash[1:]
		m.mu.Unlock()
		m.removeDir(dir)
		m.mu.Lock()
	} else if len(m.ready) > 0 {
		p := m.ready[0]
		m.ready = m.ready[1:]
		t := p.tasks
		p.tasks, p.queued, p.running = 0, false, true
		m.mu.Unlock()
		again := p.run(t)
		m.mu.Lock()
		p.running = false
		m.push(p, again)
	}
	more = m.pending()
	m.mu.Unlock()
	return more
}

// run does what a partition has to do, one piece of each kind.
func (p *Partition) run(t task) (again task) {
	if p.closed.Load() {
		return 0
	}
	if t&taskRetire != 0 {
		p.stepRetire()
	}
	if t&taskStage != 0 {
		again |= p.stepStage()
	}
	if t&taskServe != 0 {
		again |= p.stepServe()
	}
	if t&taskWriteback != 0 {
		p.stepWriteback()
	}
	if t&taskFlush != 0 {
		p.flush()
	}
	if t&taskSnapshots != 0 {
		p.stepSnapshots()
	}
	if t&taskMaintain != 0 {
		p.maintain()
	}
	if t&taskRepair != 0 {
		again |= p.stepRepair()
	}
	if t&taskProof != 0 {
		again |= p.stepProof()
	}
	return again
}

// enqueue gives a partition something to do. It never blocks on more than the manager's lock.
func (m *Manager) enqueue(p *Partition, t task) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.push(p, t)
	}
}

// push is called with mu held.
func (m *Manager) push(p *Partition, t task) {
	p.tasks |= t
	if p.tasks != 0 && !p.queued && !p.running {
		p.queued = true
		m.ready = append(m.ready, p)
		m.cond.Signal()
	}
}

// poll moves what has become due to the ready queue and arms the timer for the rest. mu is held.
func (m *Manager) poll(now time.Time) {
	for len(m.dirty) > 0 && !now.Before(m.dirty[0].dirtySince.Add(m.cfg.Limits.FlushInterval)) {
		p := m.dirty[0]
		m.dirty = m.dirty[1:]
		p.listed = false
		if p.dirty.Load() {
			m.push(p, taskFlush)
		}
	}
	if !now.Before(m.maintainAt) {
		m.maintainAt = now.Add(m.cfg.Limits.MaintenanceInterval)
		for _, p := range m.order {
			m.push(p, taskMaintain)
		}
	}
	if m.proveWanted && !now.Before(m.proveAt) {
		m.proveAt = now.Add(m.cfg.Limits.ProofInterval)
		m.proveWanted = false
		for _, p := range m.order {
			m.proveWanted = m.proveWanted || p.dirty.Load() // more may be applied before it is listed anew
			if p.leading.Load() != 0 && p.provable.Swap(false) {
				p.proofDue.Store(true) // no lock of a partition's is taken here: they are held where the manager is told of something
				m.push(p, taskProof)
			}
		}
	}
	next := m.maintainAt
	if m.proveWanted && m.proveAt.Before(next) {
		next = m.proveAt
	}
	if len(m.dirty) > 0 {
		if due := m.dirty[0].dirtySince.Add(m.cfg.Limits.FlushInterval); due.Before(next) {
			next = due
		}
	}
	m.arm(now, next)
}

// arm sees to it that somebody steps at next. mu is held.
func (m *Manager) arm(now, next time.Time) {
	if m.timerAt.After(now) && !next.Before(m.timerAt) {
		return
	}
	m.timerAt = next
	d := max(next.Sub(now), time.Millisecond)
	if m.timer == nil {
		m.timer = m.cfg.Clock.AfterFunc(d, m.alarm)
	} else {
		m.timer.Reset(d)
	}
}

func (m *Manager) alarm() {
	m.mu.Lock()
	m.timerAt = time.Time{}
	m.cond.Broadcast()
	m.mu.Unlock()
}

// later calls f after d, on the clock's thread.
func (m *Manager) later(d time.Duration, f func()) { m.cfg.Clock.AfterFunc(d, f) }

// markDirty notes that a partition has applied something: it is flushed within Limits.FlushInterval.
func (m *Manager) markDirty(p *Partition, bytes int) {
	var t task
	if n := p.unflushed.Add(int64(bytes)); n >= m.cfg.Limits.FlushBytes && n-int64(bytes) < m.cfg.Limits.FlushBytes {
		t |= taskFlush
	}
	if n := p.unwritten.Add(int64(bytes)); n >= writebackBytes {
		p.unwritten.Add(-n)
		t |= taskWriteback
	}
	first := !p.dirty.Swap(true)
	if !first && t == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.proveWanted = true
	if first && !p.listed {
		now := m.cfg.Clock.Now()
		p.listed, p.dirtySince = true, now
		m.dirty = append(m.dirty, p)
		if len(m.dirty) == 1 {
			m.arm(now, now.Add(m.cfg.Limits.FlushInterval))
		}
	}
	m.push(p, t)
}

// takeSlot takes a staging slot, or remembers who wants one.
func (m *Manager) takeSlot(p *Partition) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.slots > 0 {
		m.slots--
		return true
	}
	for _, q := range m.slotWait {
		if q == p {
			return false
		}
	}
	m.slotWait = append(m.slotWait, p)
	return false
}

// releaseSlot wakes everybody who waits, in order: some may have given up meanwhile.
func (m *Manager) releaseSlot() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slots++
	wait := m.slotWait
	m.slotWait = nil
	for _, p := range wait {
		m.push(p, taskStage)
	}
}

// removeDir removes a deleted partition's files, and the topic's directory with the last of them.
func (m *Manager) removeDir(dir string) {
	if err := m.cfg.FS.RemoveAll(dir); err != nil {
		m.cfg.Logger.Error("removing the files of a deleted partition", "dir", dir, "error", err)
		return
	}
	topicDir := filepath.Dir(dir)
	if names, err := m.cfg.FS.List(topicDir); err == nil && len(names) == 0 {
		// A partition of a new topic of the same name may be opened just now; then this fails, as it should.
		if err := m.cfg.FS.Remove(topicDir); err != nil && !isNotExist(err) {
			m.cfg.Logger.Debug("topic directory kept", "dir", topicDir, "error", err)
		}
	}
}

// Close ends the background work, flushes what is dirty and hands the last checkpoints over; the raft service, which closes
// the partitions, and the log must still be open. It is idempotent.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	if m.timer != nil {
		m.timer.Stop()
	}
	m.cond.Broadcast()
	order := append([]*Partition(nil), m.order...)
	m.mu.Unlock()
	m.wg.Wait()
	for _, p := range order {
		p.endStaging(nil, errSuperseded)
		if p.dirty.Load() && p.fault.Load() == nil {
			p.flush()
		}
	}
	return nil
}
