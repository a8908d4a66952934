package broker

import (
	"container/list"
	"crypto/rand"
	"encoding/binary"
	"math"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
)

// Fetch sessions (KIP-227): a client names its partitions once and then only what changes; the broker answers only what
// changed. A session is known by id, and its epoch counts requests, so that a lost or repeated one is noticed.

// Session epochs with a meaning of their own.
const (
	epochNewSession = 0  // a full request; make a session
	epochNoSession  = -1 // a full request; make none, and end the one named
)

// sessionIdle is how long a session must have been unused before another may push it out; Kafka's
// min.incremental.fetch.session.eviction.ms.
const sessionIdle = 2 * time.Minute

// partKey names a partition as the request's version does: by topic name, or by topic id.
type partKey struct {
	topic string
	id    [16]byte
	index int32
}

// fetchPart is one partition of a fetch, with what the session remembers of its last answer.
type fetchPart struct {
	partKey
	offset           int64
	maxBytes         int32
	currentEpoch     int32
	lastFetchedEpoch int32

	// Last answered, in a session; -1 when nothing was.
	hw, logStart int64
}

func newFetchPart(k partKey, p *kmsg.FetchRequestTopicPartition) fetchPart {
	return fetchPart{
		partKey: k, offset: p.FetchOffset, maxBytes: p.PartitionMaxBytes,
		currentEpoch: p.CurrentLeaderEpoch, lastFetchedEpoch: p.LastFetchedEpoch, hw: -1, logStart: -1,
	}
}

// session is one client's. mu is held briefly, never during a wait.
type session struct {
	id   int32
	byID bool

	mu    sync.Mutex
	epoch int32 // the one expected next
	parts map[partKey]*fetchPart
	order []*fetchPart // those that gave data last are at the end, so that all get their turn

	// Guarded by the cache's mutex.
	lru     *list.Element
	used    time.Time
	counted int
}

// sessionCache bounds sessions and their partitions. What finds no room is served without a session.
type sessionCache struct {
	clk                clock.Clock
	maxSessions, maxPs int
	metrics            *metrics

	mu    sync.Mutex
	byID  map[int32]*session
	lru   list.List // of *session, least recently used first
	parts int
}

func newSessionCache(clk clock.Clock, sessions, parts int, m *metrics) *sessionCache {
	return &sessionCache{clk: clk, maxSessions: sessions, maxPs: parts, metrics: m, byID: map[int32]*session{}}
}

// plan is what one fetch is to read.
type plan struct {
	parts       []fetchPart // copies
	session     *session    // nil: none
	incremental bool
}

// plan turns a request into its partitions, through its session if it has one.
func (sc *sessionCache) plan(req *kmsg.FetchRequest) (*plan, *kerr.Error) {
	byID := req.Version >= 13
	if req.Version < 7 || req.SessionEpoch == epochNoSession || req.SessionEpoch == epochNewSession {
		if req.SessionID != 0 {
			sc.remove(req.SessionID)
		}
		p := &plan{parts: requested(req, byID)}
		if req.Version >= 7 && req.SessionEpoch == epochNewSession {
			p.session = sc.create(p.parts, byID)
		}
		return p, nil
	}
	s := sc.touch(req.SessionID)
	if s == nil {
		return nil, kerr.FetchSessionIDNotFound
	}
	if s.byID != byID {
		return nil, kerr.FetchSessionTopicIDError
	}
	p, kerror := s.update(req, byID, sc.roomFor(s))
	if kerror != nil {
		if kerror == kerr.FetchSessionIDNotFound {
			sc.remove(s.id)
		}
		return nil, kerror
	}
	sc.recount(s, len(p.parts))
	return p, nil
}

// requested lists the partitions of a request; of one named twice, the last.
func requested(req *kmsg.FetchRequest, byID bool) []fetchPart {
	var out []fetchPart
	seen := map[partKey]int{}
	eachRequested(req, byID, func(k partKey, p *kmsg.FetchRequestTopicPartition) {
		if i, ok := seen[k]; ok {
			out[i] = newFetchPart(k, p)
			return
		}
		seen[k] = len(out)
		out = append(out, newFetchPart(k, p))
	})
	return out
}

func eachRequested(req *kmsg.FetchRequest, byID bool, fn func(partKey, *kmsg.FetchRequestTopicPartition)) {
	for i := range req.Topics {
		t := &req.Topics[i]
		for j := range t.Partitions {
			fn(keyOf(byID, t.Topic, t.TopicID, t.Partitions[j].Partition), &t.Partitions[j])
		}
	}
}

func keyOf(byID bool, name string, id [16]byte, index int32) partKey {
	if byID {
		return partKey{id: id, index: index}
	}
	return partKey{topic: name, index: index}
}

