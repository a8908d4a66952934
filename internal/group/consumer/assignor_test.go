package consumer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func topicID(n int) (id TopicID) {
	id[0], id[1], id[15] = byte(n), byte(n>>8), 1
	return id
}

// randomProblem has up to so many members and topics; equal: all subscribe to everything.
func randomProblem(rnd *rand.Rand, members, topics, partitions int, equal bool) *problem {
	p := &problem{}
	for t := range 1 + rnd.IntN(topics) {
		p.topics = append(p.topics, Topic{Name: fmt.Sprintf("t%03d", t), ID: topicID(t), Partitions: int32(rnd.IntN(partitions + 1))})
	}
	for m := range 1 + rnd.IntN(members) {
		s := subscriber{id: fmt.Sprintf("m%03d", m)}
		if rnd.IntN(4) == 0 {
			s.instance = fmt.Sprintf("i%03d", rnd.IntN(1000))
		}
		for t := range p.topics {
			if equal || rnd.IntN(3) == 0 {
				s.topics = append(s.topics, t)
			}
		}
		p.members = append(p.members, s)
	}
	return p
}

// sound checks that each partition that somebody subscribes to has exactly one owner, and a subscriber.
func sound(t *testing.T, p *problem, out []Assignment) {
	t.Helper()
	owners := map[Partition]int{}
	wanted := map[int]bool{}
	for m := range p.members {
		mine := map[TopicID]bool{}
		for _, i := range p.members[m].topics {
			mine[p.topics[i].ID], wanted[i] = true, true
		}
		if !slices.IsSortedFunc(out[m], comparePartitions) {
			t.Fatalf("%s's assignment is not in order: %v", p.members[m].id, out[m])
		}
		for _, q := range out[m] {
			if other, ok := owners[q]; ok {
				t.Fatalf("%v belongs to %s and %s", q, p.members[other].id, p.members[m].id)
			}
			if owners[q] = m; !mine[q.Topic] {
				t.Fatalf("%s has %v and does not subscribe to it", p.members[m].id, q)
			}
		}
	}
	total := 0
	for i := range wanted {
		total += int(p.topics[i].Partitions)
	}
	if len(owners) != total {
		t.Fatalf("%d partitions of %d are assigned", len(owners), total)
	}
}

// again is the problem after its solution.
func (p *problem) again(out []Assignment) *problem {
	q := &problem{topics: slices.Clone(p.topics), members: slices.Clone(p.members)}
	for i := range q.members {
		q.members[i].had = out[i]
	}
	return q
}

func moves(p *problem, out []Assignment) (n int) {
	for i := range p.members {
		n += len(p.members[i].had.minus(out[i]))
	}
	return n
}

func TestUniformIsBalancedAndSticky(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 400 {
		p := randomProblem(rnd, 12, 6, 20, true)
		out := assign(Uniform, p)
		sound(t, p, out)
		even := func(out []Assignment) (least, most int) {
			least = 1 << 30
			for _, a := range out {
				least, most = min(least, len(a)), max(most, len(a))
			}
			if most-least > 1 {
				t.Fatalf("members have %d to %d partitions", least, most)
			}
			return least, most
		}
		even(out)
		if n := moves(p.again(out), assign(Uniform, p.again(out))); n != 0 {
			t.Fatalf("%d partitions moved though nothing had changed", n)
		}
		// A member goes: only what it had moves.
		if len(p.members) > 1 {
			q := p.again(out)
			gone := rnd.IntN(len(q.members))
			q.members = slices.Delete(q.members, gone, gone+1)
			after := assign(Uniform, q)
			sound(t, q, after)
			even(after)
			if n := moves(q, after); n != 0 {
				t.Fatalf("%d partitions of members that stay moved when one left", n)
			}
		}
		// A member comes: what moves, moves to it.
		q := p.again(out)
		q.members = append(q.members, subscriber{id: "z", topics: p.members[0].topics})
		after := assign(Uniform, q)
		sound(t, q, after)
		even(after)
		if n := moves(q, after); n != len(after[len(after)-1]) {
			t.Fatalf("%d partitions moved, and the newcomer has %d", n, len(after[len(after)-1]))
		}
	}
}

