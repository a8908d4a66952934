package consumer

import (
	"fmt"
	"slices"
)

// Env is what a group's decisions depend on beside the group.
type Env struct {
	Topics *Topics
	Now    int64 // ms since 1970
	// MaxSize is group.consumer.max.size.
	MaxSize int
	// MaxBytes bounds what the members of a group bring along.
	MaxBytes int
	// Room is how much more they may bring along, whatever the group has: what the node has left.
	Room int
	// Assignors are the names of group.consumer.assignors; the first is the default.
	Assignors []string
	// NewID makes an id for a member that has none (v0).
	NewID func() string
}

// Heartbeat is what a member says: who it is, and what is new.
type Heartbeat struct {
	Version int16
	Group   string
	Member  string
	// Epoch is the member's; 0 joins, -1 leaves, -2 is a static member's that will be back.
	Epoch                int32
	Instance, Rack       *string // nil: as before
	ClientID, ClientHost string
	RebalanceTimeout     int32    // ms; -1: as before
	Topics               []string // nil: as before
	Regex                *string  // nil: as before
	Assignor             *string  // nil: as before
	// Owned is what the member has; with OwnedSaid false it did not say.
	Owned     Assignment
	OwnedSaid bool
	// Classic is set for a join of the classic protocol, which has no epoch.
	Classic *Classic
}

// Answer is what a member is told.
type Answer struct {
	Member string
	Epoch  int32
	// Assignment is what the member may use; with Changed false it is not told, since it knows.
	Assignment Assignment
	Changed    bool
	// Left: it was a member's last.
	Left bool
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalidRequest}, args...)...)
}

// Check finds what is wrong with a heartbeat, whatever group it is for.
func (hb *Heartbeat) Check(env *Env) error {
	empty := func(s *string) bool { return s != nil && *s == "" }
	switch {
	case (hb.Version >= 1 || hb.Epoch > 0 || hb.Epoch == leaves || hb.Epoch == leavesForSome) && hb.Member == "":
		return invalid("the member id is empty")
	case hb.Group == "":
		return invalid("the group id is empty")
	case empty(hb.Instance):
		return invalid("the instance id is empty")
	case empty(hb.Rack):
		return invalid("the rack id is empty")
	case hb.Epoch < leavesForSome:
		return invalid("the member epoch %d is none", hb.Epoch)
	case hb.Epoch == leavesForSome && hb.Instance == nil:
		return invalid("only a static member, with an instance id, can leave for a while")
	case hb.Epoch == 0 && hb.RebalanceTimeout == -1:
		return invalid("the first heartbeat must have a rebalance timeout")
	case hb.Epoch == 0 && (!hb.OwnedSaid || len(hb.Owned) > 0):
		return invalid("whoever joins must say that it owns nothing")
	case hb.Epoch == 0 && hb.Topics == nil && hb.Regex == nil:
		return invalid("the first heartbeat must have topics or a regular expression")
	case hb.Assignor != nil && !slices.Contains(env.Assignors, *hb.Assignor):
		return fmt.Errorf("%w: %q is none of %q", ErrUnsupportedAssignor, *hb.Assignor, env.Assignors)
	}
	return nil
}

// Heartbeat takes a member's heartbeat, checked, or refuses it without a change.
func (g *Group) Heartbeat(ch *Change, env *Env, hb *Heartbeat) (a Answer, err error) {
	err = ch.Try(func() error {
		if hb.Epoch < 0 {
			a, err = g.leave(ch, env, hb)
		} else {
			a, err = g.beat(ch, env, hb)
		}
		return err
	})
	return a, err
}

