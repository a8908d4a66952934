package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// adminCluster is a cluster of nodes 1 to 3 as node 1 sees it, and its controller: both in memory, both strict about what
// they are asked.
type adminCluster struct {
	mu      sync.Mutex
	changed *sync.Cond
	img     *metadata.Image
	indexes map[int32]uint64 // of the other nodes; absent: as this node's
	dead    map[int32]bool
	leaders map[uint64]int32 // absent: none
	static  map[string]string
	reg     prometheus.Registerer // nil: none
	// lead makes leaders appear with the topics.
	lead bool

	creates  [][]controller.NewTopic
	deletes  [][]controller.TopicKey
	grows    [][]controller.NewPartitions
	alters   [][]controller.ConfigChange
	validate []bool
	fail     error // of every item
	short    bool  // answer one item too few
	parts    map[string]*adminPartition
}

func newAdminCluster() *adminCluster {
	c := &adminCluster{lead: true, indexes: map[int32]uint64{}, dead: map[int32]bool{}, leaders: map[uint64]int32{metadata.MetadataGroup: 2}, parts: map[string]*adminPartition{}}
	c.changed = sync.NewCond(&c.mu)
	c.img = &metadata.Image{ClusterID: "cluster-id-of-22-chars", Index: 10, Nodes: map[int32]*metadata.Node{}, Topics: map[string]*metadata.Topic{},
		TopicsByID: map[uuid.UUID]*metadata.Topic{}, Groups: map[uint64]metadata.PartitionRef{}, BrokerConfigs: map[int32]map[string]string{}, NextGroup: 2}
	for id := int32(1); id <= 3; id++ {
		c.img.Nodes[id] = &metadata.Node{ID: id, KafkaHost: fmt.Sprintf("host%d", id), KafkaPort: 9090 + id}
	}
	c.img.Nodes[2].Rack = "r2"
	return c
}

func (c *adminCluster) broker(t *testing.T) *Broker {
	t.Helper()
	b, err := New(Config{Partitions: c, Controller: c, Cluster: c, Forwarder: c, RequestTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler), Registerer: c.reg})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// edit publishes the next image.
func (c *adminCluster) edit(f func(img *metadata.Image)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.editLocked(f)
}

func (c *adminCluster) editLocked(f func(img *metadata.Image)) uint64 {
	next := *c.img
	next.Topics, next.TopicsByID, next.BrokerConfigs = maps.Clone(next.Topics), maps.Clone(next.TopicsByID), maps.Clone(next.BrokerConfigs)
	next.Index++
	f(&next)
	c.img = &next
	c.changed.Broadcast()
	return next.Index
}

func (c *adminCluster) addTopic(img *metadata.Image, name string, parts int32, replicas ...int32) *metadata.Topic {
	t := &metadata.Topic{Name: name, ID: uuid.NewSHA1(uuid.Nil, []byte(name)), Configs: map[string]string{}}
	for i := range parts {
		p := &metadata.Partition{Index: i, Group: img.NextGroup}
		img.NextGroup++
		for _, n := range replicas {
			p.Replicas = append(p.Replicas, metadata.Replica{ID: uint64(n), Node: n})
		}
		if c.lead {
			c.leaders[p.Group] = replicas[0]
		}
		t.Partitions = append(t.Partitions, p)
	}
	img.Topics[name], img.TopicsByID[t.ID] = t, t
	return t
}

func (c *adminCluster) NodeID() int32 { return 1 }

func (c *adminCluster) Image() *metadata.Image {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.img
}

func (c *adminCluster) ImageIndex(node int32) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i, ok := c.indexes[node]; ok {
		return i
	}
	return c.img.Index
}

func (c *adminCluster) Leader(group uint64) (int32, int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n, ok := c.leaders[group]; ok {
		return n, 5
	}
	return -1, -1
}

func (c *adminCluster) Live(node int32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.dead[node]
}

func (c *adminCluster) StaticConfigs() map[string]string { return c.static }

