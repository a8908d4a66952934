package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// setting is one thing an operator may set: a flag, a CHRONIK_ variable and a key of the file, all of one name.
type setting struct {
	name  string // of the flag and of the file's key
	kind  string // shown in the usage: what a value looks like
	usage string
	set   func(n *Node, value string) error
	get   func(n *Node) string
}

// env is the setting's variable: CHRONIK_NODE_ID for node-id.
func (s setting) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))
}

const envPrefix = "CHRONIK_"

// kafkaSetting sets many: its file key is a table.
const kafkaSetting = "kafka-config"

func settings() []setting {
	return append(clusterSettings(), limitSettings()...)
}

func clusterSettings() []setting {
	return []setting{
		{"node-id", "int", "this node's id, from 1; needed with --peers", setInt(func(n *Node, v int64) { n.NodeID = int32(v) }, 32),
			func(n *Node) string { return strconv.Itoa(int(n.NodeID)) }},
		{"peers", "id@host:port,...", "the nodes that form the cluster, e.g. 1@h1:5001,2@h2:5001,3@h3:5001; may hold this node",
			func(n *Node, v string) (err error) { n.Peers, err = ParsePeers(v); return err }, func(n *Node) string { return n.Peers.String() }},
		text("raft-addr", "host:port", "where to listen for peers, e.g. 0.0.0.0:5001", func(n *Node) *string { return &n.RaftAddr }),
		text("advertised-raft-addr", "host:port", "where peers reach this node, if neither --peers nor --raft-addr says it", func(n *Node) *string { return &n.AdvertisedRaftAddr }),
		text("kafka-addr", "host:port", "where to listen for Kafka clients; add ?mode=one-address to proxy everything", func(n *Node) *string { return &n.KafkaAddr }),
		text("advertised-kafka-addr", "host:port", "where clients are told to reach this node; the same as --kafka-addr if unset", func(n *Node) *string { return &n.AdvertisedKafkaAddr }),
		boolean("one-address", "name this node as the leader of everything and proxy, for clients behind one address", func(n *Node) *bool { return &n.OneAddress }),
		text("admin-addr", "host:port", "where to serve metrics, health and readiness over HTTP; empty for none", func(n *Node) *string { return &n.AdminAddr }),
		text("data-dir", "dir", "where to keep the data", func(n *Node) *string { return &n.DataDir }),
		text("rack", "name", "where this node stands; replicas are spread over racks", func(n *Node) *string { return &n.Rack }),
		boolean("auto-create-topics", "create a topic when a client asks for it", func(n *Node) *bool { return &n.AutoCreateTopics }),
		{"num-partitions", "int", "partitions of a topic created without a number", setInt(func(n *Node, v int64) { n.NumPartitions = int32(v) }, 32),
			func(n *Node) string { return strconv.Itoa(int(n.NumPartitions)) }},
		{"replication-factor", "int", "replicas of a topic created without a number; 0: three, or one on each node if there are fewer",
			setInt(func(n *Node, v int64) { n.ReplicationFactor = int16(v) }, 16), func(n *Node) string { return strconv.Itoa(int(n.ReplicationFactor)) }},
		{kafkaSetting, "name=value", "a broker config by Kafka's name, e.g. log.retention.ms=3600000; may be given again", setKafka, func(*Node) string { return "" }},
		text("log-level", "level", "debug, info, warn or error", func(n *Node) *string { return &n.LogLevel }),
		text("log-format", "format", "text or json", func(n *Node) *string { return &n.LogFormat }),
	}
}

