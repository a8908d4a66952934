package cluster

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chronik-go/chronik/test/harness"
)

// idleFor is how long the cluster idles, and with how many partitions: CHRONIK_IDLE_MINUTES and 1,000, or a few seconds and fewer.
func idleFor(t *testing.T) (time.Duration, int32) {
	s := os.Getenv("CHRONIK_IDLE_MINUTES")
	if s == "" {
		return 5 * time.Second, 100
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("CHRONIK_IDLE_MINUTES=%q is not a number from 1", s)
	}
	return time.Duration(n) * time.Minute, 1000
}

// TestIdleClusterElectsNobody lets three servers with many partitions idle and looks at what the nodes count: no leadership is
// taken and no term begins, and every minute is told what idling costs. A cluster that elects while nothing happens will elect when
// something does.
func TestIdleClusterElectsNobody(t *testing.T) {
	length, count := idleFor(t)
	c := startCluster(t, 3)
	c.createTopic(t, "idle", count)
	for p := range count {
		c.leader(t, "idle", p)
	}
	if os.Getenv("CHRONIK_IDLE_MINUTES") == "" {
		idlesOnce(t, c, length)
		return
	}
	before := settled(t, c)
	use := usageOf(t, c)
	began, told := time.Now(), time.Now()
	for time.Since(began) < length {
		time.Sleep(min(time.Second, length)) // the thing tested is that time passes
		if time.Since(told) < time.Minute {
			continue
		}
		told = time.Now()
		now := usageOf(t, c)
		t.Logf("%v: %v, %s", time.Since(began).Round(time.Second), elections(t, c), cost(use, now, time.Since(began)))
	}
	after := elections(t, c)
	t.Logf("%d partitions idle for %v: leaderships taken %v, then %v; %s", count, length, before, after, cost(use, usageOf(t, c), time.Since(began)))
	if after != before {
		t.Errorf("leaderships taken and terms of all nodes were %v and are %v: somebody was elected while nothing happened", before, after)
	}
}

// idlesOnce wants one stretch of time without an election. On a machine that does other things beside, nodes may be left without the
// processor for as long as an election takes, and say so: what is elected then does not count. A cluster that elects by itself has no such
// stretch.
func idlesOnce(t *testing.T, c *cluster, length time.Duration) {
	t.Helper()
	const tries, most = 12, 60
	for i, all := 0, 0; i < tries && all < most; all++ {
		stood := stoodStill(t, c)
		before := settled(t, c)
		time.Sleep(length) // the thing tested is that time passes
		after := elections(t, c)
		if after == before {
			return
		}
		t.Logf("leaderships taken and terms of all nodes were %v and are %v", before, after)
		if stoodStill(t, c) == stood {
			i++
		}
	}
	t.Errorf("somebody was elected in each of so many times %v, while nothing happened", length)
}

// stoodStill counts how often a node has said that it was left without the processor.
func stoodStill(t *testing.T, c *cluster) (times int) {
	t.Helper()
	for _, n := range c.Nodes {
		b, err := os.ReadFile(n.LogFile)
		if err != nil {
			t.Fatal(err)
		}
		times += strings.Count(string(b), "this node stood still")
	}
	return times
}

// counts is what a cluster's nodes count of elections, added up.
type counts struct{ taken, terms float64 }

func (n counts) String() string { return fmt.Sprintf("%.0f (terms %.0f)", n.taken, n.terms) }

// settled waits until the elections of the beginning are over: the same counts for two seconds.
func settled(t *testing.T, c *cluster) counts {
	t.Helper()
	last, since := elections(t, c), time.Now()
	for end := time.Now().Add(bound); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if now := elections(t, c); now != last {
			last, since = now, time.Now()
		} else if time.Since(since) > 2*time.Second {
			return now
		}
	}
	t.Fatalf("elections do not end: %v", last)
	return last
}

func elections(t *testing.T, c *cluster) (sum counts) {
	t.Helper()
	for _, n := range c.Nodes {
		sum.taken += metric(t, n, "chronik_leaderships_taken_total")
		sum.terms += metric(t, n, "chronik_raft_terms")
	}
	return sum
}

func metric(t *testing.T, n *harness.Node, name string) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Admin+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	for err != nil && ctx.Err() == nil && n.Running() { // a connection kept from the last time may just have been closed
		time.Sleep(10 * time.Millisecond)
		res, err = http.DefaultClient.Do(req)
	}
	if err != nil {
		t.Fatalf("node %d: %v", n.ID, err)
	}
	defer res.Body.Close()
	for s := bufio.NewScanner(res.Body); s.Scan(); {
		if value, ok := strings.CutPrefix(s.Text(), name+" "); ok {
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	t.Fatalf("node %d has no metric %s", n.ID, name)
	return 0
}

func usageOf(t *testing.T, c *cluster) harness.Usage {
	t.Helper()
	var pids []int
	for _, n := range c.Nodes {
		pids = append(pids, n.PID())
	}
	u, err := harness.UsageOf(pids...)
	if err != nil {
		t.Skipf("what processes use can't be read here: %v", err)
	}
	return u
}

func cost(from, to harness.Usage, d time.Duration) string {
	return fmt.Sprintf("%.3f cores and %.0f MB for all three", (to.CPU-from.CPU).Seconds()/d.Seconds(), float64(to.RSS)/1e6)
}
