// Package badinput gives real server processes what they should never get: command lines, data directories and bytes on the
// wire that make no sense. A server must say in one clear line what is wrong, leave data alone, and stay up for others.
package badinput

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/freeport"
	"github.com/chronik-go/chronik/test/harness"
)

var serverBinary string

const bound = 90 * time.Second // of a wait for what takes no time on a machine with nothing else to do

func TestMain(m *testing.M) {
	os.Exit(harness.RunTests(m, func(bin string) { serverBinary = bin }))
}

// server is a server process with flags of the test's own making.
type server struct {
	cmd   *exec.Cmd
	admin string
	out   output // stdout and stderr
	errs  output // stderr alone
	done  chan struct{}
	err   error // once done is closed
}

// output collects what a process prints.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start starts a server; it is killed at the end of the test if it still runs.
func start(t *testing.T, args ...string) *server {
	t.Helper()
	s := &server{cmd: exec.Command(serverBinary, args...), done: make(chan struct{})}
	for i, a := range args {
		if a == "--admin-addr" && i+1 < len(args) {
			s.admin = args[i+1]
		}
	}
	s.cmd.Dir = t.TempDir() // where a default data directory would go
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.errs
	s.cmd.WaitDelay = 5 * time.Second
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	t.Cleanup(s.kill)
	return s
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.done
}

// terminate stops the server in the orderly way.
func (s *server) terminate(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.done:
	case <-time.After(bound):
		t.Fatalf("no end in time of SIGTERM:\n%s", &s.errs)
	}
	if s.err != nil {
		t.Fatalf("an orderly stop ended with %v:\n%s", s.err, &s.errs)
	}
}

// awaitReady waits until the server says that it serves.
func (s *server) awaitReady(t *testing.T) {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	s.await(t, "the server is not ready", func() bool {
		res, err := client.Get("http://" + s.admin + "/readyz")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// awaitLog waits until one line of the log holds all the words.
func (s *server) awaitLog(t *testing.T, words ...string) string {
	t.Helper()
	var found string
	s.await(t, fmt.Sprintf("no line of the log has %q", words), func() bool {
		for line := range strings.Lines(s.errs.String()) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				found = line
				return true
			}
		}
		return false
	})
	return found
}

func (s *server) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(bound)
	for !ok() {
		select {
		case <-s.done:
			t.Fatalf("%s: it ended (%v):\n%s", what, s.err, &s.errs)
		case <-deadline:
			t.Fatalf("%s in time:\n%s", what, &s.errs)
		case <-time.After(10 * time.Millisecond): // between two looks
		}
	}
}

// refuses starts a server that must not come up: it ends by itself, with a code that is not 0, and says why in one line that
// holds all the words.
func refuses(t *testing.T, args []string, words ...string) {
	t.Helper()
	s := start(t, args...)
	select {
	case <-s.done:
	case <-time.After(bound):
		t.Fatalf("it still runs after a minute and a half:\n%s%s", &s.out, &s.errs)
	}
	var exit *exec.ExitError
	if !errors.As(s.err, &exit) || exit.ExitCode() <= 0 {
		t.Errorf("it ended with %v, not with an exit code", s.err)
	}
	if out := s.out.String(); out != "" {
		t.Errorf("it printed %q", out)
	}
	// Besides the log of what went well before.
	var lines []string
	for line := range strings.Lines(s.errs.String()) {
		if !strings.HasPrefix(line, "time=") || strings.Contains(line, "level=ERROR") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 {
		t.Fatalf("%d lines say why, not one:\n%s", len(lines), &s.errs)
	}
	for _, w := range words {
		if !strings.Contains(lines[0], w) {
			t.Errorf("%q is not in the line %q", w, lines[0])
		}
	}
	t.Log(strings.TrimSpace(lines[0]))
}

// ports returns free addresses on loopback, taken all at once so that they differ.
func ports(t *testing.T, n int) []string {
	t.Helper()
	free, err := freeport.Ports(n)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range free {
		out = append(out, fmt.Sprintf("127.0.0.1:%d", p))
	}
	return out
}

// alone is the command line of a single node on free ports.
func alone(t *testing.T, dir string, more ...string) []string {
	p := ports(t, 2)
	return append([]string{"--kafka-addr", p[0], "--admin-addr", p[1], "--data-dir", dir}, more...)
}

func flagOf(args []string, name string) string {
	for i, a := range args {
		if a == name {
			return args[i+1]
		}
	}
	return ""
}

// roundTrip sends a record and reads everything of its topic back.
func roundTrip(t *testing.T, broker, topic, value string) []string {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.DefaultProduceTopic(topic), kgo.ConsumeTopics(topic), kgo.AllowAutoTopicCreation(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.MetadataMinAge(50*time.Millisecond), kgo.UnknownTopicRetries(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	if err := cl.ProduceSync(ctx, kgo.StringRecord(value)).FirstErr(); err != nil {
		t.Fatalf("the server does not take a record: %v", err)
	}
	var got []string
	for {
		fetches := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			t.Fatalf("the record does not come back (%q did): %v", got, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { got = append(got, string(r.Value)) })
		if len(got) > 0 && got[len(got)-1] == value {
			return got
		}
	}
}

// usedDir makes a data directory with a record in it, of a single node that was stopped in order.
func usedDir(t *testing.T, more ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	args := alone(t, dir, more...)
	s := start(t, args...)
	s.awaitReady(t)
	roundTrip(t, flagOf(args, "--kafka-addr"), "kept", "precious")
	s.terminate(t)
	return dir
}

// stillThere starts a server on the directory and finds the record of usedDir.
func stillThere(t *testing.T, dir string, more ...string) {
	t.Helper()
	args := alone(t, dir, more...)
	s := start(t, args...)
	s.awaitReady(t)
	if got := roundTrip(t, flagOf(args, "--kafka-addr"), "kept", "more"); len(got) != 2 || got[0] != "precious" {
		t.Errorf("the directory holds %q after the refusal", got)
	}
	s.terminate(t)
}

// tree is the content of a directory: names, modes, bytes.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s %v", strings.TrimPrefix(path, dir), info.Mode())
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %d %x", len(b), sha256.Sum256(b))
		}
		out.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// untouched runs fn and fails if anything in the directory is another than before.
func untouched(t *testing.T, dir string, fn func()) {
	t.Helper()
	before := tree(t, dir)
	fn()
	if after := tree(t, dir); after != before {
		t.Errorf("the directory was changed. Before:\n%safter:\n%s", before, after)
	}
}

// metrics is what the server's admin address shows now.
func (s *server) metrics(t *testing.T) string {
	t.Helper()
	client := &http.Client{Timeout: bound, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + s.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// consumed counts the records of a topic, until there are as many as wanted.
func consumed(ctx context.Context, broker, topic string, want int) (n int, err error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	for n < want {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return n, ctx.Err()
		}
		fetches.EachRecord(func(*kgo.Record) { n++ })
	}
	return n, nil
}
