package sim

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/record"
)

// groupLogs watch what coordinators write to __consumer_offsets and read back, and hold it against what they tell members. What is
// committed there is the truth about groups, in the log's order: whatever a member is told must be in it by then.
type groupLogs struct {
	w      *world
	groups []*consumerGroup
	parts  map[int32]*groupLog
}

// groupLog is one partition of __consumer_offsets as coordinators have seen it.
type groupLog struct {
	logs  *groupLogs
	index int32
	// next is up to where the log is known without a gap: what a coordinator wrote and did not live to hear of is learnt when the
	// next one loads.
	next  int64
	known map[int64]uint64 // checksum of a record, by its offset
	ahead map[int64]*groupBatch
	// loader is the node that loaded last.
	loader int32
	// last is the last record of each key in the known part. ragged: records before it have been compacted away, before anybody had seen
	// them, tombstones perhaps.
	last   map[string]groupKeyAt
	ragged bool
}

// groupKeyAt is a key's last record.
type groupKeyAt struct {
	at        int64
	tombstone bool
	e         groupEntry
}

// groupBatch is one batch, decoded.
type groupBatch struct {
	base, end int64
	stamp     int64     // the coordinator's clock when it wrote it, ms since 1970
	by        *proc     // who wrote it; nil: it was read
	index     int32     // of the partition
	at        time.Time // when its coordinator wrote it, by the simulator's clock; zero: it was read
	entries   []groupEntry
}

// groupEntry is a record: an offset, a classic group, or a part of a consumer group. All nil: a tombstone.
type groupEntry struct {
	g      *consumerGroup // nil: nothing to do with the simulator's groups
	kind   uint8
	key    string
	what   string
	delta  int64
	sum    uint64
	part   *partModel // of an offset
	offset *offsetOp
	stamp  int64 // of the commit
	group  *kmsg.GroupMetadataValue
	member string // of a consumer group
	next   *nextRecord
}

// Kinds of records, as Kafka numbers them.
const (
	kindOffset  = 1
	kindClassic = 2
	kindEpoch   = 3
	kindMember  = 5
	kindCurrent = 8
)

func (e *groupEntry) tombstone() bool { return e.offset == nil && e.group == nil && e.next == nil }

// watchedLog is a coordinator's log, seen by groupLogs.
type watchedLog struct {
	group.Log
	p     *proc
	index int32
}

// Append implements group.Log.
func (l watchedLog) Append(term uint64, batch []byte, done func(int64, error)) {
	logs := l.p.node.w.groupLogs
	b := logs.decode(batch)
	b.by, b.index, b.at = l.p, l.index, l.p.node.w.clk.Now()
	l.Log.Append(term, batch, func(base int64, err error) {
		if err == nil && !l.p.dead {
			b.end += base - b.base
			b.base = base
			logs.part(l.index).saw(b)
		}
		done(base, err)
	})
}

// Bounds implements group.Log: a coordinator asks for them when it begins to load.
func (l watchedLog) Bounds() (start, end int64) {
	l.p.loads[l.index], l.p.loadBegan[l.index] = map[string]int64{}, l.p.node.w.clk.Now()
	return l.Log.Bounds()
}

// Read implements group.Log.
func (l watchedLog) Read(offset int64, maxBytes int, buf []byte) ([]byte, error) {
	batches, err := l.Log.Read(offset, maxBytes, buf)
	if err == nil && !l.p.dead {
		l.p.node.w.groupLogs.part(l.index).read(offset, batches, l.p.loads[l.index])
	}
	return batches, err
}

func (s *groupLogs) part(index int32) *groupLog {
	l := s.parts[index]
	if l == nil {
		l = &groupLog{logs: s, index: index, known: map[int64]uint64{}, ahead: map[int64]*groupBatch{}, last: map[string]groupKeyAt{}}
		s.parts[index] = l
	}
	return l
}

// named finds a group of the simulator's, nil for another.
func (s *groupLogs) named(name string) *consumerGroup {
	i := slices.IndexFunc(s.groups, func(g *consumerGroup) bool { return g.name == name })
	if i < 0 {
		return nil
	}
	return s.groups[i]
}

