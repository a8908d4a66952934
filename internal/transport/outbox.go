package transport

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
)

// OutboxConfig sets an Outbox's bounds.
type OutboxConfig struct {
	MaxBytes   int // cap of what waits while connected
	DownBytes  int // cap of what waits while not connected
	FrameBytes int // a frame takes no further message beyond this
	FrameCount int // most messages in a frame
	// TrackInFlight makes Break report also the replicas that were sent something lately: what was in the socket's and
	// gRPC's buffers is lost without anybody saying so.
	TrackInFlight bool
	Clock         clock.Clock
	// Dropped is called from Step, and from nowhere else; see Handler.HandleDropped.
	Dropped func(group, to uint64, snapshot bool)
}

// Sink takes a frame's worth of messages to the network. It may block. The slice is the caller's again when it returns.
type Sink func([]Envelope) error

// Outbox is the queue of messages to one peer on one stream. Push may be called from anywhere; Step is the consumer's, on
// one goroutine or a simulator's thread: it reports what was dropped and hands one frame to the Sink.
//
// Dropped messages are reported once per burst for each group and replica, every dropped MsgSnap always (a lost one stalls
// its follower until raft is told). A burst ends when a message for that replica is accepted while a stream is up, or when
// a stream comes up.
type Outbox struct {
	cfg OutboxConfig

	mu    sync.Mutex
	wake  sync.Cond
	queue ring
	sink  Sink
	gen   uint64 // counts Attach and Break: a sink's error is about its own generation only
	stop  bool

	burst   map[dropKey]struct{} // reported, or about to be, in the current burst
	reports []dropReport
	pending map[dropKey]int // index into reports

	sent, sentBefore map[dropKey]bool // replicas sent to, value: a MsgSnap was among it; two generations
	rotated          time.Time

	stats OutboxStats

	batch []Envelope // Step's own
}

// OutboxStats counts what went through an Outbox since it was made.
type OutboxStats struct {
	Frames, Messages, Bytes uint64 // handed to the sink, whether or not it arrived
	Dropped                 uint64 // messages refused or discarded
	QueuedBytes             int    // waiting now
}

type dropKey struct{ group, to uint64 }

type dropReport struct {
	dropKey
	snapshot bool
}

// inFlightFor is how long a sent message may be undelivered before keepalive has ended its connection.
const inFlightFor = 20 * time.Second

// NewOutbox returns an empty Outbox with no stream.
func NewOutbox(cfg OutboxConfig) *Outbox {
	if cfg.FrameCount <= 0 {
		cfg.FrameCount = 4096
	}
	o := &Outbox{cfg: cfg, burst: map[dropKey]struct{}{}, pending: map[dropKey]int{}, rotated: cfg.Clock.Now()}
	o.wake.L = &o.mu
	if cfg.TrackInFlight {
		o.sent, o.sentBefore = map[dropKey]bool{}, map[dropKey]bool{}
	}
	return o
}

// Push queues a message, or drops it when the queue is full or closed, and says which. It never blocks.
func (o *Outbox) Push(env Envelope) bool {
	size := env.size()
	o.mu.Lock()
	defer o.mu.Unlock()
	limit := o.cfg.MaxBytes
	if o.sink == nil {
		limit = min(limit, o.cfg.DownBytes)
	}
	// An empty queue takes any one message, so that none is too large for ever.
	if o.stop || (o.queue.bytes+size > limit && o.queue.n > 0) {
		o.dropLocked(&env)
		o.wake.Signal()
		return false
	}
	o.queue.push(env, size)
	if o.sink != nil {
		if len(o.burst) > 0 {
			delete(o.burst, dropKey{env.Group, env.To})
		}
		o.wake.Signal()
	}
	return true
}

// Refuse reports a message as dropped that was never pushed.
func (o *Outbox) Refuse(env Envelope) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dropLocked(&env)
	o.wake.Signal()
}

// Attach gives the Outbox a stream. What was queued goes out through it first.
func (o *Outbox) Attach(sink Sink) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sink = sink
	o.gen++
	clear(o.burst)
	o.wake.Signal()
}

// Break says that the stream is gone, or could not be had. Everything queued is dropped, and reported by the next Step.
func (o *Outbox) Break() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.breakLocked()
	o.wake.Signal()
}

func (o *Outbox) breakLocked() {
	o.sink = nil
	o.gen++
	for o.queue.n > 0 {
		env, _ := o.queue.pop()
		o.dropLocked(&env)
	}
	if !o.cfg.TrackInFlight {
		return
	}
	first := len(o.reports)
	for _, m := range []map[dropKey]bool{o.sent, o.sentBefore} {
		for key, snapshot := range m {
			o.reportLocked(key, snapshot)
		}
		clear(m)
	}
	// The map's order must not show.
	slices.SortFunc(o.reports[first:], func(a, b dropReport) int {
		return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.to, b.to))
	})
	for i := first; i < len(o.reports); i++ {
		o.pending[o.reports[i].dropKey] = i
	}
}

