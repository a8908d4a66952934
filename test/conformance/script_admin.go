package conformance

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// adminAPIs asks about configs.
func adminAPIs() []api {
	return []api{
		{key: 32, min: 1, max: 4, cases: describeConfigsCases()},
		{key: 33, min: 0, max: 2, cases: alterConfigsCases()},
		{key: 44, min: 0, max: 1, cases: incrementalCases()},
		{key: 74, min: 0, max: 1, cases: listConfigResourcesCases()},
	}
}

func configsOf(t kmsg.ConfigResourceType, name string, keys ...string) *kmsg.DescribeConfigsRequest {
	r := kmsg.NewDescribeConfigsRequestResource()
	r.ResourceType, r.ResourceName, r.ConfigNames = t, name, keys
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.Resources = append(req.Resources, r)
	return req
}

func describeConfigsCases() []testCase {
	return []testCase{
		{name: "topics", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1, "retention.ms", "12345", "cleanup.policy", "delete")
			s.ask("all", 1, configsOf(kmsg.ConfigResourceTypeTopic, topic))
			s.ask("some", 2, configsOf(kmsg.ConfigResourceTypeTopic, topic, "retention.ms", "segment.bytes", "no.such.config"))
			req := configsOf(kmsg.ConfigResourceTypeTopic, topic, "retention.ms", "segment.ms", "max.message.bytes", "compression.type")
			req.IncludeSynonyms, req.IncludeDocumentation = true, true
			s.ask("with synonyms", 1, req)
			s.ask("no such topic", 1, configsOf(kmsg.ConfigResourceTypeTopic, s.name("none")))
			s.ask("a bad name", 1, configsOf(kmsg.ConfigResourceTypeTopic, "a b"))
		}},
		{name: "brokers", play: func(s *scene) {
			s.ask("itself", 2, configsOf(kmsg.ConfigResourceTypeBroker, "2", "message.max.bytes", "log.retention.hours", "log.segment.bytes", "no.such.config"))
			s.ask("another", 2, configsOf(kmsg.ConfigResourceTypeBroker, "1"))
			s.ask("all of them", 2, configsOf(kmsg.ConfigResourceTypeBroker, ""))
			s.ask("no number", 2, configsOf(kmsg.ConfigResourceTypeBroker, "x"))
			s.ask("nobody", 2, configsOf(kmsg.ConfigResourceTypeBroker, "99"))
		}},
		{name: "groups", play: func(s *scene) {
			g := kmsg.ConfigResourceTypeGroupConfig
			s.ask("all", 1, configsOf(g, s.name("g")))
			req := configsOf(g, s.name("g"), "consumer.session.timeout.ms", "consumer.heartbeat.interval.ms", "no.such.config")
			req.IncludeSynonyms, req.IncludeDocumentation = true, true
			s.ask("with synonyms", 2, req)
			s.ask("without a name", 1, configsOf(g, ""))
			s.setGroup(s.name("g"), "consumer.session.timeout.ms", ptr("50000"))
			s.ask("set", 2, req)
			s.setGroup(s.name("g"), "consumer.session.timeout.ms", nil)
			s.ask("back", 3, req)
		}},
		{name: "others", play: func(s *scene) {
			s.ask("unknown type", 1, configsOf(0, "x"))
			s.ask("type 77", 1, configsOf(77, "x"))
			none := configsOf(kmsg.ConfigResourceTypeTopic, "x")
			none.Resources = nil
			s.ask("nothing", 1, none)
		}},
	}
}

func alterConfigsCases() []testCase {
	of := func(t kmsg.ConfigResourceType, name string, pairs ...string) *kmsg.AlterConfigsRequest {
		r := kmsg.NewAlterConfigsRequestResource()
		r.ResourceType, r.ResourceName = t, name
		for i := 0; i < len(pairs); i += 2 {
			r.Configs = append(r.Configs, kmsg.AlterConfigsRequestResourceConfig{Name: pairs[i], Value: &pairs[i+1]})
		}
		req := kmsg.NewPtrAlterConfigsRequest()
		req.Resources = append(req.Resources, r)
		return req
	}
	return []testCase{{name: "topics", play: func(s *scene) {
		topic := s.name("t")
		s.topic(topic, 1, "retention.ms", "12345")
		s.ask("set", 1, of(kmsg.ConfigResourceTypeTopic, topic, "segment.ms", "99999"))
		s.ask("a bad value", 1, of(kmsg.ConfigResourceTypeTopic, topic, "segment.ms", "x"))
		s.ask("an unknown name", 1, of(kmsg.ConfigResourceTypeTopic, topic, "no.such", "x"))
		null := of(kmsg.ConfigResourceTypeTopic, topic, "segment.ms", "")
		null.Resources[0].Configs[0].Value = nil
		s.ask("null", 1, null)
		s.ask("no such topic", 1, of(kmsg.ConfigResourceTypeTopic, s.name("none"), "segment.ms", "99999"))
		checked := of(kmsg.ConfigResourceTypeTopic, topic, "segment.ms", "5555")
		checked.ValidateOnly = true
		s.ask("only checked", 1, checked)
		s.ask("no such broker", 1, of(kmsg.ConfigResourceTypeBroker, "99", "message.max.bytes", "1000000"))
		s.ask("no number of a broker", 1, of(kmsg.ConfigResourceTypeBroker, "x", "message.max.bytes", "1000000"))
	}}}
}

