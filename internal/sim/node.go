package sim

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/chronik-go/chronik/internal/controller/bootstrap"
	"github.com/chronik-go/chronik/internal/multiraft"
	nodepkg "github.com/chronik-go/chronik/internal/node"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

const dataDir = "/data"

// node is a machine: a disk that outlives what runs on it, and a clock that may be wrong.
type node struct {
	w    *world
	id   int32
	fs   *vfs.Mem
	proc *proc // nil while nothing runs
	// boots counts processes; it tells a late restart that another one has come first.
	boots int
	// The machine's clock: elapsed at simulated time since, and from then on times rate; the wall clock is ahead by skew.
	elapsed time.Duration
	since   time.Time
	rate    float64
	skew    time.Duration
	// syncFault is the injected failure of a sync that the process must not survive.
	syncFault *vfs.Injected
	full      bool // its disk has little room, or none
	flips     int  // bits that have changed on its disk
	ruined    bool // it has found its metadata damaged, and waits for a person
	standing  standing
	leaving   bool // its replicas are being moved away
	off       bool // it has been stopped by its operator, and stays so
	disks     int  // how many it has had
	refused   int  // how often it was told that it is none of the cluster's
}

// standing is what a node is to the cluster.
type standing int

const (
	member    standing = iota
	wiped              // its disk was emptied: it must be refused under its old id
	removed            // taken out of the cluster: what is on its disk must not come back
	discarded          // switched off for good
)

// proc is one life of a node's process.
type proc struct {
	node    *node
	fs      *vfs.Mem
	dead    bool // it is over: nothing it still does counts
	frozen  bool // stopped by a signal
	touched bool
	slow    time.Duration // added to whatever a worker does
	log     *wal.Log
	// identity is that of the data directory, nil until it has been read.
	identity *bootstrap.Identity
	core     *nodepkg.Core // nil until the node belongs to the cluster, and has opened what it has
	actors   []*actor
	tasks    []*task
	timers   *machineTimer           // armed
	held     []func()                // callbacks while frozen
	later    []unit                  // what was about to run when it was frozen
	views    map[uint64]*replicaView // by replica
	fatal    error
	// registered: the cluster knows this life's address, and all it shall hold is open.
	registered bool
	// loads are the keys of partitions of __consumer_offsets that are being loaded, with their last offsets.
	loads map[int32]map[string]int64
	// loadBegan and loadDone are when that began and ended last.
	loadBegan, loadDone map[int32]time.Time
	// cut is how many disk operations remain until the power fails; -1 is never.
	cut     int
	cutKeep vfs.PowerCut
}

// replicaView is what the checks saw last of a replica in this life.
type replicaView struct {
	hw    int64
	start int64
	term  uint64
}

// newNode makes a machine with an empty disk.
func newNode(w *world, id int32) *node {
	n := &node{w: w, id: id, since: epoch, rate: 1}
	n.newDisk()
	return n
}

// newDisk puts an empty disk into the machine.
func (n *node) newDisk() {
	n.fs = vfs.NewMem(n.w.seed<<8 + uint64(n.id) + uint64(n.disks)<<32)
	n.disks++
	n.fs.SetNow(n.w.clk.Now)
	if err := vfs.MkdirAllSync(n.fs, dataDir); err != nil {
		panic(err)
	}
}

// newFounder makes one of the nodes that formed the cluster.
func newFounder(w *world, id int32) *node {
	n := newNode(w, id)
	identity := &bootstrap.Identity{
		Format: bootstrap.FormatVersion, Dir: dirOf(id), Node: id, ClusterID: bootstrap.ClusterID(w.founders), Founders: w.founders,
	}
	if err := identity.Save(n.fs, dataDir); err != nil {
		panic(err)
	}
	return n
}

// time is what the machine's clock shows.
func (n *node) time() time.Time {
	d := n.running()
	return reading(epoch.Add(d+n.skew), d)
}

