package multiraft

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chronik-go/chronik/internal/transport"
)

// Service hosts the replicas of one node.
type Service struct {
	cfg      Config
	shards   []*shard
	appliers []*applier
	// backlog is the bytes of entries received from leaders and not yet durable here.
	backlog atomic.Int64
	// unfit: see SetUnfit.
	unfit atomic.Bool

	// taken: see LeadershipsTaken.
	taken atomic.Uint64

	mu      sync.RWMutex
	byGroup map[uint64]*Replica
	byName  map[topicPartition]*Replica
	closed  bool

	sorted sync.Pool // of *[][]event: a frame's messages by shard

	shardWG, applierWG, tickWG sync.WaitGroup
	stop                       chan struct{}
}

type topicPartition struct {
	topic     string
	partition int32
}

// NewService makes a service without running it: Start does, or the caller steps it.
func NewService(cfg Config) (*Service, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Service{
		cfg:     cfg,
		byGroup: make(map[uint64]*Replica),
		byName:  make(map[topicPartition]*Replica),
		stop:    make(chan struct{}),
	}
	for i := range cfg.Shards {
		s.appliers = append(s.appliers, newApplier())
		s.shards = append(s.shards, newShard(s, i))
	}
	return s, nil
}

// Start runs every shard and applier on a goroutine and the tick on another. Close waits for them.
func (s *Service) Start() {
	for _, sh := range s.shards {
		s.shardWG.Go(func() { sh.inbox.run(sh.Step) })
	}
	for _, a := range s.appliers {
		s.applierWG.Go(func() { a.inbox.run(a.Step) })
	}
	s.tickWG.Go(func() {
		t := time.NewTicker(s.cfg.TickInterval)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				s.Tick()
			case <-s.stop:
				return
			}
		}
	})
}

// LeadershipsTaken counts how often a replica here has become its group's leader and begun to serve, since the start.
func (s *Service) LeadershipsTaken() uint64 { return s.taken.Load() }

// StoodStill returns for how long a shard (of several, the one with most) has not run when it should have, in all since the start: half
// an election timeout or more at a time. The process was paused, or the machine overloaded.
func (s *Service) StoodStill() (d time.Duration) {
	for _, sh := range s.shards {
		d = max(d, time.Duration(sh.stoodStill.Load()))
	}
	return d
}

// Tick makes one raft tick due on every shard. A shard that has not taken the last one yet does not owe two: a paused
// process must not wake up to an election it slept through.
func (s *Service) Tick() {
	for _, sh := range s.shards {
		sh.tick()
	}
}

// Stepper is a worker that its caller steps.
type Stepper interface {
	// Step does what is ready and says whether more is.
	Step() (more bool)
	// Ready says whether a step would find something to do.
	Ready() bool
}

// Shards returns the shard workers, for a caller that steps them itself.
func (s *Service) Shards() []Stepper {
	out := make([]Stepper, len(s.shards))
	for i, sh := range s.shards {
		out[i] = sh
	}
	return out
}

// Appliers returns the appliers, for a caller that steps them itself.
func (s *Service) Appliers() []Stepper {
	out := make([]Stepper, len(s.appliers))
	for i, a := range s.appliers {
		out[i] = a
	}
	return out
}

// RegisterOptions name a replica and what it drives.
type RegisterOptions struct {
	Topic     string
	Partition int32
	Group     uint64
	Replica   uint64 // this side's replica id
	// Log is the id of the replica's log; 0: the group's. It must exist (wal.Log.Create or recovered).
	Log uint64
	// Members are the group's replicas, this one included, as the metadata image has them. Messages from others are dropped.
	Members []Member
	SM      StateMachine
	// Campaign makes the replica stand for election at once: the group's preferred leader does, so that nobody waits for a
	// timeout when the group is new or all of it was restarted. Where a leader lives, the pre-vote fails.
	Campaign bool
	// Unfit: see Replica.SetUnfit.
	Unfit bool
	// KeepTimes has the replica, while it leads, note when it heard from each of the others, for Progress: a look at the clock for each
	// answer of a follower, which a group that nobody asks of can do without.
	KeepTimes bool
}

// Register adds a replica and starts it. A group whose log is damaged comes up fenced: it neither votes nor leads.
func (s *Service) Register(o RegisterOptions) (*Replica, error) {
	if o.Log == 0 {
		o.Log = o.Group
	}
	log := s.cfg.Log.Group(o.Log)
	if log == nil {
		return nil, fmt.Errorf("multiraft: group %d has no log %d", o.Group, o.Log)
	}
	if o.SM == nil || o.Replica == 0 {
		return nil, fmt.Errorf("multiraft: group %d: a state machine and a replica id are required", o.Group)
	}
	h := int(mix(o.Group) % uint64(len(s.shards)))
	r := newReplica(s, s.shards[h], s.appliers[h], log, o)
	key := topicPartition{o.Topic, o.Partition}

	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		return nil, ErrStopped
	case s.byGroup[o.Group] != nil:
		s.mu.Unlock()
		return nil, fmt.Errorf("multiraft: group %d is registered already", o.Group)
	case s.byName[key] != nil:
		s.mu.Unlock()
		return nil, fmt.Errorf("multiraft: %s-%d is registered already, as group %d", o.Topic, o.Partition, s.byName[key].group)
	}
	s.byGroup[o.Group] = r
	s.byName[key] = r
	s.mu.Unlock()
	r.shard.post(event{r: r, kind: evStart})
	return r, nil
}

