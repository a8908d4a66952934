package broker

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/controller"
)

// UnregisterBroker (key 64), 0. KIP-500.
//
// It removes a node that has stopped from the cluster for good. Unlike Kafka it refuses while the node runs or holds replicas: a
// replica counts in its partition's majority until it has been moved elsewhere.

func handleUnregisterBroker(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.UnregisterBrokerRequest)
	resp := req.ResponseKind().(*kmsg.UnregisterBrokerResponse)
	ctx, cancel := b.adminContext(ctx, 0)
	defer cancel()
	err := b.cfg.Controller.RemoveNode(ctx, req.BrokerID)
	if errors.Is(err, controller.ErrUnknownNode) {
		err = coded(kerr.BrokerIDNotRegistered, err.Error())
	}
	resp.ErrorCode, resp.ErrorMessage = b.refusal(rc, err)
	return resp, nil
}
