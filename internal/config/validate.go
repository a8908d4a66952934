package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Problem is one thing wrong with a node's configuration.
type Problem struct {
	// Flag mends it, without dashes: "raft-addr".
	Flag string
	// Text says what is wrong and what to do.
	Text string
}

// String is one line for a terminal.
func (p Problem) String() string { return "--" + p.Flag + ": " + p.Text }

// ValidationError lists every problem of a configuration.
type ValidationError struct{ Problems []Problem }

// Error is one line for one problem, else a list with a line for each.
func (e *ValidationError) Error() string {
	if len(e.Problems) == 1 {
		return "configuration: " + e.Problems[0].String()
	}
	lines := make([]string, 0, len(e.Problems)+1)
	lines = append(lines, fmt.Sprintf("configuration: %d problems", len(e.Problems)))
	for _, p := range e.Problems {
		lines = append(lines, "  "+p.String())
	}
	return strings.Join(lines, "\n")
}

// Validate checks all of the configuration at once. The error is a *ValidationError that lists every problem found, those of
// reading flags, environment and file first.
func (n *Node) Validate() error {
	v := &validator{n: n, out: slices.Clone(n.problems)}
	v.identity()
	v.peers()
	v.raft()
	v.kafka()
	v.admin()
	v.clashes()
	v.topics()
	v.limits()
	if len(v.out) > 0 {
		return &ValidationError{Problems: v.out}
	}
	return nil
}

type validator struct {
	n   *Node
	out []Problem
}

// bad adds a problem, unless the setting could not even be read: then its value is not what was meant.
func (v *validator) bad(flag, format string, args ...any) {
	for _, p := range v.n.problems {
		if p.Flag == flag {
			return
		}
	}
	v.out = append(v.out, Problem{Flag: flag, Text: fmt.Sprintf(format, args...)})
}

func (v *validator) identity() {
	n := v.n
	switch {
	case n.NodeID == 0 && len(n.Peers) > 0:
		v.bad("node-id", "missing: a node with --peers needs its own id, for example --node-id 1")
	case n.NodeID < 0:
		v.bad("node-id", "%d is not a node id: ids begin at 1", n.NodeID)
	}
	if strings.TrimSpace(n.DataDir) == "" {
		v.bad("data-dir", "missing: the node needs a directory of its own, for example --data-dir ./data")
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, n.LogLevel) {
		v.bad("log-level", "%q is not debug, info, warn or error", n.LogLevel)
	}
	if !slices.Contains([]string{"text", "json"}, n.LogFormat) {
		v.bad("log-format", "%q is not text or json", n.LogFormat)
	}
}

func (v *validator) peers() {
	ids := map[int32]bool{}
	addrs := map[string]int32{}
	for _, p := range v.n.Peers {
		if p.ID <= 0 {
			v.bad("peers", "%d is not a node id: ids begin at 1", p.ID)
		}
		if ids[p.ID] {
			v.bad("peers", "node id %d is there twice: each node needs its own", p.ID)
		}
		ids[p.ID] = true
		host, port, err := splitAddr(p.Addr)
		switch {
		case err != nil:
			v.bad("peers", "node %d: %v", p.ID, err)
			continue
		case wildcard(host):
			v.bad("peers", "node %d: %q is no address that can be dialled: name the node's host", p.ID, p.Addr)
		case port == 0:
			v.bad("peers", "node %d: %q: port 0 can't be dialled", p.ID, p.Addr)
		}
		if other, ok := addrs[p.Addr]; ok && other != p.ID {
			v.bad("peers", "nodes %d and %d have the same address %s", other, p.ID, p.Addr)
		}
		addrs[p.Addr] = p.ID
	}
}

