package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/test/harness"
)

const nodeCount = 3

// cluster is a running `chronik cluster up`, which starts a server again when it dies.
type cluster struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // once exited is closed
	nodes  []node
	client *kgo.Client
	adm    *kadm.Client
	once   sync.Once
}

type node struct {
	id           int
	kafka, ready string // address; URL
	data         string
}

// startCluster runs chronik cluster up on ports that are free now and waits for its line.
func startCluster(ctx context.Context, chronik, dir string) (*cluster, error) {
	kafka, raft, admin, err := freeBlocks()
	if err != nil {
		return nil, err
	}
	c := &cluster{exited: make(chan struct{})}
	for i := range nodeCount {
		c.nodes = append(c.nodes, node{id: i + 1, kafka: fmt.Sprintf("127.0.0.1:%d", kafka+i),
			ready: fmt.Sprintf("http://127.0.0.1:%d/readyz", admin+i), data: filepath.Join(dir, fmt.Sprintf("node-%d", i+1), "data")})
	}
	if c.client, err = kgo.NewClient(kgo.SeedBrokers(c.nodes[0].kafka, c.nodes[1].kafka, c.nodes[2].kafka), kgo.MetadataMinAge(20*time.Millisecond)); err != nil {
		return nil, err
	}
	c.adm = kadm.NewClient(c.client)
	c.cmd = exec.Command(chronik, "cluster", "up", "--nodes", strconv.Itoa(nodeCount), "--dir", dir, "--kafka-port", strconv.Itoa(kafka),
		"--raft-port", strconv.Itoa(raft), "--admin-port", strconv.Itoa(admin))
	ready := &firstLine{want: "chronik cluster ready", seen: make(chan struct{}), to: os.Stderr}
	c.cmd.Stdout, c.cmd.Stderr = ready, ready
	c.cmd.WaitDelay = 5 * time.Second
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.exited)
	}()
	select {
	case <-ready.seen:
		return c, nil
	case <-c.exited:
		c.client.Close()
		return nil, fmt.Errorf("chronik cluster up ended: %w", c.err)
	case <-ctx.Done():
	case <-time.After(40 * time.Second):
	}
	return nil, errors.Join(errors.New("chronik cluster up is not ready within 40 s"), c.stop())
}

// firstLine passes output on and closes seen once it holds want. One goroutine of os/exec writes to it.
type firstLine struct {
	want string
	buf  []byte
	seen chan struct{}
	to   io.Writer
}

func (f *firstLine) Write(p []byte) (int, error) {
	if f.buf = append(f.buf, p...); len(f.want) > 0 && bytes.Contains(f.buf, []byte(f.want)) {
		f.want = ""
		close(f.seen)
	}
	if f.want == "" {
		f.buf = nil
	}
	return f.to.Write(p)
}

// freeBlocks finds three runs of consecutive ports below those that the kernel hands out for outgoing connections.
func freeBlocks() (kafka, raft, admin int, err error) {
	for range 100 {
		base := 12000 + rand.IntN(18000)
		if portsFree(base, 3*nodeCount) {
			return base, base + nodeCount, base + 2*nodeCount, nil
		}
	}
	return 0, 0, 0, errors.New("no free ports")
}

func portsFree(base, n int) bool {
	for p := base; p < base+n; p++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// stop ends the cluster in the orderly way. Stopping twice is fine.
func (c *cluster) stop() (err error) {
	c.once.Do(func() {
		c.client.Close()
		_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		select {
		case <-c.exited:
			if c.err != nil {
				err = fmt.Errorf("chronik cluster up: %w", c.err)
			}
		case <-time.After(30 * time.Second):
			_ = c.cmd.Process.Kill()
			<-c.exited
			err = errors.New("chronik cluster up did not stop within 30 s")
		}
	})
	return err
}

// pid finds the process of a node among the children of chronik cluster up; 0 if it does not run.
func (c *cluster) pid(id int) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// pid (name) state ppid …
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(f) < 2 || f[0] == "Z" || f[1] != strconv.Itoa(c.cmd.Process.Pid) {
			continue
		}
		args, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err == nil && bytes.Contains(args, []byte(fmt.Sprintf("\x00--node-id\x00%d\x00", id))) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	return 0
}

// peakRSS is the largest peak of the processes that run now; each counts from its own start.
func (c *cluster) peakRSS() int64 {
	var peak int64
	for _, n := range c.nodes {
		if u, err := harness.UsageOf(c.pid(n.id)); err == nil {
			peak = max(peak, u.PeakRSS)
		}
	}
	return peak
}

func (c *cluster) createTopic(ctx context.Context, topic string) error {
	if _, err := c.adm.CreateTopic(ctx, 1, nodeCount, nil, topic); err != nil {
		return fmt.Errorf("creating topic %s: %w", topic, err)
	}
	return nil
}

func (c *cluster) deleteTopic(ctx context.Context, topic string) error {
	r, err := c.adm.DeleteTopic(ctx, topic)
	if err == nil {
		err = r.Err
	}
	if err != nil {
		return fmt.Errorf("deleting topic %s: %w", topic, err)
	}
	return nil
}

// leader waits, within a bound, until partition 0 has a leader whose process runs.
func (c *cluster) leader(ctx context.Context, topic string) (node, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		m, err := c.adm.Metadata(ctx, topic)
		if err == nil {
			if id := int(m.Topics[topic].Partitions[0].Leader); id >= 1 && id <= nodeCount && c.pid(id) != 0 {
				return c.nodes[id-1], nil
			}
		}
		if err := pause(ctx); err != nil {
			return node{}, fmt.Errorf("%s has no leader: %w", topic, err)
		}
	}
}

// end is the partition's log end as clients see it, -1 if nobody says within a second.
func (c *cluster) end(ctx context.Context, topic string) int64 {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	l, err := c.adm.ListEndOffsets(ctx, topic)
	if o, ok := l.Lookup(topic, 0); err == nil && ok && o.Err == nil {
		return o.Offset
	}
	return -1
}

// awaitReady waits until another process than old serves for the node.
func (c *cluster) awaitReady(ctx context.Context, n node, old int) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		if pid := c.pid(n.id); pid != 0 && pid != old && isReady(ctx, client, n.ready) {
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("node %d does not serve again: %w", n.id, err)
		}
	}
}

func isReady(ctx context.Context, client *http.Client, url string) bool {
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

// pause is the time between two looks.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(20 * time.Millisecond):
		return nil
	}
}
