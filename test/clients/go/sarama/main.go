// Command sarama is the client matrix' program for github.com/IBM/sarama.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"github.com/chronik-go/chronik/test/clients/go/matrix"
)

func main() {
	matrix.Main("sarama", "github.com/IBM/sarama", "", func(e matrix.Env) (matrix.Driver, error) {
		d := &driver{env: e}
		var err error
		if d.client, err = sarama.NewClient(e.Bootstrap, d.config()); err != nil {
			return nil, err
		}
		d.adm, err = sarama.NewClusterAdminFromClient(d.client)
		return d, err
	})
}

type driver struct {
	env    matrix.Env
	client sarama.Client
	adm    sarama.ClusterAdmin // owns client
}

func (d *driver) config() *sarama.Config {
	c := sarama.NewConfig()
	c.ClientID = d.env.Prefix
	c.Version = sarama.MaxVersion
	c.Metadata.Retry.Max = 100 // a quarter of a second each
	c.Producer.Retry.Max = 100
	c.Admin.Retry.Max = 100
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Consumer.Offsets.AutoCommit.Enable = false
	c.Consumer.Return.Errors = true
	return c
}

func (d *driver) Idempotent() bool { return true }
func (d *driver) Close() error     { return d.adm.Close() }

type producer struct {
	sarama.AsyncProducer
	drained sync.WaitGroup
}

func (d *driver) NewProducer(codec string, maxBytes int) (matrix.Producer, error) {
	c := d.config()
	c.Producer.Idempotent = true
	c.Net.MaxOpenRequests = 1 // what sarama asks for with idempotence
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Partitioner = sarama.NewManualPartitioner
	c.Producer.MaxMessageBytes = maxBytes
	c.Producer.Return.Successes = true
	if err := c.Producer.Compression.UnmarshalText([]byte(codec)); err != nil {
		return nil, err
	}
	a, err := sarama.NewAsyncProducer(d.env.Bootstrap, c)
	if err != nil {
		return nil, err
	}
	p := &producer{AsyncProducer: a}
	p.drained.Go(func() {
		for m := range a.Successes() {
			m.Metadata.(func(error))(nil)
		}
	})
	p.drained.Go(func() {
		for e := range a.Errors() {
			err := e.Err
			if errors.Is(err, sarama.ErrMessageSizeTooLarge) {
				err = matrix.ErrTooLarge
			}
			e.Msg.Metadata.(func(error))(err)
		}
	})
	return p, nil
}

func (p *producer) Send(topic string, r matrix.Record, done func(error)) {
	m := &sarama.ProducerMessage{Topic: topic, Partition: r.Partition, Key: sarama.ByteEncoder(r.Key), Value: sarama.ByteEncoder(r.Value),
		Timestamp: r.Time, Metadata: done}
	for _, h := range r.Headers {
		m.Headers = append(m.Headers, sarama.RecordHeader{Key: []byte(h.Key), Value: h.Value})
	}
	p.Input() <- m
}

func (p *producer) Close() error {
	p.AsyncClose() // sends what is waiting, then closes both channels
	p.drained.Wait()
	return nil
}

func record(in *sarama.ConsumerMessage) matrix.Record {
	out := matrix.Record{Partition: in.Partition, Offset: in.Offset, Key: in.Key, Value: in.Value, Time: in.Timestamp}
	for _, h := range in.Headers {
		out.Headers = append(out.Headers, matrix.Header{Key: string(h.Key), Value: h.Value})
	}
	return out
}

type reader struct {
	sarama.Consumer
	part sarama.PartitionConsumer
}

func (d *driver) NewReader(topic string, partition int32, start matrix.Start) (matrix.Reader, error) {
	at := start.Offset
	if !start.Time.IsZero() {
		var err error
		if at, err = d.client.GetOffset(topic, partition, start.Time.UnixMilli()); err != nil {
			return nil, err
		}
	}
	c, err := sarama.NewConsumer(d.env.Bootstrap, d.config())
	if err != nil {
		return nil, err
	}
	part, err := c.ConsumePartition(topic, partition, at)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &reader{c, part}, nil
}

func (r *reader) Next(ctx context.Context) (matrix.Record, error) {
	for {
		select {
		case m := <-r.part.Messages():
			return record(m), nil
		case err := <-r.part.Errors(): // the consumer goes on by itself
			log.Print(err)
		case <-ctx.Done():
			return matrix.Record{}, ctx.Err()
		}
	}
}

func (r *reader) Close() error {
	// Errors of a broker that went away may still be there.
	go func() {
		for range r.part.Errors() {
		}
	}()
	r.part.AsyncClose()
	for range r.part.Messages() {
	}
	return r.Consumer.Close()
}

// member is a consumer group's handler.
type member struct {
	group    sarama.ConsumerGroup
	topic    string
	records  chan *sarama.ConsumerMessage
	cancel   context.CancelFunc
	finished sync.WaitGroup

	mu      sync.Mutex
	session sarama.ConsumerGroupSession // nil between two generations
}

func (d *driver) Join(group, topic string) (matrix.Member, error) {
	g, err := sarama.NewConsumerGroup(d.env.Bootstrap, group, d.config())
	if err != nil {
		return nil, err
	}
	m := &member{group: g, topic: topic, records: make(chan *sarama.ConsumerMessage)}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.finished.Go(func() {
		for err := range g.Errors() {
			log.Print(err)
		}
	})
	m.finished.Go(func() {
		for ctx.Err() == nil { // Consume returns at every rebalance
			if err := g.Consume(ctx, []string{topic}, m); err != nil {
				log.Print(err)
				select {
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		}
	})
	return m, nil
}

func (m *member) Setup(s sarama.ConsumerGroupSession) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.session = s
	return nil
}

func (m *member) Cleanup(sarama.ConsumerGroupSession) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.session = nil
	return nil
}

