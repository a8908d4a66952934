package broker

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

func metadataReq(allow bool, names ...string) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = allow
	req.Topics = []kmsg.MetadataRequestTopic{}
	for _, n := range names {
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = kmsg.StringPtr(n)
		req.Topics = append(req.Topics, rt)
	}
	return req
}

func topicNames(r *kmsg.MetadataResponse) []string {
	out := []string{}
	for _, t := range r.Topics {
		out = append(out, *t.Topic)
	}
	return out
}

func TestMetadataNullIsAllAndEmptyIsNone(t *testing.T) {
	f := newFleet(t, 2)
	for _, name := range []string{"b", "a", "__consumer_offsets", "__transaction_state", metadata.MetadataTopic} {
		topic := f.topic(name, 1)
		f.edit(func() { topic.Internal = name[0] == '_' })
	}
	c := f.nodes[1].dial(t)
	all := []string{"__consumer_offsets", "__transaction_state", "a", "b"}
	for v := int16(0); v <= 13; v++ {
		req := metadataReq(true)
		want := []string{}
		if v == 0 {
			want = all // in v0 an empty list means all
		}
		if got := topicNames(ask[*kmsg.MetadataResponse](c, v, req)); !slices.Equal(got, want) {
			t.Errorf("v%d, empty: %q, want %q", v, got, want)
		}
		if v == 0 {
			continue
		}
		req.Topics = nil
		resp := ask[*kmsg.MetadataResponse](c, v, req)
		if got := topicNames(resp); !slices.Equal(got, all) {
			t.Errorf("v%d, null: %q, want %q", v, got, all)
		}
		for _, topic := range resp.Topics {
			if topic.IsInternal != ((*topic.Topic)[0] == '_') {
				t.Errorf("v%d: %s internal: %v", v, *topic.Topic, topic.IsInternal)
			}
		}
	}
}

func TestMetadataNeverTellsOfTheMetadataTopic(t *testing.T) {
	f := newFleet(t, 1)
	hidden := f.topic(metadata.MetadataTopic, 1)
	c := f.nodes[1].dial(t)
	for v := int16(0); v <= 13; v++ {
		if topics := ask[*kmsg.MetadataResponse](c, v, metadataReq(true, metadata.MetadataTopic)).Topics; len(topics) != 1 || topics[0].ErrorCode != 3 {
			t.Errorf("v%d by name: %+v", v, topics)
		}
	}
	req := metadataReq(true)
	rt := kmsg.NewMetadataRequestTopic()
	rt.TopicID = hidden.ID
	req.Topics = append(req.Topics, rt)
	if topics := ask[*kmsg.MetadataResponse](c, 12, req).Topics; topics[0].ErrorCode != 100 {
		t.Errorf("by id: %+v", topics)
	}
	if f.created() != 0 {
		t.Error("it was created")
	}
}

func TestMetadataAutoCreation(t *testing.T) {
	f := newFleet(t, 2)
	c := f.nodes[1].dial(t)
	for v := int16(0); v <= 13; v++ {
		for _, allow := range []bool{false, true} {
			name := fmt.Sprintf("topic-%d-%v", v, allow)
			before := f.created()
			topic := ask[*kmsg.MetadataResponse](c, v, metadataReq(allow, name)).Topics[0]
			// v0 to v3 have no flag: creating is allowed.
			if !allow && v >= 4 {
				if topic.ErrorCode != 3 || len(topic.Partitions) != 0 || f.created() != before {
					t.Errorf("v%d, not allowed: %+v", v, topic)
				}
				continue
			}
			// Complete in one answer.
			if topic.ErrorCode != 0 || *topic.Topic != name || len(topic.Partitions) != 2 {
				t.Fatalf("v%d, allowed: %+v", v, topic)
			}
			for _, p := range topic.Partitions {
				if p.ErrorCode != 0 || p.Leader < 1 {
					t.Errorf("v%d: %+v", v, p)
				}
			}
		}
	}
	// With as many partitions and replicas as the cluster has by default: the ancestor made such topics without replicas.
	f.mu.Lock()
	for _, nt := range f.asked {
		if nt.Partitions != -1 || nt.ReplicationFactor != -1 || len(nt.Assignments) != 0 {
			t.Errorf("%q was asked for as %+v", nt.Name, nt)
		}
	}
	f.mu.Unlock()
	// One decision for all that is missing, of each name once, and as Kafka each is answered once.
	before := f.created()
	resp := ask[*kmsg.MetadataResponse](c, 9, metadataReq(true, "x", "y", "x", "bad name"))
	if f.created() != before+1 || len(resp.Topics) != 3 || resp.Topics[0].ErrorCode != 0 || resp.Topics[1].ErrorCode != 0 {
		t.Errorf("%d decisions: %+v", f.created()-before, resp.Topics)
	}
	if resp.Topics[2].ErrorCode != 17 {
		t.Errorf("an invalid name: %+v", resp.Topics[2])
	}
}

