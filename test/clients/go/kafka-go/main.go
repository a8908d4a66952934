// Command kafka-go is the client matrix' program for github.com/segmentio/kafka-go.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/chronik-go/chronik/test/clients/go/matrix"
)

func main() {
	matrix.Main("kafka-go", "github.com/segmentio/kafka-go", "", func(e matrix.Env) (matrix.Driver, error) {
		t := &kafka.Transport{ClientID: e.Prefix, MetadataTTL: time.Second}
		return &driver{env: e, transport: t, cl: &kafka.Client{Addr: kafka.TCP(e.Bootstrap...), Transport: t, Timeout: 30 * time.Second}}, nil
	})
}

type driver struct {
	env       matrix.Env
	transport *kafka.Transport
	cl        *kafka.Client
}

// Idempotent: kafka-go's writers have no producer id.
func (d *driver) Idempotent() bool { return false }

func (d *driver) Close() error {
	d.transport.CloseIdleConnections()
	return nil
}

func logger(format string, args ...any) { log.Printf(format, args...) }

type producer struct {
	w       *kafka.Writer
	pending sync.WaitGroup // records whose fate is not known
}

// meta travels with a message through the writer.
type meta struct {
	partition int
	done      func(error)
}

func (d *driver) NewProducer(codec string, maxBytes int) (matrix.Producer, error) {
	var c kafka.Compression
	if codec != "none" {
		if err := c.UnmarshalText([]byte(codec)); err != nil {
			return nil, err
		}
	}
	return &producer{w: &kafka.Writer{
		Addr: d.cl.Addr, Transport: d.transport, RequiredAcks: kafka.RequireAll, Compression: c, Async: true,
		MaxAttempts: 100, WriteBackoffMax: 500 * time.Millisecond, BatchTimeout: 5 * time.Millisecond, BatchSize: 1000, BatchBytes: int64(maxBytes),
		Balancer: kafka.BalancerFunc(func(m kafka.Message, _ ...int) int { return m.WriterData.(meta).partition }),
		Completion: func(messages []kafka.Message, err error) {
			if errors.Is(err, kafka.MessageSizeTooLarge) {
				err = matrix.ErrTooLarge
			}
			for _, m := range messages {
				m.WriterData.(meta).done(err)
			}
		},
		ErrorLogger: kafka.LoggerFunc(logger),
	}}, nil
}

func (p *producer) Send(topic string, r matrix.Record, done func(error)) {
	p.pending.Add(1)
	p.send(topic, r, func(err error) {
		done(err)
		p.pending.Done()
	})
}

func (p *producer) send(topic string, r matrix.Record, done func(error)) {
	m := kafka.Message{Topic: topic, Key: r.Key, Value: r.Value, Time: r.Time, WriterData: meta{int(r.Partition), done}}
	for _, h := range r.Headers {
		m.Headers = append(m.Headers, kafka.Header{Key: h.Key, Value: h.Value})
	}
	// kafka-go does not try again while a partition has no leader, which others' kills bring about: its user does.
	m.WriterData = meta{int(r.Partition), func(err error) {
		if err == nil || errors.Is(err, matrix.ErrTooLarge) || !strings.Contains(err.Error(), "no leader") {
			done(err)
			return
		}
		log.Print(err)
		time.AfterFunc(200*time.Millisecond, func() { p.send(topic, r, done) })
	}}
	// An error here is one of looking up partitions: nothing was queued.
	var err error
	for range 300 {
		if err = p.w.WriteMessages(context.Background(), m); err == nil {
			return
		}
		log.Print(err)
		time.Sleep(100 * time.Millisecond)
	}
	done(err)
}

func (p *producer) Close() error {
	p.pending.Wait()
	return p.w.Close()
}

func record(in kafka.Message) matrix.Record {
	out := matrix.Record{Partition: int32(in.Partition), Offset: in.Offset, Key: in.Key, Value: in.Value, Time: in.Time}
	for _, h := range in.Headers {
		out.Headers = append(out.Headers, matrix.Header{Key: h.Key, Value: h.Value})
	}
	return out
}

type reader struct{ *kafka.Reader }

func (d *driver) newReader(topic string, partition int) *kafka.Reader {
	return kafka.NewReader(kafka.ReaderConfig{Brokers: d.env.Bootstrap, Topic: topic, Partition: partition, MaxBytes: 8 << 20,
		MaxWait: 200 * time.Millisecond, MaxAttempts: 100, ErrorLogger: kafka.LoggerFunc(logger)})
}

