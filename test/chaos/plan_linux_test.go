package chaos

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"
)

// kind is one thing that goes wrong.
type kind struct {
	name string
	// alone: nothing else goes wrong meanwhile, since the fault needs a sound cluster to show what it is to show.
	alone bool
	// do breaks, waits for as long as the shot says, and heals. It reports whether the fault took place: a cut link that nobody used
	// was none. An error is a violation.
	do func(ctx context.Context, r *run, s shot) (took bool, err error)
}

// shot is how a fault is drawn: whom it hits (indexes of machines, a is not b), for how long, and bits for what else there is to choose.
type shot struct {
	a, b int
	wait time.Duration
	bits uint64
}

// round is what goes wrong at the same time: something with the machines, something with the network, or both. offset is how much
// later the second begins.
type round struct {
	machine, network   *kind
	onMachine, onLinks shot
	offset             time.Duration
}

// deck deals kinds: each once, in random order, before any comes again.
type deck struct {
	kinds []kind
	left  []int
}

func (d *deck) deal(rng *rand.Rand) *kind {
	if len(d.kinds) == 0 {
		return nil
	}
	if len(d.left) == 0 {
		d.left = rng.Perm(len(d.kinds))
	}
	k := &d.kinds[d.left[0]]
	d.left = d.left[1:]
	return k
}

// plan draws rounds from a seed. What it draws does not depend on how long anything takes.
type plan struct {
	rng               *rand.Rand
	machines          int
	onMachine, onLink deck
}

func newPlan(seed uint64, machines int, onMachine, onLink []kind) *plan {
	return &plan{rng: rand.New(rand.NewPCG(seed, 1)), machines: machines, onMachine: deck{kinds: onMachine}, onLink: deck{kinds: onLink}}
}

func (p *plan) shot() shot {
	a := p.rng.IntN(p.machines)
	return shot{a: a, b: (a + 1 + p.rng.IntN(p.machines-1)) % p.machines, wait: 300*time.Millisecond + time.Duration(p.rng.Int64N(int64(2700*time.Millisecond))),
		bits: p.rng.Uint64()}
}

func (p *plan) next() round {
	r := round{onMachine: p.shot(), onLinks: p.shot(), offset: time.Duration(p.rng.Int64N(int64(time.Second)))}
	r.machine = p.onMachine.deal(p.rng)
	if r.machine == nil || !r.machine.alone {
		r.network = p.onLink.deal(p.rng)
	}
	return r
}

func TestPlansRepeatAndDealEveryKind(t *testing.T) {
	machines := []kind{{name: "a"}, {name: "b", alone: true}, {name: "c"}}
	links := []kind{{name: "x"}, {name: "y"}, {name: "z"}, {name: "u"}}
	draw := func(seed uint64) (names []string, shots []shot) {
		p := newPlan(seed, 3, machines, links)
		for range 30 {
			r := p.next()
			name := r.machine.name
			if r.network != nil {
				if r.machine.alone {
					t.Errorf("%s is not alone", name)
				}
				name += r.network.name
			}
			if r.onMachine.a == r.onMachine.b {
				t.Error("a machine and itself")
			}
			names, shots = append(names, name), append(shots, r.onMachine, r.onLinks)
		}
		return names, shots
	}
	first, shots := draw(7)
	again, same := draw(7)
	other, _ := draw(8)
	differs := false
	for i := range first {
		if first[i] != again[i] || shots[i] != same[i] {
			t.Fatalf("round %d is %s, then %s", i, first[i], again[i])
		}
		differs = differs || first[i] != other[i]
	}
	if !differs {
		t.Error("another seed, the same plan")
	}
	count := map[rune]int{}
	for _, n := range first {
		for _, k := range n {
			count[k]++
		}
	}
	for _, k := range "abcxyzu" {
		if count[k] < 5 {
			t.Errorf("%c came %d times of %d", k, count[k], len(first))
		}
	}
}
