package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// OpKind is what an incremental change does, numbered as in IncrementalAlterConfigs (KIP-339).
type OpKind int8

// The kinds of incremental changes.
const (
	OpSet      OpKind = 0
	OpDelete   OpKind = 1
	OpAppend   OpKind = 2
	OpSubtract OpKind = 3
)

// Op is one incremental change.
type Op struct {
	Kind  OpKind
	Name  string
	Value *string // nil: null, which only OpDelete takes
}

// AlterTopic applies ops to what is set on a topic and returns the new map, validated; set is not changed. Appending and
// subtracting start from the value in force, as in Kafka. Errors match ErrNullValue (a bad request) or ErrUnknownName or
// ErrInvalidValue (a bad config).
func AlterTopic(set map[string]string, ops []Op, l Layers) (map[string]string, error) {
	if set == nil {
		set = map[string]string{}
	}
	next, err := alter(Topics, set, ops, func(d *Def) string { return l.entry(d, set).Value })
	if err != nil {
		return nil, err
	}
	return next, ValidateTopic(next, l)
}

// AlterBroker applies ops to what is set at run time on a broker, or for all brokers; as AlterTopic. base gives the value in
// force of lists. Besides AlterTopic's errors: ErrReadOnly.
func AlterBroker(set map[string]string, ops []Op, base Layers) (map[string]string, error) {
	next, err := alter(Brokers, set, ops, func(d *Def) string { return base.entry(d, nil).Value })
	if err != nil {
		return nil, err
	}
	for _, op := range ops {
		d := Brokers.index[op.Name]
		if d.Inert && op.Kind == OpDelete {
			continue // tools take away what they have not set
		}
		if err := d.fixed(op.Name, next[op.Name]); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(next)) {
		if err := Brokers.Validate(name, next[name]); err != nil {
			return nil, err
		}
	}
	return next, nil
}

func alter(t *Table, set map[string]string, ops []Op, current func(*Def) string) (map[string]string, error) {
	next := maps.Clone(set)
	if next == nil {
		next = make(map[string]string, len(ops))
	}
	for _, op := range ops {
		if op.Value == nil && op.Kind != OpDelete {
			return nil, &Error{Name: op.Name, kind: ErrNullValue, Reason: "Null value not supported for : " + clip(op.Name)}
		}
		d, err := t.Find(op.Name)
		if err != nil {
			return nil, err
		}
		switch op.Kind {
		case OpSet:
			next[op.Name] = *op.Value
		case OpDelete:
			delete(next, op.Name)
		case OpAppend, OpSubtract:
			if d.Type != List {
				return nil, &Error{Name: op.Name, Value: *op.Value, kind: ErrInvalidValue,
					Reason: fmt.Sprintf("Can't append to or subtract from %s: it is not a list", op.Name)}
			}
			now, ok := next[op.Name]
			if !ok {
				now = current(d)
			}
			next[op.Name] = mergeList(now, *op.Value, op.Kind == OpAppend)
		default:
			return nil, &Error{Name: op.Name, kind: ErrNullValue, Reason: fmt.Sprintf("Unknown config operation %d for %s", op.Kind, clip(op.Name))}
		}
	}
	return next, nil
}

func mergeList(now, value string, add bool) string {
	list := SplitList(now)
	for _, v := range SplitList(value) {
		at := slices.Index(list, v)
		switch {
		case add && at < 0:
			list = append(list, v)
		case !add && at >= 0:
			list = slices.Delete(list, at, at+1)
		}
	}
	return strings.Join(list, ",")
}