// read takes batches that a coordinator has read from an offset on. What is missing between them has been compacted away. Into seen go the
// keys that were read, each with its last offset.
func (l *groupLog) read(from int64, batches []byte, seen map[string]int64) {
	expect := from
	err := record.Each(batches, func(h record.Header, raw []byte) error {
		b := l.logs.decode(raw)
		b.index = l.index
		if expect <= l.next && b.base > l.next {
			l.forward(b.base)
		}
		expect = b.end
		if b.base >= l.next && int64(len(b.entries)) < b.end-b.base {
			l.ragged = true
		}
		l.saw(b)
		for i := range b.entries {
			if e := &b.entries[i]; e.g != nil {
				seen[e.key] = max(seen[e.key], b.base+e.delta)
			}
		}
		return nil
	})
	if err != nil {
		l.logs.w.fail("%s-%d: unsound batches read at %d: %v", group.Topic, l.index, from, err)
	}
}

// saw takes a committed batch. In order, batches are checked one after the other. One that was seen before may have lost records to
// compaction since; those that are left are what they were.
func (l *groupLog) saw(b *groupBatch) {
	w, again := l.logs.w, b.base < l.next || l.ahead[b.base] != nil
	for _, e := range b.entries {
		at := b.base + e.delta
		sum, ok := l.known[at]
		switch {
		case ok && sum != e.sum:
			w.fail("%s-%d: offset %d holds two records", group.Topic, l.index, at)
		case !ok && again:
			w.fail("%s-%d: a record appears at offset %d, which was known without it", group.Topic, l.index, at)
		}
		l.known[at] = e.sum
		if e.offset != nil {
			e.offset.at = at
		}
		if e.next != nil && e.kind == kindCurrent {
			e.g.next.written(e.member, e.next)
		}
	}
	if !again {
		l.ahead[b.base] = b
		l.forward(l.next)
	}
}

// forward checks what follows the log's known part, up to an offset at least.
func (l *groupLog) forward(to int64) {
	for {
		b := l.ahead[l.next]
		if b == nil {
			if l.next >= to {
				return
			}
			l.ragged = true
			l.next++
			continue
		}
		delete(l.ahead, l.next)
		l.next = b.end
		for i := range b.entries {
			if e := &b.entries[i]; e.g != nil {
				l.logs.apply(l, b.base+e.delta, b, e)
				l.last[e.key] = groupKeyAt{b.base + e.delta, e.tombstone(), *e}
			}
		}
	}
}

// decode takes a batch apart.
func (s *groupLogs) decode(raw []byte) *groupBatch {
	h, err := record.ParseHeader(raw)
	if err != nil {
		s.w.fail("%s: a batch that is none: %v", group.Topic, err)
		return &groupBatch{}
	}
	b := &groupBatch{base: h.BaseOffset, end: h.LastOffset() + 1, stamp: h.MaxTimestamp}
	err = record.Records(raw, 1<<20, func(r record.Record) error {
		e, err := s.entry(r)
		var sum trace
		sum.mixBytes(r.Key)
		sum.mixBytes(r.Value)
		e.delta, e.sum = int64(r.OffsetDelta), sum.sum
		b.entries = append(b.entries, e)
		return err
	})
	if err != nil {
		s.w.fail("%s: a record that can't be read: %v", group.Topic, err)
	}
	return b
}

// entry decodes a record of a group of the simulator's.
func (s *groupLogs) entry(r record.Record) (e groupEntry, err error) {
	if len(r.Key) < 2 {
		return e, fmt.Errorf("a key of %d bytes", len(r.Key))
	}
	e.kind, e.key = r.Key[1], string(r.Key)
	switch e.kind {
	case 0, kindOffset:
		var k kmsg.OffsetCommitKey
		if err = k.ReadFrom(r.Key); err != nil {
			return e, err
		}
		if e.g = s.named(k.Group); e.g == nil {
			return e, nil
		}
		e.what = fmt.Sprintf("the offset of %s-%d", k.Topic, k.Partition)
		i := slices.IndexFunc(e.g.parts, func(p *partModel) bool { return p.topic == k.Topic && p.index == k.Partition })
		if i < 0 {
			return e, fmt.Errorf("%s: %s, which no member consumes", e.g.name, e.what)
		}
		e.part = e.g.parts[i]
		if r.Value == nil {
			return e, nil
		}
		var v kmsg.OffsetCommitValue
		if err = v.ReadFrom(r.Value); err != nil {
			return e, err
		}
		e.offset, e.stamp = e.g.opNamed(v.Metadata), v.CommitTimestamp
		if o := e.offset; o == nil || o.part.topic != k.Topic || o.part.index != k.Partition || o.offset != v.Offset {
			return e, fmt.Errorf("%s: %s is %d (%q), which no member has committed", e.g.name, e.what, v.Offset, v.Metadata)
		}
	case kindClassic:
		var k kmsg.GroupMetadataKey
		if err = k.ReadFrom(r.Key); err != nil {
			return e, err
		}
		if e.g = s.named(k.Group); e.g == nil {
			return e, nil
		}
		e.what = "the group"
		if r.Value != nil {
			e.group = new(kmsg.GroupMetadataValue)
			err = e.group.ReadFrom(r.Value)
		}
	default:
		err = s.nextEntry(&e, r)
	}
	return e, err
}

