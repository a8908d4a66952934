package config

import (
	"fmt"
	"strings"
)

// Machine is what the process may use of the machine it runs on. 0: not known, and nothing is fitted to it.
type Machine struct {
	Memory int64 // bytes: the machine's, or its control group's if that is less
	Files  int64 // open descriptors (RLIMIT_NOFILE)
}

const (
	// BaseMemory is what a node needs beside what its limits bound: code, indexes, stacks.
	BaseMemory = 56 << 20
	// everydayMemory is the same with what is garbage until it is collected.
	everydayMemory = 80 << 20
	// MinMemory is the least that a node is run with.
	MinMemory = 256 << 20
	// inflatingMemory is what decompressing a batch takes at most: zstd's largest window, and a record.
	inflatingMemory = 36 << 20
	// connectionMemory is what an idle connection takes: two stacks, a read buffer, its queue.
	connectionMemory = 40 << 10
	// leastFrameBytes holds the largest batch, and what comes with it.
	leastFrameBytes = MaxBatchBytes + 1<<20
	// leastPeerBytes keeps replication going whatever the memory.
	leastPeerBytes = 4 << 20

	// baseFiles are listeners, locks, the event queue, directories being synced, profiles.
	baseFiles = 128
	// AdminConnections, PeerConnections and PeerConnectionsPerAddr bound the other listeners.
	AdminConnections       = 128
	PeerConnections        = 256
	PeerConnectionsPerAddr = 64
	// leastConnections is how few connections are worth starting for.
	leastConnections = 64
)

// Fit makes the limits that nobody set fit the memory and the descriptors that the process has, and adds a problem where those
// that were set leave no room: for Validate, which is to be called after it. What it returns is worth a line in the log each.
func (n *Node) Fit(m Machine) (notes []string) {
	return append(n.fitMemory(m.Memory), n.fitFiles(m.Files)...)
}

func (n *Node) fitMemory(machine int64) (notes []string) {
	l := &n.Limits
	own := n.given["memory-limit"]
	if !own {
		l.MemoryLimit = machine
	}
	total := l.MemoryLimit
	switch {
	case total == 0 && !own:
		return nil
	case total < MinMemory && own:
		n.problem("memory-limit", "%s is too little: a node needs at least %s", FormatBytes(total), FormatBytes(MinMemory))
		return nil
	case total < MinMemory:
		n.problem("memory-limit", "the process may use %d MiB of memory here, and a node needs at least %s: give it more", total>>20, FormatBytes(MinMemory))
		return nil
	}
	fit := func(flag string, v *int64, most int64) {
		if n.given[flag] || *v <= most {
			return
		}
		*v = most &^ (1<<10 - 1)
		if flag != "" {
			notes = append(notes, fmt.Sprintf("--%s is %s, to fit into %d MiB of memory", flag, FormatBytes(*v), total>>20))
		}
	}
	fit("request-memory", &l.RequestMemory, total/12)
	fit("max-request-bytes", &l.MaxFrameBytes, max(total/12, leastFrameBytes))
	fit("wal-cache-bytes", &l.WALCacheBytes, total/16)
	fit("", &l.FetchMemory, total/12)
	fit("", &l.DecodedMemory, total/20)
	fit("", &l.ResponseMemory, total/20)
	if total < 1<<30 {
		l.Inflating = 1
	}
	if peers := int64(len(n.Members()) - 1); peers > 0 {
		fit("", &l.PeerMemory, max(total/12/peers, leastPeerBytes))
	}
	keys, forConns := total/8, total/10
	if total < 1<<30 { // compaction takes more passes
		keys, forConns = total/32, total/13
	}
	fit("", &l.CleanerMemory, keys)
	fit("", &l.GroupMemory, total/32)
	if conns := int(forConns / connectionMemory); !n.given["max-connections"] && conns < l.MaxConnections {
		l.MaxConnections = conns
		notes = append(notes, fmt.Sprintf("--max-connections is %d, to fit into %d MiB of memory", conns, total>>20))
	}
	n.fitPerAddr()
	if need, parts := n.memoryNeeded(); need > total {
		n.problem("memory-limit", "%d MiB is less than the %d MiB that the settings add up to (%s): allow more, or lower those", total>>20, need>>20, parts)
	}
	return notes
}

