// Package proxy is a network between processes that can be broken: TCP listeners that pass connections on, and rules for what
// happens to the bytes between any two parties, each direction on its own.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Rule is what happens to bytes that go one way between two parties. The zero Rule passes them.
type Rule struct {
	// Stall holds everything back: what a network without packets looks like from above TCP. What is held goes on once the
	// rule is lifted. A connection made meanwhile is accepted, and nothing passes.
	Stall bool
	// Swallow takes everything and passes nothing on: the other end has forgotten the connection. Since bytes are missing
	// afterwards, a connection that had any swallowed is reset when the rule is lifted.
	Swallow bool
	// Refuse resets connections as they are made.
	Refuse bool
	// Delay is what each piece waits; pieces keep their order and do not wait for each other.
	Delay time.Duration
	// BytesPerSecond throttles; 0: not at all.
	BytesPerSecond int
}

// Counts is what rules have done, for a test that must know that its faults took place.
type Counts struct {
	Connections int // passed on
	Refused     int
	Stalled     int // pieces held back
	Swallowed   int // bytes
	Delayed     int // pieces
	Throttled   int // pieces
	Reset       int // connections
}

type direction struct{ from, to string }

// Network is the proxies and the rules. Make it with New; Close ends everything.
type Network struct {
	identify func(client, server netip.AddrPort) string
	ctx      context.Context
	cancel   context.CancelFunc
	tasks    sync.WaitGroup

	mu        sync.Mutex
	listeners []net.Listener
	rules     map[direction]Rule
	changed   chan struct{} // closed when rules change
	conns     map[*conn]bool
	counts    map[direction]Counts
}

// New returns a network without listeners. identify names the party at the far end of a connection, by the
// addresses of its two ends.
func New(identify func(client, server netip.AddrPort) string) *Network {
	ctx, cancel := context.WithCancel(context.Background())
	return &Network{identify: identify, ctx: ctx, cancel: cancel, rules: map[direction]Rule{}, changed: make(chan struct{}),
		conns: map[*conn]bool{}, counts: map[direction]Counts{}}
}

// Listen passes connections to addr on to target, where the party called name listens.
func (n *Network) Listen(name, addr, target string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.listeners = append(n.listeners, l)
	n.mu.Unlock()
	n.tasks.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(10 * time.Millisecond) // no descriptors, perhaps
				continue
			}
			n.tasks.Go(func() { n.serve(name, target, c.(*net.TCPConn)) })
		}
	})
	return nil
}

// Set sets the rule for bytes from one party to another, which may be both new connections and those there are.
func (n *Network) Set(from, to string, r Rule) {
	n.change(func() {
		d := direction{from, to}
		if n.rules[d].Swallow && !r.Swallow {
			n.resetLocked(func(c *conn) bool { return c.lost[d] })
		}
		n.rules[d] = r
	})
}

// Heal lifts all rules.
func (n *Network) Heal() {
	n.change(func() {
		n.resetLocked(func(c *conn) bool { return len(c.lost) > 0 })
		clear(n.rules)
	})
}

// Reset breaks the connections between two parties, whoever made them, and returns how many there were.
func (n *Network) Reset(a, b string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.resetLocked(func(c *conn) bool { return c.up == direction{a, b} || c.up == direction{b, a} })
}

func (n *Network) resetLocked(which func(*conn) bool) int {
	k := 0
	for c := range n.conns {
		if which(c) {
			c.reset()
			n.countLocked(c.up, func(s *Counts) { s.Reset++ })
			k++
		}
	}
	return k
}

func (n *Network) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

// Counts adds up what happened between two parties, both ways.
func (n *Network) Counts(a, b string) Counts {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, o := n.counts[direction{a, b}], n.counts[direction{b, a}]
	return Counts{s.Connections + o.Connections, s.Refused + o.Refused, s.Stalled + o.Stalled, s.Swallowed + o.Swallowed,
		s.Delayed + o.Delayed, s.Throttled + o.Throttled, s.Reset + o.Reset}
}

// Parties names who has been seen, as the end of a connection.
func (n *Network) Parties() map[string]bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[string]bool{}
	for d := range maps.Keys(n.counts) {
		out[d.from], out[d.to] = true, true
	}
	return out
}

func (n *Network) count(d direction, f func(*Counts)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.countLocked(d, f)
}

func (n *Network) countLocked(d direction, f func(*Counts)) {
	s := n.counts[d]
	f(&s)
	n.counts[d] = s
}

// rule returns the rule in force and a channel that is closed when it may have changed.
func (n *Network) rule(d direction) (Rule, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rules[d], n.changed
}

// Close ends listeners and connections, and waits for all of it.
func (n *Network) Close() {
	n.cancel()
	n.mu.Lock()
	for _, l := range n.listeners {
		l.Close()
	}
	for c := range n.conns {
		c.reset()
	}
	n.mu.Unlock()
	n.tasks.Wait()
}

// serve passes one connection on.
func (n *Network) serve(name, target string, client *net.TCPConn) {
	up := direction{n.identify(client.RemoteAddr().(*net.TCPAddr).AddrPort(), client.LocalAddr().(*net.TCPAddr).AddrPort()), name}
	if r, _ := n.rule(up); r.Refuse {
		n.count(up, func(s *Counts) { s.Refused++ })
		abort(client)
		return
	}
	server, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		abort(client) // as a host does where nothing listens
		return
	}
	c := &conn{net: n, up: up, client: client, server: server.(*net.TCPConn), lost: map[direction]bool{}, closed: make(chan struct{})}
	n.mu.Lock()
	dead := n.ctx.Err() != nil
	if !dead {
		n.conns[c] = true
		n.countLocked(up, func(s *Counts) { s.Connections++ })
	}
	n.mu.Unlock()
	if dead {
		abort(client)
		abort(c.server)
		return
	}
	var both sync.WaitGroup
	both.Go(func() { c.pump(c.server, c.client, up) })
	both.Go(func() { c.pump(c.client, c.server, direction{up.to, up.from}) })
	both.Wait()
	c.reset()
	n.mu.Lock()
	delete(n.conns, c)
	n.mu.Unlock()
}

func abort(c *net.TCPConn) {
	_ = c.SetLinger(0) // RST
	c.Close()
}

func (d direction) String() string { return fmt.Sprintf("%s -> %s", d.from, d.to) }
