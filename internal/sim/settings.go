package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/segment"
)

// settings are drawn from the seed: the same operations under many configurations.
type settings struct {
	nodes  int
	topics []int // partitions of each topic that stays
	// compacted is the cleanup.policy of each topic that stays, "" for delete. The others are about those that are compacted.
	compacted    []string
	keys         int           // of each of their partitions
	keptSegment  int64         // their segment.bytes
	minLag       time.Duration // min.compaction.lag.ms
	maxLag       time.Duration // max.compaction.lag.ms, 0: none
	replication  int16
	tick         time.Duration // of raft
	beat         int           // ticks between a leader's heartbeats
	walFile      int64
	walCache     int64
	shards       int
	maxEntry     int
	maxUnapplied int64
	maxInflight  uint64
	backlog      int64
	metaEntries  int           // entries between checkpoints of the metadata
	scrub        time.Duration // between passes over everything on a disk
	cleaning     time.Duration // between rounds of the log cleaner
	cleanerMap   int           // bytes
	dirtyRatio   float64
	tombstones   time.Duration // delete.retention.ms
	segment      segment.Config
	limits       partition.Limits
	syncTime     time.Duration // the longest a write of the log takes
	stepTime     time.Duration // the longest another worker rests
	netDelay     time.Duration
	producers    int
	consumers    int     // of each partition
	idempotent   float64 // of the producers
	valueBytes   int
	pace         time.Duration // the longest a producer rests
	deletes      bool          // records are deleted
	admin        bool          // topics come and go, and are configured
	chaos        time.Duration
	groups       int // of consumers
	members      int // of each group
	session      time.Duration
	rebalance    time.Duration // how long members are waited for
	joinDelay    time.Duration // group.initial.rebalance.delay.ms
	offsetParts  int           // partitions of __consumer_offsets
	patience     time.Duration // how long clients wait for an answer
	protocols    string        // of the groups: "classic", "consumer", or "mixed" of both, with members that come by either
	retention    time.Duration // offsets.retention.minutes, though not in minutes
	keepers      int           // groups without members, that come and go
	static       bool          // some members by the classic protocol are static (KIP-345)
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

const ms = time.Millisecond

func drawSettings(r *rand.Rand) settings {
	s := settings{
		nodes:        pick(r, 1, 2, 3, 3, 3, 3, 3, 3, 4, 5, 5, 7),
		tick:         pick(r, 20*ms, 20*ms, 50*ms, 100*ms),
		beat:         pick(r, 1, 2, 3),
		walFile:      pick[int64](r, 64<<10, 64<<10, 128<<10),
		walCache:     pick[int64](r, 96<<10, 256<<10),
		shards:       1 + r.IntN(2),
		maxEntry:     pick(r, 2<<10, 16<<10, 1<<20),
		maxUnapplied: pick[int64](r, 8<<10, 64<<10, 1<<20),
		maxInflight:  pick[uint64](r, 8<<10, 64<<10, 1<<20),
		backlog:      pick[int64](r, 16<<10, 1<<20),
		metaEntries:  pick(r, 3, 20, 1000),
		scrub:        pick[time.Duration](r, 1, 5, 60) * time.Second,
		segment: segment.Config{
			SegmentBytes: pick[int64](r, 8<<10, 32<<10, 64<<10), IndexIntervalBytes: 512,
			SegmentAge: pick(r, 500*ms, time.Hour), RetentionBytes: -1, RetentionAge: -1,
		},
		limits: partition.Limits{
			FlushInterval: pick(r, 100*ms, 400*ms, 2*time.Second),
			FlushBytes:    pick[int64](r, 8<<10, 64<<10), MaintenanceInterval: 500 * ms,
			DeltaBytesPerSecond: pick[int64](r, 1<<20, 16<<20), DeltaChunkBytes: pick(r, 1<<10, 8<<10),
			Staging: 1 + r.IntN(2), StageTimeout: 2 * time.Second, PinBytes: pick[int64](r, 8<<10, 1<<20),
		},
		syncTime:   pick[time.Duration](r, 1, 4, 15) * ms,
		stepTime:   pick[time.Duration](r, 0, 1, 5) * ms,
		netDelay:   pick[time.Duration](r, 1, 3, 12) * ms,
		producers:  3 + r.IntN(4),
		consumers:  1 + r.IntN(2),
		idempotent: pick(r, 0.5, 0.8, 1),
		valueBytes: pick(r, 100, 600, 2000),
		pace:       pick[time.Duration](r, 20, 50, 100) * ms,
		deletes:    r.IntN(3) > 0,
		admin:      r.IntN(3) > 0,
		chaos:      time.Duration(5+r.IntN(8)) * time.Second,
	}
	s.cleaning, s.cleanerMap = pick[time.Duration](r, 100, 500, 2000)*ms, pick(r, 1<<10, 64<<10)
	s.dirtyRatio, s.tombstones = pick(r, 0.01, 0.3), pick(r, 0, 500*ms, time.Hour)
	for range 1 + r.IntN(2) {
		s.topics, s.compacted = append(s.topics, 1+r.IntN(3)), append(s.compacted, "")
	}
	if r.IntN(2) == 0 {
		s.compacted[len(s.topics)-1] = pick(r, "compact", "compact", "compact,delete")
	}
	s.keys, s.keptSegment = pick(r, 2, 6, 30), pick[int64](r, 2<<10, 8<<10)
	s.minLag, s.maxLag = pick(r, 0, 0, 400*ms), pick(r, 0, 0, 500*ms)
	s.replication = int16(min(s.nodes, pick(r, 3, 3, 3, 5)))
	if s.replication == 2 {
		s.replication = int16(1 + r.IntN(2))
	}
	if r.IntN(4) == 0 {
		s.segment.RetentionBytes = 48 << 10
	}
	s.groups, s.members, s.offsetParts = pick(r, 0, 1, 1, 1, 2), 1+r.IntN(4), 1+r.IntN(2)
	s.session = pick[time.Duration](r, 1, 2, 6) * time.Second
	s.rebalance = s.session + pick[time.Duration](r, 0, 3)*time.Second // who beats hears of a rebalance in time
	s.joinDelay = pick(r, 0, 300*ms)
	s.patience = requestTimeout
	s.protocols = pick(r, "classic", "classic", "consumer", "consumer", "mixed", "mixed")
	s.retention, s.keepers = pick(r, 1500*ms, 4*time.Second, 7*24*time.Hour), pick(r, 0, 1, 1)
	s.static = r.IntN(3) > 0
	return s
}

// benchSettings are those of the benchmark: three nodes with a server's own timing, eight partitions, a steady load.
func benchSettings() settings {
	s := drawSettings(rand.New(rand.NewPCG(1, 1)))
	s.nodes, s.topics, s.compacted, s.replication = 3, []int{8}, []string{""}, 3
	s.tick, s.beat = 100*ms, 3
	s.walFile, s.walCache, s.maxEntry, s.backlog = 128<<10, 256<<10, 1<<20, 1<<20
	s.maxUnapplied, s.maxInflight, s.shards = 1<<20, 1<<20, 2
	s.segment.SegmentBytes, s.segment.SegmentAge, s.segment.RetentionBytes = 64<<10, time.Hour, 48<<10
	s.limits.FlushInterval, s.limits.FlushBytes, s.limits.MaintenanceInterval = 2*time.Second, 64<<10, 5*time.Second
	s.scrub, s.cleaning = time.Hour, 15*time.Second
	s.syncTime, s.stepTime, s.netDelay = 4*ms, 0, 3*ms
	s.producers, s.consumers, s.idempotent, s.valueBytes = 8, 1, 1, 600
	s.pace, s.deletes, s.admin = 2*time.Second, false, false
	s.chaos, s.groups, s.keepers = time.Minute, 0, 0
	return s
}

func topicName(i int) string { return fmt.Sprintf("t%d", i) }
