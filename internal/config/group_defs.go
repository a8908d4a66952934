package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Groups is the table of group configs (KIP-848): those of Apache Kafka 4.x (GroupConfig) that are for consumer groups. Where a group has
// nothing set the broker config behind the name counts.
var Groups = newTable("group", groupDefs())

func groupDefs() []*Def {
	return []*Def{
		{Name: "consumer.session.timeout.ms", Type: Int, Default: "45000", Min: 1, Max: maxInt, Synonyms: syn("group.consumer.session.timeout.ms"),
			Doc: "After how many milliseconds without a heartbeat a member of the consumer group is taken for dead."},
		{Name: "consumer.heartbeat.interval.ms", Type: Int, Default: "5000", Min: 1, Max: maxInt, Synonyms: syn("group.consumer.heartbeat.interval.ms"),
			Doc: "How often, in milliseconds, the members of the consumer group are told to send a heartbeat."},
	}
}

// groupBrokerDefs are the bounds of what groups may be given.
func groupBrokerDefs() []*Def {
	of := func(name, def, doc string) *Def {
		return &Def{Name: name, Type: Int, Default: def, Doc: doc, ReadOnly: true, Min: 1, Max: maxInt}
	}
	var defs []*Def
	for _, c := range []struct{ what, least, most string }{{"session.timeout.ms", "45000", "60000"}, {"heartbeat.interval.ms", "5000", "15000"}} {
		defs = append(defs,
			of("group.consumer.min."+c.what, c.least, fmt.Sprintf("The least that a consumer group may be given as consumer.%s.", c.what)),
			of("group.consumer.max."+c.what, c.most, fmt.Sprintf("The most that a consumer group may be given as consumer.%s.", c.what)))
	}
	return defs
}

// DescribeGroup lists the configs of a group on which set is set, as DescribeTopic.
func (l Layers) DescribeGroup(set map[string]string, names []string) []Entry {
	return l.describe(Groups, set, names)
}

// GroupValue returns the value in force of one config of a group on which set is set; 0 for an unknown name.
func (l Layers) GroupValue(set map[string]string, name string) int64 {
	d, ok := Groups.Lookup(name)
	if !ok {
		return 0
	}
	for _, c := range l.resolve(d, set) {
		if n, err := strconv.ParseInt(strings.TrimSpace(c.Value), 10, 64); err == nil && d.Validate(c.Value) == nil {
			return n
		}
	}
	return 0
}

// AlterGroup applies ops to what is set on a group; as AlterTopic.
func AlterGroup(set map[string]string, ops []Op, l Layers) (map[string]string, error) {
	next, err := alter(Groups, set, ops, func(d *Def) string { return l.entry(d, set).Value })
	if err != nil {
		return nil, err
	}
	return next, ValidateGroup(next, l)
}

// ValidateGroup checks everything that is set, or would be, on a group: names, values, the bounds that the brokers set, and that a session
// is longer than a heartbeat interval.
func ValidateGroup(set map[string]string, l Layers) error {
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if err := Groups.Validate(name, set[name]); err != nil {
			return err
		}
		n := l.GroupValue(set, name)
		what := name[len("consumer."):]
		least, _ := strconv.ParseInt(l.BrokerValue("group.consumer.min."+what), 10, 64)
		most, _ := strconv.ParseInt(l.BrokerValue("group.consumer.max."+what), 10, 64)
		if n < least || n > most {
			return &Error{Name: name, Value: set[name], kind: ErrInvalidValue,
				Reason: fmt.Sprintf("%s must be from %d to %d (group.consumer.min.%s and group.consumer.max.%s), and is %d", name, least, most, what, what, n)}
		}
	}
	session, heartbeat := l.GroupValue(set, "consumer.session.timeout.ms"), l.GroupValue(set, "consumer.heartbeat.interval.ms")
	if session <= heartbeat {
		return &Error{Name: "consumer.session.timeout.ms", Value: strconv.FormatInt(session, 10), kind: ErrInvalidValue,
			Reason: fmt.Sprintf("consumer.session.timeout.ms (%d) must be above consumer.heartbeat.interval.ms (%d)", session, heartbeat)}
	}
	return nil
}
