package chronik_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik"
	"github.com/chronik-go/chronik/internal/freeport"
	"github.com/chronik-go/chronik/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// A broker in a test: started, written to, read from, stopped.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	srv, err := chronik.Start(ctx, chronik.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer srv.Stop(context.Background())

	client, err := kgo.NewClient(kgo.SeedBrokers(srv.Addr()), kgo.AllowAutoTopicCreation(), kgo.ConsumeTopics("greetings"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	if err := client.ProduceSync(ctx, &kgo.Record{Topic: "greetings", Value: []byte("hello")}).FirstErr(); err != nil {
		fmt.Println(err)
		return
	}
	client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
		fmt.Printf("%s %d: %s\n", r.Topic, r.Offset, r.Value)
	})
	// Output: greetings 0: hello
}

func start(t *testing.T, c chronik.Config) *chronik.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s, err := chronik.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestDataDirIsKeptAndATemporaryOneIsNot(t *testing.T) {
	ports, err := freeport.Ports(1) // that nobody else takes once the broker has stopped
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	dir := filepath.Join(t.TempDir(), "data")
	for i := range 3 {
		s := start(t, chronik.Config{DataDir: dir})
		c, err := kgo.NewClient(kgo.SeedBrokers(s.Addr()), kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic("kept"))
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.ProduceSync(t.Context(), kgo.StringRecord("x")).First()
		c.Close()
		if err != nil || r.Offset != int64(i) {
			t.Fatalf("start %d: offset %d, %v", i, r.Offset, err)
		}
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, chronik.Config{KafkaAddr: fmt.Sprintf("127.0.0.1:%d", ports[0])})
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) != 1 {
		t.Fatalf("temporary directories: %v, %v", left, err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if c, err := net.DialTimeout("tcp", s.Addr(), time.Minute); err == nil {
		c.Close()
		t.Error("a stopped broker takes connections")
	}
}

// Broker configs go by Kafka's names, those that the server has flags for too.
func TestKafkaConfigs(t *testing.T) {
	s := start(t, chronik.Config{Kafka: map[string]string{"num.partitions": "3", "default.replication.factor": "1", "log.retention.ms": "1000000"}})
	c, err := kgo.NewClient(kgo.SeedBrokers(s.Addr()), kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic("three"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.ProduceSync(t.Context(), kgo.StringRecord("x")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	topics, err := kadm.NewClient(c).ListTopics(t.Context(), "three")
	if err != nil || len(topics["three"].Partitions) != 3 {
		t.Errorf("%+v, %v", topics, err)
	}
	if _, err := chronik.Start(t.Context(), chronik.Config{Kafka: map[string]string{"num.partitions": "none"}}); err == nil || !strings.Contains(err.Error(), "num-partitions") {
		t.Error(err)
	}
}

func TestStartRefusesAndLeavesNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, c := range map[string]struct {
		cfg  chronik.Config
		want string
	}{
		"bad peers":      {chronik.Config{Peers: "nobody"}, "id@host:port"},
		"no node id":     {chronik.Config{Peers: "1@127.0.0.1:1", RaftAddr: "127.0.0.1:2"}, "--node-id"},
		"port in use":    {chronik.Config{KafkaAddr: taken.Addr().String()}, taken.Addr().String()},
		"unknown config": {chronik.Config{Kafka: map[string]string{"log.retention.mss": "1"}}, "log.retention.mss"},
	} {
		s, err := chronik.Start(t.Context(), c.cfg)
		if err == nil {
			t.Errorf("%s: started", name)
			s.Stop(t.Context())
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Its peer never comes.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = chronik.Start(ctx, chronik.Config{NodeID: 1, Peers: "1@127.0.0.1:1,2@127.0.0.1:2", RaftAddr: "127.0.0.1:0"})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without its peer: %v", err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
