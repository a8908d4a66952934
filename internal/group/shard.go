package group

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// shard coordinates the groups of one partition.
//
// Its methods are called with mu held, except where they say otherwise. What must run without it (answers) is left to reply;
// what comes from anywhere and can't wait for it (completions, the clock) goes through post.
type shard struct {
	c       *Coordinator
	index   int32
	log     *slog.Logger
	replica atomic.Pointer[Log]

	inboxMu sync.Mutex
	inbox   []func()

	mu      sync.Mutex
	closed  bool
	from    Log      // the replica that was loaded, or is being
	term    uint64   // loaded or being loaded in; 0: neither
	life    uint64   // counts loads: what was begun in an earlier one must not touch this one's groups
	writing int      // appends under way, of whatever life
	load    *loading // nil once loaded
	groups  map[string]*group
	counted int // what they count for in the node's sum
	timers  timers
	replies []func()

	retention timer
	again     timer // when to go on with a load that failed
	alarm     clock.Timer
	alarmAt   time.Duration
	armed     bool
}

func newShard(c *Coordinator, index int32) *shard {
	return &shard{c: c, index: index, log: c.log.With("topic", Topic, "partition", index), groups: map[string]*group{},
		retention: timer{kind: timerRetention}, again: timer{kind: timerLoad}}
}

// do runs f with mu, and then what that led to. It is called without mu.
func (s *shard) do(f func()) {
	s.mu.Lock()
	f()
	s.leave()
}

// post has f run with mu, now or when its holder is done. It does not block, and may be called with mu.
func (s *shard) post(f func()) {
	s.inboxMu.Lock()
	s.inbox = append(s.inbox, f)
	s.inboxMu.Unlock()
	if s.mu.TryLock() {
		s.leave()
	}
}

func (s *shard) posted() []func() {
	s.inboxMu.Lock()
	defer s.inboxMu.Unlock()
	in := s.inbox
	s.inbox = nil
	return in
}

// leave gives mu back and does what is left to do. Whoever posts either gets the lock, or its holder looks at the inbox after
// giving it back.
func (s *shard) leave() {
	for {
		for in := s.posted(); len(in) > 0; in = s.posted() {
			for _, f := range in {
				f()
			}
		}
		s.arm()
		out := s.replies
		s.replies = nil
		s.mu.Unlock()
		for _, f := range out {
			f()
		}
		s.inboxMu.Lock()
		more := len(s.inbox) > 0
		s.inboxMu.Unlock()
		if !more || !s.mu.TryLock() {
			return
		}
	}
}

// reply has f called once mu is free.
func (s *shard) reply(f func()) { s.replies = append(s.replies, f) }

// arm sets the clock for the next deadline.
func (s *shard) arm() {
	at, ok := s.timers.next()
	switch {
	case !ok:
		if s.armed {
			s.alarm.Stop()
			s.armed = false
		}
		return
	case s.armed && s.alarmAt <= at:
		return // an alarm too early costs one look
	}
	d := max(at-s.c.now(), 0)
	if s.alarm == nil {
		s.alarm = s.c.cfg.Clock.AfterFunc(d, func() { s.post(s.ring) })
	} else {
		s.alarm.Reset(d)
	}
	s.alarmAt, s.armed = at, true
}

// ring carries out what is due.
func (s *shard) ring() {
	s.armed = false
	s.follow()
	now := s.c.now()
	for t := s.timers.due(now); t != nil; t = s.timers.due(now) {
		switch t.kind {
		case timerSession:
			s.sessionDue(t, now)
		case timerPending:
			s.pendingDue(t.group, t.member)
		case timerJoin:
			s.joinDue(t.group)
		case timerSync:
			s.syncDue(t.group)
		case timerConsumerSession, timerConsumerRebalance:
			s.consumerDue(t, now)
		case timerLoad:
			if s.load != nil {
				s.c.begin(s)
			}
		case timerRetention:
			s.expire()
			s.timers.set(&s.retention, now+s.c.cfg.Settings.RetentionInterval)
		}
		if t.group != nil {
			s.recount(t.group)
		}
	}
}

// replicaLog returns the local replica.
func (s *shard) replicaLog() Log { return *s.replica.Load() }

// follow notices that the leadership has come or gone.
func (s *shard) follow() {
	log := s.replicaLog()
	term := log.Leading()
	if s.closed || term == s.term && (term == 0 || log == s.from) {
		return
	}
	s.unload()
	if term != 0 {
		s.term, s.from = term, log
		s.load = &loading{next: -1}
		s.c.begin(s)
	}
}