func (c *adminCluster) Await(ctx context.Context, cond func() bool) error {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changed.Broadcast()
	})
	defer stop()
	for !cond() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.mu.Lock()
		// A change between cond and here is found when the timer fires. It takes the lock, which is held until Wait has begun:
		// a broadcast before that would be lost, and the wait without end.
		timer := time.AfterFunc(5*time.Millisecond, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.changed.Broadcast()
		})
		c.changed.Wait()
		timer.Stop()
		c.mu.Unlock()
	}
	return nil
}

func (c *adminCluster) Lookup(topic string, partition int32) (Partition, bool) {
	p, ok := c.parts[fmt.Sprintf("%s/%d", topic, partition)]
	return p, ok
}

// NewPoll is for Fetch, which is not asked here.
func (c *adminCluster) NewPoll() Poll { return nil }

func (c *adminCluster) Call(context.Context, int32, uint16, []byte) ([]byte, error) {
	return nil, errors.New("no admin request calls another node here")
}

func (c *adminCluster) Forward(_ int32, _ uint16, _ []byte, done func([]byte, error)) {
	done(nil, errors.New("no admin request forwards here"))
}

func (c *adminCluster) CreateTopics(_ context.Context, topics []controller.NewTopic, validateOnly bool) []controller.TopicResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.creates, c.validate = append(c.creates, topics), append(c.validate, validateOnly)
	out := make([]controller.TopicResult, len(topics))
	var index uint64
	for i, nt := range topics {
		out[i] = controller.TopicResult{Name: nt.Name, Partitions: max(nt.Partitions, 1), ReplicationFactor: 3, Err: c.fail}
		if _, ok := c.img.Topics[nt.Name]; ok {
			out[i].Err = &controller.Error{Kind: controller.ErrTopicExists, Msg: "Topic '" + nt.Name + "' already exists."}
		}
		if out[i].Err != nil || validateOnly {
			continue
		}
		index = c.editLocked(func(img *metadata.Image) {
			t := c.addTopic(img, nt.Name, out[i].Partitions, 1, 2, 3)
			t.Configs = nt.Configs
			out[i].ID = t.ID
		})
	}
	for i := range out {
		out[i].Index = index
	}
	return c.cut(out)
}

func (c *adminCluster) cut(out []controller.TopicResult) []controller.TopicResult {
	if c.short {
		return out[:len(out)-1]
	}
	return out
}

func (c *adminCluster) DeleteTopics(_ context.Context, keys []controller.TopicKey) []controller.TopicResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deletes = append(c.deletes, keys)
	out := make([]controller.TopicResult, len(keys))
	for i, k := range keys {
		t := c.img.Topics[k.Name]
		kind := controller.ErrUnknownTopic
		if k.ID != uuid.Nil {
			t, kind = c.img.TopicsByID[k.ID], controller.ErrUnknownTopicID
		}
		if t == nil {
			out[i].Err = &controller.Error{Kind: kind, Msg: "unknown"}
			continue
		}
		index := c.editLocked(func(img *metadata.Image) { delete(img.Topics, t.Name); delete(img.TopicsByID, t.ID) })
		out[i] = controller.TopicResult{Name: t.Name, ID: t.ID, Index: index, Err: c.fail}
	}
	return c.cut(out)
}

func (c *adminCluster) CreatePartitions(_ context.Context, topics []controller.NewPartitions, validateOnly bool) []controller.TopicResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.grows, c.validate = append(c.grows, topics), append(c.validate, validateOnly)
	out := make([]controller.TopicResult, len(topics))
	for i, np := range topics {
		t := c.img.Topics[np.Name]
		switch {
		case t == nil:
			out[i].Err = &controller.Error{Kind: controller.ErrUnknownTopic, Msg: "unknown"}
		case int(np.Count) <= len(t.Partitions):
			out[i].Err = &controller.Error{Kind: controller.ErrInvalidPartitions, Msg: "not more than there are"}
		case !validateOnly:
			out[i].Index = c.editLocked(func(img *metadata.Image) { c.addTopic(img, np.Name, np.Count, 1, 2, 3) })
		}
	}
	return c.cut(out)
}

