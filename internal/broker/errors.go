package broker

import (
	"context"
	"errors"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/group/consumer"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
)

// CodedError is an error that knows its Kafka code: for refusals that the broker itself finds.
type CodedError struct {
	Kafka   *kerr.Error
	Message string // for a person; may be empty
}

// Error implements error.
func (e *CodedError) Error() string {
	if e.Message == "" {
		return e.Kafka.Error()
	}
	return e.Message
}

// Unwrap gives the *kerr.Error.
func (e *CodedError) Unwrap() error { return e.Kafka }

// coded makes a CodedError.
func coded(k *kerr.Error, message string) error { return &CodedError{Kafka: k, Message: message} }

// codes maps the Go errors of the packages below to Kafka's, first match wins. This is the only place that does.
var codes = []struct {
	err  error
	code *kerr.Error
}{
	// Its fate is unknown: a retriable code that an idempotent producer answers by sending the same sequence again. First of all:
	// such an error also names what it failed of, and that must not pass for a promise that nothing was done.
	{multiraft.ErrUnknownOutcome, kerr.RequestTimedOut},
	{partition.ErrCorrupt, kerr.CorruptMessage},
	{partition.ErrRecordTooLarge, kerr.MessageTooLarge},
	{partition.ErrInvalidTimestamp, kerr.InvalidTimestamp},
	{partition.ErrInvalidRecord, kerr.InvalidRecord},
	{partition.ErrOutOfOrderSequence, kerr.OutOfOrderSequenceNumber},
	{partition.ErrInvalidProducerEpoch, kerr.InvalidProducerEpoch},
	{partition.ErrStorage, kerr.KafkaStorageError},
	{partition.ErrFencedLeaderEpoch, kerr.FencedLeaderEpoch},
	{partition.ErrUnknownLeaderEpoch, kerr.UnknownLeaderEpoch},
	{partition.ErrOffsetOutOfRange, kerr.OffsetOutOfRange},
	{partition.ErrOffsetNotAvailable, kerr.OffsetNotAvailable},
	{partition.ErrUnsupportedTimestamp, kerr.UnsupportedVersion},
	{partition.ErrPolicy, kerr.PolicyViolation},
	{partition.ErrDamaged, kerr.KafkaStorageError},
	{partition.ErrUnknownPartition, kerr.UnknownTopicOrPartition},

	{controller.ErrTopicExists, kerr.TopicAlreadyExists},
	{controller.ErrInvalidTopic, kerr.InvalidTopicException},
	{controller.ErrUnknownTopic, kerr.UnknownTopicOrPartition},
	{controller.ErrUnknownTopicID, kerr.UnknownTopicID},
	{controller.ErrInvalidPartitions, kerr.InvalidPartitions},
	{controller.ErrInvalidReplicationFactor, kerr.InvalidReplicationFactor},
	{controller.ErrInvalidAssignment, kerr.InvalidReplicaAssignment},
	{controller.ErrInvalidConfig, kerr.InvalidConfig},
	{controller.ErrInvalidRequest, kerr.InvalidRequest},
	{controller.ErrPolicy, kerr.PolicyViolation},
	{controller.ErrUnknownNode, kerr.InvalidRequest},
	{controller.ErrNoReassignment, kerr.NoReassignmentInProgress},
	{controller.ErrNodeInUse, kerr.PolicyViolation},
	{controller.ErrNoQuorum, kerr.NotEnoughReplicas},
	{controller.ErrNodeIdentity, kerr.DuplicateBrokerRegistration},
	// Never NOT_CONTROLLER: any node takes an admin request, so another node would be no better.
	{controller.ErrNoLeader, kerr.RequestTimedOut},
	{controller.ErrClosed, kerr.RequestTimedOut},

	{group.ErrNotCoordinator, kerr.NotCoordinator},
	{group.ErrLoading, kerr.CoordinatorLoadInProgress},
	{group.ErrNotAvailable, kerr.CoordinatorNotAvailable},
	{group.ErrInvalidGroupID, kerr.InvalidGroupID},
	{group.ErrUnknownMember, kerr.UnknownMemberID},
	{group.ErrIllegalGeneration, kerr.IllegalGeneration},
	{group.ErrInconsistentProtocol, kerr.InconsistentGroupProtocol},
	{group.ErrInvalidSessionTimeout, kerr.InvalidSessionTimeout},
	{group.ErrRebalanceInProgress, kerr.RebalanceInProgress},
	{group.ErrMemberIDRequired, kerr.MemberIDRequired},
	{group.ErrFencedInstance, kerr.FencedInstanceID},
	{group.ErrGroupFull, kerr.GroupMaxSizeReached},
	{group.ErrMetadataTooLarge, kerr.OffsetMetadataTooLarge},
	{group.ErrCommitTooLarge, kerr.InvalidCommitOffsetSize},
	{group.ErrGroupTooLarge, kerr.UnknownServerError},
	{group.ErrGroupNotFound, kerr.GroupIDNotFound},
	{group.ErrNonEmptyGroup, kerr.NonEmptyGroup},
	{group.ErrSubscribed, kerr.GroupSubscribedToTopic},
	{consumer.ErrInvalidRequest, kerr.InvalidRequest},
	{consumer.ErrFencedMemberEpoch, kerr.FencedMemberEpoch},
	{consumer.ErrStaleMemberEpoch, kerr.StaleMemberEpoch},
	{consumer.ErrUnreleasedInstance, kerr.UnreleasedInstanceID},
	{consumer.ErrUnsupportedAssignor, kerr.UnsupportedAssignor},
	{consumer.ErrInvalidRegularExpression, kerr.InvalidRegularExpression},
	{consumer.ErrUnsupportedVersion, kerr.UnsupportedVersion},

	{multiraft.ErrNotLeader, kerr.NotLeaderForPartition},
	// Certainly not in the log. NOT_ENOUGH_REPLICAS is what clients retry without a metadata storm.
	{multiraft.ErrOverloaded, kerr.NotEnoughReplicas},
	{multiraft.ErrStopped, kerr.NotLeaderForPartition},
	{multiraft.ErrFenced, kerr.KafkaStorageError},
	{context.DeadlineExceeded, kerr.RequestTimedOut},
	{context.Canceled, kerr.RequestTimedOut},
}

// ErrorOf finds the Kafka error for err: nil for nil, the error it wraps, what the table says, else UNKNOWN_SERVER_ERROR.
func ErrorOf(err error) *kerr.Error {
	if err == nil {
		return nil
	}
	var k *kerr.Error
	if errors.As(err, &k) {
		return k
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return kerr.UnknownServerError
}

// CodeOf is ErrorOf as the wire has it, 0 for nil.
func CodeOf(err error) int16 {
	if k := ErrorOf(err); k != nil {
		return k.Code
	}
	return 0
}

// maxMessage bounds the message of an error, which may repeat what a client has sent.
const maxMessage = 4 << 10

// MessageOf is the message for a person that goes with CodeOf; nil for nil.
func MessageOf(err error) *string {
	if err == nil {
		return nil
	}
	s := err.Error()
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "..."
	}
	return &s
}
