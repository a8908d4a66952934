package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	nodepkg "github.com/chronik-go/chronik/internal/node"
	"github.com/chronik-go/chronik/internal/transport"
)

// network joins processes by links of three streams each, control, bulk and forwarded requests, as the transport does: order is
// kept within a stream and not between them, what is lost is reported to the sender (mostly: what a broken connection had
// swallowed is not), and a connection that is gone is noticed sooner or later.
type network struct {
	w     *world
	links [][]*link // from, to; by id - 1
	spare [][]transport.Envelope
}

// maxSpare is how many arrays of messages are kept for the next ones.
const maxSpare = 64

const (
	streamControl = iota
	streamBulk
	streamForward
	streams
)

// link is one direction between two nodes.
type link struct {
	from, to *node
	cut      bool          // nothing gets through, and the sender's kernel notices
	deaf     bool          // nothing gets through, and nobody notices: a half-open connection
	slow     time.Duration // added to every delay
	loss     float64
	up       bool  // as the sender sees it
	peer     *proc // the process at the other end of the connection that is up
	checked  int   // numbers the checks of its state
	last     [streams]time.Time
	out      [streams][]transport.Envelope // sent at this instant
	lost     []lostTo                      // bursts not yet reported, in the order they began
	pending  []*exchange                   // asked and not answered, in that order
}

type lostTo struct {
	group, to uint64
	snapshot  bool
}

// exchange is a call or a forwarded request under way.
type exchange struct {
	over bool
	done func(body []byte, err error)
}

func newNetwork(w *world) *network {
	n := &network{w: w}
	n.grow()
	return n
}

// grow makes the links to and from nodes that are new.
func (n *network) grow() {
	for len(n.links) < len(n.w.nodes) {
		n.links = append(n.links, nil)
	}
	for i, a := range n.w.nodes {
		for _, b := range n.w.nodes[len(n.links[i]):] {
			n.links[i] = append(n.links[i], &link{from: a, to: b})
		}
	}
}

func (n *network) link(from, to int32) *link {
	if from == to || int(to) > len(n.links) || to < 1 {
		return nil
	}
	return n.links[from-1][to-1]
}

// each calls f for every link, in a fixed order.
func (n *network) each(f func(l *link)) {
	for i := range n.links {
		for k, l := range n.links[i] {
			if i != k {
				f(l)
			}
		}
	}
}

// open says whether the connection of a link can work at all: it takes both directions. A node that was removed from the cluster is dialled by
// nobody, and dials the others if it is started.
func (n *network) open(l *link) bool {
	back := n.link(l.to.id, l.from.id)
	return l.from.up() && l.to.up() && l.to.standing != removed && !l.cut && !back.cut && !l.deaf && !back.deaf
}

// check looks at a link's connection again after its state may have changed: what can't work any more breaks after a while, and
// what can is made.
func (n *network) check(l *link, after time.Duration) {
	l.checked++
	turn := l.checked
	n.w.after(after, func() {
		if l.checked != turn || !l.from.up() {
			return
		}
		open := n.open(l)
		if l.up && (!open || l.peer != l.to.proc) {
			n.down(l)
		}
		if open && !l.up {
			l.up, l.peer = true, l.to.proc
			l.last = [streams]time.Time{}
			from := l.from.proc
			n.w.log("%d reaches %d", l.from.id, l.to.id)
			from.withCore(func(c *nodepkg.Core) { c.HandlePeerUp(l.to.id) })
		}
	})
}

// down ends a link's connection for its sender: what is outstanding on it fails, in order.
func (n *network) down(l *link) {
	l.up, l.peer = false, nil
	p := l.from.proc
	n.w.log("%d has lost %d", l.from.id, l.to.id)
	pending := l.pending
	l.pending = nil
	p.withCore(func(c *nodepkg.Core) { c.HandlePeerDown(l.to.id) })
	for _, x := range pending {
		n.finish(p, x, nil, fmt.Errorf("asking node %d: %w", l.to.id, transport.ErrUnknownOutcome))
	}
}

func (n *network) finish(p *proc, x *exchange, body []byte, err error) {
	if !x.over {
		x.over = true
		p.callback(func() { x.done(body, err) })
	}
}

// keepalive is how long it takes to notice that nothing comes any more.
func (n *network) keepalive() time.Duration { return n.between(300*ms, 2*time.Second) }

func (n *network) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(n.w.net.Int64N(int64(hi-lo)+1))
}

