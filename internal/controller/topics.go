package controller

import (
	"slices"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/metadata"
)

// maxTopicName is Kafka's: a directory name of 255 bytes less "-" and a partition number.
const maxTopicName = 249

// CheckTopicName says whether Kafka allows a topic name; an *Error of ErrInvalidTopic if not.
func CheckTopicName(name string) error {
	if e := checkTopicName(name); e != nil {
		return e
	}
	return nil
}

func checkTopicName(name string) *Error {
	switch {
	case name == "":
		return refuse(ErrInvalidTopic, "a topic name can't be empty")
	case name == "." || name == "..":
		return refuse(ErrInvalidTopic, "a topic can't be named %q", name)
	case len(name) > maxTopicName:
		return refuse(ErrInvalidTopic, "topic names have at most %d characters, this one has %d", maxTopicName, len(name))
	}
	for _, c := range []byte(name) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-' {
			continue
		}
		return refuse(ErrInvalidTopic, "topic name %q: only ASCII letters, digits, '.', '_' and '-' are allowed", name)
	}
	return nil
}

// fold maps names that collide to one: Kafka's metric names have '_' for '.'.
func fold(name string) string { return strings.ReplaceAll(name, ".", "_") }

// collision returns the topic that name collides with, "" if none.
func (r *round) collision(name string) string {
	if !strings.ContainsAny(name, "._") {
		return ""
	}
	if r.folded == nil {
		r.folded = map[string]string{}
		r.b.EachTopic(func(t *metadata.Topic) {
			if strings.ContainsAny(t.Name, "._") {
				r.folded[fold(t.Name)] = t.Name
			}
		})
	}
	if other := r.folded[fold(name)]; other != name {
		return other
	}
	return ""
}

// isInternal says which topics are Kafka's own, by name.
func isInternal(name string) bool {
	return name == "__consumer_offsets" || name == "__transaction_state"
}

func (r *round) createTopics(d *decision, asked []*controllerpb.AskCreateTopics_Topic, mark metadata.RequestMark, done []byte) *controllerpb.Command {
	before := r.partitions
	op := &controllerpb.CreateTopics{FirstGroup: r.b.NextGroup(), FirstReplica: r.b.NextReplica()}
	r.each(d, mark, done, func(i int, already bool) (*controllerpb.Item, int, *Error) {
		t := asked[i]
		id := derivedID(d.id, t.Name)
		if already {
			if have := r.b.TopicByID(id); have != nil {
				return describe(have), 0, nil
			}
			return &controllerpb.Item{Name: t.Name, Id: id[:]}, 0, nil // made, and deleted since
		}
		made, err := r.newTopic(d, t, id)
		if err != nil {
			return itemf(t.Name), 0, err
		}
		r.partitions += len(made.Partitions)
		if strings.ContainsAny(t.Name, "._") {
			r.folded[fold(t.Name)] = t.Name
		}
		op.Topics = append(op.Topics, made)
		return &controllerpb.Item{Name: t.Name, Id: id[:], Partitions: int32(len(made.Partitions)),
			ReplicationFactor: int32(len(made.Partitions[0].Nodes))}, proto.Size(made) + 4, nil
	})
	if len(op.Topics) == 0 {
		return nil
	}
	if d.ask.ValidateOnly {
		r.places, r.folded, r.partitions = nil, nil, before
		return nil
	}
	return &controllerpb.Command{Op: &controllerpb.Command_CreateTopics{CreateTopics: op}}
}

