package multiraft

import (
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/chronik-go/chronik/internal/wal"
)

// storage is raft.Storage over a group of the log. Only the group's shard uses it.
//
// What raft still has to apply is always readable. What it wants for a lagging follower may have left memory: then the read
// happens elsewhere, the caller is told ErrCompacted, and the snapshot raft asks for instead is "temporarily unavailable"
// until the entries are there, so that neither the shard waits for a disk nor a snapshot is sent without need (rule 10).
type storage struct {
	r        *Replica
	log      *wal.Group
	coldMiss bool // the last Entries call was answered ErrCompacted for a prefetch
	loading  bool // a prefetch is under way
}

func (s *storage) InitialState() (raftpb.HardState, raftpb.ConfState, error) {
	hs, cp := s.log.HardState(), s.log.Checkpoint()
	hs.Commit = max(hs.Commit, cp.Index)
	return hs, cp.ConfState, nil
}

func (s *storage) Entries(lo, hi, maxSize uint64) ([]raftpb.Entry, error) {
	s.coldMiss = false
	if lo < s.log.FirstIndex() {
		return nil, raft.ErrCompacted
	}
	if lo <= s.r.toldApplied && !s.log.Cached(lo) {
		s.prefetch(lo)
		s.coldMiss = true
		return nil, raft.ErrCompacted
	}
	ents, err := s.log.Entries(lo, hi, maxSize)
	if err == nil && len(ents) > 0 {
		// Read ahead, so that a follower far behind is not fed one prefetch for each heartbeat.
		if next := ents[len(ents)-1].Index + 1; next <= s.r.toldApplied && !s.log.Cached(next) {
			s.prefetch(next)
		}
	}
	return ents, err
}

func (s *storage) prefetch(lo uint64) {
	if s.loading {
		return
	}
	s.loading = true
	s.log.Prefetch(lo, uint64(s.r.svc.cfg.PrefetchBytes), func() {
		s.r.shard.post(event{r: s.r, kind: evFunc, fn: func() {
			s.loading = false
			switch d := s.log.Damage(); {
			case d != nil:
				s.r.fence(&DamagedError{Group: s.r.group, File: d.File, Offset: d.Offset, Reason: d.Reason})
			case s.log.Cached(lo):
				s.r.nudge(lo)
			}
			// Else the read failed, or others took its room at once: the followers' next heartbeat asks again.
		}})
	})
}

// nudge makes raft try again to send to the followers that wait for entries just read into memory. The library has no call
// for it; it sends when a follower answers a heartbeat, and those concerned have done so in the last election timeout.
func (r *Replica) nudge(index uint64) {
	if !r.view.Load().isLeader {
		return
	}
	var lagging []uint64
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr raftProgress) {
		if id != r.id && pr.RecentActive && pr.Next <= index && pr.State != tracker.StateSnapshot {
			lagging = append(lagging, id)
		}
	})
	slices.Sort(lagging)
	for _, id := range lagging {
		r.step(raftpb.Message{Type: raftpb.MsgHeartbeatResp, From: id, To: r.id, Term: r.view.Load().term})
	}
}

func (s *storage) Term(i uint64) (uint64, error) { return s.log.Term(i) }

func (s *storage) LastIndex() (uint64, error) { return s.log.LastIndex(), nil }

func (s *storage) FirstIndex() (uint64, error) { return s.log.FirstIndex(), nil }

func (s *storage) Snapshot() (raftpb.Snapshot, error) {
	if s.coldMiss {
		s.coldMiss = false
		return raftpb.Snapshot{}, raft.ErrSnapshotTemporarilyUnavailable
	}
	index, term, data, err := s.r.sm.Snapshot()
	if err != nil {
		s.r.svc.cfg.Logger.Warn("no snapshot for a lagging follower", "topic", s.r.topic, "partition", s.r.partition, "error", err)
		return raftpb.Snapshot{}, raft.ErrSnapshotTemporarilyUnavailable
	}
	// The applier may have applied a configuration change that this shard has yet to see: then the configuration at index is
	// not known here, and raft asks again.
	cs, ok := s.r.confs.at(index)
	if index == 0 || !ok || s.r.confPosted.Load() > s.r.confApplied {
		return raftpb.Snapshot{}, raft.ErrSnapshotTemporarilyUnavailable
	}
	return raftpb.Snapshot{Data: data, Metadata: raftpb.SnapshotMetadata{ConfState: cs, Index: index, Term: term}}, nil
}

// confHistory remembers the group's configuration at each index that changed it, back to the last checkpoint: a checkpoint
// or snapshot at an index must carry the configuration of that index, not today's (rule 7).
type confHistory struct {
	runs []confRun
}

type confRun struct {
	from  uint64
	state raftpb.ConfState
}

func (h *confHistory) add(index uint64, cs raftpb.ConfState) {
	h.runs = append(h.runs, confRun{from: index, state: cs})
}

func (h *confHistory) at(index uint64) (raftpb.ConfState, bool) {
	for i := len(h.runs) - 1; i >= 0; i-- {
		if h.runs[i].from <= index {
			return h.runs[i].state, true
		}
	}
	return raftpb.ConfState{}, false
}

func (h *confHistory) last() raftpb.ConfState { return h.runs[len(h.runs)-1].state }

// trim forgets what lies before index, keeping the configuration in force there.
func (h *confHistory) trim(index uint64) {
	keep := 0
	for i, run := range h.runs {
		if run.from <= index {
			keep = i
		}
	}
	h.runs = h.runs[keep:]
}

func (h *confHistory) reset(index uint64, cs raftpb.ConfState) {
	h.runs = []confRun{{from: index, state: cs}}
}
