// Package server owns the sockets that Kafka clients talk to: listeners, frames, limits, and the order of responses.
//
// A connection has at most two goroutines. Its reader takes one frame after another and begins each request (stage one: it must
// not block, and enqueues what has an order to keep). A writer finishes them in the same order (stage two: it may wait) and
// writes the answers; it is there while there is something to wait for. A quick request that has nothing before it is finished by
// the reader. Produces therefore pipeline while responses stay in request order, as Kafka's protocol wants.
//
// Nothing is allocated on a claim: a frame's size is checked first, and a large frame's buffer grows as its bytes arrive.
// Bytes of frames in flight are counted per connection and node-wide; at the limit sockets are not read, so TCP pushes back
// on the clients rather than memory growing.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Finish is stage two of a request, called once, in request order, after those before it have ended; also after the
// connection has died (ctx is done then), so that whatever the request holds is given back. payload is the response after
// the correlation id (the rest of its header, and the body); nil with a nil error: no answer is due. release, if not nil,
// is called once the payload has been written or dropped. An error closes the connection.
type Finish = func(ctx context.Context) (payload net.Buffers, release func(), err error)

// Begin is stage one of a request, called on the connection's reader goroutine, in the order the frames came. It must not
// block. rest is the frame after the correlation id and belongs to the handler for good. quick says that Finish will not wait:
// it may then be called on the reader goroutine, which does not notice meanwhile that the client goes. An error closes the
// connection.
type Begin = func(ctx context.Context, key, version int16, rest []byte) (finish Finish, quick bool, err error)

// Handler answers requests. Its types are the standard library's alone, so that internal/broker satisfies it without
// either package importing the other. Safe for concurrent use.
type Handler interface {
	// Connect starts a connection of a listener; begin belongs to it, and closed is called once after the last Finish.
	Connect(listener string, local, remote net.Addr) (begin func(ctx context.Context, key, version int16, rest []byte) (finish func(ctx context.Context) (net.Buffers, func(), error), quick bool, err error), closed func())
	// Drain says that the server stops: requests that only wait for something new are to be answered now.
	Drain()
}

// ListenerConfig is one address to serve.
type ListenerConfig struct {
	// Name is what the handler knows it by.
	Name string
	// Addr is host:port. "localhost" listens on 127.0.0.1 and on ::1 (where the machine has it), on the same port: Node's
	// resolver gives ::1 first.
	Addr string
}

// Config of a Server. Zero values take the defaults named.
type Config struct {
	Listeners  []ListenerConfig
	Handler    Handler
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics are registered

	// MaxFrameBytes bounds a request; default 100 MiB, as Kafka's socket.request.max.bytes.
	MaxFrameBytes int
	// MaxConnections bounds open connections, MaxConnectionsPerAddr those of one client address; 10,000 and 2,000.
	MaxConnections, MaxConnectionsPerAddr int
	// MaxInFlight bounds the requests of one connection that have been read and not answered; default 128.
	MaxInFlight int
	// MaxInFlightBytes bounds the bytes of their frames; a larger frame travels alone. Default 32 MiB.
	MaxInFlightBytes int64
	// MaxBytes bounds the bytes of frames in flight of the node; default 256 MiB.
	MaxBytes int64
	// MaxResponseBytes bounds the bytes of responses that clients have yet to read, of the node; default 256 MiB. From half of it
	// on a client that reads slower than MinRate is cut within a second or two; beyond it, whoever gets a response is.
	MaxResponseBytes int64
	// Pressed says that the handler's requests wait for memory which responses hold, as half of MaxResponseBytes does; nil: never.
	Pressed func() bool
	// FirstTimeout bounds how long a new connection may say nothing; default 1 min.
	FirstTimeout time.Duration
	// IdleTimeout closes a connection that sends nothing while nothing is being answered; default 10 min, Kafka's
	// connections.max.idle.ms. Time in which a request is parked does not count.
	IdleTimeout time.Duration
	// IOTimeout bounds the reading of a frame once it began, and the writing of a response, on top of what its size takes
	// at MinRate; default 30 s.
	IOTimeout time.Duration
	// MinRate is the slowest peer suffered, in bytes a second; default 64 KiB.
	MinRate int64
	// writeStep is how often a writer looks whether its client reads, while memory is short: every second.
	writeStep time.Duration
}

