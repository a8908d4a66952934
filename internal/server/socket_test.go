package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/freeport"
)

// echo is a handler: API key 0 is answered at once with what it held, key 1 is parked until released or the connection
// ends, key 2 is answered with as many bytes as its first four say, key 3 is refused.
type echo struct {
	release  chan struct{}
	begun    atomic.Int64
	parked   atomic.Int64
	canceled atomic.Int64
	freed    atomic.Int64
	closed   atomic.Int64
	drained  atomic.Int64
	drain    sync.Once
}

func newEcho() *echo { return &echo{release: make(chan struct{})} }

var errRefused = errors.New("refused")

func (e *echo) Connect(string, net.Addr, net.Addr) (Begin, func()) {
	return e.begin, func() { e.closed.Add(1) }
}

func (e *echo) Drain() {
	e.drained.Add(1)
	e.drain.Do(func() { close(e.release) })
}

func (e *echo) begin(_ context.Context, key, _ int16, rest []byte) (Finish, bool, error) {
	e.begun.Add(1)
	free := func() { e.freed.Add(1) }
	switch key {
	case 0, apiVersions:
		return func(context.Context) (net.Buffers, func(), error) { return net.Buffers{rest}, free, nil }, true, nil
	case 1:
		return func(ctx context.Context) (net.Buffers, func(), error) {
			e.parked.Add(1)
			defer e.parked.Add(-1)
			select {
			case <-e.release:
				return net.Buffers{rest}, free, nil
			case <-ctx.Done():
				e.canceled.Add(1)
				return nil, free, ctx.Err()
			}
		}, false, nil
	case 2:
		return func(context.Context) (net.Buffers, func(), error) {
			return net.Buffers{make([]byte, binary.BigEndian.Uint32(rest))}, free, nil
		}, false, nil
	}
	return nil, false, errRefused
}

// lines counts log lines.
type lines struct {
	slog.Handler
	mu   sync.Mutex
	text []string
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := r.Message
	r.Attrs(func(a slog.Attr) bool { s += " " + a.String(); return true })
	l.text = append(l.text, s)
	return nil
}
func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.text...)
}

const bound = time.Minute // of every wait

// patiently runs a test whose client has to be quicker than a time that the server gives it: on a machine that is busy with other
// things that time is multiplied, until the client is.
func patiently(t *testing.T, unit time.Duration, test func(t testing.TB, unit time.Duration)) {
	t.Helper()
	for i := range 4 {
		a := &attempt{TB: t}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			test(a, unit<<(2*i))
		}()
		<-ended
		a.over = true
		if a.failed == "" {
			return
		}
		t.Logf("with %s: %s", unit<<(2*i), a.failed)
	}
	t.Error("however much time there is")
}

// attempt is a test that may fail while it runs. What its cleanups find is the whole test's.
type attempt struct {
	testing.TB
	failed string
	over   bool
}

func (a *attempt) Errorf(format string, args ...any) {
	if a.over {
		a.TB.Errorf(format, args...)
		return
	}
	a.failed = fmt.Sprintf(format, args...)
}
func (a *attempt) Error(args ...any) { a.Errorf("%s", fmt.Sprint(args...)) }
func (a *attempt) Fatalf(format string, args ...any) {
	a.Errorf(format, args...)
	runtime.Goexit()
}
func (a *attempt) Fatal(args ...any) {
	a.Error(args...)
	runtime.Goexit()
}

func start(t testing.TB, h Handler, edit func(c *Config)) *Server {
	t.Helper()
	cfg := Config{Listeners: []ListenerConfig{{Name: "k", Addr: "127.0.0.1:0"}}, Handler: h, Logger: slog.New(slog.DiscardHandler)}
	if edit != nil {
		edit(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if n := s.budget.inUse(); n != 0 {
			t.Errorf("%d bytes of the budget were never given back", n)
		}
	})
	return s
}

func dial(t testing.TB, s *Server) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", s.Addr("k").String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

func request(key int16, corr int32, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(headerBytes+len(body)))
	b = binary.BigEndian.AppendUint16(b, uint16(key))
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(corr))
	return append(b, body...)
}

func send(t testing.TB, nc net.Conn, b []byte) {
	t.Helper()
	if _, err := nc.Write(b); err != nil {
		t.Fatal(err)
	}
}

