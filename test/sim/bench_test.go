package sim

import (
	"testing"

	"github.com/chronik-go/chronik/internal/sim"
)

// BenchmarkThreeNodesEightPartitions says how many times faster than in real time a cluster lives in the simulator.
func BenchmarkThreeNodesEightPartitions(b *testing.B) {
	var simulated float64
	ops := 0
	for i := range b.N {
		r := sim.Run(sim.Options{Seed: uint64(i) + 1, Bench: true})
		if r.Violation != "" {
			b.Fatalf("seed %d: %s", r.Seed, r.Violation)
		}
		simulated += r.Time.Seconds()
		ops += r.Operations
	}
	b.ReportMetric(simulated/b.Elapsed().Seconds(), "×realtime")
	b.ReportMetric(float64(ops)/simulated, "requests/simulated-s")
}
