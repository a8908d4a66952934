package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/test/harness"
)

func (b *bench) params() string {
	return fmt.Sprintf("%d B, %d partitions, RF %d, linger %v, codec %s", b.size, b.partitions, b.replication, b.linger, b.codec)
}

func (b *bench) start(ctx context.Context) error {
	if b.cluster == nil {
		return errors.New("needs to start the nodes itself")
	}
	began := time.Now()
	if err := b.cluster.Start(ctx); err != nil {
		return err
	}
	ready := time.Since(began)
	topic, err := b.topic(ctx, 1)
	if err != nil {
		return err
	}
	cl, err := b.client()
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: payload(100)}).FirstErr(); err != nil {
		return err
	}
	fmt.Printf("start: %d nodes ready in %v, first acknowledgement after %v\n", len(b.cluster.Nodes), ready.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	return nil
}

func (b *bench) produce(ctx context.Context) error {
	topic, err := b.topic(ctx, b.partitions)
	if err != nil {
		return err
	}
	cl, err := b.client()
	if err != nil {
		return err
	}
	defer cl.Close()
	if _, err := b.pump(ctx, cl, topic, b.duration/5, &distribution{}); err != nil {
		return err
	}
	var n int64
	lat := &distribution{}
	cpu, elapsed, u, err := b.usage(func() (err error) {
		n, err = b.pump(ctx, cl, topic, b.duration, lat)
		return err
	})
	if err != nil {
		return err
	}
	bytes := n * int64(b.size)
	fmt.Printf("produce (%s): %.1f MB/s, %.0f records/s, %s; servers: %.1f cpu-ms/MB, %.2f cores, RSS %.0f MB in all (peak %.0f)\n", b.params(),
		mb(bytes)/elapsed.Seconds(), float64(n)/elapsed.Seconds(), lat, float64(cpu.Milliseconds())/mb(bytes),
		cpu.Seconds()/elapsed.Seconds(), mb(u.RSS), mb(u.PeakRSS))
	return nil
}

func (b *bench) latency(ctx context.Context) error {
	topic, err := b.topic(ctx, b.partitions)
	if err != nil {
		return err
	}
	cl, err := b.client()
	if err != nil {
		return err
	}
	defer cl.Close()
	value := payload(b.size)
	lat := &distribution{}
	var mu sync.Mutex
	var failed error
	run := func(d time.Duration, lat *distribution) error {
		err := b.paced(ctx, cl, topic, d, func() []byte { return value }, func(sent time.Time, err error) {
			lat.add(time.Since(sent))
			if err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
		return errors.Join(err, failed)
	}
	if err := run(b.duration/5, &distribution{}); err != nil {
		return err
	}
	cpu, elapsed, _, err := b.usage(func() error { return run(b.duration, lat) })
	if err != nil {
		return err
	}
	fmt.Printf("latency (%d/s, %s): %s; servers: %.2f cores\n", b.rate, b.params(), lat, cpu.Seconds()/elapsed.Seconds())
	return nil
}

func (b *bench) endToEnd(ctx context.Context) error {
	topic, err := b.topic(ctx, b.partitions)
	if err != nil {
		return err
	}
	cl, err := b.client()
	if err != nil {
		return err
	}
	defer cl.Close()
	consumer, err := b.client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(500*time.Millisecond))
	if err != nil {
		return err
	}
	defer consumer.Close()
	lat := &distribution{}
	total := int(b.duration.Seconds() * float64(b.rate))
	got := make(chan struct{})
	pollCtx, cancel := context.WithTimeout(ctx, b.duration+30*time.Second)
	defer cancel()
	go func() {
		defer close(got)
		for n := 0; n < total && pollCtx.Err() == nil; {
			consumer.PollFetches(pollCtx).EachRecord(func(r *kgo.Record) {
				n++
				if n > total/5 { // the first fifth warms up
					lat.add(time.Duration(time.Now().UnixNano() - int64(binary.BigEndian.Uint64(r.Value))))
				}
			})
		}
	}()
	err = b.paced(ctx, cl, topic, b.duration, func() []byte {
		v := payload(b.size)
		binary.BigEndian.PutUint64(v, uint64(time.Now().UnixNano()))
		return v
	}, func(time.Time, error) {})
	<-got
	if err != nil {
		return err
	}
	fmt.Printf("e2e (%d/s, %s): %s\n", b.rate, b.params(), lat)
	return nil
}

func (b *bench) consume(ctx context.Context) error {
	topic, err := b.topic(ctx, b.partitions)
	if err != nil {
		return err
	}
	cl, err := b.client()
	if err != nil {
		return err
	}
	n, err := b.pump(ctx, cl, topic, b.duration, &distribution{})
	cl.Close()
	if err != nil {
		return err
	}
	consumer, err := b.client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxBytes(50<<20), kgo.FetchMaxPartitionBytes(8<<20))
	if err != nil {
		return err
	}
	defer consumer.Close()
	cpu, elapsed, _, err := b.usage(func() error {
		for left := n; left > 0; {
			f := consumer.PollFetches(ctx)
			if err := f.Err(); err != nil {
				return err
			}
			left -= int64(f.NumRecords())
		}
		return nil
	})
	if err != nil {
		return err
	}
	bytes := n * int64(b.size)
	fmt.Printf("consume (%s): %.1f MB/s; servers: %.2f cpu-ms/MB\n", b.params(), mb(bytes)/elapsed.Seconds(), float64(cpu.Milliseconds())/mb(bytes))
	return nil
}

