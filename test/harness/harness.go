// Package harness runs built Chronik servers as processes, for tests and benchmarks: start, kill, pause, restart, look at.
package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/chronik-go/chronik/internal/freeport"
)

// Build compiles chronik-server into dir and returns its path. A test that builds what it runs can't pass against a stale
// server.
func Build(ctx context.Context, dir string) (string, error) {
	bin := filepath.Join(dir, "chronik-server")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, "github.com/chronik-go/chronik/cmd/chronik-server")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the server: %w\n%s", err, out)
	}
	return bin, nil
}

// RunTests builds the server, hands its path to use, runs a package's tests (a *testing.M) and returns their exit code.
func RunTests(m interface{ Run() int }, use func(bin string)) int {
	dir, err := os.MkdirTemp("", "chronik-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin, err := Build(context.Background(), dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	use(bin)
	return m.Run()
}

// Cluster is a set of server processes on loopback.
type Cluster struct {
	Nodes []*Node
}

// Node is one server, running or not.
type Node struct {
	ID                 int
	Kafka, Raft, Admin string // addresses it listens on
	Dir                string // data directory
	LogFile            string
	command            []string

	mu     sync.Mutex
	cmd    *exec.Cmd
	done   chan struct{}
	err    error
	asked  bool // the end of the process is wanted
	onExit func(error)
}

// Config says how a node is started.
type Config struct {
	Bin                string
	ID                 int
	Kafka, Raft, Admin string // addresses to listen on
	Dir, LogFile       string
	// Flags are the server's further flags.
	Flags []string
	// Prefix is a command that runs the server, say ip netns exec name. It must become the server (exec).
	Prefix []string
	// OnExit, if not nil, is told of a process that ended without having been asked to by Kill, Terminate or Expect.
	OnExit func(error)
}

// NewNode returns a node that is not started yet.
func NewNode(c Config) *Node {
	n := &Node{ID: c.ID, Kafka: c.Kafka, Raft: c.Raft, Admin: c.Admin, Dir: c.Dir, LogFile: c.LogFile, onExit: c.OnExit}
	n.command = append(slices.Clone(c.Prefix), c.Bin, "--node-id", fmt.Sprint(c.ID), "--kafka-addr", c.Kafka, "--admin-addr", c.Admin, "--data-dir", c.Dir)
	if c.Raft != "" {
		n.command = append(n.command, "--raft-addr", c.Raft)
	}
	n.command = append(n.command, c.Flags...)
	return n
}

// New lays out n nodes below dir, on free ports, without starting them. flags go to every server.
func New(bin, dir string, n int, flags ...string) (*Cluster, error) {
	ports, err := freeport.Ports(3 * n)
	if err != nil {
		return nil, err
	}
	var peers []string
	for i := range n {
		peers = append(peers, fmt.Sprintf("%d@%s", i+1, addr(ports[3*i+1])))
	}
	c := &Cluster{}
	for i := range n {
		cfg := Config{Bin: bin, ID: i + 1, Kafka: addr(ports[3*i]), Admin: addr(ports[3*i+2]),
			Dir: filepath.Join(dir, fmt.Sprintf("node-%d", i+1)), LogFile: filepath.Join(dir, fmt.Sprintf("node-%d.log", i+1))}
		if n > 1 {
			cfg.Raft = addr(ports[3*i+1])
			cfg.Flags = []string{"--peers", strings.Join(peers, ",")}
		}
		cfg.Flags = append(cfg.Flags, flags...)
		c.Nodes = append(c.Nodes, NewNode(cfg))
	}
	return c, nil
}

func addr(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// Start starts every node and waits until all are ready.
func (c *Cluster) Start(ctx context.Context) error {
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		if err := n.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Brokers lists the Kafka addresses.
func (c *Cluster) Brokers() []string {
	var out []string
	for _, n := range c.Nodes {
		out = append(out, n.Kafka)
	}
	return out
}

// Stop kills every node that still runs and waits for it.
func (c *Cluster) Stop() {
	for _, n := range c.Nodes {
		n.Kill()
	}
}

// Start starts the process.
func (n *Node) Start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		return errors.New("the node runs already")
	}
	for _, addr := range []string{n.Kafka, n.Raft, n.Admin} {
		if addr == "" {
			continue
		}
		// Whoever answers there would be taken for this node, until it noticed that its port is taken.
		if conn, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			conn.Close()
			return fmt.Errorf("node %d: another process serves %s already", n.ID, addr)
		}
	}
	log, err := os.OpenFile(n.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd := exec.Command(n.command[0], n.command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		log.Close()
		return err
	}
	done := make(chan struct{})
	n.cmd, n.done, n.asked = cmd, done, false
	go func() {
		err := cmd.Wait()
		log.Close()
		n.mu.Lock()
		n.cmd, n.err = nil, err
		byItself := !n.asked
		n.mu.Unlock()
		if byItself && n.onExit != nil {
			n.onExit(err)
		}
		close(done)
	}()
	return nil
}

// Kill ends the process with SIGKILL and waits for it. On a node that does not run it does nothing.
func (n *Node) Kill() { n.Expect(); _ = n.Signal(syscall.SIGKILL); n.Wait() }

// Expect says that the process will end by itself, and that this is right. It holds until the next Start.
func (n *Node) Expect() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = true
}

// Terminate asks the process to stop and returns how it ended.
func (n *Node) Terminate(ctx context.Context) error {
	n.Expect()
	if err := n.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return n.Ended(ctx)
}

// Ended waits for the end of the process and returns how it ended, nil for exit code 0.
func (n *Node) Ended(ctx context.Context) error {
	n.mu.Lock()
	done := n.done
	n.mu.Unlock()
	if done == nil {
		return errors.New("the node was never started")
	}
	select {
	case <-done:
	case <-ctx.Done():
		return ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// Signal sends a signal to the process: SIGSTOP and SIGCONT pause it.
func (n *Node) Signal(s os.Signal) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return errors.New("the node does not run")
	}
	return n.cmd.Process.Signal(s)
}

// Wait waits until the process has ended.
func (n *Node) Wait() {
	n.mu.Lock()
	done := n.done
	n.mu.Unlock()
	if done != nil {
		<-done
	}
}

// Running says whether the process lives.
func (n *Node) Running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cmd != nil
}

// PID returns the process id, 0 if it does not run.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return 0
	}
	return n.cmd.Process.Pid
}

// ExitCode is what the process ended with; -1 if it runs or was ended by a signal.
func (n *Node) ExitCode() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	var exit *exec.ExitError
	switch {
	case n.cmd != nil:
		return -1
	case errors.As(n.err, &exit):
		return exit.ExitCode()
	}
	return 0
}

// AwaitReady polls /readyz until it says yes, the process ends, or ctx does.
func (n *Node) AwaitReady(ctx context.Context) error {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		if !n.Running() {
			return fmt.Errorf("node %d ended before it was ready:\n%s", n.ID, n.Tail())
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Admin+"/readyz", nil)
		if err != nil {
			return err
		}
		if res, err := client.Do(req); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("node %d is not ready: %w\n%s", n.ID, ctx.Err(), n.Tail())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Tail returns the end of the node's log.
func (n *Node) Tail() string {
	b, err := os.ReadFile(n.LogFile)
	if err != nil {
		return err.Error()
	}
	if len(b) > 4000 {
		b = b[len(b)-4000:]
	}
	return string(b)
}

// Node finds a node by id.
func (c *Cluster) Node(id int32) *Node {
	for _, n := range c.Nodes {
		if n.ID == int(id) {
			return n
		}
	}
	return nil
}
