package broker

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
)

// Metadata (key 3), 0–13.
//
// v0   no topics named means all; from v1 null does, and none means none; replicas that can't be reached are left out, with error 9
// v1   controller, rack, internal
// v2   cluster id
// v4   auto-creation is the client's choice; before, it is allowed
// v5   offline replicas
// v7   leader epochs (KIP-320)
// v8   authorized operations (KIP-430); those of the cluster until v10
// v9   flexible
// v10  topic ids (KIP-516), asked by from v12
// v13  an error at the top (KIP-1102)
//
// A leader that is named is in brokers; where there is none it is -1 with error 5. In one-address mode this node is the only
// broker and leads everything.
//
// Auto-creation waits briefly, so that the answer is complete, and so does who asks for a topic that was made a moment ago: Kafka
// answers 3, or 5, and lets the client come again.

// Operations as bits of authorized_operations (KIP-430), of a cluster without an authorizer: all that apply.
const (
	topicOperations   = 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<11
	clusterOperations = 1<<5 | 1<<7 | 1<<8 | 1<<9 | 1<<10 | 1<<11 | 1<<12
	// operationsNotAsked is what is said to who did not ask.
	operationsNotAsked = -2147483648
)

func handleMetadata(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.MetadataRequest)
	all := req.Topics == nil || rc.Version == 0 && len(req.Topics) == 0
	created := map[string]error{}
	if b.cfg.AutoCreateTopics && !all && (rc.Version < 4 || req.AllowAutoTopicCreation) {
		created = b.autoCreate(ctx, req)
	}

	img := b.cfg.Cluster.Image()
	asked, size := askedOnce(img, req, all)
	if err := b.reserve(ctx, rc, size); err != nil {
		return nil, err
	}
	if len(created) == 0 {
		b.awaitFresh(ctx, rc, topicsWanted(img, req, all, asked))
	}
	resp := kmsg.NewPtrMetadataResponse()
	resp.AuthorizedOperations = operationsNotAsked
	if req.IncludeClusterAuthorizedOperations {
		resp.AuthorizedOperations = clusterOperations
	}
	if img.ClusterID != "" {
		resp.ClusterID = &img.ClusterID
	}
	resp.ControllerID = b.adminController(img, rc.Mode)
	resp.Brokers = b.brokers(img, rc.Mode)
	resp.Topics = []kmsg.MetadataResponseTopic{}
	if all {
		for _, name := range slices.Sorted(maps.Keys(img.Topics)) {
			if name != metadata.MetadataTopic {
				resp.Topics = append(resp.Topics, b.metadataTopic(img, rc, img.Topics[name], req.IncludeTopicAuthorizedOperations))
			}
		}
		return resp, nil
	}
	for _, i := range asked {
		t, missing := b.askedTopic(img, &req.Topics[i], created)
		if t == nil {
			b.metrics.refusal(rc.Key, kerr.ErrorForCode(missing.ErrorCode).(*kerr.Error))
			resp.Topics = append(resp.Topics, missing)
			continue
		}
		resp.Topics = append(resp.Topics, b.metadataTopic(img, rc, t, req.IncludeTopicAuthorizedOperations))
	}
	return resp, nil
}

// askedKey is how a topic is asked for.
type askedKey struct {
	name string
	id   [16]byte
	null bool
}

func keyOfAsked(rt *kmsg.MetadataRequestTopic) askedKey {
	if rt.Topic == nil {
		return askedKey{id: rt.TopicID, null: true}
	}
	return askedKey{name: *rt.Topic, id: rt.TopicID}
}

// What an answer takes: a topic, a partition with its replicas, both decoded and encoded.
const (
	topicBytes     = 250
	partitionBytes = 250
)

// askedOnce lists the topics asked for, each once however often it is named, and estimates what the answer takes.
func askedOnce(img *metadata.Image, req *kmsg.MetadataRequest, all bool) (asked []int, size int64) {
	count := func(t *metadata.Topic) {
		size += topicBytes
		if t != nil {
			size += partitionBytes * int64(len(t.Partitions))
		}
	}
	if all {
		for _, t := range img.Topics {
			count(t)
		}
		return nil, size
	}
	seen := make(map[askedKey]bool, len(req.Topics))
	for i := range req.Topics {
		rt := &req.Topics[i]
		k := keyOfAsked(rt)
		if seen[k] {
			continue // one answer for what is asked twice
		}
		seen[k] = true
		t := img.TopicsByID[rt.TopicID]
		if t == nil {
			t = img.Topics[k.name]
		}
		asked = append(asked, i)
		count(t)
	}
	return asked, size
}

