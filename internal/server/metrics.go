package server

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	connections                                             prometheus.Gauge
	accepted, refused, garbage, requests, bytesIn, bytesOut prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "chronik", Subsystem: "server", Name: name, Help: help})
	}
	m := &metrics{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "chronik", Subsystem: "server", Name: "connections", Help: "Open client connections."}),
		accepted:    counter("connections_accepted_total", "Client connections accepted."),
		refused:     counter("connections_refused_total", "Client connections refused by a limit."),
		garbage:     counter("bad_requests_total", "Connections closed because of a frame or request that could not be understood."),
		requests:    counter("requests_total", "Requests received."),
		bytesIn:     counter("received_bytes_total", "Bytes of requests received."),
		bytesOut:    counter("sent_bytes_total", "Bytes of responses sent."),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.connections, m.accepted, m.refused, m.garbage, m.requests, m.bytesIn, m.bytesOut} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register server metrics: %w", err)
		}
	}
	return m, nil
}
