package netlimit

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// serve echoes on a bounded listener.
func serve(t *testing.T, cfg Config) *Listener {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := New(inner, cfg)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(nc, nc)
				_ = nc.Close()
				_ = nc.Close() // twice is once
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l
}

// served says whether a connection is answered, or closed.
func served(t *testing.T, l *Listener) (net.Conn, bool) {
	t.Helper()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(time.Minute))
	_, werr := nc.Write([]byte("x"))
	var b [1]byte
	_, err = nc.Read(b[:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("neither served nor closed")
	}
	return nc, werr == nil && err == nil
}

func TestConnectionsBeyondTheLimitAreClosedAndCounted(t *testing.T) {
	for name, c := range map[string]struct {
		cfg    Config
		reason string
	}{
		"in all":           {Config{Total: 2}, TooMany},
		"from one address": {Config{Total: 100, PerAddr: 2}, TooManyFromAddr},
	} {
		t.Run(name, func(t *testing.T) {
			var refused atomic.Int32
			c.cfg.Refused = func(_ net.Addr, reason string) {
				if reason != c.reason {
					t.Errorf("refused: %s", reason)
				}
				refused.Add(1)
			}
			l := serve(t, c.cfg)
			first, ok := served(t, l)
			if _, again := served(t, l); !ok || !again {
				t.Fatal("within the limit, and not served")
			}
			if _, ok := served(t, l); ok {
				t.Fatal("a third connection is served")
			}
			first.Close()
			deadline := time.Now().Add(time.Minute)
			for l.Open() != 1 {
				if time.Now().After(deadline) {
					t.Fatalf("%d open after one of two was closed", l.Open())
				}
				time.Sleep(time.Millisecond)
			}
			if _, ok := served(t, l); !ok {
				t.Error("room again, and not served")
			}
			if refused.Load() != 1 || l.Refused(c.reason) != 1 || l.Refused(TooMany)+l.Refused(TooManyFromAddr) != 1 {
				t.Errorf("%d refused, counted %d and %d", refused.Load(), l.Refused(TooMany), l.Refused(TooManyFromAddr))
			}
		})
	}
}
