package wal

import "go.etcd.io/raft/v3/raftpb"

// Checkpoint ties a group's applied state to a raft index: everything at or below Index is held durably elsewhere (in
// fdatasynced segments) or in State itself, so a restart begins there (design rule 7).
type Checkpoint struct {
	Index     uint64
	Term      uint64
	ConfState raftpb.ConfState
	// State is the state machine's own description of what it holds at Index; opaque to the log.
	State []byte
}

// Write is what one group asks the log to make durable. Writes of one group take effect in the order of Append calls.
type Write struct {
	Group uint64
	// HardState replaces term, vote and commit unless it is the zero value.
	HardState raftpb.HardState
	// Entries replace everything from Entries[0].Index on. Their data must not change any more: the log keeps it in memory
	// for readers and writes it from there.
	Entries []raftpb.Entry
	// Install, if set, replaces checkpoint and log (a snapshot mark): afterwards the log begins at Install.Index+1. It comes
	// before Entries.
	Install *Checkpoint
	// Sync asks for durability before Done. Without it Done is called once every earlier write of the group is done and
	// this one has been handed to the kernel (a commit index alone needs no fsync).
	Sync bool
	// Done, if set, is called once, on the writer's step, in append order per group. It must not block. An error is final:
	// the log has stopped (Options.OnFatal).
	Done func(error)
}

// Damage describes what recovery found wrong with a group: its replica neither votes nor campaigns and is refetched.
type Damage struct {
	File   string
	Offset int64
	Reason string
}
