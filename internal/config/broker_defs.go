package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Broker configs that Kafka does not have.
const (
	ScrubRate     = "log.scrub.bytes.per.second"
	ScrubInterval = "log.scrub.interval.ms"
)

// Broker configs of the replication throttle (KIP-73).
const (
	LeaderThrottledRate   = "leader.replication.throttled.rate"
	FollowerThrottledRate = "follower.replication.throttled.rate"
)

// Broker configs of the log cleaner, as Kafka names them.
const (
	CleanerRate      = "log.cleaner.io.max.bytes.per.second"
	CleanerMapBytes  = "log.cleaner.dedupe.buffer.size"
	CleanerStepBytes = "log.cleaner.io.buffer.size"
	CleanerBackoff   = "log.cleaner.backoff.ms"
)

// Brokers is the table of broker configs: the defaults of topics under Kafka's broker names, and what a broker can say about
// itself. Those that are not ReadOnly take effect at once when they are changed at run time. One that is Inert is ReadOnly too: nobody
// is to think that it did something.
var Brokers = newTable("broker", brokerDefs())

// brokerNames gives a broker config the type, limits and default of the topic config it stands behind.
func brokerDefs() []*Def {
	defs := append(brokerOwnDefs(), groupBrokerDefs()...)
	for _, t := range topicDefs() {
		for i, s := range t.Synonyms {
			d := *t
			d.Name, d.Synonyms, d.Internal = s.Name, nil, false
			if t.Name == "retention.ms" {
				d.check = unlimitedOrSome
			}
			for _, next := range t.Synonyms[i+1:] {
				d.fallbacks = append(d.fallbacks, next.Name)
			}
			d.Doc = fmt.Sprintf("The default of the topic config %s. %s", t.Name, t.Doc)
			if i > 0 {
				d.Doc = fmt.Sprintf("The default of the topic config %s, used when %s is not set.", t.Name, t.Synonyms[i-1].Name)
				d.ReadOnly = true // as in Kafka: only the name that wins can be changed at run time
			}
			switch {
			case s.Factor > 1:
				d.Type = Int
				d.Min, d.Max = math.Ceil(t.Min/float64(s.Factor)), maxInt
				if t.Min == -1 {
					d.Min = -1
				}
				d.setDefault(t.Default, s.Factor)
				// Of several names only the last has a default; the others say "not set".
				if i < len(t.Synonyms)-1 {
					d.Default, d.NullDefault = "", true
				}
			case len(t.Synonyms) > 1 && i < len(t.Synonyms)-1:
				d.Default, d.NullDefault = "", true
			}
			d.ReadOnly = d.ReadOnly || d.Inert
			defs = append(defs, &d)
		}
	}
	return defs
}

// unlimitedOrSome: a topic may have all of its records deleted at once, a broker's default may not say that of every topic.
func unlimitedOrSome(value string) error {
	if n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil && n == 0 {
		return errors.New("must be -1, for no limit, or at least 1")
	}
	return nil
}

func (d *Def) setDefault(topicDefault string, factor int64) {
	if n, err := strconv.ParseInt(topicDefault, 10, 64); err == nil {
		d.Default = strconv.FormatInt(n/factor, 10)
	}
}