// newTopic decides one topic: whether it may be, and where its partitions go.
func (r *round) newTopic(d *decision, t *controllerpb.AskCreateTopics_Topic, id uuid.UUID) (*controllerpb.NewTopic, *Error) {
	if t.Name == metadata.MetadataTopic {
		return nil, refuse(ErrInvalidRequest, "topic %q is the cluster's own and can't be created", t.Name)
	}
	if err := checkTopicName(t.Name); err != nil {
		return nil, err
	}
	if d.dups[t.Name] {
		return nil, refuse(ErrInvalidRequest, "topic %q is in the request twice", t.Name)
	}
	if r.b.Topic(t.Name) != nil {
		return nil, refuse(ErrTopicExists, "topic %q exists", t.Name)
	}
	if other := r.collision(t.Name); other != "" {
		return nil, refuse(ErrInvalidTopic, "topic %q collides with topic %q: names that differ in '.' and '_' only can't be told apart in metrics", t.Name, other)
	}
	rules := &r.c.cfg.Configs
	for _, c := range t.Configs {
		if err := rules.Validate(Resource{Type: ResourceTopic, Name: t.Name}, c.Name, c.Value); err != nil {
			return nil, &Error{Kind: ErrInvalidConfig, Msg: err.Error()}
		}
	}
	made := &controllerpb.NewTopic{Name: t.Name, Id: id[:], Internal: isInternal(t.Name), Configs: t.Configs}
	if len(t.Assignments) > 0 {
		if t.Partitions != -1 || t.ReplicationFactor != -1 {
			return nil, refuse(ErrInvalidRequest, "topic %q: with an assignment of replicas, partition count and replication factor must both be -1", t.Name)
		}
		if err := r.checkCount(t.Name, len(t.Assignments), len(t.Assignments)); err != nil {
			return nil, err
		}
		made.Partitions = t.Assignments
		return made, r.assigned(t.Name, t.Assignments, 0)
	}
	count, factor := t.Partitions, t.ReplicationFactor
	defCount, defFactor := r.c.cfg.Defaults()
	if count == -1 {
		count = defCount
	}
	if factor == -1 {
		factor = int32(defFactor)
	}
	if count < 1 {
		return nil, refuse(ErrInvalidPartitions, "topic %q: %d partitions; at least 1 is needed, or -1 for the default", t.Name, count)
	}
	if err := r.checkCount(t.Name, int(count), int(count)); err != nil {
		return nil, err
	}
	var err *Error
	made.Partitions, err = r.placer().spread(d.id, t.Name, 0, int(count), int(factor))
	return made, err
}

// checkCount checks how many partitions a topic will have, of which added are new, against the limits.
func (r *round) checkCount(topic string, total, added int) *Error {
	l := &r.c.cfg.Limits
	if total > l.PartitionsPerTopic {
		return refuse(ErrInvalidPartitions, "topic %q: %d partitions, at most %d are allowed", topic, total, l.PartitionsPerTopic)
	}
	if r.partitions+added > l.Partitions {
		return refuse(ErrPolicy, "topic %q: %d more partitions; the cluster has %d and takes %d in all", topic, added, r.partitions, l.Partitions)
	}
	return nil
}

// assigned checks an assignment by hand. factor is the replication factor it must have, 0: that of its first partition. As where the
// cluster places replicas itself, a majority of each partition's must live: there would be no leader otherwise.
func (r *round) assigned(topic string, ps []*controllerpb.Placement, factor int) *Error {
	places := r.placer()
	for i, p := range ps {
		if factor == 0 {
			factor = len(p.Nodes)
		}
		if len(p.Nodes) == 0 {
			return refuse(ErrInvalidAssignment, "topic %q: the assignment leaves partition %d without a replica", topic, i)
		}
		if len(p.Nodes) != factor {
			return refuse(ErrInvalidAssignment, "topic %q: partition %d of the assignment has %d replicas, another has %d", topic, i, len(p.Nodes), factor)
		}
		for j, node := range p.Nodes {
			if r.b.Node(node) == nil {
				return refuse(ErrInvalidAssignment, "topic %q: the assignment names broker %d, which is not known", topic, node)
			}
			if slices.Contains(p.Nodes[:j], node) {
				return refuse(ErrInvalidAssignment, "topic %q: the assignment names broker %d twice for one partition", topic, node)
			}
		}
		if live := places.liveOf(p.Nodes); live < factor/2+1 {
			return refuse(ErrInvalidAssignment, "topic %q: of the brokers %v, to which partition %d of the assignment goes, %d can be reached, and %d are needed", topic, p.Nodes, i, live, factor/2+1)
		}
	}
	places.count(ps)
	return nil
}

