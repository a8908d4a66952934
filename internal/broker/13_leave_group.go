package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group"
)

// LeaveGroup (key 13), 0–5.
//
// v1  throttle time
// v3  many members, an error each (KIP-345)
// v4  flexible
// v5  reason (KIP-800)

func handleLeaveGroup(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.LeaveGroupRequest)
	node, err := b.coordinator(rc, req.Group)
	if err == nil && node >= 0 {
		var resp kmsg.Response
		if resp, err = b.askCoordinator(ctx, rc, node, b.cfg.RequestTimeout, req); err == nil {
			return resp, nil
		}
	}
	members := []group.LeaveMember{{Member: req.MemberID}}
	if rc.Version >= 3 {
		members = members[:0]
		for _, m := range req.Members {
			members = append(members, group.LeaveMember{Member: m.MemberID, Instance: m.InstanceID})
		}
	}
	var each []error
	if err == nil {
		each, err = wait(b, ctx, b.cfg.RequestTimeout, func(done func([]error, error)) { b.cfg.Groups.Leave(req.Group, members, done) })
	}
	resp := kmsg.NewPtrLeaveGroupResponse()
	resp.Members = []kmsg.LeaveGroupResponseMember{}
	switch {
	case err != nil:
		resp.ErrorCode, _ = b.refusal(rc, err)
	case rc.Version < 3:
		resp.ErrorCode, _ = b.refusal(rc, each[0])
	default:
		for i, m := range members {
			out := kmsg.NewLeaveGroupResponseMember()
			out.MemberID, out.InstanceID = m.Member, m.Instance
			out.ErrorCode, _ = b.refusal(rc, each[i])
			resp.Members = append(resp.Members, out)
		}
	}
	return resp, nil
}
