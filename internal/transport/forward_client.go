package transport

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// forwardClient is the requesting side of the forward stream to one peer. Requests leave in the order pushed; answers come
// in any order and find their request by id.
//
// Requests that fail without an answer are told by step, on one goroutine and in the order they were pushed.
type forwardClient struct {
	cfg  *Config
	node int32

	mu     sync.Mutex
	cond   sync.Cond
	tried  bool // an attempt to connect has had an outcome
	stream grpc.ClientStream
	gen    uint64 // counts streams
	nextID uint64

	bytes   int               // of queue and written
	queue   []*forwardRequest // not written
	written []*forwardRequest // in order; answered ones stay until they reach the front
	waiting map[uint64]*forwardRequest
	failed  []forwardFailure
	closed  bool

	w     frameWriter // step's own
	batch []forwardItem
}

type forwardRequest struct {
	id       uint64
	method   uint16
	body     []byte
	size     int
	deadline time.Time
	done     func([]byte, error)
	ended    bool
}

type forwardFailure struct {
	done func([]byte, error)
	err  error
}

const maxForwards = 64 << 10 // outstanding requests to one peer

func newForwardClient(cfg *Config, node int32) *forwardClient {
	f := &forwardClient{cfg: cfg, node: node, waiting: make(map[uint64]*forwardRequest)}
	f.cond.L = &f.mu
	return f
}

func (f *forwardClient) errorf(errs ...error) error {
	return fmt.Errorf("forward to node %d: %w", f.node, errors.Join(errs...))
}

func (f *forwardClient) push(method uint16, body []byte, done func([]byte, error)) {
	r := &forwardRequest{method: method, body: body, size: len(body) + forwardOverhead, done: done,
		deadline: f.cfg.Clock.Now().Add(f.cfg.ForwardTimeout)}
	f.mu.Lock()
	var err error
	switch {
	case f.closed:
		f.mu.Unlock()
		done(nil, f.errorf(ErrNotSent, ErrClosed))
		return
	case len(body) > MaxBodyBytes:
		err = f.errorf(ErrNotSent, ErrTooLarge)
	case f.stream == nil && f.tried:
		err = f.errorf(ErrNotSent, ErrPeerDown)
	case (f.bytes > 0 && f.bytes+r.size > f.cfg.ForwardBytes) || len(f.queue)+len(f.waiting) >= maxForwards:
		err = f.errorf(ErrNotSent, ErrOverloaded)
	}
	if err != nil {
		f.failed = append(f.failed, forwardFailure{done, err})
	} else {
		f.queue = append(f.queue, r)
		f.bytes += r.size
	}
	f.cond.Signal()
	f.mu.Unlock()
}

// attach implements lane.
func (f *forwardClient) attach(stream grpc.ClientStream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stream, f.tried = stream, true
	f.gen++
	f.cond.Signal()
}

// broken implements lane. Requests that follow a lost one are not sent either: they would overtake its retry.
func (f *forwardClient) broken(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stream, f.tried = nil, true
	f.gen++
	f.failAllLocked(err)
	f.cond.Signal()
}

func (f *forwardClient) failAllLocked(why error) {
	for _, r := range f.written {
		f.failLocked(r, f.errorf(ErrUnknownOutcome, why))
	}
	for _, r := range f.queue {
		f.failLocked(r, f.errorf(ErrNotSent, why))
	}
	f.written, f.queue = nil, nil
	clear(f.waiting)
}

// failLocked ends a request; the caller removes it from queue or written.
func (f *forwardClient) failLocked(r *forwardRequest, err error) {
	if r.ended {
		return
	}
	f.endLocked(r)
	f.failed = append(f.failed, forwardFailure{r.done, err})
}

func (f *forwardClient) endLocked(r *forwardRequest) {
	r.ended = true
	r.body = nil
	f.bytes -= r.size
	delete(f.waiting, r.id)
}

