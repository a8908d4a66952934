package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/broker"
)

// conn is a client's connection to a node: requests go through the broker as they do from a socket, encoded, and are answered in
// order.
type conn struct {
	c      *client
	p      *proc
	broken bool // the client has noticed that nothing comes any more, or has closed it
	mute   bool // an answer was lost with the connection: no other comes on it
	asked  []*answer
	// clientID is what the client calls itself; empty: nothing.
	clientID string

	// The server's side.
	begin   func(ctx context.Context, key, version int16, rest []byte) (finishFunc, bool, error)
	ctx     context.Context
	cancel  context.CancelFunc
	begun   []begun
	serving bool
	last    time.Time // when the last request arrives
}

type finishFunc = func(ctx context.Context) (net.Buffers, func(), error)

type begun struct {
	a      *answer
	finish finishFunc
}

// answer is one request's, once it is there.
type answer struct {
	req  kmsg.Request
	done bool
	resp kmsg.Response
	err  error // the connection is gone: what became of the request is not known
	// heard is told of the answer when the server gives it, before it is on its way; nil: nobody is.
	heard func(resp kmsg.Response)
}

var (
	errReset   = errors.New("connection reset")
	errRefused = errors.New("connection refused")
	errTimeout = errors.New("no answer in time")
)

type simAddr string

// Network implements net.Addr.
func (simAddr) Network() string { return "sim" }

// String implements net.Addr.
func (a simAddr) String() string { return string(a) }

// dial connects a client to a node; nil where nothing listens.
func (w *world) dial(c *client, id int32) *conn {
	n := w.nodes[id-1]
	if !n.up() || !n.proc.registered {
		return nil
	}
	k := &conn{c: c, p: n.proc}
	k.ctx, k.cancel = context.WithCancel(never)
	k.begin, _ = n.proc.core.Broker().Connect("PLAINTEXT", simAddr(host(id)), simAddr("client"))
	return k
}

// close gives the connection up. What is under way on it has no answer any more.
func (k *conn) close(why error) {
	if k.broken {
		return
	}
	k.broken = true
	if k.p.dead {
		k.cancel()
	} else {
		k.p.callback(k.cancel)
	}
	for _, a := range k.asked {
		a.done, a.err = true, why
	}
	k.asked = nil
	k.c.poke()
}

// send sends a request; its answer is filled in later, or the connection breaks.
func (k *conn) send(req kmsg.Request, heard func(kmsg.Response)) *answer {
	w := k.c.w
	a := &answer{req: req, heard: heard}
	w.operations++
	if k.broken {
		a.done, a.err = true, errReset
		return a
	}
	k.asked = append(k.asked, a)
	body := encodeRequest(req, k.clientID)
	now := w.clk.Now()
	at := now.Add(time.Duration(w.net.Int64N(int64(w.set.netDelay))))
	if at.Before(k.last) {
		at = k.last
	}
	k.last = at
	w.after(at.Sub(now), func() {
		if k.p.dead {
			k.reset()
			return
		}
		k.p.callback(func() { k.arrive(a, body) })
	})
	return a
}

// encodeRequest makes what follows the correlation id: a client id (empty: null), in a flexible header no tags, and the body.
func encodeRequest(req kmsg.Request, clientID string) []byte {
	b := make([]byte, 0, 256)
	if clientID == "" {
		b = binary.BigEndian.AppendUint16(b, 0xffff)
	} else {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(clientID))), clientID...)
	}
	if req.IsFlexible() {
		b = append(b, 0)
	}
	return req.AppendTo(b)
}

// reset lets the client notice that its server has gone.
func (k *conn) reset() {
	k.c.w.after(time.Duration(k.c.w.net.Int64N(int64(20*ms))), func() { k.close(errReset) })
}

// arrive begins a request on the server.
func (k *conn) arrive(a *answer, body []byte) {
	if k.broken {
		return
	}
	finish, _, err := k.begin(k.ctx, a.req.Key(), a.req.GetVersion(), body)
	if err != nil {
		k.c.w.fail("node %d does not understand %T: %v", k.p.node.id, a.req, err)
		return
	}
	k.begun = append(k.begun, begun{a, finish})
	if !k.serving {
		k.serving = true
		k.c.w.spawn(k.p, k.serve)
	}
}

// serve finishes requests in order, as a connection's writer does.
func (k *conn) serve() {
	defer func() { k.serving = false }()
	for len(k.begun) > 0 {
		b := k.begun[0]
		k.begun = k.begun[1:]
		bufs, release, err := b.finish(k.ctx)
		if k.p.dead {
			return
		}
		if err != nil {
			k.reset()
			return
		}
		var payload []byte
		for _, x := range bufs {
			payload = append(payload, x...)
		}
		if release != nil {
			release()
		}
		k.answer(b.a, payload)
	}
}

func (k *conn) answer(a *answer, payload []byte) {
	w := k.c.w
	resp := a.req.ResponseKind()
	resp.SetVersion(a.req.GetVersion())
	if resp.IsFlexible() && resp.Key() != int16(kmsg.ApiVersions) {
		payload = payload[1:]
	}
	if err := resp.ReadFrom(payload); err != nil {
		w.fail("node %d's answer to %T can't be read: %v", k.p.node.id, a.req, err)
		return
	}
	if a.heard != nil {
		a.heard(resp)
	}
	if k.mute || k.broken {
		return
	}
	if !w.healed && w.noise.answers > 0 && w.net.Float64() < w.noise.answers {
		w.counts["answers lost"]++
		k.mute = true
		return
	}
	w.after(time.Duration(w.net.Int64N(int64(w.set.netDelay))), func() {
		if k.broken || k.mute && !a.done {
			return
		}
		a.done, a.resp = true, resp
		for len(k.asked) > 0 && k.asked[0].done {
			k.asked = k.asked[1:]
		}
		k.c.poke()
	})
}

// requestTimeout is how long a client waits for an answer, where the settings say nothing else.
const requestTimeout = 2500 * time.Millisecond

// ask sends one request and waits for its answer.
func (k *conn) ask(req kmsg.Request, heard func(kmsg.Response)) (kmsg.Response, error) {
	return k.askWithin(k.c.w.set.patience, req, heard)
}

// askWithin is ask, with a time of its own: some answers come when others have done something.
func (k *conn) askWithin(d time.Duration, req kmsg.Request, heard func(kmsg.Response)) (kmsg.Response, error) {
	w := k.c.w
	a := k.send(req, heard)
	until := w.clk.Now().Add(d)
	for !a.done {
		left := until.Sub(w.clk.Now())
		if left <= 0 {
			w.counts["timeouts"]++
			k.close(errTimeout)
			break
		}
		k.c.wait(left)
	}
	return a.resp, a.err
}

// anyNode connects to a node of the client's choosing.
func (c *client) anyNode() *conn { return c.w.dial(c, c.w.members[c.rng.IntN(len(c.w.members))].id) }

var _ = broker.MethodProduce
