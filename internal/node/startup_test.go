package node

import (
	"fmt"
	"testing"
	"time"
)

// A node comes back with everything it had, a thousand partitions among it (fewer under the race detector), and says where it is meanwhile. The figures in the
// output are for people; what fails the test is a partition that is not there.
func TestRestartWithThousandPartitions(t *testing.T) {
	dir := t.TempDir() // first: it goes after the node has stopped
	n := newTestNode(t, 1).onDisk(dir)
	began := time.Now()
	n.start()
	t.Logf("empty disk, start to ready: %v", time.Since(began))
	nodes := []*testNode{n}
	c := client(t, nodes)
	began = time.Now()
	count := int32(1000)
	if raced {
		count = 300
	}
	createTopics(t, c, count, 1, "wide")
	eventually(t, func() error { return allLed(nodes, "wide") })
	t.Logf("%d partitions created and led: %v", count, time.Since(began))
	some := []int32{0, count/2 - 1, count - 1}
	for _, p := range some {
		produce(t, c, "wide", p, fmt.Sprint("to ", p))
	}
	c.Close()
	began = time.Now()
	n.stop()
	t.Logf("closed: %v", time.Since(began))
	began = time.Now()
	n.start()
	t.Logf("restart to ready: %v", time.Since(began))
	eventually(t, func() error { return allLed(nodes, "wide") })
	t.Logf("all led: %v", time.Since(began))
	for _, p := range some {
		if got := consume(t, nodes, "wide", p, 1); got[0] != fmt.Sprint("to ", p) {
			t.Errorf("wide-%d: %q", p, got)
		}
	}
}

// Three nodes on empty disks form their cluster and serve.
func TestStartThreeEmptyNodes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	nodes := newTestCluster(t, 3)
	for _, n := range nodes {
		n.onDisk(dir)
	}
	began := time.Now()
	startAll(nodes)
	t.Logf("three empty disks, start to ready: %v", time.Since(began))
	oneCluster(t, nodes)
	began = time.Now()
	stopAll(nodes)
	t.Logf("all closed: %v", time.Since(began))
	began = time.Now()
	startAll(nodes)
	t.Logf("restart of all, to ready: %v", time.Since(began))
}
