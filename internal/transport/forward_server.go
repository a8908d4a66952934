package transport

import (
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
)

// forwardServer is one forward stream's serving side: it bounds what is being handled, and sends answers in the order in
// which they are given.
type forwardServer struct {
	limit int

	mu     sync.Mutex
	cond   sync.Cond
	bytes  int // requests in a handler plus answers not yet sent
	out    []forwardItem
	closed bool
}

func newForwardServer(limit int) *forwardServer {
	fs := &forwardServer{limit: limit}
	fs.cond.L = &fs.mu
	return fs
}

// admit waits until a request of n bytes fits and counts it in; false when the stream is closing. While it waits nothing is
// read from the stream, which is how the peer feels it.
func (fs *forwardServer) admit(n int) bool {
	n += forwardOverhead
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for !fs.closed && fs.bytes > 0 && fs.bytes+n > fs.limit {
		fs.cond.Wait()
	}
	fs.bytes += n
	return !fs.closed
}

// reply returns the function with which the handler answers request id, once; later calls of it do nothing.
func (fs *forwardServer) reply(id uint64, size int) func([]byte, error) {
	var done atomic.Bool
	return func(body []byte, err error) {
		if done.Swap(true) {
			return
		}
		it := forwardItem{id: id, body: body}
		if err == nil && len(body) > MaxBodyBytes {
			err = fmt.Errorf("an answer of %d bytes: %w", len(body), ErrTooLarge)
		}
		if err != nil {
			code, message := remoteCode(err)
			it = forwardItem{id: id, failed: true, code: code, body: []byte(message)}
		}
		fs.mu.Lock()
		defer fs.mu.Unlock()
		fs.bytes += len(it.body) - size
		if !fs.closed {
			fs.out = append(fs.out, it)
		}
		fs.cond.Broadcast()
	}
}

func (fs *forwardServer) close() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.closed = true
	fs.out = nil
	fs.cond.Broadcast()
}

// send writes answers to the stream until close or an error.
func (fs *forwardServer) send(stream grpc.ServerStream) {
	var w frameWriter
	for {
		items, bytes := fs.take()
		if items == nil {
			return
		}
		if err := stream.SendMsg(&outFrame{encodeForwards(&w, frameResponses, items)}); err != nil {
			fs.close() // the stream is broken: RecvMsg tells the handler the same
			return
		}
		fs.mu.Lock()
		fs.bytes -= bytes
		fs.cond.Broadcast()
		fs.mu.Unlock()
	}
}

// take waits for answers and removes a frame's worth; nil when closed.
func (fs *forwardServer) take() (items []forwardItem, bytes int) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for len(fs.out) == 0 && !fs.closed {
		fs.cond.Wait()
	}
	if fs.closed {
		return nil, 0
	}
	n, size := 0, 0
	for n < len(fs.out) && n < forwardFrameCount && (n == 0 || size+len(fs.out[n].body) <= 1<<20) {
		size += len(fs.out[n].body)
		n++
	}
	items = append(items, fs.out[:n]...)
	clear(fs.out[:n])
	if fs.out = fs.out[n:]; len(fs.out) == 0 {
		fs.out = nil
	}
	return items, size + n*forwardOverhead
}
