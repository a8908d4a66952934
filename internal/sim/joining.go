package sim

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/controller/bootstrap"
)

// This file is the way of a node with an empty disk into the cluster: it asks the nodes of its --peers who they are, takes the cluster's
// identity over, and asks for a place; and what becomes of one that must not come in.

// Pauses and bounds of first contact.
const (
	helloPause   = 50 * ms
	helloTimeout = 2 * time.Second
)

// form takes a node into the cluster that its peers belong to. Formation.Run asks all peers at the same time, each on a goroutine; here they
// are asked one after the other, and what is made of their answers is the same.
func (p *proc) form(id *bootstrap.Identity, logger *slog.Logger) (*bootstrap.Identity, error) {
	clk := machineClock{p}
	var peers []bootstrap.Peer
	for _, node := range p.node.peers() {
		peers = append(peers, bootstrap.Peer{Node: node, Addr: raftAddr(node)})
	}
	f, err := bootstrap.New(bootstrap.Options{FS: p.fs, Dir: dataDir, Identity: id, Peers: peers, Clock: clk, Logger: logger})
	if err != nil {
		return nil, err
	}
	for {
		member, err := f.Decide()
		if err != nil {
			return nil, err
		}
		if member {
			id := f.Identity()
			return &id, nil
		}
		for _, peer := range peers {
			info, err := p.hello(peer.Node)
			if err != nil {
				continue // asked again
			}
			if err := f.Observe(peer, info); err != nil {
				return nil, err
			}
		}
		if err := clock.Sleep(never, clk, helloPause); err != nil {
			return nil, err
		}
	}
}

// hello asks a peer who it is.
func (p *proc) hello(to int32) (info bootstrap.Info, err error) {
	ctx, cancel := clock.WithTimeout(never, machineClock{p}, helloTimeout)
	defer cancel()
	body, err := p.call(ctx, to, 0, func(dest *proc, reply func([]byte, error)) {
		id := dest.identity
		if id == nil {
			reply(nil, errStarting)
			return
		}
		reply(json.Marshal(bootstrap.Info{Node: id.Node, Dir: id.Dir, ClusterID: id.ClusterID, Set: id.Founders}))
	})
	if err == nil {
		err = json.Unmarshal(body, &info)
	}
	return info, err
}

// peers are the nodes that are named to a node as its --peers: those that formed the cluster to one of them, those that are there now to a disk
// that comes later.
func (n *node) peers() (ids []int32) {
	if n.id <= int32(len(n.w.founders)) && n.disks == 1 {
		for _, f := range n.w.founders {
			ids = append(ids, f.Node)
		}
		return ids
	}
	for _, o := range n.w.members {
		if o != n {
			ids = append(ids, o.id)
		}
	}
	return ids
}

// newUUID is where the name of a new data directory is drawn from: each has another.
func (n *node) newUUID() io.Reader {
	return bytes.NewReader([]byte{2, byte(n.id), byte(n.disks), 15: 0})
}

// isRefusal says whether an error is a node's that the cluster does not take.
func isRefusal(err error) bool {
	return errors.Is(err, bootstrap.ErrIdentityLost) || errors.Is(err, controller.ErrNodeIdentity)
}

// isRefused ends a process that was told that its node is none of the cluster's.
func (n *node) isRefused(err error) {
	w := n.w
	w.log("node %d is refused: %v", n.id, err)
	switch n.standing {
	case wiped:
		w.counts["wiped nodes refused under their old id"]++
	case removed:
		w.counts["removed nodes refused"]++
	default:
		w.fail("node %d, which is one of the cluster's, is refused: %v", n.id, err)
	}
	n.refused++
	n.drop()
	n.fs.Kill()
}