// ready says why the shard does not serve, nil if it does.
func (s *shard) ready() error {
	s.follow()
	switch {
	case s.term == 0:
		return ErrNotCoordinator
	case s.load != nil:
		return ErrLoading
	}
	return nil
}

// reload begins anew from the log.
func (s *shard) reload() {
	s.unload()
	s.follow()
}

// unload drops everything; whoever waits has to look for the new coordinator.
func (s *shard) unload() {
	if s.term == 0 {
		return
	}
	s.life++
	for _, g := range s.sorted() {
		s.abandon(g)
	}
	s.log.Info("groups unloaded", "term", s.term, "groups", len(s.groups))
	s.term, s.from, s.load, s.groups = 0, nil, nil, map[string]*group{}
	s.weigh(-s.counted)
	s.timers = timers{}
	s.retention, s.again = timer{kind: timerRetention}, timer{kind: timerLoad}
}

// sorted lists the groups by id: nothing may depend on a map's order.
func (s *shard) sorted() []*group {
	out := make([]*group, 0, len(s.groups))
	for _, g := range s.groups {
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *group) int { return cmp.Compare(a.id, b.id) })
	return out
}

// find returns a group that serves.
func (s *shard) find(id string) (*group, error) {
	g := s.groups[id]
	switch {
	case g == nil:
		return nil, ErrGroupNotFound
	case g.deleting:
		return nil, ErrNotAvailable
	}
	return g, nil
}

// findOrMake is find, but makes the group.
func (s *shard) findOrMake(id string) (*group, error) {
	g, err := s.find(id)
	if !errors.Is(err, ErrGroupNotFound) {
		return g, err
	}
	if len(s.groups) >= s.c.cfg.Limits.GroupsPerShard {
		s.log.Warn("no room for another group", "group", id, "groups", len(s.groups))
		return nil, ErrNotAvailable
	}
	if s.c.room() < groupBytes {
		s.log.Warn("no memory for another group", "group", id, "groups", len(s.groups), "bytes", s.c.Memory())
		return nil, ErrNotAvailable
	}
	return s.make(id), nil
}

func (s *shard) make(id string) *group {
	g := &group{id: id}
	g.classic = newClassicGroup(g, s.c.wall())
	s.groups[id] = g
	return g
}

// append writes records as one batch. then is called with mu, in the log's order for what is committed. Where the shard has
// been dropped since, only lost is called, with mu, too: nothing may be changed then, but an answer is due.
func (s *shard) append(records []keyValue, then func(base int64, err error), lost func(err error)) {
	life := s.life
	batch, err := encodeBatch(s.c.wall(), records)
	if err != nil {
		then(-1, err)
		return
	}
	s.writing++
	s.from.Append(s.term, batch, func(base int64, err error) {
		s.post(func() {
			if s.writing--; s.writing == 0 && s.load != nil {
				s.c.begin(s) // it waits for this
			}
			if s.life != life {
				lost(err)
				return
			}
			if errors.Is(err, multiraft.ErrUnknownOutcome) {
				// It may be in the log or not: what the log says now is the truth.
				s.log.Warn("loading groups again: the outcome of a write is unknown", "error", err)
				s.reload()
				lost(err)
				return
			}
			then(base, err)
		})
	})
}

// appendAll writes records as batches of bounded size; then is called after the last one with the first error, or lost if the shard was
// dropped before that: what is answered goes by all of them. each is called for every committed batch. All are called with mu.
func (s *shard) appendAll(records []keyValue, each func(records []keyValue, base int64), then func(err error), lost func(err error)) {
	batches := split(records)
	left, gone := len(batches), false
	var first error
	settle := func(err error) {
		if left--; err != nil && first == nil {
			first = err
		}
		switch {
		case left > 0:
		case gone:
			lost(first)
		default:
			then(first)
		}
	}
	for _, b := range batches {
		s.append(b, func(base int64, err error) {
			if err == nil {
				each(b, base)
			}
			settle(err)
		}, func(err error) {
			gone = true
			settle(err)
		})
	}
	if len(batches) == 0 {
		then(nil)
	}
}

// lostError is the answer for a write whose shard is gone: nil if it is committed all the same.
func lostError(err error) error {
	if err == nil {
		return nil
	}
	return ErrNotCoordinator
}
