// Package partition makes a topic partition out of a Raft group: it validates what producers send, gives it offsets, weeds out
// duplicates, applies what is committed to Kafka-format segments and serves it to consumers.
//
// # The way of a batch
//
// Produce (the caller's goroutine) checks form, size, CRC and time, and enqueues. Prepare (the shard) decides: sequence, base
// offset, leader epoch, append time; against the applied state plus the overlay, which is what this leader has prepared in its
// term and not seen applied. Apply (the applier) obeys: it reads no clock and no configuration, appends to the segments,
// advances producers and the high watermark, and wakes those who wait. A Manager flushes dirty partitions in the background,
// oldest first, and then gives the log a checkpoint, so that its files can be recycled.
//
// # What is where
//
// A partition's files are in <dir>/<topic>/<partition>.<group>/<generation>/. There is one generation except while a replica
// that fell below the leader's log start is resynchronised whole: then a second directory, named by the snapshot's index, is
// filled and made durable beside the first. Which one counts is told by the group's checkpoint in the log (checkpoint.go), so the
// swap happens at the moment the log's snapshot mark is durable.
//
// # Locks, in the order they are taken
//
//	genMu  which generation is in use; read-held while its files are, never taken by the shard
//	logMu  appending to the segments: the applier and the stager
//	mu     applied state, overlay, leadership; never held over I/O, so that the shard never waits for a disk
//	waitMu, stageMu, Manager.mu: leaves
//
// # Not obvious
//
// The segments may hold more than is applied: after a crash until the log is replayed, and while a delta is being staged. All of
// it is committed, so it is never cut; applying the same batches compares and skips. What clients see ends at the high
// watermark, which is the end offset of what is applied.
package partition
