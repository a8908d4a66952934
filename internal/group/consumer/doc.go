// Package consumer is one consumer group of the next generation protocol (KIP-848), as a state machine: what its members said,
// what is assigned to them, and what each of them has by now.
//
// Three epochs tell how far a group has come. The group epoch rises when members or topics change; a new target assignment is
// computed for it by a server-side assignor (uniform or range), and has its epoch; each member moves to the target by itself,
// heartbeat by heartbeat, and has the epoch of the target it has come to. A member first gives back what the target takes from it
// (Unrevoked), then gets what nobody else has any more (Unreleased while something is missing), so no partition ever has two
// owners.
//
// A Group changes by a Change alone, which has the records to be written (in Kafka's formats, records*.go) and can be undone if
// they could not be. Replay makes the same Group from the records again. There is no clock, no goroutine and no order of a map in
// here: what is not in the arguments (time, topics, settings) is in Env.
package consumer
