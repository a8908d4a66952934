package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// coordinator asks for a group's, until there is one, and returns its id and address.
func (b *bench) coordinator(ctx context.Context, group string) (int32, string, error) {
	var last error
	for i := 0; ; i++ {
		if err := ctx.Err(); err != nil {
			return 0, "", errors.Join(err, last)
		}
		c, err := dial(ctx, b.brokers[i%len(b.brokers)])
		if err != nil {
			last = err
			time.Sleep(2 * time.Millisecond) // a node that was killed; the others are asked too
			continue
		}
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.Version, req.CoordinatorKey = 2, group
		resp, err := c.ask(req)
		c.close()
		if err != nil {
			last = err
			continue
		}
		r := resp.(*kmsg.FindCoordinatorResponse)
		if last = kerr.ErrorForCode(r.ErrorCode); last == nil {
			return r.NodeID, net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port))), nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// groupMember is a member of a classic group that reads nothing.
type groupMember struct {
	b         *bench
	group, id string
	gen       int32
	c         *conn
	beat      time.Duration
	settled   func() // has an assignment
}

var errRebalance = errors.New("a rebalance")

// join brings the member into its group's next generation.
func (m *groupMember) join(ctx context.Context) error {
	if m.c == nil {
		_, addr, err := m.b.coordinator(ctx, m.group)
		if err != nil {
			return err
		}
		if m.c, err = dial(ctx, addr); err != nil {
			return err
		}
	}
	req := kmsg.NewPtrJoinGroupRequest()
	req.Version, req.Group, req.MemberID, req.ProtocolType = 3, m.group, m.id, "consumer"
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 45_000, 60_000
	req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: subscription}}
	resp, err := m.c.ask(req)
	if err != nil {
		return err
	}
	j := resp.(*kmsg.JoinGroupResponse)
	if err := kerr.ErrorForCode(j.ErrorCode); err != nil {
		if kerr.IsRetriable(err) { // the coordinator has moved, or loads
			m.c.close()
			m.c = nil
			time.Sleep(5 * time.Millisecond)
			return errRebalance
		}
		return err
	}
	m.id, m.gen = j.MemberID, j.Generation
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Version, sync.Group, sync.MemberID, sync.Generation = 2, m.group, m.id, m.gen
	for _, other := range j.Members { // of the leader alone
		sync.GroupAssignment = append(sync.GroupAssignment, kmsg.SyncGroupRequestGroupAssignment{MemberID: other.MemberID, MemberAssignment: make([]byte, 60)})
	}
	if resp, err = m.c.ask(sync); err != nil {
		return err
	}
	switch err := kerr.ErrorForCode(resp.(*kmsg.SyncGroupResponse).ErrorCode); err {
	case kerr.RebalanceInProgress:
		return errRebalance
	default:
		return err
	}
}

// subscription is what a consumer of one topic says: version 0, the topic's name, no user data.
var subscription = append([]byte{0, 0, 0, 0, 0, 1, 0, 5}, "bench\x00\x00\x00\x00"...)

// run joins and sends heartbeats until ctx ends.
func (m *groupMember) run(ctx context.Context) error {
	defer func() {
		if m.c != nil {
			m.c.close()
		}
	}()
	for ctx.Err() == nil {
		err := m.join(ctx)
		if errors.Is(err, errRebalance) {
			continue
		}
		if err != nil {
			return fmt.Errorf("group %s: %w", m.group, err)
		}
		m.settled()
		for err == nil {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(m.beat):
			}
			req := kmsg.NewPtrHeartbeatRequest()
			req.Version, req.Group, req.MemberID, req.Generation = 2, m.group, m.id, m.gen
			var resp kmsg.Response
			if resp, err = m.c.ask(req); err == nil {
				err = kerr.ErrorForCode(resp.(*kmsg.HeartbeatResponse).ErrorCode)
			}
		}
		if err != kerr.RebalanceInProgress {
			return fmt.Errorf("group %s: heartbeat: %w", m.group, err)
		}
	}
	return nil
}

