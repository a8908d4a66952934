package group

import (
	"cmp"
	"errors"
	"maps"
	"math"
	"slices"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/group/consumer"
)

type topicPartition struct {
	topic     string
	partition int32
}

// offset is a committed offset. Times are ms since 1970.
type offset struct {
	offset      int64
	committed   int64
	expires     int64 // -1: as the settings say
	at          int64 // its record's offset
	metadata    string
	leaderEpoch int32     // -1: none
	topic       uuid.UUID // of that name when it was committed, or loaded; zero: there was none
}

// put takes a committed offset unless a later one is there.
func (g *group) put(tp topicPartition, o *offset) {
	old := g.offsets[tp]
	if old != nil && old.at > o.at {
		return
	}
	if old != nil {
		g.offsetBytes -= offsetSize(tp, old)
	}
	g.offsetBytes += offsetSize(tp, o)
	if g.offsets == nil {
		g.offsets = map[topicPartition]*offset{}
	}
	g.offsets[tp] = o
}

// remove carries out a tombstone at an offset of the log.
func (g *group) remove(tp topicPartition, at int64) {
	if old := g.offsets[tp]; old != nil && old.at <= at {
		g.offsetBytes -= offsetSize(tp, old)
		delete(g.offsets, tp)
	}
}

// CommitPartition is one partition of a commit.
type CommitPartition struct {
	Topic       string
	Partition   int32
	Offset      int64
	LeaderEpoch int32 // -1: none
	Metadata    string
}

// CommitRequest asks for offsets to be kept.
type CommitRequest struct {
	Group      string
	Generation int32 // -1: none, from outside of the group's membership
	Member     string
	Instance   *string
	// RetentionMs is how long the offsets are to be kept whatever the group does (OffsetCommit v2 to v4); -1: as the settings say.
	RetentionMs int64
	// Version is OffsetCommit's: what an unknown group is answered depends on it.
	Version    int16
	Partitions []CommitPartition
}

// Commit keeps offsets. done gets an error for the request, or one for each partition (nil: committed).
func (c *Coordinator) Commit(req CommitRequest, done func(each []error, err error)) {
	fail := func(err error) { done(nil, err) }
	c.with(req.Group, fail, func(s *shard) {
		if err := s.commit(&req, done); err != nil {
			s.reply(func() { fail(err) })
		}
	})
}

func (s *shard) commit(req *CommitRequest, done func([]error, error)) error {
	g, err := s.find(req.Group)
	switch {
	case errors.Is(err, ErrGroupNotFound) && req.Generation < 0:
		g, err = s.findOrMake(req.Group)
	case errors.Is(err, ErrGroupNotFound) && req.Version < 9:
		err = ErrIllegalGeneration
	}
	if err == nil && g.consumer != nil && g.consumer.downgrading {
		return s.afterDowngrade(g, func(err error) {
			if err != nil {
				done(nil, err)
				return
			}
			s.c.Commit(*req, done)
		})
	}
	if err == nil {
		err = s.mayCommit(g, req)
	}
	if err != nil {
		return err
	}
	each := make([]error, len(req.Partitions))
	now := s.c.wall()
	expires := int64(-1)
	if req.RetentionMs >= 0 {
		expires = now + min(req.RetentionMs, math.MaxInt64-now)
	}
	topics := s.c.topics()
	var records []keyValue
	var tps []topicPartition
	var offsets []*offset
	more := 0
	for i := range req.Partitions {
		p := &req.Partitions[i]
		if len(p.Metadata) > s.c.cfg.Settings.MaxOffsetMetadata {
			each[i] = ErrMetadataTooLarge
			continue
		}
		tp := topicPartition{p.Topic, p.Partition}
		o := &offset{offset: p.Offset, leaderEpoch: p.LeaderEpoch, metadata: p.Metadata, committed: now, expires: expires, topic: topicID(topics, p.Topic)}
		if more += offsetSize(tp, o); g.offsets[tp] != nil {
			more -= offsetSize(tp, g.offsets[tp])
		}
		records, tps, offsets = append(records, offsetRecord(g.id, tp, o)), append(tps, tp), append(offsets, o)
	}
	if len(records) == 0 {
		s.reply(func() { done(each, nil) })
		s.forget(g)
		return nil
	}
	if more > 0 && more > s.c.room() {
		s.log.Warn("no memory for a group's offsets", "group", g.id, "bytes", s.c.Memory())
		s.forget(g)
		return ErrNotAvailable
	}
	finish := func(err error) {
		for i := range each {
			if each[i] == nil {
				each[i] = err
			}
		}
		done(each, nil)
	}
	g.pending++
	s.append(records, func(base int64, err error) {
		g.pending--
		if err == nil {
			for i, o := range offsets {
				o.at = base + int64(i)
				g.put(tps[i], o)
			}
			s.recount(g)
		} else {
			err = appendError(err, ErrCommitTooLarge)
			s.forget(g)
		}
		s.reply(func() { finish(err) })
		s.calm(g)
	}, func(err error) { s.reply(func() { finish(lostError(err)) }) })
	return nil
}

