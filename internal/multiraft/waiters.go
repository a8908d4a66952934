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
	conf        func(error) // a configuration change's waiter
}

func (w *waiter) done(err error) {
	for _, p := range w.bound {
		p.Done(err)
	}
	if w.conf != nil {
		w.conf(err)
	}
}

// add appends a waiter. Waiters at or above its index belong to entries that its own replaced: they are lost.
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

// take removes the waiters up to index.
func (l *waiterList) take(index uint64) []waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for n < len(l.list) && l.list[n].index <= index {
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

// applied settles the waiters of applied entries.
func (l *waiterList) applied(entries []raftpb.Entry) {
	first, last := entries[0].Index, entries[len(entries)-1].Index
	for _, w := range l.take(last) {
		switch {
		case w.index < first:
			w.done(ErrUnknownOutcome)
		case entries[w.index-first].Term == w.term:
			w.done(nil)
		default:
			w.done(&NotLeaderError{Term: entries[w.index-first].Term, LeaderNode: -1})
		}
	}
}

// covered settles the waiters whose index a snapshot jumped over: nobody can tell.
func (l *waiterList) covered(index uint64) {
	for _, w := range l.take(index) {
		w.done(ErrUnknownOutcome)
	}
}

// abandon settles everybody: the replica stops or is fenced.
func (l *waiterList) abandon() {
	for _, w := range l.take(^uint64(0)) {
		w.done(ErrUnknownOutcome)
	}
}
