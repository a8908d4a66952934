package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/vfs"
)

// event is a fault that is planned: when, which, and what its details are drawn from. A run's plan is drawn whole before it
// begins, so that a part of it can be run again.
type event struct {
	at   time.Duration // from the beginning
	kind *fault
	seed uint64
}

// String names the event.
func (e event) String() string {
	if e.kind.moment != nil {
		return e.kind.name
	}
	return fmt.Sprintf("at %v: %s", e.at.Round(ms), e.kind.name)
}

// fault is something that goes wrong.
type fault struct {
	name string
	// strike makes it happen, or says that it is not possible just now.
	strike func(w *world, r *rand.Rand) bool
	// always: it is a rate that holds from the beginning to the healing.
	always bool
	// moment is when it strikes, of those that a storm of power cuts brings about in its own time.
	moment *moment
}

var faults = []*fault{
	{name: "messages dropped", always: true, strike: noisy(func(n *noise, r *rand.Rand) { n.drop = pick(r, 0.002, 0.02) })},
	{name: "messages doubled", always: true, strike: noisy(func(n *noise, r *rand.Rand) { n.dup = pick(r, 0.01, 0.05) })},
	{name: "lost answers", always: true, strike: noisy(func(n *noise, r *rand.Rand) { n.answers = pick(r, 0.002, 0.01) })},
	{name: "power cuts around snapshots", always: true, strike: noisy(func(n *noise, r *rand.Rand) { n.snapshotCuts = 0.2 })},
	{name: "power cuts while starting", always: true, strike: noisy(func(n *noise, r *rand.Rand) { n.restartCuts = pick(r, 0.1, 0.3) })},
	{name: "power cuts while compacting", always: true, strike: noisy(func(n *noise, r *rand.Rand) { n.cleanCuts = pick(r, 0.01, 0.05) })},
	{name: "isolate", strike: isolate},
	{name: "one-way cut", strike: oneWay},
	{name: "flapping link", strike: flap},
	{name: "half-open link", strike: halfOpen},
	{name: "slow link", strike: slowLink},
	{name: "loss burst", strike: lossBurst},
	{name: "kill", strike: killOne},
	{name: "long absence", strike: absence},
	{name: "power cut", strike: powerOne},
	{name: "power cut in a step", strike: powerInStep},
	{name: "power cut of all", strike: powerAll},
	{name: "pause", strike: pause},
	{name: "slow node", strike: slowNode},
	{name: "slow disk", strike: slowDisk},
	{name: "stalled reads", strike: stallReads},
	{name: "failed sync", strike: failSync},
	{name: "full disk", strike: fullDisk},
	{name: "leadership transfer", strike: transfer},
	{name: "clock jump", strike: clockJump},
	{name: "clock drift", strike: clockDrift},
	{name: "bits flipped", strike: flipBits},
	{name: "replicas moved", strike: moveReplicas},
	{name: "replicas moved under a throttle", strike: moveThrottled},
	{name: "coordinator killed", strike: killCoordinator},
	{name: "coordinator moved", strike: moveCoordinator},
	{name: "coordinator paused", strike: pauseCoordinator},
}

func noisy(set func(n *noise, r *rand.Rand)) func(*world, *rand.Rand) bool {
	return func(w *world, r *rand.Rand) bool {
		set(&w.noise, r)
		return true
	}
}

// planFaults draws a swarm: a subset of the faults, each at a rate of its own, so that rare combinations come about (Groce et al.,
// "Swarm Testing", ISSTA 2012). Now and then it is a storm of power cuts and nothing else.
func planFaults(r *rand.Rand, set settings, bench bool) (plan []event) {
	rates := make([]float64, len(faults))
	interval := pick(r, 150*ms, 300*ms, 900*ms)
	storm := r.IntN(6) == 0
	for i, f := range faults {
		switch {
		case bench:
		case storm:
			if f.name == "power cut of all" {
				rates[i] = 1
			}
			interval = pick(r, 150*ms, 300*ms, 600*ms)
		case r.IntN(5) < 2:
			rates[i] = pick[float64](r, 1, 1, 2, 4)
		}
	}
	if bench {
		for i, f := range faults {
			if f.name == "kill" || f.name == "isolate" || f.name == "power cut" {
				rates[i] = 1
			}
		}
		interval = 5 * time.Second
	}
	total := 0.0
	for i, f := range faults {
		if f.always {
			if rates[i] > 0 {
				plan = append(plan, event{0, f, r.Uint64()})
			}
			rates[i] = 0
		}
		total += rates[i]
	}
	if total == 0 {
		i := slices.IndexFunc(faults, func(f *fault) bool { return f.name == "kill" })
		rates[i], total = 1, 1
	}
	for at := time.Duration(0); ; {
		at += interval/4 + time.Duration(r.Int64N(int64(interval)*7/4))
		if at > set.chaos {
			return plan
		}
		x := r.Float64() * total
		for i, f := range faults {
			if x -= rates[i]; x < 0 && rates[i] > 0 {
				plan = append(plan, event{at, f, r.Uint64()})
				break
			}
		}
	}
}

