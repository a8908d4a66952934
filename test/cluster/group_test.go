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

// consuming is a group's work while its coordinators die.
type consuming struct {
	records, kills int
	members        int
	partitions     int32
	rate           int // records a second and member
}

// consumed is what CHRONIK_GROUP_RECORDS asks for, or a little. Each member consumes so many records a second that all coordinators have died long
// before all is consumed, on a machine that does other things beside, too.
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
func TestGroupMissesNothingWhileItsCoordinatorsAreKilled(t *testing.T) {
	const name = "app"
	load := consumed(t)
	records, kills := load.records, load.kills
	c := startCluster(t, 3, "--kafka-config", "group.initial.rebalance.delay.ms=0")
	c.createTopic(t, topic, load.partitions)
	ends := produce(t, c, load)
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

// produce writes records with an idempotent producer, and returns where the partitions end.
func produce(t *testing.T, c *cluster, load consuming) map[oracle.TP]int64 {
	t.Helper()
	records := load.records
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
	ends, err := oracle.EndOffsets(ctx, c.Brokers(), map[string]int32{topic: load.partitions})
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
