package oracle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// GroupLoad says how a consumer group consumes.
type GroupLoad struct {
	Name    string
	Brokers []string
	Topics  []string
	Members int
	// Rate bounds the records a second of each member; 0: as many as there are.
	Rate int
	// Identify looks each record up in the ledger; without, its offset is all that counts.
	Identify bool
}

// Group is a consumer group whose members commit what they have consumed, and a watcher that asks for what is committed. It holds
// the cluster to this: what is committed never goes back, and whoever is assigned a partition begins where it had come to.
//
// A commit that got no answer may reach the coordinator late, and would then rightly undo a later one of the same member. So such
// a member leaves, and comes back as another, which the generations keep apart.
type Group struct {
	load   GroupLoad
	ledger *Ledger
	book   *groupBook
	cancel context.CancelFunc
	done   sync.WaitGroup
	again  []chan struct{} // by member: leave, and join again

	mu     sync.Mutex
	last   error
	joined int
	kept   int
}

// groupPoll is how many records a member takes at a time, between two commits.
const groupPoll = 500

// StartGroup starts a group. The caller stops it.
func (l *Ledger) StartGroup(load GroupLoad) (*Group, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(load.Brokers...), kgo.MetadataMinAge(50*time.Millisecond), kgo.DialTimeout(2*time.Second))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	g := &Group{load: load, ledger: l, book: newGroupBook(), cancel: cancel}
	for range load.Members {
		again := make(chan struct{}, 1)
		g.again = append(g.again, again)
		g.done.Go(func() {
			for ctx.Err() == nil {
				if err := g.member(ctx, again); err != nil {
					g.failed(err)
				}
			}
		})
	}
	g.done.Go(func() { defer cl.Close(); g.watch(ctx, kadm.NewClient(cl)) })
	return g, nil
}

// Rejoin lets a member leave and come back as another.
func (g *Group) Rejoin(member int) {
	select {
	case g.again[member] <- struct{}{}:
	default:
	}
}

func (g *Group) failed(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = err
}

// member is one member's life: until ctx ends, it is asked to leave, or a commit got no answer.
func (g *Group) member(ctx context.Context, again <-chan struct{}) error {
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(kmsg.NewPtrOffsetCommitRequest().Key(), 9) // the last with names of topics in place of ids
	next := map[TP]int64{}                                               // of what is assigned: where to begin at least, then the offset that is due
	begun := map[TP]bool{}
	cl, err := kgo.NewClient(kgo.SeedBrokers(g.load.Brokers...), kgo.ConsumerGroup(g.load.Name), kgo.ConsumeTopics(g.load.Topics...), kgo.MaxVersions(versions),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(), kgo.Balancers(kgo.RangeBalancer()),
		kgo.SessionTimeout(6*time.Second), kgo.RebalanceTimeout(10*time.Second), kgo.HeartbeatInterval(300*time.Millisecond),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.FetchMaxWait(500*time.Millisecond), kgo.FetchMaxPartitionBytes(64<<10), kgo.DialTimeout(2*time.Second),
		kgo.ConnIdleTimeout(time.Minute), kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }),
		// Never while records are being handed over or committed (BlockRebalanceOnPoll), so next and begun need no lock.
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, tps map[string][]int32) {
			floors := g.book.floors() // before the client asks where to begin
			for topic, parts := range tps {
				for _, part := range parts {
					tp := TP{topic, part}
					next[tp], begun[tp] = floors[tp], false
				}
			}
		}))
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.joined++
	g.mu.Unlock()
	defer func() {
		leave, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		cl.AllowRebalance()
		_ = cl.LeaveGroupContext(leave) // if this is lost, the session ends by itself
		cl.CloseAllowingRebalance()
	}()
	coordinator := int32(-1)
	for {
		poll, cancel := context.WithTimeout(ctx, time.Second)
		fetches := cl.PollRecords(poll, groupPoll)
		cancel()
		select {
		case <-again:
			return nil
		default:
		}
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return nil
		}
		fetches.EachError(func(topic string, part int32, err error) {
			if !errors.Is(err, context.DeadlineExceeded) {
				g.failed(fmt.Errorf("%s-%d: %w", topic, part, err))
			}
		})
		commit := map[TP]int64{}
		n := 0
		fetches.EachRecord(func(r *kgo.Record) {
			tp := TP{r.Topic, r.Partition}
			n++
			g.took(tp, r, next[tp], begun[tp])
			next[tp], begun[tp] = r.Offset+1, true
			commit[tp] = r.Offset + 1
		})
		if len(commit) > 0 {
			if coordinator, err = g.commit(ctx, cl, coordinator, commit); err != nil {
				return err
			}
		}
		cl.AllowRebalance()
		if g.load.Rate > 0 && n > 0 {
			pace(ctx, time.Duration(n)*time.Second/time.Duration(g.load.Rate))
		}
	}
}

