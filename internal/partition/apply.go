package partition

import (
	"errors"
	"fmt"
	"syscall"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
)

// applied is one batch of an entry.
type applied struct{ hdr record.Header }

// writebackBytes is how much a partition appends before the kernel is asked to begin writing it out.
const writebackBytes = 4 << 20

// Apply implements multiraft.StateMachine: what the leader decided is carried out, or the replica is fenced.
func (p *Partition) Apply(entries []raftpb.Entry) error {
	hw, leading := p.hw.Load(), p.leading.Load()
	bytes := 0
	for i := range entries {
		e := &entries[i]
		n, err := p.applyEntry(e)
		if err != nil {
			if !errors.Is(err, multiraft.ErrStopped) {
				p.fault.CompareAndSwap(nil, &err)
				p.leading.Store(0)
				p.wakeAll()
			}
			return fmt.Errorf("entry %d of term %d: %w", e.Index, e.Term, err)
		}
		bytes += n
	}
	if len(entries) > 0 {
		p.m.markDirty(p, bytes)
		p.overtake(entries[len(entries)-1].Index)
	}
	if end := p.hw.Load(); end != hw || p.leading.Load() != leading {
		p.wake(end)
	}
	return nil
}

func (p *Partition) applyEntry(e *raftpb.Entry) (bytes int, err error) {
	switch {
	case e.Type != raftpb.EntryNormal || len(e.Data) == 0:
		p.commitState(e, nil, nil)
	case isCommand(e.Data):
		c, err := decodeCommand(e.Data)
		if err != nil {
			return 0, err
		}
		p.commitState(e, nil, &c)
		if c.kind == commandLogStart {
			return 0, p.moveLogStart()
		}
	default:
		if bytes, err = p.appendBatches(e); err != nil {
			return 0, err
		}
		p.commitState(e, p.scratch, nil)
	}
	return bytes, nil
}

// appendBatches puts an entry's batches into the segments, except those that are there already: after a crash the log is
// replayed from the last checkpoint, and a delta may have been staged ahead. Those are compared. It leaves the batches' headers
// in scratch.
func (p *Partition) appendBatches(e *raftpb.Entry) (bytes int, err error) {
	data, check := e.Data, wholeBatch
	if p.prepared(e) {
		check = checkedBatch
	}
	p.scratch = p.scratch[:0]
	p.genMu.RLock()
	defer p.genMu.RUnlock()
	if p.log == nil {
		return 0, multiraft.ErrStopped
	}
	p.logMu.Lock()
	defer p.logMu.Unlock()
	logEnd, next := p.log.EndOffset(), p.st.end // only the applier changes st
	skip := 0
	for rest := data; len(rest) > 0; {
		h, err := check(rest)
		if err != nil {
			return 0, &DamagedError{Dir: p.dir, Offset: next, Reason: "a committed entry does not hold sound batches: " + err.Error()}
		}
		if h.BaseOffset != next {
			return 0, &DamagedError{Dir: p.dir, Offset: next, Reason: fmt.Sprintf("a committed batch has base offset %d", h.BaseOffset)}
		}
		if h.BaseOffset < logEnd {
			if err := p.compare(&h, logEnd); err != nil {
				return 0, err
			}
			skip += h.Size()
		}
		next = h.LastOffset() + 1
		p.scratch = append(p.scratch, applied{h})
		rest = rest[h.Size():]
	}
	if data = data[skip:]; len(data) == 0 {
		return 0, nil
	}
	if err := p.append(data); err != nil {
		return 0, p.storageFailed("appending to", err)
	}
	p.noteRoll(p.log)
	return len(data), nil
}

// append appends; where the disk is full it goes on in the space kept in reserve, since a committed entry can't be skipped.
func (p *Partition) append(data []byte) error {
	p.log.SetConfig(p.m.topicConfig(p.topic).Segment) // as it is now
	err := p.log.Append(data)
	if !errors.Is(err, syscall.ENOSPC) || p.m.cfg.FreeReserve == nil || !p.m.cfg.FreeReserve() {
		return err
	}
	p.logger.Error("the disk is full: a committed batch goes into the reserve")
	skip, err := skipTo(data, p.log.EndOffset(), 0)
	if err != nil || skip == len(data) {
		return err
	}
	return p.log.Append(data[skip:])
}

