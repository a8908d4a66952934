package multiraft

import (
	"errors"
	"log/slog"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/throttle"
	"github.com/chronik-go/chronik/internal/wal"
)

// Config is what a Service needs. Zero values of the limits take the defaults named beside them.
type Config struct {
	// NodeID is this node; members on other nodes are reached through Sender.
	NodeID int32
	Log    *wal.Log
	Sender Sender
	Clock  clock.Clock
	Logger *slog.Logger

	// Shards is the number of shard workers, and of appliers. Default 2.
	Shards int
	// TickInterval is the length of a raft tick. Default 100 ms.
	TickInterval time.Duration
	// ElectionTicks without a leader's word start an election (randomised up to twice that). Default 10.
	ElectionTicks int
	// HeartbeatTicks is the leader's heartbeat interval. Default 2.
	HeartbeatTicks int

	// MaxEntryBytes bounds a merged entry; a larger single proposal travels alone. Default 1 MiB.
	MaxEntryBytes int
	// MaxUnappliedBytes bounds what a group's leader has proposed and not yet applied. Default 32 MiB.
	MaxUnappliedBytes int64
	// MaxQueuedBytes bounds what waits in front of a group's leader. Default 32 MiB; beyond it Done gets ErrOverloaded.
	MaxQueuedBytes int64
	// MaxInflightBytes bounds unacknowledged appends to one follower of one group. Default 16 MiB.
	MaxInflightBytes uint64
	// MaxAppendBacklog bounds the entry bytes received from leaders and not yet durable here, over all groups. Appends beyond
	// it are dropped; raft sends them again. Default 128 MiB.
	MaxAppendBacklog int64
	// PrefetchBytes is how much of a log that has left memory one read brings back for a follower that lags. Default 2 MiB.
	PrefetchBytes int
	// StallLimit is the age of a log write at which the node hands its leaderships over. Default 1 s.
	StallLimit time.Duration

	// Throttle bounds what learners are sent; nil: nothing does.
	Throttle *throttle.Replication

	// OnLeader is told when a replica's view of its term, leader or readiness changed. It runs on the shard: no blocking.
	OnLeader func(r *Replica, st Status)
	// OnFence is told that a replica was fenced. It runs on the shard or the applier: no blocking.
	OnFence func(r *Replica, err error)
}

func (c *Config) setDefaults() error {
	if c.Log == nil || c.Sender == nil || c.Clock == nil {
		return errors.New("multiraft: Log, Sender and Clock are required")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	def(&c.Shards, 2)
	def(&c.TickInterval, 100*time.Millisecond)
	def(&c.ElectionTicks, 10)
	def(&c.HeartbeatTicks, 2)
	def(&c.MaxEntryBytes, 1<<20)
	def(&c.MaxUnappliedBytes, 32<<20)
	def(&c.MaxQueuedBytes, 32<<20)
	def(&c.MaxInflightBytes, 16<<20)
	def(&c.MaxAppendBacklog, 128<<20)
	def(&c.StallLimit, time.Second)
	def(&c.PrefetchBytes, 2<<20)
	if c.ElectionTicks <= c.HeartbeatTicks {
		return errors.New("multiraft: ElectionTicks must exceed HeartbeatTicks")
	}
	return nil
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