// running is how long the machine has been running, by its own clock.
func (n *node) running() time.Duration {
	d := n.w.clk.Now().Sub(n.since)
	if n.rate != 1 {
		d = time.Duration(float64(d) * n.rate)
	}
	return n.elapsed + d
}

// setClock makes the wall clock jump, and the machine's time run at a rate from now on.
func (n *node) setClock(jump time.Duration, rate float64) {
	n.elapsed, n.since, n.rate = n.running(), n.w.clk.Now(), rate
	n.skew += jump
}

// real is how long it takes for d to pass by the machine's clock.
func (n *node) real(d time.Duration) time.Duration {
	if n.rate == 1 {
		return d
	}
	return time.Duration(float64(d) / n.rate)
}

func (n *node) up() bool { return n.proc != nil && !n.proc.dead }

// boot starts a process on the node. A power cut armed before may hit it at any point.
func (n *node) boot(cut int, keep vfs.PowerCut) {
	w := n.w
	if n.ruined || n.off || n.standing == discarded {
		return
	}
	n.boots++
	p := &proc{node: n, fs: n.fs, cut: cut, cutKeep: keep, views: map[uint64]*replicaView{}, loads: map[int32]map[string]int64{},
		loadBegan: map[int32]time.Time{}, loadDone: map[int32]time.Time{}}
	n.proc = p
	w.counts["boots"]++
	w.log("node %d boots", n.id)
	n.fs.SetHook(func(op vfs.Op, name string, _ time.Duration) { p.operation(op, name) })
	w.spawn(p, func() {
		w.links.started(p)
		err := p.open()
		switch {
		case p.dead: // the power failed on the way
		case isRefusal(err):
			n.isRefused(err)
		case (err != nil || p.fatal != nil) && n.flips > 0 && !n.syncFired() && !n.full:
			n.ruin(errors.Join(err, p.fatal))
		case p.fatal != nil || err != nil && (n.syncFired() || n.full):
			w.log("node %d refuses to start: %v %v", n.id, err, p.fatal)
			n.exit(w.between(50*time.Millisecond, time.Second))
		case err != nil:
			n.tree(dataDir)
			w.fail("node %d does not start: %v", n.id, err)
		default:
			if n.standing == wiped {
				w.fail("node %d takes part under its old id with an emptied disk", n.id)
			}
			n.tickLater(p, w.upTo(w.set.tick))
			switch err := p.core.Register(never, host(n.id), kafkaPort); {
			case isRefusal(err):
				n.isRefused(err)
				return
			case err != nil:
				w.fail("node %d can't register: %v", n.id, err)
			case n.standing != member:
				w.fail("node %d is one of the cluster again, with what it had before it was removed", n.id)
			}
			p.registered = true
		}
	})
}

const kafkaPort = 9092

func host(id int32) string { return fmt.Sprintf("sim-%d", id) }

func raftAddr(id int32) string { return host(id) + ":5001" }

// settleFatal ends a process whose disk has failed, as the server does.
func (p *proc) settleFatal() {
	if p.fatal == nil || p.dead {
		return
	}
	w := p.node.w
	if p.node.full {
		w.counts["stopped by a full disk"]++
		p.node.exit(w.between(50*time.Millisecond, time.Second))
		return
	}
	if p.node.flips > 0 && !p.node.syncFired() {
		p.node.ruin(p.fatal)
		return
	}
	if !p.node.syncFired() {
		w.fail("node %d stopped though its disk is sound: %v", p.node.id, p.fatal)
		return
	}
	w.counts["stopped by a failed sync"]++
	p.node.exit(w.between(10*time.Millisecond, time.Second))
}

// ruin ends a node for good: what it needs has changed on its disk, and it says so and serves nothing.
func (n *node) ruin(why error) {
	n.w.log("node %d stops: its disk is damaged: %v", n.id, why)
	n.w.counts["nodes stopped by damage"]++
	n.ruined = true
	n.drop()
	n.fs.Kill()
}