func (m *member) ConsumeClaim(s sarama.ConsumerGroupSession, c sarama.ConsumerGroupClaim) error {
	for {
		select {
		case r, ok := <-c.Messages():
			if !ok {
				return nil
			}
			select {
			case m.records <- r:
			case <-s.Context().Done():
				return nil
			}
		case <-s.Context().Done():
			return nil
		}
	}
}

func (m *member) Owned() []int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.session == nil {
		return nil
	}
	return slices.Clone(m.session.Claims()[m.topic])
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
	s := m.session
	m.mu.Unlock()
	if s == nil {
		return errors.New("no session just now")
	}
	for p, o := range offsets {
		s.MarkOffset(m.topic, p, o, "")
	}
	s.Commit() // its errors go to the group's channel
	return nil
}

func (m *member) Leave() error {
	m.cancel()
	err := m.group.Close()
	m.finished.Wait()
	return err
}

func (d *driver) CreateTopic(_ context.Context, topic string, partitions, replicas int, configs map[string]string) error {
	detail := &sarama.TopicDetail{NumPartitions: int32(partitions), ReplicationFactor: int16(replicas), ConfigEntries: map[string]*string{}}
	for k, v := range configs {
		detail.ConfigEntries[k] = &v
	}
	return d.adm.CreateTopic(topic, detail, false)
}

func (d *driver) DescribeTopic(_ context.Context, topic string) (partitions, replicas int, err error) {
	topics, err := d.adm.DescribeTopics([]string{topic})
	if err != nil {
		return 0, 0, err
	}
	t := topics[0]
	if t.Err != sarama.ErrNoError {
		return 0, 0, t.Err
	}
	return len(t.Partitions), len(t.Partitions[0].Replicas), nil
}

func (d *driver) DeleteTopic(_ context.Context, topic string) error { return d.adm.DeleteTopic(topic) }

func (d *driver) UnknownTopic(err error) bool {
	return errors.Is(err, sarama.ErrUnknownTopicOrPartition)
}

func (d *driver) AddPartitions(_ context.Context, topic string, total int) error {
	return d.adm.CreatePartitions(topic, int32(total), nil, false)
}

func (d *driver) Nodes(context.Context) (int, error) {
	b, _, err := d.adm.DescribeCluster()
	return len(b), err
}

func (d *driver) describe(resource sarama.ConfigResourceType, of, name string) (string, error) {
	entries, err := d.adm.DescribeConfig(sarama.ConfigResource{Type: resource, Name: of, ConfigNames: []string{name}})
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if e.Name == name {
			return e.Value, nil
		}
	}
	return "", fmt.Errorf("there is no %s", name)
}

func (d *driver) TopicConfig(_ context.Context, topic, name string) (string, error) {
	return d.describe(sarama.TopicResource, topic, name)
}

func (d *driver) BrokerConfig(_ context.Context, node int32, name string) (string, error) {
	return d.describe(sarama.BrokerResource, strconv.Itoa(int(node)), name)
}

func (d *driver) SetTopicConfig(_ context.Context, topic, name, value string) error {
	return d.adm.IncrementalAlterConfig(sarama.TopicResource, topic,
		map[string]sarama.IncrementalAlterConfigsEntry{name: {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &value}}, false)
}

func (d *driver) Groups(context.Context) ([]string, error) {
	groups, err := d.adm.ListConsumerGroups()
	var out []string
	for g := range groups {
		out = append(out, g)
	}
	return out, err
}

func (d *driver) DescribeGroup(_ context.Context, group string) (string, int, error) {
	g, err := d.adm.DescribeConsumerGroups([]string{group})
	if err != nil {
		return "", 0, err
	}
	if g[0].Err != sarama.ErrNoError {
		return "", 0, g[0].Err
	}
	return g[0].State, len(g[0].Members), nil
}

func (d *driver) DeleteGroup(_ context.Context, group string) error {
	return d.adm.DeleteConsumerGroup(group)
}

func (d *driver) partitions(topic string, at int64) (map[string]map[int32]int64, error) {
	if err := d.client.RefreshMetadata(topic); err != nil {
		return nil, err
	}
	all, err := d.client.Partitions(topic)
	out := map[int32]int64{}
	for _, p := range all {
		out[p] = at
	}
	return map[string]map[int32]int64{topic: out}, err
}

func (d *driver) Committed(_ context.Context, group, topic string) (map[int32]int64, error) {
	parts, err := d.client.Partitions(topic)
	if err != nil {
		return nil, err
	}
	r, err := d.adm.ListConsumerGroupOffsets(group, map[string][]int32{topic: parts})
	if err != nil {
		return nil, err
	}
	out := map[int32]int64{}
	for p, b := range r.Blocks[topic] {
		if b.Err != sarama.ErrNoError {
			return nil, b.Err
		}
		out[p] = b.Offset
	}
	return out, nil
}

func (d *driver) Offsets(_ context.Context, topic string, at int64) (map[int32]int64, error) {
	ask, err := d.partitions(topic, at)
	if err != nil {
		return nil, err
	}
	r, err := d.adm.ListOffsets(ask, &sarama.ListOffsetsOptions{})
	if err != nil {
		return nil, err
	}
	out := map[int32]int64{}
	for p, o := range r[topic] {
		if o.Err != nil && !errors.Is(o.Err, sarama.ErrNoError) {
			return nil, o.Err
		}
		out[p] = o.Offset
	}
	return out, nil
}

func (d *driver) DeleteRecords(_ context.Context, topic string, partition int32, before int64) error {
	return d.adm.DeleteRecords(topic, map[int32]int64{partition: before})
}
