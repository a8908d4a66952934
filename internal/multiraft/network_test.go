package multiraft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/vfs"
)

// The tests of this file run three services over the real transport on loopback sockets, with logs on disks in memory and every
// worker on its goroutine. They wait for conditions, each within a bound.

const patience = 100 * time.Second // shorter than what test/mutants gives a test

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond) // between two looks at a condition, not instead of one
	}
}

func TestThreeNodeElectionOverNetwork(t *testing.T) {
	c := startNet(t, 3)
	eventually(t, "every node knows the same leader, of the same term", func() bool {
		l := c.leader() // on a busy machine it may be another one the next time
		term := c.nodes[l].replica().Term()
		for _, n := range c.nodes {
			if st := n.replica().Status(); st.Term != term || st.LeaderNode != l {
				return false
			}
		}
		return true
	})
}

func TestLogReplicationAcrossNodes(t *testing.T) {
	c := startNet(t, 3)
	l := c.leader()
	var want []string
	for i := range 100 {
		want = append(want, fmt.Sprintf("%d-%s", i, strings.Repeat("x", i*100)))
		c.propose(l, want[i])
	}
	for id, n := range c.nodes {
		eventually(t, fmt.Sprintf("node %d has applied everything in order", id), func() bool { return slices.Equal(n.sm.list(), want) })
	}
}

func TestLeaderFailover(t *testing.T) {
	c := startNet(t, 3)
	old := c.leader()
	c.propose(old, "before")
	c.stop(old)
	next := c.leader()
	if next == old {
		t.Fatal("a stopped node leads")
	}
	c.propose(next, "after")
	c.start(old)
	for id, n := range c.nodes {
		eventually(t, fmt.Sprintf("node %d has both", id), func() bool { return slices.Equal(n.sm.list(), []string{"before", "after"}) })
	}
}

func TestNetworkPartitionMinorityNeverAcks(t *testing.T) {
	c := startNet(t, 3)
	old := c.leader()
	c.propose(old, "before")
	c.isolate(old, true)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var minority error
	wg.Go(func() { minority = c.nodes[old].replica().Propose(ctx, []byte("minority")) })
	var next int32
	eventually(t, "the majority elects another leader", func() bool {
		for id, n := range c.nodes {
			if id != old && n.replica().Status().Ready {
				next = id
				return true
			}
		}
		return false
	})
	c.propose(next, "majority")
	eventually(t, "the isolated leader steps down", func() bool { return !c.nodes[old].replica().IsLeader() })
	c.isolate(old, false)
	for id, n := range c.nodes {
		eventually(t, fmt.Sprintf("node %d has what the majority acknowledged and nothing else", id),
			func() bool { return slices.Equal(n.sm.list(), []string{"before", "majority"}) })
	}
	cancel()
	wg.Wait()
	if minority == nil {
		t.Fatal("a minority acknowledged")
	}
	if errors.Is(minority, context.DeadlineExceeded) {
		t.Fatalf("unexpected: %v", minority)
	}
}

// Rule 11: a leader whose disk hangs hands its leadership over. The group could commit without that disk, while everybody
// who waits at the leader would hang.
func TestStalledDiskHandsLeadershipOver(t *testing.T) {
	c := startNet(t, 3, func(c *netCluster) { c.stall = 300 * time.Millisecond })
	c.propose(c.leader(), "before")
	gate := make(chan struct{})
	release := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release) // whatever the test finds: nobody could close the log
	var old int32
	done := make(chan error, 1)
	for hung := false; !hung; {
		old = c.leader()
		stalled := make(chan struct{})
		var once sync.Once
		c.nodes[old].disk.SetHook(func(op vfs.Op, _ string, _ time.Duration) {
			if op == vfs.OpSync {
				once.Do(func() { close(stalled) })
				<-gate
			}
		})
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
			defer cancel()
			done <- c.nodes[old].replica().Propose(ctx, []byte("during"))
		}()
		select {
		case <-stalled:
			hung = true
		case err := <-done: // it led no more when it was asked, and need not write anything: another one's disk, then
			if c.nodes[old].disk.SetHook(nil); !errors.Is(err, ErrNotLeader) {
				t.Fatalf("a proposal without a stall: %v", err)
			}
		case <-time.After(patience):
			t.Fatal("a proposal is neither written nor answered")
		}
	}
	var next int32
	eventually(t, "another node leads while the disk hangs", func() bool {
		for id, n := range c.nodes {
			if id != old && n.replica().Status().Ready {
				next = id
				return true
			}
		}
		return false
	})
	c.propose(next, "after")
	release()
	if err := <-done; err != nil && !errors.Is(err, ErrNotLeader) {
		t.Fatalf("the proposal that met the stall: %v", err)
	}
	for id, n := range c.nodes {
		eventually(t, fmt.Sprintf("node %d catches up", id), func() bool {
			l := n.sm.list()
			return len(l) > 0 && l[len(l)-1] == "after"
		})
	}
}
