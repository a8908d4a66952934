package metadata

import (
	"maps"
	"slices"

	"github.com/google/uuid"
)

// Bounds of Image.Requests: how many requests, and how many bytes of bit sets, are remembered.
const (
	maxRequestMarks     = 512
	maxRequestMarkBytes = 256 << 10
)

// Builder makes the next Image from one that readers hold. It is a layer of changes over its base: lookups see the
// changes, the base is never touched, and only Build pays for copying the maps that changed (the values are shared). What
// is put in belongs to the builder from then on and must not be changed by the caller.
//
// A Builder is not safe for concurrent use.
type Builder struct {
	base *Image

	clusterID              string
	index                  uint64
	nextGroup, nextReplica uint64
	nextProducerID         int64
	requests               []RequestMark
	requestsOwned          bool
	retired                []uuid.UUID

	nodes   map[int32]*Node      // nil value: removed
	topics  map[string]*Topic    // nil value: deleted
	byID    map[uuid.UUID]*Topic // nil value: deleted
	brokers map[int32]map[string]string
	groups  map[string]map[string]string
	changed bool
}

// NewBuilder starts from base, which stays as it is.
func NewBuilder(base *Image) *Builder {
	return &Builder{
		base: base, clusterID: base.ClusterID, index: base.Index,
		nextGroup: base.NextGroup, nextReplica: base.NextReplica, nextProducerID: base.NextProducerID,
		requests: base.Requests, retired: base.Retired,
		nodes: map[int32]*Node{}, topics: map[string]*Topic{}, byID: map[uuid.UUID]*Topic{},
		brokers: map[int32]map[string]string{}, groups: map[string]map[string]string{},
	}
}

// Base returns the image the builder started from.
func (b *Builder) Base() *Image { return b.base }

// Changed reports whether Build would return anything but the base.
func (b *Builder) Changed() bool { return b.changed }

// Index returns the index of the last command taken in.
func (b *Builder) Index() uint64 { return b.index }

// SetIndex says that the command at index is in.
func (b *Builder) SetIndex(index uint64) { b.index, b.changed = index, true }

// ClusterID returns the cluster's id.
func (b *Builder) ClusterID() string { return b.clusterID }

// SetClusterID names the cluster.
func (b *Builder) SetClusterID(id string) { b.clusterID, b.changed = id, true }

// NextGroup and NextReplica return the lowest ids never handed out.
func (b *Builder) NextGroup() uint64 { return b.nextGroup }

// NextReplica returns the lowest replica id never handed out.
func (b *Builder) NextReplica() uint64 { return b.nextReplica }

// NextProducerID returns the lowest producer id never handed out.
func (b *Builder) NextProducerID() int64 { return b.nextProducerID }

// TakeGroup hands out a group id.
func (b *Builder) TakeGroup() uint64 {
	id := b.nextGroup
	b.nextGroup, b.changed = id+1, true
	return id
}

// TakeReplica hands out a replica id.
func (b *Builder) TakeReplica() uint64 {
	id := b.nextReplica
	b.nextReplica, b.changed = id+1, true
	return id
}

// TakeProducerIDs hands out n producer ids and returns the first.
func (b *Builder) TakeProducerIDs(n int64) int64 {
	id := b.nextProducerID
	b.nextProducerID, b.changed = id+n, true
	return id
}

// Node returns a node, nil if unknown.
func (b *Builder) Node(id int32) *Node {
	if n, ok := b.nodes[id]; ok {
		return n
	}
	return b.base.Nodes[id]
}

// EachNode calls fn for every node, in no particular order.
func (b *Builder) EachNode(fn func(*Node)) {
	for id, n := range b.base.Nodes {
		if _, ok := b.nodes[id]; !ok {
			fn(n)
		}
	}
	for _, n := range b.nodes {
		if n != nil {
			fn(n)
		}
	}
}

// PutNode adds or replaces a node.
func (b *Builder) PutNode(n *Node) { b.nodes[n.ID], b.changed = n, true }