// expire fails requests whose time is up.
func (f *forwardClient) expire(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.written {
		if !r.ended && r.deadline.After(now) {
			break
		}
		f.failLocked(r, f.errorf(ErrUnknownOutcome, fmt.Errorf("no answer within %v", f.cfg.ForwardTimeout)))
		n++
	}
	f.written = f.written[n:]
	n = 0
	for _, r := range f.queue {
		if r.deadline.After(now) {
			break
		}
		f.failLocked(r, f.errorf(ErrNotSent, fmt.Errorf("the peer took nothing for %v", f.cfg.ForwardTimeout)))
		n++
	}
	f.queue = f.queue[n:]
	if len(f.failed) > 0 {
		f.cond.Signal()
	}
}

// receive implements lane.
func (f *forwardClient) receive(stream grpc.ClientStream) error {
	var dec forwardDecoder
	for {
		var in inFrame
		if err := stream.RecvMsg(&in); err != nil {
			return err
		}
		items, err := dec.decode(in.bufs, frameResponses)
		in.free()
		if err != nil {
			return err
		}
		for i := range items {
			f.answered(&items[i])
		}
		dec.forget()
	}
}

func (f *forwardClient) answered(it *forwardItem) {
	f.mu.Lock()
	r := f.waiting[it.id]
	if r != nil {
		f.endLocked(r)
	}
	n := 0
	for n < len(f.written) && f.written[n].ended {
		f.written[n] = nil
		n++
	}
	f.written = f.written[n:]
	if len(f.written) > 2*len(f.waiting)+1024 { // one slow answer must not keep a record of all that overtook it
		f.written = slices.DeleteFunc(f.written, func(r *forwardRequest) bool { return r.ended })
	}
	f.mu.Unlock()
	switch {
	case r == nil: // it expired
	case it.failed:
		r.done(nil, &RemoteError{Node: f.node, Method: r.method, Code: it.code, Message: string(it.body)})
	default:
		r.done(it.body, nil)
	}
}

// wait blocks until step has something to do; false when closed and everything is told.
func (f *forwardClient) wait() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.failed) == 0 && (f.stream == nil || len(f.queue) == 0) {
		if f.closed {
			return false
		}
		f.cond.Wait()
	}
	return true
}

// step tells failures, then writes at most one frame.
func (f *forwardClient) step() {
	f.mu.Lock()
	failed := f.failed
	f.failed = nil
	stream, gen := f.stream, f.gen
	if stream != nil {
		f.takeLocked()
	}
	f.mu.Unlock()
	for _, x := range failed {
		x.done(nil, x.err)
	}
	if len(f.batch) == 0 {
		return
	}
	err := stream.SendMsg(&outFrame{encodeForwards(&f.w, frameForwards, f.batch)})
	clear(f.batch)
	f.batch = f.batch[:0]
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gen == gen { // the link hears the cause itself
		f.stream = nil
		f.gen++
		f.failAllLocked(errors.New("the stream broke"))
	}
}

// takeLocked moves a frame's worth of requests from queue to written. From here on their outcome depends on the peer.
func (f *forwardClient) takeLocked() {
	n, bytes := 0, 0
	for n < len(f.queue) && n < forwardFrameCount && (n == 0 || bytes+f.queue[n].size <= f.cfg.FrameBytes) {
		r := f.queue[n]
		f.nextID++
		r.id = f.nextID
		bytes += r.size
		f.waiting[r.id] = r
		f.written = append(f.written, r)
		f.batch = append(f.batch, forwardItem{id: r.id, method: r.method, body: r.body})
		f.queue[n] = nil
		n++
	}
	if f.queue = f.queue[n:]; len(f.queue) == 0 {
		f.queue = nil
	}
}

func (f *forwardClient) outstanding() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bytes
}

// close fails everything outstanding.
func (f *forwardClient) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.stream = nil
	f.gen++
	f.failAllLocked(ErrClosed)
	f.cond.Broadcast()
}
