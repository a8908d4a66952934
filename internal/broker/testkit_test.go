package broker

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/server"
	"github.com/chronik-go/chronik/internal/transport"
)

// fleet is a cluster of brokers on real sockets over shared fake partitions.
type fleet struct {
	t     testing.TB
	nodes map[int32]*fleetNode

	mu      sync.Mutex
	changed chan struct{} // closed and replaced with every change
	img     *metadata.Image
	leaders map[uint64]hint
	dead    map[int32]bool
	parts   map[string]*partData
	nextPID int64
	pidErr  error
	// intercept, if set, sees every forward before it is delivered and may keep it.
	intercept  func(to int32, deliver func(), fail func(error)) bool
	creations  int
	asked      []controller.NewTopic // in all creations
	leaderless bool                  // topics are created without leaders
}

type fleetNode struct {
	f      *fleet
	id     int32
	b      *Broker
	srv    *server.Server
	reg    *prometheus.Registry
	hosted func(topic string, p int32) bool // nil: everything
}

// partData is a partition's log, the same for all its replicas.
type partData struct {
	topic          string
	index          int32
	group          uint64
	mu             sync.Mutex
	batches        [][]byte
	end, hw, start int64
	followerHW     int64    // -1: hw
	held           []func() // produces waiting for release, if hold
	hold           bool
	fail           func(n int) error // asked with the number of the produce
	produces       int
	polls          map[*fakePoll]int64
	sink           bool      // acknowledge and keep nothing
	diverging      *EpochEnd // what Fetch says to who gives a last fetched epoch
}

func newFleet(t testing.TB, n int, edit ...func(id int32, c *Config)) *fleet {
	t.Helper()
	f := newDryFleet(t, n, edit...)
	for id := int32(1); id <= int32(n); id++ {
		node := f.nodes[id]
		var err error
		node.srv, err = server.New(server.Config{
			Listeners: []server.ListenerConfig{{Name: "main", Addr: "127.0.0.1:0"}, {Name: "one", Addr: "127.0.0.1:0"}},
			Handler:   node.b, Logger: slog.New(slog.DiscardHandler), Registerer: node.reg,
		})
		if err == nil {
			err = node.srv.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		f.img.Nodes[id].KafkaPort = int32(node.srv.Addr("main").(*net.TCPAddr).Port)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := node.srv.Shutdown(ctx); err != nil {
				t.Errorf("shutdown of node %d: %v", id, err)
			}
		})
	}
	return f
}

// newDryFleet is a fleet without sockets.
func newDryFleet(t testing.TB, n int, edit ...func(id int32, c *Config)) *fleet {
	t.Helper()
	f := &fleet{
		t: t, nodes: map[int32]*fleetNode{}, changed: make(chan struct{}), leaders: map[uint64]hint{}, dead: map[int32]bool{},
		parts: map[string]*partData{}, nextPID: 4000,
		img: &metadata.Image{ClusterID: "abcdefghijklmnopqrstuv", Index: 7, Nodes: map[int32]*metadata.Node{}, Topics: map[string]*metadata.Topic{},
			TopicsByID: map[uuid.UUID]*metadata.Topic{}, Groups: map[uint64]metadata.PartitionRef{}, NextGroup: 2},
	}
	for id := int32(1); id <= int32(n); id++ {
		node := &fleetNode{f: f, id: id, reg: prometheus.NewRegistry()}
		cfg := Config{
			Partitions: node, Controller: node, Cluster: node, Forwarder: node, Registerer: node.reg,
			Logger: slog.New(slog.DiscardHandler), AutoCreateTopics: true, AutoCreateWait: 300 * time.Millisecond,
			Listeners: map[string]ListenerConfig{"one": {OneAddress: true, Host: "lb.example", Port: 9999}},
		}
		for _, e := range edit {
			e(id, &cfg)
		}
		var err error
		if node.b, err = New(cfg); err != nil {
			t.Fatal(err)
		}
		f.nodes[id] = node
		f.img.Nodes[id] = &metadata.Node{ID: id, KafkaHost: "127.0.0.1", KafkaPort: 9092}
	}
	return f
}

// still has a broker's time stand: what ends by itself after some seconds (service by proxy, gaps, the patience for memory) does not,
// however slow a test is.
func still(_ int32, c *Config) { c.Clock = clock.NewSim(time.Unix(1_700_000_000, 0)) }

// created counts the decisions to create topics.
func (f *fleet) created() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.creations
}

