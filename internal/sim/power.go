package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/vfs"
)

// cutsOfARun is how often the power fails in a run of Options.Power, at least.
const cutsOfARun = 100

// What is counted of Options.Power. A cut of the first kind came after every partition had been read whole since the one before, and
// after something more was acknowledged; one of the second kind came sooner.
const (
	cutsOfAll       = "power cuts of the whole cluster"
	cutsInRecovery  = "power cuts of the whole cluster while it recovers"
	checksAfterACut = "logs read whole after a power cut"
	ackedAfterACut  = "acknowledged batches looked for after a power cut"
)

// moment is when the power of all fails.
type moment struct {
	// matches says whether an operation on a disk makes it come. nil: something else does.
	matches func(op vfs.Op, name string) bool
	// event is what makes it come, where no operation does: see storm.happened. Empty: time does.
	event string
	// spread is within how many operations from then on, of all disks, the power fails.
	spread int
	// early: it does not wait until the cluster has recovered from the cut before.
	early bool
}

const namesChange = vfs.OpCreate | vfs.OpRename | vfs.OpRemove | vfs.OpSyncDir

// powerFaults are the moments. Their chance to be in a run's swarm is the same.
var powerFaults = []*fault{
	{name: "power cut of all at any time", moment: &moment{}},
	{name: "power cut of all at a write of the log", moment: &moment{spread: 3, matches: func(op vfs.Op, name string) bool {
		return op == vfs.OpWrite && strings.HasSuffix(name, ".wal")
	}}},
	{name: "power cut of all at a sync", moment: &moment{spread: 2, matches: func(op vfs.Op, _ string) bool { return op&(vfs.OpSync|vfs.OpSyncDir) != 0 }}},
	{name: "power cut of all at a segment roll", moment: &moment{spread: 12, matches: func(op vfs.Op, name string) bool {
		return op == vfs.OpCreate && strings.HasSuffix(name, ".log")
	}}},
	{name: "power cut of all at a new log file", moment: &moment{spread: 8, matches: func(op vfs.Op, name string) bool {
		return op&(namesChange|vfs.OpTruncate) != 0 && strings.HasSuffix(name, ".wal")
	}}},
	{name: "power cut of all at a change of names", moment: &moment{spread: 6, matches: func(op vfs.Op, _ string) bool { return op&namesChange != 0 }}},
	{name: "power cut of all at a compaction", moment: &moment{spread: 20, matches: func(_ vfs.Op, name string) bool {
		return strings.Contains(name, ".cleaned") || strings.Contains(name, ".swap")
	}}},
	{name: "power cut of all in an election", moment: &moment{spread: 40, event: happenedElection}},
	{name: "power cut of all around a snapshot", moment: &moment{spread: 60, event: happenedSnapshot}},
	{name: "power cut of all in recovery", moment: &moment{early: true}},
}

// What a moment may wait for.
const (
	happenedElection = "election"
	happenedSnapshot = "snapshot"
)

// unhurried is how long a moment is waited for that does not come: then the power fails as it is.
const unhurried = 500 * ms

// storm lets the power of all machines fail again and again, in the order of the plan: each time all that has been acknowledged is read
// again from every partition's new leader, and more is acknowledged, before the next one is due.
type storm struct {
	w    *world
	next int // place in the plan
	// armed is the moment that is waited for, nil at the end.
	armed *fault
	rand  *rand.Rand // of this cut
	need  int        // batches to be acknowledged before it is due
	due   bool
	left  int // operations until it strikes; -1: its moment has not come
	turn  int // of cuts, so that a late timer finds out

	since  time.Time // of the last cut
	acked  int       // by then
	unread []*partModel
	absent *node // stays away longer than others
	backAt time.Time
}

// planPower draws a swarm of moments, and how often the power fails at which.
func planPower(r *rand.Rand) (plan []event) {
	for _, f := range faults {
		switch f.name {
		case "messages dropped", "messages doubled", "lost answers", "power cuts while starting":
			if r.IntN(5) == 0 {
				plan = append(plan, event{kind: f, seed: r.Uint64()})
			}
		}
	}
	var swarm []*fault
	for _, f := range powerFaults {
		if r.IntN(3) > 0 {
			swarm = append(swarm, f)
		}
	}
	if len(swarm) == 0 || len(swarm) == 1 && swarm[0].moment.early {
		swarm = append(swarm, powerFaults[0]) // what comes early alone would let nothing happen in between
	}
	for late := 0; late < cutsOfARun; {
		f := swarm[r.IntN(len(swarm))]
		if !f.moment.early {
			late++
		}
		plan = append(plan, event{kind: f, seed: r.Uint64()})
	}
	return plan
}

