package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/freeport"
	"github.com/chronik-go/chronik/internal/group"
)

// quickGroups makes first rebalances quick, and the topic of groups small.
func quickGroups(c *config.Node) {
	c.Kafka = map[string]string{"group.initial.rebalance.delay.ms": "100", "offsets.topic.num.partitions": "4", "group.min.session.timeout.ms": "1000"}
}

// member is a consumer in a group, and what it has seen.
type member struct {
	client *kgo.Client
	cancel context.CancelFunc
	done   chan struct{}

	mu   sync.Mutex
	owns map[int32]bool
	seen map[string]int
}

// join starts a consumer of a topic. What it reads it commits at once.
func join(t *testing.T, nodes []*testNode, id, topic string, opts ...kgo.Opt) *member {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{cancel: cancel, done: make(chan struct{}), owns: map[int32]bool{}, seen: map[string]int{}}
	change := func(gained bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, p := range parts[topic] {
				if gained {
					m.owns[p] = true
				} else {
					delete(m.owns, p)
				}
			}
		}
	}
	m.client = client(t, nodes, append([]kgo.Opt{
		kgo.ConsumerGroup(id), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(), kgo.SessionTimeout(15 * time.Second),
		kgo.HeartbeatInterval(200 * time.Millisecond), kgo.RebalanceTimeout(10 * time.Second), kgo.FetchMaxWait(100 * time.Millisecond),
		kgo.OnPartitionsAssigned(change(true)), kgo.OnPartitionsRevoked(change(false)), kgo.OnPartitionsLost(change(false)),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}, opts...)...)
	go func() {
		defer close(m.done)
		for ctx.Err() == nil {
			f := m.client.PollFetches(ctx)
			f.EachRecord(func(r *kgo.Record) {
				m.mu.Lock()
				m.seen[string(r.Value)]++
				m.mu.Unlock()
			})
			if ctx.Err() == nil {
				_ = m.client.CommitUncommittedOffsets(ctx) // a rebalance may refuse it: then it is read again
			}
		}
	}()
	t.Cleanup(m.stop)
	return m
}

func (m *member) stop() {
	m.cancel()
	<-m.done
}

func (m *member) owned() []int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.owns))
}

// shared waits until the members own each of n partitions once, and each of them some.
func shared(t *testing.T, n int, members ...*member) {
	t.Helper()
	eventually(t, func() error {
		count := map[int32]int{}
		for _, m := range members {
			owned := m.owned()
			if len(owned) == 0 {
				return errors.New("a member owns nothing")
			}
			for _, p := range owned {
				count[p]++
			}
		}
		for p, c := range count {
			if c != 1 {
				return fmt.Errorf("partition %d has %d owners", p, c)
			}
		}
		if len(count) != n {
			return fmt.Errorf("%d partitions of %d are owned", len(count), n)
		}
		return nil
	})
}

func seenAll(t *testing.T, want int, members ...*member) {
	t.Helper()
	eventually(t, func() error {
		all := map[string]bool{}
		for _, m := range members {
			m.mu.Lock()
			for v := range m.seen {
				all[v] = true
			}
			m.mu.Unlock()
		}
		if len(all) != want {
			return fmt.Errorf("%d records of %d", len(all), want)
		}
		return nil
	})
}

// stream is a topic of six partitions that a test's group consumes, and how many records it has got.
type stream struct {
	t     *testing.T
	nodes []*testNode
	c     *kgo.Client
	sent  int
}

func newStream(t *testing.T, change func(*config.Node)) *stream {
	t.Helper()
	nodes := newTestCluster(t, 3, change)
	startAll(nodes)
	s := &stream{t: t, nodes: nodes, c: client(t, nodes)}
	createTopics(t, s.c, 6, 3, "t")
	return s
}

func (s *stream) send(n int) {
	s.t.Helper()
	for range n {
		produce(s.t, s.c, "t", int32(s.sent%6), fmt.Sprint("v", s.sent))
		s.sent++
	}
}

// sendSeen sends so many records, all of which the members must get.
func (s *stream) sendSeen(n int, members ...*member) {
	s.t.Helper()
	s.send(n)
	seenAll(s.t, s.sent, members...)
}

// withoutCoordinator has the coordinator of "app" die: the group goes on where it was, and check is called before the node is back.
func (s *stream) withoutCoordinator(check func(), members ...*member) {
	s.t.Helper()
	coordinator := leaderOf(s.t, s.nodes, group.Topic, group.PartitionOf("app", 4))
	coordinator.stop()
	s.sendSeen(30, members...)
	shared(s.t, 6, members...)
	check()
	coordinator.start()
}

