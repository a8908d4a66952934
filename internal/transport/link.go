package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/chronik-go/chronik/internal/transport/peerpb"
)

// lane is what a link serves: an outbox, or the forward stream's client.
type lane interface {
	// attach gives the lane a stream.
	attach(stream grpc.ClientStream)
	// receive reads from the stream until it ends, and returns why.
	receive(stream grpc.ClientStream) error
	// broken says that the stream has ended, or could not be had.
	broken(err error)
}

// link keeps one stream to a peer open, on a TCP connection of its own.
type link struct {
	peer    *peer
	name    string
	lane    lane
	primary bool // the control link: it decides whether the peer is up
	wake    chan struct{}
}

const (
	formationPoll  = 50 * time.Millisecond  // how often to look whether this node has joined a cluster meanwhile
	notFormedPause = 250 * time.Millisecond // longest pause while the peer has not
	stableAfter    = time.Second            // a stream that lasted this long resets the backoff
	wakeGap        = 20 * time.Millisecond  // least time between attempts, whatever wakes them
)

// run connects again and again until the peer is removed.
func (l *link) run() {
	p, cfg := l.peer, &l.peer.pool.cfg
	backoff := cfg.BackoffMin
	for p.ctx.Err() == nil {
		if cfg.ClusterID() == "" {
			// Not an attempt: there is nothing to introduce oneself with yet.
			l.fail(fmt.Errorf("this node: %w", errNotFormed))
			l.pause(formationPoll, false)
			continue
		}
		began := time.Now()
		err := l.session()
		l.fail(err)
		var refused *RefusedError
		switch {
		case time.Since(began) >= stableAfter:
			backoff = cfg.BackoffMin
		case errors.As(err, &refused):
			p.pool.refusals.warn(fmt.Sprintf("%d/%s", p.id, refused.Reason), "a peer and this node do not belong together",
				"peer", p.id, "addr", p.addr, "reason", refused.Reason)
			backoff = cfg.BackoffMax
		case errors.Is(err, errNotFormed):
			backoff = min(backoff, notFormedPause)
		}
		// Between a half and the whole, so that a cluster's nodes do not dial in step.
		if l.pause(backoff/2+rand.N(backoff/2+1), refused == nil) {
			backoff = cfg.BackoffMin
			// Two nodes whose streams keep breaking must not wake each other in a tight circle.
			l.pause(wakeGap-time.Since(began), false)
		} else {
			backoff = min(2*backoff, cfg.BackoffMax)
		}
	}
}

func (l *link) fail(err error) {
	l.lane.broken(err)
	if l.primary {
		l.peer.down(err)
	}
}

// pause waits d, less if the peer shows a sign of life and that is wanted; then it returns true.
func (l *link) pause(d time.Duration, wakeable bool) (woken bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	wake := l.wake
	if !wakeable {
		wake = nil
	}
	select {
	case <-t.C:
	case <-l.peer.ctx.Done():
	case <-wake:
		return true
	}
	return false
}

// session connects, shakes hands and serves the lane until the stream ends. It always returns an error.
func (l *link) session() error {
	p, cfg := l.peer, &l.peer.pool.cfg
	cc, closeConn, err := dial(p.ctx, cfg, p.addr)
	if err != nil {
		return err
	}
	conn := &callConn{client: peerpb.NewPeerClient(cc), close: closeConn, users: 1}
	defer conn.release()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	late := time.AfterFunc(cfg.DialTimeout, cancel)
	defer late.Stop()
	stream, err := l.open(introduce(ctx, cfg.self(), p.id), conn.client)
	if err != nil {
		return l.classify(err)
	}
	md, err := stream.Header()
	if err == nil && len(md.Get(mdNode)) == 0 {
		err = stream.RecvMsg(&inFrame{}) // ended without headers: the status says why
		if err == nil {
			err = errors.New("the peer sent a frame without introducing itself")
		}
	}
	if err != nil {
		return l.classify(err)
	}
	if _, reason := checkAnswer(cfg, p.id, md); reason != "" {
		return &RefusedError{Node: p.id, Addr: p.addr, Reason: reason}
	}
	if !late.Stop() {
		return fmt.Errorf("no handshake within %v", cfg.DialTimeout)
	}
	select { // signs of life up to here led to this stream
	case <-l.wake:
	default:
	}
	l.lane.attach(stream)
	if l.primary {
		p.up(conn)
		defer p.disconnect() // before release
	}
	return l.classify(l.lane.receive(stream))
}

