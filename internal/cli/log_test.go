package cli

import (
	"context"
	"encoding/json"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/ctl"
	"github.com/chronik-go/chronik/internal/node"
)

// contentOf returns what every file below dir holds.
func contentOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		out[p] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func flip(t *testing.T, file string, at int64) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 0x10
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// openLeft starts a node on a directory, for tests that look at what it leaves.
func openLeft(t *testing.T, dir string) *node.Node {
	t.Helper()
	cfg := config.Default()
	cfg.KafkaAddr, cfg.AdminAddr, cfg.DataDir = "127.0.0.1:0", "", dir
	cfg.Limits.WALFileBytes, cfg.Limits.WALMaxBytes = 2*config.MaxBatchBytes, 4*config.MaxBatchBytes
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	n, err := node.Open(node.Options{Config: cfg, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.Ready():
	case <-time.After(bound):
		t.Fatal("the node is not ready")
	}
	t.Setenv(ctl.BrokersVariable, n.KafkaAddr())
	return n
}

func closeLeft(t *testing.T, n *node.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// A directory that a server has left is checked and printed, damage is named with file and byte, and no byte of it changes.
func TestLogVerifyAndDump(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	n := openLeft(t, dir)
	must(t, "", "topic", "create", "orders", "--partitions", "1")
	for _, v := range []string{"first", "second", "third"} {
		must(t, v+"\n", "produce", "orders")
	}
	if code, _, errs := chronik(t, "", "log", "verify", dir); code != 0 && !strings.Contains(errs, "a server is running") {
		t.Errorf("beside a running server: code %d, %s", code, errs)
	} else if !strings.Contains(errs, "a server is running on "+dir) {
		t.Errorf("no warning: %q", errs)
	}
	closeLeft(t, n)

	before := contentOf(t, dir)
	out := must(t, "", "log", "verify", dir)
	for _, want := range []string{"ok       write-ahead log", "(the cluster's metadata)", "ok       orders-0: 1 segments", "offsets 0 to 2", "no damage found"} {
		if !strings.Contains(out, want) {
			t.Errorf("verify does not say %q:\n%s", want, out)
		}
	}
	var file string
	for name := range before {
		if strings.HasSuffix(name, "00000000000000000000.log") && strings.Contains(name, "orders") {
			file = name
		}
	}
	if out := must(t, "", "log", "dump", filepath.Join(dir, "topics", "orders")); strings.Count(out, "\n") != 3 || !strings.Contains(out, `value "second"`) {
		t.Errorf("dump:\n%s", out)
	}
	var r recordLine
	if out := must(t, "", "log", "dump", file, "-o", "json", "--from", "1", "--max", "1"); json.Unmarshal([]byte(out), &r) != nil || r.Offset != 1 || r.Value == nil || *r.Value != "second" {
		t.Errorf("dump as JSON:\n%s", out)
	}
	if out := must(t, "", "log", "dump", file, "--batches"); strings.Count(out, "offsets ") != 3 {
		t.Errorf("batches:\n%s", out)
	}
	if out := must(t, "", "log", "dump", filepath.Join(dir, "wal")); !strings.Contains(out, "  entry  group ") || !strings.Contains(out, "vote") {
		t.Errorf("the write-ahead log:\n%s", out)
	}
	for name, was := range contentOf(t, dir) {
		if before[name] != was {
			t.Errorf("%s was changed", name)
		}
	}
	if _, _, errs := chronik(t, "", "log", "dump", dir); !strings.Contains(errs, "a whole data directory: name one partition") {
		t.Errorf("a data directory: %q", errs)
	}

	flip(t, file, 100)
	code, out, _ := chronik(t, "", "log", "verify", dir)
	if code == 0 || !strings.Contains(out, "DAMAGED  orders-0: "+file+" at byte ") {
		t.Errorf("after a flip in a segment: code %d\n%s", code, out)
	}
	flip(t, file, 100)
	wals, _ := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	for _, w := range wals {
		if strings.Contains(before[w], "second") {
			flip(t, w, int64(strings.Index(before[w], "second")))
		}
	}
	if code, out, _ := chronik(t, "", "log", "dump", filepath.Join(dir, "wal")); code != 0 || !strings.Contains(out, "DAMAGED") {
		t.Errorf("after a flip in the write-ahead log: code %d\n%s", code, out)
	}
	if err := os.Truncate(file, 10); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := chronik(t, "", "log", "verify", dir); code == 0 || !strings.Contains(out, "offsets 0 to 2") {
		t.Errorf("after a truncation: code %d\n%s", code, out)
	}
}

// What a crash in a compaction leaves is told file by file, judged as the next start will have it, and printed once; the start then does
// what was said.
func TestLogVerifyAfterACrashInACompaction(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	n := openLeft(t, dir)
	must(t, "", "topic", "create", "orders", "--partitions", "1")
	must(t, "first\nsecond\nthird\n", "produce", "orders")
	closeLeft(t, n)
	logs, err := filepath.Glob(filepath.Join(dir, "topics", "orders", "0.*", "*", "00000000000000000000.log"))
	if err != nil || len(logs) != 1 {
		t.Fatal(logs, err)
	}
	file := logs[0]
	swap := filepath.Join(filepath.Dir(file), "00000000000000000000-00000000000000000003.swap")
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	batches, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cleaned := strings.TrimSuffix(file, "0.log") + "7.log.cleaned"
	write(cleaned, batches[:50])
	write(swap, batches)
	flip(t, file, 70) // nobody reads it any more
	before := contentOf(t, dir)
	out := must(t, "", "log", "verify", dir)
	for _, want := range []string{
		"note     orders-0: " + swap + " is a compacted segment that a crash kept from its place: the next start removes what it was made from, and makes it 00000000000000000000.log",
		"note     orders-0: " + file + " is of work that a crash ended, and the next start removes it: " + filepath.Base(swap) + " takes its place",
		"note     orders-0: " + cleaned + " is of work that a crash ended, and the next start removes it: a compaction had not finished it",
		"ok       orders-0: 1 segments", "offsets 0 to 2", "no damage found",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("verify does not say %q:\n%s", want, out)
		}
	}
	for _, path := range []string{filepath.Dir(file), swap} {
		if out := must(t, "", "log", "dump", path); strings.Count(out, "\n") != 3 || !strings.Contains(out, `value "second"`) || strings.Contains(out, "DAMAGED") {
			t.Errorf("dump of %s:\n%s", path, out)
		}
	}
	flip(t, swap, 70)
	if code, out, _ := chronik(t, "", "log", "verify", dir); code == 0 || !strings.Contains(out, "DAMAGED  orders-0: "+swap+" at byte ") {
		t.Errorf("after a flip in the compacted segment: code %d\n%s", code, out)
	}
	flip(t, swap, 70)
	for name, was := range contentOf(t, dir) {
		if before[name] != was {
			t.Errorf("%s was changed", name)
		}
	}

	n = openLeft(t, dir)
	if out := must(t, "", "consume", "orders", "-n", "3"); !strings.Contains(out, "second") {
		t.Errorf("consumed after the start:\n%s", out)
	}
	closeLeft(t, n)
	if out := must(t, "", "log", "verify", dir); strings.Contains(out, "note ") || !strings.Contains(out, "offsets 0 to 2") {
		t.Errorf("after the next start:\n%s", out)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "*.[sc][wl]*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// A directory that no log belongs to any more, half removed, is no damage.
	half := filepath.Join(dir, "topics", "orders", "1.99999", "0000000000000000")
	if err := os.MkdirAll(half, 0o755); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(half, "00000000000000000000.log"), batches)
	write(filepath.Join(half, "00000000000000000009.log"), nil)
	if out := must(t, "", "log", "verify", dir); !strings.Contains(out, "note     orders-1: the write-ahead log has no group 99999: if it was deleted, the next start removes") {
		t.Errorf("a deleted partition's directory:\n%s", out)
	}
	// The server's own mark of damage.
	write(filepath.Join(filepath.Dir(file), "damage.mark"), []byte("junk\n"))
	if code, out, _ := chronik(t, "", "log", "verify", dir); code == 0 || !strings.Contains(out, "DAMAGED  orders-0: the server's mark of damaged records") {
		t.Errorf("with a mark: code %d\n%s", code, out)
	}
}