func (c *adminCluster) AlterConfigs(_ context.Context, changes []controller.ConfigChange, validateOnly bool) []controller.ConfigResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alters, c.validate = append(c.alters, changes), append(c.validate, validateOnly)
	out := make([]controller.ConfigResult, len(changes))
	for i, ch := range changes {
		out[i] = controller.ConfigResult{Resource: ch.Resource, Err: c.fail}
		t := c.img.Topics[ch.Resource.Name]
		if ch.Resource.Type != controller.ResourceTopic || c.fail != nil || validateOnly {
			continue
		}
		if t == nil {
			out[i].Err = &controller.Error{Kind: controller.ErrUnknownTopic, Msg: "unknown"}
			continue
		}
		var ops []config.Op
		for _, e := range ch.Edits {
			ops = append(ops, config.Op{Kind: config.OpKind(e.Op), Name: e.Key, Value: e.Value})
		}
		base := t.Configs
		if ch.Replace {
			base = nil
		}
		set, err := config.AlterTopic(base, ops, config.Layers{})
		out[i].Err = err
		out[i].Index = c.editLocked(func(img *metadata.Image) {
			next := *t
			next.Configs = set
			img.Topics[t.Name] = &next
		})
	}
	return out
}

func (c *adminCluster) AllocateProducerIDs(context.Context, int64) (int64, error) {
	return 0, errors.New("no admin request takes producer ids")
}

// adminPartition is a partition whose log start can move; nothing else of it is used.
type adminPartition struct {
	Partition
	leader bool
	hang   bool
	now    bool // answer before DeleteRecords returns
	asked  []int64
	err    error
}

func (p *adminPartition) Status() multiraft.Status {
	return multiraft.Status{IsLeader: p.leader, Ready: p.leader}
}

func (p *adminPartition) DeleteRecords(offset int64, done func(int64, error)) {
	p.asked = append(p.asked, offset)
	if p.hang {
		return
	}
	if p.now {
		done(max(offset, 7), p.err)
		return
	}
	go done(max(offset, 7), p.err) // from anywhere, as the contract says
}

// callAdmin sends a request through its wire form at version, and brings the response back through its own.
func callAdmin[R kmsg.Response](t *testing.T, b *Broker, version int16, req kmsg.Request, mode ...ListenerConfig) R {
	t.Helper()
	a := lookupAPI(req.Key(), version)
	if a == nil {
		t.Fatalf("key %d version %d is not served", req.Key(), version)
	}
	req.SetVersion(version)
	in := kmsg.RequestForKey(req.Key())
	in.SetVersion(version)
	if err := in.ReadFrom(req.AppendTo(nil)); err != nil {
		t.Fatalf("request key %d v%d: %v", req.Key(), version, err)
	}
	rc := &RequestContext{Key: req.Key(), Version: version}
	if len(mode) > 0 {
		rc.Mode = mode[0]
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	resp, err := a.handle(b, ctx, rc, in)
	if err != nil || resp == nil {
		t.Fatalf("key %d v%d: %v %v", req.Key(), version, resp, err)
	}
	if resp.GetVersion() != version {
		t.Fatalf("key %d: answered in v%d, asked in v%d", req.Key(), resp.GetVersion(), version)
	}
	out := req.ResponseKind()
	out.SetVersion(version)
	if err := out.ReadFrom(resp.AppendTo(nil)); err != nil {
		t.Fatalf("response key %d v%d: %v", req.Key(), version, err)
	}
	return out.(R)
}

// everyVersion runs f for each version served of a key.
func everyVersion(t *testing.T, key int16, f func(t *testing.T, v int16)) {
	t.Helper()
	a := byKey[key]
	if a == nil {
		t.Fatalf("key %d is not served", key)
	}
	for v := a.min; v <= a.max; v++ {
		t.Run(fmt.Sprintf("v%d", v), func(t *testing.T) { f(t, v) })
	}
}

func TestAdminRangesAreThoseOfTheProtocol(t *testing.T) {
	for key, want := range map[int16][2]int16{19: {2, 7}, 20: {1, 6}, 21: {0, 2}, 32: {1, 4}, 33: {0, 2}, 37: {0, 3}, 44: {0, 1}, 60: {0, 2}, 75: {0, 0}} {
		a := byKey[key]
		if a == nil || a.min != want[0] || a.max != want[1] || a.advertised != a.min {
			t.Errorf("key %d: %+v, want %v", key, a, want)
		}
	}
}

func createTopic(name string, parts int32, rf int16, configs ...string) kmsg.CreateTopicsRequestTopic {
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = name, parts, rf
	for i := 0; i+1 < len(configs); i += 2 {
		t.Configs = append(t.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: configs[i], Value: &configs[i+1]})
	}
	return t
}

