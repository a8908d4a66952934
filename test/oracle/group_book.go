package oracle

import (
	"fmt"
	"maps"
	"slices"
	"sync"
)

// groupBook is what is known of a group. It is safe for concurrent use.
type groupBook struct {
	mu       sync.Mutex
	seen     map[TP][]ID  // by offset; absent where nothing was consumed
	count    map[TP]int64 // consumed, each record once
	floor    map[TP]int64 // the highest offset that was acknowledged as committed, or told to be
	repeated int
	looks    int
	bad      Violations
	changed  chan struct{}
}

// absent stands for a record that the group has not consumed.
var absent = ID{Writer: -2}

func newGroupBook() *groupBook {
	return &groupBook{seen: map[TP][]ID{}, count: map[TP]int64{}, floor: map[TP]int64{}, changed: make(chan struct{})}
}

func (b *groupBook) violation(tp TP, format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.violate(tp, format, args...)
}

func (b *groupBook) violate(tp TP, format string, args ...any) {
	if len(b.bad) < maxReported {
		b.bad = append(b.bad, fmt.Sprintf("%v: the group: ", tp)+fmt.Sprintf(format, args...))
	}
}

// took enters a record that a member was given. due is the offset it had come to; if the member has not begun yet, what was
// committed when the partition was assigned to it, which it must not begin below.
func (b *groupBook) took(tp TP, offset int64, id ID, due int64, begun bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if begun && offset != due {
		b.violate(tp, "a member is given offset %d where %d is due", offset, due)
	}
	if !begun && offset < due {
		b.violate(tp, "a member begins at %d, although %d was committed before the partition was assigned to it", offset, due)
	}
	for int64(len(b.seen[tp])) <= offset {
		b.seen[tp] = append(b.seen[tp], absent)
	}
	switch was := b.seen[tp][offset]; was {
	case absent:
		b.seen[tp][offset] = id
		b.count[tp]++
	case id:
		b.repeated++
	default:
		b.violate(tp, "%v at %d, where %v was", id, offset, was)
	}
	b.tell()
}

// tell wakes who waits for the book to change. The lock is held.
func (b *groupBook) tell() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// committed enters a commit that was acknowledged.
func (b *groupBook) committed(tp TP, offset int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.floor[tp] = max(b.floor[tp], offset)
	b.tell()
}

// told enters what the cluster says is committed; before is what was known when it was asked.
func (b *groupBook) told(before, now map[TP]int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.looks++
	for tp, floor := range before {
		if at, ok := now[tp]; !ok || at < floor {
			b.violate(tp, "%d is committed, and the cluster says %d (known: %v)", floor, at, ok)
		}
	}
	for tp, at := range now {
		b.floor[tp] = max(b.floor[tp], at)
	}
}

// floors is what is known to be committed.
func (b *groupBook) floors() map[TP]int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.floor)
}

func (b *groupBook) counts() map[TP]int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.count)
}

func (b *groupBook) totals() GroupTotals {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := GroupTotals{Repeated: b.repeated, Looks: b.looks}
	for _, n := range b.count {
		t.Consumed += int(n)
	}
	return t
}

// missing names the offsets below the ends that the group has not consumed: of each partition, how many and the first.
func (b *groupBook) missing(ends map[TP]int64) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for tp, end := range ends {
		if b.count[tp] >= end {
			continue // nothing beyond the end is ever consumed
		}
		first := int64(slices.Index(b.seen[tp], absent))
		if first < 0 {
			first = int64(len(b.seen[tp]))
		}
		out = append(out, fmt.Sprintf("%v: %d of %d, the first at %d", tp, end-b.count[tp], end, first))
	}
	slices.Sort(out)
	return out
}

// uncommitted names the partitions of which less is committed than there is.
func (b *groupBook) uncommitted(ends map[TP]int64) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for tp, end := range ends {
		if b.floor[tp] < end {
			out = append(out, fmt.Sprintf("%v: %d of %d committed", tp, b.floor[tp], end))
		}
	}
	slices.Sort(out)
	return out
}

func (b *groupBook) waitFor() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

func (b *groupBook) err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bad.Err()
}
