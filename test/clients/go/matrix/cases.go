package matrix

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"strconv"
	"strings"
	"time"
)

type suite struct {
	Env
	d Driver
}

type namedCase struct {
	name string
	run  func(context.Context) (detail string, err error)
}

func (s *suite) cases() []namedCase {
	cases := []namedCase{{"create-topic", s.createTopic}}
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		cases = append(cases, namedCase{"produce-" + codec, func(ctx context.Context) (string, error) { return "", s.produce(ctx, codec) }})
	}
	return append(cases, namedCase{"group", s.group}, namedCase{"commit", s.commit}, namedCase{"seek-time", s.seekTime},
		namedCase{"list-offsets", s.listOffsets}, namedCase{"admin", s.admin}, namedCase{"large", s.large}, namedCase{"records", s.records})
}

const mainPartitions = 6

func (s *suite) topic(name string) string { return s.Prefix + "." + name }

// create creates a topic with three replicas and looks at it.
func (s *suite) create(ctx context.Context, topic string, partitions int) error {
	return change(ctx, topic, func() error { return s.d.CreateTopic(ctx, topic, partitions, 3, nil) }, func() (bool, error) {
		p, r, err := s.d.DescribeTopic(ctx, topic)
		if err == nil && (p != partitions || r != 3) {
			err = fmt.Errorf("%d partitions with %d replicas, not %d with 3", p, r, partitions)
		}
		return err == nil, err
	})
}

// offsets asks again while leaders move: clients' own calls for it try once.
func (s *suite) offsets(ctx context.Context, topic string, at int64) (got map[int32]int64, err error) {
	err = await(ctx, "an answer about offsets", func() (bool, error) {
		got, err = s.d.Offsets(ctx, topic, at)
		return err == nil, err
	})
	return got, err
}

func (s *suite) createTopic(ctx context.Context) (string, error) {
	return "", s.create(ctx, s.topic("main"), mainPartitions)
}

// send sends records and waits for all acknowledgements.
func (s *suite) send(codec, topic string, records []Record) error {
	p, err := s.d.NewProducer(codec, 1<<20)
	if err != nil {
		return err
	}
	acks := make(chan error, len(records))
	for _, r := range records {
		p.Send(topic, r, func(err error) { acks <- err })
	}
	for range records { // before the producer ends: some refuse to repeat what is under way once they are ending
		select {
		case e := <-acks:
			err = errors.Join(err, e)
		case <-time.After(2 * time.Minute):
			return errors.Join(err, fmt.Errorf("%s: no acknowledgement for two minutes", topic), p.Close())
		}
	}
	return errors.Join(err, p.Close())
}

// codecRecord is a record that compresses well and that no other equals.
func codecRecord(codec string, i int, base time.Time) Record {
	return Record{
		Key:     []byte(fmt.Sprintf("key-%04d", i)),
		Value:   []byte(fmt.Sprintf("value %d of %s: %s", i, codec, strings.Repeat("compressible ", 12))),
		Headers: []Header{{"number", []byte(strconv.Itoa(i))}, {"codec", []byte(codec)}},
		Time:    base.Add(time.Duration(i) * time.Second),
	}
}

// base is the time of the first record: a day ago, so that it is not the time of sending.
func base() time.Time { return time.Now().Add(-24 * time.Hour).Truncate(time.Second) }

func (s *suite) produce(ctx context.Context, codec string) error {
	topic := s.topic(codec)
	if err := s.create(ctx, topic, 1); err != nil {
		return err
	}
	var records []Record
	b := base()
	for i := range 1000 {
		records = append(records, codecRecord(codec, i, b))
	}
	if err := s.send(codec, topic, records); err != nil {
		return err
	}
	r, err := s.d.NewReader(topic, 0, Start{})
	if err != nil {
		return err
	}
	defer r.Close()
	c := checker{idempotent: s.d.Idempotent()}
	for c.next < len(records) {
		got, err := r.Next(ctx)
		if err != nil {
			return fmt.Errorf("record %d: %w", c.next, err)
		}
		if err := c.check(got, func(i int) Record { return records[i] }); err != nil {
			return err
		}
	}
	return nil
}

// checker compares a partition's records with those that were sent to it.
type checker struct {
	idempotent bool
	next       int   // index of the next record
	offset     int64 // and its offset
	twice      int
}

// check takes the next record read. Without idempotence some of the last records may come again.
func (c *checker) check(got Record, sent func(i int) Record) error {
	if got.Offset != c.offset {
		return fmt.Errorf("offset %d instead of %d", got.Offset, c.offset)
	}
	c.offset++
	want := sent(c.next)
	if !c.idempotent && !bytes.Equal(got.Key, want.Key) {
		for i := c.next - 1; i >= 0 && i >= c.next-10000; i-- {
			if want := sent(i); bytes.Equal(got.Key, want.Key) {
				c.twice++
				c.next = i + 1
				return same(got, want)
			}
		}
	}
	c.next++
	return same(got, want)
}

func same(got, want Record) error {
	if !bytes.Equal(got.Key, want.Key) || !bytes.Equal(got.Value, want.Value) || !got.Time.Equal(want.Time) ||
		!slices.EqualFunc(got.Headers, want.Headers, func(a, b Header) bool { return a.Key == b.Key && bytes.Equal(a.Value, b.Value) }) {
		return fmt.Errorf("at offset %d: %q=%.60q at %v with headers %q; sent: %q=%.60q at %v with %q", got.Offset, got.Key, got.Value,
			got.Time.UnixMilli(), got.Headers, want.Key, want.Value, want.Time.UnixMilli(), want.Headers)
	}
	return nil
}