func (v *validator) raft() {
	n := v.n
	if n.RaftAddr == "" {
		if len(n.Peers) > 0 {
			v.bad("raft-addr", "missing: a node with --peers listens for them, for example --raft-addr 0.0.0.0:5001")
		}
		if n.AdvertisedRaftAddr != "" {
			v.bad("advertised-raft-addr", "has no use without --raft-addr")
		}
		return
	}
	host, _, err := splitAddr(n.RaftAddr)
	if err != nil {
		v.bad("raft-addr", "%v", err)
		return
	}
	if n.AdvertisedRaftAddr != "" {
		h, p, err := splitAddr(n.AdvertisedRaftAddr)
		switch {
		case err != nil:
			v.bad("advertised-raft-addr", "%v", err)
		case wildcard(h) || p == 0:
			v.bad("advertised-raft-addr", "%q is no address that peers can dial", n.AdvertisedRaftAddr)
		default:
			v.clashWithPeer("advertised-raft-addr", n.AdvertisedRaftAddr)
		}
		return
	}
	if !v.listsSelf() {
		if wildcard(host) {
			v.bad("raft-addr", "%q listens on every address, and peers can't dial that: add this node to --peers or set --advertised-raft-addr", n.RaftAddr)
		} else {
			v.clashWithPeer("raft-addr", n.RaftAddr)
		}
	} else if !wildcard(host) && n.PeerAddr() != n.RaftAddr {
		v.clashWithPeer("raft-addr", n.RaftAddr) // a command line copied from another node
	}
}

func (v *validator) listsSelf() bool {
	return slices.ContainsFunc(v.n.Peers, func(p Peer) bool { return p.ID == v.n.ID() })
}

func (v *validator) clashWithPeer(flag, addr string) {
	if v.n.ID() == 0 {
		return // a missing node id is told already
	}
	for _, p := range v.n.Peers {
		if p.ID != v.n.ID() && p.Addr == addr {
			v.bad(flag, "%s is the address of node %d in --peers", addr, p.ID)
		}
	}
}

func (v *validator) kafka() {
	n := v.n
	if _, opts, ok := strings.Cut(n.KafkaAddr, "?"); ok && opts != "mode=one-address" && opts != "mode=direct" {
		v.bad("kafka-addr", "unknown option %q: there are mode=one-address and mode=direct", opts)
	}
	host, _, err := splitAddr(n.KafkaListen())
	if err != nil {
		v.bad("kafka-addr", "%v", err)
		return
	}
	if n.AdvertisedKafkaAddr != "" {
		h, _, err := splitAddr(n.AdvertisedKafkaAddr)
		switch {
		case err != nil:
			v.bad("advertised-kafka-addr", "%v", err)
		case wildcard(h):
			v.bad("advertised-kafka-addr", "%q is no address that clients can dial: name this node's host", n.AdvertisedKafkaAddr)
		}
		return
	}
	switch {
	case wildcard(host):
		v.bad("advertised-kafka-addr", "missing: --kafka-addr %s listens on every address, which clients can't dial: set the host and port that they use for this node", n.KafkaListen())
	case loopback(host) && v.remotePeers():
		v.bad("advertised-kafka-addr", "missing: the peers are on other hosts, and --kafka-addr %s is only for clients on this one: listen wider, and set the host and port that clients use for this node", n.KafkaListen())
	}
}

func (v *validator) remotePeers() bool {
	return slices.ContainsFunc(v.n.Peers, func(p Peer) bool {
		host, _, err := splitAddr(p.Addr)
		return err == nil && p.ID != v.n.ID() && !loopback(host)
	})
}

func (v *validator) admin() {
	if v.n.AdminAddr == "" {
		return
	}
	if _, _, err := splitAddr(v.n.AdminAddr); err != nil {
		v.bad("admin-addr", "%v", err)
	}
}

// clashes finds listeners that want the same port.
func (v *validator) clashes() {
	n := v.n
	listeners := []struct{ flag, addr string }{{"kafka-addr", n.KafkaListen()}, {"raft-addr", n.RaftAddr}, {"admin-addr", n.AdminAddr}}
	for i, a := range listeners {
		for _, b := range listeners[:i] {
			ha, pa, errA := splitAddr(a.addr)
			hb, pb, errB := splitAddr(b.addr)
			if a.addr == "" || b.addr == "" || errA != nil || errB != nil || pa != pb || pa == 0 {
				continue
			}
			if ha == hb || wildcard(ha) || wildcard(hb) || loopback(ha) && loopback(hb) && (ha == "localhost" || hb == "localhost") {
				v.bad(a.flag, "%s and --%s %s want the same port: choose another", a.addr, b.flag, b.addr)
			}
		}
	}
}

