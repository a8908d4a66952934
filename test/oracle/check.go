package oracle

import (
	"fmt"
	"slices"
	"strings"
)

// maxReported bounds the violations that are told of one partition: when it goes wrong, it goes wrong by the thousand.
const maxReported = 10

// Violations are what is wrong, in words.
type Violations []string

// Err is nil if there are none.
func (v Violations) Err() error {
	if len(v) == 0 {
		return nil
	}
	return fmt.Errorf("%d violations:\n  %s", len(v), strings.Join(v, "\n  "))
}

// Check holds the partitions' logs, as read back from offset 0 on, against the book: every acknowledged record is there once, at
// the offset that was told; no record is there twice; those of one writer are in the order in which they were sent.
func (l *Ledger) Check(logs map[TP][]ID) Violations {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all Violations
	for tp, a := range l.parts {
		log, ok := logs[tp]
		if !ok && a.acked > 0 {
			all = append(all, fmt.Sprintf("%v: %d acknowledged records, and no log", tp, a.acked))
			continue
		}
		v := l.checkPartition(a, log)
		if len(v) > maxReported {
			v = append(v[:maxReported], fmt.Sprintf("and %d more", len(v)-maxReported))
		}
		for _, s := range v {
			all = append(all, fmt.Sprintf("%v: %s", tp, s))
		}
	}
	slices.Sort(all)
	return all
}

// checkPartition returns what is lost first, since only some of it is told.
func (l *Ledger) checkPartition(a *account, log []ID) []string {
	var v, lost []string
	at := map[ID]int64{}
	last := map[int32]int32{} // by writer: the sequence number last seen, plus one
	for i, id := range log {
		offset := int64(i)
		if id == stranger {
			continue // told when it was read
		}
		if first, twice := at[id]; twice {
			v = append(v, fmt.Sprintf("%v is there twice, at %d and %d", id, first, offset))
			continue
		}
		at[id] = offset
		// Nothing acknowledged is overtaken; of records of unknown fate only an idempotent producer promises an order.
		if l.ordered[id.Writer] || a.fates[id.Writer][id.Seq] >= 0 {
			if id.Seq < last[id.Writer] {
				v = append(v, fmt.Sprintf("%v at %d follows its record %d", id, offset, last[id.Writer]-1))
			}
			last[id.Writer] = id.Seq + 1
		}
	}
	for w := range l.writers {
		for s, told := range a.fates[w] {
			if told < 0 {
				continue
			}
			id := ID{Writer: w, Seq: int32(s)}
			found, ok := at[id]
			switch {
			case !ok && told < int64(len(log)):
				lost = append(lost, fmt.Sprintf("%v, acknowledged at %d, is lost: %v is there", id, told, log[told]))
			case !ok:
				lost = append(lost, fmt.Sprintf("%v, acknowledged at %d, is lost: the log ends at %d", id, told, len(log)))
			case found != told:
				v = append(v, fmt.Sprintf("%v, acknowledged at %d, is at %d", id, told, found))
			}
		}
	}
	return append(lost, v...)
}

// Same holds what a reader has seen on the way against the logs as they are at the end: nothing that was read may go away, or
// become something else.
func Same(reader string, seen, logs map[TP][]ID) Violations {
	var all Violations
	for tp, ids := range seen {
		log := logs[tp]
		for offset, id := range ids {
			if offset >= len(log) {
				all = append(all, fmt.Sprintf("%v: %s has read up to %d, and the log ends at %d", tp, reader, len(ids), len(log)))
				break
			}
			if log[offset] != id {
				all = append(all, fmt.Sprintf("%v: %s has read %v at %d, where %v is now", tp, reader, id, offset, log[offset]))
				break
			}
		}
	}
	slices.Sort(all)
	return all
}