type edit struct {
	op    int8
	name  string
	value *string
}

func edits(t kmsg.ConfigResourceType, name string, edits ...edit) *kmsg.IncrementalAlterConfigsRequest {
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = t, name
	for _, e := range edits {
		r.Configs = append(r.Configs, kmsg.IncrementalAlterConfigsRequestResourceConfig{Name: e.name, Op: kmsg.IncrementalAlterConfigOp(e.op), Value: e.value})
	}
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.Resources = append(req.Resources, r)
	return req
}

// setGroup sets a group's config, or takes it back, and waits until every broker shows it.
func (s *scene) setGroup(group, name string, value *string) {
	e := edit{0, name, value}
	if value == nil {
		e.op = 1
	}
	req := edits(kmsg.ConfigResourceTypeGroupConfig, group, e)
	req.Version = 1
	if r := s.must(1, req).(*kmsg.IncrementalAlterConfigsResponse).Resources[0]; r.ErrorCode != 0 {
		panic(fmt.Errorf("preparing: %s of group %s: error %d, %s", name, group, r.ErrorCode, *r.ErrorMessage))
	}
	end := time.Now().Add(patience)
	for node := int32(1); node <= 3; node++ {
		for {
			ask := configsOf(kmsg.ConfigResourceTypeGroupConfig, group, name)
			ask.Version = 4
			c := s.must(node, ask).(*kmsg.DescribeConfigsResponse).Resources[0].Configs[0]
			if (value == nil) == (c.Source == kmsg.ConfigSourceDefaultConfig) && (value == nil || *c.Value == *value) {
				break
			}
			if time.Now().After(end) {
				panic(fmt.Errorf("preparing: %s of group %s on broker %d is %+v", name, group, node, c))
			}
			pause()
		}
	}
}

