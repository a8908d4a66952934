// Package sim runs a cluster of one to seven nodes in one thread: the real write-ahead log, raft service, partitions, segments,
// controller, broker and group coordinator, on a simulated disk, network and clock, in an order drawn from a seed. The same seed gives
// the same run, to the last message.
//
// A run has a phase of chaos, in which model clients produce, fetch and delete while power fails, processes are killed,
// links break and disks stall; then everything is healed and the clients' record of what they were told is held against what
// the replicas hold. The checks are those of docs: every acknowledged record is readable at its offset (L), one value per offset
// on every replica and a high watermark that never goes back (O), no duplicates of an idempotent producer (X), progress after
// healing (V), no replica fenced (R). What members of groups were told is held against what is in __consumer_offsets, in its order.
//
// What fails prints its seed: chronik sim --seed n --trace replays one run with its whole trace, chronik sim --from a --seeds n runs
// many.
//
// # How it is put together
//
//	world    clock, chance, trace, and the loop that steps what is ready (world.go)
//	node     a machine: its disk, and the process that runs on it or not (node.go)
//	network  links between processes, with streams in order (network.go)
//	clients  producers, consumers, members of groups, administrators, over Kafka's requests (kafka.go, producer.go, members.go, ...)
//	nemesis  what goes wrong, and when (nemesis.go)
//	operator changes what nodes the cluster has (changes.go, operator.go, joining.go)
//	model    what clients were told, and the checks (model.go, history.go, grouplog.go, grouphistory.go, staticmembers.go, throttles.go, finish.go)
//
// Every actor (a shard, an applier, the log's writer, its background, the partitions' background) is one step function. A step
// is atomic in simulated time, except for power: it can fail before any operation on the disk within a step.
package sim
