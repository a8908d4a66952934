package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// errRequest matches every error about a request that can't be understood; its connection is closed, as Kafka does.
var errRequest = errors.New("bad request")

// conn is what the broker keeps for one connection.
type conn struct {
	b             *Broker
	id            uint64
	listener      string
	mode          ListenerConfig
	local, remote net.Addr

	// routes orders this connection's produces, by partition; nil before the first. It is reached from both of the
	// connection's goroutines and from completions.
	mu     sync.Mutex
	routes map[routeKey]*route
	gaps   map[gapKey]gap
}

// Connect starts a connection: it is server.Handler's, in the standard library's types. begin is called on one goroutine,
// what it returns on that or another, in the same order.
func (b *Broker) Connect(listener string, local, remote net.Addr) (begin func(ctx context.Context, key, version int16, rest []byte) (finish func(ctx context.Context) (net.Buffers, func(), error), quick bool, err error), closed func()) {
	c := &conn{
		b: b, id: b.connIDs.Add(1), listener: listener, mode: b.cfg.Listeners[listener],
		local: local, remote: remote,
	}
	if a, ok := local.(*net.TCPAddr); ok && c.mode.OneAddress && c.mode.Port == 0 {
		c.mode.Port = int32(a.Port)
	}
	return c.begin, func() {}
}

type finishFunc = func(ctx context.Context) (net.Buffers, func(), error)

// begin is stage one of a request.
func (c *conn) begin(ctx context.Context, key, version int16, rest []byte) (finish finishFunc, quick bool, err error) {
	a := lookupAPI(key, version)
	if a == nil {
		if key == int16(kmsg.ApiVersions) {
			// The rest of the header is of a version we don't know: it is not looked at (KIP-511).
			return func(context.Context) (net.Buffers, func(), error) {
				payload, release := encode(unsupportedApiVersions())
				return payload, release, nil
			}, true, nil
		}
		return nil, false, fmt.Errorf("%w: API key %d, version %d is not supported", errRequest, key, version)
	}
	r, err := walkRequest(key, version, rest)
	if err != nil {
		c.b.metrics.malformed(key)
		return nil, false, err
	}
	// What is large once decoded is counted until it is answered; at the limit this socket is not read.
	if r.size > 0 && !c.b.decoded.await(ctx, r.size, memoryPatience, nil) {
		c.b.metrics.starved(key)
		return nil, false, fmt.Errorf("API key %d, version %d: %w", key, version, errBusy)
	}
	call := &call{
		rc: RequestContext{
			Key: key, Version: version, ClientID: r.clientID, Listener: c.listener, Mode: c.mode,
			Local: c.local, Remote: c.remote, Received: c.b.cfg.Clock.Now(), conn: c,
		},
		req: r.req, handle: a.handle, size: r.size,
	}
	if err := call.begin(ctx, a, &r); err != nil {
		c.b.decoded.give(r.size)
		return nil, false, err
	}
	return call.finish, a.quick != nil && a.quick(&call.rc, r.req), nil
}

// call is a request between its stages.
type call struct {
	rc     RequestContext
	req    kmsg.Request
	handle Handler
	second func(context.Context) (kmsg.Response, error) // stage two of what has a stage one; then there is no handle
	size   int64                                        // of Broker.decoded
}

// begin decodes a request that was found sound, and begins it.
func (c *call) begin(ctx context.Context, a *api, r *walked) (err error) {
	b := c.rc.conn.b
	if err := r.decode(); err != nil {
		b.metrics.malformed(c.rc.Key)
		return err
	}
	if a.start != nil {
		c.second, err = a.start(b, ctx, &c.rc, c.req)
	}
	return err
}

// finish is stage two.
func (c *call) finish(ctx context.Context) (net.Buffers, func(), error) {
	b, rc := c.rc.conn.b, &c.rc
	if c.size > 0 {
		defer b.decoded.give(c.size)
	}
	var resp kmsg.Response
	var err error
	if c.second != nil {
		resp, err = c.second(ctx)
	} else {
		resp, err = c.handle(b, ctx, rc, c.req)
	}
	b.metrics.request(rc.Key, b.cfg.Clock.Now().Sub(rc.Received), err)
	if err != nil || resp == nil {
		b.keep(rc, 0)
		return nil, nil, err
	}
	resp.SetVersion(rc.Version)
	payload, release := encode(resp)
	if rc.held == 0 {
		return payload, release, nil
	}
	b.keep(rc, int64(bytesOf(payload)))
	return payload, func() { release(); b.keep(rc, 0) }, nil
}

func bytesOf(payload net.Buffers) (n int) {
	for _, b := range payload {
		n += len(b)
	}
	return n
}

