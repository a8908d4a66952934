package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/transport"
)

// throttles watch what replicas that catch up are sent under replication throttles (KIP-73), on the wire: what the nodes' own budgets say
// is not asked. Only who learns is throttled, as its leader sees that at the time: what is sent counts once the leader says so afterwards.
type throttles struct {
	w       *world
	set     bool // somebody has set one in this run
	budgets []*budget
	flows   []*flow
	// led is since when it is known who learns of a group, by its leader in a term.
	led map[ledTerm]time.Time
}

// budget is what a process may send, or receive, in a second.
type budget struct {
	p      *proc
	side   string // leader or follower
	seen   map[string]throttled
	pieces []piece
}

// throttled is what a node's metadata say of a topic's throttle.
type throttled struct {
	rate  int64  // bytes a second; -1: there is none
	among string // replicas
	since time.Time
}

// piece is a part of what was sent.
type piece struct {
	at   time.Time
	size int
	rate int64
	of   *flow
}

// flow is what a leader sends to one replica, counted against one budget.
type flow struct {
	leader    *proc
	group, to uint64
	budget    *budget
	waiting   []piece // until it is known that the replica only learns
}

type ledTerm struct {
	p           *proc
	group, term uint64
}

// sides are who may be throttled: who sends, and who receives.
var sides = [2]string{"leader", "follower"}

// settling is how long after a change of throttles, or of leaders, nothing is counted: requests of the time before are under way.
const settling = time.Second

// chunkHead is more than a chunk of a delta has without records.
const chunkHead = 64

// catchUpBytes is how much of a message may be for a replica that catches up.
func catchUpBytes(env *transport.Envelope) (n int) {
	switch {
	case env.Kind == transport.KindDeltaChunk && len(env.Body) > chunkHead:
		return len(env.Body)
	case env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgApp:
		for i := range env.Raft.Entries {
			n += len(env.Raft.Entries[i].Data)
		}
	}
	return n
}

// sent notes what a process sends.
func (t *throttles) sent(p *proc, env *transport.Envelope) {
	if !t.set {
		return
	}
	if env.Kind == transport.KindAllowance {
		t.w.counts["words about a throttle"]++
	}
	if size := catchUpBytes(env); size > 0 {
		t.count(p, p, "leader", env, size)
	}
}

// arrived notes what a process receives.
func (t *throttles) arrived(leader, p *proc, env *transport.Envelope) {
	if size := catchUpBytes(env); t.set && size > 0 && !leader.dead {
		t.count(leader, p, "follower", env, size)
	}
}

// count enters a piece, if a process's throttle is for it.
func (t *throttles) count(leader, p *proc, side string, env *transport.Envelope, size int) {
	if leader.core == nil || p.core == nil {
		return
	}
	r, ok := leader.core.Groups().Group(env.Group)
	if !ok || !r.Status().IsLeader {
		return
	}
	topic, now := p.core.Metadata().Image().Topics[r.Topic()], t.w.clk.Now()
	if topic == nil {
		return
	}
	b := t.budget(p, side)
	is := b.look(topic)
	if is.rate < 0 || is.among != "*" && !slices.Contains(strings.Split(is.among, ","), fmt.Sprintf("%d:%d", r.Partition(), p.node.id)) ||
		now.Sub(is.since) < settling {
		return
	}
	f := t.flow(leader, env.Group, env.To, b)
	f.waiting = append(f.waiting, piece{now, size, is.rate, f})
}

// look takes in what the process knows of a topic's throttle now.
func (b *budget) look(topic *metadata.Topic) throttled {
	is := throttled{rate: -1, among: topic.Configs[b.side+".replication.throttled.replicas"], since: b.p.node.w.clk.Now()}
	if v, ok := b.p.core.Metadata().Image().BrokerConfigs[b.p.node.id][b.side+".replication.throttled.rate"]; ok {
		is.rate, _ = strconv.ParseInt(v, 10, 64)
	}
	was, ok := b.seen[topic.Name]
	if ok && was.rate == is.rate && was.among == is.among {
		return was
	}
	b.seen[topic.Name] = is
	return is
}

func (t *throttles) budget(p *proc, side string) *budget {
	for _, b := range t.budgets {
		if b.p == p && b.side == side {
			return b
		}
	}
	b := &budget{p: p, side: side, seen: map[string]throttled{}}
	t.budgets = append(t.budgets, b)
	return b
}

func (t *throttles) flow(leader *proc, group, to uint64, b *budget) *flow {
	for _, f := range t.flows {
		if f.leader == leader && f.group == group && f.to == to && f.budget == b {
			return f
		}
	}
	f := &flow{leader: leader, group: group, to: to, budget: b}
	t.flows = append(t.flows, f)
	return f
}

