package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
)

// Why a connection is refused, the label of connections_refused_total.
const (
	refusedStopping = "stopping"
	refusedAll      = "too many connections"
	refusedAddr     = "too many connections from this address"
)

// Why the server ends a connection, the label of connections_cut_total. A client that goes is none of these.
const (
	cutIdle       = "idle"
	cutSilent     = "nothing sent"
	cutSlowFrame  = "request too slow"
	cutSlowReader = "answer not read"
	cutMemory     = "out of memory"
	cutBad        = "bad request"
	cutStopping   = "stopping"
)

// cutError is the end of a connection that the server wants.
type cutError struct {
	reason string
	err    error
}

func (e *cutError) Error() string { return e.reason + ": " + e.err.Error() }
func (e *cutError) Unwrap() error { return e.err }

type metrics struct {
	connections, addrPeak                          prometheus.Gauge
	refused, cut                                   *prometheus.CounterVec
	accepted, garbage, requests, bytesIn, bytesOut prometheus.Counter
}

func newMetrics(s *Server, reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "chronik", Subsystem: "server", Name: name, Help: help})
	}
	vec := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "chronik", Subsystem: "server", Name: name, Help: help}, []string{"reason"})
	}
	gauge := func(name, help string) prometheus.GaugeOpts {
		return prometheus.GaugeOpts{Namespace: "chronik", Subsystem: "server", Name: name, Help: help}
	}
	m := &metrics{
		connections: prometheus.NewGauge(gauge("connections", "Open client connections.")),
		addrPeak:    prometheus.NewGauge(gauge("connections_per_address_peak", "The most connections that one client address has had at a time since start.")),
		accepted:    counter("connections_accepted_total", "Client connections accepted."),
		refused:     vec("connections_refused_total", "Client connections refused, by reason."),
		cut:         vec("connections_cut_total", "Client connections ended by the server, by reason."),
		garbage:     counter("bad_requests_total", "Connections closed because of a frame or request that could not be understood."),
		requests:    counter("requests_total", "Requests received."),
		bytesIn:     counter("received_bytes_total", "Bytes of requests received."),
		bytesOut:    counter("sent_bytes_total", "Bytes of responses sent."),
	}
	for _, r := range []string{refusedStopping, refusedAll, refusedAddr} { // there from the first scrape on
		m.refused.WithLabelValues(r)
	}
	for _, r := range []string{cutIdle, cutSilent, cutSlowFrame, cutSlowReader, cutMemory, cutBad, cutStopping} {
		m.cut.WithLabelValues(r)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.connections, m.addrPeak, m.accepted, m.refused, m.cut, m.garbage, m.requests, m.bytesIn, m.bytesOut,
		prometheus.NewGaugeFunc(gauge("request_memory_bytes", "Bytes of requests received and not yet answered."), func() float64 { return float64(s.budget.inUse()) }),
		prometheus.NewGaugeFunc(gauge("response_memory_bytes", "Bytes of responses that clients have not yet read."), func() float64 { return float64(s.responses.Load()) }),
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register server metrics: %w", err)
		}
	}
	return m, nil
}

// ended counts and logs why a connection ended, if it is news: not that a client went.
func (c *conn) ended(err error) {
	var cut *cutError
	switch {
	case errors.As(err, &cut):
		c.s.metrics.cut.WithLabelValues(cut.reason).Inc()
		if cut.reason == cutIdle {
			return
		}
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), c.ctx.Err() != nil:
		return
	}
	c.s.log.Warn("connection closed", "remote", c.addr, "listener", c.listener, "error", err)
}
