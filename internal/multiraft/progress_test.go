package multiraft

import (
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/transport"
)

// A leader that keeps times knows when each of the others spoke last, and up to when it had everything; a new one begins anew.
func TestLeaderKeepsTimesOfTheOthers(t *testing.T) {
	clk := clock.NewSim(time.UnixMilli(1_000_000))
	c := newCluster(t, 3, func(c *cluster) { c.keepTimes, c.tune = true, func(cfg *Config) { cfg.Clock = clk } })
	l := c.leader()
	others := []int32{l%3 + 1, (l+1)%3 + 1}
	of := func(leader int32) map[int32]Progress {
		t.Helper()
		out := map[int32]Progress{}
		c.replica(leader).Progress(func(_ uint64, all []Progress, err error) {
			if err != nil {
				t.Error(err)
			}
			for _, p := range all {
				out[p.Node] = p
			}
		})
		c.settle()
		if len(out) != 3 {
			t.Fatalf("%+v", out)
		}
		return out
	}
	step := func(times int) {
		for range times {
			clk.Advance(100 * time.Millisecond)
			c.tick(1)
		}
	}
	step(4)
	start := clk.Now()
	for node, p := range of(l) {
		if start.Sub(p.Heard) > 200*time.Millisecond || !p.CaughtUp.Equal(p.Heard) {
			t.Errorf("node %d: %+v, it is %v", node, p, start)
		}
	}
	// One is cut off, the other answers without taking anything more.
	gone, slow := others[0], others[1]
	c.cut = func(from, to int32, env *transport.Envelope) bool {
		return from == gone || to == gone || to == slow && len(env.Raft.Entries) > 0
	}
	c.propose(l, "a")
	step(4)
	now := clk.Now()
	all := of(l)
	if p := all[gone]; p.Heard.After(start) {
		t.Errorf("who is cut off was heard: %+v", p)
	}
	if p := all[slow]; now.Sub(p.Heard) > 200*time.Millisecond || p.CaughtUp.After(start.Add(100*time.Millisecond)) {
		t.Errorf("who lags: %+v, it is %v", p, now)
	}
	if p := all[l]; !p.Heard.Equal(now) || !p.CaughtUp.Equal(now) {
		t.Errorf("the leader itself: %+v", p)
	}
	c.cut = nil
	step(6)
	for node, p := range of(l) {
		if clk.Now().Sub(p.CaughtUp) > 200*time.Millisecond {
			t.Errorf("caught up, node %d: %+v, it is %v", node, p, clk.Now())
		}
	}
	c.kill(l)
	step(40)
	next := c.leader()
	if p := of(next)[l]; !p.Heard.IsZero() || !p.CaughtUp.IsZero() {
		t.Errorf("the new leader has times of who is down: %+v", p)
	}
}

// Groups that nobody asks of keep none.
func TestTimesAreKeptWhereAskedForOnly(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.tick(4)
	c.replica(l).Progress(func(_ uint64, all []Progress, err error) {
		for _, p := range all {
			if err != nil || !p.Heard.IsZero() || !p.CaughtUp.IsZero() {
				t.Errorf("%+v, %v", p, err)
			}
		}
	})
	c.settle()
	if c.replica(l).contacts != nil {
		t.Error("times are kept")
	}
}
