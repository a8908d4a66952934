package multiraft

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/wal"
)

// This file is a replica's life on its shard: events in, Ready out.

func (r *Replica) handle(ev *event) {
	switch ev.kind {
	case evMessage:
		r.receive(ev)
	case evLocal:
		r.stepAll(ev.local)
	case evApplied:
		r.stepAll(ev.local)
		r.told(ev.applied)
		r.appliedUpTo(ev.index)
	case evInstalled:
		r.installing = false
		r.confs.reset(ev.index, r.store.log.Checkpoint().ConfState)
		r.stepAll(r.sendOthers(ev.local)) // the leader's is among them
		r.told(ev.index)
		r.reads.applied(r.applied.Load())
	case evConf:
		r.applyConf(ev.entry)
	case evPropose:
		r.queue = append(r.queue, ev.prop)
	case evFunc:
		if ev.fn != nil {
			ev.fn()
		}
	}
}

// receive steps a message from another node, after checking that it comes from where that replica lives.
func (r *Replica) receive(ev *event) {
	node, known := r.nodeOf(ev.env.From)
	if !known || node != ev.node {
		r.releaseBacklog()
		return
	}
	switch ev.env.Kind {
	case transport.KindRaft:
		m := ev.env.Raft
		r.heard(m)
		if r.forgot(m) {
			return
		}
		switch m.Type {
		case raftpb.MsgTimeoutNow:
			if r.declines() {
				r.tellFitness(r.peer(m.From, ev.node))
				return
			}
			r.step(m)
		case raftpb.MsgProp, raftpb.MsgReadIndex, raftpb.MsgReadIndexResp, raftpb.MsgTransferLeader:
			// Nobody forwards these here; a peer that does is of another make.
		case raftpb.MsgSnap:
			r.offered(m, ev.node)
		case raftpb.MsgAppResp, raftpb.MsgHeartbeatResp:
			r.step(m)
			r.answered(m)
		default:
			r.step(m)
		}
	case transport.KindSnapStatus:
		r.snapStatus(ev.env.From, ev.env.Body)
	case transport.KindFitness:
		r.fitnessOf(ev.env.From, ev.env.Body)
	case transport.KindAllowance:
		r.allowanceWord(r.peer(ev.env.From, ev.node), ev.env.Body)
	default:
		from := r.peer(ev.env.From, ev.node)
		if ev.env.Kind == transport.KindDeltaRequest {
			from.Spare = r.spare(ev.env.From)
		}
		r.sm.Receive(ev.env, from)
	}
}

func (r *Replica) peer(replica uint64, node int32) Peer {
	return NewPeer(node, r.group, r.id, replica, r.svc.cfg.Sender)
}

// step feeds raft. Its errors say that the message is of no use (an unknown peer, a local type): dropped by intent.
func (r *Replica) step(m raftpb.Message) {
	if err := r.rn.Step(m); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) && !errors.Is(err, raft.ErrProposalDropped) {
		r.logger().Debug("message refused", "type", m.Type.String(), "error", err)
	}
}

func (r *Replica) stepAll(ms []raftpb.Message) {
	for _, m := range ms {
		r.step(m)
	}
}

// applyConf hands raft a membership change. Its index enters the history whatever the change does, so that a checkpoint
// finds the configuration of its own index.
//
// One at or below a snapshot that raft has taken is history: the snapshot's configuration is in force already, and carried out
// on top of it an old change would make a voter of today the learner it once was. A slow applier comes to such entries.
func (r *Replica) applyConf(e raftpb.Entry) {
	if e.Index <= r.restored {
		r.confApplied = e.Index
		return
	}
	var cc raftpb.ConfChangeI
	var err error
	if e.Type == raftpb.EntryConfChange {
		var c raftpb.ConfChange
		err = c.Unmarshal(e.Data)
		cc = c
	} else {
		var c raftpb.ConfChangeV2
		err = c.Unmarshal(e.Data)
		cc = c
	}
	if err != nil {
		panic("membership change does not decode: " + err.Error())
	}
	r.confs.add(e.Index, *r.rn.ApplyConfChange(cc))
	r.confApplied = e.Index
	r.keepCommit(e.Index)
}

