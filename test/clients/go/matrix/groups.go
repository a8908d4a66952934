package matrix

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"
)

// reading is a member whose records are taken by a goroutine of its own.
type reading struct {
	Member
	cancel context.CancelFunc
	done   chan error
}

// sink is what members have read: by value, how often.
type sink struct {
	mu   sync.Mutex
	seen map[string]int
}

func (k *sink) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.seen)
}

func (s *suite) join(ctx context.Context, group, topic string, k *sink) (*reading, error) {
	m, err := s.d.Join(group, topic)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &reading{Member: m, cancel: cancel, done: make(chan error, 1)}
	go func() {
		for {
			rec, err := m.Next(ctx)
			if err != nil {
				if ctx.Err() != nil {
					err = nil
				}
				r.done <- err
				return
			}
			k.mu.Lock()
			k.seen[string(rec.Value)]++
			k.mu.Unlock()
		}
	}()
	return r, nil
}

// leave ends the reading and leaves the group.
func (r *reading) leave() error {
	r.cancel()
	return errors.Join(<-r.done, r.Leave())
}

// mainRecords are records for all partitions of the main topic.
func mainRecords(from, n int) []Record {
	b := base()
	var out []Record
	for i := from; i < from+n; i++ {
		out = append(out, Record{Partition: int32(i % mainPartitions), Key: []byte(strconv.Itoa(i)), Value: []byte("main " + strconv.Itoa(i)),
			Time: b.Add(time.Duration(i) * time.Millisecond)})
	}
	return out
}

const (
	mainStep = 600 // records between two rebalances
	mainAll  = 3 * mainStep
)

func (s *suite) group(ctx context.Context) (_ string, err error) {
	topic, group := s.topic("main"), s.topic("group")
	all := make([]int32, mainPartitions)
	for i := range all {
		all[i] = int32(i)
	}
	k := &sink{seen: map[string]int{}}
	step := func(i int) error {
		if err := s.send("none", topic, mainRecords(i*mainStep, mainStep)); err != nil {
			return err
		}
		return await(ctx, "the last of the records", func() (bool, error) {
			n := k.count()
			return n == (i+1)*mainStep, fmt.Errorf("%d of %d records have arrived", n, (i+1)*mainStep)
		})
	}
	owned := func(members ...*reading) error {
		return await(ctx, "the rebalance", func() (bool, error) {
			var union []int32
			idle := false
			for _, m := range members {
				o := m.Owned()
				idle = idle || len(o) == 0
				union = append(union, o...)
			}
			slices.Sort(union)
			return !idle && slices.Equal(union, all), fmt.Errorf("%d members own %v", len(members), union)
		})
	}
	a, err := s.join(ctx, group, topic, k)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, a.leave()) }()
	if err := owned(a); err != nil {
		return "", err
	}
	if err := step(0); err != nil {
		return "", err
	}
	b, err := s.join(ctx, group, topic, k)
	if err != nil {
		return "", err
	}
	err = owned(a, b)
	if err == nil {
		err = step(1)
	}
	if err := errors.Join(err, b.leave()); err != nil {
		return "", err
	}
	if err := owned(a); err != nil {
		return "", err
	}
	return "", step(2)
}

func (s *suite) commit(ctx context.Context) (string, error) {
	topic, group := s.topic("main"), s.topic("commit")
	ends, err := s.offsets(ctx, topic, Latest)
	if err != nil {
		return "", err
	}
	// Whoever is made to join again by a coordinator that moved may go back to what is committed, but no further, and skips nothing.
	read := func(m Member, at map[int32]int64, until func() bool) error {
		start := maps.Clone(at)
		for !until() {
			r, err := m.Next(ctx)
			if err != nil {
				return err
			}
			p := r.Partition
			if r.Offset < start[p] || r.Offset > at[p] {
				return fmt.Errorf("partition %d: offset %d was read, not %d (or again something from %d on)", p, r.Offset, at[p], start[p])
			}
			at[p] = max(at[p], r.Offset+1)
		}
		return nil
	}
	sum := func(m map[int32]int64) (n int64) {
		for _, v := range m {
			n += v
		}
		return n
	}
	a, err := s.d.Join(group, topic)
	if err != nil {
		return "", err
	}
	at := map[int32]int64{}
	for p := range ends {
		at[p] = 0
	}
	err = read(a, at, func() bool { return sum(at) == mainAll/2 })
	if err == nil {
		err = await(ctx, "the commit", func() (bool, error) {
			if err := a.Commit(ctx, at); err != nil {
				return false, err
			}
			got, err := s.d.Committed(ctx, group, topic)
			for p, want := range at {
				if err == nil && got[p] != want && (want > 0 || got[p] > 0) {
					err = fmt.Errorf("committed: %v, read back: %v", at, got)
				}
			}
			return err == nil, err
		})
	}
	if err = errors.Join(err, a.Leave()); err != nil {
		return "", fmt.Errorf("first member: %w", err)
	}
	b, err := s.d.Join(group, topic)
	if err != nil {
		return "", err
	}
	err = read(b, at, func() bool { return maps.Equal(at, ends) })
	if err = errors.Join(err, b.Leave()); err != nil {
		return "", fmt.Errorf("second member: %w", err)
	}
	return "", nil
}