func (n *node) syncFired() bool { return n.syncFault != nil && n.syncFault.Fired() > 0 }

// exit ends the process by its own will, and starts it again later. What a failed sync could not write, the
// kernel shows to readers as if it had, until it drops the page.
func (n *node) exit(restart time.Duration) {
	n.drop()
	n.fs.Kill()
	if n.syncFault != nil {
		n.syncFault.Remove()
		n.syncFault = nil
	}
	switch {
	case n.w.chance(0.5):
		n.powerCut() // the machine is restarted, too
	case n.w.chance(0.5):
		n.fs.DropCaches()
	}
	n.restartIn(restart)
}

// drop takes the process from the machine, without a word to anyone.
func (n *node) drop() {
	if p := n.proc; p != nil {
		p.collect()
		p.dead = true
		n.proc = nil
		p.endTimers()
		n.fs.SetHook(nil)
		n.w.kill(p)
		n.w.links.ended(p)
	}
}

// killNow is kill -9: what was written stays with the kernel.
func (n *node) killNow() {
	n.w.log("node %d killed", n.id)
	n.drop()
	n.fs.Kill()
}

// powerCut ends the machine between two steps.
func (n *node) powerCut() { n.powerCutWith(vfs.RandomCut(n.w.rng.Uint64())) }

// powerCutWith is powerCut with a given fate of what is not synced.
func (n *node) powerCutWith(keep vfs.PowerCut) {
	n.drop()
	rep := n.fs.CrashWith(keep)
	n.w.log("node %d power cut: %+v", n.id, rep)
	n.w.counts["power cuts"]++
	n.w.counts["sectors lost"] += rep.SectorsLost
	n.w.counts["names lost"] += rep.NamesLost
}

// operation is called before each operation of the process on its disk: the power may fail here. What the step still does,
// it does on a machine that is gone.
func (p *proc) operation(op vfs.Op, name string) {
	if s := p.node.w.storm; s != nil && !p.dead && s.operation(p, op, name) {
		return
	}
	if !p.dead && p.cut < 0 {
		p.cutCompaction(name)
	}
	if p.dead || p.cut < 0 {
		return
	}
	if p.cut > 0 {
		p.cut--
		return
	}
	p.cut = -1
	p.cutWithin(p.cutKeep)
	p.node.restartIn(p.node.w.between(10*time.Millisecond, 1500*time.Millisecond))
}

// cutWithin ends the machine in the middle of a step.
func (p *proc) cutWithin(keep vfs.PowerCut) {
	n := p.node
	old := n.fs
	n.fs = old.CrashCloneWith(keep)
	n.drop()
	old.SetHook(nil)
	rep := n.fs.Stats().Cut
	n.w.log("node %d power cut within a step: %+v", n.id, rep)
	n.w.counts["power cuts"]++
	n.w.counts["power cut within a step"]++
	n.w.counts["sectors lost"] += rep.SectorsLost
	n.w.counts["names lost"] += rep.NamesLost
	n.syncFault = nil
}

// restartIn boots the node later, unless it has been booted by then.
func (n *node) restartIn(d time.Duration) {
	boots := n.boots
	n.w.after(d, func() {
		if n.boots != boots || n.proc != nil {
			return
		}
		cut, keep := -1, vfs.LoseUnsynced()
		if !n.w.healed && n.w.chance(n.w.noise.restartCuts) {
			cut, keep = n.w.rng.IntN(120), n.w.cutKind()
		}
		n.boot(cut, keep)
	})
}

// cutKind draws what a power cut leaves.
func (w *world) cutKind() vfs.PowerCut {
	switch w.rng.IntN(4) {
	case 0:
		return vfs.LoseUnsynced()
	case 1:
		return vfs.KeepUnsynced()
	}
	return vfs.RandomCut(w.rng.Uint64())
}

func (n *node) tickLater(p *proc, d time.Duration) {
	steps := p.core.Steps()
	var tick func()
	tick = func() {
		if p.dead {
			return
		}
		if !p.frozen {
			steps.Tick()
			n.w.touch(p)
		}
		n.w.after(n.real(n.w.set.tick), tick)
	}
	n.w.after(d, tick)
}

