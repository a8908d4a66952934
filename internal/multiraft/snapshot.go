package multiraft

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/chronik-go/chronik/internal/transport"
)

// A snapshot here is a description: index, term, configuration, and the state machine's words for what it holds. The follower
// fetches what it lacks (Stage), and only then steps the MsgSnap into raft, whose append makes log and state jump together.
// Every attempt ends in ReportSnapshot on the leader, also the ones nobody hears of again: without it raft would never send
// to that follower again (rule 13).

// snapshotPatience is how many ticks a leader waits without a word from a follower it has offered a snapshot.
const snapshotPatience = 50

// stagingWord is how often, in ticks, a follower that is staging says so.
const stagingWord = 5

type (
	raftProgress = tracker.Progress
	snapWord     byte
)

const (
	snapProgress snapWord = iota + 1
	snapDone
	snapFailed
)

// staging is a snapshot that a follower is fetching.
type staging struct {
	msg  raftpb.Message
	from Peer
}

// offered handles a MsgSnap on the follower.
func (r *Replica) offered(m raftpb.Message, node int32) {
	if m.Snapshot == nil {
		return
	}
	index := m.Snapshot.Metadata.Index
	if m.Term < r.hard.Term || index <= r.commit.Load() {
		r.step(m) // raft ignores it and says where this follower is
		return
	}
	if r.installing {
		return // one is becoming the state; raft says where this follower is once it has
	}
	if s := r.staging; s != nil && s.msg.Snapshot.Metadata.Index >= index && s.from.Replica == m.From {
		return // it is being fetched
	}
	s := &staging{msg: m, from: r.peer(m.From, node)}
	r.staging = s
	r.sm.Stage(*m.Snapshot, s.from, func(err error) {
		r.shard.post(event{r: r, kind: evFunc, fn: func() { r.staged(s, err) }})
	})
}

// staged ends an attempt on the follower.
func (r *Replica) staged(s *staging, err error) {
	if r.staging != s {
		// A newer offer took its place. The leader hears of that one: a word about this one would end it, and the leader would
		// offer again, for as long as there is traffic.
		return
	}
	r.staging = nil
	if err != nil {
		r.logger().Warn("catching up from the leader failed; it will offer again", "error", err)
		r.tell(s.from, snapFailed)
		return
	}
	r.step(s.msg)
	if !r.installing && r.rn.HasReady() {
		// At once: once raft has taken the snapshot, its configuration is in force, and nothing may come in between.
		r.ready(r.rn.Ready())
	}
	r.tell(s.from, snapDone)
}

func (r *Replica) tell(to Peer, w snapWord) { to.Send(transport.KindSnapStatus, []byte{byte(w)}) }

func (r *Replica) stagingTick() {
	if r.staging != nil && r.tickCount%stagingWord == 0 {
		r.tell(r.staging.from, snapProgress)
	}
}

// snapStatus handles a follower's word on the leader.
func (r *Replica) snapStatus(from uint64, body []byte) {
	if _, sending := r.snapSends[from]; !sending || len(body) != 1 {
		return
	}
	switch snapWord(body[0]) {
	case snapProgress:
		r.snapSends[from] = r.tickCount + snapshotPatience
	case snapDone:
		delete(r.snapSends, from)
		r.rn.ReportSnapshot(from, raft.SnapshotFinish)
	case snapFailed:
		delete(r.snapSends, from)
		r.rn.ReportSnapshot(from, raft.SnapshotFailure)
	}
}

func entryBytes(ents []raftpb.Entry) (n int64) {
	for i := range ents {
		n += int64(len(ents[i].Data))
	}
	return n
}