func answer(t testing.TB, nc net.Conn) (corr int32, body []byte) {
	t.Helper()
	nc.SetReadDeadline(time.Now().Add(bound))
	var head [8]byte
	if _, err := io.ReadFull(nc, head[:]); err != nil {
		t.Fatal(err)
	}
	body = make([]byte, binary.BigEndian.Uint32(head[:])-4)
	if _, err := io.ReadFull(nc, body); err != nil {
		t.Fatal(err)
	}
	return int32(binary.BigEndian.Uint32(head[4:])), body
}

// closedInTime fails unless the server closes the connection.
func closedInTime(t testing.TB, nc net.Conn) {
	t.Helper()
	nc.SetReadDeadline(time.Now().Add(bound))
	var b [1]byte
	n, err := nc.Read(b[:])
	var ne net.Error
	if n != 0 || err == nil || errors.As(err, &ne) && ne.Timeout() {
		t.Fatalf("not closed within %s: %d bytes, %v", bound, n, err)
	}
}

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(bound)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", bound, what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestResponsesLeaveInRequestOrder(t *testing.T) {
	e := newEcho()
	nc := dial(t, start(t, e, nil))
	send(t, nc, request(1, 1, []byte("parked")))
	for i := int32(2); i <= 20; i++ {
		send(t, nc, request(0, i, []byte("quick")))
	}
	until(t, "all begun while the first is parked", func() bool { return e.begun.Load() == 20 && e.parked.Load() == 1 })
	e.Drain()
	for i := int32(1); i <= 20; i++ {
		if corr, _ := answer(t, nc); corr != i {
			t.Fatalf("answer %d came as number %d", corr, i)
		}
	}
	until(t, "every payload was given back", func() bool { return e.freed.Load() == 20 })
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	patiently(t, 100*time.Millisecond, func(t testing.TB, idle time.Duration) {
		nc := dial(t, start(t, newEcho(), func(c *Config) { c.IdleTimeout = idle }))
		begin := time.Now() // before the answer, with which the connection begins to be idle
		send(t, nc, request(0, 1, nil))
		answer(t, nc)
		closedInTime(t, nc)
		if d := time.Since(begin); d < idle {
			t.Errorf("closed after %s", d)
		}
	})
}

// The idle deadline does not run while a request is parked, and begins anew with its answer.
func TestAParkedRequestIsNotIdle(t *testing.T) {
	patiently(t, 100*time.Millisecond, func(t testing.TB, idle time.Duration) {
		e := newEcho()
		nc := dial(t, start(t, e, func(c *Config) { c.IdleTimeout = idle }))
		send(t, nc, request(1, 1, []byte("x")))
		time.Sleep(3 * idle) // what is tested is that nothing happens
		if e.canceled.Load() != 0 || e.parked.Load() != 1 {
			t.Fatal("the parked request was cut")
		}
		e.Drain()
		if corr, _ := answer(t, nc); corr != 1 {
			t.Fatal("not the answer")
		}
		send(t, nc, request(0, 2, []byte("still here")))
		answer(t, nc)
		closedInTime(t, nc)
	})
}

func TestSlowFramesAreCut(t *testing.T) {
	for name, first := range map[string][]byte{
		"prefix in parts": {0},
		"header in parts": {0, 0, 0, 20, 0, 0},
		// Claiming a large frame buys no more time than the bytes that come next deserve.
		"a large claim": {0x06, 0x00, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, newEcho(), func(c *Config) {
				c.IOTimeout, c.IdleTimeout, c.MinRate = 150*time.Millisecond, 300*time.Millisecond, firstBytes+1
			})
			nc := dial(t, s)
			send(t, nc, first)
			closedInTime(t, nc)
			until(t, "its bytes are given back", func() bool { return s.budget.inUse() == 0 && s.Connections() == 0 })
		})
	}
}

// A client that trickles bytes is cut all the same: a frame's deadline is not moved by each byte.
func TestTricklingBytesDoNotExtendADeadline(t *testing.T) {
	s := start(t, newEcho(), func(c *Config) { c.IOTimeout = 200 * time.Millisecond })
	nc := dial(t, s)
	send(t, nc, []byte{0, 0, 0x10, 0})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				nc.Write([]byte{0})
			}
		}
	})
	closedInTime(t, nc)
	close(stop)
	wg.Wait()
}