// generation is one of a group's, as the log has it.
type generation struct {
	number      int32
	leader      string
	members     []string          // sorted
	since       int64             // when it came to its state, ms since 1970 by its coordinator's clock; -1: not known
	assignments map[string]string // by member, once the leader's is there
	statics     map[string]string // members by instance id
	// upgraded: it has become a consumer group, which may become a classic one again before its epoch has grown.
	upgraded bool
}

// apply checks a record against those before it.
func (s *groupLogs) apply(l *groupLog, at int64, b *groupBatch, e *groupEntry) {
	g := e.g
	switch {
	case e.offset != nil:
		s.applyOffset(at, g, e, l.ragged)
	case e.group != nil:
		s.applyGroup(at, g, e.group, b, l.ragged)
	case e.part != nil:
		g.removeOffset(at, b, e.part, l.ragged)
	case e.kind == kindClassic:
		g.removeClassic(at, b, l.ragged)
	default:
		g.applyNext(at, b, e, l.ragged)
	}
}

// applyOffset checks a commit: it is in there once, of the generation that holds then, and not behind the one before.
func (s *groupLogs) applyOffset(at int64, g *consumerGroup, e *groupEntry, ragged bool) {
	w, o := s.w, e.offset
	before := g.state[o.part]
	switch {
	case o.applied:
		w.fail("%s: commit %d of %s is in the log twice, the second time at %d", g.name, o.id, o.part, at)
	case o.generation < 0 && (len(g.next.members) > 0 || g.generations[g.generation] != nil && len(g.generations[g.generation].members) > 0):
		if !ragged {
			w.fail("%s: nobody's commit %d of %s is in the log at offset %d, and the group has members", g.name, o.id, o.part, at)
		}
	case o.generation < 0:
	case len(g.next.members) > 0:
		if why := g.next.mayCommit(o); why != "" && !ragged {
			w.fail("%s: commit %d of %s by %s in epoch %d is in the log at offset %d: %s", g.name, o.id, o.part, o.member, o.generation, at, why)
		}
	case o.generation != g.generation:
		w.fail("%s: a member of generation %d has committed %s at offset %d, after generation %d began", g.name, o.generation, o.part, at, g.generation)
	case !ragged && !slices.Contains(g.generations[g.generation].members, o.member):
		w.fail("%s: %s has committed %s at offset %d in generation %d, and is no member of it", g.name, o.member, o.part, at, g.generation)
	}
	w.log("%s: commit %d of %s: offset %d in generation %d at %d, given up or late: %v", g.name, o.id, o.part, o.offset, o.generation, at, o.late)
	if o.late { // consumers commit again when they have read on; these may have nothing left to read (seed 6989)
		for _, m := range g.members {
			for _, has := range m.owned {
				has.again = has.again || has.part == o.part
			}
		}
	}
	if before != nil && o.offset < before.offset && !o.late && !before.late {
		w.fail("%s: the committed offset of %s goes back from %d to %d", g.name, o.part, before.offset, o.offset)
	}
	o.applied, o.stamp = true, e.stamp
	o.version = g.versions(o.part) + 1
	g.state[o.part] = o
}

// applyGroup checks a group's record: its generation does not fall, and one generation has one leader, one roster, and one
// assignment, in which no partition has two owners.
func (s *groupLogs) applyGroup(at int64, g *consumerGroup, v *kmsg.GroupMetadataValue, b *groupBatch, ragged bool) {
	w := s.w
	next := &generation{number: v.Generation, since: v.CurrentStateTimestamp, statics: map[string]string{}}
	if v.Leader != nil {
		next.leader = *v.Leader
	}
	for _, m := range v.Members {
		next.members = append(next.members, m.MemberID)
		if m.InstanceID != nil {
			next.statics[*m.InstanceID] = m.MemberID
		}
		if len(m.Assignment) > 0 {
			if next.assignments == nil {
				next.assignments = map[string]string{}
			}
			next.assignments[m.MemberID] = string(m.Assignment)
		}
	}
	slices.Sort(next.members)
	if v.Generation < g.generation {
		w.fail("%s: generation %d is written at offset %d, after generation %d", g.name, v.Generation, at, g.generation)
		return
	}
	if was := g.generations[v.Generation]; was != nil && !was.upgraded {
		old := was.successor(next)
		if old != was {
			w.counts["static members back without a rebalance"]++
		}
		switch {
		case old.leader != next.leader || !slices.Equal(old.members, next.members):
			w.fail("%s: generation %d has leader %s and members %v, then at offset %d leader %s and members %v", g.name, v.Generation, old.leader, old.members,
				at, next.leader, next.members)
		case old.assignments != nil && !maps.Equal(old.assignments, next.assignments):
			w.fail("%s: generation %d is assigned twice, differently, at offset %d", g.name, v.Generation, at)
		}
	} else {
		w.counts["group generations"]++
	}
	g.applyStatics(at, next, b, ragged)
	g.generation, g.generations[v.Generation] = v.Generation, next
	g.checkOwners(next)
}

