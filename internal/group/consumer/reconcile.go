package consumer

import "slices"

// reconcile moves a member towards its target as far as it can go now. owned is what it has, if it said so. It returns what the
// member has at present, the same if nothing changes.
func (g *Group) reconcile(id string, owned Assignment, said bool) (*Current, error) {
	c := g.Current(id)
	holds := func(a Assignment) bool { return !said || len(owned.and(a)) > 0 }
	switch c.State {
	case Stable:
		if c.Epoch == g.targetEpoch {
			return c, nil
		}
		return g.next(id, c, c.Epoch, holds), nil
	case Unrevoked:
		if holds(c.Revoking) {
			return c, nil
		}
		return g.next(id, c, c.Epoch+1, holds), nil
	case Unreleased:
		return g.next(id, c, c.Epoch, holds), nil
	}
	// A state of a later version's: the member begins anew.
	if !said || len(owned) > 0 {
		return nil, ErrFencedMemberEpoch
	}
	return g.next(id, c, g.targetEpoch, holds), nil
}

// next computes a member's next step, from an epoch: first it gives back what is not in its target, then it has of that what is
// free.
func (g *Group) next(id string, c *Current, epoch int32, holds func(Assignment) bool) *Current {
	target := g.target[id]
	kept := c.Assigned.and(target)
	revoking := c.Assigned.minus(target)
	if len(revoking) > 0 && holds(revoking) {
		return c.become(Unrevoked, epoch, kept, revoking, epoch)
	}
	var got Assignment
	state := Stable
	for _, p := range target.minus(kept) {
		if g.owners[p] != "" {
			state = Unreleased
			continue
		}
		got = append(got, p)
	}
	return c.become(state, g.targetEpoch, NewAssignment(append(append(Assignment{}, kept...), got...)), nil, g.targetEpoch)
}

// become is c in another state and epoch; what is new in assigned is had since an epoch. It is c itself if nothing differs.
func (c *Current) become(state MemberState, epoch int32, assigned, revoking Assignment, since int32) *Current {
	if state == c.State && epoch == c.Epoch && assigned.Equal(c.Assigned) && revoking.Equal(c.Revoking) {
		return c
	}
	n := &Current{Epoch: epoch, Previous: c.Epoch, State: state, Assigned: assigned, Revoking: revoking, Since: make([]int32, len(assigned))}
	for i, p := range assigned {
		n.Since[i] = since
		if at := c.since(p); at >= 0 {
			n.Since[i] = at
		}
	}
	return n
}

// since is the epoch in which the member got a partition; -1: it has not got it.
func (c *Current) since(p Partition) int32 {
	at, ok := slices.BinarySearchFunc(c.Assigned, p, comparePartitions)
	switch {
	case !ok:
		return -1
	case c.Since == nil:
		return c.Epoch
	}
	return c.Since[at]
}
