package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/freeport"
)

var bins struct{ server, chronik string }

// The commands are built once: what runs is what is in the tree.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "chronik-cli-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := 1
	cmd := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "github.com/chronik-go/chronik/cmd/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the commands: %v\n%s", err, out)
	} else {
		bins.server, bins.chronik = filepath.Join(dir, "chronik-server"), filepath.Join(dir, "chronik")
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

const bound = 90 * time.Second // of every wait

// process is a command under test.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	pipe *os.File      // the process's standard output
	out  *bufio.Reader // of it
	err  bytes.Buffer  // to be read once it has ended
	done chan struct{}
}

func run(t *testing.T, bin string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(bin, args...), done: make(chan struct{})}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.pipe, p.out, p.cmd.Stdout, p.cmd.Stderr = r, bufio.NewReader(r), w, &p.err
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		r.Close()
		if t.Failed() {
			t.Logf("%s %s:\n%s", filepath.Base(bin), strings.Join(args, " "), p.err.String())
		}
	})
	return p
}

// patient gives the next read of standard output its time.
func (p *process) patient() {
	p.t.Helper()
	if err := p.pipe.SetReadDeadline(time.Now().Add(bound)); err != nil {
		p.t.Fatal(err)
	}
}

// line returns the next line on standard output.
func (p *process) line() string {
	p.t.Helper()
	p.patient()
	s, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("no line on standard output: %q, %v", s, err)
	}
	return s
}

// code waits for the process to end by itself and returns its exit code, with what it said on standard output since the last
// line and on standard error.
func (p *process) code() (int, string, string) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(bound):
		p.t.Fatal("the process goes on")
	}
	p.patient()
	rest, err := io.ReadAll(p.out)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode(), string(rest), p.err.String()
}

// freePorts returns the first of n free ports in a row.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	ports, err := freeport.Run(n)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

func eventually(t *testing.T, cond func() error) {
	t.Helper()
	deadline := time.Now().Add(bound)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// servers finds the processes that keep data below dir, by their command lines: node id -> pid.
func servers(t *testing.T, dir string) map[int]int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // gone by now
		}
		args := strings.Split(string(b), "\x00")
		if i := slices.Index(args, "--data-dir"); i > 0 && i+1 < len(args) && strings.HasPrefix(args[i+1], dir) {
			id, err := strconv.Atoi(args[slices.Index(args, "--node-id")+1])
			if err != nil {
				t.Fatal(err)
			}
			out[id] = pid
		}
	}
	return out
}

// chronik cluster up: one line when all serve, a child that dies is started again with its data, and Ctrl-C leaves nothing.
func TestClusterUp(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks for processes in /proc")
	}
	dir, base := t.TempDir(), freePorts(t, 9)
	args := []string{"cluster", "up", "--nodes", "3", "--dir", dir, "--kafka-port", strconv.Itoa(base), "--raft-port", strconv.Itoa(base + 3),
		"--admin-port", strconv.Itoa(base + 6), "--server-flag=--wal-file-bytes=32MiB", "--server-flag=--wal-max-bytes=64MiB", "--wait", bound.String()}
	p := run(t, bins.chronik, args...)
	began := time.Now()
	want := fmt.Sprintf("chronik cluster ready: bootstrap servers 127.0.0.1:%d,127.0.0.1:%d,127.0.0.1:%d, data and logs in %s", base, base+1, base+2, dir)
	if got := p.line(); !strings.HasPrefix(got, want) {
		t.Fatalf("ready line %q, want %q", got, want)
	}
	t.Logf("three processes ready after %v", time.Since(began))
	before := servers(t, dir)
	if len(before) != 3 {
		t.Fatalf("servers: %v", before)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*bound)
	defer cancel()
	c, err := kgo.NewClient(kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", base)), kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic("t"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.ProduceSync(ctx, kgo.StringRecord("before")).FirstErr(); err != nil {
		t.Fatal(err)
	}

	if err := syscall.Kill(before[2], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := p.line(); !regexp.MustCompile(`^node 2 ended \(signal: killed\); starting it again in \d+ms \(see .*node-2/server\.log\)\n$`).MatchString(got) {
		t.Errorf("after kill -9: %q", got)
	}
	eventually(t, func() error {
		after := servers(t, dir)
		if after[2] == 0 || after[2] == before[2] || after[1] != before[1] || after[3] != before[3] {
			return fmt.Errorf("processes %v became %v", before, after)
		}
		return ready(base + 7)
	})
	if err := c.ProduceSync(ctx, kgo.StringRecord("after")).FirstErr(); err != nil {
		t.Fatal(err)
	}

	stopped := time.Now()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	code, rest, stderr := p.code()
	t.Logf("Ctrl-C took %v", time.Since(stopped))
	if code != 0 || rest != "" || stderr != "" {
		t.Errorf("Ctrl-C: exit code %d, %q, %q", code, rest, stderr)
	}
	if left := servers(t, dir); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
}

