package server

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
	spoke    bool // the reader's own: a frame has begun

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
		c.ended(err)
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
		acct.release()
		return &cutError{cutBad, err}
	}
	c.s.metrics.requests.Inc()
	finish, err := c.begin(c.ctx, h.key, h.version, rest)
	if err != nil {
		acct.release()
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

// readPrefix waits for a frame's first bytes. The idle deadline begins anew while a request is parked. Who has never sent
// anything is given less time.
func (c *conn) readPrefix(prefix []byte) error {
	have := 0
	idleSince := time.Now()
	patience, late := c.s.cfg.IdleTimeout, &cutError{cutIdle, os.ErrDeadlineExceeded}
	if !c.spoke {
		patience, late = min(patience, c.s.cfg.FirstTimeout), &cutError{cutSilent, os.ErrDeadlineExceeded}
	}
	for {
		deadline := idleSince.Add(patience)
		if have > 0 {
			deadline = time.Now().Add(c.s.cfg.IOTimeout)
		}
		c.deadline(deadline)
		n, err := io.ReadFull(c.in, prefix[have:])
		have += n
		if err == nil {
			c.spoke = true
			return nil
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return io.EOF
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || c.draining.Load() {
			return err
		}
		if have > 0 {
			return &cutError{cutSlowFrame, err}
		}
		busy := c.inFlight.Load() > 0
		if done := time.Unix(0, c.lastDone.Load()); busy {
			idleSince = time.Now()
		} else if done.After(idleSince) {
			idleSince = done
		} else {
			return late
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
			c.ended(err)
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

// writeStep is how often a writer looks whether its client reads, while memory is short.
const writeStep = time.Second

// answer writes one response: size, correlation id, payload, in one vectored write if the client keeps up. A client that reads
// slower than MinRate is cut once its time is over, or as soon as others need the memory that waits for it.
func (c *conn) answer(corr int32, payload net.Buffers) error {
	size := 4
	for _, b := range payload {
		size += len(b)
	}
	s := c.s
	held := s.responses.Add(int64(size))
	defer s.responses.Add(-int64(size))
	if held > s.cfg.MaxResponseBytes && held > int64(size) {
		return &cutError{cutMemory, fmt.Errorf("clients have not read %d bytes of answers, and this one has %d", held-int64(size), size)}
	}
	binary.BigEndian.PutUint32(c.head[:], uint32(size))
	binary.BigEndian.PutUint32(c.head[4:], uint32(corr))
	c.vec = append(append(c.vec[:0], c.head[:]), payload...)
	c.bufs = c.vec // WriteTo shortens what it is called on
	defer clear(c.vec)
	end := time.Now().Add(s.ioTime(size))
	for {
		now := time.Now()
		c.nc.SetWriteDeadline(minTime(end, now.Add(writeStep)))
		n, err := c.bufs.WriteTo(c.nc)
		s.metrics.bytesOut.Add(float64(n))
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		short := s.responses.Load() > s.cfg.MaxResponseBytes/2 || s.cfg.Pressed != nil && s.cfg.Pressed()
		if !time.Now().Before(end) || short && n < int64(writeStep.Seconds()*float64(s.cfg.MinRate)) {
			return &cutError{cutSlowReader, err}
		}
	}
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ioTime is how long size bytes may take.
func (s *Server) ioTime(size int) time.Duration {
	return s.cfg.IOTimeout + time.Duration(int64(size)/s.cfg.MinRate)*time.Second
}
