package broker

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
)

type configEdit struct {
	op    kmsg.IncrementalAlterConfigOp
	key   string
	value string // "null": null
}

func nullable(v string) *string {
	if v == "null" {
		return nil
	}
	return &v
}

func alterResource(typ kmsg.ConfigResourceType, name string, edits ...configEdit) kmsg.IncrementalAlterConfigsRequestResource {
	r := kmsg.IncrementalAlterConfigsRequestResource{ResourceType: typ, ResourceName: name}
	for _, e := range edits {
		r.Configs = append(r.Configs, kmsg.IncrementalAlterConfigsRequestResourceConfig{Name: e.key, Op: e.op, Value: nullable(e.value)})
	}
	return r
}

func TestIncrementalAlterConfigs(t *testing.T) {
	everyVersion(t, 44, func(t *testing.T, v int16) {
		c := newAdminCluster()
		c.edit(func(img *metadata.Image) {
			c.addTopic(img, "a", 1, 1).Configs = map[string]string{"retention.ms": "5", "retention.bytes": "6"}
		})
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		req.Resources = append(req.Resources,
			alterResource(2, "a", configEdit{0, "segment.ms", "7"}, configEdit{1, "retention.ms", "null"}, configEdit{2, "leader.replication.throttled.replicas", "0:1"}),
			alterResource(2, "missing", configEdit{0, "segment.ms", "7"}),
			alterResource(4, "", configEdit{0, "log.retention.ms", "9"}))
		resp := callAdmin[*kmsg.IncrementalAlterConfigsResponse](t, c.broker(t), v, req)
		for i, want := range []int16{0, 3, 0} {
			if got := resp.Resources[i]; got.ErrorCode != want || got.ResourceName != req.Resources[i].ResourceName || got.ResourceType != req.Resources[i].ResourceType {
				t.Errorf("resource %d: %+v, want code %d", i, got, want)
			}
		}
		want := map[string]string{"retention.bytes": "6", "segment.ms": "7", "leader.replication.throttled.replicas": "0:1"}
		if got := c.Image().Topics["a"].Configs; !maps.Equal(got, want) {
			t.Errorf("set on the topic: %v, want %v", got, want)
		}
		if len(c.alters) != 1 || len(c.alters[0]) != 3 || c.alters[0][0].Replace || c.alters[0][2].Resource != (controller.Resource{Type: controller.ResourceBroker}) {
			t.Errorf("the controller was asked %+v", c.alters)
		}
	})
}

