// Command confluent-kafka-go is the client matrix' program for github.com/confluentinc/confluent-kafka-go/v2, and so for librdkafka.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/chronik-go/chronik/test/clients/go/matrix"
)

func main() {
	_, lib := kafka.LibraryVersion()
	matrix.Main("confluent-kafka-go", "github.com/confluentinc/confluent-kafka-go/v2", " (librdkafka "+lib+")", func(e matrix.Env) (matrix.Driver, error) {
		d := &driver{env: e}
		cfg := d.config(nil)
		adm, err := kafka.NewAdminClient(&cfg)
		d.adm = adm
		return d, err
	})
}

type driver struct {
	env matrix.Env
	adm *kafka.AdminClient
}

func (d *driver) config(more kafka.ConfigMap) kafka.ConfigMap {
	c := kafka.ConfigMap{"bootstrap.servers": strings.Join(d.env.Bootstrap, ","), "client.id": d.env.Prefix, "log_level": 4}
	maps.Copy(c, more)
	return c
}

func (d *driver) Idempotent() bool { return true }

func (d *driver) Close() error {
	d.adm.Close()
	return nil
}

// failure makes nil of no error.
func failure(e kafka.Error) error {
	if e.Code() == kafka.ErrNoError {
		return nil
	}
	return e
}

type producer struct {
	*kafka.Producer
	drained sync.WaitGroup
}

func (d *driver) NewProducer(codec string, maxBytes int) (matrix.Producer, error) {
	cfg := d.config(kafka.ConfigMap{"enable.idempotence": true, "compression.type": codec, "message.max.bytes": maxBytes, "linger.ms": 5})
	k, err := kafka.NewProducer(&cfg)
	if err != nil {
		return nil, err
	}
	p := &producer{Producer: k}
	p.drained.Go(func() {
		for e := range k.Events() {
			m, ok := e.(*kafka.Message)
			if !ok {
				log.Print(e)
				continue
			}
			err := m.TopicPartition.Error
			var k kafka.Error
			if errors.As(err, &k) && k.Code() == kafka.ErrMsgSizeTooLarge {
				err = matrix.ErrTooLarge
			}
			m.Opaque.(func(error))(err)
		}
	})
	return p, nil
}

func (p *producer) Send(topic string, r matrix.Record, done func(error)) {
	m := &kafka.Message{TopicPartition: kafka.TopicPartition{Topic: &topic, Partition: r.Partition}, Key: r.Key, Value: r.Value, Timestamp: r.Time, Opaque: done}
	for _, h := range r.Headers {
		m.Headers = append(m.Headers, kafka.Header{Key: h.Key, Value: h.Value})
	}
	if err := p.Produce(m, nil); err != nil {
		done(err)
	}
}

func (p *producer) Close() error {
	left := p.Flush(60_000)
	p.Producer.Close() // closes the events
	p.drained.Wait()
	if left > 0 {
		return fmt.Errorf("%d records are not acknowledged after a minute", left)
	}
	return nil
}

type consumer struct {
	*kafka.Consumer
	topic string
}

func (d *driver) consumer(group, topic string) (*consumer, error) {
	cfg := d.config(kafka.ConfigMap{"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": false, "session.timeout.ms": 10000, "fetch.message.max.bytes": 4 << 20})
	c, err := kafka.NewConsumer(&cfg)
	return &consumer{c, topic}, err
}

func (c *consumer) Next(ctx context.Context) (matrix.Record, error) {
	for ctx.Err() == nil {
		switch e := c.Poll(100).(type) {
		case *kafka.Message:
			out := matrix.Record{Partition: e.TopicPartition.Partition, Offset: int64(e.TopicPartition.Offset), Key: e.Key, Value: e.Value, Time: e.Timestamp}
			for _, h := range e.Headers {
				out.Headers = append(out.Headers, matrix.Header{Key: h.Key, Value: h.Value})
			}
			return out, e.TopicPartition.Error
		case kafka.Error: // news, unless fatal
			log.Print(e)
			if e.IsFatal() {
				return matrix.Record{}, e
			}
		}
	}
	return matrix.Record{}, ctx.Err()
}

