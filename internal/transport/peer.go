package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/chronik-go/chronik/internal/transport/peerpb"
)

// peer is one remote node: three links, the queues that feed them, and what is known of it.
type peer struct {
	pool   *pool
	id     int32
	addr   string
	log    *slog.Logger
	ctx    context.Context // ends when the peer is removed or the pool closes
	cancel context.CancelFunc
	done   chan struct{} // closed when every goroutine has ended

	control, bulk *Outbox
	forward       *forwardClient
	links         []*link

	tried     chan struct{} // closed when the first attempt of the control link has an outcome
	triedOnce sync.Once

	mu      sync.Mutex
	conn    *callConn // of the control link while it is up: calls use it
	isUp    bool      // as the handler was told
	since   time.Time
	lastErr string
	logged  bool // that it is unreachable, since it last was reachable
}

// callConn is the control link's connection, which calls share. It closes when the stream has ended and no call uses it: a
// peer that shuts down ends its streams first, and still answers the calls it has.
type callConn struct {
	client peerpb.PeerClient
	close  func()

	mu    sync.Mutex
	users int
}

func (c *callConn) acquire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users++
}

func (c *callConn) release() {
	c.mu.Lock()
	c.users--
	last := c.users == 0
	c.mu.Unlock()
	if last {
		c.close()
	}
}

func newPeer(pl *pool, id int32, addr string) *peer {
	p := &peer{pool: pl, id: id, addr: addr, log: pl.cfg.Logger.With("peer", id, "addr", addr),
		done: make(chan struct{}), tried: make(chan struct{}), since: pl.cfg.Clock.Now()}
	p.ctx, p.cancel = context.WithCancel(pl.ctx)
	dropped := func(group, to uint64, snapshot bool) { pl.dropped(id, group, to, snapshot) }
	p.control = NewOutbox(OutboxConfig{
		MaxBytes: pl.cfg.ControlBytes, DownBytes: min(pl.cfg.ControlBytes, 1<<20), FrameBytes: min(pl.cfg.FrameBytes, 256<<10),
		Clock: pl.cfg.Clock, Dropped: dropped})
	p.bulk = NewOutbox(OutboxConfig{
		MaxBytes: pl.cfg.BulkBytes, DownBytes: min(pl.cfg.BulkBytes, 4<<20), FrameBytes: pl.cfg.FrameBytes,
		TrackInFlight: true, Clock: pl.cfg.Clock, Dropped: dropped})
	p.forward = newForwardClient(&pl.cfg, id)
	p.links = []*link{
		{peer: p, name: "control", lane: &boxLane{box: p.control}, primary: true},
		{peer: p, name: "bulk", lane: &boxLane{box: p.bulk}},
		{peer: p, name: "forward", lane: p.forward},
	}
	for _, l := range p.links {
		l.wake = make(chan struct{}, 1)
	}
	return p
}

// run lives as long as the peer. before is closed when the peer that had this id earlier has ended: its last events must
// not come after this one's first.
func (p *peer) run(before <-chan struct{}) {
	defer close(p.done)
	defer p.cancel()
	var runners, links sync.WaitGroup
	for _, box := range []*Outbox{p.control, p.bulk} {
		runners.Go(func() {
			for box.Wait() {
				box.Step()
			}
		})
	}
	runners.Go(func() {
		for p.forward.wait() {
			p.forward.step()
		}
	})
	if before != nil {
		<-before // its context has ended already
	}
	for _, l := range p.links {
		links.Go(l.run)
	}
	links.Wait()
	p.triedOnce.Do(func() { close(p.tried) })
	p.control.Close()
	p.bulk.Close()
	p.forward.close()
	runners.Wait()
}

func (p *peer) kick() {
	for _, l := range p.links {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

func (p *peer) connected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn != nil
}

func (p *peer) state() peerState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return peerState{ID: p.id, Addr: p.addr, Connected: p.conn != nil, Since: p.since, LastError: p.lastErr,
		Control: p.control.Stats(), Bulk: p.bulk.Stats(), ForwardBytes: p.forward.outstanding()}
}