func pace(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (g *Group) took(tp TP, r *kgo.Record, due int64, begun bool) {
	id := ID{}
	if g.load.Identify {
		var err error
		if id, err = g.ledger.identify(tp, r.Value); err != nil {
			g.book.violation(tp, "offset %d: %v", r.Offset, err)
			id = stranger
		}
	}
	g.book.took(tp, r.Offset, id, due, begun)
}

// commit commits on behalf of the client's member, asking once. The error says that there was no answer.
func (g *Group) commit(ctx context.Context, cl *kgo.Client, coordinator int32, offsets map[TP]int64) (int32, error) {
	ctx, cancel := context.WithTimeout(ctx, 6*time.Second)
	defer cancel()
	if coordinator < 0 {
		find := kmsg.NewPtrFindCoordinatorRequest()
		find.CoordinatorKey, find.CoordinatorKeys = g.load.Name, []string{g.load.Name}
		res, err := find.RequestWith(ctx, cl)
		if err != nil {
			g.failed(fmt.Errorf("finding the coordinator: %w", err))
			return -1, nil // the next commit covers this one
		}
		node, code := res.NodeID, res.ErrorCode
		if len(res.Coordinators) == 1 {
			node, code = res.Coordinators[0].NodeID, res.Coordinators[0].ErrorCode
		}
		if code != 0 {
			g.failed(fmt.Errorf("finding the coordinator: %w", kerr.ErrorForCode(code)))
			return -1, nil
		}
		coordinator = node
	}
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group = g.load.Name
	req.MemberID, req.Generation = cl.GroupMetadata()
	topics := map[string]*kmsg.OffsetCommitRequestTopic{}
	for tp, offset := range offsets {
		t := topics[tp.Topic]
		if t == nil {
			fresh := kmsg.NewOffsetCommitRequestTopic()
			fresh.Topic, t = tp.Topic, &fresh
			topics[tp.Topic] = t
		}
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset = tp.Partition, offset
		t.Partitions = append(t.Partitions, p)
	}
	for _, t := range topics {
		req.Topics = append(req.Topics, *t)
	}
	got, err := cl.Broker(int(coordinator)).Request(ctx, req)
	if err != nil {
		return -1, fmt.Errorf("a commit without an answer: %w", err)
	}
	kept := 0
	for _, t := range got.(*kmsg.OffsetCommitResponse).Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 {
				g.failed(fmt.Errorf("commit: %w", kerr.ErrorForCode(p.ErrorCode)))
				coordinator = -1
				continue
			}
			tp := TP{t.Topic, p.Partition}
			g.book.committed(tp, offsets[tp])
			kept++
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.kept += kept
	return coordinator, nil
}

// watch asks again and again for what is committed.
func (g *Group) watch(ctx context.Context, adm *kadm.Client) {
	for ctx.Err() == nil {
		if err := g.look(ctx, adm); err != nil {
			g.failed(err)
		}
		pace(ctx, 100*time.Millisecond)
	}
}

func (g *Group) look(ctx context.Context, adm *kadm.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	before := g.book.floors()
	told, err := adm.FetchOffsets(ctx, g.load.Name)
	if err != nil {
		return fmt.Errorf("fetching committed offsets: %w", err)
	}
	now := map[TP]int64{}
	for _, parts := range told {
		for part, o := range parts {
			if o.Err != nil {
				return fmt.Errorf("fetching the committed offset of %s-%d: %w", o.Topic, part, o.Err)
			}
			now[TP{o.Topic, part}] = o.At
		}
	}
	g.book.told(before, now)
	return nil
}

// GroupTotals is what a group has done.
type GroupTotals struct {
	Consumed int // records, each counted once
	Repeated int // consumed more than once: what a member had taken and not committed
	Commits  int // acknowledged, each partition counted
	Looks    int // at what is committed
	Joined   int // members, those that came back as another too
}

// Totals adds up.
func (g *Group) Totals() GroupTotals {
	t := g.book.totals()
	g.mu.Lock()
	defer g.mu.Unlock()
	t.Commits, t.Joined = g.kept, g.joined
	return t
}

// AwaitEach waits until each of the partitions has given the group another record.
func (g *Group) AwaitEach(ctx context.Context, partitions map[string]int32) error {
	goal := map[TP]int64{}
	before := g.book.counts()
	for topic, n := range partitions {
		for part := range n {
			tp := TP{topic, part}
			goal[tp] = before[tp] + 1
		}
	}
	return g.await(ctx, func() []string {
		now := g.book.counts()
		var still []string
		for tp, n := range goal {
			if now[tp] < n {
				still = append(still, tp.String())
			}
		}
		return still
	})
}

// AwaitConsumed waits until the group has consumed n records, each counted once.
func (g *Group) AwaitConsumed(ctx context.Context, n int) error {
	return g.await(ctx, func() []string {
		if c := g.book.totals().Consumed; c < n {
			return []string{fmt.Sprintf("%d of %d records", c, n)}
		}
		return nil
	})
}

// AwaitAll waits until the group has consumed every record up to the ends, and has committed that.
func (g *Group) AwaitAll(ctx context.Context, ends map[TP]int64) error {
	return g.await(ctx, func() []string { return append(g.book.missing(ends), g.book.uncommitted(ends)...) })
}

func (g *Group) await(ctx context.Context, missing func() []string) error {
	for {
		changed := g.book.waitFor()
		still := missing()
		if len(still) == 0 {
			return nil
		}
		if err := g.book.err(); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			g.mu.Lock()
			defer g.mu.Unlock()
			return fmt.Errorf("group %s lacks %v (last error: %v): %w", g.load.Name, still, g.last, ctx.Err())
		}
	}
}

// Stop ends the group, looks once more at what is committed, and returns what was consumed and what was wrong.
func (g *Group) Stop(ctx context.Context) (map[TP][]ID, Violations, error) {
	g.cancel()
	g.done.Wait()
	cl, err := kgo.NewClient(kgo.SeedBrokers(g.load.Brokers...))
	if err != nil {
		return nil, nil, err
	}
	defer cl.Close()
	for {
		if err = g.look(ctx, kadm.NewClient(cl)); err == nil || ctx.Err() != nil {
			break
		}
		pace(ctx, 100*time.Millisecond)
	}
	g.book.mu.Lock()
	defer g.book.mu.Unlock()
	return maps.Clone(g.book.seen), g.book.bad, err
}