func (d *driver) NewReader(topic string, partition int32, start matrix.Start) (matrix.Reader, error) {
	c, err := d.consumer(d.env.Prefix+".reader", topic)
	if err != nil {
		return nil, err
	}
	at := kafka.TopicPartition{Topic: &topic, Partition: partition, Offset: kafka.Offset(start.Offset)}
	if !start.Time.IsZero() {
		at.Offset = kafka.Offset(start.Time.UnixMilli())
		found, err := c.OffsetsForTimes([]kafka.TopicPartition{at}, 30_000)
		if err == nil {
			err = found[0].Error
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		at.Offset = found[0].Offset
	}
	return c, c.Assign([]kafka.TopicPartition{at})
}

func (d *driver) Join(group, topic string) (matrix.Member, error) {
	c, err := d.consumer(group, topic)
	if err != nil {
		return nil, err
	}
	return member{c}, c.Subscribe(topic, nil)
}

type member struct{ *consumer }

func (m member) Owned() []int32 {
	a, err := m.Assignment()
	if err != nil {
		log.Print(err)
	}
	var out []int32
	for _, p := range a {
		out = append(out, p.Partition)
	}
	return out
}

func (m member) Commit(_ context.Context, offsets map[int32]int64) error {
	var all []kafka.TopicPartition
	for p, o := range offsets {
		all = append(all, kafka.TopicPartition{Topic: &m.topic, Partition: p, Offset: kafka.Offset(o)})
	}
	done, err := m.CommitOffsets(all)
	for _, p := range done {
		err = errors.Join(err, p.Error)
	}
	return err
}

func (m member) Leave() error { return m.Close() }

func (d *driver) CreateTopic(ctx context.Context, topic string, partitions, replicas int, configs map[string]string) error {
	return topics(d.adm.CreateTopics(ctx, []kafka.TopicSpecification{{Topic: topic, NumPartitions: partitions, ReplicationFactor: replicas, Config: configs}}))
}

func topics(r []kafka.TopicResult, err error) error {
	for _, t := range r {
		err = errors.Join(err, failure(t.Error))
	}
	return err
}

func (d *driver) describeTopic(ctx context.Context, topic string) ([]kafka.TopicPartitionInfo, error) {
	r, err := d.adm.DescribeTopics(ctx, kafka.NewTopicCollectionOfTopicNames([]string{topic}))
	if err != nil {
		return nil, err
	}
	return r.TopicDescriptions[0].Partitions, failure(r.TopicDescriptions[0].Error)
}

func (d *driver) DescribeTopic(ctx context.Context, topic string) (partitions, replicas int, err error) {
	p, err := d.describeTopic(ctx, topic)
	if err != nil || len(p) == 0 {
		return 0, 0, err
	}
	return len(p), len(p[0].Replicas), nil
}

func (d *driver) DeleteTopic(ctx context.Context, topic string) error {
	return topics(d.adm.DeleteTopics(ctx, []string{topic}))
}

func (d *driver) UnknownTopic(err error) bool {
	var k kafka.Error
	return errors.As(err, &k) && k.Code() == kafka.ErrUnknownTopicOrPart
}

func (d *driver) AddPartitions(ctx context.Context, topic string, total int) error {
	return topics(d.adm.CreatePartitions(ctx, []kafka.PartitionsSpecification{{Topic: topic, IncreaseTo: total}}))
}

func (d *driver) Nodes(ctx context.Context) (int, error) {
	r, err := d.adm.DescribeCluster(ctx)
	return len(r.Nodes), err
}

func (d *driver) describe(ctx context.Context, resource kafka.ResourceType, of, name string) (string, error) {
	r, err := d.adm.DescribeConfigs(ctx, []kafka.ConfigResource{{Type: resource, Name: of}})
	if err != nil {
		return "", err
	}
	if err := failure(r[0].Error); err != nil {
		return "", err
	}
	v, ok := r[0].Config[name]
	if !ok {
		return "", fmt.Errorf("there is no %s", name)
	}
	return v.Value, nil
}

func (d *driver) TopicConfig(ctx context.Context, topic, name string) (string, error) {
	return d.describe(ctx, kafka.ResourceTopic, topic, name)
}

func (d *driver) BrokerConfig(ctx context.Context, node int32, name string) (string, error) {
	// A node that is down is not waited for: another is asked then.
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return d.describe(ctx, kafka.ResourceBroker, strconv.Itoa(int(node)), name)
}

func (d *driver) SetTopicConfig(ctx context.Context, topic, name, value string) error {
	r, err := d.adm.IncrementalAlterConfigs(ctx, []kafka.ConfigResource{{Type: kafka.ResourceTopic, Name: topic,
		Config: []kafka.ConfigEntry{{Name: name, Value: value, IncrementalOperation: kafka.AlterConfigOpTypeSet}}}})
	for _, one := range r {
		err = errors.Join(err, failure(one.Error))
	}
	return err
}

func (d *driver) Groups(ctx context.Context) ([]string, error) {
	r, err := d.adm.ListConsumerGroups(ctx)
	var out []string
	for _, g := range r.Valid {
		out = append(out, g.GroupID)
	}
	return out, errors.Join(append(r.Errors, err)...)
}

// fresh makes an admin client for what is asked of a group's coordinator: librdkafka goes on asking one that has moved, for a
// NOT_COORDINATOR in an answer about a group does not empty its cache.
func (d *driver) fresh() (*kafka.AdminClient, error) {
	cfg := d.config(nil)
	return kafka.NewAdminClient(&cfg)
}

func (d *driver) DescribeGroup(ctx context.Context, group string) (string, int, error) {
	a, err := d.fresh()
	if err != nil {
		return "", 0, err
	}
	defer a.Close()
	r, err := a.DescribeConsumerGroups(ctx, []string{group})
	if err != nil {
		return "", 0, err
	}
	g := r.ConsumerGroupDescriptions[0]
	return g.State.String(), len(g.Members), failure(g.Error)
}

func (d *driver) DeleteGroup(ctx context.Context, group string) error {
	a, err := d.fresh()
	if err != nil {
		return err
	}
	defer a.Close()
	r, err := a.DeleteConsumerGroups(ctx, []string{group})
	for _, g := range r.ConsumerGroupResults {
		err = errors.Join(err, failure(g.Error))
	}
	return err
}

// partitions lists a topic's partitions, all with one offset.
func (d *driver) partitions(ctx context.Context, topic string) ([]kafka.TopicPartition, error) {
	all, err := d.describeTopic(ctx, topic)
	var out []kafka.TopicPartition
	for _, p := range all {
		out = append(out, kafka.TopicPartition{Topic: &topic, Partition: int32(p.Partition)})
	}
	return out, err
}

func (d *driver) Committed(ctx context.Context, group, topic string) (map[int32]int64, error) {
	parts, err := d.partitions(ctx, topic)
	if err != nil {
		return nil, err
	}
	a, err := d.fresh()
	if err != nil {
		return nil, err
	}
	defer a.Close()
	r, err := a.ListConsumerGroupOffsets(ctx, []kafka.ConsumerGroupTopicPartitions{{Group: group, Partitions: parts}})
	if err != nil {
		return nil, err
	}
	out := map[int32]int64{}
	for _, p := range r.ConsumerGroupsTopicPartitions[0].Partitions {
		out[p.Partition] = int64(p.Offset)
		err = errors.Join(err, p.Error)
	}
	return out, err
}

func (d *driver) Offsets(ctx context.Context, topic string, at int64) (map[int32]int64, error) {
	parts, err := d.partitions(ctx, topic)
	if err != nil {
		return nil, err
	}
	spec := kafka.NewOffsetSpecForTimestamp(at)
	switch at {
	case matrix.Earliest:
		spec = kafka.EarliestOffsetSpec
	case matrix.Latest:
		spec = kafka.LatestOffsetSpec
	}
	ask := map[kafka.TopicPartition]kafka.OffsetSpec{}
	for _, p := range parts {
		ask[p] = spec
	}
	r, err := d.adm.ListOffsets(ctx, ask)
	out := map[int32]int64{}
	for p, o := range r.ResultInfos {
		out[p.Partition] = int64(o.Offset)
		err = errors.Join(err, failure(o.Error))
		if o.Offset == kafka.OffsetInvalid { // without an error: its leader could not be asked (librdkafka's rd_kafka_ListOffsets_response_merge)
			err = errors.Join(err, fmt.Errorf("partition %d: no answer of its leader", p.Partition))
		}
	}
	return out, err
}

func (d *driver) DeleteRecords(ctx context.Context, topic string, partition int32, before int64) error {
	r, err := d.adm.DeleteRecords(ctx, []kafka.TopicPartition{{Topic: &topic, Partition: partition, Offset: kafka.Offset(before)}})
	for _, one := range r.DeleteRecordsResults {
		err = errors.Join(err, one.TopicPartition.Error)
	}
	return err
}
