package config

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// kafka4 is what Apache Kafka 4.x lists for a topic: name and default.
var kafka4 = map[string]string{
	"cleanup.policy": "delete", "compression.gzip.level": "-1", "compression.lz4.level": "9", "compression.type": "producer",
	"compression.zstd.level": "3", "delete.retention.ms": "86400000", "file.delete.delay.ms": "60000",
	"flush.messages": "9223372036854775807", "flush.ms": "9223372036854775807", "follower.replication.throttled.replicas": "",
	"index.interval.bytes": "4096", "leader.replication.throttled.replicas": "", "local.retention.bytes": "-2", "local.retention.ms": "-2",
	"max.compaction.lag.ms": "9223372036854775807", "max.message.bytes": "1048588", "message.timestamp.after.max.ms": "3600000",
	"message.timestamp.before.max.ms": "9223372036854775807", "message.timestamp.type": "CreateTime", "min.cleanable.dirty.ratio": "0.5",
	"min.compaction.lag.ms": "0", "min.insync.replicas": "1", "preallocate": "false", "remote.log.copy.disable": "false",
	"remote.log.delete.on.disable": "false", "remote.storage.enable": "false", "retention.bytes": "-1", "retention.ms": "604800000",
	"segment.bytes": "1073741824", "segment.index.bytes": "10485760", "segment.jitter.ms": "0", "segment.ms": "604800000",
	"unclean.leader.election.enable": "false",
}

func TestEveryKafkaTopicConfigIsListedWithKafkasDefault(t *testing.T) {
	got := map[string]string{}
	for _, e := range (Layers{}).DescribeTopic(nil, nil) {
		got[e.Def.Name] = e.Value
		if e.Source != SourceDefault {
			t.Errorf("%s: source %d, want default", e.Def.Name, e.Source)
		}
		if e.Def.Doc == "" {
			t.Errorf("%s has no documentation", e.Def.Name)
		}
	}
	for name, def := range kafka4 {
		if v, ok := got[name]; !ok || v != def {
			t.Errorf("%s = %q (listed: %v), want %q", name, v, ok, def)
		}
	}
	if _, ok := got["internal.segment.bytes"]; ok {
		t.Error("an internal config is listed")
	}
}

func TestEveryDefaultIsValid(t *testing.T) {
	for _, table := range []*Table{Topics, Brokers} {
		for _, d := range table.Defs() {
			if d.NullDefault {
				continue
			}
			if err := d.Validate(d.Default); err != nil {
				t.Errorf("%s %s: %v", table.kind, d.Name, err)
			}
		}
	}
	if !slices.IsSortedFunc(Brokers.Defs(), func(a, b *Def) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("broker configs are not in order")
	}
	if len(Brokers.index) != len(Brokers.defs) || len(Topics.index) != len(Topics.defs) {
		t.Error("a name is defined twice")
	}
}

