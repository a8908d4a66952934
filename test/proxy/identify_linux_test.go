package proxy

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestByProcess(t *testing.T) {
	_, c := line(t)
	client, server := ends(c)
	mine := ByProcess(func() map[int]string { return map[int]string{os.Getpid(): "me"} }, "other")
	got := mine(client, server)
	for end := time.Now().Add(long); got != "me" && time.Now().Before(end); got = mine(client, server) { // other tests' sockets move the table while it is read
	}
	if got != "me" {
		t.Error(got)
	}
	if got := ByProcess(func() map[int]string { return nil }, "other")(client, server); got != "other" {
		t.Error(got)
	}
	if got := mine(netip.MustParseAddrPort("127.0.0.1:1"), server); got != "other" {
		t.Error(got)
	}
}

// A port that a connection left a minute ago, or has to another server now, does not hide who connects from it. Ports are used again
// wherever many connections come and go.
func TestByProcessWhenThePortIsUsedTwice(t *testing.T) {
	_, first := line(t)
	_, second := line(t)
	_, old := line(t)
	from := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}
	dialer := net.Dialer{LocalAddr: from, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) }), err)
	}}
	var conns []net.Conn
	for _, to := range []net.Conn{old, first, second} {
		c, err := dialer.Dial("tcp", to.RemoteAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		say(t, c, "one")
		expect(t, c, "one")
		from.Port = c.LocalAddr().(*net.TCPAddr).Port
		conns = append(conns, c)
	}
	conns[0].Close() // it waits in the table, nobody's
	mine := ByProcess(func() map[int]string { return map[int]string{os.Getpid(): "me"} }, "other")
	for _, c := range conns[1:] {
		client, server := ends(c)
		got := mine(client, server)
		for end := time.Now().Add(long); got != "me" && time.Now().Before(end); got = mine(client, server) {
		}
		if got != "me" {
			t.Errorf("%v to %v: %s", client, server, got)
		}
	}
}

func ends(c net.Conn) (local, remote netip.AddrPort) {
	return c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
}
