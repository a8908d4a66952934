package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// unregister asks for a node's removal as Kafka's tools do.
func unregister(t *testing.T, c *kgo.Client, node int32) (*kmsg.UnregisterBrokerResponse, error) {
	t.Helper()
	req := kmsg.NewPtrUnregisterBrokerRequest()
	req.BrokerID = node
	resp, err := req.RequestWith(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return resp, kerr.ErrorForCode(resp.ErrorCode)
}

// A node that is gone for good is removed: its partitions are moved away first, its vote on the metadata goes to a node that had
// none, nobody dials it any more, and what is on its disk never comes back.
func TestRemovedNodeGivesItsVoteAway(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 4)
	startAll(nodes)
	t.Cleanup(func() { stopAll(nodes) })
	createOn(t, nodes, "precious", 3, 1, 2)
	load := startProducer(t, nodes[:2], "precious")
	load.more(20)
	gone := nodes[2]
	c := client(t, nodes[:2])
	eventually(t, func() error {
		resp, err := unregister(t, c, 3)
		if err == nil {
			t.Fatalf("a node that runs was removed: %+v", resp)
		}
		if !errors.Is(err, kerr.PolicyViolation) { // an election of the controller, perhaps
			return fmt.Errorf("a node that runs: %w %+v", err, resp)
		}
		return nil
	})
	gone.stop()
	eventually(t, func() error {
		resp, err := unregister(t, c, 3)
		if !errors.Is(err, kerr.PolicyViolation) {
			return fmt.Errorf("a node with replicas: %v", err)
		}
		if msg := *resp.ErrorMessage; msg != "node 3 holds replicas of [precious-0]: move them to other nodes first (chronik reassign)" {
			return fmt.Errorf("not yet noticed that the node has gone: %s", msg)
		}
		return nil
	})
	adm := kadm.NewClient(c)
	var moves kadm.AlterPartitionAssignmentsReq
	moves.Assign("precious", 0, []int32{4, 1, 2})
	eventually(t, func() error {
		res, err := adm.AlterPartitionAssignments(testContext(t), moves)
		return errors.Join(err, res["precious"][0].Err)
	})
	up := []*testNode{nodes[0], nodes[1], nodes[3]}
	eventually(t, func() error { return onNodes(up, "precious", 0, 4, 1, 2) })
	asked := false
	eventually(t, func() error {
		resp, err := unregister(t, c, 3)
		if err != nil && !(asked && errors.Is(err, kerr.BrokerIDNotRegistered)) { // an answer was late
			asked = true
			return fmt.Errorf("%w %+v", err, resp)
		}
		return nil
	})
	eventually(t, func() error {
		if _, err := unregister(t, c, 3); !errors.Is(err, kerr.BrokerIDNotRegistered) {
			return fmt.Errorf("a node that has gone: %v", err)
		}
		return nil
	})
	eventually(t, func() error {
		for _, n := range up {
			if slices.Contains(n.client.Peers(), 3) {
				return fmt.Errorf("node %d still dials node 3", n.cfg.ID())
			}
		}
		q, err := adm.ListTopics(context.Background()) // any request: the cluster serves
		if err != nil || !q.Has("precious") {
			return fmt.Errorf("topics %v: %w", q, err)
		}
		return votersOfMetadata(t, up, 1, 2, 4)
	})
	// Two of the three that vote now are a majority: with node 3 still counted they would be two of four.
	nodes[1].stop()
	createTopics(t, client(t, []*testNode{nodes[0], nodes[3]}), 1, 1, "later")
	nodes[1].start()
	if err := gone.open(); err == nil {
		select {
		case <-gone.Failed():
			wantError(t, gone.Err(), "removed from the cluster", "--data-dir")
		case <-gone.Ready():
			t.Error("a removed node came back with what it had")
		case <-time.After(bound):
			t.Errorf("neither refused nor ready: %v", gone.readiness())
		}
		gone.stop()
	}
	load.verify(up)
}

// votersOfMetadata returns nil once the metadata group is voted on by the replicas of these nodes and no others.
func votersOfMetadata(t *testing.T, nodes []*testNode, want ...int32) error {
	t.Helper()
	l := leaderOf(t, nodes, metadata.MetadataTopic, 0)
	r, _ := l.core.Load().groups.Group(metadata.MetadataGroup)
	got := make(chan []int32, 1)
	r.Progress(func(_ uint64, all []multiraft.Progress, err error) {
		var voters []int32
		for _, p := range all {
			if !p.Learner {
				voters = append(voters, p.Node)
			}
		}
		got <- voters
	})
	voters := <-got
	slices.Sort(voters)
	if !slices.Equal(voters, want) {
		return fmt.Errorf("nodes %v vote on the metadata, want %v", voters, want)
	}
	return nil
}

// The preferred leader gets the leadership back when it is asked for, through any node.
func TestPreferredLeaderIsElected(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 3)
	startAll(nodes)
	t.Cleanup(func() { stopAll(nodes) })
	createOn(t, nodes, "led", 2, 3, 1)
	c := client(t, nodes)
	produce(t, c, "led", 0, "first")
	elect := func() error {
		res, err := kadm.NewClient(c).ElectLeaders(testContext(t), kadm.ElectPreferredReplica, kadm.TopicsSet{"led": {0: {}}})
		if err == nil {
			err = res["led"][0].Err
		}
		return err
	}
	eventually(t, func() error { // all of it again where, on a busy machine, the leadership moves by itself meanwhile
		l := leaderOf(t, nodes, "led", 0)
		if r, ok := l.core.Load().groups.Lookup("led", 0); ok && l.cfg.ID() == 2 {
			r.TransferLeadership(3)
		}
		if node, _ := nodes[0].core.Load().view.Leader(partitionOf(nodes[0], "led", 0).Group); node == 2 {
			return errors.New("node 2 still leads")
		}
		if err := elect(); err != nil {
			return fmt.Errorf("electing: %w", err)
		}
		if l := leaderOf(t, nodes, "led", 0); l.cfg.ID() != 2 {
			return fmt.Errorf("led by node %d", l.cfg.ID())
		}
		if err := elect(); !errors.Is(err, kerr.ElectionNotNeeded) {
			return fmt.Errorf("once more: %v", err)
		}
		return nil
	})
}