// up is called by the control link when its stream stands.
func (p *peer) up(cc *callConn) {
	p.mu.Lock()
	p.conn, p.isUp, p.since, p.lastErr, p.logged = cc, true, p.pool.cfg.Clock.Now(), "", false
	p.mu.Unlock()
	p.triedOnce.Do(func() { close(p.tried) })
	p.log.Info("connected to a peer")
	p.kick()
	if !p.pool.closing.Load() {
		p.pool.handler.HandlePeerUp(p.id)
	}
}

// disconnect lets no new call use the connection.
func (p *peer) disconnect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn, p.lastErr = nil, "the connection has just ended"
}

// down is called by the control link when its stream has ended, or could not be had.
func (p *peer) down(err error) {
	p.mu.Lock()
	was := p.isUp
	if was {
		p.isUp, p.since = false, p.pool.cfg.Clock.Now()
	}
	p.lastErr = err.Error()
	var refused *RefusedError
	// A refusal is logged by the link, a cluster that is not formed yet is normal; both may yet become something else.
	quiet := p.logged || p.ctx.Err() != nil || errors.As(err, &refused) || errors.Is(err, errNotFormed)
	p.logged = p.logged || !quiet
	p.mu.Unlock()
	p.triedOnce.Do(func() { close(p.tried) })
	switch {
	case quiet:
	case was:
		p.log.Warn("lost the connection to a peer; trying again until it is back", "err", err)
	default:
		p.log.Info("a peer is not reachable yet; trying again until it is", "err", err)
	}
	if was && !p.pool.closing.Load() {
		p.pool.handler.HandlePeerDown(p.id)
	}
}

// call is Client.Call.
func (p *peer) call(ctx context.Context, method uint16, body []byte) ([]byte, error) {
	fail := func(errs ...error) error {
		return fmt.Errorf("call of node %d, method %d: %w", p.id, method, errors.Join(errs...))
	}
	if len(body) > MaxBodyBytes {
		return nil, fail(ErrTooLarge)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.pool.cfg.CallTimeout)
		defer cancel()
	}
	select {
	case <-p.tried: // a peer just added deserves one attempt
	case <-ctx.Done():
		return nil, fail(ErrPeerDown, ctx.Err())
	}
	p.mu.Lock()
	cc, why := p.conn, p.lastErr
	if cc != nil {
		cc.acquire() // while p.conn is set the link's own share is held
	}
	p.mu.Unlock()
	if cc == nil {
		return nil, fail(ErrPeerDown, errors.New(why))
	}
	defer cc.release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	resp, err := cc.client.Call(introduce(ctx, p.pool.cfg.self(), p.id),
		&peerpb.CallRequest{Method: uint32(method), Body: body})
	if err != nil {
		return nil, fail(callFailed(ctx, err)...)
	}
	if e := resp.GetError(); e != nil {
		return nil, &RemoteError{Node: p.id, Method: method, Code: e.Code, Message: e.Message}
	}
	return resp.GetBody(), nil
}

// callFailed says what an error of gRPC means for a call that was made with ctx.
func callFailed(ctx context.Context, err error) []error {
	switch code := status.Code(err); {
	case code == codeRefused, code == codeNotFormed:
		return []error{ErrPeerDown, errors.New(status.Convert(err).Message())}
	case ctx.Err() != nil:
		return []error{ErrUnknownOutcome, ctx.Err()}
	case code == codes.DeadlineExceeded: // the peer knows the deadline, and saw it pass before our own timer did
		return []error{ErrUnknownOutcome, context.DeadlineExceeded}
	}
	return []error{ErrUnknownOutcome, err}
}

// statusReason turns an error of gRPC into one for people.
func statusReason(err error) error {
	if st, ok := status.FromError(err); ok && st.Code() != codes.OK {
		return errors.New(st.Message())
	}
	return err
}