func TestCreateTopics(t *testing.T) {
	everyVersion(t, 19, func(t *testing.T, v int16) {
		c := newAdminCluster()
		c.edit(func(img *metadata.Image) { c.addTopic(img, "there", 1, 1) })
		req := kmsg.NewPtrCreateTopicsRequest()
		req.TimeoutMillis = 3_600_000
		req.Topics = append(req.Topics, createTopic("a", -1, -1, "retention.ms", "5"), createTopic("there", 1, 1), createTopic("b", 4, 2))
		resp := callAdmin[*kmsg.CreateTopicsResponse](t, c.broker(t), v, req)
		if len(resp.Topics) != 3 {
			t.Fatalf("%d topics answered", len(resp.Topics))
		}
		a, there := resp.Topics[0], resp.Topics[1]
		if a.ErrorCode != 0 || a.ErrorMessage != nil || there.ErrorCode != 36 || there.ErrorMessage == nil || resp.Topics[2].ErrorCode != 0 {
			t.Errorf("codes %d %d %d, want 0 36 0", a.ErrorCode, there.ErrorCode, resp.Topics[2].ErrorCode)
		}
		if len(c.creates) != 1 || len(c.creates[0]) != 3 || c.creates[0][0].Partitions != -1 || c.creates[0][0].ReplicationFactor != -1 {
			t.Errorf("the controller was asked %+v", c.creates)
		}
		if v >= 5 {
			if a.NumPartitions != 1 || a.ReplicationFactor != 3 || there.NumPartitions != -1 || there.ReplicationFactor != -1 || there.Configs == nil || len(there.Configs) > 0 {
				t.Errorf("v5 describes %d/%d, on error %d/%d %v", a.NumPartitions, a.ReplicationFactor, there.NumPartitions, there.ReplicationFactor, there.Configs)
			}
			i := slices.IndexFunc(a.Configs, func(c kmsg.CreateTopicsResponseTopicConfig) bool { return c.Name == "retention.ms" })
			if i < 0 || *a.Configs[i].Value != "5" || a.Configs[i].Source != 1 || len(a.Configs) < len(config.Topics.Defs())-1 {
				t.Errorf("v5 lists %d configs, retention.ms at %d", len(a.Configs), i)
			}
		}
		if v >= 7 && a.TopicID != c.Image().Topics["a"].ID {
			t.Errorf("topic id %v", a.TopicID)
		}
	})
}

