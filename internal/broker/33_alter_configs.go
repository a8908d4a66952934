package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/controller"
)

// AlterConfigs (key 33), 0–2. KIP-133; superseded by IncrementalAlterConfigs.
//
// v1  as v0
// v2  flexible
//
// What is named becomes the whole of what is set on the resource: everything else returns to its default. A null value is a
// bad request (42).

func handleAlterConfigs(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.AlterConfigsRequest)
	resp := req.ResponseKind().(*kmsg.AlterConfigsResponse)
	changes := make([]alteration, len(req.Resources))
	for i := range req.Resources {
		in := &req.Resources[i]
		a := &changes[i]
		a.kind, a.name, a.replace = in.ResourceType, in.ResourceName, true
		for _, c := range in.Configs {
			a.edits = append(a.edits, controller.ConfigEdit{Op: controller.OpSet, Key: c.Name, Value: c.Value})
		}
	}
	for i, err := range b.alterConfigs(ctx, changes, req.ValidateOnly) {
		out := kmsg.NewAlterConfigsResponseResource()
		out.ResourceType, out.ResourceName = changes[i].kind, changes[i].name
		out.ErrorCode, out.ErrorMessage = b.refusal(rc, err)
		resp.Resources = append(resp.Resources, out)
	}
	return resp, nil
}
