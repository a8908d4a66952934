package oracle

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// maxOpen bounds a writer's records under way on one partition: one that has no leader must not fill the client's buffer, which
// all partitions share.
const maxOpen = 200

// Load says what a writer writes.
type Load struct {
	Brokers    []string
	Topic      string
	Partitions int32
	// Rate is records a second on each partition.
	Rate int
	// Codec is the compression of an idempotent writer.
	Codec kgo.CompressionCodec
}

// tick is how often a writer writes.
const tick = 5 * time.Millisecond

// perTick returns how many records are due at the n-th tick.
func (o *Load) perTick(n int) int {
	due := func(n int) int { return n * o.Rate * int(tick/time.Millisecond) / 1000 }
	return due(n+1) - due(n)
}

// Writer is an idempotent producer: records in order and once, whatever happens.
type Writer struct {
	ledger *Ledger
	id     int32
	load   Load
	client *kgo.Client
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// StartWriter starts an idempotent producer. The caller stops it.
func (l *Ledger) StartWriter(load Load) (*Writer, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(load.Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.ProducerLinger(2*time.Millisecond), kgo.ProducerBatchCompression(load.Codec),
		kgo.RequestRetries(1000), kgo.ProduceRequestTimeout(5*time.Second), kgo.MaxBufferedRecords(maxOpen*int(load.Partitions)+1),
		kgo.UnknownTopicRetries(-1), kgo.ConnIdleTimeout(time.Minute), kgo.DialTimeout(2*time.Second),
		kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &Writer{ledger: l, id: l.enter(true, load), load: load, client: cl, cancel: cancel}
	w.done.Go(func() { w.run(ctx) })
	return w, nil
}

func (w *Writer) run(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		for part := range w.load.Partitions {
			tp := TP{w.load.Topic, part}
			for range min(w.load.perTick(n), maxOpen-w.ledger.open(tp, w.id)) {
				id := w.ledger.sent(tp, w.id)
				// Not ctx: a record given up half-way would leave a hole in the sequence.
				w.client.Produce(context.Background(), &kgo.Record{Topic: tp.Topic, Partition: part, Value: value(tp, id)}, func(r *kgo.Record, err error) {
					w.ledger.ended(tp, id, r.Offset, err)
				})
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}

// Stop ends the writing and waits until the fate of everything sent is known.
func (w *Writer) Stop(ctx context.Context) error {
	w.cancel()
	w.done.Wait()
	err := w.client.Flush(ctx)
	w.client.Close()
	if err != nil {
		return fmt.Errorf("writer %d: not everything that was sent got an answer: %w", w.id, err)
	}
	return nil
}
