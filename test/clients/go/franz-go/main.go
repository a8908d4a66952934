// Command franz-go is the client matrix' program for github.com/twmb/franz-go.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/test/clients/go/matrix"
)

func main() {
	matrix.Main("franz-go", "github.com/twmb/franz-go", "", func(e matrix.Env) (matrix.Driver, error) {
		d := &driver{base: []kgo.Opt{kgo.SeedBrokers(e.Bootstrap...), kgo.ClientID(e.Prefix)}}
		cl, err := d.client()
		if err != nil {
			return nil, err
		}
		d.adm = kadm.NewClient(cl)
		return d, nil
	})
}

type driver struct {
	base []kgo.Opt
	adm  *kadm.Client
}

func (d *driver) client(opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append(slices.Clone(d.base), opts...)...)
}

func (d *driver) Idempotent() bool { return true }

func (d *driver) Close() error {
	d.adm.Close()
	return nil
}

type producer struct{ cl *kgo.Client }

func (d *driver) NewProducer(codec string, maxBytes int) (matrix.Producer, error) {
	codecs := map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()}
	cl, err := d.client(kgo.ProducerBatchCompression(codecs[codec]), kgo.ProducerBatchMaxBytes(int32(maxBytes)),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	return producer{cl}, err
}

func (p producer) Send(topic string, r matrix.Record, done func(error)) {
	out := &kgo.Record{Topic: topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Timestamp: r.Time}
	for _, h := range r.Headers {
		out.Headers = append(out.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	p.cl.Produce(context.Background(), out, func(_ *kgo.Record, err error) {
		if errors.Is(err, kerr.MessageTooLarge) {
			err = matrix.ErrTooLarge
		}
		done(err)
	})
}

func (p producer) Close() error {
	err := p.cl.Flush(context.Background())
	p.cl.Close()
	return err
}

// reader takes records from polls of either kind.
type reader struct {
	cl  *kgo.Client
	buf []*kgo.Record

	mu    sync.Mutex
	owned []int32
}

func (d *driver) NewReader(topic string, partition int32, start matrix.Start) (matrix.Reader, error) {
	at := kgo.NewOffset().At(start.Offset)
	if !start.Time.IsZero() {
		at = kgo.NewOffset().AfterMilli(start.Time.UnixMilli())
	}
	cl, err := d.client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: at}}))
	return &reader{cl: cl}, err
}

func (r *reader) Next(ctx context.Context) (matrix.Record, error) {
	var last error
	for len(r.buf) == 0 {
		fetches := r.cl.PollFetches(ctx)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return matrix.Record{}, fmt.Errorf("polling: %w (before: %v)", fetches.Err(), last)
		}
		// The client goes on by itself after these.
		if err := fetches.Err(); err != nil {
			log.Print(err)
			last = err
		}
		r.buf = fetches.Records()
	}
	in := r.buf[0]
	r.buf = r.buf[1:]
	out := matrix.Record{Partition: in.Partition, Offset: in.Offset, Key: in.Key, Value: in.Value, Time: in.Timestamp}
	for _, h := range in.Headers {
		out.Headers = append(out.Headers, matrix.Header{Key: h.Key, Value: h.Value})
	}
	return out, nil
}

func (r *reader) Close() error {
	r.cl.Close()
	return nil
}

func (d *driver) Join(group, topic string) (matrix.Member, error) {
	r := &reader{}
	add := func(_ context.Context, _ *kgo.Client, m map[string][]int32) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.owned = append(r.owned, m[topic]...)
	}
	remove := func(_ context.Context, _ *kgo.Client, m map[string][]int32) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.owned = slices.DeleteFunc(r.owned, func(p int32) bool { return slices.Contains(m[topic], p) })
	}
	cl, err := d.client(kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(), kgo.OnPartitionsAssigned(add),
		kgo.OnPartitionsRevoked(remove), kgo.OnPartitionsLost(remove), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		// A coordinator that dies before the rebalance has not noted that a member left: it is out when its session is.
		kgo.SessionTimeout(10*time.Second))
	r.cl = cl
	return member{r, topic}, err
}

type member struct {
	*reader
	topic string
}

func (m member) Owned() []int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.owned)
}

func (m member) Commit(ctx context.Context, offsets map[int32]int64) error {
	all := map[int32]kgo.EpochOffset{}
	for p, o := range offsets {
		all[p] = kgo.EpochOffset{Epoch: -1, Offset: o}
	}
	var errs []error
	m.cl.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{m.topic: all},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, res *kmsg.OffsetCommitResponse, err error) {
			errs = append(errs, err)
			if res == nil {
				return
			}
			for _, t := range res.Topics {
				for _, p := range t.Partitions {
					errs = append(errs, kerr.ErrorForCode(p.ErrorCode))
				}
			}
		})
	return errors.Join(errs...)
}

