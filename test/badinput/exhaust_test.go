package badinput

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/record"
)

// TestLimitsThatDoNotFitAreRefused: what was asked for and does not fit into the machine is one line that names the numbers.
func TestLimitsThatDoNotFitAreRefused(t *testing.T) {
	refuses(t, alone(t, filepath.Join(t.TempDir(), "data"), "--memory-limit", "100MiB"), "--memory-limit", "100MiB is too little", "256MiB")
	refuses(t, alone(t, filepath.Join(t.TempDir(), "data"), "--memory-limit", "256MiB", "--request-memory", "1GiB"), "--memory-limit", "--request-memory 1024", "lower")
	refuses(t, alone(t, filepath.Join(t.TempDir(), "data"), "--max-open-files", "1000000000"), "file descriptors are needed", "1250000000 segments", "the process may have", "ulimit -n")
}

// TestFewDescriptorsAreEnough: with the limit that many systems have by default a server starts, says what it made smaller, and
// outlives more connections than it can have.
func TestFewDescriptorsAreEnough(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs a shell's ulimit as Linux has it")
	}
	args := alone(t, filepath.Join(t.TempDir(), "data"))
	shell := append([]string{"-c", `ulimit -n 1024; exec "$0" "$@"`, serverBinary}, args...)
	was := serverBinary
	serverBinary = "/bin/sh"
	s := &target{server: start(t, append(shell[:2:2], append([]string{was}, args...)...)...), addr: flagOf(args, "--kafka-addr")}
	serverBinary = was
	s.admin = flagOf(args, "--admin-addr")
	s.awaitReady(t)
	s.awaitLog(t, "--max-connections is", "1024 file descriptors", "ulimit -n")
	for range 1500 {
		c, err := net.DialTimeout("tcp", s.addr, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	s.await(t, "no connection was refused", func() bool {
		for line := range strings.Lines(s.metrics(t)) {
			if strings.HasPrefix(line, "chronik_server_connections_refused_total{reason=\"too many connections\"}") {
				return !strings.HasSuffix(line, " 0\n")
			}
		}
		return false
	})
	if log := s.errs.String(); strings.Contains(log, "too many open files") {
		t.Errorf("it ran out of descriptors:\n%s", log)
	}
	s.terminate(t)
}

// smallDisk mounts a disk of its own size in memory; the test is skipped where that is not permitted.
func smallDisk(t *testing.T, mib int) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib), "chronik-test", dir).CombinedOutput(); err != nil {
		t.Skipf("a small disk can't be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// fillTo leaves so many MiB free on the disk, by a file of somebody else's.
func fillTo(t *testing.T, dir string, freeMiB int64) (name string) {
	t.Helper()
	name = filepath.Join(dir, "somebody-else")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	for freeOn(t, dir) > freeMiB {
		if _, err := f.Write(chunk); err != nil {
			if freeMiB == 0 {
				return name // to the last byte
			}
			t.Fatal(err)
		}
	}
	return name
}

// TestRealDiskFull fills a real disk under a real server, first below its reserve, then to the last byte: writes are refused with
// KAFKA_STORAGE_ERROR and a line in the log, reads go on, nothing acknowledged is lost, and writes come back with the space.
func TestRealDiskFull(t *testing.T) {
	disk := smallDisk(t, 700)
	args := alone(t, filepath.Join(disk, "data"), "--wal-file-bytes", "32MiB", "--wal-max-bytes", "64MiB")
	s := &target{server: start(t, args...), addr: flagOf(args, "--kafka-addr")}
	s.awaitReady(t)
	s.unharmed(t)
	s.await(t, "the reserve is not there", func() bool {
		info, err := os.Stat(filepath.Join(disk, "data", "reserve"))
		return err == nil && info.Size() == 64<<20
	})
	produce := func() *kmsg.ProduceResponseTopicPartition {
		resp := s.ask(t, produceRequest("others", 0, -1, batch(t, record.None, 1))).(*kmsg.ProduceResponse)
		return &resp.Topics[0].Partitions[0]
	}
	refused := func() bool {
		p := produce()
		if p.ErrorCode == 0 {
			s.n++ // it was taken, and counts
		}
		return p.ErrorCode == kerr.KafkaStorageError.Code && p.ErrorMessage != nil && strings.Contains(*p.ErrorMessage, "free")
	}
	for _, left := range []int64{200, 0} {
		junk := fillTo(t, disk, left)
		s.await(t, "writes are not refused", refused)
		s.awaitLog(t, "level=ERROR", "refusing writes", "MiB free")
		ctx, cancel := context.WithTimeout(t.Context(), bound)
		if got, err := consumed(ctx, s.addr, "others", s.n); err != nil || got != s.n {
			t.Errorf("with %d MiB left: %d of %d records can be read: %v", left, got, s.n, err)
		}
		cancel()
		if err := os.Remove(junk); err != nil {
			t.Fatal(err)
		}
		s.await(t, "writes do not come back", func() bool {
			if produce().ErrorCode != 0 {
				return false
			}
			s.n++
			return true
		})
		s.awaitLog(t, "taking writes again")
	}
	if n := strings.Count(s.errs.String(), "refusing writes"); n > 4 {
		t.Errorf("%d lines of the log say that writes are refused", n)
	}
	s.terminate(t)
	if s.err != nil {
		t.Error(errors.Join(s.err))
	}
}