// unleash puts the plan on the clock.
func (w *world) unleash() {
	if w.storm != nil {
		w.storm.begin()
		return
	}
	for i, e := range w.plan {
		if w.partly && !w.keep[i] {
			continue
		}
		w.after(e.at, func() {
			if w.healed || w.failed != nil {
				return
			}
			w.log("fault %d: %s", i, e.kind.name)
			if e.kind.strike(w, rand.New(rand.NewPCG(e.seed, 0x6661))) {
				w.counts[FaultPrefix+e.kind.name]++
			}
		})
	}
}

func (w *world) anyNode(r *rand.Rand) *node { return w.members[r.IntN(len(w.members))] }

// anyUp draws a node that runs, nil if none does.
func (w *world) anyUp(r *rand.Rand) *node {
	first := r.IntN(len(w.nodes))
	for i := range w.nodes {
		if n := w.nodes[(first+i)%len(w.nodes)]; n.up() {
			return n
		}
	}
	return nil
}

// anyLink draws a link, nil where there is only one node.
func (w *world) anyLink(r *rand.Rand) *link {
	n := len(w.nodes)
	if n == 1 {
		return nil
	}
	a := r.IntN(n)
	return w.links.links[a][(a+1+r.IntN(n-1))%n]
}

func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d) + 1)) }

func between(r *rand.Rand, lo, hi time.Duration) time.Duration { return lo + upTo(r, hi-lo) }

// cut lets nothing through a link, or lets everything through again.
func (w *world) cut(l *link, cut bool) {
	l.cut = cut
	w.links.changed(l)
}

// isolate takes a group of nodes from the others: one, mostly.
func isolate(w *world, r *rand.Rand) bool {
	n := len(w.nodes)
	if n == 1 {
		return false
	}
	in := make([]bool, n)
	in[r.IntN(n)] = true
	for i := range in {
		in[i] = in[i] || r.IntN(4) == 0
	}
	var cut []*link
	w.links.each(func(l *link) {
		if in[l.from.id-1] != in[l.to.id-1] {
			w.cut(l, true)
			cut = append(cut, l)
		}
	})
	w.after(between(r, 50*ms, 2*time.Second), func() {
		for _, l := range cut {
			w.cut(l, false)
		}
	})
	return len(cut) > 0
}

func oneWay(w *world, r *rand.Rand) bool {
	l := w.anyLink(r)
	if l == nil {
		return false
	}
	w.cut(l, true)
	w.after(between(r, 50*ms, 2*time.Second), func() { w.cut(l, false) })
	return true
}

func flap(w *world, r *rand.Rand) bool {
	l := w.anyLink(r)
	if l == nil {
		return false
	}
	var turn func(left int)
	turn = func(left int) {
		w.cut(l, left > 0 && !l.cut && !w.healed)
		if left > 0 {
			w.after(between(r, 5*ms, 100*ms), func() { turn(left - 1) })
		}
	}
	turn(12)
	return true
}

// halfOpen swallows what a link carries, and nobody is told.
func halfOpen(w *world, r *rand.Rand) bool {
	l := w.anyLink(r)
	if l == nil {
		return false
	}
	l.deaf = true
	w.links.changed(l)
	w.after(between(r, 100*ms, 3*time.Second), func() {
		l.deaf = false
		w.links.changed(l)
	})
	return true
}

func slowLink(w *world, r *rand.Rand) bool {
	l := w.anyLink(r)
	if l == nil {
		return false
	}
	l.slow = between(r, 10*ms, 300*ms)
	w.after(between(r, 100*ms, 2*time.Second), func() { l.slow = 0 })
	return true
}

func lossBurst(w *world, r *rand.Rand) bool {
	loss := 0.05 + 0.4*r.Float64()
	w.links.each(func(l *link) { l.loss = loss })
	w.after(between(r, 100*ms, time.Second), func() { w.links.each(func(l *link) { l.loss = 0 }) })
	return len(w.nodes) > 1
}

func killOne(w *world, r *rand.Rand) bool {
	n := w.anyUp(r)
	if n == nil {
		return false
	}
	n.killNow()
	if r.IntN(10) < 3 {
		// Before it comes back the power fails as well: what the kernel had kept is gone.
		w.counts["power cut after a kill"]++
		n.powerCut()
	}
	n.restartIn(between(r, 10*ms, 2*time.Second))
	return true
}