// forget drops a group that never came to anything, and recounts others.
func (s *shard) forget(g *group) {
	if g.pending == 0 && !g.deleting && len(g.offsets) == 0 && g.unused() && s.groups[g.id] == g {
		s.discard(g)
		return
	}
	s.recount(g)
}

// whenQuiet has f called once no commits of the group are under way: what they write is to be known to it.
func (s *shard) whenQuiet(g *group, f func()) {
	if g.pending == 0 {
		f()
		return
	}
	g.quiet = append(g.quiet, f)
}

func (s *shard) calm(g *group) {
	if g.pending > 0 {
		return
	}
	fs := g.quiet
	g.quiet = nil
	for _, f := range fs {
		f()
	}
}

// FetchedOffset is a committed offset as it is fetched.
type FetchedOffset struct {
	Topic       string
	Partition   int32
	Offset      int64 // -1: none
	LeaderEpoch int32 // -1: none
	Metadata    string
}

// Partition names one.
type Partition struct {
	Topic     string
	Partition int32
}

// FetchRequest asks for committed offsets.
type FetchRequest struct {
	Group string
	// Member and Epoch are of a consumer group's member; nil and -1: whoever.
	Member *string
	Epoch  int32
	// Partitions are answered in their order. With All set it is all that there are, by topic and partition.
	Partitions []Partition
	All        bool
}

// Fetch finds committed offsets. A quorum confirms first that nobody else coordinates the group, so that what was committed is
// seen. An unknown group has none.
func (c *Coordinator) Fetch(req FetchRequest, done func([]FetchedOffset, error)) {
	fail := func(err error) { done(nil, err) }
	c.with(req.Group, fail, func(s *shard) {
		life := s.life
		s.from.Barrier(func(err error) {
			s.post(func() {
				switch {
				case s.life != life:
					s.reply(func() { fail(ErrNotCoordinator) })
				case err != nil:
					s.reply(func() { fail(appendError(err, ErrNotAvailable)) })
				default:
					var out []FetchedOffset
					if g := s.groups[req.Group]; g != nil && g.consumer != nil {
						err = g.consumer.state.MayFetch(req.Member, req.Epoch)
					}
					if err == nil {
						out = s.fetch(req.Group, req.Partitions, req.All)
					}
					s.reply(func() { done(out, err) })
				}
			})
		})
	})
}

func (s *shard) fetch(id string, partitions []Partition, all bool) []FetchedOffset {
	g, topics := s.groups[id], s.c.topics()
	if all {
		partitions = nil
		if g != nil {
			for _, tp := range g.sortedOffsets() {
				if !g.offsets[tp].outlived(topics, tp.topic) {
					partitions = append(partitions, Partition{tp.topic, tp.partition})
				}
			}
		}
	}
	out := make([]FetchedOffset, len(partitions))
	for i, p := range partitions {
		out[i] = FetchedOffset{Topic: p.Topic, Partition: p.Partition, Offset: -1, LeaderEpoch: -1}
		if g == nil {
			continue
		}
		if o := g.offsets[topicPartition{p.Topic, p.Partition}]; o != nil && !o.outlived(topics, p.Topic) {
			out[i].Offset, out[i].LeaderEpoch, out[i].Metadata = o.offset, o.leaderEpoch, o.metadata
		}
	}
	return out
}

// outlived says whether an offset is of a topic that was deleted, and another has its name now. It goes with the topic (dropTopics), a little
// later, and until then it is nobody's.
func (o *offset) outlived(topics *consumer.Topics, name string) bool {
	t := topics.Named(name)
	return t != nil && o.topic != (uuid.UUID{}) && o.topic != uuid.UUID(t.ID)
}

func (g *group) sortedOffsets() []topicPartition {
	return slices.SortedFunc(maps.Keys(g.offsets), func(a, b topicPartition) int {
		return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.partition, b.partition))
	})
}

// DeleteOffsets removes offsets of topics that no member subscribes to (KIP-496). done gets an error for the request, or one
// for each partition.
func (c *Coordinator) DeleteOffsets(id string, partitions []Partition, done func(each []error, err error)) {
	fail := func(err error) { done(nil, err) }
	if id == "" {
		fail(ErrInvalidGroupID)
		return
	}
	c.with(id, fail, func(s *shard) {
		g, err := s.find(id)
		if err == nil {
			err = g.mayDeleteOffsets()
		}
		if err != nil {
			s.reply(func() { fail(err) })
			return
		}
		life := s.life
		s.whenQuiet(g, func() {
			if s.life != life {
				s.reply(func() { fail(ErrNotCoordinator) })
				return
			}
			s.deleteOffsets(g, partitions, done)
		})
	})
}

