package server

import (
	"errors"
	"net"
	"strconv"
	"syscall"
	"time"
)

// listen binds addr: one listener, or two for "localhost".
func listen(addr string) ([]net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if host != "localhost" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, err
		}
		return []net.Listener{l}, nil
	}
	// With port 0 the port that one family got may be taken in the other: a few tries find one free in both.
	for try := 0; ; try++ {
		v4, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			return nil, err
		}
		bound := strconv.Itoa(v4.Addr().(*net.TCPAddr).Port)
		v6, err := net.Listen("tcp", net.JoinHostPort("::1", bound))
		switch {
		case err == nil:
			return []net.Listener{v4, v6}, nil
		case errors.Is(err, syscall.EADDRINUSE):
			v4.Close()
			if port != "0" || try == 10 {
				return nil, err
			}
		default:
			// A machine without IPv6.
			return []net.Listener{v4}, nil
		}
	}
}

// accept takes connections until the listener closes.
func (s *Server) accept(l *boundListener) {
	defer s.wg.Done()
	backoff := time.Duration(0)
	for {
		nc, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely: wait for some to come back, not in a busy loop.
			backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
			s.log.Warn("accept failed", "listener", l.name, "error", err)
			select {
			case <-time.After(backoff):
				continue
			case <-s.ctx.Done():
				return
			}
		}
		backoff = 0
		s.admit(l, nc)
	}
}

// admit starts a connection unless a limit says no.
func (s *Server) admit(l *boundListener, nc net.Conn) {
	addr := hostOf(nc.RemoteAddr())
	s.mu.Lock()
	reason := ""
	switch {
	case s.draining:
		reason = refusedStopping
	case len(s.conns) >= s.cfg.MaxConnections:
		reason = refusedAll
	case s.perAddr[addr] >= s.cfg.MaxConnectionsPerAddr:
		reason = refusedAddr
	}
	if reason != "" {
		s.mu.Unlock()
		s.metrics.refused.WithLabelValues(reason).Inc()
		s.log.Warn("connection refused", "remote", addr, "reason", reason)
		if reason == refusedStopping {
			abort(nc)
		}
		nc.Close()
		return
	}
	c := newConn(s, l.name, addr, nc)
	s.conns[c] = struct{}{}
	s.perAddr[addr]++
	if s.perAddr[addr] > s.addrPeak {
		s.addrPeak = s.perAddr[addr]
		s.metrics.addrPeak.Set(float64(s.addrPeak))
	}
	s.wg.Add(1)
	s.mu.Unlock()
	s.metrics.accepted.Inc()
	s.metrics.connections.Inc()
	go c.serve()
}

// forget undoes admit.
func (s *Server) forget(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	if s.perAddr[c.addr]--; s.perAddr[c.addr] <= 0 {
		delete(s.perAddr, c.addr)
	}
	s.mu.Unlock()
	s.metrics.connections.Dec()
	s.wg.Done()
}

func hostOf(a net.Addr) string {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.IP.String()
	}
	return a.String()
}
