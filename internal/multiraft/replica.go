package multiraft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/wal"
)

// Replica is this node's member of one Raft group. Its exported methods are safe for concurrent use and never wait for the
// shard, except where a context says so.
type Replica struct {
	svc       *Service
	shard     *shard
	applier   *applier
	topic     string
	partition int32
	group, id uint64
	logID     uint64 // of log
	log       *wal.Group
	sm        StateMachine
	lg        *slog.Logger

	// Published state, read without locks.
	commit, applied atomic.Uint64
	view            atomic.Pointer[view]
	fenced          atomic.Bool
	confPosted      atomic.Uint64 // index of the last configuration change the applier has handed over
	queuedBytes     atomic.Int64
	waiters         waiterList

	mu      sync.Mutex
	members []Member // replaced whole

	// The shard's own.
	rn      *raft.RawNode
	store   storage
	active  bool
	stopped bool
	// campaignFrom and campaignTil are the ticks between which to stand for election again while there is no leader.
	campaignFrom, campaignTil uint64
	// yieldTerm, if not 0, is the term above which somebody before us in the line stands already.
	yieldTerm   uint64
	backlog     int64 // received entry bytes not yet given to the log
	hard        raftpb.HardState
	commitKept  uint64 // the commit index last given to the log
	confs       confHistory
	confApplied uint64
	queue       []Proposal // accepted from callers, not yet prepared
	prepared    []prepared // proposed, index not yet known
	confQueue   []confProposal
	marks       []func(error) // of Confirm, for whom no entry is proposed yet
	marked      func(error)   // those for whom one is, until it has its index
	confWaiters []confWaiter  // proposed, index not yet known
	toldApplied uint64        // what raft knows to be applied; trails applied
	restored    uint64        // index of the last snapshot that raft took: its configuration is in force
	checkpoints []checkpoint  // wait until raft knows of their index
	smClosed    bool          // the applier's: the state is closed
	installing  bool          // a snapshot is on its way into log and state: no Ready meanwhile
	staging     *staging
	snapSends   map[uint64]uint64    // replica -> tick at which the attempt is given up
	allowances  map[uint64]allowance // of learners, while this replica leads
	contacts    map[uint64]contact   // of the others, while this replica leads; nil: not kept
	asked       asked
	reads       readQueue
	tickCount   uint64
	transferAt  uint64 // tick of the last transfer started for a stalled disk
	handover    handover
	fitness     fitness
	// quarantine is why the replica is to be fenced, at the latest at tick quarantineAt.
	quarantine   *DamagedError
	quarantineAt uint64
}

// view is what a replica knows of its group's leadership.
type view struct {
	term       uint64
	leader     uint64
	leaderNode int32
	isLeader   bool
	ready      bool
}

// handover is a transfer of leadership that nobody could be found for, to be tried again until a tick.
type handover struct {
	node int32
	til  uint64
}

type confProposal struct {
	cc   raftpb.ConfChangeV2
	done func(error)
}

// confWaiter waits for a membership change that is data in the log.
type confWaiter struct {
	data []byte
	done func(error)
}

// checkpoint is a state to be handed to the log.
type checkpoint struct {
	index, term uint64
	state       []byte
	done        func(error)
}

type prepared struct {
	bound []Proposal
	size  int64
}

// DamagedError says that a group's log was found damaged; its replica is fenced and must be replaced.
type DamagedError struct {
	Group  uint64
	File   string // empty: the log has lost its end
	Offset int64
	Reason string
}

// Error implements error.
func (e *DamagedError) Error() string {
	if e.File == "" {
		return fmt.Sprintf("the log of group %d has lost its end (%s): this replica takes no part until it is replaced under a new replica id", e.Group, e.Reason)
	}
	return fmt.Sprintf("the log of group %d is damaged at %s offset %d (%s): this replica takes no part until it is replaced under a new replica id",
		e.Group, e.File, e.Offset, e.Reason)
}

// Is makes a DamagedError match ErrFenced.
func (e *DamagedError) Is(target error) bool { return target == ErrFenced }

