package partition

import (
	"errors"
	"fmt"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/segment"
)

// FetchRequest asks for records from an offset on.
type FetchRequest struct {
	Offset int64
	// MaxBytes bounds the answer, except that the first batch is always whole. At 0 it yields one batch.
	MaxBytes int
	// CurrentLeaderEpoch is the epoch the client believes in, -1 if it names none (KIP-320).
	CurrentLeaderEpoch int32
	// LastFetchedEpoch is the epoch of the client's last record, -1 if it names none (KIP-595).
	LastFetchedEpoch int32
	// Follower lets a replica that does not lead answer with what it knows to be committed (RAFT rule 22).
	Follower bool
	// Buf is used for the records if it is large enough.
	Buf []byte
}

// FetchResult is a partition's answer.
type FetchResult struct {
	// Records holds whole batches, the first of which contains the offset; empty if the offset is the high watermark.
	Records []byte
	// HighWatermark, LastStable and LogStart are offsets. Without transactions the last stable offset is the high watermark.
	HighWatermark, LastStable, LogStart int64
	// Diverging, if set, tells a client whose log has gone another way where the two part; Records is empty then.
	Diverging *EpochEnd
}

// EpochEnd is a leader epoch and the offset after its last record.
type EpochEnd struct {
	Epoch     int32
	EndOffset int64
}

// Fetch reads committed records. Errors: ErrFencedLeaderEpoch, ErrUnknownLeaderEpoch (checked first), multiraft.ErrNotLeader,
// *OffsetOutOfRangeError, ErrOffsetNotAvailable (followers only), ErrStorage, *DamageError (which matches ErrStorage).
func (p *Partition) Fetch(req FetchRequest) (FetchResult, error) {
	res := FetchResult{HighWatermark: -1, LastStable: -1, LogStart: -1}
	if err := p.mayRead(req.CurrentLeaderEpoch, req.Follower); err != nil {
		return res, err
	}
	leading := p.leading.Load() != 0
	// Start before end: both only grow, and a start read late could lie above the end.
	start := p.logStart.Load()
	hw := p.hw.Load()
	res.HighWatermark, res.LastStable, res.LogStart = hw, hw, start
	if req.LastFetchedEpoch >= 0 && req.Offset >= start {
		d, err := p.diverging(&req, hw)
		if err != nil || d != nil {
			res.Diverging = d
			return res, err
		}
	}
	switch {
	case req.Offset < start:
		return res, &OffsetOutOfRangeError{Offset: req.Offset, Start: start, End: hw}
	case req.Offset > hw && !leading:
		return res, fmt.Errorf("%w: %d is above this follower's high watermark %d", ErrOffsetNotAvailable, req.Offset, hw)
	case req.Offset > hw && req.Offset > p.EndOffset():
		return res, &OffsetOutOfRangeError{Offset: req.Offset, Start: start, End: hw}
	case req.Offset >= hw:
		return res, nil
	}
	var err error
	if res.Records, err = p.readBatches(req.Offset, hw, req.MaxBytes, req.Buf); err != nil {
		return res, p.readError(req.Offset, hw, err)
	}
	return res, nil
}

// readError turns what the segments say into what a client understands.
func (p *Partition) readError(offset, hw int64, err error) error {
	var oe *segment.OffsetError
	err = p.noticed(offset, err)
	switch {
	case errors.Is(err, multiraft.ErrStopped), errors.Is(err, ErrDamaged):
		return err
	case errors.As(err, &oe):
		return &OffsetOutOfRangeError{Offset: offset, Start: max(oe.Start, p.logStart.Load()), End: hw}
	}
	p.logger.Error("reading records", "offset", offset, "error", err)
	return fmt.Errorf("%w: %w", ErrStorage, err)
}

// mayRead checks the client's leader epoch, and then whether this replica answers at all. A follower that has damage does not: the
// leader serves the same records.
func (p *Partition) mayRead(epoch int32, follower bool) error {
	if err := p.checkEpoch(epoch); err != nil {
		return err
	}
	if err := p.distrusted(); err != nil {
		return err
	}
	follower = follower && !p.unfit.Load()
	err := p.refusal()
	if err != nil && follower && errors.Is(err, multiraft.ErrNotLeader) && p.Status().Leader != 0 {
		return nil
	}
	return err
}

// checkEpoch compares the epoch a client believes in with the one known here (KIP-320).
func (p *Partition) checkEpoch(epoch int32) error {
	known := p.LeaderEpoch()
	switch {
	case epoch < 0 || known < 0 || epoch == known:
		return nil
	case epoch < known:
		return fmt.Errorf("%w: %d, the current one is %d", ErrFencedLeaderEpoch, epoch, known)
	}
	return fmt.Errorf("%w: %d, here it is %d", ErrUnknownLeaderEpoch, epoch, known)
}

// diverging says where the client's log leaves this one, nil if it does not.
func (p *Partition) diverging(req *FetchRequest, hw int64) (*EpochEnd, error) {
	if known := p.LeaderEpoch(); known >= 0 && req.LastFetchedEpoch > known {
		return nil, fmt.Errorf("%w: last fetched epoch %d, here it is %d", ErrUnknownLeaderEpoch, req.LastFetchedEpoch, known)
	}
	epoch, end, err := p.epochEnd(req.LastFetchedEpoch, hw)
	switch {
	case err != nil:
		return nil, err
	case end < 0:
		return nil, &OffsetOutOfRangeError{Offset: req.Offset, Start: p.logStart.Load(), End: hw}
	case epoch < req.LastFetchedEpoch || end < req.Offset:
		return &EpochEnd{Epoch: epoch, EndOffset: end}, nil
	}
	return nil, nil
}

// epochEnd finds the largest epoch that is not above the asked one, and where it ends. A leader's own epoch exists from the
// moment it leads, with or without records: in a log without any an older one ends where that begins. (-1, -1): there is none.
func (p *Partition) epochEnd(asked int32, hw int64) (epoch int32, end int64, err error) {
	if t := p.leading.Load(); t != 0 {
		switch {
		case asked == int32(t):
			return asked, hw, nil
		case asked > int32(t):
			return -1, -1, nil
		}
	}
	err = p.withLog(func(l *segment.Log) error {
		epoch, end = l.EpochEnd(asked)
		return nil
	})
	switch {
	case err != nil:
		return -1, -1, err
	case end < 0 && asked != -1 && p.leading.Load() != 0:
		return asked, hw, nil
	case end < 0:
		return -1, -1, nil
	}
	return epoch, min(end, hw), nil
}