func brokerOwnDefs() []*Def {
	ro := func(name string, t Type, def, doc string) *Def {
		return &Def{Name: name, Type: t, Default: def, Doc: doc, ReadOnly: true}
	}
	ranged := func(d *Def, lo, hi float64) *Def { d.Min, d.Max = lo, hi; return d }
	dynamic := func(d *Def) *Def { d.ReadOnly = false; return d }
	among := func(d *Def, values ...string) *Def { d.OneOf = values; return d }
	inert := func(d *Def) *Def { d.Inert = true; return d }
	null := func(d *Def) *Def { d.NullDefault = true; return d }
	return []*Def{
		null(ro("node.id", Int, "", "This node's id in the cluster (--node-id).")),
		ro("broker.id", Int, "-1", "The same as node.id, under its older name."),
		null(ro("broker.rack", String, "", "Where the node stands; replicas are spread over racks (--rack).")),
		null(ro("listeners", List, "", "Where the node listens for Kafka clients (--kafka-addr).")),
		null(ro("advertised.listeners", List, "", "Where clients are told to reach the node (--advertised-kafka-addr).")),
		ro("log.dir", List, "./data", "Where the node keeps its data (--data-dir)."),
		ro("log.dirs", List, "./data", "Where the node keeps its data (--data-dir)."),
		ranged(ro("num.partitions", Int, "1", "The partitions of a topic that is created without a number (--num-partitions)."), 1, MaxPartitionsPerTopic),
		ranged(ro("default.replication.factor", Int, "0", "The replicas of a topic that is created without a number (--replication-factor); 0: three, or one on each node if there are fewer."), 0, math.MaxInt16),
		ro("auto.create.topics.enable", Boolean, "true", "Whether asking for a topic that does not exist creates it (--auto-create-topics)."),
		ro("delete.topic.enable", Boolean, "true", "Whether topics may be deleted."),
		ranged(ro("offsets.topic.num.partitions", Int, "50", "The partitions of __consumer_offsets, over which groups spread. Taken when the first group makes the topic; it can't be changed afterwards."), 1, MaxPartitionsPerTopic),
		ranged(ro("offsets.topic.replication.factor", Short, "3", "The replicas of __consumer_offsets; one on each node if there are fewer."), 1, math.MaxInt16),
		ranged(ro("offsets.topic.segment.bytes", Int, "104857600", "segment.bytes of __consumer_offsets."), 1<<20, maxInt),
		ranged(ro("offsets.retention.minutes", Int, "10080", "For how many minutes the offsets of a group without members are kept."), 1, maxInt),
		ranged(ro("offsets.retention.check.interval.ms", Long, "600000", "How often, in milliseconds, it is looked for offsets that have expired."), 1, maxLong),
		ranged(ro("offset.metadata.max.bytes", Int, "4096", "The largest metadata of a committed offset, in bytes."), 0, maxInt),
		ranged(ro("group.min.session.timeout.ms", Int, "6000", "The shortest session timeout that a member may ask for, in milliseconds."), 0, maxInt),
		ranged(ro("group.max.session.timeout.ms", Int, "1800000", "The longest session timeout that a member may ask for, in milliseconds."), 0, maxInt),
		ranged(ro("group.initial.rebalance.delay.ms", Int, "3000", "How long, in milliseconds, the first members of an empty group wait for others."), 0, maxInt),
		ranged(ro("group.max.size", Int, "2147483647", "The most members that a group may have."), 1, maxInt),
		ranged(ro("group.consumer.session.timeout.ms", Int, "45000", "How long, in milliseconds, a member of a consumer group may be silent before its partitions go to others."), 1, maxInt),
		ranged(ro("group.consumer.heartbeat.interval.ms", Int, "5000", "How often, in milliseconds, members of consumer groups are told to send heartbeats."), 1, maxInt),
		ranged(ro("group.consumer.max.size", Int, "2147483647", "The most members that a consumer group may have."), 1, maxInt),
		among(ro("group.consumer.migration.policy", String, "bidirectional", "Whether a group with live members may move from the classic to the consumer protocol (upgrade), back (downgrade), both ways (bidirectional), or not (disabled)."), "disabled", "upgrade", "downgrade", "bidirectional"),
		among(ro("group.consumer.assignors", List, "uniform,range", "The assignors that members of consumer groups may ask for, uniform and range; the first is the default."), "uniform", "range"),
		ranged(ro("socket.request.max.bytes", Int, strconv.Itoa(DefaultMaxFrameBytes), "The largest request in bytes (--max-request-bytes)."), 1<<10, maxInt),
		ranged(ro("max.connections", Int, strconv.Itoa(DefaultMaxConnections), "The most connections of Kafka clients at a time (--max-connections)."), 1, maxInt),
		ranged(ro("max.connections.per.ip", Int, strconv.Itoa(DefaultMaxConnectionsPerAddr), "The most connections of Kafka clients from one address (--max-connections-per-addr)."), 1, maxInt),
		dynamic(ranged(ro(ScrubRate, Long, "8388608", "How many bytes a second are read back from the disk in the background, to find damage while other replicas still hold what it hit; 0 reads nothing."), 0, maxLong)),
		dynamic(ranged(ro(ScrubInterval, Long, "3600000", "How many milliseconds lie at least between the beginnings of two passes over everything on the disk."), 0, maxLong)),
		ro("log.cleaner.enable", Boolean, "true", "Whether logs are compacted on this node; without it those that should be grow without end."),
		inert(ranged(ro("log.cleaner.threads", Int, "1", "Without effect: one pass runs at a time on each node."), 0, maxInt)),
		dynamic(ranged(ro(CleanerRate, Double, "1.7976931348623157E308", "How many bytes a second compaction reads and writes on this node, all in all."), 0, math.MaxFloat64)),
		dynamic(ranged(ro(CleanerMapBytes, Long, strconv.Itoa(DefaultCleanerMemory), "The memory in bytes for the keys of the log that is being compacted, 24 for each key at three quarters full; a log with more keys takes several passes. The default is less where --memory-limit asks for it."), 1<<10, maxLong)),
		dynamic(ranged(ro(CleanerStepBytes, Int, "524288", "About how many bytes compaction reads or writes before it looks at its rate again."), 0, maxInt)),
		inert(ranged(ro("log.cleaner.io.buffer.load.factor", Double, "0.9", "Without effect: the memory for keys is filled to three quarters."), 0, 1)),
		dynamic(ranged(ro(CleanerBackoff, Long, "15000", "How many milliseconds compaction rests when there is nothing to do."), 0, maxLong)),
		// kafka-reassign-partitions sets the first two for its --throttle, and --verify takes all three away, whether set or not (AlterBroker).
		dynamic(ranged(ro(LeaderThrottledRate, Long, longMax, "How many bytes a second this node sends to replicas that catch up, of the partitions in leader.replication.throttled.replicas of their topics. Nothing that acknowledged writes wait for is throttled."), 0, maxLong)),
		dynamic(ranged(ro(FollowerThrottledRate, Long, longMax, "How many bytes a second this node's replicas that catch up receive, of the partitions in follower.replication.throttled.replicas of their topics. Nothing that acknowledged writes wait for is throttled."), 0, maxLong)),
		inert(ranged(ro("replica.alter.log.dirs.io.max.bytes.per.second", Long, "9223372036854775807", "Without effect: a node has one log directory."), 0, maxLong)),
		ranged(ro("connections.max.idle.ms", Long, strconv.FormatInt(DefaultIdleTimeout.Milliseconds(), 10), "After how many milliseconds without a request a connection is closed (--idle-timeout)."), 1, maxLong),
	}
}