func TestTopicConfigValues(t *testing.T) {
	for _, c := range []struct {
		name, value string
		kind        error // nil: accepted
	}{
		{"retention.ms", "-1", nil},
		{"retention.ms", " 1000 ", nil},
		{"retention.ms", "-2", ErrInvalidValue},
		{"retention.ms", "1e3", ErrInvalidValue},
		{"retention.ms", "", ErrInvalidValue},
		{"retention.ms", "9223372036854775808", ErrInvalidValue},
		{"retention.bytes", "-5", nil},
		{"segment.bytes", "1048576", nil},
		{"segment.bytes", "1048575", ErrInvalidValue},
		{"segment.bytes", "2147483648", ErrInvalidValue},
		{"internal.segment.bytes", "4096", nil},
		{"internal.segment.bytes", "0", ErrInvalidValue},
		{"max.message.bytes", strconv.Itoa(MaxBatchBytes), nil},
		{"max.message.bytes", strconv.Itoa(MaxBatchBytes + 1), ErrInvalidValue},
		{"cleanup.policy", "delete", nil},
		{"cleanup.policy", "", nil},
		{"cleanup.policy", "compact", nil},
		{"cleanup.policy", "delete, compact", nil},
		{"cleanup.policy", "delete,delete", nil},
		{"cleanup.policy", "delete,", ErrInvalidValue},
		{"cleanup.policy", "shred", ErrInvalidValue},
		{"compression.type", "zstd", nil},
		{"compression.type", "none", ErrInvalidValue},
		{"compression.gzip.level", "0", ErrInvalidValue},
		{"compression.gzip.level", "9", nil},
		{"min.cleanable.dirty.ratio", "0.25", nil},
		{"min.cleanable.dirty.ratio", "1.5", ErrInvalidValue},
		{"min.cleanable.dirty.ratio", "NaN", ErrInvalidValue},
		{"min.cleanable.dirty.ratio", "0_1", ErrInvalidValue},
		{"message.timestamp.type", "LogAppendTime", nil},
		{"message.timestamp.type", "logappendtime", ErrInvalidValue},
		{"unclean.leader.election.enable", "TRUE", nil},
		{"preallocate", "yes", ErrInvalidValue},
		{"remote.storage.enable", "false", nil},
		{"remote.storage.enable", "true", ErrInvalidValue},
		{"leader.replication.throttled.replicas", "*", nil},
		{"leader.replication.throttled.replicas", "0:1,1:2", nil},
		{"leader.replication.throttled.replicas", "0-1", ErrInvalidValue},
		{"flush.messages", "1", nil},
		{"message.format.version", "3.0", ErrUnknownName},
		{"Retention.ms", "1", ErrUnknownName},
		{"", "1", ErrUnknownName},
	} {
		err := ValidateTopic(map[string]string{c.name: c.value}, Layers{})
		if c.kind == nil && err != nil || c.kind != nil && !errors.Is(err, c.kind) {
			t.Errorf("%s=%q: %v, want %v", c.name, c.value, err, c.kind)
		}
	}
	long := strings.Repeat("x", 1<<20)
	if err := ValidateTopic(map[string]string{"retention.ms": long}, Layers{}); len(err.Error()) > 1000 {
		t.Errorf("a hostile value comes back in an error of %d bytes", len(err.Error()))
	}
	if err := ValidateTopic(map[string]string{long: "1"}, Layers{}); len(err.Error()) > 1000 {
		t.Errorf("a hostile name comes back in an error of %d bytes", len(err.Error()))
	}
	err := ValidateTopic(map[string]string{"min.compaction.lag.ms": "10", "max.compaction.lag.ms": "9"}, Layers{})
	if !errors.Is(err, ErrInvalidValue) {
		t.Errorf("a minimum above the maximum: %v", err)
	}
}

func TestTypedTopic(t *testing.T) {
	got, err := NewTopic(nil, Layers{})
	if err != nil {
		t.Fatal(err)
	}
	want := Topic{
		MaxMessageBytes: 1048588, TimestampBeforeMaxMs: math.MaxInt64, TimestampAfterMaxMs: 3600000, Compression: "producer",
		GzipLevel: -1, LZ4Level: 9, ZstdLevel: 3, CleanupDelete: true, RetentionBytes: -1, RetentionMs: 604800000,
		SegmentBytes: 1 << 30, SegmentMs: 604800000, SegmentIndexBytes: 10 << 20, IndexIntervalBytes: 4096, MinInsyncReplicas: 1,
		FileDeleteDelayMs: 60000, DeleteRetentionMs: 86400000, MaxCompactionLagMs: math.MaxInt64, MinCleanableDirtyRatio: 0.5,
	}
	if got != want {
		t.Errorf("defaults:\n got %+v\nwant %+v", got, want)
	}
	got, err = NewTopic(map[string]string{"message.timestamp.type": "LogAppendTime", "segment.bytes": "2097152", "internal.segment.bytes": "1000",
		"cleanup.policy": "", "retention.ms": "5", "retention.bytes": "6"}, Layers{})
	if err != nil {
		t.Fatal(err)
	}
	if !got.LogAppendTime || got.SegmentBytes != 1000 {
		t.Errorf("set values are not in the view: %+v", got)
	}
	if got.CleanupDelete || got.RetentionMs != -1 || got.RetentionBytes != -1 {
		t.Errorf("an empty cleanup.policy keeps everything, and retention applies: %+v", got)
	}
	got, _ = NewTopic(map[string]string{"cleanup.policy": "compact", "retention.ms": "5"}, Layers{})
	if !got.CleanupCompact || got.CleanupDelete || got.RetentionMs != -1 {
		t.Errorf("compact: %+v", got)
	}
	got, _ = NewTopic(map[string]string{"cleanup.policy": "compact,delete", "retention.ms": "5"}, Layers{})
	if !got.CleanupCompact || !got.CleanupDelete || got.RetentionMs != 5 {
		t.Errorf("compact and delete: %+v", got)
	}
}

