package group

import (
	"errors"
	"slices"
	"time"

	"github.com/chronik-go/chronik/internal/group/consumer"
)

// consumerGroup is the consumer protocol's side of a group (KIP-848): the state machine, who waits to change it, and how long its
// members may be silent.
//
// One change of a group is written at a time. What comes meanwhile waits and then makes the next one together, so that a group of
// hundreds costs a few writes when all its members come. A change that is not written is undone before anybody hears of it.
type consumerGroup struct {
	state    *consumer.Group
	sessions map[string]*session
	queue    []consumerOp
	writing  bool
	// replaces: the group is still a classic one, perhaps with members, and becomes a consumer group with the first change.
	replaces bool
	tried    int32 // the group's epoch in which it was last to become classic
	// downgrading: that it becomes classic is being written.
	downgrading bool
}

// consumerOp is one thing to be done to a consumer group.
type consumerOp struct {
	// run is called with mu.
	run func(ch *consumer.Change) error
	// then, which may be nil, is called with mu once what run did is committed, if it did not fail.
	then func()
	// done is called without mu.
	done func(error)
}

// session is how long a member may be silent, and may take to give partitions back.
type session struct {
	id        string
	deadline  time.Duration
	timer     timer
	rebalance timer
	wait      wait  // what the member has to do until rebalance is due
	epoch     int32 // in which it has to give back
}

// wait is what a member has to do within its rebalance timeout.
type wait uint8

const (
	waitRevoke wait = iota // give partitions back
	waitJoin               // join again, by the classic protocol
	waitSync               // ask for its assignment, by the classic protocol
)

func newConsumerGroup(id string) *consumerGroup {
	return &consumerGroup{state: consumer.New(id), sessions: map[string]*session{}}
}

// busy says that somebody is or comes in.
func (c *consumerGroup) busy() bool { return c.state.Size() > 0 || c.writing || len(c.queue) > 0 }

// env is what a consumer group's decisions depend on.
func (c *Coordinator) env() *consumer.Env {
	set := &c.cfg.Settings
	return &consumer.Env{Topics: c.topics(), Now: c.wall(), MaxSize: set.ConsumerMaxSize, MaxBytes: c.cfg.Limits.GroupBytes, Room: c.room(),
		Assignors: set.ConsumerAssignors, NewID: c.cfg.NewID}
}

// topics is what the cluster has to consume. Its version changes with what of the metadata matters here alone.
func (c *Coordinator) topics() *consumer.Topics {
	if c.cfg.Image == nil {
		return c.known
	}
	img := c.cfg.Image()
	c.topicsMu.Lock()
	defer c.topicsMu.Unlock()
	if img == c.image {
		return c.known
	}
	list := make([]consumer.Topic, 0, len(img.Topics))
	for name, t := range img.Topics {
		list = append(list, consumer.Topic{Name: name, ID: t.ID, Partitions: int32(len(t.Partitions))})
	}
	next := consumer.NewTopics(c.known.Version+1, list)
	if c.image = img; !c.known.Same(list) {
		c.known = next
	}
	return c.known
}

// enqueue has something done to a consumer group, at once if nothing is being written.
func (s *shard) enqueue(g *group, op consumerOp) {
	g.consumer.queue = append(g.consumer.queue, op)
	s.work(g)
}

// work carries out what waits, as one change.
func (s *shard) work(g *group) {
	for c := g.consumer; c != nil && !c.writing && len(c.queue) > 0; c = g.consumer {
		ch := &consumer.Change{}
		var ops []consumerOp
		var errs []error
		for n := 0; n < len(c.queue) && ch.Size() < batchBytes; n++ {
			err := ErrNotAvailable
			if !g.deleting {
				err = c.queue[n].run(ch)
			}
			ops, errs = append(ops, c.queue[n]), append(errs, err)
		}
		c.queue = slices.Delete(c.queue, 0, len(ops))
		if len(ch.Records) == 0 {
			s.finish(g, ops, errs, nil)
			continue
		}
		s.writeChange(g, ch, ops, errs)
	}
	switch c := g.consumer; {
	case c != nil && !c.busy() && !c.state.Written():
		g.consumer = nil // whoever came was refused
	case c != nil && s.mayDowngrade(g):
		s.downgrade(g)
	}
	s.forget(g)
}

