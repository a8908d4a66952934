package cluster

import (
	"context"
	"encoding/binary"
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

// consumed is how many records the group consumes while its coordinator dies how often: CHRONIK_GROUP_RECORDS and 20, or a few. Each
// member consumes so many a second that all of them have died long before all is consumed, on a machine that does other things beside, too.
func consumed(t *testing.T) (records, kills, rate int) {
	s := os.Getenv("CHRONIK_GROUP_RECORDS")
	if s == "" {
		return 16_000, 2, 700
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 100_000 {
		t.Fatalf("CHRONIK_GROUP_RECORDS=%q is not a number from 100000", s)
	}
	return n, 20, 2000
}

// TestGroupMissesNothingWhileItsCoordinatorsAreKilled kills the coordinator of a group of four members, the leader of its partition
// of __consumer_offsets, again and again while they consume: every record is consumed, and what is committed never goes back.
func TestGroupMissesNothingWhileItsCoordinatorsAreKilled(t *testing.T) {
	const name, members = "app", 4
	records, kills, rate := consumed(t)
	c := startCluster(t, 3, "--kafka-config", "group.initial.rebalance.delay.ms=0")
	c.createTopic(t, topic, partitions)
	ends := produce(t, c, records)
	g, err := oracle.NewLedger().StartGroup(oracle.GroupLoad{Name: name, Brokers: c.Brokers(), Topics: []string{topic}, Members: members, Rate: rate})
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
	const more = 4 // deaths, where the coordinator comes back to the node that died before
	var died []int
	for i := 0; i < kills || i < kills+more && !moved(died); i++ {
		victim := c.leader(t, group.Topic, offsets)
		victim.Kill()
		died = append(died, victim.ID)
		ctx, cancel := context.WithTimeout(t.Context(), 2*bound)
		if err := g.AwaitConsumed(ctx, (i+1)*records/(kills+more+1)); err != nil {
			t.Fatalf("after the coordinator's death number %d, node %d's: %v", i+1, victim.ID, err)
		}
		cancel()
		if g.Totals().Consumed == records {
			t.Fatalf("all is consumed, and only %d coordinators have died", i+1)
		}
		c.restart(t, victim)
	}
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
	t.Logf("%d records consumed by %d members in %v, %d of them again; coordinators killed: %v; %d partitions' commits, %d looks at what is committed, %d joins",
		n.Consumed, members, took.Round(time.Second), n.Repeated, died, n.Commits, n.Looks, n.Joined)
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

// produce writes records with an idempotent producer, and returns where the partitions end.
func produce(t *testing.T, c *cluster, records int) map[oracle.TP]int64 {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers()...), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var acked atomic.Int64
	for i := range records {
		cl.Produce(t.Context(), &kgo.Record{Value: binary.BigEndian.AppendUint64(nil, uint64(i))}, func(_ *kgo.Record, err error) {
			if err == nil {
				acked.Add(1)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*bound)
	defer cancel()
	if err := cl.Flush(ctx); err != nil || acked.Load() != int64(records) {
		t.Fatalf("%d of %d records acknowledged: %v", acked.Load(), records, err)
	}
	ends, err := oracle.EndOffsets(ctx, c.Brokers(), map[string]int32{topic: partitions})
	if err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for _, end := range ends {
		sum += end
	}
	if sum != int64(records) {
		t.Fatalf("%d records are there, and %d were written", sum, records)
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
