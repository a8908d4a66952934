package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/chronik-go/chronik/internal/netlimit"
	"github.com/chronik-go/chronik/internal/transport/peerpb"
)

// Sizes of what gRPC buffers. The windows are fixed: between nodes of a cluster the bandwidth estimator has nothing to find
// out, and starts at 64 KiB. A zero write buffer would double the cost of a byte.
const (
	grpcBuffer         = 128 << 10
	streamWindow       = 8 << 20
	connWindow         = 16 << 20
	maxPeerStreams     = 8192 // concurrent streams and calls on one connection: joins of groups wait in calls
	serverPingFraction = 2    // the server probes an idle connection after KeepaliveTime / 2
	refusalInterval    = 10 * time.Second
)

// Server answers the peers of this node. It binds in NewServer and serves from Start until Close.
type Server struct {
	peerpb.UnimplementedPeerServer

	cfg      Config
	handler  Handler
	listener *netlimit.Listener
	grpc     *grpc.Server
	refusals seldom

	mu      sync.Mutex
	started bool
	closed  bool
	slots   map[slotKey]*slot

	quit    chan struct{}  // closed by Close: ends the streams
	served  chan struct{}  // closed when Serve has returned
	streams sync.WaitGroup // goroutines of streams; they may outlive the stream's gRPC handler by a moment
}

// NewServer binds cfg.Listen. A port that is in use is reported here.
func NewServer(cfg Config, h Handler) (*Server, error) {
	cfg = cfg.withDefaults()
	if cfg.NodeID <= 0 {
		return nil, fmt.Errorf("transport: node id %d: must be positive", cfg.NodeID)
	}
	lis, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("transport: listen for peers on %s: %w", cfg.Listen, err)
	}
	s := &Server{
		cfg: cfg, handler: h,
		refusals: seldom{logger: cfg.Logger, clock: cfg.Clock, interval: refusalInterval},
		quit:     make(chan struct{}),
		slots:    make(map[slotKey]*slot),
		served:   make(chan struct{}),
	}
	s.listener = netlimit.New(lis, netlimit.Config{Total: cfg.MaxConnections, PerAddr: cfg.MaxConnectionsPerAddr,
		Refused: func(remote net.Addr, reason string) {
			s.refusals.warn("connections/"+reason, "refused a connection to the peer port", "remote", remote.String(), "reason", reason)
		}})
	s.grpc = grpc.NewServer(
		grpc.Creds(cfg.ServerCredentials),
		grpc.MaxRecvMsgSize(MaxFrameBytes), grpc.MaxSendMsgSize(MaxFrameBytes),
		grpc.ReadBufferSize(grpcBuffer), grpc.WriteBufferSize(grpcBuffer),
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(connWindow),
		grpc.MaxConcurrentStreams(maxPeerStreams),
		grpc.ConnectionTimeout(cfg.DialTimeout),
		grpc.WaitForHandlers(true),
		// No MaxConnectionAge: streams live as long as the nodes do. A stranger that opens none is not kept.
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: cfg.IdleTimeout,
			Time: cfg.KeepaliveTime / serverPingFraction, Timeout: cfg.KeepaliveTimeout}),
		// Clients probe every KeepaliveTime; with the default policy (five minutes) the server would close on them.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: min(cfg.KeepaliveTime, 10*time.Second) / 4, PermitWithoutStream: true}),
	)
	peerpb.RegisterPeerServer(s.grpc, s)
	return s, nil
}

// Addr is the bound address.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Connections is how many connections are open, Refused how many were refused for a reason of netlimit's.
func (s *Server) Connections() int { return s.listener.Open() }

// Refused is said at Connections.
func (s *Server) Refused(reason string) int64 { return s.listener.Refused(reason) }

// Start begins to serve. It returns at once; after Close it does nothing.
func (s *Server) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.closed {
		return
	}
	s.started = true
	go func() {
		defer close(s.served)
		if err := s.grpc.Serve(s.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			s.cfg.Logger.Error("the peer listener failed", "addr", s.Addr().String(), "err", err)
		}
	}()
}

// stuckAfter is when a handler whose context has ended is taken for stuck: long after it could have returned on a machine that is
// overloaded.
const stuckAfter = 30 * time.Second