// counter reads a metric without labels.
func (n *fleetNode) counter(t testing.TB, name string) float64 {
	t.Helper()
	all, err := n.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if m.GetName() == name {
			return m.Metric[0].GetCounter().GetValue() + m.Metric[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func (f *fleet) edit(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
	close(f.changed)
	f.changed = make(chan struct{})
}

// topic creates a topic led by the nodes in turn, or by leader if one is given.
func (f *fleet) topic(name string, parts int32, leader ...int32) *metadata.Topic {
	var t *metadata.Topic
	f.edit(func() { t = f.topicLocked(name, parts, leader...) })
	return t
}

func (f *fleet) topicLocked(name string, parts int32, leader ...int32) *metadata.Topic {
	img := *f.img
	img.Topics, img.TopicsByID, img.Groups = maps.Clone(img.Topics), maps.Clone(img.TopicsByID), maps.Clone(img.Groups)
	img.Index++
	t := &metadata.Topic{Name: name, ID: uuid.New()}
	for i := range parts {
		p := &metadata.Partition{Index: i, Group: img.NextGroup}
		img.NextGroup++
		for id := int32(1); id <= int32(len(f.nodes)); id++ {
			p.Replicas = append(p.Replicas, metadata.Replica{ID: p.Group*10 + uint64(id), Node: id})
		}
		lead := int32(i)%int32(len(f.nodes)) + 1
		if len(leader) > 0 {
			lead = leader[0]
		}
		f.leaders[p.Group] = hint{lead, 3}
		if f.leaderless {
			f.leaders[p.Group] = noHint
		}
		t.Partitions = append(t.Partitions, p)
		img.Groups[p.Group] = metadata.PartitionRef{Topic: t, Partition: p}
		f.parts[fmt.Sprint(name, "-", i)] = &partData{topic: name, index: i, group: p.Group, followerHW: -1, polls: map[*fakePoll]int64{}}
	}
	img.Topics[name], img.TopicsByID[t.ID] = t, t
	f.img = &img
	return t
}

func (f *fleet) part(name string, i int32) *partData {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.parts[fmt.Sprint(name, "-", i)]
}

// lead moves a partition's leadership; its waiters wake.
func (f *fleet) lead(p *partData, node, epoch int32) {
	f.edit(func() { f.leaders[p.group] = hint{node, epoch} })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fire(func(int64) bool { return true })
}

// Cluster.

func (n *fleetNode) NodeID() int32 { return n.id }
func (n *fleetNode) Image() *metadata.Image {
	n.f.mu.Lock()
	defer n.f.mu.Unlock()
	return n.f.img
}
func (n *fleetNode) ImageIndex(int32) uint64 { return n.Image().Index }
func (n *fleetNode) Leader(group uint64) (int32, int32) {
	n.f.mu.Lock()
	defer n.f.mu.Unlock()
	h, ok := n.f.leaders[group]
	if !ok {
		return -1, -1
	}
	return h.node, h.epoch
}
func (n *fleetNode) Live(id int32) bool {
	n.f.mu.Lock()
	defer n.f.mu.Unlock()
	return !n.f.dead[id]
}
func (n *fleetNode) Await(ctx context.Context, cond func() bool) error {
	for {
		n.f.mu.Lock()
		changed := n.f.changed
		n.f.mu.Unlock()
		if cond() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Controller.

func (n *fleetNode) CreateTopics(_ context.Context, topics []controller.NewTopic, _ bool) []controller.TopicResult {
	var out []controller.TopicResult
	n.f.edit(func() {
		n.f.creations++
		n.f.asked = append(n.f.asked, topics...)
		for _, t := range topics {
			r := controller.TopicResult{Name: t.Name}
			switch {
			case t.Name == "bad name":
				r.Err = &controller.Error{Kind: controller.ErrInvalidTopic, Msg: "a space"}
			case n.f.img.Topics[t.Name] != nil:
				r.Err = controller.ErrTopicExists
			default:
				r.ID = n.f.topicLocked(t.Name, 2).ID
			}
			out = append(out, r)
		}
	})
	return out
}
func (n *fleetNode) DeleteTopics(context.Context, []controller.TopicKey) []controller.TopicResult {
	return nil
}
func (n *fleetNode) CreatePartitions(context.Context, []controller.NewPartitions, bool) []controller.TopicResult {
	return nil
}
func (n *fleetNode) AlterConfigs(context.Context, []controller.ConfigChange, bool) []controller.ConfigResult {
	return nil
}
func (n *fleetNode) Reassign(context.Context, []controller.Reassignment, bool) []controller.ReassignResult {
	return nil
}
func (n *fleetNode) RemoveNode(context.Context, int32) error { return nil }
func (n *fleetNode) AllocateProducerIDs(_ context.Context, k int64) (int64, error) {
	n.f.mu.Lock()
	defer n.f.mu.Unlock()
	if n.f.pidErr != nil {
		return 0, n.f.pidErr
	}
	first := n.f.nextPID
	n.f.nextPID += k
	return first, nil
}

// Forwarder.

func (n *fleetNode) Call(ctx context.Context, node int32, method uint16, body []byte) ([]byte, error) {
	if !n.Live(node) {
		return nil, transport.ErrPeerDown
	}
	return n.f.nodes[node].b.HandleCall(ctx, n.id, method, slices.Clone(body))
}
func (n *fleetNode) Forward(node int32, method uint16, body []byte, done func([]byte, error)) {
	deliver := func() { n.f.nodes[node].b.HandleForward(n.id, method, slices.Clone(body), done) }
	n.f.mu.Lock()
	intercept := n.f.intercept
	n.f.mu.Unlock()
	switch {
	case intercept != nil && intercept(node, deliver, func(err error) { done(nil, err) }):
	case !n.Live(node):
		done(nil, transport.ErrNotSent)
	default:
		deliver()
	}
}

// Partitions.

func (n *fleetNode) Lookup(topic string, i int32) (Partition, bool) {
	if n.hosted != nil && !n.hosted(topic, i) {
		return nil, false
	}
	p := n.f.part(topic, i)
	if p == nil {
		return nil, false
	}
	return &fakePart{n, p}, true
}
func (n *fleetNode) NewPoll() Poll { return &fakePoll{c: make(chan struct{}, 1)} }

type fakePoll struct {
	c  chan struct{}
	on []*partData
}

func (fp *fakePoll) Wait(p Partition, offset int64) {
	d := p.(*fakePart).d
	d.mu.Lock()
	defer d.mu.Unlock()
	d.polls[fp] = offset
	fp.on = append(fp.on, d)
	d.fire(func(o int64) bool { return d.hw > o })
}
func (fp *fakePoll) C() <-chan struct{} { return fp.c }
func (fp *fakePoll) Cancel() {
	for _, d := range fp.on {
		d.mu.Lock()
		delete(d.polls, fp)
		d.mu.Unlock()
	}
}

// fire wakes polls; mu is held.
func (d *partData) fire(due func(int64) bool) {
	for fp, o := range d.polls {
		if due(o) {
			delete(d.polls, fp)
			select {
			case fp.c <- struct{}{}:
			default:
			}
		}
	}
}

// fakePart is a replica: Partition as internal/partition would have it, but for raft.
type fakePart struct {
	n *fleetNode
	d *partData
}

func (p *fakePart) leads() bool { node, _ := p.n.Leader(p.d.group); return node == p.n.id }
func (p *fakePart) Produce(b []byte, done func(ProduceResult)) {
	d := p.d
	res := ProduceResult{BaseOffset: -1, AppendTime: -1, LogStart: 0}
	if !p.leads() {
		res.Err = &multiraft.NotLeaderError{Group: d.group, LeaderNode: -1}
		done(res)
		return
	}
	if d.sink {
		res.BaseOffset = 0
		done(res)
		return
	}
	h, err := record.Validate(b)
	if err != nil {
		res.Err = fmt.Errorf("%w: %w", partition.ErrCorrupt, err)
		done(res)
		return
	}
	d.mu.Lock()
	d.produces++
	if d.fail != nil {
		if res.Err = d.fail(d.produces); res.Err != nil {
			d.mu.Unlock()
			done(res)
			return
		}
	}
	commit := func() { // mu is held
		_, epoch := p.n.Leader(d.group)
		res.BaseOffset = d.end
		record.SetOffset(b, d.end, epoch)
		d.batches = append(d.batches, b)
		d.end += int64(h.LastOffsetDelta) + 1
		d.hw = d.end
		d.fire(func(o int64) bool { return d.hw > o })
	}
	if d.hold {
		d.held = append(d.held, func() { commit(); go done(res) })
		d.mu.Unlock()
		return
	}
	commit()
	d.mu.Unlock()
	done(res)
}

// release commits what hold kept.
func (d *partData) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.held {
		f()
	}
	d.held, d.hold = nil, false
}
func (p *fakePart) check(epoch int32, follower bool) error {
	node, known := p.n.Leader(p.d.group)
	switch {
	case epoch >= 0 && epoch < known:
		return partition.ErrFencedLeaderEpoch
	case epoch > known:
		return partition.ErrUnknownLeaderEpoch
	case node != p.n.id && (!follower || node < 0):
		return &multiraft.NotLeaderError{Group: p.d.group, LeaderNode: node}
	}
	return nil
}
func (p *fakePart) hwNow() int64 {
	if !p.leads() && p.d.followerHW >= 0 {
		return p.d.followerHW
	}
	return p.d.hw
}
func (p *fakePart) Fetch(req FetchRequest) (FetchResult, error) {
	res := FetchResult{HighWatermark: -1, LastStable: -1, LogStart: -1}
	if err := p.check(req.CurrentLeaderEpoch, req.Follower); err != nil {
		return res, err
	}
	d := p.d
	d.mu.Lock()
	defer d.mu.Unlock()
	hw := p.hwNow()
	res.HighWatermark, res.LastStable, res.LogStart = hw, hw, d.start
	switch {
	case req.Offset > hw && !p.leads():
		return res, partition.ErrOffsetNotAvailable
	case req.Offset < d.start || req.Offset > hw:
		return res, &partition.OffsetOutOfRangeError{Offset: req.Offset, Start: d.start, End: hw}
	}
	if d.diverging != nil && req.LastFetchedEpoch >= 0 {
		res.Diverging = d.diverging
		return res, nil
	}
	out := req.Buf[:0]
	for _, b := range d.batches {
		h, _ := record.ParseHeader(b)
		if h.LastOffset() < req.Offset || h.BaseOffset >= hw {
			continue
		}
		if len(out) > 0 && len(out)+len(b) > req.MaxBytes {
			break
		}
		out = append(out, b...)
	}
	res.Records = out
	return res, nil
}
func (p *fakePart) ListOffset(_ context.Context, ts int64, epoch int32) (int64, int64, int32, error) {
	if err := p.check(epoch, false); err != nil {
		return -1, -1, -1, err
	}
	_, known := p.n.Leader(p.d.group)
	switch ts {
	case -1:
		return p.HighWatermark(), -1, known, nil
	case -2, -4:
		return p.LogStart(), -1, known, nil
	case -5, -6:
		return -1, -1, -1, nil
	}
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	best, bestTS := int64(-1), int64(-1)
	for _, b := range p.d.batches {
		h, _ := record.ParseHeader(b)
		if ts == -3 && h.MaxTimestamp > bestTS || ts >= 0 && best < 0 && h.MaxTimestamp >= ts {
			best, bestTS = h.BaseOffset, h.MaxTimestamp
		}
	}
	if best < 0 {
		return -1, -1, -1, nil
	}
	return best, bestTS, known, nil
}
func (p *fakePart) EpochEnd(current, epoch int32) (int32, int64, error) {
	if err := p.check(current, false); err != nil {
		return -1, -1, err
	}
	_, known := p.n.Leader(p.d.group)
	if epoch > known {
		return -1, -1, nil
	}
	return known, p.HighWatermark(), nil
}
func (p *fakePart) DeleteRecords(offset int64, done func(int64, error)) {
	p.d.mu.Lock()
	if offset == -1 {
		offset = p.d.hw
	}
	p.d.start = max(p.d.start, offset)
	low := p.d.start
	p.d.mu.Unlock()
	go done(low, nil) // from anywhere
}
func (p *fakePart) Status() multiraft.Status {
	node, epoch := p.n.Leader(p.d.group)
	return multiraft.Status{Term: uint64(epoch), LeaderNode: node, IsLeader: node == p.n.id, Ready: node == p.n.id}
}
func (p *fakePart) LeaderEpoch() int32 { _, e := p.n.Leader(p.d.group); return e }
func (p *fakePart) HighWatermark() int64 {
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	return p.hwNow()
}
func (p *fakePart) LogStart() int64 {
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	return p.d.start
}

// LastSequence: the model takes every sequence as it comes and remembers none.
func (p *fakePart) LastSequence(int64) (int16, int32, bool) { return 0, 0, false }

// Producers: none are remembered.
func (p *fakePart) Producers() []partition.ProducerState { return nil }

// Size counts the batches' bytes.
func (p *fakePart) Size() (n int64) {
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	for _, b := range p.d.batches {
		n += int64(len(b))
	}
	return n
}

// batch builds a record batch of n records whose values begin with tag.
func batch(t testing.TB, tag string, n int) []byte {
	t.Helper()
	b := record.NewBuilder()
	for i := range n {
		b.Add(1000+int64(i), []byte("k"), []byte(fmt.Sprint(tag, i)))
	}
	out, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
