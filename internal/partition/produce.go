package partition

import (
	"errors"
	"fmt"
	"math"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
)

// ProduceResult is how a Produce ended.
type ProduceResult struct {
	// BaseOffset is the first record's offset, -1 on error. A duplicate gets the offset it was given the first time.
	BaseOffset int64
	// AppendTime is the batch's LogAppendTime in ms, -1 for CreateTime.
	AppendTime int64
	// LogStart is the partition's log start offset, -1 when not known.
	LogStart int64
	// Err is nil once the batch is committed and applied here. *RecordErrors carries per-record detail. An error matching
	// multiraft.ErrNotLeader says that the batch is certainly not in the log, multiraft.ErrUnknownOutcome that it may be.
	Err error
}

// produceProposal is a batch on its way into the log.
type produceProposal struct {
	p          *Partition
	batch      []byte
	hdr        record.Header
	appendTime bool   // the topic wants LogAppendTime, as configured when the batch came
	term       uint64 // the only term it may be proposed in; 0: any
	done       func(ProduceResult)

	// Under Partition.mu.
	base     int64
	stamp    int64 // append time or -1
	finished bool
	err      error
	joined   []*produceProposal // retries of this batch that came while it was under way
}

// Size implements multiraft.Proposal.
func (pr *produceProposal) Size() int { return len(pr.batch) }

// Done implements multiraft.Proposal.
func (pr *produceProposal) Done(err error) {
	pr.p.mu.Lock()
	pr.finished, pr.err = true, err
	joined := pr.joined
	pr.joined = nil
	pr.p.mu.Unlock()
	pr.finish(err)
	for _, j := range joined {
		j.base, j.stamp = pr.base, pr.stamp
		j.finish(err)
	}
}

// finish gives the bytes back and answers. Nobody else refers to pr any more.
func (pr *produceProposal) finish(err error) {
	p := pr.p
	size := int64(len(pr.batch))
	p.inflight.Add(-size)
	p.m.inflight.Add(-size)
	if pr.done == nil {
		return
	}
	res := ProduceResult{BaseOffset: -1, AppendTime: -1, LogStart: p.logStart.Load(), Err: err}
	if err == nil {
		res.BaseOffset, res.AppendTime = pr.base, pr.stamp
	}
	pr.done(res)
}

// Produce validates one batch and enqueues it; batches enqueued one after the other are decided in that order. records must
// hold exactly one batch of version 2; it is changed in place and belongs to the partition from now on. done, which may be nil
// (acks=0), is called exactly once, from anywhere, possibly before Produce returns; it must not block.
func (p *Partition) Produce(records []byte, done func(ProduceResult)) { p.produceIn(0, records, done) }

// ProduceIn is Produce for what was decided from the state that the log had in a term: led again in a later one, the replica
// refuses it with multiraft.ErrNotLeader.
func (p *Partition) ProduceIn(term uint64, records []byte, done func(ProduceResult)) {
	p.produceIn(term, records, done)
}

func (p *Partition) produceIn(term uint64, records []byte, done func(ProduceResult)) {
	fail := func(err error) {
		if done != nil {
			start := int64(-1) // as Kafka: only what failed record by record tells where the log starts
			if records := (*RecordErrors)(nil); errors.As(err, &records) {
				start = p.logStart.Load()
			}
			done(ProduceResult{BaseOffset: -1, AppendTime: -1, LogStart: start, Err: err})
		}
	}
	r := p.raft()
	if err := p.refusal(); err != nil || r == nil {
		if err == nil {
			err = multiraft.ErrStopped
		}
		fail(err)
		return
	}
	if err := p.m.writable(); err != nil {
		fail(fmt.Errorf("%w: %w", ErrStorage, err))
		return
	}
	cfg := p.m.topicConfig(p.topic)
	batch, hdr, err := p.admit(records, &cfg)
	if err != nil {
		fail(err)
		return
	}
	if !p.reserve(int64(len(batch))) {
		fail(fmt.Errorf("%w: %s-%d", multiraft.ErrOverloaded, p.topic, p.index))
		return
	}
	r.Enqueue(&produceProposal{
		p: p, batch: batch, hdr: hdr, appendTime: cfg.TimestampType == LogAppendTime, term: term,
		done: done, base: -1, stamp: -1,
	})
}

// reserve counts bytes against the partition's and the node's limits. One batch always fits into an idle partition.
func (p *Partition) reserve(n int64) bool {
	own, node := p.inflight.Add(n), p.m.inflight.Add(n)
	l := &p.m.cfg.Limits
	if own > l.PartitionBytes && own > n || node > l.NodeBytes && node > n {
		p.inflight.Add(-n)
		p.m.inflight.Add(-n)
		return false
	}
	return true
}

// admit judges a batch by itself, without regard to state. What it returns is the batch to propose.
func (p *Partition) admit(b []byte, cfg *TopicConfig) ([]byte, record.Header, error) {
	h, err := record.Validate(b)
	if err != nil {
		return nil, h, batchError(err)
	}
	switch {
	case h.IsControl():
		return nil, h, fmt.Errorf("%w: clients may not write control batches", ErrInvalidRecord)
	case h.IsTransactional():
		return nil, h, fmt.Errorf("%w: transactions are not supported yet", ErrInvalidRecord)
	case h.Count <= 0 || h.LastOffsetDelta != h.Count-1:
		return nil, h, fmt.Errorf("%w: %d records, last offset delta %d", ErrInvalidRecord, h.Count, h.LastOffsetDelta)
	case h.ProducerID >= 0 && (h.ProducerEpoch < 0 || h.BaseSequence < 0):
		return nil, h, fmt.Errorf("%w: producer id without epoch or sequence", ErrInvalidRecord)
	}
	if err := p.m.checkTimestamps(b, &h, cfg); err != nil {
		return nil, h, err
	}
	if cfg.RequireKeys {
		if err := p.m.checkKeys(b, &h, cfg); err != nil {
			return nil, h, err
		}
	}
	if len(b) > cfg.MaxMessageBytes {
		return nil, h, tooLarge(len(b), cfg)
	}
	if cfg.Recompress && h.Codec() != cfg.Compression {
		out, err := p.m.recompress(b, cfg)
		if err != nil {
			return nil, h, batchError(err)
		}
		if h, err = record.ParseHeader(out); err != nil {
			return nil, h, batchError(err)
		}
		b = out
	}
	return b, h, nil
}

