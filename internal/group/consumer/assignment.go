package consumer

import (
	"bytes"
	"cmp"
	"slices"
)

// TopicID is a topic's.
type TopicID = [16]byte

// Partition is a partition of a topic, by the topic's id.
type Partition struct {
	Topic TopicID
	Index int32
}

func comparePartitions(a, b Partition) int {
	return cmp.Or(bytes.Compare(a.Topic[:], b.Topic[:]), cmp.Compare(a.Index, b.Index))
}

// Assignment is a set of partitions: in order, each once. It is not changed once made.
type Assignment []Partition

// NewAssignment makes one of partitions in any order, whose memory it takes over.
func NewAssignment(partitions []Partition) Assignment {
	slices.SortFunc(partitions, comparePartitions)
	return slices.Compact(partitions)
}

// Has says whether p is in it.
func (a Assignment) Has(p Partition) bool {
	_, ok := slices.BinarySearchFunc(a, p, comparePartitions)
	return ok
}

// choose returns the partitions that are in b as well, or those that are not.
func (a Assignment) choose(b Assignment, in bool) (out Assignment) {
	for _, p := range a {
		for len(b) > 0 && comparePartitions(b[0], p) < 0 {
			b = b[1:]
		}
		if (len(b) > 0 && b[0] == p) == in {
			out = append(out, p)
		}
	}
	return out
}

// and returns what is in both.
func (a Assignment) and(b Assignment) Assignment { return a.choose(b, true) }

// minus returns what is in a alone.
func (a Assignment) minus(b Assignment) Assignment { return a.choose(b, false) }

// Equal says whether both are the same.
func (a Assignment) Equal(b Assignment) bool { return slices.Equal(a, b) }

// EachTopic calls f for every topic with the indexes of its partitions.
func (a Assignment) EachTopic(f func(topic TopicID, partitions []int32)) {
	for len(a) > 0 {
		n := 1
		for n < len(a) && a[n].Topic == a[0].Topic {
			n++
		}
		parts := make([]int32, n)
		for i := range parts {
			parts[i] = a[i].Index
		}
		f(a[0].Topic, parts)
		a = a[n:]
	}
}
