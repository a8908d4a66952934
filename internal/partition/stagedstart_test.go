package partition

import "testing"

// The leader moves its log start while a follower is fetching whole, which begins again from there; the snapshot that is
// installed in the end still names the old start. A power cut before the follower's own checkpoint, or after it, must not make
// the missing front look like damage (found by test/sim).
func TestPowerCutAfterTheLogStartPassedAWholeFetch(t *testing.T) {
	for name, to := range map[string]int64{"some left": 180, "nothing left": -1} {
		t.Run(name, func(t *testing.T) {
			c := behindLogStart(t)
			f := c.nodes[1]
			snap, r := c.stage(1, 0)
			for range 12 {
				f.m.Step()
				if len(c.net) > 0 {
					c.deliver()
				}
				c.nodes[0].m.Step()
			}
			c.leader.p.DeleteRecords(to, func(int64, error) {})
			c.propose(false)
			c.commit()
			c.leader.apply()
			start := c.leader.p.LogStart()
			c.fetched(r)
			f.mark(snap)
			f.crash(1, false) // marked, not installed
			if got := f.p.LogStart(); got < 100 || got > start || f.p.HighWatermark() != 192 {
				t.Fatalf("after a cut before Install: log from %d to %d", got, f.p.HighWatermark())
			}
			f.p.m.Pinned(testGroup, 0)
			c.settle() // its own checkpoint, of the snapshot's index or not
			f.crash(2, false)
			f.apply()
			c.settle()
			f.crash(3, false)
			f.apply()
			if f.p.LogStart() != start || f.p.HighWatermark() != 192 {
				t.Fatalf("log from %d to %d, want %d to 192", f.p.LogStart(), f.p.HighWatermark(), start)
			}
			if string(c.nodes[0].encoded()) != string(f.encoded()) || string(c.nodes[0].from(start)) != string(f.from(start)) {
				t.Fatal("state or records differ")
			}
		})
	}
}