// crowd runs members and waits for them to settle.
type crowd struct {
	b       *bench
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	settled atomic.Int64
	failed  atomic.Pointer[error]
}

func (b *bench) crowd(ctx context.Context) *crowd {
	c := &crowd{b: b}
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c
}

func (c *crowd) add(group string, beat time.Duration) {
	c.wg.Go(func() {
		m := &groupMember{b: c.b, group: group, beat: beat, settled: func() { c.settled.Add(1) }}
		if err := m.run(c.ctx); err != nil && c.ctx.Err() == nil {
			c.failed.CompareAndSwap(nil, &err)
		}
	})
}

// await waits until members have been given an assignment n times in all.
func (c *crowd) await(n int64) error {
	return c.until(fmt.Sprintf("%d assignments", n), func() bool { return c.settled.Load() >= n })
}

// until waits for what members come to.
func (c *crowd) until(what string, ready func() bool) error {
	for end := time.Now().Add(2 * time.Minute); !ready(); time.Sleep(time.Millisecond) {
		if err := c.failed.Load(); err != nil {
			return *err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within two minutes: %s", what)
		}
	}
	return nil
}

// memberBeat is how often members of a group that is rebalanced send heartbeats.
const memberBeat = 100 * time.Millisecond

func (c *crowd) stop() {
	c.cancel()
	c.wg.Wait()
}

// members measures what members of groups cost that do nothing but send heartbeats, each over a connection of its own.
func (b *bench) members(ctx context.Context) error {
	id, addr, err := b.coordinator(ctx, "warm-up")
	if err != nil {
		return err
	}
	idle, elapsed, before, err := b.usage(func() error { time.Sleep(3 * time.Second); return nil })
	if err != nil {
		return err
	}
	idleCores := idle.Seconds() / elapsed.Seconds()
	c := b.crowd(ctx)
	defer c.stop()
	n := int64(b.groups * b.perGroup)
	began := time.Now()
	for g := range b.groups {
		for range b.perGroup {
			c.add(fmt.Sprintf("bench-%d-%d", began.UnixNano(), g), b.heartbeat)
		}
		if g%100 == 99 { // a thousand connections at a time
			if err := c.await(int64((g - 99) * b.perGroup)); err != nil {
				return err
			}
		}
	}
	if err := c.await(n); err != nil {
		return err
	}
	formed := time.Since(began)
	time.Sleep(5 * time.Second) // those who were joined by others a moment later
	cpu, elapsed, now, err := b.usage(func() error { time.Sleep(b.duration); return nil })
	if err != nil {
		return err
	}
	if err := c.failed.Load(); err != nil {
		return *err
	}
	fmt.Printf("members (%d groups of %d, coordinator %d at %s, heartbeats every %v over %d connections): formed in %v; %.3f cores, %.3f of them idle before; %.1f KB of RSS a member with its connection\n",
		b.groups, b.perGroup, id, addr, b.heartbeat, n, formed.Round(time.Millisecond), cpu.Seconds()/elapsed.Seconds(), idleCores, float64(now.RSS-before.RSS)/1e3/float64(n))
	return nil
}

// rebalance measures how long a group takes from a newcomer's request until everybody has an assignment again.
func (b *bench) rebalance(ctx context.Context) error {
	var all distribution
	for i := range b.rounds {
		c := b.crowd(ctx)
		group := fmt.Sprintf("bench-%d-%d", time.Now().UnixNano(), i)
		for range b.perGroup {
			c.add(group, memberBeat)
		}
		if err := c.await(int64(b.perGroup)); err != nil {
			c.stop()
			return err
		}
		time.Sleep(time.Second) // whoever came late has been let in
		had := c.settled.Load()
		began := time.Now()
		c.add(group, memberBeat)
		err := c.await(had + int64(b.perGroup) + 1)
		all.add(time.Since(began))
		c.stop()
		if err != nil {
			return err
		}
	}
	fmt.Printf("rebalance (a group of %d gets one more; heartbeats every %v): %v\n", b.perGroup, memberBeat, &all)
	return nil
}

