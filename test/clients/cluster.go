package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/test/harness"
)

const (
	nodeCount = 3
	downFor   = time.Second     // a killed node is started again after
	killWait  = 2 * time.Minute // a kill waits for the one before
)

// cluster is the nodes under test, and the server by which the clients' programs have leaders killed.
type cluster struct {
	ctx    context.Context // ends when the cluster is broken
	cancel context.CancelCauseFunc
	nodes  *harness.Cluster
	peer   bool // not ours: nothing is killed, no disk is looked at
	adm    *kadm.Client
	url    string
	server *http.Server
	served chan struct{}

	turn    chan struct{} // holds a token while all nodes serve
	restart sync.WaitGroup

	mu      sync.Mutex
	kills   int
	longest time.Duration // from a start until the node was ready
}

// startCluster starts the nodes, or takes a peer's brokers for them: a cluster to compare with, in which nothing is killed.
func startCluster(ctx context.Context, bin, dir, peer string) (*cluster, error) {
	nodes := &harness.Cluster{}
	if peer != "" {
		for _, addr := range strings.Split(peer, ",") {
			nodes.Nodes = append(nodes.Nodes, &harness.Node{Kafka: addr})
		}
	} else {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		var err error
		if nodes, err = harness.New(bin, dir, nodeCount); err != nil {
			return nil, err
		}
		ready, cancel := context.WithTimeout(ctx, 4*time.Minute)
		defer cancel()
		if err := nodes.Start(ready); err != nil {
			nodes.Stop()
			return nil, err
		}
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(nodes.Brokers()...), kgo.MetadataMinAge(20*time.Millisecond))
	if err != nil {
		nodes.Stop()
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		cl.Close()
		nodes.Stop()
		return nil, err
	}
	c := &cluster{nodes: nodes, peer: peer != "", adm: kadm.NewClient(cl), url: "http://" + l.Addr().String(), served: make(chan struct{}), turn: make(chan struct{}, 1)}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.turn <- struct{}{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /kill", c.serveKill)
	c.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(c.served)
		_ = c.server.Serve(l)
	}()
	return c, nil
}

// stop ends everything that startCluster and kills have started.
func (c *cluster) stop() {
	c.cancel(errors.New("stopped"))
	c.server.Close()
	<-c.served
	c.restart.Wait()
	c.adm.Close()
	c.nodes.Stop()
}

// broken says why the cluster cannot be used any more.
func (c *cluster) broken() error {
	if c.ctx.Err() == nil {
		return nil
	}
	return context.Cause(c.ctx)
}

func (c *cluster) serveKill(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), killWait)
	defer cancel()
	find, err := c.victim(r.FormValue("topic"), r.FormValue("partition"), r.FormValue("group"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if c.peer {
		_ = json.NewEncoder(w).Encode(map[string]int{"node": -1})
		return
	}
	id, err := c.kill(ctx, find)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]int{"node": id})
}

// victim returns what finds the node to kill.
func (c *cluster) victim(topic, partition, group string) (func(context.Context) (int32, error), error) {
	if (topic == "") == (group == "") {
		return nil, errors.New("say either topic=T&partition=P or group=G")
	}
	if group != "" {
		return func(ctx context.Context) (int32, error) {
			r := c.adm.FindGroupCoordinators(ctx, group)[group]
			return r.NodeID, r.Err
		}, nil
	}
	p, err := strconv.ParseInt(partition, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("partition=%q is no number", partition)
	}
	return func(ctx context.Context) (int32, error) {
		topics, err := c.adm.ListTopics(ctx, topic)
		if err != nil {
			return 0, err
		}
		d, ok := topics[topic].Partitions[int32(p)]
		if !ok {
			return 0, fmt.Errorf("there is no partition %d of %s: %w", p, topic, topics[topic].Err)
		}
		return d.Leader, d.Err
	}, nil
}

// kill kills the node that find names and has it started again. Of all nodes one at most is down.
func (c *cluster) kill(ctx context.Context, find func(context.Context) (int32, error)) (int, error) {
	select {
	case <-c.turn:
	case <-c.ctx.Done():
		return 0, c.broken()
	case <-ctx.Done():
		return 0, fmt.Errorf("the node killed before does not serve yet: %w", ctx.Err())
	}
	for {
		id, err := find(ctx)
		if n := c.nodes.Node(id); err == nil && n != nil {
			n.Kill()
			c.mu.Lock()
			c.kills++
			c.mu.Unlock()
			c.restart.Go(func() { c.bringBack(n) })
			return n.ID, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			c.turn <- struct{}{}
			return 0, fmt.Errorf("node %d leads (%v): %w", id, err, ctx.Err())
		}
	}
}

func (c *cluster) bringBack(n *harness.Node) {
	select {
	case <-time.After(downFor):
	case <-c.ctx.Done():
		return
	}
	began := time.Now()
	err := n.Start()
	if err == nil {
		ctx, cancel := context.WithTimeout(c.ctx, killWait)
		err = n.AwaitReady(ctx)
		cancel()
	}
	if err != nil {
		c.cancel(fmt.Errorf("node %d did not come back after a kill: %w", n.ID, err))
		return
	}
	c.mu.Lock()
	c.longest = max(c.longest, time.Since(began))
	c.mu.Unlock()
	c.turn <- struct{}{}
}
