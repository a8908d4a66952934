package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// holdings is what the members of a consumer group have, as they know it.
type holdings struct {
	mu sync.Mutex
	m  map[string]holding
}

type holding struct {
	epoch      int32
	partitions int
}

func (h *holdings) set(member string, x holding) {
	h.mu.Lock()
	h.m[member] = x
	h.mu.Unlock()
}

// even says whether n members have one partition each, all in the same epoch.
func (h *holdings) even(n int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	epoch := int32(-1)
	for _, x := range h.m {
		if epoch < 0 {
			epoch = x.epoch
		}
		if x.partitions != 1 || x.epoch != epoch {
			return false
		}
	}
	return len(h.m) == n
}

// consumerMember is a member of a consumer group (KIP-848) that reads nothing: it takes and gives back partitions as it is told.
func (b *bench) consumerMember(ctx context.Context, group, topic string, beat time.Duration, h *holdings) error {
	var c *conn
	defer func() {
		if c != nil {
			c.close()
		}
	}()
	id := rand.Text()
	var has holding
	next := func() *kmsg.ConsumerGroupHeartbeatRequest {
		req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
		req.Version, req.Group, req.MemberID, req.MemberEpoch = 1, group, id, has.epoch
		return req
	}
	req := next()
	req.RebalanceTimeoutMillis, req.SubscribedTopicNames, req.ServerAssignor = 60_000, []string{topic}, kmsg.StringPtr("uniform")
	req.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	for {
		if c == nil {
			_, addr, err := b.coordinator(ctx, group)
			if err == nil {
				c, err = dial(ctx, addr)
			}
			if err != nil {
				c = nil
				return err
			}
		}
		resp, err := c.ask(req)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		r := resp.(*kmsg.ConsumerGroupHeartbeatResponse)
		err = kerr.ErrorForCode(r.ErrorCode)
		if kerr.IsRetriable(err) { // the coordinator has moved, or loads
			c.close()
			c = nil
			time.Sleep(5 * time.Millisecond)
			continue
		}
		if err != nil {
			return fmt.Errorf("group %s: heartbeat of a consumer: %w", group, err)
		}
		has.epoch = r.MemberEpoch
		req = next()
		if r.Assignment == nil {
			h.set(id, has)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(beat):
			}
			continue
		}
		has.partitions = 0
		req.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		for _, t := range r.Assignment.Topics { // what is no longer there is given back, which is said at once
			has.partitions += len(t.Partitions)
			req.Topics = append(req.Topics, kmsg.ConsumerGroupHeartbeatRequestTopic{TopicID: t.TopicID, Partitions: t.Partitions})
		}
		h.set(id, has)
	}
}

// rebalanceConsumers is rebalance for a consumer group of the next generation protocol: there is a partition for everybody, and
// one too many until the newcomer has it.
func (b *bench) rebalanceConsumers(ctx context.Context) error {
	var all distribution
	for i := range b.rounds {
		took, err := b.rebalanceConsumersOnce(ctx, i)
		if err != nil {
			return err
		}
		all.add(took)
	}
	fmt.Printf("rebalance-848 (a consumer group of %d gets one more; heartbeats every %v): %v\n", b.perGroup, memberBeat, &all)
	return nil
}

func (b *bench) rebalanceConsumersOnce(ctx context.Context, round int) (time.Duration, error) {
	topic, err := b.topic(ctx, b.perGroup+1)
	if err != nil {
		return 0, err
	}
	c := b.crowd(ctx)
	defer c.stop()
	h := &holdings{m: map[string]holding{}}
	group := fmt.Sprintf("%s-%d", topic, round)
	add := func() {
		c.wg.Go(func() {
			if err := b.consumerMember(c.ctx, group, topic, memberBeat, h); err != nil && c.ctx.Err() == nil {
				c.failed.CompareAndSwap(nil, &err)
			}
		})
	}
	for range b.perGroup {
		add()
	}
	if err := c.until("they have their partitions", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		n, epoch := 0, int32(-1)
		for _, x := range h.m {
			if epoch < 0 {
				epoch = x.epoch
			}
			if n += x.partitions; x.partitions == 0 || x.epoch != epoch {
				return false
			}
		}
		return len(h.m) == b.perGroup && n == b.perGroup+1
	}); err != nil {
		return 0, err
	}
	time.Sleep(time.Second) // as rebalance does
	began := time.Now()
	add()
	err = c.until("the newcomer has its partition", func() bool { return h.even(b.perGroup + 1) })
	return time.Since(began), err
}
