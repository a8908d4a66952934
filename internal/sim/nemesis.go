package sim

import (
	"syscall"
	"time"

	"github.com/chronik-go/chronik/internal/vfs"
)

// fault is something that goes wrong.
type fault struct {
	name   string
	weight int
	strike func(w *world) bool // false: not possible just now
}

var faults = []fault{
	{"isolate", 4, isolate},
	{"one-way cut", 3, oneWay},
	{"flapping link", 2, flap},
	{"slow link", 2, slowLink},
	{"loss burst", 2, lossBurst},
	{"kill", 4, killOne},
	{"power cut", 4, powerOne},
	{"power cut in a step", 4, powerInStep},
	{"power cut of all", 3, powerAll},
	{"pause", 3, pause},
	{"slow disk", 3, slowDisk},
	{"failed sync", 2, failSync},
	{"long absence", 3, absence},
	{"leadership transfer", 3, transfer},
	{"clock jump", 2, clockJump},
}

// chaosLater strikes again and again until the cluster is healed.
func (w *world) chaosLater() {
	w.after(w.between(w.set.faultInterval/4, 2*w.set.faultInterval), func() {
		if w.healed || w.failed != nil {
			return
		}
		if f := w.drawFault(); f != nil && f.strike(w) {
			w.counts["fault: "+f.name]++
		}
		w.chaosLater()
	})
}

func (w *world) drawFault() *fault {
	total := 0
	for i := range w.set.faults {
		total += w.set.faults[i].weight
	}
	if total == 0 {
		return nil
	}
	at := w.rng.IntN(total)
	for i := range w.set.faults {
		f := &w.set.faults[i]
		if at -= f.weight; at < 0 {
			w.log("fault: %s", f.name)
			return f
		}
	}
	return nil
}

func (w *world) anyNode() *node { return w.nodes[w.rng.IntN(len(w.nodes))] }

// up draws a node that runs, nil if none does.
func (w *world) up() *node {
	first := w.rng.IntN(len(w.nodes))
	for i := range w.nodes {
		if n := w.nodes[(first+i)%len(w.nodes)]; n.proc != nil && !n.proc.dead {
			return n
		}
	}
	return nil
}

func (w *world) anyLink() *link {
	a := int32(w.rng.IntN(3))
	b := (a + 1 + int32(w.rng.IntN(2))) % 3
	return w.net.link(a+1, b+1)
}

func isolate(w *world) bool {
	id := w.anyNode().id
	set := func(cut bool) {
		w.net.each(func(l *link) {
			if l.from == id || l.to == id {
				l.cut = cut
			}
		})
	}
	set(true)
	w.after(w.between(50*time.Millisecond, 2*time.Second), func() { set(false) })
	return true
}

func oneWay(w *world) bool {
	l := w.anyLink()
	l.cut = true
	w.after(w.between(50*time.Millisecond, 2*time.Second), func() { l.cut = false })
	return true
}

func flap(w *world) bool {
	l := w.anyLink()
	var turn func(left int)
	turn = func(left int) {
		l.cut = left > 0 && !l.cut && !w.healed
		if left > 0 {
			w.after(w.between(5*time.Millisecond, 100*time.Millisecond), func() { turn(left - 1) })
		}
	}
	turn(12)
	return true
}

func slowLink(w *world) bool {
	l := w.anyLink()
	l.slow = w.between(10*time.Millisecond, 300*time.Millisecond)
	w.after(w.between(100*time.Millisecond, 2*time.Second), func() { l.slow = 0 })
	return true
}

func lossBurst(w *world) bool {
	loss := 0.05 + 0.4*w.rng.Float64()
	w.net.each(func(l *link) { l.loss = loss })
	w.after(w.between(100*time.Millisecond, time.Second), func() { w.net.each(func(l *link) { l.loss = 0 }) })
	return true
}

func killOne(w *world) bool {
	n := w.up()
	if n == nil {
		return false
	}
	n.kill()
	if w.chance(0.3) {
		// Before it comes back the power fails as well: what the kernel had kept is gone.
		w.counts["power cut after a kill"]++
		n.powerCut()
	}
	n.restartIn(w.between(10*time.Millisecond, 2*time.Second))
	return true
}

func powerOne(w *world) bool {
	n := w.up()
	if n == nil {
		return false
	}
	n.powerCut()
	n.restartIn(w.between(10*time.Millisecond, 2*time.Second))
	return true
}

// powerInStep lets the power fail at one of the next operations on a disk.
func powerInStep(w *world) bool {
	n := w.up()
	if n == nil || n.proc.cut >= 0 {
		return false
	}
	n.proc.cut, n.proc.cutKeep = w.rng.IntN(60), w.cutKind()
	return true
}

func powerAll(w *world) bool {
	for _, n := range w.nodes {
		n.powerCut()
		n.restartIn(w.between(10*time.Millisecond, 800*time.Millisecond))
	}
	return true
}

// pause is SIGSTOP and SIGCONT.
func pause(w *world) bool {
	n := w.up()
	if n == nil || n.proc.frozen {
		return false
	}
	p := n.proc
	p.frozen = true
	w.after(w.between(50*time.Millisecond, 2*time.Second), func() {
		p.frozen = false
		if !p.dead {
			w.log("node %d goes on", n.id)
		}
	})
	return true
}

// whenThawed runs f once the process goes on.
func (p *proc) whenThawed(f func()) {
	p.node.w.after(quantum, func() { p.callback(f) })
}

// slowDisk makes operations take long, or holds the log's writer back before one begins.
func slowDisk(w *world) bool {
	n := w.up()
	if n == nil {
		return false
	}
	if w.chance(0.5) {
		n.fs.Inject(vfs.Fault{Ops: vfs.OpSync | vfs.OpWrite, Count: 1 + w.rng.IntN(20), Delay: w.between(5*time.Millisecond, 100*time.Millisecond)})
		return true
	}
	until := w.clk.Now().Add(w.between(100*time.Millisecond, 1500*time.Millisecond))
	for _, a := range n.proc.actors {
		if a.name == "log" {
			a.restUntil = until
		}
	}
	return true
}

// failSync makes one of the next syncs fail: the process must stop.
func failSync(w *world) bool {
	n := w.up()
	if n == nil || n.syncFault != nil {
		return false
	}
	match := pick(w.rng, "", "*.wal")
	n.syncFault = n.fs.Inject(vfs.Fault{Ops: vfs.OpSync, Match: match, Skip: w.rng.IntN(10), Err: syscall.EIO})
	return true
}

// absence takes a node away for so long that the others' logs move on without it.
func absence(w *world) bool {
	n := w.up()
	if n == nil {
		return false
	}
	n.kill()
	n.restartIn(w.between(2*time.Second, 5*time.Second))
	return true
}

func transfer(w *world) bool {
	n := w.up()
	if n == nil {
		return false
	}
	for _, v := range n.proc.parts {
		if v.r.IsLeader() {
			v.r.TransferLeadership(pick[int32](w.rng, -1, 1, 2, 3))
		}
	}
	return true
}

// clockJump moves a machine's wall clock, either way. Raft counts ticks and is not concerned.
func clockJump(w *world) bool {
	n := w.anyNode()
	n.skew += w.between(-time.Minute, time.Minute)
	return true
}