func (n *Node) fitPerAddr() {
	if !n.given["max-connections-per-addr"] {
		n.Limits.MaxConnectionsPerAddr = min(n.Limits.MaxConnectionsPerAddr, n.Limits.MaxConnections)
	}
}

// memoryNeeded is the sum of everything that is bounded, and how it comes about.
func (n *Node) memoryNeeded() (total int64, parts string) {
	l := &n.Limits
	var text []string
	for _, p := range []struct {
		what  string
		bytes int64
	}{
		{"the node itself", BaseMemory}, {"--request-memory", l.RequestMemory}, {"one request beyond it of --max-request-bytes", l.MaxFrameBytes},
		{"--wal-cache-bytes", l.WALCacheBytes}, {"answers", l.FetchMemory + l.ResponseMemory}, {"large requests decoded", l.DecodedMemory},
		{"batches decompressed", int64(l.Inflating) * inflatingMemory}, {"compaction", l.CleanerMemory}, {"consumer groups", l.GroupMemory},
		{"peers", l.PeerMemory * int64(len(n.Members())-1)}, {fmt.Sprintf("%d connections", l.MaxConnections), int64(l.MaxConnections) * connectionMemory},
	} {
		if total += p.bytes; p.bytes > 0 {
			text = append(text, fmt.Sprintf("%s %d", p.what, p.bytes>>20))
		}
	}
	return total, strings.Join(text, ", ")
}

// MemoryGoal is what the garbage collector is told the process should stay below, in bytes: the base and what is in use in
// everyday work, with what compaction has taken for keys at the moment; and never more than nine tenths of what the process may
// use, since memory that was freed is counted until it is given back.
func (n *Node) MemoryGoal(keys int64) int64 {
	goal := everydayMemory + n.Limits.RequestMemory + n.Limits.WALCacheBytes + keys
	if n.Limits.MemoryLimit > 0 {
		goal = min(goal, n.Limits.MemoryLimit/10*9)
	}
	return goal
}

func (n *Node) fitFiles(files int64) (notes []string) {
	if files <= 0 {
		return nil
	}
	l := &n.Limits
	if most := int(files / 4); !n.given["max-open-files"] && l.MaxOpenFiles > most {
		l.MaxOpenFiles = most
		notes = append(notes, fmt.Sprintf("--max-open-files is %d, to fit into %d file descriptors (ulimit -n)", most, files))
	}
	need, parts := n.filesNeeded()
	if over := need - files; over > 0 && !n.given["max-connections"] && int64(l.MaxConnections)-over >= leastConnections {
		l.MaxConnections -= int(over)
		notes = append(notes, fmt.Sprintf("--max-connections is %d, to fit into %d file descriptors (ulimit -n)", l.MaxConnections, files))
		n.fitPerAddr()
		return notes
	}
	if need > files {
		n.problem("max-connections", "%d file descriptors are needed (%s), and the process may have %d: raise that (ulimit -n %d), or lower --max-connections or --max-open-files",
			need, parts, files, need)
	}
	return notes
}

// filesNeeded is the most descriptors that a node uses.
func (n *Node) filesNeeded() (total int64, parts string) {
	l := &n.Limits
	segments := int64(l.MaxOpenFiles) * 5 / 4 // while all are dirty a quarter more is open
	wal := l.WALMaxBytes*3/2/max(l.WALFileBytes, 1) + 4
	peers := int64(0)
	if len(n.Members()) > 1 || n.RaftAddr != "" {
		peers = PeerConnections + 2*int64(len(n.Members())-1)
	}
	total = baseFiles + segments + wal + peers + AdminConnections + int64(l.MaxConnections)
	return total, fmt.Sprintf("%d connections, %d segments, %d of the log, %d for peers, %d for others", l.MaxConnections, segments, wal, peers, baseFiles+AdminConnections)
}

// problem notes what Validate is to report.
func (n *Node) problem(flag, format string, args ...any) {
	n.problems = append(n.problems, Problem{Flag: flag, Text: fmt.Sprintf(format, args...)})
}