// walked is a request whose bytes were walked, and found sound, and not decoded yet.
type walked struct {
	req      kmsg.Request
	clientID *string
	body     []byte
	// size is what it takes once decoded, beyond its frame; 0 for what is not worth counting.
	size int64
}

// elementBytes is what an array's element takes once decoded, about; requests below decodedMin are not counted: there are no
// more of them at a time than requests in flight.
const (
	elementBytes = 200
	decodedMin   = 64 << 10
)

// errBusy: large requests wait for memory, and this one did for too long.
var errBusy error = busyError{}

type busyError struct{}

func (busyError) Error() string {
	return "other large requests hold the memory that this one needs: try again later, or with a smaller one"
}

// Overloaded tells internal/server that the client did nothing wrong.
func (busyError) Overloaded() bool { return true }

// walkRequest reads the rest of the header and walks the body. Versions are the range table's.
func walkRequest(key, version int16, rest []byte) (r walked, err error) {
	r.req = kmsg.RequestForKey(key)
	r.req.SetVersion(version)
	if r.clientID, r.body, err = parseClientID(rest, r.req.IsFlexible()); err != nil {
		return r, fmt.Errorf("%w: header of API key %d, version %d: %w", errRequest, key, version, err)
	}
	elements, err := guard(key, version, r.req.IsFlexible(), r.body)
	if err != nil {
		return r, fmt.Errorf("%w: API key %d, version %d: %w", errRequest, key, version, err)
	}
	r.size = int64(elements) * elementBytes
	if key != int16(kmsg.Produce) { // its records stay where they are, in the frame
		r.size += int64(len(r.body))
	}
	if r.size < decodedMin {
		r.size = 0
	}
	return r, nil
}

func (r *walked) decode() error {
	if err := r.req.ReadFrom(r.body); err != nil {
		return fmt.Errorf("%w: API key %d, version %d: %w", errRequest, r.req.Key(), r.req.GetVersion(), err)
	}
	return nil
}

// parseClientID reads what follows the correlation id: the client id, whose length is an int16 in every header version, and
// in a flexible header the tags.
func parseClientID(rest []byte, flexible bool) (clientID *string, body []byte, err error) {
	if len(rest) < 2 {
		return nil, nil, errShort
	}
	n := int(int16(binary.BigEndian.Uint16(rest)))
	rest = rest[2:]
	if n >= 0 {
		if n > len(rest) {
			return nil, nil, errShort
		}
		s := string(rest[:n])
		clientID, rest = &s, rest[n:]
	}
	if flexible {
		s := scanner{src: rest, flexible: true, elements: maxElements}
		s.tags(nil)
		if s.err != nil {
			return nil, nil, s.err
		}
		rest = s.src
	}
	return clientID, rest, nil
}

// encoded is a response's buffer. Between their use they lie in a pool; large records are not copied into them.
type encoded struct {
	buf     []byte
	payload [1][]byte
	fetch   *fetchResponse // whose records are given back with it; nil: none
	release func()         // of e.give: made once
}

var buffers sync.Pool

// pooledMax is the largest buffer worth keeping.
const pooledMax = 4 << 20

// give gives everything back.
func (e *encoded) give() {
	if e.fetch != nil {
		e.fetch.free()
	}
	e.fetch, e.payload[0] = nil, nil
	if cap(e.buf) <= pooledMax {
		buffers.Put(e)
	}
}

// encode makes the response's bytes after the correlation id. release gives its buffers back.
func encode(resp kmsg.Response) (payload net.Buffers, release func()) {
	e, ok := buffers.Get().(*encoded)
	if !ok {
		e = &encoded{buf: make([]byte, 0, 512)}
		e.release = e.give
	}
	buf := e.buf[:0]
	var large [][]byte
	if f, ok := resp.(*fetchResponse); ok {
		e.fetch = f
		large = f.takeLarge()
		// Grown once: a response of many partitions would be copied several times on the way.
		buf = slices.Grow(buf, f.encodedBound())
	}
	// The header of an ApiVersions response is v0 whatever the body: a client that asks cannot know yet.
	if resp.IsFlexible() && resp.Key() != int16(kmsg.ApiVersions) {
		buf = append(buf, 0)
	}
	e.buf = resp.AppendTo(buf)
	if len(large) == 0 {
		e.payload[0] = e.buf
		return e.payload[:], e.release
	}
	return splice(e.buf, large, resp.IsFlexible()), e.release
}

// drainState is closed once when the server stops.
type drainState struct {
	ch   chan struct{}
	once sync.Once
}

// Drain says that the server stops: long polls are answered now, and new ones at once. Calling it twice is fine.
func (b *Broker) Drain() { b.draining.once.Do(func() { close(b.draining.ch) }) }

// ids numbers connections.
type ids = atomic.Uint64
