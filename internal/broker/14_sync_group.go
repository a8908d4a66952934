package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group"
)

// SyncGroup (key 14), 0–5.
//
// v1  throttle time
// v3  static members (KIP-345)
// v4  flexible
// v5  protocol type and name, checked against the group's (KIP-559)
//
// The answer comes when the leader's assignment is committed.

func handleSyncGroup(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.SyncGroupRequest)
	bound := joinBound(0)
	node, err := b.coordinator(rc, req.Group)
	if err == nil && node >= 0 {
		var resp kmsg.Response
		if resp, err = b.askCoordinator(ctx, rc, node, bound, req); err == nil {
			return resp, nil
		}
	}
	var result group.SyncResult
	if err == nil {
		sync := group.SyncRequest{Group: req.Group, Generation: req.Generation, Member: req.MemberID, Instance: req.InstanceID,
			ProtocolType: req.ProtocolType, Protocol: req.Protocol}
		for _, a := range req.GroupAssignment {
			sync.Assignments = append(sync.Assignments, group.Assignment{Member: a.MemberID, Data: a.MemberAssignment})
		}
		result, err = wait(b, ctx, bound, func(done func(group.SyncResult, error)) { b.cfg.Groups.Sync(sync, done) })
	}
	resp := kmsg.NewPtrSyncGroupResponse()
	resp.MemberAssignment = []byte{}
	if err != nil {
		resp.ErrorCode, _ = b.refusal(rc, err)
		return resp, nil
	}
	resp.ProtocolType, resp.Protocol = &result.ProtocolType, &result.Protocol
	if result.Assignment != nil {
		resp.MemberAssignment = result.Assignment
	}
	return resp, nil
}
