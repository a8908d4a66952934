//go:build race

package node

// raced: the race detector makes everything slow, so that what is large is smaller.
const raced = true