func incrementalCases() []testCase {
	of := edits
	topicType := kmsg.ConfigResourceTypeTopic
	return []testCase{
		{name: "topics", play: func(s *scene) {
			topic := s.name("t")
			s.topic(topic, 1, "retention.ms", "12345")
			s.ask("set", 1, of(topicType, topic, edit{0, "segment.ms", ptr("99999")}))
			s.ask("delete", 1, of(topicType, topic, edit{1, "segment.ms", nil}))
			s.ask("delete what is not set", 1, of(topicType, topic, edit{1, "segment.bytes", nil}))
			s.ask("append", 1, of(topicType, topic, edit{2, "leader.replication.throttled.replicas", ptr("0:1")}))
			s.ask("subtract", 1, of(topicType, topic, edit{3, "leader.replication.throttled.replicas", ptr("0:1")}))
			s.ask("append to what is no list", 1, of(topicType, topic, edit{2, "segment.ms", ptr("1")}))
			s.ask("set to null", 1, of(topicType, topic, edit{0, "segment.ms", nil}))
			s.ask("append null", 1, of(topicType, topic, edit{2, "cleanup.policy", nil}))
			s.ask("a bad value", 1, of(topicType, topic, edit{0, "segment.ms", ptr("x")}))
			s.ask("an unknown name", 1, of(topicType, topic, edit{0, "no.such", ptr("x")}))
			s.ask("an unknown operation", 1, of(topicType, topic, edit{9, "segment.ms", ptr("99")}))
			s.ask("a name twice", 1, of(topicType, topic, edit{0, "segment.ms", ptr("99")}, edit{0, "segment.ms", ptr("98")}))
			s.ask("no such topic", 1, of(topicType, s.name("none"), edit{0, "segment.ms", ptr("99")}))
			s.ask("nothing", 1, of(topicType, topic))
			checked := of(topicType, topic, edit{0, "segment.ms", ptr("99")})
			checked.ValidateOnly = true
			s.ask("only checked", 1, checked)
			twice := of(topicType, topic, edit{0, "segment.ms", ptr("99")})
			twice.Resources = append(twice.Resources, twice.Resources[0])
			s.ask("the same twice", 1, twice)
		}},
		{name: "brokers", play: func(s *scene) {
			b := kmsg.ConfigResourceTypeBroker
			s.ask("one", 1, of(b, "1", edit{0, "message.max.bytes", ptr("1048588")}))
			s.ask("all", 1, of(b, "", edit{0, "message.max.bytes", ptr("1048588")}))
			s.ask("back", 1, of(b, "1", edit{1, "message.max.bytes", nil}))
			s.ask("back for all", 1, of(b, "", edit{1, "message.max.bytes", nil}))
			s.ask("no number", 1, of(b, "x", edit{0, "message.max.bytes", ptr("1048588")}))
			s.ask("a bad value", 1, of(b, "1", edit{0, "message.max.bytes", ptr("x")}))
			s.ask("fixed while it runs", 1, of(b, strconv.Itoa(1), edit{0, "log.retention.hours", ptr("5")}))
			checked := of(b, "1", edit{0, "message.max.bytes", ptr("1048589")})
			checked.ValidateOnly = true
			s.ask("only checked", 1, checked)
			checked = of(b, "1", edit{0, "message.max.bytes", ptr("x")})
			checked.ValidateOnly = true
			s.ask("a bad value, only checked", 1, checked)
		}},
		{name: "groups", play: func(s *scene) {
			g := kmsg.ConfigResourceTypeGroupConfig
			group := s.name("g")
			const session, heartbeat = "consumer.session.timeout.ms", "consumer.heartbeat.interval.ms"
			checked := of(g, group, edit{0, session, ptr("50000")})
			checked.ValidateOnly = true
			s.ask("only checked", 1, checked)
			s.ask("set", 1, of(g, group, edit{0, session, ptr("50000")}))
			s.ask("set another", 1, of(g, group, edit{0, heartbeat, ptr("6000")}))
			s.ask("below the broker's least", 1, of(g, group, edit{0, session, ptr("1000")}))
			s.ask("above the broker's most", 1, of(g, group, edit{0, session, ptr("99999999")}))
			s.ask("a heartbeat below the broker's least", 1, of(g, group, edit{0, heartbeat, ptr("1")}))
			s.ask("a heartbeat above the broker's most", 1, of(g, group, edit{0, heartbeat, ptr("60000")}))
			s.ask("zero", 1, of(g, group, edit{0, heartbeat, ptr("0")}))
			s.ask("no number", 1, of(g, group, edit{0, session, ptr("x")}))
			s.ask("null", 1, of(g, group, edit{0, session, nil}))
			s.ask("an unknown name", 1, of(g, group, edit{0, "no.such", ptr("5")}))
			s.ask("append to what is no list", 1, of(g, group, edit{2, session, ptr("5")}))
			s.ask("back", 1, of(g, group, edit{1, session, nil}, edit{1, heartbeat, nil}))
			s.ask("without a name", 1, of(g, "", edit{0, session, ptr("50000")}))
			s.ask("delete what is not set", 1, of(g, group, edit{1, session, nil}))
		}},
	}
}

func listConfigResourcesCases() []testCase {
	return []testCase{{name: "types", from: 1, play: func(s *scene) {
		of := func(types ...int8) *kmsg.ListConfigResourcesRequest {
			req := kmsg.NewPtrListConfigResourcesRequest()
			req.ResourceTypes = types
			return req
		}
		s.ask("brokers", 1, of(4))
		s.ask("client metrics", 1, of(16))
		s.ask("no such type", 1, of(5))
		s.ask("one that is and one that is not", 1, of(4, 99))
	}}, {name: "groups", from: 1, play: func(s *scene) {
		// Other cases leave groups too: those of this one are looked at.
		mine := func(step string) {
			req := kmsg.NewPtrListConfigResourcesRequest()
			req.Version, req.ResourceTypes = s.v, []int8{int8(kmsg.ConfigResourceTypeGroupConfig)}
			resp := s.must(2, req).(*kmsg.ListConfigResourcesResponse)
			resp.ConfigResources = slices.DeleteFunc(resp.ConfigResources, func(r kmsg.ListConfigResourcesResponseConfigResource) bool {
				return !strings.HasPrefix(r.Name, s.prefix)
			})
			s.record(step, s.normalize(resp))
		}
		mine("nothing set")
		s.setGroup(s.name("g"), "consumer.session.timeout.ms", ptr("50000"))
		mine("set")
		s.setGroup(s.name("g"), "consumer.session.timeout.ms", nil)
		mine("back")
	}}, {name: "client metrics", play: func(s *scene) {
		if s.v == 0 {
			s.ask("all", 1, kmsg.NewPtrListConfigResourcesRequest())
		}
	}}}
}
