package conformance

import (
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// cluster is what the script talks to: three brokers with ids 1 to 3.
type cluster struct {
	addrs map[int32]string
	conns map[int32]*conn
	// What was learned on the way, so that an answer can be told by name.
	ids    map[[16]byte]string // topics
	topics map[string][16]byte
	// brief: an answer is not waited for long.
	brief bool
	// In an outage: a and b live, down is who is stopped, or will be; group is one that down coordinated.
	a, b, down int32
	stopped    bool
	group      string
	// afterthought is how long Kafka needs to find the topics of a regular expression, after its answer.
	afterthought time.Duration
}

// connect finds the brokers from one of them.
func connect(bootstrap string) (*cluster, error) {
	c := &cluster{addrs: map[int32]string{}, conns: map[int32]*conn{}, ids: map[[16]byte]string{}, topics: map[string][16]byte{}}
	first, err := dial(bootstrap)
	if err != nil {
		return nil, err
	}
	defer first.nc.Close()
	end := time.Now().Add(patience)
	for len(c.addrs) != 3 {
		if time.Now().After(end) {
			return nil, fmt.Errorf("%d brokers, not three", len(c.addrs))
		}
		req := kmsg.NewPtrMetadataRequest()
		req.Version, req.Topics = 9, []kmsg.MetadataRequestTopic{}
		resp, err := first.request(req)
		if err != nil {
			return nil, err
		}
		for _, b := range resp.(*kmsg.MetadataResponse).Brokers {
			c.addrs[b.NodeID] = net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
		}
		pause()
	}
	return c, nil
}

func pause() { time.Sleep(20 * time.Millisecond) }

func (c *cluster) close() {
	for _, x := range c.conns {
		x.nc.Close()
	}
}

// at sends a request to a broker. A connection that was closed is made anew for the next.
func (c *cluster) at(node int32, req kmsg.Request) (kmsg.Response, error) {
	if c.conns[node] == nil {
		x, err := dial(c.addrs[node])
		if err != nil {
			return nil, err
		}
		c.conns[node] = x
	}
	c.conns[node].patience = patience
	if c.brief {
		c.conns[node].patience = silence
	}
	resp, err := c.conns[node].request(req)
	if err != nil {
		c.conns[node].nc.Close()
		delete(c.conns, node)
	}
	return resp, err
}

// living are the brokers that run.
func (c *cluster) living() []int32 {
	if c.stopped {
		return []int32{min(c.a, c.b), max(c.a, c.b)}
	}
	return []int32{1, 2, 3}
}

// must is at for what only prepares a case.
func (c *cluster) must(node int32, req kmsg.Request) kmsg.Response {
	resp, err := c.at(node, req)
	if err != nil {
		panic(fmt.Errorf("preparing: %s: %w", kmsg.NameForKey(req.Key()), err))
	}
	return resp
}

// topic creates a topic with all replicas everywhere and returns once every broker knows its leaders.
func (c *cluster) topic(name string, partitions int32, configs ...string) {
	req := creates(name, partitions, 3)
	for i := 0; i < len(configs); i += 2 {
		withConfig(configs[i], &configs[i+1])(&req.Topics[0])
	}
	c.create(req)
}

// placed creates a topic with replicas where they are to be, and returns once every living broker knows its leaders.
func (c *cluster) placed(name string, partitions ...[]int32) {
	req := creates(name, -1, -1)
	for i, nodes := range partitions {
		assigned(int32(i), nodes...)(&req.Topics[0])
	}
	c.create(req)
}

func (c *cluster) create(req *kmsg.CreateTopicsRequest) {
	req.Version, req.TimeoutMillis = 5, int32(patience/time.Millisecond)
	resp := c.must(c.controller(), req).(*kmsg.CreateTopicsResponse)
	t := &resp.Topics[0]
	if t.ErrorCode != 0 {
		panic(fmt.Errorf("preparing: creating %s: %w", t.Topic, kerr.ErrorForCode(t.ErrorCode)))
	}
	c.await(t.Topic, int(t.NumPartitions))
}

// until waits for a condition. What is compared afterwards says that it never came about.
func until(cond func() bool) {
	for end := time.Now().Add(patience); !cond() && time.Now().Before(end); pause() {
	}
}

// await waits until every living broker names a leader for every partition of a topic, all living replicas are in sync and have heard of
// theirs, and learns the topic's id.
func (c *cluster) await(name string, partitions int) {
	end := time.Now().Add(patience)
	for _, node := range c.living() {
		for {
			t := c.describe(node, name)
			led := 0
			for _, p := range t.Partitions {
				if p.Leader > 0 && p.ErrorCode == 0 && len(p.ISR) == len(c.alive(p.Replicas)) {
					led++
				}
			}
			if t.ErrorCode == 0 && led == partitions {
				c.ids[t.TopicID], c.topics[name] = name, t.TopicID
				until(func() bool { return c.heard(node, &t) })
				break
			}
			if time.Now().After(end) {
				panic(fmt.Errorf("preparing: %s on broker %d: error %d, %d of %d partitions led", name, node, t.ErrorCode, led, partitions))
			}
			pause()
		}
	}
}

// heard says whether a broker's replicas of a topic know their leaders' epochs: then they know a later one for one to come.
func (c *cluster) heard(node int32, t *kmsg.MetadataResponseTopic) bool {
	req := epochEnds(*t.Topic, 0, math.MaxInt32, 0)
	req.Topics[0].Partitions = nil
	for _, p := range t.Partitions {
		if slices.Contains(p.Replicas, node) {
			req.Topics[0].Partitions = append(req.Topics[0].Partitions, kmsg.OffsetForLeaderEpochRequestTopicPartition{Partition: p.Partition, CurrentLeaderEpoch: math.MaxInt32})
		}
	}
	if len(req.Topics[0].Partitions) == 0 {
		return true
	}
	req.SetVersion(3)
	for _, p := range c.must(node, req).(*kmsg.OffsetForLeaderEpochResponse).Topics[0].Partitions {
		if p.ErrorCode != kerr.UnknownLeaderEpoch.Code {
			return false
		}
	}
	return true
}

// alive are those of some brokers that run.
func (c *cluster) alive(nodes []int32) []int32 {
	return slices.DeleteFunc(slices.Clone(nodes), func(n int32) bool { return c.stopped && n == c.down })
}

func (c *cluster) describe(node int32, name string) kmsg.MetadataResponseTopic {
	req := kmsg.NewPtrMetadataRequest()
	req.Version, req.AllowAutoTopicCreation = 12, false
	req.Topics = []kmsg.MetadataRequestTopic{{Topic: &name}}
	return c.must(node, req).(*kmsg.MetadataResponse).Topics[0]
}

// leader is who leads a partition, and in which epoch.
func (c *cluster) leader(topic string, partition int32) (node, epoch int32) {
	end := time.Now().Add(patience)
	for {
		for _, p := range c.describe(c.living()[0], topic).Partitions {
			if p.Partition == partition && p.Leader > 0 {
				return p.Leader, p.LeaderEpoch
			}
		}
		if time.Now().After(end) {
			panic(fmt.Errorf("preparing: %s-%d has no leader", topic, partition))
		}
		pause()
	}
}

func (c *cluster) controller() int32 {
	req := kmsg.NewPtrMetadataRequest()
	req.Version, req.Topics = 9, []kmsg.MetadataRequestTopic{}
	first := c.living()[0]
	if id := c.must(first, req).(*kmsg.MetadataResponse).ControllerID; slices.Contains(c.living(), id) {
		return id
	}
	return first
}

// coordinator finds a group's, waiting until there is one that has loaded its groups.
func (c *cluster) coordinator(group string) int32 {
	end := time.Now().Add(patience)
	for {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.Version, req.CoordinatorKey = 3, group
		if r := c.must(c.living()[0], req).(*kmsg.FindCoordinatorResponse); r.ErrorCode == 0 && slices.Contains(c.living(), r.NodeID) && c.coordinates(r.NodeID, group) {
			return r.NodeID
		}
		if time.Now().After(end) {
			panic(fmt.Errorf("preparing: no coordinator for group %s", group))
		}
		pause()
	}
}

// coordinates says whether a broker answers for a group.
func (c *cluster) coordinates(node int32, group string) bool {
	req := kmsg.NewPtrDescribeGroupsRequest()
	req.Version, req.Groups = 0, []string{group}
	return c.must(node, req).(*kmsg.DescribeGroupsResponse).Groups[0].ErrorCode == 0
}
