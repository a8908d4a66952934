package consumer

import (
	"cmp"
	"slices"
)

// maxSteps bounds the work on one assignment: what is found by then is given out, balanced or not quite.
const maxSteps = 20_000_000

// assignUnequal is uniform for members whose subscriptions differ. Members keep what they had, the rest goes to whoever has
// least, and then partitions move, along chains of members if need be, from a member to one with at least two less, until no
// such chain is left. That is as even as it gets: an optimal semi-matching (Harvey, Ladner, Lovász, Tamir, 2006), where no chain
// that reduces the cost is left.
func assignUnequal(p *problem) []Assignment {
	u := newUnequal(p)
	u.keep()
	u.fill()
	u.even()
	out := make([]Assignment, len(p.members))
	for m := range out {
		for t, parts := range u.has[m] {
			for _, i := range parts {
				out[m] = append(out[m], Partition{p.topics[t].ID, i})
			}
		}
		out[m] = NewAssignment(out[m])
	}
	return out
}

type unequal struct {
	p           *problem
	subscribers [][]int           // by topic, members
	owner       [][]int           // by topic and partition, a member; -1: none
	has         []map[int][]int32 // by member and topic, partitions
	load        []int             // by member
	steps       int

	via       []link // of relieve: by member
	topicSeen []bool
}

// link is how a chain of members comes to one.
type link struct{ from, topic int }

func newUnequal(p *problem) *unequal {
	u := &unequal{p: p, subscribers: make([][]int, len(p.topics)), owner: make([][]int, len(p.topics)), has: make([]map[int][]int32, len(p.members)),
		load: make([]int, len(p.members)), via: make([]link, len(p.members)), topicSeen: make([]bool, len(p.topics))}
	for t := range p.topics {
		u.owner[t] = slices.Repeat([]int{-1}, int(p.topics[t].Partitions))
	}
	for m := range p.members {
		u.has[m] = map[int][]int32{}
		for _, t := range p.members[m].topics {
			u.subscribers[t] = append(u.subscribers[t], m)
		}
	}
	return u
}

func (u *unequal) give(m, t int, i int32) {
	u.owner[t][i] = m
	u.has[m][t] = append(u.has[m][t], i)
	u.load[m]++
}

// keep gives members what they had and still subscribe to.
func (u *unequal) keep() {
	for m := range u.p.members {
		s := &u.p.members[m]
		byID := make(map[TopicID]int, len(s.topics))
		for _, t := range s.topics {
			byID[u.p.topics[t].ID] = t
		}
		for _, q := range s.had {
			if t, ok := byID[q.Topic]; ok && int(q.Index) < len(u.owner[t]) && u.owner[t][q.Index] < 0 {
				u.give(m, t, q.Index)
			}
		}
	}
}

// fill gives the rest to whoever has least; first where there is least choice.
func (u *unequal) fill() {
	order := make([]int, len(u.p.topics))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(len(u.subscribers[a]), len(u.subscribers[b])) })
	for _, t := range order {
		for i, owner := range u.owner[t] {
			if owner >= 0 || len(u.subscribers[t]) == 0 {
				continue
			}
			best := u.subscribers[t][0]
			for _, m := range u.subscribers[t] {
				if u.load[m] < u.load[best] {
					best = m
				}
			}
			u.give(best, t, int32(i))
		}
	}
}

// even moves partitions while that makes loads more equal.
func (u *unequal) even() {
	order := make([]int, len(u.p.members))
	for i := range order {
		order[i] = i
	}
	for moved := true; moved && u.steps < maxSteps; {
		moved = false
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(u.load[b], u.load[a]) })
		for _, m := range order {
			for u.steps < maxSteps && u.relieve(m) {
				moved = true
			}
		}
	}
}

// relieve finds a chain of members from m, each subscribing to a topic of which the one before has a partition, to one with at least
// two partitions less than m, the one with the least there is, and moves a partition along each link.
func (u *unequal) relieve(m int) bool {
	if u.load[m] < 2 {
		return false
	}
	via, topicSeen := u.via, u.topicSeen
	for i := range via {
		via[i].from = -1
	}
	clear(topicSeen)
	queue, best := []int{m}, m
	for len(queue) > 0 {
		from := queue[0]
		queue = queue[1:]
		for _, t := range u.p.members[from].topics {
			u.steps++
			if topicSeen[t] || len(u.has[from][t]) == 0 {
				continue
			}
			topicSeen[t] = true
			for _, to := range u.subscribers[t] {
				u.steps++
				if to == m || via[to].from >= 0 {
					continue
				}
				via[to] = link{from, t}
				queue = append(queue, to)
				if u.load[to] < u.load[best] {
					best = to
				}
			}
		}
	}
	if u.load[m]-u.load[best] < 2 {
		return false
	}
	for to := best; to != m; to = via[to].from {
		from, t := via[to].from, via[to].topic
		parts := u.has[from][t]
		last := parts[len(parts)-1]
		u.has[from][t] = parts[:len(parts)-1]
		u.load[from]--
		u.give(to, t, last)
	}
	return true
}