// finish answers those whose change was written, or not.
func (s *shard) finish(g *group, ops []consumerOp, errs []error, err error) {
	for i, op := range ops {
		e := errs[i]
		if e == nil {
			e = err
		}
		if e == nil && op.then != nil {
			op.then()
		}
		s.reply(func() { op.done(e) })
	}
}

func (s *shard) writeChange(g *group, ch *consumer.Change, ops []consumerOp, errs []error) {
	c := g.consumer
	if ch.Size() > batchBytes {
		ch.EpochFirst()
	}
	records := make([]keyValue, 0, len(ch.Records)+1)
	if c.replaces && g.classic.generation > 0 {
		records = append(records, keyValue{key: groupKey(g.id)})
	}
	for _, r := range ch.Records {
		records = append(records, keyValue{r.Key, r.Value})
	}
	c.writing = true
	g.pending++
	lost := func(err error) {
		s.reply(func() {
			for i, op := range ops {
				e := errs[i]
				if e == nil {
					e = lostError(err)
				}
				op.done(e)
			}
		})
	}
	then := func(err error) {
		c.writing, c.downgrading = false, false
		g.pending--
		switch {
		case err == nil && c.replaces:
			c.replaces = false
			g.classic = newClassicGroup(g, s.c.wall())
		case err != nil && len(g.classic.members) > 0:
			// What waits is the classic group's to answer, or tries again to make it a consumer group.
			waiting := c.queue
			c.queue = nil
			defer func() {
				s.classicAgain(g)
				for _, op := range waiting {
					s.reply(func() { op.done(errMoved) })
				}
			}()
			fallthrough
		case err != nil:
			s.log.Warn("a consumer group's change could not be written", "group", g.id, "error", err)
			err = appendError(err, ErrGroupTooLarge)
			ch.Undo()
		}
		s.finish(g, ops, errs, err)
		s.work(g)
		s.calm(g)
	}
	if batches := split(records); len(batches) == 1 {
		s.append(records, func(_ int64, err error) { then(err) }, lost)
		return
	}
	// Several batches: the group is whole after each of them (Change.EpochFirst), but if one is missing only the log knows what
	// there is.
	s.appendAll(records, func([]keyValue, int64) {}, func(err error) {
		if err == nil {
			then(nil)
			return
		}
		s.log.Warn("loading groups again: a consumer group's change was not written as a whole", "group", g.id, "error", err)
		s.reload()
		lost(err)
	}, lost)
}

// abandonConsumer answers those who wait: the shard is dropped.
func (s *shard) abandonConsumer(g *group) {
	if g.consumer == nil {
		return
	}
	for _, op := range g.consumer.queue {
		s.reply(func() { op.done(ErrNotCoordinator) })
	}
	g.consumer.queue = nil
}

// ConsumerAnswer is what a member of a consumer group is told.
type ConsumerAnswer struct {
	consumer.Answer
	// Interval is the time to its next heartbeat.
	Interval time.Duration
}

// ConsumerHeartbeat takes a member's heartbeat, with which it joins, leaves and tells what it owns.
func (c *Coordinator) ConsumerHeartbeat(hb consumer.Heartbeat, done func(ConsumerAnswer, error)) {
	fail := func(err error) { done(ConsumerAnswer{}, err) }
	if err := hb.Check(c.env()); err != nil {
		fail(err)
		return
	}
	c.with(hb.Group, fail, func(s *shard) {
		if err := s.consumerHeartbeat(&hb, done); err != nil {
			s.reply(func() { fail(err) })
		}
	})
}