// leave has a member go in order.
func (m *member) leave() {
	m.stop()
	m.client.Close()
}

func TestConsumerGroupRebalancesAndSurvivesItsCoordinator(t *testing.T) {
	t.Parallel()
	for name, balancer := range map[string]kgo.GroupBalancer{"range": kgo.RangeBalancer(), "cooperative": kgo.CooperativeStickyBalancer()} {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, quickGroups)
			nodes := s.nodes
			s.send(30)
			a := join(t, nodes, "app", "t", kgo.Balancers(balancer))
			shared(t, 6, a)
			b := join(t, nodes, "app", "t", kgo.Balancers(balancer))
			shared(t, 6, a, b)
			s.sendSeen(30, a, b)

			lag := func() error {
				// A client of its own each time: franz-go's clings to a coordinator that it can't reach.
				fresh := client(t, slices.DeleteFunc(slices.Clone(nodes), func(n *testNode) bool { return n.Node == nil }))
				defer fresh.Close()
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				l, err := kadm.NewClient(fresh).Lag(ctx, "app")
				if err != nil {
					return err
				}
				if d := l["app"]; d.Error() != nil || d.Lag.Total() != 0 || d.State != "Stable" {
					return fmt.Errorf("lag %d, state %s, %v", d.Lag.Total(), d.State, d.Error())
				}
				return nil
			}
			eventually(t, lag)

			s.withoutCoordinator(func() { eventually(t, lag) }, a, b)

			// A member goes; the other takes over.
			b.leave()
			shared(t, 6, a)
			s.sendSeen(12, a, b)
		})
	}
}

func TestStaticMemberComesBackToItsPartitions(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 1, quickGroups)
	startAll(nodes)
	c := client(t, nodes)
	createTopics(t, c, 4, 1, "t")
	static := func(id string) []kgo.Opt { // it comes back before its session is over, also on a slow machine
		return []kgo.Opt{kgo.InstanceID(id), kgo.Balancers(kgo.RangeBalancer()), kgo.SessionTimeout(time.Minute)}
	}
	a := join(t, nodes, "app", "t", static("one")...)
	b := join(t, nodes, "app", "t", static("two")...)
	shared(t, 4, a, b)
	before := b.owned()
	adm := kadm.NewClient(c)
	stable := func() {
		t.Helper()
		eventually(t, func() error {
			d, err := adm.DescribeGroups(testContext(t), "app")
			if err != nil {
				return err
			}
			if g := d["app"]; g.State != "Stable" || len(g.Members) != 2 {
				return fmt.Errorf("%+v", g)
			}
			return nil
		})
	}
	stable()
	b.stop()
	b.client.Close() // a static member does not leave
	b = join(t, nodes, "app", "t", static("two")...)
	shared(t, 4, a, b)
	if after := b.owned(); !slices.Equal(before, after) {
		t.Errorf("partitions %v before, %v after", before, after)
	}
	stable()
}

func TestOffsetsTopic(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 3)
	startAll(nodes)
	c := client(t, nodes)
	createTopics(t, c, 1, 3, "t")
	adm := kadm.NewClient(c)
	offsets := kadm.Offsets{}
	offsets.AddOffset("t", 0, 7, -1)
	eventually(t, func() error {
		r, err := adm.CommitOffsets(testContext(t), "admin", offsets)
		if err != nil {
			return err
		}
		return r.Error()
	})
	for _, n := range nodes { // any of them may be asked
		until(t, "every node knows of the topic", func() bool { return n.image().Topics[group.Topic] != nil })
	}
	topic := nodes[0].image().Topics[group.Topic]
	if topic == nil || !topic.Internal || len(topic.Partitions) != 50 || len(topic.Partitions[0].Replicas) != 3 || topic.Configs["cleanup.policy"] != "compact" {
		t.Fatalf("%+v", topic)
	}
	if l, err := adm.ListTopicsWithInternal(testContext(t), group.Topic); err != nil || !l[group.Topic].IsInternal {
		t.Errorf("not internal: %+v, %v", l, err)
	}
	if r, err := adm.DeleteTopics(testContext(t), group.Topic); err != nil || !errors.Is(r[group.Topic].Err, kerr.InvalidTopicException) {
		t.Errorf("deleting it: %+v, %v", r, err)
	}
	if err := c.ProduceSync(testContext(t), &kgo.Record{Topic: group.Topic, Value: []byte("x")}).FirstErr(); !errors.Is(err, kerr.InvalidTopicException) {
		t.Errorf("producing to it: %v", err)
	}
	// Offsets of a topic go with the topic.
	if r, err := adm.DeleteTopics(testContext(t), "t"); err != nil || r["t"].Err != nil {
		t.Fatalf("%+v, %v", r, err)
	}
	eventually(t, func() error {
		f, err := adm.FetchOffsets(testContext(t), "admin")
		if err != nil || len(f) != 0 {
			return fmt.Errorf("%+v, %v", f, err)
		}
		return nil
	})
}

