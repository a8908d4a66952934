package cli

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/chronik-go/chronik/internal/config"
)

// boundMemory tells the garbage collector what the node is meant to use, so that a burst is collected rather than kept, and what
// compaction takes for keys at the moment, which would otherwise have it collect all the time. It is a goal of the collector, not a
// limit that anything fails at. GOMEMLIMIT, if set, wins.
func boundMemory(cfg *config.Node, keys int64) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(cfg.MemoryGoal(keys))
	}
}

// machine is what this process may use.
func machine() config.Machine {
	return config.Machine{Memory: machineMemory(os.DirFS("/")), Files: raiseFiles()}
}

// machineMemory is the machine's memory, or the least that a control group above the process allows (version 2 or 1); 0 where
// neither can be told.
func machineMemory(root fs.FS) int64 {
	least := int64(0)
	note := func(n int64) {
		if n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	note(memTotal(root))
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return least
	}
	for _, line := range strings.Split(string(groups), "\n") {
		parts := strings.SplitN(line, ":", 3) // hierarchy, controllers, path
		if len(parts) != 3 {
			continue
		}
		dir, name := "sys/fs/cgroup", "memory.max"
		if parts[1] != "" {
			if !strings.Contains(","+parts[1]+",", ",memory,") {
				continue
			}
			dir, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		}
		// The path is the host's where the process is in a namespace that does not show it: what can't be read is passed by.
		for at := path.Clean("/" + parts[2]); ; at = path.Dir(at) {
			note(fileNumber(root, path.Join(dir, at, name)))
			if at == "/" {
				break
			}
		}
	}
	return least
}

func memTotal(root fs.FS) int64 {
	b, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

// fileNumber reads a control group's file; 0 for "max" and whatever else is no number.
func fileNumber(root fs.FS, name string) int64 {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n
}
