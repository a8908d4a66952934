package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/chronik-go/chronik/internal/netlimit"
)

// registerListener shows the connections of a listener that is not for Kafka clients (those are internal/server's).
func registerListener(reg prometheus.Registerer, name, who string, l interface {
	Connections() int
	Refused(reason string) int64
}) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "chronik", Subsystem: name, Name: "connections", Help: "Open connections of " + who + "."},
		func() float64 { return float64(l.Connections()) }))
	for _, reason := range []string{netlimit.TooMany, netlimit.TooManyFromAddr} {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "chronik", Subsystem: name, Name: "connections_refused_total",
			Help: "Connections of " + who + " refused, by reason.", ConstLabels: prometheus.Labels{"reason": reason}},
			func() float64 { return float64(l.Refused(reason)) }))
	}
}

// registerMetrics shows what the parts count.
func (c *Core) registerMetrics(reg prometheus.Registerer) {
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "chronik", Name: name, Help: help}, f))
	}
	gauge("metadata_index", "Raft index of the metadata image in force.", func() float64 { return float64(c.machine.Image().Index) })
	gauge("partitions", "Partition replicas on this node.", func() float64 { return float64(len(c.manager.Partitions())) })
	gauge("partitions_led", "Partitions that this node leads and serves.", func() float64 {
		n := 0
		for _, r := range c.groups.Replicas() {
			if r.Status().Ready {
				n++
			}
		}
		return float64(n)
	})
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "chronik", Name: "leaderships_taken_total",
		Help: "How often a replica here has become the leader of its group since start."}, func() float64 { return float64(c.groups.LeadershipsTaken()) }))
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "chronik", Name: "standstill_seconds_total",
		Help: "Time in which raft's workers here did not run when they should have, half an election timeout or more at a time: the process was paused, or the machine overloaded."},
		func() float64 { return c.groups.StoodStill().Seconds() }))
	gauge("raft_terms", "Sum of the raft terms of all replicas here: it grows with every election, won or not.", func() float64 {
		n := uint64(0)
		for _, r := range c.groups.Replicas() {
			n += r.Status().Term
		}
		return float64(n)
	})
	gauge("replicas_fenced", "Replicas stopped after damage or a violated invariant.", func() float64 {
		n := 0
		for _, r := range c.groups.Replicas() {
			if r.Fenced() {
				n++
			}
		}
		return float64(n)
	})
	gauge("partitions_moving", "Partitions of the cluster whose replicas are being changed.", func() float64 {
		n := 0
		for _, ref := range c.machine.Image().Groups {
			if ref.Partition.Change != nil {
				n++
			}
		}
		return float64(n)
	})
	gauge("log_stall_seconds", "Age of the oldest write of the log under way.", func() float64 { return c.env.WAL.Stalled().Seconds() })
	gauge("disk_writable", "1 unless writes are refused for lack of space.", func() float64 {
		if c.space.writable() != nil {
			return 0
		}
		return 1
	})
	gauge("log_bytes", "Bytes in the files of the log.", func() float64 { return float64(c.env.WAL.Stats().Bytes) })
	gauge("log_syncs", "Durable writes of the log since start.", func() float64 { return float64(c.env.WAL.Stats().Syncs) })
	gauge("groups_memory_bytes", "About what the consumer groups coordinated here take: their members and their offsets.", func() float64 { return float64(c.coordinator.Memory()) })
	c.registerDamage(reg)
	c.registerCleaner(reg)
	c.registerThrottle(reg)
}
