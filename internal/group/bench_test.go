package group

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/group/consumer"
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

// BenchmarkConsumerHeartbeat is what a heartbeat of one of 10,000 members in 1,000 consumer groups costs, and what a member takes.
func BenchmarkConsumerHeartbeat(b *testing.B) {
	var before, after runtime.MemStats
	w, _ := newConsumerWorld(b, 1, map[string]int{"t": 20})
	runtime.GC()
	runtime.ReadMemStats(&before)
	var beats []consumer.Heartbeat
	for g := range 1000 {
		for m := range 10 {
			hb := enters(fmt.Sprintf("0123456789-0123456789-%d-%d", g, m), "t")
			hb.Group = fmt.Sprint("group", g)
			var epoch int32
			w.lead().ConsumerHeartbeat(hb, func(a ConsumerAnswer, err error) { epoch = a.Epoch })
			beats = append(beats, consumer.Heartbeat{Version: 1, Group: hb.Group, Member: hb.Member, ClientID: hb.ClientID, Epoch: epoch, RebalanceTimeout: -1})
		}
		for range 4 { // until all have what is theirs
			for m := range 10 {
				hb := &beats[10*g+m]
				hb.OwnedSaid = true
				w.lead().ConsumerHeartbeat(*hb, func(a ConsumerAnswer, err error) {
					if err == nil {
						hb.Epoch = a.Epoch
					}
				})
				hb.OwnedSaid = false
			}
		}
	}
	w.log.batches = nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	for i := 0; b.Loop(); i++ {
		w.lead().ConsumerHeartbeat(beats[i%len(beats)], func(_ ConsumerAnswer, err error) {
			if err != nil {
				b.Fatal(err)
			}
		})
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/10_000, "B/member")
}

// BenchmarkConsumerRebalance is the coordinator's work when one more member comes to a group of so many, and all come to the new target.
func BenchmarkConsumerRebalance(b *testing.B) {
	for _, n := range []int{3, 300} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				w, _ := newConsumerWorld(b, 1, map[string]int{"t": 600})
				answers := make([]ConsumerAnswer, n+1)
				join := func(i int) { answers[i] = w.consume(enters(fmt.Sprint("m", i), "t")).ok() }
				settle := func(n int) {
					for round := 0; ; round++ {
						done := true
						for i := range n {
							r := w.consume(lives(fmt.Sprint("m", i), answers[i])).ok()
							done = done && !r.Changed && r.Epoch == answers[i].Epoch
							if answers[i].Epoch = r.Epoch; r.Changed {
								answers[i].Assignment = r.Assignment
							}
						}
						if done {
							return
						}
					}
				}
				for i := range n {
					join(i)
				}
				settle(n)
				b.StartTimer()
				join(n)
				settle(n + 1)
			}
		})
	}
}