func ready(port int) error {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "GET /readyz HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err != nil || !bytes.Contains(b, []byte(" 200 ")) {
		return fmt.Errorf("not ready: %q, %v", b, err)
	}
	return nil
}

// The servers go with the command that keeps them, even if that gets no chance to stop them.
func TestClusterUpKilledTakesItsServersWithIt(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a child of its parent's death")
	}
	dir, base := t.TempDir(), freePorts(t, 3)
	p := run(t, bins.chronik, "cluster", "up", "--nodes", "1", "--dir", dir, "--kafka-port", strconv.Itoa(base), "--raft-port", strconv.Itoa(base+1), "--admin-port", strconv.Itoa(base+2), "--wait", bound.String())
	p.line()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.done
	eventually(t, func() error {
		if left := servers(t, dir); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}

func TestClusterUpRefusals(t *testing.T) {
	for _, n := range []string{"0", "10", "x"} {
		if code, _, stderr := run(t, bins.chronik, "cluster", "up", "--nodes", n, "--dir", t.TempDir()).code(); code == 0 || !strings.Contains(stderr, "--nodes") {
			t.Errorf("--nodes %s: %d %q", n, code, stderr)
		}
	}
	// A node that can't come up: the command says which and where to look, and stops the others.
	dir, base := t.TempDir(), freePorts(t, 3)
	taken, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var said []byte
	for _, wait := range []string{"1s", "10s", "60s"} { // on a busy machine the server takes its time to find out
		code, _, stderr := run(t, bins.chronik, "cluster", "up", "--nodes", "1", "--dir", dir, "--wait", wait,
			"--kafka-port", strconv.Itoa(base), "--raft-port", strconv.Itoa(base+1), "--admin-port", strconv.Itoa(base+2)).code()
		if code != 1 || !strings.Contains(stderr, "node 1 is not ready") || !strings.Contains(stderr, "server.log") {
			t.Errorf("a port in use: %d %q", code, stderr)
		}
		if said, err = os.ReadFile(filepath.Join(dir, "node-1", "server.log")); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(said, []byte("--kafka-addr")) {
			return
		}
	}
	t.Errorf("its log: %q", said)
}

// A server prints one line once it serves, and ends with 0 after a signal.
func TestServerReadyLineAndSignals(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		dir := filepath.Join(t.TempDir(), "data")
		p := run(t, bins.server, "--kafka-addr", "127.0.0.1:0", "--admin-addr", "", "--data-dir", dir)
		if line := p.line(); !regexp.MustCompile(`^chronik ready: kafka 127\.0\.0\.1:[1-9]\d*, data ` + regexp.QuoteMeta(dir) + `, node 1\n$`).MatchString(line) {
			t.Errorf("ready line %q", line)
		}
		began := time.Now()
		if err := p.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if code, rest, _ := p.code(); code != 0 || rest != "" {
			t.Errorf("%v: exit code %d, %q", sig, code, rest)
		}
		t.Logf("%v: took %v", sig, time.Since(began))
	}
}