func (g *Group) beat(ch *Change, env *Env, hb *Heartbeat) (Answer, error) {
	id := hb.Member
	if id == "" {
		id = env.NewID()
	}
	if len(g.members) >= env.MaxSize && g.members[id] == nil {
		return Answer{}, fmt.Errorf("%w: it has %d members", ErrGroupFull, len(g.members))
	}
	m, cur, err := g.admit(ch, hb, id)
	if err != nil {
		return Answer{}, err
	}
	if err := g.update(ch, env, hb, m); err != nil {
		return Answer{}, err
	}
	g.refresh(ch, env, false)
	g.retarget(ch, env)
	next, err := g.reconcile(id, hb.Owned, hb.OwnedSaid)
	if err != nil {
		return Answer{}, err
	}
	if next != g.Current(id) {
		ch.current(g, id, next)
	}
	full := hb.Epoch == 0 || hb.RebalanceTimeout != -1 && (hb.Topics != nil || hb.Regex != nil) && hb.OwnedSaid
	return Answer{Member: id, Epoch: next.Epoch, Assignment: next.Assigned, Changed: full || !next.Assigned.Equal(cur.Assigned)}, nil
}

// admit finds the member of a heartbeat, or takes it in. cur is what it had.
func (g *Group) admit(ch *Change, hb *Heartbeat, id string) (m *Member, cur *Current, err error) {
	joins := hb.Epoch == 0
	if hb.Instance != nil {
		old := g.statics[*hb.Instance]
		switch {
		case joins && old == "":
		case joins:
			// Its successor has everything that it had.
			if had := g.Current(old); had.Epoch != leavesForSome && g.members[old].Classic == nil {
				return nil, nil, fmt.Errorf("%w: %s, instance %s", ErrUnreleasedInstance, old, *hb.Instance)
			}
			return g.replace(ch, old, id), newcomer, nil
		case old == "":
			return nil, nil, fmt.Errorf("%w: the instance %s is not known", ErrUnknownMember, *hb.Instance)
		case old != id:
			return nil, nil, fmt.Errorf("%w: %s, instance %s", ErrFencedInstance, old, *hb.Instance)
		}
	}
	m = g.members[id]
	if m == nil {
		if !joins {
			return nil, nil, fmt.Errorf("%w: %s", ErrUnknownMember, id)
		}
		return &Member{ID: id, RebalanceTimeout: -1}, newcomer, nil
	}
	cur = g.Current(id)
	// The answer with the member's epoch may have got lost: then it comes with the one before, and owns no more than it should.
	if hb.Epoch != cur.Epoch && !(hb.Epoch == cur.Previous && hb.Epoch < cur.Epoch && hb.OwnedSaid && len(hb.Owned.minus(cur.Assigned)) == 0) {
		return nil, nil, fmt.Errorf("%w: it is %d, the member has %d", ErrFencedMemberEpoch, cur.Epoch, hb.Epoch)
	}
	return m, cur, nil
}

// replace puts a static member's new life in its old one's place.
func (g *Group) replace(ch *Change, old, id string) *Member {
	m := *g.members[old]
	cur, target := *g.Current(old), g.target[old]
	m.ID = id
	cur.Epoch, cur.Previous = 0, 0
	ch.remove(g, old)
	ch.member(g, id, &m)
	ch.target(g, id, target, true)
	ch.current(g, id, &cur)
	return &m
}

// update keeps what a member says of itself; a change of its subscription begins a new epoch.
func (g *Group) update(ch *Change, env *Env, hb *Heartbeat, old *Member) error {
	m := *old
	m.ClientID, m.ClientHost, m.Classic = hb.ClientID, hb.ClientHost, hb.Classic
	if hb.Instance != nil {
		m.Instance = hb.Instance
	}
	if hb.Rack != nil {
		m.Rack = hb.Rack
	}
	if hb.RebalanceTimeout != -1 {
		m.RebalanceTimeout = hb.RebalanceTimeout
	}
	if hb.Assignor != nil {
		m.Assignor = hb.Assignor
	}
	if hb.Topics != nil {
		m.Topics = slices.Clone(hb.Topics)
		slices.Sort(m.Topics)
		m.Topics = slices.Compact(m.Topics)
	}
	if hb.Regex != nil {
		m.Regex = *hb.Regex
	}
	if m.Regex != "" && g.resolved[m.Regex] == nil {
		if _, err := CompileRegex(m.Regex); err != nil {
			return err
		}
	}
	known := g.members[m.ID] != nil
	if known && m.same(old) {
		return nil
	}
	more := m.size()
	if known {
		more -= old.size()
	}
	if more > 0 && more > min(env.MaxBytes-g.bytes, env.Room) {
		return fmt.Errorf("%w: no room for its members' subscriptions", ErrGroupFull)
	}
	ch.member(g, m.ID, &m)
	if !m.sameSubscription(old) {
		g.refresh(ch, env, true)
	}
	return nil
}