func TestAClientThatNeverReadsIsCut(t *testing.T) {
	patiently(t, 150*time.Millisecond, func(a testing.TB, unit time.Duration) {
		e := newEcho()
		s := start(t, e, func(c *Config) { c.IOTimeout, c.MinRate = unit, 1<<30 })
		nc := dial(t, s)
		const size = 32 << 20 // more than the sockets' buffers
		one := request(2, 1, binary.BigEndian.AppendUint32(nil, size))
		send(t, nc, append(append([]byte(nil), one...), one...))
		until(t, "the connection is gone", func() bool { return e.closed.Load() == 1 && s.Connections() == 0 })
		if e.freed.Load() != 2 { // the second is read before the first's time is over
			a.Errorf("%d payloads given back", e.freed.Load())
		}
	})
}

func TestParkedRequestsEndWithTheirConnection(t *testing.T) {
	e := newEcho()
	s := start(t, e, nil)
	nc := dial(t, s)
	for i := range int32(3) {
		send(t, nc, request(1, i, nil))
	}
	until(t, "begun", func() bool { return e.begun.Load() == 3 })
	nc.Close()
	until(t, "all ended", func() bool { return e.canceled.Load() == 3 && e.closed.Load() == 1 && s.Connections() == 0 })
}

func TestRequestsInFlightAreBounded(t *testing.T) {
	e := newEcho()
	nc := dial(t, start(t, e, func(c *Config) { c.MaxInFlight = 4 }))
	var all []byte
	for i := range int32(50) {
		all = append(all, request(1, i, nil)...)
	}
	send(t, nc, all)
	until(t, "as many as may be", func() bool { return e.begun.Load() >= 4 })
	time.Sleep(50 * time.Millisecond) // what is tested is that nothing more happens
	// The queue, the one that the writer has, and the one that the reader holds out to it.
	if n := e.begun.Load(); n > 6 {
		t.Errorf("%d begun at a limit of 4", n)
	}
	e.Drain()
	for i := range int32(50) {
		if corr, _ := answer(t, nc); corr != i {
			t.Fatalf("%d instead of %d", corr, i)
		}
	}
}

func TestBytesOfAConnectionAreBounded(t *testing.T) {
	e := newEcho()
	nc := dial(t, start(t, e, func(c *Config) { c.MaxInFlightBytes = 1000 }))
	var all []byte
	for i := range int32(20) {
		all = append(all, request(1, i, make([]byte, 392))...) // 400 bytes each
	}
	send(t, nc, all)
	until(t, "as many as may be", func() bool { return e.begun.Load() >= 3 })
	time.Sleep(50 * time.Millisecond)
	if n := e.begun.Load(); n != 3 { // the limit is looked at before a frame, which may go beyond it
		t.Errorf("%d frames of 400 bytes begun at a limit of 1000", n)
	}
	e.Drain()
	for range 20 {
		answer(t, nc)
	}
}

func TestTheNodesBudgetStopsReading(t *testing.T) {
	e := newEcho()
	s := start(t, e, func(c *Config) { c.MaxBytes = 1 << 20 })
	body := make([]byte, 300<<10)
	var conns []net.Conn
	for i := range int32(6) {
		nc := dial(t, s)
		conns = append(conns, nc)
		go nc.Write(request(1, i, body)) // ends with the connection
	}
	until(t, "the budget is used", func() bool { return e.begun.Load() >= 2 })
	time.Sleep(50 * time.Millisecond)
	if n, used := e.begun.Load(), s.budget.inUse(); n > 4 || used > 1<<20+300<<10+8 {
		t.Fatalf("%d of 300 KiB begun, %d bytes used at a limit of 1 MiB", n, used)
	}
	e.Drain()
	for i, nc := range conns {
		if corr, got := answer(t, nc); corr != int32(i) || len(got) != len(body) {
			t.Fatalf("connection %d: %d, %d bytes", i, corr, len(got))
		}
	}
}

