package controller

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/metadata"
)

func (r *round) alterConfigs(d *decision, asked []*controllerpb.AskAlterConfigs_Change, mark metadata.RequestMark, done []byte) *controllerpb.Command {
	op := &controllerpb.SetConfigs{}
	groups, most := r.b.ConfiguredGroups(), r.c.cfg.Limits.ConfiguredGroups
	r.each(d, mark, done, func(i int, already bool) (*controllerpb.Item, int, *Error) {
		ch := asked[i]
		if already {
			return nil, 0, nil
		}
		u, err := r.configUpdate(d, ch)
		if err != nil || len(u.Set) == 0 && len(u.Remove) == 0 {
			return nil, 0, err
		}
		if u.Group != "" && len(u.Set) > 0 && len(r.b.GroupConfigs(u.Group)) == 0 {
			if groups >= most {
				return nil, 0, refuse(ErrPolicy, "%d groups have configurations of their own, which is the most there may be: take back those of others first", most)
			}
			groups++
		}
		op.Updates = append(op.Updates, u)
		return nil, proto.Size(u) + 4, nil
	})
	if len(op.Updates) == 0 {
		return nil
	}
	return &controllerpb.Command{Op: &controllerpb.Command_SetConfigs{SetConfigs: op}}
}

// configUpdate decides one resource: what is set and what is removed, as a difference to what is set now.
func (r *round) configUpdate(d *decision, ch *controllerpb.AskAlterConfigs_Change) (*controllerpb.ConfigUpdate, *Error) {
	res := Resource{Type: ResourceType(ch.Type), Name: ch.Resource}
	u := &controllerpb.ConfigUpdate{}
	if d.dups[changeKey(ch)] {
		return nil, refuse(ErrInvalidRequest, "%s is in the request twice", res)
	}
	var have map[string]string
	switch res.Type {
	case ResourceTopic:
		t := r.b.Topic(ch.Resource)
		if t == nil {
			return nil, refuse(ErrUnknownTopic, "there is no topic %q", ch.Resource)
		}
		u.Topic, have = t.ID[:], t.Configs
	case ResourceBroker:
		u.Node = -1
		if ch.Resource != "" {
			id, err := strconv.ParseInt(ch.Resource, 10, 32)
			if err != nil || id < 0 {
				return nil, refuse(ErrInvalidRequest, "%q is no broker id", ch.Resource)
			}
			if u.Node = int32(id); r.b.Node(u.Node) == nil {
				return nil, refuse(ErrUnknownNode, "broker %d is not known", u.Node)
			}
		}
		have = r.b.BrokerConfigs(u.Node)
	case ResourceGroup:
		if ch.Resource == "" {
			return nil, refuse(ErrInvalidRequest, "a group has a name, and this one's is empty")
		}
		u.Group, have = ch.Resource, r.b.GroupConfigs(ch.Resource)
	default:
		return nil, refuse(ErrInvalidRequest, "configurations belong to topics, brokers and groups, not to resources of type %d", ch.Type)
	}
	want, err := r.edited(res, have, ch)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if old, ok := have[name]; !ok || old != want[name] {
			u.Set = append(u.Set, &controllerpb.Config{Name: name, Value: want[name]})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, ok := want[name]; !ok {
			u.Remove = append(u.Remove, name)
		}
	}
	return u, nil
}

// edited returns the whole configuration that a change asks for.
func (r *round) edited(res Resource, have map[string]string, ch *controllerpb.AskAlterConfigs_Change) (map[string]string, *Error) {
	want := map[string]string{}
	if !ch.Replace {
		maps.Copy(want, have)
	}
	seen := make(map[string]bool, len(ch.Ops))
	for _, op := range ch.Ops {
		if seen[op.Name] {
			return nil, refuse(ErrInvalidRequest, "%s: %q is in the request twice", res, op.Name)
		}
		seen[op.Name] = true
		if err := r.edit(res, want, have, ch.Replace, op); err != nil {
			return nil, err
		}
	}
	return want, nil
}

func (r *round) edit(res Resource, want, have map[string]string, replace bool, op *controllerpb.AskAlterConfigs_Op) *Error {
	rules := &r.c.cfg.Configs
	kind := ConfigOp(op.Kind)
	switch {
	case kind == OpDelete && !replace:
		// A name that does not exist can't be set, so there is nothing to check; deleting what is not set is no error.
		delete(want, op.Name)
		return nil
	case int32(kind) != op.Kind || kind < OpSet || kind > OpSubtract || replace && kind != OpSet:
		return refuse(ErrInvalidRequest, "%s: operation %d on %q", res, op.Kind, op.Name)
	case op.Value == nil:
		return refuse(ErrInvalidRequest, "%s: null value for %q", res, op.Name)
	}
	value := *op.Value
	if kind != OpSet {
		if !rules.IsList(res, op.Name) {
			return refuse(ErrInvalidConfig, "%s: %q is not a list: values can't be appended or subtracted", res, op.Name)
		}
		old, ok := have[op.Name]
		if !ok {
			old = rules.Default(res, op.Name)
		}
		value = combined(old, value, kind)
	}
	if err := rules.Validate(res, op.Name, value); err != nil {
		return &Error{Kind: ErrInvalidConfig, Msg: fmt.Sprintf("%s: %v", res, err)}
	}
	want[op.Name] = value
	return nil
}

// combined appends the elements of a comma-separated list to another, those that are not there yet, or takes them out.
func combined(old, change string, kind ConfigOp) string {
	list := elements(old)
	for _, e := range elements(change) {
		has := slices.Contains(list, e)
		switch {
		case kind == OpAppend && !has:
			list = append(list, e)
		case kind == OpSubtract && has:
			list = slices.DeleteFunc(list, func(x string) bool { return x == e })
		}
	}
	return strings.Join(list, ",")
}

func elements(list string) []string {
	var out []string
	for e := range strings.SplitSeq(list, ",") {
		if e = strings.TrimSpace(e); e != "" {
			out = append(out, e)
		}
	}
	return out
}
