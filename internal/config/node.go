package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Defaults of a node.
const (
	DefaultNodeID    = 1
	DefaultKafkaAddr = "localhost:9092"
	DefaultAdminAddr = "localhost:9644"
	DefaultDataDir   = "./data"

	DefaultMaxFrameBytes         = 100 << 20
	DefaultMaxConnections        = 10000
	DefaultMaxConnectionsPerAddr = 2000
	DefaultIdleTimeout           = 10 * time.Minute
	DefaultRequestMemory         = 48 << 20
	DefaultFetchMemory           = 48 << 20
	DefaultDecodedMemory         = 32 << 20
	DefaultResponseMemory        = 32 << 20
	DefaultPeerMemory            = 128 << 20
	DefaultInflating             = 2
	DefaultCleanerMemory         = 128 << 20
	DefaultGroupMemory           = 128 << 20
	DefaultWALFileBytes          = 64 << 20
	DefaultWALMaxBytes           = 512 << 20
	DefaultWALCacheBytes         = 32 << 20
	DefaultMaxOpenFiles          = 1024
	DefaultElectionTimeout       = time.Second
	DefaultHeartbeatInterval     = 300 * time.Millisecond

	// MaxPartitionsPerTopic bounds one topic, and so what a single request can make a cluster build.
	MaxPartitionsPerTopic = 10000
	// autoReplication is the replication factor of topics created without one, on a cluster with that many nodes.
	autoReplication = 3
)

// Peer is a node of the cluster, as --peers names it.
type Peer struct {
	ID int32
	// Addr is host:port of the node's raft listener, as this node can reach it.
	Addr string
}

// Peers is the list of a cluster's first nodes, ascending by id once validated. It may or may not hold the node itself.
type Peers []Peer

// String is the form that ParsePeers reads: 1@h1:5001,2@h2:5001.
func (p Peers) String() string {
	parts := make([]string, len(p))
	for i, peer := range p {
		parts[i] = fmt.Sprintf("%d@%s", peer.ID, peer.Addr)
	}
	return strings.Join(parts, ",")
}

// ParsePeers reads "1@h1:5001,2@h2:5001". White space around elements and a trailing comma do not matter. The error names
// every element that is wrong. Duplicates are left to Node.Validate.
func ParsePeers(s string) (Peers, error) {
	var peers Peers
	var bad []string
	for _, part := range strings.Split(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		id, addr, ok := strings.Cut(part, "@")
		n, err := strconv.ParseInt(strings.TrimSpace(id), 10, 32)
		if !ok || err != nil {
			bad = append(bad, fmt.Sprintf("%q is not id@host:port", part))
			continue
		}
		peers = append(peers, Peer{ID: int32(n), Addr: strings.TrimSpace(addr)})
	}
	if len(bad) > 0 {
		return peers, fmt.Errorf("%s", strings.Join(bad, "; "))
	}
	return peers, nil
}

// Limits bounds what a node uses. Sizes are bytes.
type Limits struct {
	// MaxFrameBytes is the largest Kafka request, checked before anything is allocated.
	MaxFrameBytes int64
	// MaxConnections and MaxConnectionsPerAddr bound Kafka clients' connections, in all and from one address.
	MaxConnections, MaxConnectionsPerAddr int
	// IdleTimeout closes a Kafka connection without requests. A parked request (a long poll) is no idleness.
	IdleTimeout time.Duration
	// MemoryLimit is what the process may use. What follows, and the numbers of connections, are made to fit into it (Fit); 0: the
	// machine's.
	MemoryLimit int64
	// RequestMemory bounds the requests in flight on the node: beyond it sockets are not read.
	RequestMemory int64
	// FetchMemory bounds the records of answers that clients have yet to read, ResponseMemory what other answers take beside
	// them, DecodedMemory what large requests take once they are decoded.
	FetchMemory, ResponseMemory, DecodedMemory int64
	// Inflating is how many batches are decompressed at a time, where a topic's configuration asks for it.
	Inflating int
	// CleanerMemory is what compaction takes for keys where log.cleaner.dedupe.buffer.size does not say it.
	CleanerMemory int64
	// GroupMemory bounds what the consumer groups that the node coordinates take: their members and their offsets.
	GroupMemory int64
	// PeerMemory bounds what waits for one peer, and what it has asked for.
	PeerMemory int64
	// WALFileBytes is the size of one file of the node's log; WALMaxBytes the soft bound of all.
	WALFileBytes, WALMaxBytes int64
	// WALCacheBytes bounds the entries kept in memory for followers and apply.
	WALCacheBytes int64
	// MaxOpenFiles bounds the open segment files.
	MaxOpenFiles int
	// ElectionTimeout is how long followers wait for a leader before they elect another; HeartbeatInterval how often a
	// leader says that it lives.
	ElectionTimeout, HeartbeatInterval time.Duration
}

