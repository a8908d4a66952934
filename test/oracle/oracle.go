// Package oracle knows what a cluster has promised, and holds it to that. It is written against a client library alone: what it knows of
// Chronik is what any user sees, and the segment files' bytes.
//
// A Load writes numbered records and remembers each acknowledgement with its offset. In the end Verify reads everything back: each
// acknowledged record once, at its offset; the others at most once; each producer's records in order; offsets without gaps; nothing that
// nobody sent. SameSegments compares the nodes' files byte by byte.
package oracle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Load writes numbered records to every partition of a topic, one idempotent producer's for each codec, and remembers what became of them.
type Load struct {
	topic      string
	partitions int32
	pace       time.Duration
	clients    []*kgo.Client
	cancel     context.CancelFunc
	wg         sync.WaitGroup
	acks       atomic.Int64

	mu    sync.Mutex
	acked map[int32]map[record]int64 // partition -> record -> offset
	fate  int                        // records of unknown fate
	news  chan struct{}
}

// record is one that was sent: who sent it, and its number there.
type record struct {
	producer, seq int
}

// StartLoad begins to write. Each codec has a producer of its own; pace is the pause between two records of one partition.
func StartLoad(brokers []string, topic string, partitions int32, pace time.Duration, codecs ...kgo.CompressionCodec) (*Load, error) {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{topic: topic, partitions: partitions, pace: pace, cancel: cancel, acked: map[int32]map[record]int64{}, news: make(chan struct{}, 1)}
	for part := range partitions {
		l.acked[part] = map[record]int64{}
	}
	if len(codecs) == 0 {
		codecs = []kgo.CompressionCodec{kgo.NoCompression()}
	}
	for i, codec := range codecs {
		cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(codec),
			kgo.MetadataMinAge(50*time.Millisecond), kgo.ProducerLinger(2*time.Millisecond), kgo.RequestRetries(1<<20), kgo.RecordRetries(1<<20),
			kgo.ProduceRequestTimeout(5*time.Second), kgo.MaxBufferedRecords(2000), kgo.ConnIdleTimeout(time.Minute), kgo.DialTimeout(2*time.Second))
		if err != nil {
			l.Close()
			return nil, err
		}
		l.clients = append(l.clients, cl)
		for part := range partitions {
			l.wg.Go(func() { l.write(ctx, cl, i, part) })
		}
	}
	return l, nil
}

func (l *Load) write(ctx context.Context, cl *kgo.Client, producer int, part int32) {
	pause := time.NewTicker(l.pace)
	defer pause.Stop()
	for seq := 0; ; seq++ {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		r := record{producer, seq}
		cl.Produce(context.Background(), &kgo.Record{Topic: l.topic, Partition: part, Value: r.value(part)},
			func(k *kgo.Record, err error) { l.ended(part, r, k.Offset, err) })
	}
}

// value is what a record holds: its name, and bytes that follow from it.
func (r record) value(part int32) []byte {
	return fmt.Appendf(nil, "%d:%d:%d:%s", part, r.producer, r.seq, strings.Repeat("v", r.seq%300))
}

func parse(value []byte) (part int32, r record, ok bool) {
	if _, err := fmt.Sscanf(string(value), "%d:%d:%d:", &part, &r.producer, &r.seq); err != nil {
		return 0, r, false
	}
	return part, r, bytes.Equal(value, r.value(part))
}

func (l *Load) ended(part int32, r record, offset int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.fate++
		return
	}
	l.acked[part][r] = offset
	l.acks.Add(1)
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// Acks counts the records acknowledged so far.
func (l *Load) Acks() int64 { return l.acks.Load() }

// Partitions counts the partitions that have acknowledged something since the given counts, as PartitionAcks gives them.
func (l *Load) PartitionAcks() map[int32]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[int32]int{}
	for part, acks := range l.acked {
		out[part] = len(acks)
	}
	return out
}

// AwaitEverywhere waits until every partition has acknowledged one more record than now.
func (l *Load) AwaitEverywhere(ctx context.Context) error {
	before := l.PartitionAcks()
	for {
		var stuck []int32
		for part, n := range l.PartitionAcks() {
			if n <= before[part] {
				stuck = append(stuck, part)
			}
		}
		if len(stuck) == 0 {
			return nil
		}
		select {
		case <-l.news:
		case <-ctx.Done():
			slices.Sort(stuck)
			return fmt.Errorf("partitions %v have acknowledged nothing: %w", stuck, ctx.Err())
		}
	}
}

// Await waits for n more acknowledgements on all partitions taken together.
func (l *Load) Await(ctx context.Context, n int64) error {
	goal := l.Acks() + n
	for l.Acks() < goal {
		select {
		case <-l.news:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d more records acknowledged: %w", n-(goal-l.Acks()), n, ctx.Err())
		}
	}
	return nil
}

