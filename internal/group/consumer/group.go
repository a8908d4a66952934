package consumer

import (
	"maps"
	"slices"
)

// Group is a consumer group. It is not safe for concurrent use.
type Group struct {
	ID string

	epoch       int32
	hash        int64 // of the topics subscribed to, as they were at the epoch
	written     bool  // there is a record of the epoch
	targetEpoch int32
	computed    int64 // when the target was, ms since 1970

	ids     []string // of members, in order
	members map[string]*Member
	target  map[string]Assignment
	current map[string]*Current

	resolved map[string]*Resolved // by regular expression

	// What follows from the above.
	statics map[string]string    // member ids by group.instance.id
	owners  map[Partition]string // member ids by what is assigned to them or not given back yet
	bytes   int                  // of the members' subscriptions
	classic int                  // members by the classic protocol

	seen  uint64 // Topics.Version that subscriptions were last compared with
	dirty bool   // something of the log's may be missing: the next heartbeat begins a new epoch
}

// Member is what a member said of itself. It is not changed once made.
type Member struct {
	ID                   string
	Instance, Rack       *string
	ClientID, ClientHost string
	Topics               []string // in order
	Regex                string   // empty: none
	RebalanceTimeout     int32    // ms; -1: not said
	Assignor             *string  // nil: whichever
	// Classic is what a member by the classic protocol brought along; nil: it is one by the consumer protocol.
	Classic *Classic
}

// Classic is what is known of a member by the classic protocol.
type Classic struct {
	SessionTimeout int32 // ms
	Protocols      []Protocol
}

// Protocol is a protocol of the classic kind, and what the member says there.
type Protocol struct {
	Name     string
	Metadata []byte
}

// MemberState is how far a member has come to its target.
type MemberState int8

// States of a member, as they are written.
const (
	// Stable: the member has its target.
	Stable MemberState = iota
	// Unrevoked: it has to give partitions back.
	Unrevoked
	// Unreleased: others have to give back what it is to get.
	Unreleased
)

// Current is what a member has by now. It is not changed once made.
type Current struct {
	// Epoch is the member's; Previous is the one before, which it may still show if the answer with Epoch got lost.
	Epoch, Previous int32
	State           MemberState
	// Assigned is what the member may use. Since has the epochs in which it got each; nil where they are not known.
	Assigned Assignment
	Since    []int32
	// Revoking is what it must give back.
	Revoking Assignment
}

// Resolved is what a regular expression matched. It is not changed once made.
type Resolved struct {
	Topics  []string // in order
	Version int64    // of the metadata
	Time    int64    // ms since 1970
}

// Epochs of heartbeats that leave.
const (
	leaves        = -1
	leavesForSome = -2 // a static member that will be back
)

// newcomer is what a member has that just comes.
var newcomer = &Current{Epoch: 0, Previous: -1}

// New makes an empty group.
func New(id string) *Group {
	return &Group{ID: id, epoch: 1, members: map[string]*Member{}, target: map[string]Assignment{}, current: map[string]*Current{},
		resolved: map[string]*Resolved{}, statics: map[string]string{}, owners: map[Partition]string{}}
}

// Size is the number of members.
func (g *Group) Size() int { return len(g.members) }

// Written says whether anything of the group is in the log.
func (g *Group) Written() bool { return g.written || len(g.members) > 0 }

// Bytes is what the members' subscriptions take.
func (g *Group) Bytes() int { return g.bytes }

// Members lists the ids of members, in order; not to be changed.
func (g *Group) Members() []string { return g.ids }

// Member returns what a member said of itself, nil if there is none.
func (g *Group) Member(id string) *Member { return g.members[id] }

// Current returns what a member has; nil if there is no such member.
func (g *Group) Current(id string) *Current {
	if g.members[id] == nil {
		return nil
	}
	if c := g.current[id]; c != nil {
		return c
	}
	return newcomer
}

// setMember puts or removes (nil) a member.
func (g *Group) setMember(id string, m *Member) {
	if old := g.members[id]; old != nil {
		g.bytes -= old.size()
		if old.Classic != nil {
			g.classic--
		}
		if old.Instance != nil && g.statics[*old.Instance] == id {
			delete(g.statics, *old.Instance)
		}
	}
	at, known := slices.BinarySearch(g.ids, id)
	if m == nil {
		if known {
			g.ids = slices.Delete(g.ids, at, at+1)
		}
		delete(g.members, id)
		return
	}
	if !known {
		g.ids = slices.Insert(g.ids, at, id)
	}
	g.members[id] = m
	g.bytes += m.size()
	if m.Classic != nil {
		g.classic++
	}
	if m.Instance != nil {
		g.statics[*m.Instance] = id
	}
}

