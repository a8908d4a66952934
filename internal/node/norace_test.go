//go:build !race

package node

// raced: see race_test.go.
const raced = false