// keepCommit makes durable that a membership change is committed. A restart applies again what is committed by the log, and elects by the
// configuration that this comes to: replicas that had heard of the end of a joint configuration only, and forgot it, would need votes of those
// that have left, whose copies are deleted by then. No other entry needs this: what is committed without anybody left who knows is found out by
// the next leader, but only if there can be one.
func (r *Replica) keepCommit(index uint64) {
	if r.commitKept >= index || r.hard.Commit < index {
		return
	}
	r.commitKept = r.hard.Commit
	r.svc.cfg.Log.Append(wal.Write{Group: r.logID, HardState: r.hard, Sync: true, Done: func(err error) {
		if err != nil {
			r.refused(err)
		}
	}})
}

// told notes that raft knows entries up to index to be applied. Only now may they leave memory, and the log: an election looks
// through what raft does not know to be applied for membership changes, and must find it (rule 10).
func (r *Replica) told(index uint64) {
	r.toldApplied = max(r.toldApplied, index)
	r.log.SetApplied(r.toldApplied)
	for len(r.checkpoints) > 0 && r.checkpoints[0].index <= r.toldApplied {
		cp := r.checkpoints[0]
		r.checkpoints = slices.Delete(r.checkpoints, 0, 1)
		r.checkpoint(cp)
	}
}

func (r *Replica) appliedUpTo(noopTerm uint64) {
	r.reads.applied(r.applied.Load())
	v := r.view.Load()
	if noopTerm != 0 && v.isLeader && v.term == noopTerm && !v.ready {
		r.sm.LeaderReady(noopTerm)
		r.svc.taken.Add(1)
		nv := *v
		nv.ready = true
		r.publish(&nv)
	}
}

func (r *Replica) publish(v *view) {
	r.view.Store(v)
	if f := r.svc.cfg.OnLeader; f != nil {
		f(r, r.Status())
	}
}

// process carries out what raft asks, and says whether it stopped early.
func (r *Replica) process() (more bool) {
	for range 4 {
		r.propose()
		r.proposeConf()
		r.proposeMark()
		r.issueReads()
		if r.installing || !r.rn.HasReady() {
			break
		}
		r.ready(r.rn.Ready())
	}
	r.releaseBacklog()
	return !r.installing && r.rn.HasReady() || r.canPropose() || len(r.confQueue) > 0 && r.view.Load().ready
}

// canPropose says whether a proposal would be taken now.
func (r *Replica) canPropose() bool {
	v := r.view.Load()
	return len(r.queue) > 0 && v.ready && r.waiters.unapplied() < r.svc.cfg.MaxUnappliedBytes &&
		r.rn.BasicStatus().LeadTransferee == raft.None
}

// propose merges queued proposals into entries until the queue is empty or enough is under way. What raft drops stays at the
// head of the queue (rule 18); what is queued when leadership is gone is certainly in no log.
func (r *Replica) propose() {
	if len(r.queue) == 0 {
		return
	}
	if v := r.view.Load(); !v.isLeader {
		r.failQueue(r.notLeader())
		return
	}
	limit := r.svc.cfg.MaxUnappliedBytes - r.waiters.unapplied()
	for len(r.queue) > 0 && limit > 0 && r.canPropose() {
		data, bound, taken := r.sm.Prepare(r.view.Load().term, r.queue, r.svc.cfg.MaxEntryBytes)
		if len(data) > 0 {
			if err := r.rn.Propose(data); err != nil {
				r.sm.Abort()
				// Those Prepare has answered already must not be offered again.
				r.dequeue(taken, bound)
				return
			}
			// bound may be a part of the queue, which moves on.
			r.prepared = append(r.prepared, prepared{bound: slices.Clone(bound), size: int64(len(data))})
			limit -= int64(len(data))
		}
		r.dequeue(taken, nil)
	}
}

