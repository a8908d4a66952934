package controller

import (
	"errors"
	"fmt"

	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// What a request can be refused for. Every error of this package that concerns a request matches one of these, or one of
// multiraft's (ErrUnknownOutcome, ErrOverloaded, ErrStopped); only package broker knows their numbers on Kafka's wire.
var (
	// ErrTopicExists: TOPIC_ALREADY_EXISTS (36).
	ErrTopicExists = errors.New("topic exists")
	// ErrInvalidTopic: a name Kafka does not allow, or one that collides with another: INVALID_TOPIC_EXCEPTION (17).
	ErrInvalidTopic = errors.New("invalid topic name")
	// ErrUnknownTopic: UNKNOWN_TOPIC_OR_PARTITION (3).
	ErrUnknownTopic = errors.New("unknown topic")
	// ErrUnknownTopicID: UNKNOWN_TOPIC_ID (100).
	ErrUnknownTopicID = errors.New("unknown topic id")
	// ErrInvalidPartitions: INVALID_PARTITIONS (37).
	ErrInvalidPartitions = errors.New("invalid number of partitions")
	// ErrInvalidReplicationFactor: INVALID_REPLICATION_FACTOR (38).
	ErrInvalidReplicationFactor = errors.New("invalid replication factor")
	// ErrInvalidAssignment: INVALID_REPLICA_ASSIGNMENT (39).
	ErrInvalidAssignment = errors.New("invalid replica assignment")
	// ErrInvalidConfig: INVALID_CONFIG (40).
	ErrInvalidConfig = errors.New("invalid configuration")
	// ErrInvalidRequest: INVALID_REQUEST (42).
	ErrInvalidRequest = errors.New("invalid request")
	// ErrPolicy: a limit of this cluster: POLICY_VIOLATION (44).
	ErrPolicy = errors.New("beyond a limit of this cluster")
	// ErrUnknownNode: a broker that never registered.
	ErrUnknownNode = errors.New("unknown node")
	// ErrNodeIdentity: the node id belongs to another data directory (design rules 5 and 6).
	ErrNodeIdentity = errors.New("node id belongs to another data directory")
	// ErrNoReassignment: NO_REASSIGNMENT_IN_PROGRESS (85).
	ErrNoReassignment = errors.New("no reassignment in progress")
	// ErrNoQuorum: too few sound replicas for a change of a partition's replicas.
	ErrNoQuorum = errors.New("no sound majority of replicas")
	// ErrNodeInUse: the node runs, or holds something that must go elsewhere first.
	ErrNodeInUse = errors.New("node in use")
	// ErrNoLeader: no leader of the metadata group answered in time; nothing was done. NOT_CONTROLLER or a timeout to clients.
	ErrNoLeader = errors.New("no leader of the metadata group answered in time")
	// ErrClosed: this node is stopping; nothing was done.
	ErrClosed = errors.New("controller closed")
	// ErrCorrupt: bytes that are not what they should be. See CorruptError.
	ErrCorrupt = errors.New("corrupt metadata")

	// errStale refuses a batch that was decided from another state than it meets.
	errStale = errors.New("decided from another state")
)

// kinds numbers the errors for the wire between nodes. Numbers are never reused.
var kinds = []error{
	1: ErrTopicExists, 2: ErrInvalidTopic, 3: ErrUnknownTopic, 4: ErrUnknownTopicID, 5: ErrInvalidPartitions,
	6: ErrInvalidReplicationFactor, 7: ErrInvalidAssignment, 8: ErrInvalidConfig, 9: ErrInvalidRequest, 10: ErrPolicy,
	11: ErrUnknownNode, 12: ErrNodeIdentity, 13: ErrNoReassignment, 14: ErrNoQuorum, 15: ErrNodeInUse,
}

// Error is a refusal: one of the kinds above and a message for a person. errors.Is matches the kind.
type Error struct {
	Kind error
	Msg  string
}

// Error implements error.
func (e *Error) Error() string { return e.Msg }

// Unwrap returns the kind.
func (e *Error) Unwrap() error { return e.Kind }

func refuse(kind error, format string, args ...any) *Error {
	return &Error{Kind: kind, Msg: fmt.Sprintf(format, args...)}
}

func (e *Error) proto() *controllerpb.Error {
	if e == nil {
		return nil
	}
	for i, k := range kinds {
		if k != nil && k == e.Kind {
			return &controllerpb.Error{Kind: int32(i), Message: e.Msg}
		}
	}
	return &controllerpb.Error{Message: e.Msg}
}

// fromProto turns a refusal of another node into an error; nil for nil. A kind this node does not know (a newer leader's)
// stays an error without a kind.
func fromProto(e *controllerpb.Error) error {
	if e == nil {
		return nil
	}
	if k := int(e.Kind); k > 0 && k < len(kinds) && kinds[k] != nil {
		return &Error{Kind: kinds[k], Msg: e.Message}
	}
	return &Error{Kind: ErrInvalidRequest, Msg: e.Message}
}

// CorruptError says what bytes of the metadata log or a snapshot of it were found damaged.
type CorruptError struct {
	What   string // "command", "image", "call"
	Index  uint64 // raft index, 0 if none
	Reason string
	Err    error
}

// Error implements error.
func (e *CorruptError) Error() string {
	s := "metadata " + e.What
	if e.Index != 0 {
		s += fmt.Sprintf(" at index %d", e.Index)
	}
	s += ": " + e.Reason
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptError) Unwrap() []error { return []error{ErrCorrupt, e.Err} }

// unknownOutcome wraps why nobody knows whether a request was carried out.
func unknownOutcome(cause error) error {
	if errors.Is(cause, multiraft.ErrUnknownOutcome) {
		return cause
	}
	return fmt.Errorf("%w: %w", multiraft.ErrUnknownOutcome, cause)
}