func newReplica(s *Service, sh *shard, a *applier, log *wal.Group, o RegisterOptions) *Replica {
	r := &Replica{
		svc: s, shard: sh, applier: a, topic: o.Topic, partition: o.Partition,
		group: o.Group, id: o.Replica, logID: o.Log, log: log, sm: o.SM,
		members:   slices.Clone(o.Members),
		snapSends: make(map[uint64]uint64),
	}
	r.view.Store(&view{leaderNode: -1})
	if o.Campaign {
		r.campaignTil = uint64(2 * s.cfg.ElectionTicks)
	}
	r.fitness.unfit = o.Unfit
	if o.KeepTimes {
		r.contacts = make(map[uint64]contact)
	}
	r.lg = s.cfg.Logger.With("topic", r.topic, "partition", r.partition, "group", r.group)
	cp := log.Checkpoint()
	log.SetApplied(cp.Index)
	r.applied.Store(cp.Index)
	r.toldApplied = cp.Index
	r.confs.reset(cp.Index, cp.ConfState)
	return r
}

// open makes the RawNode from what the log holds. On the shard.
func (r *Replica) open() {
	r.store = storage{r: r, log: r.log}
	c := &r.svc.cfg
	hs, _, _ := r.store.InitialState()
	r.hard, r.commitKept = hs, hs.Commit
	r.commit.Store(hs.Commit)
	rn, err := raft.NewRawNode(&raft.Config{
		ID:                        r.id,
		ElectionTick:              c.ElectionTicks,
		HeartbeatTick:             c.HeartbeatTicks,
		Storage:                   &r.store,
		Applied:                   r.applied.Load(),
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             uint64(c.MaxEntryBytes),
		MaxCommittedSizePerReady:  8 << 20,
		MaxInflightMsgs:           256,
		MaxInflightBytes:          max(c.MaxInflightBytes, uint64(c.MaxEntryBytes)),
		CheckQuorum:               true,
		PreVote:                   true,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
		Logger:                    &raftLogger{l: r.logger()},
	})
	if err != nil {
		r.fence(fmt.Errorf("opening the group: %w", err))
		return
	}
	r.rn = rn
	if r.alone() || r.campaignTil > 0 && !r.unfit() {
		// Alone, or the first in line: of a new group, or after all of them have been restarted. Where a leader lives, the
		// others hear it and refuse the pre-vote.
		r.hup()
	}
}

func (r *Replica) hup() {
	if err := r.rn.Campaign(); err != nil {
		r.logger().Debug("campaign refused", "error", err)
	}
}

// Topic returns the topic's name.
func (r *Replica) Topic() string { return r.topic }

// Partition returns the partition's index.
func (r *Replica) Partition() int32 { return r.partition }

// GroupID returns the raft group's id.
func (r *Replica) GroupID() uint64 { return r.group }

// ID returns this side's replica id.
func (r *Replica) ID() uint64 { return r.id }

// Status returns the published state. Its parts may be a moment apart.
func (r *Replica) Status() Status {
	v := r.seen()
	return Status{
		Term: v.term, Commit: r.commit.Load(), Applied: r.applied.Load(),
		Leader: v.leader, LeaderNode: v.leaderNode, IsLeader: v.isLeader, Ready: v.ready,
	}
}

// seen is the published view; a fenced replica leads nothing, whatever its shard published last.
func (r *Replica) seen() *view {
	v := r.view.Load()
	if v.isLeader && r.fenced.Load() {
		return &view{term: v.term, leaderNode: -1}
	}
	return v
}

// Term returns the current raft term, which is the leader epoch.
func (r *Replica) Term() uint64 { return r.view.Load().term }

// CommitIndex returns the highest index known to be committed.
func (r *Replica) CommitIndex() uint64 { return r.commit.Load() }

// AppliedIndex returns the highest index applied to the state machine.
func (r *Replica) AppliedIndex() uint64 { return r.applied.Load() }

// LeaderID returns the leader's replica id, 0 when unknown.
func (r *Replica) LeaderID() uint64 { return r.view.Load().leader }

