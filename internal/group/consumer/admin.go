package consumer

import (
	"fmt"
	"slices"
)

// Description is a group as an administrator sees it.
type Description struct {
	State              string
	Epoch, TargetEpoch int32
	Assignor           string
	Members            []DescribedMember
}

// DescribedMember is one of its members.
type DescribedMember struct {
	*Member
	Epoch            int32
	Assigned, Target Assignment
}

// Describe tells of the group.
func (g *Group) Describe(assignors []string) Description {
	d := Description{State: g.State(), Epoch: g.epoch, TargetEpoch: g.targetEpoch, Assignor: g.Assignor(assignors)}
	for _, id := range g.ids {
		c := g.Current(id)
		d.Members = append(d.Members, DescribedMember{Member: g.members[id], Epoch: c.Epoch, Assigned: c.Assigned, Target: g.target[id]})
	}
	return d
}

// flexibleCommit is the first version of OffsetCommit that a member by the consumer protocol may use.
const flexibleCommit = 9

// MayCommit says whether a commit is one of the group's. epoch is the member's, below 0: none; at is what is committed. An epoch
// before the member's will do where the member has had the partition since then (KIP-1251).
func (g *Group) MayCommit(id string, epoch int32, version int16, at []Partition) error {
	if epoch < 0 && len(g.members) == 0 {
		return nil // somebody who does not use membership, or an administrator
	}
	m := g.members[id]
	if m == nil {
		return fmt.Errorf("%w: %s", ErrUnknownMember, id)
	}
	if m.Classic == nil && version < flexibleCommit {
		return ErrUnsupportedVersion
	}
	c := g.Current(id)
	if epoch == c.Epoch {
		return nil
	}
	if m.Classic != nil {
		return fmt.Errorf("%w: it is %d, the member has %d", ErrIllegalGeneration, c.Epoch, epoch)
	}
	if epoch > c.Epoch || slices.ContainsFunc(at, func(p Partition) bool { since := c.since(p); return since < 0 || epoch < since }) {
		return fmt.Errorf("%w: it is %d, the member has %d", ErrStaleMemberEpoch, c.Epoch, epoch)
	}
	return nil
}

// MayFetch says whether offsets may be fetched by somebody who says that it is a member; a nil id and an epoch below 0: nobody.
func (g *Group) MayFetch(id *string, epoch int32) error {
	if id == nil && epoch < 0 {
		return nil
	}
	var m *Member
	if id != nil {
		m = g.members[*id]
	}
	if m == nil {
		return ErrUnknownMember
	}
	if c := g.Current(m.ID); epoch != c.Epoch {
		if m.Classic != nil {
			return fmt.Errorf("%w: it is %d, the member has %d", ErrIllegalGeneration, c.Epoch, epoch)
		}
		return fmt.Errorf("%w: it is %d, the member has %d", ErrStaleMemberEpoch, c.Epoch, epoch)
	}
	return nil
}

// Epoch is the group's.
func (g *Group) Epoch() int32 { return g.epoch }