// dequeue drops the first taken proposals from the queue, but puts keep back in front.
func (r *Replica) dequeue(taken int, keep []Proposal) {
	var size int64
	for _, p := range r.queue[:taken] {
		size += int64(p.Size())
	}
	for _, p := range keep {
		size -= int64(p.Size())
	}
	r.queuedBytes.Add(-size)
	rest := r.queue[taken:]
	n := copy(r.queue, append(append([]Proposal(nil), keep...), rest...))
	clear(r.queue[n:])
	r.queue = r.queue[:n]
}

// proposeConf proposes the next membership change; its Ready follows at once, like that of every proposal. It waits for the
// term's no-op as all proposals do: until that is committed, an entry of an older leader may still win the index, and nobody
// could say of its waiter that it is lost (waiterList.add).
func (r *Replica) proposeConf() {
	v := r.view.Load()
	if len(r.confQueue) == 0 || v.isLeader && !v.ready {
		return
	}
	p := r.confQueue[0]
	r.confQueue = slices.Delete(r.confQueue, 0, 1)
	if !v.isLeader {
		p.done(r.notLeader())
		return
	}
	data, err := p.cc.Marshal()
	if err == nil {
		err = r.rn.ProposeConfChange(p.cc)
	}
	if err != nil {
		p.done(r.notLeader())
		return
	}
	r.confWaiters = append(r.confWaiters, confWaiter{data: data, done: p.done})
}

// proposeMark puts one empty entry into the log for all that wait for one.
func (r *Replica) proposeMark() {
	if len(r.marks) == 0 || r.marked != nil {
		return
	}
	v := r.view.Load()
	if v.isLeader && !v.ready {
		return
	}
	if !v.isLeader || r.rn.Propose(nil) != nil {
		r.failMarks(r.notLeader())
		return
	}
	marks := r.marks
	r.marks, r.marked = nil, func(err error) {
		for _, done := range marks {
			done(err)
		}
	}
}

func (r *Replica) failMarks(err error) {
	for _, done := range r.marks {
		done(err)
	}
	r.marks = nil
}

func (r *Replica) failQueue(err error) {
	queue := r.queue
	r.queue = nil
	for _, p := range queue {
		r.queuedBytes.Add(-int64(p.Size()))
		p.Done(err)
	}
}

func (r *Replica) ready(rd raft.Ready) {
	if rd.SoftState != nil || rd.HardState.Term != 0 {
		r.leadership()
	}
	var late []raftpb.Message
	for i := range rd.Messages {
		m := &rd.Messages[i]
		switch {
		case m.To == raft.LocalAppendThread || m.To == raft.LocalApplyThread:
		case m.Type == raftpb.MsgVote:
			// Nobody is asked for a vote in a term before that term is on disk here (Raft, figure 2). The library asks at once and
			// holds back only the candidate's own vote. But two others' votes make a leader of three without that, and after a
			// power cut it would win the same term again, with another log, beside acknowledgements of its first reign.
			late = append(late, *m) // the new term comes in the same Ready, as an append
		default:
			r.send(*m) // before the local fsync: the leader's own vote for its entries waits for it, the followers' do not
		}
	}
	for i := range rd.Messages {
		m := &rd.Messages[i]
		switch m.To {
		case raft.LocalAppendThread:
			if len(late) > 0 {
				m.Responses = slices.Concat(late, m.Responses)
			}
			r.appendLog(m)
		case raft.LocalApplyThread:
			r.applier.inbox.post(applyTask{r: r, entries: m.Entries, responses: m.Responses})
		}
	}
	for _, rs := range rd.ReadStates {
		r.reads.resolve(rs.RequestCtx, rs.Index, r.applied.Load())
	}
}

