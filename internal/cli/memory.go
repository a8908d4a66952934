package cli

import (
	"os"
	"runtime/debug"

	"github.com/chronik-go/chronik/internal/config"
)

// baseMemory is what a node needs beside the buffers that its limits bound: code, groups, indexes, stacks, connections.
const baseMemory = 80 << 20

// boundMemory tells the garbage collector what the node is meant to use, so that a burst is collected rather than kept: the
// bounded buffers and a base. It is a goal of the collector, not a limit that anything fails at. GOMEMLIMIT, if set, wins.
func boundMemory(cfg *config.Node) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(baseMemory + cfg.Limits.RequestMemory + cfg.Limits.WALCacheBytes)
	}
}
