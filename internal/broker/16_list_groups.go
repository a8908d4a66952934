package broker

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group"
)

// ListGroups (key 16), 0–5.
//
// v1  throttle time
// v3  flexible
// v4  by states (KIP-518)
// v5  by types (KIP-848)
//
// A node lists the groups that it coordinates; in one-address mode it asks all the others for theirs.

func handleListGroups(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ListGroupsRequest)
	resp := kmsg.NewPtrListGroupsResponse()
	resp.Groups = []kmsg.ListGroupsResponseGroup{}
	if b.cfg.Groups == nil {
		resp.ErrorCode, _ = b.refusal(rc, group.ErrNotAvailable)
		return resp, nil
	}
	list, err := b.cfg.Groups.List(req.StatesFilter, req.TypesFilter)
	if err != nil {
		resp.ErrorCode, _ = b.refusal(rc, err)
		return resp, nil
	}
	for _, l := range list {
		out := kmsg.NewListGroupsResponseGroup()
		out.Group, out.ProtocolType, out.GroupState, out.GroupType = l.ID, l.ProtocolType, l.State, l.Type
		resp.Groups = append(resp.Groups, out)
	}
	if rc.Mode.OneAddress && !rc.FromPeer {
		b.listOthers(ctx, rc, req, resp)
	}
	return resp, nil
}

// listOthers adds what the other nodes coordinate. One that can't be asked makes the list an error: it would be short.
func (b *Broker) listOthers(ctx context.Context, rc *RequestContext, req *kmsg.ListGroupsRequest, resp *kmsg.ListGroupsResponse) {
	img := b.cfg.Cluster.Image()
	others := slices.DeleteFunc(slices.Sorted(maps.Keys(img.Nodes)), func(id int32) bool { return id == b.cfg.Cluster.NodeID() || !b.cfg.Cluster.Live(id) })
	answers := make([]*kmsg.ListGroupsResponse, len(others))
	errs := make([]error, len(others))
	var work []func()
	for i, node := range others {
		work = append(work, func() {
			answer, err := b.askCoordinator(ctx, rc, node, b.cfg.RequestTimeout, req)
			if errs[i] = err; err == nil {
				answers[i] = answer.(*kmsg.ListGroupsResponse)
			}
		})
	}
	inParallel(b.cfg.Clock, work, lookups)
	for i := range others {
		switch {
		case errs[i] != nil:
			resp.ErrorCode, _ = b.refusal(rc, group.ErrNotAvailable)
			resp.Groups = []kmsg.ListGroupsResponseGroup{}
			return
		case answers[i].ErrorCode != 0:
			resp.ErrorCode, resp.Groups = answers[i].ErrorCode, []kmsg.ListGroupsResponseGroup{}
			return
		}
		resp.Groups = append(resp.Groups, answers[i].Groups...)
	}
	slices.SortFunc(resp.Groups, func(x, y kmsg.ListGroupsResponseGroup) int { return cmp.Compare(x.Group, y.Group) })
}
