package group

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/group/consumer"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
)

// Settings are Kafka's broker configs about groups.
type Settings struct {
	MinSessionTimeout     time.Duration // group.min.session.timeout.ms
	MaxSessionTimeout     time.Duration // group.max.session.timeout.ms
	InitialRebalanceDelay time.Duration // group.initial.rebalance.delay.ms
	MaxGroupSize          int           // group.max.size
	MaxOffsetMetadata     int           // offset.metadata.max.bytes
	OffsetsRetention      time.Duration // offsets.retention.minutes
	RetentionInterval     time.Duration // offsets.retention.check.interval.ms

	ConsumerSessionTimeout    time.Duration // group.consumer.session.timeout.ms
	ConsumerHeartbeatInterval time.Duration // group.consumer.heartbeat.interval.ms
	ConsumerMaxSize           int           // group.consumer.max.size
	ConsumerUpgrade           bool          // group.consumer.migration.policy: a classic group may become a consumer group
	ConsumerDowngrade         bool          // the same, the other way
	ConsumerAssignors         []string      // group.consumer.assignors, by name; the first is the default
}

// DefaultSettings are Kafka's defaults.
func DefaultSettings() Settings {
	return Settings{
		MinSessionTimeout: 6 * time.Second, MaxSessionTimeout: 30 * time.Minute, InitialRebalanceDelay: 3 * time.Second,
		MaxGroupSize: 1<<31 - 1, MaxOffsetMetadata: 4096, OffsetsRetention: 7 * 24 * time.Hour, RetentionInterval: 10 * time.Minute,
		ConsumerSessionTimeout: 45 * time.Second, ConsumerHeartbeatInterval: 5 * time.Second, ConsumerMaxSize: 1<<31 - 1,
		ConsumerAssignors: []string{consumer.Uniform, consumer.Range}, ConsumerUpgrade: true, ConsumerDowngrade: true,
	}
}

// Limits bound memory, whatever clients ask for. Zero values take the defaults named.
type Limits struct {
	// GroupsPerShard bounds the groups of one partition of __consumer_offsets; default 20,000. A group beyond it is
	// ErrNotAvailable.
	GroupsPerShard int
	// GroupBytes bounds what the members of one group bring along: subscriptions of all their protocols; default 16 MiB. A
	// member beyond it is ErrGroupFull.
	GroupBytes int
	// Bytes bounds what all groups of this node take, about: members' subscriptions, offsets and what they are kept in; default 256 MiB.
	// Groups, members and offsets beyond it are ErrNotAvailable or ErrGroupFull. What a node loads is not refused.
	Bytes int64
	// MemberIDs bounds the member ids of a group that were handed out and are not used yet, and the requests that wait for a
	// consumer group's write; default 10,000.
	MemberIDs int
	// LoadBytes is how much one step of loading reads; default 1 MiB.
	LoadBytes int
}

func (l *Limits) setDefaults() {
	for _, d := range []struct {
		v   *int
		def int
	}{{&l.GroupsPerShard, 20_000}, {&l.GroupBytes, 16 << 20}, {&l.MemberIDs, 10_000}, {&l.LoadBytes, 1 << 20}} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	if l.Bytes <= 0 {
		l.Bytes = 256 << 20
	}
}

// Config wires a Coordinator. What has no default is required.
type Config struct {
	Clock  clock.Clock
	Logger *slog.Logger
	// Partitions returns how many partitions __consumer_offsets has, 0 while it does not exist.
	Partitions func() int32
	// Log returns this node's replica of one of them; false if there is none.
	Log func(partition int32) (Log, bool)
	// Image is the cluster's metadata, for what consumer groups subscribe to. Without it there are no topics.
	Image func() *metadata.Image
	// NewID makes the unique part of a member id.
	NewID    func() string
	Settings Settings // all of it; see DefaultSettings
	// Consumer returns a consumer group's session timeout and heartbeat interval now, which may be set for the group alone. It is
	// asked for with every heartbeat. Nil: those of Settings.
	Consumer func(group string) (session, heartbeat time.Duration)
	Limits   Limits
}

// Coordinator coordinates the groups whose partitions this node leads. It is safe for concurrent use.
//
// Completions (the done of its methods) are called once, from anywhere, and must not block.
type Coordinator struct {
	cfg  Config
	log  *slog.Logger
	base time.Time // deadlines are distances from it
	wake chan struct{}
	used atomic.Int64 // see Memory

	mu      sync.Mutex
	shards  map[int32]*shard
	loading []*shard // in the order in which they began

	topicsMu sync.Mutex
	image    *metadata.Image
	known    *consumer.Topics // of image
}