func TestOneFrameLargerThanTheBudgetTravelsAlone(t *testing.T) {
	nc := dial(t, start(t, newEcho(), func(c *Config) { c.MaxBytes = 100 << 10 }))
	body := make([]byte, 5<<20)
	body[len(body)-1] = 9
	go nc.Write(request(0, 7, body))
	if corr, got := answer(t, nc); corr != 7 || len(got) != len(body) || got[len(got)-1] != 9 {
		t.Fatal("a frame larger than the budget did not pass")
	}
}

// Frames that are half read and wait for each other's bytes: each can end, one after the other.
func TestHalfReadFramesDoNotDeadlock(t *testing.T) {
	s := start(t, newEcho(), func(c *Config) { c.MaxBytes = 8 * firstBytes })
	body := make([]byte, 3*firstBytes)
	var conns []net.Conn
	for range 8 {
		nc := dial(t, s)
		conns = append(conns, nc)
		send(t, nc, request(0, 1, body)[:100])
	}
	until(t, "they hold all of it, and all want more", func() bool { return s.budget.inUse() == 8*firstBytes })
	for _, nc := range conns {
		go nc.Write(request(0, 1, body)[100:])
	}
	for i, nc := range conns {
		if _, got := answer(t, nc); len(got) != len(body) {
			t.Fatalf("connection %d", i)
		}
	}
}

func TestConnectionLimits(t *testing.T) {
	for name, edit := range map[string]func(c *Config){
		"of the node":    func(c *Config) { c.MaxConnections = 2 },
		"of one address": func(c *Config) { c.MaxConnectionsPerAddr = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, newEcho(), edit)
			a, b := dial(t, s), dial(t, s)
			for _, nc := range []net.Conn{a, b} {
				send(t, nc, request(0, 1, nil))
				answer(t, nc)
			}
			closedInTime(t, dial(t, s))
			a.Close()
			until(t, "its place is free", func() bool { return s.Connections() == 1 })
			c := dial(t, s)
			send(t, c, request(0, 1, nil))
			answer(t, c)
		})
	}
}

func TestGarbageClosesTheConnection(t *testing.T) {
	l := &lines{}
	began := time.Now()
	s := start(t, newEcho(), func(c *Config) { c.Logger = slog.New(l) })
	for name, b := range map[string][]byte{
		"negative size": {0xff, 0xff, 0xff, 0xff},
		"no header":     {0, 0, 0, 3, 1, 2, 3},
		"too large":     {0x7f, 0xff, 0xff, 0xff},
		"HTTP":          []byte("GET / HTTP/1.1\r\n\r\n"),
		"TLS hello":     {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc},
		"refused":       request(3, 1, nil),
	} {
		nc := dial(t, s)
		send(t, nc, b)
		closedInTime(t, nc)
		_ = name
	}
	// Others are served on.
	nc := dial(t, s)
	send(t, nc, request(0, 1, []byte("x")))
	answer(t, nc)
	if n := len(l.all()); n == 0 || n > 2+2*int(time.Since(began)/time.Second) {
		t.Errorf("%d log lines for 6 bad connections, of two kinds, within %s: %q", n, time.Since(began), l.all())
	}
}

// That a client goes, in order or killed, is no news for the log.
func TestClientsThatGoAreNoNews(t *testing.T) {
	l := &lines{}
	s := start(t, newEcho(), func(c *Config) { c.Logger = slog.New(l) })
	for _, killed := range []bool{false, true} {
		nc := dial(t, s)
		send(t, nc, request(0, 1, []byte("x")))
		answer(t, nc)
		if killed {
			nc.(*net.TCPConn).SetLinger(0)
		}
		nc.Close()
		until(t, "gone", func() bool { return s.Connections() == 0 })
	}
	if got := l.all(); len(got) > 0 {
		t.Errorf("%q", got)
	}
}

func TestLogLinesAreRateLimited(t *testing.T) {
	l := &lines{}
	const every = 200 * time.Millisecond
	r, began := newRateLog(slog.New(l), every), time.Now()
	for range 1000 {
		r.Warn("one")
	}
	r.Warn("two")
	if got := l.all(); len(got) > 2+int(time.Since(began)/every) || got[0] != "one" {
		t.Fatalf("%d lines", len(got))
	}
	time.Sleep(every + 10*time.Millisecond)
	r.Warn("one", "k", "v") // with what was kept back until then, unless a line in between has told of it
	got, told := l.all(), 0
	for _, line := range got {
		if line == "two" {
			continue
		}
		told++
		if _, n, ok := strings.Cut(line, " suppressed="); ok {
			kept, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			told += kept
		}
	}
	if last := got[len(got)-1]; told != 1001 || !strings.HasPrefix(last, "one k=v") {
		t.Errorf("of 1001 lines %d are told of: %q", told, got)
	}
}

