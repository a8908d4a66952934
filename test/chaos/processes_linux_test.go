package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// onProcesses are the faults of the servers' processes.
var onProcesses = []kind{
	{name: "kill -9", do: func(ctx context.Context, r *run, s shot) (bool, error) { return r.kill(ctx, s, r.machines[s.a]) }},
	{name: "kill -9 of two", do: func(ctx context.Context, r *run, s shot) (bool, error) {
		return r.kill(ctx, s, r.machines[s.a], r.machines[s.b])
	}},
	{name: "kill -9 of all", do: func(ctx context.Context, r *run, s shot) (bool, error) { return r.kill(ctx, s, r.machines...) }},
	{name: "kill -9 of a leader", do: killLeader},
	{name: "kill -9 while starting", do: killStarting},
	{name: "SIGTERM and restart", do: terminate},
	{name: "SIGSTOP", do: func(ctx context.Context, r *run, s shot) (bool, error) { return r.pause(ctx, s, r.machines[s.a]) }},
	{name: "SIGSTOP of a leader", do: func(ctx context.Context, r *run, s shot) (bool, error) {
		return r.pause(ctx, s, r.leader(ctx, s))
	}},
	{name: "wiped disk", alone: true, do: wipe},
}

func (r *run) kill(ctx context.Context, s shot, machines ...*machine) (bool, error) {
	for _, m := range machines {
		m.node.Kill()
	}
	rest(ctx, s.wait)
	for _, m := range machines {
		if err := r.launch(m); err != nil {
			return true, err
		}
	}
	return true, nil
}

func killLeader(ctx context.Context, r *run, s shot) (bool, error) {
	return r.kill(ctx, s, r.leader(ctx, s))
}

// killStarting kills a node while it comes up, a few times.
func killStarting(ctx context.Context, r *run, s shot) (bool, error) {
	m := r.machines[s.a]
	for i := range 3 {
		m.node.Kill()
		if err := r.launch(m); err != nil {
			return true, err
		}
		rest(ctx, time.Duration(s.bits>>(16*i)%600)*time.Millisecond)
	}
	return true, nil
}

// stops bounds an orderly stop: what the server promises, and a machine that is busy.
const stops = 3 * time.Minute

func terminate(ctx context.Context, r *run, s shot) (bool, error) {
	m := r.machines[s.a]
	stop, cancel := context.WithTimeout(ctx, stops)
	defer cancel()
	if err := m.node.Terminate(stop); err != nil {
		return true, fmt.Errorf("node %d did not stop in order: %w", m.node.ID, err)
	}
	rest(ctx, s.wait/2)
	return true, r.launch(m)
}

func (r *run) pause(ctx context.Context, s shot, m *machine) (bool, error) {
	if err := m.node.Signal(syscall.SIGSTOP); err != nil {
		return false, err
	}
	rest(ctx, 2*s.wait)
	stopped := strings.Contains(statusOf(m.node.PID()), "T (stopped)")
	return stopped, m.node.Signal(syscall.SIGCONT)
}

func statusOf(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // empty on a system without
	return string(b)
}

// wipe empties a disk. The node has forgotten its votes: its old id must be refused. Under a new one it comes back, takes the old
// one's replicas again, and the old one is removed from the cluster, its vote on the metadata given to another.
func wipe(ctx context.Context, r *run, s shot) (bool, error) {
	m := r.machines[s.a]
	m.node.Kill()
	if err := empty(m.node.Dir); err != nil {
		return false, err
	}
	r.renew(m, m.node.ID, r.peers()) // with peers as they are now: what it is refused for shall be its disk
	if err := r.launchExpecting(m); err != nil {
		return true, err
	}
	refused, cancel := context.WithTimeout(ctx, recovers)
	err := m.node.Ended(refused)
	cancel()
	if err == nil || m.node.ExitCode() != 1 || !strings.Contains(m.node.Tail(), "start the node with a new, unused --node-id") {
		m.node.Kill()
		return true, fmt.Errorf("a node with an emptied disk came back as if nothing had been: %w\n%s", err, m.node.Tail())
	}
	old := m.node.ID
	if err := empty(m.node.Dir); err != nil {
		return true, err
	}
	r.lastID++
	r.renew(m, r.lastID, r.peers(m))
	if err := r.launch(m); err != nil {
		return true, err
	}
	if err := r.awaitReady(ctx, m); err != nil {
		return true, err
	}
	return true, r.replace(ctx, int32(old), int32(m.node.ID))
}

// empty removes what is in a directory, not the directory, which may be a mounted disk.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != "lost+found" && err == nil {
			err = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
	return err
}

func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
