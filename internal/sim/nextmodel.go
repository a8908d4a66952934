package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/record"
)

// nextModel is a group by the consumer protocol (KIP-848), as its records in __consumer_offsets have it. They are decoded here, by Kafka's
// schema, and not by the code that wrote them.
type nextModel struct {
	g       *consumerGroup
	epoch   int32 // of the group, 0: it is none
	members map[string]*nextMemberRecord
	current map[string]*nextCurrent
	owners  map[*partModel]string // by what is assigned or not given back yet
	// told is what was written of a member in an epoch: the assignments that it may be told.
	told map[toldEpoch]map[string]bool
	// beaten is when a member sent the last request that was accepted; leaving are those that have said good-bye.
	beaten  map[string]beat
	leaving map[string]bool
}

// beat is a request of a member's that was accepted: when it was sent, and by whom it was accepted.
type beat struct {
	at time.Time
	by *proc
}

type toldEpoch struct {
	member string
	epoch  int32
}

// nextMemberRecord is a member of a consumer group.
type nextMemberRecord struct {
	instance string
	classic  bool
	since    time.Time // when it came, by the simulator's clock
	revoking time.Time // when it came to have something to give back; zero: it has nothing
}

// nextCurrent is what a member has.
type nextCurrent struct {
	epoch    int32
	state    int8
	assigned []*partModel
	revoking []*partModel
	since    map[*partModel]int32 // the epochs in which it got them
}

// nextRecord is a record of a consumer group that matters here.
type nextRecord struct {
	epoch   int32
	member  *nextMemberRecord
	current *nextCurrent
}

func newNextModel(g *consumerGroup) *nextModel {
	n := &nextModel{g: g, told: map[toldEpoch]map[string]bool{}, beaten: map[string]beat{}, leaving: map[string]bool{}}
	n.end()
	return n
}

// end makes it no group.
func (n *nextModel) end() {
	n.epoch, n.members, n.current, n.owners = 0, map[string]*nextMemberRecord{}, map[string]*nextCurrent{}, map[*partModel]string{}
}

// nextEntry decodes a record of a consumer group.
func (s *groupLogs) nextEntry(e *groupEntry, r record.Record) error {
	k := kbin.Reader{Src: r.Key[2:]}
	e.g = s.named(k.String())
	if e.g == nil {
		return nil
	}
	e.what = fmt.Sprintf("a record of kind %d of a consumer group", e.kind)
	if e.kind == kindMember || e.kind == kindCurrent {
		e.member = k.String()
	}
	if r.Value == nil {
		return nil
	}
	v := kbin.Reader{Src: r.Value}
	if version := v.Int16(); version != 0 {
		return fmt.Errorf("%s: version %d", e.what, version)
	}
	e.next = &nextRecord{}
	switch e.kind {
	case kindEpoch:
		e.next.epoch = v.Int32()
	case kindMember:
		m := &nextMemberRecord{}
		if instance := v.CompactNullableString(); instance != nil {
			m.instance = *instance
		}
		v.CompactNullableString()                  // rack
		v.CompactString()                          // client id
		v.CompactString()                          // host
		for n := v.CompactArrayLen(); n > 0; n-- { // topics
			v.CompactString()
		}
		v.CompactNullableString() // regular expression
		v.Int32()                 // rebalance timeout
		v.CompactNullableString() // assignor
		m.classic = v.Uvarint() > 0
		e.next.member = m
	case kindCurrent:
		c := &nextCurrent{epoch: v.Int32()}
		v.Int32() // the epoch before
		c.state = v.Int8()
		c.assigned = e.g.readParts(&v)
		c.revoking = e.g.readParts(&v)
		e.next.epoch, e.next.current = c.epoch, c
	default:
		return nil
	}
	if !v.Ok() {
		return fmt.Errorf("%s: it is too short", e.what)
	}
	return nil
}

