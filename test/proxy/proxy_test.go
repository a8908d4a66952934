package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/freeport"
	"github.com/chronik-go/chronik/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// line is a client of a server that says everything back, over a proxy.
func line(t *testing.T) (*Network, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	n := New(func(_, _ netip.AddrPort) string { return "a" })
	t.Cleanup(func() { l.Close(); <-served })
	t.Cleanup(n.Close)
	ports, err := freeport.Ports(1)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	if err := n.Listen("b", addr, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	return n, dial(t, addr)
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func say(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

// hear reads n bytes, or fails after the given time.
func hear(c net.Conn, n int, within time.Duration) (string, error) {
	_ = c.SetReadDeadline(time.Now().Add(within))
	b := make([]byte, n)
	k, err := io.ReadFull(c, b)
	return string(b[:k]), err
}

const (
	long  = time.Minute
	short = 50 * time.Millisecond // how long nothing must come
)

func expect(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if got, err := hear(c, len(s), long); got != s {
		t.Fatalf("%q, %v; want %q", got, err, s)
	}
}

// eventually waits until cond holds: what was said is with the proxy when it has judged it.
func eventually(t *testing.T, otherwise string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(long); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(otherwise)
		}
	}
}

func expectNothing(t *testing.T, c net.Conn) {
	t.Helper()
	if got, err := hear(c, 1, short); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%q, %v; want nothing", got, err)
	}
}

func TestEachWayIsCutOnItsOwn(t *testing.T) {
	for _, d := range []direction{{"a", "b"}, {"b", "a"}} {
		t.Run(d.String(), func(t *testing.T) {
			n, c := line(t)
			say(t, c, "one")
			expect(t, c, "one")
			n.Set(d.from, d.to, Rule{Stall: true})
			say(t, c, "two")
			eventually(t, "nothing counted", func() bool { return n.Counts("a", "b").Stalled > 0 })
			expectNothing(t, c)
			n.Heal()
			expect(t, c, "two")
			n.Set("a", "c", Rule{Stall: true}) // another's
			say(t, c, "three")
			expect(t, c, "three")
		})
	}
}

func TestSwallowedBytesEndTheConnectionLater(t *testing.T) {
	n, c := line(t)
	say(t, c, "one")
	expect(t, c, "one")
	n.Set("a", "b", Rule{Swallow: true})
	say(t, c, "two")
	eventually(t, "three bytes were to be swallowed", func() bool { return n.Counts("b", "a").Swallowed == 3 })
	expectNothing(t, c)
	n.Set("a", "b", Rule{})
	if got, err := hear(c, 1, long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection goes on without what was lost: %q, %v", got, err)
	}
}

func TestResetAndRefuse(t *testing.T) {
	n, c := line(t)
	say(t, c, "one")
	expect(t, c, "one")
	if k := n.Reset("b", "a"); k != 1 {
		t.Errorf("%d connections", k)
	}
	if _, err := hear(c, 1, long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after a reset: %v", err)
	}
	n.Set("a", "b", Rule{Refuse: true})
	if refused, err := net.Dial("tcp", c.RemoteAddr().String()); err == nil { // else it was reset at once
		if _, err := hear(refused, 1, long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("refused: %v", err)
		}
		refused.Close()
	}
	n.Heal()
	again := dial(t, c.RemoteAddr().String())
	say(t, again, "two")
	expect(t, again, "two")
	if k := n.Counts("a", "b"); k.Reset != 1 || k.Refused != 1 || k.Connections != 2 {
		t.Errorf("%+v", k)
	}
}

func TestDelayAndPaceKeepTheOrder(t *testing.T) {
	n, c := line(t)
	for _, r := range []Rule{{Delay: 30 * time.Millisecond}, {BytesPerSecond: 30}, {}} {
		n.Set("a", "b", r)
		began := time.Now()
		say(t, c, "one")
		say(t, c, "two")
		expect(t, c, "onetwo")
		if took := time.Since(began); took < r.Delay {
			t.Errorf("%+v: after %v", r, took)
		}
	}
	if k := n.Counts("a", "b"); k.Delayed == 0 || k.Throttled < 2 {
		t.Errorf("%+v", k)
	}
}

func TestAClosedSideIsPassedOn(t *testing.T) {
	_, c := line(t)
	say(t, c, "one")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "one")
	if _, err := hear(c, 1, long); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