func (g *Group) setTarget(id string, a Assignment, known bool) {
	if known {
		g.target[id] = a
	} else {
		delete(g.target, id)
	}
}

// setCurrent puts or removes (nil) what a member has.
func (g *Group) setCurrent(id string, c *Current) {
	if old := g.current[id]; old != nil {
		for _, list := range []Assignment{old.Assigned, old.Revoking} {
			for _, p := range list {
				if g.owners[p] == id {
					delete(g.owners, p)
				}
			}
		}
	}
	if c == nil {
		delete(g.current, id)
		return
	}
	g.current[id] = c
	for _, list := range []Assignment{c.Assigned, c.Revoking} {
		for _, p := range list {
			g.owners[p] = id
		}
	}
}

func (g *Group) setResolved(expression string, r *Resolved) {
	if r == nil {
		delete(g.resolved, expression)
		return
	}
	g.resolved[expression] = r
}

// EntryBytes is about what a protocol takes beside its bytes, in the lists and sets that it is in; topicBytes is the same for a topic.
const (
	EntryBytes = 64
	topicBytes = 16
)

// size is about what the member's subscription takes in memory.
func (m *Member) size() (n int) {
	n = len(m.Regex)
	for _, t := range m.Topics {
		n += len(t) + topicBytes
	}
	if m.Classic != nil {
		for _, p := range m.Classic.Protocols {
			n += len(p.Name) + len(p.Metadata) + EntryBytes
		}
	}
	return n
}

// same says whether the member says the same of itself.
func (m *Member) same(o *Member) bool {
	eq := func(a, b *string) bool { return a == b || a != nil && b != nil && *a == *b }
	if (m.Classic == nil) != (o.Classic == nil) {
		return false
	}
	if m.Classic != nil && (m.Classic.SessionTimeout != o.Classic.SessionTimeout || !slices.EqualFunc(m.Classic.Protocols, o.Classic.Protocols,
		func(a, b Protocol) bool { return a.Name == b.Name && string(a.Metadata) == string(b.Metadata) })) {
		return false
	}
	return m.ID == o.ID && eq(m.Instance, o.Instance) && eq(m.Rack, o.Rack) && m.ClientID == o.ClientID && m.ClientHost == o.ClientHost &&
		m.sameSubscription(o) && m.RebalanceTimeout == o.RebalanceTimeout && eq(m.Assignor, o.Assignor)
}

func (m *Member) sameSubscription(o *Member) bool {
	return slices.Equal(m.Topics, o.Topics) && m.Regex == o.Regex
}

// reconciled says whether a member has come to a target.
func (c *Current) reconciled(targetEpoch int32) bool {
	return c.State == Stable && c.Epoch == targetEpoch
}

// State is the group's name for where it is, as Kafka has it.
func (g *Group) State() string {
	switch {
	case len(g.members) == 0:
		return "Empty"
	case g.epoch > g.targetEpoch:
		return "Assigning"
	}
	for _, id := range g.ids {
		if !g.Current(id).reconciled(g.targetEpoch) {
			return "Reconciling"
		}
	}
	return "Stable"
}

// topicsOf lists what a member subscribes to by name or by its regular expression, in order.
func (g *Group) topicsOf(m *Member) []string {
	r := g.resolved[m.Regex]
	if m.Regex == "" || r == nil || len(r.Topics) == 0 {
		return m.Topics
	}
	if len(m.Topics) == 0 {
		return r.Topics
	}
	all := slices.Concat(m.Topics, r.Topics)
	slices.Sort(all)
	return slices.Compact(all)
}

// Subscribes says whether a member subscribes to a topic.
func (g *Group) Subscribes(topic string) bool {
	for _, id := range g.ids {
		if _, ok := slices.BinarySearch(g.topicsOf(g.members[id]), topic); ok {
			return true
		}
	}
	return false
}

// subscribed lists all topics that members subscribe to, in order.
func (g *Group) subscribed() []string {
	all := map[string]bool{}
	for _, id := range g.ids {
		for _, t := range g.topicsOf(g.members[id]) {
			all[t] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// Subscribed is the set of topics that members subscribe to.
func (g *Group) Subscribed() map[string]bool {
	all := map[string]bool{}
	for _, t := range g.subscribed() {
		all[t] = true
	}
	return all
}
