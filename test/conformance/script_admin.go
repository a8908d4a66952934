package conformance

import (
	"strconv"

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

func incrementalCases() []testCase {
	type edit struct {
		op    int8
		name  string
		value *string
	}
	of := func(t kmsg.ConfigResourceType, name string, edits ...edit) *kmsg.IncrementalAlterConfigsRequest {
		r := kmsg.NewIncrementalAlterConfigsRequestResource()
		r.ResourceType, r.ResourceName = t, name
		for _, e := range edits {
			r.Configs = append(r.Configs, kmsg.IncrementalAlterConfigsRequestResourceConfig{Name: e.name, Op: kmsg.IncrementalAlterConfigOp(e.op), Value: e.value})
		}
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		req.Resources = append(req.Resources, r)
		return req
	}
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
	}}, {name: "client metrics", play: func(s *scene) {
		if s.v == 0 {
			s.ask("all", 1, kmsg.NewPtrListConfigResourcesRequest())
		}
	}}}
}
