package partition

import (
	"context"
	"fmt"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
)

// Kafka's special timestamps of ListOffsets.
const (
	TimestampLatest        = -1
	TimestampEarliest      = -2
	TimestampMax           = -3
	TimestampEarliestLocal = -4
	TimestampLatestTiered  = -5
	TimestampEarliestLate  = -6 // earliest pending upload (KIP-1023)
)

// ListOffset finds an offset by time: that of the first record whose timestamp is at or after the given one, in ms, or what a
// special timestamp means. Where there is none all results are -1, without an error. The latest offset is current: it is
// confirmed by a quorum (ReadIndex; RAFT rule 17), which ctx bounds. Errors: as Fetch; ErrUnsupportedTimestamp.
func (p *Partition) ListOffset(ctx context.Context, timestamp int64, currentLeaderEpoch int32) (offset, ts int64, epoch int32, err error) {
	if err := p.mayRead(currentLeaderEpoch, false); err != nil {
		return -1, -1, -1, err
	}
	switch {
	case timestamp == TimestampLatest:
		if err := p.readIndex(ctx); err != nil {
			return -1, -1, -1, err
		}
		// The quorum has confirmed a leadership, but it may be over by now: what is applied is still current as of the call.
		return p.hw.Load(), -1, p.LeaderEpoch(), nil
	case timestamp == TimestampEarliest, timestamp == TimestampEarliestLocal:
		offset, epoch = p.earliest()
		return offset, -1, epoch, nil
	case timestamp == TimestampLatestTiered, timestamp == TimestampEarliestLate:
		return -1, -1, -1, nil // nothing is tiered
	case timestamp < TimestampMax:
		return -1, -1, -1, fmt.Errorf("%w: %d", ErrUnsupportedTimestamp, timestamp)
	}
	hw := p.hw.Load()
	epoch = -1
	err = p.withLog(func(l *segment.Log) (err error) {
		if timestamp == TimestampMax {
			if offset, ts, err = l.MaxTimestamp(hw); err == nil && offset >= 0 {
				epoch = epochAt(l, offset, hw)
			}
			return err
		}
		offset, ts, epoch, err = l.OffsetForTimestamp(timestamp, hw)
		return err
	})
	if err != nil {
		return -1, -1, -1, p.readError(-1, hw, err)
	}
	if offset < 0 {
		return -1, -1, -1, nil
	}
	return offset, ts, epoch, nil
}

// earliest returns the log start and the epoch of the record there, -1 if there is none.
func (p *Partition) earliest() (offset int64, epoch int32) {
	epoch = -1
	_ = p.withLog(func(l *segment.Log) error {
		offset = p.logStart.Load()
		if hw := p.hw.Load(); offset < hw {
			epoch = epochAt(l, offset, hw)
		} else if e := p.LeaderEpoch(); offset == hw && e > 0 {
			epoch = e // nothing there yet: what comes next is of this epoch
		}
		return nil
	})
	return offset, epoch
}

// epochAt returns the leader epoch of the batch that holds offset, which lies below hw; -1 if that can't be read.
func epochAt(l *segment.Log, offset, hw int64) int32 {
	b, err := l.Read(offset, hw, 0, nil)
	if err != nil {
		return -1
	}
	h, err := record.ParseHeader(b)
	if err != nil {
		return -1
	}
	return h.LeaderEpoch
}

// Barrier calls done with nil once a quorum has confirmed this replica's leadership and everything committed before the call is
// applied here, else with why not. It does not block; done is called once, from anywhere, and must not block.
func (p *Partition) Barrier(done func(error)) {
	r := p.raft()
	if err := p.refusal(); err != nil || r == nil {
		if err == nil {
			err = multiraft.ErrStopped
		}
		done(err)
		return
	}
	r.ReadIndex(done)
}

// readIndex waits until everything committed before the call is applied here.
func (p *Partition) readIndex(ctx context.Context) error {
	r := p.raft()
	if r == nil {
		return multiraft.ErrStopped
	}
	done := make(chan error, 1)
	r.ReadIndex(func(err error) { done <- err })
	answer, err := clock.Recv(p.m.cfg.Clock, ctx, done)
	if err != nil {
		return fmt.Errorf("waiting for a quorum to confirm the leader: %w", err)
	}
	return answer
}

// EpochEnd answers OffsetForLeaderEpoch (KIP-320): the largest epoch that is not above the asked one and the offset after its
// last record; (-1, -1) without an error if the epoch is not known. A current leader epoch of -1 is none; Kafka, unlike where it
// fetches, takes any other negative one for an old one. Errors: as Fetch.
func (p *Partition) EpochEnd(currentLeaderEpoch, epoch int32) (int32, int64, error) {
	if currentLeaderEpoch < -1 {
		return -1, -1, fmt.Errorf("%w: %d", ErrFencedLeaderEpoch, currentLeaderEpoch)
	}
	if err := p.mayRead(currentLeaderEpoch, false); err != nil {
		return -1, -1, err
	}
	return p.epochEnd(epoch, p.hw.Load())
}

// DeleteRecords moves the log start to offset, -1 meaning the high watermark, through the log, so that all replicas agree; the
// files go later. done gets the log start afterwards, which is higher if it was. An offset above the high watermark is
// *OffsetOutOfRangeError; ErrPolicy if the topic is compacted and nothing else. done must not block.
func (p *Partition) DeleteRecords(offset int64, done func(low int64, err error)) {
	if p.m.topicConfig(p.topic).Compaction.Only {
		done(-1, ErrPolicy)
		return
	}
	if offset < -1 {
		done(-1, &OffsetOutOfRangeError{Offset: offset, Start: p.logStart.Load(), End: p.hw.Load()})
		return
	}
	p.submit(&commandProposal{p: p, kind: commandLogStart, arg: offset, done: func(err error) {
		if err != nil {
			done(-1, err)
			return
		}
		done(p.logStart.Load(), nil)
	}})
}

// submit enqueues a command where this replica leads.
func (p *Partition) submit(c *commandProposal) {
	r := p.raft()
	if err := p.refusal(); err != nil || r == nil {
		if err == nil {
			err = multiraft.ErrStopped
		}
		c.Done(err)
		return
	}
	r.Enqueue(c)
}

// commandProposal is a command on its way into the log.
type commandProposal struct {
	p    *Partition
	kind commandKind
	arg  int64 // -1 with commandLogStart: the high watermark
	done func(error)
}

// Size implements multiraft.Proposal.
func (c *commandProposal) Size() int { return commandSize }

// Done implements multiraft.Proposal.
func (c *commandProposal) Done(err error) {
	if c.done != nil {
		c.done(err)
	}
}

// decide settles the argument against the applied state. A zero command needs no entry. mu is held.
func (c *commandProposal) decide(p *Partition) (command, error) {
	arg := c.arg
	switch c.kind {
	case commandLogStart:
		if arg == -1 {
			arg = p.st.end
		}
		if arg > p.st.end {
			return command{}, &OffsetOutOfRangeError{Offset: arg, Start: p.st.start, End: p.st.end}
		}
		if arg <= p.st.start {
			return command{}, nil
		}
	case commandExpireProducers:
		if oldest := p.st.producers.oldest(); oldest == 0 || oldest > uint64(arg) {
			return command{}, nil
		}
	}
	return command{kind: c.kind, arg: arg}, nil
}