// commits measures commits of offsets: each committer has a group and one commit under way.
func (b *bench) commits(ctx context.Context) error {
	topic, err := b.topic(ctx, 1)
	if err != nil {
		return err
	}
	var lat distribution
	var done atomic.Int64
	var failed atomic.Pointer[error]
	cpu, elapsed, _, err := b.usage(func() error {
		end := time.Now().Add(b.duration)
		var wg sync.WaitGroup
		for i := range b.committers {
			wg.Go(func() {
				c := &committer{b: b, group: fmt.Sprintf("bench-%s-%d", topic, i), topic: topic}
				defer c.close()
				for failed.Load() == nil && time.Now().Before(end) {
					began := time.Now()
					if err := c.commit(ctx); err != nil {
						failed.CompareAndSwap(nil, &err)
						return
					}
					lat.add(time.Since(began))
					done.Add(1)
				}
			})
		}
		wg.Wait()
		return nil
	})
	if err != nil {
		return err
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	fmt.Printf("commits (%d groups, one commit of one partition under way each): %.0f commits/s, %v, %.2f server cpu-ms each\n",
		b.committers, float64(done.Load())/elapsed.Seconds(), &lat, cpu.Seconds()*1e3/float64(done.Load()))
	return nil
}

// committer commits offset after offset of a group without members.
type committer struct {
	b            *bench
	group, topic string
	c            *conn
	offset       int64
	node         int32 // the coordinator
}

func (c *committer) close() {
	if c.c != nil {
		c.c.close()
		c.c = nil
	}
}

// commit commits the next offset, asking for the coordinator until one takes it.
func (c *committer) commit(ctx context.Context) error {
	c.offset++
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if c.c == nil {
			node, addr, err := c.b.coordinator(ctx, c.group)
			if err != nil {
				return err
			}
			if c.c, err = dial(ctx, addr); err != nil {
				c.c = nil
				time.Sleep(2 * time.Millisecond) // killed, and the others do not know yet
				continue
			}
			c.node = node
		}
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Version, req.Group, req.Generation = 7, c.group, -1
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Offset = c.offset
		t := kmsg.NewOffsetCommitRequestTopic()
		t.Topic, t.Partitions = c.topic, append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
		resp, err := c.c.ask(req)
		if err != nil {
			c.close()
			continue
		}
		switch err := kerr.ErrorForCode(resp.(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode); {
		case err == nil:
			return nil
		case kerr.IsRetriable(err):
			c.close()
			time.Sleep(5 * time.Millisecond)
		default:
			return err
		}
	}
}

// coordinatorFailover measures for how long a group can't commit after its coordinator was killed.
func (b *bench) coordinatorFailover(ctx context.Context) error {
	topic, err := b.topic(ctx, 1)
	if err != nil {
		return err
	}
	c := &committer{b: b, group: "bench-" + topic, topic: topic}
	defer c.close()
	end := time.Now().Add(2 * time.Second)
	for time.Now().Before(end) { // a steady load first: this is a benchmark
		if err := c.commit(ctx); err != nil {
			return err
		}
	}
	victim := int(c.node)
	if victim < 1 || victim > len(b.processes()) {
		return fmt.Errorf("the coordinator, broker %d, is not one of the processes that can be killed", victim)
	}
	killed := time.Now()
	if b.cluster != nil {
		b.cluster.Node(c.node).Kill()
	} else if err := syscall.Kill(b.pids[victim-1], syscall.SIGKILL); err != nil {
		return err
	}
	if err := c.commit(ctx); err != nil {
		return err
	}
	fmt.Printf("coordinator (kill -9 while a group commits): the next commit is taken after %v, by broker %d in place of %d\n", time.Since(killed).Round(time.Millisecond), c.node, victim)
	if b.cluster == nil {
		return nil
	}
	if err := b.cluster.Node(int32(victim)).Start(); err != nil {
		return err
	}
	return b.cluster.Node(int32(victim)).AwaitReady(ctx)
}
