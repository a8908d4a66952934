package transport

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Client sends to the peers of this node. Clones are cheap handles on one pool of connections, which closes with the last
// of them. All methods are safe for concurrent use.
type Client struct {
	pool   *pool
	closed atomic.Bool
}

// peerState describes one peer.
type peerState struct {
	ID        int32
	Addr      string
	Connected bool      // the control stream is up
	Since     time.Time // of the last change of Connected
	LastError string    // why it is not connected; "" if it is, or was never tried
	Control   OutboxStats
	Bulk      OutboxStats
	// ForwardBytes are outstanding on the forward stream now.
	ForwardBytes int
}

// NewClient returns a Client without peers. h hears of drops and of connectivity; messages arrive through a Server.
func NewClient(cfg Config, h Handler) *Client {
	return &Client{pool: newPool(cfg.withDefaults(), h)}
}

// Clone returns another handle on the same pool. A clone of a closed client is closed.
func (c *Client) Clone() *Client {
	n := &Client{pool: c.pool}
	if c.closed.Load() || !c.pool.ref() {
		n.closed.Store(true)
	}
	return n
}

// Close gives the handle up. The last one closes all connections and waits for the pool's goroutines: requests outstanding
// end with ErrUnknownOutcome or ErrNotSent; drops are no longer reported. Close is idempotent, and must not be called from
// a Handler's method or a Forward's done.
func (c *Client) Close() error {
	if !c.closed.Swap(true) {
		c.pool.unref()
	}
	return nil
}

// AddPeer begins to connect to a peer, and goes on until it is removed; an absent peer is no error. With another address
// than before it replaces the peer, with the same it does nothing.
func (c *Client) AddPeer(id int32, addr string) error {
	if c.closed.Load() {
		return ErrClosed
	}
	return c.pool.add(id, addr)
}

// RemovePeer forgets a peer. What waits for it is dropped and reported. It does not wait for the connections to end.
func (c *Client) RemovePeer(id int32) {
	if !c.closed.Load() {
		c.pool.remove(id)
	}
}

// Peers returns the ids of the peers added, ascending.
func (c *Client) Peers() []int32 { return slices.Sorted(maps.Keys(*c.pool.peers.Load())) }

// Connected says whether the control stream to a peer is up.
func (c *Client) Connected(id int32) bool {
	p := c.pool.peer(id)
	return p != nil && p.connected()
}

// peerStates describes all peers, by id.
func (c *Client) peerStates() []peerState {
	var out []peerState
	for _, id := range c.Peers() {
		if p := c.pool.peer(id); p != nil {
			out = append(out, p.state())
		}
	}
	return out
}

// Wake makes the next attempt to connect to a peer happen now: it showed a sign of life. See Config.OnInbound.
func (c *Client) Wake(id int32) {
	if p := c.pool.peer(id); p != nil {
		p.kick()
	}
}

// Send queues an envelope for a node. It never blocks; what cannot be queued or sent is dropped and reported through
// Handler.HandleDropped, from another goroutine. The bytes that env refers to must not be changed afterwards.
func (c *Client) Send(node int32, env Envelope) {
	if c.closed.Load() {
		return
	}
	p := c.pool.peer(node)
	if p == nil {
		c.pool.orphans.drop(node, &env)
		return
	}
	box := p.control
	if env.bulky() {
		box = p.bulk
	}
	if !env.sendable() {
		c.pool.refusals.warn("unsendable", "dropped a message that cannot be sent", "peer", node, "group", env.Group,
			"kind", env.Kind, "type", env.Raft.Type, "bytes", env.size())
		box.Refuse(env)
		return
	}
	box.Push(env)
}

// Call asks a peer and waits for its answer, within ctx or Config.CallTimeout. ErrPeerUnknown and
// ErrPeerDown: the request was not handled. *RemoteError: it was handled and failed. ErrUnknownOutcome (with the context's error, if that is the cause): it may have
// been handled.
func (c *Client) Call(ctx context.Context, node int32, method uint16, body []byte) ([]byte, error) {
	if c.closed.Load() {
		return nil, fmt.Errorf("call of node %d: %w: %w", node, ErrPeerDown, ErrClosed)
	}
	p := c.pool.peer(node)
	if p == nil {
		return nil, fmt.Errorf("call of node %d: %w", node, ErrPeerUnknown)
	}
	return p.call(ctx, method, body)
}

// Forward sends a request that the peer begins to handle after all that were forwarded to it before. done is called exactly
// once, on another goroutine, and must not block: with the answer; with a *RemoteError; with ErrNotSent (certainly not
// handled); or with ErrUnknownOutcome, after a broken stream or Config.ForwardTimeout. When a stream breaks, everything
// outstanding on it fails, in order, before anything new is sent. body must not be changed from now on:
// a socket may still be reading it when done reports a failure.
//
// Only on a closed client is done called before Forward returns.
func (c *Client) Forward(node int32, method uint16, body []byte, done func(body []byte, err error)) {
	if c.closed.Load() {
		done(nil, fmt.Errorf("forward to node %d: %w: %w", node, ErrNotSent, ErrClosed))
		return
	}
	p := c.pool.peer(node)
	if p == nil {
		err := fmt.Errorf("forward to node %d: %w: %w", node, ErrNotSent, ErrPeerUnknown)
		if !c.pool.orphans.later(func() { done(nil, err) }) {
			done(nil, err)
		}
		return
	}
	p.forward.push(method, body, done)
}

