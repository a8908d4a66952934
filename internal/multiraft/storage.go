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
	coldMiss bool           // the last Entries call was answered ErrCompacted for a prefetch
	loading  bool           // a prefetch is under way
	held     []raftpb.Entry // what a prefetch brought while the cache had no room, for the moment of the nudge
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
	if ents := s.fromHeld(lo, hi, maxSize); ents != nil {
		return ents, nil
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

// fromHeld returns entries of [lo, hi), at most maxSize bytes but at least one, nil if lo is not held.
func (s *storage) fromHeld(lo, hi, maxSize uint64) []raftpb.Entry {
	if len(s.held) == 0 || lo < s.held[0].Index || lo > s.held[len(s.held)-1].Index {
		return nil
	}
	ents := s.held[lo-s.held[0].Index:]
	n, size := 0, uint64(0)
	for n < len(ents) && ents[n].Index < hi {
		if size += uint64(ents[n].Size()); size > maxSize && n > 0 {
			break
		}
		n++
	}
	return slices.Clone(ents[:n])
}

func (s *storage) prefetch(lo uint64) {
	if s.loading {
		return
	}
	s.loading = true
	bytes, to := uint64(s.r.svc.cfg.PrefetchBytes), s.r.toldApplied // up to there nothing is ever cut off
	s.log.Prefetch(lo, bytes, func() {
		var held []raftpb.Entry
		if !s.log.Cached(lo) {
			// Entries not applied yet fill the cache, and those never leave it. A follower may need just these for them to be
			// committed, so they are read once more, still off the shard, and kept for it.
			held, _ = s.log.Entries(lo, to+1, bytes)
		}
		s.r.shard.post(event{r: s.r, kind: evFunc, fn: func() { s.fetched(lo, held) }})
	})
}

// fetched goes on after a prefetch.
func (s *storage) fetched(lo uint64, held []raftpb.Entry) {
	s.loading = false
	if d := s.log.Damage(); d != nil {
		s.r.fence(damaged(s.r.group, *d))
		return
	}
	if len(held) == 0 && !s.log.Cached(lo) {
		return // the read failed; the followers' next heartbeat asks again
	}
	s.held = held
	s.r.nudge(lo)
	s.held = nil
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
