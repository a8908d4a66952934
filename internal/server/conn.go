package server

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// readBuffer takes a small request in one system call; what is larger is read past it, into the frame's own buffer.
const readBuffer = 4 << 10

// conn is one client's connection.
type conn struct {
	s        *Server
	listener string
	addr     string
	nc       net.Conn
	in       *bufio.Reader
	ctx      context.Context
	cancel   context.CancelFunc
	begin    Begin
	pending  chan pending

	draining atomic.Bool
	inFlight atomic.Int64 // requests begun and not finished
	lastDone atomic.Int64 // unix ns of the last answer

	// The writer's own, so that an answer allocates nothing.
	head [8]byte
	vec  net.Buffers // backing array
	bufs net.Buffers

	mu    sync.Mutex
	bytes int64         // of frames begun and not finished
	freed chan struct{} // cap 1: bytes shrank
}

// pending is a request between the two stages.
type pending struct {
	finish Finish
	corr   int32
	acct   *account
	size   int64
}

func newConn(s *Server, listener, addr string, nc net.Conn) *conn {
	c := &conn{
		s: s, listener: listener, addr: addr, nc: nc, in: bufio.NewReaderSize(nc, readBuffer),
		pending: make(chan pending, s.cfg.MaxInFlight), freed: make(chan struct{}, 1),
	}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	c.lastDone.Store(time.Now().UnixNano())
	return c
}

// serve is the connection's reader goroutine; it starts the writer and outlives it.
func (c *conn) serve() {
	defer c.s.forget(c)
	begin, closed := c.s.cfg.Handler.Connect(c.listener, c.nc.LocalAddr(), c.nc.RemoteAddr())
	c.begin = begin
	written := make(chan struct{})
	go func() { defer close(written); c.write() }()
	if err := c.read(); err != nil {
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, context.Canceled) {
			c.s.log.Warn("connection closed", "remote", c.addr, "listener", c.listener, "error", err)
		}
		// Nobody will read what is parked.
		c.cancel()
	}
	close(c.pending)
	<-written
	c.cancel()
	c.nc.Close()
	closed()
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
			return err
		}
		if err := c.readRequest(size); err != nil {
			if c.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return err
		}
	}
}

// readRequest takes the frame's body, begins the request and hands it to the writer.
func (c *conn) readRequest(size int) error {
	acct := &account{b: c.s.budget}
	// Waiting for the node's budget is our doing: the time the client has to send its bytes begins after it. It is for the
	// bytes that come next, so that claiming a large frame does not buy the time of one.
	frame, err := readFrame(c.in, size, func(n int64) error {
		err := acct.grow(c.ctx, n)
		c.deadline(time.Now().Add(c.s.ioTime(int(n))))
		return err
	})
	acct.settle()
	if err != nil {
		acct.release()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return io.EOF
		}
		return err
	}
	c.s.metrics.bytesIn.Add(float64(size + 4))
	h, rest, err := parseHeader(frame)
	if err != nil {
		acct.release()
		return err
	}
	c.s.metrics.requests.Inc()
	finish, err := c.begin(c.ctx, h.key, h.version, rest)
	if err != nil {
		c.s.metrics.garbage.Inc()
		acct.release()
		return err
	}
	c.mu.Lock()
	c.bytes += int64(size)
	c.mu.Unlock()
	c.inFlight.Add(1)
	// The writer takes from the channel until it is closed, so this send ends.
	c.pending <- pending{finish: finish, corr: h.correlationID, acct: acct, size: int64(size)}
	return nil
}

// room waits until the connection's own bytes in flight leave room for another frame.
func (c *conn) room() error {
	for {
		c.mu.Lock()
		full := c.bytes >= c.s.cfg.MaxInFlightBytes
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

// readPrefix waits for a frame's first bytes. The idle deadline begins anew while a request is parked.
func (c *conn) readPrefix(prefix []byte) error {
	have := 0
	idleSince := time.Now()
	for {
		deadline := idleSince.Add(c.s.cfg.IdleTimeout)
		if have > 0 {
			deadline = time.Now().Add(c.s.cfg.IOTimeout)
		}
		c.deadline(deadline)
		n, err := io.ReadFull(c.in, prefix[have:])
		have += n
		if err == nil {
			return nil
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return io.EOF
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || have > 0 || c.draining.Load() {
			return err
		}
		busy := c.inFlight.Load() > 0
		if done := time.Unix(0, c.lastDone.Load()); busy {
			idleSince = time.Now()
		} else if done.After(idleSince) {
			idleSince = done
		} else {
			return io.EOF // idle for the whole time: no news for the log
		}
	}
}

// deadline sets the read deadline, unless the connection drains: then it is over already.
func (c *conn) deadline(t time.Time) {
	c.nc.SetReadDeadline(t)
	if c.draining.Load() {
		c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// write is the writer goroutine: it finishes requests in order until the reader closes the channel.
func (c *conn) write() {
	dead := false
	for p := range c.pending {
		payload, release, err := p.finish(c.ctx)
		if err == nil && payload != nil && !dead {
			err = c.answer(p.corr, payload)
		}
		if release != nil {
			release()
		}
		c.done(p)
		if err != nil && !dead {
			dead = true
			if !errors.Is(err, net.ErrClosed) && !errors.Is(err, context.Canceled) {
				c.s.log.Warn("connection closed", "remote", c.addr, "listener", c.listener, "error", err)
			}
			c.cancel()
			c.nc.Close() // the reader wakes up
		}
	}
}

// done gives back what a request held.
func (c *conn) done(p pending) {
	c.lastDone.Store(time.Now().UnixNano())
	c.inFlight.Add(-1)
	p.acct.release()
	c.mu.Lock()
	c.bytes -= p.size
	c.mu.Unlock()
	select {
	case c.freed <- struct{}{}:
	default:
	}
}

// answer writes one response: size, correlation id, payload, in one vectored write.
func (c *conn) answer(corr int32, payload net.Buffers) error {
	size := 4
	for _, b := range payload {
		size += len(b)
	}
	binary.BigEndian.PutUint32(c.head[:], uint32(size))
	binary.BigEndian.PutUint32(c.head[4:], uint32(corr))
	c.vec = append(append(c.vec[:0], c.head[:]), payload...)
	c.bufs = c.vec // WriteTo shortens what it is called on
	c.nc.SetWriteDeadline(time.Now().Add(c.s.ioTime(size)))
	n, err := c.bufs.WriteTo(c.nc)
	clear(c.vec) // what was not written is not kept alive
	c.s.metrics.bytesOut.Add(float64(n))
	return err
}

// ioTime is how long size bytes may take.
func (s *Server) ioTime(size int) time.Duration {
	return s.cfg.IOTimeout + time.Duration(int64(size)/s.cfg.MinRate)*time.Second
}
