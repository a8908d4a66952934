package group

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// BenchmarkHeartbeats has 1,000 groups of 10 members each and reports a member's memory and, at one heartbeat every 3 s of each,
// the share of a core that heartbeats take, timers included.
func BenchmarkHeartbeats(b *testing.B) {
	const groups, members = 1000, 10
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w := newWorld(b, 1)
	type who struct{ group, id string }
	var all []who
	for g := range groups {
		group := fmt.Sprintf("application-%04d", g)
		var joins []*call[JoinResult]
		for range members {
			joins = append(joins, w.join(request("", func(r *JoinRequest) {
				r.Group, r.ClientID, r.SessionTimeout = group, "consumer-of-"+group, 45_000
				r.Protocols = []Protocol{{"range", consumerMetadata("orders", "payments")}, {"cooperative-sticky", consumerMetadata("orders", "payments")}}
			})))
		}
		w.clock.Advance(6 * time.Second)
		for _, j := range joins {
			r := j.ok()
			req := SyncRequest{Group: group, Generation: 1, Member: r.Member}
			for _, m := range r.Members {
				req.Assignments = append(req.Assignments, Assignment{m.ID, make([]byte, 100)})
			}
			w.sync(req)
			all = append(all, who{group, r.Member})
		}
		for _, m := range all {
			w.lead().Heartbeat(HeartbeatRequest{Group: m.group, Generation: 1, Member: m.id}, func(error) {})
		}
	}
	w.log.batches = nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	c := w.lead()
	b.ResetTimer()
	start := time.Now()
	for i := range b.N {
		m := &all[i%len(all)]
		c.Heartbeat(HeartbeatRequest{Group: m.group, Generation: 1, Member: m.id}, func(err error) {
			if err != nil {
				b.Error(err)
			}
		})
		if i%len(all) == len(all)-1 {
			w.clock.Advance(3 * time.Second)
		}
	}
	perBeat := time.Since(start) / time.Duration(b.N)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(groups*members), "B/member")
	b.ReportMetric(perBeat.Seconds()*groups*members/3, "cores")
	runtime.KeepAlive(w)
}
