package consumer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kbin"
)

// Kinds of records: the first two bytes of a key (Kafka's CoordinatorRecordType).
const (
	kindGroup       = 3
	kindTopics      = 4 // written before Kafka 4.1, which has the hash in the group's record instead (KIP-1101)
	kindMember      = 5
	kindTargetEpoch = 6
	kindTarget      = 7
	kindCurrent     = 8
	kindRegex       = 16
)

// Key is a record's key.
type Key struct {
	Kind  int16
	Group string
	// Name is a member's id or a regular expression, where the kind has one.
	Name string
}

// IsKind says whether records of a kind are of consumer groups.
func IsKind(kind int16) bool { return kind >= kindGroup && kind <= kindCurrent || kind == kindRegex }

// EndsGroup says whether a tombstone with the key is the end of a group: the last that is written of it.
func (k Key) EndsGroup() bool { return k.Kind == kindGroup }

func named(kind int16) bool {
	return kind == kindMember || kind == kindTarget || kind == kindCurrent || kind == kindRegex
}

func key(kind int16, group, name string) []byte {
	b := kbin.AppendString(binary.BigEndian.AppendUint16(nil, uint16(kind)), group)
	if named(kind) {
		b = kbin.AppendString(b, name)
	}
	return b
}

// ParseKey reads a key.
func ParseKey(b []byte) (Key, error) {
	r := kbin.Reader{Src: b}
	k := Key{Kind: r.Int16(), Group: r.String()}
	if !IsKind(k.Kind) {
		return k, fmt.Errorf("a key of kind %d", k.Kind)
	}
	if named(k.Kind) {
		k.Name = r.String()
	}
	return k, r.Complete()
}

var errVersion = errors.New("a version of the record that is not known here")

// begin starts reading a value, whose version must be 0: later ones would not be compatible (KIP-915).
func begin(b []byte) (*kbin.Reader, error) {
	r := &kbin.Reader{Src: b}
	if v := r.Int16(); v != 0 && r.Ok() {
		return nil, errVersion
	}
	return r, nil
}

// noTags ends a structure without tagged fields.
func noTags(b []byte) []byte { return append(b, 0) }

// tag appends the only tagged field of a structure.
func tag(b []byte, number uint32, value []byte) []byte {
	b = kbin.AppendUvarint(append(b, 1), number)
	return append(kbin.AppendUvarint(b, uint32(len(value))), value...)
}

// readTags calls f with each tagged field.
func readTags(r *kbin.Reader, f func(number uint32, v *kbin.Reader) error) error {
	for n := r.Uvarint(); n > 0 && r.Ok(); n-- {
		number := r.Uvarint()
		v := kbin.Reader{Src: r.Span(int(r.Uvarint()))}
		if !r.Ok() {
			break
		}
		if f != nil {
			if err := f(number, &v); err != nil {
				return err
			}
		}
	}
	return nil
}

// complete says whether everything was read well.
func complete(r *kbin.Reader) error {
	if err := r.Complete(); err != nil {
		return err
	}
	if len(r.Src) > 0 {
		return fmt.Errorf("%d bytes behind the record", len(r.Src))
	}
	return nil
}

// count reads an array's length, of elements that take at least size bytes each; 0 for null.
func count(r *kbin.Reader, size int) int {
	n := int(r.CompactArrayLen())
	if n > len(r.Src)/size {
		r.Span(len(r.Src) + 1) // more than there is: the reader fails
		return 0
	}
	return max(n, 0)
}

func encodeGroup(epoch int32, hash int64) []byte {
	b := kbin.AppendInt32([]byte{0, 0}, epoch)
	if hash == 0 {
		return noTags(b)
	}
	return tag(b, 0, kbin.AppendInt64(nil, hash))
}

func decodeGroup(b []byte) (epoch int32, hash int64, err error) {
	return decodeEpoch(b)
}

// decodeEpoch reads a record of an epoch and, with tag 0, a number that came with a later version of it.
func decodeEpoch(b []byte) (epoch int32, tagged int64, err error) {
	r, err := begin(b)
	if err != nil {
		return 0, 0, err
	}
	epoch = r.Int32()
	err = readTags(r, func(number uint32, v *kbin.Reader) error {
		if number != 0 {
			return nil
		}
		tagged = v.Int64()
		return complete(v)
	})
	return epoch, tagged, errors.Join(err, complete(r))
}

func encodeTargetEpoch(epoch int32, now int64) []byte {
	b := kbin.AppendInt32([]byte{0, 0}, epoch)
	if now == 0 {
		return noTags(b)
	}
	return tag(b, 0, kbin.AppendInt64(nil, now))
}

