package badinput

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pair is a cluster of two nodes, with raft addresses as given.
func pair(t *testing.T, raft [2]string) (nodes [2]*server, args [2][]string) {
	t.Helper()
	peers := fmt.Sprintf("1@%s,2@%s", raft[0], raft[1])
	dir := t.TempDir()
	for i := range nodes {
		args[i] = alone(t, filepath.Join(dir, fmt.Sprint(i+1)), "--node-id", fmt.Sprint(i+1), "--raft-addr", raft[i], "--peers", peers)
		nodes[i] = start(t, args[i]...)
	}
	for _, n := range nodes {
		n.awaitReady(t)
	}
	return nodes, args
}

// TestNodeOfAnotherClusterIsRefused: a node dies, and at its address somebody starts a node of another cluster.
func TestNodeOfAnotherClusterIsRefused(t *testing.T) {
	p := ports(t, 3)
	ours, _ := pair(t, [2]string{p[0], p[1]})
	ours[0].kill()
	theirs, args := pair(t, [2]string{p[0], p[2]})
	t.Log(theirs[0].awaitLog(t, "refused", "cluster", "level=WARN", "node 2"))
	t.Log(ours[1].awaitLog(t, "do not belong together", "cluster", "level=WARN", "node 1"))
	roundTrip(t, flagOf(args[0], "--kafka-addr"), "theirs", "unharmed")
}

// TestPeersOfTwoClustersAreRefused: a new node whose --peers mix two clusters joins neither.
func TestPeersOfTwoClustersAreRefused(t *testing.T) {
	p := ports(t, 5)
	pair(t, [2]string{p[0], p[1]})
	pair(t, [2]string{p[2], p[3]})
	refuses(t, alone(t, filepath.Join(t.TempDir(), "data"), "--node-id", "3", "--raft-addr", p[4],
		"--peers", fmt.Sprintf("1@%s,2@%s,3@%s", p[0], p[3], p[4])), "node 1", "node 2", "--peers", "one cluster")
}

// TestNodeIDOfAMemberIsRefused: an emptied disk, or a copied command line, does not come back as the node it was.
func TestNodeIDOfAMemberIsRefused(t *testing.T) {
	p := ports(t, 3)
	nodes, args := pair(t, [2]string{p[0], p[1]})
	peers := flagOf(args[0], "--peers")
	refuses(t, alone(t, filepath.Join(t.TempDir(), "data"), "--node-id", "2", "--raft-addr", p[2], "--peers", peers), "node 2", "--node-id")
	roundTrip(t, flagOf(args[1], "--kafka-addr"), "ours", "unharmed")
	nodes[1].kill()
	refuses(t, alone(t, filepath.Join(t.TempDir(), "data"), "--node-id", "2", "--raft-addr", p[1], "--peers", peers), "node 2", "--node-id")
}

// TestTwoNodesOfOneIDDoNotFormACluster: both run with --node-id 1, and each has the other in its --peers as node 2. One of them
// sees the other first, says so and ends; the other then waits for a node 2, and must not serve without it.
func TestTwoNodesOfOneIDDoNotFormACluster(t *testing.T) {
	p := ports(t, 2)
	var nodes [2]*server
	for i := range nodes {
		nodes[i] = start(t, alone(t, filepath.Join(t.TempDir(), "data"), "--node-id", "1", "--raft-addr", p[i], "--advertised-raft-addr", p[i],
			"--peers", "2@"+p[1-i])...)
	}
	var ended, other *server
	select {
	case <-nodes[0].done:
		ended, other = nodes[0], nodes[1]
	case <-nodes[1].done:
		ended, other = nodes[1], nodes[0]
	case <-time.After(time.Minute):
		t.Fatalf("both still run after a minute:\n%s\n%s", &nodes[0].errs, &nodes[1].errs)
	}
	if ended.err == nil {
		t.Error("it ended with code 0")
	}
	if line := ended.errs.String(); !strings.Contains(line, "says it is node 1") || !strings.Contains(line, "--peers calls it node 2") {
		t.Errorf("it does not say why:\n%s", line)
	}
	if out := ended.out.String() + other.out.String(); out != "" {
		t.Errorf("a node was ready: %q", out)
	}
}

// TestAddressOfAnotherNodeIsRefused: a command line copied from node 1, with node 2's address.
func TestAddressOfAnotherNodeIsRefused(t *testing.T) {
	p := ports(t, 2)
	refuses(t, alone(t, filepath.Join(t.TempDir(), "data"), "--node-id", "1", "--raft-addr", p[1],
		"--peers", fmt.Sprintf("1@%s,2@%s", p[0], p[1])), p[1], "node 2", "--peers")
}
