package config

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func load(t *testing.T, args, env []string, file string) (*Node, []string, error) {
	t.Helper()
	n := Default()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	Flags(flags, n)
	if err := flags.Parse(args); err != nil {
		t.Fatalf("flags %v: %v", args, err)
	}
	warnings, err := Load(n, flags, env, func(name string) ([]byte, error) {
		if name != "chronik.toml" {
			return nil, fs.ErrNotExist
		}
		return []byte(file), nil
	})
	return n, warnings, err
}

func TestDefaultsAreASingleNode(t *testing.T) {
	n, _, err := load(t, nil, nil, "")
	if err == nil {
		err = n.Validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	host, port := n.AdvertisedKafka()
	if n.ID() != 1 || host != "localhost" || port != 9092 || n.DataDir != "./data" || !n.Alone() || !n.AutoCreateTopics || n.AdminAddr != "localhost:9644" {
		t.Errorf("defaults: id %d, %s:%d, %+v", n.ID(), host, port, n)
	}
	if n.Replication(1) != 1 || n.Replication(2) != 2 || n.Replication(9) != 3 {
		t.Error("the replication factor is not min(3, nodes)")
	}
}

func TestFlagsWinOverEnvironmentOverFile(t *testing.T) {
	file := `
node-id = 3
peers = ["1@h1:5001", "2@h2:5001"]
raft-addr = "0.0.0.0:5001"
kafka-addr = "0.0.0.0:9092"
advertised-kafka-addr = "file:9092"
rack = "file"
auto-create-topics = false
idle-timeout = "30s"
wal-file-bytes = "64MiB"

[kafka-config]
log.retention.ms = 1000
"message.max.bytes" = 2000
log.roll.ms = 5
`
	env := []string{"CHRONIK_RACK=env", "CHRONIK_ADVERTISED_KAFKA_ADDR=env:9092", "CHRONIK_KAFKA_CONFIG=log.retention.ms=2000; log.segment.bytes=2097152", "PATH=/bin", "CHRONIK_CONFIG=chronik.toml",
		"CHRONIK_PORT_9092_TCP=tcp://10.0.0.1:9092"}
	args := []string{"--advertised-kafka-addr", "flag:9093", "--peers=1@h1:5001,2@h2:5001,3@h3:5001", "--kafka-config", "log.roll.ms=7"}
	n, warnings, err := load(t, args, env, file)
	if err == nil {
		err = n.Validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	host, port := n.AdvertisedKafka()
	if n.NodeID != 3 || host != "flag" || port != 9093 || n.Rack != "env" || n.AutoCreateTopics || n.Limits.IdleTimeout != 30*time.Second || n.Limits.WALFileBytes != 64<<20 {
		t.Errorf("got %+v", n)
	}
	want := map[string]string{"log.retention.ms": "2000", "message.max.bytes": "2000", "log.roll.ms": "7", "log.segment.bytes": "2097152"}
	for k, v := range want {
		if n.Kafka[k] != v {
			t.Errorf("kafka config %s = %q, want %q (all: %v)", k, n.Kafka[k], v, n.Kafka)
		}
	}
	if got := n.Members().String(); got != "1@h1:5001,2@h2:5001,3@h3:5001" {
		t.Errorf("members %s", got)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "CHRONIK_PORT_9092_TCP") {
		t.Errorf("warnings %q: want one, for the variable that means nothing", warnings)
	}
	static := n.Static()
	if static["node.id"] != "3" || static["broker.rack"] != "env" || static["log.roll.ms"] != "7" || static["auto.create.topics.enable"] != "false" {
		t.Errorf("static layer %v", static)
	}
	for name, v := range static {
		if err := Brokers.Validate(name, v); err != nil {
			t.Errorf("static layer: %v", err)
		}
	}
}

func TestFileUnknownKeyIsAnError(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{"node-id = 1\nnod-id = 2\n", `line 2: unknown key "nod-id"`},
		{"[limits]\nx = 1\n", "unknown key"},
		{"node-id = \n", "line 1"},
		{"node-id = { a = 1 }\n", "node-id"},
		{"kafka-config = 3\n", "must be a table"},
		{"rack = \"a\\nb\"\n", "one line"},
	} {
		_, _, err := load(t, []string{"--config", "chronik.toml"}, nil, c.file)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "chronik.toml") {
			t.Errorf("%q: %v, want %q and the file's name", c.file, err, c.want)
		}
	}
	_, _, err := load(t, []string{"--config", "missing.toml"}, nil, "")
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func flagsOf(err error) []string {
	var v *ValidationError
	if !errors.As(err, &v) {
		return nil
	}
	var out []string
	for _, p := range v.Problems {
		out = append(out, p.Flag)
	}
	slices.Sort(out)
	return out
}

func TestValidateListsEveryProblemAtOnce(t *testing.T) {
	n, _, err := load(t, []string{
		"--peers", "1@h1:5001,1@h2:5001,2@h1:5001,3@0.0.0.0:5001,4@h4:0,5@h5",
		"--kafka-addr", "0.0.0.0:9092", "--admin-addr", "nowhere", "--data-dir", "", "--num-partitions", "0", "--log-level", "loud",
		"--election-timeout", "soon", "--max-connections", "many", "--kafka-config", "no.such=1", "--kafka-config", "num.partitions=3", "--wal-file-bytes", "1KiB",
	}, []string{"CHRONIK_HEARTBEAT_INTERVAL=often"}, "")
	if err != nil {
		t.Fatal(err)
	}
	err = n.Validate()
	got := flagsOf(err)
	want := []string{"admin-addr", "advertised-kafka-addr", "data-dir", "election-timeout", "heartbeat-interval", "kafka-config", "kafka-config", "log-level",
		"max-connections", "node-id", "num-partitions", "peers", "peers", "peers", "peers", "peers", "raft-addr", "wal-file-bytes"}
	if !slices.Equal(got, want) {
		t.Errorf("problems\n got %v\nwant %v\n%v", got, want, err)
	}
	if lines := strings.Count(err.Error(), "\n"); lines != len(want) {
		t.Errorf("%d problems on %d lines", len(want), lines)
	}
	if !strings.Contains(err.Error(), "CHRONIK_HEARTBEAT_INTERVAL") {
		t.Error("a bad variable is not named")
	}
}

func TestValidateOneProblem(t *testing.T) {
	cluster := []string{"--node-id=1", "--peers=1@h1:5001,2@h2:5001", "--raft-addr=0.0.0.0:5001", "--kafka-addr=0.0.0.0:9092", "--advertised-kafka-addr=h1:9092"}
	with := func(args ...string) []string { return append(slices.Clone(cluster), args...) }
	for name, c := range map[string]struct {
		args []string
		want []string // flags named
	}{
		"sound":                              {cluster, nil},
		"sound, list without the node":       {with("--node-id=3", "--raft-addr=h3:5001"), nil},
		"sound, advertised raft":             {with("--node-id=3", "--advertised-raft-addr=h3:5001"), nil},
		"sound, admin off":                   {with("--admin-addr="), nil},
		"sound, one address":                 {with("--kafka-addr=0.0.0.0:9092?mode=one-address"), nil},
		"sound, free ports":                  {[]string{"--kafka-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0"}, nil},
		"sound, IPv6":                        {[]string{"--kafka-addr=[::1]:9092"}, nil},
		"one id lower":                       {with("--node-id=-1"), []string{"node-id", "raft-addr"}},
		"id missing":                         {[]string{"--peers=1@h1:5001", "--raft-addr=h9:5001", "--advertised-kafka-addr=h9:9092"}, []string{"node-id"}},
		"line copied from another node":      {with("--peers=1@h1:5001,2@h2:5001", "--raft-addr=h2:5001"), []string{"raft-addr"}},
		"id missing, line copied":            {[]string{"--peers=1@h1:5001", "--raft-addr=h1:5001", "--advertised-kafka-addr=h1:9092"}, []string{"node-id"}},
		"raft address missing":               {with("--raft-addr="), []string{"raft-addr"}},
		"raft address missing, advertised":   {with("--raft-addr=", "--advertised-raft-addr=h1:5001"), []string{"advertised-raft-addr", "raft-addr"}},
		"nobody knows where it is":           {with("--node-id=3"), []string{"raft-addr"}},
		"raft address taken by a peer":       {with("--node-id=3", "--raft-addr=h2:5001"), []string{"raft-addr"}},
		"advertised raft taken by a peer":    {with("--node-id=3", "--advertised-raft-addr=h2:5001"), []string{"advertised-raft-addr"}},
		"advertised raft is a wildcard":      {with("--advertised-raft-addr=0.0.0.0:5001"), []string{"advertised-raft-addr"}},
		"duplicate id":                       {with("--peers=1@h1:5001,2@h2:5001,2@h3:5001"), []string{"peers"}},
		"peer without id":                    {with("--peers=1@h1:5001,h2:5001"), []string{"peers"}},
		"wildcard advertised":                {with("--advertised-kafka-addr=0.0.0.0:9092"), []string{"advertised-kafka-addr"}},
		"wildcard IPv6 advertised":           {with("--advertised-kafka-addr=[::]:9092"), []string{"advertised-kafka-addr"}},
		"wildcard IPv4 in IPv6 advertised":   {with("--advertised-kafka-addr=[::ffff:0.0.0.0]:9092"), []string{"advertised-kafka-addr"}},
		"wildcard would be advertised":       {[]string{"--kafka-addr=:9092"}, []string{"advertised-kafka-addr"}},
		"localhost would be told to others":  {[]string{"--node-id=1", "--peers=1@h1:5001,2@h2:5001", "--raft-addr=0.0.0.0:5001"}, []string{"advertised-kafka-addr"}},
		"kafka and admin on one port":        {[]string{"--admin-addr=localhost:9092"}, []string{"admin-addr"}},
		"kafka and raft on one port":         {with("--raft-addr=0.0.0.0:9092"), []string{"raft-addr"}},
		"wildcard and localhost on one port": {with("--admin-addr=localhost:9092"), []string{"admin-addr"}},
		"two hosts, one port":                {with("--kafka-addr=10.0.0.1:9092", "--admin-addr=10.0.0.2:9092"), nil},
		"bad port":                           {[]string{"--kafka-addr=localhost:99999"}, []string{"kafka-addr"}},
		"no port":                            {[]string{"--kafka-addr=localhost"}, []string{"kafka-addr"}},
		"unknown mode":                       {[]string{"--kafka-addr=localhost:9092?mode=two"}, []string{"kafka-addr"}},
		"timeouts too close":                 {[]string{"--election-timeout=200ms"}, []string{"election-timeout"}},
		"bad boolean":                        {[]string{"--auto-create-topics=perhaps"}, []string{"auto-create-topics"}},
		"compact as a default":               {[]string{"--kafka-config=log.cleanup.policy=compact"}, nil},
		"no name=value":                      {[]string{"--kafka-config=verbose"}, []string{"kafka-config"}},
		"replication below zero":             {[]string{"--replication-factor=-1"}, []string{"replication-factor"}},
	} {
		n, _, err := load(t, c.args, nil, "")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		err = n.Validate()
		if got := flagsOf(err); !slices.Equal(got, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if len(c.want) == 1 && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: one problem on several lines: %v", name, err)
		}
	}
}

func TestOneAddressMode(t *testing.T) {
	for addr, want := range map[string]bool{"localhost:9092": false, "localhost:9092?mode=one-address": true, "localhost:9092?mode=direct": false} {
		n, _, _ := load(t, []string{"--kafka-addr", addr}, nil, "")
		if n.OneAddressMode() != want || n.KafkaListen() != "localhost:9092" {
			t.Errorf("%s: mode %v, listens on %s", addr, n.OneAddressMode(), n.KafkaListen())
		}
	}
	if n, _, _ := load(t, []string{"--one-address"}, nil, ""); !n.OneAddressMode() {
		t.Error("--one-address has no effect")
	}
}

func TestPeerAddr(t *testing.T) {
	n := Default()
	n.NodeID, n.RaftAddr = 2, "0.0.0.0:5001"
	n.Peers = Peers{{1, "h1:5001"}, {2, "h2:5001"}}
	if n.PeerAddr() != "h2:5001" {
		t.Errorf("peers reach the node at %s", n.PeerAddr())
	}
	n.AdvertisedRaftAddr = "x:1"
	if n.PeerAddr() != "x:1" || n.Alone() {
		t.Errorf("peers reach the node at %s, alone: %v", n.PeerAddr(), n.Alone())
	}
}

func TestBytes(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "1024": 1024, "64MiB": 64 << 20, " 2 GiB ": 2 << 30, "3KiB": 3 << 10} {
		if got, err := ParseBytes(s); err != nil || got != want {
			t.Errorf("%q: %d %v, want %d", s, got, err, want)
		}
		if got, err := ParseBytes(FormatBytes(want)); err != nil || got != want {
			t.Errorf("%d does not survive: %d %v", want, got, err)
		}
	}
	for _, s := range []string{"", "-1", "1MB", "x", "9223372036854775807GiB"} {
		if got, err := ParseBytes(s); err == nil {
			t.Errorf("%q is read as %d", s, got)
		}
	}
}

func FuzzParsePeers(f *testing.F) {
	f.Add("1@h1:5001,2@h2:5001")
	f.Add("1@[::1]:5001,,x")
	f.Fuzz(func(t *testing.T, s string) {
		peers, err := ParsePeers(s)
		if err != nil {
			return
		}
		n := Default()
		n.NodeID, n.Peers, n.RaftAddr, n.AdvertisedKafkaAddr = 1, peers, "h:1", "h:2"
		if n.Validate() != nil {
			return
		}
		again, err := ParsePeers(peers.String())
		if err != nil || !slices.Equal(again, peers) {
			t.Errorf("%q: %v becomes %v (%v)", s, peers, again, err)
		}
	})
}

func FuzzFile(f *testing.F) {
	f.Add("node-id = 1\n[kafka-config]\nlog.retention.ms = 5\n")
	f.Fuzz(func(_ *testing.T, s string) { _, _ = parseFile([]byte(s)) })
}