// absence takes a node away for so long that the others' logs move on without it.
func absence(w *world, r *rand.Rand) bool {
	n := w.anyUp(r)
	if n == nil {
		return false
	}
	n.killNow()
	n.restartIn(between(r, 2*time.Second, 6*time.Second))
	return true
}

func powerOne(w *world, r *rand.Rand) bool {
	n := w.anyUp(r)
	if n == nil {
		return false
	}
	n.powerCut()
	n.restartIn(between(r, 10*ms, 2*time.Second))
	return true
}

// powerInStep lets the power fail at one of the next operations on a disk.
func powerInStep(w *world, r *rand.Rand) bool {
	n := w.anyUp(r)
	if n == nil || n.proc.cut >= 0 {
		return false
	}
	n.proc.cut, n.proc.cutKeep = r.IntN(60), w.cutKind()
	return true
}

// powerAll takes the power from all machines: each as it is, or, now and then, one of them in the middle of a step.
func powerAll(w *world, r *rand.Rand) bool {
	longest := pick(r, 30*ms, 800*ms)
	for _, n := range w.members {
		n.powerCut()
		n.restartIn(between(r, 5*ms, longest))
	}
	w.counts["power cuts of the whole cluster"]++
	return true
}

// pause is SIGSTOP and SIGCONT.
func pause(w *world, r *rand.Rand) bool {
	n := w.anyUp(r)
	if n == nil || n.proc.frozen {
		return false
	}
	n.pauseFor(between(r, 50*ms, 2*time.Second))
	return true
}

func (n *node) pauseFor(d time.Duration) {
	p := n.proc
	p.frozen = true
	n.w.after(d, func() {
		if !p.dead {
			n.w.log("node %d goes on", n.id)
			p.thaw()
		}
	})
}

// slowNode makes everything that a process does take its time.
func slowNode(w *world, r *rand.Rand) bool {
	n := w.anyUp(r)
	if n == nil {
		return false
	}
	p := n.proc
	p.slow = between(r, 2*ms, 80*ms)
	w.after(between(r, 200*ms, 2*time.Second), func() { p.slow = 0 })
	return true
}

// slowDisk makes operations take long, or holds the log's writer back before one begins.
func slowDisk(w *world, r *rand.Rand) bool {
	n := w.anyUp(r)
	if n == nil {
		return false
	}
	if r.IntN(2) == 0 {
		n.fs.Inject(vfs.Fault{Ops: vfs.OpSync | vfs.OpWrite, Count: 1 + r.IntN(20), Delay: between(r, 5*ms, 100*ms)})
		return true
	}
	until := w.clk.Now().Add(between(r, 100*ms, 1500*ms))
	for _, a := range n.proc.actors {
		if a.name == "log" {
			a.restUntil = until
		}
	}
	return true
}

func stallReads(w *world, r *rand.Rand) bool {
	n := w.anyUp(r)
	if n == nil {
		return false
	}
	n.fs.Inject(vfs.Fault{Ops: vfs.OpRead, Count: 1 + r.IntN(10), Delay: between(r, 10*ms, 400*ms)})
	return true
}

// failSync makes one of the next syncs fail: the process must stop.
func failSync(w *world, r *rand.Rand) bool {
	n := w.anyUp(r)
	if n == nil || n.syncFault != nil {
		return false
	}
	match := pick(r, "", "*.wal")
	n.syncFault = n.fs.Inject(vfs.Fault{Ops: vfs.OpSync, Match: match, Skip: r.IntN(10), Err: syscall.EIO})
	return true
}

// fullDisk leaves little room on a disk, or none, for a while.
func fullDisk(w *world, r *rand.Rand) bool {
	n := w.anyUp(r)
	if n == nil || n.full {
		return false
	}
	n.full = true
	n.fs.SetCapacity(n.fs.Used() + r.Int64N(reserveBytes*5/4))
	w.after(between(r, 200*ms, 4*time.Second), func() {
		n.full = false
		n.fs.SetCapacity(0)
	})
	return true
}

// flipBits changes bits on one node's disk, always the same node's in a run: a minority, whatever the others' disks go through.
func flipBits(w *world, r *rand.Rand) bool {
	if w.set.replication < 3 {
		return false
	}
	n := w.nodes[w.seed%uint64(w.set.nodes)]
	files := n.files(dataDir, nil)
	if n.ruined || n.standing != member || w.leaving() || len(files) == 0 {
		return false
	}
	for range 1 + r.IntN(3) {
		f := files[r.IntN(len(files))]
		fi, err := n.fs.Stat(f)
		if err != nil || fi.Size == 0 {
			continue
		}
		at := r.Int64N(fi.Size)
		if n.fs.FlipBit(f, at, uint(r.IntN(8))) == nil {
			n.flips++
			w.log("node %d: a bit of %s at %d has changed", n.id, f, at)
		}
	}
	return n.flips > 0
}

