#!/usr/bin/env bash
# Shows that Apache Kafka's own DumpLogSegments reads our segments without complaint: batches of every codec are written by
# gen, then every .log, .index, .timeindex and .snapshot is dumped with --deep-iteration, and the records are counted. The same of a
# compacted topic and of __consumer_offsets (--offsets-decoder), which compact fills and a server compacts.
# Needs Java 17 and Maven (the jars come from the Maven registry, once); without them it says so and succeeds.
#   run.sh        ours
#   run.sh kafka  a compacted topic and __consumer_offsets of Apache Kafka's own (../kafka/kafka.sh): the tool says the same of them
#   KAFKA_VERSION: of the tool (default 4.3.1)   DUMP_DIR: where jars are kept (default: under the user's cache)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=${KAFKA_VERSION:-4.3.1}
cache=${DUMP_DIR:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/chronik-dumplogsegments}
for tool in java mvn; do
  command -v "$tool" >/dev/null || { echo "dump-segments: SKIPPED, $tool is not installed"; exit 0; }
done
jars=$cache/$version
if [ ! -d "$jars" ]; then
  mkdir -p "$cache"
  for try in 1 2 3; do # a registry may not answer once
    rm -rf "$jars.part"
    if mvn -q -B -f "$here/pom.xml" -Dkafka.version="$version" dependency:copy-dependencies -DoutputDirectory="$jars.part"; then break; fi
    [ "$try" != 3 ] || exit 1
    sleep 5
  done
  mv "$jars.part" "$jars"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { echo "dump-segments: FAILED: $*" >&2; exit 1; }
join() { local IFS=,; echo "$*"; }
tool() { # FILES ARG…
  java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$jars/*" org.apache.kafka.tools.DumpLogSegments --files "$1" "${@:2}" \
    >"$work/out" 2>"$work/err" || { cat "$work/err" >&2; fail "the tool failed on $1"; }
  if grep -aiE 'mismatch|not found|out of order|corrupt|invalid|exception|error|unable|isvalid: false' "$work/out"; then fail "see above: $1"; fi
}
dump() { tool "$@"; [ ! -s "$work/err" ] || { cat "$work/err" >&2; fail "the tool complains about $1"; }; }

# gaps DIR OFFSETS: what 4.3.1 says of files with these records, of Kafka's own too (run.sh kafka): it expects the first record of
# every file at offset 0 ("lastOffset = -1; if (record.offset() != lastOffset + 1)"), so it says of each later segment that -1 is
# followed by its first offset, and of a compacted one which records are not there any more.
gaps() {
  (for f in "$1"/*.log; do f=${f##*/}; echo "base $((10#${f%.log}))"; done; sed 's/^/record /' "$2") | sort -s -n -k 2,2 | awk '
    $1 == "base" {last = -1; next}
    $2 != last + 1 {print "  " last " is followed by " $2}
    {last = $2}' | sort
}

# logs DIR OFFSETS ARG…: every segment of a partition holds just the records at these offsets (a file, a line each), and that is all
# that the tool has to say. --deep-iteration and so on.
logs() {
  tool "$(join "$1"/*.log)" --deep-iteration --print-data-log "${@:3}"
  grep -a '^| offset: ' "$work/out" | awk '{print $3}' | sort -n >"$work/read"
  cmp -s "$work/read" "$2" || { diff "$work/read" "$2" | head >&2 || true; fail "not the records that were expected in $1"; }
  grep -v '^Non-consecutive offsets in ' "$work/err" | sort >"$work/said" || true
  gaps "$1" "$2" | cmp -s - "$work/said" || { head "$work/said" >&2; fail "the tool complains about $1"; }
}

# indexes DIR: entries and times are how many the indexes hold.
indexes() {
  dump "$(join "$1"/*.index)" --deep-iteration
  entries=$(grep -c '^offset:' "$work/out") || true
  dump "$(join "$1"/*.index)" --index-sanity-check
  [ "$(grep -cE 'passed sanity check|\.index is empty' "$work/out")" = "$(ls "$1"/*.index | wc -l)" ] || { cat "$work/out" >&2; fail "an index of $1 did not pass the sanity check"; }
  dump "$(join "$1"/*.timeindex)" --deep-iteration
  times=$(grep -c '^timestamp:' "$work/out") || fail "no time index entries of $1"
  dump "$(join "$1"/*.snapshot)"
  producers=$(awk '/^producerId:/ {print $2}' "$work/out" | sort -u | wc -l)
}

# group_records WANT: the last dump of __consumer_offsets shows what groups have committed last, and records of both types of groups.
group_records() {
  grep -a '^| offset: .*"type":"1".*"group":"group-' "$work/out" |
    sed 's/.*"group":"\(group-[0-9]*\)".*payload: .*"offset":\([0-9]*\).*/\1 \2/' | awk '{last[$1] = $2} END {for (g in last) print g, last[g]}' | sort >"$work/commits"
  cmp -s "$work/commits" "$1" || { cat "$work/commits" >&2; fail "not the commits that were expected"; }
  grep -aq '"type":"2","data":{"group":"classic"}} payload: .*"protocolType":"consumer"' "$work/out" || fail "no record of the classic group"
  grep -aq '"type":"3","data":{"groupId":"next"}} payload: .*"epoch":' "$work/out" || fail "no record of the consumer group"
}

