package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// The nodes named in --peers form one cluster, whoever starts first and however late the last one comes.
func TestBootstrapFormsOneCluster(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 1))
			nodes := newTestCluster(t, 3)
			order := rng.Perm(3)
			for i, p := range order {
				delay := time.After(time.Duration(rng.IntN(300)) * time.Millisecond)
				if i > 0 { // two of three found no cluster, however long they wait for the third
					select {
					case <-nodes[order[0]].Ready():
						t.Fatal("ready without all peers")
					case <-delay:
					}
				}
				if err := nodes[p].open(); err != nil {
					t.Fatal(err)
				}
			}
			for _, n := range nodes {
				n.awaitReady()
			}
			oneCluster(t, nodes)
			id := nodes[0].image().ClusterID
			began := time.Now()
			stopAll(nodes)
			stopped := time.Now()
			startAll(nodes)
			t.Logf("all stopped in %v, ready again in %v", stopped.Sub(began), time.Since(stopped))
			oneCluster(t, nodes)
			if nodes[0].image().ClusterID != id {
				t.Errorf("cluster %s became %s", id, nodes[0].image().ClusterID)
			}
			stopAll(nodes)
		})
	}
}

// oneCluster checks that these nodes, all founders, see one cluster of them all with one leader.
func oneCluster(t *testing.T, nodes []*testNode) {
	t.Helper()
	eventually(t, func() error {
		leaders := map[int32]bool{}
		for _, n := range nodes {
			img := n.image()
			if img.ClusterID != nodes[0].image().ClusterID || img.ClusterID == "" {
				return fmt.Errorf("node %d is in cluster %q, node %d in %q", n.cfg.ID(), img.ClusterID, nodes[0].cfg.ID(), nodes[0].image().ClusterID)
			}
			if len(img.Nodes) != len(nodes) {
				return fmt.Errorf("node %d sees %d nodes", n.cfg.ID(), len(img.Nodes))
			}
			for _, x := range nodes {
				if m := img.Nodes[x.cfg.ID()]; m.Dir != x.id.Dir || m.KafkaPort == 0 {
					return fmt.Errorf("node %d sees %+v", n.cfg.ID(), m)
				}
			}
			st := n.core.Load().metadata.Status()
			if st.LeaderNode < 0 {
				return fmt.Errorf("node %d knows no leader", n.cfg.ID())
			}
			leaders[st.LeaderNode] = true
			if live := n.core.Load().view.LiveNodes(); len(live) != len(nodes) {
				return fmt.Errorf("node %d reaches %v", n.cfg.ID(), live)
			}
		}
		if len(leaders) != 1 {
			return fmt.Errorf("leaders %v", leaders)
		}
		return nil
	})
}

// However topics are made, every group has all its replicas and a leader. (The system this one continues initialised only the
// first partition of a topic.)
func TestMultiPartitionInit(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 3, steady)
	startAll(nodes)
	c := client(t, nodes, kgo.AllowAutoTopicCreation())
	ways := map[string]func() []string{
		"by the API": func() []string {
			createTopics(t, c, 12, 3, "single")
			return []string{"single"}
		},
		"by one batch": func() []string {
			var names []string
			for i := range 40 {
				names = append(names, fmt.Sprint("batch-", i))
			}
			createTopics(t, c, 3, 3, names...)
			return names
		},
		"by use": func() []string {
			produce(t, c, "used", 0, "x")
			return []string{"used"}
		},
	}
	var all []string
	for way, create := range ways {
		names := create()
		all = append(all, names...)
		eventually(t, func() error {
			if err := allLed(nodes, names...); err != nil {
				return fmt.Errorf("created %s: %w", way, err)
			}
			return nil
		})
	}
	groups, preferred := map[uint64]string{}, map[int32]int{} // who leads is who is preferred, unless the machine is busy
	for _, name := range all {
		for _, p := range nodes[0].image().Topics[name].Partitions {
			if other, taken := groups[p.Group]; taken {
				t.Errorf("group %d is of %s and of %s", p.Group, name, other)
			}
			groups[p.Group] = name
			if len(p.Replicas) != 3 {
				t.Errorf("%s-%d has %d replicas", name, p.Index, len(p.Replicas))
			}
			preferred[p.Replicas[0].Node]++
			leaderOf(t, nodes, name, p.Index)
			if off := produce(t, c, name, p.Index, "first of many"); off > 1 {
				t.Errorf("%s-%d: offset %d", name, p.Index, off)
			}
		}
	}
	for id, n := range preferred {
		if n > len(groups)/2 {
			t.Errorf("node %d is to lead %d of %d partitions", id, n, len(groups))
		}
	}
	if len(groups) != 12+40*3+1 {
		t.Errorf("%d groups", len(groups))
	}
}

