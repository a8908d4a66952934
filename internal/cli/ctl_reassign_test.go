package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/ctl"
	"github.com/chronik-go/chronik/internal/freeport"
	"github.com/chronik-go/chronik/internal/node"
	"github.com/chronik-go/chronik/internal/vfs"
)

// three runs three nodes in this process and points the commands at them.
func three(t *testing.T) {
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
		cfg.NodeID, cfg.Peers, cfg.RaftAddr = p.ID, slices.Clone(peers), p.Addr
		cfg.KafkaAddr, cfg.AdminAddr, cfg.DataDir = "127.0.0.1:0", "127.0.0.1:0", "/data"
		cfg.Limits.WALFileBytes, cfg.Limits.WALMaxBytes = 2*config.MaxBatchBytes, 4*config.MaxBatchBytes
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		n, err := node.Open(node.Options{Config: cfg, FS: vfs.NewMem(uint64(p.ID)), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, n := range nodes {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), bound)
				defer cancel()
				if err := n.Close(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
	var addrs []string
	for _, n := range nodes {
		select {
		case <-n.Ready():
		case <-time.After(bound):
			t.Fatal("a node is not ready")
		}
		addrs = append(addrs, n.KafkaAddr())
	}
	t.Setenv(ctl.BrokersVariable, strings.Join(addrs, ","))
}

// A throttled move is shown with how far it has come, goes back when it is cancelled, and ends when its throttle is raised or
// taken away; nothing of the throttle stays behind.
func TestReassignFromTheCommandLine(t *testing.T) {
	three(t)
	must(t, "", "topic", "create", "m", "-r", "2", "-p", "1")
	line := strings.Repeat("0123456789abcdef", 4096)
	must(t, strings.Repeat(line+"\n", 64), "produce", "m", "-p", "0") // 4 MiB, many times what goes at the rates below
	var described []struct {
		Partitions []struct{ Replicas []int32 }
		Configs    []struct{ Name, Value string }
	}
	describe := func() {
		t.Helper()
		described = nil
		if err := json.Unmarshal([]byte(must(t, "", "topic", "describe", "m", "-o", "json")), &described); err != nil {
			t.Fatal(err)
		}
	}
	describe()
	had := described[0].Partitions[0].Replicas
	spare := int32(6) - had[0] - had[1]
	target := fmt.Sprintf("%d,%d", spare, had[1])

	plan := filepath.Join(t.TempDir(), "plan.json")
	out := must(t, "", "reassign", "plan", "m", "--to", target)
	if err := os.WriteFile(plan, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "", "reassign", "start", "--plan", plan, "--throttle", "1KiB")
	var rows []struct {
		Topic            string
		Adding, Removing []int32
		Bytes            int64
	}
	status := func() {
		t.Helper()
		if err := json.Unmarshal([]byte(must(t, "", "reassign", "status", "-o", "json")), &rows); err != nil {
			t.Fatal(err)
		}
	}
	// A node that was not there for a moment hears of it later, and what can't be asked how much it holds says so.
	eventually(t, func() error {
		if status(); len(rows) != 1 || rows[0].Topic != "m" || !slices.Equal(rows[0].Adding, []int32{spare}) || !slices.Equal(rows[0].Removing, had[:1]) || rows[0].Bytes < 4<<20 {
			return fmt.Errorf("moving: %+v", rows)
		}
		return nil
	})
	eventually(t, func() error {
		if table := must(t, "", "reassign", "status"); !strings.Contains(table, "% of 4.") {
			return fmt.Errorf("status:\n%s", table)
		}
		return nil
	})
	eventually(t, func() error {
		if describe(); len(described[0].Configs) != 2 {
			return fmt.Errorf("configs of a throttled topic: %+v", described[0].Configs)
		}
		return nil
	})
	must(t, "", "reassign", "throttle", "2KiB")
	if _, _, errs := chronik(t, "", "reassign", "cancel"); !strings.Contains(errs, "1 reassignments cancelled") {
		t.Errorf("cancel: %s", errs)
	}
	eventually(t, func() error {
		if status(); len(rows) != 0 {
			return fmt.Errorf("cancelled and still moving: %+v", rows)
		}
		return nil
	})
	if code, _, errs := chronik(t, "", "reassign", "throttle", "2KiB"); code != 1 || !strings.Contains(errs, "nothing is moving") {
		t.Errorf("code %d: %s", code, errs)
	}

	code, _, errs := chronik(t, "", "reassign", "start", "--plan", plan, "--throttle", "100MiB", "--wait")
	if code != 0 || !strings.Contains(errs, "0 still moving") || !strings.Contains(errs, "replication is not throttled") {
		t.Fatalf("code %d: %s", code, errs)
	}
	eventually(t, func() error {
		if describe(); len(described[0].Configs) != 0 || !slices.Contains(described[0].Partitions[0].Replicas, spare) {
			return fmt.Errorf("after the move: %+v", described)
		}
		return nil
	})
	for _, bad := range []string{"fast", "0", ""} {
		if code, _, errs := chronik(t, "", "reassign", "throttle", bad); code != 1 || !strings.Contains(errs, "throttle") {
			t.Errorf("throttle %q: code %d: %s", bad, code, errs)
		}
	}
}