// look looks at what every node knows of the throttles, and asks the leaders of what moves who learns.
func (t *throttles) look() {
	if !t.set {
		return
	}
	for _, n := range t.w.members {
		if !n.up() || n.proc.core == nil || n.proc.frozen {
			continue
		}
		p := n.proc
		img := p.core.Metadata().Image()
		for _, topic := range img.Topics {
			for _, side := range sides {
				t.budget(p, side).look(topic)
			}
		}
		for _, r := range p.core.Groups().Replicas() {
			topic := img.Topics[r.Topic()]
			if topic == nil || int(r.Partition()) >= len(topic.Partitions) || topic.Partitions[r.Partition()].Change == nil || !r.Status().Ready {
				continue
			}
			id := r.GroupID()
			p.askLearners(r, func(term uint64, learners []uint64) { t.learn(p, id, term, learners) })
		}
	}
}

// learn takes in a leader's word of who learns: what it has sent to them until now counts.
func (t *throttles) learn(p *proc, group, term uint64, learners []uint64) {
	now, lead := t.w.clk.Now(), ledTerm{p, group, term}
	if _, ok := t.led[lead]; !ok {
		t.led[lead] = now
	}
	for _, f := range t.flows {
		if f.leader != p || f.group != group {
			continue
		}
		for _, x := range f.waiting {
			if slices.Contains(learners, f.to) && x.at.Sub(t.led[lead]) >= settling {
				f.budget.pieces = append(f.budget.pieces, x)
				t.w.counts["bytes for learners under a throttle"] += x.size
			}
		}
		f.waiting = nil
	}
}

// check holds what was counted against the rates.
func (t *throttles) check() {
	for _, b := range t.budgets {
		b.check(t.w)
	}
}

// check lets a bucket run over: it is filled by what is sent, and drained at the rate. A second's worth may come at once, and a piece on
// credit. Who receives lets each leader have an allowance of up to a second's worth, or a chunk, which is used when that likes, and links
// that are slow let things arrive together.
func (b *budget) check(w *world) {
	slices.SortStableFunc(b.pieces, func(x, y piece) int { return x.at.Compare(y.at) })
	speed := 1.0
	if w.counts[FaultPrefix+"clock drift"] > 0 {
		speed = 1.35
	}
	var flows []*flow
	level, largest := 0.0, 0
	for i, x := range b.pieces {
		if i == 0 || b.pieces[i-1].rate != x.rate {
			level, flows = 0, nil
		} else {
			level = max(0, level-x.at.Sub(b.pieces[i-1].at).Seconds()*float64(x.rate)*speed)
		}
		if !slices.Contains(flows, x.of) {
			flows = append(flows, x.of)
		}
		level, largest = level+float64(x.size), max(largest, x.size)
		most := float64(x.rate)*speed + float64(largest)
		if b.side == "follower" {
			most = 1.5*speed*float64(x.rate) + float64(largest) + float64(len(flows))*(float64(x.rate)+float64(largest))
		}
		if level > most {
			w.fail("node %d: its %s.replication.throttled.rate is %d, and at %v replicas that learn were ahead of it by %.0f bytes, %.0f at most", b.p.node.id, b.side,
				x.rate, x.at.Sub(epoch), level, most)
			return
		}
	}
}

// mover is a client that moves replicas under a throttle, as kafka-reassign-partitions does.
type mover struct{ *client }

// moveThrottled has a client set a throttle, ask for moves, and after a while take the throttle away, change it, or leave it until after the healing.
func moveThrottled(w *world, r *rand.Rand) bool {
	if len(w.staying()) <= int(w.set.replication) || slices.Contains(w.made, false) {
		return false
	}
	w.newClient("mover", func(c *client) {
		m := mover{c}
		for again := true; again && !w.healed; again = r.IntN(3) == 0 {
			if !m.throttle(pick[int64](r, 0, 2<<10, 8<<10, 8<<10, 32<<10, 128<<10), drawThrottled(r)) {
				return
			}
			c.sleep(settling + c.between(0, 300*ms)) // every node knows it
			for range 1 + r.IntN(3) {
				moveOne(w, r)
				c.sleep(c.between(0, 300*ms))
			}
			c.sleep(between(r, 300*ms, 5*time.Second))
		}
		if !w.healed && r.IntN(2) == 0 {
			m.throttle(-1, [2]string{})
		}
	})
	return true
}

