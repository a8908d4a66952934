package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func clusterUpCommand() *cobra.Command {
	o := upOptions{}
	up := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster of server processes on this machine; Ctrl-C stops them all",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return clusterUp(o, cmd.OutOrStdout())
		},
	}
	f := up.Flags()
	f.IntVar(&o.nodes, "nodes", 3, "how many")
	f.StringVar(&o.dir, "dir", "./chronik-cluster", "where the nodes' data and logs go; an existing cluster there is continued")
	f.IntVar(&o.kafkaPort, "kafka-port", 9092, "first node's Kafka port; the others take the following ones")
	f.IntVar(&o.raftPort, "raft-port", 5001, "first node's raft port")
	f.IntVar(&o.adminPort, "admin-port", 9644, "first node's admin port")
	f.DurationVar(&o.wait, "wait", 30*time.Second, "how long to wait for all nodes to be ready")
	f.StringArrayVar(&o.extra, "server-flag", nil, "a flag for every server, such as --server-flag=--num-partitions=6; may be repeated")
	return up
}

type upOptions struct {
	nodes                          int
	dir                            string
	kafkaPort, raftPort, adminPort int
	wait                           time.Duration
	extra                          []string
}

// child is one server process that is kept running.
type child struct {
	id   int
	args []string
	log  string
	out  io.Writer
}

func clusterUp(o upOptions, out io.Writer) error {
	if o.nodes < 1 || o.nodes > 9 {
		return errors.New("--nodes is from 1 to 9")
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()

	var peers, kafka []string
	for i := range o.nodes {
		peers = append(peers, fmt.Sprintf("%d@127.0.0.1:%d", i+1, o.raftPort+i))
		kafka = append(kafka, fmt.Sprintf("127.0.0.1:%d", o.kafkaPort+i))
	}
	out = &lockedWriter{w: out}
	var wg sync.WaitGroup
	for i := range o.nodes {
		dir := filepath.Join(o.dir, fmt.Sprintf("node-%d", i+1))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			cancel()
			wg.Wait()
			return err
		}
		c := &child{id: i + 1, out: out, log: filepath.Join(dir, "server.log"), args: append([]string{
			exe, "server",
			"--node-id", fmt.Sprint(i + 1), "--peers", strings.Join(peers, ","),
			"--raft-addr", fmt.Sprintf("127.0.0.1:%d", o.raftPort+i),
			"--kafka-addr", kafka[i],
			"--admin-addr", fmt.Sprintf("127.0.0.1:%d", o.adminPort+i),
			"--data-dir", filepath.Join(dir, "data"),
		}, o.extra...)}
		wg.Go(func() { c.keep(ctx) })
	}
	err = awaitReady(ctx, o)
	if err == nil {
		fmt.Fprintf(out, "chronik cluster ready: bootstrap servers %s, data and logs in %s (Ctrl-C stops it)\n", strings.Join(kafka, ","), o.dir)
		<-ctx.Done()
	} else if ctx.Err() != nil {
		err = nil // stopped while it came up
	}
	cancel()
	wg.Wait()
	return err
}

// awaitReady polls every node's readiness.
func awaitReady(ctx context.Context, o upOptions) error {
	ctx, cancel := context.WithTimeout(ctx, o.wait)
	defer cancel()
	client := &http.Client{Timeout: time.Second}
	for i := range o.nodes {
		url := fmt.Sprintf("http://127.0.0.1:%d/readyz", o.adminPort+i)
		for !probeReady(ctx, client, url) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("node %d is not ready after %v: see %s", i+1, o.wait, filepath.Join(o.dir, fmt.Sprintf("node-%d", i+1), "server.log"))
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return nil
}

func probeReady(ctx context.Context, client *http.Client, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	res, err := client.Do(req)
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// keep runs the process and starts it again when it dies, until ctx ends; then it stops it in order, or at the latest by force.
func (c *child) keep(ctx context.Context) {
	runtime.LockOSThread() // the kernel ties a child's parent-death signal to the thread that started it
	defer runtime.UnlockOSThread()
	pause := 200 * time.Millisecond
	for {
		began := time.Now()
		err := c.run(ctx)
		if ctx.Err() != nil {
			return
		}
		// A server that can't start ends well within this; one that was killed is started again at once.
		if time.Since(began) > 2*time.Second {
			pause = 200 * time.Millisecond
		}
		fmt.Fprintf(c.out, "node %d ended (%v); starting it again in %v (see %s)\n", c.id, err, pause, c.log)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, 5*time.Second)
	}
}

func (c *child) run(ctx context.Context) error {
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = drainTime + 5*time.Second
	// The terminal's Ctrl-C reaches the whole process group: the servers are told once, by us. They die with this process.
	cmd.SysProcAttr = childAttr()
	return cmd.Run()
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