// Node is the configuration of a node and of its place in the cluster. Fill it by hand, or by Flags and Load; then Validate.
// Every string field is used only after Validate found no problem.
type Node struct {
	// NodeID is this node's id, from 1; never used by another node, nor by this one once its disk was lost.
	NodeID int32
	// Peers are the nodes that form the cluster at its first start; empty: this node alone.
	Peers Peers
	// RaftAddr is where the node listens for its peers; empty without peers: nowhere.
	RaftAddr string
	// AdvertisedRaftAddr is where peers reach this node; empty: what Peers says, else RaftAddr.
	AdvertisedRaftAddr string
	// KafkaAddr is where the node listens for Kafka clients. Host "localhost" means 127.0.0.1 and ::1.
	KafkaAddr string
	// AdvertisedKafkaAddr is where clients are told to reach this node; empty: KafkaAddr.
	AdvertisedKafkaAddr string
	// OneAddress: the node names itself as every leader and proxies, for clients that can reach only one address.
	OneAddress bool
	// AdminAddr is where metrics, health and readiness are served over HTTP; empty: nowhere.
	AdminAddr string
	// DataDir is the node's directory.
	DataDir string
	// Rack is where the node stands; replicas are spread over racks. May be empty.
	Rack string
	// AutoCreateTopics: asking for a topic that does not exist creates it.
	AutoCreateTopics bool
	// NumPartitions is the number of partitions of a topic created without one.
	NumPartitions int32
	// ReplicationFactor of a topic created without one; 0: see Replication.
	ReplicationFactor int16
	// Kafka holds broker configs by Kafka's names (log.retention.ms ...), the static layer under run-time changes.
	Kafka map[string]string
	// LogLevel is debug, info, warn or error; LogFormat text or json.
	LogLevel, LogFormat string
	Limits              Limits

	problems []Problem       // found while reading flags, environment and file
	given    map[string]bool // settings that somebody set
}

// Default returns the configuration of a single node that needs no tuning: Kafka on localhost:9092, data in ./data, health
// and metrics on localhost:9644.
func Default() *Node {
	return &Node{
		KafkaAddr: DefaultKafkaAddr, AdminAddr: DefaultAdminAddr, DataDir: DefaultDataDir,
		AutoCreateTopics: true, NumPartitions: 1, LogLevel: "info", LogFormat: "text",
		Limits: Limits{
			MaxFrameBytes: DefaultMaxFrameBytes, MaxConnections: DefaultMaxConnections, MaxConnectionsPerAddr: DefaultMaxConnectionsPerAddr,
			IdleTimeout: DefaultIdleTimeout, RequestMemory: DefaultRequestMemory,
			FetchMemory: DefaultFetchMemory, ResponseMemory: DefaultResponseMemory, DecodedMemory: DefaultDecodedMemory, Inflating: DefaultInflating, GroupMemory: DefaultGroupMemory, PeerMemory: DefaultPeerMemory,
			CleanerMemory: DefaultCleanerMemory,
			WALFileBytes:  DefaultWALFileBytes, WALMaxBytes: DefaultWALMaxBytes, WALCacheBytes: DefaultWALCacheBytes,
			MaxOpenFiles:    DefaultMaxOpenFiles,
			ElectionTimeout: DefaultElectionTimeout, HeartbeatInterval: DefaultHeartbeatInterval,
		},
	}
}

// ID returns the node id in force: NodeID, or 1 for a node alone that was given none.
func (n *Node) ID() int32 {
	if n.NodeID == 0 && len(n.Peers) == 0 {
		return DefaultNodeID
	}
	return n.NodeID
}

// Alone reports whether the node forms a cluster by itself.
func (n *Node) Alone() bool { return len(n.Members()) == 1 }

