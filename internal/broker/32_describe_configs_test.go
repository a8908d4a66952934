package broker

import (
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/metadata"
)

func describeResource(typ kmsg.ConfigResourceType, name string, keys ...string) kmsg.DescribeConfigsRequestResource {
	return kmsg.DescribeConfigsRequestResource{ResourceType: typ, ResourceName: name, ConfigNames: keys}
}

func describedValue(t *testing.T, r kmsg.DescribeConfigsResponseResource, name string) kmsg.DescribeConfigsResponseResourceConfig {
	t.Helper()
	i := slices.IndexFunc(r.Configs, func(c kmsg.DescribeConfigsResponseResourceConfig) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("%s %q does not list %s", r.ResourceType, r.ResourceName, name)
	}
	return r.Configs[i]
}

func TestDescribeConfigsTopic(t *testing.T) {
	everyVersion(t, 32, func(t *testing.T, v int16) {
		c := newAdminCluster()
		c.static = map[string]string{"log.segment.bytes": "2097152"}
		c.edit(func(img *metadata.Image) {
			c.addTopic(img, "a", 1, 1).Configs = map[string]string{"retention.ms": "5"}
			img.BrokerConfigs[-1] = map[string]string{"log.retention.ms": "6", "message.max.bytes": "1000"}
			img.BrokerConfigs[1] = map[string]string{"message.max.bytes": "2000"}
			img.BrokerConfigs[2] = map[string]string{"message.max.bytes": "3000"} // another node's
		})
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.IncludeSynonyms, req.IncludeDocumentation = true, true
		req.Resources = append(req.Resources, describeResource(2, "a"), describeResource(2, "a", "retention.ms", "no.such"), describeResource(2, "missing"), describeResource(2, metadata.MetadataTopic))
		req.Resources[0].ConfigNames = nil
		resp := callAdmin[*kmsg.DescribeConfigsResponse](t, c.broker(t), v, req)
		all, some := resp.Resources[0], resp.Resources[1]
		if all.ErrorCode != 0 || len(all.Configs) != len(config.Topics.Defs())-1 || len(some.Configs) != 1 {
			t.Errorf("lists %d and %d configs, code %d", len(all.Configs), len(some.Configs), all.ErrorCode)
		}
		for _, w := range []struct {
			name, value string
			source      kmsg.ConfigSource
			typ         kmsg.ConfigType
			synonyms    int
		}{
			{"retention.ms", "5", 1, kmsg.ConfigTypeLong, 3},
			{"max.message.bytes", "2000", 2, kmsg.ConfigTypeInt, 3},
			{"segment.bytes", "2097152", 4, kmsg.ConfigTypeInt, 2},
			{"cleanup.policy", "delete", 5, kmsg.ConfigTypeList, 1},
			{"preallocate", "false", 5, kmsg.ConfigTypeBoolean, 1},
			{"min.cleanable.dirty.ratio", "0.5", 5, kmsg.ConfigTypeDouble, 1},
			{"compression.type", "producer", 5, kmsg.ConfigTypeString, 1},
			{"segment.ms", "604800000", 5, kmsg.ConfigTypeLong, 0}, // log.roll.hours gives it, log.roll.ms would be first
			{"leader.replication.throttled.replicas", "", 5, kmsg.ConfigTypeList, 0},
		} {
			got := describedValue(t, all, w.name)
			if got.Value == nil || *got.Value != w.value || got.Source != w.source || got.ReadOnly || got.IsSensitive || len(got.ConfigSynonyms) != w.synonyms {
				t.Errorf("%s: %+v, want %+v", w.name, got, w)
				continue
			}
			if len(got.ConfigSynonyms) == 0 {
				continue
			}
			if first := got.ConfigSynonyms[0]; first.Source != w.source || *first.Value == "" {
				t.Errorf("%s: the first synonym is %+v, not the value in force", w.name, first)
			}
			if v >= 3 && (got.ConfigType != w.typ || got.Documentation == nil || *got.Documentation == "") {
				t.Errorf("%s: type %v, documentation %v", w.name, got.ConfigType, got.Documentation)
			}
		}
		for _, r := range resp.Resources[2:] {
			if r.ErrorCode != 3 || len(r.Configs) != 0 || r.ErrorMessage == nil {
				t.Errorf("%s: %+v", r.ResourceName, r)
			}
		}

		req.IncludeSynonyms, req.IncludeDocumentation = false, false
		req.Resources = req.Resources[:1]
		req.Resources[0].ConfigNames = []string{} // empty means all as well
		resp = callAdmin[*kmsg.DescribeConfigsResponse](t, c.broker(t), v, req)
		got := describedValue(t, resp.Resources[0], "retention.ms")
		if len(got.ConfigSynonyms) != 0 || got.Documentation != nil {
			t.Errorf("not asked for: %+v", got)
		}
	})
}