// readParts reads partitions by topic id.
func (g *consumerGroup) readParts(v *kbin.Reader) []*partModel {
	var out []*partModel
	for n := v.CompactArrayLen(); n > 0 && v.Ok(); n-- {
		topic := g.w.topicOf(v.Uuid())
		for k := v.CompactArrayLen(); k > 0 && v.Ok(); k-- {
			out = g.appendPart(out, topic, v.Int32())
		}
		for t := v.Uvarint(); t > 0 && v.Ok(); t-- {
			v.Uvarint()
			v.Span(int(v.Uvarint()))
		}
	}
	return out
}

func (g *consumerGroup) appendPart(to []*partModel, topic string, index int32) []*partModel {
	for _, p := range g.parts {
		if p.topic == topic && p.index == index {
			return append(to, p)
		}
	}
	g.w.fail("%s: %s-%d is assigned, to which nobody subscribes", g.name, topic, index)
	return to
}

// topicOf finds a topic's name.
func (w *world) topicOf(id [16]byte) string {
	if name := w.topicNames[id]; name != "" {
		return name
	}
	for _, n := range w.nodes {
		if n.up() && n.proc.core != nil {
			if t := n.proc.core.Metadata().Image().TopicsByID[id]; t != nil {
				w.topicNames[id] = t.Name
				return t.Name
			}
		}
	}
	return fmt.Sprintf("a topic with id %x", id)
}

// partsOf are the partitions of an assignment by the classic protocol.
func (g *consumerGroup) partsOf(assignment []byte) (out []*partModel) {
	var a kmsg.ConsumerMemberAssignment
	if len(assignment) == 0 || a.ReadFrom(assignment) != nil {
		return nil
	}
	for _, t := range a.Topics {
		for _, p := range t.Partitions {
			out = g.appendPart(out, t.Topic, p)
		}
	}
	return out
}

