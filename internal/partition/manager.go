package partition

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/throttle"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// Host is where partitions find their logs and raft groups: a node's wal.Log and multiraft.Service (NewHost), or a simulator.
type Host interface {
	// Checkpoint returns the last durable checkpoint of a replica's log; known is false if the node has never heard of it. A
	// removed one is an error.
	Checkpoint(log uint64) (cp wal.Checkpoint, known bool, err error)
	// Create begins a replica's log.
	Create(log uint64, cp wal.Checkpoint) error
	// Register starts the replica.
	Register(o Registration) (Replica, error)
	// Unregister stops it; done is called once its state machine is closed.
	Unregister(topic string, partition int32, done func()) error
	// Remove deletes a replica's log for good; done is called once that is durable.
	Remove(log uint64, done func(error))
}

// Registration names a replica and what it drives.
type Registration struct {
	Topic     string
	Partition int32
	Group     uint64
	Replica   uint64
	Log       uint64 // the id of the replica's log
	Members   []multiraft.Member
	SM        multiraft.StateMachine
	Campaign  bool
	Unfit     bool
}

// ManagerConfig is what a Manager needs.
type ManagerConfig struct {
	FS     vfs.FS
	Dir    string // holds all partitions; made if missing
	Clock  clock.Clock
	Logger *slog.Logger
	// Service and Log are the node's raft service and log; Host stands for both where a simulator replaces them.
	Service *multiraft.Service
	Log     *wal.Log
	Host    Host
	Files   *segment.Files
	// Configs returns a topic's configuration as it is now. It is called for every batch: it must be quick.
	Configs func(topic string) TopicConfig
	// Writable says why nothing may be written now (a disk nearly full), nil if all is well. Called for every batch.
	Writable func() error
	// FreeReserve gives back disk space kept for the case that a committed entry can't be written for lack of it, and says
	// whether there was any. Called by the applier, which tries again then.
	FreeReserve func() bool
	// OnFatal is told that a disk has failed a partition: the node must stop. It must not block.
	OnFatal func(error)
	// Throttle bounds what replicas that catch up are sent, and what this node's receive; nil: only Limits do.
	Throttle *throttle.Replication
	Limits   Limits
}

// Manager owns all topic partitions of a node. Its step does their background work, one piece at a time: flushing and
// checkpoints, retention, the removal of files, catching up.
type Manager struct {
	cfg      ManagerConfig
	inflight atomic.Int64 // bytes between Produce and done, all partitions
	session  atomic.Uint64
	// inflating holds one token for each batch being decompressed.
	inflating chan struct{}
	rate      *throttle.Limit // of everything that this node sends to replicas that catch up
	stats     stats

	byNameMu sync.RWMutex
	byName   map[topicPartition]*Partition

	mu          sync.Mutex
	cond        sync.Cond
	byGroup     map[uint64]*Partition
	leaving     map[uint64]bool // logs of deleted replicas that have yet to stop
	order       []*Partition    // in the order opened
	ready       []*Partition    // have tasks
	dirty       []*Partition    // listed, oldest first
	trash       []string        // directories of deleted partitions
	slots       int             // staging slots free
	slotWait    []*Partition
	maintainAt  time.Time
	proveAt     time.Time
	proveWanted bool // something was applied
	timer       clock.Timer
	timerAt     time.Time // zero: not armed
	started     bool
	closed      bool
	wg          sync.WaitGroup
}

type topicPartition struct {
	topic     string
	partition int32
}

