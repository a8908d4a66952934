package server

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// A connection whose requests are answered at once has one goroutine; a writer is there only while something is waited for.
func TestQuickRequestsNeedNoSecondGoroutine(t *testing.T) {
	e := newEcho()
	s := start(t, e, nil)
	before := runtime.NumGoroutine()
	const n = 20
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = dial(t, s)
		for corr := range int32(3) {
			send(t, conns[i], request(0, corr, []byte("beat")))
			if got, body := answer(t, conns[i]); got != corr || string(body) != "beat" {
				t.Fatalf("%d %q", got, body)
			}
		}
	}
	until(t, "one goroutine for each idle connection", func() bool { return runtime.NumGoroutine()-before <= n })
	for _, nc := range conns {
		send(t, nc, request(1, 9, nil))
	}
	until(t, "all wait", func() bool { return e.parked.Load() == n })
	e.Drain()
	for _, nc := range conns {
		answer(t, nc)
	}
	until(t, "the writers have gone", func() bool { return runtime.NumGoroutine()-before <= n })
}

// A client that reads late gets small answers whole and in order, and others after them: what an answer needed a deadline for does
// not end those that need none.
func TestSmallAnswersSurviveAClientThatReadsLate(t *testing.T) {
	s := start(t, newEcho(), nil)
	nc := dial(t, s)
	const n, size = 8000, 4000 // more than the sockets' buffers
	sent := make(chan error, 1)
	go func() {
		for i := range int32(n) {
			if _, err := nc.Write(request(0, i, bytes.Repeat([]byte{byte(i)}, size))); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	// The sockets are full: one answer stays in the writer's hands.
	var stuck time.Time
	until(t, "an answer waits", func() bool {
		if s.responses.Load() == 0 {
			stuck = time.Now()
		}
		return time.Since(stuck) > 100*time.Millisecond
	})
	frame := make([]byte, 8+size)
	for i := range int32(n) {
		nc.SetReadDeadline(time.Now().Add(bound))
		if _, err := io.ReadFull(nc, frame); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if got := int32(binary.BigEndian.Uint32(frame[4:])); got != i || frame[8] != byte(i) || frame[len(frame)-1] != byte(i) {
			t.Fatalf("answer %d in place of %d", got, i)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	time.Sleep(s.cfg.writeStep + 100*time.Millisecond) // the deadline is over, if it is still set
	send(t, nc, request(0, 7, nil))
	if corr, _ := answer(t, nc); corr != 7 {
		t.Error("not served any more")
	}
}
