package node

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func set(name, value string) kadm.AlterConfig {
	return kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: &value}
}

// alter changes configs of all brokers, or of a topic, as any client does, and waits until every node's image has the change.
func alter(t *testing.T, nodes []*testNode, topic string, ops ...kadm.AlterConfig) {
	t.Helper()
	admin := kadm.NewClient(client(t, nodes))
	var err error
	var res kadm.AlterConfigsResponses
	if topic == "" {
		res, err = admin.AlterBrokerConfigs(testContext(t), ops)
	} else {
		res, err = admin.AlterTopicConfigs(testContext(t), ops, topic)
	}
	if err == nil {
		err = res[0].Err
	}
	if err != nil {
		t.Fatalf("altering configs: %v", err)
	}
	has := func(n *testNode) error {
		img := n.image()
		in := img.BrokerConfigs[-1]
		if topic != "" {
			in = img.Topics[topic].Configs
		}
		for _, op := range ops {
			if in[op.Name] != *op.Value {
				return fmt.Errorf("node %d has %s=%q, want %q", n.cfg.ID(), op.Name, in[op.Name], *op.Value)
			}
		}
		return nil
	}
	for _, n := range nodes {
		eventually(t, func() error { return has(n) })
	}
}

// throttleMoves throttles whatever moves of a topic, on the nodes that send and on those that receive; an empty rate: not there.
func throttleMoves(t *testing.T, nodes []*testNode, topic, leader, follower string) {
	t.Helper()
	var rates, replicas []kadm.AlterConfig
	if leader != "" {
		rates = append(rates, set("leader.replication.throttled.rate", leader))
		replicas = append(replicas, set("leader.replication.throttled.replicas", "*"))
	}
	if follower != "" {
		rates = append(rates, set("follower.replication.throttled.rate", follower))
		replicas = append(replicas, set("follower.replication.throttled.replicas", "*"))
	}
	alter(t, nodes, "", rates...)
	alter(t, nodes, topic, replicas...)
}

// moving returns the nodes that a partition is being moved to, as a client sees it.
func moving(t *testing.T, admin *kadm.Client, topic string) []int32 {
	t.Helper()
	var s kadm.TopicsSet
	s.Add(topic, 0)
	all, err := admin.ListPartitionReassignments(testContext(t), s)
	if err != nil {
		t.Fatal(err)
	}
	return all[topic][0].AddingReplicas
}

// A throttled move takes the bytes a second that it is given, on the side that is throttled; writes do not wait for it; and with
// the rate raised it ends.
func TestThrottledMove(t *testing.T) {
	for _, side := range []string{"leader", "follower"} {
		t.Run(side, func(t *testing.T) { testThrottledMove(t, side) })
	}
}

// Moves that a throttle holds up, more than go at a time without, keep no other from its end.
func TestThrottledMovesHoldNobodyUp(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 3)
	startAll(nodes)
	t.Cleanup(func() { stopAll(nodes) })
	c := client(t, nodes)
	admin := kadm.NewClient(c)
	alter(t, nodes, "", set("leader.replication.throttled.rate", "0"), set("follower.replication.throttled.rate", "0"))
	for i := range maxMoves + 1 {
		topic := fmt.Sprint("slow-", i)
		createOn(t, nodes, topic, 1)
		produce(t, c, topic, 0, "x")
		alter(t, nodes, topic, set("leader.replication.throttled.replicas", "*"), set("follower.replication.throttled.replicas", "*"))
		reassign(t, nodes[0], topic, 0, 2)
	}
	createOn(t, nodes, "quick", 1)
	produce(t, c, "quick", 0, "x")
	reassign(t, nodes[0], "quick", 0, 3)
	eventually(t, func() error { return onNodes(nodes, "quick", 0, 3) })
	for i := range maxMoves + 1 {
		if to := moving(t, admin, fmt.Sprint("slow-", i)); !slices.Equal(to, []int32{2}) {
			t.Errorf("at a rate of nothing slow-%d has moved: to %v", i, to)
		}
	}
}