// rawConn speaks Kafka's frames with nothing in between: what is sent to a follower stays with that follower.
type rawConn struct {
	t    *testing.T
	conn net.Conn
	next int32
}

func dialRaw(t *testing.T, addr string) *rawConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, bound)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(bound)); err != nil {
		t.Fatal(err)
	}
	return &rawConn{t: t, conn: conn}
}

func (c *rawConn) send(r kmsg.Request) {
	c.t.Helper()
	c.next++
	if _, err := c.conn.Write(kmsg.NewRequestFormatter(kmsg.FormatterClientID("raw")).AppendRequest(nil, r, c.next)); err != nil {
		c.t.Fatal(err)
	}
}

// receive reads the next response, which must be the answer to correlation id want. All that are used have flexible headers.
func (c *rawConn) receive(want int32, into kmsg.Response) {
	c.t.Helper()
	var head [9]byte
	if _, err := io.ReadFull(c.conn, head[:]); err != nil {
		c.t.Fatal(err)
	}
	if id := int32(binary.BigEndian.Uint32(head[4:])); id != want {
		c.t.Fatalf("the answer to %d came where %d's should", id, want)
	}
	body := make([]byte, int(binary.BigEndian.Uint32(head[:]))-5)
	if _, err := io.ReadFull(c.conn, body); err != nil {
		c.t.Fatal(err)
	}
	if err := into.ReadFrom(body); err != nil {
		c.t.Fatal(err)
	}
}

// produceRequest holds one record; a sequence below 0 makes it that of a plain producer.
func produceRequest(t *testing.T, topic string, partition, sequence int32, value string) *kmsg.ProduceRequest {
	t.Helper()
	b := record.NewBuilder()
	if sequence >= 0 {
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = 77, 0, sequence
	}
	b.Add(time.Now().UnixMilli(), nil, []byte(value))
	batch, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, batch
	tp := kmsg.NewProduceRequestTopic()
	tp.Topic, tp.Partitions = topic, append(tp.Partitions, p)
	r := kmsg.NewProduceRequest()
	r.Version, r.Acks, r.TimeoutMillis, r.Topics = 9, -1, 10000, append(r.Topics, tp)
	return &r
}