// IsLeader says whether this replica believes to lead. It may serve only once Status().Ready.
func (r *Replica) IsLeader() bool { return r.seen().isLeader }

// Fenced says whether the replica was stopped after damage or a violated invariant.
func (r *Replica) Fenced() bool { return r.fenced.Load() }

// Members returns where the group's replicas are. The slice is read-only.
func (r *Replica) Members() []Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.members
}

// SetMembers replaces where the group's replicas are, as the metadata image has them.
func (r *Replica) SetMembers(m []Member) {
	m = slices.Clone(m)
	r.mu.Lock()
	r.members = m
	r.mu.Unlock()
}

func (r *Replica) nodeOf(replica uint64) (int32, bool) {
	for _, m := range r.Members() {
		if m.Replica == replica {
			return m.Node, true
		}
	}
	return -1, false
}

// Enqueue offers a proposal. It never blocks; p.Done tells how it ended.
func (r *Replica) Enqueue(p Proposal) {
	v := r.view.Load()
	switch {
	case r.fenced.Load():
		p.Done(ErrFenced)
		return
	case !v.isLeader:
		p.Done(r.notLeader())
		return
	}
	size := int64(p.Size())
	if q := r.queuedBytes.Add(size); q > r.svc.cfg.MaxQueuedBytes && q > size {
		r.queuedBytes.Add(-size)
		p.Done(ErrOverloaded)
		return
	}
	r.shard.post(event{r: r, kind: evPropose, prop: p})
}

// RawProposal is a proposal of ready-made entry data, for state machines that take it as it is.
type RawProposal struct {
	Data   []byte
	OnDone func(error)
}

// Size implements Proposal.
func (p *RawProposal) Size() int { return len(p.Data) }

// Done implements Proposal.
func (p *RawProposal) Done(err error) { p.OnDone(err) }

// Propose puts data into the group's log and waits until it is committed and applied here. An error matching ErrNotLeader
// says that it is certainly not in the log and names the leader if known; ErrUnknownOutcome (also when ctx ends first) says
// that it may be.
func (r *Replica) Propose(ctx context.Context, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	r.Enqueue(&RawProposal{Data: data, OnDone: func(err error) { done <- err }})
	answer, err := clock.Recv(r.svc.cfg.Clock, ctx, done)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	return answer
}

// ReadIndex calls done with nil once everything committed before the call is applied here, and this replica was the leader
// at some moment after the call (Raft thesis, section 6.4). done must not block.
func (r *Replica) ReadIndex(done func(error)) {
	if !r.view.Load().isLeader {
		done(r.notLeader())
		return
	}
	r.shard.post(event{r: r, kind: evFunc, fn: func() { r.reads.queued = append(r.reads.queued, done) }, refuse: done})
}

// Confirm puts an empty entry into the log, and calls done with nil once it is committed and applied here. A commit index alone is not
// written to disk; it travels with entries. So a majority has then on disk that everything is committed that was when Confirm was called, the
// configuration in force among it: should all lose their power, a majority starts with that one, and not with one before, in which
// replicas may count that are deleted by then. Errors: as Propose. done must not block.
func (r *Replica) Confirm(done func(error)) {
	r.shard.post(event{r: r, kind: evFunc, fn: func() { r.marks = append(r.marks, done) }, refuse: done})
}

// Checkpoint tells the log that the state at index is durable outside it, described by state. Older checkpoints than the last
// are ignored. It costs no fsync: the checkpoint is durable when something later is.
func (r *Replica) Checkpoint(index, term uint64, state []byte) {
	r.CheckpointSynced(index, term, state, nil)
}

// CheckpointSynced is Checkpoint with an fsync, if done is set. done is called once, from a step of the log or of the shard, and
// must not block: nil says that a restart begins at this checkpoint or a later one, so that what only older ones need may go.
func (r *Replica) CheckpointSynced(index, term uint64, state []byte, done func(error)) {
	cp := checkpoint{index: index, term: term, state: state, done: done}
	r.shard.post(event{r: r, kind: evFunc, refuse: done, fn: func() {
		if index > r.toldApplied {
			// Made in the middle of an Apply. The log must not forget what raft may still ask for; its word is on the way.
			r.checkpoints = append(r.checkpoints, cp)
			return
		}
		r.checkpoint(cp)
	}})
}

