package group

import (
	"encoding/binary"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/record"
)

// Kinds of records in __consumer_offsets: the first two bytes of a key. Consumer groups' are in package consumer.
const (
	kindOffsetCommitOld = 0
	kindOffsetCommit    = 1
	kindGroupMetadata   = 2
)

// Versions written, the highest that are not flexible: what Kafka writes as well.
const (
	offsetCommitVersion  = 3
	offsetExpiresVersion = 1 // the only one that has an expiry of its own
	groupMetadataVersion = 3
)

// keyValue is a record to be written. A nil value is a tombstone.
type keyValue struct{ key, value []byte }

func (kv keyValue) size() int { return len(kv.key) + len(kv.value) + 32 }

func offsetKey(group string, tp topicPartition) []byte {
	k := kmsg.OffsetCommitKey{Version: kindOffsetCommit, Group: group, Topic: tp.topic, Partition: tp.partition}
	return k.AppendTo(nil)
}

func offsetRecord(group string, tp topicPartition, o *offset) keyValue {
	v := kmsg.OffsetCommitValue{Version: offsetCommitVersion, Offset: o.offset, LeaderEpoch: o.leaderEpoch, Metadata: o.metadata, CommitTimestamp: o.committed}
	if o.expires >= 0 {
		v.Version, v.ExpireTimestamp = offsetExpiresVersion, o.expires
	}
	return keyValue{offsetKey(group, tp), v.AppendTo(nil)}
}

func groupKey(group string) []byte {
	k := kmsg.GroupMetadataKey{Version: kindGroupMetadata, Group: group}
	return k.AppendTo(nil)
}

// kindOf returns a key's kind.
func kindOf(key []byte) (int16, error) {
	if len(key) < 2 {
		return 0, fmt.Errorf("a key of %d bytes", len(key))
	}
	return int16(binary.BigEndian.Uint16(key)), nil
}

// encodeBatch makes one batch of records.
func encodeBatch(now int64, records []keyValue) ([]byte, error) {
	b := record.NewBuilder()
	for _, r := range records {
		b.Add(now, r.key, r.value)
	}
	return b.Build()
}

// batchBytes is about how large a batch of tombstones gets: far below any max.message.bytes that works.
const batchBytes = 256 << 10

// split cuts records into batches of about batchBytes.
func split(records []keyValue) (out [][]keyValue) {
	for len(records) > 0 {
		n, size := 0, 0
		for n < len(records) && (n == 0 || size+records[n].size() <= batchBytes) {
			size += records[n].size()
			n++
		}
		out, records = append(out, records[:n]), records[n:]
	}
	return out
}
