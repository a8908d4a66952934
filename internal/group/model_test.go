package group

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/multiraft"
)

// actor is a consumer as a client library has it, one step at a time.
type actor struct {
	id         string
	instance   *string
	generation int32
	join       *call[JoinResult]
	sync       *call[SyncResult]
	owns       map[int32]bool
	alive      bool
}

const modelPartitions = 6

// TestGroupsKeepTheirPromises runs consumers that come, go, crash and lag behind while the coordinator moves and appends fail,
// and checks: generations never fall; members that are in one generation own each partition at most once, and all of them once
// the group has settled; a committed offset is never seen to go back; whatever a fenced member does has no effect.
//
// CHRONIK_GROUP_SEEDS runs more seeds.
func TestGroupsKeepTheirPromises(t *testing.T) {
	seeds := 60
	if n, err := strconv.Atoi(os.Getenv("CHRONIK_GROUP_SEEDS")); err == nil {
		seeds = n
	}
	for seed := range seeds {
		runModel(t, uint64(seed))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

type model struct {
	*world
	rnd     *rand.Rand
	actors  []*actor
	rosters map[int32]string // generation -> its dynamic members
	highest int32            // generation told to anybody

	committed map[int32]int64 // acknowledged, by partition
	attempted map[int32]int64
	stables   int
}

func runModel(t *testing.T, seed uint64) {
	m := &model{world: newWorld(t, 3), rnd: rand.New(rand.NewPCG(seed, 1)), rosters: map[int32]string{}, committed: map[int32]int64{}, attempted: map[int32]int64{}}
	for i := range 3 {
		a := &actor{generation: -1}
		if i == 0 {
			a.instance = ptr("static")
		}
		m.actors = append(m.actors, a)
	}
	for range 400 {
		m.disturb()
		for _, a := range m.actors {
			m.act(a)
		}
		m.check()
		m.clock.Advance(time.Duration(m.rnd.IntN(1500)) * time.Millisecond)
		if len(m.log.held) > 0 && m.rnd.IntN(2) == 0 {
			m.log.release(nil)
		}
		if t.Failed() {
			return
		}
	}
	// Left in peace, the group settles: all live members have all partitions.
	if m.log.hold {
		m.log.release(nil)
	}
	m.log.fail = nil
	m.settle()
	for range 200 {
		for _, a := range m.actors {
			a.alive = true
			m.act(a)
		}
		m.clock.Advance(time.Second)
	}
	m.check()
	owned := map[int32]int{}
	for _, a := range m.actors {
		for p := range a.owns {
			owned[p]++
		}
		if a.generation != m.actors[0].generation {
			t.Errorf("settled, but members are in generations %d and %d", a.generation, m.actors[0].generation)
		}
	}
	if len(owned) != modelPartitions || m.stables == 0 {
		t.Errorf("settled, but %d of %d partitions are owned", len(owned), modelPartitions)
	}
}

// disturb does what the world does to a group.
func (m *model) disturb() {
	switch m.rnd.IntN(40) {
	case 0:
		m.move(m.rnd.IntN(3))
	case 1:
		m.log.hold = true
	case 2:
		a := m.actors[m.rnd.IntN(len(m.actors))]
		a.alive = false // a crash: it says nothing any more
		a.generation, a.join, a.sync, a.owns = -1, nil, nil, nil
	case 3:
		a := m.actors[m.rnd.IntN(len(m.actors))]
		if !a.alive {
			a.alive = true
			if m.rnd.IntN(2) == 0 {
				a.id, a.generation = "", -1 // as a new process
			}
		}
	case 4:
		if a := m.actors[m.rnd.IntN(len(m.actors))]; a.alive && a.id != "" && a.instance == nil {
			m.leave(LeaveMember{Member: a.id})
			a.id, a.generation, a.join, a.sync, a.owns = "", -1, nil, nil, nil
		}
	case 5:
		m.log.fail = []error{multiraft.ErrOverloaded, multiraft.ErrUnknownOutcome}[m.rnd.IntN(2)]
	default:
		m.log.fail = nil
		m.settle()
	}
}

// act is one step of a consumer's loop.
func (m *model) act(a *actor) {
	switch {
	case !a.alive:
		a.alive = m.rnd.IntN(60) == 0
	case a.join != nil:
		m.joined(a)
	case a.sync != nil:
		m.synced(a)
	case a.generation < 0:
		a.owns = nil
		a.join = m.join(request(a.id, func(r *JoinRequest) {
			r.Instance, r.RequireMemberID, r.CanSkipAssignment = a.instance, true, true
		}))
	case m.rnd.IntN(3) == 0 && len(a.owns) > 0:
		m.commits(a)
	default:
		if err := m.heartbeat(HeartbeatRequest{Group: "g", Member: a.id, Generation: a.generation, Instance: a.instance}); err != nil {
			m.refused(a, err)
		}
	}
}

// refused is what a client does about an error.
func (m *model) refused(a *actor, err error) {
	switch {
	case errors.Is(err, ErrUnknownMember), errors.Is(err, ErrFencedInstance):
		a.id, a.generation, a.owns = "", -1, nil
	case errors.Is(err, ErrIllegalGeneration), errors.Is(err, ErrRebalanceInProgress):
		a.generation, a.owns = -1, nil
	}
}

func (m *model) joined(a *actor) {
	if !a.join.ended {
		return
	}
	r, err := a.join.get()
	a.join = nil
	switch {
	case errors.Is(err, ErrMemberIDRequired):
		a.id = r.Member
		return
	case err != nil:
		m.refused(a, err)
		return
	}
	if r.Generation < m.highest {
		m.t.Errorf("generation %d was given out after %d", r.Generation, m.highest)
	}
	m.highest = r.Generation
	if r.Members != nil {
		roster := ""
		for _, jm := range r.Members {
			if jm.Instance == nil {
				roster += " " + jm.ID
			}
		}
		if old, ok := m.rosters[r.Generation]; ok && old != roster {
			m.t.Errorf("generation %d has members%s and members%s", r.Generation, old, roster)
		}
		m.rosters[r.Generation] = roster
	}
	a.id, a.generation = r.Member, r.Generation
	req := SyncRequest{Group: "g", Generation: r.Generation, Member: a.id, Instance: a.instance}
	if r.Leader == a.id && !r.SkipAssignment {
		shares := make([][]byte, len(r.Members))
		for p := range modelPartitions {
			i := p % len(shares)
			shares[i] = append(shares[i], byte(p))
		}
		for i, jm := range r.Members {
			req.Assignments = append(req.Assignments, Assignment{jm.ID, append([]byte{255}, shares[i]...)})
		}
	}
	a.sync = m.world.sync(req)
}

func (m *model) synced(a *actor) {
	if !a.sync.ended {
		return
	}
	r, err := a.sync.get()
	a.sync = nil
	if err != nil {
		a.generation = -1
		m.refused(a, err)
		return
	}
	a.owns = map[int32]bool{}
	for _, p := range r.Assignment[min(1, len(r.Assignment)):] {
		a.owns[int32(p)] = true
	}
	m.stables++
}

func (m *model) commits(a *actor) {
	for p := range int32(modelPartitions) {
		if !a.owns[p] {
			continue
		}
		m.attempted[p]++
		n := m.attempted[p]
		c := &call[[]error]{t: m.t, what: "commit"}
		gen := a.generation
		m.lead().Commit(CommitRequest{Group: "g", Generation: gen, Member: a.id, Instance: a.instance, RetentionMs: -1, Version: 8, Partitions: at("t", p, n)},
			func(each []error, err error) {
				c.done(each, err)
				if err == nil && each[0] == nil {
					m.committed[p] = max(m.committed[p], n)
				}
				if err != nil {
					m.refused(a, err)
				}
			})
		return
	}
}

func (m *model) check() {
	sum := int64(0)
	for _, s := range m.lead().shards {
		for _, g := range s.groups {
			if sum += int64(g.counted); g.counted != g.memory() {
				m.t.Fatalf("group %q counts for %d bytes and takes %d", g.id, g.counted, g.memory())
			}
		}
	}
	if got := m.lead().Memory(); got != sum {
		m.t.Fatalf("%d bytes counted, the groups sum up to %d", got, sum)
	}
	owner := map[string]string{} // generation/partition -> member
	for _, a := range m.actors {
		for p := range a.owns {
			key := fmt.Sprint(a.generation, "/", p)
			if other := owner[key]; other != "" && other != a.id {
				m.t.Errorf("%s and %s own partition %d in generation %d", other, a.id, p, a.generation)
			}
			owner[key] = a.id
		}
	}
	c := &call[[]FetchedOffset]{t: m.t, what: "fetch"}
	m.lead().Fetch(FetchRequest{Group: "g", Epoch: -1, All: true}, c.done)
	got, err := c.get()
	if err != nil {
		return
	}
	seen := map[int32]int64{}
	for _, o := range got {
		seen[o.Partition] = o.Offset
	}
	for p, want := range m.committed {
		if seen[p] < want {
			m.t.Errorf("partition %d: %d was acknowledged, %d is fetched", p, want, seen[p])
		}
		m.committed[p] = max(want, seen[p]) // what was once seen counts as well
	}
}
