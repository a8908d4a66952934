package group

import (
	"github.com/chronik-go/chronik/internal/partition"
)

// Log is this node's replica of a shard's partition.
type Log interface {
	// Leading returns the term in which this replica leads and serves, 0 if it does not.
	Leading() uint64
	// Append writes one batch in a term, and in no other. done is called once, with the first record's offset when the batch
	// is committed; those of committed batches in the log's order. It may be called before Append returns, and must not block.
	Append(term uint64, batch []byte, done func(base int64, err error))
	// Barrier calls done with nil once a quorum has confirmed that this replica leads: nothing was committed elsewhere
	// before the call. It does not block.
	Barrier(done func(error))
	// Read returns whole committed batches from an offset on, about maxBytes of them, in buf if that is large enough.
	Read(offset int64, maxBytes int, buf []byte) (batches []byte, err error)
	// Bounds returns the offsets of the first record and after the last committed one.
	Bounds() (start, end int64)
}

// PartitionLog makes a partition a shard's log.
func PartitionLog(p *partition.Partition) Log { return partitionLog{p} }

type partitionLog struct{ p *partition.Partition }

// Leading implements Log.
func (l partitionLog) Leading() uint64 { return l.p.Leading() }

// Append implements Log.
func (l partitionLog) Append(term uint64, batch []byte, done func(int64, error)) {
	l.p.ProduceIn(term, batch, func(r partition.ProduceResult) { done(r.BaseOffset, r.Err) })
}

// Barrier implements Log.
func (l partitionLog) Barrier(done func(error)) { l.p.Barrier(done) }

// Read implements Log.
func (l partitionLog) Read(offset int64, maxBytes int, buf []byte) ([]byte, error) {
	r, err := l.p.Fetch(partition.FetchRequest{Offset: offset, MaxBytes: maxBytes, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1, Buf: buf})
	return r.Records, err
}

// Bounds implements Log.
func (l partitionLog) Bounds() (start, end int64) { return l.p.LogStart(), l.p.HighWatermark() }