// started lets a new process connect, and be connected to.
func (n *network) started(p *proc) {
	for _, o := range n.w.nodes {
		if o == p.node {
			continue
		}
		l := n.link(p.node.id, o.id)
		l.up, l.peer, l.lost, l.pending = false, nil, nil, nil
		l.out = [streams][]transport.Envelope{}
		n.check(l, n.between(ms, 30*ms))
		n.check(n.link(o.id, p.node.id), n.between(ms, 30*ms))
	}
}

// ended breaks the connections of a process that has ended: its kernel resets them. Where a link is cut, nobody hears of it, and
// where the power failed nothing resets them until the machine is back.
func (n *network) ended(p *proc) {
	for _, o := range n.w.nodes {
		if o == p.node {
			continue
		}
		mine := n.link(p.node.id, o.id)
		mine.up, mine.peer, mine.lost, mine.pending = false, nil, nil, nil
		mine.out = [streams][]transport.Envelope{}
		mine.checked++
		if l := n.link(o.id, p.node.id); l.up {
			after := n.between(ms, 20*ms)
			if l.cut || mine.cut || mine.deaf {
				after = n.keepalive()
			}
			n.check(l, after)
		}
	}
}

// changed looks at a link, and at the one back, after a cut came or went.
func (n *network) changed(l *link) {
	for _, x := range []*link{l, n.link(l.to.id, l.from.id)} {
		if n.open(x) {
			n.check(x, n.between(5*ms, 200*ms))
		} else {
			n.check(x, n.keepalive())
		}
	}
}

func isBulk(env *transport.Envelope) bool {
	if env.Kind == transport.KindRaft {
		return env.Raft.Type == raftpb.MsgApp || env.Raft.Type == raftpb.MsgSnap
	}
	return env.Kind == transport.KindDeltaChunk
}

// swallows draws whether a message gets lost on its way now.
func (n *network) swallows(l *link) bool {
	if l.cut || l.deaf {
		return true
	}
	r := l.loss
	if !n.w.healed {
		r += n.w.noise.drop
	}
	return r > 0 && n.w.net.Float64() < r
}

// arrival draws when a message sent now arrives on a stream.
func (n *network) arrival(l *link, stream int) time.Duration {
	now := n.w.clk.Now()
	at := now.Add(n.between(0, n.w.set.netDelay) + l.slow)
	if at.Before(l.last[stream]) {
		at = l.last[stream]
	}
	l.last[stream] = at
	return at.Sub(now)
}

// Send implements node.Peers.
func (p *proc) Send(to int32, env transport.Envelope) {
	n := p.node.w.links
	l := n.link(p.node.id, to)
	if p.dead || l == nil {
		return
	}
	n.w.throttles.sent(p, &env)
	if !l.up || n.swallows(l) {
		n.lose(p, l, &env)
		return
	}
	stream := streamControl
	if isBulk(&env) {
		stream = streamBulk
	}
	w := n.w
	if len(l.out[stream]) == 0 {
		// What is sent at one instant travels together, as many groups' messages do in one send of the transport.
		dest := l.peer
		w.after(0, func() { n.flush(p, dest, l, stream) })
		if k := len(n.spare); k > 0 {
			l.out[stream], n.spare = n.spare[k-1], n.spare[:k-1]
		}
	}
	l.out[stream] = append(l.out[stream], cloneEnvelope(env))
	if !w.healed && env.Kind == transport.KindRaft && w.noise.dup > 0 && w.net.Float64() < w.noise.dup {
		w.counts["messages duplicated"]++
		l.out[stream] = append(l.out[stream], cloneEnvelope(env))
	}
}

// flush sends what has gathered on a stream.
func (n *network) flush(p, dest *proc, l *link, stream int) {
	envs := l.out[stream]
	l.out[stream] = nil
	if len(envs) > 0 {
		n.w.after(n.arrival(l, stream), func() { n.deliver(p, dest, l, envs) })
	}
}

// cloneEnvelope copies all that the sender may change later.
func cloneEnvelope(env transport.Envelope) transport.Envelope {
	env.Body = bytes.Clone(env.Body)
	if env.Kind != transport.KindRaft {
		return env
	}
	m := &env.Raft
	m.Context, m.Responses = bytes.Clone(m.Context), nil
	if len(m.Entries) > 0 {
		size := 0
		for i := range m.Entries {
			size += len(m.Entries[i].Data)
		}
		data := make([]byte, 0, size)
		entries := slices.Clone(m.Entries)
		for i := range entries {
			if d := entries[i].Data; len(d) > 0 {
				at := len(data)
				data = append(data, d...)
				entries[i].Data = data[at:len(data):len(data)]
			}
		}
		m.Entries = entries
	}
	if m.Snapshot != nil {
		s := *m.Snapshot
		s.Data = bytes.Clone(s.Data)
		cs := &s.Metadata.ConfState
		cs.Voters, cs.Learners = slices.Clone(cs.Voters), slices.Clone(cs.Learners)
		cs.VotersOutgoing, cs.LearnersNext = slices.Clone(cs.VotersOutgoing), slices.Clone(cs.LearnersNext)
		m.Snapshot = &s
	}
	return env
}

