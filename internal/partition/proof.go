package partition

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/transport"
)

// That replicas are equal is proved while they run, in two ways, both led by the leader.
//
// What was applied: each replica adds up record.Sum of every batch it applies (state.sum; it is in the checkpoint, and in snapshots).
// Entries are the same everywhere, so the sums at a raft index are. The leader tells its followers its sums at some recent
// indexes now and then, and they compare.
//
// What is on the disk: as the leader's scrubber reads its segments, it tells the sum of each stretch, and the followers read the
// same offsets and answer with theirs. What either has compacted is left out of this: it is equal in what survives, not in bytes.
//
// Where the applied sums differ, the leader compares stretches of the disk until the difference has offsets. Who is wrong is decided by
// the majority of all voters; of two replicas the leader is believed, loudly. Without a majority nobody is, and it is asked again.

const (
	proofVersion = 1
	proofHeader  = 4
	// markRings keep a replica's sums at raft indexes that are multiples of these: whoever is a little ahead still finds the index it
	// is asked for.
	marksKept = 8
	// maxStretches are compared at a time.
	maxStretches = 8
	// stretchBytes is how much a search reads of its own segments for one comparison.
	stretchBytes = 256 << 10
	// stretchLife is how long the answers are waited for.
	stretchLife = 10 * time.Second
)

var markSteps = [...]uint64{16, 1024, 65536}

// point is a replica's applied state at a raft index.
type point struct {
	index  uint64
	end    int64
	sum    uint64
	origin int64
}

// marks remembers recent points.
type marks struct{ rings [len(markSteps)][]point }

func (m *marks) note(x point) {
	for i, step := range markSteps {
		if x.index%step != 0 {
			continue
		}
		if len(m.rings[i]) == marksKept {
			m.rings[i] = append(m.rings[i][:0], m.rings[i][1:]...)
		}
		m.rings[i] = append(m.rings[i], x)
	}
}

func (m *marks) at(index uint64) (point, bool) {
	for i := range m.rings {
		for _, x := range m.rings[i] {
			if x.index == index {
				return x, true
			}
		}
	}
	return point{}, false
}

// proofKind is what a KindProof message says.
type proofKind uint8

const (
	proofPoints  proofKind = iota + 1 // leader: my applied sums
	proofPoint                        // follower: this one of yours differs from mine
	proofRange                        // leader: the sum of my records of [from, to)
	proofAnswer                       // follower: the sum of mine
	proofVerdict                      // leader: your [from, to) differs from the group's
	proofAdopt                        // leader: your records are right, your running sum is not; the difference is in sum
)

// proof is one message: version, kind, count of points, 0; from, to, sum; points; CRC-32C of all before. Big endian.
type proof struct {
	kind     proofKind
	unable   bool // proofAnswer: the sum can't be told
	from, to int64
	sum      uint64
	points   []point
}

