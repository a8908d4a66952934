package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func (b *bench) codecOption() (kgo.Opt, error) {
	codecs := map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(),
		"snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()}
	c, ok := codecs[b.codec]
	if !ok {
		return nil, fmt.Errorf("no codec %q", b.codec)
	}
	return kgo.ProducerBatchCompression(c), nil
}

func (b *bench) client(opts ...kgo.Opt) (*kgo.Client, error) {
	codec, err := b.codecOption()
	if err != nil {
		return nil, err
	}
	return kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(b.brokers...), codec, kgo.ProducerBatchMaxBytes(int32(b.batchBytes)),
		kgo.ProducerLinger(b.linger), kgo.MaxBufferedRecords(100_000), kgo.MetadataMinAge(100 * time.Millisecond),
		kgo.RecordPartitioner(kgo.RoundRobinPartitioner())}, opts...)...)
}

// topic creates a fresh topic.
func (b *bench) topic(ctx context.Context, partitions int) (string, error) {
	b.seq++
	name := fmt.Sprintf("bench-%d-%d", time.Now().UnixNano(), b.seq)
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...))
	if err != nil {
		return "", err
	}
	defer cl.Close()
	_, err = kadm.NewClient(cl).CreateTopic(ctx, int32(partitions), int16(b.replication), nil, name)
	return name, err
}

func payload(n int) []byte {
	v := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range v {
		v[i] = byte('a' + r.IntN(26))
	}
	return v
}

// distribution collects durations.
type distribution struct {
	mu sync.Mutex
	d  []time.Duration
}

func (d *distribution) add(x time.Duration) {
	d.mu.Lock()
	d.d = append(d.d, x)
	d.mu.Unlock()
}

func (d *distribution) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.d) == 0 {
		return "nothing measured"
	}
	slices.Sort(d.d)
	at := func(q float64) float64 {
		return float64(d.d[min(len(d.d)-1, int(q*float64(len(d.d))))]) / float64(time.Millisecond)
	}
	return fmt.Sprintf("p50 %.2f p99 %.2f p99.9 %.2f max %.2f ms (%d samples)", at(.5), at(.99), at(.999), at(1), len(d.d))
}

// pump produces at full speed for a while and returns records acknowledged.
func (b *bench) pump(ctx context.Context, cl *kgo.Client, topic string, d time.Duration, lat *distribution) (int64, error) {
	value := payload(b.size)
	var acked atomic.Int64
	var failed atomic.Pointer[error]
	end := time.Now().Add(d)
	for i := 0; failed.Load() == nil; i++ {
		now := time.Now()
		if i%64 == 0 && (now.After(end) || ctx.Err() != nil) {
			break
		}
		sampled := i%512 == 0
		cl.Produce(ctx, &kgo.Record{Topic: topic, Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				failed.CompareAndSwap(nil, &err)
				return
			}
			acked.Add(1)
			if sampled {
				lat.add(time.Since(now))
			}
		})
	}
	if err := cl.Flush(ctx); err != nil {
		return 0, err
	}
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return acked.Load(), nil
}

// paced produces b.rate records a second, spread evenly, for a while; each calls done.
func (b *bench) paced(ctx context.Context, cl *kgo.Client, topic string, d time.Duration, value func() []byte, done func(sent time.Time, err error)) error {
	interval := time.Second / time.Duration(b.rate)
	start := time.Now()
	for i := 0; ; i++ {
		due := start.Add(time.Duration(i) * interval)
		if due.Sub(start) >= d {
			break
		}
		if wait := time.Until(due); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		sent := time.Now()
		cl.Produce(ctx, &kgo.Record{Topic: topic, Value: value()}, func(_ *kgo.Record, err error) { done(sent, err) })
	}
	return cl.Flush(ctx)
}
