package transport

import (
	"io"
	"net"
	"testing"
	"time"
)

// closedSoon fails unless the server ends a connection that says nothing more.
func closedSoon(t *testing.T, nc net.Conn) {
	t.Helper()
	nc.SetReadDeadline(time.Now().Add(bound))
	if _, err := io.Copy(io.Discard, nc); err != nil {
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Fatal("the connection is still open")
		}
	}
}

// Strangers at the peer port, however many and however slow, take a bounded number of connections for a bounded time, and the
// peers do not notice.
func TestStrangersAtThePeerPortAreBounded(t *testing.T) {
	t.Parallel()
	quick := func(c *Config, _ *recorder) {
		c.DialTimeout, c.IdleTimeout, c.MaxConnectionsPerAddr = 300*time.Millisecond, 300*time.Millisecond, 10
	}
	a, b := newNode(t, 1, quick).started(), newNode(t, 2, quick).started()
	a.connect(b)
	b.connect(a)
	a.awaitUp(2)
	b.awaitUp(1)
	var strangers []net.Conn
	refused := 0
	for i := range 40 {
		nc, err := net.Dial("tcp", a.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		strangers = append(strangers, nc)
		if i == 0 {
			// One of them speaks HTTP/2, and opens no stream: it is not kept for that. Where this test is slow it has been closed already.
			_, _ = nc.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		}
	}
	for _, nc := range strangers {
		closedSoon(t, nc)
		refused++
	}
	if lines := a.log.lines("refused a connection to the peer port"); refused != 40 || len(lines) == 0 {
		t.Errorf("%d closed, %d lines in the log", refused, len(lines))
	}
	a.cl.Send(2, heartbeat(7, 2, 1))
	within(t, "the peers still speak", func() bool { return len(b.rec.received()) > 0 })
}
