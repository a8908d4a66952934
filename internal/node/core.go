package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chronik-go/chronik/internal/broker"
	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/cluster"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/controller/bootstrap"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/server"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

const kafkaListener = "PLAINTEXT"

// core is what runs once the node belongs to a cluster: raft groups, metadata, partitions, and the Kafka side.
type core struct {
	node *Node
	log  *slog.Logger

	groups     *multiraft.Service
	machine    *controller.StateMachine
	controller *controller.Controller
	metadata   *multiraft.Replica
	view       *cluster.View
	manager    *partition.Manager
	configs    *configs
	space      *space
	broker     *broker.Broker
	server     *server.Server
	replicas   *replicas

	port   atomic.Int32 // Kafka port in force
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// openCore opens the parts in the order in which they need each other. What is half open after an error is closed by
// core.close.
func openCore(n *Node) (*core, error) {
	c := &core{node: n, log: n.log}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	self, state, err := c.metadataState()
	if err != nil {
		return nil, err
	}
	if c.machine, err = controller.NewStateMachine(controller.MachineConfig{Logger: n.log}, state.Index, state.Term, state.State); err != nil {
		return nil, err
	}
	c.view = cluster.NewView(n.cfg.ID(), c.machine, n.client, clock.System{})
	if err := c.openGroups(); err != nil {
		return nil, err
	}
	c.configs = newConfigs(n.cfg, c.machine)
	c.space = newSpace(n.fs, n.cfg.DataDir, n.wal, n.log)
	if err := c.openController(); err != nil {
		return nil, err
	}
	if err := c.openPartitions(); err != nil {
		return nil, err
	}
	if err := c.openBroker(); err != nil {
		return nil, err
	}
	// From here on peers' messages are taken.
	n.core.Store(c)
	c.metadata, err = c.groups.Register(multiraft.RegisterOptions{
		Topic: metadata.MetadataTopic, Group: metadata.MetadataGroup, Replica: self.replica, Members: self.members, SM: c.machine,
		Campaign: self.first,
	})
	if err != nil {
		return nil, err
	}
	c.machine.Bind(c.metadata)
	c.controller.SetGroup(c.metadata, c.metadata)
	return c, nil
}

func (c *core) openGroups() (err error) {
	l := c.node.cfg.Limits
	tick := min(l.HeartbeatInterval, l.ElectionTimeout/10)
	c.groups, err = multiraft.NewService(multiraft.Config{
		NodeID: c.node.cfg.ID(), Log: c.node.wal, Sender: c.node.client, Clock: clock.System{}, Logger: c.log,
		TickInterval:   tick,
		ElectionTicks:  int(l.ElectionTimeout / tick),
		HeartbeatTicks: max(1, int(l.HeartbeatInterval/tick)),
		OnLeader:       c.view.Observe,
	})
	return err
}

// membership is this node's place in the metadata group.
type membership struct {
	replica uint64
	members []multiraft.Member
	first   bool // the first voter of a new cluster: it stands for election at once
}

// metadataState finds the metadata group in the log or makes it: a founder from the first state that all founders derive, a
// node that joins with nothing, under the replica id that the cluster gives it.
func (c *core) metadataState() (membership, wal.Checkpoint, error) {
	n := c.node
	id := n.formation.Identity()
	group := n.wal.Group(metadata.MetadataGroup)
	if id.Founding() {
		g, err := bootstrap.Derive(id.Founders, id.Node)
		if err != nil {
			return membership{}, wal.Checkpoint{}, err
		}
		m := membership{replica: g.Self, members: g.Members, first: len(g.Members) > 0 && g.Members[0].Replica == g.Self}
		if group == nil {
			if group, err = n.wal.Create(metadata.MetadataGroup, g.Checkpoint, nil); err != nil {
				return membership{}, wal.Checkpoint{}, err
			}
		}
		if d := group.Damage(); d != nil {
			return membership{}, wal.Checkpoint{}, damagedMetadata(d)
		}
		return m, group.Checkpoint(), nil
	}
	if m, ok := c.remembered(group); ok {
		return m, group.Checkpoint(), nil
	}
	r, err := c.join()
	if err != nil {
		return membership{}, wal.Checkpoint{}, err
	}
	m := membership{replica: r.Node.MetadataReplica}
	for _, x := range r.Members {
		m.members = append(m.members, multiraft.Member{Replica: x.MetadataReplica, Node: x.ID})
	}
	if group == nil {
		if group, err = n.wal.Create(metadata.MetadataGroup, wal.Checkpoint{}, nil); err != nil {
			return membership{}, wal.Checkpoint{}, err
		}
	}
	if d := group.Damage(); d != nil {
		return membership{}, wal.Checkpoint{}, damagedMetadata(d)
	}
	return m, group.Checkpoint(), nil
}

// remembered finds in the metadata that this node has itself what it was given when it joined: a node that is restarted
// does not depend on the nodes of --peers being there.
func (c *core) remembered(group *wal.Group) (membership, bool) {
	if group == nil || group.Damage() != nil {
		return membership{}, false
	}
	img, err := controller.DecodeImage(group.Checkpoint().State)
	if err != nil {
		return membership{}, false // nothing yet, or for NewStateMachine to refuse
	}
	self := img.Nodes[c.node.cfg.ID()]
	if self == nil || self.Dir != c.node.id.Dir || self.MetadataReplica == 0 {
		return membership{}, false
	}
	m := membership{replica: self.MetadataReplica}
	for _, n := range nodesOf(img) {
		if n.MetadataReplica != 0 {
			m.members = append(m.members, multiraft.Member{Replica: n.MetadataReplica, Node: n.ID})
		}
	}
	return m, true
}

func damagedMetadata(d *wal.Damage) error {
	return fmt.Errorf("the cluster's metadata on this node is damaged (%s offset %d: %s): its vote can't be trusted; "+
		"start the node with an empty --data-dir and a new --node-id", d.File, d.Offset, d.Reason)
}

// join registers a node that did not found the cluster, before it has any of the cluster's state: it asks the nodes of --peers.
func (c *core) join() (controller.Registered, error) {
	n := c.node
	machine, err := controller.NewStateMachine(controller.MachineConfig{Logger: n.log}, 0, 0, nil)
	if err != nil {
		return controller.Registered{}, err
	}
	var peers []int32
	for _, p := range n.cfg.Members() {
		if p.ID != n.cfg.ID() {
			peers = append(peers, p.ID)
			if err := n.client.AddPeer(p.ID, p.Addr); err != nil {
				return controller.Registered{}, err
			}
		}
	}
	ctl, err := controller.New(controller.Config{
		NodeID: n.cfg.ID(), Machine: machine, Caller: n.client, Peers: func() []int32 { return peers }, Clock: clock.System{}, Logger: n.log,
		Defaults: func() (int32, int16) { return n.cfg.NumPartitions, n.cfg.Replication(1) }, Configs: configRules(n.cfg, func() *metadata.Image { return machine.Image() }),
	})
	if err != nil {
		return controller.Registered{}, err
	}
	defer ctl.Close()
	host, port := n.cfg.AdvertisedKafka()
	if port == 0 {
		// The cluster takes no node without a port. This one is held until the node serves at a port of its own and says so.
		l, err := net.Listen("tcp", n.cfg.KafkaListen())
		if err != nil {
			return controller.Registered{}, fmt.Errorf("kafka address %s: %w (another --kafka-addr)", n.cfg.KafkaListen(), err)
		}
		defer l.Close()
		port = int32(l.Addr().(*net.TCPAddr).Port)
	}
	for {
		ctx, cancel := context.WithTimeout(n.ctx, 10*time.Second)
		r, err := ctl.Register(ctx, c.describe(host, port))
		cancel()
		if err == nil {
			return r, nil
		}
		if errors.Is(err, controller.ErrNodeIdentity) || n.ctx.Err() != nil {
			return controller.Registered{}, err
		}
		n.log.Info("joining the cluster: not yet", "error", err)
		if err := pause(n.ctx, retryPause); err != nil {
			return controller.Registered{}, err
		}
	}
}

// retryPause lies between two attempts at something that may be refused at once.
const retryPause = 200 * time.Millisecond

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (c *core) describe(host string, port int32) metadata.Node {
	cfg := c.node.cfg
	return metadata.Node{ID: cfg.ID(), Dir: c.node.id.Dir, KafkaHost: host, KafkaPort: port, RaftAddr: cfg.PeerAddr(), Rack: cfg.Rack}
}

func (c *core) openController() (err error) {
	cfg := c.node.cfg
	c.controller, err = controller.New(controller.Config{
		NodeID: cfg.ID(), Machine: c.machine, Caller: c.node.client, Live: c.view.LiveNodes, Clock: clock.System{}, Logger: c.log,
		Defaults: func() (int32, int16) { return c.configs.partitions(), c.configs.replication() },
		Configs:  configRules(cfg, c.machine.Image),
	})
	return err
}

func (c *core) openPartitions() (err error) {
	n := c.node
	c.manager, err = partition.NewManager(partition.ManagerConfig{
		FS: n.fs, Dir: filepath.Join(n.cfg.DataDir, topicsName), Clock: clock.System{}, Logger: n.log,
		Host:  partition.NewHost(c.groups, n.wal),
		Files: segment.NewFiles(n.fs, n.cfg.Limits.MaxOpenFiles), Configs: c.configs.topic, Writable: c.space.writable, FreeReserve: c.space.reserve.release,
		OnFatal: func(err error) { n.fail(fmt.Errorf("a disk failed: %w", err)) },
	})
	if err != nil {
		return err
	}
	c.replicas = &replicas{core: c, wake: make(chan struct{}, 1), seen: map[string]*metadata.Topic{}, failed: map[uint64]error{}}
	return nil
}

func (c *core) openBroker() (err error) {
	cfg := c.node.cfg
	listener := broker.ListenerConfig{}
	if cfg.OneAddressMode() {
		host, port := cfg.AdvertisedKafka()
		listener = broker.ListenerConfig{OneAddress: true, Host: host, Port: port}
	}
	c.broker, err = broker.New(broker.Config{
		Partitions: broker.LocalPartitions(c.manager), Controller: c.controller, Cluster: brokerView{c.view, c.configs}, Forwarder: c.node.client,
		Clock: clock.System{}, Logger: c.log, Registerer: c.node.reg,
		Listeners:        map[string]broker.ListenerConfig{kafkaListener: listener},
		AutoCreateTopics: cfg.AutoCreateTopics,
		FetchHeldBytes:   int(cfg.Limits.RequestMemory),
		DataDir:          dataDir{c.node.fs, cfg.DataDir},
		Quorum:           c.quorum,
	})
	if err != nil {
		return err
	}
	l := cfg.Limits
	c.server, err = server.New(server.Config{
		Listeners: []server.ListenerConfig{{Name: kafkaListener, Addr: cfg.KafkaListen()}}, Handler: c.broker, Logger: c.log, Registerer: c.node.reg,
		MaxFrameBytes: int(l.MaxFrameBytes), MaxConnections: l.MaxConnections, MaxConnectionsPerAddr: l.MaxConnectionsPerAddr,
		MaxBytes: l.RequestMemory, IdleTimeout: l.IdleTimeout,
	})
	return err
}

// start runs everything and returns once the node serves: its metadata is known, its groups are open, its Kafka port too.
func (c *core) start() error {
	n := c.node
	n.wal.Start()
	c.groups.Start()
	c.manager.Start()
	c.controller.Start()
	c.wg.Go(c.gossip)
	c.wg.Go(func() { c.space.watch(c.ctx) })
	cancel := c.machine.Watch(func(*metadata.Image) {
		c.view.ImageChanged()
		c.replicas.poke()
	})
	c.wg.Go(func() {
		defer cancel()
		c.replicas.run(c.ctx)
	})
	for _, p := range n.cfg.Members() {
		if p.ID != n.cfg.ID() {
			if err := n.client.AddPeer(p.ID, p.Addr); err != nil {
				return err
			}
		}
	}
	for _, id := range n.client.Peers() {
		if n.client.Connected(id) { // it came up before there was a view to tell
			c.view.PeerUp(id)
		}
	}
	c.registerMetrics(n.reg)
	return c.serve()
}

// serve opens the Kafka port and registers the node. With a port of the kernel's choosing the port comes first.
func (c *core) serve() error {
	n := c.node
	host, port := n.cfg.AdvertisedKafka()
	listen := func() error {
		if err := c.server.Start(); err != nil {
			return fmt.Errorf("%w (another --kafka-addr)", err)
		}
		if port == 0 {
			port = int32(c.server.Addr(kafkaListener).(*net.TCPAddr).Port)
		}
		c.port.Store(port)
		return nil
	}
	if port == 0 {
		if err := listen(); err != nil {
			return err
		}
	}
	for {
		ctx, cancel := context.WithTimeout(n.ctx, 10*time.Second)
		r, err := c.controller.Register(ctx, c.describe(host, port))
		if err == nil {
			_, err = c.machine.Await(ctx, r.Index)
		}
		cancel()
		if err == nil {
			break
		}
		if errors.Is(err, controller.ErrNodeIdentity) || n.ctx.Err() != nil {
			return err
		}
		n.log.Info("registering with the cluster: not yet", "error", err)
		if err := pause(n.ctx, retryPause); err != nil {
			return err
		}
	}
	n.waitingFor("the node's partitions")
	if err := c.replicas.settled(n.ctx, c.machine.Image().Index); err != nil {
		return err
	}
	if c.port.Load() == 0 {
		return listen()
	}
	return nil
}

// gossip tells peers what this node leads, at once when it changes and all of it now and then.
func (c *core) gossip() {
	refresh := time.NewTicker(5 * time.Second)
	defer refresh.Stop()
	for {
		select {
		case <-c.view.Wake():
			c.view.Step()
		case <-refresh.C:
			c.view.Refresh()
		case <-c.ctx.Done():
			return
		}
	}
}

func (c *core) pinned(group, index uint64) {
	if group == metadata.MetadataGroup {
		c.machine.CheckpointNow()
		return
	}
	c.manager.Pinned(group, index)
}

func (c *core) advertised() (string, int32) {
	host, _ := c.node.cfg.AdvertisedKafka()
	return host, c.port.Load()
}

// close is core.start and openCore in reverse: leaderships first, so that the others serve while this node finishes.
func (c *core) close(ctx context.Context) error {
	var errs []error
	if c.node.Err() == nil {
		handover, done := context.WithTimeout(ctx, 4*time.Second)
		if left := c.handOver(handover); left > 0 {
			c.log.Warn("not all leaderships were handed over", "left", left)
		}
		done()
	}
	patience := 3 * time.Second
	if c.node.Err() != nil {
		patience = 300 * time.Millisecond // what waits for the log will wait for ever
	}
	drain, done := context.WithTimeout(ctx, patience)
	if err := c.server.Shutdown(drain); err != nil {
		c.log.Info("connections were cut at shutdown", "error", err)
	}
	done()
	c.cancel()
	c.wg.Wait()
	c.machine.CheckpointNow()
	errs = append(errs, c.controller.Close(), c.manager.Close(), c.groups.Close())
	return errors.Join(errs...)
}

// handOver gives every leadership that this node has now to another replica, and returns how many are left when ctx ends. It
// waits for no others: where several nodes stop together they hand them to each other, and each would wait for the rest. Without
// a peer to take any it does not wait at all.
func (c *core) handOver(ctx context.Context) (left int) {
	type led struct {
		replica *multiraft.Replica
		term    uint64
	}
	var all []led
	for _, r := range c.groups.Replicas() {
		if st := r.Status(); st.IsLeader && len(r.Members()) > 1 {
			all = append(all, led{r, st.Term})
		}
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var asked time.Time
	for {
		all = slices.DeleteFunc(all, func(l led) bool {
			st := l.replica.Status()
			return !st.IsLeader || st.Term != l.term
		})
		if len(all) == 0 || !slices.ContainsFunc(c.node.client.Peers(), c.node.client.Connected) {
			return 0
		}
		// Raft gives up a transfer after an election timeout: then the next is asked.
		if time.Since(asked) > c.node.cfg.Limits.ElectionTimeout {
			asked = time.Now()
			for i, l := range all {
				l.replica.TransferLeadership(c.successor(l.replica, i))
			}
		}
		select {
		case <-ctx.Done():
			return len(all)
		case <-tick.C:
		}
	}
}

// successor chooses who is to lead a group after this node: -1, raft's own choice of the most advanced, unless a member's node
// can't be reached. Raft takes up to an election timeout to notice that, and would choose the dead one.
func (c *core) successor(r *multiraft.Replica, turn int) int32 {
	var up []int32
	all := true
	for _, m := range r.Members() {
		switch {
		case m.Node == c.node.cfg.ID():
		case c.node.client.Connected(m.Node):
			up = append(up, m.Node)
		default:
			all = false
		}
	}
	if all || len(up) == 0 {
		return -1
	}
	return up[turn%len(up)]
}

// quorum is the local replica of the metadata group.
func (c *core) quorum() broker.Quorum {
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
