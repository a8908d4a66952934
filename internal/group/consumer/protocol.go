package consumer

import (
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kbin"
)

// MaxTopics bounds what one member by the classic protocol may subscribe to by name, maxOwned the partitions that it may have.
const (
	MaxTopics = 100_000
	maxOwned  = 200_000
)

// ReadSubscription reads what a client that is a member of a classic group of type "consumer" says of itself, Kafka's
// ConsumerProtocolSubscription. The bytes are opaque to whatever passes them on, so that no bound on requests has looked at them: the
// topics and the partitions that the member has are told one by one, and nothing is allocated for how many there are said to be. A
// name is valid until the call returns. Functions may be nil.
func ReadSubscription(b []byte, topic func(name string), owned func(name string, partition int32)) (rack *string, err error) {
	r := kbin.Reader{Src: b}
	version := r.Int16()
	for n := r.ArrayLen(); n > 0 && r.Ok(); n-- {
		if name := r.UnsafeString(); r.Ok() && topic != nil {
			topic(name)
		}
	}
	r.NullableBytes()
	if version >= 1 {
		readNamed(&r, owned)
	}
	if version >= 2 {
		r.Int32() // generation
	}
	if version >= 3 {
		rack = r.NullableString()
	}
	return rack, r.Complete()
}

// ReadAssignment does the same with what a classic leader has assigned, Kafka's ConsumerProtocolAssignment.
func ReadAssignment(b []byte, assigned func(name string, partition int32)) error {
	r := kbin.Reader{Src: b}
	r.Int16() // version
	readNamed(&r, assigned)
	r.NullableBytes()
	return r.Complete()
}

func readNamed(r *kbin.Reader, each func(name string, partition int32)) {
	for n := r.ArrayLen(); n > 0 && r.Ok(); n-- {
		name := r.UnsafeString()
		for m := r.ArrayLen(); m > 0 && r.Ok(); m-- {
			if p := r.Int32(); r.Ok() && each != nil {
				each(name, p)
			}
		}
	}
}

// classicSubscription is what a classic member of type "consumer" says under its first protocol: the topics, in order, the partitions
// that it has, of topics that exist, and its rack.
func classicSubscription(t *Topics, protocols []Protocol) (topics []string, owned []Partition, rack *string, err error) {
	if len(protocols) == 0 {
		return nil, nil, nil, fmt.Errorf("%w: it has none", ErrInconsistentProtocol)
	}
	names, has := map[string]bool{}, partitionSet{}
	rack, err = ReadSubscription(protocols[0].Metadata, func(name string) {
		if len(names) <= MaxTopics && !names[name] {
			names[strings.Clone(name)] = true
		}
	}, func(name string, p int32) { has.add(t, name, p) })
	switch {
	case err != nil:
		return nil, nil, nil, fmt.Errorf("%w: its subscription can't be read: %w", ErrInconsistentProtocol, err)
	case len(names) > MaxTopics || len(has.list) > maxOwned:
		return nil, nil, nil, fmt.Errorf("%w: it subscribes to more than %d topics, or has more than %d partitions", ErrInconsistentProtocol, MaxTopics, maxOwned)
	}
	return append([]string{}, sortedKeys(names)...), has.list, rack, nil
}

// partitionSet is partitions of topics that exist, each once, and not many more than maxOwned. What this node knows of a topic may be older
// than what a member has: which of its partitions exist is not asked.
type partitionSet struct {
	has  map[Partition]bool
	list []Partition
}

func (s *partitionSet) add(t *Topics, name string, index int32) {
	if topic := t.byName[name]; topic != nil {
		s.addPartition(Partition{topic.ID, index})
	}
}

func (s *partitionSet) addPartition(p Partition) {
	if !s.has[p] && len(s.has) <= maxOwned {
		if s.has == nil {
			s.has = map[Partition]bool{}
		}
		s.has[p] = true
		s.list = append(s.list, p)
	}
}

// begin starts a list anew, of what was in none before.
func (s *partitionSet) begin() []Partition {
	was := s.list
	s.list = nil
	return slices.Clip(was)
}
