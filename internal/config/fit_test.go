package config

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// fitted is a node of so many flags on a machine.
func fitted(t *testing.T, m Machine, flags ...string) (n *Node, notes []string) {
	t.Helper()
	n = Default()
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	Flags(fs, n)
	if err := fs.Parse(flags); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(n, fs, nil, nil); err != nil {
		t.Fatal(err)
	}
	return n, n.Fit(m)
}

// On a common machine everything is as documented, and nothing is said.
func TestRoomyMachinesChangeNothing(t *testing.T) {
	n, notes := fitted(t, Machine{Memory: 4 << 30, Files: 20_000})
	want := Default().Limits
	want.MemoryLimit = 4 << 30
	if n.Limits != want || len(notes) != 0 || n.Validate() != nil {
		t.Errorf("%+v\nnot\n%+v\n%q, %v", n.Limits, want, notes, n.Validate())
	}
	n, notes = fitted(t, Machine{})
	if n.Limits != Default().Limits || len(notes) != 0 {
		t.Errorf("a machine that nothing is known of: %+v, %q", n.Limits, notes)
	}
}

// Whatever the limit, all that is bounded fits into it together.
func TestLimitsFitTheMemory(t *testing.T) {
	for _, mib := range []int64{256, 300, 400, 512, 700, 1000, 1024, 2048} {
		for _, peers := range []string{"", "1@a:1,2@b:1,3@c:1", "1@a:1,2@b:1,3@c:1,4@d:1,5@e:1"} {
			flags := []string{"--memory-limit", FormatBytes(mib << 20)}
			if peers != "" {
				flags = append(flags, "--node-id", "1", "--peers", peers, "--raft-addr", "a:1", "--advertised-kafka-addr", "a:2")
			}
			n, _ := fitted(t, Machine{Memory: 64 << 30, Files: 1 << 20}, flags...)
			if err := n.Validate(); err != nil {
				t.Errorf("%d MiB, peers %q: %v", mib, peers, err)
				continue
			}
			if need, parts := n.memoryNeeded(); need > mib<<20 || !strings.Contains(parts, "compaction") {
				t.Errorf("%d MiB, peers %q: %d MiB needed: %s", mib, peers, need>>20, parts)
			}
			if n.MemoryGoal(n.Limits.CleanerMemory) > mib<<20/10*9 || n.Limits.MaxConnections < leastConnections || n.Limits.MaxConnectionsPerAddr > n.Limits.MaxConnections {
				t.Errorf("%d MiB: goal %d, limits %+v", mib, n.MemoryGoal(0), n.Limits)
			}
		}
	}
}

func TestWhatDoesNotFitIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		m     Machine
		flags []string
		words []string
	}{
		"a small limit":       {Machine{}, []string{"--memory-limit", "128MiB"}, []string{"--memory-limit", "128MiB is too little", "256MiB"}},
		"none":                {Machine{Memory: 1 << 40}, []string{"--memory-limit", "0"}, []string{"--memory-limit", "too little"}},
		"a small machine":     {Machine{Memory: 100 << 20}, nil, []string{"--memory-limit", "100 MiB of memory here", "give it more"}},
		"large settings":      {Machine{}, []string{"--memory-limit", "512MiB", "--request-memory", "500MiB"}, []string{"--memory-limit", "512 MiB is less than", "--request-memory 500", "lower"}},
		"nonsense":            {Machine{}, []string{"--memory-limit", "much"}, []string{"--memory-limit", "512MiB", "\"much\""}[:1]},
		"few descriptors":     {Machine{Files: 256}, nil, []string{"--max-connections", "256", "ulimit -n"}},
		"too many of our own": {Machine{Files: 4096}, []string{"--max-connections", "10000"}, []string{"file descriptors are needed", "10000 connections", "the process may have 4096", "ulimit -n", "--max-connections"}},
	} {
		n, _ := fitted(t, c.m, c.flags...)
		err := n.Validate()
		if err == nil {
			t.Errorf("%s: valid", name)
			continue
		}
		for _, w := range c.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q is not in %v", name, w, err)
			}
		}
	}
}

// The usual 1,024 and 4,096 descriptors are enough to start: what nobody set is made to fit, and the log says so.
func TestLimitsFitTheDescriptors(t *testing.T) {
	for _, files := range []int64{1024, 4096} {
		n, notes := fitted(t, Machine{Files: files})
		if err := n.Validate(); err != nil {
			t.Errorf("%d: %v", files, err)
		}
		if need, parts := n.filesNeeded(); need > files || len(notes) == 0 || !strings.Contains(strings.Join(notes, " "), "ulimit -n") {
			t.Errorf("%d: %d needed (%s), notes %q", files, need, parts, notes)
		}
		if n.Limits.MaxConnectionsPerAddr > n.Limits.MaxConnections {
			t.Errorf("%d: %+v", files, n.Limits)
		}
	}
}
