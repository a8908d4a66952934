package conformance

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/config"
)

// adminAPIs asks about configs.
func adminAPIs() []api {
	return []api{
		{key: 32, min: 1, max: 4, cases: describeConfigsCases()},
		{key: 33, min: 0, max: 2, cases: alterConfigsCases()},
		{key: 44, min: 0, max: 1, cases: append(incrementalCases(), valueCases()...)},
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
			s.ask("without a name", 1, configsOf(kmsg.ConfigResourceTypeTopic, ""))
			req = configsOf(kmsg.ConfigResourceTypeTopic, topic)
			req.IncludeSynonyms, req.IncludeDocumentation = true, true
			s.ask("all with synonyms", 3, req)
			req.Resources[0].ConfigNames = []string{}
			s.ask("no names", 1, req)
			req.Resources[0].ConfigNames = []string{"retention.ms", "retention.ms", ""}
			s.ask("a name twice", 1, req)
			req.Resources = append(req.Resources, req.Resources[0])
			s.ask("a topic twice", 1, req)
		}},
		{name: "brokers", play: func(s *scene) {
			s.ask("itself", 2, configsOf(kmsg.ConfigResourceTypeBroker, "2", "message.max.bytes", "log.retention.hours", "log.segment.bytes", "no.such.config"))
			s.ask("another", 2, configsOf(kmsg.ConfigResourceTypeBroker, "1"))
			s.ask("all of them", 2, configsOf(kmsg.ConfigResourceTypeBroker, ""))
			s.ask("no number", 2, configsOf(kmsg.ConfigResourceTypeBroker, "x"))
			s.ask("nobody", 2, configsOf(kmsg.ConfigResourceTypeBroker, "99"))
			s.ask("-1", 2, configsOf(kmsg.ConfigResourceTypeBroker, "-1"))
			whole := configsOf(kmsg.ConfigResourceTypeBroker, "2", brokerNames()...)
			whole.IncludeSynonyms, whole.IncludeDocumentation = true, true
			s.ask("every one that is here", 2, whole)
			one := configsOf(kmsg.ConfigResourceTypeBroker, "1", "log.retention.ms", "message.max.bytes", "compression.type")
			one.IncludeSynonyms = true
			s.setBroker("1", "log.retention.ms", ptr("777777"))
			s.setBroker("", "log.retention.ms", ptr("888888"))
			s.ask("set on one and for all", 1, one)
			topic := s.name("t")
			s.topic(topic, 1)
			behind := configsOf(kmsg.ConfigResourceTypeTopic, topic, "retention.ms")
			behind.IncludeSynonyms = true
			s.ask("a topic behind it", 1, behind)
			s.setBroker("1", "log.retention.ms", nil)
			s.ask("set for all", 1, one)
			s.ask("what is set for all", 2, configsOf(kmsg.ConfigResourceTypeBroker, "", "log.retention.ms"))
			s.setBroker("", "log.retention.ms", nil)
			s.ask("taken away", 1, one)
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
		s.remain("after that", topic)
		checked = of(kmsg.ConfigResourceTypeTopic, topic, "segment.ms", "x")
		checked.ValidateOnly = true
		s.ask("a bad value, only checked", 1, checked)
		checked = of(kmsg.ConfigResourceTypeTopic, topic, "no.such", "5")
		checked.ValidateOnly = true
		s.ask("an unknown name, only checked", 1, checked)
		checked = of(kmsg.ConfigResourceTypeTopic, s.name("none"), "segment.ms", "5555")
		checked.ValidateOnly = true
		s.ask("no such topic, only checked", 1, checked)
		s.ask("a name twice", 1, of(kmsg.ConfigResourceTypeTopic, topic, "segment.ms", "5555", "segment.ms", "6666"))
		twice := of(kmsg.ConfigResourceTypeTopic, topic, "segment.ms", "5555")
		twice.Resources = append(twice.Resources, twice.Resources[0])
		s.askBriefly("a topic twice", 1, twice)
		s.ask("contradicting each other", 1, of(kmsg.ConfigResourceTypeTopic, topic, "min.compaction.lag.ms", "100", "max.compaction.lag.ms", "50"))
		s.ask("without a name", 1, of(kmsg.ConfigResourceTypeTopic, "", "segment.ms", "5555"))
		s.ask("type 0", 1, of(0, topic, "segment.ms", "5555"))
		s.ask("nothing set", 1, of(kmsg.ConfigResourceTypeTopic, topic))
		s.remain("with nothing set", topic)
		s.ask("no such broker", 1, of(kmsg.ConfigResourceTypeBroker, "99", "message.max.bytes", "1000000"))
		s.ask("no number of a broker", 1, of(kmsg.ConfigResourceTypeBroker, "x", "message.max.bytes", "1000000"))
	}}}
}