// Unregister stops the replica of a topic partition. Proposals under way end with ErrUnknownOutcome, queued ones with
// ErrStopped. done, if set, is called once the state machine has been closed; from then on nothing refers to it. A service that
// is closing stops all of them anyway: then the error is ErrStopped, and done is not called.
func (s *Service) Unregister(topic string, partition int32, done func()) error {
	key := topicPartition{topic, partition}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.byName[key]
	switch {
	case r == nil:
		return fmt.Errorf("multiraft: no replica of %s-%d here", topic, partition)
	case s.closed:
		return ErrStopped // its shard may have ended: nobody would close the state machine before done
	}
	delete(s.byName, key)
	delete(s.byGroup, r.group)
	r.shard.post(event{r: r, kind: evStop, fn: done})
	return nil
}

// Lookup finds the replica of a topic partition.
func (s *Service) Lookup(topic string, partition int32) (*Replica, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.byName[topicPartition{topic, partition}]
	return r, r != nil
}

// Group finds a replica by its raft group.
func (s *Service) Group(id uint64) (*Replica, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.byGroup[id]
	return r, r != nil
}

// Log finds a replica by the id of its log.
func (s *Service) Log(id uint64) (*Replica, bool) {
	if r, ok := s.Group(id); ok && r.logID == id {
		return r, true
	}
	for _, r := range s.Replicas() {
		if r.logID == id {
			return r, true
		}
	}
	return nil, false
}

// Replicas returns all replicas by ascending group.
func (s *Service) Replicas() []*Replica {
	s.mu.RLock()
	out := make([]*Replica, 0, len(s.byGroup))
	for _, r := range s.byGroup {
		out = append(out, r)
	}
	s.mu.RUnlock()
	slices.SortFunc(out, func(a, b *Replica) int { return cmp.Compare(a.group, b.group) })
	return out
}

// HandleEnvelopes takes messages from another node and sorts them into shards, one lock per shard. Messages for groups or
// replicas that are not here are dropped: only the metadata image creates replicas, never a message (rule 4).
func (s *Service) HandleEnvelopes(from int32, envs []transport.Envelope) {
	sorted, _ := s.sorted.Get().(*[][]event)
	if sorted == nil {
		sorted = new([][]event)
		*sorted = make([][]event, len(s.shards))
	}
	batches := *sorted
	s.mu.RLock()
	for i := range envs {
		env := &envs[i]
		r := s.byGroup[env.Group]
		if r == nil || env.To != r.id {
			continue
		}
		ev := event{r: r, kind: evMessage, node: from, env: *env}
		if env.Kind == transport.KindRaft {
			if env.Raft.From != env.From || env.Raft.To != env.To {
				continue
			}
			if n := entryBytes(env.Raft.Entries); n > 0 {
				if s.backlog.Load() > s.cfg.MaxAppendBacklog {
					continue
				}
				s.backlog.Add(n)
				ev.backlog = n
			}
		}
		batches[r.shard.index] = append(batches[r.shard.index], ev)
	}
	s.mu.RUnlock()
	for i, b := range batches {
		if len(b) > 0 {
			s.shards[i].post(b...)
			if clear(b); cap(b) > maxSpare {
				b = nil
			}
			batches[i] = b[:0]
		}
	}
	s.sorted.Put(sorted)
}

// HandleDropped tells a leader that messages to a replica were lost on this side.
func (s *Service) HandleDropped(_ int32, group, to uint64, snapshot bool) {
	if r, ok := s.Group(group); ok {
		r.shard.post(event{r: r, kind: evFunc, fn: func() { r.dropped(to, snapshot) }})
	}
}

// HandlePeerDown tells the replicas that a node's process is gone or cut off. Followers of leaders there forget them, and one
// designated follower of each group campaigns: nobody sits out an election timeout for a process that has died. Where the
// leader is alive and only this link broke, the other followers still hear it and refuse the pre-vote (rule 16).
func (s *Service) HandlePeerDown(node int32) {
	for _, sh := range s.shards {
		sh.post(event{kind: evPeerDown, node: node})
	}
}

// Close stops all replicas, closes their state machines and waits for the goroutines. It is idempotent. A service that was
// never started is closed by stepping it.
func (s *Service) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.stop)
	s.mu.Unlock()
	for _, r := range s.Replicas() {
		r.shard.post(event{r: r, kind: evStop})
	}
	// Shards first: what they hand to the appliers, state machines to close among it, is done before those end.
	for _, sh := range s.shards {
		sh.inbox.close()
	}
	s.tickWG.Wait()
	s.shardWG.Wait()
	for _, a := range s.appliers {
		a.inbox.close()
	}
	s.applierWG.Wait()
	return nil
}

// mix spreads consecutive group ids over shards (the finaliser of splitmix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
