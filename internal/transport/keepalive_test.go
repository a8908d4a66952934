package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// http2Conn speaks as much HTTP/2 as a keepalive needs, so that a test may probe faster than gRPC's client does, or not answer.
type http2Conn struct {
	t  *testing.T
	nc net.Conn
}

const (
	frameSettings = 4
	framePing     = 6
	frameGoAway   = 7
)

func dialHTTP2(t *testing.T, addr string) *http2Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	c := &http2Conn{t, nc}
	if _, err := io.WriteString(nc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	c.write(frameSettings, nil)
	return c
}

func (c *http2Conn) write(kind byte, payload []byte) {
	c.t.Helper()
	head := []byte{0, 0, byte(len(payload)), kind, 0, 0, 0, 0, 0}
	if _, err := c.nc.Write(append(head, payload...)); err != nil {
		c.t.Fatalf("frame of type %d: %v", kind, err)
	}
}

// read returns the next frame that comes within d.
func (c *http2Conn) read(d time.Duration) (kind, flags byte, payload []byte, err error) {
	c.nc.SetReadDeadline(time.Now().Add(d))
	var head [9]byte
	if _, err = io.ReadFull(c.nc, head[:]); err != nil {
		return 0, 0, nil, err
	}
	payload = make([]byte, binary.BigEndian.Uint32(append([]byte{0}, head[:3]...)))
	_, err = io.ReadFull(c.nc, payload)
	return head[3], head[4], payload, err
}

// The lineage: idle connections ended at 23 s, since the server took the client's probes for a flood. Left alone, gRPC allows one
// in five minutes.
func TestProbesOfAnIdleConnectionAreWelcome(t *testing.T) {
	const keep = 400 * time.Millisecond
	b := newNode(t, 2, func(c *Config, _ *recorder) { c.KeepaliveTime = keep }).started()
	c := dialHTTP2(t, b.addr())
	for n := range 6 {
		c.write(framePing, []byte{'p', 'r', 'o', 'b', 'e', 0, 0, byte(n)})
		for {
			kind, flags, payload, err := c.read(bound)
			if err != nil || kind == frameGoAway {
				t.Fatalf("probe %d: the server ends the connection: %q, %v", n, payload, err)
			}
			if kind == framePing && flags&1 != 0 {
				break
			}
		}
		time.Sleep(keep / 2) // the interval between probes is what the test is about
	}
}

// The lineage had no keepalive: what a power cut or a lost link left half open stayed. A peer that answers no probe is gone.
func TestHalfOpenConnectionIsEnded(t *testing.T) {
	b := newNode(t, 2, func(c *Config, _ *recorder) {
		c.KeepaliveTime, c.KeepaliveTimeout = 2*time.Second, 2*time.Second // gRPC's server probes once a second at most
	}).started()
	c := dialHTTP2(t, b.addr())
	probed := false
	for {
		kind, flags, _, err := c.read(bound)
		if err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() || !probed {
				t.Fatalf("probed %v, not ended: %v", probed, err)
			}
			return
		}
		probed = probed || kind == framePing && flags&1 == 0 // and is not answered
	}
}

// vanishing is a connection to a machine that may lose its power: then nothing arrives any more, and nothing says so.
type vanishing struct {
	net.Conn
	gone *atomic.Bool
}

func (v vanishing) Write(b []byte) (int, error) {
	if v.gone.Load() {
		return len(b), nil
	}
	return v.Conn.Write(b)
}

// The other end of a half-open connection: who sends to a machine that has vanished learns of it by its own probes.
func TestAPeerThatVanishesIsNoticed(t *testing.T) {
	t.Parallel() // gRPC's client probes every ten seconds at most
	var gone atomic.Bool
	a := newNode(t, 1, func(c *Config, _ *recorder) {
		c.KeepaliveTime, c.KeepaliveTimeout = 10*time.Second, time.Second
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			if gone.Load() {
				return nil, errors.New("no route to host")
			}
			nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			return vanishing{nc, &gone}, nil
		}
	})
	b := newNode(t, 2, func(c *Config, _ *recorder) { c.KeepaliveTime = time.Hour }).started()
	a.connect(b)
	gone.Store(true)
	within(t, "the peer is known to be down", func() bool { return !a.cl.Connected(2) })
	// A machine that does other things beside may have found it down, and up again, before.
	within(t, "raft hears of it", func() bool { return strings.HasSuffix(a.rec.history(), "up 2, down 2") })
}