func (v *validator) topics() {
	n := v.n
	if n.NumPartitions < 1 || n.NumPartitions > MaxPartitionsPerTopic {
		v.bad("num-partitions", "%d is not from 1 to %d", n.NumPartitions, MaxPartitionsPerTopic)
	}
	if n.ReplicationFactor < 0 {
		v.bad("replication-factor", "%d is not a number of replicas (0 chooses)", n.ReplicationFactor)
	}
	for _, name := range slices.Sorted(maps.Keys(n.Kafka)) {
		d, err := Brokers.Find(name)
		switch flag, own := ownFlags[name]; {
		case err != nil:
			v.bad("kafka-config", "%v", err)
		case own:
			v.bad("kafka-config", "%s is set by --%s", name, flag)
		default:
			if err := d.Validate(n.Kafka[name]); err != nil {
				v.bad("kafka-config", "%v", err)
			}
		}
	}
}

// ownFlags are the broker configs that have a flag: given twice they could disagree.
var ownFlags = map[string]string{
	"node.id": "node-id", "broker.id": "node-id", "broker.rack": "rack", "listeners": "kafka-addr",
	"advertised.listeners": "advertised-kafka-addr", "log.dir": "data-dir", "log.dirs": "data-dir",
	"num.partitions": "num-partitions", "default.replication.factor": "replication-factor",
	"auto.create.topics.enable": "auto-create-topics", "socket.request.max.bytes": "max-request-bytes",
	"max.connections": "max-connections", "max.connections.per.ip": "max-connections-per-addr",
	"connections.max.idle.ms": "idle-timeout",
}

func (v *validator) limits() {
	l := v.n.Limits
	atLeast := func(flag string, got, least int64) {
		if got < least {
			v.bad(flag, "%d is too small: at least %d", got, least)
		}
	}
	// A frame must hold the largest batch; the log's file the largest entry, with room for records' headers.
	atLeast("max-request-bytes", l.MaxFrameBytes, 1<<20)
	if l.MaxFrameBytes > 1<<30 {
		v.bad("max-request-bytes", "%d is too large: at most %d", l.MaxFrameBytes, 1<<30)
	}
	atLeast("max-connections", int64(l.MaxConnections), 1)
	atLeast("max-connections-per-addr", int64(l.MaxConnectionsPerAddr), 1)
	atLeast("request-memory", l.RequestMemory, 16<<20)
	atLeast("wal-file-bytes", l.WALFileBytes, 2*MaxBatchBytes)
	atLeast("wal-max-bytes", l.WALMaxBytes, 2*l.WALFileBytes)
	atLeast("wal-cache-bytes", l.WALCacheBytes, 1<<20)
	atLeast("max-open-files", int64(l.MaxOpenFiles), 16)
	if l.IdleTimeout < time.Second {
		v.bad("idle-timeout", "%s is too short: at least 1s", l.IdleTimeout)
	}
	if l.HeartbeatInterval < 10*time.Millisecond {
		v.bad("heartbeat-interval", "%s is too short: at least 10ms", l.HeartbeatInterval)
	}
	if l.ElectionTimeout < 3*l.HeartbeatInterval {
		v.bad("election-timeout", "%s is too short: at least three times --heartbeat-interval %s, or leaders are deposed for nothing", l.ElectionTimeout, l.HeartbeatInterval)
	}
}

// OneAddressMode reports whether the Kafka listener runs in one-address mode, by --one-address or by an option of --kafka-addr.
func (n *Node) OneAddressMode() bool {
	_, opts, _ := strings.Cut(n.KafkaAddr, "?")
	return n.OneAddress || opts == "mode=one-address"
}

func parseInt(s string, bits int) (int64, error) {
	v, err := strconv.ParseInt(strings.TrimSpace(s), 10, bits)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number in range", s)
	}
	return v, nil
}
