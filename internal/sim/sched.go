package sim

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
)

// scheduler runs everything on one thread: workers that are stepped (actors), and code that waits (tasks, each a coroutine). What
// is ready at one instant runs in an order drawn from the seed; when nothing is ready time moves to the next timer.
type scheduler struct {
	clk     *clock.Sim
	rng     *rand.Rand
	queue   []unit
	touched []*proc // something has happened to them
	current *task
	ended   []*task // belong to processes that are over, and have yet to be unwound
	spare   []*coroutine
	burst   int // units run since time last moved
}

// maxBurst is how much may run at one instant: more is work that makes work for ever.
const maxBurst = 100_000

// unit is an actor or a task that is ready.
type unit struct {
	actor *actor
	task  *task
}

// String names who is to run.
func (u unit) String() string {
	switch {
	case u.actor != nil:
		return fmt.Sprintf("%s of node %d", u.actor.name, u.actor.p.node.id)
	case u.task.p != nil:
		return fmt.Sprintf("a request or a loop of node %d", u.task.p.node.id)
	}
	return "a client"
}

// actor is a worker of a process, stepped when it has something to do.
type actor struct {
	p     *proc
	name  string
	step  func() (more bool)
	ready func() bool // nil: as the partitions' workers are
	disk  bool
	// queued: it is about to run, or a timer will see to it. more: its last step said so.
	queued, more bool
	restUntil    time.Time
}

// task is code that waits: on a coroutine, while it runs. Those of a process wait through its clock; those of clients (p is nil)
// through wait.
type task struct {
	s         *scheduler
	p         *proc
	f         func()
	co        *coroutine
	ready     func() bool // what a process's task waits for; nil while it is about to run
	killed    bool
	unwinding bool
	over      bool
}

// coroutine runs tasks, one after the other: a stack that has grown is used again.
type coroutine struct {
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
	t     *task
}

func newCoroutine() *coroutine {
	co := &coroutine{}
	co.next, co.stop = iter.Pull(func(yield func(struct{}) bool) {
		co.yield = yield
		for {
			co.t.run()
			if !yield(struct{}{}) {
				return
			}
		}
	})
	return co
}

// run is a task from beginning to end.
func (t *task) run() {
	defer func() { t.over = true }()
	defer t.caught()
	if !t.killed {
		t.f()
	}
}

// errKilled unwinds a task whose process has ended.
var errKilled = fmt.Errorf("the process is over")

// spawn starts f beside the caller: it runs once it is its turn.
func (s *scheduler) spawn(p *proc, f func()) *task {
	t := &task{s: s, p: p, f: f}
	if p != nil {
		p.tasks = append(p.tasks, t)
	}
	s.queue = append(s.queue, unit{task: t})
	return t
}

func (t *task) caught() {
	if r := recover(); r != nil && r != any(errKilled) {
		panic(fmt.Sprintf("%v\n%s", r, debug.Stack()))
	}
}

// resume runs a task until it waits or ends.
func (s *scheduler) resume(t *task) {
	if t.over {
		return
	}
	if t.co == nil {
		if n := len(s.spare); n > 0 {
			t.co = s.spare[n-1]
			s.spare = s.spare[:n-1]
		} else {
			t.co = newCoroutine()
		}
		t.co.t = t
	}
	was := s.current
	s.current = t
	t.co.next()
	s.current = was
	if t.over {
		s.spare = append(s.spare, t.co)
		t.co.t, t.co = nil, nil
		if t.p != nil {
			t.p.forget(t)
		}
	}
}

// park gives the thread away until somebody queues the task.
func (t *task) park() {
	if t.unwinding {
		return
	}
	t.co.yield(struct{}{})
	t.check()
}

// check ends a task whose process is over.
func (t *task) check() {
	if t.killed && !t.unwinding {
		t.unwinding = true
		panic(errKilled)
	}
}

// waitUntil parks a process's task until ready has returned true.
func (s *scheduler) waitUntil(p *proc, ready func() bool) {
	t := s.current
	if t == nil || t.p != p {
		panic("sim: a worker, or a callback, waits for another: production would block a goroutine that must not block")
	}
	if t.unwinding {
		return
	}
	t.check()
	if ready() {
		return
	}
	t.ready = ready
	t.park()
}

// kill ends all tasks of a process, as soon as none of them runs.
func (s *scheduler) kill(p *proc) {
	for _, t := range p.tasks {
		t.killed = true
		s.ended = append(s.ended, t)
	}
	p.tasks = nil
}