func (d *driver) NewReader(topic string, partition int32, start matrix.Start) (matrix.Reader, error) {
	r := d.newReader(topic, int(partition))
	if start.Time.IsZero() {
		return reader{r}, r.SetOffset(start.Offset)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	// It tries once, and a leader may just be dying.
	for {
		err := r.SetOffsetAt(ctx, start.Time)
		if err == nil {
			return reader{r}, nil
		}
		log.Print(err)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(err, r.Close())
		}
	}
}

func (r reader) Next(ctx context.Context) (matrix.Record, error) {
	m, err := r.FetchMessage(ctx)
	return record(m), err
}

// member reads the partitions of each generation with readers of their own, as kafka-go's example of a ConsumerGroup does.
type member struct {
	d        *driver
	group    *kafka.ConsumerGroup
	topic    string
	records  chan kafka.Message
	cancel   context.CancelFunc
	finished sync.WaitGroup

	mu  sync.Mutex
	gen *kafka.Generation
}

func (d *driver) Join(group, topic string) (matrix.Member, error) {
	g, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{ID: group, Brokers: d.env.Bootstrap, Topics: []string{topic},
		StartOffset: kafka.FirstOffset, JoinGroupBackoff: 200 * time.Millisecond, HeartbeatInterval: time.Second, ErrorLogger: kafka.LoggerFunc(logger)})
	if err != nil {
		return nil, err
	}
	m := &member{d: d, group: g, topic: topic, records: make(chan kafka.Message)}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.finished.Go(func() {
		for {
			gen, err := g.Next(ctx)
			if ctx.Err() != nil || errors.Is(err, kafka.ErrGroupClosed) {
				return
			}
			if err != nil {
				log.Print(err)
				continue
			}
			m.begin(gen)
		}
	})
	return m, nil
}

func (m *member) begin(gen *kafka.Generation) {
	m.mu.Lock()
	m.gen = gen
	m.mu.Unlock()
	for _, a := range gen.Assignments[m.topic] {
		gen.Start(func(ctx context.Context) {
			r := m.d.newReader(m.topic, a.ID)
			defer r.Close()
			if err := r.SetOffset(a.Offset); err != nil {
				log.Print(err)
				return
			}
			for {
				msg, err := r.FetchMessage(ctx)
				if err != nil {
					if ctx.Err() == nil {
						log.Print(err)
					}
					return
				}
				select {
				case m.records <- msg:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	gen.Start(func(ctx context.Context) {
		<-ctx.Done()
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.gen == gen {
			m.gen = nil
		}
	})
}

func (m *member) Owned() []int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gen == nil {
		return nil
	}
	var out []int32
	for _, a := range m.gen.Assignments[m.topic] {
		out = append(out, int32(a.ID))
	}
	return out
}

func (m *member) Next(ctx context.Context) (matrix.Record, error) {
	select {
	case r := <-m.records:
		return record(r), nil
	case <-ctx.Done():
		return matrix.Record{}, ctx.Err()
	}
}

func (m *member) Commit(_ context.Context, offsets map[int32]int64) error {
	m.mu.Lock()
	gen := m.gen
	m.mu.Unlock()
	if gen == nil {
		return errors.New("no generation just now")
	}
	all := map[int]int64{}
	for p, o := range offsets {
		all[int(p)] = o
	}
	return gen.CommitOffsets(map[string]map[int]int64{m.topic: all})
}

func (m *member) Leave() error {
	m.cancel()
	m.finished.Wait()
	return m.group.Close()
}

func (d *driver) CreateTopic(ctx context.Context, topic string, partitions, replicas int, configs map[string]string) error {
	t := kafka.TopicConfig{Topic: topic, NumPartitions: partitions, ReplicationFactor: replicas}
	for k, v := range configs {
		t.ConfigEntries = append(t.ConfigEntries, kafka.ConfigEntry{ConfigName: k, ConfigValue: v})
	}
	r, err := d.cl.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{t}})
	if err != nil {
		return err
	}
	return r.Errors[topic]
}

func (d *driver) metadata(ctx context.Context, topic string) (*kafka.Topic, error) {
	r, err := d.cl.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return nil, err
	}
	if len(r.Topics) != 1 {
		return nil, fmt.Errorf("%d topics in place of one", len(r.Topics))
	}
	return &r.Topics[0], r.Topics[0].Error
}

func (d *driver) DescribeTopic(ctx context.Context, topic string) (partitions, replicas int, err error) {
	t, err := d.metadata(ctx, topic)
	if err != nil || len(t.Partitions) == 0 {
		return 0, 0, err
	}
	return len(t.Partitions), len(t.Partitions[0].Replicas), nil
}

func (d *driver) DeleteTopic(ctx context.Context, topic string) error {
	r, err := d.cl.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{topic}})
	if err != nil {
		return err
	}
	return r.Errors[topic]
}