// chain says whether moving partitions along a chain of members would make loads more even: by brute force, over reachability.
func chain(p *problem, out []Assignment) bool {
	n := len(p.members)
	reach := make([][]bool, n)
	index := map[TopicID]int{}
	for i := range p.topics {
		index[p.topics[i].ID] = i
	}
	for a := range n {
		reach[a] = make([]bool, n)
		for b := range n {
			for _, q := range out[a] {
				if slices.Contains(p.members[b].topics, index[q.Topic]) {
					reach[a][b] = true
				}
			}
		}
	}
	for k := range n {
		for a := range n {
			for b := range n {
				reach[a][b] = reach[a][b] || reach[a][k] && reach[k][b]
			}
		}
	}
	for a := range n {
		for b := range n {
			if reach[a][b] && len(out[a])-len(out[b]) > 1 {
				return true
			}
		}
	}
	return false
}

func TestUniformWithUnequalSubscriptionsIsAsEvenAsCanBeAndSticky(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 1))
	for range 400 {
		p := randomProblem(rnd, 10, 8, 12, false)
		for round := range 3 {
			out := assignUnequal(p)
			sound(t, p, out)
			if chain(p, out) {
				t.Fatalf("round %d: it could be more even: %v", round, out)
			}
			if n := moves(p.again(out), assignUnequal(p.again(out))); n != 0 {
				t.Fatalf("%d partitions moved though nothing had changed", n)
			}
			// Next: a member changes its subscription, and a topic grows.
			p = p.again(out)
			m := &p.members[rnd.IntN(len(p.members))]
			m.topics = nil
			for i := range p.topics {
				if rnd.IntN(2) == 0 {
					m.topics = append(m.topics, i)
				}
			}
			p.topics[rnd.IntN(len(p.topics))].Partitions += int32(rnd.IntN(4))
		}
	}
}

func TestRangeGivesRunsAndCutsTopicsAlike(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 1))
	for i := range 300 {
		p := randomProblem(rnd, 8, 5, 16, i%2 == 0)
		out := assign(Range, p)
		sound(t, p, out)
		for m, a := range out {
			a.EachTopic(func(topic TopicID, parts []int32) {
				if int(parts[len(parts)-1]-parts[0]) != len(parts)-1 {
					t.Fatalf("%s has %v of a topic, not a run", p.members[m].id, parts)
				}
			})
		}
		if i%2 == 0 { // all subscribe to everything: equal topics are cut alike
			for a := range p.topics {
				for b := range a {
					if p.topics[a].Partitions != p.topics[b].Partitions {
						continue
					}
					for m := range out {
						for n := range p.topics[a].Partitions {
							if out[m].Has(Partition{p.topics[a].ID, n}) != out[m].Has(Partition{p.topics[b].ID, n}) {
								t.Fatalf("partition %d of two equal topics has two owners", n)
							}
						}
					}
				}
			}
		}
	}
}

func TestRangePutsStaticMembersFirst(t *testing.T) {
	p := &problem{topics: []Topic{{"t", topicID(1), 3}}, members: []subscriber{
		{id: "a", topics: []int{0}}, {id: "b", instance: "2", topics: []int{0}}, {id: "c", instance: "1", topics: []int{0}},
	}}
	out := assign(Range, p)
	for m, want := range []int32{2, 1, 0} {
		if len(out[m]) != 1 || out[m][0].Index != want {
			t.Errorf("%s has %v, want partition %d", p.members[m].id, out[m], want)
		}
	}
}

func BenchmarkUniform(b *testing.B) {
	for _, equal := range []bool{true, false} {
		b.Run(fmt.Sprintf("equal=%v", equal), func(b *testing.B) {
			p := &problem{}
			for t := range 20 {
				p.topics = append(p.topics, Topic{fmt.Sprintf("t%02d", t), topicID(t), 100})
			}
			for m := range 300 {
				s := subscriber{id: fmt.Sprintf("m%03d", m)}
				for t := range 20 {
					if equal || (m+t)%3 != 0 {
						s.topics = append(s.topics, t)
					}
				}
				p.members = append(p.members, s)
			}
			for b.Loop() {
				assign(Uniform, p)
			}
		})
	}
}