// files lists the files of the log and of segments.
func (n *node) files(dir string, list []string) []string {
	names, err := n.fs.List(dir)
	if err != nil {
		return list
	}
	for _, name := range names {
		full := dir + "/" + name
		if fi, err := n.fs.Stat(full); err == nil && fi.IsDir {
			list = n.files(full, list)
		} else if strings.HasSuffix(name, ".log") || strings.HasSuffix(name, ".wal") {
			list = append(list, full)
		}
	}
	return list
}

// moveReplicas asks for a partition's replicas to go to other nodes, or for a move under way to be turned back.
func moveReplicas(w *world, r *rand.Rand) bool {
	n := w.anyUp(r)
	if n == nil || n.proc.core == nil {
		return false
	}
	topic, index := "", int32(0)
	if i := r.IntN(len(w.model.parts) + len(w.groupLogs.parts)); i >= len(w.model.parts) {
		topic, index = group.Topic, int32(i-len(w.model.parts)) // a coordinator's
	} else if part := w.model.parts[i]; w.made[part.topicIndex] {
		topic, index = part.topic, part.index
	} else {
		return false
	}
	var to []int32
	nodes := w.staying()
	if len(nodes) < int(w.set.replication) {
		return false
	}
	for _, i := range r.Perm(len(nodes))[:w.set.replication] {
		to = append(to, nodes[i].id)
	}
	ask := controller.Reassignment{Topic: topic, Partition: index, Nodes: to}
	if r.IntN(5) == 0 {
		ask.Nodes, ask.Cancel = nil, true
	}
	w.reassign(n, []controller.Reassignment{ask})
	return true
}

func transfer(w *world, r *rand.Rand) bool {
	n := w.anyUp(r)
	if n == nil || n.proc.core == nil {
		return false
	}
	struck := false
	for _, v := range n.proc.core.Groups().Replicas() {
		if v.IsLeader() {
			to := int32(-1)
			if r.IntN(4) > 0 {
				to = w.anyNode(r).id
			}
			v.TransferLeadership(to)
			struck = true
		}
	}
	w.touch(n.proc)
	return struck
}

// coordinator finds a node that leads a partition of groups, and that partition's replica.
func (w *world) coordinator(r *rand.Rand) (*node, *multiraft.Replica) {
	var nodes []*node
	var led []*multiraft.Replica
	for _, n := range w.nodes {
		if !n.up() || n.proc.core == nil {
			continue
		}
		for _, v := range n.proc.core.Groups().Replicas() {
			if v.Topic() == group.Topic && v.IsLeader() {
				nodes, led = append(nodes, n), append(led, v)
			}
		}
	}
	if len(nodes) == 0 {
		return nil, nil
	}
	i := r.IntN(len(nodes))
	return nodes[i], led[i]
}

// killCoordinator kills a node that coordinates groups.
func killCoordinator(w *world, r *rand.Rand) bool {
	n, _ := w.coordinator(r)
	if n == nil {
		return false
	}
	n.killNow()
	n.restartIn(between(r, 10*ms, 3*time.Second))
	return true
}

// pauseCoordinator stops a node that coordinates groups for so long that another one may take over: it wakes up and believes that
// nothing has happened.
func pauseCoordinator(w *world, r *rand.Rand) bool {
	n, _ := w.coordinator(r)
	if n == nil || n.proc.frozen {
		return false
	}
	n.pauseFor(10*w.set.tick + between(r, 500*ms, 5*time.Second)) // clients notice after requestTimeout
	return true
}

// moveCoordinator has another node lead a partition of groups: the old coordinator lives on, and may not know for a while.
func moveCoordinator(w *world, r *rand.Rand) bool {
	n, v := w.coordinator(r)
	if n == nil || len(w.nodes) == 1 {
		return false
	}
	to := w.anyNode(r).id
	if to == n.id {
		to = -1
	}
	v.TransferLeadership(to)
	w.touch(n.proc)
	return true
}

// clockJump moves a machine's wall clock, either way. Raft counts ticks and is not concerned.
func clockJump(w *world, r *rand.Rand) bool {
	n := w.anyNode(r)
	n.setClock(between(r, -time.Minute, time.Minute), n.rate)
	return true
}

// clockDrift makes a machine's clock run too fast or too slow.
func clockDrift(w *world, r *rand.Rand) bool {
	w.anyNode(r).setClock(0, 0.7+0.6*r.Float64())
	return true
}