func (s *scheduler) unwindEnded() {
	for len(s.ended) > 0 {
		t := s.ended[0]
		s.ended = s.ended[1:]
		s.resume(t)
	}
}

// touch says that something has happened to a process: some of what it waits for may be there.
func (s *scheduler) touch(p *proc) {
	if p != nil && !p.touched {
		p.touched = true
		s.touched = append(s.touched, p)
	}
}

// settle queues what has become ready in the processes that were touched.
func (w *world) settle() {
	for len(w.touched) > 0 {
		p := w.touched[0]
		w.touched = w.touched[:copy(w.touched, w.touched[1:])]
		p.touched = false
		if p.dead || p.frozen {
			continue
		}
		partitions := p.core != nil && p.core.Partitions().Ready()
		for _, a := range p.actors {
			if !a.queued && (a.more || a.ready == nil && partitions || a.ready != nil && a.ready()) {
				w.schedule(a)
			}
		}
		for _, t := range p.tasks {
			if t.ready != nil && t.ready() {
				t.ready = nil
				w.queue = append(w.queue, unit{task: t})
			}
		}
	}
}

// schedule lets an actor run: now, or after as long as such a step may take.
func (w *world) schedule(a *actor) {
	a.queued = true
	now, rest := w.clk.Now(), time.Duration(0)
	switch {
	case a.disk && w.set.syncTime > 0:
		rest = time.Duration(w.sched.Int64N(int64(w.set.syncTime)))
	case w.set.stepTime > 0 && w.sched.IntN(8) == 0:
		rest = time.Duration(w.sched.Int64N(int64(w.set.stepTime)))
	}
	if a.p.slow > 0 {
		rest += time.Duration(w.sched.Int64N(int64(a.p.slow)))
	}
	if d := a.restUntil.Sub(now); d > rest {
		rest = d
	}
	if rest <= 0 {
		w.queue = append(w.queue, unit{actor: a})
		return
	}
	w.clk.AfterFunc(rest, func() {
		if !a.p.dead {
			w.queue = append(w.queue, unit{actor: a})
		}
	})
}

// drain runs everything that is ready at this instant.
func (w *world) drain() {
	for w.failed == nil {
		w.unwindEnded()
		w.settle()
		n := len(w.queue)
		if n == 0 {
			return
		}
		i := 0
		if n > 1 {
			i = w.sched.IntN(n)
		}
		u := w.queue[i]
		w.queue[i] = w.queue[n-1]
		w.queue = w.queue[:n-1]
		if w.burst++; w.burst > maxBurst {
			w.fail("work makes work without end: %d steps at one instant, and next comes %s", w.burst, u)
			return
		}
		if u.task != nil {
			if p := u.task.p; p != nil && p.frozen {
				p.later = append(p.later, u)
				continue
			}
			w.touch(u.task.p)
			w.resume(u.task)
			continue
		}
		w.stepActor(u.actor)
	}
}

func (w *world) stepActor(a *actor) {
	p := a.p
	switch {
	case p.dead:
		return
	case p.frozen:
		p.later = append(p.later, unit{actor: a})
		return
	}
	a.queued = false
	a.more = a.step()
	if stall := p.fs.TakeStall(); stall > 0 {
		a.restUntil = w.clk.Now().Add(stall)
	}
	p.settleFatal()
	w.touch(p)
}

// machineClock is a machine's clock as one process sees it: it may be wrong and run too fast or slow, and its callbacks end with
// the process. It is the process's clock.Scheduler, too.
type machineClock struct{ p *proc }

var _ clock.Scheduler = machineClock{}

// Now implements clock.Clock.
func (c machineClock) Now() time.Time { return c.p.node.time() }

// AfterFunc implements clock.Clock. A frozen process runs its callbacks once it goes on.
func (c machineClock) AfterFunc(d time.Duration, f func()) clock.Timer {
	t := &machineTimer{p: c.p, f: f}
	t.arm(d)
	return t
}

// WaitUntil implements clock.Scheduler.
func (c machineClock) WaitUntil(ready func() bool) { c.p.node.w.waitUntil(c.p, ready) }

// Go implements clock.Scheduler.
func (c machineClock) Go(f func()) {
	if !c.p.dead {
		c.p.node.w.spawn(c.p, f)
	}
}

// machineTimer is a timer of a process. Those that are armed are in its list, so that they end with it: one that is due in an hour
// would keep all that the process held in memory until then.
type machineTimer struct {
	p          *proc
	f          func()
	t          clock.Timer   // nil: never armed
	due        time.Duration // by the machine's clock
	armed      bool
	next, prev *machineTimer
}

