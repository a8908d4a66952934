package conformance

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/freeport"
	"github.com/chronik-go/chronik/internal/node"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/test/harness"
)

// chronik runs three nodes in this process, set up as the recorded Kafka brokers were.
func chronik(t *testing.T, election time.Duration) []*node.Node {
	t.Helper()
	ports, err := freeport.Ports(3)
	if err != nil {
		t.Fatal(err)
	}
	var peers config.Peers
	for i, p := range ports {
		peers = append(peers, config.Peer{ID: int32(i + 1), Addr: fmt.Sprintf("127.0.0.1:%d", p)})
	}
	var nodes []*node.Node
	for _, p := range peers {
		cfg := config.Default()
		cfg.NodeID, cfg.Peers, cfg.RaftAddr = p.ID, peers, p.Addr
		cfg.KafkaAddr, cfg.AdminAddr, cfg.DataDir = "127.0.0.1:0", "127.0.0.1:0", "/data"
		cfg.NumPartitions, cfg.AutoCreateTopics = 6, false
		// What is compared depends on who leads: a machine that does other things beside must not have others elected. It ticks as often
		// as ever: a new topic's leaders stand for election on a tick.
		cfg.Limits.ElectionTimeout, cfg.Limits.HeartbeatInterval = election, config.DefaultElectionTimeout/10
		cfg.Kafka = map[string]string{"group.initial.rebalance.delay.ms": "0", "offsets.topic.replication.factor": "3",
			"log.segment.delete.delay.ms": "500", "min.insync.replicas": "2"}
		cfg.Limits.WALFileBytes, cfg.Limits.WALMaxBytes = 2*config.MaxBatchBytes, 4*config.MaxBatchBytes
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		n, err := node.Open(node.Options{Config: cfg, FS: vfs.NewMem(uint64(p.ID)), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := closeNode(n); err != nil {
				t.Error(err)
			}
		})
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		select {
		case <-n.Ready():
		case <-time.After(patience):
			t.Fatal("a node is not ready")
		}
	}
	return nodes
}

func closeNode(n *node.Node) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return n.Close(ctx)
}

