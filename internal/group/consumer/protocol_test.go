package consumer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// allocated is how many bytes a call of f makes. What else goes on in the process is counted too: the least of a few is f's own.
func allocated(f func()) uint64 {
	least := uint64(math.MaxUint64)
	for range 3 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	return least
}

// A subscription of a few mebibytes that claims as many topics or partitions as it can takes no memory for them: decoded as it says, it
// would be ten to forty times as large, for each member and with each rebalance.
func TestHostileSubscriptionAllocatesNothing(t *testing.T) {
	const size = 4 << 20
	claims := func(at int, count uint32) []byte {
		b := make([]byte, size)
		b[1] = 3 // version
		binary.BigEndian.PutUint32(b[at:], count)
		return b
	}
	topics := NewTopics(1, []Topic{{Name: "t", Partitions: 3}})
	for name, b := range map[string][]byte{
		"topics without a name":     claims(2, size/2-100),
		"topics that are not there": claims(2, size-100),
		"partitions of no topic":    claims(10, size/6-100),
		"topics had, not there":     claims(10, size-100),
	} {
		var err error
		if n := allocated(func() { _, _, _, err = classicSubscription(topics, []Protocol{{"range", b}}) }); n > 64<<10 {
			t.Errorf("%s: %d bytes for %d (%v)", name, n, size, err)
		}
	}
	again := kmsg.ConsumerMemberMetadata{Version: 1, OwnedPartitions: []kmsg.ConsumerMemberMetadataOwnedPartition{{Topic: "t", Partitions: make([]int32, size/4)}}}
	same := again.AppendTo(nil)
	if n := allocated(func() { _, _, _, _ = classicSubscription(topics, []Protocol{{"range", same}}) }); n > 64<<10 {
		t.Errorf("one partition again and again: %d bytes for %d", n, size)
	}
	b := claims(2, size/6-100)
	if n := allocated(func() { _ = ReadAssignment(b, func(string, int32) {}) }); n > 64<<10 {
		t.Errorf("an assignment: %d bytes for %d", n, size)
	}
	// Each name is another: there is a bound.
	many := kmsg.NewConsumerMemberMetadata()
	for i := range MaxTopics + 1 {
		many.Topics = append(many.Topics, fmt.Sprint(i))
	}
	if _, _, _, err := classicSubscription(topics, []Protocol{{"range", many.AppendTo(nil)}}); !errors.Is(err, ErrInconsistentProtocol) {
		t.Errorf("too many topics: %v", err)
	}
	many.Topics, many.OwnedPartitions = nil, []kmsg.ConsumerMemberMetadataOwnedPartition{{Topic: "t"}}
	many.Version = 1
	for i := range int32(maxOwned + 1) {
		many.OwnedPartitions[0].Partitions = append(many.OwnedPartitions[0].Partitions, i)
	}
	if _, _, _, err := classicSubscription(topics, []Protocol{{"range", many.AppendTo(nil)}}); !errors.Is(err, ErrInconsistentProtocol) {
		t.Errorf("too many partitions: %v", err)
	}
}

// FuzzSubscription compares with what kmsg makes of the same bytes.
func FuzzSubscription(f *testing.F) {
	rack := "r1"
	for version := range int16(4) {
		m := kmsg.ConsumerMemberMetadata{Version: version, Topics: []string{"a", "t", ""}, UserData: []byte("u"), Generation: 4, Rack: &rack,
			OwnedPartitions: []kmsg.ConsumerMemberMetadataOwnedPartition{{Topic: "t", Partitions: []int32{0, 2, -1}}, {Topic: "", Partitions: []int32{}}}}
		f.Add(m.AppendTo(nil))
	}
	a := kmsg.ConsumerMemberAssignment{Topics: []kmsg.ConsumerMemberAssignmentTopic{{Topic: "t", Partitions: []int32{1}}}}
	f.Add(a.AppendTo(nil))
	f.Add([]byte{0, 3, 0x7f, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			return
		}
		type named struct {
			name      string
			partition int32
		}
		var topics []string
		var owned, assigned []named
		rack, err := ReadSubscription(b, func(name string) { topics = append(topics, name) }, func(name string, p int32) { owned = append(owned, named{name, p}) })
		var want kmsg.ConsumerMemberMetadata
		if wantErr := want.ReadFrom(b); (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, kmsg: %v", err, wantErr)
		}
		if err == nil {
			var has []named
			for _, o := range want.OwnedPartitions {
				for _, p := range o.Partitions {
					has = append(has, named{o.Topic, p})
				}
			}
			if fmt.Sprint(topics) != fmt.Sprint(want.Topics) || !reflect.DeepEqual(owned, has) || !reflect.DeepEqual(rack, want.Rack) {
				t.Fatalf("%q %v %v, kmsg: %+v", topics, owned, rack, want)
			}
		}
		err = ReadAssignment(b, func(name string, p int32) { assigned = append(assigned, named{name, p}) })
		var wantA kmsg.ConsumerMemberAssignment
		if wantErr := wantA.ReadFrom(b); (err == nil) != (wantErr == nil) {
			t.Fatalf("assignment: %v, kmsg: %v", err, wantErr)
		}
		if err == nil {
			var has []named
			for _, o := range wantA.Topics {
				for _, p := range o.Partitions {
					has = append(has, named{o.Topic, p})
				}
			}
			if !reflect.DeepEqual(assigned, has) {
				t.Fatalf("%v, kmsg: %+v", assigned, wantA)
			}
		}
	})
}