// update applies an incremental request. A session that would grow beyond limit partitions ends instead (the client is told
// that it is unknown, and makes a full request): a partition left out in silence would never be fetched.
func (s *session) update(req *kmsg.FetchRequest, byID bool, limit int) (*plan, *kerr.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if req.SessionEpoch != s.epoch {
		return nil, kerr.InvalidFetchSessionEpoch
	}
	s.epoch = nextEpoch(s.epoch)
	full := false
	eachRequested(req, byID, func(k partKey, rp *kmsg.FetchRequestTopicPartition) {
		fresh := newFetchPart(k, rp)
		if have := s.parts[k]; have != nil {
			fresh.hw, fresh.logStart = have.hw, have.logStart
			*have = fresh
			return
		}
		if len(s.parts) >= limit {
			full = true
			return
		}
		p := &fresh
		s.parts[k] = p
		s.order = append(s.order, p)
	})
	if full {
		return nil, kerr.FetchSessionIDNotFound
	}
	forgotten := false
	for i := range req.ForgottenTopics {
		f := &req.ForgottenTopics[i]
		for _, index := range f.Partitions {
			k := keyOf(byID, f.Topic, f.TopicID, index)
			if s.parts[k] != nil {
				delete(s.parts, k)
				forgotten = true
			}
		}
	}
	if forgotten {
		kept := s.order[:0]
		for _, p := range s.order {
			if s.parts[p.partKey] == p {
				kept = append(kept, p)
			}
		}
		clear(s.order[len(kept):])
		s.order = kept
	}
	out := &plan{session: s, incremental: true, parts: make([]fetchPart, len(s.order))}
	for i, p := range s.order {
		out.parts[i] = *p
	}
	return out, nil
}

func nextEpoch(e int32) int32 {
	if e == math.MaxInt32 {
		return 1
	}
	return e + 1
}

// answered remembers what was told, and moves partitions that gave data behind the others.
func (s *session) answered(reads []fetchRead) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gave map[partKey]bool
	for i := range reads {
		r := &reads[i]
		p := s.parts[r.part.partKey]
		if p == nil {
			continue
		}
		if r.err != nil {
			p.hw, p.logStart = -1, -1 // what follows an error is news
			continue
		}
		p.hw, p.logStart = r.res.HighWatermark, r.res.LogStart
		if len(r.res.Records) > 0 {
			if gave == nil {
				gave = map[partKey]bool{}
			}
			gave[p.partKey] = true
		}
	}
	if len(gave) == 0 || len(gave) == len(s.order) {
		return
	}
	order := make([]*fetchPart, 0, len(s.order))
	for _, p := range s.order {
		if !gave[p.partKey] {
			order = append(order, p)
		}
	}
	for _, p := range s.order {
		if gave[p.partKey] {
			order = append(order, p)
		}
	}
	s.order = order
}

// create makes a session for a full request; nil when there is no room.
func (sc *sessionCache) create(parts []fetchPart, byID bool) *session {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	now := sc.clk.Now()
	for len(sc.byID) >= sc.maxSessions || sc.parts+len(parts) > sc.maxPs {
		oldest := sc.lru.Front()
		if oldest == nil || now.Sub(oldest.Value.(*session).used) < sessionIdle {
			return nil
		}
		sc.dropLocked(oldest.Value.(*session))
	}
	s := &session{byID: byID, epoch: 1, parts: make(map[partKey]*fetchPart, len(parts)), used: now, counted: len(parts)}
	for i := range parts {
		p := parts[i]
		s.parts[p.partKey] = &p
		s.order = append(s.order, &p)
	}
	for s.id == 0 || sc.byID[s.id] != nil {
		s.id = randomID()
	}
	sc.byID[s.id] = s
	s.lru = sc.lru.PushBack(s)
	sc.parts += s.counted
	sc.gauge()
	return s
}

// randomID is positive. It can't be guessed, so that no client stumbles into another's session.
func randomID() int32 {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return int32(binary.BigEndian.Uint32(b[:]) & math.MaxInt32)
}

func (sc *sessionCache) touch(id int32) *session {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	s := sc.byID[id]
	if s != nil {
		s.used = sc.clk.Now()
		sc.lru.MoveToBack(s.lru)
	}
	return s
}

// roomFor is how many partitions s may have.
func (sc *sessionCache) roomFor(s *session) int {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	return sc.maxPs - sc.parts + s.counted
}

func (sc *sessionCache) remove(id int32) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if s := sc.byID[id]; s != nil {
		sc.dropLocked(s)
	}
}

func (sc *sessionCache) recount(s *session, parts int) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.byID[s.id] == s {
		sc.parts += parts - s.counted
		s.counted = parts
		sc.gauge()
	}
}

func (sc *sessionCache) dropLocked(s *session) {
	delete(sc.byID, s.id)
	sc.lru.Remove(s.lru)
	sc.parts -= s.counted
	sc.gauge()
}

func (sc *sessionCache) gauge() {
	sc.metrics.sessions.Set(float64(len(sc.byID)))
	sc.metrics.sessionPartitions.Set(float64(sc.parts))
}