func (o *Outbox) dropLocked(env *Envelope) {
	o.stats.Dropped++
	o.reportLocked(dropKey{env.Group, env.To}, env.isSnapshot())
}

func (o *Outbox) reportLocked(key dropKey, snapshot bool) {
	if key.group == 0 { // between nodes: no raft group to tell
		return
	}
	if i, ok := o.pending[key]; ok {
		o.reports[i].snapshot = o.reports[i].snapshot || snapshot
		return
	}
	if _, ok := o.burst[key]; ok && !snapshot {
		return
	}
	o.burst[key] = struct{}{}
	o.pending[key] = len(o.reports)
	o.reports = append(o.reports, dropReport{key, snapshot})
}

// Step reports what was dropped, then hands at most one frame to the sink; it returns whether more is ready.
func (o *Outbox) Step() (more bool) {
	o.mu.Lock()
	reports := o.reports
	o.reports = nil
	clear(o.pending)
	sink, gen := o.sink, o.gen
	if sink != nil && o.queue.n > 0 {
		o.takeLocked()
	} else {
		sink = nil
	}
	o.mu.Unlock()

	for _, r := range reports {
		o.cfg.Dropped(r.group, r.to, r.snapshot)
	}
	if sink == nil {
		return false
	}
	err := sink(o.batch)

	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		for i := range o.batch {
			o.dropLocked(&o.batch[i])
		}
		if o.gen == gen {
			o.breakLocked()
		}
	}
	clear(o.batch)
	o.batch = o.batch[:0]
	return o.readyLocked()
}

// takeLocked moves a frame's worth from the queue to o.batch.
func (o *Outbox) takeLocked() {
	if o.cfg.TrackInFlight {
		if now := o.cfg.Clock.Now(); now.Sub(o.rotated) >= inFlightFor {
			o.sent, o.sentBefore = o.sentBefore, o.sent
			clear(o.sent)
			o.rotated = now
		}
	}
	bytes := 0
	for o.queue.n > 0 && len(o.batch) < o.cfg.FrameCount {
		size := o.queue.headSize()
		if len(o.batch) > 0 && bytes+size > o.cfg.FrameBytes {
			break
		}
		env, _ := o.queue.pop()
		bytes += size
		if o.cfg.TrackInFlight && env.Group != 0 {
			key := dropKey{env.Group, env.To}
			if snapshot, ok := o.sent[key]; !ok || (!snapshot && env.isSnapshot()) {
				o.sent[key] = env.isSnapshot()
			}
		}
		o.batch = append(o.batch, env)
	}
	o.stats.Frames++
	o.stats.Messages += uint64(len(o.batch))
	o.stats.Bytes += uint64(bytes)
}

func (o *Outbox) readyLocked() bool {
	return len(o.reports) > 0 || (o.sink != nil && o.queue.n > 0)
}

// Wait blocks until Step has something to do and returns true, or false once the Outbox is closed and nothing is left to
// report.
func (o *Outbox) Wait() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.readyLocked() {
		if o.stop {
			return false
		}
		o.wake.Wait()
	}
	return true
}

// Close drops what is queued, and everything pushed from now on.
func (o *Outbox) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stop = true
	o.breakLocked()
	o.wake.Broadcast()
}

// Stats returns the counters.
func (o *Outbox) Stats() OutboxStats {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.stats
	s.QueuedBytes = o.queue.bytes
	return s
}

// ring is a growing circular queue of envelopes and their sizes.
type ring struct {
	items   []queued
	head, n int
	bytes   int
}

type queued struct {
	env  Envelope
	size int
}

func (r *ring) push(env Envelope, size int) {
	if r.n == len(r.items) {
		items := make([]queued, max(16, 2*len(r.items)))
		k := copy(items, r.items[r.head:])
		copy(items[k:], r.items[:r.head])
		r.items, r.head = items, 0
	}
	r.items[(r.head+r.n)%len(r.items)] = queued{env, size}
	r.n++
	r.bytes += size
}

func (r *ring) headSize() int { return r.items[r.head].size }

func (r *ring) pop() (Envelope, int) {
	q := r.items[r.head]
	r.items[r.head] = queued{}
	r.head = (r.head + 1) % len(r.items)
	r.n--
	r.bytes -= q.size
	if r.n == 0 && len(r.items) > 1024 { // a burst's memory is not kept
		r.items, r.head = nil, 0
	}
	return q.env, q.size
}