func TestMetadataAutoCreationCanBeOff(t *testing.T) {
	f := newFleet(t, 1, func(_ int32, c *Config) { c.AutoCreateTopics = false })
	if topic := ask[*kmsg.MetadataResponse](f.nodes[1].dial(t), 12, metadataReq(true, "x")).Topics[0]; topic.ErrorCode != 3 || f.created() != 0 {
		t.Errorf("%+v", topic)
	}
}

// Waiting for leaders is bounded; what has none by then is answered with 5, and leaders that come meanwhile are in the answer.
func TestMetadataAutoCreationWaitsForLeaders(t *testing.T) {
	f := newFleet(t, 1, func(_ int32, c *Config) { c.AutoCreateWait = 100 * time.Millisecond })
	f.edit(func() { f.leaderless = true })
	c := f.nodes[1].dial(t)
	begin := time.Now()
	topic := ask[*kmsg.MetadataResponse](c, 9, metadataReq(true, "x")).Topics[0]
	if took := time.Since(begin); took < 80*time.Millisecond || took > time.Minute {
		t.Errorf("answered after %s", took)
	}
	if len(topic.Partitions) != 2 || topic.Partitions[0].ErrorCode != 5 || topic.Partitions[0].Leader != -1 {
		t.Errorf("%+v", topic)
	}

	f = newFleet(t, 1, func(_ int32, c *Config) { c.AutoCreateWait = time.Hour })
	f.edit(func() { f.leaderless = true })
	c = f.nodes[1].dial(t)
	req := metadataReq(true, "y")
	corr := c.send(9, req)
	until(t, "created", func() bool { return f.part("y", 1) != nil })
	f.lead(f.part("y", 0), 1, 2)
	f.lead(f.part("y", 1), 1, 2)
	for _, p := range recv[*kmsg.MetadataResponse](c, corr, req).Topics[0].Partitions {
		if p.ErrorCode != 0 || p.Leader != 1 || p.LeaderEpoch != 2 {
			t.Errorf("%+v", p)
		}
	}
}

// A leader that is named is in brokers; where there is none it is -1 with error 5.
func TestMetadataLeaders(t *testing.T) {
	f := newFleet(t, 3)
	f.topic("t", 4) // led by 1, 2, 3, 1
	f.lead(f.part("t", 0), -1, 8)
	f.edit(func() { f.dead[3] = true })
	f.lead(f.part("t", 3), 9, 4) // a node that is not registered
	c := f.nodes[1].dial(t)
	for v := int16(0); v <= 13; v++ {
		resp := ask[*kmsg.MetadataResponse](c, v, metadataReq(false, "t"))
		if len(resp.Brokers) != 2 || resp.Brokers[0].NodeID != 1 || resp.Brokers[1].NodeID != 2 {
			t.Fatalf("v%d: brokers %+v", v, resp.Brokers)
		}
		for _, b := range resp.Brokers {
			if b.Rack != nil || b.Host != "127.0.0.1" || b.Port != f.img.Nodes[b.NodeID].KafkaPort {
				t.Errorf("v%d: broker %+v", v, b)
			}
		}
		for i, want := range []int32{-1, 2, -1, -1} {
			p := resp.Topics[0].Partitions[i]
			code, replicas := int16(0), 3
			if v == 0 { // replicas that can't be reached are left out, and where there is a leader that is an error
				code, replicas = 9, 2
			}
			if want < 0 {
				code = 5
			}
			if p.Partition != int32(i) || p.Leader != want || p.ErrorCode != code {
				t.Errorf("v%d: %+v, want leader %d", v, p, want)
			}
			if v >= 7 && i == 0 && p.LeaderEpoch != 8 {
				t.Errorf("v%d: epoch %d: it must not go back without a leader", v, p.LeaderEpoch)
			}
			if v >= 5 && (!slices.Equal(p.OfflineReplicas, []int32{3}) || !slices.Equal(p.ISR, []int32{1, 2})) || len(p.Replicas) != replicas {
				t.Errorf("v%d: %+v", v, p)
			}
		}
	}
}

