// Package controller is the cluster's brain: it decides what topics, partitions, nodes and configurations there are, on the
// leader of the metadata group, and applies the decisions to the image on every node.
//
// The way of a request: a method of Controller on any node makes an Ask of it and brings it to the leader. There it waits in
// a queue until Step takes it (with whatever else waits), decides from the applied image, and proposes one batch of commands
// that is valid for exactly that image. Every replica applies the batch, or refuses it if the image has moved. One batch is
// under way at a time. The command also leaves a mark of the request in the state, so that a request whose answer was lost
// is asked again, of whoever leads then, without being carried out twice.
package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// Method is the number under which HandleCall takes calls of other controllers, for transport.Client.Call.
const Method uint16 = 0x0301

// Group is the local replica of the metadata group: *multiraft.Replica.
type Group interface {
	Enqueue(p multiraft.Proposal)
	// ReadIndex calls done with nil once everything committed before the call is applied here; on the leader only.
	ReadIndex(done func(error))
	Status() multiraft.Status
}

// Membership changes the metadata group's members: *multiraft.Replica on the leader.
type Membership interface {
	// AddLearner adds a replica that receives the log and does not vote; adding a learner again changes nothing. It returns
	// once that is committed.
	AddLearner(ctx context.Context, replica uint64, node int32) error
}

// Caller asks another node: *transport.Client.
type Caller interface {
	Call(ctx context.Context, node int32, method uint16, body []byte) ([]byte, error)
}

// ConfigRules is what the controller must know of configurations; package config does. All of it is asked on the leader,
// before proposing.
type ConfigRules struct {
	// Validate checks a name and its value; an error's text goes to the client.
	Validate func(r Resource, name, value string) error
	// IsList says whether OpAppend and OpSubtract work on a name.
	IsList func(r Resource, name string) bool
	// Default returns the value of a name that is not set.
	Default func(r Resource, name string) string
}

// Limits bound what a request may ask for. Zero values take the defaults.
type Limits struct {
	// Items in one request. Default 20,000.
	Items int
	// PartitionsPerTopic. Default 10,000.
	PartitionsPerTopic int
	// Partitions in the cluster. Default 200,000.
	Partitions int
	// ConfiguredGroups is how many consumer groups may have configurations of their own. Default 10,000.
	ConfiguredGroups int
	// Queue is how many requests may wait on the leader. Default 4,096.
	Queue int
	// CommandBytes is about where a batch of commands is closed; the rest is decided next. Default 8 MiB.
	CommandBytes int
}

// Config is what a Controller needs.
type Config struct {
	NodeID  int32
	Machine *StateMachine
	// Caller reaches other nodes; nil on a single node.
	Caller Caller
	// Peers lists nodes that may know the leader, when the local replica does not (nil: the image's nodes).
	Peers func() []int32
	// Live lists the nodes that can be reached now, this one included; replicas go to them first and leaders to them only.
	// Nil: all registered.
	Live func() []int32
	// Defaults returns the partition count and replication factor of topics that ask for -1.
	Defaults func() (partitions int32, replicationFactor int16)
	Configs  ConfigRules
	Clock    clock.Clock
	Logger   *slog.Logger
	Limits   Limits
	// Timeout bounds a request whose context has no deadline. Default 30 s.
	Timeout time.Duration
}

// Controller decides on the leader and asks the leader elsewhere. Its methods are safe for concurrent use.
type Controller struct {
	cfg     Config
	machine *StateMachine
	log     *slog.Logger
	group   atomic.Pointer[groupRef]
	hint    atomic.Int32 // the node last known to lead, -1 unknown

	mu     sync.Mutex
	queue  []*op
	flight *flight
	closed bool

	wake    chan struct{}
	stop    chan struct{}
	stopped clock.Group
}

type groupRef struct {
	Group
	Membership
}

