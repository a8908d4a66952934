package server

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// conn is one client's connection. An idle one is a goroutine that waits for the socket, and little more.
type conn struct {
	s        *Server
	listener string
	addr     string
	nc       net.Conn
	in       input
	ctx      context.Context
	cancel   context.CancelFunc
	begin    Begin
	draining atomic.Bool

	// The reader's own.
	acct   account   // of the frame that is being read
	spoke  bool      // a frame has begun
	asked  bool      // a request was begun, other than the one for the versions that are spoken
	armed  time.Time // the read deadline that is set; zero: none. It may be too early: then it is set anew.
	writer sync.WaitGroup

	// Of whoever finishes requests: the reader while nothing waits, else the writer.
	out  output
	dead bool // an answer was not written; those that follow are dropped

	mu       sync.Mutex
	writing  bool       // there is a writer
	queue    []pending  // what it has yet to finish
	first    [4]pending // backing array, for a start
	inFlight int        // requests begun and not finished
	bytes    int64      // of their frames
	lastDone time.Time  // of the last answer, or the connection's begin
	full     bool       // the reader waits for freed
	freed    chan struct{}
}

// apiVersions is the key of the request with which a client begins, before those that it connects for.
const apiVersions = 18

// pending is a request between the two stages.
type pending struct {
	finish Finish
	corr   int32
	size   int64
}

func newConn(s *Server, listener, addr string, nc net.Conn) *conn {
	c := &conn{
		s: s, listener: listener, addr: addr, nc: nc,
		acct: account{b: s.budget}, lastDone: time.Now(), freed: make(chan struct{}, 1),
	}
	raw := rawConn(nc)
	c.in.init(nc, raw)
	c.out.init(s, nc, raw)
	c.queue = c.first[:0]
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	return c
}

// serve is the connection's reader goroutine; it outlives the writers that it starts.
func (c *conn) serve() {
	defer c.s.forget(c)
	begin, closed := c.s.cfg.Handler.Connect(c.listener, c.nc.LocalAddr(), c.nc.RemoteAddr())
	c.begin = begin
	if err := c.read(); err != nil {
		c.ended(err)
		// Nobody will read what is parked.
		c.cancel()
	}
	c.writer.Wait()
	c.cancel()
	if c.draining.Load() && !c.asked {
		abort(c.nc)
	}
	c.nc.Close()
	c.in.release()
	closed()
}

// abort has a connection's end reach the client as a reset. Where nothing that was asked for was ever answered, because the server stops,
// clients take an orderly end for a broker that wants SASL or TLS, and give up what they would else try again elsewhere.
func abort(nc net.Conn) {
	if l, ok := nc.(interface{ SetLinger(seconds int) error }); ok {
		_ = l.SetLinger(0) // else it is an orderly end
	}
	nc.Close()
}

// drain makes the reader stop at the next frame's edge (or in a frame that is not whole yet); what was begun is answered.
func (c *conn) drain() {
	c.draining.Store(true)
	c.nc.SetReadDeadline(time.Unix(1, 0))
}

// read takes frames until the connection ends (an error), or the server drains (nil).
func (c *conn) read() error {
	for {
		if err := c.room(); err != nil {
			return err
		}
		var prefix [4]byte
		if err := c.readPrefix(prefix[:]); err != nil {
			if c.draining.Load() {
				return nil
			}
			return err
		}
		size, err := frameSize(prefix, c.s.cfg.MaxFrameBytes)
		if err != nil {
			c.s.metrics.garbage.Inc()
			return &cutError{cutBad, err}
		}
		if err := c.readRequest(size); err != nil {
			if c.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return err
		}
	}
}

// readRequest takes the frame's body, begins the request and has it finished.
func (c *conn) readRequest(size int) error {
	frame, err := readFrame(&c.in, size, c)
	c.acct.settle()
	if err != nil {
		c.acct.release()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return io.EOF
		case errors.Is(err, os.ErrDeadlineExceeded) && !c.draining.Load():
			return &cutError{cutSlowFrame, err}
		}
		return err
	}
	c.s.metrics.bytesIn.Add(float64(size + 4))
	h, rest, err := parseHeader(frame)
	if err != nil {
		c.acct.release()
		return &cutError{cutBad, err}
	}
	c.s.metrics.requests.Inc()
	finish, quick, err := c.begin(c.ctx, h.key, h.version, rest)
	if err != nil {
		c.acct.release()
		var busy interface{ Overloaded() bool }
		switch {
		case c.ctx.Err() != nil:
			return err
		case errors.As(err, &busy) && busy.Overloaded():
			return &cutError{cutMemory, err}
		}
		c.s.metrics.garbage.Inc()
		return &cutError{cutBad, err}
	}
	c.asked = c.asked || h.key != apiVersions
	c.hand(pending{finish: finish, corr: h.correlationID, size: c.acct.handOver()}, quick)
	return nil
}

