package partition

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/wal"
)

// open brings the state back that a checkpoint describes. known says whether the group's log existed before.
func (p *Partition) open(cp wal.Checkpoint, known bool) error {
	st, err := decodeState(cp.State)
	if err != nil {
		return &DamagedError{Dir: p.dir, Reason: err.Error()}
	}
	fresh := len(cp.State) == 0
	if !fresh && st.index != cp.Index {
		return &DamagedError{Dir: p.dir, Offset: st.end, Reason: fmt.Sprintf("the checkpoint at index %d describes index %d", cp.Index, st.index)}
	}
	if fresh {
		st.index, st.term = cp.Index, cp.Term
	}
	gens, err := p.generations()
	if err != nil {
		return err
	}
	gen, err := chooseGeneration(&st, fresh, p.self, gens)
	if err != nil {
		return &DamagedError{Dir: p.dir, Offset: st.end, Reason: err.Error()}
	}
	dir := p.genDir(gen)
	if err := p.m.cfg.FS.MkdirAll(dir); err != nil {
		return fmt.Errorf("%w: %w", ErrStorage, err)
	}
	durable := int64(0)
	if known && !fresh {
		durable = st.end // a checkpoint is written after the flush of what it covers
	}
	l, err := p.openSegments(dir, st.start, durable)
	if err != nil {
		return fmt.Errorf("opening %s: %w: %w", dir, ErrStorage, err)
	}
	start := st.start
	if !fresh && st.replica != p.self {
		// A snapshot installed just before the crash: its log start is that of the moment it was offered, and the leader may have
		// moved its own, and deleted, before it had sent everything. What moved it is committed and comes with the log.
		st.start = max(st.start, min(l.StartOffset(), st.end))
	}
	if !known && l.EndOffset() > 0 {
		return errJoin(&DamagedError{Dir: dir, Offset: l.EndOffset(), Reason: "there are records of a group whose log is gone"}, l.Close())
	}
	if l.StartOffset() > st.start && st.start == st.end {
		// Files that a power cut spared of a log whose first file it did not: the checkpoint knows of no record yet, so that
		// all of this is in the log and comes again.
		p.logger.Warn("segments behind a hole are given up; the log has them", "dir", dir, "from", l.StartOffset(), "checkpoint", st.end)
		if err := l.Reset(st.end); err != nil {
			return errJoin(fmt.Errorf("resetting %s: %w: %w", dir, ErrStorage, err), l.Close())
		}
	}
	if err := p.removeGenerations(gen); err != nil {
		return errJoin(fmt.Errorf("%w: %w", ErrStorage, err), l.Close())
	}
	st.replica, st.generation = p.self, gen
	l.SetStartOffset(st.start)
	p.segments = l.Segments()
	p.cover(st.start)
	if known {
		raise(&p.checkpointed, st.end)
	}
	if err := p.diagnose(l, dir, start, &st); err != nil {
		return errJoin(fmt.Errorf("%w: %w", ErrStorage, err), l.Close())
	}
	// The manager lists the partition already: maintenance may come by, and clients.
	p.mu.Lock()
	p.st = st
	p.hw.Store(st.end)
	p.mu.Unlock()
	p.logStart.Store(st.start)
	p.genMu.Lock()
	p.log, p.generation = l, gen
	p.genMu.Unlock()
	return nil
}

// diagnose finds out what of the records below the checkpoint is damaged or missing. All of it had been flushed, and files go only
// once a durable checkpoint has a log start above them. The replica comes up all the same, unfit: its raft log is whole.
func (p *Partition) diagnose(l *segment.Log, dir string, start int64, st *state) error {
	known, err := readMark(p.m.cfg.FS, dir, st.start, st.end)
	if err != nil {
		return err
	}
	marked := len(known) > 0
	for _, x := range l.Lost() {
		known = append(known, damageOfLost(x))
	}
	if first := l.StartOffset(); first > st.start && st.start < st.end {
		known = append(known, Damage{From: st.start, To: first, File: l.Dir(),
			Reason: fmt.Sprintf("the segments begin at offset %d, by the checkpoint the log starts at %d", first, start)})
	}
	for _, d := range known {
		if d.To = min(d.To, l.EndOffset()); d.To > st.start {
			p.Report(d)
		}
	}
	if marked && !p.unfit.Load() { // what it told of has been deleted
		return writeMark(p.m.cfg.FS, dir, mark{})
	}
	return nil
}

