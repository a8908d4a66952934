package multiraft

import (
	"encoding/binary"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/chronik-go/chronik/internal/transport"
)

// What replicas that catch up may cost is bounded by replication throttles (KIP-73, package throttle). Most of it is the state
// machine's (a delta); this file is about the entries of the log that follow.
//
// Only learners are throttled: nothing that is acknowledged waits for them. What of an append the leader's budget does not allow is
// not sent, and raft is told that it was lost, so that it tries again with the follower's next word. For the receiver's budget,
// which senders on many nodes share, the leader asks: the learner takes the bytes out of its budget and sends an allowance, once
// there is room. Appends to voters pass in any case, from the moment at which the leader has made them voters.

// maxAllowance bounds what one allowance is for.
const maxAllowance = 16 << 20

// askPatience is how many ticks a leader waits for an answer before it asks again.
const askPatience = 10

// allowance is what a leader may send to a learner.
type allowance struct {
	left int64  // bytes; negative after an append that was larger
	til  uint64 // the tick until which an answer is waited for
}

// asked is what this learner's leader would like to send. bytes 0: nothing.
type asked struct {
	by    Peer
	bytes int64
}

const (
	allowanceSize = 9
	askWord       = 1
	grantWord     = 2
)

func allowanceBody(word byte, bytes int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{word}, uint64(bytes))
}

// fit cuts an append down to what the budgets allow now, and takes that out of them. What is left may be nothing at all: then
// send is false. whole says that nothing was cut off.
func (r *Replica) fit(m *raftpb.Message, node int32) (send, whole bool) {
	t := r.svc.cfg.Throttle
	if t == nil || m.Type != raftpb.MsgApp || len(m.Entries) == 0 {
		return true, true
	}
	if cs := r.confs.last(); !slices.Contains(cs.Learners, m.To) {
		return true, true
	}
	sends, receives := t.Sends(r.topic, r.partition), t.Receives(r.topic, r.partition, node)
	if sends && t.Leader.Wait(r.svc.cfg.Clock.Now()) > 0 {
		return false, false
	}
	most := r.svc.cfg.MaxEntryBytes
	if sends {
		most = t.Leader.Piece(most)
	}
	a := r.allowances[m.To]
	if receives {
		if a.left <= 0 {
			if r.tickCount >= a.til {
				a.til = r.tickCount + askPatience
				r.allow(m.To, a)
				ask := min(int64(most), entryBytes(m.Entries)) - a.left
				r.peer(m.To, node).Send(transport.KindAllowance, allowanceBody(askWord, max(1, min(ask, maxAllowance))))
			}
			return false, false
		}
		most = int(min(int64(most), a.left))
	}
	n, size := 0, 0
	for n < len(m.Entries) && (n == 0 || size+len(m.Entries[n].Data) <= most) {
		size += len(m.Entries[n].Data)
		n++
	}
	whole = n == len(m.Entries)
	m.Entries = m.Entries[:n:n]
	if receives {
		a.left -= int64(size)
		r.allow(m.To, a)
	}
	if sends {
		t.Leader.Spend(size)
	}
	return true, whole
}

func (r *Replica) allow(to uint64, a allowance) {
	if r.allowances == nil {
		r.allowances = make(map[uint64]allowance)
	}
	r.allowances[to] = a
}

// allowanceWord handles a leader's question, and a learner's answer.
func (r *Replica) allowanceWord(from Peer, body []byte) {
	if len(body) != allowanceSize {
		return
	}
	bytes := int64(binary.BigEndian.Uint64(body[1:]))
	if bytes <= 0 || bytes > maxAllowance {
		return
	}
	switch body[0] {
	case askWord:
		r.asked = asked{by: from, bytes: bytes}
		r.grant()
	case grantWord:
		cs := r.confs.last()
		if !r.view.Load().isLeader || !slices.Contains(cs.Learners, from.Replica) {
			return
		}
		a := r.allowances[from.Replica]
		a.left, a.til = min(a.left+bytes, 2*maxAllowance), 0
		r.allow(from.Replica, a)
		r.goOn(from.Replica)
	}
}

// grant answers what this learner was asked, once its budget has room. It is tried again at every tick.
func (r *Replica) grant() {
	if r.asked.bytes == 0 {
		return
	}
	if t := r.svc.cfg.Throttle; t.Receives(r.topic, r.partition, r.svc.cfg.NodeID) {
		if t.Follower.Wait(r.svc.cfg.Clock.Now()) > 0 {
			return
		}
		r.asked.bytes = int64(t.Follower.Piece(int(r.asked.bytes)))
		t.Follower.Spend(int(r.asked.bytes))
	}
	r.asked.by.Send(transport.KindAllowance, allowanceBody(grantWord, r.asked.bytes))
	r.asked = asked{}
}

// goOn makes raft try again to send to a follower, as nudge does.
func (r *Replica) goOn(to uint64) {
	active := false
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr raftProgress) {
		active = active || id == to && pr.RecentActive && pr.State != tracker.StateSnapshot
	})
	if active {
		r.step(raftpb.Message{Type: raftpb.MsgHeartbeatResp, From: to, To: r.id, Term: r.view.Load().term})
	}
}

// spare says whether nothing that is acknowledged waits for a replica, as the group's leader sees it: it does not vote, or the group
// commits without it.
func (r *Replica) spare(id uint64) bool {
	if !r.view.Load().isLeader {
		return false
	}
	cs := r.confs.last()
	if slices.Contains(cs.Learners, id) {
		return true
	}
	last, _ := r.store.LastIndex()
	up := map[uint64]bool{r.id: true}
	r.rn.WithProgress(func(x uint64, _ raft.ProgressType, pr raftProgress) {
		// Raft forgets now and then who is active; who has everything need not be, until there is more.
		if x != id && pr.State == tracker.StateReplicate && (pr.RecentActive || pr.Match >= last) {
			up[x] = true
		}
	})
	for _, voters := range [][]uint64{cs.Voters, cs.VotersOutgoing} {
		n := 0
		for _, v := range voters {
			if up[v] && v != id {
				n++
			}
		}
		if len(voters) > 0 && n <= len(voters)/2 {
			return false
		}
	}
	return true
}
