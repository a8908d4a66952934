package admin

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
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
		nc.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.Copy(io.Discard, nc); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatal("a connection that sends no whole header is kept")
			}
		}
	}
	large := "GET /healthz HTTP/1.1\r\nX: " + strings.Repeat("x", 64<<10)
	for what, c := range map[string]struct {
		request string
		want    int
	}{
		"a header of 64 KiB": {large, http.StatusRequestHeaderFieldsTooLarge}, "who asks properly": {"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", http.StatusOK},
	} {
		// Whoever is too slow for the header's time has no answer, and a connection that was closed may still be counted: it is asked again then.
		deadline := time.Now().Add(time.Minute)
		for code, err := ask(s.Addr(), c.request); code != c.want; code, err = ask(s.Addr(), c.request) {
			if code != 0 || time.Now().After(deadline) {
				t.Fatalf("%s: status %d, %v", what, code, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// ask sends a request over a connection of its own, and returns the status of the answer; 0: there was none.
func ask(addr, request string) (code int, err error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	sent := make(chan struct{})
	defer func() { nc.Close(); <-sent }()
	go func() {
		defer close(sent)
		_, _ = io.WriteString(nc, request) // it may be refused before it has been sent
	}()
	nc.SetReadDeadline(time.Now().Add(time.Minute))
	res, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		return 0, err
	}
	res.Body.Close()
	return res.StatusCode, nil
}