func testThrottledMove(t *testing.T, side string) {
	const (
		rate    = 128 << 10
		records = 20
		size    = 1 << 20 // what it is moved: 160 s at the rate
	)
	nodes := newTestCluster(t, 3, steady) // one node sends, or one receives: another leader's budget would be another
	startAll(nodes)
	t.Cleanup(func() { stopAll(nodes) })
	createOn(t, nodes, "moving", 1, 2)
	c := client(t, nodes, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(size), kgo.ClientID("filler"))
	rng := rand.NewChaCha8([32]byte{1})
	var want []string
	write := func(n, bytes int) {
		for range n {
			v := make([]byte, bytes)
			_, _ = rng.Read(v)
			produce(t, c, "moving", 0, string(v))
			want = append(want, string(v))
		}
	}
	write(records, size-1024)

	leader, follower := strconv.Itoa(rate), strconv.Itoa(rate)
	switch side {
	case "leader":
		follower = ""
	case "follower":
		leader = ""
	}
	throttleMoves(t, nodes, "moving", leader, follower)
	admin := kadm.NewClient(c)
	begun := time.Now()
	reassign(t, nodes[1], "moving", 0, 3, 2)
	for _, n := range nodes { // any of them may be asked
		until(t, "every node knows of the move", func() bool { return partitionOf(n, "moving", 0).Change != nil })
	}
	eventually(t, func() error {
		if to := moving(t, admin, "moving"); !slices.Equal(to, []int32{3}) {
			return fmt.Errorf("moving to %v", to)
		}
		return nil
	})

	// spent is what has gone through the throttle, on all nodes, and how long replicas waited for it.
	spent := func() (bytes int64, waited time.Duration) {
		for _, n := range nodes {
			l := n.core.Load().throttle.Leader
			if side == "follower" {
				l = n.core.Load().throttle.Follower
			}
			b, w := l.Spent()
			bytes, waited = bytes+b, waited+w
		}
		return bytes, waited
	}
	obeys := func() {
		t.Helper()
		if to := moving(t, admin, "moving"); !slices.Equal(to, []int32{3}) {
			t.Fatalf("the move is not under way any more: to %v", to)
		}
		bytes, _ := spent()
		// What was counted was counted before the time was read: that can only be too lenient. One node sends, or one receives, with
		// a second's worth at the beginning and a piece on credit: a batch, however small the rate is.
		if most := int64(rate*(time.Since(begun).Seconds()+1)) + size + 4096; bytes > most {
			t.Fatalf("%d bytes have moved, at most %d should have", bytes, most)
		}
	}
	eventually(t, func() error {
		obeys()
		if bytes, waited := spent(); bytes > 0 && waited > time.Second {
			return nil
		}
		return fmt.Errorf("nothing has waited for the throttle yet")
	})
	// Writes go on, and what they add comes to the new replica out of the leader's log, throttled as well.
	write(4, size-1024)
	obeys()

	fast := strconv.Itoa(64 << 20)
	if leader != "" {
		leader = fast
	}
	if follower != "" {
		follower = fast
	}
	throttleMoves(t, nodes, "moving", leader, follower)
	eventually(t, func() error { return onNodes(nodes, "moving", 0, 3, 2) })
	if bytes, _ := spent(); bytes < int64(len(want)*(size-1024)) {
		t.Errorf("only %d bytes were counted of %d", bytes, len(want)*(size-1024))
	}
	if got := consume(t, nodes, "moving", 0, len(want)); !slices.Equal(got, want) {
		t.Error("other records than were written")
	}
	m, err := nodes[2].reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, f := range m {
		fmt.Fprintln(&b, f)
	}
	for _, name := range []string{"chronik_replication_throttled_bytes_total", "chronik_replication_throttled_wait_seconds_total"} {
		if !bytes.Contains(b.Bytes(), []byte(name)) {
			t.Errorf("no metric %s", name)
		}
	}
}
