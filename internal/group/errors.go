package group

import (
	"errors"

	"github.com/chronik-go/chronik/internal/group/consumer"
)

// What the coordinator answers, beside what package consumer has of consumer groups alone. Match with errors.Is; the broker has the
// wire codes named here.
var (
	// ErrNotCoordinator: another node leads the group's partition, or none does (NOT_COORDINATOR).
	ErrNotCoordinator = errors.New("this node does not coordinate the group")
	// ErrLoading: the group's partition is still being read (COORDINATOR_LOAD_IN_PROGRESS).
	ErrLoading = errors.New("the coordinator is still loading its groups")
	// ErrNotAvailable: no quorum, no room, or the group is being deleted; to be tried again (COORDINATOR_NOT_AVAILABLE).
	ErrNotAvailable = errors.New("the coordinator can't do this now")
	// ErrInvalidGroupID: an empty group id where there must be one (INVALID_GROUP_ID).
	ErrInvalidGroupID = errors.New("the group id is empty")
	// ErrUnknownMember: the group has no such member (UNKNOWN_MEMBER_ID).
	ErrUnknownMember = consumer.ErrUnknownMember
	// ErrIllegalGeneration: the member's generation is over (ILLEGAL_GENERATION).
	ErrIllegalGeneration = consumer.ErrIllegalGeneration
	// ErrInconsistentProtocol: the group goes by other protocols (INCONSISTENT_GROUP_PROTOCOL).
	ErrInconsistentProtocol = consumer.ErrInconsistentProtocol
	// ErrInvalidSessionTimeout: outside of group.min.session.timeout.ms and group.max.session.timeout.ms
	// (INVALID_SESSION_TIMEOUT).
	ErrInvalidSessionTimeout = errors.New("the session timeout is out of range")
	// ErrRebalanceInProgress: the member must join again (REBALANCE_IN_PROGRESS).
	ErrRebalanceInProgress = consumer.ErrRebalanceInProgress
	// ErrMemberIDRequired: the member must join again with the id it is given (MEMBER_ID_REQUIRED, KIP-394).
	ErrMemberIDRequired = errors.New("the member must join with the id it was given")
	// ErrFencedInstance: another member has taken over the group.instance.id (FENCED_INSTANCE_ID, KIP-345).
	ErrFencedInstance = consumer.ErrFencedInstance
	// ErrGroupFull: the group has group.max.size members (GROUP_MAX_SIZE_REACHED).
	ErrGroupFull = consumer.ErrGroupFull
	// ErrMetadataTooLarge: above offset.metadata.max.bytes (OFFSET_METADATA_TOO_LARGE).
	ErrMetadataTooLarge = errors.New("the offset's metadata is too large")
	// ErrCommitTooLarge: the commit does not fit into one batch (INVALID_COMMIT_OFFSET_SIZE).
	ErrCommitTooLarge = errors.New("the commit is too large")
	// ErrGroupTooLarge: the group's metadata does not fit into one batch (UNKNOWN_SERVER_ERROR, as Kafka has it).
	ErrGroupTooLarge = errors.New("the group's metadata is too large for __consumer_offsets' max.message.bytes")
	// ErrGroupNotFound: there is no such group (GROUP_ID_NOT_FOUND).
	ErrGroupNotFound = errors.New("there is no such group")
	// ErrNonEmptyGroup: the group has members (NON_EMPTY_GROUP).
	ErrNonEmptyGroup = errors.New("the group is not empty")
	// ErrSubscribed: a member of the group subscribes to the topic (GROUP_SUBSCRIBED_TO_TOPIC).
	ErrSubscribed = errors.New("the group subscribes to the topic")
)