func TestCreateTopicsBadInput(t *testing.T) {
	assign := func(t kmsg.CreateTopicsRequestTopic, parts ...[]int32) kmsg.CreateTopicsRequestTopic {
		for _, p := range parts {
			t.ReplicaAssignment = append(t.ReplicaAssignment, kmsg.CreateTopicsRequestTopicReplicaAssignment{Partition: p[0], Replicas: p[1:]})
		}
		return t
	}
	null := createTopic("t", 1, 1)
	null.Configs = append(null.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: "retention.ms"})
	for name, c := range map[string]struct {
		topic kmsg.CreateTopicsRequestTopic
		code  int16
	}{
		"metadata topic":            {createTopic(metadata.MetadataTopic, 1, 1), 42},
		"no partitions":             {createTopic("t", 0, 1), 37},
		"negative partitions":       {createTopic("t", -2, 1), 37},
		"no replicas":               {createTopic("t", 1, 0), 38},
		"negative replicas":         {createTopic("t", 1, -2), 38},
		"assignment and count":      {assign(createTopic("t", 1, -1), []int32{0, 1}), 42},
		"assignment and replicas":   {assign(createTopic("t", -1, 1), []int32{0, 1}), 42},
		"assignment with a hole":    {assign(createTopic("t", -1, -1), []int32{0, 1}, []int32{2, 1}), 39},
		"assignment twice":          {assign(createTopic("t", -1, -1), []int32{0, 1}, []int32{0, 2}), 39},
		"assignment to nobody":      {assign(createTopic("t", -1, -1), []int32{0}), 39},
		"negative partition":        {assign(createTopic("t", -1, -1), []int32{-1, 1}), 39},
		"unknown config":            {createTopic("t", 1, 1, "no.such", "1"), 40},
		"bad value":                 {createTopic("t", 1, 1, "retention.ms", "soon"), 40},
		"bad policy":                {createTopic("t", 1, 1, "cleanup.policy", "compact,squeeze"), 40},
		"null value":                {null, 40},
		"compact":                   {createTopic("t", 1, 1, "cleanup.policy", "compact"), 0},
		"sound":                     {createTopic("t", 1, 1, "flush.messages", "1"), 0},
		"sound, assignment swapped": {assign(createTopic("t", -1, -1), []int32{1, 2}, []int32{0, 1}), 0},
	} {
		for _, v := range []int16{2, 7} {
			cl := newAdminCluster()
			req := kmsg.NewPtrCreateTopicsRequest()
			req.Topics = append(req.Topics, c.topic)
			resp := callAdmin[*kmsg.CreateTopicsResponse](t, cl.broker(t), v, req)
			got := resp.Topics[0]
			if got.ErrorCode != c.code || (got.ErrorMessage == nil) != (c.code == 0) {
				t.Errorf("%s v%d: code %d, message %v, want %d", name, v, got.ErrorCode, got.ErrorMessage, c.code)
			}
			if (len(cl.creates) == 0) != (c.code != 0) {
				t.Errorf("%s: the controller was asked %v", name, cl.creates)
			}
			if name == "sound, assignment swapped" && !slices.EqualFunc(cl.creates[0][0].Assignments, [][]int32{{1}, {2}}, slices.Equal) {
				t.Errorf("assignments %v are not by partition", cl.creates[0][0].Assignments)
			}
		}
	}
}

func TestCreateTopicsDuplicatesAndNothing(t *testing.T) {
	c := newAdminCluster()
	b := c.broker(t)
	req := kmsg.NewPtrCreateTopicsRequest()
	req.Topics = append(req.Topics, createTopic("d", 1, 1), createTopic("ok", 1, 1), createTopic("d", 1, 1), createTopic("d", 2, 1))
	resp := callAdmin[*kmsg.CreateTopicsResponse](t, b, 7, req)
	if len(resp.Topics) != 2 || resp.Topics[0].ErrorCode != 42 || resp.Topics[1].ErrorCode != 0 || c.Image().Topics["d"] != nil {
		t.Errorf("duplicates: %+v", resp.Topics)
	}
	resp = callAdmin[*kmsg.CreateTopicsResponse](t, b, 7, kmsg.NewPtrCreateTopicsRequest())
	if len(resp.Topics) != 0 || len(c.creates) != 1 {
		t.Errorf("an empty request: %+v", resp)
	}
}

func TestCreateTopicsValidateOnly(t *testing.T) {
	c := newAdminCluster()
	c.lead = false
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis, req.ValidateOnly = 3_600_000, true
	req.Topics = append(req.Topics, createTopic("a", 2, 2))
	resp := callAdmin[*kmsg.CreateTopicsResponse](t, c.broker(t), 5, req)
	if resp.Topics[0].ErrorCode != 0 || resp.Topics[0].NumPartitions != 2 || !c.validate[0] || c.Image().Topics["a"] != nil {
		t.Errorf("%+v, asked with %v", resp.Topics[0], c.validate)
	}
}

