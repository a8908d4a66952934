package consumer

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"regexp"
	"regexp/syntax"
	"slices"
)

// Topic is a topic as far as it can be subscribed to.
type Topic struct {
	Name       string
	ID         TopicID
	Partitions int32
}

// Topics is what the cluster has to consume, at one moment. It is immutable.
type Topics struct {
	// Version differs from one set of topics to another.
	Version uint64

	sorted []Topic
	byName map[string]*Topic
	byID   map[TopicID]*Topic
}

// NewTopics makes a set of topics, in any order, whose memory it takes over.
func NewTopics(version uint64, topics []Topic) *Topics {
	slices.SortFunc(topics, func(a, b Topic) int { return cmp.Compare(a.Name, b.Name) })
	t := &Topics{Version: version, sorted: topics, byName: make(map[string]*Topic, len(topics)), byID: make(map[TopicID]*Topic, len(topics))}
	for i := range topics {
		t.byName[topics[i].Name], t.byID[topics[i].ID] = &topics[i], &topics[i]
	}
	return t
}

// Same says whether the set has exactly these topics, which are in order of names.
func (t *Topics) Same(sorted []Topic) bool { return slices.Equal(t.sorted, sorted) }

// Named finds a topic, nil if there is none.
func (t *Topics) Named(name string) *Topic { return t.byName[name] }

// WithID finds a topic, nil if there is none.
func (t *Topics) WithID(id TopicID) *Topic { return t.byID[id] }

// maxRegexSteps bounds a regular expression, by the steps that it becomes: each may be looked at for each character of each topic's name,
// and the coordinator does nothing else meanwhile. Two hundred names with an | between them are within.
const maxRegexSteps = 5_000

// CompileRegex makes what a member subscribed to match whole names; the syntax is RE2's.
func CompileRegex(expression string) (*regexp.Regexp, error) {
	// By itself first: "a)(b" is not one, but would be within parentheses.
	parsed, err := syntax.Parse(expression, syntax.Perl)
	if err == nil && regexSteps(parsed) > maxRegexSteps {
		err = fmt.Errorf("it is too large: more than %d steps", maxRegexSteps)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidRegularExpression, err)
	}
	re, err := regexp.Compile(`\A(?:` + expression + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidRegularExpression, err)
	}
	return re, nil
}

// regexSteps is about how many steps an expression becomes, no more than just beyond what is allowed.
func regexSteps(re *syntax.Regexp) int {
	n := 1 + len(re.Rune)
	if re.Op == syntax.OpCharClass {
		n = 1
	}
	for _, sub := range re.Sub {
		n = min(n+regexSteps(sub), maxRegexSteps+1)
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Min, re.Max) + 1
	}
	return min(n, maxRegexSteps+1)
}

// matching lists the names that a regular expression matches as a whole, in order.
func (t *Topics) matching(re *regexp.Regexp) []string {
	names := []string{}
	for i := range t.sorted {
		if re.MatchString(t.sorted[i].Name) {
			names = append(names, t.sorted[i].Name)
		}
	}
	return names
}

// hash stands for those of the topics named, in order, that exist: their names, ids and partitions. 0: none does.
func (t *Topics) hash(names []string) int64 {
	h := fnv.New64a()
	some := false
	var b []byte
	for _, name := range names {
		topic := t.byName[name]
		if topic == nil {
			continue
		}
		some = true
		b = append(append(b[:0], name...), 0)
		b = binary.BigEndian.AppendUint32(append(b, topic.ID[:]...), uint32(topic.Partitions))
		h.Write(b)
	}
	if !some {
		return 0
	}
	return int64(h.Sum64())
}