func tooLarge(n int, cfg *TopicConfig) error {
	return fmt.Errorf("%w: %d bytes, max.message.bytes is %d", ErrRecordTooLarge, n, cfg.MaxMessageBytes)
}

// inflatedLimit caps what a batch may decompress to: a bomb is refused, and honest data, which compresses a hundredfold at
// worst, is not.
func inflatedLimit(cfg *TopicConfig) int {
	const most = 64 << 20
	return min(max(cfg.MaxMessageBytes, 1<<20)*100, most)
}

// opened runs fn, which decompresses a batch. Few are open at a time on a node, so that the formats' windows (zstd's may have
// 32 MiB) are bounded for the node and not just for each: the others wait, in the order of their connections.
func (m *Manager) opened(fn func() error) error {
	m.inflating <- struct{}{}
	defer func() { <-m.inflating }()
	return fn()
}

// recompress stores a batch as the topic wants it.
func (m *Manager) recompress(b []byte, cfg *TopicConfig) (out []byte, err error) {
	err = m.opened(func() error {
		out, err = record.Recompress(b, cfg.Compression, cfg.Levels, inflatedLimit(cfg), cfg.MaxMessageBytes)
		return err
	})
	return out, err
}

// walk calls fn for each record of a batch.
func (m *Manager) walk(b []byte, h *record.Header, cfg *TopicConfig, fn func(record.Record) error) error {
	if h.Codec() == record.None {
		return record.Records(b, inflatedLimit(cfg), fn)
	}
	return m.opened(func() error { return record.Records(b, inflatedLimit(cfg), fn) })
}

// batchError turns record's errors into this package's.
func batchError(err error) error {
	switch {
	case errors.Is(err, ErrCorrupt):
		return err
	case errors.Is(err, record.ErrTooLarge):
		return fmt.Errorf("%w: %w", ErrRecordTooLarge, err)
	case errors.Is(err, record.ErrMagic), errors.Is(err, record.ErrEmpty), errors.Is(err, record.ErrInvalid), errors.Is(err, record.ErrTruncated):
		return fmt.Errorf("%w: %w", ErrInvalidRecord, err)
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// checkTimestamps applies message.timestamp.{before,after}.max.ms to a CreateTime topic. The records are walked only where the
// header can't settle it.
func (m *Manager) checkTimestamps(b []byte, h *record.Header, cfg *TopicConfig) error {
	now := m.cfg.Clock.Now().UnixMilli()
	if cfg.TimestampType == LogAppendTime {
		return nil
	}
	if isAppendTime(h) {
		return &RecordErrors{Err: ErrInvalidTimestamp, Records: []RecordError{{Index: 0, Message: "a producer may not set LogAppendTime"}}}
	}
	latest := satAdd(now, cfg.TimestampAfterMaxMs)
	earliest := satSub(now, cfg.TimestampBeforeMaxMs)
	if h.MaxTimestamp <= latest && cfg.TimestampBeforeMaxMs == math.MaxInt64 {
		return nil
	}
	out := &RecordErrors{Err: ErrInvalidTimestamp}
	i := int32(0)
	err := m.walk(b, h, cfg, func(r record.Record) error {
		if r.Timestamp > latest || r.Timestamp >= 0 && r.Timestamp < earliest {
			out.Records = append(out.Records, RecordError{Index: i, Message: fmt.Sprintf("timestamp %d is outside of [%d, %d]", r.Timestamp, earliest, latest)})
			if len(out.Records) == maxRecordErrors {
				return errEnough
			}
		}
		i++
		return nil
	})
	switch {
	case err != nil && !errors.Is(err, errEnough):
		return batchError(err)
	case len(out.Records) > 0:
		return out
	case h.MaxTimestamp > latest:
		out.Records = []RecordError{{Index: 0, Message: fmt.Sprintf("the batch's maximum timestamp %d is after %d", h.MaxTimestamp, latest)}}
		return out
	}
	return nil
}

// maxRecordErrors bounds how many records an answer blames.
const maxRecordErrors = 64

var errEnough = errors.New("enough")

// checkKeys refuses null keys, which a compacted topic has no use for.
func (m *Manager) checkKeys(b []byte, h *record.Header, cfg *TopicConfig) error {
	out := &RecordErrors{Err: ErrInvalidRecord}
	i := int32(0)
	err := m.walk(b, h, cfg, func(r record.Record) error {
		if r.Key == nil {
			out.Records = append(out.Records, RecordError{Index: i, Message: "a compacted topic needs keys"})
			if len(out.Records) == maxRecordErrors {
				return errEnough
			}
		}
		i++
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return batchError(err)
	}
	if len(out.Records) > 0 {
		return out
	}
	return nil
}

func satAdd(a, b int64) int64 {
	if b > 0 && a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func satSub(a, b int64) int64 {
	if b > 0 && a < math.MinInt64+b {
		return math.MinInt64
	}
	return a - b
}