// Members returns all the first nodes of the cluster, this one among them, ascending by id.
func (n *Node) Members() Peers {
	self := Peer{ID: n.ID(), Addr: n.PeerAddr()}
	members := Peers{self}
	for _, p := range n.Peers {
		if p.ID != self.ID {
			members = append(members, p)
		}
	}
	slices.SortFunc(members, func(a, b Peer) int { return int(a.ID) - int(b.ID) })
	return members
}

// PeerAddr returns where peers reach this node: AdvertisedRaftAddr, what Peers says of it, or RaftAddr.
func (n *Node) PeerAddr() string {
	if n.AdvertisedRaftAddr != "" {
		return n.AdvertisedRaftAddr
	}
	for _, p := range n.Peers {
		if p.ID == n.ID() {
			return p.Addr
		}
	}
	return n.RaftAddr
}

// KafkaListen returns KafkaAddr without its options.
func (n *Node) KafkaListen() string {
	addr, _, _ := strings.Cut(n.KafkaAddr, "?")
	return addr
}

// AdvertisedKafka returns host and port that clients are told: AdvertisedKafkaAddr, else KafkaAddr. Port 0 in it stands for the
// port that the listener got.
func (n *Node) AdvertisedKafka() (host string, port int32) {
	addr := n.AdvertisedKafkaAddr
	if addr == "" {
		addr = n.KafkaListen()
	}
	host, p, err := splitAddr(addr)
	if err != nil {
		return "", 0
	}
	return host, int32(p)
}

// Replication returns the replication factor of a topic created without one on a cluster of so many nodes: ReplicationFactor, or
// three, or one replica on each node if there are fewer.
func (n *Node) Replication(nodes int) int16 {
	if n.ReplicationFactor > 0 {
		return n.ReplicationFactor
	}
	return int16(min(max(nodes, 1), autoReplication))
}

// Static returns the broker configs of this node by Kafka's names: the static layer of Layers. Only what somebody set is in it,
// besides what identifies the node, and the replication factor, which depends on the cluster's size.
func (n *Node) Static() map[string]string {
	host, port := n.AdvertisedKafka()
	m := map[string]string{
		"node.id":              strconv.Itoa(int(n.ID())),
		"broker.id":            strconv.Itoa(int(n.ID())),
		"listeners":            "PLAINTEXT://" + n.KafkaListen(),
		"advertised.listeners": "PLAINTEXT://" + net.JoinHostPort(host, strconv.Itoa(int(port))),
	}
	if n.Rack != "" {
		m["broker.rack"] = n.Rack
	}
	def := Default()
	put := func(name, value, builtin string) {
		if value != builtin {
			m[name] = value
		}
	}
	put("log.dir", n.DataDir, def.DataDir)
	put("log.dirs", n.DataDir, def.DataDir)
	put("num.partitions", strconv.Itoa(int(n.NumPartitions)), strconv.Itoa(int(def.NumPartitions)))
	put("auto.create.topics.enable", strconv.FormatBool(n.AutoCreateTopics), strconv.FormatBool(def.AutoCreateTopics))
	m["default.replication.factor"] = strconv.Itoa(int(n.Replication(len(n.Members())))) // 0 would tell clients nothing
	put("socket.request.max.bytes", strconv.FormatInt(n.Limits.MaxFrameBytes, 10), strconv.FormatInt(def.Limits.MaxFrameBytes, 10))
	put("max.connections", strconv.Itoa(n.Limits.MaxConnections), strconv.Itoa(def.Limits.MaxConnections))
	put("max.connections.per.ip", strconv.Itoa(n.Limits.MaxConnectionsPerAddr), strconv.Itoa(def.Limits.MaxConnectionsPerAddr))
	put("connections.max.idle.ms", strconv.FormatInt(n.Limits.IdleTimeout.Milliseconds(), 10), strconv.FormatInt(def.Limits.IdleTimeout.Milliseconds(), 10))
	for k, v := range n.Kafka {
		m[k] = v
	}
	return m
}

// splitAddr splits host:port; the port is a number from 0 to 65535.
func splitAddr(addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port", addr)
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("%q: the port is not a number from 0 to 65535", addr)
	}
	if strings.ContainsAny(host, " \t/@?#,") {
		return "", 0, fmt.Errorf("%q is not host:port", addr)
	}
	return host, port, nil
}

// wildcard reports whether host means every address of a machine: nobody can dial it.
func wildcard(host string) bool {
	if host == "" || host == "*" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsUnspecified()
}

// loopback reports whether host is only this machine.
func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