func (d *driver) UnknownTopic(err error) bool { return errors.Is(err, kafka.UnknownTopicOrPartition) }

func (d *driver) AddPartitions(ctx context.Context, topic string, total int) error {
	r, err := d.cl.CreatePartitions(ctx, &kafka.CreatePartitionsRequest{Topics: []kafka.TopicPartitionsConfig{{Name: topic, Count: int32(total)}}})
	if err != nil {
		return err
	}
	return r.Errors[topic]
}

func (d *driver) Nodes(ctx context.Context) (int, error) {
	r, err := d.cl.Metadata(ctx, &kafka.MetadataRequest{})
	if err != nil {
		return 0, err
	}
	return len(r.Brokers), nil
}

func (d *driver) describe(ctx context.Context, resource kafka.ResourceType, of, name string) (string, error) {
	r, err := d.cl.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{
		{ResourceType: resource, ResourceName: of, ConfigNames: []string{name}}}})
	if err != nil {
		return "", err
	}
	for _, res := range r.Resources {
		for _, e := range res.ConfigEntries {
			if e.ConfigName == name {
				return e.ConfigValue, nil
			}
		}
		err = errors.Join(err, res.Error)
	}
	return "", errors.Join(fmt.Errorf("there is no %s", name), err)
}

func (d *driver) TopicConfig(ctx context.Context, topic, name string) (string, error) {
	return d.describe(ctx, kafka.ResourceTypeTopic, topic, name)
}

func (d *driver) BrokerConfig(ctx context.Context, node int32, name string) (string, error) {
	return d.describe(ctx, kafka.ResourceTypeBroker, strconv.Itoa(int(node)), name)
}

func (d *driver) SetTopicConfig(ctx context.Context, topic, name, value string) error {
	r, err := d.cl.IncrementalAlterConfigs(ctx, &kafka.IncrementalAlterConfigsRequest{Resources: []kafka.IncrementalAlterConfigsRequestResource{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: topic,
		Configs: []kafka.IncrementalAlterConfigsRequestConfig{{Name: name, Value: value, ConfigOperation: kafka.ConfigOperationSet}}}}})
	if err != nil {
		return err
	}
	return r.Resources[0].Error
}

func (d *driver) Groups(ctx context.Context) ([]string, error) {
	r, err := d.cl.ListGroups(ctx, &kafka.ListGroupsRequest{})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, g := range r.Groups {
		out = append(out, g.GroupID)
	}
	return out, r.Error
}

func (d *driver) DescribeGroup(ctx context.Context, group string) (string, int, error) {
	r, err := d.cl.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})
	if err != nil {
		return "", 0, err
	}
	g := r.Groups[0]
	return g.GroupState, len(g.Members), g.Error
}

func (d *driver) DeleteGroup(ctx context.Context, group string) error {
	r, err := d.cl.DeleteGroups(ctx, &kafka.DeleteGroupsRequest{GroupIDs: []string{group}})
	if err != nil {
		return err
	}
	return r.Errors[group]
}

func (d *driver) Committed(ctx context.Context, group, topic string) (map[int32]int64, error) {
	t, err := d.metadata(ctx, topic)
	if err != nil {
		return nil, err
	}
	var parts []int
	for _, p := range t.Partitions {
		parts = append(parts, p.ID)
	}
	r, err := d.cl.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{topic: parts}})
	if err != nil {
		return nil, err
	}
	out := map[int32]int64{}
	for _, p := range r.Topics[topic] {
		out[int32(p.Partition)] = p.CommittedOffset
		r.Error = errors.Join(r.Error, p.Error)
	}
	return out, r.Error
}

func (d *driver) Offsets(ctx context.Context, topic string, at int64) (map[int32]int64, error) {
	t, err := d.metadata(ctx, topic)
	if err != nil {
		return nil, err
	}
	var ask []kafka.OffsetRequest
	for _, p := range t.Partitions {
		ask = append(ask, kafka.OffsetRequest{Partition: p.ID, Timestamp: at})
	}
	r, err := d.cl.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: ask}})
	if err != nil {
		return nil, err
	}
	out := map[int32]int64{}
	for _, p := range r.Topics[topic] {
		err = errors.Join(err, p.Error)
		switch at {
		case matrix.Earliest:
			out[int32(p.Partition)] = p.FirstOffset
		case matrix.Latest:
			out[int32(p.Partition)] = p.LastOffset
		default:
			for o := range p.Offsets {
				out[int32(p.Partition)] = o
			}
		}
	}
	return out, err
}

func (d *driver) DeleteRecords(context.Context, string, int32, int64) error {
	return matrix.Unsupported("no DeleteRecords")
}
