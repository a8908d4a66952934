package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/group"
)

// quickConsumers is quickGroups for consumer groups as well.
func quickConsumers(c *config.Node) {
	quickGroups(c)
	c.Kafka["group.consumer.heartbeat.interval.ms"] = "100"
	c.Kafka["group.consumer.session.timeout.ms"] = "10000"
}

// consumers are the options of a member by the consumer protocol (KIP-848).
func consumers(opts ...kgo.Opt) []kgo.Opt {
	return append([]kgo.Opt{kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer())}, opts...)
}

// typed waits until a group has a type, a state and so many members, as ListGroups and ConsumerGroupDescribe tell.
func typed(t *testing.T, nodes []*testNode, id, kind string, members int) {
	t.Helper()
	eventually(t, func() error {
		var up []*testNode
		for _, n := range nodes {
			if n.Node != nil {
				up = append(up, n)
			}
		}
		c := client(t, up)
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		list, err := kmsg.NewPtrListGroupsRequest().RequestWith(ctx, c)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(list.Groups, func(g kmsg.ListGroupsResponseGroup) bool {
			return g.Group == id && g.GroupType == kind && g.GroupState == "Stable" && g.ProtocolType == "consumer"
		}) {
			return fmt.Errorf("listed: %+v, want type %s", list.Groups, kind)
		}
		req := kmsg.NewPtrConsumerGroupDescribeRequest()
		req.Groups = []string{id}
		resp, err := req.RequestWith(ctx, c)
		if err != nil {
			return err
		}
		g := resp.Groups[0]
		switch {
		case kind == group.TypeClassic && g.ErrorCode == 69:
			return nil
		case g.ErrorCode != 0 || len(g.Members) != members || g.Epoch != g.AssignmentEpoch:
			return fmt.Errorf("described as %+v, want %d members", g, members)
		}
		return nil
	})
}

func TestConsumerGroupIsAssignedByTheServerAndSurvivesItsCoordinator(t *testing.T) {
	t.Parallel()
	s := newStream(t, quickConsumers)
	nodes := s.nodes
	s.send(30)
	a := join(t, nodes, "app", "t", consumers()...)
	shared(t, 6, a)
	typed(t, nodes, "app", group.TypeConsumer, 1)
	b := join(t, nodes, "app", "t", consumers(kgo.InstanceID("one"))...)
	d := join(t, nodes, "app", "t", consumers()...)
	shared(t, 6, a, b, d)
	typed(t, nodes, "app", group.TypeConsumer, 3)
	s.sendSeen(30, a, b, d)
	s.withoutCoordinator(func() { typed(t, nodes, "app", group.TypeConsumer, 3) }, a, b, d)

	// The topic grows.
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	if _, err := kadm.NewClient(s.c).UpdatePartitions(ctx, 9, "t"); err != nil {
		t.Fatal(err)
	}
	shared(t, 9, a, b, d)

	// A member leaves, another dies without a word.
	d.leave()
	shared(t, 9, a, b)
	typed(t, nodes, "app", group.TypeConsumer, 2)
	s.sendSeen(12, a, b, d)
}

func TestConsumersSubscribeByRegularExpressionOnTheServer(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 1, quickConsumers)
	startAll(nodes)
	c := client(t, nodes)
	createTopics(t, c, 2, 1, "in-a", "out-b")
	m := join(t, nodes, "app", "in-.*", consumers(kgo.ConsumeRegex())...)
	typed(t, nodes, "app", group.TypeConsumer, 1)
	createTopics(t, c, 2, 1, "in-c")
	for _, topic := range []string{"in-a", "in-c", "out-b"} {
		produce(t, c, topic, 0, "of "+topic)
	}
	eventually(t, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.seen["of in-a"] == 0 || m.seen["of in-c"] == 0 {
			return fmt.Errorf("seen: %v", m.seen)
		}
		return nil
	})
	m.mu.Lock()
	if m.seen["of out-b"] != 0 {
		t.Error("a topic that the expression does not match was read")
	}
	m.mu.Unlock()
	req := kmsg.NewPtrConsumerGroupDescribeRequest()
	req.Groups = []string{"app"}
	eventually(t, func() error { // a member that a busy machine has kept from beating joins again
		resp, err := req.RequestWith(testContext(t), c)
		if err != nil || len(resp.Groups[0].Members) != 1 {
			return fmt.Errorf("%+v, %w", resp, err)
		}
		if r := resp.Groups[0].Members[0].SubscribedTopicRegex; r == nil || *r == "" {
			return errors.New("the expression was resolved by the client")
		}
		return nil
	})
}

// TestGroupMovesBetweenProtocolsWithLiveMembers rolls an application from the classic protocol to the consumer protocol and back, member by
// member, while records flow and the coordinator dies.
func TestGroupMovesBetweenProtocolsWithLiveMembers(t *testing.T) {
	t.Parallel()
	for name, balancer := range map[string]kgo.GroupBalancer{"eager": kgo.RangeBalancer(), "cooperative": kgo.CooperativeStickyBalancer()} {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, quickConsumers)
			nodes := s.nodes
			classic := []kgo.Opt{kgo.Balancers(balancer)}
			a, b := join(t, nodes, "app", "t", classic...), join(t, nodes, "app", "t", classic...)
			shared(t, 6, a, b)
			typed(t, nodes, "app", group.TypeClassic, 2)
			s.sendSeen(24, a, b)

			n := join(t, nodes, "app", "t", consumers()...)
			shared(t, 6, a, b, n)
			typed(t, nodes, "app", group.TypeConsumer, 3)
			s.sendSeen(24, a, b, n)

			// With members of both kinds the coordinator dies.
			s.withoutCoordinator(func() { typed(t, nodes, "app", group.TypeConsumer, 3) }, a, b, n)

			a.leave()
			b.leave()
			shared(t, 6, n)
			typed(t, nodes, "app", group.TypeConsumer, 1)
			// And back.
			d := join(t, nodes, "app", "t", classic...)
			shared(t, 6, n, d)
			typed(t, nodes, "app", group.TypeConsumer, 2)
			s.sendSeen(24, a, b, n, d)
			n.leave()
			shared(t, 6, d)
			typed(t, nodes, "app", group.TypeClassic, 1)
			e := join(t, nodes, "app", "t", classic...)
			shared(t, 6, d, e)
			s.sendSeen(24, a, b, n, d, e)
		})
	}
}
