package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/metadata"
)

// FindCoordinator (key 10), 0–6.
//
// v1  key type, error message
// v3  flexible
// v4  many keys, an error each (KIP-699)
// v5  as v4 (KIP-890); v6 share groups (KIP-932)
//
// A group's coordinator leads its partition of __consumer_offsets. The first question creates that topic and waits a little for
// its leaders; where they are late the answer is "not available" (15), which clients retry. In one-address mode it is always
// this node, which proxies.
//
// A transactional id gets a fatal answer (35): at 15 a Java producer would ask until its max.block.ms ran out.

// Key types.
const (
	coordinatorGroup       = 0
	coordinatorTransaction = 1
)

func handleFindCoordinator(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.FindCoordinatorRequest)
	resp := kmsg.NewPtrFindCoordinatorResponse()
	keys := req.CoordinatorKeys
	if rc.Version < 4 {
		keys = []string{req.CoordinatorKey}
	}
	err := error(nil)
	switch req.CoordinatorType {
	case coordinatorGroup:
		waiting, cancel := clock.WithTimeout(ctx, b.cfg.Clock, b.cfg.AutoCreateWait)
		defer cancel()
		if err = b.ensureOffsetsTopic(waiting); err == nil {
			_ = b.cfg.Cluster.Await(waiting, func() bool { return b.coordinatorsKnown(keys) })
		}
	case coordinatorTransaction:
		err = coded(kerr.UnsupportedVersion, "transactions are not supported yet")
	default:
		err = coded(kerr.InvalidRequest, "unknown coordinator key type")
	}
	found := make([]kmsg.FindCoordinatorResponseCoordinator, len(keys))
	for i, key := range keys {
		b.findCoordinator(rc, key, err, &found[i])
	}
	if rc.Version >= 4 {
		resp.Coordinators = found
		return resp, nil
	}
	c := &found[0]
	resp.ErrorCode, resp.ErrorMessage, resp.NodeID, resp.Host, resp.Port = c.ErrorCode, c.ErrorMessage, c.NodeID, c.Host, c.Port
	return resp, nil
}

func (b *Broker) findCoordinator(rc *RequestContext, key string, err error, out *kmsg.FindCoordinatorResponseCoordinator) {
	out.Default()
	out.Key, out.NodeID, out.Port = key, -1, -1
	img := b.cfg.Cluster.Image()
	node := int32(-1)
	if err == nil {
		if node = b.coordinatorNode(img, key); node < 0 {
			err = coded(kerr.CoordinatorNotAvailable, kerr.CoordinatorNotAvailable.Description)
		}
	}
	if err != nil {
		out.ErrorCode, out.ErrorMessage = b.refusal(rc, err)
		return
	}
	out.ErrorMessage = kmsg.StringPtr("")
	if rc.Version < 4 {
		out.ErrorMessage = kmsg.StringPtr("NONE") // as Kafka says it
	}
	if rc.Mode.OneAddress {
		out.NodeID, out.Host, out.Port = b.cfg.Cluster.NodeID(), rc.Mode.Host, rc.Mode.Port
		return
	}
	n := img.Nodes[node]
	out.NodeID, out.Host, out.Port = n.ID, n.KafkaHost, n.KafkaPort
}

// coordinatorNode is the live node that leads a group's partition, -1 if there is none at the moment.
func (b *Broker) coordinatorNode(img *metadata.Image, id string) int32 {
	t := img.Topics[group.Topic]
	if t == nil || len(t.Partitions) == 0 {
		return -1
	}
	node, _ := b.leaderNamed(img, t.Partitions[group.PartitionOf(id, int32(len(t.Partitions)))].Group)
	return node
}

func (b *Broker) coordinatorsKnown(keys []string) bool {
	img := b.cfg.Cluster.Image()
	for _, k := range keys {
		if b.coordinatorNode(img, k) < 0 {
			return false
		}
	}
	return true
}
