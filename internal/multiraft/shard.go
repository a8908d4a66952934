package multiraft

import (
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/transport"
)

// shard alone touches the RawNodes of its groups. Its step drains the inbox, ticks if a tick is due, and walks the groups
// that have work: no others.
type shard struct {
	svc   *Service
	index int
	inbox mailbox[event]

	replicas []*Replica // in order of registration; the shard's own
	active   []*Replica // have work
	spare    []*Replica
	ticks    uint64
	tickedAt time.Time

	stoodStill atomic.Int64 // nanoseconds, in all
}

type eventKind uint8

const (
	evMessage   eventKind = iota + 1 // env from node
	evLocal                          // responses of the log: local
	evApplied                        // responses of the applier: local, for entries up to applied; index is the term of a no-op among them, or 0
	evInstalled                      // a snapshot at index has become the state: local
	evConf                           // apply the configuration change in entry
	evPropose                        // prop
	evFunc                           // fn
	evPeerDown                       // node; no replica
	evStart
	evStop
)

type event struct {
	kind    eventKind
	r       *Replica
	node    int32
	index   uint64
	applied uint64
	backlog int64
	env     transport.Envelope
	local   []raftpb.Message
	entry   raftpb.Entry
	prop    Proposal
	fn      func()
	refuse  func(error) // called instead of fn when the replica takes no part (any more)
}

func newShard(s *Service, index int) *shard {
	sh := &shard{svc: s, index: index}
	sh.inbox.init()
	return sh
}

// post adds events. Once the shard has ended, those who wait for one are refused.
func (sh *shard) post(evs ...event) {
	if sh.inbox.post(evs...) {
		return
	}
	for i := range evs {
		evs[i].turnDown(ErrStopped)
	}
}

func (ev *event) turnDown(err error) {
	switch {
	case ev.prop != nil:
		ev.r.queuedBytes.Add(-int64(ev.prop.Size()))
		ev.prop.Done(err)
	case ev.refuse != nil:
		ev.refuse(err)
	case ev.kind == evStop && ev.fn != nil:
		ev.fn()
	}
}

func (sh *shard) tick() { sh.inbox.postTick() }

// Step does what is ready and says whether more is.
func (sh *shard) Step() (more bool) {
	events, tick := sh.inbox.take()
	for i := range events {
		sh.handle(&events[i])
	}
	sh.inbox.give(events)
	if tick {
		sh.tickAll()
	}
	active := sh.active
	sh.active, sh.spare = sh.spare[:0], nil
	for _, r := range active {
		r.active = false
		if r.stopped || r.fenced.Load() {
			continue
		}
		r.guard(func() {
			if r.process() {
				sh.activate(r)
			}
		})
	}
	clear(active)
	sh.spare = active[:0]
	return len(sh.active) > 0 || !sh.inbox.empty()
}

// Ready says whether a step would find something to do.
func (sh *shard) Ready() bool { return len(sh.active) > 0 || !sh.inbox.empty() }

func (sh *shard) activate(r *Replica) {
	if !r.active {
		r.active = true
		sh.active = append(sh.active, r)
	}
}

func (sh *shard) handle(ev *event) {
	r := ev.r
	if ev.kind == evPeerDown {
		for _, r := range sh.replicas {
			if !r.fenced.Load() {
				r.guard(func() { r.peerDown(ev.node) })
			}
		}
		return
	}
	switch ev.kind {
	case evStart:
		sh.start(r)
		return
	case evStop:
		sh.stop(r, ev.fn)
		return
	}
	if ev.backlog > 0 {
		// From here on raft and the log account for these bytes; they leave the backlog once durable.
		r.backlog += ev.backlog
	}
	if r.stopped || r.fenced.Load() || r.rn == nil {
		r.drain(r.refusal())
		ev.turnDown(r.refusal())
		return
	}
	r.guard(func() { r.handle(ev) })
	sh.activate(r)
}

func (sh *shard) start(r *Replica) {
	if r.stopped {
		return
	}
	sh.replicas = append(sh.replicas, r)
	if d := r.log.Damage(); d != nil {
		r.fence(damaged(r.group, *d))
		return
	}
	r.guard(r.open)
	sh.activate(r)
}

func (sh *shard) stop(r *Replica, done func()) {
	if r.stopped {
		if done != nil {
			done()
		}
		return
	}
	r.stopped = true
	for i, x := range sh.replicas {
		if x == r {
			sh.replicas = append(sh.replicas[:i], sh.replicas[i+1:]...)
			break
		}
	}
	r.drain(r.refusal())
	t := applyTask{r: r, close: func() {
		if done != nil {
			done()
		}
	}}
	if !r.applier.inbox.post(t) {
		r.applier.do(&t) // a service that is stepped by its caller has closed all its inboxes at once
	}
}

func (sh *shard) tickAll() {
	sh.ticks++
	sh.noteStandstill()
	stalled := sh.svc.cfg.Log.Stalled() > sh.svc.cfg.StallLimit
	for _, r := range sh.replicas {
		if r.rn == nil || r.fenced.Load() {
			continue
		}
		r.guard(func() {
			r.tick(stalled)
			if r.rn.HasReady() || len(r.queue) > 0 || len(r.reads.queued) > 0 {
				sh.activate(r)
			}
		})
	}
}

// noteStandstill counts and tells the time in which the shard should have ticked and did not. Leaders did not heartbeat then: after
// an election timeout of it the others were right to elect, and whoever wonders why looks for the machine that stood still.
func (sh *shard) noteStandstill() {
	cfg, now := &sh.svc.cfg, sh.svc.cfg.Clock.Now()
	late := now.Sub(sh.tickedAt) - cfg.TickInterval
	if sh.ticks > 1 && late >= cfg.TickInterval*time.Duration(cfg.ElectionTicks)/2 {
		sh.stoodStill.Add(int64(late))
		cfg.Logger.Warn("this node stood still: its process was paused, or the machine is overloaded", "for", late.Round(time.Millisecond), "shard", sh.index,
			"election_timeout", cfg.TickInterval*time.Duration(cfg.ElectionTicks))
	}
	sh.tickedAt = now
}