// Remove takes a member out that has gone or has not given back in time what it had to.
func (g *Group) Remove(ch *Change, env *Env, id string) {
	ch.remove(g, id)
	g.refresh(ch, env, true)
}

func (g *Group) leave(ch *Change, env *Env, hb *Heartbeat) (Answer, error) {
	id := hb.Member
	if hb.Instance != nil {
		switch old := g.statics[*hb.Instance]; {
		case old == "":
			return Answer{}, fmt.Errorf("%w: the instance %s is not known", ErrUnknownMember, *hb.Instance)
		case old != id:
			return Answer{}, fmt.Errorf("%w: %s, instance %s", ErrFencedInstance, old, *hb.Instance)
		}
	}
	if g.members[id] == nil {
		return Answer{}, fmt.Errorf("%w: %s", ErrUnknownMember, id)
	}
	if hb.Epoch == leavesForSome {
		// Its partitions stay its own until its session ends.
		c := *g.Current(id)
		c.Epoch, c.Revoking = leavesForSome, nil
		ch.current(g, id, &c)
		return Answer{Member: id, Epoch: leavesForSome}, nil
	}
	g.Remove(ch, env, id)
	return Answer{Member: id, Epoch: leaves, Left: true}, nil
}

// refresh compares what members subscribe to with the topics that there are, and begins a new epoch if that differs, or if it is
// due anyway.
func (g *Group) refresh(ch *Change, env *Env, due bool) {
	if !due && !g.dirty && g.seen == env.Topics.Version {
		return
	}
	g.resolve(ch, env)
	hash := env.Topics.hash(g.subscribed())
	if seen := g.seen; seen != env.Topics.Version {
		g.seen = env.Topics.Version
		ch.undo = append(ch.undo, func() { g.seen = seen })
	}
	if due || g.dirty || hash != g.hash {
		ch.epoch(g, g.epoch+1, hash)
	} else if !g.written {
		ch.epoch(g, g.epoch, hash)
	}
}

// resolve finds the topics of the members' regular expressions, and forgets those that nobody has any more.
func (g *Group) resolve(ch *Change, env *Env) {
	used := map[string]bool{}
	for _, id := range g.ids {
		if expression := g.members[id].Regex; expression != "" {
			used[expression] = true
		}
	}
	for _, expression := range sortedKeys(used) {
		old := g.resolved[expression]
		if old != nil && g.seen == env.Topics.Version {
			continue
		}
		re, err := CompileRegex(expression)
		if err != nil {
			continue // it was one when it was taken in
		}
		if names := env.Topics.matching(re); old == nil || !slices.Equal(names, old.Topics) {
			ch.resolve(g, expression, &Resolved{Topics: names, Version: int64(env.Topics.Version), Time: env.Now})
		}
	}
	for _, expression := range sortedKeys(g.resolved) {
		if !used[expression] {
			ch.resolve(g, expression, nil)
		}
	}
}

// retarget computes the target assignment of the group's epoch, if it is not there yet.
func (g *Group) retarget(ch *Change, env *Env) {
	if g.epoch <= g.targetEpoch {
		return
	}
	target := assign(g.Assignor(env.Assignors), g.problem(env.Topics))
	for i, id := range g.ids {
		ch.target(g, id, target[i], true)
	}
	ch.targetEpoch(g, g.epoch, env.Now)
}

// Assignor is the one that most members ask for; of two with equal votes the one listed first, which is the default as well.
func (g *Group) Assignor(assignors []string) string {
	votes := map[string]int{}
	for _, id := range g.ids {
		if a := g.members[id].Assignor; a != nil {
			votes[*a]++
		}
	}
	best := assignors[0]
	for _, name := range assignors {
		if votes[name] > votes[best] {
			best = name
		}
	}
	return best
}
