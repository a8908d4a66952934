package multiraft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/freeport"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// netCluster is services in one process, joined by real sockets, each with a log and its own goroutines. The disks are in memory: where
// a sync takes longer than an election, as on a disk that others keep busy, nobody is ever elected, and no test here is about that.
type netCluster struct {
	t     *testing.T
	nodes map[int32]*netNode
	conf  raftpb.ConfState
	stall time.Duration // Config.StallLimit
}

type netNode struct {
	c      *netCluster
	id     int32
	addr   string
	disk   *vfs.Mem
	cutOff atomic.Bool
	up     bool

	sm     *listSM
	log    *wal.Log
	svc    atomic.Pointer[Service]
	server *transport.Server
	client *transport.Client
}

func (n *netNode) replica() *Replica {
	r, _ := n.svc.Load().Group(testGroup)
	return r
}

// Send implements Sender over the transport, unless the node is cut off.
func (n *netNode) Send(to int32, env transport.Envelope) {
	if !n.cutOff.Load() && !n.c.nodes[to].cutOff.Load() {
		n.client.Send(to, env)
	}
}

func (n *netNode) HandleEnvelopes(from int32, envs []transport.Envelope) {
	if s := n.svc.Load(); s != nil && !n.cutOff.Load() {
		s.HandleEnvelopes(from, envs)
	}
}

func (n *netNode) HandleDropped(peer int32, group, to uint64, snapshot bool) {
	if s := n.svc.Load(); s != nil {
		s.HandleDropped(peer, group, to, snapshot)
	}
}

func (n *netNode) HandlePeerUp(int32) {}

func (n *netNode) HandlePeerDown(peer int32) {
	if s := n.svc.Load(); s != nil {
		s.HandlePeerDown(peer)
	}
}

func (n *netNode) HandleCall(context.Context, int32, uint16, []byte) ([]byte, error) {
	return nil, errors.New("no calls here")
}

func (n *netNode) HandleForward(_ int32, _ uint16, _ []byte, reply func([]byte, error)) {
	reply(nil, errors.New("no forwards here"))
}

func startNet(t *testing.T, count int, opts ...func(*netCluster)) *netCluster {
	c := &netCluster{t: t, nodes: map[int32]*netNode{}}
	ports, err := freeport.Ports(count)
	if err != nil {
		t.Fatal(err)
	}
	for id := int32(1); id <= int32(count); id++ {
		c.nodes[id] = &netNode{c: c, id: id, addr: fmt.Sprintf("127.0.0.1:%d", ports[id-1]), disk: vfs.NewMem(uint64(id))}
		c.conf.Voters = append(c.conf.Voters, replicaOf(id))
	}
	for _, o := range opts {
		o(c)
	}
	for id := range c.nodes {
		c.start(id)
	}
	t.Cleanup(func() {
		for id := range c.nodes {
			c.stop(id)
		}
	})
	return c
}

func (c *netCluster) start(id int32) {
	c.t.Helper()
	n := c.nodes[id]
	must := func(err error) {
		c.t.Helper()
		if err != nil {
			c.t.Fatal(err)
		}
	}
	quiet := slog.New(slog.DiscardHandler)
	var err error
	n.log, err = wal.Open(wal.Options{FS: n.disk, Dir: "/log", Logger: quiet, FileBytes: 4 << 20, OnFatal: func(err error) { c.t.Error(err) }})
	must(err)
	tc := transport.Config{NodeID: id, ClusterID: func() string { return "test" }, Listen: n.addr, Logger: quiet}
	n.client = transport.NewClient(tc, n)
	tc.OnInbound = n.client.Wake
	n.server, err = transport.NewServer(tc, n)
	must(err)
	svc, err := NewService(Config{NodeID: id, Log: n.log, Sender: n, Clock: clock.System{}, Logger: quiet, TickInterval: 80 * time.Millisecond,
		StallLimit: c.stall})
	must(err)
	var members []Member
	for other := range c.nodes {
		members = append(members, Member{Replica: replicaOf(other), Node: other})
	}
	if n.log.Group(testGroup) == nil {
		_, err = n.log.Create(testGroup, wal.Checkpoint{Index: 1, Term: 1, ConfState: c.conf, State: (&listSM{index: 1, term: 1}).encode()}, nil)
		must(err)
	}
	n.sm = &listSM{}
	n.sm.decode(n.log.Group(testGroup).Checkpoint().State)
	_, err = svc.Register(RegisterOptions{Topic: "t", Group: testGroup, Replica: replicaOf(id), Members: members, SM: n.sm})
	must(err)
	n.svc.Store(svc)
	n.log.Start()
	svc.Start()
	n.server.Start()
	for other, o := range c.nodes {
		if other != id {
			must(n.client.AddPeer(other, o.addr))
		}
	}
	n.up = true
}

func (c *netCluster) stop(id int32) {
	n := c.nodes[id]
	if !n.up {
		return
	}
	n.up = false
	for _, err := range []error{n.client.Close(), n.svc.Load().Close(), n.log.Close(), n.server.Close()} {
		if err != nil {
			c.t.Error(err)
		}
	}
}

func (c *netCluster) isolate(id int32, cut bool) { c.nodes[id].cutOff.Store(cut) }

// leader waits for a running node that may serve.
func (c *netCluster) leader() (id int32) {
	c.t.Helper()
	eventually(c.t, "a leader", func() bool {
		for i, n := range c.nodes {
			if n.up && n.replica().Status().Ready {
				id = i
				return true
			}
		}
		return false
	})
	return id
}

func (c *netCluster) propose(id int32, data string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	// On a busy machine the leadership may move meanwhile: then the proposal is certainly not in the log.
	for {
		err := c.nodes[id].replica().Propose(ctx, []byte(data))
		if err == nil {
			return
		}
		if !errors.Is(err, ErrNotLeader) || ctx.Err() != nil {
			c.t.Errorf("proposing: %v", err)
			return
		}
		for other, n := range c.nodes {
			if n.up && !n.cutOff.Load() && n.replica().Status().Ready {
				id = other
			}
		}
		time.Sleep(5 * time.Millisecond) // between two tries
	}
}

// Several goroutines propose at once; nothing is lost, doubled or left waiting (the lineage had a group-commit deadlock).
func TestConcurrentProposalsOverNetwork(t *testing.T) {
	c := startNet(t, 3)
	l := c.leader()
	var wg sync.WaitGroup
	const workers, each = 8, 50
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				c.propose(l, string(rune('a'+w))+string(rune('0'+i%10)))
			}
		})
	}
	wg.Wait()
	for _, n := range c.nodes {
		eventually(t, "every node has applied all of them", func() bool { return len(n.sm.list()) == workers*each })
	}
}
