package main

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// killer kills the partition's leader at even steps of the text on its way. The kill happens beside the sending, which goes on,
// so that requests are in flight; only the next kill waits until the node serves again: a majority is there throughout.
type killer struct {
	c       *cluster
	topic   string
	marks   []int // lines sent
	under   chan error
	kills   int
	longest time.Duration
	ends    []int64 // the log's end just before each kill
}

func newKiller(c *cluster, topic string, lines, kills int) *killer {
	k := &killer{c: c, topic: topic}
	for i := range kills {
		k.marks = append(k.marks, (2*i+1)*lines/(2*kills))
	}
	return k
}

// sent tells how many lines were sent so far.
func (k *killer) sent(ctx context.Context, lines int) error {
	if len(k.marks) == 0 || lines < k.marks[0] {
		return nil
	}
	if err := k.wait(ctx); err != nil {
		return err
	}
	k.marks = k.marks[1:]
	done := make(chan error, 1)
	k.under = done
	go func() { done <- k.kill(ctx) }()
	return nil
}

// wait waits for the kill under way. Its own waits are bounded.
func (k *killer) wait(context.Context) error {
	if k.under == nil {
		return nil
	}
	err := <-k.under
	k.under = nil
	return err
}

func (k *killer) kill(ctx context.Context) error {
	n, err := k.c.leader(ctx, k.topic)
	if err != nil {
		return err
	}
	end := k.c.end(ctx, k.topic)
	pid := k.c.pid(n.id)
	if pid == 0 {
		return fmt.Errorf("node %d, the leader, does not run", n.id)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("killing node %d: %w", n.id, err)
	}
	began := time.Now()
	if err := k.c.awaitReady(ctx, n, pid); err != nil {
		return err
	}
	k.longest = max(k.longest, time.Since(began))
	k.kills++
	k.ends = append(k.ends, end)
	return nil
}
