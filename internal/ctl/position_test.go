package ctl

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

func TestPositions(t *testing.T) {
	now := time.UnixMilli(10_000_000)
	for text, want := range map[string]int64{ // in a partition from 100 to 200, where 150 is the first record at or after any time
		"start": 100, "earliest": 100, "end": 200, "latest": 200, "120": 120, "7": 100, "5000": 200,
		"+10": 110, "+1000": 200, "-10": 190, "-1000": 100, "@9000": 150, "1h": 150, "-2h30m": 150, "1970-01-01T00:00:05Z": 150,
	} {
		p, err := parsePosition(text, now)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := p.in(100, 200, 150); got != want {
			t.Errorf("%s is %d, want %d", text, got, want)
		}
	}
	if p, _ := parsePosition("@1", now); p.in(100, 200, -1) != 200 {
		t.Error("a time after all records is the end")
	}
	if p, _ := parsePosition("1h", now); p.milli != 10_000_000-3_600_000 {
		t.Errorf("an hour ago is %d", p.milli)
	}
	for _, text := range []string{"", "yesterday", "@x", "@-5", "1.5", "+x"} {
		if _, err := parsePosition(text, now); err == nil {
			t.Errorf("%q passed for a position", text)
		}
	}
}

// TestOffsetsAreAskedForUntilThereIsALeader: right after a start a partition may have none for a moment; what does not pass is told at once.
func TestOffsetsAreAskedForUntilThereIsALeader(t *testing.T) {
	for name, tc := range map[string]struct {
		errs  []error
		asked int
	}{
		"no leader at first":      {[]error{kerr.LeaderNotAvailable, kerr.NotLeaderForPartition, nil}, 3},
		"what does not pass":      {[]error{kerr.TopicAuthorizationFailed, nil}, 1},
		"known at the first call": {[]error{nil}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			listed, err := settled(t.Context(), time.Hour, func() (kadm.ListedOffsets, error) {
				asked++
				return kadm.ListedOffsets{"t": {0: {Topic: "t", Offset: 7, Err: tc.errs[asked-1]}}}, nil
			})
			if o, _ := listed.Lookup("t", 0); err != nil || asked != tc.asked || o.Err != tc.errs[asked-1] {
				t.Errorf("asked %d times: %+v, %v", asked, listed, err)
			}
		})
	}
}