func (s *suite) seekTime(ctx context.Context) (string, error) {
	topic, b := s.topic("time"), base()
	if err := s.create(ctx, topic, 1); err != nil {
		return "", err
	}
	var records []Record
	for i := range 100 {
		records = append(records, codecRecord("time", i, b))
	}
	if err := s.send("none", topic, records); err != nil {
		return "", err
	}
	ends, err := s.offsets(ctx, topic, Latest)
	if err != nil {
		return "", err
	}
	// Duplicates, without idempotence, move what follows them.
	first := func(i int) int64 { return int64(i) }
	if ends[0] != 100 {
		if s.d.Idempotent() {
			return "", fmt.Errorf("100 records end at offset %d", ends[0])
		}
		first = nil
	}
	for _, q := range []struct {
		at   time.Time
		want int
	}{{b.Add(-time.Hour), 0}, {b.Add(50500 * time.Millisecond), 51}, {b.Add(51 * time.Second), 51}, {b.Add(99 * time.Second), 99}} {
		got, err := s.offsets(ctx, topic, q.at.UnixMilli())
		if err != nil {
			return "", err
		}
		if first != nil && got[0] != first(q.want) {
			return "", fmt.Errorf("%v after the first record: offset %d, not %d", q.at.Sub(b), got[0], q.want)
		}
		r, err := s.d.NewReader(topic, 0, Start{Time: q.at})
		if err != nil {
			return "", err
		}
		rec, err := r.Next(ctx)
		if err := errors.Join(err, r.Close()); err != nil {
			return "", err
		}
		rec.Offset = got[0]
		if err := same(rec, records[q.want]); err != nil {
			return "", fmt.Errorf("seeking to %v after the first record: %w", q.at.Sub(b), err)
		}
	}
	got, err := s.offsets(ctx, topic, b.Add(time.Hour).UnixMilli())
	if err == nil && got[0] != -1 && got[0] != ends[0] {
		err = fmt.Errorf("after the last record: offset %d", got[0])
	}
	return "", err
}

func (s *suite) listOffsets(ctx context.Context) (string, error) {
	topic := s.topic("offsets")
	if err := s.create(ctx, topic, 3); err != nil {
		return "", err
	}
	var records []Record
	for p := range 3 {
		for i := range 10 * (p + 1) {
			r := codecRecord("offsets", i, base())
			r.Partition = int32(p)
			records = append(records, r)
		}
	}
	if err := s.send("none", topic, records); err != nil {
		return "", err
	}
	expect := func(at int64, want ...int64) error {
		got, err := s.offsets(ctx, topic, at)
		if err != nil {
			return err
		}
		for p, w := range want {
			g, ok := got[int32(p)]
			if !ok || g != w && (s.d.Idempotent() || at == Earliest || g < w) {
				return fmt.Errorf("offsets at %d: %v, not %v", at, got, want)
			}
		}
		return nil
	}
	both := func(first int64) error { return errors.Join(expect(Earliest, 0, 0, first), expect(Latest, 10, 20, 30)) }
	if err := both(0); err != nil {
		return "", err
	}
	err := change(ctx, "the new beginning", func() error { return s.d.DeleteRecords(ctx, topic, 2, 7) }, func() (bool, error) {
		err := expect(Earliest, 0, 0, 7)
		return err == nil, err
	})
	var un Unsupported
	if errors.As(err, &un) {
		return "without deleted records: " + un.Error(), nil
	}
	if err != nil {
		return "", err
	}
	return "", both(7)
}

func (s *suite) large(ctx context.Context) (string, error) {
	topic := s.topic("large")
	if err := s.create(ctx, topic, 1); err != nil {
		return "", err
	}
	value := make([]byte, 1_000_000)
	rand.New(rand.NewSource(1)).Read(value)
	var records []Record
	for i := range 3 {
		r := codecRecord("large", i, base())
		r.Value = slices.Concat([]byte(strconv.Itoa(i)), value)[:1_000_000]
		records = append(records, r)
	}
	p, err := s.d.NewProducer("none", 4<<20)
	if err != nil {
		return "", err
	}
	one := func(r Record) error {
		acked := make(chan error, 1)
		p.Send(topic, r, func(err error) { acked <- err })
		select {
		case err := <-acked:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, r := range records {
		if err := one(r); err != nil {
			return "", fmt.Errorf("1,000,000 bytes: %w", err)
		}
	}
	big := records[0]
	big.Value = slices.Concat(value, value)
	if err := one(big); !errors.Is(err, ErrTooLarge) {
		return "", fmt.Errorf("2,000,000 bytes, more than max.message.bytes: %v", err)
	}
	if err := one(records[0]); err != nil {
		return "", fmt.Errorf("1,000,000 bytes after a refusal: %w", err)
	}
	if err := p.Close(); err != nil {
		return "", err
	}
	records = append(records, records[0])
	r, err := s.d.NewReader(topic, 0, Start{})
	if err != nil {
		return "", err
	}
	defer r.Close()
	c := checker{idempotent: s.d.Idempotent()}
	for c.next < len(records) {
		got, err := r.Next(ctx)
		if err != nil {
			return "", fmt.Errorf("large record %d: %w", c.next, err)
		}
		if err := c.check(got, func(i int) Record { return records[i] }); err != nil {
			return "", err
		}
	}
	return "", nil
}
