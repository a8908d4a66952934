package multiraft

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/transport"
)

// StateMachine is what a Raft group drives: a topic partition, or the cluster's metadata.
//
// Two callers reach it, one call of each at a time: the group's shard (Prepare, Abort, LeaderReady, LeaderLost, Snapshot,
// Stage, Receive) and the group's applier (Apply, Install, and Close at the end). They run side by side, so an
// implementation guards what they share. Nothing called by the shard may block on a disk, a network or another group.
type StateMachine interface {
	// Prepare turns a prefix of props into the data of one log entry. It is called only while the replica leads term and the
	// term's no-op has been applied. It decides everything there is to decide (offsets, duplicates, time), against applied
	// state plus what it prepared before in this term. It takes at least one proposal, stays within maxBytes unless the first
	// alone is larger, and calls Done itself on taken proposals that need no entry (refused, or answered from state).
	//
	// data nil: nothing to propose. bound lists the proposals that the entry carries: their Done is called when the entry's
	// fate is known; it may be a part of props. taken counts all proposals consumed.
	Prepare(term uint64, props []Proposal, maxBytes int) (data []byte, bound []Proposal, taken int)
	// Abort undoes the last Prepare: raft did not take its entry. bound proposals are offered again later or failed.
	Abort()
	// Apply applies committed entries, in log order, without gaps. Entries without data (a term's no-op, configuration
	// changes) are included, so that applied index and term can be kept. Apply reads no clock and no configuration. An error
	// fences the group (it stops, loudly); it is for damage, never for a refused command.
	Apply(entries []raftpb.Entry) error
	// LeaderReady says that this replica leads term and has applied the term's no-op: it may serve and prepare.
	LeaderReady(term uint64)
	// LeaderLost says that the replica no longer leads term. Whatever was prepared and not applied is void for deciding.
	LeaderLost(term uint64)
	// Snapshot describes the applied state, for a follower that the log no longer reaches: index and term of the last applied
	// entry, and data that Stage and Install understand. It must be quick.
	Snapshot() (index, term uint64, data []byte, err error)
	// Stage fetches what a snapshot describes and makes it durable, without making it visible; done is called once, from
	// anywhere. A newer Stage replaces an older one (whose done is called with an error). source sends to the leader's replica.
	Stage(snap raftpb.Snapshot, source Peer, done func(error))
	// Install makes a staged snapshot the state. The log's snapshot mark is durable already: after a crash the replica comes
	// back with the state at this snapshot.
	Install(snap raftpb.Snapshot) error
	// Receive takes a message of one of the state machine's own kinds (delta request and chunk) from a replica of the group.
	Receive(env transport.Envelope, from Peer)
	// Close releases what the state machine holds. No other call follows.
	Close() error
}

// Proposal is something a caller wants in a group's log.
type Proposal interface {
	// Size is the bytes it will add to an entry.
	Size() int
	// Done is called exactly once: nil when the entry was applied here, else an error matching ErrNotLeader (it is certainly
	// not in the log), ErrUnknownOutcome (it may be), or what Prepare found. It must not block.
	Done(err error)
}

// Peer names a replica of a group on another node and sends to it.
type Peer struct {
	Node    int32
	Group   uint64
	Self    uint64 // this side's replica id
	Replica uint64 // the other side's
	// Spare says, of who sends a delta request, that this side leads and commits without it: what it is sent may be throttled.
	Spare  bool
	sender Sender
}

// Send sends a message of kind to the peer. It may be lost.
func (p Peer) Send(kind transport.Kind, body []byte) {
	p.sender.Send(p.Node, transport.Envelope{Kind: kind, Group: p.Group, From: p.Self, To: p.Replica, Body: body})
}

// NewPeer is for tests and simulators that drive a StateMachine without a Service.
func NewPeer(node int32, group, self, replica uint64, s Sender) Peer {
	return Peer{Node: node, Group: group, Self: self, Replica: replica, sender: s}
}

// Sender sends envelopes to nodes: transport.Client, or a simulated network. Send never blocks; what can't be sent is
// dropped and reported through Service.HandleDropped.
type Sender interface {
	Send(node int32, env transport.Envelope)
}

var (
	// ErrNotLeader matches every error that says: this replica does not lead, the proposal is not in the log.
	ErrNotLeader = errors.New("not the leader")
	// ErrUnknownOutcome says that a proposal may or may not be in the log, for good.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrOverloaded says that the group's queue is full; the proposal is not in the log.
	ErrOverloaded = errors.New("too many bytes in flight")
	// ErrStopped says that the replica or the node is stopping; the proposal is not in the log.
	ErrStopped = errors.New("stopped")
	// ErrFenced says that the replica was fenced after damage or a violated invariant.
	ErrFenced = errors.New("replica fenced")
)

// NotLeaderError is ErrNotLeader with what is known of the leader.
type NotLeaderError struct {
	Group      uint64
	Term       uint64
	LeaderNode int32 // -1 when unknown
}

// Error implements error.
func (e *NotLeaderError) Error() string {
	if e.LeaderNode < 0 {
		return fmt.Sprintf("not the leader of group %d (term %d, leader unknown)", e.Group, e.Term)
	}
	return fmt.Sprintf("not the leader of group %d (term %d): node %d is", e.Group, e.Term, e.LeaderNode)
}

// Is makes errors.Is(err, ErrNotLeader) true.
func (e *NotLeaderError) Is(target error) bool { return target == ErrNotLeader }

// Member is a replica's place.
type Member struct {
	Replica uint64
	Node    int32
}

// Status is a replica's published state: a snapshot, read without locks.
type Status struct {
	Term       uint64
	Commit     uint64
	Applied    uint64
	Leader     uint64 // replica id, 0 when unknown
	LeaderNode int32  // -1 when unknown
	IsLeader   bool
	// Ready is IsLeader and the term's no-op applied: the replica may serve.
	Ready bool
}
