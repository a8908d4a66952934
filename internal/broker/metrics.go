package broker

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// metrics counts by API name and error name, both of bounded number.
type metrics struct {
	requests, errors, bad       *prometheus.CounterVec
	latency                     *prometheus.HistogramVec
	produced, fetched           prometheus.Counter
	forwarded                   prometheus.Counter
	sessions, sessionPartitions prometheus.Gauge

	// byKey are requests' and latency's of an API, found at its first request: to look a label up costs more than to count.
	byKey [keyLimit]atomic.Pointer[apiMetrics]
}

type apiMetrics struct {
	requests prometheus.Counter
	latency  prometheus.Observer
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "chronik", Subsystem: "broker", Name: name, Help: help}
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts(opts(name, help)))
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(opts("requests_total", "Requests handled, by API."), []string{"api"}),
		errors:   prometheus.NewCounterVec(opts("errors_total", "Errors answered, by API and Kafka error."), []string{"api", "error"}),
		bad:      prometheus.NewCounterVec(opts("malformed_requests_total", "Requests that could not be decoded, by API."), []string{"api"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "chronik", Subsystem: "broker", Name: "request_seconds",
			Help:    "Time from a request's last byte to its response, by API; long polls included.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16),
		}, []string{"api"}),
		produced:          prometheus.NewCounter(opts("produced_bytes_total", "Bytes of record batches received from clients.")),
		fetched:           prometheus.NewCounter(opts("fetched_bytes_total", "Bytes of record batches sent to clients.")),
		forwarded:         prometheus.NewCounter(opts("forwarded_batches_total", "Batches forwarded to their leader's node.")),
		sessions:          gauge("fetch_sessions", "Fetch sessions held."),
		sessionPartitions: gauge("fetch_session_partitions", "Partitions of all fetch sessions."),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.errors, m.bad, m.latency, m.produced, m.fetched, m.forwarded, m.sessions, m.sessionPartitions} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register broker metrics: %w", err)
		}
	}
	return m, nil
}

// apiName is a label; keys come from the range table only.
func apiName(key int16) string {
	if n := kmsg.NameForKey(key); n != "" {
		return n
	}
	return strconv.Itoa(int(key))
}

// request counts one of an API that is served.
func (m *metrics) request(key int16, took time.Duration, err error) {
	of := m.byKey[key].Load()
	if of == nil {
		name := apiName(key)
		of = &apiMetrics{m.requests.WithLabelValues(name), m.latency.WithLabelValues(name)}
		m.byKey[key].Store(of)
	}
	of.requests.Inc()
	of.latency.Observe(took.Seconds())
	if err != nil {
		m.errors.WithLabelValues(apiName(key), "closed").Inc()
	}
}

func (m *metrics) refusal(key int16, err *kerr.Error) {
	m.errors.WithLabelValues(apiName(key), err.Message).Inc()
}

func (m *metrics) malformed(key int16) { m.bad.WithLabelValues(apiName(key)).Inc() }

// starved: there was no memory to decode a request.
func (m *metrics) starved(key int16) { m.errors.WithLabelValues(apiName(key), "no memory").Inc() }
