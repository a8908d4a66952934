package node

import (
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// openCoordinator makes the coordinator of the groups whose partitions this node comes to lead. What it is set to is Kafka's
// broker configs, as they are when the node starts.
func (c *Core) openCoordinator() (err error) {
	c.coordinator, err = group.New(tuned(c.tune.Coordinator, group.Config{
		Clock: c.env.Clock, Logger: c.log, NewID: uuid.NewString, Settings: c.groupSettings(), Consumer: c.consumerGroup,
		Limits: group.Limits{Bytes: c.cfg.Limits.GroupMemory},
		Image:  c.machine.Image,
		Partitions: func() int32 {
			if t := c.machine.Image().Topics[group.Topic]; t != nil {
				return int32(len(t.Partitions))
			}
			return 0
		},
		Log: func(partition int32) (group.Log, bool) {
			p, ok := c.manager.Lookup(group.Topic, partition)
			if !ok {
				return nil, false
			}
			return group.PartitionLog(p), true
		},
	}))
	return err
}

// brokerInt is a broker config's value; the table has checked it.
func (c *Core) brokerInt(name string) int64 {
	n, err := strconv.ParseInt(layers(c.cfg, c.configs.static, c.machine.Image()).BrokerValue(name), 10, 64)
	if err != nil {
		c.log.Error("a broker config has no number", "name", name, "error", err)
	}
	return n
}

// assignors are those of consumer groups.
func (c *Core) assignors() []string {
	list := config.SplitList(layers(c.cfg, c.configs.static, c.machine.Image()).BrokerValue("group.consumer.assignors"))
	if len(list) == 0 {
		return group.DefaultSettings().ConsumerAssignors
	}
	return list
}

// longest is the longest time that groups are told: what is set to be longer is for ever, and a time of day can still be added to it.
const longest = 100 * 365 * 24 * time.Hour

// span is n units of time.
func span(n int64, unit time.Duration) time.Duration {
	return time.Duration(min(n, int64(longest/unit))) * unit
}

// consumerGroup is what a consumer group's members are to keep to: what is set for the group, else for the brokers.
func (c *Core) consumerGroup(group string) (session, heartbeat time.Duration) {
	img := c.machine.Image()
	l, set := layers(c.cfg, c.configs.static, img), img.GroupConfigs[group]
	ms := func(name string) time.Duration { return time.Duration(l.GroupValue(set, name)) * time.Millisecond }
	return ms("consumer.session.timeout.ms"), ms("consumer.heartbeat.interval.ms")
}

func (c *Core) groupSettings() group.Settings {
	policy := strings.TrimSpace(layers(c.cfg, c.configs.static, c.machine.Image()).BrokerValue("group.consumer.migration.policy"))
	ms := func(name string) time.Duration { return span(c.brokerInt(name), time.Millisecond) }
	return group.Settings{
		MinSessionTimeout: ms("group.min.session.timeout.ms"), MaxSessionTimeout: ms("group.max.session.timeout.ms"),
		InitialRebalanceDelay: ms("group.initial.rebalance.delay.ms"), MaxGroupSize: int(c.brokerInt("group.max.size")),
		MaxOffsetMetadata:      int(c.brokerInt("offset.metadata.max.bytes")),
		OffsetsRetention:       span(c.brokerInt("offsets.retention.minutes"), time.Minute),
		RetentionInterval:      ms("offsets.retention.check.interval.ms"),
		ConsumerSessionTimeout: ms("group.consumer.session.timeout.ms"), ConsumerHeartbeatInterval: ms("group.consumer.heartbeat.interval.ms"),
		ConsumerMaxSize: int(c.brokerInt("group.consumer.max.size")), ConsumerAssignors: c.assignors(),
		ConsumerUpgrade: policy == "upgrade" || policy == "bidirectional", ConsumerDowngrade: policy == "downgrade" || policy == "bidirectional",
	}
}

// offsetsTopic says how __consumer_offsets is created. A cluster that is still coming up would get too few replicas for good, so
// it waits for as many nodes as it was started with.
func (c *Core) offsetsTopic() (partitions int32, replicas int16, set map[string]string, ok bool) {
	partitions, replicas = int32(c.brokerInt("offsets.topic.num.partitions")), int16(c.brokerInt("offsets.topic.replication.factor"))
	registered := len(c.machine.Image().Nodes)
	want := min(int(replicas), max(registered, len(c.cfg.Members())))
	return partitions, int16(want), map[string]string{
		"cleanup.policy": "compact", "compression.type": "producer",
		"segment.bytes": strconv.FormatInt(c.brokerInt("offsets.topic.segment.bytes"), 10),
	}, registered >= want
}

// leaderChanged is told of every replica's view of its leader.
func (c *Core) leaderChanged(r *multiraft.Replica, st multiraft.Status) {
	c.view.Observe(r, st)
	c.mover.poke()
	if r.Topic() == group.Topic {
		c.coordinator.Poke()
	}
}
