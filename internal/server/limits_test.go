package server

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metric reads a gauge or counter, with the given reason if it has one.
func metric(t testing.TB, reg *prometheus.Registry, name, reason string) float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() != "chronik_server_"+name {
			continue
		}
		for _, m := range f.Metric {
			if reason == "" || len(m.Label) > 0 && m.Label[0].GetValue() == reason {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s{%s}", name, reason)
	return 0
}

// What is refused and what is cut is counted by reason, and the most that one address had is remembered.
func TestLimitsAreCounted(t *testing.T) { patiently(t, 50*time.Millisecond, testLimitsAreCounted) }

func testLimitsAreCounted(t testing.TB, unit time.Duration) {
	reg := prometheus.NewRegistry()
	e := newEcho()
	s := start(t, e, func(c *Config) {
		c.Registerer, c.MaxConnectionsPerAddr = reg, 3
		c.IOTimeout, c.IdleTimeout, c.FirstTimeout = 3*unit, 6*unit, 2*unit
	})
	silent := dial(t, s)
	slow := dial(t, s)
	send(t, slow, []byte{0, 0})
	idle := dial(t, s)
	send(t, idle, request(0, 1, nil))
	answer(t, idle)
	until(t, "three are in", func() bool { return metric(t, reg, "connections_accepted_total", "") == 3 })
	closedInTime(t, dial(t, s))
	for _, nc := range []net.Conn{silent, slow, idle} {
		closedInTime(t, nc)
	}
	bad := dial(t, s)
	send(t, bad, []byte{0xff, 0xff, 0xff, 0xff})
	closedInTime(t, bad)
	until(t, "all are counted", func() bool {
		return metric(t, reg, "connections_refused_total", refusedAddr) == 1 && metric(t, reg, "connections_cut_total", cutSilent) == 1 &&
			metric(t, reg, "connections_cut_total", cutSlowFrame) == 1 && metric(t, reg, "connections_cut_total", cutIdle) == 1 &&
			metric(t, reg, "connections_cut_total", cutBad) == 1 && metric(t, reg, "connections", "") == 0
	})
	if peak := metric(t, reg, "connections_per_address_peak", ""); peak != 3 {
		t.Errorf("a peak of %v connections from one address", peak)
	}
}

// While memory is short a client that does not read is cut in a second or two, long before its time is over; one that reads,
// if slowly, is not.
func TestWhoDoesNotReadIsCutFirstWhenMemoryIsShort(t *testing.T) {
	patiently(t, 250*time.Millisecond, func(a testing.TB, unit time.Duration) { testWhoDoesNotReadIsCutFirst(t, a, unit) })
}

// testWhoDoesNotReadIsCutFirst fails a if the one who reads was too slow, and t for everything else.
func testWhoDoesNotReadIsCutFirst(t *testing.T, a testing.TB, unit time.Duration) {
	const size = 32 << 20 // more than the sockets' buffers
	reg := prometheus.NewRegistry()
	s := start(t, newEcho(), func(c *Config) {
		c.Registerer, c.MaxResponseBytes, c.IOTimeout = reg, 2*size+100, time.Minute
		c.writeStep, c.MinRate = unit, int64(64<<10/unit.Seconds()) // 64 KiB in each step
	})
	get := request(2, 1, binary.BigEndian.AppendUint32(nil, size))
	reader := dial(t, s)
	send(t, reader, get)
	var wg sync.WaitGroup
	defer wg.Wait()
	got, gone := make(chan error, 1), make(chan struct{})
	wg.Go(func() {
		buf := make([]byte, 64<<10)
		for left := size + 8; left > 0; {
			reader.SetReadDeadline(time.Now().Add(bound))
			n, err := io.ReadFull(reader, buf[:min(len(buf), left)])
			if err != nil {
				got <- err
				return
			}
			left -= n
			select {
			case <-gone: // the rest need not take long
			case <-time.After(unit / 50): // a slow client: some 3 MiB in each step
			}
		}
		got <- nil
	})
	until(t, "the first is being written", func() bool { return s.responses.Load() >= size })
	deaf := dial(t, s)
	send(t, deaf, get)
	until(t, "the one who does not read is cut", func() bool { return metric(t, reg, "connections_cut_total", cutSlowReader) == 1 })
	close(gone)
	if err := <-got; err != nil {
		a.Fatalf("the one who reads: %v", err)
	}
	until(t, "nothing is held", func() bool { return s.responses.Load() == 0 })
}

// An answer that there is no memory for is dropped with its connection, and the others are served.
func TestResponsesBeyondTheLimitAreDropped(t *testing.T) {
	const size = 32 << 20
	reg := prometheus.NewRegistry()
	s := start(t, newEcho(), func(c *Config) {
		c.Registerer, c.MaxResponseBytes, c.MinRate, c.writeStep = reg, size+size/2, 1, time.Hour // nobody is cut for being slow
	})
	get := request(2, 1, binary.BigEndian.AppendUint32(nil, size))
	one, two := dial(t, s), dial(t, s)
	send(t, one, get)
	until(t, "the first is being written", func() bool { return s.responses.Load() >= size })
	send(t, two, get)
	closedInTime(t, two)
	until(t, "counted", func() bool { return metric(t, reg, "connections_cut_total", cutMemory) == 1 })
	three := dial(t, s)
	send(t, three, request(0, 7, []byte("small")))
	if corr, _ := answer(t, three); corr != 7 {
		t.Error("a small answer is not given")
	}
	one.Close()
}

// scarce is a listener whose process has no descriptors left for a while.
type scarce struct {
	net.Listener
	mu   sync.Mutex
	fail int
}

func (l *scarce) Accept() (net.Conn, error) {
	l.mu.Lock()
	fail := l.fail > 0
	l.fail--
	l.mu.Unlock()
	if fail {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestAcceptSurvivesRunningOutOfDescriptors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, newEcho(), nil)
	s.mu.Lock()
	l := &boundListener{"more", &scarce{Listener: ln, fail: 4}}
	s.listeners = append(s.listeners, l)
	s.mu.Unlock()
	s.wg.Add(1)
	go s.accept(l)
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	send(t, nc, request(0, 5, nil))
	if corr, _ := answer(t, nc); corr != 5 {
		t.Error("not served")
	}
}

// However much a client sends without waiting, its connection costs two goroutines.
func TestGoroutinesOfAConnectionAreBounded(t *testing.T) {
	e := newEcho()
	s := start(t, e, nil)
	before := runtime.NumGoroutine()
	const conns, each = 20, 200
	for range conns {
		nc := dial(t, s)
		var all []byte
		for i := range int32(each) {
			all = append(all, request(1, i, nil)...)
		}
		send(t, nc, all)
	}
	until(t, "all connections have requests under way", func() bool {
		return s.Connections() == conns && e.parked.Load() == conns && e.begun.Load() >= 128*conns
	})
	until(t, "connections have two goroutines each", func() bool { return runtime.NumGoroutine()-before <= 2*conns+2 })
	e.Drain()
}

// A refused answer is no answer: errors that blame the node and not the client are counted as such.
type overloaded struct{ error }

func (overloaded) Overloaded() bool { return true }

type refusing struct{ *echo }

func (r refusing) Connect(l string, a, b net.Addr) (Begin, func()) {
	_, closed := r.echo.Connect(l, a, b)
	return func(context.Context, int16, int16, []byte) (Finish, bool, error) {
		return nil, false, overloaded{errors.New("no memory")}
	}, closed
}

func TestOverloadIsNoBadRequest(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := start(t, refusing{newEcho()}, func(c *Config) { c.Registerer = reg })
	nc := dial(t, s)
	send(t, nc, request(0, 1, nil))
	closedInTime(t, nc)
	until(t, "counted", func() bool { return metric(t, reg, "connections_cut_total", cutMemory) == 1 })
	if n := metric(t, reg, "bad_requests_total", ""); n != 0 {
		t.Errorf("%v bad requests", n)
	}
}