// arm sets the timer. On a process that is over, which may still be in the middle of a step, it does nothing.
func (t *machineTimer) arm(d time.Duration) {
	n := t.p.node
	t.due = n.running() + d
	switch {
	case t.p.dead:
		return
	case t.t == nil:
		t.t = n.w.clk.AfterFunc(n.real(d), t.fire)
	default:
		t.t.Reset(n.real(d))
	}
	if t.armed {
		return
	}
	t.armed = true
	if t.next = t.p.timers; t.next != nil {
		t.next.prev = t
	}
	t.p.timers = t
}

// disarm takes the timer from its process's list.
func (t *machineTimer) disarm() (was bool) {
	if !t.armed {
		return false
	}
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		t.p.timers = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	t.armed, t.next, t.prev = false, nil, nil
	return true
}

// fire runs the callback. Where the clock has become slower since the timer was armed, it waits for the rest: when a timer goes
// off, the clock shows no less than it was set to.
func (t *machineTimer) fire() {
	n := t.p.node
	if left := t.due - n.running(); left > 0 {
		t.t.Reset(max(n.real(left), 1))
		return
	}
	t.disarm()
	t.p.callback(t.f)
}

// Stop implements clock.Timer.
func (t *machineTimer) Stop() bool {
	if !t.disarm() {
		return false
	}
	return t.t.Stop()
}

// Reset implements clock.Timer.
func (t *machineTimer) Reset(d time.Duration) bool {
	was := t.armed
	t.arm(d)
	return was
}

// endTimers stops what a process that is over has armed.
func (p *proc) endTimers() {
	for p.timers != nil {
		p.timers.Stop()
	}
}

// callback runs f in the process, once it is not frozen.
func (p *proc) callback(f func()) {
	switch {
	case p.dead:
	case p.frozen:
		p.held = append(p.held, f)
	default:
		f()
		p.node.w.touch(p)
	}
}

// thaw lets a frozen process go on.
func (p *proc) thaw() {
	if !p.frozen {
		return
	}
	p.frozen = false
	held, later := p.held, p.later
	p.held, p.later = nil, nil
	for _, f := range held {
		p.callback(f)
	}
	if !p.dead {
		p.node.w.queue = append(p.node.w.queue, later...)
		p.node.w.touch(p)
	}
}

// forget drops a task that has ended.
func (p *proc) forget(t *task) {
	for i, x := range p.tasks {
		if x == t {
			p.tasks = append(p.tasks[:i], p.tasks[i+1:]...)
			return
		}
	}
}

// client is a task of one who uses the cluster. Things that happen to it poke it.
type client struct {
	w     *world
	task  *task
	rng   *rand.Rand
	poked bool
	// waits: it is parked and may be queued.
	waits bool
	over  bool
}

// newClient starts a client; name and seed give it chance of its own.
func (w *world) newClient(name string, f func(c *client)) *client {
	w.clientCount++
	c := &client{w: w, rng: rand.New(rand.NewPCG(w.seed, 0x636c<<32|uint64(w.clientCount)))}
	c.task = w.spawn(nil, func() {
		f(c)
		c.over = true
	})
	w.everyone = append(w.everyone, c)
	_ = name
	return c
}

func (c *client) poke() {
	c.poked = true
	if c.waits {
		c.waits = false
		c.w.queue = append(c.w.queue, unit{task: c.task})
	}
}

// wait returns when the client is poked, or after d: then it says false.
func (c *client) wait(d time.Duration) (poked bool) {
	if !c.poked {
		timer := c.w.clk.AfterFunc(d, func() {
			if c.waits {
				c.waits = false
				c.w.queue = append(c.w.queue, unit{task: c.task})
			}
		})
		c.waits = true
		c.task.park()
		timer.Stop()
	}
	poked, c.poked = c.poked, false
	return poked
}

// sleep returns after d, whatever happens meanwhile.
func (c *client) sleep(d time.Duration) {
	until := c.w.clk.Now().Add(d)
	for left := d; left > 0; left = until.Sub(c.w.clk.Now()) {
		c.wait(left)
	}
}

func (c *client) upTo(d time.Duration) time.Duration {
	return time.Duration(c.rng.Int64N(int64(d) + 1))
}

func (c *client) between(lo, hi time.Duration) time.Duration { return lo + c.upTo(hi-lo) }

// never is a context that ends with its process.
var never = context.Background()