func TestMetadataRackIsNullOrTheNodes(t *testing.T) {
	f := newFleet(t, 2)
	f.edit(func() { f.img.Nodes[2].Rack = "r2" })
	for v := int16(1); v <= 13; v++ {
		b := ask[*kmsg.MetadataResponse](f.nodes[1].dial(t), v, metadataReq(false)).Brokers
		if b[0].Rack != nil || b[1].Rack == nil || *b[1].Rack != "r2" {
			t.Errorf("v%d: %+v", v, b)
		}
	}
}

func TestMetadataAuthorizedOperations(t *testing.T) {
	f := newFleet(t, 1)
	f.topic("t", 1)
	c := f.nodes[1].dial(t)
	for v := int16(8); v <= 13; v++ {
		resp := ask[*kmsg.MetadataResponse](c, v, metadataReq(false, "t", "nope"))
		if resp.Topics[0].AuthorizedOperations != -2147483648 || resp.Topics[1].AuthorizedOperations != -2147483648 || v <= 10 && resp.AuthorizedOperations != -2147483648 {
			t.Errorf("v%d, not asked for: %d %d %d", v, resp.AuthorizedOperations, resp.Topics[0].AuthorizedOperations, resp.Topics[1].AuthorizedOperations)
		}
		req := metadataReq(false, "t")
		req.IncludeTopicAuthorizedOperations, req.IncludeClusterAuthorizedOperations = true, true
		resp = ask[*kmsg.MetadataResponse](c, v, req)
		if resp.Topics[0].AuthorizedOperations != topicOperations || v <= 10 && resp.AuthorizedOperations != clusterOperations {
			t.Errorf("v%d, asked for: %d %d", v, resp.AuthorizedOperations, resp.Topics[0].AuthorizedOperations)
		}
	}
}

func TestMetadataTopicIDs(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	c := f.nodes[1].dial(t)
	for v := int16(10); v <= 13; v++ {
		if got := ask[*kmsg.MetadataResponse](c, v, metadataReq(false, "t")).Topics[0].TopicID; got != topic.ID || got == [16]byte{} {
			t.Errorf("v%d: id %x", v, got)
		}
	}
	for v := int16(12); v <= 13; v++ {
		req := metadataReq(true)
		for _, id := range [][16]byte{topic.ID, {1, 2, 3}} {
			rt := kmsg.NewMetadataRequestTopic()
			rt.TopicID = id
			req.Topics = append(req.Topics, rt)
		}
		req.Topics = append(req.Topics, kmsg.NewMetadataRequestTopic()) // neither name nor id
		got := ask[*kmsg.MetadataResponse](c, v, req).Topics
		if got[0].ErrorCode != 0 || *got[0].Topic != "t" || len(got[0].Partitions) != 1 {
			t.Errorf("v%d by id: %+v", v, got[0])
		}
		if got[1].ErrorCode != 100 || got[1].Topic != nil || got[1].TopicID != [16]byte{1, 2, 3} {
			t.Errorf("v%d unknown id: %+v", v, got[1])
		}
		if got[2].ErrorCode != 42 {
			t.Errorf("v%d neither: %+v", v, got[2])
		}
	}
	if f.created() != 0 {
		t.Error("a topic was created by id")
	}
}

