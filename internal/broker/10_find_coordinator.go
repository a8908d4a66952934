package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// FindCoordinator (key 10), 0–6.
//
// v1  key type, error message
// v3  flexible
// v4  many keys, an error each (KIP-699)
// v5  as v4 (KIP-890); v6 share groups (KIP-932)
//
// Groups don't exist yet: their coordinator is not available (15), which clients retry. It is served at all because
// librdkafka sends lz4 only to a broker that has it. A transactional id gets a fatal answer (35): at 15 a Java producer would
// ask until its max.block.ms ran out.

// Key types.
const (
	coordinatorGroup       = 0
	coordinatorTransaction = 1
	coordinatorShare       = 2
)

func handleFindCoordinator(b *Broker, _ context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.FindCoordinatorRequest)
	resp := kmsg.NewPtrFindCoordinatorResponse()
	k, message := kerr.CoordinatorNotAvailable, "consumer groups are not served yet"
	switch {
	case req.CoordinatorType == coordinatorTransaction:
		k, message = kerr.UnsupportedVersion, "transactions are not supported yet"
	case req.CoordinatorType == coordinatorGroup, req.CoordinatorType == coordinatorShare && rc.Version >= 6:
	default:
		k, message = kerr.InvalidRequest, "unknown coordinator key type"
	}
	b.metrics.refusal(rc.Key, k)
	if rc.Version < 4 {
		resp.ErrorCode, resp.ErrorMessage = k.Code, &message
		resp.NodeID, resp.Host, resp.Port = -1, "", -1
		return resp, nil
	}
	resp.Coordinators = []kmsg.FindCoordinatorResponseCoordinator{}
	for _, key := range req.CoordinatorKeys {
		c := kmsg.NewFindCoordinatorResponseCoordinator()
		c.Key, c.NodeID, c.Host, c.Port, c.ErrorCode, c.ErrorMessage = key, -1, "", -1, k.Code, &message
		resp.Coordinators = append(resp.Coordinators, c)
	}
	return resp, nil
}