// New makes a Coordinator. Run drives it, or Observe and Step do.
func New(cfg Config) (*Coordinator, error) {
	if cfg.Clock == nil || cfg.Partitions == nil || cfg.Log == nil || cfg.NewID == nil {
		return nil, errors.New("group: Clock, Partitions, Log and NewID are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Limits.setDefaults()
	if cfg.Consumer == nil {
		cfg.Consumer = func(string) (session, heartbeat time.Duration) {
			return cfg.Settings.ConsumerSessionTimeout, cfg.Settings.ConsumerHeartbeatInterval
		}
	}
	return &Coordinator{
		cfg: cfg, log: cfg.Logger, base: cfg.Clock.Now(), wake: make(chan struct{}, 1), shards: map[int32]*shard{},
		known: consumer.NewTopics(1, nil),
	}, nil
}

// now is the time on the coordinator's clock.
func (c *Coordinator) now() time.Duration { return c.cfg.Clock.Now().Sub(c.base) }

// wall is the time in ms since 1970, for records.
func (c *Coordinator) wall() int64 { return c.cfg.Clock.Now().UnixMilli() }

// Poke says that leaderships or the metadata may have changed. It does not block.
func (c *Coordinator) Poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run loads what this node comes to lead, until ctx ends, and then answers everybody who waits.
func (c *Coordinator) Run(ctx context.Context) {
	for {
		c.Observe()
		for c.Step() {
			if ctx.Err() != nil {
				break
			}
		}
		if _, err := clock.Recv(c.cfg.Clock, ctx, c.wake); err != nil {
			c.Close()
			return
		}
	}
}

// Close drops all shards; whoever waits gets ErrNotCoordinator.
func (c *Coordinator) Close() {
	for _, s := range c.all() {
		s.do(func() { s.unload(); s.closed = true })
	}
}

// Observe looks at who leads: shards begin to load, or are dropped.
func (c *Coordinator) Observe() {
	n := c.cfg.Partitions()
	for i := range n {
		if s := c.shard(i); s != nil {
			s.do(func() { s.follow() })
		}
	}
}

// Step loads one chunk of one shard, and says whether there is more to load.
func (c *Coordinator) Step() (more bool) {
	c.mu.Lock()
	if len(c.loading) == 0 {
		c.mu.Unlock()
		return false
	}
	s := c.loading[0]
	c.loading = c.loading[1:]
	c.mu.Unlock()
	if s.step() {
		c.mu.Lock()
		c.loading = append(c.loading, s)
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.loading) > 0
}

// begin has a shard loaded.
func (c *Coordinator) begin(s *shard) {
	c.mu.Lock()
	if !slices.Contains(c.loading, s) {
		c.loading = append(c.loading, s)
	}
	c.mu.Unlock()
	c.Poke()
}

// shard returns the shard of a partition of which this node has a replica, else nil.
func (c *Coordinator) shard(index int32) *shard {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.shards[index]
	log, ok := c.cfg.Log(index)
	if !ok {
		return s // if it is active it finds out itself
	}
	if s == nil {
		s = newShard(c, index)
		c.shards[index] = s
	}
	if old := s.replica.Load(); old == nil || *old != log {
		s.replica.Store(&log)
	}
	return s
}

func (c *Coordinator) all() []*shard {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*shard, 0, len(c.shards))
	for _, s := range c.shards {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *shard) int { return cmp.Compare(a.index, b.index) })
	return out
}

// with runs f on a group's shard, under its lock, once that is sure to be loaded; fail is called with why not.
func (c *Coordinator) with(group string, fail func(error), f func(s *shard)) {
	n := c.cfg.Partitions()
	if n <= 0 {
		fail(ErrNotCoordinator)
		return
	}
	s := c.shard(PartitionOf(group, n))
	if s == nil {
		fail(ErrNotCoordinator)
		return
	}
	s.do(func() {
		if err := s.ready(); err != nil {
			s.reply(func() { fail(err) })
			return
		}
		f(s)
		if g := s.groups[group]; g != nil {
			s.recount(g)
		}
	})
}

// DropTopics removes the offsets of topics that have been deleted, by id with their names. What was committed for a topic that was made
// again under such a name stays.
func (c *Coordinator) DropTopics(gone map[uuid.UUID]string) {
	if len(gone) == 0 {
		return
	}
	for _, s := range c.all() {
		s.do(func() { s.dropTopics(gone) })
	}
}

// OffsetBytes returns about what an answer with all offsets of a group takes, in bytes; 0 where this node does not coordinate it.
func (c *Coordinator) OffsetBytes(id string) (n int64) {
	c.with(id, func(error) {}, func(s *shard) {
		if g := s.groups[id]; g != nil {
			n = int64(g.offsetBytes)
		}
	})
	return n
}

// appendError says what a client is told when something could not be written.
func appendError(err error, tooLarge error) error {
	switch {
	case errors.Is(err, multiraft.ErrNotLeader), errors.Is(err, multiraft.ErrStopped), errors.Is(err, multiraft.ErrFenced),
		errors.Is(err, partition.ErrStorage):
		return ErrNotCoordinator
	case errors.Is(err, partition.ErrRecordTooLarge):
		return tooLarge
	}
	return ErrNotAvailable
}