// topicsWanted are the topics of a request that there are, sorted by name if all are asked for.
func topicsWanted(img *metadata.Image, req *kmsg.MetadataRequest, all bool, asked []int) []*metadata.Topic {
	var out []*metadata.Topic
	if all {
		for _, name := range slices.Sorted(maps.Keys(img.Topics)) {
			out = append(out, img.Topics[name])
		}
	}
	for _, i := range asked {
		rt := &req.Topics[i]
		t := img.TopicsByID[rt.TopicID]
		if t == nil && rt.Topic != nil {
			t = img.Topics[*rt.Topic]
		}
		if t != nil {
			out = append(out, t)
		}
	}
	return slices.DeleteFunc(out, func(t *metadata.Topic) bool { return t.Name == metadata.MetadataTopic })
}

// askedTopic finds a topic that was asked for, or says why not.
func (b *Broker) askedTopic(img *metadata.Image, rt *kmsg.MetadataRequestTopic, created map[string]error) (*metadata.Topic, kmsg.MetadataResponseTopic) {
	missing := kmsg.NewMetadataResponseTopic()
	missing.Topic, missing.TopicID = rt.Topic, rt.TopicID
	missing.Partitions = []kmsg.MetadataResponseTopicPartition{}
	missing.AuthorizedOperations = operationsNotAsked
	if rt.TopicID != ([16]byte{}) {
		if t := img.TopicsByID[rt.TopicID]; t != nil && t.Name != metadata.MetadataTopic {
			return t, missing
		}
		missing.ErrorCode = kerr.UnknownTopicID.Code
		return nil, missing
	}
	if rt.Topic == nil {
		missing.Topic = kmsg.StringPtr("")
		missing.ErrorCode = kerr.InvalidRequest.Code
		return nil, missing
	}
	if t := img.Topics[*rt.Topic]; t != nil && t.Name != metadata.MetadataTopic {
		return t, missing
	}
	err, tried := created[*rt.Topic]
	switch {
	case !tried && controller.CheckTopicName(*rt.Topic) != nil:
		missing.ErrorCode = kerr.InvalidTopicException.Code
	case !tried:
		missing.ErrorCode = kerr.UnknownTopicOrPartition.Code
	case errors.Is(err, controller.ErrInvalidTopic), errors.Is(err, controller.ErrInvalidReplicationFactor), errors.Is(err, controller.ErrPolicy),
		errors.Is(err, controller.ErrInvalidPartitions), errors.Is(err, controller.ErrInvalidConfig), errors.Is(err, controller.ErrInvalidRequest):
		missing.ErrorCode = CodeOf(err) // asking again won't help
	default:
		missing.ErrorCode = kerr.LeaderNotAvailable.Code // it is on its way
	}
	return nil, missing
}

// autoCreate creates what is asked for by name and missing, in one decision, and waits briefly for leaders. It returns what
// became of each.
func (b *Broker) autoCreate(ctx context.Context, req *kmsg.MetadataRequest) map[string]error {
	img := b.cfg.Cluster.Image()
	tried := map[string]error{}
	var topics []controller.NewTopic
	for i := range req.Topics {
		rt := &req.Topics[i]
		if rt.TopicID != ([16]byte{}) || rt.Topic == nil || img.Topics[*rt.Topic] != nil || *rt.Topic == metadata.MetadataTopic {
			continue
		}
		if _, twice := tried[*rt.Topic]; twice {
			continue
		}
		tried[*rt.Topic] = nil
		topics = append(topics, controller.NewTopic{Name: *rt.Topic, Partitions: -1, ReplicationFactor: -1})
	}
	if len(topics) == 0 {
		return tried
	}
	ctx, cancel := clock.WithTimeout(ctx, b.cfg.Clock, b.cfg.AutoCreateWait)
	defer cancel()
	var await []string
	for _, r := range b.cfg.Controller.CreateTopics(ctx, topics, false) {
		tried[r.Name] = r.Err
		if r.Err == nil || errors.Is(r.Err, controller.ErrTopicExists) {
			await = append(await, r.Name)
		} else {
			b.log.Warn("topic not auto-created", "topic", r.Name, "error", r.Err)
		}
	}
	// Late is no error: the answer then says 5 for what has no leader yet.
	_ = b.cfg.Cluster.Await(ctx, func() bool { return b.led(await) })
	return tried
}

