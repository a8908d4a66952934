package node

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chronik-go/chronik/internal/broker"
	"github.com/chronik-go/chronik/internal/cleaner"
	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/cluster"
	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/controller/bootstrap"
	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/scrub"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/throttle"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

const kafkaListener = "PLAINTEXT"

// Peers reaches the other nodes: *transport.Client, or a simulated network.
type Peers interface {
	broker.Forwarder
	// Send sends an envelope, or drops it; it does not block.
	Send(node int32, env transport.Envelope)
	// AddPeer makes a node known by its address; the same again changes nothing.
	AddPeer(node int32, addr string) error
	// Peers lists the nodes known.
	Peers() []int32
	// Connected says whether a node can be reached now.
	Connected(node int32) bool
}

// CoreConfig is what a core is made of: its machine. All of it is the caller's to open and close.
type CoreConfig struct {
	// Config has been validated.
	Config *config.Node
	// Identity is that of the data directory, which belongs to a cluster by now.
	Identity   bootstrap.Identity
	FS         vfs.FS
	Clock      clock.Clock
	WAL        *wal.Log
	Peers      Peers
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: nobody looks
	// Fail is told that the node must stop. It must not block.
	Fail func(error)
	// Stage is told what the core waits for; nil: nobody is.
	Stage func(waitingFor string)
	// CleanerMemory is told what compaction takes for keys whenever that changes; nil: nobody is. It must not block.
	CleanerMemory func(bytes int64)
	// Tune changes what the parts are made with beyond Config; nil: nothing. The simulator makes everything small.
	Tune *Tuning
	// Opened is called once the core is whole, just before it takes part in its first group; nil: nobody is. From then on its
	// Handle methods may be called.
	Opened func(*Core)
}

// Tuning changes limits that no setting of a node's does. Nil functions change nothing.
type Tuning struct {
	Groups      func(*multiraft.Config)
	Metadata    func(*controller.MachineConfig)
	Controller  func(*controller.Config)
	Partitions  func(*partition.ManagerConfig)
	Broker      func(*broker.Config)
	Coordinator func(*group.Config)
	// Reserve replaces what is kept free on the disk, and the size of the file that holds a part of it; 0: as always.
	Reserve, Ballast int64
}

func tuned[T any](f func(*T), cfg T) T {
	if f != nil {
		f(&cfg)
	}
	return cfg
}

// Core is what runs once the node belongs to a cluster: raft groups, metadata, partitions, and Kafka's requests. It has no
// listener of its own: what comes from peers and clients is handed to it.
type Core struct {
	env  CoreConfig
	cfg  *config.Node
	log  *slog.Logger
	tune Tuning

	groups     *multiraft.Service
	machine    *controller.StateMachine
	controller *controller.Controller
	metadata   *multiraft.Replica
	view       *cluster.View
	manager    *partition.Manager
	configs    *configs
	throttle   *throttle.Replication
	space      *space
	broker     *broker.Broker
	scrubber   *scrub.Scrubber
	cleaner    *cleaner.Cleaner
	replicas   *replicas
	mover      *mover
	replacer   *replacer
	// coordinator is of groups; it is made before any group of raft runs.
	coordinator *group.Coordinator

	ctx    context.Context
	cancel context.CancelFunc
	tasks  clock.Group
}