// consumerHeartbeat answers by done, or returns an error.
func (s *shard) consumerHeartbeat(hb *consumer.Heartbeat, done func(ConsumerAnswer, error)) error {
	g, err := s.consumerGroupOf(hb)
	if err != nil {
		return err
	}
	if len(g.consumer.queue) >= s.c.cfg.Limits.MemberIDs {
		return ErrNotAvailable
	}
	var answer ConsumerAnswer
	c := g.consumer
	s.enqueue(g, consumerOp{
		run: func(ch *consumer.Change) (err error) {
			err = ch.Try(func() (err error) {
				if err = s.upgrade(g, ch); err == nil {
					answer.Answer, err = c.state.Heartbeat(ch, s.c.env(), hb)
				}
				return err
			})
			if err == nil {
				s.leaveClassic(g)
			}
			if err == nil && hb.Epoch >= 0 {
				_, answer.Interval = s.c.cfg.Consumer(g.id)
				s.consumerBeat(g, answer.Member)
			}
			return err
		},
		done: func(err error) {
			if errors.Is(err, errMoved) {
				s.c.ConsumerHeartbeat(*hb, done)
				return
			}
			if err != nil {
				answer = ConsumerAnswer{}
			}
			done(answer, err)
		},
	})
	return nil
}

// consumerGroupOf finds the group of a heartbeat; who joins may make one.
func (s *shard) consumerGroupOf(hb *consumer.Heartbeat) (g *group, err error) {
	if hb.Epoch == 0 {
		g, err = s.findOrMake(hb.Group)
	} else {
		g, err = s.find(hb.Group)
	}
	switch {
	case err != nil:
		return nil, err
	case g.consumer != nil:
		return g, nil
	case hb.Epoch != 0 || g.classic.state != Empty && !s.mayUpgrade(g):
		return nil, ErrGroupNotFound // as a consumer group
	}
	g.consumer = newConsumerGroup(g.id)
	g.consumer.replaces = true
	return g, nil
}

// consumerBeat says that a member lives, and looks whether it has to give partitions back.
func (s *shard) consumerBeat(g *group, id string) {
	c := g.consumer
	se := c.sessions[id]
	if se == nil {
		se = &session{id: id}
		se.timer = timer{kind: timerConsumerSession, group: g, session: se}
		se.rebalance = timer{kind: timerConsumerRebalance, group: g, session: se}
		c.sessions[id] = se
	}
	now, m := s.c.now(), c.state.Member(id)
	timeout, _ := s.c.cfg.Consumer(g.id)
	se.deadline = now + timeout
	if m.Classic != nil {
		se.deadline = now + time.Duration(m.Classic.SessionTimeout)*time.Millisecond
	}
	if se.timer.pos == 0 || se.timer.at > se.deadline {
		s.timers.set(&se.timer, se.deadline)
	}
	if m.Classic != nil {
		return // it is told to join again, and has to do that in time
	}
	cur := c.state.Current(id)
	if cur.State != consumer.Unrevoked {
		s.timers.stop(&se.rebalance)
		return
	}
	if se.rebalance.pos == 0 || se.wait != waitRevoke || se.epoch != cur.Epoch {
		s.expect(g, se, waitRevoke)
	}
}

// expect gives a member its rebalance timeout to do something.
func (s *shard) expect(g *group, se *session, w wait) {
	st := g.consumer.state
	se.wait, se.epoch = w, st.Current(se.id).Epoch
	s.timers.set(&se.rebalance, s.c.now()+time.Duration(st.Member(se.id).RebalanceTimeout)*time.Millisecond)
}