// wholeBatch checks the first batch of b, CRC included: a buffer that was reused too early, or a follower's memory, must not
// reach the segments (rule 19).
func wholeBatch(b []byte) (record.Header, error) { return firstBatch(b, record.Check) }

// checkedBatch is wholeBatch for bytes whose CRC was checked and that nobody else has held since.
func checkedBatch(b []byte) (record.Header, error) { return firstBatch(b, record.CheckHeader) }

func firstBatch(b []byte, check func([]byte) (record.Header, error)) (record.Header, error) {
	h, err := record.ParseHeader(b)
	if err != nil {
		return h, err
	}
	if n := h.Size(); h.Length < record.BatchOverhead-record.LogOverhead || n > len(b) {
		return h, fmt.Errorf("%w: a batch of %d bytes in %d", record.ErrTruncated, n, len(b))
	}
	return check(b[:h.Size()])
}

// compare checks that a committed batch is the one the segments hold at its offset.
func (p *Partition) compare(h *record.Header, logEnd int64) error {
	if h.BaseOffset < p.log.StartOffset() {
		return nil // deleted since; the command that did it follows in the log
	}
	if h.LastOffset() < logEnd {
		have, crc, ok := p.log.BatchAt(h.BaseOffset)
		if h.LastOffset() < p.log.CleanPoint().Holes {
			// Fetched, ahead of the log, from a replica that had compacted it: what is left of the batch, if anything, has its place.
			if !ok || have.LastOffsetDelta == h.LastOffsetDelta && have.LeaderEpoch == h.LeaderEpoch {
				return nil
			}
		}
		same := ok && have.BaseOffset == h.BaseOffset && have.Length == h.Length && crc == h.CRC
		if same && have.LeaderEpoch == h.LeaderEpoch {
			return nil
		}
		if !ok || same {
			// It can't be read, or its epoch, which no CRC covers, has changed: damage, mended like any other.
			p.Report(Damage{From: h.BaseOffset, To: h.LastOffset() + 1, File: p.log.Dir(), Reason: "a batch applied before a restart is not what it was"})
			return nil
		}
	}
	return &DamagedError{Dir: p.genDir(p.generation), Offset: h.BaseOffset, Reason: "the segment differs from the committed log"}
}

// commitState moves the applied state past an entry.
func (p *Partition) commitState(e *raftpb.Entry, batches []applied, c *command) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &p.st
	st.index, st.term = e.Index, e.Term
	for i := range batches {
		h := &batches[i].hdr
		if idempotent(h) {
			st.producers.observe(h, e.Index)
		}
		st.end = h.LastOffset() + 1
		st.sum += record.Sum(*h)
	}
	if c != nil {
		switch c.kind {
		case commandLogStart:
			st.start = max(st.start, min(c.arg, st.end))
		case commandExpireProducers:
			st.producers.expire(uint64(c.arg))
		}
	}
	if p.ov.term == e.Term {
		p.ov.release(st.end)
	}
	p.hw.Store(st.end)
	p.noteApplied(st)
}

// moveLogStart lets the segments follow the applied log start. The files go later (Tidy).
func (p *Partition) moveLogStart() error {
	start := p.st.start
	err := p.withLog(func(l *segment.Log) error {
		l.SetStartOffset(start)
		return nil
	})
	if err == nil && start > p.logStart.Load() {
		p.logStart.Store(start)
	}
	return err
}

// overtake gives up a staged generation once the log has gone past it: raft did not want the snapshot.
func (p *Partition) overtake(index uint64) {
	p.stageMu.Lock()
	g := p.staged
	p.stageMu.Unlock()
	if g != nil && index > g.index {
		p.discardStaged()
		p.m.enqueue(p, taskRetire)
	}
}

// Snapshot implements multiraft.StateMachine.
func (p *Partition) Snapshot() (index, term uint64, data []byte, err error) {
	if p.closed.Load() {
		return 0, 0, nil, multiraft.ErrStopped
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.st.index, p.st.term, p.st.encode(), nil
}
