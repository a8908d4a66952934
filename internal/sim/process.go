package sim

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/controller/bootstrap"
	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/multiraft"
	nodepkg "github.com/chronik-go/chronik/internal/node"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/wal"
)

// This file is what a node's process is made of: what it opens, with which settings, and the workers that are stepped.

// open does what a server does from its data directory on.
func (p *proc) open() error {
	n, w := p.node, p.node.w
	clk := machineClock{p}
	logger := slog.New(&logHandler{p: p})
	fatal := func(err error) {
		if p.fatal == nil && !p.dead {
			p.fatal = err
			w.log("node %d must stop: %v", n.id, err)
		}
	}
	identity, err := bootstrap.Open(bootstrap.OpenOptions{FS: p.fs, Dir: dataDir, Node: n.id, Ignore: []string{"wal"}, Rand: n.newUUID()})
	if err != nil {
		return err
	}
	if !identity.Member() {
		if identity, err = p.form(identity, logger); err != nil || p.dead {
			return err
		}
	}
	p.identity = identity
	p.log, err = wal.Open(wal.Options{
		FS: p.fs, Dir: dataDir + "/wal", Clock: clk, Logger: logger, FileBytes: w.set.walFile,
		MaxBytes: 4 * w.set.walFile, CacheBytes: w.set.walCache, OnFatal: fatal,
		OnPinned: func(group, index uint64) {
			if p.core != nil {
				p.core.Pinned(group, index)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	core, err := nodepkg.OpenCore(never, nodepkg.CoreConfig{
		Config: p.config(), Identity: *identity, FS: p.fs, Clock: clk, WAL: p.log, Peers: p, Logger: logger, Fail: fatal,
		Tune: p.tuning(), Opened: func(c *nodepkg.Core) { p.core = c },
	})
	if err != nil || p.dead {
		return err
	}
	p.makeActors(core)
	core.Start()
	return nil
}

func (p *proc) config() *config.Node {
	c, set := config.Default(), &p.node.w.set
	c.NodeID, c.DataDir, c.AdminAddr = p.node.id, dataDir, ""
	for _, id := range p.node.peers() {
		c.Peers = append(c.Peers, config.Peer{ID: id, Addr: raftAddr(id)})
	}
	c.RaftAddr, c.KafkaAddr = raftAddr(p.node.id), fmt.Sprintf("%s:%d", host(p.node.id), kafkaPort)
	c.AutoCreateTopics = false
	c.Limits.ElectionTimeout, c.Limits.HeartbeatInterval = 10*set.tick, time.Duration(set.beat)*set.tick
	c.Limits.MaxOpenFiles = 16
	number := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
	c.Kafka = map[string]string{
		config.ScrubInterval: number(set.scrub), "group.min.session.timeout.ms": "100", "group.initial.rebalance.delay.ms": number(set.joinDelay),
		config.CleanerBackoff: number(set.cleaning), config.CleanerMapBytes: strconv.Itoa(set.cleanerMap),
		"offsets.topic.num.partitions": strconv.Itoa(set.offsetParts), "offsets.topic.replication.factor": strconv.Itoa(int(set.replication)),
	}
	return c
}

// tuning makes everything small, so that little data fills it.
func (p *proc) tuning() *nodepkg.Tuning {
	w, set := p.node.w, &p.node.w.set
	return &nodepkg.Tuning{
		Groups: func(c *multiraft.Config) {
			c.Shards, c.TickInterval, c.ElectionTicks, c.HeartbeatTicks = set.shards, set.tick, 10, set.beat
			c.MaxEntryBytes, c.MaxUnappliedBytes, c.MaxQueuedBytes = set.maxEntry, set.maxUnapplied, 64<<10
			c.MaxInflightBytes, c.MaxAppendBacklog, c.PrefetchBytes = set.maxInflight, set.backlog, 4<<10
			c.StallLimit = 15 * set.tick
			observe := c.OnLeader
			c.OnLeader = func(r *multiraft.Replica, st multiraft.Status) {
				p.leader(r, st)
				observe(r, st)
			}
			fenced := c.OnFence
			c.OnFence = func(r *multiraft.Replica, err error) {
				switch {
				case p.dead || p.fatal != nil: // a disk that failed fences first and stops the node next
				case p.node.flips > 0 && (errors.Is(err, multiraft.ErrFenced) || errors.Is(err, wal.ErrDamaged) || errors.Is(err, partition.ErrDamaged)):
					w.counts["replicas fenced for damage"]++
				default:
					w.fail("node %d fenced %s-%d: %v", p.node.id, r.Topic(), r.Partition(), err)
				}
				fenced(r, err)
			}
		},
		Metadata: func(c *controller.MachineConfig) { c.CheckpointEntries = set.metaEntries },
		Partitions: func(c *partition.ManagerConfig) {
			c.Limits = set.limits
			configs := c.Configs
			c.Configs = func(topic string) partition.TopicConfig {
				tc := configs(topic)
				tc.Segment.SegmentBytes, tc.Segment.SegmentAge = set.segment.SegmentBytes, set.segment.SegmentAge
				tc.Segment.IndexIntervalBytes = set.segment.IndexIntervalBytes
				tc.Segment.RetentionBytes, tc.Segment.RetentionAge = set.segment.RetentionBytes, set.segment.RetentionAge
				if tc.Compaction.Enabled && topic != group.Topic {
					tc.Segment.SegmentBytes = set.keptSegment
				}
				if tc.Compaction.Only {
					tc.Segment.RetentionBytes = -1 // as __consumer_offsets are, too
				}
				tc.Compaction.MinDirtyRatio, tc.Compaction.DeleteRetention = set.dirtyRatio, set.tombstones
				return tc
			}
		},
		Coordinator: func(c *group.Config) {
			ids := 0
			c.Limits.LoadBytes = 4 << 10
			c.Settings.OffsetsRetention, c.Settings.RetentionInterval = set.retention, min(set.retention/4, 10*time.Second)
			c.Consumer = func(string) (session, heartbeat time.Duration) { return set.session, set.session / 5 }
			c.NewID = func() string {
				ids++
				return fmt.Sprintf("%d.%d.%d", p.node.id, p.node.boots, ids)
			}
			logs := c.Log
			c.Log = func(index int32) (group.Log, bool) {
				l, ok := logs(index)
				if !ok {
					return nil, false
				}
				return watchedLog{l, p, index}, true
			}
		},
		Reserve: reserveBytes, Ballast: ballastBytes,
	}
}

// What a node keeps free on its disk in here.
const (
	reserveBytes = 512 << 10
	ballastBytes = 64 << 10
)

func (p *proc) makeActors(core *nodepkg.Core) {
	add := func(name string, disk bool, step func() bool, ready func() bool) {
		p.actors = append(p.actors, &actor{p: p, name: name, disk: disk, step: step, ready: ready})
	}
	s := core.Steps()
	for i, x := range s.Shards {
		add(fmt.Sprint("shard ", i), false, x.Step, x.Ready)
	}
	for i, x := range s.Appliers {
		add(fmt.Sprint("applier ", i), false, x.Step, x.Ready)
	}
	add("log", true, p.log.Step, p.log.Ready)
	add("log background", true, p.log.StepBackground, p.log.BackgroundReady)
	add("partitions", false, s.Partitions.Step, nil)
	for range 2 {
		add("partitions", true, s.Partitions.Step, nil)
	}
}
