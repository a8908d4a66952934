package badinput

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/record"
)

// batch is a sound batch of so many records.
func batch(t *testing.T, codec record.Codec, records int) []byte {
	t.Helper()
	b := record.NewBuilder()
	b.Codec = codec
	for range records {
		b.Add(time.Now().UnixMilli(), nil, []byte("value"))
	}
	out, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// resealed changes a copy of a batch and gives it a checksum that fits.
func resealed(b []byte, fn func(b []byte)) []byte {
	b = slices.Clone(b)
	fn(b)
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
	return b
}

func produceRequest(topic string, partition int32, acks int16, records []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(9)
	req.Acks, req.TimeoutMillis = acks, 10000
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, records
	tp := kmsg.NewProduceRequestTopic()
	tp.Topic, tp.Partitions = topic, append(tp.Partitions, p)
	req.Topics = append(req.Topics, tp)
	return req
}

// produces sends records and wants the error, nil for none.
func (s *target) produces(t *testing.T, what, topic string, partition int32, acks int16, records []byte, want *kerr.Error) {
	t.Helper()
	var p kmsg.ProduceResponseTopicPartition
	for end := time.Now().Add(bound); ; time.Sleep(50 * time.Millisecond) {
		resp := s.ask(t, produceRequest(topic, partition, acks, records)).(*kmsg.ProduceResponse)
		if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
			t.Fatalf("%s: an answer of another shape: %+v", what, resp)
		}
		p = resp.Topics[0].Partitions[0]
		if p.ErrorCode != kerr.NotLeaderForPartition.Code || time.Now().After(end) { // of a topic just made, on a slow machine
			break
		}
	}
	code := int16(0)
	if want != nil {
		code = want.Code
	}
	if p.ErrorCode != code {
		t.Errorf("%s: answered with %d (%v), want %d", what, p.ErrorCode, kerr.ErrorForCode(p.ErrorCode), code)
		return
	}
	if want == nil {
		return
	}
	if p.BaseOffset != -1 {
		t.Errorf("%s: refused, with base offset %d", what, p.BaseOffset)
	}
	if p.ErrorMessage == nil || *p.ErrorMessage == "" {
		t.Errorf("%s: refused with %v and no word for a person", what, want)
	} else {
		t.Logf("%s: %v: %s", what, want.Message, *p.ErrorMessage)
	}
}

// TestBadRecordsAreRefused, and nothing of them gets in.
func TestBadRecordsAreRefused(t *testing.T) {
	s := newTarget(t)
	const topic = "others" // that unharmed has made
	good := batch(t, record.None, 3)
	be := binary.BigEndian
	length := func(b []byte, n int) []byte {
		b = slices.Clone(b)
		be.PutUint32(b[8:], uint32(int(be.Uint32(b[8:]))+n))
		return b
	}
	for _, c := range []struct {
		name    string
		records []byte
		want    *kerr.Error
	}{
		{"a flipped bit", func() []byte { b := slices.Clone(good); b[70] ^= 1; return b }(), kerr.CorruptMessage},
		{"a wrong checksum", func() []byte { b := slices.Clone(good); b[17] ^= 1; return b }(), kerr.CorruptMessage},
		{"no records", nil, kerr.InvalidRecord},
		{"empty records", []byte{}, kerr.InvalidRecord},
		{"magic 1", func() []byte { b := slices.Clone(good); b[16] = 1; return b }(), kerr.InvalidRecord},
		{"magic 0", func() []byte { b := slices.Clone(good); b[16] = 0; return b }(), kerr.InvalidRecord},
		{"magic 3", func() []byte { b := slices.Clone(good); b[16] = 3; return b }(), kerr.InvalidRecord},
		{"two batches", append(slices.Clone(good), good...), kerr.InvalidRecord},
		{"half a batch", good[:len(good)-5], kerr.InvalidRecord},
		{"a length beyond the request", length(good, 1000), kerr.InvalidRecord},
		{"a negative length", length(good, -1<<20), kerr.CorruptMessage},
		{"a negative count", resealed(good, func(b []byte) { be.PutUint32(b[57:], 0xffffffff) }), kerr.InvalidRecord},
		{"an unknown codec", resealed(good, func(b []byte) { b[22] |= 5 }), kerr.InvalidRecord},
		{"a control batch", resealed(good, func(b []byte) { b[22] |= 0x20 }), kerr.InvalidRecord},
		{"a batch beyond max.message.bytes", batch(t, record.None, 200_000), kerr.MessageTooLarge},
	} {
		s.produces(t, c.name, topic, 0, -1, c.records, c.want)
	}
	s.produces(t, "acks=2", topic, 0, 2, good, kerr.InvalidRequiredAcks)
	s.produces(t, "an unknown partition", topic, 99, -1, good, kerr.UnknownTopicOrPartition)
	s.produces(t, "a negative partition", topic, -1, -1, good, kerr.UnknownTopicOrPartition)
	// unharmed counts what is in the topic: none of these.
	s.unharmed(t)
}

// TestCountBeyondRecordsIsRefused: the header of a sound frame claims a thousand million records where three lie. Accepted, it
// would take as many offsets, and Java consumers stop at such a batch for good.
func TestCountBeyondRecordsIsRefused(t *testing.T) {
	s := newTarget(t)
	bad := resealed(batch(t, record.None, 3), func(b []byte) {
		binary.BigEndian.PutUint32(b[57:], 1<<30)
		binary.BigEndian.PutUint32(b[23:], 1<<30-1)
	})
	s.produces(t, "a count beyond the records", "others", 0, -1, bad, kerr.InvalidRecord)
	s.unharmed(t)
}

