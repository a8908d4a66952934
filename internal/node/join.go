package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/controller/bootstrap"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/wal"
)

// place is this node's place in the metadata group.
type place struct {
	replica uint64
	members []multiraft.Member
	first   bool // the first voter of a new cluster: it stands for election at once
}

// metadataState finds the metadata group in the log or makes it: a founder from the first state that all founders derive, a
// node that joins with nothing, under the replica id that the cluster gives it.
func (c *Core) metadataState(ctx context.Context) (place, wal.Checkpoint, error) {
	id, log := c.env.Identity, c.env.WAL
	group := log.Group(metadata.MetadataGroup)
	if id.Founding() {
		g, err := bootstrap.Derive(id.Founders, id.Node)
		if err != nil {
			return place{}, wal.Checkpoint{}, err
		}
		m := place{replica: g.Self, members: g.Members, first: len(g.Members) > 0 && g.Members[0].Replica == g.Self}
		if group == nil {
			if group, err = log.Create(metadata.MetadataGroup, g.Checkpoint, nil); err != nil {
				return place{}, wal.Checkpoint{}, err
			}
		}
		if d := group.Damage(); d != nil {
			return place{}, wal.Checkpoint{}, damagedMetadata(d)
		}
		return m, group.Checkpoint(), nil
	}
	if m, ok := c.remembered(group); ok {
		return m, group.Checkpoint(), nil
	}
	r, err := c.join(ctx)
	if err != nil {
		return place{}, wal.Checkpoint{}, err
	}
	m := place{replica: r.Node.MetadataReplica}
	for _, x := range r.Members {
		m.members = append(m.members, multiraft.Member{Replica: x.MetadataReplica, Node: x.ID})
	}
	if group == nil {
		if group, err = log.Create(metadata.MetadataGroup, wal.Checkpoint{}, nil); err != nil {
			return place{}, wal.Checkpoint{}, err
		}
	}
	if d := group.Damage(); d != nil {
		return place{}, wal.Checkpoint{}, damagedMetadata(d)
	}
	return m, group.Checkpoint(), nil
}

// remembered finds in the metadata that this node has itself what it was given when it joined: a node that is restarted
// does not depend on the nodes of --peers being there.
func (c *Core) remembered(group *wal.Group) (place, bool) {
	if group == nil || group.Damage() != nil {
		return place{}, false
	}
	img, err := controller.DecodeImage(group.Checkpoint().State)
	if err != nil {
		return place{}, false // nothing yet, or for NewStateMachine to refuse
	}
	self := img.Nodes[c.cfg.ID()]
	if self == nil || self.Dir != c.env.Identity.Dir || self.MetadataReplica == 0 {
		return place{}, false
	}
	m := place{replica: self.MetadataReplica}
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
func (c *Core) join(ctx context.Context) (controller.Registered, error) {
	machine, err := controller.NewStateMachine(controller.MachineConfig{Logger: c.log, Clock: c.env.Clock}, 0, 0, nil)
	if err != nil {
		return controller.Registered{}, err
	}
	var peers []int32
	for _, p := range c.cfg.Members() {
		if p.ID != c.cfg.ID() {
			peers = append(peers, p.ID)
			if err := c.env.Peers.AddPeer(p.ID, p.Addr); err != nil {
				return controller.Registered{}, err
			}
		}
	}
	ctl, err := controller.New(controller.Config{
		NodeID: c.cfg.ID(), Machine: machine, Caller: c.env.Peers, Peers: func() []int32 { return peers }, Clock: c.env.Clock, Logger: c.log,
		Defaults: func() (int32, int16) { return c.cfg.NumPartitions, c.cfg.Replication(1) }, Configs: configRules(c.cfg, func() *metadata.Image { return machine.Image() }),
	})
	if err != nil {
		return controller.Registered{}, err
	}
	defer ctl.Close()
	host, port := c.cfg.AdvertisedKafka()
	if port == 0 {
		// The cluster takes no node without a port. This one is held until the node serves at a port of its own and says so.
		l, err := net.Listen("tcp", c.cfg.KafkaListen())
		if err != nil {
			return controller.Registered{}, fmt.Errorf("kafka address %s: %w (another --kafka-addr)", c.cfg.KafkaListen(), err)
		}
		defer l.Close()
		port = int32(l.Addr().(*net.TCPAddr).Port)
	}
	for {
		attempt, cancel := clock.WithTimeout(ctx, c.env.Clock, 10*time.Second)
		r, err := ctl.Register(attempt, c.describe(host, port))
		cancel()
		if err == nil {
			return r, nil
		}
		if errors.Is(err, controller.ErrNodeIdentity) || ctx.Err() != nil {
			return controller.Registered{}, err
		}
		c.log.Info("joining the cluster: not yet", "error", err)
		if err := clock.Sleep(ctx, c.env.Clock, retryPause); err != nil {
			return controller.Registered{}, err
		}
	}
}

// retryPause lies between two attempts at something that may be refused at once.
const retryPause = 200 * time.Millisecond

func (c *Core) describe(host string, port int32) metadata.Node {
	cfg := c.cfg
	return metadata.Node{ID: cfg.ID(), Dir: c.env.Identity.Dir, KafkaHost: host, KafkaPort: port, RaftAddr: cfg.PeerAddr(), Rack: cfg.Rack}
}
