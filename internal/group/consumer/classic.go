package consumer

import (
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// A consumer group may have members by the classic protocol, while an application moves from one protocol to the other. They keep
// joining, syncing and sending heartbeats as ever; their generation is their member epoch, and their assignment comes from
// here instead of a leader.

// ClassicJoin is a join of the classic protocol.
type ClassicJoin struct {
	Member string
	// New: the client did not know its member id.
	New                              bool
	Instance                         *string
	ClientID, ClientHost             string
	SessionTimeout, RebalanceTimeout int32 // ms
	Protocols                        []Protocol
}

// JoinClassic takes a member in by the classic protocol, or lets it go on. Its answer's epoch is the member's generation.
func (g *Group) JoinClassic(ch *Change, env *Env, j *ClassicJoin) (a Answer, err error) {
	topics, owned, rack, err := classicSubscription(env.Topics, j.Protocols)
	if err != nil {
		return Answer{}, err
	}
	if len(g.members) >= env.MaxSize && g.members[j.Member] == nil {
		return Answer{}, fmt.Errorf("%w: it has %d members", ErrGroupFull, len(g.members))
	}
	if !g.shares(j.Protocols) {
		return Answer{}, ErrInconsistentProtocol
	}
	none := ""
	hb := &Heartbeat{Member: j.Member, Instance: j.Instance, ClientID: j.ClientID, ClientHost: j.ClientHost, Rack: rack,
		RebalanceTimeout: j.RebalanceTimeout, Topics: topics, Regex: &none,
		Classic: &Classic{SessionTimeout: j.SessionTimeout, Protocols: j.Protocols}}
	err = ch.Try(func() error {
		m, err := g.admitClassic(ch, j)
		if err != nil {
			return err
		}
		if err := g.update(ch, env, hb, m); err != nil {
			return err
		}
		g.refresh(ch, env, false)
		g.retarget(ch, env)
		next, err := g.reconcile(j.Member, NewAssignment(owned), true)
		if err != nil {
			return err
		}
		if next != g.Current(j.Member) {
			ch.current(g, j.Member, next)
		}
		a = Answer{Member: j.Member, Epoch: next.Epoch, Assignment: next.Assigned, Changed: true}
		return nil
	})
	return a, err
}

// shares says whether a member with these protocols has one in common with all classic members.
func (g *Group) shares(protocols []Protocol) bool {
	common := make(map[string]int, len(protocols)) // name -> how many of the members looked at have it
	for _, p := range protocols {
		common[p.Name] = 0
	}
	n := 0
	for _, id := range g.ids {
		c := g.members[id].Classic
		if c == nil {
			continue
		}
		some := false
		for _, p := range c.Protocols {
			if have, ok := common[p.Name]; ok && have == n {
				common[p.Name], some = n+1, true
			}
		}
		if n++; !some {
			return false
		}
	}
	return len(common) > 0
}

// admitClassic finds the member of a join, or takes it in. A static member's new life takes the place of the old one, whatever
// protocol that used.
func (g *Group) admitClassic(ch *Change, j *ClassicJoin) (*Member, error) {
	if j.Instance != nil {
		old := g.statics[*j.Instance]
		switch {
		case old == "" && !j.New:
			return nil, fmt.Errorf("%w: the instance %s is not known", ErrUnknownMember, *j.Instance)
		case old != "" && j.New:
			return g.replace(ch, old, j.Member), nil
		case old != "" && old != j.Member:
			return nil, fmt.Errorf("%w: %s, instance %s", ErrFencedInstance, old, *j.Instance)
		}
	}
	if m := g.members[j.Member]; m != nil {
		return m, nil
	}
	return &Member{ID: j.Member, RebalanceTimeout: -1}, nil
}

// classicMember finds who sends a request of the classic protocol.
func (g *Group) classicMember(id string, instance *string) (*Member, error) {
	m, err := g.named(id, instance)
	if err == nil && m.Classic == nil {
		return nil, fmt.Errorf("%w: %s, by the classic protocol", ErrUnknownMember, id)
	}
	return m, err
}

// named finds a member by its id, a static one perhaps by its instance alone.
func (g *Group) named(id string, instance *string) (*Member, error) {
	if instance != nil {
		switch old := g.statics[*instance]; {
		case old == "":
			return nil, fmt.Errorf("%w: the instance %s is not known", ErrUnknownMember, *instance)
		case id == "":
			id = old // an administrator's: whoever has the instance now
		case old != id:
			return nil, fmt.Errorf("%w: %s, instance %s", ErrFencedInstance, old, *instance)
		}
	}
	m := g.members[id]
	if m == nil {
		return nil, fmt.Errorf("%w: %s", ErrUnknownMember, id)
	}
	return m, nil
}

// SyncClassic gives a classic member its assignment, in the form of its protocol.
func (g *Group) SyncClassic(env *Env, id string, instance *string, generation int32, protocolType, protocol *string) (assignment []byte, err error) {
	m, err := g.classicMember(id, instance)
	if err != nil {
		return nil, err
	}
	c := g.Current(m.ID)
	switch {
	case id == "":
		return nil, ErrUnknownMember
	case generation != c.Epoch:
		return nil, fmt.Errorf("%w: it is %d, the member has %d", ErrIllegalGeneration, c.Epoch, generation)
	case protocolType != nil && *protocolType != "consumer", protocol != nil && *protocol != m.Classic.Protocols[0].Name:
		return nil, ErrInconsistentProtocol
	case g.epoch > c.Epoch && c.State != Unrevoked:
		return nil, ErrRebalanceInProgress
	}
	return encodeClassic(c.Assigned, env.Topics, m.Classic.Protocols[0].Metadata), nil
}

// encodeClassic writes an assignment in the version that the member's subscription has.
func encodeClassic(a Assignment, topics *Topics, metadata []byte) []byte {
	out := kmsg.ConsumerMemberAssignment{}
	if len(metadata) >= 2 {
		out.Version = min(int16(metadata[0])<<8|int16(metadata[1]), 3)
	}
	a.EachTopic(func(id TopicID, partitions []int32) {
		if t := topics.byID[id]; t != nil {
			out.Topics = append(out.Topics, kmsg.ConsumerMemberAssignmentTopic{Topic: t.Name, Partitions: partitions})
		}
	})
	return out.AppendTo(nil)
}

// BeatClassic says whether a classic member, which lives, is to join again: for a new epoch, to give partitions back, or because all
// that it waits for is free.
func (g *Group) BeatClassic(ch *Change, env *Env, id string, instance *string, generation int32) error {
	m, err := g.classicMember(id, instance)
	if err != nil {
		return err
	}
	g.refresh(ch, env, false)
	switch c := g.Current(m.ID); {
	case id == "":
		return ErrUnknownMember
	case generation != c.Epoch:
		return fmt.Errorf("%w: it is %d, the member has %d", ErrIllegalGeneration, c.Epoch, generation)
	case g.epoch > c.Epoch, c.State == Unrevoked, c.State == Unreleased && !g.waits(m.ID, c):
		return ErrRebalanceInProgress
	}
	return nil
}

// waits says whether something that a member is to have belongs to another.
func (g *Group) waits(id string, c *Current) bool {
	return slices.ContainsFunc(g.target[id].minus(c.Assigned), func(p Partition) bool { return g.owners[p] != "" })
}

// LeaveClassic takes a member out, of whatever protocol: administrators remove members by LeaveGroup, a static one perhaps by its
// instance alone.
func (g *Group) LeaveClassic(ch *Change, env *Env, id string, instance *string) error {
	m, err := g.named(id, instance)
	if err == nil {
		g.Remove(ch, env, m.ID)
	}
	return err
}

// AllClassic says whether the group has members, and all are of the classic protocol.
func (g *Group) AllClassic() bool { return len(g.members) > 0 && g.classic == len(g.members) }

// ClassicMember is a member of a classic group.
type ClassicMember struct {
	Member
	Assignment []byte // as the group's leader made it
}

// Upgrade makes an empty group of what a classic group was: everybody has what the last leader assigned, in an epoch that was the
// generation. What a member had when it joined last and was not assigned again it has still to give back, since it goes by a cooperative
// protocol: it does so once it sees its assignment, and then joins again. (Kafka's fromClassicGroup takes it for free at once.) The assignments
// may be of no use, if the group was about to rebalance: what follows begins another epoch, as in Kafka.
func (g *Group) Upgrade(ch *Change, env *Env, generation int32, members []ClassicMember) error {
	return ch.Try(func() error {
		had, owned := make([]Assignment, len(members)), make([][]Partition, len(members))
		var assigned partitionSet // whatever the leader did: nothing has two owners
		for i := range members {
			m := members[i].Member
			topics, has, rack, err := classicSubscription(env.Topics, m.Classic.Protocols)
			if err != nil {
				return err
			}
			if b := members[i].Assignment; len(b) > 0 {
				if err := ReadAssignment(b, func(name string, p int32) { assigned.add(env.Topics, name, p) }); err != nil {
					return fmt.Errorf("%w: its assignment can't be read: %w", ErrInconsistentProtocol, err)
				}
			}
			had[i], owned[i] = NewAssignment(assigned.begin()), has
			m.Rack, m.Topics = rack, topics
			ch.member(g, m.ID, &m)
		}
		epoch := max(generation, 1)
		ch.epoch(g, epoch, 0) // whatever topics the last leader knew: the next heartbeat or join begins an epoch with those that there are
		for i := range members {
			ch.target(g, members[i].ID, had[i], true)
		}
		ch.targetEpoch(g, epoch, env.Now)
		for i := range members {
			state := Stable
			for _, p := range owned[i] {
				assigned.addPartition(p)
			}
			revoking := NewAssignment(assigned.begin())
			if len(revoking) > 0 {
				state = Unrevoked
			}
			c := newcomer.become(state, epoch, had[i], revoking, epoch)
			c.Previous = epoch
			ch.current(g, members[i].ID, c)
		}
		return nil
	})
}

// Downgrade returns the members, all classic, with what they have, which they may have to give back still, for a classic group of the
// generation that is the group's epoch. They join again; until then the group may become a consumer group once more. (Kafka's fromConsumerGroup
// writes down what they are to have, and then gives away what is in use.)
func (g *Group) Downgrade(env *Env) (generation int32, members []ClassicMember) {
	for _, id := range g.ids {
		m, c := g.members[id], g.Current(id)
		has := NewAssignment(slices.Concat(c.Assigned, c.Revoking))
		members = append(members, ClassicMember{*m, encodeClassic(has, env.Topics, m.Classic.Protocols[0].Metadata)})
	}
	return g.epoch, members
}