// pool is what the clones of a Client share.
type pool struct {
	cfg      Config
	handler  Handler
	refusals seldom
	orphans  *orphans
	peers    atomic.Pointer[map[int32]*peer] // replaced, never changed

	ctx     context.Context
	cancel  context.CancelFunc
	closing atomic.Bool
	wg      sync.WaitGroup

	mu   sync.Mutex
	refs int
	last map[int32]<-chan struct{} // closed when the latest peer of that id has ended
}

func newPool(cfg Config, h Handler) *pool {
	p := &pool{
		cfg: cfg, handler: h, refs: 1,
		refusals: seldom{logger: cfg.Logger, clock: cfg.Clock, interval: refusalInterval},
		last:     make(map[int32]<-chan struct{}),
	}
	p.peers.Store(&map[int32]*peer{})
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.orphans = newOrphans(p.dropped)
	p.wg.Go(p.orphans.run)
	p.wg.Go(p.sweep)
	return p
}

func (p *pool) peer(id int32) *peer { return (*p.peers.Load())[id] }

func (p *pool) ref() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refs == 0 {
		return false
	}
	p.refs++
	return true
}

func (p *pool) unref() {
	p.mu.Lock()
	p.refs--
	last := p.refs == 0
	p.mu.Unlock()
	if !last {
		return
	}
	p.closing.Store(true)
	p.cancel()
	p.orphans.close()
	p.wg.Wait()
}

// dropped and the like pass events on until the pool closes: by then the layers above are going away.
func (p *pool) dropped(node int32, group, to uint64, snapshot bool) {
	if !p.closing.Load() {
		p.handler.HandleDropped(node, group, to, snapshot)
	}
}

func (p *pool) add(id int32, addr string) error {
	if id <= 0 || addr == "" {
		return fmt.Errorf("transport: add peer %d at %q: an id > 0 and an address are needed", id, addr)
	}
	if id == p.cfg.NodeID {
		return fmt.Errorf("transport: add peer %d: that is this node", id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refs == 0 {
		return ErrClosed
	}
	old := p.peer(id)
	if old != nil {
		if old.addr == addr {
			return nil
		}
		old.cancel()
	}
	n := newPeer(p, id, addr)
	p.replaceLocked(id, n)
	p.orphans.adopted(id)
	before := p.last[id]
	p.last[id] = n.done
	p.wg.Go(func() { n.run(before) })
	return nil
}

func (p *pool) remove(id int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.peer(id); old != nil {
		p.replaceLocked(id, nil)
		old.cancel()
	}
}

func (p *pool) replaceLocked(id int32, n *peer) {
	m := maps.Clone(*p.peers.Load())
	if n == nil {
		delete(m, id)
	} else {
		m[id] = n
	}
	p.peers.Store(&m)
}

// sweep fails forwards that waited too long.
func (p *pool) sweep() {
	tick := time.NewTicker(min(max(p.cfg.ForwardTimeout/8, 5*time.Millisecond), time.Second))
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
		}
		for _, n := range *p.peers.Load() {
			n.forward.expire(p.cfg.Clock.Now())
		}
	}
}

// orphans reports messages for nodes that are no peers: their addresses may not be known yet, or not any more.
type orphans struct {
	dropped func(node int32, group, to uint64, snapshot bool)

	mu     sync.Mutex
	cond   sync.Cond
	seen   map[orphanKey]struct{} // reported since the peer went unknown
	queue  []func()
	closed bool
}

type orphanKey struct {
	node int32
	dropKey
}

const maxOrphanKeys = 64 << 10 // beyond: forget, and report again

func newOrphans(dropped func(int32, uint64, uint64, bool)) *orphans {
	o := &orphans{dropped: dropped, seen: make(map[orphanKey]struct{})}
	o.cond.L = &o.mu
	return o
}

func (o *orphans) drop(node int32, env *Envelope) {
	if env.Group == 0 {
		return
	}
	key := orphanKey{node, dropKey{env.Group, env.To}}
	snapshot := env.isSnapshot()
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.seen[key]; (ok && !snapshot) || o.closed {
		return
	}
	if len(o.seen) >= maxOrphanKeys {
		clear(o.seen)
	}
	o.seen[key] = struct{}{}
	o.queue = append(o.queue, func() { o.dropped(node, key.group, key.to, snapshot) })
	o.cond.Signal()
}

// later runs fn on the orphans' goroutine; false when that has ended.
func (o *orphans) later(fn func()) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	o.queue = append(o.queue, fn)
	o.cond.Signal()
	return true
}

// adopted ends the burst of a node that became a peer.
func (o *orphans) adopted(node int32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.seen, func(k orphanKey, _ struct{}) bool { return k.node == node })
}

func (o *orphans) run() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		for len(o.queue) == 0 {
			if o.closed {
				return
			}
			o.cond.Wait()
		}
		queue := o.queue
		o.queue = nil
		o.mu.Unlock()
		for _, fn := range queue {
			fn()
		}
		o.mu.Lock()
	}
}

func (o *orphans) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.cond.Signal()
}

var errNotFormed = errors.New("no cluster yet")
