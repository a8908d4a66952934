package multiraft

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"
)

// waiterList holds those who wait for an index, in ascending order. A waiter is (index, term): rule 3. The shard adds, the
// applier settles.
type waiterList struct {
	mu    sync.Mutex
	list  []waiter
	bytes int64 // proposed here and not yet applied
}

type waiter struct {
	index, term uint64
	size        int64
	bound       []Proposal
	single      func(error) // of a configuration change, or of empty entries
}

func (w *waiter) done(err error) {
	for _, p := range w.bound {
		p.Done(err)
	}
	if w.single != nil {
		w.single(err)
	}
}

// add appends a waiter. Waiters at or above its index belong to entries that its own replaced: they are lost, as the term's
// no-op is committed by now, below this index, and with it no older entry here can ever be.
func (l *waiterList) add(w waiter) {
	l.mu.Lock()
	cut := len(l.list)
	for cut > 0 && l.list[cut-1].index >= w.index {
		cut--
		l.bytes -= l.list[cut].size
	}
	lost := append([]waiter(nil), l.list[cut:]...)
	l.list = append(l.list[:cut], w)
	l.bytes += w.size
	l.mu.Unlock()
	for i := range lost {
		lost[i].done(&NotLeaderError{Term: w.term, LeaderNode: -1})
	}
}

func (l *waiterList) unapplied() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// take removes the waiters up to index, and those of terms before term. Terms rise along the list as along every log.
func (l *waiterList) take(index, term uint64) []waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for n < len(l.list) && (l.list[n].index <= index || l.list[n].term < term) {
		l.bytes -= l.list[n].size
		n++
	}
	if n == 0 {
		return nil
	}
	taken := append([]waiter(nil), l.list[:n]...)
	rest := copy(l.list, l.list[n:])
	clear(l.list[rest:])
	l.list = l.list[:rest]
	return taken
}

// applied settles the waiters of applied entries. A waiter above them whose term is older than theirs is lost as well: terms
// never fall along a log, so no entry of its term can follow. In a group that has gone idle nothing else would tell it.
func (l *waiterList) applied(entries []raftpb.Entry) {
	first, last := entries[0].Index, entries[len(entries)-1]
	for _, w := range l.take(last.Index, last.Term) {
		switch {
		case w.index < first:
			w.done(ErrUnknownOutcome)
		case w.index > last.Index:
			w.done(&NotLeaderError{Term: last.Term, LeaderNode: -1})
		case entries[w.index-first].Term == w.term:
			w.done(nil)
		default:
			w.done(&NotLeaderError{Term: entries[w.index-first].Term, LeaderNode: -1})
		}
	}
}

// covered settles the waiters whose index a snapshot jumped over, of which nobody can tell, and those above it that are of an
// older term, which are lost.
func (l *waiterList) covered(index, term uint64) {
	for _, w := range l.take(index, term) {
		if w.index > index {
			w.done(&NotLeaderError{Term: term, LeaderNode: -1})
		} else {
			w.done(ErrUnknownOutcome)
		}
	}
}

// abandon settles everybody: the replica stops or is fenced.
func (l *waiterList) abandon() {
	for _, w := range l.take(^uint64(0), 0) {
		w.done(ErrUnknownOutcome)
	}
}
