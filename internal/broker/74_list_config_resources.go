package broker

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ListConfigResources (key 74), 0–1. KIP-714, KIP-1142.
//
// v0  client metrics alone, of which there are none
// v1  by type; no types named means all that there are: topics, brokers, and groups on which something is set
//
// A type that is Kafka's and has no configs here (broker loggers, client metrics) is listed empty; one that nobody knows is refused.

func handleListConfigResources(b *Broker, _ context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ListConfigResourcesRequest)
	resp := req.ResponseKind().(*kmsg.ListConfigResourcesResponse)
	if rc.Version < 1 {
		return resp, nil
	}
	types := req.ResourceTypes
	if len(types) == 0 {
		types = []int8{int8(kmsg.ConfigResourceTypeTopic), int8(kmsg.ConfigResourceTypeBroker), int8(kmsg.ConfigResourceTypeGroupConfig)}
	}
	img := b.cfg.Cluster.Image()
	add := func(t int8, name string) {
		c := kmsg.NewListConfigResourcesResponseConfigResource()
		c.Name, c.Type = name, t
		resp.ConfigResources = append(resp.ConfigResources, c)
	}
	slices.Sort(types)
	for _, t := range slices.Compact(types) {
		switch kmsg.ConfigResourceType(t) {
		case kmsg.ConfigResourceTypeTopic:
			for _, name := range slices.Sorted(maps.Keys(img.Topics)) {
				add(t, name)
			}
		case kmsg.ConfigResourceTypeBroker:
			for _, n := range sortedNodes(img) {
				add(t, strconv.Itoa(int(n.ID)))
			}
		case kmsg.ConfigResourceTypeGroupConfig:
			for _, name := range slices.Sorted(maps.Keys(img.GroupConfigs)) {
				add(t, name)
			}
		case kmsg.ConfigResourceTypeBrokerLogger, kmsg.ConfigResourceTypeClientMetrics:
		default:
			resp.ConfigResources = nil
			resp.ErrorCode, _ = b.refusal(rc, kerr.UnsupportedVersion)
			return resp, nil
		}
	}
	return resp, nil
}