// led says whether every partition of the topics has a leader that clients can be sent to.
func (b *Broker) led(names []string) bool {
	img := b.cfg.Cluster.Image()
	for _, name := range names {
		t := img.Topics[name]
		if t == nil {
			return false
		}
		for _, p := range t.Partitions {
			if node, _ := b.leaderNamed(img, p.Group); node < 0 {
				return false
			}
		}
	}
	return true
}

// leaderNamed is the leader of a group if it is a broker that clients are told of; else -1. The epoch is the last known.
func (b *Broker) leaderNamed(img *metadata.Image, group uint64) (node, epoch int32) {
	node, epoch = b.cfg.Cluster.Leader(group)
	if node < 0 || img.Nodes[node] == nil || !b.cfg.Cluster.Live(node) {
		return -1, epoch
	}
	return node, epoch
}

// brokers lists the live nodes by id; in one-address mode this one.
func (b *Broker) brokers(img *metadata.Image, mode ListenerConfig) []kmsg.MetadataResponseBroker {
	out := []kmsg.MetadataResponseBroker{}
	add := func(id int32, host string, port int32, rack *string) {
		n := kmsg.NewMetadataResponseBroker()
		n.NodeID, n.Host, n.Port, n.Rack = id, host, port, rack
		out = append(out, n)
	}
	self := b.cfg.Cluster.NodeID()
	if mode.OneAddress {
		add(self, mode.Host, mode.Port, nil)
		return out
	}
	for _, id := range slices.Sorted(maps.Keys(img.Nodes)) {
		if n := img.Nodes[id]; b.cfg.Cluster.Live(id) {
			add(id, n.KafkaHost, n.KafkaPort, hintRack(n))
		}
	}
	return out
}

func (b *Broker) metadataTopic(img *metadata.Image, rc *RequestContext, t *metadata.Topic, operations bool) kmsg.MetadataResponseTopic {
	out := kmsg.NewMetadataResponseTopic()
	out.Topic, out.TopicID, out.IsInternal = &t.Name, t.ID, t.Internal
	out.AuthorizedOperations = operationsNotAsked
	if operations {
		out.AuthorizedOperations = topicOperations
	}
	out.Partitions = make([]kmsg.MetadataResponseTopicPartition, len(t.Partitions))
	for i, p := range t.Partitions {
		b.metadataPartition(img, rc, p, &out.Partitions[i])
	}
	return out
}

func (b *Broker) metadataPartition(img *metadata.Image, rc *RequestContext, p *metadata.Partition, out *kmsg.MetadataResponseTopicPartition) {
	out.Default()
	out.Partition = p.Index
	node, epoch := b.leaderNamed(img, p.Group)
	out.LeaderEpoch = epoch
	out.ISR, out.OfflineReplicas = []int32{}, []int32{}
	if rc.Mode.OneAddress {
		self := b.cfg.Cluster.NodeID()
		// The epoch of a leader that is being elected is the last one known: this node proxies to whoever it will be.
		out.Leader, out.Replicas, out.ISR = self, []int32{self}, []int32{self}
		return
	}
	out.Leader = node
	if node < 0 {
		out.ErrorCode = kerr.LeaderNotAvailable.Code
	}
	b.replicaLists(img, p, &out.Replicas, &out.ISR, &out.OfflineReplicas)
	if rc.Version == 0 && len(out.OfflineReplicas) > 0 { // it has no list of those
		out.Replicas = slices.DeleteFunc(out.Replicas, func(r int32) bool { return slices.Contains(out.OfflineReplicas, r) })
		if node >= 0 {
			out.ErrorCode = kerr.ReplicaNotAvailable.Code
		}
	}
}

// replicaLists fills in where a partition's replicas are. During a reassignment those that are added are replicas that are not
// in sync, and those that go are still listed, as in Kafka.
func (b *Broker) replicaLists(img *metadata.Image, p *metadata.Partition, replicas, isr, offline *[]int32) {
	adding, _ := p.Moves()
	for _, node := range p.Nodes() {
		*replicas = append(*replicas, node)
		switch {
		case img.Nodes[node] == nil || !b.cfg.Cluster.Live(node):
			*offline = append(*offline, node)
		case !slices.Contains(adding, node):
			*isr = append(*isr, node)
		}
	}
}