// namesOf stands for a set of partitions.
func namesOf(parts []*partModel) string {
	names := make([]string, len(parts))
	for i, p := range parts {
		names[i] = p.String()
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// written notes what a member may be told: it is in the log.
func (n *nextModel) written(member string, r *nextRecord) {
	k := toldEpoch{member, r.epoch}
	if n.told[k] == nil {
		n.told[k] = map[string]bool{}
	}
	n.told[k][namesOf(r.current.assigned)] = true
}

// toldClassic says whether an assignment is one that a member by the classic protocol has in a consumer group.
func (n *nextModel) toldClassic(member string, generation int32, assignment []byte) bool {
	return n.told[toldEpoch{member, generation}][namesOf(n.g.partsOf(assignment))]
}

// has says whether a batch brings a record of a group, by kind; values only.
func (b *groupBatch) has(g *consumerGroup, kind uint8) bool {
	return slices.ContainsFunc(b.entries, func(e groupEntry) bool { return e.g == g && e.kind == kind && !e.tombstone() })
}

// applyNext checks a record of a consumer group against those before it.
func (g *consumerGroup) applyNext(at int64, b *groupBatch, e *groupEntry, ragged bool) {
	n, w := g.next, g.w
	switch {
	case e.kind == kindEpoch && e.next == nil:
		if len(n.members) > 0 && !ragged {
			w.fail("%s: it ends at offset %d, with members", g.name, at)
		}
		n.end()
		if b.has(g, kindClassic) {
			w.counts["groups downgraded"]++
		} else {
			g.generation, g.generations = 0, map[int32]*generation{}
		}
	case e.kind == kindEpoch:
		if before := max(n.epoch, g.generation); e.next.epoch < before && !ragged {
			w.fail("%s: epoch %d is written at offset %d, after %d", g.name, e.next.epoch, at, before)
		}
		n.epoch = e.next.epoch
		w.counts["epochs of consumer groups"]++
	case e.kind == kindMember && e.next == nil:
		if why := n.mayRemove(e.member, b); why != "" && !ragged {
			w.fail("%s: the member %s is taken out at offset %d: %s", g.name, e.member, at, why)
		}
		delete(n.members, e.member)
		n.drop(e.member)
	case e.kind == kindMember:
		if e.next.member.since = b.at; b.by == nil {
			e.next.member.since = w.clk.Now()
		}
		if old := n.members[e.member]; old != nil {
			e.next.member.since, e.next.member.revoking = old.since, old.revoking
		}
		n.members[e.member] = e.next.member
	case e.kind == kindCurrent && e.next == nil:
		n.drop(e.member)
	case e.kind == kindCurrent:
		n.become(at, e.member, e.next.current, ragged)
	}
}

// drop forgets what a member has.
func (n *nextModel) drop(member string) {
	delete(n.current, member)
	for p, owner := range n.owners {
		if owner == member {
			delete(n.owners, p)
		}
	}
}

// become checks what a member comes to have: its epoch only grows, up to the group's, and nothing that it has is another's.
func (n *nextModel) become(at int64, member string, c *nextCurrent, ragged bool) {
	w, g, old := n.g.w, n.g, n.current[member]
	switch {
	case ragged:
	case n.epoch > 0 && c.epoch > n.epoch:
		w.fail("%s: %s is in epoch %d at offset %d, and the group in %d", g.name, member, c.epoch, at, n.epoch)
	case old != nil && c.epoch < old.epoch && c.epoch != -2 && old.epoch != -2:
		w.fail("%s: the epoch of %s goes back from %d to %d at offset %d", g.name, member, old.epoch, c.epoch, at)
	}
	c.since = map[*partModel]int32{}
	if m := n.members[member]; m != nil {
		if m.revoking = (time.Time{}); len(c.revoking) > 0 {
			m.revoking = w.clk.Now()
		}
	}
	n.drop(member)
	for _, p := range slices.Concat(c.assigned, c.revoking) {
		if owner := n.owners[p]; owner != "" && !ragged {
			w.fail("%s: %s is given to %s at offset %d, and %s has it", g.name, p, member, at, owner)
		}
		n.owners[p] = member
	}
	for _, p := range c.assigned {
		if c.since[p] = c.epoch; old != nil {
			if since, ok := old.since[p]; ok {
				c.since[p] = since
			}
		}
	}
	n.current[member] = c
	w.log("%s: %s is in epoch %d state %d with %s, gives back %s", g.name, member, c.epoch, c.state, namesOf(c.assigned), namesOf(c.revoking))
	w.counts["steps of members of consumer groups"]++
}

// mayRemove says why a member must not be taken out by a batch: it lives, and nobody takes its place.
func (n *nextModel) mayRemove(member string, b *groupBatch) (why string) {
	w, m := n.g.w, n.members[member]
	if m != nil && m.instance != "" {
		for _, e := range b.entries {
			if e.g == n.g && e.kind == kindMember && e.next != nil && e.next.member.instance == m.instance {
				w.counts["static members replaced"]++
				n.g.replace(member, e.member, b)
				return ""
			}
		}
	}
	if m == nil || n.leaving[member] || m.classic || b.has(n.g, kindClassic) {
		return ""
	}
	silent := w.clk.Now().Sub(m.since)
	if t, ok := n.beaten[member]; ok {
		// Another coordinator may have accepted it that was none any more: who takes the member out has not heard of it.
		if silent = w.clk.Now().Sub(t.at); t.by != b.by {
			w.counts["members expired that another coordinator had heard of"]++
			return ""
		}
	}
	if silent >= w.surely(w.set.session) || !m.revoking.IsZero() && w.clk.Now().Sub(m.revoking) >= w.surely(w.set.rebalance/2) {
		w.counts["members of consumer groups expired"]++
		return ""
	}
	return fmt.Sprintf("it has been silent for %v, and its session is %v", silent, w.set.session)
}

// mayCommit says why a commit of a member must not be in the log, in its place.
func (n *nextModel) mayCommit(o *offsetOp) (why string) {
	m, c := n.members[o.member], n.current[o.member]
	switch {
	case m == nil:
		return "it is no member"
	case c == nil || o.generation == c.epoch:
		return ""
	case m.classic || o.generation > c.epoch:
		return fmt.Sprintf("it is in epoch %d", c.epoch)
	}
	if since, ok := c.since[o.part]; !ok || o.generation < since {
		return fmt.Sprintf("it is in epoch %d and has the partition since %d (%v)", c.epoch, since, ok)
	}
	n.g.w.counts["commits of an earlier epoch accepted"]++
	return ""
}

// exclusive checks, once the log is known whole again, that nothing has two owners.
func (n *nextModel) exclusive() {
	owners := map[*partModel]string{}
	for _, p := range n.g.parts {
		for _, id := range sortedKeys(n.current) {
			c := n.current[id]
			if !slices.Contains(c.assigned, p) && !slices.Contains(c.revoking, p) {
				continue
			}
			if other := owners[p]; other != "" {
				n.g.w.fail("%s: both %s and %s have %s", n.g.name, other, id, p)
			}
			owners[p] = id
		}
	}
}

// settled says whether every member has what it is to have, and knows it, and every partition has one owner.
func (n *nextModel) settled() (why string, ok bool) {
	g, owners := n.g, 0
	if len(n.members) != len(g.members) {
		return fmt.Sprintf("the group has %d members, of %d", len(n.members), len(g.members)), false
	}
	for _, m := range g.members {
		c := n.current[m.id]
		if c == nil || !m.placed || m.generation != c.epoch || c.epoch != n.epoch || c.state != 0 {
			return fmt.Sprintf("%s is not in epoch %d, or has not all that it is to have (%v)", m.name, n.epoch, c), false
		}
		var owned []*partModel
		for _, o := range m.owned {
			owned = append(owned, o.part)
		}
		if namesOf(owned) != namesOf(c.assigned) {
			return fmt.Sprintf("%s owns %s, and has been given %s", m.name, namesOf(owned), namesOf(c.assigned)), false
		}
		owners += len(owned)
	}
	if owners != len(g.parts) {
		return fmt.Sprintf("%d partitions have owners, of %d", owners, len(g.parts)), false
	}
	return "", true
}

// isMember says whether somebody is a member by what is in the log.
func (g *consumerGroup) isMember(id string) bool {
	if g.next.members[id] != nil {
		return true
	}
	gen := g.generations[g.generation]
	return g.next.epoch == 0 && gen != nil && slices.Contains(gen.members, id)
}

// hold notes that a member may use partitions, since it was told so: nobody else may who has not given them back and is a member.
func (g *consumerGroup) hold(member string, parts []*partModel) {
	for _, p := range parts {
		if g.next.epoch > 0 {
			if c := g.next.current[member]; c == nil || !slices.Contains(c.assigned, p) {
				g.w.counts["assignments told by a coordinator that is none any more"]++
				continue
			}
		}
		if other := g.holders[p]; other != "" && other != member && g.isMember(other) && !g.staysAway(other) {
			g.w.fail("%s: %s is told to use %s, which %s uses and has not given back", g.name, member, p, other)
		}
		g.holders[p] = member
	}
}

// release notes that a member says, or is about to say, that it has these partitions and no others.
func (g *consumerGroup) release(member string, keeps []*partModel) {
	for _, p := range g.parts {
		if g.holders[p] == member && !slices.Contains(keeps, p) {
			delete(g.holders, p)
		}
	}
}

// leaves notes that a member is about to say good-bye.
func (g *consumerGroup) leaves(member string) {
	g.next.leaving[member] = true
	g.release(member, nil)
}

// toldNext checks what a member is told: it is in the log.
func (g *consumerGroup) toldNext(member string, r *kmsg.ConsumerGroupHeartbeatResponse, assigned []*partModel) {
	n, w := g.next, g.w
	writ := n.told[toldEpoch{member, r.MemberEpoch}]
	switch {
	case r.MemberEpoch == -1:
		if n.members[member] != nil {
			w.fail("%s: %s is told that it has left, and is a member in the log", g.name, member)
		}
		return
	case writ == nil:
		w.fail("%s: %s is told of epoch %d, which is not in the log", g.name, member, r.MemberEpoch)
	case r.Assignment != nil && !writ[namesOf(assigned)]:
		w.fail("%s: %s is told in epoch %d that it has %s, which is not in the log", g.name, member, r.MemberEpoch, namesOf(assigned))
	}
	w.counts["consumer heartbeats answered"]++
}
