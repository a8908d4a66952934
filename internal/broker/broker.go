package broker

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/group"
)

// ListenerConfig is what requests of one listener see.
type ListenerConfig struct {
	// OneAddress: this node names itself as the leader of everything, at Host:Port, and proxies what it does not lead. For
	// clients behind one load balancer or tunnel.
	OneAddress bool
	Host       string
	Port       int32 // 0: the listener's own
}

// Config wires a Broker. What has no default is required.
type Config struct {
	Partitions Partitions
	Controller Controller
	Cluster    Cluster
	Forwarder  Forwarder
	Clock      clock.Clock
	Logger     *slog.Logger
	// Registerer takes the metrics; nil: none are registered.
	Registerer prometheus.Registerer
	// DataDir is what DescribeLogDirs tells of; nil: its answer is an error.
	DataDir DataDir
	// Groups coordinates the groups whose partitions of __consumer_offsets this node leads; nil: groups are not served.
	Groups *group.Coordinator
	// OffsetsTopic says how __consumer_offsets is to be created.
	OffsetsTopic OffsetsTopic
	// Quorum returns the local replica of the metadata group, nil while there is none.
	Quorum func() Quorum
	// TransferLeadership begins to hand a group that is led here over to a node. Nil: ElectLeaders changes nothing.
	TransferLeadership func(group uint64, node int32)
	// Listeners by the name that the server gives Connect; a name that is missing is an ordinary listener.
	Listeners map[string]ListenerConfig

	// AutoCreateTopics lets Metadata create what is asked for by name.
	AutoCreateTopics bool
	// AutoCreateWait bounds how long Metadata waits for a new topic's leaders; default 2 s.
	AutoCreateWait time.Duration
	// ProduceTimeout bounds every produce, whatever the client asks; default 60 s.
	ProduceTimeout time.Duration
	// RequestTimeout bounds other requests without a timeout of their own; default 30 s.
	RequestTimeout time.Duration
	// MaxFetchWait bounds a long poll; default 5 min.
	MaxFetchWait time.Duration
	// MaxFetchBytes bounds one Fetch response, whatever the client asks; default 64 MiB.
	MaxFetchBytes int
	// FetchHeldBytes bounds the records of all Fetch responses that are read and not written yet: near it fetches get little at
	// a time, and at it they wait, some seconds at most. Default 256 MiB.
	FetchHeldBytes int
	// DecodedBytes bounds what large requests take once they are decoded, until they are answered: at it they wait, and their
	// connections are closed if that takes too long. Default 64 MiB.
	DecodedBytes int
	// AnswerBytes bounds what other large answers take until they are written; as DecodedBytes. Default 64 MiB.
	AnswerBytes int
	// MaxAnswerBytes bounds one such answer, and what it is made of; default 256 MiB, and eight times AnswerBytes at most.
	MaxAnswerBytes int
	// FetchSessions bounds the fetch session cache (KIP-227); default 2000. FetchSessionPartitions bounds the partitions
	// of all of them; default 500,000.
	FetchSessions, FetchSessionPartitions int
	// NewsAge: how long after a leadership change a stale client is served by proxy before it is told; default 5 s.
	NewsAge time.Duration
}

// RequestContext is what a handler knows of a request besides its body.
type RequestContext struct {
	Key, Version int16
	ClientID     *string
	// Listener is the listener's name, OneAddress its mode.
	Listener string
	Mode     ListenerConfig
	Remote   net.Addr
	Local    net.Addr
	// FromPeer: another node asks on a client's behalf; it is answered from here, without another hop.
	FromPeer bool
	// Received is when the frame was complete.
	Received time.Time
	client   string // address of the client that a peer asks for
	conn     *conn
	held     int64 // of Broker.answers
}

// Broker answers Kafka requests. It is safe for concurrent use by many connections.
type Broker struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	draining     drainState
	connIDs      ids // begins at random: another node must not take us for our own earlier life
	incarnations ids
	news         news
	hops         hopFailures
	sessions     *sessionCache
	fetchHeld    memory // bytes of buffers under responses
	decoded      memory // of large requests
	answers      memory // of large answers other than records
	producerIDs  producerIDs
	fresh        fresh
	proxied      atomic.Int32 // requests of groups that wait at other nodes
}

// New checks cfg, sets defaults and registers metrics.
func New(cfg Config) (*Broker, error) {
	if cfg.Partitions == nil || cfg.Controller == nil || cfg.Cluster == nil || cfg.Forwarder == nil {
		return nil, errors.New("broker: Partitions, Controller, Cluster and Forwarder are required")
	}
	setDefaults(&cfg)
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	b := &Broker{
		cfg: cfg, log: cfg.Logger, metrics: m,
		draining:    drainState{ch: make(chan struct{})},
		news:        news{clk: cfg.Clock, age: cfg.NewsAge},
		sessions:    newSessionCache(cfg.Clock, cfg.FetchSessions, cfg.FetchSessionPartitions, m),
		producerIDs: newProducerIDs(),
		fetchHeld:   memory{clk: cfg.Clock, limit: int64(cfg.FetchHeldBytes)},
		decoded:     memory{clk: cfg.Clock, limit: int64(cfg.DecodedBytes)},
		answers:     memory{clk: cfg.Clock, limit: int64(cfg.AnswerBytes)},
	}
	var seed [8]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	b.connIDs.Store(binary.BigEndian.Uint64(seed[:]))
	return b, nil
}

func setDefaults(cfg *Config) {
	if cfg.Clock == nil {
		cfg.Clock = clock.System{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	defaultTo(&cfg.AutoCreateWait, 2*time.Second)
	defaultTo(&cfg.ProduceTimeout, time.Minute)
	defaultTo(&cfg.RequestTimeout, 30*time.Second)
	defaultTo(&cfg.MaxFetchWait, 5*time.Minute)
	defaultTo(&cfg.MaxFetchBytes, 64<<20)
	defaultTo(&cfg.FetchHeldBytes, 256<<20)
	defaultTo(&cfg.DecodedBytes, 64<<20)
	defaultTo(&cfg.AnswerBytes, 64<<20)
	defaultTo(&cfg.MaxAnswerBytes, min(256<<20, 8*cfg.AnswerBytes))
	defaultTo(&cfg.FetchSessions, 2000)
	defaultTo(&cfg.FetchSessionPartitions, 500_000)
	defaultTo(&cfg.NewsAge, 5*time.Second)
}

func defaultTo[T time.Duration | int](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}
