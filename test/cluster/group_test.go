package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/test/oracle"
)

// consuming is a group's work while its coordinators die.
type consuming struct {
	records, kills int
	members        int
	partitions     int32
	rate           int // records a second and member
}

// consumed is what CHRONIK_GROUP_RECORDS asks for, or a little. Each member consumes so many records a second at most that there is something left to
// consume when a coordinator dies.
func consumed(t *testing.T) consuming {
	s := os.Getenv("CHRONIK_GROUP_RECORDS")
	if s == "" {
		return consuming{records: 16_000, kills: 2, members: 4, partitions: partitions, rate: 700}
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 100_000 {
		t.Fatalf("CHRONIK_GROUP_RECORDS=%q is not a number from 100000", s)
	}
	return consuming{records: n, kills: 20, members: 6, partitions: 24, rate: 1400}
}

// TestGroupMissesNothingWhileItsCoordinatorsAreKilled kills a group's coordinator, the leader of its partition of
// __consumer_offsets and of a share of what it consumes, again and again while they consume: every record is consumed, and what is committed never goes back.
// With each death there are as many records more, half of them written after it: however slow this test is, the group never has all of them before.
func TestGroupMissesNothingWhileItsCoordinatorsAreKilled(t *testing.T) {
	const name = "app"
	load := consumed(t)
	records, kills := load.records, load.kills
	c := startCluster(t, 3, "--kafka-config", "group.initial.rebalance.delay.ms=0")
	c.createTopic(t, topic, load.partitions)
	const more = 4 // deaths, where the coordinator comes back to the node that died before
	p := newProducer(t, c)
	portion := records / (kills + more + 1)
	p.write(t, portion/2)
	g, err := oracle.NewLedger().StartGroup(oracle.GroupLoad{Name: name, Brokers: c.Brokers(), Topics: []string{topic}, Members: load.members, Rate: load.rate})
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	defer func() {
		if !stopped {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_, _, _ = g.Stop(ctx)
		}
	}()
	within(t, func(ctx context.Context) error { return g.AwaitConsumed(ctx, 1) })
	offsets := group.PartitionOf(name, partitionsOf(t, c, group.Topic))
	began := time.Now()
	var died []int
	for i := 0; i < kills || i < kills+more && !moved(died); i++ {
		victim := c.leader(t, group.Topic, offsets)
		p.write(t, portion-portion/2)
		victim.Kill()
		died = append(died, victim.ID)
		p.write(t, portion/2)
		ctx, cancel := context.WithTimeout(t.Context(), 2*bound)
		if err := g.AwaitConsumed(ctx, (i+1)*portion); err != nil {
			t.Fatalf("after the coordinator's death number %d, node %d's: %v", i+1, victim.ID, err)
		}
		cancel()
		c.restart(t, victim)
	}
	p.write(t, records-p.written)
	ends := p.ends(t, c, load)
	ctx, cancel := context.WithTimeout(t.Context(), 4*bound)
	defer cancel()
	if err := g.AwaitAll(ctx, ends); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	stopped = true
	_, bad, err := g.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := bad.Err(); err != nil {
		t.Fatal(err)
	}
	n := g.Totals()
	t.Logf("%d records of %d partitions consumed by %d members in %v, %d of them again; coordinators killed: %v; %d partitions' commits, %d looks at what is committed, %d joins",
		n.Consumed, load.partitions, load.members, took.Round(time.Second), n.Repeated, died, n.Commits, n.Looks, n.Joined)
	if n.Consumed != records || n.Looks == 0 {
		t.Errorf("%d records, not %d; %d looks", n.Consumed, records, n.Looks)
	}
	if !moved(died) {
		t.Errorf("the coordinator has never moved: only node %d has died", died[0])
	}
}

// moved says whether more than one node is among those.
func moved(died []int) bool {
	return slices.ContainsFunc(died, func(id int) bool { return id != died[0] })
}

// producer writes numbered records, idempotently.
type producer struct {
	client  *kgo.Client
	written int
}

func newProducer(t *testing.T, c *cluster) *producer {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers()...), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return &producer{client: cl}
}

// write writes so many records more, and waits until all are acknowledged.
func (p *producer) write(t *testing.T, records int) {
	t.Helper()
	var acked atomic.Int64
	var last atomic.Pointer[error]
	for range records {
		p.client.Produce(t.Context(), &kgo.Record{Value: binary.BigEndian.AppendUint64(nil, uint64(p.written))}, func(_ *kgo.Record, err error) {
			if err != nil {
				last.Store(&err)
				return
			}
			acked.Add(1)
		})
		p.written++
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*bound)
	defer cancel()
	if err := p.client.Flush(ctx); err != nil || acked.Load() != int64(records) {
		if e := last.Load(); e != nil {
			err = errors.Join(err, *e)
		}
		t.Fatalf("%d of %d records acknowledged: %v", acked.Load(), records, err)
	}
}

// ends returns where the partitions end, all of it written.
func (p *producer) ends(t *testing.T, c *cluster, load consuming) map[oracle.TP]int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*bound)
	defer cancel()
	ends, err := oracle.EndOffsets(ctx, c.Brokers(), map[string]int32{topic: load.partitions})
	if err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for _, end := range ends {
		sum += end
	}
	if sum != int64(p.written) {
		t.Fatalf("%d records are there, and %d were written", sum, p.written)
	}
	return ends
}

func partitionsOf(t *testing.T, c *cluster, topic string) (n int32) {
	t.Helper()
	within(t, func(ctx context.Context) error {
		m, err := c.admin.Metadata(ctx, topic)
		n = int32(len(m.Topics[topic].Partitions))
		return err
	})
	return n
}
