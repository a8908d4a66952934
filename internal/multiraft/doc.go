// Package multiraft drives many Raft groups with few goroutines.
//
// A Service hosts Replicas. Every replica belongs to one shard, which alone touches its etcd RawNode, and to one applier,
// which alone feeds its StateMachine. Both are step functions: production gives each a goroutine, a simulator calls them on
// one thread in an order of its choosing.
//
//	network ─► inbox ─► shard: step, prepare+propose, Ready ─┬─► Sender   (appends leave before the local fsync)
//	                      ▲                                  ├─► wal      (durable → responses)
//	                      └──── responses ◄──────────────────┴─► applier  (StateMachine.Apply → waiters)
//
// What must hold, beyond what the library checks (the numbers are rules of the Raft design notes in docs/raft.md):
//   - append and apply are FIFO per group, and responses a replica addresses to itself go straight back into its shard's
//     inbox, never through the network, never dropped (12);
//   - nobody is asked for a vote before the candidate's term is durable here, although the library would;
//   - what raft has not been told is applied stays readable in the log, whatever the applier has got to (10);
//   - a configuration change is handed to the shard before the apply response of its entry (12), and is ignored
//     at or below a snapshot that raft has taken;
//   - a waiter is (index, term): applied with that term is success, another term at that index means the proposal is lost,
//     an index covered by a snapshot means nobody can tell (3);
//   - a panic in one group fences that group and nothing else (10).
package multiraft
