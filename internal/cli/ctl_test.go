package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/ctl"
	"github.com/chronik-go/chronik/internal/node"
	"github.com/chronik-go/chronik/internal/vfs"
)

// single runs a node in this process and points the commands at it.
func single(t *testing.T) {
	t.Helper()
	cfg := config.Default()
	cfg.KafkaAddr, cfg.AdminAddr, cfg.DataDir = "127.0.0.1:0", "127.0.0.1:0", "/data"
	cfg.Limits.WALFileBytes, cfg.Limits.WALMaxBytes = 2*config.MaxBatchBytes, 4*config.MaxBatchBytes
	cfg.Kafka = map[string]string{"group.initial.rebalance.delay.ms": "0", "group.consumer.session.timeout.ms": "1800000"}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	n, err := node.Open(node.Options{Config: cfg, FS: vfs.NewMem(1), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		defer cancel()
		if err := n.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-n.Ready():
	case <-time.After(bound):
		t.Fatal("the node is not ready")
	}
	t.Setenv(ctl.BrokersVariable, n.KafkaAddr())
}

// chronik runs the command line in this process, with text as standard input.
func chronik(t *testing.T, input string, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	if slices.Contains([]string{"topic", "group", "produce", "consume", "reassign", "cluster"}, args[0]) && !slices.Contains(args, "--timeout") {
		args = append(slices.Clone(args), "--timeout", bound.String()) // the usual 15 s are not enough for a busy machine
	}
	code = execute(args, strings.NewReader(input), &o, &e)
	return code, o.String(), e.String()
}

func must(t *testing.T, input string, args ...string) string {
	t.Helper()
	code, out, errs := chronik(t, input, args...)
	if code != 0 {
		t.Fatalf("chronik %s: code %d\n%s", strings.Join(args, " "), code, errs)
	}
	return out
}

func TestTopicsFromTheCommandLine(t *testing.T) {
	single(t)
	must(t, "", "topic", "create", "a", "b", "-p", "3", "-c", "retention.ms=100000")
	out := must(t, "", "topic", "list")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 3 || strings.Join(strings.Fields(lines[1]), " ") != "a 3 1 0" {
		t.Errorf("topic list:\n%s", out)
	}
	must(t, "one\ntwo\nthree\n", "produce", "a", "-p", "1")
	var described []struct {
		Name       string
		Partitions []struct {
			End   int64 `json:"end_offset"`
			Bytes int64
		}
		Configs []struct{ Name, Value string }
	}
	if err := json.Unmarshal([]byte(must(t, "", "topic", "describe", "a", "-o", "json")), &described); err != nil {
		t.Fatal(err)
	}
	if d := described[0]; len(d.Partitions) != 3 || d.Partitions[1].End != 3 || d.Partitions[1].Bytes == 0 || len(d.Configs) != 1 || d.Configs[0].Value != "100000" {
		t.Errorf("%+v", d)
	}
	must(t, "", "topic", "alter", "a", "--set", "retention.ms=50000", "--unset", "segment.ms")
	must(t, "", "topic", "alter", "a", "--set", "retention.ms=99000", "--dry-run")
	if out := must(t, "", "topic", "describe", "a"); !strings.Contains(out, "retention.ms=50000\n") {
		t.Errorf("after alter:\n%s", out)
	}
	for _, args := range [][]string{{"create", "inert", "-c", "min.insync.replicas=2", "-c", "retention.ms=5"}, {"alter", "inert", "--set", "min.insync.replicas=3", "--set", "segment.jitter.ms=5"}} {
		if code, _, errs := chronik(t, "", append([]string{"topic"}, args...)...); code != 0 || strings.Count(errs, "note:") != 1 || !strings.Contains(errs, "note: min.insync.replicas: Without effect") {
			t.Errorf("%v: code %d, says\n%s", args, code, errs)
		}
	}
	must(t, "", "topic", "delete", "inert")
	must(t, "", "topic", "grow", "a", "-p", "5")
	must(t, "", "topic", "trim", "a", "--before", "+2", "--partition", "1")
	if out := must(t, "", "consume", "a", "--until-end"); out != "three\n" {
		t.Errorf("after trim: %q", out)
	}
	code, _, errs := chronik(t, "", "topic", "delete", "a", "nope")
	if code != 1 || !strings.Contains(errs, "a deleted") || !strings.Contains(errs, `nope: UNKNOWN_TOPIC_OR_PARTITION`) {
		t.Errorf("code %d: %s", code, errs)
	}
}

func TestRecordsFromTheCommandLine(t *testing.T) {
	single(t)
	must(t, "", "topic", "create", "r", "-p", "2")
	var want []string
	for i := range 500 {
		want = append(want, fmt.Sprintf("value %d", i))
	}
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		must(t, strings.Join(want, "\n"), "produce", "r", "-z", codec)
	}
	got := strings.Split(strings.TrimSuffix(must(t, "", "consume", "r", "-e"), "\n"), "\n")
	slices.Sort(got)
	slices.Sort(want)
	if len(got) != 5*len(want) || got[0] != want[0] || got[5*len(want)-1] != want[len(want)-1] {
		t.Errorf("%d records read, the first %q, the last %q", len(got), got[0], got[len(got)-1])
	}
	must(t, "k1=v1\nk2=v2=v3\n", "produce", "r", "-K", "=", "-H", "origin=test", "-p", "0")
	file := filepath.Join(t.TempDir(), "whole")
	if err := os.WriteFile(file, []byte("two\nlines\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "", "produce", "r", "--whole", "-f", file, "-k", "file", "-p", "0")
	type record struct {
		Offset     int64
		Key, Value *string
		Bytes      []byte `json:"value_base64"`
		Headers    []struct{ Name, Value string }
		Timestamp  time.Time
	}
	var last []record
	for d := json.NewDecoder(strings.NewReader(must(t, "", "consume", "r", "-p", "0", "--from", "-3", "-e", "-o", "json"))); d.More(); {
		var r record
		if err := d.Decode(&r); err != nil {
			t.Fatal(err)
		}
		last = append(last, r)
	}
	if len(last) != 3 || *last[1].Key != "k2" || *last[1].Value != "v2=v3" || last[1].Headers[0].Value != "test" ||
		last[2].Value != nil || string(last[2].Bytes) != "two\nlines\xff" || time.Since(last[0].Timestamp) > time.Hour {
		t.Errorf("%+v", last)
	}
	if out := must(t, "", "consume", "r", "-n", "1", "-v", "-p", "0", "--from", "end", "--from", "-3"); !strings.Contains(out, "k1\torigin=test\tv1") {
		t.Errorf("%q", out)
	}
}

func TestCommandLineMistakesSayWhatToDo(t *testing.T) {
	single(t)
	must(t, "", "topic", "create", "t")
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"topic", "list", "-o", "xml"}, "table or json"},
		{[]string{"topic", "list", "-b", "127.0.0.1:1", "--timeout", "300ms"}, "is a server running there?"},
		{[]string{"topic", "create", "x", "-c", "nonsense"}, "name=value"},
		{[]string{"topic", "create", "x", "-c", "no.such=1"}, "no.such"},
		{[]string{"topic", "create", "x", "-r", "3"}, "INVALID_REPLICATION_FACTOR"},
		{[]string{"topic", "alter", "t"}, "--set"},
		{[]string{"topic", "grow", "t"}, "--partitions"},
		{[]string{"topic", "trim", "t", "--before", "yesterday"}, "A position is"},
		{[]string{"topic", "trim", "t", "--before", "end", "--partition", "7"}, "no partition 7"},
		{[]string{"topic", "describe", "missing"}, "UNKNOWN_TOPIC"},
		{[]string{"consume", "missing", "-e"}, "missing: UNKNOWN_TOPIC"},
		{[]string{"produce", "t", "-z", "brotli"}, "zstd"},
		{[]string{"produce", "t", "-H", "x"}, "name=value"},
		{[]string{"produce", "t", "--whole"}, "--file"},
		{[]string{"consume", "t", "-g", "g", "-p", "0"}, "--partition"},
		{[]string{"consume", "t", "-g", "g", "--from", "5"}, "group seek"},
		{[]string{"topic", "lst"}, "did you mean list?"},
		{[]string{"cluster", "elct"}, "did you mean elect?"},
		{[]string{"cluster", "elect", "missing"}, "UNKNOWN_TOPIC"},
		{[]string{"cluster", "remove", "7"}, "7"},
		{[]string{"reassign", "start"}, "plan"},
		{[]string{"reassign", "start", "--plan", "/no/such/file"}, "no such file"},
	} {
		code, _, errs := chronik(t, "", c.args...)
		if code != 1 || !strings.Contains(errs, c.says) {
			t.Errorf("chronik %s: code %d, %q does not say %q", strings.Join(c.args, " "), code, errs, c.says)
		}
	}
	if code, _, errs := chronik(t, "a line without one", "produce", "t", "-K", "="); code != 1 || !strings.Contains(errs, "line 1") {
		t.Errorf("code %d: %s", code, errs)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out := must(t, "", "completion", shell); len(out) < 1000 {
			t.Errorf("completion for %s: %d bytes", shell, len(out))
		}
	}
}