// leadership publishes term and leader, and settles what hangs on losing it.
func (r *Replica) leadership() {
	st := r.rn.BasicStatus()
	old := r.view.Load()
	v := &view{term: st.Term, leader: st.Lead, leaderNode: -1, isLeader: st.RaftState == raft.StateLeader}
	if n, ok := r.nodeOf(st.Lead); ok {
		v.leaderNode = n
	}
	v.ready = old.ready && v.isLeader && v.term == old.term
	if *v == *old {
		return
	}
	if v.leader != 0 || r.yieldTerm != 0 && v.term > r.yieldTerm {
		r.campaignFrom, r.campaignTil, r.yieldTerm = 0, 0, 0
	}
	r.publish(v)
	if old.isLeader && !(v.isLeader && v.term == old.term) {
		r.sm.LeaderLost(old.term)
		r.failQueue(r.notLeader())
		r.reads.fail(r.notLeader())
		for _, p := range r.confQueue {
			p.done(r.notLeader())
		}
		r.confQueue = nil
		r.failMarks(r.notLeader())
		clear(r.snapSends)
		clear(r.allowances)
		clear(r.contacts)
	}
}

func (r *Replica) send(m raftpb.Message) {
	if m.Type == raftpb.MsgSnap {
		r.snapSends[m.To] = r.tickCount + snapshotPatience
	}
	node, ok := r.nodeOf(m.To)
	if !ok {
		r.unreachable(m.To, m.Type == raftpb.MsgSnap)
		return
	}
	send, whole := r.fit(&m, node)
	if !whole {
		r.unreachable(m.To, false)
	}
	if !send {
		return
	}
	r.svc.cfg.Sender.Send(node, transport.Envelope{Kind: transport.KindRaft, Group: r.group, From: r.id, To: m.To, Raft: m})
}

// unreachable resets raft's view of a follower from outside a Step.
func (r *Replica) unreachable(to uint64, snapshot bool) {
	r.shard.post(event{r: r, kind: evFunc, fn: func() { r.dropped(to, snapshot) }})
}

func (r *Replica) dropped(to uint64, snapshot bool) {
	r.rn.ReportUnreachable(to)
	if _, sending := r.snapSends[to]; snapshot && sending {
		delete(r.snapSends, to)
		r.rn.ReportSnapshot(to, raft.SnapshotFailure)
	}
}

// appendLog hands a MsgStorageAppend to the log and its responses, once durable, to where they belong.
func (r *Replica) appendLog(m *raftpb.Message) {
	w := wal.Write{Group: r.logID, Entries: m.Entries}
	if hs := (raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}); !raft.IsEmptyHardState(hs) {
		w.Sync = hs.Term != r.hard.Term || hs.Vote != r.hard.Vote
		r.hard = hs
		r.commit.Store(hs.Commit)
	}
	w.Sync = w.Sync || len(m.Entries) > 0 || m.Snapshot != nil
	if w.Sync {
		// A commit index alone is not worth a record: it is learned again from the leader, and until then a restart begins at
		// the last one that travelled with something that counts (or at the checkpoint, whichever is later). That of a membership
		// change is the exception (keepCommit).
		w.HardState, r.commitKept = r.hard, r.hard.Commit
	}
	r.bind(m.Entries)
	if m.Snapshot != nil && !raft.IsEmptySnap(*m.Snapshot) {
		md := m.Snapshot.Metadata
		w.Install = &wal.Checkpoint{Index: md.Index, Term: md.Term, ConfState: md.ConfState, State: m.Snapshot.Data}
		w.Sync = true
		r.installing, r.restored = true, md.Index
		snap, responses := m.Snapshot, m.Responses
		w.Done = func(err error) {
			if err != nil {
				r.refused(err)
				return
			}
			// The mark is durable; now the state follows, in the applier's order, and only then raft hears of it.
			r.applier.inbox.post(applyTask{r: r, install: snap, responses: responses})
		}
		r.svc.cfg.Log.Append(w)
		return
	}
	backlog := r.backlog
	r.backlog = 0
	if len(m.Entries) == 0 {
		r.svc.backlog.Add(-backlog)
		backlog = 0
	}
	responses := m.Responses
	if len(responses) == 0 && backlog == 0 && !w.Sync {
		return
	}
	w.Done = func(err error) {
		r.svc.backlog.Add(-backlog)
		if err != nil {
			r.refused(err)
			return
		}
		r.deliver(responses)
	}
	r.svc.cfg.Log.Append(w)
}

