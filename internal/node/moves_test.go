package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/wal"
)

// reassign moves a partition to nodes, by any node of the cluster. A node that is taken for dead for a moment, on a busy machine, is no target.
func reassign(t *testing.T, n *testNode, topic string, partition int32, nodes ...int32) {
	t.Helper()
	eventually(t, func() error {
		res := n.core.Load().controller.Reassign(testContext(t), []controller.Reassignment{{Topic: topic, Partition: partition, Nodes: nodes}}, false)
		if res[0].Err != nil {
			return fmt.Errorf("moving %s-%d to %v: %w", topic, partition, nodes, res[0].Err)
		}
		return nil
	})
}

// partitionOf is a partition as a node's image has it.
func partitionOf(n *testNode, topic string, index int32) *metadata.Partition {
	t := n.image().Topics[topic]
	if t == nil {
		return nil
	}
	return t.Partitions[index]
}

// onNodes returns nil once every running node's image has a partition at rest on these nodes, those have opened it, and no other
// has it.
func onNodes(nodes []*testNode, topic string, index int32, want ...int32) error {
	for _, n := range nodes {
		if n.Node == nil || n.core.Load() == nil {
			continue
		}
		p := partitionOf(n, topic, index)
		switch {
		case p == nil || p.Change != nil:
			return fmt.Errorf("%s-%d is still moving, as node %d sees it", topic, index, n.cfg.ID())
		case !slices.Equal(p.Nodes(), want):
			return fmt.Errorf("%s-%d is on %v, want %v, as node %d sees it", topic, index, p.Nodes(), want, n.cfg.ID())
		}
		held, ok := n.core.Load().manager.Lookup(topic, index)
		if ok != slices.Contains(want, n.cfg.ID()) {
			return fmt.Errorf("node %d has a replica of %s-%d: %v", n.cfg.ID(), topic, index, ok)
		}
		if rep, _ := p.Held(n.cfg.ID(), n.core.Load().env.Identity.Dir); ok && held.ReplicaID() != rep.ID {
			return fmt.Errorf("node %d has replica %d of %s-%d, want %d", n.cfg.ID(), held.ReplicaID(), topic, index, rep.ID)
		}
	}
	return nil
}

// producer writes numbered records until it is stopped, and knows which were acknowledged.
type producer struct {
	t       *testing.T
	client  *kgo.Client
	topic   string
	stop    context.CancelFunc
	ctx     context.Context
	wg      sync.WaitGroup
	mu      sync.Mutex
	acked   []string
	unknown []error
}

func startProducer(t *testing.T, nodes []*testNode, topic string) *producer {
	p := &producer{t: t, topic: topic, client: client(t, nodes, kgo.ProducerLinger(0))}
	p.ctx, p.stop = context.WithCancel(t.Context())
	p.wg.Go(func() {
		for i := 0; p.ctx.Err() == nil; i++ {
			v := strconv.Itoa(i)
			err := p.client.ProduceSync(testContext(t), &kgo.Record{Topic: topic, Value: []byte(v)}).FirstErr()
			p.mu.Lock()
			if err == nil {
				p.acked = append(p.acked, v)
			} else {
				p.unknown = append(p.unknown, fmt.Errorf("record %s: %w", v, err))
			}
			p.mu.Unlock()
		}
	})
	t.Cleanup(p.stop)
	return p
}

func (p *producer) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.acked)
}

// more waits until n more records have been acknowledged.
func (p *producer) more(n int) {
	p.t.Helper()
	from := p.count()
	eventually(p.t, func() error {
		if have := p.count(); have < from+n {
			return fmt.Errorf("%d records acknowledged since, want %d", have-from, n)
		}
		return nil
	})
}

// verify ends the load and reads everything back: every acknowledged record once, in order.
func (p *producer) verify(nodes []*testNode) {
	p.t.Helper()
	p.stop()
	p.wg.Wait()
	if len(p.unknown) > 0 {
		p.t.Fatalf("%d records were not acknowledged: %v", len(p.unknown), errors.Join(p.unknown...))
	}
	got := consume(p.t, nodes, p.topic, 0, len(p.acked))
	if !slices.Equal(got, p.acked) {
		p.t.Errorf("read back: %d records of %d, or in another order", len(got), len(p.acked))
	}
}

// movable is a cluster of n nodes with a topic of one partition on the first two, under load. Small log files, so that a
// replica added later finds the beginning gone from the log.
func movable(t *testing.T, n int) ([]*testNode, *producer) {
	t.Helper()
	nodes := newTestCluster(t, n)
	startAll(nodes)
	t.Cleanup(func() { stopAll(nodes) })
	createOn(t, nodes, "moving", 1, 2)
	p := startProducer(t, nodes, "moving")
	p.more(50)
	return nodes, p
}

func createOn(t *testing.T, nodes []*testNode, topic string, on ...int32) {
	t.Helper()
	asked := false
	eventually(t, func() error { // as in reassign
		res := nodes[0].core.Load().controller.CreateTopics(testContext(t), []controller.NewTopic{{Name: topic, Partitions: -1, ReplicationFactor: -1, Assignments: [][]int32{on}}}, false)
		if asked && errors.Is(res[0].Err, controller.ErrTopicExists) {
			return nil
		}
		asked = true
		return res[0].Err
	})
	eventually(t, func() error { return allLed(nodes, topic) })
}