// What a group has printed is committed: the next one goes on behind it, and the group's commands show it.
func TestConsumingAsAGroupCommits(t *testing.T) {
	single(t)
	must(t, "", "topic", "create", "c", "-p", "1")
	must(t, "1\n2\n3\n4\n5\n", "produce", "c")
	if out := must(t, "", "consume", "c", "-g", "readers", "-n", "2"); out != "1\n2\n" {
		t.Errorf("%q", out)
	}
	if d := emptied(t, "readers"); len(d.Partitions) != 1 || d.Partitions[0].Committed != 2 || d.TotalLag != 3 {
		t.Errorf("%+v", d)
	}
	if out := must(t, "", "consume", "c", "-g", "readers", "-n", "3"); out != "3\n4\n5\n" {
		t.Errorf("%q", out)
	}
	emptied(t, "readers")
	must(t, "", "group", "seek", "readers", "--to", "3", "--execute")
	if out := must(t, "", "consume", "c", "-g", "readers", "-n", "2"); out != "4\n5\n" {
		t.Errorf("after seek: %q", out)
	}
	for _, c := range []struct{ command, prefix, want string }{{"group", "read", "readers\n"}, {"topic", "", "c\n"}} {
		eventually(t, func() error { // a shell does not wait long, and the machine may be busy
			if out := must(t, "", "__complete", c.command, "describe", c.prefix); !strings.Contains(out, c.want) {
				return fmt.Errorf("completion: %q", out)
			}
			return nil
		})
	}
}

