// Package group is the group coordinator: the members, generations and committed offsets of consumer groups.
//
// A group belongs to one partition of __consumer_offsets (PartitionOf), and whoever leads that partition coordinates it. For
// each such partition a node has a shard. It loads what the log holds when the partition's leadership comes here, in chunks
// (Coordinator.Step), refuses with ErrLoading until that is done, and drops everything when the leadership goes. What must
// survive a move is written to the partition, in Kafka's formats, and answered once it is committed: committed offsets, and a
// group's generation with its members, both when a rebalance has completed and when its assignment is known (Kafka writes
// the latter only, and can hand out one generation twice).
//
// The core is deterministic: a shard is driven by calls, by the completions of its appends, and by one timer of the injected
// clock over a heap of deadlines. It has no goroutine, and nobody waits in it: a join or a sync that must wait is a completion
// that is kept. Code that is called with a shard's lock says so by being a method of shard; answers leave after the lock.
//
// Members of the classic protocol are in classic*.go. What every type of group shares (the log, loading, offsets and their
// expiry, listing) knows them by the type group only.
package group
