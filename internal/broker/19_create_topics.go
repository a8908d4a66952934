package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
)

// CreateTopics (key 19), 2–7. KIP-4.
//
// v2  throttle time; counts of -1 already mean the cluster's defaults, as in Kafka 4
// v4  counts of -1 (KIP-464)
// v5  flexible; the answer describes the topic: counts and configs (KIP-525)
// v7  topic ids (KIP-516)
//
// Any node takes the request; the controller behind it finds the leader of the metadata group. The answer comes when every
// partition has a leader and every live node knows the topics, so that a client which turns to any node next finds what it
// made; or when most of its timeout is over: the topics exist then all the same, and the answer says so.

func handleCreateTopics(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.CreateTopicsRequest)
	resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
	ctx, cancel := b.adminContext(ctx, req.TimeoutMillis)
	defer cancel()

	img := b.cfg.Cluster.Image()
	layers := b.configLayers(img)
	seen := make(map[string]int, len(req.Topics))
	for i := range req.Topics {
		seen[req.Topics[i].Topic]++
	}
	var ask []controller.NewTopic
	var at []int // of each asked topic in resp.Topics
	for i := range req.Topics {
		t := &req.Topics[i]
		n := seen[t.Topic]
		if n == 0 {
			continue // a duplicate that has been answered
		}
		seen[t.Topic] = 0
		out := kmsg.NewCreateTopicsResponseTopic()
		out.Topic = t.Topic
		nt, err := newTopic(t, layers)
		if n > 1 {
			err = coded(kerr.InvalidRequest, "Duplicate topic name.")
		}
		if err != nil {
			b.failCreate(rc, &out, err)
		} else {
			ask, at = append(ask, nt), append(at, len(resp.Topics))
		}
		resp.Topics = append(resp.Topics, out)
	}
	if len(ask) == 0 {
		return resp, nil
	}

	results := b.cfg.Controller.CreateTopics(ctx, ask, req.ValidateOnly)
	var index uint64
	var created []string
	for i, slot := range at {
		out := &resp.Topics[slot]
		res, err := resultAt(results, i)
		if err != nil {
			b.failCreate(rc, out, err)
			continue
		}
		describeCreated(out, res, layers.DescribeTopic(ask[i].Configs, nil))
		index = max(index, res.Index)
		created = append(created, out.Topic)
	}
	if !req.ValidateOnly && req.TimeoutMillis > 0 {
		b.awaitTopics(ctx, index, created)
	}
	return resp, nil
}

func describeCreated(out *kmsg.CreateTopicsResponseTopic, res controller.TopicResult, entries []config.Entry) {
	out.TopicID = res.ID
	out.NumPartitions, out.ReplicationFactor = res.Partitions, res.ReplicationFactor
	out.Configs = make([]kmsg.CreateTopicsResponseTopicConfig, 0, len(entries))
	for _, e := range entries {
		c := kmsg.NewCreateTopicsResponseTopicConfig()
		c.Name, c.Value, c.Source = e.Def.Name, entryValue(e), int8(e.Source)
		out.Configs = append(out.Configs, c)
	}
}

// failCreate fills in an error: counts of -1 and an empty list of configs go with it.
func (b *Broker) failCreate(rc *RequestContext, out *kmsg.CreateTopicsResponseTopic, err error) {
	out.ErrorCode, out.ErrorMessage = b.refusal(rc, err)
	out.NumPartitions, out.ReplicationFactor, out.Configs = -1, -1, []kmsg.CreateTopicsResponseTopicConfig{}
}

// newTopic checks what can be checked without knowing the cluster; the controller checks the rest.
func newTopic(t *kmsg.CreateTopicsRequestTopic, layers config.Layers) (controller.NewTopic, error) {
	nt := controller.NewTopic{Name: t.Topic, Partitions: t.NumPartitions, ReplicationFactor: t.ReplicationFactor}
	if t.Topic == metadata.MetadataTopic {
		return nt, coded(kerr.InvalidRequest, fmt.Sprintf("Creation of internal topic %s is prohibited.", t.Topic))
	}
	if len(t.ReplicaAssignment) > 0 {
		if t.NumPartitions != -1 || t.ReplicationFactor != -1 {
			return nt, coded(kerr.InvalidRequest, "A manual partition assignment was given, so the number of partitions and the replication factor must be -1.")
		}
		var err error
		if nt.Assignments, err = createAssignments(t.ReplicaAssignment); err != nil {
			return nt, err
		}
	} else {
		if t.NumPartitions == 0 || t.NumPartitions < -1 {
			return nt, coded(kerr.InvalidPartitions, "Number of partitions was set to an invalid non-positive value.")
		}
		if t.ReplicationFactor == 0 || t.ReplicationFactor < -1 {
			return nt, coded(kerr.InvalidReplicationFactor, "Replication factor must be larger than 0, or -1 to use the default value.")
		}
	}
	nt.Configs = make(map[string]string, len(t.Configs))
	for _, c := range t.Configs {
		if c.Value == nil {
			return nt, coded(kerr.InvalidConfig, "Null value not supported for topic configs: "+c.Name)
		}
		nt.Configs[c.Name] = *c.Value
	}
	return nt, configError(config.ValidateTopic(nt.Configs, layers))
}