// groupTable is what chronik group describe -o json says.
type groupTable struct {
	Group, State, Protocol string
	Members                []struct {
		Client   string
		Assigned int
	}
	Partitions []struct {
		Partition              int32
		Committed, End, Lag    int64
		Member, Topic, Problem string
	}
	TotalLag int64 `json:"total_lag"`
}

func describeGroup(t *testing.T, name string) groupTable {
	t.Helper()
	var out []groupTable
	if err := json.Unmarshal([]byte(must(t, "", "group", "describe", name, "-o", "json")), &out); err != nil || len(out) != 1 {
		t.Fatalf("%v %v", err, out)
	}
	return out[0]
}

// emptied is a group once its last member has gone: at the end of its session at the latest, should the word that it leaves be lost.
func emptied(t *testing.T, name string) (d groupTable) {
	t.Helper()
	eventually(t, func() error {
		if d = describeGroup(t, name); d.State != "Empty" || len(d.Members) != 0 {
			return fmt.Errorf("it has members: %+v", d)
		}
		return nil
	})
	return d
}

// A real consumer reads and commits; the commands tell what it did, leave its offsets alone while it lives, and move and delete them
// once it has gone.
func TestGroupsFromTheCommandLine(t *testing.T) {
	single(t)
	must(t, "", "topic", "create", "g", "-p", "2")
	must(t, "a\nb\nc\n", "produce", "g", "-p", "0")
	must(t, "d\ne\n", "produce", "g", "-p", "1")
	client, err := kgo.NewClient(kgo.SeedBrokers(os.Getenv(ctl.BrokersVariable)), kgo.ConsumerGroup("readers"), kgo.ConsumeTopics("g"),
		kgo.ClientID("reader"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	for n := 0; n < 5; {
		f := client.PollFetches(ctx)
		if err := f.Err0(); err != nil {
			t.Fatal(err)
		}
		n += f.NumRecords()
	}
	if err := client.CommitUncommittedOffsets(ctx); err != nil {
		t.Fatal(err)
	}
	must(t, "f\n", "produce", "g", "-p", "1")

	var d groupTable
	eventually(t, func() error { // it may have more to agree on than one round
		if d = describeGroup(t, "readers"); d.State != "Stable" {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})
	if len(d.Members) != 1 || d.Members[0].Client != "reader" || d.Members[0].Assigned != 2 || d.TotalLag != 1 ||
		len(d.Partitions) != 2 || d.Partitions[0].Committed != 3 || d.Partitions[1].Committed != 2 || d.Partitions[1].Lag != 1 || d.Partitions[1].Member == "" {
		t.Errorf("%+v", d)
	}
	if out := must(t, "", "group", "list", "--state", "Stable"); !strings.Contains(out, "readers") {
		t.Errorf("stable groups:\n%s", out)
	}
	if out := must(t, "", "group", "list", "--state", "Empty"); strings.Contains(out, "readers") {
		t.Errorf("empty groups:\n%s", out)
	}
	if out := must(t, "", "group", "describe", "readers"); !strings.Contains(out, "group readers: Stable") || !strings.Contains(out, "lag 1") {
		t.Errorf("described:\n%s", out)
	}
	if code, _, errs := chronik(t, "", "group", "seek", "readers", "--to", "start", "--execute"); code != 1 || !strings.Contains(errs, "stop them first") {
		t.Errorf("offsets of a live group moved: code %d: %s", code, errs)
	}
	if code, _, errs := chronik(t, "", "group", "delete", "readers"); code != 1 || !strings.Contains(errs, "NON_EMPTY_GROUP") {
		t.Errorf("a live group deleted: code %d: %s", code, errs)
	}
	if d := describeGroup(t, "readers"); d.TotalLag != 1 {
		t.Errorf("after refused commands: %+v", d)
	}

	client.Close()
	if out := must(t, "", "group", "seek", "readers", "--to", "start"); !strings.Contains(out, "FROM") {
		t.Errorf("seek without --execute:\n%s", out)
	}
	if d := emptied(t, "readers"); d.TotalLag != 1 {
		t.Errorf("after a dry run: %+v", d)
	}
	for _, step := range []struct {
		args   []string
		offset [2]int64
	}{
		{[]string{"--to", "start"}, [2]int64{0, 0}},
		{[]string{"--by", "2"}, [2]int64{2, 2}},
		{[]string{"--by", "-1", "-p", "1"}, [2]int64{2, 1}},
		{[]string{"--to", "-1", "-t", "g"}, [2]int64{2, 2}},
		{[]string{"--to", "1h"}, [2]int64{0, 0}},
		{[]string{"--to", "end"}, [2]int64{3, 3}},
	} {
		must(t, "", append([]string{"group", "seek", "readers", "--execute"}, step.args...)...)
		var rows []struct{ Offset int64 }
		if err := json.Unmarshal([]byte(must(t, "", "group", "offsets", "readers", "-o", "json")), &rows); err != nil {
			t.Fatal(err)
		}
		if len(rows) != 2 || rows[0].Offset != step.offset[0] || rows[1].Offset != step.offset[1] {
			t.Errorf("seek %v: %+v, want %v", step.args, rows, step.offset)
		}
	}
	must(t, "", "group", "delete", "readers")
	if out := must(t, "", "group", "list"); strings.Contains(out, "readers") {
		t.Errorf("after delete:\n%s", out)
	}
	if code, _, errs := chronik(t, "", "group", "delete", "readers"); code != 1 || !strings.Contains(errs, "GROUP_ID_NOT_FOUND") {
		t.Errorf("deleted twice: code %d: %s", code, errs)
	}
}
