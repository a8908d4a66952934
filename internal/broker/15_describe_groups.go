package broker

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group"
)

// DescribeGroups (key 15), 0–6.
//
// v1  throttle time
// v3  authorized operations (KIP-430)
// v4  static members (KIP-345)
// v5  flexible
// v6  a group that is not there is error 69 with a message (KIP-1043); before it is "Dead", without an error

func handleDescribeGroups(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DescribeGroupsRequest)
	resp := kmsg.NewPtrDescribeGroupsResponse()
	groups := namedOnce(req.Groups)
	resp.Groups = make([]kmsg.DescribeGroupsResponseGroup, len(groups))
	b.eachGroup(groups, func(i int, id string) { b.describeGroup(ctx, rc, id, req.IncludeAuthorizedOperations, &resp.Groups[i]) })
	size := int64(0)
	for i := range resp.Groups {
		for j := range resp.Groups[i].Members {
			m := &resp.Groups[i].Members[j]
			size += int64(len(m.MemberID) + len(m.ClientID) + len(m.ProtocolMetadata) + len(m.MemberAssignment))
		}
	}
	return resp, b.reserveAnswer(ctx, rc, size)
}

func (b *Broker) describeGroup(ctx context.Context, rc *RequestContext, id string, operations bool, out *kmsg.DescribeGroupsResponseGroup) {
	out.Default()
	out.Group, out.Members = id, []kmsg.DescribeGroupsResponseGroupMember{}
	out.AuthorizedOperations = operationsNotAsked
	ask := kmsg.NewPtrDescribeGroupsRequest()
	ask.Groups, ask.IncludeAuthorizedOperations = []string{id}, operations
	got, answered, err := fromCoordinator(b, ctx, rc, id, ask, func(r kmsg.Response) []kmsg.DescribeGroupsResponseGroup {
		return r.(*kmsg.DescribeGroupsResponse).Groups
	})
	if answered {
		*out = got
		return
	}
	var d group.Description
	if err == nil {
		d, err = wait(b, ctx, b.cfg.RequestTimeout, func(done func(group.Description, error)) { b.cfg.Groups.Describe(id, done) })
	}
	if ErrorOf(err) == kerr.GroupIDNotFound {
		out.State = group.Dead.String()
		if rc.Version < 6 {
			err = nil
		} else {
			err = coded(kerr.GroupIDNotFound, fmt.Sprintf("Group %s not found.", id))
		}
	}
	if err != nil {
		out.ErrorCode, out.ErrorMessage = b.undescribed(rc, err)
		return
	}
	if operations {
		out.AuthorizedOperations = groupOperations
	}
	out.State, out.ProtocolType, out.Protocol = d.State.String(), d.ProtocolType, d.Protocol
	for _, m := range d.Members {
		om := kmsg.NewDescribeGroupsResponseGroupMember()
		om.MemberID, om.InstanceID, om.ClientID, om.ClientHost = m.ID, m.Instance, m.ClientID, m.ClientHost
		om.ProtocolMetadata, om.MemberAssignment = m.Metadata, m.Assignment
		out.Members = append(out.Members, om)
	}
}
