package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// conn is one connection passed on: two sockets and a pump for each direction.
type conn struct {
	net            *Network
	up             direction // who called whom
	client, server *net.TCPConn
	lost           map[direction]bool // under net.mu: bytes were swallowed

	once   sync.Once
	closed chan struct{}
}

// reset ends both sockets at once, with RST where something was under way.
func (c *conn) reset() {
	c.once.Do(func() {
		close(c.closed)
		abort(c.client)
		abort(c.server)
	})
}

const (
	pieceBytes = 32 << 10
	// inFlight bounds the pieces that wait out their delay, on one connection and direction.
	inFlight = 256
)

type piece struct {
	due time.Time
	b   []byte // nil: the sender has closed its side
}

// pump moves bytes from src to dst as the direction's rule says, until one of them ends or the connection is reset.
func (c *conn) pump(dst, src *net.TCPConn, d direction) {
	pieces := make(chan piece, inFlight)
	var out sync.WaitGroup
	out.Go(func() { c.deliver(dst, d, pieces) })
	defer out.Wait()
	defer close(pieces)
	buf := make([]byte, pieceBytes)
	for {
		k, err := src.Read(buf)
		if k > 0 && !c.take(d, buf[:k], pieces) {
			return
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				c.reset() // the other end shall see it as it was
				return
			}
			c.push(pieces, piece{due: time.Now().Add(c.delay(d))})
			return
		}
	}
}

// take judges what was read. False: the connection has ended.
func (c *conn) take(d direction, b []byte, pieces chan<- piece) bool {
	for {
		r, changed := c.net.rule(d)
		switch {
		case r.Swallow:
			c.net.mu.Lock()
			c.net.countLocked(d, func(s *Counts) { s.Swallowed += len(b) })
			c.lost[d] = true
			c.net.mu.Unlock()
			return true
		case r.Stall:
			c.net.count(d, func(s *Counts) { s.Stalled++ })
			select {
			case <-changed:
				continue
			case <-c.closed:
				return false
			}
		case c.missing(d):
			c.reset() // the rule was lifted, and bytes are missing
			return false
		}
		if r.Delay > 0 {
			c.net.count(d, func(s *Counts) { s.Delayed++ })
		}
		return c.push(pieces, piece{due: time.Now().Add(r.Delay), b: append([]byte(nil), b...)})
	}
}

func (c *conn) missing(d direction) bool {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	return c.lost[d]
}

func (c *conn) delay(d direction) time.Duration { r, _ := c.net.rule(d); return r.Delay }

func (c *conn) push(pieces chan<- piece, p piece) bool {
	select {
	case pieces <- p:
		return true
	case <-c.closed:
		return false
	}
}

// deliver writes pieces when they are due, at the pace that the rule allows.
func (c *conn) deliver(dst *net.TCPConn, d direction, pieces <-chan piece) {
	for p := range pieces {
		if !c.sleep(time.Until(p.due)) {
			continue // until the pump has seen it too
		}
		if p.b == nil {
			_ = dst.CloseWrite()
			continue
		}
		for len(p.b) > 0 {
			step := len(p.b)
			if r, _ := c.net.rule(d); r.BytesPerSecond > 0 {
				const parts = 10 // a second
				step = min(step, max(1, r.BytesPerSecond/parts))
				c.net.count(d, func(s *Counts) { s.Throttled++ })
				if !c.sleep(time.Second / parts) {
					break
				}
			}
			k, err := dst.Write(p.b[:step])
			if err != nil {
				c.reset()
				break
			}
			p.b = p.b[k:]
		}
	}
}

// sleep waits; false: the connection has ended.
func (c *conn) sleep(d time.Duration) bool {
	if d <= 0 {
		select {
		case <-c.closed:
			return false
		default:
			return true
		}
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.closed:
		return false
	}
}
