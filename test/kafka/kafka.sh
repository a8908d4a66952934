#!/usr/bin/env bash
# Runs Apache Kafka, three KRaft brokers on loopback, to compare with. Needs Java 17 and Maven (the jars come from the Maven registry, once).
#   kafka.sh with COMMAND…   starts them, runs COMMAND with KAFKA_BROKERS, KAFKA_PIDS and KAFKA_DATA set, ends them and returns COMMAND's code
#   kafka.sh tool CLASS ARG… runs one of Kafka's own tools
# KAFKA_VERSION: default 4.3.1   KAFKA_DIR: where the jars are kept (default: under the user's cache)   KAFKA_PORT: the first of six ports
# KAFKA_HEAP: of each broker, default 512m
# KAFKA_PROPERTIES: further lines for the brokers' server.properties
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=${KAFKA_VERSION:-4.3.1}
cache=${KAFKA_DIR:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/chronik-kafka}
port=${KAFKA_PORT:-29391}
for tool in java mvn; do
  command -v "$tool" >/dev/null || { echo "kafka.sh: SKIPPED, $tool is not installed"; exit 0; }
done
jars=$cache/$version
if [ ! -d "$jars" ]; then
  mkdir -p "$cache"
  rm -rf "$jars.part"
  mvn -q -B -f "$here/pom.xml" -Dkafka.version="$version" dependency:copy-dependencies -DoutputDirectory="$jars.part"
  mv "$jars.part" "$jars"
fi
jvm() { java -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$jars/*" "$@"; }

case ${1:-} in
tool) shift; jvm "$@"; exit ;;
with) shift ;;
*) sed -n '2,7p' "$0"; exit 2 ;;
esac

work=$(mktemp -d)
pids=()
finish() {
  for p in "${pids[@]}"; do kill -9 "$p" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT
id=$(jvm kafka.tools.StorageTool random-uuid 2>/dev/null | tail -n 1)
voters="" brokers=""
for i in 1 2 3; do
  voters+="${voters:+,}$i@127.0.0.1:$((port + 2 + i))"
  brokers+="${brokers:+,}127.0.0.1:$((port + i - 1))"
done
for i in 1 2 3; do
  cat >"$work/$i.properties" <<CONF
process.roles=broker,controller
node.id=$i
controller.quorum.voters=$voters
listeners=PLAINTEXT://127.0.0.1:$((port + i - 1)),CONTROLLER://127.0.0.1:$((port + 2 + i))
advertised.listeners=PLAINTEXT://127.0.0.1:$((port + i - 1))
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$work/data-$i
num.partitions=6
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
group.initial.rebalance.delay.ms=0
log.segment.delete.delay.ms=500
auto.create.topics.enable=false
${KAFKA_PROPERTIES:-}
CONF
  jvm kafka.tools.StorageTool format -t "$id" -c "$work/$i.properties" >"$work/$i.format" 2>&1
  java -Xmx"${KAFKA_HEAP:-512m}" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$jars/*" kafka.Kafka "$work/$i.properties" >"$work/$i.log" 2>&1 &
  pids+=($!)
done
up() { jvm org.apache.kafka.tools.TopicCommand --bootstrap-server "$brokers" --list >/dev/null 2>&1; }
for _ in $(seq 60); do up && break; sleep 1; done
up || { tail -n 20 "$work"/*.log >&2; echo "kafka.sh: Kafka did not come up" >&2; exit 1; }
KAFKA_BROKERS=$brokers KAFKA_DATA=$work KAFKA_PIDS=$(IFS=,; echo "${pids[*]}") "$@"