// powerSettings are those of clusters that recover quickly and hold little, so that the power can fail often.
func powerSettings(r *rand.Rand) settings {
	s := drawSettings(r)
	s.nodes, s.replication = pick(r, 1, 3, 3, 3, 3, 5), 3
	if s.nodes == 1 {
		s.replication = 1
	}
	s.topics, s.compacted = []int{1 + r.IntN(2)}, []string{pick(r, "", "", "compact")}
	s.tick, s.syncTime, s.stepTime, s.netDelay = pick(r, 10*ms, 20*ms), pick(r, ms, 4*ms), pick(r, 0, 0, ms), pick(r, ms, 3*ms)
	s.walFile, s.scrub, s.segment.SegmentBytes = 64<<10, pick(r, time.Second, time.Minute, time.Minute), pick[int64](r, 8<<10, 8<<10, 32<<10)
	s.producers, s.consumers, s.valueBytes, s.pace = 2+r.IntN(2), 1, pick(r, 50, 100, 300), pick(r, 50*ms, 100*ms)
	s.segment.RetentionBytes = pick[int64](r, -1, 32<<10) // what is read after every cut shall stay little
	s.limits.FlushInterval, s.limits.MaintenanceInterval = pick(r, 50*ms, 100*ms, 400*ms), pick(r, 100*ms, 500*ms)
	s.deletes, s.admin, s.groups = r.IntN(3) == 0, r.IntN(4) == 0, pick(r, 0, 0, 0, 0, 1)
	s.patience = 300 * ms
	return s
}

// begin lets those faults of the plan begin that last, and arms the first cut.
func (s *storm) begin() {
	s.since, s.left = s.w.clk.Now(), -1
	s.unread = append(s.unread[:0], s.w.model.parts...)
	s.arm()
}

// arm takes the next cut of the plan.
func (s *storm) arm() {
	w := s.w
	s.armed, s.due, s.left = nil, false, -1
	for s.turn++; s.next < len(w.plan); {
		i, e := s.next, w.plan[s.next]
		s.next++
		if w.partly && !w.keep[i] {
			continue
		}
		r := rand.New(rand.NewPCG(e.seed, 0x706f))
		if e.kind.always {
			e.kind.strike(w, r)
			w.counts[FaultPrefix+e.kind.name]++
			continue
		}
		s.armed, s.rand, s.need = e.kind, r, 1+r.IntN(10)
		w.log("fault %d: %s, after %d batches", i, e.kind.name, s.need)
		break
	}
	if s.armed != nil && s.armed.moment.early {
		s.due = true
		if s.rand.IntN(2) == 0 {
			s.left = s.rand.IntN(300)
		}
		s.later(upTo(s.rand, 300*ms))
	}
}

// later lets the power fail after d, whatever has come by then, unless it has failed before.
func (s *storm) later(d time.Duration) {
	turn := s.turn
	s.w.after(d, func() {
		if s.turn == turn && !s.w.healed && s.w.failed == nil {
			s.strike(nil)
		}
	})
}

// look is called every few milliseconds: it checks what there is to check after a cut, and says when the next one is due.
func (s *storm) look() {
	w := s.w
	if w.healed {
		return
	}
	s.read()
	if w.failed != nil {
		return
	}
	recovered := len(s.unread) == 0 && w.model.acked > s.acked
	if took := w.clk.Now().Sub(s.since); !recovered && took > w.bound(s.within()) {
		w.fail("%v after the power failed, %d of %d partitions have no leader that serves, and %d batches have been acknowledged: %s", took, len(s.unread),
			len(w.model.parts), w.model.acked-s.acked, w.describe())
		return
	}
	if s.armed == nil || s.due || !recovered || w.model.acked-s.acked < s.need {
		return
	}
	s.due = true
	if m := s.armed.moment; m.matches == nil && m.event == "" {
		s.later(upTo(s.rand, 100*ms))
	} else {
		s.later(unhurried)
	}
}

// within is how long the cluster may take to be well again. Where messages vanish on links that stay up, so do requests between nodes, which are
// asked again after five seconds: a node that starts may lose some in a row before the others know its address.
func (s *storm) within() time.Duration {
	if s.w.noise.drop > 0 {
		return 2 * writableWithin
	}
	return writableWithin
}