// A partition moves to nodes that had nothing of it, while records are written: all of them arrive once, in order, and the old
// replicas are gone from their nodes. Then it moves back to where it was, under replica ids that nobody had.
func TestPartitionMovesUnderLoad(t *testing.T) {
	nodes, load := movable(t, 3)
	before := partitionOf(nodes[0], "moving", 0)
	reassign(t, nodes[2], "moving", 0, 3)
	eventually(t, func() error { return onNodes(nodes, "moving", 0, 3) })
	load.more(50)
	reassign(t, nodes[0], "moving", 0, 1, 2)
	eventually(t, func() error { return onNodes(nodes, "moving", 0, 1, 2) })
	load.more(50)
	after := partitionOf(nodes[0], "moving", 0)
	if after.Group != before.Group {
		t.Errorf("another group: %d, was %d", after.Group, before.Group)
	}
	for i, r := range after.Replicas {
		if r.ID <= before.Replicas[1].ID || r.Log == 0 {
			t.Errorf("replica %d of node %d came back as %+v", before.Replicas[i].ID, r.Node, r)
		}
	}
	eventually(t, func() error {
		for _, n := range nodes {
			for _, log := range n.wal.Groups() {
				if log != metadata.MetadataGroup && !slices.ContainsFunc(after.Replicas, func(r metadata.Replica) bool { return r.Log == log && r.Node == n.cfg.ID() }) {
					return fmt.Errorf("node %d still has log %d", n.cfg.ID(), log)
				}
			}
			names, _ := n.fs.List(n.cfg.DataDir + "/topics/moving")
			if len(names) > 1 || len(names) == 1 && n.cfg.ID() == 3 {
				return fmt.Errorf("node %d still has %v", n.cfg.ID(), names)
			}
		}
		return nil
	})
	load.verify(nodes)
}

// Whoever dies in the middle of a move, it ends: the partition's leader, the controller, the node that it moves to.
func TestMoveSurvivesRestarts(t *testing.T) {
	for _, who := range []string{"leader", "controller", "target"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			nodes := newTestCluster(t, 4)
			startAll(nodes)
			t.Cleanup(func() { stopAll(nodes) })
			createOn(t, nodes, "moving", 1, 2, 3)
			load := startProducer(t, nodes, "moving")
			load.more(50)
			reassign(t, nodes[0], "moving", 0, 4, 3, 2)
			victim := nodes[3]
			switch who {
			case "leader":
				victim = leaderOf(t, nodes, "moving", 0)
			case "controller":
				victim = leaderOf(t, nodes, metadata.MetadataTopic, 0)
			}
			victim.stop()
			if who != "target" {
				load.more(20)
			}
			victim.start()
			eventually(t, func() error { return onNodes(nodes, "moving", 0, 4, 3, 2) })
			load.more(20)
			load.verify(nodes)
		})
	}
}

// A move to a node that is not there waits, with nothing given up, and can be taken back. A throttle that lets nothing pass sees to
// it that the move is not through before its node goes.
func TestMoveIsCancelled(t *testing.T) {
	nodes, load := movable(t, 3)
	throttleMoves(t, nodes, "moving", "0", "0")
	before := partitionOf(nodes[0], "moving", 0)
	ctl := nodes[0].core.Load().controller
	cancel := func() error {
		return ctl.Reassign(testContext(t), []controller.Reassignment{{Topic: "moving", Cancel: true}}, false)[0].Err
	}
	if err := cancel(); !errors.Is(err, controller.ErrNoReassignment) {
		t.Fatalf("cancelling what is not under way: %v", err)
	}
	reassign(t, nodes[0], "moving", 0, 3, 2)
	nodes[2].stop()
	load.more(20)
	asked := false
	eventually(t, func() error {
		err := cancel()
		if asked && errors.Is(err, controller.ErrNoReassignment) { // an answer was late
			return nil
		}
		asked = true
		return err
	})
	eventually(t, func() error { return onNodes(nodes, "moving", 0, 1, 2) })
	if p := partitionOf(nodes[0], "moving", 0); !slices.Equal(p.Replicas, before.Replicas) {
		t.Errorf("replicas %v, were %v", p.Replicas, before.Replicas)
	}
	load.more(20)
	nodes[2].start()
	eventually(t, func() error { return onNodes(nodes, "moving", 0, 1, 2) })
	load.verify(nodes)
}

// A replica whose log is damaged is replaced by a new one on the same node, without anybody being asked, and comes to hold what
// the others do.
func TestDamagedReplicaIsReplaced(t *testing.T) {
	nodes := newTestCluster(t, 3)
	startAll(nodes)
	t.Cleanup(func() { stopAll(nodes) })
	createOn(t, nodes, "precious", 1, 2, 3)
	load := startProducer(t, nodes, "precious")
	load.more(100)
	before := partitionOf(nodes[0], "precious", 0)
	victim := nodes[2]
	victim.stop()
	victim.spoilLog(t, before.Group, wal.KindCreate, wal.KindCheckpoint)
	load.more(20)
	victim.start()
	eventually(t, func() error {
		p := partitionOf(nodes[0], "precious", 0)
		if p.Replicas[2].ID == before.Replicas[2].ID {
			return fmt.Errorf("replica %d is still there: %+v", p.Replicas[2].ID, p.Change)
		}
		return onNodes(nodes, "precious", 0, 1, 2, 3)
	})
	load.more(20)
	load.verify(nodes)
	eventually(t, func() error {
		var ends []int64
		for _, n := range nodes {
			p, ok := n.core.Load().manager.Lookup("precious", 0)
			if !ok {
				return fmt.Errorf("node %d has no replica", n.cfg.ID())
			}
			ends = append(ends, p.HighWatermark())
		}
		if ends[0] != ends[1] || ends[0] != ends[2] || ends[0] < int64(len(load.acked)) {
			return fmt.Errorf("the replicas end at %v", ends)
		}
		return nil
	})
}