compacted() { # DIR OFFSETS of the compacted topic, then of __consumer_offsets, WANT
  logs "$1" "$2"
  [ "$(grep -c 'is followed by' "$work/said")" -gt 10 ] || fail "$1 is not compacted"
  for codec in none gzip snappy lz4 zstd; do grep -aq "compresscodec: $codec " "$work/out" || fail "no batch of codec $codec is left in $1"; done
  indexes "$1"
  [ "$entries" -gt 0 ] || fail "no index entries of $1"
  [ "$producers" = 5 ] || fail "$producers producers of $1 read, 5 wrote"
  logs "$3" "$4" --offsets-decoder
  [ "$(grep -c 'is followed by' "$work/said")" -gt 3 ] || fail "$3 is not compacted"
  group_records "$5"
  indexes "$3"
}

if [ "${1:-}" = kafka ]; then # once more below, with the brokers
  if [ -z "${KAFKA_BROKERS:-}" ]; then
    export KAFKA_PROPERTIES=$'log.cleaner.backoff.ms=100\noffsets.topic.num.partitions=1'
    bash "$here/../kafka/kafka.sh" with bash "$here/run.sh" kafka
    exit
  fi
  (cd "$here/../.." && go run ./test/dumplogsegments/compact -dir "$work" -brokers "$KAFKA_BROKERS")
  for p in ${KAFKA_PIDS//,/ }; do kill "$p"; done
  for p in ${KAFKA_PIDS//,/ }; do while kill -0 "$p" 2>/dev/null; do sleep 0.2; done; done
  dir=$(ls -d "$KAFKA_DATA"/*/compacted-0) offsets=$(ls -d "$KAFKA_DATA"/*/__consumer_offsets-0 | head -n 1)
  for d in "$dir" "$offsets"; do # what is there is what the tool reads: only what it says of it is compared
    tool "$(join "$d"/*.log)" --deep-iteration --print-data-log
    grep -a '^| offset: ' "$work/out" | awk '{print $3}' | sort -n >"$work/${d##*/}.offsets"
  done
  compacted "$dir" "$work/compacted-0.offsets" "$offsets" "$work/__consumer_offsets-0.offsets" "$work/__consumer_offsets.want"
  echo "dump-segments: Kafka's own: $(wc -l <"$work/compacted-0.offsets") records left of the compacted topic, $(wc -l <"$work/__consumer_offsets-0.offsets") of __consumer_offsets"
  exit
fi

dir=$work/topic-0
read -r batches records < <(cd "$here/../.." && go run ./test/dumplogsegments/gen -dir "$dir")
seq 0 $((records - 1)) >"$work/all"
logs "$dir" "$work/all"
got_batches=$(grep -ac '^baseOffset:' "$work/out")
[ "$got_batches" = "$batches" ] || fail "$got_batches batches read, $batches written"
for codec in none gzip snappy lz4 zstd; do grep -q "compresscodec: $codec " "$work/out" || fail "no batch of codec $codec was read"; done
indexes "$dir"
[ "$entries" -gt 0 ] || fail "no index entries"
[ "$producers" = 2 ] || fail "$producers producers read, 2 written"
all="$batches batches, $records records, $entries index and $times time index entries, $producers producers in $(ls "$dir"/*.log | wc -l) segments"
(cd "$here/../.." && go run ./test/dumplogsegments/compact -dir "$work")
topic=$(cat "$work/compacted.dir") offsets=$(cat "$work/__consumer_offsets.dir")
compacted "$topic" "$work/compacted.offsets" "$offsets" "$work/__consumer_offsets.offsets" "$work/__consumer_offsets.want"
# A test that cannot fail shows nothing: the same checks on planted faults.
planted() { # EXTENSION BYTE ARG…: the first byte of the field at BYTE in the first file, made another
  local bad=$work/bad file
  rm -rf "$bad"; cp -r "$dir" "$bad"
  file=$(ls "$bad"/*"$1" | head -n 1)
  printf '\x7e' | dd of="$file" bs=1 seek="$2" conv=notrunc status=none
  if (dump "$file" "${@:3}") >/dev/null 2>&1; then fail "a fault planted in a $1 file went unnoticed"; fi
}
planted .log 120 --deep-iteration --print-data-log
planted .index 7 --deep-iteration
planted .timeindex 7 --deep-iteration
planted .snapshot 20
sed 7d "$work/compacted.offsets" >"$work/less"
if (logs "$topic" "$work/less") >/dev/null 2>&1; then fail "a record more than was expected went unnoticed"; fi
sed '2s/$/0/' "$work/__consumer_offsets.want" >"$work/else"
if (logs "$offsets" "$work/__consumer_offsets.offsets" --offsets-decoder; group_records "$work/else") >/dev/null 2>&1; then fail "another commit went unnoticed"; fi

echo "dump-segments: ok: Kafka $version read $all; $(wc -l <"$work/compacted.offsets") records left of a compacted topic, $(wc -l <"$work/__consumer_offsets.offsets") of __consumer_offsets"