// admin looks at everything that it has changed. What the client cannot do goes into the detail.
func (s *suite) admin(ctx context.Context) (string, error) {
	topic, group := s.topic("admin"), s.topic("commit")
	var cannot []byte
	skip := func(err error) error {
		var un Unsupported
		if errors.As(err, &un) {
			cannot = append(cannot, "; "+un.Error()...)
			return nil
		}
		return err
	}
	is := func(want string, get func() (string, error)) func() (bool, error) {
		return func() (bool, error) {
			got, err := get()
			if err == nil && got != want {
				err = fmt.Errorf("%q, not %q", got, want)
			}
			return err == nil, err
		}
	}
	config := func() (string, error) { return s.d.TopicConfig(ctx, topic, "retention.ms") }
	none := func() error { return nil }
	listed := func() (bool, error) {
		groups, err := s.d.Groups(ctx)
		return err == nil && slices.Contains(groups, group), err
	}
	err := inOrder(
		func() error { return skip(change(ctx, "the cluster's nodes", none, s.twoNodes(ctx))) },
		func() error {
			create := func() error {
				return s.d.CreateTopic(ctx, topic, 1, 3, map[string]string{"retention.ms": "3600000"})
			}
			return skip(change(ctx, "a topic with configurations", create, is("3600000", config)))
		},
		func() error {
			set := func() error { return s.d.SetTopicConfig(ctx, topic, "retention.ms", "7200000") }
			return skip(change(ctx, "the new retention.ms", set, is("7200000", config)))
		},
		func() error { return skip(change(ctx, "a broker's configuration", none, s.brokerConfig(ctx))) },
		func() error {
			add := func() error { return s.d.AddPartitions(ctx, topic, 4) }
			return skip(change(ctx, "four partitions", add, is("4", func() (string, error) {
				n, _, err := s.d.DescribeTopic(ctx, topic)
				return strconv.Itoa(n), err
			})))
		},
		func() error { return skip(change(ctx, "the group in the list", none, listed)) },
		func() error {
			return skip(change(ctx, "the group's description", none, is("Empty 0", func() (string, error) {
				state, members, err := s.d.DescribeGroup(ctx, group)
				return fmt.Sprintf("%s %d", state, members), err
			})))
		},
		func() error {
			remove := func() error { return s.d.DeleteGroup(ctx, group) }
			return skip(change(ctx, "the group gone", remove, func() (bool, error) {
				there, err := listed()
				return err == nil && !there, err
			}))
		},
		func() error {
			remove := func() error { return s.d.DeleteTopic(ctx, topic) }
			return skip(change(ctx, "the topic gone", remove, func() (bool, error) {
				n, _, err := s.d.DescribeTopic(ctx, topic)
				return err == nil && n == 0 || s.d.UnknownTopic(err), err
			}))
		},
	)
	if len(cannot) > 2 {
		cannot = cannot[2:]
	}
	return string(cannot), err
}

func (s *suite) twoNodes(ctx context.Context) func() (bool, error) {
	return func() (bool, error) {
		n, err := s.d.Nodes(ctx)
		if err == nil && n < 2 { // of three, one may be down just now
			err = fmt.Errorf("%d nodes", n)
		}
		return err == nil, err
	}
}

// brokerConfig asks any of the nodes that run for its own configuration.
func (s *suite) brokerConfig(ctx context.Context) func() (bool, error) {
	return func() (bool, error) {
		var errs []error
		for id := range int32(3) {
			v, err := s.d.BrokerConfig(ctx, id+1, "node.id")
			if err == nil && v == strconv.Itoa(int(id+1)) {
				return true, nil
			}
			errs = append(errs, fmt.Errorf("node %d: %q %w", id+1, v, err))
		}
		return false, errors.Join(errs...)
	}
}
