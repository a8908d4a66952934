package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/chronik-go/chronik/internal/broker"
	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
)

// Start runs the core: its groups take part, its metadata is followed, its partitions are opened and closed as that says. A
// clock.Scheduler steps groups and partitions itself (Steps): then they get no goroutines here.
func (c *Core) Start() {
	if _, stepped := c.env.Clock.(clock.Scheduler); !stepped {
		c.groups.Start()
		c.manager.Start()
	}
	c.controller.Start()
	c.tasks.Go(c.gossip)
	c.tasks.Go(func() { c.space.watch(c.ctx, c.replicas.room) })
	c.tasks.Go(func() { c.coordinator.Run(c.ctx) })
	c.tasks.Go(c.scrub)
	c.tasks.Go(c.compact)
	cancel := c.machine.Watch(func(*metadata.Image) {
		c.view.ImageChanged()
		c.replicas.poke()
		c.mover.poke()
		c.coordinator.Poke()
	})
	c.tasks.Go(func() { c.mover.run(c.ctx) })
	c.tasks.Go(func() { c.replacer.run(c.ctx) })
	c.tasks.Go(func() {
		defer cancel()
		c.replicas.run(c.ctx)
	})
	for _, id := range c.env.Peers.Peers() {
		if c.env.Peers.Connected(id) { // it came up before there was a view to tell
			c.view.PeerUp(id)
		}
	}
}

// Register tells the cluster where this node is, and returns once the node has opened all that the cluster wants it to hold.
func (c *Core) Register(ctx context.Context, host string, port int32) error {
	for {
		attempt, cancel := clock.WithTimeout(ctx, c.env.Clock, 10*time.Second)
		r, err := c.controller.Register(attempt, c.describe(host, port))
		if err == nil {
			_, err = c.machine.Await(attempt, r.Index)
		}
		cancel()
		if err == nil {
			break
		}
		if errors.Is(err, controller.ErrNodeIdentity) || ctx.Err() != nil {
			return err
		}
		c.log.Info("registering with the cluster: not yet", "error", err)
		if err := clock.Sleep(ctx, c.env.Clock, retryPause); err != nil {
			return err
		}
	}
	if c.env.Stage != nil {
		c.env.Stage("the node's partitions")
	}
	return c.replicas.settled(ctx, c.machine.Image().Index)
}

// Steps are the workers of a core that nobody has given goroutines: what a simulator calls, in an order of its choosing.
type Steps struct {
	// Tick is to be called every Service.TickInterval.
	Tick             func()
	Shards, Appliers []multiraft.Stepper
	// Partitions may be stepped by several workers; beside each other they take different partitions.
	Partitions multiraft.Stepper
}

// Steps returns the workers.
func (c *Core) Steps() Steps {
	return Steps{Tick: c.groups.Tick, Shards: c.groups.Shards(), Appliers: c.groups.Appliers(), Partitions: c.manager}
}

// Broker takes the requests of Kafka clients.
func (c *Core) Broker() *broker.Broker { return c.broker }

// Groups are the node's raft groups.
func (c *Core) Groups() *multiraft.Service { return c.groups }

// Partitions are the node's topic partitions.
func (c *Core) Partitions() *partition.Manager { return c.manager }

// Controller is the node's way to decisions about the cluster.
func (c *Core) Controller() *controller.Controller { return c.controller }

// Metadata is the node's copy of the cluster's metadata.
func (c *Core) Metadata() *controller.StateMachine { return c.machine }

// gossip tells peers what this node leads, at once when it changes and all of it now and then.
func (c *Core) gossip() {
	refresh, stop := clock.After(c.env.Clock, gossipRefresh)
	for {
		switch clock.Select(c.env.Clock, c.view.Wake(), refresh, c.ctx.Done()) {
		case 0:
			c.view.Step()
		case 1:
			c.view.Refresh()
			refresh, stop = clock.After(c.env.Clock, gossipRefresh)
		default:
			stop()
			return
		}
	}
}

// gossipRefresh is how often peers are told everything.
const gossipRefresh = 5 * time.Second

// Pinned is the log's hint that its oldest file waits for a group (wal.Options.OnPinned).
func (c *Core) Pinned(log, index uint64) {
	if log == metadata.MetadataGroup {
		c.machine.CheckpointNow()
		return
	}
	c.manager.Pinned(log, index)
}

// Close ends what Start began, in reverse. Leaderships are handed over and clients gone by then.
func (c *Core) Close() error {
	c.cancel()
	c.tasks.Wait()
	c.machine.CheckpointNow()
	return errors.Join(c.controller.Close(), c.manager.Close(), c.groups.Close())
}

// handOver gives every leadership that this node has now to another replica, and returns how many are left when ctx ends. It
// waits for no others: where several nodes stop together they hand them to each other, and each would wait for the rest. Without
// a peer to take any it does not wait at all.
func (c *Core) handOver(ctx context.Context) (left int) {
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
	var asked time.Time
	for {
		all = slices.DeleteFunc(all, func(l led) bool {
			st := l.replica.Status()
			return !st.IsLeader || st.Term != l.term
		})
		if len(all) == 0 || !slices.ContainsFunc(c.env.Peers.Peers(), c.env.Peers.Connected) {
			return 0
		}
		// Raft gives up a transfer after an election timeout: then the next is asked.
		if c.env.Clock.Now().Sub(asked) > c.cfg.Limits.ElectionTimeout {
			asked = c.env.Clock.Now()
			for i, l := range all {
				l.replica.TransferLeadership(c.successor(l.replica, i))
			}
		}
		if clock.Sleep(ctx, c.env.Clock, 5*time.Millisecond) != nil {
			return len(all)
		}
	}
}

// successor chooses who is to lead a group after this node: -1, raft's own choice of the most advanced, unless a member's node
// can't be reached. Raft takes up to an election timeout to notice that, and would choose the dead one.
func (c *Core) successor(r *multiraft.Replica, turn int) int32 {
	var up []int32
	all := true
	for _, m := range r.Members() {
		switch {
		case m.Node == c.cfg.ID():
		case c.env.Peers.Connected(m.Node):
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
