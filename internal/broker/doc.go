// Package broker answers Kafka requests: one file per API key, named by it.
//
// A request comes from internal/server in two stages. The first runs on the connection's reader and must not block: it
// decodes, and for Produce it hands the batches to their partitions (or to the stream towards their leader), so that the
// batches of one connection are enqueued in the order the client sent them. The second runs on the connection's writer, in
// request order, and may wait; every wait is bounded.
//
// The broker decides nothing that is replicated: partitions and the controller do. It authorises, routes, and is the only
// place that knows Kafka's error codes (errors.go).
package broker