func (n *network) deliver(p, dest *proc, l *link, envs []transport.Envelope) {
	lost := dest.dead || l.cut || l.deaf
	for i := range envs {
		if lost {
			n.lose(p, l, &envs[i])
			continue
		}
		n.w.messages++
		n.w.traceMessage(l, &envs[i])
		n.w.throttles.arrived(p, dest, &envs[i])
	}
	if !lost && dest.core != nil {
		dest.core.HandleEnvelopes(l.from.id, envs)
		n.w.touch(dest)
	}
	if len(n.spare) < maxSpare {
		clear(envs)
		n.spare = append(n.spare, envs[:0])
	}
}

// traceMessage enters a message that arrives into the trace. There are many: they are printed only where somebody looks.
func (w *world) traceMessage(l *link, env *transport.Envelope) {
	t, at, m := &w.trace, w.clk.Now().Sub(epoch), &env.Raft
	t.mix(uint64(at), uint64(l.from.id)<<32|uint64(l.to.id), env.Group, uint64(env.Kind), uint64(len(env.Body)))
	if env.Kind != transport.KindRaft {
		if t.sink != nil {
			t.print(at, fmt.Sprintf("%d->%d g%d kind %d, %d bytes", l.from.id, l.to.id, env.Group, env.Kind, len(env.Body)))
		}
		return
	}
	reject := uint64(0)
	if m.Reject {
		reject = 1
	}
	w.checkVote(env)
	t.mix(uint64(m.Type), m.Term, m.Index, m.LogTerm, m.Commit, uint64(len(m.Entries)), reject)
	if t.sink != nil {
		t.print(at, fmt.Sprintf("%d->%d g%d %v term %d index %d logterm %d commit %d entries %d reject %v", l.from.id, l.to.id, env.Group, m.Type, m.Term,
			m.Index, m.LogTerm, m.Commit, len(m.Entries), m.Reject))
	}
}

// lose drops a message. The sender hears of it once for each burst and group; rarely never, as when a connection dies with
// bytes in its buffers.
func (n *network) lose(p *proc, l *link, env *transport.Envelope) {
	w := n.w
	w.counts["messages lost"]++
	snapshot := env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgSnap
	if p.dead {
		return
	}
	if l.deaf || w.net.Float64() < w.noise.unreportedLoss {
		w.counts["losses never reported"]++
		return
	}
	for i := range l.lost {
		if d := &l.lost[i]; d.group == env.Group && d.to == env.To {
			d.snapshot = d.snapshot || snapshot
			return
		}
	}
	l.lost = append(l.lost, lostTo{env.Group, env.To, snapshot})
	if len(l.lost) > 1 {
		return
	}
	w.after(n.between(0, 50*ms), func() {
		if p.dead {
			return
		}
		lost := l.lost
		l.lost = nil
		p.withCore(func(c *nodepkg.Core) {
			for _, d := range lost {
				c.HandleDropped(l.to.id, d.group, d.to, d.snapshot)
			}
		})
	})
}

// exchange sends a request on a stream and has handle answer it in the other process.
func (n *network) exchange(p *proc, l *link, stream int, size int, x *exchange, handle func(dest *proc, reply func([]byte, error))) {
	l.pending = append(l.pending, x)
	end := func(body []byte, err error) {
		if i := slices.Index(l.pending, x); i >= 0 {
			l.pending = slices.Delete(l.pending, i, i+1)
		}
		n.finish(p, x, body, err)
	}
	dest := l.peer
	w := n.w
	if n.swallows(l) {
		w.counts["messages lost"]++
		return // the connection will break, or the one who asked gives up
	}
	w.after(n.arrival(l, stream), func() {
		if dest.dead || l.cut || l.deaf {
			w.counts["messages lost"]++
			return
		}
		w.counts["requests between nodes"]++
		w.trace.mix(uint64(w.clk.Now().Sub(epoch)), uint64(l.from.id)<<32|uint64(l.to.id), uint64(size))
		dest.callback(func() {
			handle(dest, func(body []byte, err error) {
				back := n.link(l.to.id, l.from.id)
				if dest.dead || n.swallows(back) {
					w.counts["messages lost"]++
					return
				}
				body = bytes.Clone(body)
				w.after(n.arrival(back, stream), func() {
					if !p.dead && !back.cut && !back.deaf {
						end(body, err)
					}
				})
			})
		})
	})
}