// over says whether all cuts have come, and the last one has been recovered from.
func (s *storm) over() bool {
	return s.armed == nil && len(s.unread) == 0 && s.w.model.acked > s.acked
}

// operation is told of each operation before it begins, and lets the power fail there if it is time.
func (s *storm) operation(p *proc, op vfs.Op, name string) (struck bool) {
	if !s.due || s.w.healed || s.w.failed != nil {
		return false
	}
	m := s.armed.moment
	if s.left < 0 && m.matches != nil && m.matches(op, name) {
		s.left = s.rand.IntN(m.spread)
	}
	switch {
	case s.left < 0:
		return false
	case s.left > 0:
		s.left--
		return false
	}
	s.strike(p)
	return true
}

// happened tells of what is no operation on a disk.
func (s *storm) happened(event string) {
	if s != nil && s.due && s.left < 0 && s.armed.moment.event == event {
		s.left = s.rand.IntN(s.armed.moment.spread)
	}
}

// strike takes the power from all machines; from that of p, if it is not nil, within a step. The next cut is armed.
func (s *storm) strike(p *proc) {
	w, r := s.w, s.rand
	kind := cutsInRecovery
	if len(s.unread) == 0 && w.model.acked > s.acked {
		kind = cutsOfAll
	}
	w.log("%s: %d batches acknowledged since the last cut", s.armed.name, w.model.acked-s.acked)
	w.counts[kind]++
	w.counts[FaultPrefix+s.armed.name]++
	now := w.clk.Now()
	if s.absent != nil && !now.Before(s.backAt) {
		s.absent = nil
	}
	away := s.absent == nil && len(w.nodes) > 2 && r.IntN(6) == 0
	longest := pick(r, 5*ms, 30*ms, 200*ms)
	for _, n := range w.nodes {
		if p != nil && n.proc == p {
			p.cutWithin(w.cutKind())
		} else {
			n.powerCutWith(w.cutKind())
		}
	}
	for i, at := range r.Perm(len(w.nodes)) {
		n := w.nodes[at]
		switch {
		case n == s.absent:
		case i == 0 && away:
			// The others go on without it: it will need what they have meanwhile forgotten.
			d := between(r, 500*ms, 4*time.Second)
			s.absent, s.backAt = n, now.Add(d)
			n.restartIn(d)
		default:
			n.restartIn(between(r, ms, longest))
		}
	}
	s.since, s.acked = now, w.model.acked
	s.unread = append(s.unread[:0], w.model.parts...)
	s.arm()
}

// read reads whole what has a leader again since the last cut, and looks for every acknowledged batch in it.
func (s *storm) read() {
	w := s.w
	for i := 0; i < len(s.unread) && w.failed == nil; {
		if p := s.unread[i]; s.readFromLeader(p) {
			s.unread = append(s.unread[:i], s.unread[i+1:]...)
		} else {
			i++
		}
	}
}

func (s *storm) readFromLeader(p *partModel) bool {
	for _, n := range s.w.nodes {
		if !n.up() || n.proc.core == nil {
			continue
		}
		v, ok := n.proc.core.Partitions().Lookup(p.topic, p.index)
		if !ok {
			continue
		}
		if raft, ok := n.proc.core.Groups().Group(v.Group()); ok && raft.Status().Ready {
			s.check(p, v, n.id)
			return true
		}
	}
	return false
}

// check reads a leader's log from its start to its end: sound, dense, what was sent, and all that was acknowledged.
func (s *storm) check(p *partModel, v *partition.Partition, node int32) {
	w := s.w
	start, hw := v.LogStart(), v.HighWatermark()
	where := fmt.Sprintf("node %d after a power cut", node)
	raw, err := readReplica(v, start, hw)
	if err != nil {
		w.fail("%s, %s: reading from %d to %d: %v", p, where, start, hw, err)
		return
	}
	w.counts[checksAfterACut]++
	if p.kept != nil {
		w.model.audit(p, start, hw, raw, where)
		return
	}
	end, ok := w.model.sawAll(p, start, raw, where)
	switch {
	case !ok:
	case end != hw:
		w.fail("%s, %s: the log ends at %d, its high watermark is %d", p, where, end, hw)
	default:
		w.counts[ackedAfterACut] += w.checkAcked(p, node, start, hw)
	}
}
