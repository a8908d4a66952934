package consumer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// client is a consumer as a library has it: it owns what it was told to and has not given back yet.
type client struct {
	id       string
	instance *string
	topics   []string
	regex    *string
	epoch    int32
	owns     Assignment
	target   Assignment // what it was told
	alive    bool
	lost     bool   // an answer: it says everything again
	classic  string // "eager" or "cooperative": it is one by the classic protocol
	rejoin   bool   // such a one is to join again
	zombie   bool   // the group has removed it, which it has not heard of: what it does is fenced
}

// TestNoPartitionHasTwoOwnersAndGroupsConverge runs clients that come, go, crash, change their subscriptions and lose answers,
// while topics grow and go, changes are not written and coordinators are replaced. At no moment do two clients that live own a
// partition; left in peace, everybody has what the assignor gave it, and everything is owned.
//
// CHRONIK_GROUP_SEEDS runs more seeds.
func TestNoPartitionHasTwoOwnersAndGroupsConverge(t *testing.T) {
	seeds := 60
	if n, err := strconv.Atoi(os.Getenv("CHRONIK_GROUP_SEEDS")); err == nil {
		seeds = n
	}
	for seed := range seeds {
		m := &model{world: newWorld(t, topic(1, 4), topic(2, 3)), rnd: rand.New(rand.NewPCG(uint64(seed), 7))}
		m.run()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

type model struct {
	*world
	rnd     *rand.Rand
	clients []*client
	seq     int
	made    [4]int // how often a topic was made
}

func (m *model) run() {
	for i := range 6 {
		c := &client{}
		if i >= 4 {
			c.classic = []string{"eager", "cooperative"}[i-4]
		}
		if i == 0 {
			instance := "static"
			c.instance = &instance
		}
		m.clients = append(m.clients, c)
	}
	for range 400 {
		m.disturb()
		m.step(m.clients[m.rnd.IntN(len(m.clients))], m.rnd.IntN(8) == 0, m.rnd.IntN(12) == 0)
		m.check()
		if m.t.Failed() {
			return
		}
	}
	for range 40 {
		for _, id := range slices.Clone(m.g.Members()) {
			if !slices.ContainsFunc(m.clients, func(c *client) bool { return c.alive && c.id == id }) {
				m.remove(id) // its session ends
			}
		}
		for _, c := range m.clients {
			m.step(c, false, false)
			m.check()
		}
	}
	m.settled()
}

// remove takes a member out without its client's knowledge.
func (m *model) remove(id string) {
	m.world.remove(id)
	for _, c := range m.clients {
		c.zombie = c.zombie || c.id == id
	}
}

// disturb does what the world does to a group.
func (m *model) disturb() {
	c := m.clients[m.rnd.IntN(len(m.clients))]
	switch m.rnd.IntN(14) {
	case 0:
		before := m.state()
		m.reload()
		if after := m.state(); !reflect.DeepEqual(before, after) {
			m.t.Errorf("reloaded\n%v\nwas\n%v", after, before)
		}
	case 1: // a crash; the session ends later, or the member comes back as somebody else first
		c.alive, c.rejoin, c.owns, c.target = false, false, nil, nil
		if m.rnd.IntN(2) == 0 && m.g.Member(c.id) != nil {
			m.remove(c.id)
		}
	case 2:
		if c.alive {
			hb := &Heartbeat{Version: 1, Group: "g", Member: c.id, Epoch: leaves, Instance: c.instance}
			if c.instance != nil && m.rnd.IntN(2) == 0 {
				hb.Epoch = leavesForSome
			}
			_, _ = m.heartbeat(hb)
			c.alive, c.owns, c.target = false, nil, nil
		}
	case 3:
		topics := []Topic{topic(1, int32(1+m.rnd.IntN(6)))}
		for n := 2; n <= 3; n++ {
			if m.rnd.IntN(3) == 0 {
				m.made[n]++ // deleted: when it is made again it is another topic
				continue
			}
			topics = append(topics, Topic{fmt.Sprint("t", n), topicID(n + 10*m.made[n]), int32(1 + m.rnd.IntN(5))})
		}
		m.topics(topics...)
	case 4:
		m.subscribe(c)
	case 5: // one that has not given back in time
		for _, id := range m.g.Members() {
			if m.g.Current(id).State == Unrevoked && m.rnd.IntN(2) == 0 {
				m.remove(id)
				break
			}
		}
	}
}

func (m *model) subscribe(c *client) {
	c.topics, c.regex = []string{}, nil
	for i := range 3 {
		if m.rnd.IntN(2) == 0 {
			c.topics = append(c.topics, fmt.Sprint("t", i+1))
		}
	}
	expression := ""
	if m.rnd.IntN(3) == 0 {
		expression = []string{"t[12]", "t.*", "x"}[m.rnd.IntN(3)]
	}
	c.regex = &expression
}

// state is all that has to be in the log.
func (m *model) state() string {
	out := fmt.Sprint(m.g.epoch, m.g.hash, m.g.targetEpoch, m.g.bytes, m.g.statics, sortedKeys(m.g.resolved), m.g.ids)
	for _, id := range m.g.ids {
		cur := m.g.Current(id)
		out += fmt.Sprintf("\n%s %s %v %v %+v", id, m.g.members[id].Regex, m.g.members[id].Topics, m.g.target[id], *cur)
	}
	owners := make([]string, 0, len(m.g.owners))
	for p, id := range m.g.owners {
		owners = append(owners, fmt.Sprint(p, id))
	}
	slices.Sort(owners)
	return out + fmt.Sprint(owners)
}

// step is one heartbeat of a client; its change may not be written, or its answer not arrive.
func (m *model) step(c *client, lostAnswer, notWritten bool) {
	if c.classic != "" {
		m.stepClassic(c, lostAnswer, notWritten)
		return
	}
	joins := !c.alive
	if joins {
		if c.id == "" || m.rnd.IntN(2) == 0 {
			m.seq++
			c.id = fmt.Sprintf("m%03d", m.seq)
		}
		c.epoch, c.owns, c.target = 0, nil, nil
		if c.topics == nil {
			m.subscribe(c)
		}
	}
	// It gives back what it was told to, sooner or later.
	if m.rnd.IntN(2) == 0 {
		c.owns = c.owns.and(c.target)
	}
	hb := beatOf(c.id, c.epoch, c.owns)
	hb.Instance, hb.Topics, hb.Regex = c.instance, c.topics, c.regex
	if joins || c.lost {
		hb.RebalanceTimeout = 1000
	}
	if err := hb.Check(m.env); err != nil {
		m.t.Fatal(err)
	}
	before := ""
	if notWritten {
		before = m.state()
	}
	ch := &Change{}
	a, err := m.g.Heartbeat(ch, m.env, hb)
	if err != nil && len(ch.Records) > 0 {
		m.t.Errorf("refused with %v and %d records", err, len(ch.Records))
	}
	if notWritten {
		ch.Undo()
		if after := m.state(); after != before {
			m.t.Errorf("undone\n%v\nwas\n%v", after, before)
		}
	} else {
		m.write(ch)
	}
	switch {
	case errors.Is(err, ErrUnreleasedInstance):
		if old := m.g.statics[*c.instance]; m.rnd.IntN(2) == 0 {
			m.remove(old) // the old life's session ends
		}
		c.alive = false
	case err != nil:
		c.alive, c.owns, c.target = false, nil, nil // it gives up everything and joins again
	case notWritten, lostAnswer:
		c.lost = true
	default:
		c.alive, c.lost, c.zombie, c.epoch = true, false, false, a.Epoch
		if a.Changed {
			c.target = a.Assignment
			c.owns = NewAssignment(append(append(Assignment{}, c.owns...), a.Assignment...))
		}
	}
}

// stepClassic is a heartbeat, or a join and a sync, of a client by the classic protocol.
func (m *model) stepClassic(c *client, lostAnswer, notWritten bool) {
	if c.alive && !c.rejoin {
		ch := &Change{}
		err := m.g.BeatClassic(ch, m.env, c.id, nil, c.epoch)
		m.write(ch)
		switch {
		case errors.Is(err, ErrRebalanceInProgress):
			c.rejoin = true
		case err != nil:
			c.alive, c.owns = false, nil
		}
		return
	}
	if !c.alive {
		if c.id == "" || m.rnd.IntN(2) == 0 {
			m.seq++
			c.id = fmt.Sprintf("m%03d", m.seq)
		}
		c.owns = nil
	}
	if len(c.topics) == 0 {
		c.topics = []string{"t1", "t2"}
	}
	meta := kmsg.ConsumerMemberMetadata{Version: 1, Topics: c.topics}
	if c.classic == "eager" {
		c.owns = nil // it gives everything back before it joins
	}
	c.owns.EachTopic(func(id TopicID, partitions []int32) {
		if t := m.env.Topics.WithID(id); t != nil {
			meta.OwnedPartitions = append(meta.OwnedPartitions, kmsg.ConsumerMemberMetadataOwnedPartition{Topic: t.Name, Partitions: partitions})
		}
	})
	ch := &Change{}
	a, err := m.g.JoinClassic(ch, m.env, &ClassicJoin{Member: c.id, SessionTimeout: 1000, RebalanceTimeout: 1000, Protocols: []Protocol{{"range", meta.AppendTo(nil)}}})
	if notWritten {
		ch.Undo()
		return
	}
	m.write(ch)
	switch {
	case err != nil:
		c.alive, c.owns = false, nil
		return
	case lostAnswer:
		return
	}
	c.alive, c.epoch, c.rejoin, c.zombie = true, a.Epoch, false, false
	data, err := m.g.SyncClassic(m.env, c.id, nil, c.epoch, nil, nil)
	if err != nil {
		c.rejoin = true
		return
	}
	var assigned kmsg.ConsumerMemberAssignment
	if err := assigned.ReadFrom(data); err != nil {
		m.t.Fatal(err)
	}
	var now []Partition
	for _, t := range assigned.Topics {
		for _, p := range t.Partitions {
			now = append(now, Partition{m.env.Topics.Named(t.Topic).ID, p})
		}
	}
	had := c.owns
	c.owns = NewAssignment(now)
	c.target = c.owns
	c.rejoin = c.classic == "cooperative" && len(had.minus(c.owns)) > 0 // it has given something back
}

func (m *model) check() {
	owners := map[Partition]string{}
	for _, c := range m.clients {
		if cur := m.g.Current(c.id); !c.alive || c.zombie || cur == nil || cur.Epoch < c.epoch {
			continue
		}
		for _, p := range c.owns {
			if other := owners[p]; other != "" {
				m.t.Errorf("%s and %s own %v", other, c.id, p)
			}
			owners[p] = c.id
		}
	}
	for _, id := range m.g.ids {
		cur := m.g.Current(id)
		for _, p := range slices.Concat(cur.Assigned, cur.Revoking) {
			if m.g.owners[p] != id {
				m.t.Errorf("%s has %v, which belongs to %q", id, p, m.g.owners[p])
			}
		}
		if cur.Epoch > m.g.targetEpoch || m.g.targetEpoch > m.g.epoch {
			m.t.Errorf("epochs: member %d, target %d, group %d", cur.Epoch, m.g.targetEpoch, m.g.epoch)
		}
	}
}

func (m *model) settled() {
	if s := m.g.State(); s != "Stable" {
		m.t.Errorf("left in peace, the group is %s: %s", s, m.state())
	}
	p := m.g.problem(m.env.Topics)
	var out []Assignment
	for i, c := range m.clients {
		if !c.alive || !c.owns.Equal(m.g.target[c.id]) {
			m.t.Errorf("client %d (%s) owns %v, its target is %v", i, c.id, c.owns, m.g.target[c.id])
		}
	}
	for _, s := range p.members {
		out = append(out, s.had)
	}
	if t, ok := m.t.(*testing.T); ok {
		sound(t, p, out)
	}
}
