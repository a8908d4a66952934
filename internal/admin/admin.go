// Package admin serves a node's health and metrics over HTTP: /healthz, /readyz, /metrics, /debug/pprof/.
package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/chronik-go/chronik/internal/netlimit"
)

// Config is what the server shows.
type Config struct {
	// Addr is host:port to listen on; port 0 takes a free one.
	Addr string
	// Ready returns nil once the node serves, and otherwise what it is waiting for.
	Ready func() error
	// Healthy returns nil unless the process should be replaced.
	Healthy  func() error
	Gatherer prometheus.Gatherer
	Logger   *slog.Logger
	// MaxConnections bounds open connections, of which one address gets half; 0: 128.
	MaxConnections int
	// HeaderTimeout bounds how long a request's header may take; 0: 5 s.
	HeaderTimeout time.Duration
}

// Server is the running HTTP server.
type Server struct {
	http http.Server
	ln   *netlimit.Listener
	done chan struct{}
}

// Start listens and serves until Close.
func Start(cfg Config) (*Server, error) {
	inner, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("admin address %s: %w (another --admin-addr, or an empty one to do without)", cfg.Addr, err)
	}
	most := cmp.Or(cfg.MaxConnections, 128)
	ln := netlimit.New(inner, netlimit.Config{Total: most, PerAddr: (most + 1) / 2})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", probe(cfg.Healthy))
	mux.HandleFunc("GET /readyz", probe(cfg.Ready))
	// Profiles of a running node, as Go's tools read them: the admin address is the operator's.
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Gatherer, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	s := &Server{ln: ln, done: make(chan struct{})}
	s.http = http.Server{
		Handler:           mux,
		ReadHeaderTimeout: cmp.Or(cfg.HeaderTimeout, 5*time.Second),
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      90 * time.Second, // a profile takes 30 s by default,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			cfg.Logger.Error("the admin listener ended", "error", err)
		}
	}()
	return s, nil
}

func probe(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err := check(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, err.Error()+"\n")
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	}
}

// Addr returns where the server listens.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// Connections is how many connections are open, Refused how many were refused for a reason of netlimit's.
func (s *Server) Connections() int { return s.ln.Open() }

// Refused is said at Connections.
func (s *Server) Refused(reason string) int64 { return s.ln.Refused(reason) }

// Close ends the server, after requests under way or two seconds.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	<-s.done
	return err
}
