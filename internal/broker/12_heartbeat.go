package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group"
)

// Heartbeat (key 12), 0–4.
//
// v1  throttle time
// v3  static members (KIP-345)
// v4  flexible
//
// While a coordinator loads its groups it takes heartbeats on trust.

func handleHeartbeat(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.HeartbeatRequest)
	node, err := b.coordinator(rc, req.Group)
	if err == nil && node >= 0 {
		var resp kmsg.Response
		if resp, err = b.askCoordinator(ctx, rc, node, b.cfg.RequestTimeout, req); err == nil {
			return resp, nil
		}
	}
	if err == nil {
		beat := group.HeartbeatRequest{Group: req.Group, Generation: req.Generation, Member: req.MemberID, Instance: req.InstanceID}
		_, err = wait(b, ctx, b.cfg.RequestTimeout, func(done func(struct{}, error)) {
			b.cfg.Groups.Heartbeat(beat, func(err error) { done(struct{}{}, err) })
		})
	}
	resp := kmsg.NewPtrHeartbeatResponse()
	resp.ErrorCode, _ = b.refusal(rc, err)
	return resp, nil
}
