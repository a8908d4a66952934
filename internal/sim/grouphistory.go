package sim

import (
	"math"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/chronik-go/chronik/internal/group"
)

// consumerGroup is a group as its members and its log know it.
type consumerGroup struct {
	w       *world
	name    string
	parts   []*partModel // of the topics that its members subscribe to
	members []*groupMember
	// What is in the log.
	generation  int32
	generations map[int32]*generation
	statics     map[string]string        // who has each instance id, by the last record of the classic group
	replaced    map[string]*replacement  // static members whose place another one has taken
	toldOf      map[string]int32         // the last generation that a member was told of
	state       map[*partModel]*offsetOp // the last commit of each partition, or its removal
	next        *nextModel               // its side by the consumer protocol
	removals    []*removal               // that were asked for, in the order begun
	removed     map[*partModel]int       // the version of the last removal of each partition's offset
	// holders are the members that may use a partition, by what they were told and have said since.
	holders map[*partModel]string
	// passing: nobody is ever a member of it.
	passing bool
	// ops is what members did to offsets, in the order begun; tick is their clock.
	ops  []*offsetOp
	tick int64
}

// offsetOp is a commit of one partition's offset, or a look at it, as the client that made it knows it.
type offsetOp struct {
	id         int
	part       *partModel
	read       bool
	offset     int64
	generation int32  // of the member that commits
	member     string // of a commit, empty: nobody's
	removal    bool
	stamp      int64     // of a commit, by its coordinator's clock
	begun      time.Time // by the simulator's
	call, back int64
	unknown    bool // no answer, or one that leaves it open
	refused    bool
	// late: its member waits for no answer any more. It may come after later ones, or after its member has looked where to begin again.
	late bool
	seen int // read: the number of the commit that was found, 0: none
	// Commits, as the log has them.
	at      int64 // -1: not there
	applied bool
	version int // how many commits of the partition there are up to this one
}

func (w *world) newGroup(name string, parts []*partModel) *consumerGroup {
	g := &consumerGroup{w: w, name: name, parts: parts, generations: map[int32]*generation{}, state: map[*partModel]*offsetOp{},
		removed: map[*partModel]int{}, holders: map[*partModel]string{}, replaced: map[string]*replacement{}, toldOf: map[string]int32{}}
	g.next = newNextModel(g)
	w.groupLogs.groups = append(w.groupLogs.groups, g)
	return g
}

// begin enters an operation. Until its answer is there, nobody knows what came of it.
func (g *consumerGroup) begin(part *partModel, offset int64, generation int32, read bool) *offsetOp {
	g.tick++
	o := &offsetOp{
		id: len(g.ops) + 1, part: part, offset: offset, generation: generation, read: read, call: g.tick, back: math.MaxInt64, unknown: true, at: -1,
		begun: g.w.clk.Now(),
	}
	if read {
		o.version = g.versions(part)
	}
	g.ops = append(g.ops, o)
	return o
}

func (g *consumerGroup) end(o *offsetOp) {
	g.tick++
	o.back, o.unknown = g.tick, false
}

// versions is how many commits of a partition are in the known part of the log.
func (g *consumerGroup) versions(part *partModel) int {
	if o := g.state[part]; o != nil {
		return o.version
	}
	return 0
}

// opNamed finds a commit by the metadata it was sent with.
func (g *consumerGroup) opNamed(metadata string) *offsetOp {
	n, err := strconv.Atoi(metadata)
	if err != nil || n < 1 || n > len(g.ops) || g.ops[n-1].read || g.ops[n-1].removal {
		return nil
	}
	return g.ops[n-1]
}

// committed checks a commit that a coordinator calls done: it is in the log.
func (g *consumerGroup) committed(o *offsetOp) {
	if o.at < 0 {
		g.w.fail("%s: commit %d of %s is acknowledged and not in the log", g.name, o.id, o.part)
	}
	g.w.counts["offsets committed"]++
}

// refuse notes that a commit was refused for certain.
func (g *consumerGroup) refuse(o *offsetOp) {
	o.refused = true
	if o.at >= 0 {
		g.w.fail("%s: commit %d of %s was refused and is in the log at %d", g.name, o.id, o.part, o.at)
	}
}

// found checks an offset that was fetched: it is that of a commit which the log had by then, and none before what it had when the
// request was sent.
func (g *consumerGroup) found(o *offsetOp, offset int64, metadata string) {
	if offset < 0 {
		if o.version > 0 && g.removed[o.part] < o.version {
			g.w.fail("%s: no offset of %s is found, after %d commits", g.name, o.part, o.version)
		}
		return
	}
	c := g.opNamed(metadata)
	switch {
	case c == nil || c.part != o.part || c.offset != offset:
		g.w.fail("%s: the offset of %s is said to be %d (%q), which no member has committed", g.name, o.part, offset, metadata)
		return
	case c.at < 0:
		g.w.fail("%s: commit %d of %s is found before it is in the log", g.name, c.id, o.part)
	case c.applied && c.version < o.version:
		g.w.fail("%s: commit %d of %s is found, the %dth, after there were %d", g.name, c.id, o.part, c.version, o.version)
	}
	o.seen, o.offset = c.id, offset
	g.w.counts["offsets fetched"]++
}

// historyTime bounds the search for an order of one partition's commits.
const historyTime = 5 * time.Second

