package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/throttle"
)

// newThrottle bounds what replicas that catch up cost, by the configs in force at each moment.
func (c *Core) newThrottle() *throttle.Replication {
	rate := func(name string) func() int64 {
		return func() int64 { return c.configs.number(name) }
	}
	return &throttle.Replication{
		Node:     c.cfg.ID(),
		Leader:   throttle.NewLimit(rate(config.LeaderThrottledRate)),
		Follower: throttle.NewLimit(rate(config.FollowerThrottledRate)),
		Replicas: func(topic string) (leader, follower throttle.Replicas) {
			t := c.configs.topic(topic)
			return t.LeaderThrottled, t.FollowerThrottled
		},
	}
}

// registerThrottle shows what was throttled.
func (c *Core) registerThrottle(reg prometheus.Registerer) {
	for side, l := range map[string]*throttle.Limit{"leader": c.throttle.Leader, "follower": c.throttle.Follower} {
		opts := func(name, help string) prometheus.CounterOpts {
			return prometheus.CounterOpts{Namespace: "chronik", Subsystem: "replication_throttled", Name: name, Help: help, ConstLabels: prometheus.Labels{"side": side}}
		}
		reg.MustRegister(
			prometheus.NewCounterFunc(opts("bytes_total", "Bytes for replicas that catch up of throttled partitions: sent by this node as leader, or taken in as follower."), func() float64 {
				bytes, _ := l.Spent()
				return float64(bytes)
			}),
			prometheus.NewCounterFunc(opts("wait_seconds_total", "For how long replicas that catch up waited for the throttle."), func() float64 {
				_, waited := l.Spent()
				return waited.Seconds()
			}))
	}
}
