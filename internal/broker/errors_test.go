package broker

import (
	"errors"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/chronik-go/chronik/internal/multiraft"
)

// What may have been done is never answered with a code that says it was not, whatever the last attempt failed of (found by the
// simulator: CreateTopics was answered NOT_LEADER_OR_FOLLOWER, and the topic was there).
func TestUnknownOutcomeComesBeforeItsCause(t *testing.T) {
	err := fmt.Errorf("asking node 2: %w: %w", multiraft.ErrUnknownOutcome, errors.Join(&multiraft.NotLeaderError{LeaderNode: 3}, multiraft.ErrOverloaded))
	if got := ErrorOf(err); got != kerr.RequestTimedOut {
		t.Errorf("answered %v", got)
	}
}