// Behind one address everything goes to one node, whichever coordinates.
func TestGroupsBehindOneAddress(t *testing.T) {
	t.Parallel()
	ports, err := freeport.Ports(3)
	if err != nil {
		t.Fatal(err)
	}
	nodes := newTestCluster(t, 3, quickGroups, func(c *config.Node) {
		c.OneAddress, c.KafkaAddr = true, fmt.Sprintf("127.0.0.1:%d", ports[c.NodeID-1])
	})
	startAll(nodes)
	only := nodes[:1]
	c := client(t, only, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	createTopics(t, c, 4, 3, "t")
	for i := range 20 {
		produce(t, c, "t", int32(i%4), fmt.Sprint("v", i))
	}
	var members []*member
	ids := []string{"a", "b", "c", "d", "e"}
	coordinators := map[int32]bool{}
	for _, id := range ids {
		members = append(members, join(t, only, id, "t"))
		coordinators[group.PartitionOf(id, 4)] = true
	}
	second := join(t, only, "a", "t")
	shared(t, 4, members[0], second)
	for _, m := range members[1:] {
		shared(t, 4, m)
		seenAll(t, 20, m)
	}
	adm := kadm.NewClient(c)
	ctx := longContext(t)
	// A coordinator may move meanwhile, on a busy machine, and a member that was kept from beating joins again.
	eventually(t, func() error {
		list, err := adm.ListGroups(ctx)
		if err != nil || len(list) != len(ids) {
			return fmt.Errorf("%v, %w", list, err)
		}
		described, err := adm.DescribeGroups(ctx, ids...)
		if err != nil || len(described) != len(ids) || described["a"].State != "Stable" || len(described["a"].Members) != 2 || described["a"].Members[0].ClientHost != "/127.0.0.1" {
			return fmt.Errorf("%+v, %w", described, err)
		}
		return nil
	})
	eventually(t, func() error {
		for _, id := range ids {
			f, err := adm.FetchOffsets(ctx, id)
			if err != nil || len(f["t"]) != 4 {
				return fmt.Errorf("%s: %v, %v", id, f, err)
			}
		}
		return nil
	})
	members[4].stop()
	members[4].client.Close()
	asked := false
	eventually(t, func() error {
		r, err := adm.DeleteGroups(ctx, "e")
		if err == nil {
			err = r["e"].Err
		}
		if asked && errors.Is(err, kerr.GroupIDNotFound) { // an answer was late
			return nil
		}
		asked = true
		return err
	})
	req := kmsg.NewPtrFindCoordinatorRequest()
	req.CoordinatorKeys = ids
	eventually(t, func() error {
		resp, err := req.RequestWith(ctx, c)
		if err != nil {
			return err
		}
		for _, r := range resp.Coordinators {
			if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
				return fmt.Errorf("finding the coordinator of %s: %w", r.Key, err)
			}
			if r.NodeID != 1 {
				t.Fatalf("%s is at node %d", r.Key, r.NodeID)
			}
		}
		return nil
	})
}

// However long an operator wants offsets to be kept, or the next look at them to be put off, time does not run over: with an overflow all
// offsets would expire at once, or the coordinator would look for ever.
func TestTimesOfGroupsHaveAnEnd(t *testing.T) {
	t.Parallel()
	n, _ := alone(t, map[string]string{"offsets.retention.minutes": "2147483647", "offsets.retention.check.interval.ms": "9223372036854775807"})
	s := n.core.Load().groupSettings()
	for what, d := range map[string]time.Duration{"retention": s.OffsetsRetention, "interval": s.RetentionInterval} {
		if d < 50*365*24*time.Hour || d+50*365*24*time.Hour < d {
			t.Errorf("%s: %v", what, d)
		}
	}
}
