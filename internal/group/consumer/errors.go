package consumer

import "errors"

// What a group answers. Match with errors.Is; the broker has the wire codes named here.
var (
	// ErrInvalidRequest: the request makes no sense (INVALID_REQUEST).
	ErrInvalidRequest = errors.New("the heartbeat can't be right")
	// ErrUnknownMember: the group has no such member (UNKNOWN_MEMBER_ID).
	ErrUnknownMember = errors.New("the group has no such member")
	// ErrFencedMemberEpoch: the member's epoch is not the one it should have; it must give up what it owns and join again
	// (FENCED_MEMBER_EPOCH).
	ErrFencedMemberEpoch = errors.New("the member's epoch is not the one known here; it must give up its partitions and join again")
	// ErrStaleMemberEpoch: a commit or fetch with another epoch than the member's (STALE_MEMBER_EPOCH).
	ErrStaleMemberEpoch = errors.New("the member's epoch is not the one known here")
	// ErrIllegalGeneration is ErrStaleMemberEpoch for a member by the classic protocol (ILLEGAL_GENERATION).
	ErrIllegalGeneration = errors.New("the generation is not the group's")
	// ErrUnreleasedInstance: the group.instance.id has a member that has not left (UNRELEASED_INSTANCE_ID).
	ErrUnreleasedInstance = errors.New("a member with this group.instance.id is still there")
	// ErrFencedInstance: another member has taken over the group.instance.id (FENCED_INSTANCE_ID).
	ErrFencedInstance = errors.New("another member has this group.instance.id")
	// ErrUnsupportedAssignor: not one of group.consumer.assignors (UNSUPPORTED_ASSIGNOR).
	ErrUnsupportedAssignor = errors.New("the assignor is not supported")
	// ErrInvalidRegularExpression: it does not compile (INVALID_REGULAR_EXPRESSION).
	ErrInvalidRegularExpression = errors.New("the regular expression is not one")
	// ErrGroupFull: the group has group.consumer.max.size members (GROUP_MAX_SIZE_REACHED).
	ErrGroupFull = errors.New("the group is full")
	// ErrInconsistentProtocol: a classic member shares no protocol with the group, or none can be read (INCONSISTENT_GROUP_PROTOCOL).
	ErrInconsistentProtocol = errors.New("the member shares no protocol with the group")
	// ErrRebalanceInProgress: a classic member must join again (REBALANCE_IN_PROGRESS).
	ErrRebalanceInProgress = errors.New("the group rebalances")
	// ErrUnsupportedVersion: the member must use a later version of the API (UNSUPPORTED_VERSION).
	ErrUnsupportedVersion = errors.New("a member of a consumer group must use a later version of this request")
)