// grow implements grower: it takes n bytes of the node's budget for the frame. Waiting for them is our doing: the time the
// client has to send its bytes begins after it. It is for the bytes that come next, so that claiming a large frame does not buy
// the time of one.
func (c *conn) grow(n int64) error {
	err := c.acct.grow(c.ctx, n)
	if int64(c.in.buffered()) < n {
		c.deadline(time.Now().Add(c.s.ioTime(int(n))))
	}
	return err
}

// hand has a request finished: here, if it is quick and nothing is before it, else by the writer. To wake another goroutine, or
// to start one, costs more than most requests that are answered at once.
func (c *conn) hand(p pending, quick bool) {
	c.mu.Lock()
	c.inFlight++
	c.bytes += p.size
	if quick && !c.writing {
		c.mu.Unlock()
		c.finish(p)
		return
	}
	c.queue = append(c.queue, p)
	start := !c.writing
	c.writing = true
	c.mu.Unlock()
	if start {
		c.writer.Go(c.write)
	}
}

// room waits until the connection's own requests and bytes in flight leave room for another frame.
func (c *conn) room() error {
	for {
		c.mu.Lock()
		c.full = c.bytes >= c.s.cfg.MaxInFlightBytes || c.inFlight >= c.s.cfg.MaxInFlight
		full := c.full
		c.mu.Unlock()
		if !full {
			return c.ctx.Err()
		}
		select {
		case <-c.freed:
		case <-c.ctx.Done():
			return c.ctx.Err()
		}
	}
}

// readPrefix waits for a frame's first bytes. The idle deadline begins anew while a request is parked. Who has never sent
// anything is given less time.
func (c *conn) readPrefix(prefix []byte) error {
	patience, late := c.s.cfg.IdleTimeout, cutIdle
	if !c.spoke {
		patience, late = min(patience, c.s.cfg.FirstTimeout), cutSilent
	}
	for have := 0; have < len(prefix); {
		if have == 0 && c.in.buffered() == 0 {
			if due := c.idleSince().Add(patience); c.armed.IsZero() || c.armed.After(due) {
				c.deadline(due)
			}
		}
		n, err := c.in.Read(prefix[have:])
		have += n
		switch {
		case n > 0 && have < len(prefix):
			c.deadline(time.Now().Add(c.s.cfg.IOTimeout))
		case n > 0:
		case !errors.Is(err, os.ErrDeadlineExceeded) || c.draining.Load():
			return err
		case have > 0:
			return &cutError{cutSlowFrame, err}
		case !time.Now().Before(c.idleSince().Add(patience)):
			return &cutError{late, err}
		default:
			c.armed = time.Time{} // it was set for an earlier wait
		}
	}
	c.spoke = true
	return nil
}

// idleSince is when the connection had something to do last.
func (c *conn) idleSince() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inFlight > 0 {
		return time.Now()
	}
	return c.lastDone
}

// deadline sets the read deadline, unless the connection drains: then it is over already.
func (c *conn) deadline(t time.Time) {
	c.armed = t
	c.nc.SetReadDeadline(t)
	if c.draining.Load() {
		c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// write is the writer goroutine: it finishes requests in order until there are none.
func (c *conn) write() {
	for {
		c.mu.Lock()
		if len(c.queue) == 0 {
			c.queue = c.first[:0]
			c.writing = false
			c.mu.Unlock()
			return
		}
		p := c.queue[0]
		c.queue[0] = pending{}
		c.queue = c.queue[1:]
		c.mu.Unlock()
		c.finish(p)
	}
}

// finish is a request's second stage.
func (c *conn) finish(p pending) {
	payload, release, err := p.finish(c.ctx)
	if err == nil && payload != nil && !c.dead {
		err = c.out.answer(p.corr, payload)
	}
	if release != nil {
		release()
	}
	c.done(p)
	if err != nil && !c.dead {
		c.dead = true
		c.ended(err)
		c.cancel()
		c.nc.Close() // the reader wakes up
	}
}

// done gives back what a request held.
func (c *conn) done(p pending) {
	c.s.budget.give(p.size)
	c.mu.Lock()
	c.lastDone = time.Now()
	c.inFlight--
	c.bytes -= p.size
	full := c.full
	c.mu.Unlock()
	if full {
		select {
		case c.freed <- struct{}{}:
		default:
		}
	}
}
