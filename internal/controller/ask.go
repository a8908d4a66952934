package controller

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/transport"
)

// What an Answer's status says.
const (
	statusDone = iota
	statusNotLeader
	statusUnknown
	statusOverloaded
	statusRefused
	statusNotDone
)

// Waits between attempts, and the bound of one attempt on another node: a node that hangs must not use up the whole time
// of a request. Asking again is safe: the request keeps its id.
const (
	firstBackoff   = 5 * time.Millisecond
	maxBackoff     = 250 * time.Millisecond
	attemptTimeout = 5 * time.Second
)

// bounded gives ctx a deadline if it has none.
func (c *Controller) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return clock.WithTimeout(ctx, c.cfg.Clock, c.cfg.Timeout)
}

// ask brings a request to the leader, wherever it is, until there is an answer or ctx ends. A nil error comes with an
// answer that has one item for each of the request's.
func (c *Controller) ask(ctx context.Context, a *controllerpb.Ask, items int) (*controllerpb.Answer, error) {
	if items == 0 && a.GetBarrier() == nil {
		return &controllerpb.Answer{}, nil
	}
	if items > c.cfg.Limits.Items {
		return nil, refuse(ErrPolicy, "%d items in one request, at most %d are taken", items, c.cfg.Limits.Items)
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	id, err := uuid.NewRandomFromReader(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("random numbers: %w", err)
	}
	a.Id = id[:]
	t := &attempts{c: c, ask: a, backoff: firstBackoff}
	for {
		ans, err := t.once(ctx)
		switch {
		case err == nil && len(ans.Items) != items:
			return nil, &CorruptError{What: "call", Reason: fmt.Sprintf("answer with %d items to a request of %d", len(ans.Items), items)}
		case err == nil:
			return ans, nil
		case !t.retry(err):
			return nil, err
		}
		if err := c.pause(ctx, t.backoff); err != nil {
			return nil, t.giveUp(err)
		}
		t.backoff = min(2*t.backoff, maxBackoff)
	}
}

// attempts is the state of bringing one request to the leader.
type attempts struct {
	c       *Controller
	ask     *controllerpb.Ask
	body    []byte
	backoff time.Duration
	turn    int
	// unsure: an attempt may have been carried out.
	unsure bool
	last   error
}

// once asks whoever leads, as far as is known.
func (t *attempts) once(ctx context.Context) (*controllerpb.Answer, error) {
	c := t.c
	if s := c.status(); s.Ready {
		return c.execute(ctx, t.ask)
	}
	node := t.target()
	if node < 0 {
		return nil, &multiraft.NotLeaderError{Group: 1, LeaderNode: -1}
	}
	if t.body == nil {
		var err error
		if t.body, err = seal(magicCall, t.ask); err != nil {
			return nil, err
		}
	}
	ctx, cancel := clock.WithTimeout(ctx, c.cfg.Clock, attemptTimeout)
	defer cancel()
	reply, err := c.cfg.Caller.Call(ctx, node, Method, t.body)
	if err != nil {
		c.hint.CompareAndSwap(node, -1)
		if notSent(err) {
			return nil, fmt.Errorf("%w: asking node %d: %w", errNotDone, node, err)
		}
		return nil, unknownOutcome(fmt.Errorf("asking node %d: %w", node, err))
	}
	var ans controllerpb.Answer
	if err := unseal(magicCall, "call", reply, &ans); err != nil {
		return nil, fmt.Errorf("answer of node %d: %w", node, err)
	}
	if ans.Status == statusNotLeader {
		c.hint.Store(ans.Leader)
	} else {
		c.hint.Store(node)
	}
	return &ans, answerError(&ans)
}

// notSent says that a call that failed certainly did not arrive.
func notSent(err error) bool {
	for _, e := range []error{transport.ErrPeerUnknown, transport.ErrPeerDown, transport.ErrNotSent, transport.ErrOverloaded, transport.ErrTooLarge} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// target returns the node to ask, -1 if none is known but this one.
func (t *attempts) target() int32 {
	c := t.c
	if c.cfg.Caller == nil {
		return -1
	}
	if n := c.status().LeaderNode; n >= 0 && n != c.cfg.NodeID {
		return n
	}
	if n := c.hint.Load(); n >= 0 && n != c.cfg.NodeID {
		return n
	}
	var peers []int32
	if c.cfg.Peers != nil {
		peers = slices.Clone(c.cfg.Peers())
	} else {
		for id := range c.machine.Image().Nodes {
			peers = append(peers, id)
		}
	}
	peers = slices.DeleteFunc(peers, func(id int32) bool { return id == c.cfg.NodeID })
	if len(peers) == 0 {
		return -1
	}
	slices.Sort(peers)
	t.turn++
	return peers[(t.turn-1)%len(peers)]
}

// retry says whether another attempt is worth it after err, and remembers what it says of the outcome.
func (t *attempts) retry(err error) bool {
	t.last = err
	switch {
	case errors.Is(err, multiraft.ErrUnknownOutcome):
		t.unsure = true
		return true
	case errors.Is(err, multiraft.ErrNotLeader), errors.Is(err, multiraft.ErrOverloaded), errors.Is(err, errNotDone),
		errors.Is(err, multiraft.ErrStopped), errors.Is(err, multiraft.ErrFenced):
		// A replica that was stopped or fenced here does not keep another from leading.
		return true
	}
	var ce *CorruptError
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.As(err, &ce) && ce.What == "call"
}

// giveUp says what a request that ran out of time ended with.
func (t *attempts) giveUp(cause error) error {
	switch {
	case t.unsure:
		return unknownOutcome(errors.Join(cause, t.last))
	case errors.Is(t.last, multiraft.ErrOverloaded):
		return fmt.Errorf("%w: %w", t.last, cause)
	}
	return fmt.Errorf("%w: %w (last: %w)", ErrNoLeader, cause, t.last)
}

// pause waits d; an error when ctx ends first or the controller closes.
func (c *Controller) pause(ctx context.Context, d time.Duration) error {
	fired, stop := clock.After(c.cfg.Clock, d)
	defer stop()
	if clock.Select(c.cfg.Clock, fired, ctx.Done(), c.stop) == 2 {
		return ErrClosed
	}
	return ctx.Err()
}

// execute decides a request on this node, which must lead, and does what a leader does beside the log.
func (c *Controller) execute(ctx context.Context, a *controllerpb.Ask) (*controllerpb.Answer, error) {
	d, err := newDecision(a, c.cfg.Limits.Items)
	if err != nil {
		return nil, err
	}
	ans, err := c.decide(ctx, d)
	if err != nil {
		return nil, err
	}
	if n := ans.Node; n != nil && !n.Voter && len(ans.Items) == 1 && ans.Items[0].Error == nil {
		g := c.group.Load()
		if g == nil || g.Membership == nil {
			return nil, refuse(ErrPolicy, "this cluster takes no further nodes")
		}
		if err := g.AddLearner(ctx, n.MetadataReplica, n.Id); err != nil {
			// It is registered; asked again it becomes a learner.
			return nil, unknownOutcome(fmt.Errorf("adding node %d to the metadata group: %w", n.Id, err))
		}
	}
	return ans, nil
}

// errNotDone is another node's: nothing was done, and it may be asked again.
var errNotDone = errors.New("not done")

func answerError(a *controllerpb.Answer) error {
	switch a.Status {
	case statusDone:
		return nil
	case statusNotLeader:
		return &multiraft.NotLeaderError{Group: 1, LeaderNode: a.Leader}
	case statusOverloaded:
		return multiraft.ErrOverloaded
	case statusRefused:
		if a.Error == nil {
			return &Error{Kind: ErrInvalidRequest, Msg: "refused by the controller, which gave no reason"}
		}
		return fromProto(a.Error)
	case statusNotDone:
		return fmt.Errorf("%w: %s", errNotDone, a.Error.GetMessage())
	}
	return unknownOutcome(errors.New(a.Error.GetMessage()))
}

// HandleCall answers another node's controller; calls of other methods are an error. It never asks a third node: who is
// not the leader says who is. The error is nil unless the call makes no sense.
func (c *Controller) HandleCall(ctx context.Context, from int32, method uint16, body []byte) ([]byte, error) {
	if method != Method {
		return nil, fmt.Errorf("controller: no method %#x", method)
	}
	var a controllerpb.Ask
	if err := unseal(magicCall, "call", body, &a); err != nil {
		return nil, fmt.Errorf("call of node %d: %w", from, err)
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	var ans *controllerpb.Answer
	s := c.status()
	err := c.notLeader(s)
	if s.Ready {
		ans, err = c.execute(ctx, &a)
	}
	if err != nil {
		ans = errorAnswer(err)
	}
	return seal(magicCall, ans)
}

func errorAnswer(err error) *controllerpb.Answer {
	a := &controllerpb.Answer{Leader: -1, Error: &controllerpb.Error{Message: err.Error()}}
	var nl *multiraft.NotLeaderError
	var refused *Error
	switch {
	case errors.Is(err, multiraft.ErrUnknownOutcome):
		a.Status = statusUnknown
	case errors.As(err, &nl):
		a.Status, a.Leader = statusNotLeader, nl.LeaderNode
	case errors.Is(err, multiraft.ErrNotLeader):
		a.Status = statusNotLeader
	case errors.Is(err, multiraft.ErrOverloaded):
		a.Status = statusOverloaded
	case errors.As(err, &refused):
		a.Status, a.Error = statusRefused, refused.proto()
	default:
		a.Status = statusNotDone
	}
	return a
}
