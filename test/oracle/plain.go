package oracle

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// Plain is a producer without idempotence: one batch at a time on each partition, each sent exactly once. What fails is of
// unknown fate, and a next attempt is a record of its own. So even here no record may be there twice: the server repeats nothing.
type Plain struct {
	ledger *Ledger
	id     int32
	load   Load
	client *kgo.Client
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// StartPlain starts a producer without idempotence. The caller stops it.
func (l *Ledger) StartPlain(load Load) (*Plain, error) {
	names := kversion.Stable()
	names.SetMaxKeyVersion(kmsg.NewPtrProduceRequest().Key(), 12) // the last with names of topics in place of ids
	cl, err := kgo.NewClient(kgo.SeedBrokers(load.Brokers...), kgo.MaxVersions(names), kgo.MetadataMinAge(50*time.Millisecond), kgo.DialTimeout(2*time.Second),
		kgo.ConnIdleTimeout(time.Minute))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Plain{ledger: l, id: l.enter(false, load), load: load, client: cl, cancel: cancel}
	for part := range load.Partitions {
		p.done.Go(func() { p.run(ctx, part) })
	}
	return p, nil
}

func (p *Plain) run(ctx context.Context, part int32) {
	tp := TP{p.load.Topic, part}
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	leader := int32(-1)
	for ctx.Err() == nil {
		if leader < 0 {
			leader = p.leader(ctx, tp)
		}
		if leader >= 0 && !p.send(tp, leader) {
			leader = -1
		}
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}

// leader asks for the partition's leader, -1 if nobody knows.
func (p *Plain) leader(ctx context.Context, tp TP) int32 {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = kmsg.StringPtr(tp.Topic)
	req.Topics = append(req.Topics, topic)
	res, err := req.RequestWith(ctx, p.client)
	if err != nil {
		return -1
	}
	for _, t := range res.Topics {
		for _, part := range t.Partitions {
			if part.Partition == tp.Partition && part.ErrorCode == 0 {
				return part.Leader
			}
		}
	}
	return -1
}

// send sends one batch once. False: ask for the leader again.
func (p *Plain) send(tp TP, leader int32) bool {
	var ids []ID
	var values [][]byte
	for range max(1, p.load.Rate/20) {
		id := p.ledger.sent(tp, p.id)
		ids = append(ids, id)
		values = append(values, value(tp, id))
	}
	offset, err := p.produce(tp, leader, batchOf(values))
	for i, id := range ids {
		p.ledger.ended(tp, id, offset+int64(i), err)
	}
	return err == nil
}

func (p *Plain) produce(tp TP, leader int32, batch []byte) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	part := kmsg.NewProduceRequestTopicPartition()
	part.Partition, part.Records = tp.Partition, batch
	topic := kmsg.NewProduceRequestTopic()
	topic.Topic, topic.Partitions = tp.Topic, []kmsg.ProduceRequestTopicPartition{part}
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis, req.Topics = -1, 5000, []kmsg.ProduceRequestTopic{topic}
	got, err := p.client.Broker(int(leader)).Request(ctx, req)
	if err != nil {
		return 0, err
	}
	res, ok := got.(*kmsg.ProduceResponse)
	if !ok || len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 1 {
		return 0, errors.New("a produce response of another shape than its request")
	}
	answer := res.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(answer.ErrorCode); err != nil {
		return 0, fmt.Errorf("produce: %w", err)
	}
	return answer.BaseOffset, nil
}

// batchOf builds a record batch (message format v2) without compression and without a producer id.
func batchOf(values [][]byte) []byte {
	now := time.Now().UnixMilli()
	var body []byte
	for i, v := range values {
		r := kmsg.Record{OffsetDelta: int32(i), Value: v}
		r.Length = int32(len(r.AppendTo(nil)) - 1) // a Length of 0 takes one byte
		body = r.AppendTo(body)
	}
	b := kmsg.RecordBatch{Magic: 2, PartitionLeaderEpoch: -1, LastOffsetDelta: int32(len(values) - 1), FirstTimestamp: now, MaxTimestamp: now,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: int32(len(values)), Records: body}
	const untilLength, untilCRC = 12, 21
	b.Length = int32(len(b.AppendTo(nil)) - untilLength)
	b.CRC = int32(crc32.Checksum(b.AppendTo(nil)[untilCRC:], crc32.MakeTable(crc32.Castagnoli)))
	return b.AppendTo(nil)
}

// Stop ends the writing; each request under way has a bound of its own.
func (p *Plain) Stop(context.Context) error {
	p.cancel()
	p.done.Wait()
	p.client.Close()
	return nil
}
