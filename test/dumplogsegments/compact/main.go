// Command compact fills a compacted topic and __consumer_offsets until both have been compacted, for Kafka's DumpLogSegments to read, on
// a server that it builds, starts and ends. What clients then read of the two is left in the folder, for the tool's output to be
// compared with:
//
//	TOPIC.offsets            the offset of every record that is left
//	TOPIC.dir                the directory of its partition
//	__consumer_offsets.want  what each group has committed last: group offset
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/test/harness"
)

const (
	topic   = "compacted"
	offsets = "__consumer_offsets"
	groups  = 3
	commits = 100 // of each
	bound   = 8 * time.Minute
)

var codecs = []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}

func main() {
	dir := flag.String("dir", "", "for the node's data and what clients read")
	brokers := flag.String("brokers", "", "of a running cluster instead, such as Apache Kafka's")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	if err := run(ctx, *dir, *brokers); err != nil {
		slog.Error("compact", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir, brokers string) error {
	if dir == "" {
		return errors.New("-dir is missing")
	}
	if brokers != "" {
		addrs := strings.Split(brokers, ",")
		if err := fill(ctx, dir, addrs); err != nil {
			return err
		}
		return awaitCompacted(ctx, addrs)
	}
	bin, err := harness.Build(ctx, dir)
	if err != nil {
		return err
	}
	// A server that ends has a checkpoint of everything, so the next one can compact at once. What clients read is read when nothing
	// changes any more.
	for _, step := range []struct {
		config string
		do     func(context.Context, []string) error
	}{
		{"log.cleaner.enable=false", func(ctx context.Context, brokers []string) error { return fill(ctx, dir, brokers) }},
		{"log.cleaner.backoff.ms=100", awaitCompacted},
		{"log.cleaner.enable=false", func(ctx context.Context, brokers []string) error { return note(ctx, dir, brokers) }},
	} {
		if err := withNode(ctx, bin, dir, step.config, step.do); err != nil {
			return err
		}
	}
	return nil
}

// withNode starts a node, calls do, and has the node end.
func withNode(ctx context.Context, bin, dir string, config string, do func(context.Context, []string) error) error {
	c, err := harness.New(bin, dir, 1, "--kafka-config", config, "--kafka-config", "offsets.topic.num.partitions=1")
	if err != nil {
		return err
	}
	defer c.Stop()
	if err := c.Start(ctx); err != nil {
		return err
	}
	if err := do(ctx, c.Brokers()); err != nil {
		return err
	}
	return c.Nodes[0].Terminate(ctx)
}

// fill writes both topics.
func fill(ctx context.Context, dir string, brokers []string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	settings := map[string]*string{"cleanup.policy": ptr("compact"), "internal.segment.bytes": ptr("65536"), "min.cleanable.dirty.ratio": ptr("0.01")}
	if _, err := adm.CreateTopic(ctx, 1, 1, settings, topic); err != nil {
		return err
	}
	for codec := range codecs {
		if err := produce(ctx, brokers, codec); err != nil {
			return err
		}
	}
	if err := members(ctx, brokers); err != nil {
		return err
	}
	changed, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: "internal.segment.bytes", Value: ptr("4096")},
		{Name: "min.cleanable.dirty.ratio", Value: ptr("0.01")}}, offsets)
	if err != nil {
		return err
	}
	if err := changed[0].Err; err != nil {
		return err
	}
	return commit(ctx, dir, adm)
}

func ptr(s string) *string { return &s }

// produce writes some segments: 400 keys again and again, and a tombstone now and then.
func produce(ctx context.Context, brokers []string, codec int) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(topic), kgo.ProducerBatchMaxBytes(4<<10), kgo.ProducerBatchCompression(codecs[codec]))
	if err != nil {
		return err
	}
	defer cl.Close()
	rnd := rand.NewChaCha8([32]byte{1})
	var failed kgo.FirstErrPromise
	for i := range 4500 {
		r := &kgo.Record{Key: fmt.Appendf(nil, "key-%d", rnd.Uint64()%400), Value: fmt.Appendf(nil, "%x %s", rnd.Uint64(), strings.Repeat("compressible ", 12))}
		switch {
		case i%50 == 0:
			r.Value = nil
		case i%90 == 1: // its key's only one: something of every codec is left
			r.Key = fmt.Appendf(nil, "only-%d-%d", codec, i)
		}
		cl.Produce(ctx, r, failed.Promise())
	}
	return failed.Err()
}

