package group

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
)

// world is some coordinators over one partition's log, on one thread.
type world struct {
	t     testing.TB
	clock *clock.Sim
	log   *memLog
	nodes []*Coordinator
	ids   int
}

// memLog is the log of one partition: what is committed, and who leads.
type memLog struct {
	batches [][]byte
	end     int64
	term    uint64
	leader  int
	hold    bool // appends wait for release
	held    []func(err error)
	fail    error // what appends come to
	reads   int
}

// replica is a node's view of it.
type replica struct {
	log  *memLog
	node int
}

func (r *replica) Leading() uint64 {
	if r.log.leader != r.node {
		return 0
	}
	return r.log.term
}

func (r *replica) Append(term uint64, batch []byte, done func(int64, error)) {
	l := r.log
	finish := func(err error) {
		if err == nil && (l.leader != r.node || l.term != term) {
			err = &multiraft.NotLeaderError{LeaderNode: -1}
		}
		if err != nil {
			done(-1, err)
			return
		}
		h, err := record.Validate(batch)
		if err != nil {
			panic(err)
		}
		base := l.end
		record.SetOffset(batch, base, int32(term))
		l.batches = append(l.batches, batch)
		l.end += int64(h.Count)
		done(base, nil)
	}
	switch {
	case l.fail != nil:
		done(-1, l.fail)
	case l.hold:
		l.held = append(l.held, finish)
	default:
		finish(nil)
	}
}

func (r *replica) Barrier(done func(error)) {
	if r.Leading() == 0 {
		done(&multiraft.NotLeaderError{LeaderNode: -1})
		return
	}
	done(nil)
}

func (r *replica) Read(offset int64, maxBytes int, _ []byte) (out []byte, err error) {
	r.log.reads++
	if r.Leading() == 0 {
		return nil, &multiraft.NotLeaderError{LeaderNode: -1}
	}
	for _, b := range r.log.batches {
		h, _ := record.ParseHeader(b)
		if h.LastOffset() < offset || len(out) > 0 && len(out)+len(b) > maxBytes {
			continue
		}
		out = append(out, b...)
	}
	return out, nil
}

func (r *replica) Bounds() (int64, int64) { return 0, r.log.end }

// release ends the appends that wait, in order.
func (l *memLog) release(err error) {
	held := l.held
	l.held, l.hold = nil, false
	for _, f := range held {
		f(err)
	}
}

func newWorld(t testing.TB, nodes int, change ...func(*Config)) *world {
	w := &world{t: t, clock: clock.NewSim(time.UnixMilli(1_700_000_000_000)), log: &memLog{term: 1, leader: 0}}
	for n := range nodes {
		r := &replica{w.log, n}
		cfg := Config{
			Clock: w.clock, Partitions: func() int32 { return 1 }, Log: func(int32) (Log, bool) { return r, true },
			NewID: func() string { w.ids++; return fmt.Sprintf("id%d", w.ids) }, Settings: DefaultSettings(),
		}
		for _, c := range change {
			c(&cfg)
		}
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		w.nodes = append(w.nodes, c)
	}
	w.settle()
	return w
}

// settle has every node notice who leads, and load.
func (w *world) settle() {
	for _, c := range w.nodes {
		c.Observe()
		for c.Step() {
		}
	}
}

// move gives the partition to a node; everybody notices.
func (w *world) move(node int) {
	w.log.leader, w.log.term = node, w.log.term+1
	held := w.log.held
	w.log.held, w.log.hold = nil, false
	for _, f := range held {
		f(&multiraft.NotLeaderError{LeaderNode: -1})
	}
	w.settle()
}

// lead is the coordinator.
func (w *world) lead() *Coordinator { return w.nodes[w.log.leader] }

// call is a request under way, with what it came to.
type call[R any] struct {
	t     testing.TB
	what  string
	ended bool
	value R
	err   error
}

func (c *call[R]) done(v R, err error) {
	if c.ended {
		c.t.Fatalf("%s was answered twice", c.what)
	}
	c.ended, c.value, c.err = true, v, err
}

// get is the answer, which must be there.
func (c *call[R]) get() (R, error) {
	c.t.Helper()
	if !c.ended {
		c.t.Fatalf("%s: no answer", c.what)
	}
	return c.value, c.err
}

func (c *call[R]) ok() R {
	c.t.Helper()
	v, err := c.get()
	if err != nil {
		c.t.Fatalf("%s: %v", c.what, err)
	}
	return v
}

