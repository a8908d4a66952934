package conformance

import (
	"slices"
	"strings"
)

// allowance is a difference that is meant. It must occur: one that matches nothing fails the test, so that the list holds only what is
// needed.
type allowance struct {
	keys   []int16  // none: every API
	paths  []string // of the field
	steps  []string // parts of the step's name; none: every step
	kafka  any      // nil: whatever Kafka says
	ours   any      // nil: whatever Chronik says
	reason string
}

func (a *allowance) covers(d difference) bool {
	return (len(a.keys) == 0 || slices.Contains(a.keys, d.key)) &&
		slices.Contains(a.paths, d.path) &&
		(len(a.steps) == 0 || slices.ContainsFunc(a.steps, func(s string) bool { return strings.Contains(d.step, s) })) &&
		(a.kafka == nil || a.kafka == d.kafka) && (a.ours == nil || a.ours == d.ours)
}

var allowed = []allowance{
	{keys: []int16{18}, paths: []string{"ApiKeys"},
		reason: "Each lists what it serves; that Chronik's ranges lie within Kafka's is checked apart."},
	{keys: []int16{18}, paths: []string{"SupportedFeatures[eligible.leader.replicas.version]", "FinalizedFeatures[eligible.leader.replicas.version]",
		"SupportedFeatures[kraft.version]", "FinalizedFeatures[kraft.version]", "SupportedFeatures[metadata.version]", "FinalizedFeatures[metadata.version]"},
		reason: "Features of KRaft's upgrades; Chronik has none of them."},
	{keys: []int16{18}, paths: []string{"SupportedFeatures"}, steps: []string{"v3: well"},
		reason: "The only one whose minimum is not 0 is metadata.version."},
	{keys: []int16{18}, paths: []string{"SupportedFeatures[share.version]", "FinalizedFeatures[share.version]", "SupportedFeatures[streams.version]",
		"FinalizedFeatures[streams.version]", "SupportedFeatures[transaction.version]", "FinalizedFeatures[transaction.version]"},
		reason: "Share groups, streams groups and transactions are not there yet."},
	{keys: []int16{0, 37}, paths: []string{"Topics.Partitions.ErrorMessage", "Topics.ErrorMessage"}, ours: "text",
		reason: "Chronik says why; Kafka leaves the message null."},
	{keys: []int16{37}, paths: []string{"Topics.ErrorCode"}, kafka: "0", ours: "44", steps: []string{"__consumer_offsets"},
		reason: "Kafka lets the number of these partitions grow, and its groups lose their offsets when the brokers start again; Chronik refuses."},
	{keys: []int16{45, 46}, paths: []string{"Topics.Partitions.ErrorMessage"}, ours: "text", steps: []string{"cancel what is not moving", "cancelled again"},
		reason: "Chronik says why; Kafka leaves the message null."},
	{keys: []int16{46}, paths: []string{""}, kafka: "[2 1]", ours: "[1 2]", steps: []string{"replicas after the cancellation"},
		reason: "What is cancelled leaves the replicas in the order before it; Kafka's keep that of the last target."},
	{keys: []int16{61}, paths: []string{"Topics.Partitions.ErrorMessage"}, ours: "text", steps: []string{"no such", "partition -1", "moved away"},
		reason: "Chronik says why; Kafka leaves the message null."},
	{keys: []int16{32}, paths: []string{"Resources.ErrorMessage"}, ours: "text", steps: []string{"no such topic"},
		reason: "Chronik says why; Kafka leaves the message empty."},
	{keys: []int16{32}, paths: groupConfigsMissing(), ours: nil, steps: []string{"groups, "},
		reason: "Of share and streams groups, which Chronik does not have, and one that would change nothing."},
	{keys: []int16{0}, paths: []string{"Topics.Partitions.LogAppendTime"}, kafka: "about now", ours: "-1",
		reason: "Kafka answers a duplicate with its time though the topic is CreateTime; the protocol says -1 then."},
	{keys: []int16{44}, paths: []string{"Resources.ErrorCode", "Resources.ErrorMessage"}, steps: []string{"an unknown operation"},
		reason: "A bad request (42), where Kafka meets an exception it did not expect (-1)."},
	{keys: []int16{55}, paths: []string{"Nodes.Listeners[CONTROLLER]", "Nodes.Listeners[RAFT]", "Nodes.Listeners.Name"},
		reason: "The voters' listener is called what it is."},
	{keys: []int16{55}, paths: []string{"Topics.Partitions.CurrentVoters.ReplicaDirectoryID"}, kafka: "no id",
		reason: "Kafka's voters were configured, and have no directory ids then; Chronik's always have."},
	{keys: []int16{44}, paths: []string{"taken"}, steps: []string{": max.message.bytes", ": message.max.bytes"},
		reason: "At most 16 MiB, since a batch is one raft entry."},
	{keys: []int16{44}, paths: []string{"taken"}, steps: []string{".replication.throttled.replicas"},
		reason: "Kafka overlooks what is empty at the end of a list, Chronik refuses it."},
	{keys: []int16{44}, paths: []string{"taken"}, steps: []string{": internal.segment.bytes", ": log.cleaner.io.max.bytes.per.second", "cleanable", ": log.retention.ms"},
		reason: "Kafka takes numbers that mean nothing: sizes below 1, rates below 0, what is not a number, times below -1."},
	{keys: []int16{44}, paths: []string{"taken"}, steps: []string{": log.cleaner.dedupe.buffer.size"},
		reason: "Kafka wants more than 1 MiB for each of its cleaner's threads; here a small map costs passes and nothing else."},
	{keys: []int16{44}, paths: []string{"taken", "refused"}, steps: []string{": log.scrub."},
		reason: "Kafka keeps what it does not know for plugins."},
	{keys: []int16{75}, paths: []string{"Topics.AuthorizedOperations"}, steps: []string{"unknown", "one that is and one that is not", "a bad name"},
		reason: "Nobody may do anything with a topic that does not exist."},
	{keys: []int16{19, 32}, paths: []string{"Topics.Configs[min.insync.replicas].Source", "Resources.Configs[min.insync.replicas].Source", "Resources.Configs[min.insync.replicas].ConfigSynonyms"},
		reason: "Kafka sets it for all brokers at run time by itself, for its eligible leader replicas; in Chronik a majority is always needed."},
	{keys: []int16{32}, paths: []string{"Resources.Configs"}, steps: []string{"all of them"},
		reason: "As before: Kafka has min.insync.replicas set for all brokers."},
	{keys: []int16{32}, paths: brokerConfigs("ReadOnly", "log.cleaner.io.buffer.load.factor", "log.cleaner.threads", "log.flush.interval.messages", "log.flush.interval.ms",
		"log.local.retention.bytes", "log.local.retention.ms", "log.preallocate", "log.segment.delete.delay.ms", "min.insync.replicas", "unclean.leader.election.enable"),
		kafka: false, ours: true, reason: "They change nothing here, so nobody can change them on a running broker and take it for done."},
	{keys: []int16{32}, paths: brokerConfigs("ReadOnly", "listeners", "max.connections", "max.connections.per.ip"), kafka: false, ours: true,
		reason: "A flag each, and fixed while the node runs."},
	{keys: []int16{32}, paths: slices.Concat(brokerConfigs("Value", "advertised.listeners", "listeners", "log.dir", "log.dirs"), brokerConfigs("ConfigSynonyms", "listeners", "log.dir", "log.dirs"),
		brokerConfigs("ConfigSynonyms[advertised.listeners].Value", "advertised.listeners"), brokerConfigs("Source", "log.dir")), steps: []string{"every one that is here"},
		reason: "Where each broker listens and keeps its data."},
	{keys: []int16{32}, paths: slices.Concat(brokerConfigs("Value", "max.connections", "max.connections.per.ip"), brokerConfigs("ConfigSynonyms[max.connections].Value", "max.connections"),
		brokerConfigs("ConfigSynonyms[max.connections.per.ip].Value", "max.connections.per.ip")), kafka: "2147483647",
		reason: "Bounded from the start, where Kafka's are not."},
	{keys: []int16{32}, paths: brokerConfigs("ConfigSynonyms.Value", "default.replication.factor"), kafka: "1", ours: "0",
		reason: "Three replicas, or one on each node if there are fewer; that has no number."},
	{keys: []int16{32}, paths: []string{"Resources.Configs[follower.replication.throttled.rate]", "Resources.Configs[leader.replication.throttled.rate]", "Resources.Configs[replica.alter.log.dirs.io.max.bytes.per.second]"},
		reason: "Kafka lists them once they are set, Chronik with their default, too."},
	{keys: []int16{32}, paths: []string{"Resources.Configs[log.scrub.bytes.per.second]", "Resources.Configs[log.scrub.interval.ms]"},
		reason: "Of what Kafka does not do."},
	{keys: []int16{33}, paths: []string{""}, kafka: "error: no answer", steps: []string{"a topic twice"},
		reason: "Kafka gives no answer, Chronik refuses (42)."},
	{keys: []int16{44}, paths: []string{"Resources.ErrorCode", "Resources.ErrorMessage"}, steps: []string{"brokers, v0: an unknown name", "brokers, v1: an unknown name"},
		reason: "Kafka keeps what it does not know for plugins; Chronik has none, and a name that is misspelt is refused (40)."},
	{keys: []int16{44}, paths: []string{"Resources.ErrorCode", "Resources.ErrorMessage"}, steps: []string{": of another broker"},
		reason: "Any node takes the change of any; in Kafka each its own alone."},
	{keys: []int16{74}, paths: []string{"ConfigResources"}, steps: []string{": loggers", ": all"},
		reason: "Kafka names every broker as one whose loggers have levels, too; Chronik's have none to change."},
}

// brokerConfigs are the paths of a field of configs.
func brokerConfigs(field string, names ...string) []string {
	var out []string
	for _, name := range names {
		out = append(out, "Resources.Configs["+name+"]."+field)
	}
	return out
}

// groupConfigsMissing are the configs that Kafka shows for a group and Chronik does not have.
func groupConfigsMissing() []string {
	var out []string
	for _, name := range []string{"consumer.assignment.interval.ms",
		"share.assignment.interval.ms", "share.auto.offset.reset", "share.delivery.count.limit", "share.heartbeat.interval.ms", "share.isolation.level",
		"share.partition.max.record.locks", "share.record.lock.duration.ms", "share.renew.acknowledge.enable", "share.session.timeout.ms",
		"streams.assignment.interval.ms", "streams.heartbeat.interval.ms", "streams.initial.rebalance.delay.ms", "streams.num.standby.replicas", "streams.session.timeout.ms"} {
		out = append(out, "Resources.Configs["+name+"]")
	}
	return out
}