func (m *proof) encode() []byte {
	be := binary.BigEndian
	b := []byte{proofVersion, byte(m.kind), byte(len(m.points)), 0}
	if m.unable {
		b[3] = 1
	}
	b = be.AppendUint64(b, uint64(m.from))
	b = be.AppendUint64(b, uint64(m.to))
	b = be.AppendUint64(b, m.sum)
	for _, x := range m.points {
		b = be.AppendUint64(b, x.index)
		b = be.AppendUint64(b, uint64(x.end))
		b = be.AppendUint64(b, x.sum)
		b = be.AppendUint64(b, uint64(x.origin))
	}
	return be.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeProof(b []byte) (proof, error) {
	be := binary.BigEndian
	const fixed = proofHeader + 24
	if len(b) < fixed+4 || b[0] != proofVersion || len(b) != fixed+32*int(b[2])+4 || be.Uint32(b[len(b)-4:]) != crc32.Checksum(b[:len(b)-4], castagnoli) {
		return proof{}, fmt.Errorf("%w: proof of %d bytes", errDelta, len(b))
	}
	m := proof{kind: proofKind(b[1]), unable: b[3] != 0, from: int64(be.Uint64(b[4:])), to: int64(be.Uint64(b[12:])), sum: be.Uint64(b[20:])}
	for p := b[fixed : len(b)-4]; len(p) > 0; p = p[32:] {
		m.points = append(m.points, point{be.Uint64(p), int64(be.Uint64(p[8:])), be.Uint64(p[16:]), int64(be.Uint64(p[24:]))})
	}
	if m.kind < proofPoints || m.kind > proofAdopt || m.from < 0 || m.to < 0 {
		return proof{}, fmt.Errorf("%w: proof of kind %d for [%d, %d)", errDelta, m.kind, m.from, m.to)
	}
	return m, nil
}

// stretch is a range whose sums are being gathered.
type stretch struct {
	from, to int64
	sum      uint64
	answers  map[uint64]uint64 // replica -> sum
	asked    int
	til      time.Time
}

// search is the leader's way from two applied sums that differ to offsets.
type search struct {
	replica  multiraft.Peer
	next, to int64
	origin   int64
	delta    uint64 // what the follower's sum lacks of the leader's
	unequal  int
	unsure   bool
}

// proving is a partition's part in it; proofMu guards it.
type proving struct {
	marks     marks
	asked     uint64 // applied index of the last word to the followers
	stretches []stretch
	search    *search
	waiting   []point   // a leader's points that are ahead of this follower
	questions []request // a leader's ranges to be read
	adopt     *proof
}

type request struct {
	m    proof
	from multiraft.Peer
}

// noteApplied is called by the applier, with mu held, after an entry.
func (p *Partition) noteApplied(st *state) {
	p.provable.Store(true)
	onStep := st.index%markSteps[0] == 0
	if !onStep && !p.proofWaits.Load() {
		return
	}
	x := point{st.index, st.end, st.sum, st.origin}
	p.proofMu.Lock()
	defer p.proofMu.Unlock()
	if onStep {
		p.prove.marks.note(x)
	}
	for i, w := range p.prove.waiting {
		if w.index == x.index {
			p.prove.waiting = slices.Delete(p.prove.waiting, i, i+1)
			p.proofWaits.Store(len(p.prove.waiting) > 0)
			p.compared(w, x)
			break
		}
	}
}

// compared is the follower's comparison of the leader's point with its own. proofMu is held, and maybe mu.
func (p *Partition) compared(theirs, own point) {
	if theirs.origin != own.origin {
		// Counted from elsewhere: the same sum once the records have been compared.
		p.tellLeader(proof{kind: proofPoint, from: theirs.origin, to: own.end, sum: theirs.sum - own.sum})
		return
	}
	p.m.stats.compared.Add(1)
	if theirs.sum == own.sum {
		return
	}
	p.m.stats.unequal.Add(1)
	p.logger.Error("what was applied here is not what the leader applied; the leader looks for the difference", "index", own.index, "end", own.end)
	p.tellLeader(proof{kind: proofPoint, from: theirs.origin, to: own.end, sum: theirs.sum - own.sum})
}

func (p *Partition) tellLeader(m proof) {
	r := p.raft()
	if r == nil {
		return
	}
	st := r.Status()
	for _, x := range r.Peers() {
		if x.Replica == st.Leader {
			x.Send(transport.KindProof, m.encode())
		}
	}
}

// receiveProof sorts a message. It runs on the shard.
func (p *Partition) receiveProof(body []byte, from multiraft.Peer) {
	m, err := decodeProof(body)
	if err != nil {
		p.logger.Warn("proof dropped", "from", from.Node, "error", err)
		return
	}
	leads := p.leading.Load() != 0
	if fromLeader := p.Status().Leader == from.Replica; !leads && !fromLeader {
		return // a leader of before
	}
	p.proofMu.Lock()
	defer p.proofMu.Unlock()
	switch {
	case !leads && m.kind == proofPoints:
		p.takePoints(m.points)
	case !leads && m.kind == proofRange:
		if len(p.prove.questions) < 2*maxStretches {
			p.prove.questions = append(p.prove.questions, request{m, from})
			p.m.enqueue(p, taskProof)
		}
	case !leads && m.kind == proofVerdict:
		p.condemned(m.from, m.to)
	case !leads && m.kind == proofAdopt:
		p.prove.adopt = &m
		p.m.enqueue(p, taskProof)
	case leads && m.kind == proofPoint:
		if p.prove.search == nil {
			p.prove.search = &search{replica: from, to: min(m.to, p.hw.Load()), next: p.logStart.Load(), delta: m.sum, origin: m.from}
			p.m.enqueue(p, taskProof)
		}
	case leads && m.kind == proofAnswer:
		p.takeAnswer(m, from)
	}
}

func (p *Partition) condemned(from, to int64) {
	p.Report(Damage{From: max(from, p.logStart.Load()), To: to, Diverged: true, File: p.dir, Reason: "the records are not those of the group's other replicas"})
}

// takePoints compares a leader's points with this replica's. proofMu is held.
func (p *Partition) takePoints(points []point) {
	p.prove.waiting = p.prove.waiting[:0]
	for _, x := range points {
		if own, ok := p.prove.marks.at(x.index); ok {
			p.compared(x, own)
			continue
		}
		p.prove.waiting = append(p.prove.waiting, x)
	}
	p.proofWaits.Store(len(p.prove.waiting) > 0)
	// The one that is this replica's state just now is not an entry to come.
	p.m.enqueue(p, taskProof)
}

// stepProof does one piece: answers a question, moves a search on, tells the followers.
func (p *Partition) stepProof() (again task) {
	now := p.m.cfg.Clock.Now()
	p.adoptSum()
	p.mu.Lock()
	at := point{p.st.index, p.st.end, p.st.sum, p.st.origin}
	p.proofMu.Lock()
	for i, w := range p.prove.waiting {
		if w.index == at.index {
			p.prove.waiting = slices.Delete(p.prove.waiting, i, i+1)
			p.compared(w, at)
			break
		}
	}
	var q *request
	if len(p.prove.questions) > 0 {
		x := p.prove.questions[0]
		p.prove.questions = append(p.prove.questions[:0], p.prove.questions[1:]...)
		q = &x
	}
	more := len(p.prove.questions) > 0
	p.proofMu.Unlock()
	p.mu.Unlock()
	if q != nil {
		p.answer(q)
	}
	if p.leading.Load() != 0 {
		p.expireStretches(now)
		p.tellPoints(at)
		more = p.searchOn(now) || more
	} else {
		p.proofMu.Lock()
		p.prove.stretches, p.prove.search = nil, nil
		p.proofMu.Unlock()
	}
	if more {
		return taskProof
	}
	return 0
}

// answer reads what a leader asks for.
func (p *Partition) answer(q *request) {
	m := proof{kind: proofAnswer, from: q.m.from, to: q.m.to}
	sum, to, err := p.sumOnDisk(q.m.from, q.m.to, 1<<62)
	m.sum, m.unable = sum, err != nil || to != q.m.to || q.m.from < p.compactedBelow()
	q.from.Send(transport.KindProof, m.encode())
}

// sumOnDisk adds up the records of [from, to), about max bytes of them, and says how far it got. What is damaged is an error, and reported.
func (p *Partition) sumOnDisk(from, to int64, most int) (sum uint64, next int64, err error) {
	next = from
	if to > p.hw.Load() || from < p.logStart.Load() {
		return 0, from, errDelta
	}
	for next < to && most > 0 {
		b, err := p.readBatches(next, to, min(most, p.m.cfg.Limits.DeltaChunkBytes), nil)
		if err != nil || len(b) == 0 {
			return sum, next, errJoin(errDelta, err)
		}
		most -= len(b)
		err = record.Each(b, func(h record.Header, _ []byte) error {
			if h.BaseOffset != next {
				sum++ // batches do not begin where they should: nothing equal comes of it
			}
			sum += record.Sum(h)
			next = h.LastOffset() + 1
			return nil
		})
		if err != nil {
			return sum, next, err
		}
	}
	return sum, next, nil
}

// tellPoints sends the followers this leader's sums, if something was applied since.
func (p *Partition) tellPoints(at point) {
	p.proofMu.Lock()
	defer p.proofMu.Unlock()
	if !p.proofDue.Load() || p.prove.asked == at.index {
		return
	}
	p.proofDue.Store(false)
	p.prove.asked = at.index
	m := proof{kind: proofPoints, points: []point{at}}
	for i := range p.prove.marks.rings {
		if ring := p.prove.marks.rings[i]; len(ring) > 0 && ring[len(ring)-1].index != at.index {
			m.points = append(m.points, ring[len(ring)-1])
		}
	}
	p.sendAll(m)
}

func (p *Partition) sendAll(m proof) (n int) {
	r := p.raft()
	if r == nil {
		return 0
	}
	body := m.encode()
	for _, x := range r.Peers() {
		x.Send(transport.KindProof, body)
		n++
	}
	return n
}

// proveStretch asks the followers for their sum of what this leader has just read. proofMu is held.
func (p *Partition) proveStretch(from, to int64, sum uint64, now time.Time) bool {
	if len(p.prove.stretches) >= maxStretches {
		return false
	}
	n := p.sendAll(proof{kind: proofRange, from: from, to: to, sum: sum})
	if n > 0 {
		p.prove.stretches = append(p.prove.stretches, stretch{from: from, to: to, sum: sum, answers: map[uint64]uint64{}, asked: n, til: now.Add(stretchLife)})
		p.m.later(stretchLife, func() { p.m.enqueue(p, taskProof) })
	}
	return true
}

// scrubbed is told what the scrubber has read of this partition: a leader has the followers compare it. genMu is read-held.
func (p *Partition) scrubbed(out *segment.Scrubbed) {
	if p.leading.Load() == 0 || len(out.Lost) > 0 || out.From >= out.To || out.From < p.logStart.Load() || out.To > p.hw.Load() || p.unfit.Load() ||
		out.From < p.log.CleanPoint().Holes {
		return
	}
	p.proofMu.Lock()
	defer p.proofMu.Unlock()
	p.proveStretch(out.From, out.To, out.Sum, p.m.cfg.Clock.Now())
}

// takeAnswer notes a follower's sum, and judges when all have come. proofMu is held.
func (p *Partition) takeAnswer(m proof, from multiraft.Peer) {
	for i := range p.prove.stretches {
		s := &p.prove.stretches[i]
		if s.from != m.from || s.to != m.to {
			continue
		}
		if m.unable {
			s.asked--
		} else {
			s.answers[from.Replica] = m.sum
		}
		if len(s.answers) >= s.asked {
			p.endStretch(i)
		}
		p.m.enqueue(p, taskProof)
		return
	}
}

func (p *Partition) expireStretches(now time.Time) {
	p.proofMu.Lock()
	defer p.proofMu.Unlock()
	for i := len(p.prove.stretches) - 1; i >= 0; i-- {
		if !now.Before(p.prove.stretches[i].til) {
			p.endStretch(i)
		}
	}
}

// endStretch judges what has been gathered. proofMu is held.
func (p *Partition) endStretch(i int) {
	s := p.prove.stretches[i]
	p.prove.stretches = slices.Delete(p.prove.stretches, i, i+1)
	peers := p.raft().Peers()
	p.m.stats.compared.Add(int64(len(s.answers)))
	votes := map[uint64]int{s.sum: 1}
	unequal := 0
	for _, sum := range s.answers {
		votes[sum]++
		if sum != s.sum {
			unequal++
		}
	}
	if q := p.prove.search; q != nil && s.from < q.to && (s.asked < len(peers) || len(s.answers) < s.asked) {
		q.unsure = true
	}
	if unequal == 0 {
		return
	}
	p.m.stats.unequal.Add(int64(unequal))
	if q := p.prove.search; q != nil {
		q.unequal++
	}
	majority := (len(peers)+1)/2 + 1
	switch {
	case len(peers) == 1 || votes[s.sum] >= majority:
		if len(peers) == 1 {
			p.logger.Error("the two replicas differ, and nothing tells which one is right: the leader's records are taken", "from", s.from, "to", s.to)
		}
		for _, x := range peers {
			if sum, ok := s.answers[x.Replica]; ok && sum != s.sum {
				p.logger.Error("a follower's records differ from the group's: it fetches them anew", "node", x.Node, "from", s.from, "to", s.to)
				x.Send(transport.KindProof, (&proof{kind: proofVerdict, from: s.from, to: s.to}).encode())
			}
		}
	case slices.ContainsFunc(peers, func(x multiraft.Peer) bool {
		sum, ok := s.answers[x.Replica]
		return ok && sum != s.sum && votes[sum] >= majority
	}):
		p.logger.Error("this leader's records differ from what the other replicas agree on: it gives way and fetches them anew", "from", s.from, "to", s.to)
		p.condemned(s.from, s.to)
	default:
		p.logger.Error("replicas differ, and no majority of them agrees: asked again with the next pass", "from", s.from, "to", s.to, "answers", len(s.answers))
	}
}

// searchOn compares the next stretch of a search, and ends it.
func (p *Partition) searchOn(now time.Time) (more bool) {
	p.proofMu.Lock()
	q, busy := p.prove.search, len(p.prove.stretches) >= maxStretches
	done := q != nil && q.next >= q.to && len(p.prove.stretches) == 0
	if done {
		p.prove.search = nil
		if q.unequal == 0 && !q.unsure {
			p.logger.Warn("a follower's records are equal to the leader's, its running sum is not: it takes the leader's", "node", q.replica.Node)
			q.replica.Send(transport.KindProof, (&proof{kind: proofAdopt, from: q.origin, to: q.origin, sum: q.delta}).encode())
		}
	}
	p.proofMu.Unlock()
	if q == nil || done || busy || q.next >= q.to {
		return false
	}
	q.next = max(q.next, p.logStart.Load())
	if holes := p.compactedBelow(); q.next < holes {
		p.proofMu.Lock()
		q.next, q.unsure = min(holes, q.to), true // not the same bytes on any two replicas
		p.proofMu.Unlock()
		return true
	}
	sum, next, err := p.sumOnDisk(q.next, q.to, stretchBytes)
	p.proofMu.Lock()
	defer p.proofMu.Unlock()
	if err != nil || next <= q.next {
		p.logger.Warn("the search for a difference ends early", "offset", q.next, "error", err)
		p.prove.search = nil
		return false
	}
	if p.proveStretch(q.next, next, sum, now) { // else the scrubber's have taken the room meanwhile: this one is next
		q.next = next
	}
	return true
}

// adoptSum corrects the running sum, after the records were found to be the leader's.
func (p *Partition) adoptSum() {
	p.mu.Lock()
	p.proofMu.Lock()
	m := p.prove.adopt
	p.prove.adopt = nil
	if m == nil {
		p.proofMu.Unlock()
		p.mu.Unlock()
		return
	}
	p.st.sum += m.sum
	p.st.origin = m.from
	p.prove.marks, p.prove.waiting = marks{}, nil
	p.proofWaits.Store(false)
	p.proofMu.Unlock()
	p.mu.Unlock()
	p.logger.Warn("the running sum of what was applied was wrong here, the records are not", "by", m.sum)
	p.m.markDirty(p, 0)
}

// compactedBelow returns the offset below which this replica's batches may not be what was applied. genMu must not be held.
func (p *Partition) compactedBelow() (below int64) {
	_ = p.withLog(func(l *segment.Log) error {
		below = l.CleanPoint().Holes
		return nil
	})
	return below
}
