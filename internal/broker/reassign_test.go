package broker

import (
	"context"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
)

// movingCluster is an adminCluster whose controller notes what it is asked for, and refuses topic "refused".
type movingCluster struct {
	*adminCluster
	asked  []controller.Reassignment
	keep   bool
	remove error
}

func (c *movingCluster) Reassign(_ context.Context, all []controller.Reassignment, keepFactor bool) []controller.ReassignResult {
	c.asked, c.keep = all, keepFactor
	out := make([]controller.ReassignResult, len(all))
	for i, r := range all {
		if r.Topic == "refused" {
			out[i].Err = &controller.Error{Kind: controller.ErrNoReassignment, Msg: "none"}
		}
	}
	return out
}

func (c *movingCluster) RemoveNode(context.Context, int32) error { return c.remove }

func (c *adminCluster) Reassign(context.Context, []controller.Reassignment, bool) []controller.ReassignResult {
	return nil
}

func (c *adminCluster) RemoveNode(context.Context, int32) error { return nil }

func newMoving(t *testing.T) (*movingCluster, *Broker) {
	c := &movingCluster{adminCluster: newAdminCluster()}
	b := c.broker(t)
	b.cfg.Controller = c
	return c, b
}

func TestAlterPartitionReassignments(t *testing.T) {
	everyVersion(t, 45, func(t *testing.T, v int16) {
		c, b := newMoving(t)
		req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
		req.TimeoutMillis, req.AllowReplicationFactorChange = 3_600_000, false
		req.Topics = []kmsg.AlterPartitionAssignmentsRequestTopic{
			{Topic: "a", Partitions: []kmsg.AlterPartitionAssignmentsRequestTopicPartition{
				{Partition: 0, Replicas: []int32{2, 3}}, {Partition: 1, Replicas: []int32{}}, {Partition: 2, Replicas: []int32{1, -2}}, {Partition: 3},
			}},
			{Topic: "refused", Partitions: []kmsg.AlterPartitionAssignmentsRequestTopicPartition{{Partition: 4}}},
		}
		resp := callAdmin[*kmsg.AlterPartitionAssignmentsResponse](t, b, v, req)
		want := [][]int16{{0, kerr.InvalidReplicaAssignment.Code, kerr.InvalidReplicaAssignment.Code, 0}, {kerr.NoReassignmentInProgress.Code}}
		for i, topic := range resp.Topics {
			for j, p := range topic.Partitions {
				if p.ErrorCode != want[i][j] || (p.ErrorMessage == nil) != (p.ErrorCode == 0) || p.Partition != req.Topics[i].Partitions[j].Partition {
					t.Errorf("%s: %+v, want code %d", topic.Topic, p, want[i][j])
				}
			}
		}
		if len(c.asked) != 3 || !slices.Equal(c.asked[0].Nodes, []int32{2, 3}) || c.asked[0].Cancel || !c.asked[1].Cancel || !c.asked[2].Cancel {
			t.Errorf("the controller was asked for %+v", c.asked)
		}
		if c.keep != (v >= 1) {
			t.Errorf("the number of replicas may change: %v", !c.keep)
		}
	})
}

// moveTopic lists partition 1 of a topic as moving from nodes 1 and 2 to 2 and 3, and partition 2 as having a replica replaced.
func moveTopic(c *movingCluster) {
	c.edit(func(img *metadata.Image) {
		topic := c.addTopic(img, "a", 3, 1, 2)
		topic.Partitions[1].Change = &metadata.Change{Adding: []metadata.Replica{{ID: 30, Node: 3}}, Target: []uint64{2, 30}}
		topic.Partitions[2].Change = &metadata.Change{Adding: []metadata.Replica{{ID: 20, Node: 2}}, Target: []uint64{1, 20}, Lost: []uint64{2}}
		c.addTopic(img, "still", 1, 1, 2)
	})
}

func TestListPartitionReassignments(t *testing.T) {
	c, b := newMoving(t)
	moveTopic(c)
	req := kmsg.NewPtrListPartitionReassignmentsRequest()
	for range 2 {
		resp := callAdmin[*kmsg.ListPartitionReassignmentsResponse](t, b, 0, req)
		if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
			t.Fatalf("%+v", resp.Topics)
		}
		p := resp.Topics[0].Partitions[0]
		if p.Partition != 1 || !slices.Equal(p.Replicas, []int32{2, 3, 1}) || !slices.Equal(p.AddingReplicas, []int32{3}) || !slices.Equal(p.RemovingReplicas, []int32{1}) {
			t.Fatalf("%+v", p)
		}
		req.Topics = []kmsg.ListPartitionReassignmentsRequestTopic{{Topic: "a", Partitions: []int32{0, 1, 2, 9}}, {Topic: "none", Partitions: []int32{0}}}
	}
	req.Topics = []kmsg.ListPartitionReassignmentsRequestTopic{{Topic: "a", Partitions: []int32{0, 2}}, {Topic: "still", Partitions: []int32{0}}}
	if resp := callAdmin[*kmsg.ListPartitionReassignmentsResponse](t, b, 0, req); len(resp.Topics) != 0 {
		t.Errorf("%+v", resp.Topics)
	}
}