// checkHistory looks for an order of the operations on each partition's offset, as clients saw them, that explains what they were told: a
// register each (linearizability). What the log says has no part in it.
func (g *consumerGroup) checkHistory() {
	w := g.w
	m := porcupine.Model{
		Init: func() any { return 0 },
		Step: func(state, input, _ any) (bool, any) {
			o := input.(*offsetOp)
			if o.read {
				return o.seen == state.(int), state
			}
			if o.removal {
				return true, 0
			}
			return true, o.id
		},
	}
	for _, p := range g.parts {
		var ops []porcupine.Operation
		for _, o := range g.ops {
			// A look without an answer says nothing, a commit that was refused did nothing.
			if o.part == p && !o.refused && !(o.read && o.unknown) {
				ops = append(ops, porcupine.Operation{Input: o, Call: o.call, Output: o, Return: o.back})
			}
		}
		w.counts["operations on group offsets"] += len(ops)
		switch porcupine.CheckOperationsTimeout(m, ops, historyTime) {
		case porcupine.Illegal:
			w.fail("%s: the commits of %s have no order that explains what was fetched", g.name, p)
			return
		case porcupine.Unknown:
			w.counts["histories too long to judge"]++
		}
	}
}

// settled says whether the group has come to rest, and why not: everyone is in one generation, every partition has one owner, and all
// that was acknowledged is consumed and committed.
func (g *consumerGroup) settled() (why string, ok bool) {
	if g.passing {
		return "", true
	}
	if g.next.epoch > 0 {
		if why, ok := g.next.settled(); !ok {
			return why, false
		}
		return g.consumed()
	}
	gen := g.generations[g.generation]
	if gen == nil {
		return "there is no generation", false
	}
	owners := 0
	for _, m := range g.members {
		if !m.placed || m.generation != g.generation {
			return "a member is not in generation " + strconv.Itoa(int(g.generation)), false
		}
		owners += len(m.owned)
	}
	if owners != len(g.parts) || len(gen.members) != len(g.members) {
		return strconv.Itoa(owners) + " partitions have owners, of " + strconv.Itoa(len(g.parts)), false
	}
	return g.consumed()
}

// consumed says whether all that was acknowledged is consumed and committed.
func (g *consumerGroup) consumed() (why string, ok bool) {
	for _, p := range g.parts {
		if o := g.state[p]; p.acked > 0 && (o == nil || o.offset < p.acked) {
			at := int64(-1)
			if o != nil {
				at = o.offset
			}
			return p.String() + " is committed up to " + strconv.FormatInt(at, 10) + " of " + strconv.FormatInt(p.acked, 10), false
		}
	}
	return "", true
}

// groupsWithin is how soon after healing, or after the last progress, every group must have consumed and committed everything: a member that is gone must be noticed,
// and a rebalance end, before that.
const groupsWithin = 40 * time.Second

// committed adds up how far all groups have come.
func (l *groupLogs) committed() (sum int64) {
	for _, g := range l.groups {
		for _, p := range g.parts {
			if o := g.state[p]; o != nil && !g.passing {
				sum += o.offset
			}
		}
	}
	return sum
}

// finishGroups waits until every group has settled, looks at its offsets once more as a newcomer does, and checks what its members saw.
func (w *world) finishGroups() {
	if len(w.groupLogs.groups) == 0 || w.failed != nil {
		return
	}
	settled := func() bool {
		for _, g := range w.groupLogs.groups {
			if _, ok := g.settled(); !ok {
				return false
			}
		}
		return true
	}
	done := w.run(w.bound(groupsWithin), settled)
	// A long backlog on slow nodes takes longer than that (seed 220): it may, as long as what is committed grows.
	for before := int64(-1); !done && w.failed == nil; done = w.run(w.bound(groupsWithin), settled) {
		now := w.groupLogs.committed()
		if now <= before {
			break
		}
		before = now
	}
	if !done && w.failed == nil {
		for _, g := range w.groupLogs.groups {
			if why, ok := g.settled(); !ok {
				w.fail("%s has not settled %v after healing: %s: %s", g.name, w.bound(groupsWithin), why, w.describe())
			}
		}
	}
	if w.failed == nil {
		w.restartStatics(settled)
	}
	left := len(w.groupLogs.groups)
	for _, g := range w.groupLogs.groups {
		w.newClient("looker", func(c *client) {
			m := &groupMember{client: c, g: g}
			for !m.look(g.parts) {
				c.sleep(50 * ms)
			}
			left--
		})
	}
	if !w.run(w.bound(writableWithin), func() bool { return left == 0 }) && w.failed == nil {
		w.fail("the offsets of groups can't be fetched %v after healing: %s", w.bound(writableWithin), w.describe())
	}
}

// checkGroups holds what members saw, and what every replica of __consumer_offsets holds in the end, against each other.
func (w *world) checkGroups() {
	for _, g := range w.groupLogs.groups {
		if w.failed == nil {
			g.checkHistory()
		}
	}
	t := w.intact().proc.core.Metadata().Image().Topics[group.Topic]
	if t == nil {
		return
	}
	for _, p := range t.Partitions {
		for _, r := range p.Replicas {
			if n := w.nodes[r.Node-1]; w.failed == nil && !n.ruined && !w.letGo(p, r) {
				if v, _ := n.proc.core.Partitions().Lookup(t.Name, p.Index); len(v.Damage()) == 0 {
					w.groupLogs.part(p.Index).check(v)
				}
			}
		}
	}
}
