// Package metadata is the cluster as every node sees it: an immutable image, swapped whole when the metadata log moves.
//
// Readers load an *Image once per request and keep to it. Nobody changes one: the controller's state machine builds the
// next from the last (copying what changes) and publishes it.
package metadata

import "github.com/google/uuid"

// MetadataTopic is the name under which the metadata group is known; it is never listed to clients.
const MetadataTopic = "__cluster_metadata"

// MetadataGroup is the raft group id of the metadata log. Ids of partitions begin above it.
const MetadataGroup uint64 = 1

// Node is a registered broker.
type Node struct {
	ID int32
	// Dir is the identity of the node's data directory: an emptied disk comes back as another.
	Dir uuid.UUID
	// KafkaHost and KafkaPort are what clients are told.
	KafkaHost string
	KafkaPort int32
	// RaftAddr is where peers reach it, host:port.
	RaftAddr string
	Rack     string // empty: none
	// MetadataReplica is the node's replica id in the metadata group; Voter says whether it votes there.
	MetadataReplica uint64
	Voter           bool
}

// Replica is one copy of a partition. Its id is never used again, in this group or another.
type Replica struct {
	ID   uint64
	Node int32
	Dir  uuid.UUID
	// Log is the id of the replica's log in its node's write-ahead log. 0: the group's id, as all founders of a group have it.
	// A replica added later has one of its own, so that a node never takes what another replica of the group left for its own.
	Log uint64
}

// Partition is one raft group of a topic.
type Partition struct {
	Index int32
	// Group is the raft group id, never used again.
	Group uint64
	// Replicas in order of preference: the first campaigns at creation and is the preferred leader. Until a change of them
	// ends, these are the ones before it.
	Replicas []Replica
	// Founders, by replica id, are those that initialise the group, all with the same first state; every other replica
	// starts empty. Nil: Replicas, which have never been changed.
	Founders []uint64
	// Change is under way with the replicas, nil: none. See change.go.
	Change *Change
}

// Topic is a topic of the image.
type Topic struct {
	Name       string
	ID         uuid.UUID
	Internal   bool
	Partitions []*Partition // by index, without holes
	// Configs holds what was set on the topic, by Kafka's names, in Kafka's string forms; unset names take the default.
	Configs map[string]string
}

// PartitionRef finds a partition by its group.
type PartitionRef struct {
	Topic     *Topic
	Partition *Partition
}

// Image is the cluster's metadata at one index of the metadata log. The maps and what they point to are read-only.
type Image struct {
	ClusterID string
	// Index is the raft index of the last command in it; it only grows.
	Index  uint64
	Nodes  map[int32]*Node
	Topics map[string]*Topic
	// TopicsByID and Groups index the same topics.
	TopicsByID map[uuid.UUID]*Topic
	Groups     map[uint64]PartitionRef
	// BrokerConfigs: node id -> name -> value; node -1 holds the cluster-wide defaults.
	BrokerConfigs map[int32]map[string]string
	// GroupConfigs: consumer group -> name -> value; only groups that have something set.
	GroupConfigs map[string]map[string]string
	// NextGroup, NextReplica and NextProducerID are the lowest never handed out. A group below NextGroup that is not in
	// Groups has been deleted.
	NextGroup, NextReplica uint64
	NextProducerID         int64
	// Requests remembers which items of the latest requests were carried out, oldest first, so that a request asked again
	// after an unknown outcome is answered and not repeated. Bounded; see Builder.MarkRequest.
	Requests []RequestMark
	// Retired are the data directories of nodes that were removed from the cluster, in order of removal: none of them returns.
	Retired []uuid.UUID
}

// RequestMark says which items of a request have been carried out.
type RequestMark struct {
	ID uuid.UUID
	// Done is a bit set over the request's items; bit i of byte i/8, lowest first.
	Done []byte
}

// Has reports whether item is marked.
func (m RequestMark) Has(item int) bool {
	return item >= 0 && item/8 < len(m.Done) && m.Done[item/8]&(1<<(item%8)) != 0
}

// Source gives readers the current image, never nil.
type Source interface {
	Image() *Image
}