// NewManager makes a manager without running it: Start does, or the caller steps it.
func NewManager(cfg ManagerConfig) (*Manager, error) {
	if cfg.Host == nil && cfg.Service != nil && cfg.Log != nil {
		cfg.Host = NewHost(cfg.Service, cfg.Log)
	}
	if cfg.FS == nil || cfg.Clock == nil || cfg.Host == nil || cfg.Files == nil || cfg.Configs == nil || cfg.Dir == "" {
		return nil, errors.New("partition: FS, Dir, Clock, Service and Log (or Host), Files and Configs are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Limits.setDefaults()
	if err := vfs.MkdirAllSync(cfg.FS, cfg.Dir); err != nil {
		return nil, fmt.Errorf("making %s: %w: %w", cfg.Dir, ErrStorage, err)
	}
	m := &Manager{
		cfg:       cfg,
		inflating: make(chan struct{}, cfg.Limits.Inflating),
		byName:    make(map[topicPartition]*Partition),
		byGroup:   make(map[uint64]*Partition),
		leaving:   make(map[uint64]bool),
		slots:     cfg.Limits.Staging,
	}
	m.cond.L = &m.mu
	m.rate = throttle.NewLimit(func() int64 { return cfg.Limits.DeltaBytesPerSecond })
	m.maintainAt = cfg.Clock.Now().Add(cfg.Limits.MaintenanceInterval)
	m.proveAt = cfg.Clock.Now().Add(cfg.Limits.ProofInterval)
	return m, nil
}

// Open makes this node's replica of a partition serve: it creates the group's log and files, or brings them back. The
// replica must be one of those that the image names (RAFT rules 4 and 6). A *DamagedError says that what is on disk can't be
// trusted; the other partitions are not concerned.
func (m *Manager) Open(topic *metadata.Topic, part *metadata.Partition, self metadata.Replica) error {
	if have, ok := part.Replica(self.ID); !ok || have.Dir != self.Dir || part.Lost(self.ID) {
		return fmt.Errorf("partition: replica %d in directory %s is not one of %s-%d", self.ID, self.Dir, topic.Name, part.Index)
	}
	p, err := m.add(topic.Name, part.Index, part.Group, self.ID, part.LogOf(self))
	if err != nil {
		return err
	}
	if err := m.start(p, part); err != nil {
		m.drop(p)
		return fmt.Errorf("opening %s-%d: %w", topic.Name, part.Index, err)
	}
	return nil
}

// Members are where a partition's replicas are, those that a change adds or takes away included.
func Members(part *metadata.Partition) []multiraft.Member {
	all := part.All()
	out := make([]multiraft.Member, len(all))
	for i, r := range all {
		out[i] = multiraft.Member{Replica: r.ID, Node: r.Node}
	}
	return out
}

func (m *Manager) add(topic string, index int32, group, self, log uint64) (*Partition, error) {
	p := &Partition{
		m: m, topic: topic, index: index, group: group, self: self, logID: log,
		dir:    filepath.Join(m.cfg.Dir, topic, strconv.Itoa(int(index))+"."+strconv.FormatUint(log, 10)),
		logger: m.cfg.Logger.With("topic", topic, "partition", index, "group", group),
		st:     newState(),
	}
	p.waiters.prev, p.waiters.next = &p.waiters, &p.waiters
	key := topicPartition{topic, index}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, multiraft.ErrStopped
	}
	m.byNameMu.Lock()
	defer m.byNameMu.Unlock()
	if m.byGroup[group] != nil || m.byName[key] != nil {
		return nil, fmt.Errorf("partition: %s-%d or group %d is open already", topic, index, group)
	}
	m.byGroup[group], m.byName[key] = p, p
	m.order = append(m.order, p)
	return p, nil
}

func (m *Manager) start(p *Partition, part *metadata.Partition) error {
	cp, known, err := m.cfg.Host.Checkpoint(p.logID)
	if err != nil {
		return err
	}
	if founders := part.Founding(); !known && slices.Contains(founders, p.self) {
		cp = wal.Checkpoint{Index: 1, Term: 1}
		cp.ConfState.Voters = founders
	}
	if err := p.open(cp, known); err != nil {
		return err
	}
	if !known {
		if err := m.cfg.Host.Create(p.logID, cp); err != nil {
			return errJoin(err, p.Close())
		}
	}
	r, err := m.cfg.Host.Register(Registration{
		Topic: p.topic, Partition: p.index, Group: p.group, Replica: p.self, Log: p.logID, Members: Members(part), SM: p,
		Campaign: part.Target()[0].ID == p.self, Unfit: p.unfit.Load(),
	})
	if err != nil {
		return errJoin(err, p.Close())
	}
	p.replica.Store(&r)
	if p.unfit.Load() {
		m.enqueue(p, taskRepair)
	}
	return nil
}

// drop forgets a partition.
func (m *Manager) drop(p *Partition) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.byNameMu.Lock()
	defer m.byNameMu.Unlock()
	key := topicPartition{p.topic, p.index}
	if m.byName[key] == p {
		delete(m.byName, key)
	}
	if m.byGroup[p.group] == p {
		delete(m.byGroup, p.group)
	}
	for i, q := range m.order {
		if q == p {
			m.order = append(m.order[:i], m.order[i+1:]...)
			break
		}
	}
}

// Delete removes this node's replica of a partition for good: it stops serving at once, its log is removed, and then, in the
// background, its files. A group that is not open here has nothing to delete: see DeleteLog.
func (m *Manager) Delete(group uint64) error {
	m.mu.Lock()
	p := m.byGroup[group]
	if p != nil {
		m.leaving[p.logID] = true
	}
	m.mu.Unlock()
	if p == nil {
		return nil
	}
	m.drop(p)
	p.deleted.Store(true)
	p.leading.Store(0)
	p.wakeAll()
	left := func() {
		m.mu.Lock()
		delete(m.leaving, p.logID)
		m.mu.Unlock()
	}
	err := m.cfg.Host.Unregister(p.topic, p.index, func() {
		left()
		m.cfg.Host.Remove(p.logID, m.removed(p.logID, p.dir))
	})
	if err != nil {
		left()
	}
	return err
}

// DeleteLog removes what a replica left that is not open here, by the id of its log: its log and its files.
func (m *Manager) DeleteLog(log uint64) error {
	m.mu.Lock()
	leaving := m.leaving[log]
	m.mu.Unlock()
	if leaving {
		return nil // its replica still runs on it, and takes it along
	}
	_, known, err := m.cfg.Host.Checkpoint(log)
	if !known || err != nil {
		return nil // nothing is there, or it is being removed
	}
	dir, err := m.findDir(log)
	if err != nil {
		return err
	}
	m.cfg.Host.Remove(log, m.removed(log, dir))
	return nil
}