// consumerDue takes a member out whose session has ended, or which has not given back in time what it had to.
func (s *shard) consumerDue(t *timer, now time.Duration) {
	g, se := t.group, t.session
	c := g.consumer
	if c == nil || c.sessions[se.id] != se {
		return
	}
	if c.state.Member(se.id) == nil {
		s.timers.stop(&se.timer)
		s.timers.stop(&se.rebalance)
		delete(c.sessions, se.id)
		return
	}
	if t.kind == timerConsumerSession && se.deadline > now {
		s.timers.set(t, se.deadline)
		return
	}
	again, _ := s.c.cfg.Consumer(g.id)
	s.timers.set(t, now+again) // again, should it not be written
	s.enqueue(g, consumerOp{run: func(ch *consumer.Change) error {
		cur := c.state.Current(se.id)
		switch {
		case cur == nil:
			return nil
		case t.kind == timerConsumerSession:
			if se.deadline > s.c.now() {
				return nil // its heartbeat was waiting
			}
			s.log.Info("a member's session has ended", "group", g.id, "member", se.id, "epoch", cur.Epoch)
		case se.wait == waitRevoke && (cur.State != consumer.Unrevoked || cur.Epoch != se.epoch):
			s.timers.stop(t)
			return nil
		default:
			what := [...]string{"given its partitions back", "joined again", "asked for its assignment"}[se.wait]
			s.log.Info("a member has not "+what+" in time", "group", g.id, "member", se.id, "epoch", cur.Epoch)
		}
		c.state.Remove(ch, s.c.env(), se.id)
		return nil
	}, done: func(error) {}})
}

// replayConsumer takes a record of a consumer group.
func (s *shard) replayConsumer(key, value []byte) error {
	k, err := consumer.ParseKey(key)
	if err != nil {
		return err
	}
	g := s.groups[k.Group]
	if value == nil {
		switch {
		case g == nil || g.consumer == nil:
			return nil
		case k.EndsGroup():
			g.consumer = nil
			return nil
		}
	}
	if g == nil {
		g = s.make(k.Group)
	}
	if g.consumer == nil {
		g.consumer = newConsumerGroup(k.Group)
	}
	return g.consumer.state.Replay(k, value)
}

// consumerLoaded brings a group to life: its members have a whole session to find the new coordinator.
func (s *shard) consumerLoaded(g *group) {
	for _, id := range g.consumer.state.Members() {
		s.consumerBeat(g, id)
	}
}

// DescribeConsumer tells of a consumer group; of any other with ErrGroupNotFound.
func (c *Coordinator) DescribeConsumer(id string, done func(consumer.Description, error)) {
	fail := func(err error) { done(consumer.Description{}, err) }
	if id == "" {
		fail(ErrInvalidGroupID)
		return
	}
	c.with(id, fail, func(s *shard) {
		g, err := s.find(id)
		if errors.Is(err, ErrNotAvailable) || err == nil && g.consumer == nil {
			err = ErrGroupNotFound
		}
		if err == nil && len(g.consumer.queue) >= c.cfg.Limits.MemberIDs {
			err = ErrNotAvailable
		}
		if err != nil {
			s.reply(func() { fail(err) })
			return
		}
		var d consumer.Description
		state := g.consumer.state
		s.enqueue(g, consumerOp{run: func(*consumer.Change) error {
			d = state.Describe(s.c.cfg.Settings.ConsumerAssignors)
			return nil
		}, done: func(err error) {
			if errors.Is(err, errMoved) {
				c.DescribeConsumer(id, done)
				return
			}
			done(d, err)
		}})
	})
}

// consumerMayCommit says whether a commit is one of a consumer group's.
func (s *shard) consumerMayCommit(g *group, req *CommitRequest) error {
	topics := s.c.topics()
	at := make([]consumer.Partition, 0, len(req.Partitions))
	for _, p := range req.Partitions {
		if t := topics.Named(p.Topic); t != nil {
			at = append(at, consumer.Partition{Topic: t.ID, Index: p.Partition})
		}
	}
	return g.consumer.state.MayCommit(req.Member, req.Generation, req.Version, at)
}