// RemoveNode removes a node, and its configuration; its data directory never comes back.
func (b *Builder) RemoveNode(n *Node) {
	b.nodes[n.ID], b.changed = nil, true
	b.retired = append(b.retired[:len(b.retired):len(b.retired)], n.Dir)
	if b.BrokerConfigs(n.ID) != nil {
		b.PutBrokerConfigs(n.ID, nil)
	}
}

// Retired says whether a data directory is that of a node that was removed.
func (b *Builder) Retired(dir uuid.UUID) bool { return slices.Contains(b.retired, dir) }

// Topic returns a topic by name, nil if unknown.
func (b *Builder) Topic(name string) *Topic {
	if t, ok := b.topics[name]; ok {
		return t
	}
	return b.base.Topics[name]
}

// TopicByID returns a topic by id, nil if unknown.
func (b *Builder) TopicByID(id uuid.UUID) *Topic {
	if t, ok := b.byID[id]; ok {
		return t
	}
	return b.base.TopicsByID[id]
}

// Group finds a partition by its group, nil if there is none. Groups of topics put in since the builder began are found by
// looking through those.
func (b *Builder) Group(group uint64) (*Topic, *Partition) {
	for _, t := range b.topics {
		if t == nil {
			continue
		}
		for _, p := range t.Partitions {
			if p.Group == group {
				return t, p
			}
		}
	}
	ref, ok := b.base.Groups[group]
	if !ok || b.TopicByID(ref.Topic.ID) != ref.Topic {
		return nil, nil
	}
	return ref.Topic, ref.Partition
}

// EachTopic calls fn for every topic, in no particular order.
func (b *Builder) EachTopic(fn func(*Topic)) {
	for name, t := range b.base.Topics {
		if _, ok := b.topics[name]; !ok {
			fn(t)
		}
	}
	for _, t := range b.topics {
		if t != nil {
			fn(t)
		}
	}
}

// PutTopic adds a topic, or replaces the one of that name.
func (b *Builder) PutTopic(t *Topic) {
	if old := b.Topic(t.Name); old != nil && old.ID != t.ID {
		b.byID[old.ID] = nil
	}
	b.topics[t.Name], b.byID[t.ID], b.changed = t, t, true
}

// DeleteTopic removes a topic; its groups are gone for good with it.
func (b *Builder) DeleteTopic(t *Topic) {
	b.topics[t.Name], b.byID[t.ID], b.changed = nil, nil, true
}

// BrokerConfigs returns what is set for a node, or for the cluster (node -1). Read-only.
func (b *Builder) BrokerConfigs(node int32) map[string]string {
	if c, ok := b.brokers[node]; ok {
		return c
	}
	return b.base.BrokerConfigs[node]
}

// PutBrokerConfigs replaces what is set for a node, or for the cluster (node -1). An empty map removes it.
func (b *Builder) PutBrokerConfigs(node int32, configs map[string]string) {
	b.brokers[node], b.changed = configs, true
}

// GroupConfigs returns what is set for a consumer group. Read-only.
func (b *Builder) GroupConfigs(group string) map[string]string {
	if c, ok := b.groups[group]; ok {
		return c
	}
	return b.base.GroupConfigs[group]
}

// PutGroupConfigs replaces what is set for a consumer group. An empty map removes it.
func (b *Builder) PutGroupConfigs(group string, configs map[string]string) {
	b.groups[group], b.changed = configs, true
}

// ConfiguredGroups counts the consumer groups that have something set.
func (b *Builder) ConfiguredGroups() int {
	n := len(b.base.GroupConfigs)
	for group, c := range b.groups {
		_, had := b.base.GroupConfigs[group]
		switch {
		case had && len(c) == 0:
			n--
		case !had && len(c) > 0:
			n++
		}
	}
	return n
}

// Request returns what is remembered of a request.
func (b *Builder) Request(id uuid.UUID) (RequestMark, bool) {
	for i := len(b.requests) - 1; i >= 0; i-- {
		if b.requests[i].ID == id {
			return b.requests[i], true
		}
	}
	return RequestMark{}, false
}

