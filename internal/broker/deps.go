package broker

import (
	"context"

	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
)

// Partitions finds the partitions that have a replica on this node.
type Partitions interface {
	// Lookup returns the local replica of a partition; false if this node holds none (or it is not open yet).
	Lookup(topic string, partition int32) (Partition, bool)
	// NewPoll makes a poll over partitions that Lookup gave.
	NewPoll() Poll
}

// Poll is one long poll: it waits for news of many partitions. It is used by one goroutine.
type Poll interface {
	// Wait lets C fire once p's high watermark is above offset, p's leadership changes here, or p closes; at once if the
	// watermark is already.
	Wait(p Partition, offset int64)
	// C receives after a firing; firings between two receives are one.
	C() <-chan struct{}
	// Cancel ends all waits.
	Cancel()
}

// Partition is one topic partition as the broker uses it; internal/partition has it. Errors are Go values, see CodeOf.
type Partition interface {
	// Produce validates and enqueues exactly one record batch, whose bytes it owns from now on and changes in place. Calls
	// take effect in order. It does not block; done is called exactly once, from anywhere, and must not block.
	Produce(records []byte, done func(ProduceResult))
	// Fetch reads committed batches from the local log, without a raft step. The records lie in req.Buf's capacity if that
	// is enough, otherwise in new memory; in either case the caller's, to write to and to use again.
	Fetch(req FetchRequest) (FetchResult, error)
	// ListOffset answers Kafka's ListOffsets for one timestamp, special ones included. -1/-1/-1 is "none", no error.
	ListOffset(ctx context.Context, timestamp int64, currentLeaderEpoch int32) (offset, ts int64, epoch int32, err error)
	// EpochEnd answers OffsetForLeaderEpoch: the largest epoch not above the one asked for, and its end offset; -1/-1 unknown.
	EpochEnd(currentLeaderEpoch, epoch int32) (endEpoch int32, endOffset int64, err error)
	// DeleteRecords moves the log start to offset (-1: the high watermark). done is called once with the new low watermark.
	DeleteRecords(offset int64, done func(low int64, err error))
	// Status is the raft group's published state.
	Status() multiraft.Status
	LeaderEpoch() int32
	HighWatermark() int64
	LogStart() int64
	// LastSequence is the last sequence applied of an idempotent producer, and its epoch; false if there is none.
	LastSequence(producer int64) (epoch int16, sequence int32, ok bool)
	// Producers lists the idempotent producers known, by ascending id.
	Producers() []partition.ProducerState
	// Size is the bytes of record batches on disk.
	Size() int64
}

// DataDir is the directory that holds this node's partitions.
type DataDir interface {
	// Path is absolute.
	Path() string
	// Space returns the bytes of its volume, and those of them that are free.
	Space() (total, free uint64, err error)
}

// Quorum is the metadata group as its local replica knows it: *multiraft.Replica.
type Quorum interface {
	Status() multiraft.Status
	// Progress tells how far every replica has come; on the leader only. done is called once and must not block.
	Progress(done func(term uint64, all []multiraft.Progress, err error))
}

// Cluster is what this node knows of the cluster.
type Cluster interface {
	// NodeID is this node.
	NodeID() int32
	// Image is the current metadata, never nil, immutable.
	Image() *metadata.Image
	// ImageIndex is the metadata index a node is known to have reached: its own for this node, 0 if unknown.
	ImageIndex(node int32) uint64
	// Leader is the last known leader of a raft group and its epoch (raft term): from the local replica, or from the
	// leaders' gossip. Node -1: none known. The epoch never goes back and is never a mere candidate's term (rule 23).
	Leader(group uint64) (node int32, epoch int32)
	// Live says whether a node is reachable as far as this node can tell; itself always.
	Live(node int32) bool
	// Await calls cond now and after every change of image, leaders or liveness until it returns true (nil) or ctx ends.
	// cond is quick and is called from one goroutine at a time.
	Await(ctx context.Context, cond func() bool) error
}

// Forwarder reaches other nodes; transport.Client is one.
type Forwarder interface {
	// Call asks a node and waits for its answer.
	Call(ctx context.Context, node int32, method uint16, body []byte) ([]byte, error)
	// Forward sends one request of the ordered stream to a node: the node handles them in the order of the calls. It does
	// not block; done is called exactly once, from anywhere, and must not block. body must not be changed afterwards.
	Forward(node int32, method uint16, body []byte, done func(body []byte, err error))
}
