package transport

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/chronik-go/chronik/internal/clock"
)

const (
	// ProtocolVersion is the newest peer protocol this code speaks; MinProtocolVersion the oldest. Two nodes understand
	// each other when their ranges overlap.
	ProtocolVersion    = 1
	MinProtocolVersion = 1

	// MaxFrameBytes bounds a frame on the wire, on both sides.
	MaxFrameBytes = 64 << 20
	// MaxBodyBytes bounds the body of one Call, Forward or Envelope, entries included.
	MaxBodyBytes = MaxFrameBytes - 1<<20
)

// Config says who this node is and how it talks to others. The same value serves NewServer and NewClient. Zero fields take
// the defaults named below.
type Config struct {
	// NodeID is this node's configured number, > 0.
	NodeID int32
	// ClusterID returns the cluster's id, "" before it is formed: until then only Hello is answered, and no stream is
	// opened. It is called often and from many goroutines. nil means "" for ever.
	ClusterID func() string
	// Dir is the UUID of this node's data directory.
	Dir uuid.UUID
	// Version and MinVersion default to ProtocolVersion and MinProtocolVersion; other values are for tests.
	Version, MinVersion uint32

	// Listen is the address the server binds, "host:port"; port 0 takes a free one.
	Listen string
	// Advertise is the address other nodes reach this one at; it is only shown in logs and may be empty.
	Advertise string

	// Hello supplies what this node tells in a first contact; from is who asks, or zero when this node asks
	// another. NodeID, Dir, ClusterID, Version and
	// MinVersion of its result are filled in by the transport. It must not block. May be nil.
	Hello func(from PeerInfo) PeerInfo
	// Verify may refuse a peer whose cluster and node ids are right, for instance because its data directory is not the one
	// the cluster knows. The error's text reaches both logs. It must not block. May be nil.
	Verify func(PeerInfo) error
	// OnInbound is called when a peer has opened a stream to this node's server: Client.Wake, so that a peer that just came
	// up is dialled at once. It must not block. May be nil.
	OnInbound func(node int32)

	Logger *slog.Logger // default slog.Default()
	Clock  clock.Clock  // default clock.System

	// ServerCredentials and ClientCredentials secure connections; default: none.
	ServerCredentials, ClientCredentials credentials.TransportCredentials
	// Dial makes connections; default: net.Dialer over TCP. It must honour ctx.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	// ControlBytes and BulkBytes cap what waits for one peer on that stream; more is dropped. Default 4 MiB and 64 MiB.
	ControlBytes, BulkBytes int
	// FrameBytes is where a bulk frame stops taking further messages. Default 1 MiB.
	FrameBytes int
	// ForwardBytes caps the request bytes outstanding to one peer, and on the server the request and response bytes of one
	// stream. Default 64 MiB.
	ForwardBytes int
	// ForwardTimeout bounds the wait for a Forward's answer. Default 30 s.
	ForwardTimeout time.Duration
	// CallTimeout bounds a Call whose context has no deadline, on both sides. Default 30 s.
	CallTimeout time.Duration
	// DialTimeout bounds making a connection, and separately the handshake on it. Default 3 s.
	DialTimeout time.Duration
	// BackoffMin and BackoffMax bound the pause between attempts to connect. Default 50 ms and 2 s.
	BackoffMin, BackoffMax time.Duration
	// KeepaliveTime is how long a connection may be silent before the client side probes it (gRPC allows no less than
	// 10 s), KeepaliveTimeout how long the answer may take. The server probes after half of KeepaliveTime. Default 10 s, 5 s.
	KeepaliveTime, KeepaliveTimeout time.Duration
	// MaxConnections and MaxConnectionsPerAddr bound the connections that the server takes, in all and from one address; more are
	// closed at once. Default 256 and 64.
	MaxConnections, MaxConnectionsPerAddr int
	// IdleTimeout is how long the server keeps a connection without streams or calls. Default 2 min.
	IdleTimeout time.Duration
	// CloseTimeout bounds how long Server.Close waits for calls in flight before it cuts them off. Default 2 s.
	CloseTimeout time.Duration
}

// PeerInfo says who a node is.
type PeerInfo struct {
	NodeID              int32
	Dir                 uuid.UUID
	ClusterID           string // "" before the cluster is formed
	Version, MinVersion uint32
	// Founding and Payload are only exchanged by Hello.
	Founding []Founder
	Payload  []byte // opaque to the transport
}

// Founder is one node of the set that forms a cluster.
type Founder struct {
	NodeID int32
	Dir    uuid.UUID // uuid.Nil if not known yet
	Addr   string
}

func (c Config) withDefaults() Config {
	if c.ClusterID == nil {
		c.ClusterID = func() string { return "" }
	}
	setDefault(&c.Version, ProtocolVersion)
	setDefault(&c.MinVersion, min(MinProtocolVersion, c.Version))
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Clock == nil {
		c.Clock = clock.System{}
	}
	if c.ServerCredentials == nil {
		c.ServerCredentials = insecure.NewCredentials()
	}
	if c.ClientCredentials == nil {
		c.ClientCredentials = insecure.NewCredentials()
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	setDefault(&c.ControlBytes, 4<<20)
	setDefault(&c.BulkBytes, 64<<20)
	setDefault(&c.FrameBytes, 1<<20)
	setDefault(&c.ForwardBytes, 64<<20)
	setDefault(&c.ForwardTimeout, 30*time.Second)
	setDefault(&c.CallTimeout, 30*time.Second)
	setDefault(&c.DialTimeout, 3*time.Second)
	setDefault(&c.BackoffMin, 50*time.Millisecond)
	setDefault(&c.BackoffMax, 2*time.Second)
	setDefault(&c.KeepaliveTime, 10*time.Second)
	setDefault(&c.KeepaliveTimeout, 5*time.Second)
	setDefault(&c.MaxConnections, 256)
	setDefault(&c.MaxConnectionsPerAddr, 64)
	setDefault(&c.IdleTimeout, 2*time.Minute)
	setDefault(&c.CloseTimeout, 2*time.Second)
	c.FrameBytes = min(c.FrameBytes, MaxBodyBytes)
	return c
}

func setDefault[T int | uint32 | time.Duration](p *T, v T) {
	if *p <= 0 {
		*p = v
	}
}

// self is this node as it introduces itself now.
func (c *Config) self() PeerInfo {
	return PeerInfo{NodeID: c.NodeID, Dir: c.Dir, ClusterID: c.ClusterID(), Version: c.Version, MinVersion: c.MinVersion}
}