// OpenCore opens the parts in the order in which they need each other. A node that joins a cluster asks it for its place
// first, for as long as ctx lives. What is half open after an error ends with the process.
func OpenCore(ctx context.Context, env CoreConfig) (*Core, error) {
	c := &Core{env: env, cfg: env.Config, log: env.Logger, tasks: clock.Group{Clock: env.Clock}}
	if env.Tune != nil {
		c.tune = *env.Tune
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.mover, c.replacer = newMover(c), newReplacer(c)
	self, state, err := c.metadataState(ctx)
	if err != nil {
		return nil, err
	}
	mc := tuned(c.tune.Metadata, controller.MachineConfig{Logger: c.log, Clock: env.Clock})
	if c.machine, err = controller.NewStateMachine(mc, state.Index, state.Term, state.State); err != nil {
		return nil, err
	}
	c.view = cluster.NewView(c.cfg.ID(), c.machine, env.Peers, env.Clock)
	c.configs = newConfigs(c.cfg, c.machine)
	c.throttle = c.newThrottle()
	if err := c.openGroups(); err != nil {
		return nil, err
	}
	c.space = newSpace(env, c.tune, c.log, c.groups.SetUnfit)
	if err := c.openController(); err != nil {
		return nil, err
	}
	if err := c.openPartitions(); err != nil {
		return nil, err
	}
	if err := c.openCoordinator(); err != nil {
		return nil, err
	}
	if err := c.openBroker(); err != nil {
		return nil, err
	}
	// From here on peers' messages are taken.
	if env.Opened != nil {
		env.Opened(c)
	}
	c.metadata, err = c.groups.Register(multiraft.RegisterOptions{
		Topic: metadata.MetadataTopic, Group: metadata.MetadataGroup, Replica: self.replica, Members: self.members, SM: c.machine,
		Campaign: self.first, KeepTimes: true,
	})
	if err != nil {
		return nil, err
	}
	c.machine.Bind(c.metadata)
	c.controller.SetGroup(c.metadata, c.metadata)
	return c, nil
}

func (c *Core) openGroups() (err error) {
	l := c.cfg.Limits
	tick := min(l.HeartbeatInterval, l.ElectionTimeout/10)
	c.groups, err = multiraft.NewService(tuned(c.tune.Groups, multiraft.Config{
		NodeID: c.cfg.ID(), Log: c.env.WAL, Sender: c.env.Peers, Clock: c.env.Clock, Logger: c.log,
		TickInterval:   tick,
		ElectionTicks:  int(l.ElectionTimeout / tick),
		HeartbeatTicks: max(1, int(l.HeartbeatInterval/tick)),
		OnLeader:       c.leaderChanged,
		OnFence:        c.fenced,
		Throttle:       c.throttle,
	}))
	return err
}

func (c *Core) openController() (err error) {
	cfg := c.cfg
	c.controller, err = controller.New(tuned(c.tune.Controller, controller.Config{
		NodeID: cfg.ID(), Machine: c.machine, Caller: c.env.Peers, Live: c.view.LiveNodes, Clock: c.env.Clock, Logger: c.log,
		Defaults: func() (int32, int16) { return c.configs.partitions(), c.configs.replication() },
		Configs:  configRules(cfg, c.machine.Image),
	}))
	return err
}

func (c *Core) openPartitions() (err error) {
	e := c.env
	c.manager, err = partition.NewManager(tuned(c.tune.Partitions, partition.ManagerConfig{
		FS: e.FS, Dir: filepath.Join(c.cfg.DataDir, topicsName), Clock: e.Clock, Logger: c.log,
		Limits: partition.Limits{Inflating: c.cfg.Limits.Inflating},
		Host:   partition.NewHost(c.groups, e.WAL),
		Files:  segment.NewFiles(e.FS, c.cfg.Limits.MaxOpenFiles), Configs: c.configs.topic, Writable: c.space.writable, FreeReserve: c.space.reserve.release,
		Throttle: c.throttle,
		OnFatal:  func(err error) { e.Fail(fmt.Errorf("a disk failed: %w", err)) },
	}))
	if err != nil {
		return err
	}
	c.scrubber, c.cleaner = c.newScrubber(), c.newCleaner()
	c.replicas = &replicas{core: c, wake: make(chan struct{}, 1), seen: map[string]*metadata.Topic{}, failed: map[uint64]*failure{}}
	return nil
}

func (c *Core) openBroker() (err error) {
	cfg := c.cfg
	listener := broker.ListenerConfig{}
	if cfg.OneAddressMode() {
		host, port := cfg.AdvertisedKafka()
		listener = broker.ListenerConfig{OneAddress: true, Host: host, Port: port}
	}
	c.broker, err = broker.New(tuned(c.tune.Broker, broker.Config{
		Partitions: broker.LocalPartitions(c.manager), Controller: c.controller, Cluster: brokerView{c.view, c.configs}, Forwarder: c.env.Peers,
		Clock: c.env.Clock, Logger: c.log, Registerer: c.env.Registerer,
		Listeners:        map[string]broker.ListenerConfig{kafkaListener: listener},
		AutoCreateTopics: cfg.AutoCreateTopics,
		FetchHeldBytes:   int(cfg.Limits.FetchMemory),
		DecodedBytes:     int(cfg.Limits.DecodedMemory),
		AnswerBytes:      int(cfg.Limits.ResponseMemory),
		DataDir:          dataDir{c.env.FS, cfg.DataDir},
		Quorum:           c.quorum,
		Groups:           c.coordinator,
		OffsetsTopic:     c.offsetsTopic,
		TransferLeadership: func(group uint64, node int32) {
			if r, ok := c.groups.Group(group); ok {
				r.TransferLeadership(node)
			}
		},
	}))
	return err
}

// quorum is the local replica of the metadata group.
func (c *Core) quorum() broker.Quorum {
	if r, ok := c.groups.Group(metadata.MetadataGroup); ok {
		return r
	}
	return nil
}

// dataDir is the data directory as the broker tells of it.
type dataDir struct {
	fs  vfs.FS
	dir string
}

// Path implements broker.DataDir.
func (d dataDir) Path() string {
	if abs, err := filepath.Abs(d.dir); err == nil {
		return abs
	}
	return d.dir
}

// Space implements broker.DataDir.
func (d dataDir) Space() (total, free uint64, err error) {
	if total, err = d.fs.TotalSpace(d.dir); err != nil {
		return 0, 0, err
	}
	free, err = d.fs.FreeSpace(d.dir)
	return total, free, err
}

// brokerView is the cluster as the broker sees it.
type brokerView struct {
	*cluster.View
	configs *configs
}

// StaticConfigs returns the broker configs that this node was started with.
func (v brokerView) StaticConfigs() map[string]string { return v.configs.static }

// nodesOf lists an image's nodes by id.
func nodesOf(img *metadata.Image) []*metadata.Node {
	out := make([]*metadata.Node, 0, len(img.Nodes))
	for _, n := range img.Nodes {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b *metadata.Node) int { return int(a.ID) - int(b.ID) })
	return out
}
