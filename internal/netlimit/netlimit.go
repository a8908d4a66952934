// Package netlimit bounds the connections that a listener takes, in all and from one address, for servers of other people's
// making. What is too much is closed at once: nobody who floods a port keeps others from being heard for longer than that.
package netlimit

import (
	"net"
	"sync"
)

// Config bounds a listener. A bound of 0 is none.
type Config struct {
	Total, PerAddr int
	// Refused is told of every connection that was closed, and why; it must not block. May be nil.
	Refused func(remote net.Addr, reason string)
}

// Why a connection is refused.
const (
	TooMany         = "too many connections"
	TooManyFromAddr = "too many connections from this address"
)

// Listener takes no more than it may. It is safe for concurrent use.
type Listener struct {
	net.Listener
	cfg Config

	mu      sync.Mutex
	open    int
	perAddr map[string]int
	refused map[string]int64
}

// New bounds l.
func New(l net.Listener, cfg Config) *Listener {
	return &Listener{Listener: l, cfg: cfg, perAddr: map[string]int{}, refused: map[string]int64{}}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr := host(nc.RemoteAddr())
		reason := l.admit(addr)
		if reason == "" {
			return &conn{Conn: nc, l: l, addr: addr}, nil
		}
		if l.cfg.Refused != nil {
			l.cfg.Refused(nc.RemoteAddr(), reason)
		}
		_ = nc.Close() // refused: nothing was promised
	}
}

func (l *Listener) admit(addr string) (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.cfg.Total > 0 && l.open >= l.cfg.Total:
		reason = TooMany
	case l.cfg.PerAddr > 0 && l.perAddr[addr] >= l.cfg.PerAddr:
		reason = TooManyFromAddr
	}
	if reason != "" {
		l.refused[reason]++
		return reason
	}
	l.open++
	l.perAddr[addr]++
	return ""
}

// Open is how many connections are open.
func (l *Listener) Open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// Refused is how many connections were refused for a reason.
func (l *Listener) Refused(reason string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused[reason]
}

func (l *Listener) forget(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.perAddr[addr]--; l.perAddr[addr] <= 0 {
		delete(l.perAddr, addr)
	}
}

type conn struct {
	net.Conn
	l    *Listener
	addr string
	once sync.Once
}

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { c.l.forget(c.addr) })
	return err
}

func host(a net.Addr) string {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.IP.String()
	}
	return a.String()
}
