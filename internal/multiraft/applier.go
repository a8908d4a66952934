package multiraft

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// applier feeds state machines with what is committed, and answers those who wait. Groups hash to appliers, so that a slow
// apply delays neither heartbeats nor the log, only the groups beside it.
type applier struct {
	inbox mailbox[applyTask]
}

type applyTask struct {
	r         *Replica
	entries   []raftpb.Entry
	responses []raftpb.Message // go back to the shard once entries are applied
	install   *raftpb.Snapshot // instead of entries: make a staged snapshot the state
	close     func()           // instead: close the state machine, then call it
}

func newApplier() *applier {
	a := &applier{}
	a.inbox.init()
	return a
}

// Step applies everything handed over so far.
func (a *applier) Step() (more bool) {
	tasks, _ := a.inbox.take()
	for i := range tasks {
		a.do(&tasks[i])
	}
	a.inbox.give(tasks)
	return !a.inbox.empty()
}

// Ready says whether a step would find something to do.
func (a *applier) Ready() bool { return !a.inbox.empty() }

func (a *applier) do(t *applyTask) {
	r := t.r
	switch {
	case t.close != nil:
		r.smClosed = true
		if err := r.sm.Close(); err != nil {
			r.logger().Error("closing a replica's state", "error", err)
		}
		t.close()
	case r.smClosed:
		// The mark of a snapshot became durable while the replica was being stopped: there is no state to install it in.
	case r.fenced.Load():
		// What a fenced replica has not applied stays in the log.
	case t.install != nil:
		if err := r.safely(func() error { return r.sm.Install(*t.install) }); err != nil {
			r.fence(fmt.Errorf("installing the snapshot at index %d: %w", t.install.Metadata.Index, err))
			return
		}
		r.applied.Store(t.install.Metadata.Index)
		r.waiters.covered(t.install.Metadata.Index, t.install.Metadata.Term)
		r.shard.post(event{r: r, kind: evInstalled, local: t.responses, index: t.install.Metadata.Index})
	default:
		a.apply(t)
	}
}

func (a *applier) apply(t *applyTask) {
	r := t.r
	// Configuration changes reach the shard before the apply response does, and before anybody can ask for a checkpoint or a
	// snapshot at their index.
	var noop uint64
	for i := range t.entries {
		e := &t.entries[i]
		if e.Type != raftpb.EntryNormal {
			r.confPosted.Store(e.Index)
			r.shard.post(event{r: r, kind: evConf, entry: *e})
		} else if len(e.Data) == 0 {
			noop = e.Term
		}
	}
	if err := r.safely(func() error { return r.sm.Apply(t.entries) }); err != nil {
		last := t.entries[len(t.entries)-1]
		r.fence(fmt.Errorf("applying entries %d to %d: %w", t.entries[0].Index, last.Index, err))
		return
	}
	last := t.entries[len(t.entries)-1].Index
	r.applied.Store(last)
	r.waiters.applied(t.entries)
	r.shard.post(event{r: r, kind: evApplied, local: t.responses, applied: last, index: noop})
}
