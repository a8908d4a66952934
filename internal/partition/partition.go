package partition

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/segment"
)

// Replica is what a partition asks of its member in the raft group: *multiraft.Replica, or a simulator's.
type Replica interface {
	// Enqueue offers a proposal; see multiraft.Replica.Enqueue.
	Enqueue(p multiraft.Proposal)
	// ReadIndex calls done with nil once everything committed before the call is applied here.
	ReadIndex(done func(error))
	// Status returns the replica's published state.
	Status() multiraft.Status
	// CheckpointSynced hands a durable state over; done, if set, is told once that the checkpoint itself is durable.
	CheckpointSynced(index, term uint64, state []byte, done func(error))
	// SetUnfit keeps the replica out of the leadership, or lets it back; see multiraft.Replica.SetUnfit.
	SetUnfit(unfit bool)
	// Peers returns the group's other replicas.
	Peers() []multiraft.Peer
}

// Partition is this node's replica of a topic partition: a multiraft.StateMachine on one side, what the broker serves from on
// the other. Its exported methods are safe for concurrent use.
type Partition struct {
	m       *Manager
	topic   string
	index   int32
	group   uint64
	self    uint64 // replica id
	logID   uint64 // of the replica's log
	dir     string // holds the generations
	logger  *slog.Logger
	replica atomic.Pointer[Replica]

	// Published, read without locks.
	leading  atomic.Uint64 // term in which this replica leads and is ready, 0 if not
	hw       atomic.Int64
	logStart atomic.Int64
	fault    atomic.Pointer[error] // why Apply fenced the replica
	// fruitless is when a compaction that changed nothing ended last, ms since 1970.
	fruitless atomic.Int64
	unfit     atomic.Bool // some records are damaged
	diverged  atomic.Bool // of these, some are not the group's: nothing is served
	closed    atomic.Bool
	deleted   atomic.Bool  // its files are to be removed
	inflight  atomic.Int64 // bytes between Produce and done

	genMu      sync.RWMutex
	log        *segment.Log
	generation uint64

	logMu sync.Mutex

	mu       sync.Mutex
	st       state
	ov       overlay
	lostTerm uint64

	waitMu  sync.Mutex
	waiters waitNode // ring

	proofMu    sync.Mutex // after mu
	prove      proving
	proofWaits atomic.Bool // prove.waiting is not empty
	provable   atomic.Bool // something was applied since the followers were told last
	proofDue   atomic.Bool // the next step tells them

	hurtMu sync.Mutex
	hurt   health

	stageMu sync.Mutex
	mending *mending // inbox and session; the rest is the step's
	stage   *staging
	serveQ  []deltaRequest
	// serveArmed: a timer is set for requests that wait for a budget.
	serveArmed bool
	senders    []deltaCursor
	staged     *stagedGen
	retired    []retired // replaced or abandoned generations to close and remove

	// Apply's own.
	scratch  []applied
	segments int    // segment files of the log, when last looked at
	tidySeen uint64 // tidies, when last looked at

	tidies       atomic.Uint64 // times that files were removed
	removals     atomic.Int32  // under way
	checkpointed atomic.Int64  // end in the last checkpoint known to be durable
	covered      atomic.Int64  // log start in the last checkpoint known to be durable
	rolled       []roll        // under mu: producer snapshots to be written

	// The manager's schedule, under Manager.mu.
	tasks      task
	queued     bool
	running    bool
	listed     bool // in the dirty list
	dirtySince time.Time

	dirty     atomic.Bool  // applied beyond the last checkpoint
	unflushed atomic.Int64 // bytes appended since the last flush
	unwritten atomic.Int64 // bytes appended since writeback was asked for

	// The manager's steps' own.
	dirsSynced bool // the names above the generations are durable
	samples    []ageSample
	tidied     int64 // log start up to which files have been removed
}

type retired struct {
	log *segment.Log
	dir string
}

var _ multiraft.StateMachine = (*Partition)(nil)

// Topic returns the topic's name.
func (p *Partition) Topic() string { return p.topic }

// Index returns the partition's number within its topic.
func (p *Partition) Index() int32 { return p.index }

// Group returns the raft group's id.
func (p *Partition) Group() uint64 { return p.group }

// ReplicaID returns the id of this node's replica.
func (p *Partition) ReplicaID() uint64 { return p.self }

// Status returns the raft group's view from here.
func (p *Partition) Status() multiraft.Status {
	if r := p.raft(); r != nil {
		return r.Status()
	}
	return multiraft.Status{LeaderNode: -1}
}

// LeaderEpoch returns the term of the leader as far as it is known here, -1 if no leader is known. A candidate's term is never
// told.
func (p *Partition) LeaderEpoch() int32 {
	if t := p.leading.Load(); t != 0 {
		return int32(t)
	}
	if st := p.Status(); st.Leader != 0 {
		return int32(st.Term)
	}
	return -1
}

// Leading returns the term in which this replica leads and serves, 0 if it does not.
func (p *Partition) Leading() uint64 { return p.leading.Load() }

// HighWatermark returns the end offset of what is committed and applied here; it never goes back.
func (p *Partition) HighWatermark() int64 { return p.hw.Load() }

// LogStart returns the offset of the first record that may be read.
func (p *Partition) LogStart() int64 { return p.logStart.Load() }