// checkOwners sees to it that a generation's assignment gives no partition to two members.
func (g *consumerGroup) checkOwners(gen *generation) {
	owner := map[string]string{}
	for _, m := range gen.members {
		var a kmsg.ConsumerMemberAssignment
		if raw := gen.assignments[m]; raw == "" {
			continue
		} else if err := a.ReadFrom([]byte(raw)); err != nil {
			g.w.fail("%s: the assignment of %s in generation %d can't be read: %v", g.name, m, gen.number, err)
			return
		}
		for _, t := range a.Topics {
			for _, p := range t.Partitions {
				name := fmt.Sprintf("%s-%d", t.Topic, p)
				if other, ok := owner[name]; ok {
					g.w.fail("%s: in generation %d both %s and %s own %s", g.name, gen.number, other, m, name)
				}
				owner[name] = m
			}
		}
	}
}

// toldJoin checks what a coordinator tells a member that joins: the generation is in the log, with that leader and that member.
func (g *consumerGroup) toldJoin(r *kmsg.JoinGroupResponse) {
	gen := g.generations[r.Generation]
	g.toldOf[r.MemberID] = r.Generation
	switch {
	case gen != nil && g.replaced[r.MemberID] != nil: // it is told what it was: there is another one in its place by now
	case g.next.told[toldEpoch{r.MemberID, r.Generation}] != nil:
		g.w.counts["joins of classic members of a consumer group"]++
	case gen == nil:
		g.w.fail("%s: %s is told of generation %d, which is not in the log", g.name, r.MemberID, r.Generation)
	case g.now(gen.leader) != g.now(r.LeaderID) || !slices.Contains(gen.members, r.MemberID):
		g.w.fail("%s: %s is told that %s leads generation %d; in the log it is led by %s and has the members %v", g.name, r.MemberID, r.LeaderID,
			r.Generation, gen.leader, gen.members)
	}
	g.w.counts["joins"]++
}

// toldSync checks the assignment that a member is told: it is in the log.
func (g *consumerGroup) toldSync(number int32, member string, assignment []byte) {
	gen := g.generations[number]
	if g.next.toldClassic(member, number, assignment) {
		return
	}
	if gen == nil || gen.assignments[member] != string(assignment) && gen.assignments[g.now(member)] != string(assignment) {
		g.w.fail("%s: %s is told an assignment in generation %d that is not in the log", g.name, member, number)
		return
	}
	g.w.counts["assignments told"]++
}

// check reads a partition of __consumer_offsets from a replica: it holds what coordinators have seen.
func (l *groupLog) check(p *partition.Partition) {
	raw, err := readReplica(p, p.LogStart(), p.HighWatermark())
	if err != nil {
		l.logs.w.fail("%s: reading it: %v", group.Topic, err)
		return
	}
	seen := map[string]int64{}
	l.read(p.LogStart(), raw, seen)
	l.loadedWhole(seen)
	if l.next > p.HighWatermark() {
		l.logs.w.fail("%s-%d: it ends at %d, and coordinators have seen %d", group.Topic, l.index, p.HighWatermark(), l.next)
	}
}

// loaded notes that a node has loaded a partition's groups.
func (s *groupLogs) loaded(p *proc, partition int32, groups int64) {
	l, node := s.part(partition), p.node.id
	l.loadedWhole(p.loads[partition])
	delete(p.loads, partition)
	p.loadDone[partition] = s.w.clk.Now()
	if groups > 0 && l.loader != 0 {
		if l.loader == node {
			s.w.counts["coordinators back where they were"]++
		} else {
			s.w.counts["coordinators moved"]++
		}
	}
	l.loader = node
}