func (m *Manager) removed(log uint64, dir string) func(error) {
	return func(err error) {
		if err != nil {
			m.cfg.Logger.Error("removing a replica's log", "log", log, "error", err)
			return
		}
		m.discard(dir)
	}
}

// findDir finds the directory of the replica with a log, empty if there is none.
func (m *Manager) findDir(log uint64) (string, error) {
	dirs, err := m.Directories()
	return dirs[log], err
}

// Directories lists the replicas' directories that are on the disk, by the id of their logs, whether open here or not.
func (m *Manager) Directories() (map[uint64]string, error) {
	topics, err := m.cfg.FS.List(m.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	dirs := map[uint64]string{}
	for _, topic := range topics {
		names, err := m.cfg.FS.List(filepath.Join(m.cfg.Dir, topic))
		if err != nil {
			continue // a file that does not belong here, or a topic that goes
		}
		for _, n := range names {
			index, log, _ := strings.Cut(n, ".")
			_, err := strconv.ParseUint(index, 10, 31)
			if id, logErr := strconv.ParseUint(log, 10, 64); err == nil && logErr == nil {
				dirs[id] = filepath.Join(m.cfg.Dir, topic, n)
			}
		}
	}
	return dirs, nil
}

// Discard removes, in the background, a directory that Directories has listed, whose replica is gone and whose log is too.
func (m *Manager) Discard(dir string) { m.discard(dir) }

func (m *Manager) discard(dir string) {
	if dir == "" {
		return
	}
	m.mu.Lock()
	m.trash = append(m.trash, dir)
	m.cond.Signal()
	m.mu.Unlock()
}

// Lookup finds a partition of this node.
func (m *Manager) Lookup(topic string, partition int32) (*Partition, bool) {
	m.byNameMu.RLock()
	defer m.byNameMu.RUnlock()
	p := m.byName[topicPartition{topic, partition}]
	return p, p != nil
}

// Group finds a partition of this node by its raft group.
func (m *Manager) Group(group uint64) (*Partition, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.byGroup[group]
	return p, p != nil
}

// Reconfigure says that a topic's configuration has changed, or, for "", those of all: what is not asked for with every batch
// (the sizes and ages of segments, retention) takes effect in the background, at once.
func (m *Manager) Reconfigure(topic string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	for _, p := range m.order {
		if topic == "" || p.topic == topic {
			m.push(p, taskMaintain)
		}
	}
}

// Partitions returns all partitions of this node in the order they were opened.
func (m *Manager) Partitions() []*Partition {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]*Partition(nil), m.order...)
}

// Health counts what is and was wrong with the records of all partitions.
type Health struct {
	Damaged  int   // partitions with damage now
	Diverged int   // of these, with records that are not the other replicas'
	Ranges   int   // of offsets that can't be read now
	Found    int64 // ranges found damaged since start
	Mended   int64 // segments rebuilt
	Fetched  int64 // bytes that came from other replicas for it
	Compared int64 // comparisons of sums of the applied log, or of ranges on disk, between replicas
	Unequal  int64 // of these, those that differed
}

// Health returns the figures of this moment.
func (m *Manager) Health() Health {
	s := &m.stats
	h := Health{Found: s.found.Load(), Mended: s.mended.Load(), Fetched: s.fetched.Load(), Compared: s.compared.Load(), Unequal: s.unequal.Load()}
	for _, p := range m.Partitions() {
		if !p.unfit.Load() {
			continue
		}
		h.Damaged++
		h.Ranges += len(p.Damage())
		if p.diverged.Load() {
			h.Diverged++
		}
	}
	return h
}

// Pinned is the log's hint that its oldest file waits for a checkpoint of a replica's log at or above an index
// (wal.Options.OnPinned).
func (m *Manager) Pinned(log, index uint64) {
	p, ok := m.Group(log)
	if !ok || p.logID != log {
		all := m.Partitions()
		i := slices.IndexFunc(all, func(p *Partition) bool { return p.logID == log })
		if i < 0 {
			return
		}
		p = all[i]
	}
	m.enqueue(p, taskFlush)
}

func (m *Manager) topicConfig(topic string) TopicConfig { return m.cfg.Configs(topic) }

func (m *Manager) writable() error {
	if m.cfg.Writable == nil {
		return nil
	}
	return m.cfg.Writable()
}

func (m *Manager) fatal(err error) {
	m.cfg.Logger.Error("storage failed: the node must stop", "error", err)
	if m.cfg.OnFatal != nil {
		m.cfg.OnFatal(err)
	}
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// errJoin returns err, with what went wrong while cleaning up after it.
func errJoin(err, cleanup error) error {
	if cleanup == nil {
		return err
	}
	return errors.Join(err, cleanup)
}