func (c *Config) setDefaults() {
	def(&c.MaxFrameBytes, 100<<20)
	def(&c.MaxConnections, 10_000)
	def(&c.MaxConnectionsPerAddr, 2_000)
	def(&c.MaxInFlight, 128)
	def(&c.MaxInFlightBytes, 32<<20)
	def(&c.MaxBytes, 256<<20)
	def(&c.MaxResponseBytes, 256<<20)
	def(&c.FirstTimeout, time.Minute)
	def(&c.IdleTimeout, 10*time.Minute)
	def(&c.IOTimeout, 30*time.Second)
	def(&c.MinRate, 64<<10)
	def(&c.writeStep, time.Second)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
}

func def[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Server serves Kafka's protocol on its listeners.
type Server struct {
	cfg     Config
	log     *rateLog
	budget  *budget
	metrics *metrics
	// responses counts the bytes of responses being written.
	responses atomic.Int64

	ctx    context.Context // ends when connections are to be cut
	cancel context.CancelFunc
	wg     sync.WaitGroup // accept loops and connections

	mu        sync.Mutex
	listeners []*boundListener
	conns     map[*conn]struct{}
	perAddr   map[string]int
	addrPeak  int
	draining  bool
}

type boundListener struct {
	name string
	net.Listener
}

// New makes a server; Start makes it serve.
func New(cfg Config) (*Server, error) {
	if cfg.Handler == nil || len(cfg.Listeners) == 0 {
		return nil, errors.New("server: a handler and at least one listener are required")
	}
	cfg.setDefaults()
	s := &Server{
		cfg: cfg, log: newRateLog(cfg.Logger, time.Second), budget: newBudget(cfg.MaxBytes),
		conns: map[*conn]struct{}{}, perAddr: map[string]int{},
	}
	var err error
	if s.metrics, err = newMetrics(s, cfg.Registerer); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Start binds every listener and serves. On an error nothing stays bound.
func (s *Server) Start() error {
	var bound []*boundListener
	for _, lc := range s.cfg.Listeners {
		ls, err := listen(lc.Addr)
		if err != nil {
			for _, l := range bound {
				l.Close()
			}
			return fmt.Errorf("kafka listener %s: %w", lc.Addr, err)
		}
		for _, l := range ls {
			bound = append(bound, &boundListener{lc.Name, l})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		for _, l := range bound {
			l.Close()
		}
		return errors.New("server: started after Shutdown")
	}
	s.listeners = bound
	for _, l := range bound {
		s.wg.Add(1)
		go s.accept(l)
	}
	return nil
}

// Addr is the first bound address of the named listener; nil before Start, or if there is none.
func (s *Server) Addr(name string) net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		if l.name == name {
			return l.Addr()
		}
	}
	return nil
}

// Shutdown stops accepting, lets requests that were received be answered until ctx ends, then cuts what is left and waits
// for every goroutine. Stopping twice is fine. It returns ctx's error if connections had to be cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	first := !s.draining
	s.draining = true
	listeners := s.listeners
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	if first {
		for _, l := range listeners {
			l.Close()
		}
		s.cfg.Handler.Drain()
		for _, c := range conns {
			c.drain()
		}
	}
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
		s.cut()
		<-done
	}
	s.cancel()
	s.budget.close()
	return err
}

// cut ends every connection now.
func (s *Server) cut() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		s.metrics.cut.WithLabelValues(cutStopping).Inc()
		c.nc.Close()
	}
}

// Connections is the number of open connections.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}
