package broker

import (
	"maps"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

func TestAlterConfigsReplacesEverything(t *testing.T) {
	everyVersion(t, 33, func(t *testing.T, v int16) {
		c := newAdminCluster()
		c.edit(func(img *metadata.Image) {
			c.addTopic(img, "a", 1, 1).Configs = map[string]string{"retention.ms": "5", "retention.bytes": "6"}
			c.addTopic(img, "b", 1, 1).Configs = map[string]string{"retention.ms": "5"}
		})
		resource := func(typ kmsg.ConfigResourceType, name string, kv ...string) kmsg.AlterConfigsRequestResource {
			r := kmsg.AlterConfigsRequestResource{ResourceType: typ, ResourceName: name}
			for i := 0; i+1 < len(kv); i += 2 {
				r.Configs = append(r.Configs, kmsg.AlterConfigsRequestResourceConfig{Name: kv[i], Value: nullable(kv[i+1])})
			}
			return r
		}
		req := kmsg.NewPtrAlterConfigsRequest()
		req.Resources = append(req.Resources, resource(2, "a", "segment.ms", "7", "retention.ms", "8"), resource(2, "b"), resource(2, "missing"),
			resource(2, "null", "retention.ms", "null"), resource(2, "unknown", "no.such", "1"), resource(8, "1"), resource(4, "", "num.partitions", "3"))
		resp := callAdmin[*kmsg.AlterConfigsResponse](t, c.broker(t), v, req)
		for i, want := range []int16{0, 0, 3, 42, 40, 42, 42} {
			if got := resp.Resources[i]; got.ErrorCode != want || (got.ErrorMessage == nil) != (want == 0) || got.ResourceName != req.Resources[i].ResourceName {
				t.Errorf("%s: %+v, want code %d", req.Resources[i].ResourceName, got, want)
			}
		}
		if got, want := c.Image().Topics["a"].Configs, map[string]string{"segment.ms": "7", "retention.ms": "8"}; !maps.Equal(got, want) {
			t.Errorf("set on a: %v, want %v", got, want)
		}
		if got := c.Image().Topics["b"].Configs; len(got) != 0 {
			t.Errorf("set on b: %v, want nothing", got)
		}
		for _, ch := range c.alters[0] {
			if !ch.Replace {
				t.Errorf("%v is not asked to be replaced", ch.Resource)
			}
		}
	})
}
