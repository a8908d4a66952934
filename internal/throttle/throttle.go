// Package throttle bounds what replicas that catch up cost the others: Kafka's replication quotas (KIP-73), whose names it keeps.
// A node has two budgets of bytes a second, leader.replication.throttled.rate for what it sends and
// follower.replication.throttled.rate for what it receives, and topics say whose traffic counts.
//
// Nothing here waits or has a clock: who is to send asks how long to wait, and tells what was sent. All of it is safe for
// concurrent use.
package throttle

import (
	"math"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Unlimited is the rate that bounds nothing, Kafka's default.
const Unlimited = math.MaxInt64

// MaxWait is the longest that Limit.Wait says: who waits looks again then, so that a rate that was raised counts at once.
const MaxWait = 500 * time.Millisecond

// Limit is a budget of bytes a second: a token bucket one second deep. It goes into debt, so that a piece of any size passes.
type Limit struct {
	rate func() int64

	mu        sync.Mutex
	perSecond int64 // as rate said last
	tokens    float64
	at        time.Time // of tokens
	denied    time.Time // the last time that Wait said to wait, if nothing was sent since
	bytes     int64
	waited    time.Duration
}

// NewLimit makes a budget; rate gives its bytes a second as they are now, and is asked each time. 0 lets nothing pass.
func NewLimit(rate func() int64) *Limit { return &Limit{rate: rate, perSecond: Unlimited} }

// Wait returns how long to wait before the next piece, at most MaxWait; 0: it may go.
func (l *Limit) Wait(now time.Time) time.Duration {
	rate := max(0, l.rate())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle(rate, now)
	if !l.denied.IsZero() {
		// Nobody may have asked for long, because there was nothing to send: that was no wait.
		l.waited += max(0, min(now.Sub(l.denied), 2*MaxWait))
		l.denied = time.Time{}
	}
	if l.perSecond == Unlimited || l.tokens > 0 {
		return 0
	}
	l.denied = now
	if l.perSecond == 0 {
		return MaxWait
	}
	seconds := -l.tokens / float64(l.perSecond)
	if seconds >= MaxWait.Seconds() {
		return MaxWait
	}
	return max(time.Millisecond, time.Duration(seconds*float64(time.Second)))
}

// settle adds what has come in since, at the rate until now, and goes over to another.
func (l *Limit) settle(rate int64, now time.Time) {
	was := l.perSecond
	if d := now.Sub(l.at); d > 0 {
		if was != Unlimited {
			l.tokens = min(float64(was), l.tokens+d.Seconds()*float64(was))
		}
		l.at = now
	}
	switch {
	case rate == was:
	case was == Unlimited:
		l.tokens = float64(rate)
	case rate != Unlimited:
		l.tokens = min(l.tokens, float64(rate))
	}
	l.perSecond = rate
}

// Spend takes bytes out of the budget.
func (l *Limit) Spend(bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes += int64(bytes)
	if l.perSecond != Unlimited {
		l.tokens -= float64(bytes)
	}
}

// Rate is the budget as it was last looked at, in bytes a second; Unlimited if there is none.
func (l *Limit) Rate() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.perSecond
}

// Piece bounds a piece of at most size bytes to what goes in about a second.
func (l *Limit) Piece(size int) int { return int(max(1, min(int64(size), l.rate()))) }

// Spent returns what went through the budget since the start, in bytes, and for how long something waited for it.
func (l *Limit) Spent() (bytes int64, waited time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes, l.waited
}

// Replicas is the value of a topic's leader. or follower.replication.throttled.replicas: which replicas' traffic is bounded.
type Replicas struct {
	all   bool
	pairs map[pair]bool
}

type pair struct {
	partition, node int32
}

// ParseReplicas reads such a value: *, or partition:broker pairs with commas between them. What is neither does not count: the
// table of configs has refused it.
func ParseReplicas(value string) Replicas {
	value = strings.TrimSpace(value)
	if value == "*" {
		return Replicas{all: true}
	}
	var r Replicas
	for _, s := range strings.Split(value, ",") {
		p, n, _ := strings.Cut(strings.TrimSpace(s), ":")
		partition, err := strconv.ParseInt(p, 10, 32)
		node, err2 := strconv.ParseInt(n, 10, 32)
		if err != nil || err2 != nil {
			continue
		}
		if r.pairs == nil {
			r.pairs = map[pair]bool{}
		}
		r.pairs[pair{int32(partition), int32(node)}] = true
	}
	return r
}

// Has says whether a partition's replica on a node is among them.
func (r Replicas) Has(partition, node int32) bool {
	return r.all || r.pairs[pair{partition, node}]
}

// Replication is a node's throttle of replication. A nil one bounds nothing.
type Replication struct {
	// Node is this node.
	Node int32
	// Leader bounds what this node sends to replicas that catch up, Follower what it receives as one of them.
	Leader, Follower *Limit
	// Replicas gives whose traffic is bounded, by topic. It is asked often: it must be quick.
	Replicas func(topic string) (leader, follower Replicas)
}

// Self is this node.
func (r *Replication) Self() int32 {
	if r == nil {
		return -1
	}
	return r.Node
}

// Sends says whether what this node sends for a partition counts against Leader.
func (r *Replication) Sends(topic string, partition int32) bool {
	if r == nil {
		return false
	}
	leader, _ := r.Replicas(topic)
	return leader.Has(partition, r.Node)
}

// Receives says whether what a node receives for a partition counts against that node's Follower.
func (r *Replication) Receives(topic string, partition, node int32) bool {
	if r == nil {
		return false
	}
	_, follower := r.Replicas(topic)
	return follower.Has(partition, node)
}
