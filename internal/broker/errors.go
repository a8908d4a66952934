package broker

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/chronik-go/chronik/internal/multiraft"
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
	{multiraft.ErrNotLeader, kerr.NotLeaderForPartition},
	// Its fate is unknown: a retriable code that an idempotent producer answers by sending the same sequence again.
	{multiraft.ErrUnknownOutcome, kerr.RequestTimedOut},
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

// MessageOf is the message for a person that goes with CodeOf; nil for nil.
func MessageOf(err error) *string {
	if err == nil {
		return nil
	}
	s := err.Error()
	return &s
}
