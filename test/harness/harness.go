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
	Kafka, Raft, Admin string // addresses
	Dir                string // data directory
	LogFile            string
	// Wrap, if set, is a command that runs the server as its last arguments, such as strace; it takes effect at the next Start.
	Wrap []string
	bin  string
	args []string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// New lays out n nodes below dir, on free ports, without starting them. flags go to every server.
func New(bin, dir string, n int, flags ...string) (*Cluster, error) {
	return NewBehind(bin, dir, n, nil, flags...)
}

// Front is what stands before a node's addresses, such as a proxy: the others, and clients, are given these in place of its own.
type Front struct{ Raft, Kafka string }

// NewBehind is New with something in front of each node: front is called with every node's own addresses.
func NewBehind(bin, dir string, n int, front func(id int, raft, kafka string) (Front, error), flags ...string) (*Cluster, error) {
	ports, err := freeport.Ports(3 * n)
	if err != nil {
		return nil, err
	}
	c := &Cluster{}
	var peers []string
	var more [][]string
	for i := range n {
		node := &Node{ID: i + 1, bin: bin,
			Kafka: addr(ports[3*i]), Raft: addr(ports[3*i+1]), Admin: addr(ports[3*i+2]),
			Dir: filepath.Join(dir, fmt.Sprintf("node-%d", i+1)), LogFile: filepath.Join(dir, fmt.Sprintf("node-%d.log", i+1))}
		f := Front{Raft: node.Raft}
		var own []string
		if front != nil {
			if f, err = front(node.ID, node.Raft, node.Kafka); err != nil {
				return nil, err
			}
			own = []string{"--advertised-raft-addr", f.Raft, "--advertised-kafka-addr", f.Kafka}
		}
		peers = append(peers, fmt.Sprintf("%d@%s", node.ID, f.Raft))
		more = append(more, own)
		c.Nodes = append(c.Nodes, node)
	}
	for i, node := range c.Nodes {
		node.args = []string{"--node-id", fmt.Sprint(node.ID), "--kafka-addr", node.Kafka, "--admin-addr", node.Admin, "--data-dir", node.Dir}
		if n > 1 {
			node.args = append(node.args, "--peers", strings.Join(peers, ","), "--raft-addr", node.Raft)
		}
		node.args = append(append(node.args, more[i]...), flags...)
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
	cmd := exec.Command(n.bin, n.args...)
	if len(n.Wrap) > 0 {
		cmd = exec.Command(n.Wrap[0], append(append(slices.Clone(n.Wrap[1:]), n.bin), n.args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // to end both
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		log.Close()
		return err
	}
	done := make(chan struct{})
	n.cmd, n.done = cmd, done
	go func() {
		err := cmd.Wait()
		log.Close()
		n.mu.Lock()
		n.cmd, n.err = nil, err
		n.mu.Unlock()
		close(done)
	}()
	return nil
}

// Kill ends the process with SIGKILL and waits for it. On a node that does not run it does nothing.
func (n *Node) Kill() {
	n.mu.Lock()
	if n.cmd != nil && n.cmd.SysProcAttr != nil {
		_ = syscall.Kill(-n.cmd.Process.Pid, syscall.SIGKILL)
	}
	n.mu.Unlock()
	_ = n.Signal(syscall.SIGKILL)
	n.Wait()
}

// Terminate asks the process to stop and returns how it ended.
func (n *Node) Terminate(ctx context.Context) error {
	if err := n.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	n.mu.Lock()
	done := n.done
	n.mu.Unlock()
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