// A node that does not lead answers a produce as the leader would, and keeps the order of a connection: an idempotent
// producer's pipelined batches go through it without a gap. A leader that moves meanwhile, or can't be reached for a moment (a machine
// under load), is another test's matter: the next topic is tried then.
func TestFollowerProxiesProduce(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 3, steady)
	startAll(nodes)
	const attempts = 12
	for i := range attempts {
		topic := fmt.Sprintf("orders%d", i)
		createTopics(t, client(t, nodes), 1, 3, topic)
		leader := leaderOf(t, nodes, topic, 0)
		eventually(t, func() error { return allLed(nodes, topic) })
		replica, _ := leader.core.Load().groups.Lookup(topic, 0)
		term := replica.Status().Term
		want, err := produceThroughFollowers(t, nodes, leader, topic)
		if st := replica.Status(); !st.Ready || st.Term != term {
			t.Logf("%s: the leader moved", topic)
			continue
		}
		if refused := (*refusedError)(nil); errors.As(err, &refused) && slices.Contains([]int16{kerr.NotLeaderForPartition.Code, kerr.RequestTimedOut.Code}, refused.code) {
			t.Logf("%s: the leader was not reached: %v", topic, err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := consume(t, nodes, topic, 0, len(want)); !slices.Equal(got, want) {
			t.Errorf("consumed %q", got)
		}
		return
	}
	t.Errorf("no leader stayed for as long as its followers' requests took, %d times", attempts)
}

// refusedError is a batch that was not answered as it should be. The first of them counts: those after it lack a predecessor.
type refusedError struct {
	code int16
	what string
}

func (e *refusedError) Error() string { return e.what }

// produceThroughFollowers pipelines an idempotent producer's batches through each node that does not lead the topic's only
// partition, and says which was not answered as it should be.
func produceThroughFollowers(t *testing.T, nodes []*testNode, leader *testNode, topic string) (sent []string, err error) {
	t.Helper()
	for _, n := range nodes {
		if n == leader {
			continue
		}
		c := dialRaw(t, n.KafkaAddr())
		const count = 40
		from := len(sent)
		for i := range count {
			sent = append(sent, fmt.Sprintf("%d through node %d", i, n.cfg.ID()))
			c.send(produceRequest(t, topic, 0, int32(from+i), sent[from+i]))
		}
		for i := range count {
			resp := kmsg.NewPtrProduceResponse()
			resp.Version = 9
			c.receive(int32(i+1), resp)
			if p := resp.Topics[0].Partitions[0]; err == nil && (p.ErrorCode != 0 || p.BaseOffset != int64(from+i)) {
				var why string
				if p.ErrorMessage != nil {
					why = *p.ErrorMessage
				}
				err = &refusedError{p.ErrorCode, fmt.Sprintf("batch %d through node %d: error %d (%s), base offset %d, want %d", i, n.cfg.ID(), p.ErrorCode, why, p.BaseOffset, from+i)}
			}
		}
	}
	return sent, err
}

// A node with a new id joins a cluster that exists: it learns its metadata, gets partitions of new topics, and comes back after
// a restart. Without its disk, its id is refused.
func TestNewNodeJoins(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 3)
	startAll(nodes)
	c := client(t, nodes)
	createTopics(t, c, 2, 3, "before")
	produce(t, c, "before", 1, "x")

	addr := freePeers(t, 1)[0].Addr
	n := newTestNode(t, 4, func(cfg *config.Node) { cfg.Peers, cfg.RaftAddr = slices.Clone(nodes[0].cfg.Peers), addr })
	n.start()
	all := append(slices.Clone(nodes), n)
	joined := func() error {
		for _, x := range all {
			m := x.image().Nodes[4]
			switch {
			case m == nil || m.Dir != n.id.Dir || m.KafkaPort == 0:
				return fmt.Errorf("node %d sees %+v", x.cfg.ID(), m)
			case m.Voter || m.MetadataReplica == 0:
				return fmt.Errorf("node 4 is no learner of the metadata group: %+v", m)
			case len(x.core.Load().view.LiveNodes()) != 4:
				return fmt.Errorf("node %d reaches %v", x.cfg.ID(), x.core.Load().view.LiveNodes())
			}
		}
		return nil
	}
	eventually(t, joined)
	createTopics(t, c, 12, 3, "after")
	eventually(t, func() error { return allLed(all, "before", "after") })
	if got := len(n.core.Load().manager.Partitions()); got != 9 {
		t.Errorf("node 4 has %d of 36 replicas, want 9", got)
	}
	if !slices.ContainsFunc(n.image().Topics["after"].Partitions, func(p *metadata.Partition) bool { return p.Replicas[0].Node == 4 }) {
		t.Error("node 4 is to lead nothing")
	}
	eventually(t, func() error { // where it leads nothing because the machine was busy it is given something
		for _, p := range n.image().Topics["after"].Partitions {
			l := leaderOf(t, all, "after", p.Index)
			if l == n {
				return nil
			}
			if r, ok := l.core.Load().groups.Lookup("after", p.Index); ok {
				r.TransferLeadership(4)
			}
		}
		return errors.New("node 4 leads nothing")
	})
	own := client(t, []*testNode{n})
	for i := range int32(12) {
		produce(t, own, "after", i, fmt.Sprint("to ", i))
	}
	produce(t, own, "before", 1, "y")
	if got := consume(t, []*testNode{n}, "before", 1, 2); !slices.Equal(got, []string{"x", "y"}) {
		t.Errorf("consumed %q", got)
	}

	n.stop()
	// It remembers its place: a restart does not depend on the nodes of --peers being where they were.
	n.cfg.Peers = config.Peers{{ID: 1, Addr: freePeers(t, 1)[0].Addr}}
	n.start()
	eventually(t, joined)
	eventually(t, func() error { return allLed(all, "before", "after") })
	for i := range int32(12) {
		if got := consume(t, []*testNode{n}, "after", i, 1); got[0] != fmt.Sprint("to ", i) {
			t.Errorf("after-%d: %q", i, got)
		}
	}

	n.stop()
	n.cfg.Peers = slices.Clone(nodes[0].cfg.Peers)
	n.fs = vfs.NewMem(99) // the disk is lost
	if err := n.open(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.Failed():
		wantError(t, n.Err(), "node 4", "--node-id")
	case <-n.Ready():
		t.Error("an emptied disk came back under its old node id")
	case <-time.After(bound):
		t.Fatalf("neither refused nor ready: %v", n.readiness())
	}
}

