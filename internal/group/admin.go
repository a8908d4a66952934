package group

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"github.com/chronik-go/chronik/internal/group/consumer"
)

// Description is a group as an administrator sees it.
type Description struct {
	State                  State // Dead: there is no such group
	ProtocolType, Protocol string
	Members                []DescribedMember
}

// DescribedMember is a member; subscription and assignment only while the group is stable.
type DescribedMember struct {
	ID                   string
	Instance             *string
	ClientID, ClientHost string
	Metadata, Assignment []byte
}

// Describe tells of a group; of one that is not there with ErrGroupNotFound.
func (c *Coordinator) Describe(id string, done func(Description, error)) {
	fail := func(err error) { done(Description{State: Dead}, err) }
	c.with(id, fail, func(s *shard) {
		g, err := s.find(id)
		if errors.Is(err, ErrNotAvailable) || err == nil && g.consumer != nil {
			err = ErrGroupNotFound // as a classic group
		}
		if err != nil {
			s.reply(func() { fail(err) })
			return
		}
		d := g.classic.describe()
		s.reply(func() { done(d, nil) })
	})
}

func (c *classicGroup) describe() Description {
	d := Description{State: c.state, ProtocolType: c.protocolType}
	if c.state == Stable {
		d.Protocol = c.protocol
	}
	for _, m := range c.order {
		dm := DescribedMember{ID: m.id, Instance: m.instance, ClientID: m.clientID, ClientHost: m.clientHost}
		if c.state == Stable {
			dm.Metadata, dm.Assignment = m.metadata(c.protocol), m.assignment
		}
		d.Members = append(d.Members, dm)
	}
	return d
}

// Listed is a group in a list.
type Listed struct {
	ID, ProtocolType, State, Type string
}

// List names the groups that this node coordinates, by id. states and types, if any, choose among them, in any case of letters.
// ErrLoading: some are not known yet.
func (c *Coordinator) List(states, types []string) ([]Listed, error) {
	c.Observe()
	among := func(list []string, name string) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(x string) bool { return strings.EqualFold(x, name) })
	}
	var out []Listed
	loading := false
	for _, s := range c.all() {
		s.do(func() {
			err := s.ready()
			loading = loading || errors.Is(err, ErrLoading)
			if err != nil {
				return
			}
			for _, g := range s.sorted() {
				if l := g.listed(); !g.deleting && among(states, l.State) && among(types, l.Type) {
					out = append(out, l)
				}
			}
		})
	}
	if loading {
		return nil, ErrLoading
	}
	slices.SortFunc(out, func(a, b Listed) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// Delete removes a group without members, and its offsets.
func (c *Coordinator) Delete(id string, done func(error)) {
	c.with(id, done, func(s *shard) {
		g, err := s.find(id)
		if err == nil && !g.deletable() {
			err = ErrNonEmptyGroup
		}
		if err != nil {
			s.reply(func() { done(err) })
			return
		}
		s.deleteGroup(g, done)
	})
}

// deleteGroup writes the tombstones of a group and its offsets and then forgets it. Meanwhile nothing is added to it. done,
// which may be nil, is called without mu.
func (s *shard) deleteGroup(g *group, done func(error)) {
	if done == nil {
		done = func(error) {}
	}
	g.deleting = true
	life := s.life
	s.whenQuiet(g, func() {
		if s.life != life {
			s.reply(func() { done(ErrNotCoordinator) })
			return
		}
		var records []keyValue
		for _, tp := range g.sortedOffsets() {
			records = append(records, keyValue{key: offsetKey(g.id, tp)})
		}
		if g.classic.generation > 0 {
			records = append(records, keyValue{key: groupKey(g.id)})
		}
		if g.consumer != nil {
			ch := &consumer.Change{}
			g.consumer.state.Bury(ch)
			for _, r := range ch.Records {
				records = append(records, keyValue{key: r.Key})
			}
		}
		s.appendAll(records, func(batch []keyValue, base int64) {}, func(err error) {
			g.deleting = false
			if err != nil {
				// What is in the log of it is not known here: the log has the truth.
				s.log.Warn("a group could not be deleted as a whole", "group", g.id, "error", err)
				s.reload()
				s.reply(func() { done(appendError(err, ErrNotAvailable)) })
				return
			}
			s.discard(g)
			s.reply(func() { done(nil) })
		}, func(err error) { s.reply(func() { done(lostError(err)) }) })
	})
}
