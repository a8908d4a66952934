package sim

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// node is a machine: a disk that outlives what runs on it.
type node struct {
	w    *world
	id   int32
	fs   *vfs.Mem
	proc *proc // nil while nothing runs
	// boots counts processes; it tells a late restart that another one has come first.
	boots int
	skew  time.Duration // of the wall clock
	// syncFault is the injected failure of a sync that the process must not survive.
	syncFault *vfs.Injected
}

// proc is one life of a node's process.
type proc struct {
	node   *node
	fs     *vfs.Mem
	dead   bool // it is over: nothing it still does counts
	frozen bool // stopped by a signal
	log    *wal.Log
	svc    *multiraft.Service
	mgr    *partition.Manager
	actors []*actor
	parts  []*replicaView // by partition index
	fatal  error
	// cut is how many disk operations remain until the power fails; -1 is never.
	cut     int
	cutKeep vfs.PowerCut
}

// actor is a step function of a process.
type actor struct {
	p         *proc
	name      string
	step      func() bool
	disk      bool
	restUntil time.Time
}

// replicaView is what the checks saw last of a replica in this life.
type replicaView struct {
	p     *partition.Partition
	r     *multiraft.Replica
	hw    int64
	start int64
	term  uint64
}

func newNode(w *world, id int32) *node {
	n := &node{w: w, id: id, fs: vfs.NewMem(w.seed<<8 + uint64(id))}
	n.fs.SetNow(w.clk.Now)
	return n
}

// procClock is the machine's clock as one process sees it: its callbacks end with the process.
type procClock struct{ p *proc }

// Now implements clock.Clock.
func (c procClock) Now() time.Time { return c.p.node.w.clk.Now().Add(c.p.node.skew) }

// AfterFunc implements clock.Clock. A frozen process runs its callbacks once it goes on.
func (c procClock) AfterFunc(d time.Duration, f func()) clock.Timer {
	return c.p.node.w.clk.AfterFunc(d, func() { c.p.callback(f) })
}

func (p *proc) callback(f func()) {
	switch {
	case p.dead:
	case p.frozen:
		p.node.w.after(quantum, func() { p.callback(f) })
	default:
		f()
	}
}

// Send implements multiraft.Sender.
func (p *proc) Send(to int32, env transport.Envelope) { p.node.w.net.send(p, to, env) }

// boot starts a process on the node. A power cut armed before may hit it at any point.
func (n *node) boot(cut int, keep vfs.PowerCut) {
	w := n.w
	n.boots++
	p := &proc{node: n, fs: n.fs, cut: cut, cutKeep: keep}
	n.proc = p
	w.counts["boots"]++
	w.log("node %d boots", n.id)
	n.fs.SetHook(func(vfs.Op, string, time.Duration) { p.operation() })
	err := p.open()
	switch {
	case p.dead: // the power failed on the way
	case p.fatal != nil || err != nil && n.syncFired():
		w.log("node %d refuses to start: %v %v", n.id, err, p.fatal)
		n.exit(w.between(50*time.Millisecond, time.Second))
	case err != nil:
		n.tree("/data")
		w.fail("node %d does not start: %v", n.id, err)
	default:
		n.tickLater(p, w.upTo(tick))
	}
}

func (p *proc) open() error {
	n, w := p.node, p.node.w
	clk := procClock{p}
	logger := slog.New(&logHandler{p: p})
	fatal := func(err error) {
		if p.fatal == nil && !p.dead {
			p.fatal = err
			w.log("node %d must stop: %v", n.id, err)
		}
	}
	var err error
	p.log, err = wal.Open(wal.Options{FS: p.fs, Dir: "/data/wal", Clock: clk, Logger: logger, FileBytes: w.set.walFile,
		MaxBytes: 4 * w.set.walFile, CacheBytes: w.set.walCache, OnFatal: fatal,
		OnPinned: func(group, index uint64) {
			if p.mgr != nil {
				p.mgr.Pinned(group, index)
			}
		}})
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	p.svc, err = multiraft.NewService(multiraft.Config{NodeID: n.id, Log: p.log, Sender: p, Clock: clk, Logger: logger,
		Shards: w.set.shards, TickInterval: tick, MaxEntryBytes: w.set.maxEntry, MaxUnappliedBytes: w.set.maxUnapplied,
		MaxQueuedBytes: 64 << 10, MaxInflightBytes: w.set.maxInflight, MaxAppendBacklog: w.set.backlog,
		PrefetchBytes: 4 << 10, StallLimit: 300 * time.Millisecond,
		OnLeader: func(r *multiraft.Replica, st multiraft.Status) { p.leader(r, st) },
		OnFence: func(r *multiraft.Replica, err error) {
			// A disk that failed fences first and stops the node next.
			if !p.dead && p.fatal == nil {
				w.fail("node %d fenced partition %d: %v", n.id, r.Partition(), err)
			}
		}})
	if err != nil {
		return err
	}
	p.mgr, err = partition.NewManager(partition.ManagerConfig{FS: p.fs, Dir: "/data/topics", Clock: clk, Logger: logger,
		Service: p.svc, Log: p.log, Files: segment.NewFiles(p.fs, 16), OnFatal: fatal, Limits: w.set.limits,
		Configs: func(string) partition.TopicConfig { return partition.DefaultTopicConfig(w.set.segment) }})
	if err != nil {
		return err
	}
	for _, part := range w.topic.Partitions {
		for _, r := range part.Replicas {
			if r.Node != n.id {
				continue
			}
			if err := p.mgr.Open(w.topic, part, r); err != nil {
				return err
			}
			sp, _ := p.mgr.Lookup(topicName, part.Index)
			sr, _ := p.svc.Group(part.Group)
			p.parts = append(p.parts, &replicaView{p: sp, r: sr, hw: sp.HighWatermark(), start: sp.LogStart()})
		}
	}
	p.makeActors()
	return nil
}