func TestTopicDefaultsComeFromTheBroker(t *testing.T) {
	l := Layers{
		Broker:  map[string]string{"log.retention.hours": "5"},
		Cluster: map[string]string{"log.retention.ms": "777", "message.max.bytes": "2000"},
		Static:  map[string]string{"log.retention.minutes": "3", "message.max.bytes": "1000", "log.roll.hours": "2"},
	}
	got, err := NewTopic(nil, l)
	if err != nil {
		t.Fatal(err)
	}
	if got.RetentionMs != 777 { // by name first (ms before minutes before hours), then by layer
		t.Errorf("retention.ms = %d, want log.retention.ms's 777", got.RetentionMs)
	}
	if got.MaxMessageBytes != 2000 || got.SegmentMs != 2*3600*1000 {
		t.Errorf("max.message.bytes = %d, segment.ms = %d", got.MaxMessageBytes, got.SegmentMs)
	}
	e := l.DescribeTopic(map[string]string{"retention.ms": "1"}, []string{"retention.ms"})[0]
	want := []Candidate{{"retention.ms", "1", SourceTopic}, {"log.retention.ms", "777", SourceClusterDefault},
		{"log.retention.minutes", "3", SourceStatic}, {"log.retention.hours", "5", SourceBroker}, {"log.retention.hours", "168", SourceDefault}}
	if e.Value != "1" || e.Source != SourceTopic || !slices.Equal(e.Synonyms, want) {
		t.Errorf("retention.ms: %q from %d, synonyms %v, want %v", e.Value, e.Source, e.Synonyms, want)
	}
	l = Layers{Static: map[string]string{"log.retention.hours": "-1"}}
	if got, _ := NewTopic(nil, l); got.RetentionMs != -1 {
		t.Errorf("log.retention.hours=-1 is no limit, got %d ms", got.RetentionMs)
	}
	if v := (Layers{}).BrokerValue("log.retention.hours"); v != "168" {
		t.Errorf("log.retention.hours = %q", v)
	}
	if e := (Layers{}).DescribeBroker([]string{"log.retention.ms"})[0]; !e.Null {
		t.Errorf("log.retention.ms is not null by default: %+v", e)
	}
}

func TestStoredValueThatIsNoLongerValidIsPassedOver(t *testing.T) {
	got, err := NewTopic(map[string]string{"retention.ms": "soon", "cleanup.policy": "squeeze"}, Layers{Static: map[string]string{"log.retention.ms": "9"}})
	if !errors.Is(err, ErrInvalidValue) {
		t.Errorf("no error for a value that does not parse: %v", err)
	}
	if got.RetentionMs != 9 || !got.CleanupDelete || got.CleanupCompact {
		t.Errorf("the next best value was not taken: %+v", got)
	}
}