func TestProduceToUnknownTopicCreatesNothing(t *testing.T) {
	s := newTarget(t)
	s.produces(t, "an unknown topic", "nobody-made-this", 0, -1, batch(t, record.None, 1), kerr.UnknownTopicOrPartition)
	s.produces(t, "an impossible topic", "no/such name", 0, -1, batch(t, record.None, 1), kerr.UnknownTopicOrPartition)
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(9)
	req.AllowAutoTopicCreation = false
	for _, topic := range s.ask(t, req).(*kmsg.MetadataResponse).Topics {
		if *topic.Topic != "others" {
			t.Errorf("topic %q was made", *topic.Topic)
		}
	}
	s.unharmed(t)
}

// createRecompressed makes a topic whose leader opens batches of other codecs than snappy.
func (s *target) createRecompressed(t *testing.T) {
	t.Helper()
	create := kmsg.NewPtrCreateTopicsRequest()
	create.SetVersion(5)
	create.TimeoutMillis = 60_000
	tp := kmsg.NewCreateTopicsRequestTopic()
	tp.Topic, tp.NumPartitions, tp.ReplicationFactor = "recompressed", 1, 1
	cfg := kmsg.NewCreateTopicsRequestTopicConfig()
	cfg.Name, cfg.Value = "compression.type", kmsg.StringPtr("snappy")
	tp.Configs = append(tp.Configs, cfg)
	create.Topics = append(create.Topics, tp)
	if r := s.ask(t, create).(*kmsg.CreateTopicsResponse); r.Topics[0].ErrorCode != 0 {
		t.Fatalf("creating the topic: %v", kerr.ErrorForCode(r.Topics[0].ErrorCode))
	}
}

// bomb is a small batch of one record of 256 MiB.
func bomb(t *testing.T, codec record.Codec) []byte {
	t.Helper()
	b := record.NewBuilder()
	b.Codec = codec
	b.Add(time.Now().UnixMilli(), nil, make([]byte, 256<<20))
	out, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d bytes", codec, len(out))
	return out
}

// TestBombIsNotInflated: a batch that grows a thousandfold, for a topic whose codec makes the leader open it.
func TestBombIsNotInflated(t *testing.T) {
	s := newTarget(t)
	s.createRecompressed(t)
	for _, codec := range []record.Codec{record.Gzip, record.Zstd} {
		s.produces(t, codec.String(), "recompressed", 0, -1, bomb(t, codec), kerr.MessageTooLarge)
	}
	s.produces(t, "sound", "recompressed", 0, -1, batch(t, record.Gzip, 100), nil)
	s.unharmed(t)
}

// TestManyBombsAtOnceStayBounded: each is small on the wire, and what it grows to must be bounded for the node, not for the
// batch.
func TestManyBombsAtOnceStayBounded(t *testing.T) {
	s := newTarget(t)
	s.createRecompressed(t)
	bombs := [][]byte{bomb(t, record.Gzip), bomb(t, record.Zstd)}
	var wg sync.WaitGroup
	for i := range 16 {
		c := s.dial(t)
		if err := c.SetDeadline(time.Now().Add(2 * bound)); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			resp, err := exchange(c, produceRequest("recompressed", 0, -1, bombs[i%2]))
			if err != nil {
				return // a closed connection is a refusal as well
			}
			if code := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode; code != kerr.MessageTooLarge.Code {
				t.Errorf("a bomb among many was answered with %d", code)
			}
		})
	}
	wg.Wait()
	s.unharmed(t)
}

func TestFetchOutOfRange(t *testing.T) {
	s := newTarget(t)
	for _, c := range []struct {
		name      string
		topic     string
		partition int32
		offset    int64
		want      *kerr.Error
	}{
		{"beyond the end", "others", 0, 1 << 40, kerr.OffsetOutOfRange},
		{"negative", "others", 0, -7, kerr.OffsetOutOfRange},
		{"unknown partition", "others", 9, 0, kerr.UnknownTopicOrPartition},
		{"unknown topic", "nobody-made-this", 0, 0, kerr.UnknownTopicOrPartition},
	} {
		for _, version := range []int16{4, 11, 12} {
			req := kmsg.NewPtrFetchRequest()
			req.SetVersion(version)
			const wait = 100 * time.Second // of a long poll; a machine that is slow needs less
			req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = int32(wait.Milliseconds()), 1, 1<<20, -1
			p := kmsg.NewFetchRequestTopicPartition()
			p.Partition, p.FetchOffset, p.PartitionMaxBytes = c.partition, c.offset, 1<<20
			tp := kmsg.NewFetchRequestTopic()
			tp.Topic, tp.Partitions = c.topic, append(tp.Partitions, p)
			req.Topics = append(req.Topics, tp)
			began := time.Now()
			resp := s.ask(t, req).(*kmsg.FetchResponse)
			if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
				t.Fatalf("%s, v%d: an answer of another shape: %+v", c.name, version, resp)
			}
			got := resp.Topics[0].Partitions[0]
			if got.ErrorCode != c.want.Code || resp.ErrorCode != 0 {
				t.Errorf("%s, v%d: answered with %v, want %v", c.name, version, kerr.ErrorForCode(got.ErrorCode), c.want)
			}
			if got.HighWatermark != -1 || got.LastStableOffset != -1 || len(got.RecordBatches) != 0 || got.RecordBatches == nil {
				t.Errorf("%s, v%d: high watermark %d, last stable offset %d, records %v", c.name, version, got.HighWatermark, got.LastStableOffset, got.RecordBatches)
			}
			if waited := time.Since(began); waited >= wait {
				t.Errorf("%s, v%d: an error waited for %v as if it were a long poll", c.name, version, waited)
			}
		}
	}
	s.unharmed(t)
}