// During a move the replicas that come are listed and not in sync, and those that go are still there.
func TestMetadataOfAMovingPartition(t *testing.T) {
	c, b := newMoving(t)
	moveTopic(c)
	img := c.Image()
	resp := &kmsg.MetadataResponse{Topics: []kmsg.MetadataResponseTopic{{Partitions: make([]kmsg.MetadataResponseTopicPartition, 3)}}}
	for i, p := range img.Topics["a"].Partitions {
		b.metadataPartition(img, &RequestContext{Version: 12}, p, &resp.Topics[0].Partitions[i])
	}
	for i, want := range [][2][]int32{{{1, 2}, {1, 2}}, {{2, 3, 1}, {2, 1}}, {{1, 2}, {1, 2}}} {
		if p := resp.Topics[0].Partitions[i]; !slices.Equal(p.Replicas, want[0]) || !slices.Equal(p.ISR, want[1]) {
			t.Errorf("partition %d: replicas %v, in sync %v, want %v", i, p.Replicas, p.ISR, want)
		}
	}
}

func TestElectLeaders(t *testing.T) {
	everyVersion(t, 43, func(t *testing.T, v int16) {
		c, b := newMoving(t)
		c.edit(func(img *metadata.Image) {
			c.addTopic(img, "a", 5, 1, 2)
			c.addTopic(img, "b", 1, 3, 1)
		})
		img := c.Image()
		group := func(i int) uint64 { return img.Topics["a"].Partitions[i].Group }
		c.mu.Lock()
		c.leaders[group(1)] = 2 // another node's: it can't be asked here
		c.leaders[img.Topics["b"].Partitions[0].Group] = 1
		delete(c.leaders, group(3))
		c.mu.Unlock()
		b.cfg.TransferLeadership = func(g uint64, node int32) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.leaders[g] = node
		}
		req := kmsg.NewPtrElectLeadersRequest()
		req.TimeoutMillis = 3_600_000
		req.Topics = []kmsg.ElectLeadersRequestTopic{{Topic: "a", Partitions: []int32{0, 1, 3, 9}}, {Topic: "b", Partitions: []int32{0}}}
		codes := func() (out []int16) {
			for _, topic := range callAdmin[*kmsg.ElectLeadersResponse](t, b, v, req).Topics {
				for _, p := range topic.Partitions {
					out = append(out, p.ErrorCode)
				}
			}
			return out
		}
		want := []int16{84, 80, 80, 3, 0}
		if got := codes(); !slices.Equal(got, want) {
			t.Errorf("codes %v, want %v", got, want)
		}
		if n, _ := c.Leader(img.Topics["b"].Partitions[0].Group); n != 3 {
			t.Errorf("b is led by %d", n)
		}
		req.Topics = nil // all: those without need are left out
		if got := codes(); !slices.Equal(got, []int16{80, 80}) {
			t.Errorf("of all: codes %v", got)
		}
		c.mu.Lock()
		c.dead[1] = true
		c.mu.Unlock()
		req.Topics = []kmsg.ElectLeadersRequestTopic{{Topic: "a", Partitions: []int32{1}}}
		if got := codes(); !slices.Equal(got, []int16{80}) {
			t.Errorf("of one whose preferred leader is down: %v", got)
		}
		if v == 0 {
			return
		}
		req.ElectionType = 9
		req.Topics = []kmsg.ElectLeadersRequestTopic{{Topic: "a", Partitions: []int32{0}}, {Topic: "none", Partitions: []int32{0}}}
		if got := codes(); !slices.Equal(got, []int16{42, 42}) {
			t.Errorf("of a kind that does not exist: %v", got)
		}
		req.Topics = nil
		if resp := callAdmin[*kmsg.ElectLeadersResponse](t, b, v, req); resp.ErrorCode != 42 || len(resp.Topics) != 0 {
			t.Errorf("of a kind that does not exist, of all: %+v", resp)
		}
		req.ElectionType = 1
		req.Topics = []kmsg.ElectLeadersRequestTopic{{Topic: "a", Partitions: []int32{1, 3}}}
		if got := codes(); !slices.Equal(got, []int16{84, 83}) {
			t.Errorf("unclean: %v", got)
		}
	})
}

func TestUnregisterBroker(t *testing.T) {
	c, b := newMoving(t)
	req := kmsg.NewPtrUnregisterBrokerRequest()
	req.BrokerID = 3
	for err, want := range map[error]int16{
		nil: 0,
		&controller.Error{Kind: controller.ErrUnknownNode, Msg: "node 3 is not registered"}: kerr.BrokerIDNotRegistered.Code,
		&controller.Error{Kind: controller.ErrNodeInUse, Msg: "node 3 holds a-0"}:           kerr.PolicyViolation.Code,
	} {
		c.remove = err
		resp := callAdmin[*kmsg.UnregisterBrokerResponse](t, b, 0, req)
		if resp.ErrorCode != want || err != nil && (resp.ErrorMessage == nil || *resp.ErrorMessage != err.Error()) {
			t.Errorf("%v: %+v", err, resp)
		}
	}
}