func TestIncrementalAlterConfigsBadInput(t *testing.T) {
	for name, want := range map[string]struct {
		res  kmsg.IncrementalAlterConfigsRequestResource
		code int16
	}{
		"set null":              {alterResource(2, "a", configEdit{0, "retention.ms", "null"}), 42},
		"append null":           {alterResource(2, "a", configEdit{2, "cleanup.policy", "null"}), 42},
		"append to no list":     {alterResource(2, "a", configEdit{2, "retention.ms", "1"}), 40},
		"subtract from no list": {alterResource(2, "a", configEdit{3, "retention.ms", "1"}), 40},
		"unknown operation":     {alterResource(2, "a", configEdit{7, "retention.ms", "1"}), 42},
		"unknown name":          {alterResource(2, "a", configEdit{0, "no.such", "1"}), 40},
		"bad value":             {alterResource(2, "a", configEdit{0, "retention.ms", "soon"}), 40},
		"bad policy":            {alterResource(2, "a", configEdit{0, "cleanup.policy", "squeeze"}), 40},
		"append bad policy":     {alterResource(2, "a", configEdit{2, "cleanup.policy", "squeeze"}), 40},
		"a name twice":          {alterResource(2, "a", configEdit{0, "retention.ms", "1"}, configEdit{0, "retention.ms", "2"}), 42},
		"metadata topic":        {alterResource(2, metadata.MetadataTopic, configEdit{0, "retention.ms", "1"}), 3},
		"no name":               {alterResource(2, "", configEdit{0, "retention.ms", "1"}), 42},
		"read-only":             {alterResource(4, "1", configEdit{0, "num.partitions", "2"}), 42},
		"topic name on broker":  {alterResource(4, "1", configEdit{0, "retention.ms", "2"}), 40},
		"no such broker":        {alterResource(4, "9", configEdit{0, "log.retention.ms", "2"}), 42},
		"no broker id":          {alterResource(4, "one", configEdit{0, "log.retention.ms", "2"}), 42},
		"negative broker id":    {alterResource(4, "-1", configEdit{0, "log.retention.ms", "2"}), 42},
		"logger":                {alterResource(8, "1", configEdit{0, "x", "DEBUG"}), 42},
		"group, unknown name":   {alterResource(32, "g", configEdit{0, "x", "1"}), 40},
		"group, too short":      {alterResource(32, "g", configEdit{0, "consumer.session.timeout.ms", "44999"}), 40},
		"group, too long":       {alterResource(32, "g", configEdit{0, "consumer.session.timeout.ms", "60001"}), 40},
		"group without a name":  {alterResource(32, "", configEdit{0, "consumer.session.timeout.ms", "50000"}), 42},
		"sound, group":          {alterResource(32, "g", configEdit{0, "consumer.session.timeout.ms", "60000"}), 0},
		"sound, other broker":   {alterResource(4, "2", configEdit{0, "log.retention.ms", "2"}), 0},
		"sound, delete unset":   {alterResource(2, "a", configEdit{1, "retention.ms", "null"}), 0},
	} {
		for _, v := range []int16{0, 1} {
			c := newAdminCluster()
			c.edit(func(img *metadata.Image) { c.addTopic(img, "a", 1, 1) })
			req := kmsg.NewPtrIncrementalAlterConfigsRequest()
			req.Resources = append(req.Resources, want.res)
			got := callAdmin[*kmsg.IncrementalAlterConfigsResponse](t, c.broker(t), v, req).Resources[0]
			if got.ErrorCode != want.code || (got.ErrorMessage == nil) != (want.code == 0) {
				t.Errorf("%s v%d: code %d %v, want %d", name, v, got.ErrorCode, got.ErrorMessage, want.code)
			}
			if (len(c.alters) == 0) != (want.code != 0) {
				t.Errorf("%s: the controller was asked %v", name, c.alters)
			}
		}
	}
}

func TestAlterConfigsResourceTwiceAndValidateOnlyAndErrors(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) { c.addTopic(img, "a", 1, 1) })
	b := c.broker(t)
	set := configEdit{0, "retention.ms", "1"}
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.Resources = append(req.Resources, alterResource(2, "a", set), alterResource(2, "a", set), alterResource(4, "", configEdit{0, "log.retention.ms", "1"}))
	resp := callAdmin[*kmsg.IncrementalAlterConfigsResponse](t, b, 1, req)
	if resp.Resources[0].ErrorCode != 42 || resp.Resources[1].ErrorCode != 42 || resp.Resources[2].ErrorCode != 0 {
		t.Errorf("a resource twice: %+v", resp.Resources)
	}

	req.Resources, req.ValidateOnly = req.Resources[:1], true
	resp = callAdmin[*kmsg.IncrementalAlterConfigsResponse](t, b, 1, req)
	if resp.Resources[0].ErrorCode != 0 || !c.validate[len(c.validate)-1] || len(c.Image().Topics["a"].Configs) != 0 {
		t.Errorf("validate only: %+v, set %v", resp.Resources, c.Image().Topics["a"].Configs)
	}

	c.fail = fmt.Errorf("lost: %w", multiraft.ErrUnknownOutcome)
	if got := callAdmin[*kmsg.IncrementalAlterConfigsResponse](t, b, 1, req).Resources[0].ErrorCode; got != 7 {
		t.Errorf("an unknown outcome is code %d", got)
	}
}

func TestAlterConfigsAnswersWhenEveryLiveNodeKnows(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) { c.addTopic(img, "a", 1, 1) })
	c.indexes[2] = c.Image().Index
	b := c.broker(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		req.Resources = append(req.Resources, alterResource(2, "a", configEdit{0, "retention.ms", "1"}))
		callAdmin[*kmsg.IncrementalAlterConfigsResponse](t, b, 1, req)
	}()
	ctx, cancel := contextFor(t, time.Minute)
	defer cancel()
	if err := c.Await(ctx, func() bool { return len(c.Image().Topics["a"].Configs) == 1 }); err != nil {
		t.Fatal(err)
	}
	waitsFor(t, done, "node 2's image", func() { c.edit(func(*metadata.Image) { delete(c.indexes, 2) }) })
}