// The id of a founder whose disk was emptied is refused, with what to do; the machine then joins under a new id.
func TestEmptiedDiskIsRefusedAndJoinsUnderANewID(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 3)
	startAll(nodes)
	c := client(t, nodes)
	createTopics(t, c, 6, 3, "orders")
	for i := range int32(6) {
		produce(t, c, "orders", i, "kept")
	}
	nodes[1].stop()
	nodes[1].fs = vfs.NewMem(99)
	if err := nodes[1].open(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-nodes[1].Failed():
		wantError(t, nodes[1].Err(), "cluster "+nodes[0].image().ClusterID, "node 2", "--node-id")
	case <-nodes[1].Ready():
		t.Fatal("an emptied disk came back under its old node id")
	case <-time.After(bound):
		t.Fatalf("neither refused nor ready: %v", nodes[1].readiness())
	}
	if code, text := get(t, "http://"+nodes[1].AdminAddr()+"/readyz"); code != 503 || !strings.Contains(text, "--node-id") {
		t.Errorf("readyz of the refused node: %d %q", code, text)
	}
	nodes[1].stop()

	// The same machine, the same address, a new id.
	n := newTestNode(t, 4, func(cfg *config.Node) {
		for _, p := range nodes[0].cfg.Peers {
			if p.ID != 2 {
				cfg.Peers = append(cfg.Peers, p)
			}
		}
		cfg.RaftAddr = nodes[1].cfg.RaftAddr
	})
	n.start()
	live := []*testNode{nodes[0], nodes[2], n}
	eventually(t, func() error { return reach(live, live...) }) // replicas go where somebody lives, as far as is known
	createTopics(t, client(t, live), 6, 3, "more")
	eventually(t, func() error { return allLed(live, "more") })
	for i := range int32(6) {
		if got := consume(t, live, "orders", i, 1); got[0] != "kept" {
			t.Errorf("orders-%d: %q", i, got)
		}
	}
}