func (s *shard) deleteOffsets(g *group, partitions []Partition, done func([]error, error)) {
	each := make([]error, len(partitions))
	var gone []topicPartition
	subscribed := map[string]bool{} // of the topics asked for: a group's members are gone through once for each
	for i, p := range partitions {
		tp := topicPartition{p.Topic, p.Partition}
		if _, known := subscribed[p.Topic]; !known {
			subscribed[p.Topic] = g.subscribes(p.Topic)
		}
		if subscribed[p.Topic] {
			each[i] = ErrSubscribed
		} else if g.offsets[tp] != nil {
			gone = append(gone, tp)
		}
	}
	s.bury(g, gone, func(err error) {
		if err != nil {
			done(nil, err)
			return
		}
		done(each, nil)
	})
}

// bury removes offsets, in the log and then here. done, which may be nil, is called without mu.
func (s *shard) bury(g *group, gone []topicPartition, done func(error)) {
	if done == nil {
		done = func(error) {}
	}
	records := make([]keyValue, len(gone))
	for i, tp := range gone {
		records[i] = keyValue{key: offsetKey(g.id, tp)}
	}
	rest := gone
	s.appendAll(records, func(batch []keyValue, base int64) {
		for i, tp := range rest[:len(batch)] {
			g.remove(tp, base+int64(i))
		}
		s.recount(g)
		rest = rest[len(batch):]
	}, func(err error) {
		if err != nil {
			err = appendError(err, ErrNotAvailable)
		}
		s.reply(func() { done(err) })
	}, func(err error) { s.reply(func() { done(lostError(err)) }) })
}

// topicID is the id of the topic that has a name, zero if none does.
func topicID(topics *consumer.Topics, name string) uuid.UUID {
	if t := topics.Named(name); t != nil {
		return t.ID
	}
	return uuid.UUID{}
}

// dropTopics removes the offsets of topics that have been deleted. Of which topic of a name an offset is, only who took the commit
// knows: the log does not say, so that one that was loaded counts as the topic's that had the name then.
func (s *shard) dropTopics(deleted map[uuid.UUID]string) {
	switch {
	case s.term == 0:
		return
	case s.load != nil:
		if s.load.dropped == nil {
			s.load.dropped = map[uuid.UUID]string{}
		}
		maps.Copy(s.load.dropped, deleted)
		return
	}
	// Where no topic had the name: it goes with the name, unless somebody has that again.
	nameless, topics := map[string]bool{}, s.c.topics()
	for _, name := range deleted {
		nameless[name] = topics.Named(name) == nil
	}
	for _, g := range s.sorted() {
		life := s.life
		s.whenQuiet(g, func() {
			if s.life != life || s.groups[g.id] != g || g.deleting {
				return
			}
			var gone []topicPartition
			for _, tp := range g.sortedOffsets() {
				id := g.offsets[tp].topic
				if _, ok := deleted[id]; ok || id == (uuid.UUID{}) && nameless[tp.topic] {
					gone = append(gone, tp)
				}
			}
			if len(gone) > 0 {
				s.bury(g, gone, nil)
			}
		})
	}
}

// expire removes offsets that nobody has had a use for in the retention time (KIP-211), those of deleted topics that dropTopics could not, and
// groups without members and offsets.
func (s *shard) expire() {
	if s.load != nil {
		return
	}
	now, retention, topics := s.c.wall(), s.c.cfg.Settings.OffsetsRetention.Milliseconds(), s.c.topics()
	for _, g := range s.sorted() {
		if g.pending > 0 || g.deleting {
			continue // at the next look
		}
		if c := g.classic; g.consumer == nil && c.state == Empty && c.unwritten {
			s.recordEmpty(g)
			continue
		}
		var gone []topicPartition
		unusedSince := g.unusedSince()
		for _, tp := range g.sortedOffsets() {
			o := g.offsets[tp]
			if o.topic != (uuid.UUID{}) && topics.WithID(o.topic) == nil {
				gone = append(gone, tp)
				continue
			}
			if o.expires >= 0 {
				if now >= o.expires {
					gone = append(gone, tp)
				}
				continue
			}
			if since, ok := unusedSince(tp.topic, o); ok && now-since >= retention {
				gone = append(gone, tp)
			}
		}
		switch {
		case len(gone) == len(g.offsets) && g.deletable():
			s.deleteGroup(g, nil)
		case len(gone) > 0:
			s.bury(g, gone, nil)
		}
	}
}