// brokerNames are the broker configs that Chronik has.
func brokerNames() []string {
	var out []string
	for _, d := range config.Brokers.Defs() {
		out = append(out, d.Name)
	}
	return out
}

// setBroker sets a config of a broker, or of all for "", or takes it back, and waits until it shows.
func (s *scene) setBroker(broker, name string, value *string) {
	e := edit{0, name, value}
	if value == nil {
		e.op = 1
	}
	at, source := int32(1), kmsg.ConfigSourceDynamicBrokerConfig
	if broker == "" {
		source = kmsg.ConfigSourceDynamicDefaultBrokerConfig
	}
	req := edits(kmsg.ConfigResourceTypeBroker, broker, e)
	req.Version = 1
	if r := s.must(at, req).(*kmsg.IncrementalAlterConfigsResponse).Resources[0]; r.ErrorCode != 0 {
		panic(fmt.Errorf("preparing: %s of broker %s: error %d, %s", name, broker, r.ErrorCode, *r.ErrorMessage))
	}
	for node := int32(1); node <= 3; node++ {
		if broker != "" && node != at {
			continue
		}
		for end := time.Now().Add(patience); ; pause() {
			ask := configsOf(kmsg.ConfigResourceTypeBroker, strconv.Itoa(int(node)), name)
			ask.Version, ask.IncludeSynonyms = 4, true
			c := s.must(node, ask).(*kmsg.DescribeConfigsResponse).Resources[0].Configs[0]
			shown := slices.ContainsFunc(c.ConfigSynonyms, func(y kmsg.DescribeConfigsResponseResourceConfigConfigSynonym) bool {
				return y.Source == source && (value == nil || *y.Value == *value)
			})
			if shown == (value != nil) {
				break
			}
			if time.Now().After(end) {
				panic(fmt.Errorf("preparing: %s of broker %q on %d is %+v", name, broker, node, c))
			}
		}
	}
}

