package partition

import (
	"errors"
	"fmt"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
)

// What Produce, Fetch and the offset lookups answer, beside multiraft's errors. Match with errors.Is; only the broker knows
// the wire codes named here.
var (
	// ErrCorrupt: the batch's CRC or framing is wrong (CORRUPT_MESSAGE).
	ErrCorrupt = record.ErrCorrupt
	// ErrInvalidRecord: not exactly one batch of version 2, or a batch a client may not send (INVALID_RECORD).
	ErrInvalidRecord = errors.New("invalid record batch")
	// ErrRecordTooLarge: the batch exceeds max.message.bytes (MESSAGE_TOO_LARGE; makes Java split it).
	ErrRecordTooLarge = errors.New("record batch too large")
	// ErrInvalidTimestamp: a record's time is outside what the topic admits (INVALID_TIMESTAMP, with record errors).
	ErrInvalidTimestamp = errors.New("invalid timestamp")
	// ErrOutOfOrderSequence: a gap, or something older than the last five batches (OUT_OF_ORDER_SEQUENCE_NUMBER).
	ErrOutOfOrderSequence = errors.New("out of order sequence number")
	// ErrInvalidProducerEpoch: a newer instance of the producer has written (INVALID_PRODUCER_EPOCH).
	ErrInvalidProducerEpoch = errors.New("producer epoch is fenced")
	// ErrStorage: the disk is nearly full or failed; the batch is not in the log (KAFKA_STORAGE_ERROR).
	ErrStorage = errors.New("storage refuses")
	// ErrFencedLeaderEpoch: the client knows an older leader epoch than this replica (FENCED_LEADER_EPOCH).
	ErrFencedLeaderEpoch = errors.New("leader epoch is fenced")
	// ErrUnknownLeaderEpoch: the client knows a newer leader epoch than this replica (UNKNOWN_LEADER_EPOCH).
	ErrUnknownLeaderEpoch = errors.New("leader epoch is not known yet")
	// ErrOffsetOutOfRange matches every *OffsetOutOfRangeError.
	ErrOffsetOutOfRange = errors.New("offset out of range")
	// ErrOffsetNotAvailable: this follower has not got that far (OFFSET_NOT_AVAILABLE; the client tries again).
	ErrOffsetNotAvailable = errors.New("offset not available yet")
	// ErrUnsupportedTimestamp: a special timestamp nobody has defined (UNSUPPORTED_VERSION).
	ErrUnsupportedTimestamp = errors.New("unsupported special timestamp")
	// ErrPolicy: a topic that is compacted and nothing else does not give up records on demand (POLICY_VIOLATION).
	ErrPolicy = errors.New("records of a topic whose cleanup.policy is compact can't be deleted; set it to compact,delete first")
	// ErrDamaged: what is on disk contradicts the log's checkpoint; the replica must be replaced.
	ErrDamaged = errors.New("partition data damaged")
	// ErrUnknownPartition: there is no such partition on this node, or no longer.
	ErrUnknownPartition = errors.New("unknown partition")
)

var (
	errProposal   = errors.New("partition: proposal of an unknown type")
	errSuperseded = errors.New("partition: a newer snapshot is fetched instead")
	errNoProgress = errors.New("partition: the leader sent nothing for too long")
	errCommand    = errors.New("partition: malformed command")
	errState      = errors.New("partition: malformed state")
	errDelta      = errors.New("partition: malformed delta message")
)

// OffsetOutOfRangeError says what the range is: Start inclusive, End exclusive for records (a fetch at End waits for more).
type OffsetOutOfRangeError struct{ Offset, Start, End int64 }

// Error implements error.
func (e *OffsetOutOfRangeError) Error() string {
	return fmt.Sprintf("offset %d is outside of the log, which goes from %d to %d", e.Offset, e.Start, e.End)
}

// Is makes errors.Is(err, ErrOffsetOutOfRange) true.
func (e *OffsetOutOfRangeError) Is(target error) bool { return target == ErrOffsetOutOfRange }

// RecordErrors is ErrInvalidTimestamp or ErrInvalidRecord with the records that are to blame (KIP-467).
type RecordErrors struct {
	Err     error
	Records []RecordError
}

// RecordError blames one record of a batch.
type RecordError struct {
	Index   int32 // position within the batch, from 0
	Message string
}

// Error implements error.
func (e *RecordErrors) Error() string {
	if len(e.Records) == 0 {
		return e.Err.Error()
	}
	return fmt.Sprintf("%v: record %d: %s", e.Err, e.Records[0].Index, e.Records[0].Message)
}

// Unwrap returns the kind of refusal.
func (e *RecordErrors) Unwrap() error { return e.Err }

// DamagedError says what contradicts what in a partition's files. It matches ErrDamaged and multiraft.ErrFenced.
type DamagedError struct {
	Dir    string
	Offset int64
	Reason string
}

// Error implements error.
func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s is damaged at offset %d: %s; this replica takes no part until it is replaced under a new replica id", e.Dir, e.Offset, e.Reason)
}

// Is matches ErrDamaged and multiraft.ErrFenced.
func (e *DamagedError) Is(target error) bool {
	return target == ErrDamaged || target == multiraft.ErrFenced
}