// chooseGeneration tells which directory a checkpoint's state is in.
//
// A state written by this replica names it. A foreign one is a snapshot that was installed just before a crash: whole, if a
// directory was staged for its index, else by delta, into the directory that was in use. Staging leaves no third one, but the
// next staging may have begun since; its directory is above the snapshot's index, where the one that was in use is below.
func chooseGeneration(st *state, fresh bool, self uint64, gens []uint64) (uint64, error) {
	switch {
	case fresh && (len(gens) == 0 || slices.Contains(gens, 0)):
		return 0, nil
	case fresh:
		return 0, fmt.Errorf("generation %d without a checkpoint", gens[0])
	case st.replica == self:
		if slices.Contains(gens, st.generation) || st.end == st.start {
			return st.generation, nil
		}
		return 0, fmt.Errorf("generation %d is missing", st.generation)
	case slices.Contains(gens, st.index):
		return st.index, nil
	}
	older := slices.DeleteFunc(slices.Clone(gens), func(g uint64) bool { return g > st.index })
	switch {
	case len(older) == 1:
		return older[0], nil
	case len(older) == 0 && st.end == 0:
		return 0, nil
	}
	return 0, fmt.Errorf("none of %d generations is the one of the snapshot at index %d", len(gens), st.index)
}

func (p *Partition) openSegments(dir string, start, durable int64) (*segment.Log, error) {
	cfg := p.m.topicConfig(p.topic)
	return segment.OpenDurable(p.m.cfg.Files, p.m.cfg.Clock, dir, cfg.Segment, start, durable, p.logger)
}

// generations lists the generations on disk, ascending.
func (p *Partition) generations() ([]uint64, error) {
	fs := p.m.cfg.FS
	if _, err := fs.Stat(p.dir); isNotExist(err) {
		return nil, nil
	}
	names, err := fs.List(p.dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	var gens []uint64
	for _, n := range names {
		g, err := strconv.ParseUint(n, 16, 64)
		if err != nil || len(n) != 16 {
			return nil, &DamagedError{Dir: p.dir, Reason: fmt.Sprintf("%q does not belong here", n)}
		}
		gens = append(gens, g)
	}
	return gens, nil
}

// removeGenerations removes every generation but those to keep, durably.
func (p *Partition) removeGenerations(keep ...uint64) error {
	gens, err := p.generations()
	if err != nil {
		return err
	}
	removed := false
	for _, g := range gens {
		if !slices.Contains(keep, g) {
			if err := p.m.cfg.FS.RemoveAll(p.genDir(g)); err != nil {
				return err
			}
			removed = true
		}
	}
	if !removed {
		return nil
	}
	return p.m.cfg.FS.SyncDir(p.dir)
}

// syncDirs makes the names of the partition's directories durable. It is put off until there is something in them, so that
// creating thousands of partitions costs nothing.
func (p *Partition) syncDirs() error {
	fs := p.m.cfg.FS
	if err := fs.SyncDir(p.dir); err != nil {
		return err
	}
	if p.dirsSynced {
		return nil
	}
	topicDir := filepath.Dir(p.dir)
	if err := fs.SyncDir(topicDir); err != nil {
		return err
	}
	if err := fs.SyncDir(filepath.Dir(topicDir)); err != nil {
		return err
	}
	p.dirsSynced = true
	return nil
}

// Install implements multiraft.StateMachine. The log's snapshot mark is durable already: from here on there is no way back.
func (p *Partition) Install(snap raftpb.Snapshot) error {
	st, err := decodeState(snap.Data)
	if err != nil {
		return err
	}
	if st.index != snap.Metadata.Index {
		return fmt.Errorf("%w: it is for index %d, the snapshot for %d", errState, st.index, snap.Metadata.Index)
	}
	p.genMu.Lock()
	if p.log == nil {
		p.genMu.Unlock()
		return multiraft.ErrStopped
	}
	p.stageMu.Lock()
	if g := p.staged; g != nil && g.index == st.index {
		p.retired = append(p.retired, retired{p.log, p.genDir(p.generation)})
		p.log, p.generation, p.segments = g.log, g.index, g.log.Segments()
		p.staged = nil
		p.renewed()
	}
	p.stageMu.Unlock()
	l, gen := p.log, p.generation
	p.genMu.Unlock()
	if end := l.EndOffset(); end < st.end || st.end < p.hw.Load() {
		err := error(&DamagedError{Dir: p.genDir(gen), Offset: end, Reason: fmt.Sprintf("the installed snapshot ends at %d", st.end)})
		p.fault.CompareAndSwap(nil, &err)
		return err
	}
	l.SetStartOffset(st.start)
	covered := st.start
	// The leader's log may have begun later by the time it was sent: see open.
	st.start = max(st.start, l.StartOffset())
	st.replica, st.generation = p.self, gen
	p.mu.Lock()
	p.st = st
	p.ov.reset(0, 0)
	p.rolled = nil
	p.hw.Store(st.end)
	p.mu.Unlock()
	p.cover(covered)
	raise(&p.checkpointed, st.end) // the log's snapshot mark is durable
	p.logStart.Store(max(p.logStart.Load(), st.start, l.StartOffset()))
	p.logger.Info("snapshot installed", "index", st.index, "end", st.end)
	p.m.markDirty(p, 0)
	p.m.enqueue(p, taskRetire|taskFlush)
	p.wakeAll()
	return nil
}
