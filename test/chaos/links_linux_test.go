package chaos

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/chronik-go/chronik/internal/freeport"
	"github.com/chronik-go/chronik/test/proxy"
)

// clients is everybody who is no node, on the proxies' network.
const clients = "clients"

// links is a network of proxies on loopback: one in front of each node's raft port and one in front of its Kafka port.
type links struct {
	*proxy.Network
}

func newLinks(r *run) *links {
	return &links{proxy.New(proxy.ByProcess(r.processes, clients))}
}

// attach gives a machine its addresses.
func (l *links) attach(m *machine) error {
	ports, err := freeport.Ports(5)
	if err != nil {
		return err
	}
	addr := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	m.kafka, m.raft, m.admin, m.advertisedKafka, m.advertisedRaft = addr(0), addr(1), addr(2), addr(3), addr(4)
	if err := l.Listen(m.name, m.advertisedKafka, m.kafka); err != nil {
		return err
	}
	return l.Listen(m.name, m.advertisedRaft, m.raft)
}

func (l *links) heal() error { l.Heal(); return nil }
func (l *links) close()      { l.Close() }

func (l *links) kinds() []kind {
	two := func(from, to proxy.Rule) func(m *machine, other string) {
		return func(m *machine, other string) { l.Set(m.name, other, from); l.Set(other, m.name, to) }
	}
	stall, swallow, refuse := proxy.Rule{Stall: true}, proxy.Rule{Swallow: true}, proxy.Rule{Refuse: true}
	return []kind{
		// Stalled and reset: a cut that lasts longer than TCP has patience for.
		{name: "node cut off", do: l.around(true, two(stall, stall), true)},
		{name: "node cut off, connections resume", do: l.around(true, two(stall, stall), false)},
		{name: "node unreachable", do: l.around(true, two(refuse, refuse), true)},
		{name: "one link cut", do: l.between(two(stall, stall))},
		{name: "node hears nothing", do: l.around(false, two(proxy.Rule{}, stall), false)},
		{name: "node is not heard", do: l.around(false, two(stall, proxy.Rule{}), false)},
		{name: "half-open connections", do: l.around(false, two(swallow, swallow), false)},
		{name: "slow links", do: l.slow},
		{name: "trickling links", do: l.trickle},
		{name: "flapping link", do: l.flap},
		{name: "connections between nodes reset", do: l.resets(false)},
		{name: "clients' connections reset", do: l.resets(true)},
		{name: "clients hear nothing", do: l.toClients(proxy.Rule{Stall: true})},
		{name: "half-open clients", do: l.toClients(swallow)},
		{name: "trickling clients", do: l.toClients(proxy.Rule{BytesPerSecond: 4000})},
		{name: "slow-loris", do: loris},
	}
}

// fired sums up what happened between a machine and others.
func (l *links) fired(m *machine, others []string) (n int) {
	for _, o := range others {
		c := l.Counts(m.name, o)
		n += c.Refused + c.Reset + c.Stalled + c.Swallowed + c.Delayed + c.Throttled
	}
	return n
}

func (r *run) others(m *machine, andClients bool) []string {
	var out []string
	for _, o := range r.machines {
		if o != m {
			out = append(out, o.name)
		}
	}
	if andClients {
		out = append(out, clients)
	}
	return out
}

// hold sets rules between a machine and others, waits, and lifts them.
func (l *links) hold(ctx context.Context, m *machine, others []string, s shot, set func(*machine, string), reset bool) bool {
	before := l.fired(m, others)
	for _, o := range others {
		set(m, o)
		if reset {
			l.Reset(m.name, o)
		}
	}
	rest(ctx, s.wait)
	for _, o := range others {
		l.Set(m.name, o, proxy.Rule{})
		l.Set(o, m.name, proxy.Rule{})
		if reset {
			l.Reset(m.name, o)
		}
	}
	return l.fired(m, others) > before
}

func (l *links) around(andClients bool, set func(*machine, string), reset bool) func(context.Context, *run, shot) (bool, error) {
	return func(ctx context.Context, r *run, s shot) (bool, error) {
		m := r.machines[s.a]
		return l.hold(ctx, m, r.others(m, andClients), s, set, reset), nil
	}
}

func (l *links) between(set func(*machine, string)) func(context.Context, *run, shot) (bool, error) {
	return func(ctx context.Context, r *run, s shot) (bool, error) {
		return l.hold(ctx, r.machines[s.a], []string{r.machines[s.b].name}, s, set, false), nil
	}
}

func (l *links) slow(ctx context.Context, r *run, s shot) (bool, error) {
	m := r.machines[s.a]
	rule := proxy.Rule{Delay: time.Duration(5+s.bits%200) * time.Millisecond}
	return l.hold(ctx, m, r.others(m, true), s, func(m *machine, o string) { l.Set(m.name, o, rule); l.Set(o, m.name, rule) }, false), nil
}

func (l *links) trickle(ctx context.Context, r *run, s shot) (bool, error) {
	m := r.machines[s.a]
	rule := proxy.Rule{BytesPerSecond: 500 + int(s.bits%5000)}
	return l.hold(ctx, m, r.others(m, false), s, func(m *machine, o string) { l.Set(m.name, o, rule); l.Set(o, m.name, rule) }, false), nil
}

func (l *links) flap(ctx context.Context, r *run, s shot) (bool, error) {
	m := r.machines[s.a]
	took := false
	for i := range 8 {
		up := time.Duration(s.bits>>(i*8)&0xff) * time.Millisecond
		took = l.hold(ctx, m, r.others(m, false), shot{wait: 50 * time.Millisecond}, func(m *machine, o string) {
			l.Set(m.name, o, proxy.Rule{Refuse: true})
			l.Set(o, m.name, proxy.Rule{Refuse: true})
		}, true) || took
		rest(ctx, up)
	}
	return took, nil
}

func (l *links) resets(ofClients bool) func(context.Context, *run, shot) (bool, error) {
	return func(ctx context.Context, r *run, s shot) (bool, error) {
		n := 0
		for until := time.Now().Add(s.wait); time.Now().Before(until) && ctx.Err() == nil; rest(ctx, time.Duration(50+s.bits%200)*time.Millisecond) {
			for _, m := range r.machines {
				if ofClients {
					n += l.Reset(m.name, clients)
					continue
				}
				for _, o := range r.others(m, false) {
					n += l.Reset(m.name, o)
				}
			}
		}
		return n > 0, nil
	}
}

func (l *links) toClients(rule proxy.Rule) func(context.Context, *run, shot) (bool, error) {
	return func(ctx context.Context, r *run, s shot) (bool, error) {
		m := r.machines[s.a]
		return l.hold(ctx, m, []string{clients}, s, func(m *machine, o string) { l.Set(m.name, o, rule) }, false), nil
	}
}

// loris opens connections that send a request a byte at a time, to every port of a node.
func loris(ctx context.Context, r *run, s shot) (bool, error) {
	m := r.machines[s.a]
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	var open sync.WaitGroup
	n := 0
	for i := range 120 {
		c, err := net.DialTimeout("tcp", []string{m.kafka, m.kafka, m.raft, m.admin}[i%4], time.Second)
		if err != nil {
			break // something else is wrong with the node just now
		}
		n++
		open.Go(func() {
			defer c.Close()
			for _, b := range []byte("\x00\x00\x04\x00\x00\x03\x00\x09and so on, as slowly as possible") {
				if _, err := c.Write([]byte{b}); err != nil || ctx.Err() != nil {
					return
				}
				rest(ctx, 100*time.Millisecond)
			}
		})
	}
	open.Wait()
	return n > 0, nil
}