func TestDescribeConfigsBroker(t *testing.T) {
	everyVersion(t, 32, func(t *testing.T, v int16) {
		c := newAdminCluster()
		c.static = map[string]string{"node.id": "1", "num.partitions": "4"}
		c.edit(func(img *metadata.Image) {
			img.BrokerConfigs[-1] = map[string]string{"log.retention.ms": "6"}
			img.BrokerConfigs[1] = map[string]string{"log.retention.ms": "7"}
		})
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.IncludeSynonyms = true
		for _, name := range []string{"1", "", "2", "9", "one"} {
			req.Resources = append(req.Resources, describeResource(4, name))
		}
		resp := callAdmin[*kmsg.DescribeConfigsResponse](t, c.broker(t), v, req)
		self, all := resp.Resources[0], resp.Resources[1]
		if got := describedValue(t, self, "num.partitions"); *got.Value != "4" || got.Source != 4 || !got.ReadOnly {
			t.Errorf("num.partitions: %+v", got)
		}
		if got := describedValue(t, self, "log.retention.ms"); *got.Value != "7" || got.Source != 2 || got.ReadOnly || len(got.ConfigSynonyms) != 3 || got.ConfigSynonyms[2].Name != "log.retention.hours" {
			t.Errorf("log.retention.ms: %+v", got)
		}
		if got := describedValue(t, self, "log.retention.minutes"); got.Value != nil || got.Source != 5 {
			t.Errorf("log.retention.minutes: %+v, want null", got)
		}
		if all.ErrorCode != 0 || len(all.Configs) != 1 || *all.Configs[0].Value != "6" || all.Configs[0].Source != 3 {
			t.Errorf("for all brokers: %+v", all)
		}
		for _, r := range resp.Resources[2:] {
			if r.ErrorCode != 42 || len(r.Configs) != 0 {
				t.Errorf("broker %q: code %d, want 42", r.ResourceName, r.ErrorCode)
			}
		}
	})
}

// A group's configs have the brokers' behind them, and Kafka's source for what is set on the group.
func TestDescribeConfigsOfGroups(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) {
		img.GroupConfigs = map[string]map[string]string{"g": {"consumer.session.timeout.ms": "50000"}}
	})
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.IncludeSynonyms = true
	req.Resources = append(req.Resources, describeResource(32, "g"), describeResource(32, "other"), describeResource(32, ""))
	rs := callAdmin[*kmsg.DescribeConfigsResponse](t, c.broker(t), 4, req).Resources
	session := func(r kmsg.DescribeConfigsResponseResource) kmsg.DescribeConfigsResponseResourceConfig {
		i := slices.IndexFunc(r.Configs, func(c kmsg.DescribeConfigsResponseResourceConfig) bool {
			return c.Name == "consumer.session.timeout.ms"
		})
		if i < 0 {
			t.Fatalf("no session timeout: %+v", r)
		}
		return r.Configs[i]
	}
	if s := session(rs[0]); *s.Value != "50000" || s.Source != 8 || len(s.ConfigSynonyms) != 2 || s.ConfigSynonyms[1].Name != "group.consumer.session.timeout.ms" {
		t.Errorf("set: %+v", s)
	}
	if s := session(rs[1]); *s.Value != "45000" || s.Source != 5 || s.ReadOnly {
		t.Errorf("not set: %+v", s)
	}
	if rs[2].ErrorCode != 42 {
		t.Errorf("without a name: %+v", rs[2])
	}
}

func TestDescribeConfigsOtherResources(t *testing.T) {
	c := newAdminCluster()
	req := kmsg.NewPtrDescribeConfigsRequest()
	for _, typ := range []kmsg.ConfigResourceType{0, 8, 16, 99, -1} {
		req.Resources = append(req.Resources, describeResource(typ, "1"))
	}
	for _, r := range callAdmin[*kmsg.DescribeConfigsResponse](t, c.broker(t), 4, req).Resources {
		if r.ErrorCode != 42 || r.ErrorMessage == nil {
			t.Errorf("type %d: code %d", r.ResourceType, r.ErrorCode)
		}
	}
}
