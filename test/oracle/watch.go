package oracle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Watch reads a topic while things go wrong: what a consumer has seen once must be there in the end, and it must see no gap.
type Watch struct {
	client *kgo.Client
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	seen map[int32][]record // by offset
	errs []error
}

// StartWatch begins to read a topic from its start.
func StartWatch(brokers []string, topic string) (*Watch, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.DialTimeout(2*time.Second), kgo.FetchMaxWait(500*time.Millisecond))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watch{client: cl, cancel: cancel, seen: map[int32][]record{}}
	w.wg.Go(func() {
		for ctx.Err() == nil {
			cl.PollFetches(ctx).EachRecord(w.record)
		}
	})
	return w, nil
}

func (w *Watch) record(k *kgo.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	part, r, ok := parse(k.Value)
	if next := int64(len(w.seen[k.Partition])); k.Offset != next || !ok || part != k.Partition {
		if len(w.errs) < maxErrors {
			w.errs = append(w.errs, fmt.Errorf("a consumer of partition %d was given offset %d (%.40q) after %d", k.Partition, k.Offset, k.Value, next-1))
		}
		return
	}
	w.seen[k.Partition] = append(w.seen[k.Partition], r)
}

// Count is how many records have been seen.
func (w *Watch) Count() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.seen {
		n += len(s)
	}
	return n
}

// Stop ends the reading and returns what was wrong on the way.
func (w *Watch) Stop() error {
	w.cancel()
	w.wg.Wait()
	w.client.Close()
	return errors.Join(w.errs...)
}