func limitSettings() []setting {
	return []setting{
		size("max-request-bytes", "the largest Kafka request", func(n *Node) *int64 { return &n.Limits.MaxFrameBytes }),
		count("max-connections", "the most connections of Kafka clients", func(n *Node) *int { return &n.Limits.MaxConnections }),
		count("max-connections-per-addr", "the most connections of Kafka clients from one address", func(n *Node) *int { return &n.Limits.MaxConnectionsPerAddr }),
		duration("idle-timeout", "close Kafka connections without requests after this long", func(n *Node) *time.Duration { return &n.Limits.IdleTimeout }),
		{"memory-limit", "bytes", "what the process may use; limits that are not set are made to fit (KiB, MiB, GiB may follow the number); the machine's or control group's memory if unset",
			func(n *Node, v string) (err error) { n.Limits.MemoryLimit, err = ParseBytes(v); return err }, func(n *Node) string {
				if n.Limits.MemoryLimit == 0 {
					return ""
				}
				return FormatBytes(n.Limits.MemoryLimit)
			}},
		size("request-memory", "the most bytes of requests in flight; beyond it sockets are not read", func(n *Node) *int64 { return &n.Limits.RequestMemory }),
		size("wal-file-bytes", "the size of one file of the node's log", func(n *Node) *int64 { return &n.Limits.WALFileBytes }),
		size("wal-max-bytes", "the size the node's log is kept within while nothing live forbids it", func(n *Node) *int64 { return &n.Limits.WALMaxBytes }),
		size("wal-cache-bytes", "the bytes of recent log entries kept in memory", func(n *Node) *int64 { return &n.Limits.WALCacheBytes }),
		count("max-open-files", "the most segment files open at a time", func(n *Node) *int { return &n.Limits.MaxOpenFiles }),
		duration("election-timeout", "how long followers wait for a leader before they elect another", func(n *Node) *time.Duration { return &n.Limits.ElectionTimeout }),
		duration("heartbeat-interval", "how often a leader says that it lives", func(n *Node) *time.Duration { return &n.Limits.HeartbeatInterval }),
	}
}

func text(name, kind, usage string, field func(*Node) *string) setting {
	return setting{name, kind, usage, func(n *Node, v string) error { *field(n) = strings.TrimSpace(v); return nil },
		func(n *Node) string { return *field(n) }}
}

func boolean(name, usage string, field func(*Node) *bool) setting {
	return setting{name, "", usage, func(n *Node, v string) error {
		b, ok := parseBool(v)
		if !ok {
			return fmt.Errorf("%q is not true or false", v)
		}
		*field(n) = b
		return nil
	}, func(n *Node) string { return strconv.FormatBool(*field(n)) }}
}

func setInt(put func(*Node, int64), bits int) func(*Node, string) error {
	return func(n *Node, v string) error {
		i, err := parseInt(v, bits)
		if err == nil {
			put(n, i)
		}
		return err
	}
}

func count(name, usage string, field func(*Node) *int) setting {
	return setting{name, "int", usage, setInt(func(n *Node, v int64) { *field(n) = int(v) }, 32),
		func(n *Node) string { return strconv.Itoa(*field(n)) }}
}

func duration(name, usage string, field func(*Node) *time.Duration) setting {
	return setting{name, "duration", usage, func(n *Node, v string) error {
		d, err := time.ParseDuration(strings.TrimSpace(v))
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 500ms, 30s or 10m", v)
		}
		*field(n) = d
		return nil
	}, func(n *Node) string { return field(n).String() }}
}

// size takes bytes: a number, or one with KiB, MiB or GiB behind it.
func size(name, usage string, field func(*Node) *int64) setting {
	return setting{name, "bytes", usage + " (KiB, MiB, GiB may follow the number)", func(n *Node, v string) error {
		b, err := ParseBytes(v)
		if err == nil {
			*field(n) = b
		}
		return err
	}, func(n *Node) string { return FormatBytes(*field(n)) }}
}

var byteUnits = []struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// ParseBytes reads a size: "1048576", "64MiB", "2 GiB".
func ParseBytes(s string) (int64, error) {
	num, mult := strings.TrimSpace(s), int64(1)
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(num, u.name); ok {
			num, mult = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/mult {
		return 0, fmt.Errorf("%q is not a number of bytes such as 1048576 or 64MiB", s)
	}
	return n * mult, nil
}

// FormatBytes writes a size in the largest unit that divides it.
func FormatBytes(n int64) string {
	for _, u := range byteUnits {
		if n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// setKafka takes one name=value; a variable may hold several, separated by semicolons or lines.
func setKafka(n *Node, v string) error {
	for _, part := range strings.FieldsFunc(v, func(r rune) bool { return r == ';' || r == '\n' }) {
		if strings.TrimSpace(part) == "" {
			continue
		}
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			return fmt.Errorf("%q is not name=value", part)
		}
		if n.Kafka == nil {
			n.Kafka = make(map[string]string)
		}
		n.Kafka[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	return nil
}
