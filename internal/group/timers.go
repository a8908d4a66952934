package group

import (
	"container/heap"
	"time"
)

// timerKind says what a timer is for.
type timerKind uint8

const (
	timerSession           timerKind = iota // a member's session
	timerPending                            // a member id that was handed out and not used yet
	timerJoin                               // a rebalance's end
	timerSync                               // the members' syncs
	timerConsumerSession                    // a session of a consumer group's member
	timerConsumerRebalance                  // until when such a member has to give partitions back
	timerRetention                          // the shard's look for expired offsets
	timerLoad                               // another attempt to load
)

// timer is a deadline. It may lie in the heap once; setting it again moves it.
type timer struct {
	at      time.Duration // on the shard's clock
	seq     uint64        // equal deadlines go in the order set
	pos     int32         // in the heap, from 1; 0: not in it
	kind    timerKind
	group   *group
	member  *member
	session *session
}

// timers are a shard's deadlines, the first one first. A heartbeat does not touch them: it moves the member's deadline, which
// is looked at when its timer is due.
type timers struct {
	heap timerHeap
	seq  uint64
}

func (ts *timers) set(t *timer, at time.Duration) {
	ts.seq++
	t.at, t.seq = at, ts.seq
	if t.pos > 0 {
		heap.Fix(&ts.heap, int(t.pos-1))
		return
	}
	heap.Push(&ts.heap, t)
}

func (ts *timers) stop(t *timer) {
	if t.pos > 0 {
		heap.Remove(&ts.heap, int(t.pos-1))
	}
}

// next returns the first deadline.
func (ts *timers) next() (time.Duration, bool) {
	if len(ts.heap) == 0 {
		return 0, false
	}
	return ts.heap[0].at, true
}

// due takes a timer whose deadline has come, nil if there is none.
func (ts *timers) due(now time.Duration) *timer {
	if len(ts.heap) == 0 || ts.heap[0].at > now {
		return nil
	}
	return heap.Pop(&ts.heap).(*timer)
}

type timerHeap []*timer

func (h timerHeap) Len() int { return len(h) }
func (h timerHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = int32(i+1), int32(j+1)
}
func (h *timerHeap) Push(x any) {
	t := x.(*timer)
	*h = append(*h, t)
	t.pos = int32(len(*h))
}
func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.pos = 0
	return t
}