// controller_id is a live broker, the same that DescribeCluster names.
func TestMetadataControllerAgreesWithDescribeCluster(t *testing.T) {
	for name, want := range map[string]int32{"leader": 2, "dead": 1, "unknown": 1, "one address": 1} {
		f := newFleet(t, 2)
		listener := "main"
		f.edit(func() { f.leaders[metadata.MetadataGroup] = hint{2, 1} })
		switch name {
		case "dead":
			f.edit(func() { f.dead[2] = true })
		case "unknown":
			f.edit(func() { delete(f.leaders, metadata.MetadataGroup) })
		case "one address":
			listener = "one"
		}
		c := f.nodes[1].dial(t, listener)
		resp := ask[*kmsg.MetadataResponse](c, 12, metadataReq(false))
		if resp.ControllerID != want || !slices.ContainsFunc(resp.Brokers, func(b kmsg.MetadataResponseBroker) bool { return b.NodeID == want }) {
			t.Errorf("%s: controller %d of %+v, want %d", name, resp.ControllerID, resp.Brokers, want)
		}
		if got := ask[*kmsg.DescribeClusterResponse](c, 2, kmsg.NewPtrDescribeClusterRequest()).ControllerID; got != want {
			t.Errorf("%s: DescribeCluster names %d, want %d", name, got, want)
		}
		if resp.ClusterID == nil || *resp.ClusterID != f.img.ClusterID {
			t.Errorf("cluster id %v", resp.ClusterID)
		}
	}
}

// In one-address mode this node is the only broker, and leads everything, whoever does.
func TestMetadataOneAddressView(t *testing.T) {
	f := newFleet(t, 3)
	f.topic("t", 4)
	f.lead(f.part("t", 3), -1, 6)
	f.edit(func() { f.dead[3] = true })
	c := f.nodes[2].dial(t, "one")
	for v := int16(0); v <= 13; v++ {
		resp := ask[*kmsg.MetadataResponse](c, v, metadataReq(false, "t"))
		if len(resp.Brokers) != 1 || resp.Brokers[0].NodeID != 2 || resp.Brokers[0].Host != "lb.example" || resp.Brokers[0].Port != 9999 {
			t.Fatalf("v%d: %+v", v, resp.Brokers)
		}
		if v >= 1 && resp.ControllerID != 2 {
			t.Errorf("v%d: controller %d", v, resp.ControllerID)
		}
		for i, p := range resp.Topics[0].Partitions {
			if p.ErrorCode != 0 || p.Leader != 2 || !slices.Equal(p.Replicas, []int32{2}) || !slices.Equal(p.ISR, []int32{2}) || len(p.OfflineReplicas) != 0 {
				t.Errorf("v%d: %+v", v, p)
			}
			if want := []int32{3, 3, 3, 6}[i]; v >= 7 && p.LeaderEpoch != want {
				t.Errorf("v%d: epoch %d, want %d", v, p.LeaderEpoch, want)
			}
		}
	}
}

// A listener on a port of the kernel's choosing is told of by the port it got.
func TestOneAddressOnAnyPort(t *testing.T) {
	f := newFleet(t, 1, func(_ int32, c *Config) {
		c.Listeners = map[string]ListenerConfig{"one": {OneAddress: true, Host: "lb.example"}}
	})
	c := f.nodes[1].dial(t, "one")
	port := int32(f.nodes[1].srv.Addr("one").(*net.TCPAddr).Port)
	if b := ask[*kmsg.MetadataResponse](c, 12, metadataReq(false)).Brokers; len(b) != 1 || b[0].Port != port {
		t.Errorf("%+v, the port is %d", b, port)
	}
}

// kafkajs has no flexible version: the old encodings of an answer hold what the new ones do.
func TestMetadataEncodingsAgree(t *testing.T) {
	f := newFleet(t, 2)
	f.topic("t", 3)
	c := f.nodes[1].dial(t)
	var first []byte
	for v := int16(5); v <= 13; v++ {
		resp := ask[*kmsg.MetadataResponse](c, v, metadataReq(false, "t"))
		resp.SetVersion(5)
		if got := resp.AppendTo(nil); first == nil {
			first = got
		} else if !bytes.Equal(first, got) {
			t.Errorf("v%d differs", v)
		}
	}
}