// Exit codes: 2 for a command line that makes no sense, 1 for what can't be opened, each with a line that says what to do.
func TestServerExitCodes(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "photo.jpg"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	newer := t.TempDir()
	if err := os.WriteFile(filepath.Join(newer, "node.json"), []byte(`{"identity":{"format":99},"crc32c":1}`), 0o644); err != nil {
		t.Fatal(err)
	}
	alone := func(dir string) []string {
		return []string{"--kafka-addr", "127.0.0.1:0", "--admin-addr", "", "--data-dir", dir}
	}
	for name, c := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"help":            {[]string{"--help"}, 0, []string{"--data-dir"}},
		"unknown flag":    {[]string{"--nope"}, 2, []string{"--nope", "--help"}},
		"argument":        {[]string{"start"}, 2, []string{`"start"`}},
		"bad peers":       {[]string{"--node-id", "1", "--peers", "x", "--raft-addr", "127.0.0.1:0"}, 2, []string{"--peers", "id@host:port"}},
		"duplicate id":    {[]string{"--node-id", "1", "--raft-addr", "h:1", "--peers", "2@a:1,2@b:1"}, 2, []string{"node id 2 is there twice"}},
		"many problems":   {[]string{"--peers", "1@a:1", "--num-partitions", "0", "--idle-timeout", "soon"}, 2, []string{"--node-id", "--raft-addr", "--num-partitions", "--idle-timeout"}},
		"missing file":    {[]string{"--config", filepath.Join(foreign, "none.toml")}, 2, []string{"--config", "none.toml"}},
		"kafka port":      {[]string{"--kafka-addr", taken.Addr().String(), "--admin-addr", "", "--data-dir", filepath.Join(t.TempDir(), "d")}, 1, []string{"--kafka-addr", taken.Addr().String()}},
		"admin port":      {[]string{"--kafka-addr", "127.0.0.1:0", "--admin-addr", taken.Addr().String(), "--data-dir", filepath.Join(t.TempDir(), "d")}, 1, []string{"--admin-addr"}},
		"foreign dir":     {alone(foreign), 1, []string{"photo.jpg", "--data-dir"}},
		"dir is a file":   {alone(filepath.Join(file, "data")), 1, []string{"--data-dir"}},
		"a newer format":  {alone(newer), 1, []string{"newer format", "format 99"}},
		"version":         {[]string{"--version"}, 0, nil},
		"server by alias": {nil, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			bin, args := bins.server, c.args
			if args == nil {
				bin, args = bins.chronik, []string{"server", "--version"}
			}
			code, _, stderr := run(t, bin, args...).code()
			if code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, stderr)
			}
			for _, w := range c.want {
				if !strings.Contains(stderr, w) {
					t.Errorf("%q does not say %q", stderr, w)
				}
			}
			if strings.Contains(stderr, "goroutine ") {
				t.Errorf("a panic: %s", stderr)
			}
		})
	}
	for _, dir := range []string{foreign, newer} {
		if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
			t.Errorf("%s was touched: %v, %v", dir, names, err)
		}
	}
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		t.Error("the file is gone")
	}
}

// A second server on the same directory is refused and does the first no harm.
func TestSecondServerOnADirectory(t *testing.T) {
	args := []string{"--kafka-addr", "127.0.0.1:0", "--admin-addr", "", "--data-dir", filepath.Join(t.TempDir(), "data")}
	first := run(t, bins.server, args...)
	first.line()
	code, _, stderr := run(t, bins.server, args...).code()
	if code != 1 || !strings.Contains(stderr, "in use by another process") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("the second: %d %q", code, stderr)
	}
	if err := first.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := first.code(); code != 0 {
		t.Errorf("the first: %d", code)
	}
}