func TestLocalhostListensOnBothFamilies(t *testing.T) {
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skip("this machine has no ::1")
	} else {
		l.Close()
	}
	s := start(t, newEcho(), func(c *Config) { c.Listeners[0].Addr = "localhost:0" })
	port := s.Addr("k").(*net.TCPAddr).Port
	for _, host := range []string{"127.0.0.1", "::1"} {
		nc, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
		if err != nil {
			t.Fatal(err)
		}
		send(t, nc, request(0, 5, []byte(host)))
		if corr, body := answer(t, nc); corr != 5 || string(body) != host {
			t.Errorf("%s: %d %q", host, corr, body)
		}
		nc.Close()
	}
}

// freeAddr is an address that nobody else will take.
func freeAddr(t *testing.T) string {
	t.Helper()
	ports, err := freeport.Ports(1)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0])
}

func TestStartBindsAllOrNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := freeAddr(t)
	s, err := New(Config{Handler: newEcho(), Logger: slog.New(slog.DiscardHandler),
		Listeners: []ListenerConfig{{Name: "a", Addr: addr}, {Name: "b", Addr: taken.Addr().String()}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err == nil {
		t.Fatal("started on a port in use")
	}
	again, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("the first listener stayed bound: %v", err)
	}
	again.Close()
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// What was received is answered, under load from many connections; nothing is accepted any more; nothing is left running.
func TestShutdownUnderLoadAnswersWhatWasBegun(t *testing.T) {
	e := newEcho()
	s := start(t, e, func(c *Config) { c.Listeners[0].Addr = freeAddr(t) })
	var sent, got atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		nc := dial(t, s)
		wg.Go(func() {
			for i := int32(0); ; i++ {
				if _, err := nc.Write(request(0, i, []byte("load"))); err != nil {
					return
				}
				sent.Add(1)
				nc.SetReadDeadline(time.Now().Add(bound))
				var b [16]byte
				if _, err := io.ReadFull(nc, b[:8+4]); err != nil {
					return
				}
				got.Add(1)
			}
		})
	}
	parked := dial(t, s)
	send(t, parked, request(1, 99, nil))
	until(t, "load runs", func() bool { return got.Load() > 500 && e.parked.Load() == 1 })
	addr := s.Addr("k").String()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if corr, _ := answer(t, parked); corr != 99 {
		t.Error("the parked request was not answered")
	}
	wg.Wait()
	if e.freed.Load() != e.begun.Load() || got.Load() != e.begun.Load()-1 {
		t.Errorf("%d begun, %d finished, %d answers of the load seen", e.begun.Load(), e.freed.Load(), got.Load())
	}
	if nc, err := net.Dial("tcp", addr); err == nil {
		nc.Close()
		t.Error("still accepting")
	}
	if err := s.Shutdown(ctx); err != nil || e.drained.Load() != 1 {
		t.Errorf("stopping twice: %v, drained %d times", err, e.drained.Load())
	}
	if err := s.Start(); err == nil {
		t.Error("started after Shutdown")
	}
}

// stubborn is parked until its connection is cut.
type stubborn struct{ *echo }

func (stubborn) Drain() {}

func TestShutdownCutsWhatDoesNotEnd(t *testing.T) {
	e := newEcho()
	s, err := New(Config{Listeners: []ListenerConfig{{Name: "k", Addr: "127.0.0.1:0"}}, Handler: stubborn{e}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	nc := dial(t, s)
	send(t, nc, request(1, 1, nil))
	until(t, "parked", func() bool { return e.parked.Load() == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if s.Connections() != 0 || e.canceled.Load() != 1 || e.closed.Load() != 1 {
		t.Errorf("%d connections, %d canceled, %d closed", s.Connections(), e.canceled.Load(), e.closed.Load())
	}
	closedInTime(t, nc)
}
