package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// DeleteGroups (key 42), 0–2. KIP-229.
//
// v1  as v0
// v2  flexible

func handleDeleteGroups(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DeleteGroupsRequest)
	resp := kmsg.NewPtrDeleteGroupsResponse()
	resp.Groups = make([]kmsg.DeleteGroupsResponseGroup, len(req.Groups))
	b.eachGroup(req.Groups, func(i int, id string) { b.deleteGroup(ctx, rc, id, &resp.Groups[i]) })
	return resp, nil
}

func (b *Broker) deleteGroup(ctx context.Context, rc *RequestContext, id string, out *kmsg.DeleteGroupsResponseGroup) {
	out.Default()
	out.Group = id
	ask := kmsg.NewPtrDeleteGroupsRequest()
	ask.Groups = []string{id}
	got, answered, err := fromCoordinator(b, ctx, rc, id, ask, func(r kmsg.Response) []kmsg.DeleteGroupsResponseGroup { return r.(*kmsg.DeleteGroupsResponse).Groups })
	if answered {
		*out = got
		return
	}
	if err == nil {
		_, err = wait(b, ctx, b.cfg.RequestTimeout, func(done func(struct{}, error)) {
			b.cfg.Groups.Delete(id, func(err error) { done(struct{}{}, err) })
		})
	}
	out.ErrorCode, _ = b.refusal(rc, err)
}
