// Package transport carries messages between the nodes of a cluster over gRPC.
//
// From each node to each of its peers run three streams, each on a TCP connection of its own so that none waits behind
// another's bytes: control (votes, heartbeats, responses), bulk (log entries, segment bytes) and forward (requests that are
// handled in the order sent). Traffic the other way uses the streams that the peer's Client opened. A frame carries many
// groups' messages; payload bytes go from the sender's slices to the socket without being encoded again, and are copied
// once on arrival, into memory that the garbage collector owns.
//
// # What is promised
//
//   - Order: what one goroutine sends to a peer with the same stream class arrives in that order, or not at all.
//   - Loss: a message may be lost; then Handler.HandleDropped says so, once for each burst, group and replica, and for
//     every MsgSnap. Messages already handed to the socket when a stream breaks count as lost, although they may have arrived.
//   - Identity: no envelope, call or forward reaches a Handler unless cluster id, node ids and protocol version agreed.
//   - Bounds: Client.Send never blocks. Every queue has a byte cap, every wait a deadline.
//
// A peer that is absent is normal: it is logged once, then tried again with a growing, jittered pause, at once if the peer
// itself calls.
package transport

//go:generate ./generate.sh
