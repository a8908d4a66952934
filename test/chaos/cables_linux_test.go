package chaos

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// cables is a network of the kernel's: each node in a network namespace of its own, a veth pair to a bridge in ours. Nothing of it is
// reachable from outside of the namespaces. What is cut here is gone without a word, below TCP: no reset, no end of file.
type cables struct {
	r *run
	n int
}

// hub is the address of the clients.
const hub = "10.77.0.254"

func newCables(r *run) (network, error) {
	for _, args := range [][]string{{"link", "add", "hub", "type", "bridge"}, {"addr", "add", hub + "/24", "dev", "hub"}, {"link", "set", "hub", "up"}} {
		if err := command("ip", args...); err != nil {
			return nil, err
		}
	}
	return &cables{r: r}, nil
}

func (c *cables) attach(m *machine) error {
	c.n++
	m.ip = fmt.Sprintf("10.77.0.%d", c.n)
	m.prefix = []string{"ip", "netns", "exec", m.name}
	m.kafka, m.raft, m.admin = m.ip+":9092", m.ip+":5001", m.ip+":9644"
	m.advertisedKafka, m.advertisedRaft = m.kafka, m.raft
	for _, args := range [][]string{
		{"netns", "add", m.name},
		{"link", "add", m.name, "type", "veth", "peer", "name", "eth0", "netns", m.name},
		{"link", "set", m.name, "master", "hub", "up"},
		{"-n", m.name, "addr", "add", m.ip + "/24", "dev", "eth0"},
		{"-n", m.name, "link", "set", "eth0", "up"},
		{"-n", m.name, "link", "set", "lo", "up"},
	} {
		if err := command("ip", args...); err != nil {
			return err
		}
	}
	return nil
}

func (c *cables) close() {
	for _, m := range c.r.machines {
		// The veth pair would go with the namespace, but when the kernel sees fit, and the next cluster has one of the same name.
		_ = command("ip", "link", "del", m.name)
		_ = command("ip", "netns", "del", m.name)
	}
	_ = command("ip", "link", "del", "hub")
}

func (c *cables) kinds() []kind {
	return []kind{
		{name: "cable pulled", do: c.pulled},
		{name: "cable flaps", do: c.flaps},
		{name: "packets of one link lost", do: c.pair},
		{name: "packets to a node lost", do: c.oneWay(true)},
		{name: "packets from a node lost", do: c.oneWay(false)},
		{name: "slow-loris", do: loris},
	}
}

// heal plugs every cable in and forgets every wrong neighbour.
func (c *cables) heal() error {
	var first error
	for _, m := range c.r.machines {
		for _, args := range [][]string{{"link", "set", m.name, "up"}, {"-n", m.name, "neigh", "flush", "dev", "eth0", "nud", "permanent"}} {
			if err := command("ip", args...); err != nil && first == nil {
				first = err
			}
		}
	}
	if err := command("ip", "neigh", "flush", "dev", "hub", "nud", "permanent"); err != nil && first == nil {
		first = err
	}
	return first
}

// nowhere is a link address that nobody has.
const nowhere = "02:00:00:00:00:77"

// lose sends one's packets to another machine nowhere. from nil: those of the clients.
func lose(from, to *machine) error {
	args := []string{"neigh", "replace", to.ip, "lladdr", nowhere, "nud", "permanent", "dev", "hub"}
	if from != nil {
		args = append([]string{"-n", from.name}, append(args[:len(args)-1], "eth0")...)
	}
	return command("ip", args...)
}

func (c *cables) pulled(ctx context.Context, r *run, s shot) (bool, error) {
	m := r.machines[s.a]
	if err := command("ip", "link", "set", m.name, "down"); err != nil {
		return false, err
	}
	rest(ctx, 2*s.wait)
	took := !reaches(nil, m)
	return took, c.heal()
}

func (c *cables) flaps(ctx context.Context, r *run, s shot) (bool, error) {
	m := r.machines[s.a]
	for i := range 6 {
		if err := command("ip", "link", "set", m.name, "down"); err != nil {
			return false, err
		}
		rest(ctx, time.Duration(s.bits>>(i*8)&0xff)*time.Millisecond)
		if err := command("ip", "link", "set", m.name, "up"); err != nil {
			return false, err
		}
		rest(ctx, time.Duration(s.bits>>(i*8)&0x7f)*time.Millisecond)
	}
	return true, nil
}

func (c *cables) pair(ctx context.Context, r *run, s shot) (bool, error) {
	a, b := r.machines[s.a], r.machines[s.b]
	if err := lose(a, b); err != nil {
		return false, err
	}
	if err := lose(b, a); err != nil {
		return false, err
	}
	rest(ctx, 2*s.wait)
	took := !reaches(a, b)
	return took, c.heal()
}

func (c *cables) oneWay(inward bool) func(context.Context, *run, shot) (bool, error) {
	return func(ctx context.Context, r *run, s shot) (bool, error) {
		m := r.machines[s.a]
		var other *machine
		for _, o := range r.machines {
			if o == m {
				continue
			}
			other = o
			from, to := m, o
			if inward {
				from, to = o, m
			}
			if err := lose(from, to); err != nil {
				return false, err
			}
		}
		rest(ctx, 2*s.wait)
		took := !reaches(other, m) // answers don't come through either
		return took, c.heal()
	}
}

// reaches tries to connect from one machine to another's raft port, from the clients if from is nil.
func reaches(from, to *machine) bool {
	dial := func() bool {
		c, err := net.DialTimeout("tcp", to.raft, 500*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	if from == nil {
		return dial()
	}
	done := make(chan bool)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and so does its stay there
		f, err := os.Open("/run/netns/" + from.name)
		if err != nil {
			done <- true
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- true
			return
		}
		done <- dial()
	}()
	return <-done
}