func (p *proc) makeActors() {
	add := func(name string, disk bool, step func() bool) {
		p.actors = append(p.actors, &actor{p: p, name: name, disk: disk, step: func() bool {
			more := step()
			p.settleFatal()
			return more
		}})
	}
	for i, s := range p.svc.Shards() {
		add(fmt.Sprint("shard ", i), false, s.Step)
	}
	for i, s := range p.svc.Appliers() {
		add(fmt.Sprint("applier ", i), false, s.Step)
	}
	add("log", true, p.log.Step)
	add("log background", true, p.log.StepBackground)
	add("partitions", false, p.mgr.Step)
	for range 2 {
		add("partitions", true, p.mgr.Step)
	}
}

// settleFatal ends a process whose disk has failed, as the server does.
func (p *proc) settleFatal() {
	if p.fatal == nil || p.dead {
		return
	}
	w := p.node.w
	if !p.node.syncFired() {
		w.fail("node %d stopped though its disk is sound: %v", p.node.id, p.fatal)
		return
	}
	w.counts["stopped by a failed sync"]++
	p.node.exit(w.between(10*time.Millisecond, time.Second))
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
		n.fs.SetHook(nil)
	}
}

// kill is kill -9: what was written stays with the kernel.
func (n *node) kill() {
	n.w.log("node %d killed", n.id)
	n.drop()
	n.fs.Kill()
	n.w.net.closed(n.id)
}

// powerCut ends the machine between two steps.
func (n *node) powerCut() {
	n.drop()
	rep := n.fs.Crash(n.w.rng.Uint64())
	n.w.log("node %d power cut: %+v", n.id, rep)
	n.w.counts["sectors lost"] += rep.SectorsLost
	n.w.counts["names lost"] += rep.NamesLost
}

// operation is called before each operation of the process on its disk: the power may fail here. What the step still does,
// it does on a machine that is gone.
func (p *proc) operation() {
	if p.dead || p.cut < 0 {
		return
	}
	if p.cut > 0 {
		p.cut--
		return
	}
	n := p.node
	p.cut = -1
	old := n.fs
	n.fs = old.CrashCloneWith(p.cutKeep)
	p.dead = true
	n.proc = nil
	old.SetHook(nil)
	rep := n.fs.Stats().Cut
	n.w.log("node %d power cut within a step: %+v", n.id, rep)
	n.w.counts["power cut within a step"]++
	n.w.counts["sectors lost"] += rep.SectorsLost
	n.syncFault = nil
	n.restartIn(n.w.between(10*time.Millisecond, 1500*time.Millisecond))
}

// restartIn boots the node later, unless it has been booted by then.
func (n *node) restartIn(d time.Duration) {
	boots := n.boots
	n.w.after(d, func() {
		if n.boots != boots || n.proc != nil {
			return
		}
		cut, keep := -1, vfs.LoseUnsynced()
		if !n.w.healed && n.w.chance(0.1) {
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
	n.w.after(d, func() {
		if p.dead {
			return
		}
		if !p.frozen {
			p.svc.Tick()
		}
		n.tickLater(p, tick)
	})
}

// leader notes a change of a replica's view in the trace.
func (p *proc) leader(r *multiraft.Replica, st multiraft.Status) {
	if p.dead {
		return
	}
	p.node.w.log("node %d partition %d: term %d leader %d ready %v commit %d", p.node.id, r.Partition(), st.Term, st.LeaderNode, st.Ready, st.Commit)
	if st.IsLeader && !st.Ready {
		p.node.w.counts["elections"]++
		p.node.w.model.elected(r.Partition(), st.Term, p.node.id)
	}
}

// heard lets the harness count, and strike, at what a process logs.
func (p *proc) heard(message string, attrs map[string]string) {
	w := p.node.w
	switch message {
	case "catching up by delta":
		w.counts["delta begun"]++
	case "catching up whole":
		w.counts["whole resync begun"]++
	case "snapshot installed":
		w.counts["snapshot installed"]++
	case "snapshot staged":
		if attrs["whole"] == "true" {
			w.counts["staged whole"]++
		} else {
			w.counts["staged by delta"]++
		}
	default:
		return
	}
	// Around a snapshot is where a crash hurts most (fault 18).
	if !w.healed && p.cut < 0 && w.chance(0.2) {
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