func (r *round) deleteTopics(d *decision, asked []*controllerpb.AskDeleteTopics_Key, mark metadata.RequestMark, done []byte) *controllerpb.Command {
	op := &controllerpb.DeleteTopics{}
	taken := map[uuid.UUID]bool{} // one topic may be named by name and by id
	r.each(d, mark, done, func(i int, already bool) (*controllerpb.Item, int, *Error) {
		k := asked[i]
		if already {
			return &controllerpb.Item{Name: k.Name, Id: k.Id}, 0, nil
		}
		var t *metadata.Topic
		if len(k.Id) > 0 {
			id, err := uuid.FromBytes(k.Id)
			if err == nil {
				t = r.b.TopicByID(id)
			}
			if t == nil {
				return &controllerpb.Item{Name: k.Name, Id: k.Id}, 0, refuse(ErrUnknownTopicID, "there is no topic with this id")
			}
		} else if t = r.b.Topic(k.Name); t == nil {
			return itemf(k.Name), 0, refuse(ErrUnknownTopic, "there is no topic %q", k.Name)
		}
		if d.dups[deleteKey(k)] || taken[t.ID] {
			return itemf(k.Name), 0, refuse(ErrInvalidRequest, "topic %q is in the request twice", t.Name)
		}
		taken[t.ID] = true
		r.partitions -= len(t.Partitions)
		op.Ids = append(op.Ids, t.ID[:])
		return describe(t), 20, nil
	})
	if len(op.Ids) == 0 {
		return nil
	}
	r.places, r.folded = nil, nil // they count what is gone
	return &controllerpb.Command{Op: &controllerpb.Command_DeleteTopics{DeleteTopics: op}}
}

func (r *round) createPartitions(d *decision, asked []*controllerpb.AskCreatePartitions_Topic, mark metadata.RequestMark, done []byte) *controllerpb.Command {
	before := r.partitions
	op := &controllerpb.CreatePartitions{FirstGroup: r.b.NextGroup(), FirstReplica: r.b.NextReplica()}
	r.each(d, mark, done, func(i int, already bool) (*controllerpb.Item, int, *Error) {
		t := asked[i]
		have := r.b.Topic(t.Name)
		if already {
			if have == nil {
				return itemf(t.Name), 0, nil
			}
			return describe(have), 0, nil
		}
		more, err := r.morePartitions(d, t, have)
		if err != nil {
			return itemf(t.Name), 0, err
		}
		r.partitions += len(more.Partitions)
		op.Topics = append(op.Topics, more)
		item := describe(have)
		item.Partitions = t.Count
		return item, proto.Size(more) + 4, nil
	})
	if len(op.Topics) == 0 {
		return nil
	}
	if d.ask.ValidateOnly {
		r.places, r.partitions = nil, before
		return nil
	}
	return &controllerpb.Command{Op: &controllerpb.Command_CreatePartitions{CreatePartitions: op}}
}

func (r *round) morePartitions(d *decision, t *controllerpb.AskCreatePartitions_Topic, have *metadata.Topic) (*controllerpb.MorePartitions, *Error) {
	if have == nil {
		return nil, refuse(ErrUnknownTopic, "there is no topic %q", t.Name)
	}
	if d.dups[t.Name] {
		return nil, refuse(ErrInvalidRequest, "topic %q is in the request twice", t.Name)
	}
	if isInternal(have.Name) {
		return nil, refuse(ErrPolicy, "the number of partitions of %s can't change: it decides where each group finds its offsets", have.Name)
	}
	n := len(have.Partitions)
	if int(t.Count) <= n {
		return nil, refuse(ErrInvalidPartitions, "topic %q has %d partitions; their number can only grow, %d were asked for", t.Name, n, t.Count)
	}
	more := &controllerpb.MorePartitions{Id: have.ID[:], Have: int32(n)}
	added := int(t.Count) - n
	if err := r.checkCount(t.Name, int(t.Count), added); err != nil {
		return nil, err
	}
	factor := len(have.Partitions[0].Target())
	if len(t.Assignments) > 0 {
		if len(t.Assignments) != added {
			return nil, refuse(ErrInvalidAssignment, "topic %q gets %d new partitions, the assignment has %d", t.Name, added, len(t.Assignments))
		}
		more.Partitions = t.Assignments
		return more, r.assigned(t.Name, t.Assignments, factor)
	}
	var err *Error
	more.Partitions, err = r.placer().spread(d.id, t.Name, n, added, factor)
	return more, err
}
