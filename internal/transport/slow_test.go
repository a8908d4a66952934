package transport

import (
	"os"
	"time"
)

// slowIdle is how long an idle connection is watched: CHRONIK_SLOW_TESTS=1 watches it past the 23 s at which the lineage's
// connections were dropped, and past two of the client's own probes.
func slowIdle(usual time.Duration) time.Duration {
	if os.Getenv("CHRONIK_SLOW_TESTS") != "" {
		return 28 * time.Second
	}
	return usual
}