// Close ends the streams, refuses new calls, waits CloseTimeout for those in flight, cuts the rest off, and returns when all
// handlers have returned (an error if they don't, for as long again). It is idempotent.
func (s *Server) Close() error {
	s.mu.Lock()
	started := s.started
	if !s.closed {
		s.closed = true
		close(s.quit)
	}
	s.mu.Unlock()
	if !started {
		_ = s.listener.Close()
		s.grpc.Stop()
		return nil
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.grpc.GracefulStop()
		s.streams.Wait()
		<-s.served
	}()
	grace := time.NewTimer(s.cfg.CloseTimeout)
	defer grace.Stop()
	select {
	case <-stopped:
		return nil
	case <-grace.C:
		s.cfg.Logger.Warn("closing the peer server with calls in flight")
	}
	go s.grpc.Stop() // ends the contexts of what is left, and makes GracefulStop return
	grace.Reset(stuckAfter)
	select {
	case <-stopped:
		return nil
	case <-grace.C:
		return fmt.Errorf("transport: a handler did not return within %v of its context's end", stuckAfter)
	}
}

// Hello implements peerpb.PeerServer. It answers strangers: that is what it is for.
func (s *Server) Hello(_ context.Context, req *peerpb.HelloRequest) (*peerpb.HelloResponse, error) {
	from, err := fromProto(req.GetFrom())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &peerpb.HelloResponse{Self: helloInfo(&s.cfg, from)}, nil
}

// helloInfo is this node as Hello describes it.
func helloInfo(cfg *Config, from PeerInfo) *peerpb.Node {
	var info PeerInfo
	if cfg.Hello != nil {
		info = cfg.Hello(from)
	}
	self := cfg.self()
	self.Founding, self.Payload = info.Founding, info.Payload
	return toProto(self)
}

func toProto(p PeerInfo) *peerpb.Node {
	n := &peerpb.Node{NodeId: p.NodeID, Dir: p.Dir[:], ClusterId: p.ClusterID, Version: p.Version,
		MinVersion: p.MinVersion, Payload: p.Payload}
	for _, f := range p.Founding {
		n.Founding = append(n.Founding, &peerpb.Founder{NodeId: f.NodeID, Dir: f.Dir[:], Address: f.Addr})
	}
	return n
}

func fromProto(n *peerpb.Node) (PeerInfo, error) {
	p := PeerInfo{NodeID: n.GetNodeId(), ClusterID: n.GetClusterId(), Version: n.GetVersion(),
		MinVersion: n.GetMinVersion(), Payload: n.GetPayload()}
	var err error
	if p.Dir, err = uuid.FromBytes(n.GetDir()); err != nil {
		return p, fmt.Errorf("the directory id of node %d: %w", p.NodeID, err)
	}
	for _, f := range n.GetFounding() {
		dir, err := uuid.FromBytes(f.GetDir())
		if err != nil {
			return p, fmt.Errorf("the directory id of founder %d: %w", f.GetNodeId(), err)
		}
		p.Founding = append(p.Founding, Founder{NodeID: f.GetNodeId(), Dir: dir, Addr: f.GetAddress()})
	}
	return p, nil
}

// Call implements peerpb.PeerServer.
func (s *Server) Call(ctx context.Context, req *peerpb.CallRequest) (*peerpb.CallResponse, error) {
	from, err := s.admit(ctx, "call", remoteAddr(ctx))
	if err != nil {
		return nil, err
	}
	if req.Method > 1<<16-1 {
		return nil, status.Errorf(codes.InvalidArgument, "method %d", req.Method)
	}
	select {
	case <-s.quit:
		return nil, status.Error(codeNotFormed, "the node is stopping") // to the caller: not handled
	default:
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.cfg.CallTimeout)
		defer cancel()
	}
	body, err := s.handler.HandleCall(ctx, from.NodeID, uint16(req.Method), req.Body)
	if err == nil && len(body) > MaxBodyBytes {
		err = fmt.Errorf("an answer of %d bytes: %w", len(body), ErrTooLarge)
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) { // given up rather than failed: to the caller, an unknown outcome
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if err != nil {
		code, message := remoteCode(err)
		return &peerpb.CallResponse{Error: &peerpb.CallError{Code: code, Message: message}}, nil
	}
	return &peerpb.CallResponse{Body: body}, nil
}

func remoteAddr(ctx context.Context) string {
	if p, ok := grpcpeer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return "unknown"
}
