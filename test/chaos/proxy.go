// Package chaos runs built servers as processes and breaks what can be broken around them: the processes themselves, the links between
// them and to their clients, their disks. What clients were promised is then held against what is there (package oracle).
package chaos

import (
	"net"
	"sync"
	"time"
)

// fault is what a proxy does to the connections it carries.
type fault struct {
	// refuse closes connections, those that are there and new ones.
	refuse bool
	// toServer and toClient swallow: the bytes of that direction wait, and the connection looks alive. One alone is a one-way cut, both a
	// half-open connection.
	toServer, toClient bool
	// delay holds each piece of both directions back.
	delay time.Duration
}

// proxy carries connections to a server's address. Each is of a party, which who tells from the connection's other end.
type proxy struct {
	listener net.Listener
	target   string
	who      func(remote net.Addr) int
	wg       sync.WaitGroup

	mu     sync.Mutex
	faults map[int]fault // by party; 0: everybody
	conns  map[*carried]bool
	change chan struct{} // closed and replaced when faults change
	closed bool
}

type carried struct {
	party          int
	client, server net.Conn
}

// newProxy listens on a loopback port and carries what comes to target.
func newProxy(listen, target string, who func(net.Addr) int) (*proxy, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: l, target: target, who: who, faults: map[int]fault{}, conns: map[*carried]bool{}, change: make(chan struct{})}
	p.wg.Go(p.accept)
	return p, nil
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

// set gives a party's connections a fault; the zero fault heals them.
func (p *proxy) set(party int, f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[party] = f
	close(p.change)
	p.change = make(chan struct{})
	if f.refuse {
		p.cut(party)
	}
}

// cut closes a party's connections, all of them for 0. mu is held.
func (p *proxy) cut(party int) {
	for c := range p.conns {
		if party == 0 || c.party == party {
			c.client.Close()
			c.server.Close()
		}
	}
}

// reset closes every connection once; new ones are welcome.
func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut(0)
}

// faultOf is what happens to a party's connections now.
func (p *proxy) faultOf(party int) (fault, chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, all := p.faults[party], p.faults[0]
	return fault{f.refuse || all.refuse, f.toServer || all.toServer, f.toClient || all.toClient, max(f.delay, all.delay)}, p.change
}

func (p *proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.carry(c) })
	}
}

func (p *proxy) carry(client net.Conn) {
	defer client.Close()
	party := p.who(client.RemoteAddr())
	if f, _ := p.faultOf(party); f.refuse {
		return
	}
	server, err := net.DialTimeout("tcp", p.target, 2*time.Second)
	if err != nil {
		return
	}
	defer server.Close()
	c := &carried{party: party, client: client, server: server}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.conns[c] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	}()
	var both sync.WaitGroup
	pump := func(to, from net.Conn, held func(fault) bool) {
		p.pump(party, to, from, held)
		to.Close()
		from.Close()
	}
	both.Go(func() { pump(server, client, func(f fault) bool { return f.toServer }) })
	both.Go(func() { pump(client, server, func(f fault) bool { return f.toClient }) })
	both.Wait()
}

// pump copies one direction. What is held stays in its hands: the sender's window fills up, as on a link that has died.
func (p *proxy) pump(party int, to, from net.Conn, held func(fault) bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		for {
			f, changed := p.faultOf(party)
			if f.refuse {
				return
			}
			if !held(f) {
				time.Sleep(f.delay)
				break
			}
			<-changed
			if p.isClosed() {
				return
			}
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *proxy) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// close ends the proxy and waits for its goroutines.
func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	close(p.change)
	p.change = make(chan struct{})
	p.cut(0)
	p.mu.Unlock()
	p.listener.Close()
	p.wg.Wait()
}
