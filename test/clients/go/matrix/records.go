package matrix

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	recordPartitions = 3
	underWay         = 5000 // records sent and not acknowledged
)

func numbered(i int, base time.Time) Record {
	n := strconv.Itoa(i)
	return Record{
		Partition: int32(i % recordPartitions), Key: []byte(n),
		Value:   []byte("record " + n + " of the many that are looked at one by one, each of them"),
		Headers: []Header{{"n", []byte(n)}},
		Time:    base.Add(time.Duration(i) * time.Millisecond),
	}
}

// records sends many records and reads them all; in the middle of either a leader dies.
func (s *suite) records(ctx context.Context) (string, error) {
	topic, b := s.topic("records"), base()
	if err := s.create(ctx, topic, recordPartitions); err != nil {
		return "", err
	}
	began := time.Now()
	if err := s.sendNumbered(ctx, topic, b); err != nil {
		return "", fmt.Errorf("sending: %w", err)
	}
	sent := time.Since(began)
	twice, err := s.readNumbered(ctx, topic, b)
	if err != nil {
		return "", fmt.Errorf("reading: %w", err)
	}
	detail := fmt.Sprintf("%d sent in %.1f s, read in %.1f s", s.Lines, sent.Seconds(), (time.Since(began) - sent).Seconds())
	if !s.d.Idempotent() {
		detail += fmt.Sprintf(", %d of them twice", twice)
	}
	return detail, nil
}

// killer kills a leader once a count reaches half; pass holds back at three quarters until it is dead, so that there is work
// left for the next leader.
type killer struct {
	half, gate int64
	count      atomic.Int64
	once       sync.Once
	kill       func() error
	dead       chan struct{}
	err        error
}

func newKiller(n int, kill func() error) *killer {
	return &killer{half: int64(n) / 2, gate: int64(n) * 3 / 4, kill: kill, dead: make(chan struct{})}
}

func (k *killer) add() {
	if k.count.Add(1) < k.half {
		return
	}
	k.once.Do(func() {
		go func() {
			k.err = k.kill()
			close(k.dead)
		}()
	})
}

func (k *killer) pass(ctx context.Context, n int64) error {
	if n < k.gate {
		return nil
	}
	select {
	case <-k.dead:
		return k.err
	case <-ctx.Done():
		return fmt.Errorf("after %d of %d: %w", k.count.Load(), 2*k.half, ctx.Err())
	}
}

func (s *suite) sendNumbered(ctx context.Context, topic string, base time.Time) error {
	p, err := s.d.NewProducer("lz4", 1<<20)
	if err != nil {
		return err
	}
	k := newKiller(s.Lines, func() error { return s.kill(ctx, topic, 0) })
	slots := make(chan struct{}, min(underWay, s.Lines/4))
	var failed atomic.Pointer[error]
	for i := range s.Lines {
		if err := k.pass(ctx, int64(i)); err != nil {
			return err
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d are acknowledged: %w", k.count.Load(), s.Lines, ctx.Err())
		}
		p.Send(topic, numbered(i, base), func(err error) {
			if err != nil {
				err = fmt.Errorf("record %d: %w", i, err)
				failed.CompareAndSwap(nil, &err)
			}
			k.add()
			<-slots
		})
	}
	for range cap(slots) { // all are answered before the producer ends: some refuse to repeat what is under way once they are ending
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d are acknowledged: %w", k.count.Load(), s.Lines, ctx.Err())
		}
	}
	err = p.Close()
	if e := failed.Load(); e != nil {
		err = errors.Join(*e, err)
	}
	if n := k.count.Load(); err == nil && n != int64(s.Lines) {
		err = fmt.Errorf("%d of %d are acknowledged after all were waited for", n, s.Lines)
	}
	return err
}

func (s *suite) readNumbered(ctx context.Context, topic string, base time.Time) (twice int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k := newKiller(s.Lines, func() error { return s.kill(ctx, topic, 1) })
	var wg sync.WaitGroup
	errs := make([]error, recordPartitions)
	twices := make([]int, recordPartitions)
	for p := range recordPartitions {
		wg.Go(func() {
			twices[p], errs[p] = s.readPartition(ctx, topic, p, base, k)
			if errs[p] != nil {
				errs[p] = fmt.Errorf("partition %d: %w", p, errs[p])
				cancel()
			}
		})
	}
	wg.Wait()
	for p := range recordPartitions {
		twice += twices[p]
	}
	return twice, errors.Join(errs...)
}

func (s *suite) readPartition(ctx context.Context, topic string, p int, base time.Time, k *killer) (int, error) {
	r, err := s.d.NewReader(topic, int32(p), Start{})
	if err != nil {
		return 0, err
	}
	defer r.Close()
	c := checker{idempotent: s.d.Idempotent()}
	for n := (s.Lines - p + recordPartitions - 1) / recordPartitions; c.next < n; {
		if err := k.pass(ctx, k.count.Load()); err != nil {
			return 0, err
		}
		got, err := r.Next(ctx)
		if err != nil {
			return 0, fmt.Errorf("after %d of %d: %w", c.next, n, err)
		}
		if err := c.check(got, func(i int) Record { return numbered(i*recordPartitions+p, base) }); err != nil {
			return 0, err
		}
		k.add()
	}
	ends, err := s.offsets(ctx, topic, Latest)
	if err == nil && ends[int32(p)] != c.offset {
		err = fmt.Errorf("%d records are there, more than were sent", ends[int32(p)])
		if !c.idempotent {
			err = nil // the last ones, twice
		}
	}
	return c.twice, err
}