func TestCreateTopicsControllerErrors(t *testing.T) {
	for err, code := range map[error]int16{
		multiraft.ErrUnknownOutcome:               7,
		context.DeadlineExceeded:                  7,
		controller.ErrNoLeader:                    7,
		controller.ErrInvalidTopic:                17,
		controller.ErrInvalidReplicationFactor:    38,
		controller.ErrPolicy:                      44,
		errors.New("something nobody thought of"): -1,
	} {
		c := newAdminCluster()
		c.fail = fmt.Errorf("wrapped: %w", err)
		req := kmsg.NewPtrCreateTopicsRequest()
		req.TimeoutMillis = 3_600_000
		req.Topics = append(req.Topics, createTopic("a", 1, 1))
		if got := callAdmin[*kmsg.CreateTopicsResponse](t, c.broker(t), 7, req).Topics[0]; got.ErrorCode != code || got.ErrorMessage == nil {
			t.Errorf("%v: code %d, want %d", err, got.ErrorCode, code)
		}
	}
	c := newAdminCluster()
	c.short = true
	req := kmsg.NewPtrCreateTopicsRequest()
	req.Topics = append(req.Topics, createTopic("a", 1, 1))
	if got := callAdmin[*kmsg.CreateTopicsResponse](t, c.broker(t), 7, req).Topics[0]; got.ErrorCode != -1 {
		t.Errorf("a missing result is answered with %d", got.ErrorCode)
	}
}

// created runs CreateTopics and returns a channel that closes with the answer.
func created(t *testing.T, c *adminCluster, timeout int32) <-chan struct{} {
	done := make(chan struct{})
	b := c.broker(t)
	go func() {
		defer close(done)
		req := kmsg.NewPtrCreateTopicsRequest()
		req.TimeoutMillis = timeout
		req.Topics = append(req.Topics, createTopic("a", 2, 3))
		if got := callAdmin[*kmsg.CreateTopicsResponse](t, b, 7, req).Topics[0]; got.ErrorCode != 0 {
			t.Errorf("code %d", got.ErrorCode)
		}
	}()
	return done
}

// exists waits until the topic is there.
func exists(t *testing.T, c *adminCluster) *metadata.Topic {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Await(ctx, func() bool { return c.Image().Topics["a"] != nil }); err != nil {
		t.Fatal(err)
	}
	return c.Image().Topics["a"]
}

func waitsFor(t *testing.T, done <-chan struct{}, what string, then func()) {
	t.Helper()
	select {
	case <-done:
		t.Fatalf("answered without %s", what)
	case <-time.After(30 * time.Millisecond): // not a proof, but a broken wait answers within microseconds
	}
	then()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("not answered with %s", what)
	}
}

func TestCreateTopicsAnswersWhenLeadersExist(t *testing.T) {
	c := newAdminCluster()
	c.lead = false
	done := created(t, c, 3_600_000)
	topic := exists(t, c)
	c.edit(func(*metadata.Image) { c.leaders[topic.Partitions[0].Group] = 1 })
	waitsFor(t, done, "a leader of partition 1", func() {
		c.edit(func(*metadata.Image) { c.leaders[topic.Partitions[1].Group] = 2 })
	})
}

func TestCreateTopicsAnswersWhenEveryLiveNodeKnows(t *testing.T) {
	c := newAdminCluster()
	c.indexes[3] = 2 // trails
	done := created(t, c, 3_600_000)
	exists(t, c)
	waitsFor(t, done, "node 3's image", func() { c.edit(func(*metadata.Image) { delete(c.indexes, 3) }) })

	c = newAdminCluster()
	c.indexes[3], c.dead[3] = 2, true // and nobody waits for the dead
	select {
	case <-created(t, c, 3_600_000):
	case <-time.After(time.Minute):
		t.Error("waited for a dead node")
	}
}

func TestCreateTopicsWaitIsBoundedByTheTimeout(t *testing.T) {
	for _, timeout := range []int32{100, 0, -1} {
		c := newAdminCluster()
		c.lead = false
		begin := time.Now()
		select {
		case <-created(t, c, timeout): // and the topic exists: no error
		case <-time.After(time.Minute):
			t.Fatalf("timeout %d: not answered", timeout)
		}
		if timeout > 0 && time.Since(begin) < 50*time.Millisecond {
			t.Errorf("timeout %d: did not wait at all", timeout)
		}
	}
}

func TestCreateTopicsDeletedMeanwhileIsNotWaitedFor(t *testing.T) {
	c := newAdminCluster()
	c.lead = false
	done := created(t, c, 3_600_000)
	exists(t, c)
	waitsFor(t, done, "a deletion", func() { c.edit(func(img *metadata.Image) { delete(img.Topics, "a") }) })
}