// Stop ends the load and waits for what is under way.
func (l *Load) Stop(ctx context.Context) error {
	l.cancel()
	l.wg.Wait()
	for _, cl := range l.clients {
		if err := cl.Flush(ctx); err != nil {
			return fmt.Errorf("waiting for the last acknowledgements: %w", err)
		}
	}
	if l.Acks() == 0 {
		return errors.New("nothing was acknowledged")
	}
	return nil
}

// Close ends everything, in whatever state.
func (l *Load) Close() {
	l.cancel()
	l.wg.Wait()
	for _, cl := range l.clients {
		cl.Close()
	}
}

// String says what the load has done.
func (l *Load) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d records acknowledged, %d of unknown fate", l.acks.Load(), l.fate)
}

// Verify reads the topic and returns everything that is not as promised, to the load or to the watches, if there were any. The load must
// have been stopped.
func (l *Load) Verify(ctx context.Context, brokers []string, watches ...*Watch) error {
	ends, err := endOffsets(ctx, brokers, l.topic, l.partitions)
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(l.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		return err
	}
	defer cl.Close()
	c := &check{l: l, next: map[int32]int64{}, seen: map[int32]map[record]int64{}, last: map[int32]map[int]int{}}
	for part := range l.partitions {
		c.seen[part], c.last[part] = map[record]int64{}, map[int]int{}
	}
	for !c.done(ends) {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("read up to %v of %v: %w", c.next, ends, ctx.Err())
		}
		fetches.EachRecord(c.record)
	}
	c.missing()
	for _, w := range watches {
		c.unseen(w)
	}
	return errors.Join(c.errs...)
}

// maxErrors is how many violations are told one by one.
const maxErrors = 20

// check is one reading of the topic.
type check struct {
	l    *Load
	next map[int32]int64
	seen map[int32]map[record]int64
	last map[int32]map[int]int // of each producer, the last number seen
	errs []error
}

func (c *check) fail(format string, args ...any) {
	if len(c.errs) < maxErrors {
		c.errs = append(c.errs, fmt.Errorf(format, args...))
	}
}

func (c *check) done(ends map[int32]int64) bool {
	for part, end := range ends {
		if c.next[part] < end {
			return false
		}
	}
	return true
}

func (c *check) record(k *kgo.Record) {
	part := k.Partition
	if k.Offset != c.next[part] {
		c.fail("partition %d: offset %d follows %d", part, k.Offset, c.next[part]-1)
	}
	c.next[part] = k.Offset + 1
	in, r, ok := parse(k.Value)
	if !ok || in != part {
		c.fail("partition %d offset %d: %.40q is no record that was sent here", part, k.Offset, k.Value)
		return
	}
	if at, twice := c.seen[part][r]; twice {
		c.fail("partition %d: record %+v is there at %d and at %d", part, r, at, k.Offset)
	}
	c.seen[part][r] = k.Offset
	if last, ok := c.last[part][r.producer]; ok && r.seq <= last {
		c.fail("partition %d offset %d: record %d of producer %d comes after %d", part, k.Offset, r.seq, r.producer, last)
	}
	c.last[part][r.producer] = r.seq
}

// missing looks for every acknowledged record.
func (c *check) missing() {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	for part, acked := range c.l.acked {
		for r, offset := range acked {
			at, ok := c.seen[part][r]
			switch {
			case !ok:
				c.fail("partition %d: acknowledged record %+v is lost (it was at offset %d)", part, r, offset)
			case at != offset:
				c.fail("partition %d: record %+v was acknowledged at offset %d and is at %d", part, r, offset, at)
			}
		}
	}
}

// unseen looks for what a watch had seen.
func (c *check) unseen(w *Watch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for part, seen := range w.seen {
		for offset, r := range seen {
			if at, ok := c.seen[part][r]; !ok || at != int64(offset) {
				c.fail("partition %d: a consumer saw record %+v at offset %d, and it is not there", part, r, offset)
			}
		}
	}
}

func endOffsets(ctx context.Context, brokers []string, topic string, partitions int32) (map[int32]int64, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	for {
		listed, err := adm.ListEndOffsets(ctx, topic)
		if err == nil {
			err = listed.Error()
		}
		if err == nil && len(listed[topic]) == int(partitions) {
			out := map[int32]int64{}
			listed.Each(func(o kadm.ListedOffset) { out[o.Partition] = o.Offset })
			return out, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("end offsets of %s: %d partitions, %w", topic, len(listed[topic]), errors.Join(err, ctx.Err()))
		case <-time.After(50 * time.Millisecond): // an election may be under way
		}
	}
}
