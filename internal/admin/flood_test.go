package admin

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Connections that are too many are closed at once, those that say nothing in time are cut, a header without end is refused, and
// who asks properly is answered meanwhile.
func TestFloodsOfTheAdminPortAreBounded(t *testing.T) {
	fine := func() error { return nil }
	s, err := Start(Config{Addr: "127.0.0.1:0", Ready: fine, Healthy: fine, Gatherer: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler), MaxConnections: 8,
		HeaderTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var slow []net.Conn
	for range 20 {
		nc, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		_, _ = nc.Write([]byte("GET /healthz HTTP/1.1\r\nX: ")) // it may be closed already
		slow = append(slow, nc)
	}
	for _, nc := range slow {
		nc.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, nc); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatal("a connection that sends no whole header is kept")
			}
		}
	}
	nc, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	go func() {
		line := make([]byte, 64<<10)
		for i := range line {
			line[i] = 'x'
		}
		_, _ = nc.Write(append([]byte("GET /healthz HTTP/1.1\r\nX: "), line...)) // refused meanwhile
	}()
	res, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil || res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 64 KiB: %v, %v", res, err)
	}
	if res, err := http.Get("http://" + s.Addr() + "/healthz"); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("%v, %v", res, err)
	} else {
		res.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
}