func (l *link) open(ctx context.Context, c peerpb.PeerClient) (grpc.ClientStream, error) {
	opt := grpc.CallContentSubtype(codecName)
	switch l.name {
	case "control":
		return c.Control(ctx, opt)
	case "bulk":
		return c.Bulk(ctx, opt)
	default:
		return c.Forward(ctx, opt)
	}
}

func (l *link) classify(err error) error {
	switch status.Code(err) {
	case codeRefused:
		return &RefusedError{Node: l.peer.id, Addr: l.peer.addr, Reason: status.Convert(err).Message()}
	case codeNotFormed:
		return fmt.Errorf("the peer: %w", errNotFormed)
	}
	if errors.Is(err, io.EOF) {
		return errors.New("the peer ended the stream")
	}
	return statusReason(err)
}

// dial makes a connection and a gRPC client on it. The connection is made here, not by gRPC, which would go on redialling
// on its own schedule; one client has one connection, and ends with it.
func dial(ctx context.Context, cfg *Config, addr string) (*grpc.ClientConn, func(), error) {
	dctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	defer cancel()
	conn, err := cfg.Dial(dctx, addr)
	if err != nil {
		return nil, nil, err
	}
	var used atomic.Bool
	cc, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, errors.New("the connection has ended")
			}
			return conn, nil
		}),
		grpc.WithTransportCredentials(cfg.ClientCredentials),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: cfg.DialTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: cfg.KeepaliveTime, Timeout: cfg.KeepaliveTimeout, PermitWithoutStream: true}),
		grpc.WithReadBufferSize(grpcBuffer), grpc.WithWriteBufferSize(grpcBuffer),
		grpc.WithStaticStreamWindowSize(streamWindow), grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxFrameBytes), grpc.MaxCallSendMsgSize(MaxFrameBytes)),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithIdleTimeout(0),
	)
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return cc, func() {
		_ = cc.Close()
		_ = conn.Close() // in case gRPC never took it
	}, nil
}

// Hello asks whoever listens at addr who it is, and tells it the same of this node. It needs no peer, no cluster and no
// agreement, and is bounded by ctx and Config.CallTimeout.
func (c *Client) Hello(ctx context.Context, addr string) (PeerInfo, error) {
	if c.closed.Load() {
		return PeerInfo{}, ErrClosed
	}
	cfg := &c.pool.cfg
	ctx, cancel := context.WithTimeout(ctx, cfg.CallTimeout)
	defer cancel()
	defer context.AfterFunc(c.pool.ctx, cancel)()
	cc, closeConn, err := dial(ctx, cfg, addr)
	if err != nil {
		return PeerInfo{}, fmt.Errorf("hello to %s: %w", addr, err)
	}
	defer closeConn()
	resp, err := peerpb.NewPeerClient(cc).Hello(ctx, &peerpb.HelloRequest{From: helloInfo(cfg, PeerInfo{})})
	if err != nil {
		return PeerInfo{}, fmt.Errorf("hello to %s: %w", addr, err)
	}
	info, err := fromProto(resp.GetSelf())
	if err != nil {
		return info, fmt.Errorf("hello to %s: %w", addr, err)
	}
	return info, nil
}

// boxLane is an outbox's lane.
type boxLane struct {
	box *Outbox
	w   frameWriter // used by the outbox's goroutine only
}

func (b *boxLane) attach(stream grpc.ClientStream) {
	b.box.Attach(func(envs []Envelope) error {
		bufs, err := encodeEnvelopes(&b.w, envs)
		if err != nil {
			return err
		}
		return stream.SendMsg(&outFrame{bufs})
	})
}

func (b *boxLane) broken(error) { b.box.Break() }

func (b *boxLane) receive(stream grpc.ClientStream) error {
	for {
		var in inFrame
		if err := stream.RecvMsg(&in); err != nil {
			return err
		}
		in.free() // nothing is sent this way yet; a later version may
	}
}