func (c *call[R]) is(want error) R {
	c.t.Helper()
	v, err := c.get()
	if !errors.Is(err, want) {
		c.t.Fatalf("%s: %v, want %v", c.what, err, want)
	}
	return v
}

func (c *call[R]) waits() {
	c.t.Helper()
	if c.ended {
		c.t.Fatalf("%s: answered with %+v, %v; it should wait", c.what, c.value, c.err)
	}
}

func (w *world) join(req JoinRequest) *call[JoinResult] {
	c := &call[JoinResult]{t: w.t, what: fmt.Sprintf("join of %q", req.Member)}
	w.lead().Join(req, c.done)
	return c
}

func (w *world) sync(req SyncRequest) *call[SyncResult] {
	c := &call[SyncResult]{t: w.t, what: fmt.Sprintf("sync of %q", req.Member)}
	w.lead().Sync(req, c.done)
	return c
}

func (w *world) heartbeat(req HeartbeatRequest) error {
	c := &call[struct{}]{t: w.t, what: "heartbeat"}
	w.lead().Heartbeat(req, func(err error) { c.done(struct{}{}, err) })
	_, err := c.get()
	return err
}

func (w *world) beat(member string, generation int32) error {
	return w.heartbeat(HeartbeatRequest{Group: "g", Member: member, Generation: generation})
}

func (w *world) leave(members ...LeaveMember) ([]error, error) {
	c := &call[[]error]{t: w.t, what: "leave"}
	w.lead().Leave("g", members, c.done)
	return c.get()
}

func (w *world) commit(req CommitRequest) *call[[]error] {
	c := &call[[]error]{t: w.t, what: "commit"}
	if req.Group == "" {
		req.Group = "g"
	}
	if req.RetentionMs == 0 {
		req.RetentionMs = -1
	}
	w.lead().Commit(req, c.done)
	return c
}

func (w *world) fetch(group string) []FetchedOffset {
	w.t.Helper()
	c := &call[[]FetchedOffset]{t: w.t, what: "fetch"}
	w.lead().Fetch(FetchRequest{Group: group, Epoch: -1, All: true}, c.done)
	return c.ok()
}

func (w *world) describe(group string) *call[Description] {
	c := &call[Description]{t: w.t, what: "describe"}
	w.lead().Describe(group, c.done)
	return c
}

// state is the group's.
func (w *world) state(group string) State {
	v, _ := w.describe(group).get()
	return v.State
}

func (w *world) delete(group string) *call[struct{}] {
	c := &call[struct{}]{t: w.t, what: "delete"}
	w.lead().Delete(group, func(err error) { c.done(struct{}{}, err) })
	return c
}

// request is a consumer's join with defaults.
func request(member string, change ...func(*JoinRequest)) JoinRequest {
	r := JoinRequest{
		Group: "g", Member: member, ClientID: "client", ClientHost: "/10.0.0.1", SessionTimeout: 10_000, RebalanceTimeout: 60_000,
		ProtocolType: "consumer", Protocols: []Protocol{{"range", []byte("sub")}},
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

func static(instance string) func(*JoinRequest) {
	return func(r *JoinRequest) { r.Instance = &instance }
}

// stable makes a group of n members with an assignment each, and returns their ids, the leader first.
func (w *world) stable(n int, change ...func(*JoinRequest)) (ids []string, generation int32) {
	w.t.Helper()
	var joins []*call[JoinResult]
	for range n {
		joins = append(joins, w.join(request("", change...)))
	}
	for !joins[n-1].ended {
		w.clock.Advance(time.Second)
	}
	var leader JoinResult
	for _, j := range joins {
		r := j.ok()
		if r.Member == r.Leader {
			leader = r
			ids = append([]string{r.Member}, ids...)
		} else {
			ids = append(ids, r.Member)
		}
	}
	w.assign(leader)
	for _, id := range ids[1:] {
		w.sync(SyncRequest{Group: "g", Generation: leader.Generation, Member: id}).ok()
	}
	if s := w.state("g"); s != Stable {
		w.t.Fatalf("the group is %v", s)
	}
	return ids, leader.Generation
}

// assign syncs the leader with an assignment of each member: its own id.
func (w *world) assign(leader JoinResult) *call[SyncResult] {
	req := SyncRequest{Group: "g", Generation: leader.Generation, Member: leader.Member}
	for _, m := range leader.Members {
		req.Assignments = append(req.Assignments, Assignment{m.ID, []byte("for " + m.ID)})
	}
	return w.sync(req)
}