// askLearners asks a group's leader who learns.
func (p *proc) askLearners(r *multiraft.Replica, told func(term uint64, learners []uint64)) {
	p.callback(func() {
		r.Configuration(func(c multiraft.Configuration, err error) {
			if err == nil && !p.dead {
				told(c.Term, c.Learners)
			}
		})
	})
}

// leader notes a change of a replica's view in the trace.
func (p *proc) leader(r *multiraft.Replica, st multiraft.Status) {
	if p.dead {
		return
	}
	w := p.node.w
	w.log("node %d %s-%d: term %d leader %d ready %v commit %d", p.node.id, r.Topic(), r.Partition(), st.Term, st.LeaderNode, st.Ready, st.Commit)
	if st.IsLeader && !st.Ready {
		w.counts["elections"]++
		w.storm.happened(happenedElection)
		w.model.elected(r, st.Term, p.node.id)
	}
}

// heard lets the simulator count, and strike, at what a process logs.
func (p *proc) heard(h *logHandler, r *slog.Record) {
	w := p.node.w
	switch r.Message {
	case "groups loaded":
		h.attr(r, "partition", func(index slog.Value) {
			h.attr(r, "groups", func(n slog.Value) { w.groupLogs.loaded(p, int32(index.Int64()), n.Int64()) })
		})
		return
	case "a member's session has ended":
		w.counts["members expired"]++
		return
	case "members that did not sync are removed":
		w.counts["members that did not sync"]++
		return
	case "compacted":
		h.attr(r, "removed", func(n slog.Value) {
			if w.counts["passes of the cleaner"]++; n.Int64() > 0 {
				w.counts["logs compacted"]++
			}
		})
		return
	case "records are damaged on this node: they are not served from here, and fetched anew from another replica":
		w.counts["damage found"]++
	case "damaged records share a segment with damage below the log start: they stay unreadable until the segment is deleted":
		h.attr(r, "group", func(v slog.Value) {
			if part, ok := p.core.Partitions().Group(v.Uint64()); ok {
				w.hopeless[part.ReplicaID()] = true
			}
		})
	case "catching up by delta":
		w.counts["delta begun"]++
	case "catching up whole":
		w.counts["whole resync begun"]++
	case "snapshot installed":
		w.counts["snapshot installed"]++
	case "snapshot staged":
		name := "staged by delta"
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "whole" && a.Value.String() == "true" {
				name = "staged whole"
			}
			return true
		})
		w.counts[name]++
	default:
		return
	}
	// Around a snapshot is where a crash hurts most (fault 18).
	w.storm.happened(happenedSnapshot)
	if !w.healed && p.cut < 0 && w.chance(w.noise.snapshotCuts) {
		p.cut, p.cutKeep = w.rng.IntN(30), w.cutKind()
		w.counts["cut armed at a snapshot"]++
	}
}

// collect takes the counts of a process that ends.
func (p *proc) collect() {
	if p.log == nil {
		return
	}
	s, c := p.log.Stats(), p.node.w.counts
	c["log files recycled"] += int(s.Recycled)
	c["entries read from files"] += int(s.ColdReads)
	c["groups carried forward"] += int(s.Carried)
}

// collect takes the counts of what runs at the end.
func (w *world) collect() {
	for _, n := range w.nodes {
		if n.proc != nil {
			n.proc.collect()
		}
	}
}

// tree puts the names and sizes on a disk into the trace.
func (n *node) tree(dir string) {
	names, err := n.fs.List(dir)
	if err != nil {
		return
	}
	for _, name := range names {
		full := dir + "/" + name
		fi, err := n.fs.Stat(full)
		if err != nil {
			continue
		}
		if fi.IsDir {
			n.tree(full)
			continue
		}
		n.w.log("  %s %d bytes", full, fi.Size)
	}
}
