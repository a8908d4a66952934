package group

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group/consumer"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/record"
)

// loading is where reading a shard's partition has come.
type loading struct {
	next, end int64 // offsets; next is -1 until the end is fixed
	buf       []byte
	records   int
	unknown   int                  // records of kinds that this version does not know
	topics    *consumer.Topics     // at the beginning
	dropped   map[uuid.UUID]string // topics deleted meanwhile, with their names
}

// loadPause is the time between two attempts to read what could not be read.
const loadPause = time.Second

// maxRecordBytes bounds what a batch may decompress to.
const maxRecordBytes = 64 << 20

// step reads one chunk, and says whether there is more. It is called without mu.
func (s *shard) step() (more bool) {
	s.do(func() { more = s.loadChunk() })
	return more
}

func (s *shard) loadChunk() (more bool) {
	s.follow()
	l := s.load
	switch {
	case l == nil:
		return false
	case l.next < 0 && s.writing > 0:
		return false // what an earlier life wrote may still be committed; its completion goes on here
	case l.next < 0:
		// All that earlier leaders committed is below the high watermark by the time this one leads, and nothing else is
		// written until the load is done.
		l.next, l.end = s.from.Bounds()
		l.topics = s.c.topics()
	}
	if l.next < l.end {
		batches, err := s.from.Read(l.next, s.c.cfg.Limits.LoadBytes, l.buf)
		if err == nil && len(batches) == 0 {
			err = fmt.Errorf("nothing at offset %d, below the high watermark %d", l.next, l.end)
		}
		if err == nil {
			err = record.Each(batches, func(h record.Header, b []byte) error { return s.replayBatch(h, b) })
		}
		if err != nil {
			return s.loadFailed(err)
		}
		l.buf = batches[:0]
	}
	if l.next < l.end {
		return true
	}
	s.loaded()
	return false
}

// loadFailed decides what an error means: the leadership is gone, or records were removed under the reader, or the partition
// can't be read.
func (s *shard) loadFailed(err error) (more bool) {
	l := s.load
	if errors.Is(err, multiraft.ErrNotLeader) || errors.Is(err, multiraft.ErrStopped) {
		if s.follow(); s.load == l {
			s.timers.set(&s.again, s.c.now()+loadPause) // it is about to be seen
		}
		return false
	}
	var out *partition.OffsetOutOfRangeError
	if errors.As(err, &out) && out.Start > s.load.next {
		s.load.next = out.Start
		return true
	}
	s.log.Error("groups can't be loaded yet; their clients are told to try again", "offset", s.load.next, "end", s.load.end, "error", err)
	s.timers.set(&s.again, s.c.now()+loadPause)
	return false
}

func (s *shard) replayBatch(h record.Header, b []byte) error {
	l := s.load
	if h.LastOffset() < l.next {
		return nil
	}
	if !h.IsControl() {
		err := record.Records(b, maxRecordBytes, func(r record.Record) error {
			if err := s.replay(h.BaseOffset+int64(r.OffsetDelta), r.Key, r.Value); err != nil {
				// One record that can't be read must not take the other groups with it.
				s.log.Error("a record of a group can't be read and is skipped", "offset", h.BaseOffset+int64(r.OffsetDelta), "error", err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	l.next = h.LastOffset() + 1
	return nil
}

// replay takes one record of the log.
func (s *shard) replay(at int64, key, value []byte) error {
	kind, err := kindOf(key)
	if err != nil {
		return err
	}
	s.load.records++
	switch kind {
	case kindOffsetCommitOld, kindOffsetCommit:
		return s.replayOffset(at, key, value)
	case kindGroupMetadata:
		return s.replayGroup(key, value)
	}
	if consumer.IsKind(kind) {
		return s.replayConsumer(key, value)
	}
	s.load.unknown++
	return nil
}

func (s *shard) replayOffset(at int64, key, value []byte) error {
	var k kmsg.OffsetCommitKey
	if err := k.ReadFrom(key); err != nil {
		return err
	}
	tp := topicPartition{k.Topic, k.Partition}
	if value == nil {
		if g := s.groups[k.Group]; g != nil {
			g.remove(tp, at)
		}
		return nil
	}
	var v kmsg.OffsetCommitValue
	if err := v.ReadFrom(value); err != nil {
		return err
	}
	o := &offset{offset: v.Offset, leaderEpoch: -1, metadata: v.Metadata, committed: v.CommitTimestamp, expires: -1, at: at, topic: topicID(s.load.topics, k.Topic)}
	if v.Version >= 3 {
		o.leaderEpoch = v.LeaderEpoch
	}
	if v.Version == offsetExpiresVersion {
		o.expires = v.ExpireTimestamp
	}
	g := s.groups[k.Group]
	if g == nil {
		g = s.make(k.Group)
	}
	g.put(tp, o)
	return nil
}

// loaded makes the shard serve.
func (s *shard) loaded() {
	l := s.load
	for _, g := range s.sorted() {
		if c := g.consumer; c != nil {
			// Should there be a classic group's record as well, it is buried with the next change.
			c.state.Loaded()
			if c.replaces = g.classic.generation > 0; !c.state.Written() {
				g.consumer = nil
			}
		}
		switch {
		case len(g.offsets) == 0 && g.unused():
			s.discard(g)
		case g.consumer != nil:
			s.consumerLoaded(g)
		default:
			s.classicLoaded(g)
		}
	}
	s.load = nil
	for _, g := range s.sorted() {
		s.recount(g)
		if g.consumer != nil {
			s.work(g)
		}
	}
	s.timers.set(&s.retention, s.c.now()+s.c.cfg.Settings.RetentionInterval)
	s.log.Info("groups loaded", "term", s.term, "groups", len(s.groups), "records", l.records, "unknown", l.unknown, "end", l.end)
	if len(l.dropped) > 0 {
		s.dropTopics(l.dropped)
	}
}