// failover kills the leader of partition 0 under a steady load and reports, for every partition, the longest gap between two
// acknowledgements.
func (b *bench) failover(ctx context.Context) error {
	if b.cluster == nil {
		return errors.New("needs to start the nodes itself")
	}
	topic, err := b.topic(ctx, b.partitions)
	if err != nil {
		return err
	}
	cl, err := b.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProduceRequestTimeout(5*time.Second))
	if err != nil {
		return err
	}
	defer cl.Close()
	var mu sync.Mutex
	last := make([]time.Time, b.partitions)
	gap := make([]time.Duration, b.partitions)
	stop, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for p := range b.partitions {
		wg.Go(func() {
			for stop.Err() == nil {
				cl.Produce(ctx, &kgo.Record{Topic: topic, Partition: int32(p), Value: payload(100)}, func(_ *kgo.Record, err error) {
					if err != nil {
						return
					}
					mu.Lock()
					defer mu.Unlock()
					now := time.Now()
					if !last[p].IsZero() {
						gap[p] = max(gap[p], now.Sub(last[p]))
					}
					last[p] = now
				})
				time.Sleep(5 * time.Millisecond) // the rate of the load
			}
		})
	}
	time.Sleep(2 * time.Second) // a steady load first: this is a benchmark
	victim, err := b.leader(ctx, topic)
	if err != nil {
		return err
	}
	mu.Lock()
	clear(gap)
	mu.Unlock()
	victim.Kill()
	time.Sleep(8 * time.Second)
	cancel()
	wg.Wait()
	worst := time.Duration(0)
	mu.Lock()
	for p := range gap {
		worst = max(worst, gap[p])
		if time.Since(last[p]) > 2*time.Second {
			err = fmt.Errorf("partition %d does not take records %v after the kill", p, time.Since(last[p]))
		}
	}
	mu.Unlock()
	if err != nil {
		return err
	}
	fmt.Printf("failover (kill -9 of a leader, %d partitions): longest gap between acknowledgements %v\n", b.partitions, worst.Round(time.Millisecond))
	if err := victim.Start(); err != nil {
		return err
	}
	return victim.AwaitReady(ctx)
}

func (b *bench) leader(ctx context.Context, topic string) (*harness.Node, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	m, err := kadm.NewClient(cl).Metadata(ctx, topic)
	if err != nil {
		return nil, err
	}
	n := b.cluster.Node(m.Topics[topic].Partitions[0].Leader)
	if n == nil {
		return nil, errors.New("partition 0 has no leader")
	}
	return n, nil
}

func (b *bench) topics(ctx context.Context) error {
	began := time.Now()
	topic, err := b.topic(ctx, b.partitions)
	if err != nil {
		return err
	}
	created := time.Since(began)
	for {
		leaders, err := b.leaders(ctx, topic)
		if err != nil {
			return err
		}
		if leaders == b.partitions {
			break
		}
	}
	led := time.Since(began)
	time.Sleep(3 * time.Second) // what creation left behind
	cpu, elapsed, u, err := b.usage(func() error { time.Sleep(b.duration); return nil })
	if err != nil {
		return err
	}
	fmt.Printf("topics (%d partitions, RF %d): created in %v, all led after %v; then idle: %.3f cores, RSS %.0f MB in all\n",
		b.partitions, b.replication, created.Round(time.Millisecond), led.Round(time.Millisecond), cpu.Seconds()/elapsed.Seconds(), mb(u.RSS))
	return nil
}

func (b *bench) leaders(ctx context.Context, topic string) (int, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	m, err := kadm.NewClient(cl).Metadata(ctx, topic)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, p := range m.Topics[topic].Partitions {
		if p.Err == nil && p.Leader >= 0 {
			n++
		}
	}
	return n, nil
}