// commit has groups commit again and again.
func commit(ctx context.Context, dir string, adm *kadm.Client) error {
	var last strings.Builder
	for g := range groups {
		for n := range int64(commits) {
			var o kadm.Offsets
			o.AddOffset(topic, 0, n, -1)
			if err := adm.CommitAllOffsets(ctx, groupName(g), o); err != nil {
				return err
			}
		}
		fmt.Fprintf(&last, "%s %d\n", groupName(g), commits-1)
	}
	return os.WriteFile(filepath.Join(dir, offsets+".want"), []byte(last.String()), 0o644)
}

func groupName(g int) string { return fmt.Sprintf("group-%d", g) }

// members has a member of each protocol join, commit and leave, for the records of groups.
func members(ctx context.Context, brokers []string) error {
	for _, name := range []string{"classic", "next"} {
		opts := []kgo.Opt{kgo.SeedBrokers(brokers...), kgo.ConsumerGroup(name), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit()}
		if name == "next" {
			opts = append(opts, kgo.ServerSideBalancer())
		}
		cl, err := kgo.NewClient(opts...)
		if err != nil {
			return err
		}
		fetched := cl.PollRecords(ctx, 10)
		if err = fetched.Err(); err == nil {
			err = cl.CommitUncommittedOffsets(ctx)
		}
		cl.Close()
		if err != nil {
			return fmt.Errorf("group %s: %w", name, err)
		}
	}
	return nil
}

// awaitCompacted waits until at most half of the records are left of both.
func awaitCompacted(ctx context.Context, brokers []string) error {
	for _, name := range []string{topic, offsets} {
		for {
			left, end, err := read(ctx, brokers, name)
			if err != nil {
				return err
			}
			if int64(len(left)) <= end/2 {
				break
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("%s is not compacted: %d of %d records are left", name, len(left), end)
			}
		}
	}
	return nil
}

// read returns the offsets of the records of partition 0, and its end.
func read(ctx context.Context, brokers []string, name string) (left []int64, end int64, err error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.FetchMaxWait(100*time.Millisecond), kgo.KeepRetryableFetchErrors(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		return nil, 0, err
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, name)
	if err != nil {
		return nil, 0, err
	}
	o, ok := ends.Lookup(name, 0)
	if !ok || o.Err != nil {
		return nil, 0, fmt.Errorf("the end of %s: %w", name, o.Err)
	}
	// The last record of a log is its key's latest, so it is there.
	for len(left) == 0 || left[len(left)-1] < o.Offset-1 {
		fetched := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return nil, 0, fmt.Errorf("reading %s: %d records: %w", name, len(left), err)
		}
		fetched.EachRecord(func(r *kgo.Record) { left = append(left, r.Offset) })
	}
	return left, o.Offset, nil
}

// note leaves what is there in the folder.
func note(ctx context.Context, dir string, brokers []string) error {
	for _, name := range []string{topic, offsets} {
		left, _, err := read(ctx, brokers, name)
		if err != nil {
			return err
		}
		var text strings.Builder
		for _, o := range left {
			fmt.Fprintln(&text, o)
		}
		logs, err := filepath.Glob(filepath.Join(dir, "node-1", "topics", name, "*", "*", "*.log"))
		if err != nil || len(logs) == 0 {
			return fmt.Errorf("no segments of %s below %s: %w", name, dir, err)
		}
		for ext, b := range map[string]string{".offsets": text.String(), ".dir": filepath.Dir(logs[0]) + "\n"} {
			if err := os.WriteFile(filepath.Join(dir, name+ext), []byte(b), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}
