package multiraft

import "encoding/binary"

// readQueue batches linearizable reads: all that came since the last round share one ReadIndex, with a context of its own
// (rule 17: a context used twice would let an old quorum answer a new read).
type readQueue struct {
	queued  []func(error)
	pending []readBatch // sent to the quorum
	settled []readBatch // index known, waiting for apply
	seq     uint64
	now     uint64 // tick
}

type readBatch struct {
	ctx     uint64
	index   uint64
	since   uint64
	waiters []func(error)
}

func (b *readBatch) done(err error) {
	for _, f := range b.waiters {
		f(err)
	}
}

// issueReads starts a round for what is queued, one at a time. It waits for the term's no-op: before it the leader does not
// know what is committed.
func (r *Replica) issueReads() {
	q := &r.reads
	if len(q.queued) == 0 {
		return
	}
	v := r.view.Load()
	if !v.isLeader {
		q.fail(r.notLeader())
		return
	}
	if !v.ready || len(q.pending) > 0 {
		return
	}
	q.seq++
	q.pending = append(q.pending, readBatch{ctx: q.seq, since: q.now, waiters: q.queued})
	q.queued = nil
	r.rn.ReadIndex(binary.BigEndian.AppendUint64(nil, q.seq))
}

func (q *readQueue) resolve(ctx []byte, index, applied uint64) {
	if len(ctx) != 8 || len(q.pending) == 0 || q.pending[0].ctx != binary.BigEndian.Uint64(ctx) {
		return
	}
	b := q.pending[0]
	q.pending = q.pending[:0]
	b.index = index
	q.settled = append(q.settled, b)
	q.applied(applied)
}

func (q *readQueue) applied(index uint64) {
	n := 0
	for n < len(q.settled) && q.settled[n].index <= index {
		q.settled[n].done(nil)
		n++
	}
	q.settled = q.settled[n:]
}

func (q *readQueue) fail(err error) {
	for _, f := range q.queued {
		f(err)
	}
	for i := range q.pending {
		q.pending[i].done(err)
	}
	for i := range q.settled {
		q.settled[i].done(err)
	}
	q.queued, q.pending, q.settled = nil, nil, nil
}

// expire fails a round that no quorum has answered for a while: the reads may be tried again elsewhere.
func (q *readQueue) expire(now, patience uint64) {
	q.now = now
	if len(q.pending) > 0 && now > q.pending[0].since+patience {
		q.pending[0].done(&NotLeaderError{LeaderNode: -1})
		q.pending = q.pending[:0]
	}
}