// refused handles a write that the log did not take. Where the log as a whole has stopped or is closed, the node ends and says
// why. But a log that refuses this group alone (it found damage, or lost the group) leaves a replica that would go on leading
// without ever applying anything: it must give way.
func (r *Replica) refused(err error) {
	if errors.Is(err, wal.ErrDamaged) || errors.Is(err, wal.ErrOutOfOrder) || errors.Is(err, wal.ErrUnknownGroup) {
		r.fence(fmt.Errorf("the log refuses to go on: %w", err))
	}
}

// deliver sends the responses of the log: this replica's own go straight back to its shard and can't be lost. A fenced replica has no more to
// say: what it would acknowledge may be void (wal.Log.Condemn).
func (r *Replica) deliver(responses []raftpb.Message) {
	if r.fenced.Load() {
		return
	}
	own := r.sendOthers(responses)
	if len(own) > 0 {
		r.shard.post(event{r: r, kind: evLocal, local: own})
	}
}

// sendOthers sends the responses that are not for this replica itself, and returns those that are.
func (r *Replica) sendOthers(responses []raftpb.Message) (own []raftpb.Message) {
	for _, m := range responses {
		if m.To == r.id {
			own = append(own, m)
			continue
		}
		if node, ok := r.nodeOf(m.To); ok {
			r.svc.cfg.Sender.Send(node, transport.Envelope{Kind: transport.KindRaft, Group: r.group, From: r.id, To: m.To, Raft: m})
		}
	}
	return own
}

// bind gives prepared proposals their index and term, as raft has numbered them. Every Propose is followed by a Ready before
// anything else is stepped, so the new entries appear here in the order proposed.
func (r *Replica) bind(entries []raftpb.Entry) {
	for i := range entries {
		if len(r.prepared) == 0 && len(r.confWaiters) == 0 && r.marked == nil {
			return
		}
		e := &entries[i]
		w := waiter{index: e.Index, term: e.Term}
		switch {
		case e.Type == raftpb.EntryNormal && len(e.Data) > 0 && len(r.prepared) > 0:
			w.bound, w.size = r.prepared[0].bound, r.prepared[0].size
			r.prepared = append(r.prepared[:0], r.prepared[1:]...)
		case e.Type != raftpb.EntryNormal && len(r.confWaiters) > 0 && bytes.Equal(e.Data, r.confWaiters[0].data):
			// Raft proposes changes of its own (it leaves a joint configuration by itself): those are not this one.
			w.single = r.confWaiters[0].done
			r.confWaiters = slices.Delete(r.confWaiters, 0, 1)
		case e.Type == raftpb.EntryNormal && len(e.Data) == 0 && r.marked != nil:
			w.single, r.marked = r.marked, nil
		default:
			continue
		}
		r.waiters.add(w)
	}
	// raft replaces a change it can't take by an empty entry: then its waiter is left over.
	for _, w := range r.confWaiters {
		w.done(errConfDropped)
	}
	r.confWaiters = nil
}

func (r *Replica) releaseBacklog() {
	if r.backlog > 0 {
		r.svc.backlog.Add(-r.backlog)
		r.backlog = 0
	}
}

// tick advances raft's clock, gives up what took too long, and hands the leadership over when the disk is stuck.
func (r *Replica) tick(stalled bool) {
	r.tickCount++
	if r.declines() {
		r.abstain()
	} else {
		r.rn.Tick()
	}
	r.fitnessTick()
	r.quarantineTick()
	if !r.declines() && r.tickCount >= r.campaignFrom && r.tickCount < r.campaignTil && (r.tickCount-r.campaignFrom)%2 == 0 && r.view.Load().leader == 0 && r.rn.BasicStatus().RaftState != raft.StateCandidate {
		// The first try may have been early: the others make the group as they see the image, or have yet to notice that
		// their leader is gone. A candidate has their word already and waits for votes, which a new try would throw away.
		r.hup()
	}
	if len(r.snapSends) > 0 {
		for _, to := range slices.Sorted(maps.Keys(r.snapSends)) {
			if r.tickCount > r.snapSends[to] {
				delete(r.snapSends, to)
				r.rn.ReportSnapshot(to, raft.SnapshotFailure)
			}
		}
	}
	r.stagingTick()
	r.grant()
	r.reads.expire(r.tickCount, uint64(2*r.svc.cfg.ElectionTicks))
	if stalled && r.view.Load().isLeader && r.tickCount > r.transferAt+uint64(2*r.svc.cfg.ElectionTicks) {
		r.transferAt = r.tickCount
		r.transfer(-1)
	}
	if r.handover.til > 0 && (r.tickCount > r.handover.til || r.transfer(r.handover.node)) {
		r.handover = handover{}
	}
}