func (m member) Leave() error {
	err := m.cl.LeaveGroupContext(context.Background())
	m.cl.Close()
	return err
}

func (d *driver) CreateTopic(ctx context.Context, topic string, partitions, replicas int, configs map[string]string) error {
	values := map[string]*string{}
	for k, v := range configs {
		values[k] = &v
	}
	r, err := d.adm.CreateTopic(ctx, int32(partitions), int16(replicas), values, topic)
	return errors.Join(err, r.Err)
}

func (d *driver) DescribeTopic(ctx context.Context, topic string) (partitions, replicas int, err error) {
	topics, err := d.adm.ListTopics(ctx, topic)
	if err != nil {
		return 0, 0, err
	}
	t := topics[topic]
	return len(t.Partitions), t.Partitions.NumReplicas(), t.Err
}

func (d *driver) DeleteTopic(ctx context.Context, topic string) error {
	r, err := d.adm.DeleteTopic(ctx, topic)
	return errors.Join(err, r.Err)
}

func (d *driver) UnknownTopic(err error) bool { return errors.Is(err, kerr.UnknownTopicOrPartition) }

func (d *driver) AddPartitions(ctx context.Context, topic string, total int) error {
	r, err := d.adm.UpdatePartitions(ctx, total, topic)
	return errors.Join(err, r.Error())
}

func (d *driver) Nodes(ctx context.Context) (int, error) {
	b, err := d.adm.ListBrokers(ctx)
	return len(b), err
}

func config(r kadm.ResourceConfigs, err error, name string) (string, error) {
	if err != nil {
		return "", err
	}
	for _, c := range r {
		for _, v := range c.Configs {
			if v.Key == name {
				return v.MaybeValue(), c.Err
			}
		}
		err = errors.Join(err, c.Err)
	}
	return "", errors.Join(fmt.Errorf("there is no %s", name), err)
}

func (d *driver) TopicConfig(ctx context.Context, topic, name string) (string, error) {
	r, err := d.adm.DescribeTopicConfigs(ctx, topic)
	return config(r, err, name)
}

func (d *driver) BrokerConfig(ctx context.Context, node int32, name string) (string, error) {
	r, err := d.adm.DescribeBrokerConfigs(ctx, node)
	return config(r, err, name)
}

func (d *driver) SetTopicConfig(ctx context.Context, topic, name, value string) error {
	r, err := d.adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: name, Value: &value}}, topic)
	for _, one := range r {
		err = errors.Join(err, one.Err)
	}
	return err
}

func (d *driver) Groups(ctx context.Context) ([]string, error) {
	r, err := d.adm.ListGroups(ctx)
	return r.Groups(), err
}

func (d *driver) DescribeGroup(ctx context.Context, group string) (string, int, error) {
	r, err := d.adm.DescribeGroups(ctx, group)
	g := r[group]
	return g.State, len(g.Members), errors.Join(err, g.Err)
}

func (d *driver) DeleteGroup(ctx context.Context, group string) error {
	r, err := d.adm.DeleteGroup(ctx, group)
	return errors.Join(err, r.Err)
}

func (d *driver) Committed(ctx context.Context, group, topic string) (map[int32]int64, error) {
	r, err := d.adm.FetchOffsets(ctx, group)
	out := map[int32]int64{}
	for p, o := range r[topic] {
		out[p] = o.At
		err = errors.Join(err, o.Err)
	}
	return out, err
}

func (d *driver) Offsets(ctx context.Context, topic string, at int64) (map[int32]int64, error) {
	var r kadm.ListedOffsets
	var err error
	switch at {
	case matrix.Earliest:
		r, err = d.adm.ListStartOffsets(ctx, topic)
	case matrix.Latest:
		r, err = d.adm.ListEndOffsets(ctx, topic)
	default:
		r, err = d.adm.ListOffsetsAfterMilli(ctx, at, topic)
	}
	out := map[int32]int64{}
	for p, o := range r[topic] {
		out[p] = o.Offset
		err = errors.Join(err, o.Err)
	}
	return out, err
}

func (d *driver) DeleteRecords(ctx context.Context, topic string, partition int32, before int64) error {
	var o kadm.Offsets
	o.AddOffset(topic, partition, before, -1)
	r, err := d.adm.DeleteRecords(ctx, o)
	return errors.Join(err, r.Error())
}