// LastSequence returns the last sequence applied of an idempotent producer and the epoch it had; false if the partition does
// not know the producer.
func (p *Partition) LastSequence(producer int64) (epoch int16, sequence int32, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.st.producers.get(producer)
	if q == nil || q.n == 0 {
		return 0, 0, false
	}
	return q.epoch, q.batches[q.n-1].last, true
}

// ProducerState is what a partition knows of an idempotent producer.
type ProducerState struct {
	ID           int64
	Epoch        int16
	LastSequence int32 // of the last batch applied; -1 if none
	LastTime     int64 // the largest timestamp in that batch, in ms; -1: not known
}

// Producers lists the idempotent producers known, by ascending id.
func (p *Partition) Producers() []ProducerState {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]ProducerState, 0, p.st.producers.len())
	for n := p.st.producers.root.next; n != &p.st.producers.root; n = n.next {
		s := ProducerState{ID: n.id, Epoch: n.epoch, LastSequence: -1, LastTime: n.lastTime}
		if n.n > 0 {
			s.LastSequence = n.batches[n.n-1].last
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b ProducerState) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// EndOffset returns the offset the next record would get on a leader, else the high watermark.
func (p *Partition) EndOffset() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proposedEnd()
}

// Size returns the bytes of record batches on disk.
func (p *Partition) Size() int64 {
	p.genMu.RLock()
	defer p.genMu.RUnlock()
	if p.log == nil {
		return 0
	}
	return p.log.Size()
}

func (p *Partition) raft() Replica {
	if r := p.replica.Load(); r != nil {
		return *r
	}
	return nil
}

// proposedEnd is the end offset including what is prepared. mu is held.
func (p *Partition) proposedEnd() int64 {
	if p.ov.term != 0 && p.ov.end > p.st.end {
		return p.ov.end
	}
	return p.st.end
}

// refusal says why this replica does not serve as leader, nil if it does.
func (p *Partition) refusal() error {
	switch {
	case p.closed.Load():
		return multiraft.ErrStopped
	case p.fault.Load() != nil:
		return fmt.Errorf("%w: %w", multiraft.ErrFenced, *p.fault.Load())
	case p.leading.Load() != 0:
		return nil
	}
	st := p.Status()
	e := &multiraft.NotLeaderError{Group: p.group, Term: st.Term, LeaderNode: st.LeaderNode}
	if st.IsLeader {
		e.LeaderNode = -1 // here, but not ready yet: nowhere better to go
	}
	return e
}

// LeaderReady implements multiraft.StateMachine.
func (p *Partition) LeaderReady(term uint64) {
	p.mu.Lock()
	if term <= p.lostTerm || p.closed.Load() {
		p.mu.Unlock()
		return
	}
	p.ov.reset(term, p.st.end)
	p.leading.Store(term)
	p.mu.Unlock()
	p.logger.Info("leading", "term", term, "end", p.hw.Load())
	p.wakeAll()
}

// LeaderLost implements multiraft.StateMachine: what was prepared and not applied no longer counts for deciding.
func (p *Partition) LeaderLost(term uint64) {
	p.mu.Lock()
	p.lostTerm = max(p.lostTerm, term)
	if p.leading.Load() <= term {
		p.leading.Store(0)
	}
	if p.ov.term <= term {
		p.ov.reset(0, 0)
	}
	p.mu.Unlock()
	p.wakeAll()
}

// Close implements multiraft.StateMachine. It waits for background work on the partition's files.
func (p *Partition) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	p.leading.Store(0)
	p.wakeAll()
	p.endStaging(nil, multiraft.ErrStopped)
	p.genMu.Lock()
	defer p.genMu.Unlock()
	p.endMending()
	p.stageMu.Lock()
	old, staged := p.retired, p.staged
	p.retired, p.staged, p.serveQ = nil, nil, nil
	p.stageMu.Unlock()
	for _, r := range old {
		r.log.Discard()
	}
	var errs []error
	end := func(l *segment.Log) {
		if p.deleted.Load() {
			l.Discard() // this is the applier, on which other groups wait: no syncs for nothing
		} else {
			errs = append(errs, l.Close())
		}
	}
	if p.log != nil {
		end(p.log)
		p.log = nil
	}
	if staged != nil {
		end(staged.log)
	}
	return errors.Join(errs...)
}

// withLog runs f on the log in use, which stays open and in use until f returns. genMu must not be held, not by f either: a second hold waits
// behind whoever waits for the first to end.
func (p *Partition) withLog(f func(l *segment.Log) error) error {
	p.genMu.RLock()
	defer p.genMu.RUnlock()
	if p.log == nil {
		return multiraft.ErrStopped
	}
	return f(p.log)
}

func (p *Partition) genDir(gen uint64) string {
	return filepath.Join(p.dir, fmt.Sprintf("%016x", gen))
}

// storageFailed wraps an error of the segments and reports it: what a disk that failed holds is not known, so the node stops
// and the log is applied again from the last checkpoint (rule 11).
func (p *Partition) storageFailed(op string, err error) error {
	err = fmt.Errorf("%s %s-%d: %w: %w", op, p.topic, p.index, ErrStorage, err)
	p.m.fatal(err)
	return err
}