// moveOne asks for one replica of the partition with the most records to go to another node.
func moveOne(w *world, r *rand.Rand) {
	n, part := w.anyUp(r), slices.MaxFunc(w.model.parts, func(a, b *partModel) int { return cmp.Compare(a.acked, b.acked) })
	if n == nil || n.proc.core == nil || !w.made[part.topicIndex] {
		return
	}
	t := n.proc.core.Metadata().Image().Topics[part.topic]
	if t == nil {
		return
	}
	to := nodesOf(t.Partitions[part.index])
	if r.IntN(3) == 0 {
		r.Shuffle(len(to), func(i, k int) { to[i], to[k] = to[k], to[i] })
	}
	nodes := w.staying()
	for _, i := range r.Perm(len(nodes)) {
		if id := nodes[i].id; !slices.Contains(to, id) {
			to[r.IntN(len(to))] = id
			w.reassign(n, []controller.Reassignment{{Topic: part.topic, Partition: part.index, Nodes: to}})
			return
		}
	}
}

// drawThrottled draws which replicas are throttled as leaders, and which as followers.
func drawThrottled(r *rand.Rand) [2]string {
	pairs := "0:1,0:2,0:4,1:1,1:3,1:5,2:2,2:6"
	return pick(r, [2]string{"*", "*"}, [2]string{"*", ""}, [2]string{"", "*"}, [2]string{"*", pairs}, [2]string{pairs, "*"})
}

// throttle sets the rates of all nodes, and which replicas of all topics they are for; a rate below 0 takes all that away. It tries for as
// long as there are faults, and says whether it was done.
func (m mover) throttle(rate int64, among [2]string) bool {
	w := m.w
	for first := true; first || !w.healed; first = false {
		names := []string{}
		for i := range w.set.topics {
			names = append(names, topicName(i))
		}
		if img := w.newest(); img != nil && img.Topics[group.Topic] != nil {
			names = append(names, group.Topic)
		}
		if err := m.alter(m.anyNode(), rate, among, names); err == nil {
			w.log("replication is throttled to %d bytes a second, of the replicas %q", rate, among)
			if rate < 0 {
				w.counts["throttles taken away"]++
			} else {
				w.counts["throttles set"]++
			}
			return true
		}
		m.sleep(m.between(20*ms, 200*ms))
	}
	return false
}

// alter asks a node for a throttle, once.
func (m mover) alter(k *conn, rate int64, among [2]string, topics []string) error {
	if k == nil {
		return errRefused
	}
	defer k.close(errReset)
	m.w.throttles.set = true
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.SetVersion(1)
	add := func(kind kmsg.ConfigResourceType, resource, name string, values [2]string) {
		r := kmsg.NewIncrementalAlterConfigsRequestResource()
		r.ResourceType, r.ResourceName = kind, resource
		for i, side := range sides {
			c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
			if c.Name = side + ".replication.throttled." + name; values[i] == "" {
				c.Op = kmsg.IncrementalAlterConfigOpDelete
			} else {
				c.Value = &values[i]
			}
			r.Configs = append(r.Configs, c)
		}
		req.Resources = append(req.Resources, r)
	}
	number := ""
	if rate >= 0 {
		number = strconv.FormatInt(rate, 10)
	}
	for _, n := range m.w.members {
		add(kmsg.ConfigResourceTypeBroker, strconv.Itoa(int(n.id)), "rate", [2]string{number, number})
	}
	for _, name := range topics {
		add(kmsg.ConfigResourceTypeTopic, name, "replicas", among)
	}
	resp, err := k.ask(req, nil)
	if err != nil {
		return err
	}
	for _, r := range resp.(*kmsg.IncrementalAlterConfigsResponse).Resources {
		if code := typed(r.ErrorCode); code != nil {
			return code
		}
	}
	return nil
}

// liftThrottles has the throttles taken away that are left after healing, or their rates raised: until then writes and groups went on under
// them, whatever they were.
func (w *world) liftThrottles() {
	if !w.throttles.set || w.failed != nil {
		return
	}
	done := false
	w.newClient("mover", func(c *client) {
		rate, among := int64(-1), [2]string{}
		if c.rng.IntN(2) == 0 {
			rate, among = 1<<20, [2]string{"*", "*"}
		}
		for !done {
			done = mover{c}.throttle(rate, among)
		}
	})
	if !w.run(w.bound(writableWithin), func() bool { return done }) && w.failed == nil {
		w.fail("the throttles can't be taken away %v after healing: %s", w.bound(writableWithin), w.describe())
	}
}

// underThrottle says whether some of a topic's replicas are throttled, as some node knows.
func (w *world) underThrottle(topic string) bool {
	img := w.newest()
	if img == nil || img.Topics[topic] == nil {
		return false
	}
	c := img.Topics[topic].Configs
	return cmp.Or(c["leader.replication.throttled.replicas"], c["follower.replication.throttled.replicas"]) != ""
}