// createAssignments orders a manual assignment by partition: they are numbered from 0 without holes, in any order.
func createAssignments(in []kmsg.CreateTopicsRequestTopicReplicaAssignment) ([][]int32, error) {
	out := make([][]int32, len(in))
	for _, a := range in {
		if a.Partition < 0 || int(a.Partition) >= len(in) {
			return nil, coded(kerr.InvalidReplicaAssignment, "Partitions should be a consecutive 0-based integer sequence.")
		}
		if out[a.Partition] != nil {
			return nil, coded(kerr.InvalidReplicaAssignment, fmt.Sprintf("Found multiple assignments for partition %d.", a.Partition))
		}
		if len(a.Replicas) == 0 {
			return nil, coded(kerr.InvalidReplicaAssignment, fmt.Sprintf("The manual partition assignment includes an empty replica list for partition %d.", a.Partition))
		}
		out[a.Partition] = a.Replicas
	}
	return out, nil
}

// maxAdminWait bounds an admin request whatever the client says.
const maxAdminWait = 5 * time.Minute

// adminContext bounds a request by its own timeout. A fifth of it is kept for the answer's way: clients give up at the same
// moment. A timeout of zero or less asks to wait for nothing, and still the decision takes its time.
func (b *Broker) adminContext(ctx context.Context, millis int32) (context.Context, context.CancelFunc) {
	d := time.Duration(millis) * time.Millisecond * 4 / 5
	if millis <= 0 {
		d = b.cfg.RequestTimeout
	}
	return clock.WithTimeout(ctx, b.cfg.Clock, min(d, maxAdminWait))
}

// awaitTopics waits until every live node's image has reached index and every partition of the topics has a live leader, or
// ctx ends. A topic that is deleted meanwhile has nothing to wait for.
func (b *Broker) awaitTopics(ctx context.Context, index uint64, topics []string) {
	if len(topics) == 0 {
		return
	}
	// What had a leader is not looked at again: with thousands of topics each change would cost a walk through all.
	topic, part := 0, 0
	err := b.cfg.Cluster.Await(ctx, func() bool {
		img := b.cfg.Cluster.Image()
		if !b.imagesAt(img, index) {
			return false
		}
		for ; topic < len(topics); topic, part = topic+1, 0 {
			t := img.Topics[topics[topic]]
			for ; t != nil && part < len(t.Partitions); part++ {
				leader, _ := b.cfg.Cluster.Leader(t.Partitions[part].Group)
				if leader < 0 || !b.cfg.Cluster.Live(leader) {
					return false
				}
			}
		}
		return true
	})
	if err != nil {
		b.log.Warn("topics were created, but not every leader or node was ready in time",
			"topics", len(topics), "ready", topic, "index", index, "error", err)
	}
}

// imagesAt reports whether this node's image and every live node's has reached index.
func (b *Broker) imagesAt(img *metadata.Image, index uint64) bool {
	if img.Index < index {
		return false
	}
	for id := range img.Nodes {
		if b.cfg.Cluster.Live(id) && b.cfg.Cluster.ImageIndex(id) < index {
			return false
		}
	}
	return true
}

// awaitImages waits until every live node's image has reached index, or ctx ends.
func (b *Broker) awaitImages(ctx context.Context, index uint64) {
	err := b.cfg.Cluster.Await(ctx, func() bool { return b.imagesAt(b.cfg.Cluster.Image(), index) })
	if err != nil {
		b.log.Warn("a metadata change has not reached every live node in time", "index", index, "error", err)
	}
}

// refusal is an error as the wire has it, code and message for a person, and counts it; 0 and nil for nil.
func (b *Broker) refusal(rc *RequestContext, err error) (code int16, message *string) {
	if err == nil {
		return 0, nil
	}
	b.metrics.refusal(rc.Key, ErrorOf(err))
	return CodeOf(err), MessageOf(err)
}

var errShortResult = errors.New("the controller left a topic of the request unanswered")

// resultAt returns one topic's result, or its error.
func resultAt(results []controller.TopicResult, i int) (controller.TopicResult, error) {
	if i >= len(results) {
		return controller.TopicResult{}, errShortResult
	}
	return results[i], results[i].Err
}
