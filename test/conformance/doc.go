// Package conformance sends the same scripted requests to Apache Kafka and to Chronik and compares the answers field by field.
//
// Kafka's answers are kept in testdata (make conformance renews them from three KRaft brokers; Java and Maven needed), so that go test
// replays the script against Chronik alone. What may differ is in allowed.go, each with its reason; everything else must be equal.
//
//	script*.go   what is asked: every API Chronik advertises, in every version both have, good input and bad
//	wire.go      a connection that sends one request and reads one answer, whole or broken
//	normal.go    an answer as a tree in which what no two clusters share (ids, addresses, times) has a name instead
//	golden.go    the recorded answers, and the comparison
//	allowed*.go  the differences that are meant
//	outage.go    the same with one broker stopped
package conformance