// New makes a Controller. It takes requests at once; they wait (within their contexts) until SetGroup and Start.
func New(cfg Config) (*Controller, error) {
	if cfg.Machine == nil || cfg.Clock == nil || cfg.Defaults == nil ||
		cfg.Configs.Validate == nil || cfg.Configs.IsList == nil || cfg.Configs.Default == nil {
		return nil, errors.New("controller: Machine, Clock, Defaults and Configs are needed")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &cfg.Limits
	l.Items = orDefault(l.Items, 20_000)
	l.PartitionsPerTopic = orDefault(l.PartitionsPerTopic, 10_000)
	l.Partitions = orDefault(l.Partitions, 200_000)
	l.ConfiguredGroups = orDefault(l.ConfiguredGroups, 10_000)
	l.Queue = orDefault(l.Queue, 4096)
	l.CommandBytes = orDefault(l.CommandBytes, 8<<20)
	if cfg.Timeout <= 0 {
		cfg.Timeout = 30 * time.Second
	}
	c := &Controller{cfg: cfg, machine: cfg.Machine, log: cfg.Logger, wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: clock.Group{Clock: cfg.Clock}}
	c.hint.Store(-1)
	c.machine.watches.onPoke(c.poke)
	return c, nil
}

func orDefault(v, d int) int {
	if v <= 0 {
		return d
	}
	return v
}

// SetGroup gives the controller the local replica of the metadata group, once there is one: a node that joins registers
// before it has it. m may be nil where no node ever joins.
func (c *Controller) SetGroup(g Group, m Membership) {
	c.group.Store(&groupRef{Group: g, Membership: m})
	c.poke()
}

// status returns the local replica's, or one that knows nothing.
func (c *Controller) status() multiraft.Status {
	if g := c.group.Load(); g != nil {
		return g.Status()
	}
	return multiraft.Status{LeaderNode: -1}
}

// poke wakes the goroutine that calls Step.
func (c *Controller) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Start runs Step on a goroutine of the controller's own, until Close.
func (c *Controller) Start() {
	c.stopped.Go(func() {
		for {
			for c.Step() {
			}
			if clock.Select(c.cfg.Clock, c.wake, c.stop) == 1 {
				return
			}
		}
	})
}

// Close fails what waits (ErrClosed) and waits for the controller's goroutine. It may be called twice. What is under way in
// the log ends with the group.
func (c *Controller) Close() error {
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	queue := c.queue
	c.queue = nil
	var carried []*op
	if c.flight != nil {
		carried = c.flight.ops
		c.flight.abandoned = true
	}
	c.mu.Unlock()
	if first {
		close(c.stop)
		for _, o := range queue {
			o.finish(nil, ErrClosed)
		}
		for _, o := range carried {
			o.finish(nil, unknownOutcome(ErrClosed))
		}
	}
	c.stopped.Wait()
	return nil
}

// op is a request on the leader, from its being queued to its answer.
type op struct {
	ask    *decision
	done   chan struct{}
	once   sync.Once
	answer *controllerpb.Answer
	err    error
	// left: whoever waited has gone; begun: it was taken into a batch that was proposed. Guarded by Controller.mu.
	left, begun bool
}

func (o *op) finish(a *controllerpb.Answer, err error) {
	o.once.Do(func() {
		o.answer, o.err = a, err
		close(o.done)
	})
}

// decide queues a request on this node, which must lead, and waits for its outcome. The error matches ErrNotLeader,
// ErrOverloaded or ErrClosed (nothing was done), the context's error (nothing was done), or ErrUnknownOutcome.
func (c *Controller) decide(ctx context.Context, d *decision) (*controllerpb.Answer, error) {
	o := &op{ask: d, done: make(chan struct{})}
	c.mu.Lock()
	switch {
	case c.closed:
		c.mu.Unlock()
		return nil, ErrClosed
	case len(c.queue) >= c.cfg.Limits.Queue:
		c.mu.Unlock()
		return nil, fmt.Errorf("controller: %d requests wait: %w", c.cfg.Limits.Queue, multiraft.ErrOverloaded)
	}
	c.queue = append(c.queue, o)
	c.mu.Unlock()
	c.poke()
	if _, err := clock.Recv(c.cfg.Clock, ctx, o.done); err == nil {
		return o.answer, o.err
	}
	c.mu.Lock()
	o.left = true
	begun := o.begun
	c.mu.Unlock()
	select {
	case <-o.done: // both at once: the answer is better
		return o.answer, o.err
	default:
	}
	if begun {
		return nil, unknownOutcome(ctx.Err())
	}
	return nil, ctx.Err()
}

// flight is what the log is working on: a batch proposed, or a read.
type flight struct {
	ops       []*op // all that were decided; those not finished wait for the rest of their items
	img       *metadata.Image
	proposed  bool
	abandoned bool
	landed    bool // the log has answered: err is set
	err       error
}

// Step does what is ready: takes the outcome of what was under way, decides what waits. It returns whether more is ready
// now. It never blocks, and is called by one thread at a time.
func (c *Controller) Step() (more bool) {
	c.mu.Lock()
	f := c.flight
	if c.closed || f != nil && !f.landed {
		c.mu.Unlock()
		return false
	}
	c.flight = nil
	c.mu.Unlock()
	if f != nil {
		c.land(f)
	}
	return c.takeOff()
}

// takeOff decides what waits and gives it to the log.
func (c *Controller) takeOff() bool {
	g := c.group.Load()
	status := c.status()
	c.mu.Lock()
	if c.closed || len(c.queue) == 0 {
		c.mu.Unlock()
		return false
	}
	queue := c.queue
	c.queue = nil
	c.mu.Unlock()
	if !status.Ready {
		err := c.notLeader(status)
		for _, o := range queue {
			o.finish(nil, err)
		}
		return true
	}

	img := c.machine.Image()
	r := newRound(c, img)
	f := &flight{img: img}
	i := 0
	for ; i < len(queue) && !r.full(); i++ {
		o := queue[i]
		c.mu.Lock()
		left := o.left
		c.mu.Unlock()
		if left {
			o.finish(nil, context.Canceled)
			continue
		}
		r.take(o.ask)
		f.ops = append(f.ops, o)
	}
	c.mu.Lock()
	c.queue = append(queue[i:len(queue):len(queue)], c.queue...)
	if c.closed {
		rest := c.queue
		c.queue = nil
		c.mu.Unlock()
		for _, o := range append(rest, f.ops...) {
			o.finish(nil, ErrClosed)
		}
		return false
	}
	if len(f.ops) == 0 {
		more := len(c.queue) > 0
		c.mu.Unlock()
		return more
	}
	f.proposed = len(r.batch.Commands) > 0
	for _, o := range f.ops {
		o.begun = o.begun || f.proposed
	}
	c.flight = f
	c.mu.Unlock()
	c.launch(g, f, r)
	return false
}

// launch gives a decided round to the log. Where nothing is to be changed, the answers still must not be those of a leader
// that was deposed: they wait for a read.
func (c *Controller) launch(g *groupRef, f *flight, r *round) {
	landed := func(err error) {
		c.mu.Lock()
		f.landed, f.err = true, err
		c.mu.Unlock()
		c.poke()
	}
	if !f.proposed {
		g.ReadIndex(landed)
		return
	}
	p, err := c.machine.newProposal(r.batch, landed)
	if err != nil {
		landed(err)
		return
	}
	g.Enqueue(p)
}

// land answers the requests of a flight, or puts them back to be decided again.
func (c *Controller) land(f *flight) {
	again := false
	switch {
	case f.err == nil && !f.proposed:
		// A read tells that img was current only if nothing moved meanwhile.
		again = c.machine.Image() != f.img
	case errors.Is(f.err, errStale):
		again = true
	}
	var back []*op
	index := c.machine.Image().Index
	for _, o := range f.ops {
		switch {
		case f.err != nil && !again:
			o.finish(nil, f.err)
		case again:
			o.ask.rollback()
			back = append(back, o)
		case !o.ask.commit(index):
			back = append(back, o) // the rest of its items is next
		default:
			o.finish(o.ask.answer(), nil)
		}
	}
	if len(back) == 0 {
		return
	}
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.queue = append(back, c.queue...)
	}
	c.mu.Unlock()
	if closed {
		for _, o := range back {
			o.finish(nil, unknownOutcome(ErrClosed))
		}
	}
}

func (c *Controller) notLeader(s multiraft.Status) error {
	leader := s.LeaderNode
	if s.IsLeader {
		leader = c.cfg.NodeID // about to be ready
	}
	return &multiraft.NotLeaderError{Group: metadata.MetadataGroup, Term: s.Term, LeaderNode: leader}
}