// MarkRequest remembers that the items set in done have been carried out, beside what is remembered of the request already,
// and forgets the oldest requests beyond the bound. done must not change afterwards.
func (b *Builder) MarkRequest(id uuid.UUID, done []byte) {
	if !b.requestsOwned {
		b.requests = append(make([]RequestMark, 0, len(b.requests)+1), b.requests...)
		b.requestsOwned = true
	}
	b.changed = true
	if old, ok := b.Request(id); ok {
		merged := make([]byte, max(len(old.Done), len(done)))
		copy(merged, old.Done)
		for i, v := range done {
			merged[i] |= v
		}
		done = merged
		kept := b.requests[:0]
		for _, m := range b.requests {
			if m.ID != id {
				kept = append(kept, m)
			}
		}
		b.requests = kept
	}
	b.requests = append(b.requests, RequestMark{ID: id, Done: done})
	size := 0
	for i := len(b.requests) - 1; i >= 0; i-- {
		size += len(b.requests[i].Done)
		if i < len(b.requests)-1 && (len(b.requests)-i > maxRequestMarks || size > maxRequestMarkBytes) {
			b.requests = append([]RequestMark(nil), b.requests[i+1:]...)
			break
		}
	}
}

// Build returns the image with all changes in. The builder goes on from there: its base is the new image.
func (b *Builder) Build() *Image {
	if !b.changed {
		return b.base
	}
	img := &Image{
		ClusterID: b.clusterID, Index: b.index,
		Nodes: b.base.Nodes, Topics: b.base.Topics, TopicsByID: b.base.TopicsByID, Groups: b.base.Groups,
		BrokerConfigs: b.base.BrokerConfigs, GroupConfigs: b.base.GroupConfigs,
		NextGroup: b.nextGroup, NextReplica: b.nextReplica, NextProducerID: b.nextProducerID,
		Requests: b.requests, Retired: b.retired,
	}
	if len(b.nodes) > 0 {
		img.Nodes = cloned(b.base.Nodes)
		for id, n := range b.nodes {
			if n == nil {
				delete(img.Nodes, id)
			} else {
				img.Nodes[id] = n
			}
		}
	}
	if len(b.topics) > 0 {
		b.buildTopics(img)
	}
	if len(b.brokers) > 0 {
		img.BrokerConfigs = cloned(b.base.BrokerConfigs)
		for node, c := range b.brokers {
			if len(c) == 0 {
				delete(img.BrokerConfigs, node)
			} else {
				img.BrokerConfigs[node] = c
			}
		}
	}
	if len(b.groups) > 0 {
		img.GroupConfigs = cloned(b.base.GroupConfigs)
		for group, c := range b.groups {
			if len(c) == 0 {
				delete(img.GroupConfigs, group)
			} else {
				img.GroupConfigs[group] = c
			}
		}
	}
	*b = *NewBuilder(img)
	return img
}

// buildTopics fills the three indexes over topics. Those of topics that were replaced go first: a name may have been given
// to another topic, with other groups.
func (b *Builder) buildTopics(img *Image) {
	img.Topics, img.TopicsByID, img.Groups = cloned(b.base.Topics), cloned(b.base.TopicsByID), cloned(b.base.Groups)
	for name := range b.topics {
		old := b.base.Topics[name]
		if old == nil {
			continue
		}
		delete(img.Topics, name)
		delete(img.TopicsByID, old.ID)
		for _, p := range old.Partitions {
			delete(img.Groups, p.Group)
		}
	}
	for name, t := range b.topics {
		if t == nil {
			continue
		}
		img.Topics[name] = t
		img.TopicsByID[t.ID] = t
		for _, p := range t.Partitions {
			img.Groups[p.Group] = PartitionRef{Topic: t, Partition: p}
		}
	}
}

// cloned copies a map; never nil.
func cloned[K comparable, V any](m map[K]V) map[K]V {
	if len(m) == 0 {
		return map[K]V{}
	}
	return maps.Clone(m)
}

// Empty returns an image with nothing in it: what a node holds that has not been told anything yet.
func Empty() *Image {
	return &Image{
		Nodes: map[int32]*Node{}, Topics: map[string]*Topic{}, TopicsByID: map[uuid.UUID]*Topic{},
		Groups: map[uint64]PartitionRef{}, BrokerConfigs: map[int32]map[string]string{}, GroupConfigs: map[string]map[string]string{},
		NextGroup: MetadataGroup + 1, NextReplica: 1,
	}
}