// Closing a node of a cluster under load ends, hands its leaderships over, and loses nothing that was acknowledged.
func TestCloseUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 3)
	startAll(nodes)
	c := client(t, nodes)
	createTopics(t, c, 3, 3, "orders")
	eventually(t, func() error { return allLed(nodes, "orders") })

	ctx, cancel := context.WithCancel(t.Context()) // every record has its own bound, every wait for progress another
	defer cancel()
	var mu sync.Mutex
	acked := map[int32][]string{}
	var wg sync.WaitGroup
	for p := range int32(3) {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				v := fmt.Sprint(i)
				r, err := c.ProduceSync(ctx, &kgo.Record{Topic: "orders", Partition: p, Value: []byte(v)}).First()
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("orders-%d: record %d: %v", p, i, err)
					}
					return
				}
				mu.Lock()
				acked[p] = append(acked[p], fmt.Sprint(r.Offset, "=", v))
				mu.Unlock()
			}
		})
	}
	progress := func() {
		mu.Lock()
		from := [3]int{len(acked[0]), len(acked[1]), len(acked[2])}
		mu.Unlock()
		eventually(t, func() error {
			mu.Lock()
			defer mu.Unlock()
			for p := range int32(3) {
				if len(acked[p]) < from[p]+50 {
					return fmt.Errorf("orders-%d: stuck at %d acknowledged records", p, len(acked[p]))
				}
			}
			return nil
		})
	}
	progress()
	for _, n := range nodes {
		began := time.Now()
		n.stop()
		t.Logf("node %d closed in %v", n.cfg.ID(), time.Since(began))
		progress()
		n.start()
		progress()
	}
	cancel()
	wg.Wait()
	for p := range int32(3) {
		// A record cut off by cancel may follow the acknowledged ones.
		got := consume(t, nodes, "orders", p, len(acked[p]))
		for i, v := range got[:len(acked[p])] {
			if s := fmt.Sprint(i, "=", v); s != acked[p][i] {
				t.Fatalf("orders-%d: %s was acknowledged, %s is there", p, acked[p][i], s)
			}
		}
	}
}

// Nodes that are stopped one right after the other hand over to those that are left, not to the one that has just gone: one time at
// least, on a machine that does other things beside. Raft gives a transfer to the one that has gone up after an election timeout only, which
// is longer here than a node that stops has patience.
func TestStoppingOneAfterTheOtherIsQuick(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 3, steady)
	startAll(nodes)
	createTopics(t, client(t, nodes), 30, 3, "orders")
	for range 6 {
		eventually(t, func() error { return allLed(nodes, "orders") })
		quick := true
		for _, n := range nodes {
			const late = "not all leaderships were handed over"
			before := strings.Count(n.log.String(), late)
			began := time.Now()
			n.stop()
			t.Logf("node %d stopped in %v", n.cfg.ID(), time.Since(began))
			quick = quick && strings.Count(n.log.String(), late) == before
		}
		if quick {
			return
		}
		startAll(nodes)
	}
	t.Error("each time a node stopped with leaderships left")
}

// Two thousand topics in one request: all there, and no goroutine for each.
func TestManyTopicsInOneRequest(t *testing.T) {
	n := newTestNode(t, 1)
	n.start()
	nodes := []*testNode{n}
	c := client(t, nodes)
	count := 2000
	if raced {
		count = 400
	}
	var names []string
	for i := range count {
		names = append(names, fmt.Sprintf("topic-%04d", i))
	}
	before := measure()
	began := time.Now()
	createTopics(t, c, 1, 1, names...)
	eventually(t, func() error { return allLed(nodes, names...) })
	took, after := time.Since(began), measure()
	t.Logf("%d topics in %v: %d -> %d goroutines, %d -> %d MiB of heap", count, took, before.goroutines, after.goroutines, before.heap>>20, after.heap>>20)
	if more := after.goroutines - before.goroutines; more > 50 {
		t.Errorf("%d goroutines more", more)
	}
	if more := (after.heap - before.heap) / int64(count); more > 64<<10 {
		t.Errorf("%d bytes of heap for each topic", more)
	}
	topics, err := kadm.NewClient(c).ListTopics(testContext(t))
	if err != nil || len(topics) != count {
		t.Fatalf("%d topics listed, %v", len(topics), err)
	}
	for _, i := range []int{0, 1, count / 2, count - 1} {
		produce(t, c, names[i], 0, names[i])
		if got := consume(t, nodes, names[i], 0, 1); got[0] != names[i] {
			t.Errorf("%s: %q", names[i], got)
		}
	}
	c.Close()
	began = time.Now()
	n.stop()
	closed := time.Since(began)
	began = time.Now()
	n.start()
	t.Logf("with %d topics: closed in %v, ready again in %v", count, closed, time.Since(began))
	eventually(t, func() error { return allLed(nodes, names...) })
}
