package sim

import (
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Static members of the classic protocol (KIP-345) keep their place by their group.instance.id: who comes back within its session has
// the assignment that it had, in the same generation, and whoever still goes by its former member id is fenced.

// replacement is a static member's new life, in the place of an old one.
type replacement struct {
	id    string
	since time.Time // when it was in the log
	by    *proc     // who wrote it; nil: it was read
	index int32     // of the partition of __consumer_offsets
}

// drawStatic makes the next life by the classic protocol that of a static member, if the member is one.
func (m *groupMember) drawStatic() {
	if m.w.set.static && (m.name == "m0" || m.name == "m2") {
		m.instance = m.g.name + "-" + m.name
	}
}

// static says whether this life is a static member's by the classic protocol.
func (m *groupMember) static() bool { return m.instance != "" && !m.next }

// instanceID is what a request of the classic protocol says of the instance.
func (m *groupMember) instanceID() *string {
	if !m.static() {
		return nil
	}
	return &m.instance
}

// restart is a static member's process that ends without a word, and begins anew at once.
func (m *groupMember) restart() {
	instance := m.instance
	m.forget()
	m.instance, m.restarting = instance, false
}

// twin is a static member's process that is not dead, though the next one comes to take its place: it beats, commits, joins again and leaves as
// if it were the only one, until it is told that it is not.
func (m *groupMember) twin() {
	t := m.double()
	t.isLate = true
	m.w.counts["twins of static members"]++
	t.client = m.w.newClient("twin", func(c *client) {
		for n := 8 + c.rng.IntN(24); n > 0 && !m.w.healed && !t.fenced && t.id != ""; n-- {
			c.sleep(c.between(20*ms, t.session/4))
			t.joined, t.placed = true, true // whatever it was told
			if t.conn == nil || t.conn.broken {
				t.conn = nil
				t.find()
				continue
			}
			switch c.rng.IntN(12) {
			case 0:
				t.leave()
			case 1:
				t.rejoin()
			case 2, 3, 4:
				for _, o := range t.owned {
					o.committed = -1
				}
				_, _ = t.commit()
			default:
				t.beat()
			}
		}
		t.hangUp()
	})
}

// rejoin asks for the member's place in the present generation, or the next one, and does no more about it. It goes by an eager protocol, as join
// does: whoever asks uses nothing any more (seed 6364).
func (m *groupMember) rejoin() {
	m.g.release(m.id, nil)
	resp, err := m.askJoin(m.joinRequest())
	if err != nil {
		m.heard("join", 0, err)
		return
	}
	if r := resp.(*kmsg.JoinGroupResponse); m.heard("join", r.ErrorCode, nil) {
		m.generation = r.Generation
	}
}

// accepted checks that a request which a member sent may be accepted: it is not of one whose place another one has taken, as far as who answers
// must know.
func (g *consumerGroup) accepted(what, member string, sent time.Time, p *proc) {
	if r, ok := g.replaced[member]; ok && r.knownTo(p, sent) {
		g.w.fail("%s: node %d accepts the %s of %s, whose place %s has taken", g.name, p.node.id, what, member, r.id)
	}
}

// alive is accepted for what puts the end of the member's session off.
func (g *consumerGroup) alive(what, member string, sent time.Time, p *proc) {
	g.accepted(what, member, sent, p)
	g.next.beaten[member] = beat{sent, p}
}

// knownTo says whether a coordinator had written the replacement, or read it, before a request to it was sent.
func (r *replacement) knownTo(p *proc, sent time.Time) bool {
	began, done := p.loadBegan[r.index], p.loadDone[r.index]
	switch {
	case p == r.by && began.Before(r.since):
		return sent.After(r.since)
	case began.After(r.since) && !done.Before(began):
		return sent.After(done)
	}
	return false
}

// now follows a member's replacements.
func (g *consumerGroup) now(id string) string {
	for r, ok := g.replaced[id]; ok; r, ok = g.replaced[id] {
		id = r.id
	}
	return id
}

// replace notes that a static member's new life has taken the place of an old one.
func (g *consumerGroup) replace(old, id string, b *groupBatch) {
	if _, ok := g.replaced[old]; !ok && old != id {
		g.replaced[old] = &replacement{id: id, since: g.w.clk.Now(), by: b.by, index: b.index}
	}
}

// applyStatics compares a generation's static members with those in the record before: one has another's place only under the same instance
// id, and is missing only if it has left, or was silent for a session.
func (g *consumerGroup) applyStatics(at int64, next *generation, b *groupBatch, ragged bool) {
	for _, instance := range sortedKeys(g.statics) {
		old := g.statics[instance]
		id, ok := next.statics[instance]
		switch {
		case ok:
			g.replace(old, id, b)
		case !ragged:
			if why := g.mayMiss(old, b); why != "" {
				g.w.fail("%s: generation %d, at offset %d, is without the static member %s: %s", g.name, next.number, at, old, why)
			}
		}
	}
	g.statics = next.statics
}

// staysAway says whether a static member of a classic group has not come to join the generation that there is: what it uses still, as one
// of an earlier generation, is another's by now, and the coordinator refuses what it commits.
func (g *consumerGroup) staysAway(member string) bool {
	for _, id := range g.statics {
		if id == member {
			return g.next.epoch == 0 && g.toldOf[member] < g.generation
		}
	}
	return false
}

// mayMiss says why a static member must not be put out by a batch.
func (g *consumerGroup) mayMiss(member string, b *groupBatch) (why string) {
	t, ok := g.next.beaten[member]
	if g.next.leaving[member] || !ok || t.by != b.by {
		return ""
	}
	if silent := g.w.clk.Now().Sub(t.at); silent < g.w.surely(g.w.set.session) {
		return "it was heard of " + silent.String() + " before, and its session is " + g.w.set.session.String()
	}
	g.w.counts["static members expired"]++
	return ""
}

// successor is the generation as it is with the static members that are there in the next record of it, in the places of those before.
func (gen *generation) successor(next *generation) *generation {
	names := map[string]string{}
	for instance, old := range gen.statics {
		if id, ok := next.statics[instance]; ok && id != old {
			names[old] = id
		}
	}
	if len(names) == 0 {
		return gen
	}
	rename := func(id string) string {
		if n, ok := names[id]; ok {
			return n
		}
		return id
	}
	out := &generation{number: gen.number, leader: rename(gen.leader), since: gen.since, statics: next.statics}
	for _, m := range gen.members {
		out.members = append(out.members, rename(m))
	}
	slices.Sort(out.members)
	if gen.assignments != nil {
		out.assignments = map[string]string{}
		for m, a := range gen.assignments {
			out.assignments[rename(m)] = a
		}
	}
	return out
}

// restartStatics has all static members of classic groups end and begin anew, when everything is healed and every group has settled: none of
// them may cost the others a rebalance, and each has in the end what it had.
func (w *world) restartStatics(settled func() bool) {
	type before struct {
		g          *consumerGroup
		generation int32
		others     []string // the members that are not static
		owned      map[*groupMember]string
	}
	var all []before
	for _, g := range w.groupLogs.groups {
		b := before{g: g, generation: g.generation, owned: map[*groupMember]string{}}
		for _, m := range g.members {
			switch {
			case m.static():
				b.owned[m] = namesOf(m.has())
				m.restarting = true
				w.counts["static members restarted after healing"]++
			default:
				b.others = append(b.others, m.id)
			}
		}
		if len(b.owned) > 0 {
			all = append(all, b)
		}
	}
	if len(all) == 0 {
		return
	}
	expired := w.counts["members expired"]
	back := func() bool {
		for _, b := range all {
			for m := range b.owned {
				if m.restarting {
					return false
				}
			}
		}
		return settled()
	}
	if !w.run(w.bound(groupsWithin), back) {
		w.fail("static members have not come back %v after they were restarted: %s", w.bound(groupsWithin), w.describe())
		return
	}
	if w.counts["members expired"] > expired {
		return // somebody was not back within its session (seed 144), and that is a reason
	}
	for _, b := range all {
		var others []string
		for _, m := range b.g.members {
			if !m.static() {
				others = append(others, m.id)
			}
		}
		if b.g.generation != b.generation && slices.Equal(others, b.others) {
			w.fail("%s: its static members were restarted, nobody else came or went, and generation %d has become %d", b.g.name, b.generation, b.g.generation)
			return
		}
		for _, m := range b.g.members {
			if had, ok := b.owned[m]; ok && b.g.generation == b.generation && namesOf(m.has()) != had {
				w.fail("%s: the static member %s had %s, and has %s after its restart", b.g.name, m.name, had, namesOf(m.has()))
				return
			}
		}
	}
}
