package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

const positionHelp = `A position is: start, end, an offset (1234), so many records after the start (+100) or before the end (-100), ` +
	`a time (2026-01-31T12:00:00Z, @1769860800000 in milliseconds) or a time ago (1h30m)`

// position is a place in a partition, to be looked up.
type position struct {
	kind   positionKind
	offset int64
	milli  int64
}

type positionKind uint8

const (
	atStart positionKind = iota + 1
	atEnd
	atOffset
	afterStart
	beforeEnd
	atTime
)

// parsePosition reads what positionHelp describes. now is for a time ago.
func parsePosition(text string, now time.Time) (position, error) {
	switch text {
	case "start", "earliest", "beginning":
		return position{kind: atStart}, nil
	case "end", "latest":
		return position{kind: atEnd}, nil
	case "":
		return position{}, errors.New("a position is missing. " + positionHelp)
	}
	if ms, ok := strings.CutPrefix(text, "@"); ok {
		n, err := strconv.ParseInt(ms, 10, 64)
		if err != nil || n < 0 {
			return position{}, fmt.Errorf("%q is no time in milliseconds. %s", text, positionHelp)
		}
		return position{kind: atTime, milli: n}, nil
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		switch {
		case text[0] == '+':
			return position{kind: afterStart, offset: n}, nil
		case text[0] == '-':
			return position{kind: beforeEnd, offset: -n}, nil
		}
		return position{kind: atOffset, offset: n}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return position{kind: atTime, milli: t.UnixMilli()}, nil
	}
	if d, err := time.ParseDuration(strings.TrimPrefix(text, "-")); err == nil {
		return position{kind: atTime, milli: now.Add(-d).UnixMilli()}, nil
	}
	return position{}, fmt.Errorf("%q is no position. %s", text, positionHelp)
}

// in places a position between a partition's start and end. later is the offset of the first record at or after the position's time,
// -1 if there is none.
func (p position) in(start, end, later int64) int64 {
	var at int64
	switch p.kind {
	case atStart:
		at = start
	case atEnd:
		at = end
	case atOffset:
		at = p.offset
	case afterStart:
		at = start + p.offset
	case beforeEnd:
		at = end - p.offset
	case atTime:
		if at = later; later < 0 {
			at = end
		}
	}
	return min(max(at, start), end)
}

// leaderWait is how long offsets are asked for again while partitions have no leader: nodes start, and leaders die. Of a topic that was
// made a moment ago a node may not know yet: topicWait is for that.
const (
	leaderWait = 5 * time.Second
	topicWait  = time.Second
)

// settled lists offsets, again while some are not known for a reason that passes. What is not known after patience says so itself.
func settled(ctx context.Context, patience time.Duration, list func() (kadm.ListedOffsets, error)) (kadm.ListedOffsets, error) {
	for began := time.Now(); ; {
		listed, err := list()
		passes, wait := false, patience
		listed.Each(func(o kadm.ListedOffset) {
			passes = passes || kerr.IsRetriable(o.Err)
			if o.Partition < 0 { // of the topic
				wait = min(patience, topicWait)
			}
		})
		if err != nil || !passes || time.Since(began) > wait {
			return listed, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// resolve looks a position up in the partitions of a topic, all of them unless some are named.
func (s *session) resolve(ctx context.Context, topic, text string, partitions []int32) (kadm.Offsets, error) {
	pos, err := parsePosition(text, time.Now())
	if err != nil {
		return nil, err
	}
	starts, err := settled(ctx, leaderWait, func() (kadm.ListedOffsets, error) { return s.admin.ListStartOffsets(ctx, topic) })
	if err != nil {
		return nil, err
	}
	if o, ok := starts.Lookup(topic, -1); ok && o.Err != nil {
		return nil, fmt.Errorf("%s: %w", topic, o.Err)
	}
	ends, err := settled(ctx, leaderWait, func() (kadm.ListedOffsets, error) { return s.admin.ListEndOffsets(ctx, topic) })
	if err != nil {
		return nil, err
	}
	later := kadm.ListedOffsets{}
	if pos.kind == atTime {
		if later, err = settled(ctx, leaderWait, func() (kadm.ListedOffsets, error) { return s.admin.ListOffsetsAfterMilli(ctx, pos.milli, topic) }); err != nil {
			return nil, err
		}
	}
	out := kadm.Offsets{}
	var errs []error
	known := map[int32]bool{}
	starts.Each(func(st kadm.ListedOffset) {
		known[st.Partition] = true
		if len(partitions) > 0 && !slices.Contains(partitions, st.Partition) {
			return
		}
		end, ok := ends.Lookup(topic, st.Partition)
		if err := errors.Join(st.Err, end.Err); err != nil || !ok {
			errs = append(errs, fmt.Errorf("%s-%d: its offsets are not known now: %w", topic, st.Partition, err))
			return
		}
		after := int64(-1)
		if l, ok := later.Lookup(topic, st.Partition); ok && l.Err == nil {
			after = l.Offset
		}
		out.AddOffset(topic, st.Partition, pos.in(st.Offset, end.Offset, after), -1)
	})
	for _, p := range partitions {
		if !known[p] {
			errs = append(errs, fmt.Errorf("%s has no partition %d", topic, p))
		}
	}
	return out, errors.Join(errs...)
}