var errStarting = errors.New("the node is still starting")

// withCore tells the node of something of its peers, if it belongs to the cluster yet.
func (p *proc) withCore(tell func(*nodepkg.Core)) {
	p.callback(func() {
		if p.core != nil {
			tell(p.core)
		}
	})
}

// Call implements node.Peers.
func (p *proc) Call(ctx context.Context, to int32, method uint16, body []byte) ([]byte, error) {
	request, from := bytes.Clone(body), p.node.id
	return p.call(ctx, to, len(body), func(dest *proc, reply func([]byte, error)) {
		p.node.w.spawn(dest, func() {
			out, err := []byte(nil), errStarting
			if dest.core != nil {
				out, err = dest.core.HandleCall(never, from, method, request)
			}
			if err != nil {
				err = remoteError(dest.node.id, method, err)
			}
			reply(out, err)
		})
	})
}

// call asks another process something, and waits for the answer while ctx lives.
func (p *proc) call(ctx context.Context, to int32, size int, handle func(dest *proc, reply func([]byte, error))) ([]byte, error) {
	n, clk := p.node.w.links, machineClock{p}
	l := n.link(p.node.id, to)
	switch {
	case l == nil:
		return nil, fmt.Errorf("call of node %d: %w", to, transport.ErrPeerUnknown)
	case p.dead || !l.up:
		return nil, fmt.Errorf("call of node %d: %w", to, transport.ErrPeerDown)
	}
	var answer []byte
	var failure error
	x := &exchange{}
	x.done = func(body []byte, err error) { answer, failure = body, err }
	n.exchange(p, l, streamControl, size, x, handle)
	clk.WaitUntil(func() bool { return x.over || ctx.Err() != nil })
	if !x.over {
		x.over = true
		return nil, fmt.Errorf("call of node %d: %w: %w", to, transport.ErrUnknownOutcome, ctx.Err())
	}
	return answer, failure
}

func remoteError(node int32, method uint16, err error) error {
	re := &transport.RemoteError{Node: node, Method: method, Message: err.Error()}
	var inner *transport.RemoteError
	if errors.As(err, &inner) {
		re.Code, re.Message = inner.Code, inner.Message
	}
	return re
}

// forwardTimeout is the transport's, by which a forwarded request has an answer.
const forwardTimeout = 10 * time.Second

// Forward implements node.Peers.
func (p *proc) Forward(to int32, method uint16, body []byte, done func([]byte, error)) {
	w := p.node.w
	n := w.links
	l := n.link(p.node.id, to)
	if p.dead || l == nil || !l.up {
		err := fmt.Errorf("forward to node %d: %w: %w", to, transport.ErrNotSent, transport.ErrPeerDown)
		w.after(0, func() { p.callback(func() { done(nil, err) }) })
		return
	}
	x := &exchange{done: done}
	request, from := bytes.Clone(body), p.node.id
	w.after(forwardTimeout, func() {
		n.finish(p, x, nil, fmt.Errorf("forward to node %d: %w", to, transport.ErrUnknownOutcome))
	})
	n.exchange(p, l, streamForward, len(body), x, func(dest *proc, reply func([]byte, error)) {
		if dest.core == nil {
			reply(nil, remoteError(dest.node.id, method, errStarting))
			return
		}
		dest.core.HandleForward(from, method, request, func(body []byte, err error) {
			if err != nil {
				err = remoteError(dest.node.id, method, err)
			}
			reply(body, err)
		})
	})
}

// AddPeer implements node.Peers: whoever is there is known.
func (p *proc) AddPeer(int32, string) error { return nil }

// Peers implements node.Peers: a node that was removed is forgotten.
func (p *proc) Peers() (ids []int32) {
	for _, o := range p.node.w.nodes {
		if o != p.node && o.standing != removed && o.standing != discarded {
			ids = append(ids, o.id)
		}
	}
	return ids
}

// Connected implements node.Peers.
func (p *proc) Connected(to int32) bool {
	l := p.node.w.links.link(p.node.id, to)
	return l != nil && l.up
}

var _ nodepkg.Peers = (*proc)(nil)