// transfer picks the follower on a node, or the most advanced one heard of lately, and tells raft. False: there is none now.
func (r *Replica) transfer(node int32) (found bool) {
	if r.rn == nil || !r.view.Load().isLeader {
		return true
	}
	var best, match uint64
	r.rn.WithProgress(func(id uint64, typ raft.ProgressType, pr raftProgress) {
		if id == r.id || typ == raft.ProgressTypeLearner || !pr.RecentActive {
			return
		}
		n, ok := r.nodeOf(id)
		if !ok || node >= 0 && n != node {
			return
		}
		if r.fitness.others[id] > r.tickCount {
			return // it has said that it should not lead
		}
		if best == 0 || pr.Match > match || pr.Match == match && id < best {
			best, match = id, pr.Match
		}
	})
	if best != 0 {
		r.rn.TransferLeader(best)
	}
	return best != 0
}

// successionTicks lie between the first in line and the second: time enough for the first to be elected.
const successionTicks = 3

// peerDown forgets a leader whose node is gone. The remaining replicas stand for election in a line: the first at once, the
// others a little later each, should those before them not (one that has just come back does not know of the leader at all).
func (r *Replica) peerDown(node int32) {
	if r.rn == nil {
		return
	}
	v := r.view.Load()
	for _, to := range slices.Sorted(maps.Keys(r.snapSends)) {
		if n, ok := r.nodeOf(to); ok && n == node {
			delete(r.snapSends, to)
			r.rn.ReportSnapshot(to, raft.SnapshotFailure)
		}
	}
	if v.isLeader || v.leader == 0 || v.leaderNode != node {
		return
	}
	if err := r.rn.ForgetLeader(); err != nil {
		return
	}
	voter, before := false, uint64(0)
	for _, id := range r.confs.last().Voters {
		voter = voter || id == r.id
		if n, ok := r.nodeOf(id); ok && n != node && id < r.id {
			before++
		}
	}
	r.shard.activate(r)
	if !voter || r.declines() {
		return
	}
	// The other followers must have noticed as well before they will give a pre-vote: a few tries, then timeouts.
	r.campaignFrom = r.tickCount + successionTicks*before
	r.campaignTil = r.campaignFrom + uint64(r.svc.cfg.ElectionTicks)
	if before == 0 {
		r.hup()
	} else {
		r.yieldTerm = v.term
	}
}

// drain answers everybody who waits, once the replica takes no part any more. It may be called again.
func (r *Replica) drain(err error) {
	if v := r.view.Load(); v.leader != 0 || v.isLeader {
		r.publish(&view{term: v.term, leaderNode: -1})
		if v.isLeader {
			r.sm.LeaderLost(v.term)
		}
	}
	r.failQueue(err)
	r.reads.fail(err)
	for _, p := range r.confQueue {
		p.done(err)
	}
	r.failMarks(err)
	if r.marked != nil {
		r.marked(ErrUnknownOutcome)
		r.marked = nil
	}
	for _, w := range r.confWaiters {
		w.done(ErrUnknownOutcome)
	}
	r.confQueue, r.confWaiters = nil, nil
	for _, cp := range r.checkpoints {
		if cp.done != nil {
			cp.done(err)
		}
	}
	r.checkpoints = nil
	// A panic between Propose and Ready leaves proposals without an index. And the applier may have fenced the replica while
	// this shard was adding waiters: it adds none from here on.
	for _, p := range r.prepared {
		w := waiter{bound: p.bound}
		w.done(ErrUnknownOutcome)
	}
	r.prepared = nil
	r.waiters.abandon()
	r.releaseBacklog()
}