func encodeTarget(a Assignment) []byte {
	return noTags(appendPartitions([]byte{0, 0}, a, nil))
}

// appendPartitions writes partitions by topic, with the epochs since when they are there, if known.
func appendPartitions(b []byte, a Assignment, since []int32) []byte {
	topics, at := 0, 0
	a.EachTopic(func(TopicID, []int32) { topics++ })
	b = kbin.AppendCompactArrayLen(b, topics)
	a.EachTopic(func(topic TopicID, partitions []int32) {
		b = appendInts(append(b, topic[:]...), partitions)
		if since == nil {
			b = noTags(b)
		} else {
			b = tag(b, 0, appendInts(nil, since[at:at+len(partitions)]))
		}
		at += len(partitions)
	})
	return b
}

func appendInts(b []byte, list []int32) []byte {
	b = kbin.AppendCompactArrayLen(b, len(list))
	for _, n := range list {
		b = kbin.AppendInt32(b, n)
	}
	return b
}

func readInts(r *kbin.Reader) []int32 {
	list := make([]int32, count(r, 4))
	for i := range list {
		list[i] = r.Int32()
	}
	return list
}

func decodeTarget(b []byte) (Assignment, error) {
	r, err := begin(b)
	if err != nil {
		return nil, err
	}
	a, _, err := readPartitions(r)
	return a, errors.Join(err, readTags(r, nil), complete(r))
}

// readPartitions is the counterpart of appendPartitions. since is nil unless it is known of every partition.
func readPartitions(r *kbin.Reader) (a Assignment, since []int32, err error) {
	type owned struct {
		Partition
		since int32
	}
	var all []owned
	known := true
	for n := count(r, 18); n > 0 && r.Ok(); n-- {
		topic := r.Uuid()
		partitions := readInts(r)
		var epochs []int32
		err := readTags(r, func(number uint32, v *kbin.Reader) error {
			if number != 0 {
				return nil
			}
			epochs = readInts(v)
			return complete(v)
		})
		if err != nil {
			return nil, nil, err
		}
		if len(epochs) != len(partitions) {
			known, epochs = false, make([]int32, len(partitions))
		}
		for i, p := range partitions {
			all = append(all, owned{Partition{topic, p}, epochs[i]})
		}
	}
	slices.SortStableFunc(all, func(x, y owned) int { return comparePartitions(x.Partition, y.Partition) })
	all = slices.CompactFunc(all, func(x, y owned) bool { return x.Partition == y.Partition })
	for _, o := range all {
		a, since = append(a, o.Partition), append(since, o.since)
	}
	if !known {
		since = nil
	}
	return a, since, nil
}

func (c *Current) encode() []byte {
	b := kbin.AppendInt32(kbin.AppendInt32([]byte{0, 0}, c.Epoch), c.Previous)
	b = appendPartitions(append(b, byte(c.State)), c.Assigned, c.Since)
	return noTags(appendPartitions(b, c.Revoking, nil))
}

func decodeCurrent(b []byte) (*Current, error) {
	r, err := begin(b)
	if err != nil {
		return nil, err
	}
	c := &Current{Epoch: r.Int32(), Previous: r.Int32(), State: MemberState(r.Int8())}
	var err2 error
	c.Assigned, c.Since, err = readPartitions(r)
	c.Revoking, _, err2 = readPartitions(r)
	if err := errors.Join(err, err2, readTags(r, nil), complete(r)); err != nil {
		return nil, err
	}
	return c, nil
}

func (x *Resolved) encode() []byte {
	b := appendStrings([]byte{0, 0}, x.Topics)
	return noTags(kbin.AppendInt64(kbin.AppendInt64(b, x.Version), x.Time))
}

func decodeResolved(b []byte) (*Resolved, error) {
	r, err := begin(b)
	if err != nil {
		return nil, err
	}
	x := &Resolved{Topics: readStrings(r), Version: r.Int64(), Time: r.Int64()}
	if err := errors.Join(readTags(r, nil), complete(r)); err != nil {
		return nil, err
	}
	return x, nil
}

func appendStrings(b []byte, list []string) []byte {
	b = kbin.AppendCompactArrayLen(b, len(list))
	for _, s := range list {
		b = kbin.AppendCompactString(b, s)
	}
	return b
}

// readStrings reads a set of strings, and puts it in order.
func readStrings(r *kbin.Reader) []string {
	list := make([]string, count(r, 1))
	for i := range list {
		list[i] = r.CompactString()
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
