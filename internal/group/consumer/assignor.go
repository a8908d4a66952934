package consumer

import (
	"cmp"
	"slices"
)

// Names of the assignors.
const (
	Uniform = "uniform"
	Range   = "range"
)

// problem is what an assignor has to solve: who gets what. It is the same whatever order the members came in.
type problem struct {
	topics  []Topic // that somebody subscribes to and that exist, in order of names
	members []subscriber
}

// subscriber is a member as an assignor sees it.
type subscriber struct {
	id       string
	instance string
	topics   []int      // indexes into problem.topics, in order
	had      Assignment // the target so far
}

// problem describes the group's members, in order of ids.
func (g *Group) problem(topics *Topics) *problem {
	p := &problem{}
	at := map[string]int{}
	for _, name := range g.subscribed() {
		if t := topics.Named(name); t != nil {
			at[name] = len(p.topics)
			p.topics = append(p.topics, *t)
		}
	}
	for _, id := range g.ids {
		m := g.members[id]
		s := subscriber{id: id, had: g.target[id]}
		if m.Instance != nil {
			s.instance = *m.Instance
		}
		for _, name := range g.topicsOf(m) {
			if i, ok := at[name]; ok {
				s.topics = append(s.topics, i)
			}
		}
		p.members = append(p.members, s)
	}
	return p
}

// assign solves a problem; the answer is by member.
func assign(assignor string, p *problem) []Assignment {
	if assignor == Range {
		return assignRange(p)
	}
	for i := range p.members {
		if !slices.Equal(p.members[i].topics, p.members[0].topics) {
			return assignUnequal(p)
		}
	}
	return assignEqual(p)
}

// assignRange gives each of a topic's subscribers a run of its partitions. Topics with as many partitions and the same subscribers
// are cut alike, so that equal keys come to one member. Static members come first, in order of their instances.
func assignRange(p *problem) []Assignment {
	order := make([]int, len(p.members))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := &p.members[a], &p.members[b]
		switch {
		case (x.instance == "") != (y.instance == ""):
			if x.instance != "" {
				return -1
			}
			return 1
		default:
			return cmp.Or(cmp.Compare(x.instance, y.instance), cmp.Compare(x.id, y.id))
		}
	})
	subscribers := make([][]int, len(p.topics))
	for _, m := range order {
		for _, t := range p.members[m].topics {
			subscribers[t] = append(subscribers[t], m)
		}
	}
	out := make([]Assignment, len(p.members))
	for t, members := range subscribers {
		total := int(p.topics[t].Partitions)
		next := 0
		for i, m := range members {
			n := total / len(members)
			if i < total%len(members) {
				n++
			}
			for ; n > 0; n-- {
				out[m] = append(out[m], Partition{p.topics[t].ID, int32(next)})
				next++
			}
		}
	}
	for i := range out {
		out[i] = NewAssignment(out[i])
	}
	return out
}

// assignEqual is uniform for members that all subscribe to the same: each has as many partitions as any other, or one more, and
// keeps what it had as far as that allows.
func assignEqual(p *problem) []Assignment {
	out := make([]Assignment, len(p.members))
	if len(p.members) == 0 {
		return out
	}
	var all Assignment
	for _, t := range p.members[0].topics {
		for i := range p.topics[t].Partitions {
			all = append(all, Partition{p.topics[t].ID, i})
		}
	}
	all = NewAssignment(all)
	least, more := len(all)/len(out), len(all)%len(out)
	taken := map[Partition]bool{}
	for i := range p.members {
		for _, q := range p.members[i].had.and(all) {
			if taken[q] {
				continue
			}
			switch {
			case len(out[i]) < least:
			case len(out[i]) == least && more > 0:
				more--
			default:
				continue
			}
			taken[q] = true
			out[i] = append(out[i], q)
		}
	}
	// The rest goes round, so that each topic is spread.
	room := func(i int) bool { return len(out[i]) < least || len(out[i]) == least && more > 0 }
	at := 0
	for _, q := range all {
		if taken[q] {
			continue
		}
		for !room(at) {
			at = (at + 1) % len(out)
		}
		if len(out[at]) == least {
			more--
		}
		out[at] = append(out[at], q)
		at = (at + 1) % len(out)
	}
	for i := range out {
		out[i] = NewAssignment(out[i])
	}
	return out
}