func TestBrokerConfigsRunTimeChanges(t *testing.T) {
	for _, c := range []struct {
		name, value string
		kind        error
	}{
		{"log.retention.ms", "1000", nil},
		{"log.retention.hours", "5", ErrReadOnly}, // Kafka's: only the name that wins
		{"num.partitions", "5", ErrReadOnly},
		{"log.cleanup.policy", "compact", nil},
		{"log.cleanup.policy", "squeeze", ErrInvalidValue},
		{"log.cleaner.enable", "false", ErrReadOnly}, // as in Kafka
		{"log.cleaner.backoff.ms", "5", nil},
		{"log.cleaner.io.max.bytes.per.second", "1e6", nil},
		{"log.cleaner.dedupe.buffer.size", "1", ErrInvalidValue},
		{"message.max.bytes", "x", ErrInvalidValue},
		{"retention.ms", "5", ErrUnknownName},
	} {
		err := ValidateBroker(map[string]string{c.name: c.value})
		if c.kind == nil && err != nil || c.kind != nil && !errors.Is(err, c.kind) {
			t.Errorf("%s=%s: %v, want %v", c.name, c.value, err, c.kind)
		}
	}
}

// kafka-reassign-partitions --verify takes its throttles away from every broker, whether they were set or not.
func TestThrottlesThatAreNotSetCanBeTakenAway(t *testing.T) {
	for _, name := range []string{"leader.replication.throttled.rate", "follower.replication.throttled.rate", "replica.alter.log.dirs.io.max.bytes.per.second"} {
		got, err := AlterBroker(nil, []Op{{Kind: OpDelete, Name: name}}, Layers{})
		if err != nil || len(got) != 0 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	// A broker config that changes nothing is not taken, but what another version took can be taken away, and is in nobody's way.
	had := map[string]string{"log.cleaner.threads": "2"}
	if _, err := AlterBroker(nil, []Op{{OpSet, "log.cleaner.threads", val("2")}}, Layers{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("set without effect: %v", err)
	}
	if got, err := AlterBroker(had, []Op{{OpSet, "log.cleaner.backoff.ms", val("2")}}, Layers{}); err != nil || len(got) != 2 {
		t.Errorf("beside one without effect: %v %v", got, err)
	}
	if got, err := AlterBroker(had, []Op{{Kind: OpDelete, Name: "log.cleaner.threads"}}, Layers{}); err != nil || len(got) != 0 {
		t.Errorf("%v %v", got, err)
	}
	for _, d := range Brokers.Defs() {
		if d.Inert && !d.ReadOnly {
			t.Errorf("%s is said to be dynamic and is without effect", d.Name)
		}
	}
}

func val(s string) *string { return &s }

func TestAlterTopic(t *testing.T) {
	set := map[string]string{"retention.ms": "5", "leader.replication.throttled.replicas": "0:1"}
	next, err := AlterTopic(set, []Op{
		{OpDelete, "retention.ms", nil},
		{OpSet, "retention.bytes", val("9")},
		{OpAppend, "leader.replication.throttled.replicas", val("0:1,0:2")},
		{OpSubtract, "cleanup.policy", val("delete")}, // from the value in force: nothing is left
	}, Layers{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"retention.bytes": "9", "leader.replication.throttled.replicas": "0:1,0:2", "cleanup.policy": ""}
	if len(next) != len(want) {
		t.Errorf("got %v, want %v", next, want)
	}
	for k, v := range want {
		if got, ok := next[k]; !ok || got != v {
			t.Errorf("%s = %q, want %q", k, got, v)
		}
	}
	if set["retention.ms"] != "5" || len(set) != 2 {
		t.Errorf("the map given was changed: %v", set)
	}
	for _, c := range []struct {
		op   Op
		kind error
	}{
		{Op{OpSet, "retention.ms", nil}, ErrNullValue},
		{Op{OpAppend, "cleanup.policy", nil}, ErrNullValue},
		{Op{OpAppend, "retention.ms", val("1")}, ErrInvalidValue},
		{Op{OpSubtract, "retention.ms", val("1")}, ErrInvalidValue},
		{Op{OpAppend, "cleanup.policy", val("squeeze")}, ErrInvalidValue},
		{Op{OpSet, "no.such", val("1")}, ErrUnknownName},
		{Op{OpDelete, "no.such", nil}, ErrUnknownName},
		{Op{OpKind(9), "retention.ms", val("1")}, ErrNullValue},
	} {
		if next, err := AlterTopic(set, []Op{c.op}, Layers{}); !errors.Is(err, c.kind) {
			t.Errorf("%+v: %v %v, want %v", c.op, next, err, c.kind)
		}
	}
	if _, err := AlterBroker(nil, []Op{{OpDelete, "num.partitions", nil}}, Layers{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("deleting a read-only broker config: %v", err)
	}
}

func FuzzTopicValues(f *testing.F) {
	f.Add("retention.ms", "5")
	f.Add("cleanup.policy", "delete,compact")
	f.Add("leader.replication.throttled.replicas", "0:1")
	f.Fuzz(func(t *testing.T, name, value string) {
		set := map[string]string{name: value}
		if err := ValidateTopic(set, Layers{}); err != nil {
			return
		}
		// What is accepted can be used.
		if _, err := NewTopic(set, Layers{}); err != nil {
			t.Errorf("%q=%q is accepted, and then: %v", name, value, err)
		}
	})
}

func TestTableForTheController(t *testing.T) {
	l := Layers{Static: map[string]string{"log.cleanup.policy": "", "log.roll.hours": "1"}}
	if v := Topics.Default("cleanup.policy", l); v != "" {
		t.Errorf("cleanup.policy is %q behind an empty log.cleanup.policy", v)
	}
	if v := Topics.Default("segment.ms", l); v != "3600000" {
		t.Errorf("segment.ms is %q behind log.roll.hours=1", v)
	}
	if v := Topics.Default("remote.storage.enable", l); v != "false" {
		t.Errorf("remote.storage.enable is %q", v)
	}
	if v := Brokers.Default("log.retention.hours", l); v != "168" {
		t.Errorf("log.retention.hours is %q", v)
	}
	if !Topics.IsList("cleanup.policy") || Topics.IsList("retention.ms") || Topics.IsList("no.such") {
		t.Error("IsList")
	}
	if err := Topics.ValidateChange("retention.ms", "5"); err != nil {
		t.Error(err)
	}
	if err := Brokers.ValidateChange("node.id", "5"); !errors.Is(err, ErrReadOnly) {
		t.Errorf("node.id can be changed: %v", err)
	}
}

// Kafka takes white space around numbers and booleans, and so do the tables: what acts on a value must not read it as none.
func TestWhiteSpaceAroundAValueDoesNotMatter(t *testing.T) {
	rate, session := " 1000 ", "\t50000\n"
	broker, err := AlterBroker(nil, []Op{{Kind: OpSet, Name: LeaderThrottledRate, Value: &rate}}, Layers{})
	if err != nil {
		t.Fatal(err)
	}
	if got := (Layers{Broker: broker}).BrokerValue(LeaderThrottledRate); got != "1000" {
		t.Errorf("a throttle of %q", got)
	}
	group, err := AlterGroup(nil, []Op{{Kind: OpSet, Name: "consumer.session.timeout.ms", Value: &session}}, Layers{})
	if err != nil {
		t.Fatal(err)
	}
	if got := (Layers{}).GroupValue(group, "consumer.session.timeout.ms"); got != 50000 {
		t.Errorf("a session of %d", got)
	}
	over := " 60001 "
	if _, err := AlterGroup(nil, []Op{{Kind: OpSet, Name: "consumer.session.timeout.ms", Value: &over}}, Layers{}); err == nil {
		t.Error("beyond the bound, and taken")
	}
}