// Chronik's answers are Kafka's, field by field, but for what allowed.go lists.
func TestAnswersAreKafkas(t *testing.T) {
	t.Parallel()
	// Nobody dies. It is no longer than this, though: where a leader that hands over is not heard, raft waits for so long before the next try.
	c, err := connect(chronik(t, patience/4)[0].KafkaAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	ours := advertised(t, c)
	withinKafkas(t, ours)
	for _, a := range apis() {
		if _, ok := ours[a.key]; !ok {
			t.Errorf("%s is in the script and not advertised", kmsg.NameForKey(a.key))
		}
	}
	answersAre(t, c, apis(), "testdata", allowed)
}

// With one of three brokers stopped the living ones answer as Kafka's do, but for what allowed_outage.go lists.
func TestAnswersAreKafkasInAnOutage(t *testing.T) {
	t.Parallel()
	nodes := chronik(t, 10*time.Second) // nobody else is to be elected, on a busy machine either
	c, err := connect(nodes[0].KafkaAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.outage(func(id int32) error { return closeNode(nodes[id-1]) }); err != nil {
		t.Fatal(err)
	}
	answersAre(t, c, outageAPIs(), filepath.Join("testdata", "outage"), allowedInOutage)
}

// The same when a broker dies at once: processes, of which one is killed. make conformance does it.
func TestAnswersAreKafkasWhenABrokerIsKilled(t *testing.T) {
	if os.Getenv("CHRONIK_CONFORMANCE") != "all" {
		t.Skip("CHRONIK_CONFORMANCE=all is not set")
	}
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dir := t.TempDir()
	bin, err := harness.Build(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := harness.New(bin, dir, 3, "--num-partitions", "6", "--auto-create-topics=false", "--election-timeout", "5s", "--heartbeat-interval", "100ms",
		"--kafka-config", "group.initial.rebalance.delay.ms=0", "--kafka-config", "offsets.topic.replication.factor=3",
		"--kafka-config", "log.segment.delete.delay.ms=500", "--kafka-config", "min.insync.replicas=2")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nodes.Stop)
	if err := nodes.Start(ctx); err != nil {
		t.Fatal(err)
	}
	c, err := connect(nodes.Brokers()[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.outage(func(id int32) error { nodes.Node(id).Kill(); return nil }); err != nil {
		t.Fatal(err)
	}
	answersAre(t, c, outageAPIs(), filepath.Join("testdata", "outage"), allowedInOutage)
}

// answersAre plays a script and compares the answers with the recorded ones.
func answersAre(t *testing.T, c *cluster, script []api, dir string, allowed []allowance) {
	t.Helper()
	some := os.Getenv("CHRONIK_CONFORMANCE") != "all"
	used := make([]bool, len(allowed))
	for _, a := range script {
		t.Run(kmsg.NameForKey(a.key), func(t *testing.T) {
			kafka, err := load(file(dir, a.key))
			if err != nil {
				t.Fatal(err)
			}
			answers, err := a.play(c, some)
			if err != nil {
				t.Fatal(err)
			}
			if !some && len(answers) != len(kafka) {
				t.Errorf("%d answers, %d are recorded: make conformance records them again", len(answers), len(kafka))
			}
			shown := map[string]int{}
			for step, answer := range answers {
				want, ok := kafka[step]
				if !ok {
					t.Errorf("%q is not recorded: make conformance records it", step)
					continue
				}
				compare("", want, asJSON(answer), func(path string, k, o tree) {
					d := difference{a.key, step, path, k, o}
					for i := range allowed {
						if allowed[i].covers(d) {
							used[i] = true
							return
						}
					}
					kind := fmt.Sprint(path, short(k), short(o), strings.SplitN(step, ": ", 2)[1])
					if shown[kind]++; shown[kind] <= 1 {
						t.Error(d)
					}
				})
			}
			for kind, n := range shown {
				if n > 1 {
					t.Logf("%d more like: %s", n-1, kind)
				}
			}
		})
	}
	for i, u := range used {
		if !u && !t.Failed() {
			t.Errorf("an allowed difference no longer occurs, take it out: %s", allowed[i].reason)
		}
	}
}

// withinKafkas checks that nothing is advertised that Kafka does not have in that version.
func withinKafkas(t *testing.T, ours map[int16][2]int16) {
	t.Helper()
	recorded, err := load(file("testdata", 18))
	if err != nil {
		t.Fatal(err)
	}
	kafka := map[string]map[string]any{}
	for _, k := range recorded["asked, v4: well"].(map[string]any)["ApiKeys"].([]any) {
		m := k.(map[string]any)
		kafka[m["ApiKey"].(string)] = m
	}
	for key, r := range ours {
		k := kafka[fmt.Sprint(key)]
		if k == nil {
			t.Errorf("%s is advertised and Kafka has none", kmsg.NameForKey(key))
			continue
		}
		lo, _ := strconv.Atoi(k["MinVersion"].(string))
		hi, _ := strconv.Atoi(k["MaxVersion"].(string))
		if int(r[0]) < lo || int(r[1]) > hi {
			t.Errorf("%s: %d–%d are advertised, Kafka has %d–%d", kmsg.NameForKey(key), r[0], r[1], lo, hi)
		}
	}
}

// advertised asks for the table, and checks that the script covers it.
func advertised(t *testing.T, c *cluster) map[int16][2]int16 {
	t.Helper()
	req := kmsg.NewPtrApiVersionsRequest()
	req.Version, req.ClientSoftwareName, req.ClientSoftwareVersion = 3, "conformance", "1"
	out := map[int16][2]int16{}
	for _, k := range c.must(1, req).(*kmsg.ApiVersionsResponse).ApiKeys {
		out[k.ApiKey] = [2]int16{k.MinVersion, k.MaxVersion}
	}
	script := map[int16]api{}
	for _, a := range apis() {
		script[a.key] = a
	}
	for key, r := range out {
		a, ok := script[key]
		switch {
		case !ok:
			t.Errorf("%s is advertised and not in the script", kmsg.NameForKey(key))
		case r[1] != a.max || r[0] != a.min && key != 0:
			t.Errorf("%s: %d–%d are advertised, the script has %d–%d", kmsg.NameForKey(key), r[0], r[1], a.min, a.max)
		}
	}
	return out
}

func TestComparisonFindsWhatDiffers(t *testing.T) {
	a := asJSON(map[string]any{"x": []any{map[string]any{"code": 1, "name": nil}}, "y": "same"})
	b := asJSON(map[string]any{"x": []any{map[string]any{"code": 2, "name": nil}}, "y": "same"})
	var got []string
	find := func(path string, k, o tree) { got = append(got, fmt.Sprint(path, k, o)) }
	compare("", a, a, find)
	compare("", a, b, find)
	compare("", a, asJSON(map[string]any{"x": []any{}, "y": 5}), find)
	if fmt.Sprint(got) != "[x.code1 2 x[map[code:1 name:<nil>]] [] ysame5]" {
		t.Error(got)
	}
}
