package oracle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Reader consumes topics from their beginning, from when it starts until it is stopped, and remembers every record.
type Reader struct {
	ledger *Ledger
	name   string
	client *kgo.Client
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	logs    map[TP][]ID
	bad     Violations
	last    error // the last of the errors that pass
	changed chan struct{}
}

// StartReader starts a consumer of all partitions of topics (name: partitions). The caller stops it.
func (l *Ledger) StartReader(name string, brokers []string, topics map[string]int32, opts ...kgo.Opt) (*Reader, error) {
	from := map[string]map[int32]kgo.Offset{}
	r := &Reader{ledger: l, name: name, logs: map[TP][]ID{}, changed: make(chan struct{})}
	for topic, n := range topics {
		from[topic] = map[int32]kgo.Offset{}
		for part := range n {
			from[topic][part] = kgo.NewOffset().At(0)
			r.logs[TP{topic, part}] = nil
		}
	}
	// NoResetOffset: a log that ends before what was read is an error to be told, not a reason to begin elsewhere.
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(brokers...), kgo.ConsumePartitions(from), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.MetadataMinAge(50 * time.Millisecond), kgo.FetchMaxWait(500 * time.Millisecond), kgo.DialTimeout(2 * time.Second),
		kgo.ConnIdleTimeout(time.Minute), kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond })}, opts...)...)
	if err != nil {
		return nil, err
	}
	r.client = cl
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.done.Go(func() { r.run(ctx) })
	return r, nil
}

func (r *Reader) run(ctx context.Context) {
	for {
		fetches := r.client.PollFetches(ctx)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return
		}
		r.mu.Lock()
		fetches.EachError(func(topic string, part int32, err error) { r.failed(TP{topic, part}, err) })
		fetches.EachRecord(r.took)
		close(r.changed)
		r.changed = make(chan struct{})
		r.mu.Unlock()
	}
}

func (r *Reader) failed(tp TP, err error) {
	r.last = fmt.Errorf("%v: %w", tp, err)
	var loss *kgo.ErrDataLoss
	if errors.As(err, &loss) || errors.Is(err, kerr.OffsetOutOfRange) {
		r.violation(tp, "after offset %d: %v", len(r.logs[tp]), err)
	}
}

func (r *Reader) violation(tp TP, format string, args ...any) {
	if len(r.bad) < maxReported {
		r.bad = append(r.bad, fmt.Sprintf("%v: %s: ", tp, r.name)+fmt.Sprintf(format, args...))
	}
}

func (r *Reader) took(rec *kgo.Record) {
	tp := TP{rec.Topic, rec.Partition}
	if next := int64(len(r.logs[tp])); rec.Offset != next {
		r.violation(tp, "offset %d where %d is due", rec.Offset, next)
		return
	}
	id, err := r.ledger.identify(tp, rec.Value)
	if err != nil {
		r.violation(tp, "offset %d: %v", rec.Offset, err)
		id = stranger
	}
	r.logs[tp] = append(r.logs[tp], id)
}

// Await waits until the reader has read up to the given ends.
func (r *Reader) Await(ctx context.Context, ends map[TP]int64) error {
	for {
		r.mu.Lock()
		changed, last := r.changed, r.last
		var behind []string
		for tp, end := range ends {
			if n := int64(len(r.logs[tp])); n < end {
				behind = append(behind, fmt.Sprintf("%v: %d of %d", tp, n, end))
			}
		}
		bad := r.bad.Err()
		r.mu.Unlock()
		if len(behind) == 0 {
			return nil
		}
		if bad != nil {
			return bad // it will get no further
		}
		select {
		case <-changed:
		case <-ctx.Done():
			slices.Sort(behind)
			return fmt.Errorf("%s has not read all there is (%v; last error: %v): %w", r.name, behind, last, ctx.Err())
		}
	}
}

// Stop ends the reading and returns what was read, and what was wrong with it.
func (r *Reader) Stop() (map[TP][]ID, Violations) {
	r.cancel()
	r.done.Wait()
	r.client.Close()
	return maps.Clone(r.logs), r.bad
}

// EndOffsets asks for the ends of all partitions, until each has a leader to answer.
func EndOffsets(ctx context.Context, brokers []string, topics map[string]int32) (map[TP]int64, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	for {
		ends := map[TP]int64{}
		listed, err := adm.ListEndOffsets(ctx, slices.Collect(maps.Keys(topics))...)
		if err == nil {
			err = listed.Error()
		}
		if err == nil {
			listed.Each(func(o kadm.ListedOffset) { ends[TP{o.Topic, o.Partition}] = o.Offset })
			for topic, n := range topics {
				for part := range n {
					if _, ok := ends[TP{topic, part}]; !ok {
						err = fmt.Errorf("no end offset of %s-%d", topic, part)
					}
				}
			}
		}
		if err == nil {
			return ends, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("end offsets: %w", err)
		case <-time.After(50 * time.Millisecond): // an election may be under way: between two tries
		}
	}
}

// Verify reads the topics from their beginning to their end and checks them, after the writers have stopped. It returns the logs.
func (l *Ledger) Verify(ctx context.Context, brokers []string, topics map[string]int32) (map[TP][]ID, error) {
	ends, err := EndOffsets(ctx, brokers, topics)
	if err != nil {
		return nil, err
	}
	r, err := l.StartReader("the verifier", brokers, topics)
	if err != nil {
		return nil, err
	}
	err = r.Await(ctx, ends)
	logs, bad := r.Stop()
	if err == nil {
		bad = append(bad, l.Check(logs)...)
	}
	return logs, errors.Join(err, bad.Err())
}
