package transport

import (
	"context"

	"go.etcd.io/raft/v3/raftpb"
)

// Kind says what an Envelope carries.
type Kind uint8

const (
	// KindRaft carries a raft message in Envelope.Raft.
	KindRaft Kind = iota + 1
	// KindSnapStatus tells a leader how a snapshot it offered fares (multiraft).
	KindSnapStatus
	// KindDeltaRequest asks a leader for a range of segment bytes (partition).
	KindDeltaRequest
	// KindDeltaChunk answers a KindDeltaRequest.
	KindDeltaChunk
	// KindLeaders gossips (group, term, leader) triples; Group is 0.
	KindLeaders
	// KindFitness tells the other replicas of a group that the sender should not lead (multiraft).
	KindFitness
	// KindProof carries sums of the applied log between a group's leader and its followers (partition).
	KindProof
	// KindAllowance asks a learner what it may be sent, and answers (multiraft).
	KindAllowance
)

// Envelope is one message between two replicas of a group, or between two nodes (Group 0).
//
// From and To are replica ids, which the controller never hands out twice: a receiver drops what is not addressed to the
// replica it hosts. Entry data in Raft and Body are owned by the receiver once delivered and must not be changed by the
// sender after Send: raft, the WAL cache and the applier may hold the same bytes.
type Envelope struct {
	Kind     Kind
	Group    uint64
	From, To uint64
	Raft     raftpb.Message // KindRaft only; its From and To equal the envelope's
	Body     []byte         // every other kind; opaque to the transport
}

// Handler receives what peers send. Its methods are called from transport goroutines, one at a time for each peer and
// stream, in the order sent; HandleEnvelopes and the peer events must not block.
type Handler interface {
	// HandleEnvelopes takes a frame's messages. The slice is the handler's until it returns; what the envelopes refer to is
	// the handler's for good.
	HandleEnvelopes(from int32, envs []Envelope)
	// HandleDropped says that messages to a peer were dropped (outbox full, stream broken): once per burst and group, so
	// that raft's view of that follower can be reset (ReportUnreachable). Group and To name the replica that missed them;
	// snapshot is true when a MsgSnap was among them.
	HandleDropped(peer int32, group, to uint64, snapshot bool)
	// HandlePeerUp and HandlePeerDown report a change of connectivity.
	HandlePeerUp(peer int32)
	HandlePeerDown(peer int32)
	// HandleCall answers a unary request from a peer (bounded by ctx). method is the caller's own numbering.
	HandleCall(ctx context.Context, from int32, method uint16, body []byte) ([]byte, error)
	// HandleForward takes one request of an ordered forward stream. It is called in the order sent and must not block: it
	// enqueues, and calls reply exactly once, from anywhere, at any later time. body is the handler's for good.
	HandleForward(from int32, method uint16, body []byte, reply func(body []byte, err error))
}
