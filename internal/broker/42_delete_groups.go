package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
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
	var work []func()
	for i, id := range req.Groups {
		work = append(work, func() { b.deleteGroup(ctx, rc, id, &resp.Groups[i]) })
	}
	inParallel(b.cfg.Clock, work, lookups)
	return resp, nil
}

func (b *Broker) deleteGroup(ctx context.Context, rc *RequestContext, id string, out *kmsg.DeleteGroupsResponseGroup) {
	out.Default()
	out.Group = id
	node, err := b.coordinator(rc, id)
	if err == nil && node >= 0 {
		ask := kmsg.NewPtrDeleteGroupsRequest()
		ask.SetVersion(rc.Version)
		ask.Groups = []string{id}
		var answer kmsg.Response
		if answer, err = b.askCoordinator(ctx, rc, node, b.cfg.RequestTimeout, ask); err == nil {
			if got := answer.(*kmsg.DeleteGroupsResponse); len(got.Groups) == 1 {
				*out = got.Groups[0]
				return
			}
			err = kerr.UnknownServerError
		}
	}
	if err == nil {
		_, err = wait(b, ctx, b.cfg.RequestTimeout, func(done func(struct{}, error)) {
			b.cfg.Groups.Delete(id, func(err error) { done(struct{}{}, err) })
		})
	}
	out.ErrorCode, _ = b.refusal(rc, err)
}
