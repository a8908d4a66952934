package broker

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group"
)

// JoinGroup (key 11), 0–9.
//
// v1  rebalance timeout (KIP-62)
// v2  throttle time
// v4  a new member gets an id first and joins with that (KIP-394)
// v5  static members (KIP-345)
// v6  flexible
// v7  protocol type in the answer, null names in errors
// v8  reason (KIP-800)
// v9  a static leader that comes back need not assign again (KIP-814)
//
// The answer comes when the generation begins and is committed, which takes up to the members' rebalance timeout.

// joinBound bounds the wait for a generation: far above what a coordinator takes, which ends every rebalance by itself.
func joinBound(rebalance int32) time.Duration {
	return 2*time.Duration(max(rebalance, 0))*time.Millisecond + 15*time.Minute
}

func handleJoinGroup(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.JoinGroupRequest)
	bound := joinBound(req.RebalanceTimeoutMillis)
	node, err := b.coordinator(rc, req.Group)
	if err == nil && node >= 0 {
		var resp kmsg.Response
		if resp, err = b.askCoordinator(ctx, rc, node, bound, req); err == nil {
			return resp, nil
		}
	}
	result := group.JoinResult{Generation: -1}
	if err == nil {
		join := group.JoinRequest{
			Group: req.Group, Member: req.MemberID, Instance: req.InstanceID, ClientID: clientID(rc), ClientHost: clientHost(rc),
			SessionTimeout: req.SessionTimeoutMillis, RebalanceTimeout: req.RebalanceTimeoutMillis, ProtocolType: req.ProtocolType,
			RequireMemberID: rc.Version >= 4, CanSkipAssignment: rc.Version >= 9,
		}
		if rc.Version < 1 {
			join.RebalanceTimeout = -1
		}
		for _, p := range req.Protocols {
			join.Protocols = append(join.Protocols, group.Protocol{Name: p.Name, Metadata: p.Metadata})
		}
		result, err = wait(b, ctx, bound, func(done func(group.JoinResult, error)) { b.cfg.Groups.Join(join, done) })
		if err != nil {
			result.Generation = -1
		}
	}
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.ErrorCode, _ = b.refusal(rc, err)
	resp.Generation, resp.LeaderID, resp.MemberID, resp.SkipAssignment = result.Generation, result.Leader, result.Member, result.SkipAssignment
	resp.Protocol = nullSince(rc, 7, result.Protocol)
	if result.ProtocolType != "" {
		resp.ProtocolType = &result.ProtocolType
	}
	resp.Members = make([]kmsg.JoinGroupResponseMember, 0, len(result.Members))
	for _, m := range result.Members {
		out := kmsg.NewJoinGroupResponseMember()
		out.MemberID, out.InstanceID, out.ProtocolMetadata = m.ID, m.Instance, m.Metadata
		resp.Members = append(resp.Members, out)
	}
	return resp, nil
}