// remain records which configs are set on a topic, once every broker shows the same.
func (s *scene) remain(step, topic string) {
	var all [3]string
	for end := time.Now().Add(patience); ; pause() {
		for node := range all {
			ask := configsOf(kmsg.ConfigResourceTypeTopic, topic)
			ask.Version = 4
			var set []string
			for _, c := range s.must(int32(node+1), ask).(*kmsg.DescribeConfigsResponse).Resources[0].Configs {
				if c.Source == kmsg.ConfigSourceDynamicTopicConfig {
					set = append(set, c.Name+"="+*c.Value)
				}
			}
			slices.Sort(set)
			all[node] = strings.Join(set, " ")
		}
		if all[0] == all[1] && all[1] == all[2] {
			s.record(step, all[0])
			return
		}
		if time.Now().After(end) {
			panic(fmt.Errorf("preparing: the configs of %s are not the same everywhere: %q", topic, all))
		}
	}
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
			s.remain("before it is checked", topic)
			s.ask("only checked", 1, checked)
			s.remain("after it was checked", topic)
			for name, bad := range map[string]edit{"a bad value": {0, "segment.ms", ptr("x")}, "an unknown name": {0, "no.such", ptr("5")}, "null": {0, "segment.ms", nil},
				"append to what is no list": {2, "segment.ms", ptr("1")}} {
				checked := of(topicType, topic, bad)
				checked.ValidateOnly = true
				s.ask(name+", only checked", 1, checked)
			}
			checked = of(topicType, s.name("none"), edit{0, "segment.ms", ptr("99")})
			checked.ValidateOnly = true
			s.ask("no such topic, only checked", 1, checked)
			s.ask("append what is there", 1, of(topicType, topic, edit{2, "cleanup.policy", ptr("delete")}))
			s.ask("append", 1, of(topicType, topic, edit{2, "cleanup.policy", ptr("compact")}))
			s.remain("appended", topic)
			s.ask("subtract what is not there", 1, of(topicType, topic, edit{3, "leader.replication.throttled.replicas", ptr("9:9")}))
			s.ask("subtract", 1, of(topicType, topic, edit{3, "cleanup.policy", ptr("delete")}))
			s.remain("subtracted", topic)
			s.ask("one good and one bad", 1, of(topicType, topic, edit{0, "segment.ms", ptr("9999")}, edit{0, "retention.ms", ptr("x")}))
			s.remain("neither", topic)
			s.ask("contradicting each other", 1, of(topicType, topic, edit{0, "min.compaction.lag.ms", ptr("100")}, edit{0, "max.compaction.lag.ms", ptr("50")}))
			s.ask("min.insync.replicas above the replicas", 1, of(topicType, topic, edit{0, "min.insync.replicas", ptr("9")}))
			s.ask("min.insync.replicas below 1", 1, of(topicType, topic, edit{0, "min.insync.replicas", ptr("0")}))
			s.ask("levels", 1, of(topicType, topic, edit{0, "compression.gzip.level", ptr("9")}, edit{0, "compression.lz4.level", ptr("17")}, edit{0, "compression.zstd.level", ptr("22")}))
			for name, value := range map[string]string{"compression.gzip.level": "0", "compression.lz4.level": "18", "compression.zstd.level": "23"} {
				s.ask(name+"="+value, 1, of(topicType, topic, edit{0, name, &value}))
			}
			s.ask("without a name", 1, of(topicType, "", edit{0, "segment.ms", ptr("99")}))
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
			s.ask("of another broker", 1, of(b, "2", edit{0, "message.max.bytes", ptr("1048588")}))
			s.ask("back, of another broker", 2, of(b, "2", edit{1, "message.max.bytes", nil}))
			s.ask("nobody", 1, of(b, "99", edit{0, "message.max.bytes", ptr("1048588")}))
			s.ask("-1", 1, of(b, "-1", edit{0, "message.max.bytes", ptr("1048588")}))
			s.ask("an unknown name", 1, of(b, "1", edit{0, "no.such", ptr("5")}))
			s.ask("null", 1, of(b, "1", edit{0, "message.max.bytes", nil}))
			checked = of(b, "1", edit{0, "log.retention.hours", ptr("5")})
			checked.ValidateOnly = true
			s.ask("fixed while it runs, only checked", 1, checked)
			checked = of(b, "", edit{0, "message.max.bytes", ptr("1048589")})
			checked.ValidateOnly = true
			s.ask("for all, only checked", 1, checked)
			after := configsOf(b, "1", "message.max.bytes")
			after.Version = 4
			s.record("after it was checked", s.normalize(s.must(1, after)))
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
		s.ask("brokers twice", 1, of(4, 4))
		s.ask("type 0", 1, of(0))
		s.ask("type -1", 1, of(-1))
		s.ask("loggers", 2, of(8))
		// Other cases leave topics and groups: those of this one are looked at.
		s.topic(s.name("t"), 1)
		for step, req := range map[string]*kmsg.ListConfigResourcesRequest{"topics": of(2), "all": of(), "topics and brokers": of(2, 4)} {
			req.Version = s.v
			resp := s.must(1, req).(*kmsg.ListConfigResourcesResponse)
			resp.ConfigResources = slices.DeleteFunc(resp.ConfigResources, func(r kmsg.ListConfigResourcesResponseConfigResource) bool {
				return (r.Type == 2 || r.Type == 32) && r.Name != s.name("t")
			})
			s.record(step, s.normalize(resp))
		}
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
