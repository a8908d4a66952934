package chaos

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// kind is one thing that goes wrong. begin starts it and returns what ends it; false: it can't be done on this machine.
type kind struct {
	name  string
	begin func(r *run) (heal func(), ok bool)
}

var all = []kind{
	{"kill -9 of a node", killOne}, {"kill -9 of all", killAll}, {"orderly restart", terminate}, {"pause", pause},
	{"isolated node", isolate}, {"one-way cut to a node", cutInward}, {"one-way cut from a node", cutOutward}, {"half-open links", halfOpen},
	{"slow links", slow}, {"flapping link", flap}, {"connections between nodes reset", resetRaft},
	{"clients' connections reset", resetKafka}, {"half-open clients", freezeClients}, {"slow-loris", slowLoris}, {"failed fsync", failedFsync},
}

func killOne(r *run) (func(), bool) {
	n := r.anyNode()
	n.Kill()
	return func() { r.restart(n) }, true
}

func killAll(r *run) (func(), bool) {
	for _, n := range r.cluster.Nodes {
		n.Kill()
	}
	return func() { r.restart(r.cluster.Nodes...) }, true
}

func terminate(r *run) (func(), bool) {
	n := r.anyNode()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := n.Terminate(ctx); err != nil {
		r.t.Errorf("node %d did not stop in order: %v", n.ID, err)
		n.Kill()
	}
	return func() { r.restart(n) }, true
}

func pause(r *run) (func(), bool) {
	n := r.anyNode()
	if err := n.Signal(syscall.SIGSTOP); err != nil {
		r.t.Error(err)
	}
	return func() {
		if err := n.Signal(syscall.SIGCONT); err != nil {
			r.t.Error(err)
		}
	}, true
}

func isolate(r *run) (func(), bool) {
	n := r.anyNode()
	r.links(n, fault{refuse: true}, fault{refuse: true})
	return func() { r.links(n, fault{}, fault{}) }, true
}

// cutInward lets a node speak and hear nothing. A connection is dialled by its sender, but answers come back on it, too.
func cutInward(r *run) (func(), bool) {
	n := r.anyNode()
	r.links(n, fault{toServer: true}, fault{toClient: true})
	return func() { r.links(n, fault{}, fault{}) }, true
}

// cutOutward lets a node hear and say nothing.
func cutOutward(r *run) (func(), bool) {
	n := r.anyNode()
	r.links(n, fault{toClient: true}, fault{toServer: true})
	return func() { r.links(n, fault{}, fault{}) }, true
}

func halfOpen(r *run) (func(), bool) {
	n := r.anyNode()
	dead := fault{toServer: true, toClient: true}
	r.links(n, dead, dead)
	return func() { r.links(n, fault{}, fault{}) }, true
}

func slow(r *run) (func(), bool) {
	n := r.anyNode()
	f := fault{delay: time.Duration(5+r.rng.IntN(100)) * time.Millisecond}
	r.links(n, f, f)
	return func() { r.links(n, fault{}, fault{}) }, true
}

func flap(r *run) (func(), bool) {
	n := r.anyNode()
	for range 6 {
		r.links(n, fault{refuse: true}, fault{refuse: true})
		r.rest(20*time.Millisecond, 150*time.Millisecond)
		r.links(n, fault{}, fault{})
		r.rest(20*time.Millisecond, 150*time.Millisecond)
	}
	return func() {}, true
}

func resetRaft(r *run) (func(), bool) {
	for range 3 {
		for _, p := range r.raft {
			p.reset()
		}
		r.rest(50*time.Millisecond, 300*time.Millisecond)
	}
	return func() {}, true
}

func resetKafka(r *run) (func(), bool) {
	for range 3 {
		for _, p := range r.kafka {
			p.reset()
		}
		r.rest(50*time.Millisecond, 300*time.Millisecond)
	}
	return func() {}, true
}

func freezeClients(r *run) (func(), bool) {
	p := r.kafka[r.anyNode().ID]
	p.set(0, fault{toClient: true})
	return func() { p.set(0, fault{}) }, true
}

// slowLoris holds connections that send a request a byte at a time.
func slowLoris(r *run) (func(), bool) {
	addr := r.anyNode().Kafka
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 100 {
		c, err := net.DialTimeout("tcp", addr, 2*time.Second)
		if err != nil {
			continue
		}
		wg.Go(func() {
			defer c.Close()
			for _, b := range []byte{0, 0, 4, 0, 0, 3, 0, 9} {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				select {
				case <-stop:
					return
				case <-time.After(200 * time.Millisecond):
				}
			}
			<-stop
		})
	}
	return func() { close(stop); wg.Wait() }, true
}

// failedFsync restarts a node under strace, which lets one of its syncs fail: the node must say so and end with a code that is not 0, and
// come back sound.
func failedFsync(r *run) (func(), bool) {
	if runtime.GOOS != "linux" || exec.Command("strace", "-e", "trace=none", "true").Run() != nil {
		r.t.Log("no failed fsync: strace is not installed, or may not trace here")
		return nil, false
	}
	n := r.anyNode()
	n.Kill()
	n.Wrap = []string{"strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", fmt.Sprintf("inject=fdatasync:error=EIO:when=%d+", 1+r.rng.IntN(60))}
	r.launch(n)
	n.Wrap = nil
	return func() {
		ended := make(chan struct{})
		go func() { n.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(recovers):
			r.t.Errorf("node %d goes on though its fsyncs fail:\n%s", n.ID, n.Tail())
			n.Kill()
			<-ended
		}
		if code := n.ExitCode(); code == 0 {
			r.t.Errorf("node %d ended with code 0 after a failed fsync", n.ID)
		}
		if tail := n.Tail(); !strings.Contains(tail, "input/output error") {
			r.t.Errorf("node %d does not say why it ended:\n%s", n.ID, tail)
		}
		r.restart(n)
	}, true
}