func (r *Replica) checkpoint(cp checkpoint) {
	cs, ok := r.confs.at(cp.index)
	if !ok {
		if cp.done != nil {
			cp.done(fmt.Errorf("multiraft: group %d: a checkpoint at %d comes after a later one", r.group, cp.index))
		}
		return
	}
	r.svc.cfg.Log.Checkpoint(r.logID, wal.Checkpoint{Index: cp.index, Term: cp.term, ConfState: cs, State: cp.state}, cp.done)
	r.confs.trim(cp.index)
}

// TransferLeadership hands the leadership to the replica on a node, or to the most advanced live one for node -1. It does
// nothing on a follower. Raft gives up a transfer that takes longer than an election timeout.
func (r *Replica) TransferLeadership(node int32) {
	r.shard.post(event{r: r, kind: evFunc, fn: func() {
		if r.transfer(node) {
			return
		}
		// Just after raft has counted who is there, nobody is for a moment; nor is a node that just came up.
		r.handover = handover{node: node, til: r.tickCount + uint64(r.svc.cfg.ElectionTicks)}
	}})
}

// ProposeConfChange puts a membership change into the log; done is called once it is applied here. One change at a time is
// under way in a group: raft turns a second one into an empty entry, which done reports as an error.
func (r *Replica) ProposeConfChange(cc raftpb.ConfChangeV2, done func(error)) {
	r.shard.post(event{r: r, kind: evFunc, fn: func() {
		r.confQueue = append(r.confQueue, confProposal{cc: cc, done: done})
	}, refuse: done})
}

// AddLearner adds a replica that receives the log and does not vote, and waits until that is committed.
func (r *Replica) AddLearner(ctx context.Context, replica uint64, node int32) error {
	cc := raftpb.ConfChangeV2{
		Changes: []raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeAddLearnerNode, NodeID: replica}},
		Context: binary.AppendVarint(nil, int64(node)),
	}
	done := make(chan error, 1)
	r.ProposeConfChange(cc, func(err error) { done <- err })
	answer, err := clock.Recv(r.svc.cfg.Clock, ctx, done)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	return answer
}

func (r *Replica) notLeader() *NotLeaderError {
	v := r.view.Load()
	e := &NotLeaderError{Group: r.group, Term: v.term, LeaderNode: v.leaderNode}
	if v.isLeader {
		e.LeaderNode = -1
	}
	return e
}

// refusal is why a replica that takes no part refuses.
func (r *Replica) refusal() error {
	if r.fenced.Load() {
		return ErrFenced
	}
	return ErrStopped
}

func (r *Replica) logger() *slog.Logger { return r.lg }

// guard runs f on the shard and fences the group if it panics: the library panics where an invariant is broken, or its log can't be
// read, and one broken group must not take the others with it.
func (r *Replica) guard(f func()) {
	err := r.safely(func() error { f(); return nil })
	if err == nil {
		return
	}
	if d := r.log.Damage(); d != nil {
		err = damaged(r.group, *d)
	}
	r.fence(err)
}

func damaged(group uint64, d wal.Damage) *DamagedError {
	return &DamagedError{Group: group, File: d.File, Offset: d.Offset, Reason: d.Reason}
}

func (r *Replica) safely(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

// fence ends a replica's part in its group: it is loud, and it is for good until the process restarts.
func (r *Replica) fence(err error) {
	if r.fenced.Swap(true) {
		return
	}
	r.logger().Error("replica fenced: it takes no further part in its group", "error", err, "applied", r.applied.Load())
	r.waiters.abandon()
	r.shard.post(event{r: r, kind: evFunc}) // wakes the shard, which refuses what is queued
	if f := r.svc.cfg.OnFence; f != nil {
		f(r, err)
	}
}

var errConfDropped = errors.New("another membership change is under way")
