package group

import "unicode/utf16"

// Topic is the internal topic that holds the coordinators' state.
const Topic = "__consumer_offsets"

// PartitionOf returns the partition of __consumer_offsets, of n, that a group belongs to: Java's String.hashCode without its
// sign, modulo n, as Kafka has it.
func PartitionOf(group string, n int32) int32 {
	var h int32
	for _, u := range utf16.Encode([]rune(group)) {
		h = 31*h + int32(u)
	}
	return (h & 0x7fffffff) % n
}
